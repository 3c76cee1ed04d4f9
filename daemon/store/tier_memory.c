/*
 * Keeps values in memory: a table of many small shards, each with its own lock, which holds one
 * reference to every value in it. A shard grows by itself when it is full, so that no growth takes
 * long however large the whole is.
 *
 * What may take long (to make room for a large value, to walk over everything) is done in slices on
 * the asking loop, between which other requests run.
 */
#include "tier_memory.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "table.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHARD_BITS = 10,
    SHARDS = 1 << SHARD_BITS,
    SAMPLES = 16,     /* residents of which the least worthy is evicted */
    EVICT_SLICE = 64, /* victims until others get a turn */
    WALK_SLICE = 4    /* shards until others get a turn */
};

struct shard {
    pthread_mutex_t lock;
    struct table table; /* holds a reference to each of its values */
} __attribute__((aligned(64)));

struct memory {
    struct store store;
    /* What changes with every PUT, apart from what every GET reads. */
    _Atomic uint64_t size __attribute__((aligned(64))); /* of all residents, by value_cost() */
    _Atomic uint64_t entries;
    _Atomic uint64_t cursor; /* where the next search for victims begins */
    /* Counts insertions, the time in which uses are told apart; every GET reads it. */
    _Atomic uint64_t clock __attribute__((aligned(64)));
    struct shard shards[SHARDS];
};

/* A call that goes on in slices on its loop. */
struct slices {
    struct loop_task task;
    struct memory *memory;
    struct store_call *call;
    struct value *value; /* PUT: what waits for room */
    unsigned shard;      /* CLEAR, INSPECT: the next one */
    enum store_status (*step)(struct slices *slices);
};

static struct memory *memory_of(struct store *store)
{
    return container_of(store, struct memory, store);
}

static struct shard *shard_of(struct memory *memory, uint64_t hash)
{
    return &memory->shards[hash >> (64 - SHARD_BITS)];
}

/* The slot of the call's key, or NULL. The lock is held. */
static struct value **find(const struct shard *shard, const struct store_call *call)
{
    return table_find(&shard->table, call->hash, call->key, call->key_length);
}

/* Empties the slot; the table's reference is the caller's. The lock is held. */
static struct value *take_out(struct memory *memory, struct shard *shard, struct value **slot)
{
    struct value *value = table_remove(&shard->table, slot);
    atomic_fetch_sub_explicit(&memory->size, value_cost(value), memory_order_relaxed);
    atomic_fetch_sub_explicit(&memory->entries, 1, memory_order_relaxed);
    return value;
}

/* As find(), but a value past its end is taken out, into *expired, and is not found. */
static struct value **find_live(struct memory *memory, struct shard *shard,
                                const struct store_call *call, struct value **expired)
{
    struct value **slot = find(shard, call);
    *expired = NULL;
    if (slot == NULL || (*slot)->expires == CLOCK_NEVER ||
        !store_expired((*slot)->expires, clock_now()))
        return slot;
    *expired = take_out(memory, shard, slot);
    return NULL;
}

/* How much a value deserves to stay: the victim is the lowest of some residents. */
static uint64_t worth(const struct value *value)
{
    return atomic_load_explicit(&value->used, memory_order_relaxed);
}

/* The least worthy of the residents that were looked at. */
struct victim {
    struct value *value;
    uint64_t worth;
    unsigned seen;
};

/* Looks at the next residents from slot start on. The lock is held. */
static void look_for_victim(const struct shard *shard, uint32_t start, struct victim *victim)
{
    const struct table *table = &shard->table;
    uint32_t slots = table_slots(table);
    for (uint32_t n = 0; n < slots && victim->seen < SAMPLES && table->count > 0; n++) {
        struct value **slot = table_slot(table, (start % slots + n) % slots);
        if (slot == NULL)
            continue;
        victim->seen++;
        uint64_t its_worth = worth(*slot);
        if (victim->value != NULL && its_worth >= victim->worth)
            continue;
        victim->value = *slot;
        victim->worth = its_worth;
    }
}

/*
 * A reference to the least worthy of some residents that stand together at a random place, or NULL
 * where there are none. With few residents it looks at them all.
 */
