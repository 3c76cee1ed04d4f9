#include "value.h"

#include "clock.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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
    uint64_t cost = sizeof(struct value) + key_length + length;
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
    value->hash = 0;
    value->next = NULL;
    memcpy(value->data, key, key_length);
    return value;
}

struct value *value_ref(struct value *value)
{
    atomic_fetch_add_explicit(&value->references, 1, memory_order_relaxed);
    return value;
}

void value_unref(struct value *value)
{
    if (value == NULL ||
        atomic_fetch_sub_explicit(&value->references, 1, memory_order_acq_rel) != 1)
        return;
    atomic_fetch_sub_explicit(&total, value_cost(value), memory_order_relaxed);
    free(value);
}
