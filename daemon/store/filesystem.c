/*
 * Keeps each value in a file of its own, in one of 256 folders, under a hash of its key, and an
 * index of them all in memory and on disk.
 *
 *   filesystem_file.*    what is in an entry's file
 *   filesystem_log.*     the index on disk
 *   filesystem_index.*   the index in memory, which writes and reads that
 *   filesystem_tree.*    the store's folder: files and index kept in step
 *   filesystem_sync.*    PERSIST
 *   filesystem_upkeep.*  scan, eviction, removal of what has ended
 *
 * In system calls, a GET of what is there is openat, fstat, pread and close (a second pread beyond
 * 8 KB), a miss is none at all, and a PUT is openat, writev, close and renameat.
 */
#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "filesystem_sync.h"
#include "filesystem_tree.h"
#include "filesystem_upkeep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct filesystem {
    struct store store;
    struct fs_tree *tree;
    struct fs_sync sync;
    struct fs_upkeep upkeep;
    _Atomic uint64_t next_name; /* in tmp */
};

static struct filesystem *filesystem_of(struct store *store)
{
    return container_of(store, struct filesystem, store);
}

static enum store_status fail(struct store_call *call, int error, const char *what)
{
    enum error_code code = ERROR_INTERNAL;
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        code = ERROR_NO_SPACE;
    else if (fs_tree_is_shortage(error))
        code = ERROR_BUSY;
    return store_fail(call, code, "%s: %s", what, strerror(error));
}

/* STORE_OK: the call's key is there. Else STORE_MISS or STORE_FAILED. The folder's lock is held. */
static enum store_status look_locked(struct filesystem *fs, struct store_call *call,
                                     XXH128_hash_t hash, struct fs_facts *facts)
{
    enum fs_known known =
        fs_index_find(fs->tree->index, hash, call->key, call->key_length, false, facts);
    if (known == FS_UNSURE) {
        int error = fs_tree_settle(fs->tree, hash);
        if (error != 0)
            return fail(call, error, "can't look at the stored entry");
        known = fs_index_find(fs->tree->index, hash, call->key, call->key_length, true, facts);
    }
    return known == FS_PRESENT ? STORE_OK : STORE_MISS;
}

static enum store_status look(struct filesystem *fs, struct store_call *call, XXH128_hash_t hash,
                              struct fs_facts *facts)
{
    enum fs_known known =
        fs_index_find(fs->tree->index, hash, call->key, call->key_length, false, facts);
    if (known != FS_UNSURE)
        return known == FS_PRESENT ? STORE_OK : STORE_MISS;
    fs_tree_lock(fs->tree, hash);
    enum store_status status = look_locked(fs, call, hash, facts);
    fs_tree_unlock(fs->tree, hash);
    return status;
}

/* An entry that is there, opened. */
struct found {
    XXH128_hash_t hash;
    int fd;
    int64_t expires;
    struct fs_head head;
};

static enum store_status not_opened(struct filesystem *fs, struct store_call *call,
                                    XXH128_hash_t hash)
{
    int error = errno;
    if (error == ENOENT || fs_tree_is_damage(error))
        error = fs_tree_check(fs->tree, hash);
    return error == 0 ? STORE_MISS : fail(call, error, "can't open the stored entry");
}

static enum store_status not_read(struct filesystem *fs, struct store_call *call,
                                  const struct found *found, enum fs_file_result result,
                                  const char *what)
{
    if (result == FS_FILE_FAILED)
        return fail(call, errno, "can't read the stored entry");
    fs_tree_discard(fs->tree, found->hash, found->fd, what);
    return STORE_MISS;
}

/* The head is OK: is it the call's, and alive? What the index has wrong is corrected. */
static enum store_status judge(struct filesystem *fs, const struct store_call *call,
                               struct found *found, const struct fs_facts *facts)
{
    const struct fs_header *header = &found->head.header;
    int64_t expires = clock_from_wall(header->end, header->ttl);
    found->expires = expires < facts->expires ? expires : facts->expires;
    if (header->length != facts->length)
        fs_tree_check(fs->tree, found->hash);
    bool same = header->key_length == call->key_length &&
                memcmp(fs_file_key(&found->head), call->key, call->key_length) == 0;
    return same && !store_expired(found->expires, clock_now()) ? STORE_OK : STORE_MISS;
}

/* STORE_OK: found->fd is the caller's to close, and the head is read. */
static enum store_status open_found(struct filesystem *fs, struct store_call *call,
                                    struct found *found)
{
    struct fs_facts facts;
    const char *what;
    found->hash = fs_file_hash(call->key, call->key_length);
    enum store_status status = look(fs, call, found->hash, &facts);
    if (status != STORE_OK)
        return status;
    found->fd = fs_tree_open_entry(fs->tree, found->hash);
    if (found->fd < 0)
        return not_opened(fs, call, found->hash);
    enum fs_file_result result = fs_tree_read_head(found->fd, found->hash, &found->head, &what);
    if (result == FS_FILE_OK)
        status = judge(fs, call, found, &facts);
    else
        status = not_read(fs, call, found, result, what);
    if (status != STORE_OK)
        close(found->fd);
    return status;
}

