#include "../../clock.h"
#include "../../container_of.h"
#include "../../pool.h"
#include "../store.h"
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A look-up on a thread that may wait for the disk. */
struct later {
    struct pool_task task;
    struct engine *engine;
    struct store_call *call;
};

void disk_drop(struct engine *engine, uint64_t hash, uint64_t place)
{
    struct entries *entries = &engine->entries;
    if (!writer_reserve(engine->writer, 0))
        return; /* the next GET comes here again */
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    bool named = slot != NULL && slot_get(slot).kind == SLOT_DISK && slot_get(slot).place == place;
    if (named) {
        entries_remove(entries, shard, slot);
        writer_push(engine->writer, hash, place);
    }
    index_unlock(shard);
    if (!named)
        writer_unreserve(engine->writer);
}

enum store_status disk_read(struct engine *engine, struct store_call *call, uint64_t place,
                            uint64_t size, bool wait, bool *again)
{
    struct value *value = NULL;
    switch (engine->ops->read(engine->backing, place, size, call->request.key,
                              call->request.key_length, wait, &value)) {
    case BACKING_READ_OK:
        break;
    case BACKING_READ_GONE:
        *again = true;
        return STORE_MISS;
    case BACKING_READ_OTHER:
        return STORE_MISS;
    case BACKING_READ_DAMAGED:
        disk_drop(engine, call->request.hash, place);
        return STORE_MISS;
    case BACKING_READ_AGAIN:
        return STORE_PENDING;
    case BACKING_READ_FAILED:
        return engine_fail(call, errno);
    }
    engine_promote(engine, call, value, place);
    call->result.length = value->length;
    call->result.flags = value->flags;
    call->result.expires = value->expires;
    if (call->request.op == STORE_GET)
        call->result.value = value;
    else
        value_unref(value);
    return STORE_OK;
}

static void look_up(struct pool_task *task)
{
    struct later *later = container_of(task, struct later, task);
    later->call->result.status = engine_look_up(later->engine, later->call, true);
}

static void looked_up(struct pool_task *task)
{
    struct later *later = container_of(task, struct later, task);
    struct store_call *call = later->call;
    free(later);
    call->done(call);
}

enum store_status disk_look_up_later(struct engine *engine, struct store_call *call)
{
    struct later *later = malloc(sizeof(*later));
    if (later == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *later = (struct later){
        .task = {.loop = call->request.loop, .run = look_up, .finished = looked_up},
        .engine = engine,
        .call = call,
    };
    pool_submit(engine->readers, &later->task);
    return STORE_PENDING;
}

/* Adds what load() has found. Where the index is full another entry makes room. */
static void add_found(struct engine *engine, const struct backing_found *found)
{
    struct entries *entries = &engine->entries;
    struct slot_word word = {.place = found->place,
                             .kind = SLOT_DISK,
                             .has_end = found->expires != CLOCK_NEVER,
                             .size = evict_class((uint64_t)found->key_length + found->length),
                             .cost = found->cost};
    struct index_shard *shard = index_lock(entries->index, found->hash);
    struct slot *slot = index_find(entries->index, shard, found->hash);
    if (slot != NULL)
        entries_remove(entries, shard, slot);
    bool gone = found->place == 0 || store_expired(found->expires, clock_now());
    while (!gone && !entries_add_disk(entries, shard, found->hash, &word, found->expires)) {
        struct slot *least = entries_least(entries, shard, found->hash);
        if (least == NULL)
            break;
        uint64_t hash = slot_hash(entries->index, shard, least);
        uint64_t place = slot_get(least).place;
        entries_evict(entries, shard, least);
        writer_supersede(engine->writer, hash, place);
    }
    index_unlock(shard);
}

static void owner_found(void *arg, const struct backing_found *found, unsigned count)
{
    struct engine *engine = arg;
    for (unsigned i = 0; i < count; i++)
        index_prefetch(engine->entries.index, found[i].hash);
    for (unsigned i = 0; i < count; i++)
        add_found(engine, &found[i]);
}

/*
 * A record that what is not written yet will replace is kept: until that has been synced it is the
 * entry's only state that a crash leaves.
 */
static enum backing_verdict owner_judge(void *arg, uint64_t hash, uint64_t place, bool urgent)
{
    struct engine *engine = arg;
    struct entries *entries = &engine->entries;
    enum backing_verdict verdict = BACKING_DEAD;
    if (engine->judged++ % BAR_EVERY == 0)
        evict_set_bar(entries->evict, EVICT_DISK);
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        struct slot_word word = slot_get(slot);
        if (view.place != place)
            verdict = BACKING_DEAD;
        else if (view.state != ENTRY_WRITTEN)
            verdict = urgent ? BACKING_DEAD : BACKING_KEEP;
        else if (urgent || entry_expired(&view))
            verdict = BACKING_DROP;
        else
            verdict = evict_worth_keeping(entries->evict, EVICT_DISK, &word, slot_use(slot))
                          ? BACKING_KEEP
                          : BACKING_DROP;
    }
    index_unlock(shard);
    return verdict;
}

static bool owner_moved(void *arg, uint64_t hash, uint64_t from, uint64_t to)
{
    struct engine *engine = arg;
    struct entries *entries = &engine->entries;
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    bool named = slot != NULL && entries_view(entries, shard, slot).place == from;
    if (named)
        entries_moved(entries, shard, slot, to);
    index_unlock(shard);
    return named;
}

static void owner_forget(void *arg, uint64_t hash, uint64_t place)
{
    struct engine *engine = arg;
    struct entries *entries = &engine->entries;
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        if (view.place == place && view.state == ENTRY_WRITTEN) {
            entries_evict(entries, shard, slot);
        } else if (view.place == place) {
            entry_set_state(&view, view.state, 0);
        }
    }
    index_unlock(shard);
}

static void owner_lost(void *arg, uint64_t first, uint64_t last)
{
    struct engine *engine = arg;
    writer_lost(engine->writer, first, last);
}

static void owner_expect(void *arg, uint64_t records)
{
    struct engine *engine = arg;
    index_reserve(engine->entries.index, records);
}

struct backing_owner disk_owner(struct engine *engine)
{
    return (struct backing_owner){.arg = engine,
                                  .found = owner_found,
                                  .judge = owner_judge,
                                  .moved = owner_moved,
                                  .forget = owner_forget,
                                  .lost = owner_lost,
                                  .expect = owner_expect};
}
