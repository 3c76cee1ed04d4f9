#include "value.h"

#include "clock.h"
#include "sealed.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Descriptors of values that are shared, in slots from 1; what is free is 0. They are few, so that
 * they can't use up the process's descriptors, and hold few bytes, for each is a second copy. A
 * value without one has SHARED_ASKED and how often it was asked for instead of a slot.
 */
enum { SHARED_MAX = VALUE_SHARED_MAX, SHARED_ASKED = 0x8000, SHARED_SOON = UINT16_MAX };
static const uint64_t shared_bytes_max = 256 << 20;
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static int shared_fds[SHARED_MAX + 1];
static atomic_uint shared_count; /* these two change under the lock, and are looked at without */
static _Atomic uint64_t shared_bytes;
static atomic_uint shared_most = SHARED_MAX;
static atomic_bool sharing; /* some value is SHARED_SOON: one at a time */

/*
 * When to make one, by what it costs and what each GET then saves: what fills large pages pays at
 * once for who takes the descriptor and at the second GET for a socket, smaller ones take longer.
 */
enum { SHARE_AT_ONCE = 2 << 20, SHARE_LARGE_AFTER = 1, SHARE_SMALL_AFTER = 3 };

static _Atomic uint64_t total;
static _Atomic uint64_t limit = UINT64_MAX;

void value_set_limit(uint64_t bytes)
{
    atomic_store_explicit(&limit, bytes, memory_order_relaxed);
}

uint64_t value_total(void)
{
    return atomic_load_explicit(&total, memory_order_relaxed);
}

/* A refused one must not stand in the sum even for a moment, where it would make others fail. */
static bool take_bytes(uint64_t cost)
{
    uint64_t most = atomic_load_explicit(&limit, memory_order_relaxed);
    uint64_t before = atomic_load_explicit(&total, memory_order_relaxed);
    do {
        if (cost > most || before > most - cost)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&total, &before, before + cost,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

struct value *value_new(const uint8_t *key, size_t key_length, uint32_t length)
{
    uint64_t cost = sizeof(struct value) + key_length + length + 1;
    if (!take_bytes(cost)) {
        errno = ENOBUFS;
        return NULL;
    }
    struct value *value = malloc(cost);
    if (value == NULL) {
        atomic_fetch_sub_explicit(&total, cost, memory_order_relaxed);
        return NULL;
    }
    atomic_init(&value->references, 1);
    atomic_init(&value->used, 0);
    value->flags = 0;
    value->length = length;
    value->key_length = (uint16_t)key_length;
    value->expires = CLOCK_NEVER;
    atomic_init(&value->shared, 0);
    memcpy(value->data, key, key_length);
    value->data[key_length + (size_t)length] = '\n';
    return value;
}

struct value *value_ref(struct value *value)
{
    atomic_fetch_add_explicit(&value->references, 1, memory_order_relaxed);
    return value;
}

void value_hand_over(struct value *value)
{
    atomic_fetch_sub_explicit(&total, value_cost(value), memory_order_relaxed);
}

void value_take_back(struct value *value)
{
    atomic_fetch_add_explicit(&total, value_cost(value), memory_order_relaxed);
}

/* Its bytes and the LF. */
static uint64_t cost_to_share(const struct value *value)
{
    return sealed_cost(value->length + 1);
}

static bool has_room(const struct value *value)
{
    return atomic_load_explicit(&shared_count, memory_order_relaxed) <
               atomic_load_explicit(&shared_most, memory_order_relaxed) &&
           value->length < shared_bytes_max &&
           atomic_load_explicit(&shared_bytes, memory_order_relaxed) + cost_to_share(value) <=
               shared_bytes_max;
}

/* Takes a slot; 0 where the bounds are reached. */
static uint16_t take_slot(const struct value *value)
{
    uint16_t slot = 0;
    pthread_mutex_lock(&shared_lock);
    if (has_room(value)) {
        for (slot = SHARED_MAX; slot > 0 && shared_fds[slot] != 0; slot--)
            ;
    }
    if (slot > 0) {
        shared_fds[slot] = -1;
        atomic_fetch_add_explicit(&shared_count, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&shared_bytes, cost_to_share(value), memory_order_relaxed);
    }
    pthread_mutex_unlock(&shared_lock);
    return slot;
}

static void give_slot(uint16_t slot, const struct value *value)
{
    pthread_mutex_lock(&shared_lock);
    if (shared_fds[slot] > 0)
        close(shared_fds[slot]);
    shared_fds[slot] = 0;
    atomic_fetch_sub_explicit(&shared_count, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&shared_bytes, cost_to_share(value), memory_order_relaxed);
    pthread_mutex_unlock(&shared_lock);
}

void value_set_shared_limit(unsigned descriptors)
{
    atomic_store(&shared_most, descriptors < SHARED_MAX ? descriptors : SHARED_MAX);
}

static bool is_slot(uint16_t shared)
{
    return shared > 0 && shared < SHARED_ASKED;
}

/* Whether the caller is the one that goes on. */
static bool share_soon(struct value *value, uint16_t before)
{
    if (atomic_load_explicit(&sharing, memory_order_relaxed) || atomic_exchange(&sharing, true))
        return false;
    if (atomic_compare_exchange_strong(&value->shared, &before, SHARED_SOON))
        return true;
    atomic_store(&sharing, false);
    return false;
}

bool value_worth_sharing(struct value *value, bool as_descriptor)
{
    bool large = value->length >= SHARE_AT_ONCE;
    uint16_t shared = atomic_load_explicit(&value->shared, memory_order_relaxed);
    unsigned asked = shared >= SHARED_ASKED ? shared - SHARED_ASKED : 0;
    if (is_slot(shared) || shared == SHARED_SOON || !has_room(value))
        return false;
    if ((large && as_descriptor) || asked >= (large ? SHARE_LARGE_AFTER : SHARE_SMALL_AFTER))
        return share_soon(value, shared);
    /* Who fails here was overtaken by a thread that counts too. */
    atomic_compare_exchange_strong(&value->shared, &shared, (uint16_t)(SHARED_ASKED + asked + 1));
    return false;
}

void value_share_not(struct value *value)
{
    atomic_store(&value->shared, SHARED_ASKED);
    atomic_store(&sharing, false);
}

bool value_share(struct value *value)
{
    uint16_t slot = take_slot(value);
    int fd = slot > 0 ? sealed_file(value_bytes(value), value->length + 1) : -1;
    if (fd < 0) {
        if (slot > 0)
            give_slot(slot, value);
        value_share_not(value);
        return false;
    }
    pthread_mutex_lock(&shared_lock);
    shared_fds[slot] = fd;
    pthread_mutex_unlock(&shared_lock);
    atomic_store(&value->shared, slot);
    atomic_store(&sharing, false);
    return true;
}

int value_shared(const struct value *value)
{
    uint16_t slot = atomic_load(&value->shared);
    return is_slot(slot) ? shared_fds[slot] : -1;
}

void value_unref(struct value *value)
{
    if (value == NULL ||
        atomic_fetch_sub_explicit(&value->references, 1, memory_order_acq_rel) != 1)
        return;
    atomic_fetch_sub_explicit(&total, value_cost(value), memory_order_relaxed);
    uint16_t slot = atomic_load_explicit(&value->shared, memory_order_relaxed);
    if (is_slot(slot))
        give_slot(slot, value);
    free(value);
}
