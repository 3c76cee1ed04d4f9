#include "table.h"

#include <stdlib.h>
#include <string.h>

static uint32_t tag_of(uint64_t hash)
{
    uint32_t tag = (uint32_t)hash;
    return tag != 0 ? tag : 1;
}

static bool make_buckets(struct table *table, uint32_t count)
{
    size_t size = count * sizeof(struct table_bucket);
    struct table_bucket *buckets = aligned_alloc(sizeof(struct table_bucket), size);
    if (buckets == NULL)
        return false;
    memset(buckets, 0, size);
    table->buckets = buckets;
    table->mask = count - 1;
    return true;
}

bool table_init(struct table *table)
{
    table->count = 0;
    return make_buckets(table, 1);
}

void table_free(struct table *table)
{
    free(table->buckets);
    table->buckets = NULL;
}

static bool has_key(const struct value *value, const uint8_t *key, size_t length)
{
    return value->key_length == length && memcmp(value_key(value), key, length) == 0;
}

struct value **table_find(const struct table *table, uint64_t hash, const uint8_t *key,
                          size_t length)
{
    uint32_t tag = tag_of(hash), at = tag, left = table->mask;
    struct table_bucket *bucket;
    do {
        bucket = &table->buckets[at++ & table->mask];
        for (int i = 0; i < TABLE_SLOTS; i++) {
            if (bucket->tags[i] == tag && has_key(bucket->values[i], key, length))
                return &bucket->values[i];
        }
    } while (bucket->passed > 0 && left-- > 0);
    return NULL;
}

static bool put_into(struct table_bucket *bucket, uint32_t tag, struct value *value)
{
    for (int i = 0; i < TABLE_SLOTS; i++) {
        if (bucket->tags[i] != 0)
            continue;
        bucket->tags[i] = tag;
        bucket->values[i] = value;
        return true;
    }
    return false;
}

/* There is a free slot. */
static void place(struct table *table, uint32_t tag, struct value *value)
{
    uint32_t at = tag;
    while (!put_into(&table->buckets[at & table->mask], tag, value))
        table->buckets[at++ & table->mask].passed++;
    table->count++;
}

static void grow(struct table *table)
{
    struct table before = *table;
    if (!make_buckets(table, (before.mask + 1) * 2))
        return;
    table->count = 0;
    for (uint32_t b = 0; b <= before.mask; b++) {
        const struct table_bucket *bucket = &before.buckets[b];
        for (int i = 0; i < TABLE_SLOTS; i++) {
            if (bucket->tags[i] != 0)
                place(table, bucket->tags[i], bucket->values[i]);
        }
    }
    free(before.buckets);
}

bool table_add(struct table *table, uint64_t hash, struct value *value)
{
    if (table->count >= table_slots(table) / TABLE_SLOTS * (TABLE_SLOTS - 1))
        grow(table);
    if (table->count == table_slots(table))
        return false;
    place(table, tag_of(hash), value);
    return true;
}

struct value *table_remove(struct table *table, struct value **slot)
{
    size_t offset = (size_t)((char *)slot - (char *)table->buckets);
    uint32_t here = (uint32_t)(offset / sizeof(struct table_bucket));
    struct table_bucket *bucket = &table->buckets[here];
    size_t i = (size_t)(slot - bucket->values);
    for (uint32_t at = bucket->tags[i]; (at & table->mask) != here; at++)
        table->buckets[at & table->mask].passed--;
    bucket->tags[i] = 0;
    table->count--;
    return bucket->values[i];
}

struct value **table_slot(const struct table *table, uint32_t slot)
{
    struct table_bucket *bucket = &table->buckets[slot / TABLE_SLOTS];
    return bucket->tags[slot % TABLE_SLOTS] != 0 ? &bucket->values[slot % TABLE_SLOTS] : NULL;
}
