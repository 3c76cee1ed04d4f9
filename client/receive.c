#include "receive.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    HUGE_PAGE = 2 * 1024 * 1024,
    HUGE_BYTES = 4 * 1024 * 1024 /* from here on fresh memory costs more than the copy into it */
};

/* Memory to be filled whole at once; in large pages, if the system has them for who asks. */
static char *allocate(uint64_t length)
{
    char *bytes = length < SIZE_MAX / 2 ? malloc((size_t)length + 1) : NULL;
    if (!bytes || length < HUGE_BYTES)
        return bytes;
    uintptr_t first = ((uintptr_t)bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    uintptr_t last = ((uintptr_t)bytes + length) / HUGE_PAGE * HUGE_PAGE;
    int saved = errno;
    madvise((void *)first, last - first, MADV_HUGEPAGE);
    errno = saved;
    return bytes;
}

static enum liara_cache_status fill(struct liara_cache *cache, const struct reply *reply,
                                    const struct passed *passed, char *bytes)
{
    if (passed && passed->fd >= 0)
        return passed_read(cache, passed, bytes);
    wire_expect(&cache->wire, reply->length);
    enum liara_cache_status status = wire_take(cache, bytes, (size_t)reply->length);
    return status == LIARA_CACHE_OK ? wire_end_value(cache) : status;
}

enum liara_cache_status receive_value(struct liara_cache *cache, const struct reply *reply,
                                      const struct passed *passed, struct liara_cache_value *value)
{
    value->length = reply->length;
    value->flags = reply->flags;
    value->ttl = reply->ttl;
    char *bytes = value->bytes = allocate(reply->length);
    if (!bytes) {
        errno = ENOMEM;
        if (!passed || passed->fd < 0)
            wire_drop(&cache->wire);
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no memory for a value of %llu bytes",
                           (unsigned long long)reply->length);
    }
    enum liara_cache_status status = fill(cache, reply, passed, bytes);
    if (status == LIARA_CACHE_OK) {
        bytes[reply->length] = '\0';
        return status;
    }
    free(bytes);
    value->bytes = NULL;
    return status;
}
