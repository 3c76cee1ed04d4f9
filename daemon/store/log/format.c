#include "format.h"

#include "../../clock.h"

#include <string.h>
#define XXH_INLINE_ALL /* states on the stack */
#include <xxhash.h>

enum { TTL_IN_SECONDS = 1u << 31 };

static uint32_t version_check(const struct log_header *header)
{
    return (uint32_t)XXH3_64bits(header, offsetof(struct log_header, version_check));
}

static uint64_t header_check(const struct log_header *header)
{
    const size_t from = offsetof(struct log_header, number);
    return XXH3_64bits((const uint8_t *)header + from, sizeof(*header) - from);
}

void log_header_make(struct log_header *header, const uint8_t secret[BACKING_SECRET],
                     uint64_t number, const uint64_t ends[LOG_ENDS])
{
    *header =
        (struct log_header){.magic = LOG_HEADER_MAGIC, .version = LOG_VERSION, .number = number};
    memcpy(header->ends, ends, sizeof(header->ends));
    memcpy(header->secret, secret, BACKING_SECRET);
    header->version_check = version_check(header);
    header->check = header_check(header);
}

enum log_header_state log_header_check(const struct log_header *header, uint64_t number)
{
    if (header->magic != LOG_HEADER_MAGIC || header->version_check != version_check(header))
        return LOG_HEADER_DAMAGED;
    if (header->version != LOG_VERSION)
        return LOG_HEADER_OTHER_VERSION;
    bool sound = header->check == header_check(header) && header->number == number;
    return sound ? LOG_HEADER_SOUND : LOG_HEADER_DAMAGED;
}

uint64_t log_seed(const uint8_t secret[BACKING_SECRET], uint64_t number)
{
    return XXH3_64bits_withSeed(secret, BACKING_SECRET, number);
}

static uint64_t check_of(const void *image, size_t length, uint64_t seed, uint64_t offset)
{
    return XXH3_64bits_withSeed((const uint8_t *)image + sizeof(uint64_t),
                                length - sizeof(uint64_t), seed + offset);
}

void log_sign(void *image, size_t length, uint64_t seed, uint64_t offset)
{
    uint64_t check = check_of(image, length, seed, offset);
    memcpy(image, &check, sizeof(check));
}

bool log_is_signed(const void *image, size_t length, uint64_t seed, uint64_t offset)
{
    uint64_t check = check_of(image, length, seed, offset);
    return memcmp(image, &check, sizeof(check)) == 0;
}

uint64_t log_record_check(const uint8_t *head, size_t head_length, const uint8_t *data,
                          size_t data_length, uint64_t seed, uint64_t offset)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset_withSeed(&state, seed + offset);
    XXH3_64bits_update(&state, head + sizeof(uint64_t), head_length - sizeof(uint64_t));
    XXH3_64bits_update(&state, data, data_length);
    return XXH3_64bits_digest(&state);
}

bool log_batch_is_plausible(const struct log_batch *batch)
{
    return batch->magic == LOG_BATCH_MAGIC && batch->count <= LOG_BATCH_MAX &&
           batch->previous_count <= LOG_BATCH_MAX;
}

bool log_trailer_is_plausible(const struct log_trailer *trailer, uint64_t file_size)
{
    return trailer->magic == LOG_TRAILER_MAGIC && trailer->end >= LOG_RECORDS_AT &&
           trailer->end <= file_size && trailer->keys_length <= file_size &&
           trailer->last_count <= trailer->count &&
           trailer->end + log_footer_size(trailer->count, trailer->keys_length) == file_size;
}

uint32_t log_ttl(int64_t milliseconds)
{
    if (milliseconds <= 0)
        return 0;
    if (milliseconds < TTL_IN_SECONDS)
        return (uint32_t)milliseconds;
    int64_t seconds = milliseconds / 1000 + (milliseconds % 1000 != 0);
    return TTL_IN_SECONDS + (uint32_t)(seconds < TTL_IN_SECONDS ? seconds : TTL_IN_SECONDS - 1);
}

int64_t log_ttl_milliseconds(uint32_t ttl)
{
    return ttl < TTL_IN_SECONDS ? ttl : (int64_t)(ttl - TTL_IN_SECONDS) * 1000;
}

struct backing_found log_found(const struct log_item *item, uint64_t place)
{
    int64_t expires = CLOCK_NEVER;
    if (item->kind & LOG_HAS_END)
        expires = clock_from_wall(item->end, log_ttl_milliseconds(item->ttl));
    return (struct backing_found){.hash = item->hash,
                                  .place = item->kind & LOG_TOMBSTONE ? 0 : place,
                                  .length = item->length,
                                  .key_length = item->key_length,
                                  .cost = item->cost,
                                  .expires = expires};
}