static enum store_status read_value(struct filesystem *fs, struct store_call *call,
                                    const struct found *found)
{
    const char *what;
    struct value *value = store_new_value(call, found->head.header.length);
    if (value == NULL)
        return STORE_FAILED;
    enum fs_file_result result = fs_file_read_value(found->fd, &found->head, value, &what);
    if (result != FS_FILE_OK) {
        value_unref(value);
        return not_read(fs, call, found, result, what);
    }
    value->flags = found->head.header.flags;
    value->expires = found->expires;
    call->value = value;
    return STORE_OK;
}

static enum store_status filesystem_get(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    struct found found;
    enum store_status status = open_found(fs, call, &found);
    if (status != STORE_OK)
        return status;
    status = read_value(fs, call, &found);
    close(found.fd);
    return status;
}

static enum store_status filesystem_head(struct store *store, struct store_call *call)
{
    struct found found;
    enum store_status status = open_found(filesystem_of(store), call, &found);
    if (status != STORE_OK)
        return status;
    close(found.fd);
    call->length = found.head.header.length;
    call->flags = found.head.header.flags;
    call->expires = found.expires;
    return STORE_OK;
}

static uint64_t max_size(struct filesystem *fs)
{
    return atomic_load_explicit(&fs->store.max_size, memory_order_relaxed);
}

/* The file is written: puts it in place, if it may be. The entry is taken over if STORE_OK. */
static enum store_status place(struct filesystem *fs, struct store_call *call, const char *from,
                               struct fs_entry *entry)
{
    struct fs_facts facts;
    XXH128_hash_t hash = entry->hash;
    enum store_status status = STORE_MISS;
    fs_tree_lock(fs->tree, hash);
    if (!call->overwrite)
        status = look_locked(fs, call, hash, &facts);
    if (status == STORE_MISS) {
        int error = fs_tree_place(fs->tree, from, entry);
        status = error == 0 ? STORE_OK : fail(call, error, "can't put the entry in its place");
    } else if (status == STORE_OK) {
        status = STORE_EXISTS;
    }
    fs_tree_unlock(fs->tree, hash);
    return status;
}

static enum store_status write_and_place(struct filesystem *fs, struct store_call *call,
                                         const struct value *value, XXH128_hash_t hash)
{
    char name[24];
    struct fs_entry *entry =
        fs_entry_new(hash, call->key, call->key_length, value->length, value->expires);
    if (entry == NULL)
        return fail(call, ENOMEM, "no memory for the entry");
    snprintf(name, sizeof(name), "%llu", (unsigned long long)atomic_fetch_add(&fs->next_name, 1));
    int error = fs_file_write(fs->tree->tmp, name, value);
    if (error != 0) {
        free(entry);
        fs_tree_complain(fs->tree, error, "can't write an entry");
        return fail(call, error, "can't write the entry");
    }
    enum store_status status = place(fs, call, name, entry);
    if (status != STORE_OK) {
        free(entry);
        unlinkat(fs->tree->tmp, name, 0);
    }
    return status;
}

static enum store_status put_value(struct filesystem *fs, struct store_call *call,
                                   const struct value *value)
{
    struct fs_facts facts;
    XXH128_hash_t hash = fs_file_hash(call->key, call->key_length);
    uint64_t cost = fs_index_cost(fs->tree->index, call->key_length, value->length);
    if (cost > max_size(fs))
        return store_fail(call, ERROR_TOO_LARGE,
                          "the value is larger than the whole store (max-size %llu)",
                          (unsigned long long)max_size(fs));
    /* Looked up before it is written, lest a value that is there already is written in vain. */
    enum store_status status = call->overwrite ? STORE_MISS : look(fs, call, hash, &facts);
    if (status != STORE_MISS)
        return status == STORE_OK ? STORE_EXISTS : status;
    status = write_and_place(fs, call, value, hash);
    if (status == STORE_OK)
        fs_upkeep_help(&fs->upkeep, max_size(fs), cost);
    return status;
}

static enum store_status filesystem_put(struct store *store, struct store_call *call)
{
    struct value *value = call->value;
    call->value = NULL;
    enum store_status status = put_value(filesystem_of(store), call, value);
    value_unref(value);
    return status;
}

