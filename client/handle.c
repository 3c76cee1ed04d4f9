#include "handle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef LIARA_VERSION
#define LIARA_VERSION "unknown"
#endif

_Static_assert(LIARA_CACHE_ERROR_INTERNAL - LIARA_CACHE_ERROR_SYNTAX ==
                   ERROR_INTERNAL - ERROR_SYNTAX,
               "a status for each of the daemon's codes, in their order");
_Static_assert((int)LIARA_CACHE_KEY_MAX == (int)MESSAGE_KEY_MAX, "keys are as long as the wire's");

void handle_begin(struct liara_cache *cache)
{
    cache->error[0] = '\0';
}

enum liara_cache_status handle_fail(struct liara_cache *cache, enum liara_cache_status status,
                                    const char *format, ...)
{
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cache->error, sizeof(cache->error), format, arguments);
    va_end(arguments);
    errno = saved;
    return status;
}

enum liara_cache_status handle_refused(struct liara_cache *cache, const struct reply *reply)
{
    enum liara_cache_status status =
        (enum liara_cache_status)(LIARA_CACHE_ERROR_SYNTAX + (int)reply->error);
    return handle_fail(cache, status, "the daemon answered %s: %s",
                       message_error_name(reply->error), reply->text);
}

static const char *default_socket(void)
{
    const char *socket = secure_getenv("LIARA_CACHE_SOCKET");
    return socket && socket[0] ? socket : NULL;
}

static unsigned default_busy_poll(void)
{
    const char *text = secure_getenv("LIARA_CACHE_BUSY_POLL");
    if (!text || text[0] < '0' || text[0] > '9')
        return LIARA_CACHE_BUSY_POLL;
    char *end;
    unsigned long budget = strtoul(text, &end, 10);
    if (*end)
        return LIARA_CACHE_BUSY_POLL;
    return budget < LIARA_CACHE_BUSY_POLL_MAX ? (unsigned)budget : LIARA_CACHE_BUSY_POLL_MAX;
}

enum liara_cache_status liara_cache_new(struct liara_cache **out, const char *socket)
{
    struct liara_cache *cache = calloc(1, sizeof(*cache));
    *out = cache;
    if (!cache)
        return LIARA_CACHE_LOCAL;
    wire_init(&cache->wire);
    liara_cache_set_busy_poll(cache, default_busy_poll());
    cache->timeout = LIARA_CACHE_TIMEOUT;
    cache->long_timeout = LIARA_CACHE_LONG_TIMEOUT;
    cache->descriptors = true;
    const char *path = socket ? socket : default_socket();
    if (path) {
        cache->socket = strdup(path);
        if (!cache->socket) {
            free(cache);
            *out = NULL;
            return LIARA_CACHE_LOCAL;
        }
    }
    return LIARA_CACHE_OK;
}

enum liara_cache_status liara_cache_open(struct liara_cache **out, const char *socket)
{
    enum liara_cache_status status = liara_cache_new(out, socket);
    return status == LIARA_CACHE_OK ? liara_cache_connect(*out) : status;
}

void liara_cache_close(struct liara_cache *cache)
{
    if (!cache)
        return;
    wire_drop(&cache->wire);
    free(cache->socket);
    free(cache);
}

void liara_cache_disconnect(struct liara_cache *cache)
{
    handle_begin(cache);
    wire_drop(&cache->wire);
}

void liara_cache_set_timeout(struct liara_cache *cache, unsigned milliseconds)
{
    cache->timeout = milliseconds;
    wire_set_timeout(&cache->wire, milliseconds);
}

void liara_cache_set_long_timeout(struct liara_cache *cache, unsigned milliseconds)
{
    cache->long_timeout = milliseconds;
}

void liara_cache_set_busy_poll(struct liara_cache *cache, unsigned microseconds)
{
    busy_init(&cache->wire.busy, microseconds);
}

void liara_cache_set_descriptors(struct liara_cache *cache, bool wanted)
{
    cache->descriptors = wanted;
}

void liara_cache_set_put_cost(struct liara_cache *cache, uint32_t milliseconds)
{
    cache->has_put_cost = true;
    cache->put_cost = milliseconds;
}

void liara_cache_set_progress(struct liara_cache *cache, liara_cache_progress *progress, void *arg)
{
    cache->progress = progress;
    cache->progress_arg = arg;
}

const char *liara_cache_error(const struct liara_cache *cache)
{
    return cache->error;
}

const char *liara_cache_socket(const struct liara_cache *cache)
{
    return cache->path;
}

const char *liara_cache_status_name(enum liara_cache_status status)
{
    static const char *const outcomes[] = {"ok", "miss", "exists", "lease", "no-room"};
    static const char *const failures[] = {"usage", "unreachable", "timed-out", "protocol",
                                           "local"};
    if (status <= LIARA_CACHE_NO_ROOM)
        return outcomes[status];
    if (status >= LIARA_CACHE_USAGE && status <= LIARA_CACHE_LOCAL)
        return failures[status - LIARA_CACHE_USAGE];
    if (status >= LIARA_CACHE_ERROR_SYNTAX && status <= LIARA_CACHE_ERROR_INTERNAL)
        return message_error_name((enum error_code)(status - LIARA_CACHE_ERROR_SYNTAX));
    return "unknown";
}

const char *liara_cache_version(void)
{
    return LIARA_VERSION;
}

void liara_cache_free(void *bytes)
{
    free(bytes);
}
