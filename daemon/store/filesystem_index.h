/*
 * What is in a filesystem store: every entry's key, size, end and last use, in memory, and the log
 * that brings it back at the next start (filesystem_log.h).
 *
 * 256 shards, one for each folder of files, each a table of chains under its own lock, which is
 * held for a look-up or a bounded walk and never across a system call (a shard grows by itself, so
 * with 1,000,000 entries the longest growth moves 4,096). An entry takes 51 bytes and its key,
 * rounded up by malloc, and 8 to 16 in the table: about 80 bytes and the key.
 *
 * After a clean close the index is certain: what it does not know is not there. After any other end
 * it is only a hint until the folders have been gone through: then it answers FS_UNSURE, and the
 * caller looks at the file and tells what it found (settle, remove). Entries that lie in the
 * journal are certain: it is read before the index's own log.
 *
 * Any thread may call any of these, but for those marked. Changes of one entry's file and of its
 * entry here are kept in order by the caller, who holds a lock over both.
 */
#ifndef LIARA_STORE_FILESYSTEM_INDEX_H
#define LIARA_STORE_FILESYSTEM_INDEX_H

#include "filesystem_file.h"
#include "filesystem_journal.h"
#include "filesystem_log.h"

#include <stdbool.h>

#define FS_SHARD_END UINT32_MAX

struct fs_index;

struct fs_entry {
    struct fs_entry *next;
    XXH128_hash_t hash;
    int64_t expires; /* clock_now()'s milliseconds, or CLOCK_NEVER */
    int64_t used;    /* microseconds as clock_tick(); negative before the clock's own start */
    uint32_t length; /* of the value */
    union {
        uint32_t offset; /* in the journal's segment, where it lies there */
        uint32_t epoch;  /* else of its storing; see fs_index_next_epoch() */
    };
    uint16_t key_length : 11;
    uint16_t has_file : 1; /* while it lies in the journal: a file is under its name, too */
    uint16_t verified : 1; /* the file's bytes were found right in this run */
    uint8_t segment : 6;   /* of the journal; 0: it has its file */
    bool loaded : 1;       /* known from the log alone: nobody has looked at the file since */
    bool listed : 1;       /* a scan of its folder has met the file */
    uint8_t key[];
};

enum fs_known { FS_ABSENT, FS_PRESENT, FS_UNSURE };

struct fs_facts {
    uint32_t length;
    int64_t expires;
    struct fs_place place; /* in the journal; segment 0: it has its file */
};

/* A new entry with a file, used now, not in the index yet: the caller's to free() or hand on. NULL:
 * ENOMEM. */
struct fs_entry *fs_entry_new(XXH128_hash_t hash, const uint8_t *key, size_t key_length,
                              uint32_t length, int64_t expires);

/*
 * An empty index of a store whose files take up multiples of block bytes, with tables for so many
 * entries, a guess; NULL: ENOMEM. Before fs_index_load() it is only for what is read from the
 * journal. One thread.
 */
struct fs_index *fs_index_new(uint32_t block, uint64_t entries);

/* How a store is found. */
struct fs_found {
    XXH128_hash_t state; /* a summary of how the folders look */
    bool empty;          /* they have no file at all */
    bool doubtful;       /* something is damaged: the log is not to be believed without a look */
};

/*
 * Reads the log in directory, and keeps it from here on. What lies in the journal already it leaves
 * as it is. false, and why. One thread.
 */
bool fs_index_load(struct fs_index *index, struct fs_directory directory,
                   const struct fs_found *found, char *why, size_t size);

/*
 * Closes and frees. state: all is on stable storage, and the next start may rely on the index if it
 * finds the folders like this; NULL: it may not. NULL for index is fine. One thread.
 */
void fs_index_close(struct fs_index *index, const XXH128_hash_t *state);

/*
 * Whether the key is there, which counts as a use of it; *facts where it is. An entry past its end
 * is absent. looked: the caller has just settled it, so that there is no FS_UNSURE.
 */
enum fs_known fs_index_find(struct fs_index *index, XXH128_hash_t hash, const uint8_t *key,
                            size_t key_length, bool looked, struct fs_facts *facts);

/* The same for whatever key the entry has, and no use of it. */
enum fs_known fs_index_alive(struct fs_index *index, XXH128_hash_t hash, bool looked);

/* Takes the entry over, in place of the one with the same hash; with its place, if it lies in the
 * journal. */
