#include "record.h"

#include "../../clock.h"

#include <string.h>
#include <xxhash.h>

enum { HEAD_FIXED = offsetof(struct sqlite_head, key) };

uint64_t sqlite_seed(const uint8_t secret[BACKING_SECRET])
{
    return XXH3_64bits(secret, BACKING_SECRET);
}

uint64_t sqlite_place_mark(uint64_t seed, uint64_t place)
{
    return XXH3_64bits_withSeed(&place, sizeof(place), seed);
}

static uint64_t head_check(const struct sqlite_head *head, uint64_t seed, uint64_t place)
{
    const uint8_t *after = (const uint8_t *)head + sizeof(head->check);
    return XXH3_64bits_withSeed(after, HEAD_FIXED - sizeof(head->check) + head->key_length,
                                sqlite_place_mark(seed, place));
}

static uint64_t value_check(const uint8_t *bytes, uint32_t length, uint64_t seed, uint64_t place)
{
    return XXH3_64bits_withSeed(bytes, length, ~sqlite_place_mark(seed, place));
}

size_t sqlite_head_fill(struct sqlite_head *head, uint64_t seed, uint64_t place,
                        const struct backing_record *record)
{
    memset(head, 0, HEAD_FIXED);
    head->hash = record->hash;
    head->expires = clock_to_wall(record->expires);
    if (record->expires != CLOCK_NEVER)
        head->ttl = record->expires - clock_now();
    head->length = record->length;
    head->flags = record->flags;
    head->key_length = record->key_length;
    head->cost = record->cost;
    memcpy(head->key, record->data, record->key_length);
    head->value_check = value_check(record->data + record->key_length, record->length, seed, place);
    head->check = head_check(head, seed, place);
    return HEAD_FIXED + (size_t)record->key_length;
}

bool sqlite_head_read(struct sqlite_head *head, uint64_t seed, uint64_t place, const void *bytes,
                      size_t size)
{
    if (bytes == NULL || size < HEAD_FIXED || size > sizeof(*head))
        return false;
    memcpy(head, bytes, size);
    return size == HEAD_FIXED + (size_t)head->key_length &&
           head->check == head_check(head, seed, place);
}

bool sqlite_value_sound(const struct sqlite_head *head, uint64_t seed, uint64_t place,
                        const uint8_t *bytes)
{
    return head->value_check == value_check(bytes, head->length, seed, place);
}

int64_t sqlite_head_expires(const struct sqlite_head *head)
{
    return head->expires == CLOCK_NEVER ? CLOCK_NEVER : clock_from_wall(head->expires, head->ttl);
}

void sqlite_head_found(const struct sqlite_head *head, uint64_t place, struct backing_found *found)
{
    *found = (struct backing_found){
        .hash = head->hash,
        .place = place,
        .length = head->length,
        .key_length = head->key_length,
        .cost = head->cost,
        .expires = sqlite_head_expires(head),
        .key = head->key,
    };
}
