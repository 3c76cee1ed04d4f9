/*
 * The journal of a filesystem store: what was stored lately and has no file of its own yet. Values
 * that wait together are appended with one write, and one sync makes all of them durable; the
 * entries' files are written later, in the background (filesystem_filing.h).
 *
 *   journal/0000002a   a segment: a header, then records, appended to and never changed
 *
 * A record has the hash of a key and the image of the entry, byte by byte what its file is to be;
 * or it has no image and says that the journal's earlier records of that hash count no more, and
 * that the file, if there is one, has the truth. Of several records of one hash the last counts.
 *
 * A segment is appended to until it is full or sealed. Sealed, it is walked through, its entries
 * are brought to their files and those to the disk; then it is removed, the oldest first, so that
 * no record outlives one that it made void.
 *
 * It knows neither the index nor the entries' files. Any thread, but for what is marked.
 */
#ifndef LIARA_STORE_FILESYSTEM_JOURNAL_H
#define LIARA_STORE_FILESYSTEM_JOURNAL_H

#include "../value.h"
#include "filesystem_log.h"
#include "filesystem_segment.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

enum {
    FS_JOURNAL_VALUE_MAX = 64 * 1024, /* larger values get their files at once */
    FS_JOURNAL_BATCH = 256            /* records that are appended together, at most */
};

struct fs_journal;

/* What is to be appended. */
struct fs_journal_record {
    XXH128_hash_t hash;
    const struct value *value; /* NULL: from here on the journal knows nothing of the hash */
    uint32_t offset;           /* out */
};

/* Takes a record read at the start; false (out of memory) ends the reading. */
typedef bool fs_journal_replay(void *arg, const struct fs_segment_item *item);

/*
 * Opens the journal in directory, making its folder where it is missing, and calls replay for its
 * records in their order. It is to take up no more than bound bytes; 0: it takes nothing new.
 * *intact: nothing of it was damaged or torn, what was is logged. NULL, and why.
 */
struct fs_journal *fs_journal_open(struct fs_directory directory, uint64_t bound,
                                   fs_journal_replay *replay, void *arg, bool *intact, char *why,
                                   size_t size);

/* Frees; syncs nothing. NULL is fine. One thread. */
void fs_journal_close(struct fs_journal *journal);

void fs_journal_set_bound(struct fs_journal *journal, uint64_t bytes);
uint64_t fs_journal_bound(struct fs_journal *journal);

/* Whether an entry of so many bytes, key and value, is for the journal, and has room in it behind
 * others of waiting bytes. */
bool fs_journal_takes(struct fs_journal *journal, uint64_t bytes, uint64_t waiting);

/*
 * Appends up to FS_JOURNAL_BATCH records with one write, all into *segment, and fills in their
 * offsets. 0, or errno and none is there. Nothing is synced.
 */
int fs_journal_append(struct fs_journal *journal, struct fs_journal_record *records, unsigned count,
                      unsigned *segment);

/*
 * Puts all that was appended before on stable storage. 0 or errno: then the segment that failed is
 * never synced again, what is_synced() denies is for the caller to give up, and this fails (EIO)
 * until the segment has been removed.
 */
int fs_journal_sync(struct fs_journal *journal);
bool fs_journal_is_synced(struct fs_journal *journal, struct fs_place place);

/* Whether fs_journal_sync() has something to do. */
bool fs_journal_is_dirty(struct fs_journal *journal);

/* The descriptor of a segment, to be read from until it is released; -1: it is gone. */
int fs_journal_hold(struct fs_journal *journal, unsigned segment);
void fs_journal_release(struct fs_journal *journal, unsigned segment);

/* Bytes on the disk; whether that is much of the bound; milliseconds since the last append, or
 * the opening. */
uint64_t fs_journal_bytes(struct fs_journal *journal);
bool fs_journal_is_pressed(struct fs_journal *journal);
int64_t fs_journal_quiet_for(struct fs_journal *journal);

/* The oldest segment that is sealed; seal: else what there is is sealed. 0: there is none. */
unsigned fs_journal_oldest(struct fs_journal *journal, bool seal);

/*
 * A segment leaves in two steps: removed from the disk, for good (0 or errno; may be called again);
 * and, once nothing is to be looked up in it any more, dropped. (one thread at a time)
 */
int fs_journal_remove(struct fs_journal *journal, unsigned segment);
void fs_journal_drop(struct fs_journal *journal, unsigned segment);

/* Begins to go through a sealed segment, which must stay as long. false: out of memory. */
bool fs_journal_walk(struct fs_journal *journal, unsigned segment, struct fs_segment_walk *walk);

#endif