static enum store_status filesystem_delete(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    XXH128_hash_t hash = fs_file_hash(call->key, call->key_length);
    struct fs_facts facts;
    uint64_t freed;
    fs_tree_lock(fs->tree, hash);
    enum store_status status = look_locked(fs, call, hash, &facts);
    if (status == STORE_OK) {
        int error = fs_tree_remove(fs->tree, hash, &freed);
        if (error == ENOENT)
            status = STORE_MISS;
        else if (error != 0)
            status = fail(call, error, "can't remove the entry");
    }
    fs_tree_unlock(fs->tree, hash);
    return status;
}

static bool has_prefix(const struct fs_entry *entry, const void *arg)
{
    const struct store_call *call = arg;
    return entry->key_length >= call->key_length &&
           memcmp(entry->key, call->key, call->key_length) == 0;
}

/* Removes one for CLEAR; what had ended already, or was gone, does not count. 0 or errno. */
static int clear_one(struct filesystem *fs, struct store_call *call, XXH128_hash_t hash)
{
    uint64_t freed;
    fs_tree_lock(fs->tree, hash);
    bool alive = fs_index_alive(fs->tree->index, hash, true) == FS_PRESENT;
    int error = fs_tree_remove(fs->tree, hash, &freed);
    fs_tree_unlock(fs->tree, hash);
    call->entries += alive && error == 0;
    return error == ENOENT ? 0 : error;
}

static int clear_folder(struct filesystem *fs, struct store_call *call, unsigned folder)
{
    XXH128_hash_t hashes[FS_BATCH];
    int error = 0;
    for (uint32_t bucket = 0; bucket != FS_SHARD_END && error == 0;) {
        size_t count =
            fs_index_collect(fs->tree->index, folder, &bucket, has_prefix, call, hashes, FS_BATCH);
        for (size_t i = 0; i < count && error == 0; i++)
            error = clear_one(fs, call, hashes[i]);
    }
    return error;
}

static enum store_status filesystem_clear(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    call->entries = 0;
    int error = fs_upkeep_finish_scan(&fs->upkeep);
    if (error != 0)
        return fail(call, error, "can't look through all folders of the store");
    for (unsigned folder = 0; folder < FS_FOLDERS && error == 0; folder++)
        error = clear_folder(fs, call, folder);
    return error == 0 ? STORE_OK : fail(call, error, "can't remove an entry");
}

static enum store_status filesystem_inspect(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    bool whole = call->key_length == 0;
    call->entries = whole ? fs_index_entries(fs->tree->index) : 0;
    call->size = whole ? fs_index_bytes(fs->tree->index) : 0;
    if (!whole)
        fs_index_count(fs->tree->index, call->key, call->key_length, &call->entries, &call->size);
    /* The sums still have what has ended and is not removed yet. */
    bool ended = whole && fs_index_earliest(fs->tree->index) <= clock_now();
    call->approximate = ended || !fs_index_certain(fs->tree->index);
    return STORE_OK;
}

static enum store_status filesystem_persist(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    int error = fs_sync_now(&fs->sync);
    call->durable = error == 0;
    return error == 0 ? STORE_OK : fail(call, error, "can't bring the store to the disk");
}

static int filesystem_upkeep(struct store *store)
{
    struct filesystem *fs = filesystem_of(store);
    return fs_upkeep_step(&fs->upkeep, max_size(fs));
}

static bool filesystem_absent(struct store *store, const struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    return fs_index_alive(fs->tree->index, fs_file_hash(call->key, call->key_length), false) ==
           FS_ABSENT;
}

static struct store *filesystem_open(const struct config *config, char *why, size_t size)
{
    struct filesystem *fs = calloc(1, sizeof(*fs));
    if (fs == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    fs->tree = fs_tree_open(config->directory, why, size);
    if (fs->tree == NULL) {
        free(fs);
        return NULL;
    }
    fs_sync_init(&fs->sync, fs->tree);
    fs_upkeep_init(&fs->upkeep, fs->tree, &fs->sync);
    return &fs->store;
}

static void filesystem_close(struct store *store)
{
    struct filesystem *fs = filesystem_of(store);
    bool durable = fs_sync_now(&fs->sync) == 0;
    fs_upkeep_end(&fs->upkeep);
    fs_sync_end(&fs->sync);
    fs_tree_close(fs->tree, durable);
    free(fs);
}

const struct store_ops store_filesystem = {
    .name = "filesystem",
    .title = "Filesystem",
    .tiered = true,
    .absent = filesystem_absent,
    .in_directory = true,
    .readers = 4,
    .writers = 1,
    .open = filesystem_open,
    .close = filesystem_close,
    .get = filesystem_get,
    .head = filesystem_head,
    .put = filesystem_put,
    .delete = filesystem_delete,
    .clear = filesystem_clear,
    .inspect = filesystem_inspect,
    .persist = filesystem_persist,
    .upkeep = filesystem_upkeep,
};
