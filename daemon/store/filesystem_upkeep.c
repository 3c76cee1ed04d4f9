#include "filesystem_upkeep.h"

#include "../clock.h"
#include "../log.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SCAN_STEP = 64,  /* names that a step of upkeep looks at */
    SCAN_PUT = 8,    /* and that a PUT does, lest a scan never ends on a busy store */
    EVICT_STEP = 32, /* victims of a step of upkeep */
    UPKEEP_PAUSE_MS = 1000,
    SWEEP_PAUSE_MS = 100
};

void fs_upkeep_init(struct fs_upkeep *upkeep, struct fs_tree *tree, struct fs_sync *sync)
{
    *upkeep = (struct fs_upkeep){.tree = tree, .sync = sync, .sweep = FS_FOLDERS};
    upkeep->scan.folder = fs_index_certain(tree->index) ? FS_FOLDERS : 0;
    pthread_mutex_init(&upkeep->lock, NULL);
}

void fs_upkeep_end(struct fs_upkeep *upkeep)
{
    if (upkeep->scan.dir != NULL)
        closedir(upkeep->scan.dir);
    pthread_mutex_destroy(&upkeep->lock);
}

/* The end of a folder: what the index had of it and the scan has not met. */
static bool is_unlisted(const struct fs_entry *entry, const void *arg)
{
    (void)arg;
    return entry->loaded && !entry->listed;
}

static int settle_unlisted(struct fs_upkeep *upkeep, unsigned folder)
{
    XXH128_hash_t hashes[FS_BATCH];
    int error = 0;
    for (uint32_t bucket = 0; bucket != FS_SHARD_END && error == 0;) {
        size_t count = fs_index_collect(upkeep->tree->index, folder, &bucket, is_unlisted, NULL,
                                        hashes, FS_BATCH);
        for (size_t i = 0; i < count && error == 0; i++)
            error = fs_tree_check(upkeep->tree, hashes[i]);
    }
    return error;
}

