/*
 * Keeps each value in a file of its own, in one of 256 folders, under a hash of its key, and an
 * index of them all in memory and on disk. Small values reach a journal first, as many as wait with
 * one write, and their files in the background.
 *
 *   filesystem_file.*     what is in an entry's file
 *   filesystem_journal.*  what has no file yet, in segments (filesystem_segment.*)
 *   filesystem_log.*      the index on disk
 *   filesystem_index.*    the index in memory, which writes and reads that
 *   filesystem_tree.*     the store's folder: files, journal and index kept in step
 *   filesystem_filing.*   from the journal to the files
 *   filesystem_sync.*     PERSIST
 *   filesystem_upkeep.*   scan, eviction, removal of what has ended
 *
 * In system calls, a GET of what is there is openat, fstat, pread and close (a second pread beyond
 * 8 KB), or a pread alone where it lies in the journal; a miss is none at all. A PUT is a share of
 * a writev, or openat, writev, close and renameat.
 */
#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "filesystem_filing.h"
#include "filesystem_sync.h"
#include "filesystem_tree.h"
#include "filesystem_upkeep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    JOURNAL_SHARE = 8, /* of max-size is the journal's, at most: one in so many bytes */
    BATCH_BYTES = 1 << 20,
    FD_LEAST = 64 * 1024, /* bytes of a value whose file is handed out */
    HOLD_TRIES = 3,       /* to get hold of an entry that is just leaving the journal */
    LAST_FILING_MS = 500  /* at the end */
};

/* PUTs on their way into the journal, together. The writer's alone. */
struct batch {
    bool open;
    unsigned count;
    uint64_t bytes;
    struct fs_journal_record records[FS_JOURNAL_BATCH];
    struct {
        struct store_call *call;
        struct value *value;
        struct fs_entry *entry;
    } puts[FS_JOURNAL_BATCH];
};

