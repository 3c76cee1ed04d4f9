#include "redis.h"

#include "../../clock.h"
#include "../../log.h"

#include <endian.h>
#include <string.h>
#include <xxhash.h>

enum { COMPLAIN_MS = 10000 };

static const char mark[4] = {'L', 'C', 'v', '1'};

struct redis_word redis_key(char *key, const struct store_call *call)
{
    const struct redis *redis = redis_of(call);
    memcpy(key, redis->prefix, redis->prefix_length);
    if (call->request.key_length > 0)
        memcpy(key + redis->prefix_length, call->request.key, call->request.key_length);
    return (struct redis_word){.bytes = key,
                               .length = redis->prefix_length + call->request.key_length};
}

uint64_t redis_sum_seed(const struct store_call *call, uint32_t flags)
{
    return XXH3_64bits_withSeed(call->request.key, call->request.key_length, flags);
}

void redis_header_make(char *header, const struct store_call *call, struct value *value)
{
    uint32_t flags = htole32(value->flags);
    uint64_t sum = htole64(XXH3_64bits_withSeed(value_bytes(value), value->length,
                                                redis_sum_seed(call, value->flags)));
    memcpy(header, mark, sizeof(mark));
    memcpy(header + 4, &flags, sizeof(flags));
    memcpy(header + 8, &sum, sizeof(sum));
}

bool redis_header_is_ours(const char *bytes, size_t length)
{
    return length >= sizeof(mark) && memcmp(bytes, mark, sizeof(mark)) == 0;
}

uint32_t redis_header_flags(const char *header)
{
    uint32_t flags;
    memcpy(&flags, header + 4, sizeof(flags));
    return le32toh(flags);
}

uint64_t redis_header_sum(const char *header)
{
    uint64_t sum;
    memcpy(&sum, header + 8, sizeof(sum));
    return le64toh(sum);
}

void redis_complain(const struct store_call *call, const char *what)
{
    struct redis *redis = redis_of(call);
    char key[128];
    int64_t now = clock_now(), last = atomic_load(&redis->complained);
    if (last != 0 && now < last + COMPLAIN_MS)
        return;
    if (!atomic_compare_exchange_strong(&redis->complained, &last, now))
        return;
    log_warning("Redis at %s: the entry %s%s %s", redis->server.where, redis->prefix,
                redis_printable(key, sizeof(key), call->request.key, call->request.key_length),
                what);
}
