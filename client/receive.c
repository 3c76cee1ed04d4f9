#include "receive.h"

#include <errno.h>
#include <stdlib.h>

enum liara_cache_status receive_value(struct liara_cache *cache, const struct reply *reply,
                                      struct liara_cache_value *value)
{
    value->length = reply->length;
    value->flags = reply->flags;
    value->ttl = reply->ttl;
    value->bytes = reply->length < SIZE_MAX / 2 ? malloc((size_t)reply->length + 1) : NULL;
    if (!value->bytes) {
        errno = ENOMEM;
        wire_drop(&cache->wire);
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no memory for a value of %llu bytes",
                           (unsigned long long)reply->length);
    }
    wire_expect(&cache->wire, reply->length);
    enum liara_cache_status status = wire_take(cache, value->bytes, (size_t)reply->length);
    if (status == LIARA_CACHE_OK)
        status = wire_end_value(cache);
    if (status == LIARA_CACHE_OK) {
        ((char *)value->bytes)[reply->length] = '\0';
        return status;
    }
    free(value->bytes);
    value->bytes = NULL;
    return status;
}
