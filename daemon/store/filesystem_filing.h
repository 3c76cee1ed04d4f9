/*
 * Filing: the entries of a filesystem store's journal get their own files, in the background, on a
 * thread of its own that gives way to all others. Segment by segment, the oldest first: every entry
 * that still lies in it is written to its file; all these are synced at once; the segment is
 * removed, for good; and only then the index looks for them in their files. So at any moment one of
 * the two is whole, and on stable storage if PERSIST had been answered.
 *
 * It waits for a pause, but no longer than half a minute, and not where the journal is half full.
 */
#ifndef LIARA_STORE_FILESYSTEM_FILING_H
#define LIARA_STORE_FILESYSTEM_FILING_H

#include "../pool.h"
#include "filesystem_tree.h"

enum fs_filing_phase { FS_FILE_ENTRIES, FS_SYNC_FILES, FS_REMOVE_SEGMENT, FS_CHANGE_INDEX };

struct fs_filing {
    struct fs_tree *tree;
    void (*make_room)(void *arg, uint64_t bytes);
    void *arg;
    struct pool *pool;
    int root; /* the store's folder, opened anew: another's sync must not swallow our errors */
    bool nice;
    int64_t overdue;  /* clock_now()'s milliseconds: no longer it waits for a pause */
    unsigned segment; /* 0: none */
    enum fs_filing_phase phase;
    bool walking;
    struct fs_segment_walk walk;
};

/*
 * Starts the thread, which calls make_room(arg, …) for the bytes of the files it has made. false,
 * and why. tree must stay until fs_filing_end().
 */
bool fs_filing_start(struct fs_filing *filing, struct fs_tree *tree,
                     void (*make_room)(void *arg, uint64_t bytes), void *arg, char *why,
                     size_t size);

/* Ends it. What can be filed in that many milliseconds still is; the rest stays in the journal. */
void fs_filing_end(struct fs_filing *filing, int64_t milliseconds);

#endif
