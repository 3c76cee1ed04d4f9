/*
 * The memory store's table of values: open addressing over buckets of one cache line each, which
 * hold 32 bits of the hash and the address of up to five values. A look-up touches one such line,
 * seldom two, and of the values the one that it is after; growing touches no value at all.
 *
 * It holds addresses, no references, and has no lock: both are the caller's.
 */
#ifndef LIARA_STORE_TABLE_H
#define LIARA_STORE_TABLE_H

#include "../value.h"

enum { TABLE_SLOTS = 5 };

struct table_bucket {
    uint32_t tags[TABLE_SLOTS]; /* 0: free */
    uint32_t passed;            /* values that would be here and are further on */
    struct value *values[TABLE_SLOTS];
} __attribute__((aligned(64)));

struct table {
    struct table_bucket *buckets;
    uint32_t mask; /* buckets - 1 */
    uint32_t count;
};

/* An empty table; false where memory is short. */
bool table_init(struct table *table);

/* Frees the table, not the values; fine for one that is all zero. */
void table_free(struct table *table);

/* The slot of the value with this key, whose hash is given; NULL: it is not there. */
struct value **table_find(const struct table *table, uint64_t hash, const uint8_t *key,
                          size_t length);

/* Adds a value whose key is not there. false where memory to grow is short, and it is full. */
bool table_add(struct table *table, uint64_t hash, struct value *value);

/* Empties a slot that table_find() or table_slot() has returned; returns its value. No other value
 * moves. */
struct value *table_remove(struct table *table, struct value **slot);

/* For walks over all: slots from 0 to below table_slots(); NULL where one is free. */
static inline uint32_t table_slots(const struct table *table)
{
    return (table->mask + 1) * TABLE_SLOTS;
}

struct value **table_slot(const struct table *table, uint32_t slot);

#endif
