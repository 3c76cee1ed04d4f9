/*
 * Keeps values in memory: a table of many small shards, each with its own lock, which holds one
 * reference to every value in it. A shard grows by itself when it is full, so that no growth takes
 * long however large the whole is.
 *
 * What may take long (to make room for a large value, to walk over everything) is done in slices on
 * the asking loop, between which other requests run.
 */
#include "memory.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHARD_BITS = 10,
    SHARDS = 1 << SHARD_BITS,
    BUCKETS_FIRST = 4,
    SAMPLES = 16,     /* residents of which the least worthy is evicted */
    EVICT_SLICE = 64, /* victims until others get a turn */
    WALK_SLICE = 4    /* shards until others get a turn */
};

struct shard {
    pthread_mutex_t lock;
    uint32_t mask; /* buckets - 1 */
    uint32_t count;
    struct value **buckets;
} __attribute__((aligned(64)));

struct memory {
    struct store store;
    _Atomic uint64_t size; /* of all residents, by value_cost() */
    _Atomic uint64_t entries;
    _Atomic uint64_t cursor; /* where the next search for victims begins */
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

static struct value **bucket_of(struct shard *shard, uint64_t hash)
{
    return &shard->buckets[hash & shard->mask];
}

/* The link that points to the key's value, or to NULL at its chain's end. The lock is held. */
static struct value **find(struct shard *shard, uint64_t hash, const uint8_t *key, size_t length)
{
    struct value **link = bucket_of(shard, hash);
    for (; *link != NULL; link = &(*link)->next) {
        const struct value *value = *link;
        if (value->hash == hash && value->key_length == length &&
            memcmp(value_key(value), key, length) == 0)
            break;
    }
    return link;
}

/* Takes *link out of its chain; the table's reference is the caller's. The lock is held. */
static struct value *take_out(struct memory *memory, struct shard *shard, struct value **link)
{
    struct value *value = *link;
    *link = value->next;
    value->next = NULL;
    shard->count--;
    atomic_fetch_sub_explicit(&memory->size, value_cost(value), memory_order_relaxed);
    atomic_fetch_sub_explicit(&memory->entries, 1, memory_order_relaxed);
    return value;
}

/* As find(), but a value past its end is taken out, into *expired, and is not found. */
static struct value **find_live(struct memory *memory, struct shard *shard,
                                const struct store_call *call, struct value **expired)
{
    struct value **link = find(shard, call->hash, call->key, call->key_length);
    *expired = NULL;
    if (*link != NULL && (*link)->expires != CLOCK_NEVER &&
        store_expired((*link)->expires, clock_now())) {
        *expired = take_out(memory, shard, link);
        link = find(shard, call->hash, call->key, call->key_length);
    }
    return link;
}

/* Where memory for twice the buckets is short, the chains just get longer. The lock is held. */
static void grow(struct shard *shard)
{
    uint32_t count = (shard->mask + 1) * 2;
    struct value **buckets = calloc(count, sizeof(*buckets));
    if (buckets == NULL)
        return;
    for (uint32_t i = 0; i <= shard->mask; i++) {
        for (struct value *value = shard->buckets[i], *next; value != NULL; value = next) {
            next = value->next;
            struct value **bucket = &buckets[value->hash & (count - 1)];
            value->next = *bucket;
            *bucket = value;
        }
    }
    free(shard->buckets);
    shard->buckets = buckets;
    shard->mask = count - 1;
}

/* How much a value deserves to stay: the victim is the lowest of some residents. */
static uint64_t worth(const struct value *value)
{
    return atomic_load_explicit(&value->used, memory_order_relaxed);
}

/*
 * A reference to the least worthy of some residents that stand together at a random place, or NULL
 * where there are none. With few residents it looks at them all.
 */
static struct value *choose_victim(struct memory *memory)
{
    struct value *victim = NULL;
    unsigned seen = 0;
    uint64_t start =
        atomic_fetch_add_explicit(&memory->cursor, 0x9E3779B97F4A7C15, memory_order_relaxed);
    for (unsigned i = 0; i < SHARDS && seen < SAMPLES; i++) {
        struct shard *shard = &memory->shards[((start >> 32) + i) % SHARDS];
        struct value *unwanted = victim;
        pthread_mutex_lock(&shard->lock);
        for (uint32_t n = 0; n <= shard->mask && seen < SAMPLES && shard->count > 0; n++) {
            struct value *value = shard->buckets[((uint32_t)start + n) & shard->mask];
            for (; value != NULL; value = value->next, seen++) {
                if (victim == NULL || worth(value) < worth(victim))
                    victim = value;
            }
        }
        if (victim != unwanted)
            value_ref(victim);
        pthread_mutex_unlock(&shard->lock);
        if (victim != unwanted)
            value_unref(unwanted);
    }
    return victim;
}

/* false: there is nobody left to evict. */
static bool evict_one(struct memory *memory)
{
    struct value *victim = choose_victim(memory);
    if (victim == NULL)
        return false;
    struct shard *shard = shard_of(memory, victim->hash);
    struct value *evicted = NULL;
    pthread_mutex_lock(&shard->lock);
    struct value **link = bucket_of(shard, victim->hash);
    while (*link != NULL && *link != victim)
        link = &(*link)->next;
    if (*link != NULL)
        evicted = take_out(memory, shard, link);
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

/* Puts the value, for which room is reserved, into the table, which takes the reference. */
static enum store_status insert(struct memory *memory, struct store_call *call, struct value *value)
{
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired, *replaced = NULL;
    enum store_status status = STORE_OK;
    value->hash = call->hash;
    atomic_store_explicit(&value->used, clock_tick(), memory_order_relaxed);

    pthread_mutex_lock(&shard->lock);
    struct value **link = find_live(memory, shard, call, &expired);
    if (*link != NULL && call->overwrite)
        replaced = take_out(memory, shard, link);
    if (*link != NULL && replaced == NULL) {
        status = STORE_EXISTS;
        replaced = value;
        atomic_fetch_sub_explicit(&memory->size, value_cost(value), memory_order_relaxed);
    } else {
        struct value **bucket = bucket_of(shard, call->hash);
        value->next = *bucket;
        *bucket = value;
        atomic_fetch_add_explicit(&memory->entries, 1, memory_order_relaxed);
        if (++shard->count > shard->mask)
            grow(shard);
    }
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    value_unref(replaced);
    return status;
}

static bool is_there(struct memory *memory, const struct store_call *call)
{
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired;
    pthread_mutex_lock(&shard->lock);
    bool there = *find_live(memory, shard, call, &expired) != NULL;
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

static enum store_status memory_get(struct store *store, struct store_call *call)
{
    struct memory *memory = memory_of(store);
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired;
    pthread_mutex_lock(&shard->lock);
    struct value *value = *find_live(memory, shard, call, &expired);
    if (value != NULL)
        value_ref(value);
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    if (value == NULL)
        return STORE_MISS;
    atomic_store_explicit(&value->used, clock_tick(), memory_order_relaxed);
    call->value = value;
    return STORE_OK;
}

static enum store_status memory_head(struct store *store, struct store_call *call)
{
    enum store_status status = memory_get(store, call);
    if (status != STORE_OK)
        return status;
    call->length = call->value->length;
    call->flags = call->value->flags;
    call->expires = call->value->expires;
    value_unref(call->value);
    call->value = NULL;
    return STORE_OK;
}

static enum store_status memory_delete(struct store *store, struct store_call *call)
{
    struct memory *memory = memory_of(store);
    struct shard *shard = shard_of(memory, call->hash);
    struct value *expired, *deleted = NULL;
    pthread_mutex_lock(&shard->lock);
    struct value **link = find_live(memory, shard, call, &expired);
    if (*link != NULL)
        deleted = take_out(memory, shard, link);
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
    for (uint32_t i = 0; i <= shard->mask; i++) {
        for (struct value **link = &shard->buckets[i]; *link != NULL;) {
            if (!has_prefix(*link, call)) {
                link = &(*link)->next;
                continue;
            }
            struct value *value = take_out(memory, shard, link);
            value->next = cleared;
            cleared = value;
            call->entries++;
        }
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
    for (uint32_t i = 0; i <= shard->mask; i++) {
        for (const struct value *value = shard->buckets[i]; value != NULL; value = value->next) {
            if (!has_prefix(value, call))
                continue;
            call->entries++;
            call->size += value_cost(value);
        }
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
    for (uint32_t i = 0; shard->buckets != NULL && i <= shard->mask; i++) {
        for (struct value *value = shard->buckets[i], *next; value != NULL; value = next) {
            next = value->next;
            value_unref(value);
        }
    }
    free(shard->buckets);
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
        shard->mask = BUCKETS_FIRST - 1;
        shard->buckets = calloc(BUCKETS_FIRST, sizeof(*shard->buckets));
        ok = shard->buckets != NULL;
    }
    if (ok)
        return &memory->store;
    if (memory != NULL)
        memory_close(&memory->store);
    snprintf(why, size, "out of memory");
    return NULL;
}

const struct store_ops store_memory = {
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
