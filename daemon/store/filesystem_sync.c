#include "filesystem_sync.h"

#include "../log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void fs_sync_init(struct fs_sync *sync, struct fs_tree *tree)
{
    *sync = (struct fs_sync){.tree = tree};
    pthread_mutex_init(&sync->lock, NULL);
}

void fs_sync_end(struct fs_sync *sync)
{
    pthread_mutex_destroy(&sync->lock);
}

/* What is not there needs no sync; *opened is false where it could not be opened otherwise. */
static int sync_path(struct fs_tree *tree, const char *name, int flags, bool *opened)
{
    int fd = openat(tree->entries, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags);
    *opened = fd >= 0 || errno == ENOENT;
    if (fd < 0)
        return 0;
    int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return error;
}

/* One by one, which is cheap for folders: the first has the file system's own journal written, and
 * the others have nothing left to do. *all is set where that can't be done. */
static int sync_few(struct fs_tree *tree, const struct fs_dirty *dirty, bool *all)
{
    char name[FS_NAME_SIZE];
    bool opened = true;
    int error = 0;
    for (unsigned i = 0; i < dirty->files && error == 0 && opened; i++) {
        fs_file_name(dirty->file[i], name);
        error = sync_path(tree, name, 0, &opened);
    }
    for (unsigned i = 0; i < FS_FOLDERS && error == 0 && opened; i++) {
        snprintf(name, sizeof(name), "%02x", i);
        if (dirty->folder[i])
            error = sync_path(tree, name, O_DIRECTORY, &opened);
    }
    *all = !opened;
    return error;
}

static int sync_entries(struct fs_tree *tree, const struct fs_dirty *dirty)
{
    bool all = dirty->many;
    int error = all ? 0 : sync_few(tree, dirty, &all);
    if (all && error == 0)
        error = syncfs(tree->root) == 0 ? 0 : errno;
    return error;
}

static int remove_suspect(struct fs_tree *tree, XXH128_hash_t hash)
{
    uint64_t freed;
    fs_tree_lock(tree, hash);
    int error = fs_tree_remove(tree, hash, &freed);
    fs_tree_unlock(tree, hash);
    return error == ENOENT ? 0 : error;
}

static bool is_suspect(const struct fs_entry *entry, const void *arg)
{
    const struct fs_tree *tree = arg;
    const struct fs_place place = {.segment = entry->segment, .offset = entry->offset};
    if (place.segment != 0)
        return !fs_journal_is_synced(tree->journal, place);
    return fs_index_not_durable(entry, tree->index);
}

static int remove_suspects_of(struct fs_tree *tree, unsigned folder, unsigned long *removed)
{
    XXH128_hash_t hashes[FS_BATCH];
    int error = 0;
    for (uint32_t bucket = 0; bucket != FS_SHARD_END && error == 0;) {
        size_t count =
            fs_index_collect(tree->index, folder, &bucket, is_suspect, tree, hashes, FS_BATCH);
        for (size_t i = 0; i < count && error == 0; i++) {
            error = remove_suspect(tree, hashes[i]);
            *removed += error == 0;
        }
    }
    return error;
}

/*
 * The kernel tells of a failed sync once, and takes the lost pages for clean from then on: what was
 * lost can't be told from what was not, and a cache may forget. 0 or errno, and some are still
 * there.
 */
static int remove_suspects(struct fs_sync *sync)
{
    unsigned long removed = 0;
    int error = 0;
    for (unsigned folder = 0; folder < FS_FOLDERS && error == 0; folder++)
        error = remove_suspects_of(sync->tree, folder, &removed);
    log_error("%lu entries that may not have reached the disk were removed from %s", removed,
              sync->tree->directory);
    if (error != 0)
        log_error("others could not be removed: %s; PERSIST fails until they can", strerror(error));
    sync->suspect = error != 0;
    return error;
}

static bool is_nothing(const struct fs_dirty *dirty)
{
    return !dirty->many && dirty->files == 0 && dirty->folders == 0;
}

/* The lock is held. */
static int make_durable(struct fs_sync *sync)
{
    struct fs_tree *tree = sync->tree;
    uint32_t epoch;
    int error = sync->suspect ? remove_suspects(sync) : 0;
    if (error != 0)
        return error;
    struct fs_dirty dirty = fs_tree_take_dirty(tree, &epoch);
    if (is_nothing(&dirty) && !fs_journal_is_dirty(tree->journal) && sync->done)
        return 0;
    sync->done = false;
    /* Files and folders first: the journal's records that make others void rely on them. */
    error = sync_entries(tree, &dirty);
    if (error == 0)
        error = fs_journal_sync(tree->journal);
    if (error != 0) {
        fs_tree_all_dirty(tree);
        log_error("can't sync the entries of %s: %s", tree->directory, strerror(error));
        remove_suspects(sync);
        return error;
    }
    error = fs_index_persist(tree->index);
    if (error == 0)
        fs_index_set_durable(tree->index, epoch);
    sync->done = error == 0;
    return error;
}

int fs_sync_now(struct fs_sync *sync)
{
    pthread_mutex_lock(&sync->lock);
    int error = make_durable(sync);
    pthread_mutex_unlock(&sync->lock);
    return error;
}

bool fs_sync_tend_log(struct fs_sync *sync)
{
    if (pthread_mutex_trylock(&sync->lock) != 0)
        return false;
    bool more = fs_index_tend_log(sync->tree->index);
    pthread_mutex_unlock(&sync->lock);
    return more;
}
