/*
 * What a filesystem store does beside answering, in small steps: it looks through the folders for
 * files that the index does not know (after any end but a clean close), keeps the store within its
 * bound, removes what has ended, and tends the index's file.
 */
#ifndef LIARA_STORE_FILESYSTEM_UPKEEP_H
#define LIARA_STORE_FILESYSTEM_UPKEEP_H

#include "filesystem_sync.h"
#include "filesystem_tree.h"

#include <dirent.h>

/* The search for what the index does not know. */
struct fs_scan {
    unsigned folder; /* FS_FOLDERS: it is over */
    DIR *dir;        /* of that folder, NULL before its first name */
};

struct fs_upkeep {
    struct fs_tree *tree;
    struct fs_sync *sync;
    pthread_mutex_t lock; /* of what follows; taken before any other */
    struct fs_scan scan;
    bool evicting;
    unsigned sweep; /* the folder whose ended entries are removed; FS_FOLDERS: none */
    uint32_t sweep_bucket;
    int64_t next_sweep;
};

void fs_upkeep_init(struct fs_upkeep *upkeep, struct fs_tree *tree, struct fs_sync *sync);
void fs_upkeep_end(struct fs_upkeep *upkeep);

/* A step of all; the store may take up max bytes on the disk. As store_ops.upkeep. */
int fs_upkeep_step(struct fs_upkeep *upkeep, uint64_t max);

/*
 * What the making of files of cost bytes does for the whole, by PUTs or by filing, so that no load
 * outruns the upkeep: beyond 5 % over max it gives up as much as it has brought, so the store never
 * takes up more than that and what is being written; it moves a pending scan on, and writes the
 * index's file where much waits. What another thread is at already it leaves to that one. Any
 * thread.
 */
void fs_upkeep_help(struct fs_upkeep *upkeep, uint64_t max, uint64_t cost);

/* Ends the scan now. 0, or errno where a folder can't be looked through. Any thread. */
int fs_upkeep_finish_scan(struct fs_upkeep *upkeep);

#endif
