/*
 * Where the engine keeps entries on disk: the few methods that a log of files and a database have
 * in common. A backing knows hashes, places and bytes. It does not know leases, connections, what
 * is worth keeping, or whether a record is still current: the engine's index alone knows that.
 *
 * One thread, the writer, calls everything that changes the disk, so a backing needs no lock for
 * that. read() and scan() are called by other threads at the same time.
 *
 * A *place* is where a record lies: the backing's own number, 1 to BACKING_PLACE_MAX, 0 is nowhere.
 * It is not used again within a run, so that a reader who took it from the index can't meet another
 * record there. After a restart load() tells the places anew.
 */
#ifndef LIARA_ENGINE_BACKING_H
#define LIARA_ENGINE_BACKING_H

#include "../../value.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BACKING_PLACE_MAX ((UINT64_C(1) << 44) - 1)

enum {
    BACKING_SECRET = 32,    /* bytes of the secret that keys the store's hashes */
    BACKING_FOUND_MAX = 256 /* entries that load() tells at a time */
};

struct backing;

/* One change for append(). The bytes are the caller's and do not change during the call. */
struct backing_record {
    uint64_t hash;
    const uint8_t *data; /* the key, then the value's bytes; NULL: a tombstone */
    uint32_t length;     /* of the value's bytes */
    uint16_t key_length;
    uint8_t cost; /* what it cost to compute, a class (evict.h); kept and told by load() */
    uint32_t flags;
    int64_t expires;   /* clock_now()'s milliseconds, or CLOCK_NEVER */
    uint64_t replaces; /* the place of an older record that no longer counts; 0: none is known */
    bool retire; /* neither record nor tombstone: it says no more than that replaces is out of date,
                    while a newer record or tombstone of the hash has been or is being written */
    uint64_t place; /* out: where it lies now; 0 for a tombstone */
};

/* A record as load() and scan() tell it. */
struct backing_found {
    uint64_t hash;
    uint64_t place;  /* 0: a tombstone */
    uint32_t length; /* of the value's bytes */
    uint16_t key_length;
    uint8_t cost;
    int64_t expires;    /* clock_now()'s milliseconds: as stored, but never further ahead than the
                           record's own time to live; or CLOCK_NEVER */
    const uint8_t *key; /* scan() only; holds during the call */
};

enum backing_verdict {
    BACKING_DEAD, /* the index does not name this place */
    BACKING_DROP, /* current, but not worth its room: it may be forgotten */
    BACKING_KEEP  /* current and worth keeping */
};

/* The engine's side, given to open() and kept until close(). All but found() are for the writer's
 * thread. */
struct backing_owner {
    void *arg;

    /* Entries as load() reads them, count of them (1 to BACKING_FOUND_MAX), in the order in which
     * they were written: the last word on a hash counts. An expired one counts too: it supersedes.
     */
    void (*found)(void *arg, const struct backing_found *found, unsigned count);

    /* What to do with the record in the oldest segment, or under the cursor of eviction. Changes
     * nothing. urgent: room is short, so that all but the best is to go. */
    enum backing_verdict (*judge)(void *arg, uint64_t hash, uint64_t place, bool urgent);

    /* The record was appended anew at another place. false: the index no longer named the old one,
     * so the copy is dead too. */
    bool (*moved)(void *arg, uint64_t hash, uint64_t from, uint64_t to);

    /* The record is gone from the disk (it was BACKING_DROP, or is damaged): whatever the index has
     * under this hash at this place is forgotten. */
    void (*forget)(void *arg, uint64_t hash, uint64_t place);

    /* All records from first to last (places, both included) are lost: a write or sync of theirs
     * has failed. The engine forgets these places and appends anew what memory still has, and
     * tombstones for the rest. Tombstones that are lost the backing writes again by itself, before
     * the next sync() is OK. */
    void (*lost)(void *arg, uint64_t first, uint64_t last);

    /* load() is about to tell about so many records. May be NULL. */
    void (*expect)(void *arg, uint64_t records);
};

struct backing_options {
    const char *directory; /* exists, is locked, belongs to the store alone */
    uint64_t max_size;     /* bytes on disk, as counted by du, within which it stays */
    struct backing_owner owner;
};

struct backing_stats {
    uint64_t disk_bytes;    /* what the store's files take */
    uint64_t written_bytes; /* appended since open(), moved records included */
    uint64_t moved_bytes;   /* of these, what was moved */
};

