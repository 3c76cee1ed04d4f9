/*
 * The files of the log: which segments there are, their descriptors, what is known of the records
 * in each. A segment is known by its list, in memory, while it is written to and for as long as it
 * has no footer; otherwise by the footer.
 *
 * The writer's thread alone adds and removes segments and changes their lists. Other threads reach
 * a segment through segment_acquire(), and must release it again: only then may its descriptor be
 * closed. The table, references, descriptors and lists are under seglog.lock, which is never held
 * across a system call that can wait for the disk.
 */
#ifndef LIARA_STORE_LOG_SEGMENT_H
#define LIARA_STORE_LOG_SEGMENT_H

#include "format.h"

#include <stdatomic.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    SEGMENT_NAME = 24,               /* bytes of a file's name */
    SEGMENT_SIZE_MIN = 4096,         /* of a very small store */
    SEGMENT_SIZE_MAX = 64 << 20,     /* what 23 bits of a place can tell apart, in units */
    SEGMENT_RECORDS_MAX = 256 * 1024 /* bounds what a list takes in memory */
};

struct seglog;

struct segment_list {
    struct log_item *items;
    uint32_t count, capacity;
    uint8_t *keys; /* of all items, one after the other */
    uint32_t keys_length, keys_capacity;
    uint32_t *keys_at; /* where the keys of each page begin */
};

struct segment {
    uint64_t number;
    uint64_t size;            /* of the file, while it can be written to */
    uint64_t disk;            /* bytes on disk */
    uint64_t seed;            /* of checksums, see log_seed() */
    _Atomic uint64_t end;     /* of the batches; a place behind it is gone */
    uint64_t synced, flushed; /* what lies before is on stable storage, is being written there */
    uint32_t last_unit, last_count; /* the last batch: its offset, its records */
    uint32_t count;                 /* of items and bytes of keys, in the list or the footer */
    uint32_t keys_length;
    bool large;       /* holds a single record */
    bool closed;      /* nothing is appended any more */
    bool sealed;      /* has a footer */
    bool dead;        /* a sync has failed: the file is not written to any more */
    bool untrimmed;   /* something lies behind the batches, which the next batch must not precede */
    bool dirty;       /* there is something to sync */
    bool entry_dirty; /* the directory was not synced since the file came */
    bool unmarked;    /* records came since the last batch that said what has been synced */
    bool vouched;     /* the footer says that all has been synced */
    bool recovered, void_before; /* load() has read its batches before its turn came */
    struct segment_list list;
    int fd; /* -1: not open */
    unsigned references;
    bool removed; /* from the table: the last reference frees */
};

/* A file in the store's directory, for reading and writing. -1 and errno. When descriptors run out,
 * the store gives up one that it does not need. */
int segment_open_file(struct seglog *log, const char *name, int flags);

void segment_name(uint64_t number, char name[SEGMENT_NAME]);
/* false: name is not a segment's. */
bool segment_parse_name(const char *name, uint64_t *number);

/* Where a record lies, as the engine knows it. */
uint64_t segment_place(uint64_t number, uint32_t unit);

/* A new one in the table, behind all others. NULL: out of memory. (writer) */
struct segment *segment_add(struct seglog *log, uint64_t number, int fd);

/* Takes it out of the table; readers that have it may go on. (writer) */
void segment_remove(struct seglog *log, struct segment *segment);

/* The segment of this place, with a reference; NULL: it is gone. Any thread. */
struct segment *segment_acquire(struct seglog *log, uint64_t place);
/* The first segment with this number or a higher one, likewise. */
struct segment *segment_acquire_from(struct seglog *log, uint64_t number);
void segment_release(struct seglog *log, struct segment *segment);

/* The descriptor of a segment to which the caller has a reference; -1 and errno. wait false: -1
 * with EAGAIN where the file is not open. Any thread. */
int segment_fd(struct seglog *log, struct segment *segment, bool wait);

/* Brings disk and the log's total up to date. (writer) */
void segment_account(struct seglog *log, struct segment *segment);

/* Room for so many more items and bytes of keys; false: out of memory. push and cut need none.
 * A list that other threads can see is changed under the lock. */
bool segment_list_reserve(struct segment_list *list, uint32_t items, uint32_t keys);
void segment_list_push(struct segment_list *list, const struct log_item *item, const uint8_t *key);
void segment_list_cut(struct segment_list *list, uint32_t count);
void segment_list_free(struct segment_list *list);

/* Bytes of keys of the first count items. */
uint32_t segment_list_keys(const struct segment_list *list, uint32_t count);

/* Writes the footer behind the batches and cuts the file off behind it. 0 or errno. (writer) */
int segment_write_footer(struct segment *segment);

/* Reads the trailer, and with it end, counts and last batch. false: there is no sound one; errno
 * is 0 unless the file could not be read for another reason than damage. (load) */
bool segment_read_trailer(struct segment *segment, uint64_t file_size);

/* A page of items, for load, scan and retirement. */
struct segment_page {
    struct log_item items[LOG_PAGE_ITEMS];
    unsigned count;
    uint8_t *keys; /* to be freed by the caller; NULL where they were not asked for */
};

/* Reads a page from the list or the footer. 0, or an errno; EBADMSG: damaged. Any thread with a
 * reference. */
int segment_read_page(struct seglog *log, struct segment *segment, uint32_t number, bool keys,
                      struct segment_page *page);

/* pread() and pwritev() until all is done. read: the bytes that were there, or -1; write: 0 or
 * errno. */
ssize_t segment_read(int fd, void *buffer, size_t length, uint64_t offset);
int segment_write(int fd, struct iovec *iov, unsigned count, uint64_t offset);

#endif