struct filesystem {
    struct store store;
    struct fs_tree *tree;
    struct fs_sync sync;
    struct fs_upkeep upkeep;
    struct fs_filing filing;
    uint64_t journal_size; /* as configured */
    struct batch batch;
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

/* An entry that is there, opened: its file, or a segment of the journal, which is held. */
struct found {
    XXH128_hash_t hash;
    int fd;
    struct fs_place place; /* segment 0: a file */
    int64_t expires;
    struct fs_head head;
};

static void close_found(struct filesystem *fs, const struct found *found)
{
    if (found->place.segment != 0)
        fs_journal_release(fs->tree->journal, found->place.segment);
    else
        close(found->fd);
}

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
    if (found->place.segment != 0)
        fs_tree_discard_journaled(fs->tree, found->hash, found->place, what);
    else
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

/* Opens what facts tell of. A segment that is gone has just left the journal: its entries have
 * files now, as the next look says. */
static enum store_status open_place(struct filesystem *fs, struct store_call *call,
                                    struct found *found, struct fs_facts *facts)
{
    enum store_status status = look(fs, call, found->hash, facts);
    for (unsigned tries = 0; status == STORE_OK && facts->place.segment != 0; tries++) {
        found->place = facts->place;
        found->fd = fs_journal_hold(fs->tree->journal, facts->place.segment);
        if (found->fd >= 0)
            return STORE_OK;
        if (tries == HOLD_TRIES) {
            fs_tree_discard_journaled(fs->tree, found->hash, facts->place, "its segment is gone");
            return STORE_MISS;
        }
        status = look(fs, call, found->hash, facts);
    }
    if (status != STORE_OK)
        return status;
    found->place.segment = 0;
    found->fd = fs_tree_open_entry(fs->tree, found->hash);
    return found->fd >= 0 ? STORE_OK : not_opened(fs, call, found->hash);
}

static enum fs_file_result read_head(struct found *found, const struct fs_facts *facts,
                                     const struct store_call *call, const char **what)
{
    if (found->place.segment == 0)
        return fs_tree_read_head(found->fd, found->hash, &found->head, what);
    uint64_t size = sizeof(struct fs_header) + call->key_length + facts->length;
    return fs_file_read_head_at(found->fd, found->place.offset, size, &found->head, what);
}

/* STORE_OK: found is the caller's to close, and the head is read. */
static enum store_status open_found(struct filesystem *fs, struct store_call *call,
                                    struct found *found)
{
    struct fs_facts facts;
    const char *what;
    found->hash = fs_file_hash(call->key, call->key_length);
    enum store_status status = open_place(fs, call, found, &facts);
    if (status != STORE_OK)
        return status;
    enum fs_file_result result = read_head(found, &facts, call, &what);
    if (result == FS_FILE_OK)
        status = judge(fs, call, found, &facts);
    else
        status = not_read(fs, call, found, result, what);
    if (status != STORE_OK)
        close_found(fs, found);
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

static void tell_size(struct store_call *call, const struct found *found)
{
    call->length = found->head.header.length;
    call->flags = found->head.header.flags;
    call->expires = found->expires;
}

/* Answers with the file itself, once its bytes were found right. */
static enum store_status give_file(struct filesystem *fs, struct store_call *call,
                                   const struct found *found)
{
    const char *what;
    if (!fs_tree_is_verified(fs->tree, found->hash, found->fd)) {
        enum fs_file_result result = fs_file_check_value(found->fd, &found->head, &what);
        if (result != FS_FILE_OK) {
            enum store_status status = not_read(fs, call, found, result, what);
            close(found->fd);
            return status;
        }
        fs_tree_set_verified(fs->tree, found->hash, found->fd);
    }
    tell_size(call, found);
    call->fd = found->fd;
    call->offset = sizeof(found->head.header) + found->head.header.key_length;
    return STORE_OK;
}

static enum store_status filesystem_get(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    struct found found;
    enum store_status status = open_found(fs, call, &found);
    if (status != STORE_OK)
        return status;
    if (call->wants_fd && found.place.segment == 0 && found.head.header.length >= FD_LEAST)
        return give_file(fs, call, &found);
    status = read_value(fs, call, &found);
    close_found(fs, &found);
    return status;
}

static enum store_status filesystem_head(struct store *store, struct store_call *call)
{
    struct filesystem *fs = filesystem_of(store);
    struct found found;
    enum store_status status = open_found(fs, call, &found);
    if (status != STORE_OK)
        return status;
    close_found(fs, &found);
    tell_size(call, &found);
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
    char name[FS_TEMPORARY_SIZE];
    struct fs_entry *entry =
        fs_entry_new(hash, call->key, call->key_length, value->length, value->expires);
    if (entry == NULL)
        return fail(call, ENOMEM, "no memory for the entry");
    fs_tree_temporary(fs->tree, name);
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

/* The batch's values are in the journal's segment, or it could not be written. */
static void end_put(struct filesystem *fs, unsigned i, unsigned segment, int error)
{
    struct fs_entry *entry = fs->batch.puts[i].entry;
    struct store_call *call = fs->batch.puts[i].call;
    if (error != 0) {
        call->status = fail(call, error, "can't write the entry");
        free(entry);
    } else {
        entry->segment = segment & FS_SEGMENTS;
        entry->offset = fs->batch.records[i].offset;
        fs_tree_put(fs->tree, entry);
    }
    value_unref(fs->batch.puts[i].value);
}

/* Writes what was gathered. Only now the index has it, so nobody reads what is not written. */
static void write_batch(struct filesystem *fs)
{
    struct batch *batch = &fs->batch;
    unsigned segment = 0;
    if (batch->count == 0)
        return;
    fs_tree_begin_store(fs->tree);
    int error = fs_journal_append(fs->tree->journal, batch->records, batch->count, &segment);
    if (error != 0)
        fs_tree_complain(fs->tree, error, "can't write to the journal");
    for (unsigned i = 0; i < batch->count; i++)
        end_put(fs, i, segment, error);
    fs_tree_end_store(fs->tree);
    batch->count = 0;
    batch->bytes = 0;
    fs_upkeep_help(&fs->upkeep, max_size(fs), 0);
}

static bool is_gathered(const struct batch *batch, XXH128_hash_t hash)
{
    for (unsigned i = 0; i < batch->count; i++) {
        if (XXH128_isEqual(batch->records[i].hash, hash))
            return true;
    }
    return false;
}

/* Takes the value into the batch; whether it could be stored shows when that is written. */
static enum store_status gather(struct filesystem *fs, struct store_call *call, struct value *value,
                                XXH128_hash_t hash)
{
    struct batch *batch = &fs->batch;
    struct fs_entry *entry =
        fs_entry_new(hash, call->key, call->key_length, value->length, value->expires);
    if (entry == NULL)
        return fail(call, ENOMEM, "no memory for the entry");
    unsigned i = batch->count++;
    batch->records[i] = (struct fs_journal_record){.hash = hash, .value = value};
    batch->puts[i].call = call;
    batch->puts[i].value = value_ref(value);
    batch->puts[i].entry = entry;
    batch->bytes += fs_index_cost(fs->tree->index, call->key_length, value->length);
    call->status = STORE_OK;
    if (batch->count == FS_JOURNAL_BATCH || batch->bytes >= BATCH_BYTES)
        write_batch(fs);
    return call->status;
}

static bool is_for_journal(struct filesystem *fs, const struct value *value)
{
    return fs->batch.open &&
           fs_journal_takes(fs->tree->journal, (uint64_t)value->key_length + value->length,
                            fs->batch.bytes);
}

static enum store_status put_value(struct filesystem *fs, struct store_call *call,
                                   struct value *value)
{
    struct fs_facts facts;
    XXH128_hash_t hash = fs_file_hash(call->key, call->key_length);
    uint64_t cost = fs_index_cost(fs->tree->index, call->key_length, value->length);
    if (cost > max_size(fs))
        return store_fail(call, ERROR_TOO_LARGE,
                          "the value is larger than the whole store (max-size %llu)",
                          (unsigned long long)max_size(fs));
    if (!call->overwrite && is_gathered(&fs->batch, hash))
        write_batch(fs);
    /* Looked up before it is written, lest a value that is there already is written in vain. */
    enum store_status status = call->overwrite ? STORE_MISS : look(fs, call, hash, &facts);
    if (status != STORE_MISS)
        return status == STORE_OK ? STORE_EXISTS : status;
    if (is_for_journal(fs, value))
        return gather(fs, call, value, hash);
    write_batch(fs);
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
    write_batch(fs);
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
    write_batch(fs);
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
    write_batch(fs);
    int error = fs_sync_now(&fs->sync);
    call->durable = error == 0;
    return error == 0 ? STORE_OK : fail(call, error, "can't bring the store to the disk");
}

static void filesystem_begin(struct store *store)
{
    filesystem_of(store)->batch.open = true;
}

/* Calls whose values could not be written have been failed one by one. */
static bool filesystem_commit(struct store *store, struct store_call *failed)
{
    struct filesystem *fs = filesystem_of(store);
    (void)failed;
    write_batch(fs);
    fs->batch.open = false;
    return true;
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

static uint64_t journal_bound(const struct filesystem *fs, uint64_t max)
{
    uint64_t share = max / JOURNAL_SHARE;
    return share < fs->journal_size ? share : fs->journal_size;
}

static void filesystem_set_max_size(struct store *store, uint64_t bytes)
{
    struct filesystem *fs = filesystem_of(store);
    fs_journal_set_bound(fs->tree->journal, journal_bound(fs, bytes));
}

static void make_room(void *arg, uint64_t bytes)
{
    struct filesystem *fs = arg;
    fs_upkeep_help(&fs->upkeep, max_size(fs), bytes);
}

static void close_parts(struct filesystem *fs, bool clean)
{
    fs_upkeep_end(&fs->upkeep);
    fs_sync_end(&fs->sync);
    fs_tree_close(fs->tree, clean);
    free(fs);
}

static struct store *filesystem_open(const struct config *config, char *why, size_t size)
{
    struct filesystem *fs = calloc(1, sizeof(*fs));
    if (fs == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    fs->journal_size = config->journal_size;
    atomic_store(&fs->store.max_size, config->max_size);
    fs->tree = fs_tree_open(config->directory, journal_bound(fs, config->max_size), why, size);
    if (fs->tree == NULL) {
        free(fs);
        return NULL;
    }
    fs_sync_init(&fs->sync, fs->tree);
    fs_upkeep_init(&fs->upkeep, fs->tree, &fs->sync);
    if (fs_filing_start(&fs->filing, fs->tree, make_room, fs, why, size))
        return &fs->store;
    close_parts(fs, false);
    return NULL;
}

static void filesystem_close(struct store *store)
{
    struct filesystem *fs = filesystem_of(store);
    fs_filing_end(&fs->filing, LAST_FILING_MS);
    close_parts(fs, fs_sync_now(&fs->sync) == 0);
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
    .begin = filesystem_begin,
    .commit = filesystem_commit,
    .set_max_size = filesystem_set_max_size,
    .upkeep = filesystem_upkeep,
};
