/* What has no value of the caller's: connect, head, delete, prefix, clear, persist, ping. */
#include "ask.h"

#include <string.h>

enum liara_cache_status liara_cache_connect(struct liara_cache *cache)
{
    handle_begin(cache);
    wire_call(&cache->wire);
    return ask_connect(cache);
}

static enum liara_cache_status send_key(struct liara_cache *cache, enum verb verb, const void *key,
                                        size_t key_length, struct reply *reply)
{
    struct request request;
    handle_begin(cache);
    ask_request(&request, verb);
    enum liara_cache_status status = ask_key(cache, &request, key, key_length);
    if (status == LIARA_CACHE_OK)
        status = ask(cache, &request, NULL, reply);
    if (status == LIARA_CACHE_OK && reply->kind == REPLY_MISS)
        return LIARA_CACHE_MISS;
    return status;
}

static enum liara_cache_status send_plain(struct liara_cache *cache, enum verb verb,
                                          struct reply *reply)
{
    struct request request;
    handle_begin(cache);
    ask_request(&request, verb);
    enum liara_cache_status status = ask(cache, &request, NULL, reply);
    if (status == LIARA_CACHE_OK && reply->kind != REPLY_OK)
        return ask_unexpected(cache);
    return status;
}

enum liara_cache_status liara_cache_head(struct liara_cache *cache, const void *key,
                                         size_t key_length, struct liara_cache_value *value)
{
    struct reply reply;
    memset(value, 0, sizeof(*value));
    enum liara_cache_status status = send_key(cache, VERB_HEAD, key, key_length, &reply);
    if (status != LIARA_CACHE_OK)
        return status;
    if (reply.kind != REPLY_SIZE)
        return ask_unexpected(cache);
    value->length = reply.length;
    value->flags = reply.flags;
    value->ttl = reply.ttl;
    return LIARA_CACHE_OK;
}

enum liara_cache_status liara_cache_delete(struct liara_cache *cache, const void *key,
                                           size_t key_length)
{
    struct reply reply;
    enum liara_cache_status status = send_key(cache, VERB_DELETE, key, key_length, &reply);
    if (status == LIARA_CACHE_OK && reply.kind != REPLY_DELETED)
        return ask_unexpected(cache);
    return status;
}

enum liara_cache_status liara_cache_prefix(struct liara_cache *cache, const void *prefix,
                                           size_t length)
{
    struct request request;
    struct reply reply;
    handle_begin(cache);
    if (length > MESSAGE_KEY_MAX)
        return handle_fail(cache, LIARA_CACHE_USAGE, "a prefix has at most %d bytes, not %zu",
                           MESSAGE_KEY_MAX, length);
    if (length > 0)
        memcpy(cache->prefix, prefix, length);
    cache->prefix_length = (uint32_t)length;
    ask_request(&request, VERB_PREFIX);
    memcpy(request.key, cache->prefix, length);
    request.key_length = (uint32_t)length;
    enum liara_cache_status status = ask(cache, &request, NULL, &reply);
    if (status == LIARA_CACHE_OK && reply.kind != REPLY_OK)
        return ask_unexpected(cache);
    if (status != LIARA_CACHE_OK)
        wire_drop(&cache->wire);
    return status;
}

enum liara_cache_status liara_cache_clear(struct liara_cache *cache, uint64_t *entries)
{
    struct reply reply;
    enum liara_cache_status status = send_plain(cache, VERB_CLEAR, &reply);
    if (entries)
        *entries = status == LIARA_CACHE_OK ? reply.entries : 0;
    return status;
}

enum liara_cache_status liara_cache_persist(struct liara_cache *cache, bool *is_volatile)
{
    struct reply reply;
    enum liara_cache_status status = send_plain(cache, VERB_PERSIST, &reply);
    if (is_volatile)
        *is_volatile = status == LIARA_CACHE_OK && reply.is_volatile;
    return status;
}

enum liara_cache_status liara_cache_ping(struct liara_cache *cache)
{
    struct reply reply;
    return send_plain(cache, VERB_PING, &reply);
}