void fs_index_put(struct fs_index *index, struct fs_entry *entry);

/* Where the entry lies in the journal. segment 0: nowhere, or there is no such entry. */
struct fs_place fs_index_place(struct fs_index *index, XXH128_hash_t hash);

/* The entry that lies at place, if it still does, has a file now; and has it on stable storage, and
 * does not lie in the journal any more. */
void fs_index_has_file(struct fs_index *index, XXH128_hash_t hash, struct fs_place place);
void fs_index_filed(struct fs_index *index, XXH128_hash_t hash, struct fs_place place);

/* Whether the entry's file is marked as verified in this run, by fs_index_verify(). */
bool fs_index_verified(struct fs_index *index, XXH128_hash_t hash);
void fs_index_verify(struct fs_index *index, XXH128_hash_t hash);

/* As fs_index_put() for what was found in a file: what is known already is only confirmed, and what
 * lies in the journal stays as it is. */
void fs_index_settle(struct fs_index *index, struct fs_entry *entry);

/* Forgets the entry; returns the bytes its file took up on the disk, 0 where there was none. */
uint64_t fs_index_remove(struct fs_index *index, XXH128_hash_t hash);

/* A scan has met a file of so many bytes: true where that is no news. */
bool fs_index_listed(struct fs_index *index, XXH128_hash_t hash, uint64_t file_size);

/* A scan is through with the folder: from now on the index is certain of it. */
void fs_index_set_certain(struct fs_index *index, unsigned shard);

/* Whether it is certain of all. */
bool fs_index_certain(const struct fs_index *index);

/* What an entry of this size takes up on the disk. */
uint64_t fs_index_cost(const struct fs_index *index, size_t key_length, uint64_t length);

/* All that there is: entries, bytes of keys and values, bytes of files on the disk. */
uint64_t fs_index_entries(const struct fs_index *index);
uint64_t fs_index_bytes(const struct fs_index *index);
uint64_t fs_index_disk(const struct fs_index *index);

/* Adds up entries and bytes of what begins with prefix and has not ended. */
void fs_index_count(struct fs_index *index, const uint8_t *prefix, size_t length, uint64_t *entries,
                    uint64_t *bytes);

typedef bool fs_match(const struct fs_entry *entry, const void *arg);

/*
 * The hashes of up to room matching entries of a shard, beginning at *bucket (0 at first), which it
 * moves on, to FS_SHARD_END where the shard is through. Where room is filled, *bucket stays, for
 * the caller to remove these and ask again. The walk is bounded, so 0 does not yet mean the end.
 * Entries that are there all the time are met at least once.
 */
size_t fs_index_collect(struct fs_index *index, unsigned shard, uint32_t *bucket, fs_match *match,
                        const void *arg, XXH128_hash_t *hashes, size_t room);

/* The entry to give up next; false where there is none. The one place that knows the policy. */
bool fs_index_victim(struct fs_index *index, XXH128_hash_t *hash);

/* No entry ends before this (clock_now()'s milliseconds, or CLOCK_NEVER): of all, of a shard. */
int64_t fs_index_earliest(const struct fs_index *index);
int64_t fs_index_shard_earliest(struct fs_index *index, unsigned shard);

/* Looks again when the first of a shard, of all, ends; for who has removed what had ended. */
void fs_index_renew_shard_earliest(struct fs_index *index, unsigned shard);
void fs_index_renew_earliest(struct fs_index *index);

/*
 * Entries belong to the epoch in which they were stored. Begins a new one and returns the one that
 * ends; fs_index_set_durable() says that all up to that one are on stable storage.
 */
uint32_t fs_index_next_epoch(struct fs_index *index);
void fs_index_set_durable(struct fs_index *index, uint32_t epoch);

/* For fs_index_collect(): entries whose files are not on stable storage; arg is the index. */
bool fs_index_not_durable(const struct fs_entry *entry, const void *arg);

/*
 * The log's upkeep. Writes what waits if it is much or all, and does a step of writing the file
 * afresh where that is due; true where more is due at once. One thread at a time.
 */
bool fs_index_tend_log(struct fs_index *index);

/* Whether there is something for fs_index_tend_log() to do. */
bool fs_index_log_waits(struct fs_index *index);

/* Puts the log on stable storage, afresh if it must be. 0 or errno. One thread at a time. */
int fs_index_persist(struct fs_index *index);

#endif