static struct value *choose_victim(struct memory *memory)
{
    struct victim victim = {0};
    uint64_t start =
        atomic_fetch_add_explicit(&memory->cursor, 0x9E3779B97F4A7C15, memory_order_relaxed);
    for (unsigned i = 0; i < SHARDS && victim.seen < SAMPLES; i++) {
        struct shard *shard = &memory->shards[((start >> 32) + i) % SHARDS];
        struct value *unwanted = victim.value;
        pthread_mutex_lock(&shard->lock);
        look_for_victim(shard, (uint32_t)start, &victim);
        if (victim.value != unwanted)
            value_ref(victim.value);
        pthread_mutex_unlock(&shard->lock);
        if (victim.value != unwanted)
            value_unref(unwanted);
    }
    return victim.value;
}

/* false: there is nobody left to evict. */
static bool evict_one(struct memory *memory)
{
    struct value *victim = choose_victim(memory);
    if (victim == NULL)
        return false;
    struct store_call call = {.key = value_key(victim), .key_length = victim->key_length};
    call.hash = store_hash(call.key, call.key_length);
    struct shard *shard = shard_of(memory, call.hash);
    struct value *evicted = NULL;
    pthread_mutex_lock(&shard->lock);
    struct value **slot = find(shard, &call);
    if (slot != NULL && *slot == victim)
        evicted = take_out(memory, shard, slot);
    pthread_mutex_unlock(&shard->lock);
    value_unref(evicted);
    value_unref(victim);
    return true;
}

