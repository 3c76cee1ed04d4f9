/*
 * The log backing from within: the state that its files share, and what they do for each other.
 * format.h has the format on disk, segment.h the files and who may touch what.
 *
 *     seglog.c   open and close; the method table
 *     load.c     which segments belong to the log; tells their records
 *     recover.c  reads a segment that has no footer
 *     write.c    appends batches, begins and seals segments, syncs
 *     retire.c   keeps within max_size: empties the oldest segment
 *     read.c     reads a record; lists keys
 */
#ifndef LIARA_STORE_LOG_SEGLOG_H
#define LIARA_STORE_LOG_SEGLOG_H

#include "../engine/anchor.h"
#include "segment.h"

#include <errno.h>
#include <pthread.h>

enum {
    SEGLOG_STAGING = 1 << 20, /* bytes of a batch that are copied together */
    SEGLOG_COPY = 16 * 1024,  /* longer data goes from where it lies */
    SEGLOG_IOVECS = 128,
    SEGLOG_STEP = 64 /* records that a step of retirement looks at */
};

/* A batch that is being put together; nothing of it is in its segment's list before it is written.
 */
struct seglog_batch {
    uint8_t *staging;    /* SEGLOG_STAGING bytes */
    size_t used, joined; /* bytes in it; of these, in iov */
    struct iovec iov[SEGLOG_IOVECS];
    unsigned iovs;
    uint64_t length;        /* of the batch so far; 0: none is begun */
    struct log_item *items; /* LOG_BATCH_MAX of them */
    const uint8_t **keys;
    unsigned count;
    uint32_t keys_length;
};

/* How far the log reached; what was appended since can be taken back. */
struct seglog_mark {
    uint64_t number; /* of the head; 0: there was none */
    uint64_t end;
    uint32_t count;
};

struct seglog_retirement {
    struct segment *segment; /* NULL: none is under way; the caller's reference */
    struct log_item *items;
    uint32_t count, next;
    bool judged, unlinked;
    bool incomplete; /* damage hides some of its records */
    bool keep_all;   /* room is not short: only what is dead goes, but for make_room */
    uint64_t credit; /* bytes that may still be kept */
    uint8_t *buffer; /* for records that are moved */
};

struct seglog {
    struct backing_owner owner;
    char *directory;
    int directory_fd;
    uint8_t secret[BACKING_SECRET];
    _Atomic uint64_t wanted_size;    /* the bound, as any thread has set it */
    uint64_t max_size, segment_size; /* as the writer goes by it */
    uint64_t disk_bytes, written_bytes, moved_bytes;
    atomic_bool no_nowait; /* the file system has no RWF_NOWAIT */

    pthread_mutex_t lock;      /* see segment.h */
    struct segment **segments; /* in order; numbers are consecutive */
    unsigned count, capacity;
    unsigned open_fds, open_fds_max, hand;
    int reserve_fd; /* given up for a file that can't be opened otherwise; -1: it is */

    /* The writer's alone. */
    struct segment *head;
    struct seglog_batch batch;
    struct seglog_retirement retirement;
    int spare_fd; /* -1: there is none */
    uint64_t spare_size, spare_disk;
    bool directory_dirty;
    struct anchor anchor;
    bool superseding; /* something since the anchor's position has superseded older records */
    /* What compact() has asked for: live bytes and 1; 0: nothing. */
    _Atomic uint64_t compact_wanted;
    uint64_t compact_below; /* segments with a lower number are to go; 0: none */
    bool has_losses; /* owner.lost() was called, and no sync by the owner has succeeded since */
    /* Tombstones that a failed sync has taken along: items of this segment's list. They are
     * appended again before anything else. */
    struct segment *owed;
    uint32_t owed_from, owed_to;
    int64_t complain_after;
};

static inline struct seglog *seglog_of(struct backing *backing)
{
    return (struct seglog *)(void *)backing;
}

static inline bool seglog_is_shortage(int error)
{
    return error == ENOSPC || error == EDQUOT;
}

/* Says what is wrong, at most once in 10 s. */
void seglog_complain(struct seglog *log, int error, const char *what);

/* write.c. All return 0 or an errno; a failed sync has told owner.lost(). (writer) */

struct seglog_mark seglog_mark(const struct seglog *log);

/* Takes back everything appended since the mark, but not what a failed sync has taken. */
void seglog_retreat(struct seglog *log, struct seglog_mark mark);

/* A log whose last segment ends here, as the anchor tells it. */
uint64_t seglog_position(const struct segment *segment, uint64_t end);

/* What was appended since the mark stays: it can't be taken back any more. */
void seglog_settle(struct seglog *log, struct seglog_mark mark);

/* Adds a record to the batch under way; data stays until seglog_flush(). check need not be set.
 * *place is valid once that has succeeded. */
int seglog_add(struct seglog *log, struct log_item item, uint32_t flags, const uint8_t *data,
               uint64_t *place);
int seglog_flush(struct seglog *log);

/* Appends the tombstones again that a failed sync has taken; before anything else is appended. */
int seglog_append_owed(struct seglog *log);

/* Syncs the head and the directory. */
int seglog_sync_head(struct seglog *log);

/* Preallocates the next segment, if there is none yet. */
int seglog_make_spare(struct seglog *log);
void seglog_drop_spare(struct seglog *log);

int seglog_append(struct backing *backing, struct backing_record *records, unsigned count);
int seglog_sync(struct backing *backing);

/* Writes the footer, so that the next start is short; for close(). */
void seglog_finish(struct seglog *log);

/* seglog.c: goes by the bound that was set last. (writer) */
void seglog_take_max_size(struct seglog *log);

/* retire.c (writer) */

/* Frees the oldest segment without keeping any of it. false: there is none but the head, or the
 * head can't be synced. */
bool seglog_drop_oldest(struct seglog *log);

/* Retires segments until so many bytes can be added, as far as that is possible. */
void seglog_make_room(struct seglog *log, uint64_t bytes);
int seglog_upkeep(struct backing *backing, uint64_t bytes);
void seglog_end_retirement(struct seglog *log);

/* load.c */

/* Finds the segments and the secret; a new store gets one. false, and why. */
bool seglog_find(struct seglog *log, char *why, size_t size);
bool seglog_load(struct backing *backing, char *why, size_t size);

/* recover.c */

/*
 * Reads the segment's batches into its list. known_end: as the next segment's header says, else
 * UINT64_MAX; last: there is no next one, so that its tail may be torn. *void_before: damage hides
 * what was written, so all that is older than the list must not count. 0 or errno (no memory,
 * descriptors).
 */
int seglog_recover(struct seglog *log, struct segment *segment, uint64_t file_size,
                   uint64_t known_end, bool last, bool *void_before);

/* Lists a segment anew whose footer is damaged. *incomplete: damage hides some of its records.
 * false and errno. Any thread with a reference. */
bool seglog_relist(struct seglog *log, struct segment *segment, bool *incomplete);

/* read.c. Any thread. */
enum backing_read seglog_read(struct backing *backing, uint64_t place, uint64_t size,
                              const uint8_t *key, size_t key_length, bool wait,
                              struct value **value);
bool seglog_scan(struct backing *backing, uint64_t *cursor,
                 bool (*found)(void *arg, const struct backing_found *found), void *arg);

/* Reads a whole record, checked, into buffer (log_item_size() bytes). 0 or errno; EBADMSG. */
int seglog_read_record(struct seglog *log, struct segment *segment, const struct log_item *item,
                       uint8_t *buffer);

#endif
