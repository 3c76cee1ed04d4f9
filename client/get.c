/* What gets one value: into memory, a buffer, a descriptor. */
#include "ask.h"
#include "file.h"
#include "receive.h"

#include <stdlib.h>
#include <string.h>

/* OK: the VALUE line is *reply and in *value, the bytes are still to be taken. */
static enum liara_cache_status begin(struct liara_cache *cache, const void *key, size_t key_length,
                                     uint32_t lease, struct reply *reply,
                                     struct liara_cache_value *value)
{
    struct request request;
    memset(value, 0, sizeof(*value));
    handle_begin(cache);
    ask_request(&request, VERB_GET);
    request.lease = lease;
    enum liara_cache_status status = ask_key(cache, &request, key, key_length);
    if (status == LIARA_CACHE_OK)
        status = ask(cache, &request, NULL, reply);
    if (status != LIARA_CACHE_OK)
        return status;
    if (reply->kind == REPLY_MISS)
        return reply->lease ? LIARA_CACHE_LEASE : LIARA_CACHE_MISS;
    if (reply->kind != REPLY_VALUE)
        return ask_unexpected(cache);
    value->length = reply->length;
    value->flags = reply->flags;
    value->ttl = reply->ttl;
    return LIARA_CACHE_OK;
}

static enum liara_cache_status get(struct liara_cache *cache, const void *key, size_t key_length,
                                   uint32_t lease, struct liara_cache_value *value)
{
    struct reply reply;
    enum liara_cache_status status = begin(cache, key, key_length, lease, &reply, value);
    if (status != LIARA_CACHE_OK)
        return status;
    status = receive_value(cache, &reply, value);
    if (status == LIARA_CACHE_OK)
        ask_end(cache);
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
static enum liara_cache_status pass_over(struct liara_cache *cache, uint64_t length)
{
    enum liara_cache_status status = LIARA_CACHE_OK;
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

enum liara_cache_status liara_cache_get_into(struct liara_cache *cache, const void *key,
                                             size_t key_length, void *buffer, size_t size,
                                             struct liara_cache_value *value)
{
    struct reply reply;
    enum liara_cache_status status = begin(cache, key, key_length, 0, &reply, value);
    if (status != LIARA_CACHE_OK)
        return status;
    wire_expect(&cache->wire, reply.length);
    if (reply.length > size)
        return pass_over(cache, reply.length);
    status = wire_take(cache, buffer, (size_t)reply.length);
    if (status == LIARA_CACHE_OK)
        status = end_value(cache);
    if (status == LIARA_CACHE_OK)
        value->bytes = buffer;
    return status;
}

/* The value goes from the handle's buffer to the descriptor a stretch at a time. */
static enum liara_cache_status write_value(struct liara_cache *cache, int fd, uint64_t length)
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

enum liara_cache_status liara_cache_get_fd(struct liara_cache *cache, const void *key,
                                           size_t key_length, int fd, uint32_t lease,
                                           struct liara_cache_value *value)
{
    struct reply reply;
    enum liara_cache_status status = begin(cache, key, key_length, lease, &reply, value);
    if (status != LIARA_CACHE_OK)
        return status;
    return write_value(cache, fd, reply.length);
}
