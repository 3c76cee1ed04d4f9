/* What gets one value: into memory, a buffer, a descriptor. */
#include "get.h"

#include "ask.h"
#include "file.h"
#include "receive.h"

#include <stdlib.h>
#include <string.h>

/* A process that may have no more descriptors gets the bytes instead. */
static enum liara_cache_status ask_for_value(struct liara_cache *cache, struct request *request,
                                             struct reply *reply)
{
    request->fd = cache->descriptors;
    enum liara_cache_status status = ask(cache, request, NULL, reply);
    if (status != LIARA_CACHE_OK || reply->kind != REPLY_FD || !cache->wire.unpassed)
        return status;
    ask_end(cache);
    request->fd = false;
    return ask(cache, request, NULL, reply);
}

enum liara_cache_status get_begin(struct liara_cache *cache, const void *key, size_t key_length,
                                  uint32_t lease, struct hit *hit)
{
    struct request request;
    hit->passed.fd = -1;
    handle_begin(cache);
    ask_request(&request, VERB_GET);
    request.lease = lease;
    enum liara_cache_status status = ask_key(cache, &request, key, key_length);
    if (status == LIARA_CACHE_OK)
        status = ask_for_value(cache, &request, &hit->reply);
    if (status != LIARA_CACHE_OK || hit->reply.kind == REPLY_VALUE)
        return status;
    if (hit->reply.kind == REPLY_MISS)
        return hit->reply.lease ? LIARA_CACHE_LEASE : LIARA_CACHE_MISS;
    if (hit->reply.kind == REPLY_FD && request.fd)
        return passed_take(cache, &hit->reply, &hit->passed);
    return ask_unexpected(cache);
}

static void describe(struct liara_cache_value *value, const struct hit *hit)
{
    value->length = hit->reply.length;
    value->flags = hit->reply.flags;
    value->ttl = hit->reply.ttl;
}

static enum liara_cache_status get(struct liara_cache *cache, const void *key, size_t key_length,
                                   uint32_t lease, struct liara_cache_value *value)
{
    struct hit hit;
    memset(value, 0, sizeof(*value));
    enum liara_cache_status status = get_begin(cache, key, key_length, lease, &hit);
    if (status != LIARA_CACHE_OK)
        return status;
    status = receive_value(cache, &hit.reply, &hit.passed, value);
    if (status == LIARA_CACHE_OK && hit.passed.fd < 0)
        ask_end(cache);
    passed_close(&hit.passed);
    return status;
}

enum liara_cache_status liara_cache_get(struct liara_cache *cache, const void *key,
                                        size_t key_length, struct liara_cache_value *value)
{
    return get(cache, key, key_length, 0, value);
}

enum liara_cache_status liara_cache_get_lease(struct liara_cache *cache, const void *key,
                                              size_t key_length, uint32_t seconds,
                                              struct liara_cache_value *value)
{
    memset(value, 0, sizeof(*value));
    handle_begin(cache);
    if (seconds == 0)
        return handle_fail(cache, LIARA_CACHE_USAGE, "a lease has at least one second");
    return get(cache, key, key_length, seconds, value);
}

static enum liara_cache_status end_value(struct liara_cache *cache)
{
    enum liara_cache_status status = wire_end_value(cache);
    if (status == LIARA_CACHE_OK)
        ask_end(cache);
    return status;
}

/* Too long for the caller's buffer: its bytes are passed over, so that the connection can stay. */
static enum liara_cache_status pass_over(struct liara_cache *cache, const struct hit *hit)
{
    enum liara_cache_status status = LIARA_CACHE_OK;
    uint64_t length = hit->reply.length;
    if (hit->passed.fd >= 0)
        return LIARA_CACHE_NO_ROOM;
    wire_expect(&cache->wire, length);
    while (length > 0 && status == LIARA_CACHE_OK) {
        const void *bytes;
        size_t taken = 0;
        status = wire_peek(cache, length, &bytes, &taken);
        length -= taken;
    }
    if (status == LIARA_CACHE_OK)
        status = end_value(cache);
    return status == LIARA_CACHE_OK ? LIARA_CACHE_NO_ROOM : status;
}

static enum liara_cache_status fill(struct liara_cache *cache, const struct hit *hit, void *buffer)
{
    if (hit->passed.fd >= 0)
        return passed_read(cache, &hit->passed, buffer);
    wire_expect(&cache->wire, hit->reply.length);
    enum liara_cache_status status = wire_take(cache, buffer, (size_t)hit->reply.length);
    return status == LIARA_CACHE_OK ? end_value(cache) : status;
}

enum liara_cache_status liara_cache_get_into(struct liara_cache *cache, const void *key,
                                             size_t key_length, void *buffer, size_t size,
                                             struct liara_cache_value *value)
{
    struct hit hit;
    memset(value, 0, sizeof(*value));
    enum liara_cache_status status = get_begin(cache, key, key_length, 0, &hit);
    if (status != LIARA_CACHE_OK)
        return status;
    describe(value, &hit);
    status = hit.reply.length > size ? pass_over(cache, &hit) : fill(cache, &hit, buffer);
    if (status == LIARA_CACHE_OK)
        value->bytes = buffer;
    passed_close(&hit.passed);
    return status;
}

/* The value goes from the handle's buffer to the descriptor a stretch at a time. */
static enum liara_cache_status write_arriving(struct liara_cache *cache, int fd, uint64_t length)
{
    wire_expect(&cache->wire, length);
    while (length > 0) {
        const void *bytes;
        size_t taken = 0;
        enum liara_cache_status status = wire_peek(cache, length, &bytes, &taken);
        if (status != LIARA_CACHE_OK)
            return status;
        if (!file_write(fd, bytes, taken)) {
            wire_drop(&cache->wire);
            return handle_fail(cache, LIARA_CACHE_LOCAL, "can't write the value: %m");
        }
        length -= taken;
    }
    return end_value(cache);
}

enum liara_cache_status get_write(struct liara_cache *cache, const struct hit *hit, int fd)
{
    file_expect(fd, hit->reply.length);
    return hit->passed.fd >= 0 ? passed_write(cache, &hit->passed, fd)
                               : write_arriving(cache, fd, hit->reply.length);
}

enum liara_cache_status liara_cache_get_fd(struct liara_cache *cache, const void *key,
                                           size_t key_length, int fd, uint32_t lease,
                                           struct liara_cache_value *value)
{
    struct hit hit;
    memset(value, 0, sizeof(*value));
    enum liara_cache_status status = get_begin(cache, key, key_length, lease, &hit);
    if (status != LIARA_CACHE_OK)
        return status;
    describe(value, &hit);
    status = get_write(cache, &hit, fd);
    passed_close(&hit.passed);
    return status;
}