enum backing_read {
    BACKING_READ_OK,      /* *value is the caller's reference */
    BACKING_READ_GONE,    /* nothing lies there any more: look at the index again */
    BACKING_READ_OTHER,   /* the record is sound and has another key (two keys of one hash) */
    BACKING_READ_DAMAGED, /* wrong checksum or unreadable; logged once */
    BACKING_READ_AGAIN,   /* wait is false, and it would have to wait for the disk */
    BACKING_READ_FAILED   /* errno says why: ENOBUFS (too many bytes in flight), ENOMEM, EIO … */
};

struct backing_ops {
    const char *name; /* for messages: "log", "sqlite" */

    /*
     * Opens or makes the store in options->directory; secret is filled: with new random bytes where
     * the store is new, else with the store's own. NULL, and why in one line: what is wrong, with
     * which file, what would be right. Damage never stops the start: what is damaged is set aside
     * or left out, with a line in the log. A store of a newer or older layout does, untouched.
     */
    struct backing *(*open)(const struct backing_options *options, uint8_t secret[BACKING_SECRET],
                            char *why, size_t size);

    /* Tells all that lies there by owner.found(). Once, before any other call but close(). If
     * damage is found only at the end, owner.lost() takes back what was told. false, and why: only
     * if memory is short or the disk can't be read at all. */
    bool (*load)(struct backing *backing, char *why, size_t size);

    /*
     * Writes count records (1 to some thousand) in this order; durable only after sync(). 0 and
     * every record's place; or an errno (ENOSPC, EDQUOT, EIO …) and no record of this call counts,
     * now or after a restart. Earlier ones that it took with it were told by owner.lost(). EFBIG: a
     * record is larger than record_max(); the others of the call may be tried again without it.
     * While space is short it frees the oldest records by owner.judge() with urgent.
     */
    int (*append)(struct backing *backing, struct backing_record *records, unsigned count);

    /* Everything appended, forgotten and removed so far is on stable storage. 0, or an errno: then
     * owner.lost() has told what is not, and those places are never readable again. */
    int (*sync)(struct backing *backing);

    /*
     * A bounded step of what keeps the store in shape (evict, move, checkpoint), paid by every
     * batch: bytes says how many were appended since the last step. Returns the milliseconds until
     * it wants to be called although nothing was appended; negative: not before the next append.
     */
    int (*upkeep)(struct backing *backing, uint64_t bytes);

    /* Changes the bound; what is over it goes in the following steps of upkeep. Any thread. */
    void (*set_max_size)(struct backing *backing, uint64_t bytes);

    /* Bytes of key and value that a record may have, within max_size. Any thread. */
    uint64_t (*record_max)(struct backing *backing);

    /* Many records have been removed at once, and live_bytes of keys and values are left: the
     * following steps of upkeep give the room back to the file system, as far as that is worth its
     * cost. Any thread. */
    void (*compact)(struct backing *backing, uint64_t live_bytes);

    /*
     * Reads the record at place into a new value, checked against its checksum, with flags and end
     * set, if its key is this one. size: at least the bytes of key and value together, as the index
     * estimates them (at most a quarter too much). wait false: on an event loop, only what the page
     * cache has. Any thread.
     */
    enum backing_read (*read)(struct backing *backing, uint64_t place, uint64_t size,
                              const uint8_t *key, size_t key_length, bool wait,
                              struct value **value);

    /*
     * Tells records with their keys by found(arg, …), which returns false to stop: a page at a
     * time, from *cursor (0 at first) on, which it advances; may tell records that are dead, which
     * the caller sees by asking the index. An entry that was written before the first call and
     * still counts is told at least once, also if its record is moved meanwhile. Returns false at
     * the end (what was there at the first call has been told), or if reading failed (errno, else
     * 0). Any thread but an event loop's; blocks for the disk, holds no lock meanwhile.
     */
    bool (*scan)(struct backing *backing, uint64_t *cursor,
                 bool (*found)(void *arg, const struct backing_found *found), void *arg);

    /* Writer's thread, or any once that has ended. */
    struct backing_stats (*stats)(struct backing *backing);

    /* Closes without a sync; the engine has called it if it wanted one. No other call is under way.
     */
    void (*close)(struct backing *backing);
};

extern const struct backing_ops backing_log, backing_sqlite;

#endif
