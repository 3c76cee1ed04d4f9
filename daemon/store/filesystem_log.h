/*
 * The index on disk: the file "index" in the store's folder, to which records are only ever
 * appended, each with its checksum. Read from its beginning, the last record of an entry holds. A
 * tail that is torn or damaged is cut off at the first record that is not whole.
 *
 * Records gather in memory and are written in pieces; persist() puts them on stable storage. When
 * most of them speak of what is gone, a fresh file is written beside ("index.new") while the old
 * one is still appended to, and renamed over it.
 *
 * It knows nothing of entries' files. Calls marked (one at a time) are for one thread at a time;
 * the caller sees to that. The others are for any thread, and never wait for the disk.
 */
#ifndef LIARA_STORE_FILESYSTEM_LOG_H
#define LIARA_STORE_FILESYSTEM_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

struct fs_log;

/* The store's folder: its descriptor, and its path for what is said about it, both the caller's. */
struct fs_directory {
    int fd;
    const char *path;
};

enum fs_record_type {
    FS_PUT = 1,
    FS_DELETE,
    FS_PERSISTED, /* all that stands before it is on stable storage, the entries' files too */
    FS_CLOSED     /* the store was left in order: as the last record, it makes a scan needless */
};

/* As it stands in the file, in the machine's own byte order, followed by the key of a PUT. */
struct fs_record {
    uint64_t check;     /* of all that follows, the key included; filled in by the log */
    XXH128_hash_t hash; /* of the key; of FS_CLOSED: the state that the folders were left in */
    int64_t end;        /* the wall clock's milliseconds, or CLOCK_NEVER */
    int64_t ttl;        /* milliseconds left when this was written, or CLOCK_NEVER */
    int64_t used;       /* the wall clock's milliseconds of its last use */
    uint32_t length;
    uint16_t key_length;
    uint16_t type;
};

/* Takes a record read at the start; false (out of memory) ends the reading. */
typedef bool fs_log_replay(void *arg, const struct fs_record *record, const uint8_t *key);

/*
 * Opens the index file in directory, making it where it is missing or of no use, and calls replay
 * for its records. *clean: the last is FS_CLOSED, and the folders are still in the state that it
 * tells of. From here on, until fs_log_close() says so again, it is not. NULL, and why.
 */
struct fs_log *fs_log_open(struct fs_directory directory, XXH128_hash_t state,
                           fs_log_replay *replay, void *arg, bool *clean, char *why, size_t size);

/*
 * Writes what waits and frees. state: all is in order and on stable storage, and this is how the
 * folders are left; NULL: no mark of a clean close. NULL is fine. (one at a time)
 */
void fs_log_close(struct fs_log *log, const XXH128_hash_t *state);

/* Appends a record; key may be NULL where key_length is 0. Any thread. */
void fs_log_add(struct fs_log *log, struct fs_record record, const uint8_t *key);

/* Bytes that wait to be written. Any thread. */
size_t fs_log_waiting(struct fs_log *log);

/* Writes what waits, without syncing. (one at a time) */
void fs_log_flush(struct fs_log *log);

/*
 * Writes what waits and a mark that all before it is stable, and syncs the file. 0, or errno: then
 * the file is given up, and only a fresh one helps. (one at a time)
 */
int fs_log_persist(struct fs_log *log);

/* Whether the file is given up, or has outgrown what it needs for entries of them. Any thread. */
bool fs_log_wants_renewal(struct fs_log *log, uint64_t entries);

/*
 * Writing it afresh: begin; copy every entry there is, while fs_log_add() goes on; end, which puts
 * the new file in the old one's place. 0 or errno; a failure leaves no half-written file behind.
 * (one at a time; copy: with the entry's own lock held, so that no later record of it comes first)
 */
int fs_log_renew_begin(struct fs_log *log);
void fs_log_renew_copy(struct fs_log *log, struct fs_record record, const uint8_t *key);
int fs_log_renew_end(struct fs_log *log);

#endif
