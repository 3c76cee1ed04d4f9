#include "ask.h"

#include "../proto/line.h"
#include "connect.h"

#include <stddef.h>
#include <string.h>

enum { BYTES_PER_SECOND = 8 * 1024 * 1024 /* that any store takes */ };

static const char ping_line[] = "PING\n";

void ask_request(struct request *request, enum verb verb)
{
    memset(request, 0, offsetof(struct request, key));
    request->verb = verb;
}

enum liara_cache_status ask_check_key(struct liara_cache *cache, size_t key_length)
{
    if (key_length == 0)
        return handle_fail(cache, LIARA_CACHE_USAGE, "a key has at least one byte");
    if (key_length > MESSAGE_KEY_MAX - cache->prefix_length)
        return handle_fail(cache, LIARA_CACHE_USAGE,
                           "prefix and key have %zu bytes together, %d are allowed",
                           key_length + cache->prefix_length, MESSAGE_KEY_MAX);
    return LIARA_CACHE_OK;
}

enum liara_cache_status ask_key(struct liara_cache *cache, struct request *request, const void *key,
                                size_t key_length)
{
    enum liara_cache_status status = ask_check_key(cache, key_length);
    if (status != LIARA_CACHE_OK)
        return status;
    memcpy(request->key, key, key_length);
    request->key_length = (uint32_t)key_length;
    return LIARA_CACHE_OK;
}

unsigned ask_limit(const struct liara_cache *cache, uint64_t length)
{
    uint64_t more = length / BYTES_PER_SECOND * 1000;
    if (cache->timeout == 0 || more > UINT32_MAX - cache->timeout)
        return 0;
    return cache->timeout + (unsigned)more;
}

static bool may_take_long(const struct request *request)
{
    return request->lease > 0 || request->verb == VERB_PERSIST || request->verb == VERB_CLEAR;
}

/* An ERROR instead of the PING's OK is the answer to all: the daemon has no room for a client. */
static enum liara_cache_status take_reply(struct liara_cache *cache, const struct request *request,
                                          struct reply *reply)
{
    enum liara_cache_status status = wire_reply(cache, reply);
    if (status != LIARA_CACHE_OK || !may_take_long(request))
        return status;
    if (reply->kind == REPLY_ERROR)
        wire_drop(&cache->wire);
    else if (reply->kind != REPLY_OK)
        status = ask_unexpected(cache);
    if (cache->wire.fd < 0)
        return status;
    wire_wait(&cache->wire, cache->long_timeout);
    return wire_reply(cache, reply);
}

static enum liara_cache_status attempt(struct liara_cache *cache, const struct request *request,
                                       struct ask_value *value, struct reply *reply)
{
    char line[sizeof(ping_line) - 1 + LINE_MAX_BYTES];
    struct wire_output output = {.count = 1, .descriptor = -1};
    size_t ping = may_take_long(request) ? sizeof(ping_line) - 1 : 0;
    memcpy(line, ping_line, ping);
    size_t length = line_format_request(line + ping, LINE_MAX_BYTES, request);
    if (length == 0)
        return handle_fail(cache, LIARA_CACHE_USAGE, "no such request can be sent");
    output.parts[0] = (struct iovec){line, ping + length};
    if (value && !value->start(value, &output))
        return handle_fail(cache, LIARA_CACHE_UNREACHABLE,
                           "%s: the daemon closed the connection, and what was read of the value "
                           "can't be read again",
                           cache->path);
    wire_begin(cache, &output, ask_limit(cache, request->length));
    if (value)
        wire_expect(&cache->wire, request->length);
    enum liara_cache_status status = take_reply(cache, request, reply);
    if (status == LIARA_CACHE_OK && reply->kind != REPLY_VALUE && reply->kind != REPLY_FD)
        wire_finish(cache);
    cache->wire.output = NULL;
    return status;
}

static enum liara_cache_status replay_prefix(struct liara_cache *cache)
{
    struct request request;
    struct reply reply;
    ask_request(&request, VERB_PREFIX);
    memcpy(request.key, cache->prefix, cache->prefix_length);
    request.key_length = cache->prefix_length;
    enum liara_cache_status status = attempt(cache, &request, NULL, &reply);
    if (status != LIARA_CACHE_OK || reply.kind == REPLY_OK)
        return status;
    wire_drop(&cache->wire);
    return reply.kind == REPLY_ERROR ? handle_refused(cache, &reply) : ask_unexpected(cache);
}

enum liara_cache_status ask_connect(struct liara_cache *cache)
{
    if (cache->wire.fd >= 0)
        return LIARA_CACHE_OK;
    enum liara_cache_status status = connect_socket(cache);
    if (status == LIARA_CACHE_OK && cache->prefix_length > 0)
        status = replay_prefix(cache);
    return status;
}

static bool lost_unanswered(const struct liara_cache *cache, enum liara_cache_status status)
{
    return status == LIARA_CACHE_UNREACHABLE && !cache->wire.answered;
}

bool ask_again(const struct liara_cache *cache, enum liara_cache_status status)
{
    return lost_unanswered(cache, status) && !cache->wire.fresh;
}

enum liara_cache_status ask(struct liara_cache *cache, struct request *request,
                            struct ask_value *value, struct reply *reply)
{
    enum liara_cache_status status;
    bool again;
    wire_call(&cache->wire);
    do {
        status = ask_connect(cache);
        if (status != LIARA_CACHE_OK)
            return status;
        bool by_descriptor = request->verb == VERB_GET && request->fd;
        status = attempt(cache, request, value, reply);
        again = by_descriptor ? lost_unanswered(cache, status) : ask_again(cache, status);
        if (again && by_descriptor)
            request->fd = false;
        /* The time it has waited for a lease is no part of what connecting may take. */
        if (again && cache->wire.alive)
            wire_call(&cache->wire);
    } while (again);
    if (status != LIARA_CACHE_OK)
        return status;
    handle_begin(cache);
    return reply->kind == REPLY_ERROR ? handle_refused(cache, reply) : LIARA_CACHE_OK;
}

void ask_end(struct liara_cache *cache)
{
    wire_finish(cache);
}

enum liara_cache_status ask_unexpected(struct liara_cache *cache)
{
    wire_drop(&cache->wire);
    return handle_fail(cache, LIARA_CACHE_PROTOCOL, "%s: the answer does not fit the request",
                       cache->path);
}