static int scan_open(struct fs_upkeep *upkeep)
{
    char name[3];
    snprintf(name, sizeof(name), "%02x", upkeep->scan.folder & 0xff);
    int fd = openat(upkeep->tree->entries, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno;
    upkeep->scan.dir = fdopendir(fd);
    if (upkeep->scan.dir != NULL)
        return 0;
    int error = errno;
    close(fd);
    return error;
}

static void scan_next_folder(struct fs_upkeep *upkeep)
{
    if (upkeep->scan.dir != NULL)
        closedir(upkeep->scan.dir);
    upkeep->scan.dir = NULL;
    upkeep->scan.folder++;
}

/* All names of the folder are known. */
static int scan_end_folder(struct fs_upkeep *upkeep)
{
    int error = settle_unlisted(upkeep, upkeep->scan.folder);
    if (error != 0)
        return error;
    fs_index_set_certain(upkeep->tree->index, upkeep->scan.folder);
    scan_next_folder(upkeep);
    return 0;
}

/* Looks at files that the index does not know, or knows by another size. */
static int scan_name(struct fs_upkeep *upkeep, const char *name)
{
    XXH128_hash_t hash;
    struct stat st;
    if (!fs_file_parse_name(upkeep->scan.folder, name, &hash))
        return 0;
    if (fstatat(dirfd(upkeep->scan.dir), name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(st.st_mode) && fs_index_listed(upkeep->tree->index, hash, (uint64_t)st.st_size))
        return 0;
    return fs_tree_check(upkeep->tree, hash);
}

static int scan_names(struct fs_upkeep *upkeep, unsigned names)
{
    for (unsigned i = 0; i < names; i++) {
        errno = 0;
        const struct dirent *entry = readdir(upkeep->scan.dir);
        int error = entry != NULL ? scan_name(upkeep, entry->d_name) : errno;
        if (error != 0)
            return error;
        if (entry != NULL)
            continue;
        return scan_end_folder(upkeep);
    }
    return 0;
}

/* After a shortage the folder is begun again later; after other trouble it stays uncertain. */
static void scan_failed(struct fs_upkeep *upkeep, int error)
{
    if (fs_tree_is_shortage(error)) {
        if (upkeep->scan.dir != NULL)
            rewinddir(upkeep->scan.dir);
        return;
    }
    log_error("can't look through %s/entries/%02x: %s", upkeep->tree->directory,
              upkeep->scan.folder, strerror(error));
    scan_next_folder(upkeep);
}

/* Looks at so many names more, or what is left of a folder. 0 or errno. The lock is held. */
static int scan_step(struct fs_upkeep *upkeep, unsigned names)
{
    if (upkeep->scan.folder == FS_FOLDERS)
        return fs_index_certain(upkeep->tree->index) ? 0 : EIO;
    int error = upkeep->scan.dir == NULL ? scan_open(upkeep) : 0;
    if (error == ENOENT)
        error = scan_end_folder(upkeep);
    else if (error == 0)
        error = scan_names(upkeep, names);
    if (error != 0)
        scan_failed(upkeep, error);
    if (upkeep->scan.folder == FS_FOLDERS && fs_index_certain(upkeep->tree->index))
        log_info("%s: looked through all folders, %llu entries", upkeep->tree->directory,
                 (unsigned long long)fs_index_entries(upkeep->tree->index));
    return error;
}

/* Returns the bytes given back, and one for the entry; 0 where there was nothing to give up. */
static uint64_t evict_one(struct fs_tree *tree)
{
    XXH128_hash_t hash;
    uint64_t freed = 0;
    if (!fs_index_victim(tree->index, &hash))
        return 0;
    fs_tree_begin_store(tree);
    fs_tree_lock(tree, hash);
    int error = fs_tree_remove(tree, hash, &freed);
    fs_tree_unlock(tree, hash);
    fs_tree_end_store(tree);
    if (error != 0 && error != ENOENT)
        fs_tree_complain(tree, error, "can't remove an entry to make room");
    return error == 0 || error == ENOENT ? freed + 1 : 0;
}

/* The journal's share of max is kept free for it, so that filling it calls for no room. */
static uint64_t max_of_files(const struct fs_tree *tree, uint64_t max)
{
    uint64_t bound = fs_journal_bound(tree->journal);
    return bound < max ? max - bound : max;
}

/* Goes a little below the bound, so that not every PUT calls for it. True: there is more to do. */
static bool evict_step(struct fs_upkeep *upkeep, uint64_t max)
{
    max = max_of_files(upkeep->tree, max);
    if (fs_index_disk(upkeep->tree->index) > max)
        upkeep->evicting = true;
    for (unsigned i = 0; i < EVICT_STEP && upkeep->evicting; i++) {
        if (fs_index_disk(upkeep->tree->index) <= max - max / 16 || evict_one(upkeep->tree) == 0)
            upkeep->evicting = false;
    }
    return upkeep->evicting;
}

static bool has_ended(const struct fs_entry *entry, const void *arg)
{
    const int64_t *now = arg;
    return store_expired(entry->expires, *now);
}

/* Removes an entry that has ended, if its file agrees. 0 or errno. */
static int remove_ended(struct fs_upkeep *upkeep, XXH128_hash_t hash)
{
    uint64_t freed;
    int error = 0;
    fs_tree_lock(upkeep->tree, hash);
    enum fs_known alive = fs_index_alive(upkeep->tree->index, hash, false);
    if (alive == FS_UNSURE) {
        error = fs_tree_settle(upkeep->tree, hash);
        alive = fs_index_alive(upkeep->tree->index, hash, true);
    }
    if (error == 0 && alive == FS_ABSENT)
        error = fs_tree_remove(upkeep->tree, hash, &freed);
    fs_tree_unlock(upkeep->tree, hash);
    return error == ENOENT ? 0 : error;
}

/* A batch of one folder. A folder in which one can't be removed is left until the next sweep. */
static void sweep_folder(struct fs_upkeep *upkeep, int64_t now)
{
    XXH128_hash_t hashes[FS_BATCH];
    int error = 0;
    size_t count = fs_index_collect(upkeep->tree->index, upkeep->sweep, &upkeep->sweep_bucket,
                                    has_ended, &now, hashes, FS_BATCH);
    for (size_t i = 0; i < count && error == 0; i++)
        error = remove_ended(upkeep, hashes[i]);
    if (error != 0)
        fs_tree_complain(upkeep->tree, error, "can't remove an entry that has ended");
    if (error == 0 && upkeep->sweep_bucket != FS_SHARD_END)
        return;
    fs_index_renew_shard_earliest(upkeep->tree->index, upkeep->sweep);
    upkeep->sweep++;
    upkeep->sweep_bucket = 0;
}

/* Removes what has ended, folder by folder; the more entries, the less often. True: more to do. */
static bool sweep_step(struct fs_upkeep *upkeep)
{
    int64_t now = clock_now();
    if (upkeep->sweep == FS_FOLDERS) {
        if (now < upkeep->next_sweep || now < fs_index_earliest(upkeep->tree->index))
            return false;
        upkeep->sweep = 0;
    }
    while (upkeep->sweep < FS_FOLDERS &&
           fs_index_shard_earliest(upkeep->tree->index, upkeep->sweep) > now)
        upkeep->sweep++;
    if (upkeep->sweep < FS_FOLDERS) {
        sweep_folder(upkeep, now);
        return true;
    }
    fs_index_renew_earliest(upkeep->tree->index);
    upkeep->next_sweep =
        now + SWEEP_PAUSE_MS + (int64_t)(fs_index_entries(upkeep->tree->index) / 100);
    return false;
}

/* When upkeep is wanted again if nothing is to be done at once. */
static int pause_of(struct fs_upkeep *upkeep)
{
    int64_t now = clock_now(), due = fs_index_earliest(upkeep->tree->index);
    if (due < upkeep->next_sweep)
        due = upkeep->next_sweep;
    if (due >= now + UPKEEP_PAUSE_MS)
        return UPKEEP_PAUSE_MS;
    return due > now ? (int)(due - now) : 0;
}

int fs_upkeep_step(struct fs_upkeep *upkeep, uint64_t max)
{
    if (pthread_mutex_trylock(&upkeep->lock) != 0)
        return UPKEEP_PAUSE_MS;
    bool more = upkeep->scan.folder < FS_FOLDERS && scan_step(upkeep, SCAN_STEP) == 0;
    more = evict_step(upkeep, max) || more;
    more = sweep_step(upkeep) || more;
    more = fs_sync_tend_log(upkeep->sync) || more;
    int wait = more ? 0 : pause_of(upkeep);
    pthread_mutex_unlock(&upkeep->lock);
    return wait;
}

static bool is_far_over(const struct fs_tree *tree, uint64_t max)
{
    uint64_t disk = fs_index_disk(tree->index);
    max = max_of_files(tree, max);
    return disk > max && disk - max > max / 20;
}

void fs_upkeep_help(struct fs_upkeep *upkeep, uint64_t max, uint64_t cost)
{
    const struct fs_index *index = upkeep->tree->index;
    uint64_t freed = 0, more = 1;
    for (; freed < cost && more > 0 && is_far_over(upkeep->tree, max); freed += more)
        more = evict_one(upkeep->tree);
    if (!fs_index_certain(index) && pthread_mutex_trylock(&upkeep->lock) == 0) {
        scan_step(upkeep, SCAN_PUT);
        pthread_mutex_unlock(&upkeep->lock);
    }
    if (fs_index_log_waits(upkeep->tree->index))
        fs_sync_tend_log(upkeep->sync);
}

int fs_upkeep_finish_scan(struct fs_upkeep *upkeep)
{
    int error = 0;
    while (!fs_index_certain(upkeep->tree->index) && error == 0) {
        pthread_mutex_lock(&upkeep->lock);
        error = scan_step(upkeep, SCAN_STEP);
        pthread_mutex_unlock(&upkeep->lock);
    }
    return error;
}
