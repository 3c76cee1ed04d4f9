/*
 * PERSIST of a filesystem store: its journal, the files of entries that are not in it, their
 * folders and the index's file onto stable storage. What it costs depends on what is new since the
 * last time, not on the store's size.
 *
 * Few new files are synced one by one, as are folders; for more files, the whole file system is,
 * once (syncfs, which tells of errors since Linux 5.8). Files that are written for what lies in the
 * journal are not its concern.
 */
#ifndef LIARA_STORE_FILESYSTEM_SYNC_H
#define LIARA_STORE_FILESYSTEM_SYNC_H

#include "filesystem_tree.h"

struct fs_sync {
    struct fs_tree *tree;
    pthread_mutex_t lock; /* of what follows, and of the index's file */
    bool done;            /* the last time ended well */
    bool suspect;         /* a sync failed, and what it was about is still there */
};

void fs_sync_init(struct fs_sync *sync, struct fs_tree *tree);
void fs_sync_end(struct fs_sync *sync);

/*
 * All that was stored before is on stable storage. 0, or errno, logged: then what may be lost has
 * been removed from the store, lest a later call takes it for safe. Any thread.
 */
int fs_sync_now(struct fs_sync *sync);

/* A step of the index file's upkeep; true where more is due at once. Does nothing where it would
 * have to wait for another thread. Any thread. */
bool fs_sync_tend_log(struct fs_sync *sync);

#endif
