/*
 * Requests about a prefix. What is in memory is met by walking over the index; of what is on disk
 * alone the keys are not in memory, so the backing tells them.
 */
#include "../../container_of.h"
#include "../../pool.h"
#include "../store.h"
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEPS_IN_A_ROW = 8, /* of 64 entries or so, until others get a turn */
    FOUND_MAX = 256,    /* hashes noted under a shard's lock, to be removed without it */
    KEPT_FREE_BYTES = 16 << 20
};

static bool has_prefix(const uint8_t *key, uint32_t key_length, const struct store_call *call)
{
    return call->request.key_length == 0 ||
           (key_length >= call->request.key_length &&
            memcmp(key, call->request.key, call->request.key_length) == 0);
}

static bool is_met(struct entries *entries, struct index_shard *shard, const struct slot *slot,
                   const struct store_call *call, struct entry_view *view)
{
    *view = entries_view(entries, shard, slot);
    return view->key != NULL && has_prefix(view->key, view->key_length, call) &&
           !entry_expired(view);
}

static void clear_slot(void *arg, struct index_shard *shard, struct slot *slot)
{
    struct steps *steps = arg;
    struct entry_view view;
    if (!is_met(&steps->engine->entries, shard, slot, steps->call, &view))
        return;
    steps->call->result.entries++;
    entries_remove(&steps->engine->entries, shard, slot);
}

static void count_slot(void *arg, struct index_shard *shard, struct slot *slot)
{
    struct steps *steps = arg;
    struct entry_view view;
    if (!is_met(&steps->engine->entries, shard, slot, steps->call, &view))
        return;
    steps->call->result.entries++;
    steps->call->result.size += (uint64_t)view.key_length + view.length;
}

/* Some steps over the entries; STORE_OK once all were met. */
static enum store_status walk(struct steps *steps,
                              void (*each)(void *arg, struct index_shard *, struct slot *))
{
    struct index *index = steps->engine->entries.index;
    for (unsigned i = 0; i < STEPS_IN_A_ROW && steps->shard < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(index, steps->shard);
        bool more = index_walk(index, shard, &steps->cursor, each, steps);
        index_unlock(shard);
        if (more)
            continue;
        steps->cursor = 0;
        steps->shard++;
    }
    return steps->shard < INDEX_SHARDS ? STORE_PENDING : STORE_OK;
}

static void give_memory_back(struct engine *engine)
{
    arena_trim(engine->entries.arena, KEPT_FREE_BYTES);
    index_trim(engine->entries.index);
}

/* Bytes of keys and values, as the index estimates them. */
static uint64_t live_bytes(struct engine *engine)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(engine->entries.index, i);
        bytes += shard->bytes + shard->disk_bytes;
        index_unlock(shard);
    }
    return bytes;
}

static enum store_status clear_step(struct steps *steps)
{
    enum store_status status = walk(steps, clear_slot);
    if (status == STORE_OK && steps->call->result.entries > 0)
        give_memory_back(steps->engine);
    return status;
}

static enum store_status count_step(struct steps *steps)
{
    return walk(steps, count_slot);
}

/* A CLEAR or INSPECT where there is a disk, on a thread of its own. */
struct disk_walk {
    struct pool_task task;
    struct engine *engine;
    struct store_call *call;
    bool failed;    /* the writer takes no more tombstones */
    uint32_t clear; /* its number; see entries_is_newer() */
    unsigned count;
    uint64_t found[FOUND_MAX]; /* hashes */
};

static void note_slot(void *arg, struct index_shard *shard, struct slot *slot)
{
    struct disk_walk *walk = arg;
    struct entries *entries = &walk->engine->entries;
    struct entry_view view;
    bool met = is_met(entries, shard, slot, walk->call, &view);
    /* With no prefix all is meant, whatever its key is. */
    if (view.key == NULL && walk->call->request.key_length == 0)
        met = true;
    if (met && walk->count < FOUND_MAX)
        walk->found[walk->count++] = slot_hash(entries->index, shard, slot);
}

/* Removes the hash's entry: place 0: if it is in memory and has the prefix, or all is to go; else
 * if its record at this place is all that there is of it. What was put since is not met. */
static void clear_hash(struct disk_walk *walk, uint64_t hash, uint64_t place)
{
    struct entries *entries = &walk->engine->entries;
    struct entry_view view;
    if (walk->failed || !writer_reserve_waiting(walk->engine->writer)) {
        walk->failed = true;
        return;
    }
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    bool meant = slot != NULL && is_met(entries, shard, slot, walk->call, &view);
    if (slot != NULL && view.key == NULL)
        meant = place != 0 ? view.place == place : walk->call->request.key_length == 0;
    else if (slot != NULL)
        meant = meant && place == 0 && !entries_is_newer(&view, walk->clear);
    if (meant) {
        bool counts = !entry_expired(&view);
        entries_remove(entries, shard, slot);
        writer_push(walk->engine->writer, hash, view.place);
        walk->call->result.entries += counts;
    }
    index_unlock(shard);
    if (!meant)
        writer_unreserve(walk->engine->writer);
}

