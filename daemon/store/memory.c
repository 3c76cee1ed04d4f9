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
    SLOTS_FIRST = 8,
    SAMPLES = 16,     /* residents of which the least worthy is evicted */
    EVICT_SLICE = 64, /* victims until others get a turn */
    WALK_SLICE = 4    /* shards until others get a turn */
};

/*
 * Open addressing with linear probing. A look-up goes through the tags, which are 32 bits of each
 * value's hash, and touches a value only where its tag says that this is the one; a tag is also all
 * that is needed to place its value anew when the table grows.
 */
struct shard {
    pthread_mutex_t lock;
    uint32_t mask; /* slots - 1 */
    uint32_t count;
    uint32_t *tags; /* of the slots; 0: free. Behind values, in the same memory */
    struct value **values;
} __attribute__((aligned(64)));

struct memory {
    struct store store;
    /* What changes with every PUT, apart from what every GET reads. */
    _Atomic uint64_t size __attribute__((aligned(64))); /* of all residents, by value_cost() */
    _Atomic uint64_t entries;
    _Atomic uint64_t clock;  /* counts insertions: the time in which uses are told apart */
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

static uint32_t tag_of(uint64_t hash)
{
    uint32_t tag = (uint32_t)hash;
    return tag != 0 ? tag : 1;
}

static bool has_key(const struct value *value, const struct store_call *call)
{
    return value->key_length == call->key_length &&
           memcmp(value_key(value), call->key, call->key_length) == 0;
}

/* The slot of the call's key, or the free one where it would be put. The lock is held. */
static uint32_t find(const struct shard *shard, const struct store_call *call)
{
    uint32_t tag = tag_of(call->hash), slot = tag & shard->mask;
    while (shard->tags[slot] != 0 &&
           (shard->tags[slot] != tag || !has_key(shard->values[slot], call)))
        slot = (slot + 1) & shard->mask;
    return slot;
}

/* Those behind it close the gap, lest a search ends there before it has met them. */
static void free_slot(struct shard *shard, uint32_t gap)
{
    uint32_t mask = shard->mask;
    for (uint32_t slot = (gap + 1) & mask; shard->tags[slot] != 0; slot = (slot + 1) & mask) {
        uint32_t home = shard->tags[slot] & mask;
        if (((slot - home) & mask) < ((slot - gap) & mask))
            continue;
        shard->tags[gap] = shard->tags[slot];
        shard->values[gap] = shard->values[slot];
        gap = slot;
    }
    shard->tags[gap] = 0;
}

/* Empties the slot; the table's reference is the caller's. The lock is held. */
static struct value *take_out(struct memory *memory, struct shard *shard, uint32_t slot)
{
    struct value *value = shard->values[slot];
    free_slot(shard, slot);
    shard->count--;
    atomic_fetch_sub_explicit(&memory->size, value_cost(value), memory_order_relaxed);
    atomic_fetch_sub_explicit(&memory->entries, 1, memory_order_relaxed);
    return value;
}

/* As find(), but a value past its end is taken out, into *expired, and is not found. */
static uint32_t find_live(struct memory *memory, struct shard *shard, const struct store_call *call,
                          struct value **expired)
{
    uint32_t slot = find(shard, call);
    *expired = NULL;
    if (shard->tags[slot] == 0 || shard->values[slot]->expires == CLOCK_NEVER ||
        !store_expired(shard->values[slot]->expires, clock_now()))
        return slot;
    *expired = take_out(memory, shard, slot);
    return find(shard, call);
}

/* Gives the shard so many slots, a power of two, all free. false: memory is short. */
static bool new_slots(struct shard *shard, uint32_t count)
{
    struct value **values = calloc(count, sizeof(*values) + sizeof(*shard->tags));
    if (values == NULL)
        return false;
    shard->values = values;
    shard->tags = (uint32_t *)(void *)(values + count);
    shard->mask = count - 1;
    return true;
}

static void grow(struct shard *shard)
{
    struct shard before = *shard;
    if (!new_slots(shard, (before.mask + 1) * 2))
        return;
    for (uint32_t i = 0; i <= before.mask; i++) {
        if (before.tags[i] == 0)
            continue;
        uint32_t slot = before.tags[i] & shard->mask;
        while (shard->tags[slot] != 0)
            slot = (slot + 1) & shard->mask;
        shard->tags[slot] = before.tags[i];
        shard->values[slot] = before.values[i];
    }
    free(before.values);
}

/* Room for one more. Where memory to grow is short it goes on until one slot is left, which ends
 * searches. The lock is held. */
static bool has_room(struct shard *shard)
{
    uint32_t slots = shard->mask + 1;
    if (shard->count >= slots - slots / 8)
        grow(shard);
    return shard->count < shard->mask;
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
    for (uint32_t n = 0; n <= shard->mask && victim->seen < SAMPLES && shard->count > 0; n++) {
        uint32_t slot = (start + n) & shard->mask;
        if (shard->tags[slot] == 0)
            continue;
        victim->seen++;
        uint64_t its_worth = worth(shard->values[slot]);
        if (victim->value != NULL && its_worth >= victim->worth)
            continue;
        victim->value = shard->values[slot];
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
    uint32_t slot = find(shard, &call);
    if (shard->tags[slot] != 0 && shard->values[slot] == victim)
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
    if (!has_room(shard))
        return store_fail(call, ERROR_BUSY, "no memory for a larger table; try again");
    uint32_t slot = find(shard, call);
    shard->tags[slot] = tag_of(call->hash);
    shard->values[slot] = value;
    shard->count++;
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
    uint32_t slot = find_live(memory, shard, call, &expired);
    if (shard->tags[slot] == 0) {
        status = add(memory, shard, call, value);
        unwanted = status == STORE_OK ? NULL : value;
    } else if (call->overwrite) {
        unwanted = shard->values[slot];
        shard->values[slot] = value;
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
    bool there = shard->tags[find_live(memory, shard, call, &expired)] != 0;
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
    uint32_t slot = find_live(memory, shard, call, &expired);
    bool found = shard->tags[slot] != 0;
    if (found) {
        what(call, shard->values[slot]);
        touch(memory, shard->values[slot]);
    }
    pthread_mutex_unlock(&shard->lock);
    value_unref(expired);
    return found ? STORE_OK : STORE_MISS;
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
    uint32_t slot = find_live(memory, shard, call, &expired);
    if (shard->tags[slot] != 0)
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
    for (uint32_t slot = 0; slot <= shard->mask;) {
        if (shard->tags[slot] == 0 || !has_prefix(shard->values[slot], call)) {
            slot++;
            continue;
        }
        /* Another may have moved into the slot: it is looked at again. */
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
    for (uint32_t slot = 0; slot <= shard->mask; slot++) {
        if (shard->tags[slot] == 0 || !has_prefix(shard->values[slot], call))
            continue;
        call->entries++;
        call->size += value_cost(shard->values[slot]);
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
    for (uint32_t slot = 0; shard->values != NULL && slot <= shard->mask; slot++)
        if (shard->tags[slot] != 0)
            value_unref(shard->values[slot]);
    free(shard->values);
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
        ok = new_slots(shard, SLOTS_FIRST);
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