/* Counts cost as resident if there is room for it. */
static bool reserve(struct memory *memory, uint64_t cost)
{
    uint64_t max = atomic_load_explicit(&memory->store.max_size, memory_order_relaxed);
    uint64_t size = atomic_load_explicit(&memory->size, memory_order_relaxed);
    do {
        if (size + cost > max)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&memory->size, &size, size + cost,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

/* The lock is held and the key is not there. */
static enum store_status add(struct memory *memory, struct shard *shard, struct store_call *call,
                             struct value *value)
{
    if (!table_add(&shard->table, call->hash, value))
        return store_fail(call, ERROR_BUSY, "no memory for a larger table; try again");
    atomic_fetch_add_explicit(&memory->entries, 1, memory_order_relaxed);
    return STORE_OK;
}

/* Puts the value, for which room is reserved, into the table, which takes the reference. */
static enum store_status insert(struct memory *memory, struct store_call *call, struct value *value)
{
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired, *unwanted = NULL;
    enum store_status status = STORE_OK;
    uint64_t now = atomic_fetch_add_explicit(&memory->clock, 1, memory_order_relaxed) + 1;
    atomic_store_explicit(&value->used, now, memory_order_relaxed);

    pthread_mutex_lock(&shard->lock);
    struct value **slot = find_live(memory, shard, call, &expired);
    if (slot == NULL) {
        status = add(memory, shard, call, value);
        unwanted = status == STORE_OK ? NULL : value;
    } else if (call->overwrite) {
        unwanted = *slot;
        *slot = value;
    } else {
        unwanted = value;
        status = STORE_EXISTS;
    }
    if (unwanted != NULL)
        atomic_fetch_sub_explicit(&memory->size, value_cost(unwanted), memory_order_relaxed);
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    value_unref(unwanted);
    return status;
}

static bool is_there(struct memory *memory, const struct store_call *call)
{
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired;
    pthread_mutex_lock(&shard->lock);
    bool there = find_live(memory, shard, call, &expired) != NULL;
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    return there;
}

/* STORE_PENDING: there is still room to be made. STORE_OK or STORE_EXISTS: *value is taken over. */
static enum store_status put_step(struct memory *memory, struct store_call *call,
                                  struct value **value)
{
    uint64_t max = atomic_load_explicit(&memory->store.max_size, memory_order_relaxed);
    uint64_t cost = value_cost(*value);
    unsigned evicted = 0;
    bool reserved;
    if (cost > max)
        return store_fail(call, ERROR_TOO_LARGE,
                          "the value is larger than the whole cache (max-size %llu)",
                          (unsigned long long)max);
    while (!(reserved = reserve(memory, cost)) && evicted++ < EVICT_SLICE && evict_one(memory))
        ;
    if (!reserved)
        return STORE_PENDING;
    struct value *stored = *value;
    *value = NULL;
    return insert(memory, call, stored);
}

static enum store_status put_slice(struct slices *slices)
{
    enum store_status status = put_step(slices->memory, slices->call, &slices->value);
    if (status == STORE_FAILED)
        value_unref(slices->value);
    return status;
}

static void run_slice(struct loop_task *task)
{
    struct slices *slices = container_of(task, struct slices, task);
    struct store_call *call = slices->call;
    enum store_status status = slices->step(slices);
    if (status == STORE_PENDING) {
        loop_post(call->loop, task);
        return;
    }
    free(slices);
    call->status = status;
    call->done(call);
}

static enum store_status go_on_in_slices(struct memory *memory, struct store_call *call,
                                         enum store_status (*step)(struct slices *))
{
    struct slices *slices = calloc(1, sizeof(*slices));
    if (slices == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *slices = (struct slices){.memory = memory, .call = call, .step = step};
    slices->task.run = run_slice;
    slices->value = call->value;
    call->value = NULL;
    loop_post(call->loop, &slices->task);
    return STORE_PENDING;
}

/* Ends a PUT whose value is not taken. */
static enum store_status put_refused(struct store_call *call, enum store_status status)
{
    value_unref(call->value);
    call->value = NULL;
    return status;
}

static enum store_status memory_put(struct store *store, struct store_call *call)
{
    struct memory *memory = memory_of(store);
    if (!call->overwrite && is_there(memory, call))
        return put_refused(call, STORE_EXISTS);
    enum store_status status = put_step(memory, call, &call->value);
    if (status == STORE_PENDING)
        status = go_on_in_slices(memory, call, put_slice);
    return status == STORE_FAILED ? put_refused(call, status) : status;
}

/* A use of the value. Between two insertions only the first is noted: those that all read share the
 * value's cache line. */
static void touch(struct memory *memory, struct value *value)
{
    uint64_t now = atomic_load_explicit(&memory->clock, memory_order_relaxed);
    if (atomic_load_explicit(&value->used, memory_order_relaxed) != now)
        atomic_store_explicit(&value->used, now, memory_order_relaxed);
}

static void describe(struct store_call *call, const struct value *value)
{
    call->length = value->length;
    call->flags = value->flags;
    call->expires = value->expires;
}

/* The value by reference, or copied where it is small and the caller has room. The lock is held. */
static void hand_out(struct store_call *call, struct value *value)
{
    if (call->room_size == 0 || value->length > call->room_size) {
        call->value = value_ref(value);
        return;
    }
    describe(call, value);
    memcpy(call->room, value_bytes(value), value->length);
    call->copied = true;
}

/* what: done with the value if it is there, under the lock. */
static enum store_status look(struct store *store, struct store_call *call,
                              void (*what)(struct store_call *, struct value *))
{
    struct memory *memory = memory_of(store);
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired;
    pthread_mutex_lock(&shard->lock);
    struct value **slot = find_live(memory, shard, call, &expired);
    if (slot != NULL) {
        what(call, *slot);
        touch(memory, *slot);
    }
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    return slot != NULL ? STORE_OK : STORE_MISS;
}

static enum store_status memory_get(struct store *store, struct store_call *call)
{
    return look(store, call, hand_out);
}

static void just_describe(struct store_call *call, struct value *value)
{
    describe(call, value);
}

static enum store_status memory_head(struct store *store, struct store_call *call)
{
    return look(store, call, just_describe);
}

static enum store_status memory_delete(struct store *store, struct store_call *call)
{
    struct memory *memory = memory_of(store);
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired, *deleted = NULL;
    pthread_mutex_lock(&shard->lock);
    struct value **slot = find_live(memory, shard, call, &expired);
    if (slot != NULL)
        deleted = take_out(memory, shard, slot);
    pthread_mutex_unlock(&shard->lock);
    enum store_status status = deleted != NULL ? STORE_OK : STORE_MISS;
    value_unref(deleted);
    value_unref(expired);
    return status;
}

static bool has_prefix(const struct value *value, const struct store_call *call)
{
    return value->key_length >= call->key_length &&
           memcmp(value_key(value), call->key, call->key_length) == 0;
}

/* Takes all with the call's prefix out of a shard, chained by next. */
static struct value *clear_shard(struct memory *memory, struct shard *shard,
                                 struct store_call *call)
{
    struct value *cleared = NULL;
    pthread_mutex_lock(&shard->lock);
    for (uint32_t i = 0; i < table_slots(&shard->table); i++) {
        struct value **slot = table_slot(&shard->table, i);
        if (slot == NULL || !has_prefix(*slot, call))
            continue;
        struct value *value = take_out(memory, shard, slot);
        value->next = cleared;
        cleared = value;
        call->entries++;
    }
    pthread_mutex_unlock(&shard->lock);
    return cleared;
}

static enum store_status clear_slice(struct slices *slices)
{
    for (unsigned i = 0; i < WALK_SLICE && slices->shard < SHARDS; i++, slices->shard++) {
        struct shard *shard = &slices->memory->shards[slices->shard];
        struct value *cleared = clear_shard(slices->memory, shard, slices->call);
        for (struct value *next; cleared != NULL; cleared = next) {
            next = cleared->next;
            value_unref(cleared);
        }
    }
    return slices->shard < SHARDS ? STORE_PENDING : STORE_OK;
}

static enum store_status memory_clear(struct store *store, struct store_call *call)
{
    call->entries = 0;
    return go_on_in_slices(memory_of(store), call, clear_slice);
}

static void count_shard(struct shard *shard, struct store_call *call)
{
    pthread_mutex_lock(&shard->lock);
    for (uint32_t i = 0; i < table_slots(&shard->table); i++) {
        struct value **slot = table_slot(&shard->table, i);
        if (slot == NULL || !has_prefix(*slot, call))
            continue;
        call->entries++;
        call->size += value_cost(*slot);
    }
    pthread_mutex_unlock(&shard->lock);
}

static enum store_status inspect_slice(struct slices *slices)
{
    for (unsigned i = 0; i < WALK_SLICE && slices->shard < SHARDS; i++, slices->shard++)
        count_shard(&slices->memory->shards[slices->shard], slices->call);
    return slices->shard < SHARDS ? STORE_PENDING : STORE_OK;
}

static enum store_status memory_inspect(struct store *store, struct store_call *call)
{
    struct memory *memory = memory_of(store);
    call->approximate = false;
    call->entries = 0;
    call->size = 0;
    if (call->key_length > 0)
        return go_on_in_slices(memory, call, inspect_slice);
    call->entries = atomic_load_explicit(&memory->entries, memory_order_relaxed);
    call->size = atomic_load_explicit(&memory->size, memory_order_relaxed);
    return STORE_OK;
}

void memory_keep(struct store *store, struct value *value, uint64_t hash, bool replace)
{
    struct memory *memory = memory_of(store);
    struct store_call call = {.key = value_key(value),
                              .key_length = value->key_length,
                              .hash = hash,
                              .overwrite = replace};
    struct value *kept = value_ref(value);
    put_step(memory, &call, &kept);
    /* Where room is not to be had quickly, what it would have replaced must not stay. */
    if (kept != NULL && replace)
        memory_drop(store, &call);
    value_unref(kept);
}

bool memory_drop(struct store *store, struct store_call *call)
{
    return memory_delete(store, call) == STORE_OK;
}

static enum store_status memory_persist(struct store *store, struct store_call *call)
{
    (void)store;
    call->durable = false;
    return STORE_OK;
}

static void free_shard(struct shard *shard)
{
    struct table *table = &shard->table;
    for (uint32_t i = 0; table->buckets != NULL && i < table_slots(table); i++) {
        struct value **slot = table_slot(table, i);
        if (slot != NULL)
            value_unref(*slot);
    }
    table_free(table);
    pthread_mutex_destroy(&shard->lock);
}

static void memory_close(struct store *store)
{
    struct memory *memory = memory_of(store);
    for (unsigned i = 0; i < SHARDS; i++)
        free_shard(&memory->shards[i]);
    free(memory);
}

static struct store *memory_open(const struct config *config, char *why, size_t size)
{
    (void)config;
    struct memory *memory = aligned_alloc(_Alignof(struct memory), sizeof(*memory));
    bool ok = memory != NULL;
    if (ok)
        memset(memory, 0, sizeof(*memory));
    for (unsigned i = 0; ok && i < SHARDS; i++) {
        struct shard *shard = &memory->shards[i];
        pthread_mutex_init(&shard->lock, NULL);
        ok = table_init(&shard->table);
    }
    if (ok)
        return &memory->store;
    if (memory != NULL)
        memory_close(&memory->store);
    snprintf(why, size, "out of memory");
    return NULL;
}

const struct store_ops store_tier_memory = {
    .name = "memory",
    .title = "In-Memory",
    .open = memory_open,
    .close = memory_close,
    .get = memory_get,
    .head = memory_head,
    .put = memory_put,
    .delete = memory_delete,
    .clear = memory_clear,
    .inspect = memory_inspect,
    .persist = memory_persist,
};
