/*
 * Brings changes to the disk: one thread, one queue, in the order in which the changes were made.
 * The queue names hashes, not bytes: what is written is the newest there is when a batch is formed,
 * or a tombstone if there is nothing. So to overwrite what is still queued queues nothing more.
 *
 * Who changes an entry reserves room first, then changes the index and pushes under one hold of the
 * shard's lock, which can't fail. Where there is no room the request waits its turn
 * (writer_wait_for_room()). PERSIST is a barrier in the queue: what was pushed before it is written
 * and synced when it is answered; it needs no room and is never refused.
 *
 * After a failed write everything stays in memory and is tried again, every half second and for
 * each PERSIST, which is answered with the error meanwhile. After a failed sync what the backing
 * says is lost is written anew out of memory, or superseded by a tombstone, before any PERSIST is
 * OK again; and one PERSIST that began later is answered with the error in any case.
 *
 * Its lock is taken under a shard's (writer_push()); it holds none when it calls the backing.
 */
#ifndef LIARA_ENGINE_WRITER_H
#define LIARA_ENGINE_WRITER_H

#include "../../loop.h"
#include "backing.h"
#include "entries.h"

struct writer;

/* A request that waits for room, or a PERSIST. Lives in its owner's struct, in one list at a time.
 */
struct writer_wait {
    struct writer_wait *next; /* the writer's */
    uint64_t barrier, number; /* likewise */
    struct loop *loop;        /* where the task is to run */
    struct loop_task task;    /* run() is the owner's; posted once */
    int error;                /* PERSIST's result: 0, or an errno */
};

/*
 * For changes of these entries, written to the backing; both outlive it. At most unwritten_max
 * bytes and so many changes are on their way. Its thread runs from writer_start() on, once the
 * backing is loaded. NULL, or false, with errno.
 */
struct writer *writer_new(struct entries *entries, const struct backing_ops *ops,
                          struct backing *backing, uint64_t unwritten_max, uint32_t changes);
bool writer_start(struct writer *writer);

/*
 * Writes and syncs what is left, tries again for so many milliseconds if that fails, and ends the
 * thread. Returns how many changes did not reach the disk; 0 where it was not started. Nobody
 * pushes or waits any more.
 */
uint64_t writer_stop(struct writer *writer, int64_t milliseconds);

/* Frees it; it has not been started, or is stopped. NULL is fine. */
void writer_free(struct writer *writer);

/* Changes what may be unwritten; for a new bound on memory. Any thread. */
void writer_set_unwritten_max(struct writer *writer, uint64_t bytes);

/* The backing's bound, known to it already, has changed: batches are small beside it, and what is
 * over it is seen to at once. Any thread. */
void writer_set_max_size(struct writer *writer, uint64_t bytes);

/* A step of the backing's upkeep is due at once. Any thread. */
void writer_want_upkeep(struct writer *writer);

/* Entries that were acknowledged and are gone all the same, since the start: their records were
 * lost, and memory no longer had them. Any thread. */
uint64_t writer_lost_count(const struct writer *writer);

/* Room for one change that brings so many unwritten bytes. false: there is none now. Any thread. */
bool writer_reserve(struct writer *writer, uint64_t bytes);
void writer_unreserve(struct writer *writer);

/* The error that keeps the writer from writing at present, an errno; 0: none. Any thread. */
int writer_error(const struct writer *writer);

/*
 * Queues a change that room was reserved for. place: of a record that no longer counts and that no
 * entry knows any more; else 0. The shard of the hash is locked.
 */
void writer_push(struct writer *writer, uint64_t hash, uint64_t place);

/* Has wait->task run on wait->loop once there may be room again, or the writer has failed again.
 * Any thread. */
void writer_wait_for_room(struct writer *writer, struct writer_wait *wait);

/* Has wait->task run once all that was pushed before is on stable storage, or can't be. Any thread.
 */
void writer_persist(struct writer *writer, struct writer_wait *wait);

/* Blocks until there is room for one change (writer_reserve()) or the writer fails; for threads
 * that may wait. false: it has failed. */
bool writer_reserve_waiting(struct writer *writer);

/* The writer's thread, for backing_owner.lost: the records at these places are gone. */
void writer_lost(struct writer *writer, uint64_t first, uint64_t last);

/* For load(), before any other thread knows the store: a record that no entry names any more is to
 * be superseded. false: no memory. */
bool writer_supersede(struct writer *writer, uint64_t hash, uint64_t place);

/* Changes that are queued. Any thread. */
uint64_t writer_queued(struct writer *writer);

#endif