static void clear_memory(struct disk_walk *walk)
{
    struct index *index = walk->engine->entries.index;
    for (unsigned i = 0; i < INDEX_SHARDS && !walk->failed; i++) {
        uint64_t cursor = 0;
        bool more = true;
        while (more && !walk->failed) {
            walk->count = 0;
            struct index_shard *shard = index_lock_shard(index, i);
            more = index_walk(index, shard, &cursor, note_slot, walk);
            index_unlock(shard);
            for (unsigned n = 0; n < walk->count; n++)
                clear_hash(walk, walk->found[n], 0);
        }
    }
}

static bool clear_record(void *arg, const struct backing_found *found)
{
    struct disk_walk *walk = arg;
    if (has_prefix(found->key, found->key_length, walk->call))
        clear_hash(walk, found->hash, found->place);
    return !walk->failed;
}

static void count_memory(struct disk_walk *walk)
{
    struct steps steps = {.engine = walk->engine, .call = walk->call};
    while (count_step(&steps) == STORE_PENDING)
        ;
}

static bool count_record(void *arg, const struct backing_found *found)
{
    struct disk_walk *walk = arg;
    struct entries *entries = &walk->engine->entries;
    if (!has_prefix(found->key, found->key_length, walk->call))
        return true;
    struct index_shard *shard = index_lock(entries->index, found->hash);
    struct slot *slot = index_find(entries->index, shard, found->hash);
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        if (view.key == NULL && view.place == found->place && !entry_expired(&view)) {
            walk->call->result.entries++;
            walk->call->result.size += (uint64_t)found->key_length + found->length;
        }
    }
    index_unlock(shard);
    return true;
}

/* Has the backing tell all its records. An errno, or 0. */
static int scan(struct disk_walk *walk, bool (*found)(void *arg, const struct backing_found *found))
{
    uint64_t cursor = 0;
    errno = 0;
    while (!walk->failed && walk->engine->ops->scan(walk->engine->backing, &cursor, found, walk))
        ;
    return walk->failed ? writer_error(walk->engine->writer) : errno;
}

static void run_clear(struct pool_task *task)
{
    struct disk_walk *walk = container_of(task, struct disk_walk, task);
    struct store_call *call = walk->call;
    struct entries *entries = &walk->engine->entries;
    int error = 0;
    atomic_fetch_add(&entries->clearing, 1);
    walk->clear = atomic_fetch_add(&entries->clears, 1) + 1;
    clear_memory(walk);
    if (call->request.key_length > 0 || walk->failed)
        error = scan(walk, clear_record);
    atomic_fetch_sub(&entries->clearing, 1);
    call->result.status = error != 0 ? engine_fail(call, error) : STORE_OK;
    if (call->result.entries == 0)
        return;
    give_memory_back(walk->engine);
    walk->engine->ops->compact(walk->engine->backing, live_bytes(walk->engine));
    writer_want_upkeep(walk->engine->writer);
}

static void run_inspect(struct pool_task *task)
{
    struct disk_walk *walk = container_of(task, struct disk_walk, task);
    struct store_call *call = walk->call;
    count_memory(walk);
    int error = scan(walk, count_record);
    call->result.status = error != 0 ? engine_fail(call, error) : STORE_OK;
}

static void walked(struct pool_task *task)
{
    struct disk_walk *walk = container_of(task, struct disk_walk, task);
    struct store_call *call = walk->call;
    free(walk);
    call->done(call);
}

static enum store_status start_walk(struct engine *engine, struct store_call *call,
                                    void (*run)(struct pool_task *task))
{
    struct disk_walk *walk = malloc(sizeof(*walk));
    if (walk == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *walk = (struct disk_walk){.task = {.loop = call->request.loop, .run = run, .finished = walked},
                               .engine = engine,
                               .call = call};
    pool_submit(engine->walkers, &walk->task);
    return STORE_PENDING;
}

enum store_status engine_clear(struct store *store, struct store_call *call)
{
    struct engine *engine = engine_of(store);
    call->result.entries = 0;
    return engine->backing != NULL ? start_walk(engine, call, run_clear)
                                   : steps_start(engine, call, clear_step);
}

/* Returns the bytes that lie on disk alone. */
static uint64_t add_shard(struct store_call *call, const struct index_shard *shard, bool all)
{
    call->result.evicted.entries += shard->evicted;
    call->result.evicted.bytes += shard->evicted_bytes;
    call->result.evicted.cost += shard->evicted_cost;
    if (!all)
        return 0;
    call->result.entries += shard->entries;
    call->result.size += shard->bytes + shard->disk_bytes;
    return shard->disk_bytes;
}

enum store_status engine_inspect(struct store *store, struct store_call *call)
{
    struct engine *engine = engine_of(store);
    uint64_t on_disk = 0;
    call->result.entries = 0;
    call->result.size = 0;
    if (engine->writer != NULL) {
        call->result.unwritten = atomic_load(&engine->entries.unwritten);
        call->result.lost = writer_lost_count(engine->writer);
    }
    call->result.evicted = (struct store_evicted){0};
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(engine->entries.index, i);
        on_disk += add_shard(call, shard, call->request.key_length == 0);
        index_unlock(shard);
    }
    call->result.approximate = on_disk > 0;
    if (call->request.key_length == 0)
        return STORE_OK;
    call->result.approximate = engine->backing != NULL;
    return engine->backing != NULL ? start_walk(engine, call, run_inspect)
                                   : steps_start(engine, call, count_step);
}
