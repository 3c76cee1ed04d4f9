#include "value.h"

#include "clock.h"
#include "sealed.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Descriptors of values that are shared, in slots from 1; what is free is 0. They are few, so that
 * they can't use up the process's descriptors, and hold few bytes, for each is a second copy. */
enum { SHARED_MAX = VALUE_SHARED_MAX, SHARED_NOT = 0, SHARED_WANTED = UINT16_MAX };
static const uint64_t shared_bytes_max = 256 << 20;
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static int shared_fds[SHARED_MAX + 1];
/* Changed under the lock, read without it too. */
static _Atomic uint64_t shared_bytes;
static atomic_uint shared_count;
static atomic_uint shared_most = SHARED_MAX;

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

/* What a value's descriptor costs: its bytes and the LF. */
static uint64_t shared_cost(const struct value *value)
{
    return sealed_cost(value->length + 1);
}

static bool can_share(const struct value *value)
{
    return atomic_load_explicit(&shared_count, memory_order_relaxed) <
               atomic_load_explicit(&shared_most, memory_order_relaxed) &&
           atomic_load_explicit(&shared_bytes, memory_order_relaxed) + shared_cost(value) <=
               shared_bytes_max;
}

/* Takes a slot; 0 where the bounds are reached. */
static uint16_t take_slot(const struct value *value)
{
    uint16_t slot = 0;
    pthread_mutex_lock(&shared_lock);
    if (can_share(value)) {
        for (slot = SHARED_MAX; slot > 0 && shared_fds[slot] != 0; slot--)
            ;
    }
    if (slot > 0) {
        shared_fds[slot] = -1;
        shared_bytes += shared_cost(value);
        shared_count++;
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
    shared_bytes -= shared_cost(value);
    shared_count--;
    pthread_mutex_unlock(&shared_lock);
}

void value_set_shared_limit(unsigned descriptors)
{
    atomic_store(&shared_most, descriptors < SHARED_MAX ? descriptors : SHARED_MAX);
}

bool value_worth_sharing(struct value *value)
{
    uint16_t none = SHARED_NOT;
    if (atomic_compare_exchange_strong(&value->shared, &none, SHARED_WANTED))
        return false;
    return none == SHARED_WANTED && can_share(value);
}

/* Another thread may have been faster: then its copy serves. */
static bool set_slot(struct value *value, uint16_t slot)
{
    uint16_t before = atomic_load(&value->shared);
    while (before == SHARED_NOT || before == SHARED_WANTED) {
        if (atomic_compare_exchange_weak(&value->shared, &before, slot))
            return true;
    }
    return false;
}

bool value_share(struct value *value)
{
    if (value_shared(value) >= 0)
        return true;
    uint16_t slot = take_slot(value);
    if (slot == 0)
        return false;
    int fd = sealed_file(value_bytes(value), value->length + 1);
    pthread_mutex_lock(&shared_lock);
    shared_fds[slot] = fd;
    pthread_mutex_unlock(&shared_lock);
    if (fd >= 0 && set_slot(value, slot))
        return true;
    give_slot(slot, value);
    return value_shared(value) >= 0;
}

int value_shared(const struct value *value)
{
    uint16_t slot = atomic_load(&value->shared);
    return slot != SHARED_NOT && slot != SHARED_WANTED ? shared_fds[slot] : -1;
}

void value_unref(struct value *value)
{
    if (value == NULL ||
        atomic_fetch_sub_explicit(&value->references, 1, memory_order_acq_rel) != 1)
        return;
    atomic_fetch_sub_explicit(&total, value_cost(value), memory_order_relaxed);
    uint16_t slot = atomic_load_explicit(&value->shared, memory_order_relaxed);
    if (slot != SHARED_NOT && slot != SHARED_WANTED)
        give_slot(slot, value);
    free(value);
}
