#include "router.h"

#include "../proto/line.h"
#include "clock.h"
#include "container_of.h"
#include "share.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    INSPECT_TEXT_MAX = 1024,
    /* Below this many bytes a copy through the socket is cheaper than a descriptor's way. */
    FD_MIN = 65536
};

/* The reply's text is left as it is: 160 bytes that only an error has a use for. */
static void reply_kind(struct exchange *exchange, enum reply_kind kind)
{
    memset(&exchange->reply, 0, offsetof(struct reply, text));
    exchange->reply.kind = kind;
}

static enum router_next refuse(struct exchange *exchange, enum error_code code, const char *text)
{
    message_error(&exchange->reply, code, "%s", text);
    return ROUTER_REPLY;
}

static void answer_failed(struct exchange *exchange)
{
    const struct store_call *call = &exchange->session.call;
    message_error(&exchange->reply, call->result.error, "%s", call->result.text);
}

/* Seconds left, rounded up: what lives has at least one. */
static uint32_t seconds_left(int64_t expires)
{
    if (expires == CLOCK_NEVER)
        return 0;
    int64_t left = (expires - clock_now() + 999) / 1000;
    return left < 1 ? 1 : left > UINT32_MAX ? UINT32_MAX : (uint32_t)left;
}

/* A reply that says what the call found out about a value. */
static void answer_sized(struct exchange *exchange, enum reply_kind kind)
{
    const struct store_call *call = &exchange->session.call;
    reply_kind(exchange, kind);
    exchange->reply.length = call->result.length;
    exchange->reply.flags = call->result.flags;
    exchange->reply.ttl = seconds_left(call->result.expires);
}

static void answer_value(struct exchange *exchange, struct value *value)
{
    reply_kind(exchange, REPLY_VALUE);
    exchange->reply.length = value->length;
    exchange->reply.flags = value->flags;
    exchange->reply.ttl = seconds_left(value->expires);
    exchange->value = value;
}

static void answer_fd(struct exchange *exchange, int fd, uint64_t offset)
{
    exchange->reply.kind = REPLY_FD;
    exchange->reply.offset = offset;
    exchange->fd = fd;
}

/* A large value goes as a descriptor, or out of one. Where it has none yet, nobody waits for it. */
static void answer_large(struct exchange *exchange)
{
    bool wants_fd = exchange->wants_fd;
    int fd = value_shared(exchange->value);
    if (fd < 0 && value_worth_sharing(exchange->value, wants_fd))
        share_start(exchange->router->files, exchange->value);
    else if (fd >= 0 && wants_fd)
        answer_fd(exchange, fd, 0);
}

static void answer_get(struct exchange *exchange, enum store_status status)
{
    struct store_call *call = &exchange->session.call;
    if (status != STORE_OK) {
        reply_kind(exchange, REPLY_MISS);
        exchange->reply.lease = exchange->session.leased;
        return;
    }
    if (call->result.copied) {
        answer_sized(exchange, REPLY_VALUE);
        exchange->bytes = call->request.room;
        return;
    }
    if (call->result.pinned.bytes != NULL) {
        answer_sized(exchange, REPLY_VALUE);
        exchange->pinned = call->result.pinned;
        call->result.pinned.bytes = NULL;
        return;
    }
    answer_value(exchange, call->result.value);
    call->result.value = NULL;
    if (exchange->value->length >= FD_MIN)
        answer_large(exchange);
}

static void answer_head(struct exchange *exchange, enum store_status status)
{
    if (status == STORE_OK)
        answer_sized(exchange, REPLY_SIZE);
    else
        reply_kind(exchange, REPLY_MISS);
}

static void answer_put(struct exchange *exchange, enum store_status status)
{
    reply_kind(exchange, status == STORE_OK ? REPLY_STORED : REPLY_EXISTS);
}

static void answer_delete(struct exchange *exchange, enum store_status status)
{
    reply_kind(exchange, status == STORE_OK ? REPLY_DELETED : REPLY_MISS);
}

static void answer_clear(struct exchange *exchange, enum store_status status)
{
    (void)status;
    reply_kind(exchange, REPLY_OK);
    exchange->reply.has_entries = true;
    exchange->reply.entries = exchange->session.call.result.entries;
}

static void answer_persist(struct exchange *exchange, enum store_status status)
{
    (void)status;
    reply_kind(exchange, REPLY_OK);
    exchange->reply.is_volatile = !exchange->session.call.result.durable;
}

static void answer_text(struct exchange *exchange, const char *text, size_t length)
{
    struct value *value = value_new((const uint8_t *)"", 0, (uint32_t)length);
    if (value == NULL) {
        refuse(exchange, ERROR_BUSY, "no memory for the answer; try again");
        return;
    }
    memcpy(value_bytes(value), text, length);
    answer_value(exchange, value);
}

static void answer_inspect(struct exchange *exchange, enum store_status status)
{
    const struct store_call *call = &exchange->session.call;
    const struct store_ops *backend = cache_backend(exchange->router->cache);
    struct cache_counters sum;
    const struct store_evicted *evicted = &call->result.evicted;
    char text[INSPECT_TEXT_MAX];
    (void)status;
    cache_count(exchange->router->cache, &sum);
    int length =
        snprintf(text, sizeof(text),
                 "name %s\nbackend %s\nsize %llu\nentries %llu\napproximate %d\n"
                 "unwritten %llu\nlost %llu\n"
                 "hits %llu\nmisses %llu\nstored %llu\nexists %llu\n"
                 "evicted %llu\nevicted-bytes %llu\nevicted-cost-ms %llu\n"
                 "uptime %lld\nversion %s\n",
                 backend->title, backend->name, (unsigned long long)call->result.size,
                 (unsigned long long)call->result.entries, call->result.approximate,
                 (unsigned long long)call->result.unwritten, (unsigned long long)call->result.lost,
                 (unsigned long long)sum.hits, (unsigned long long)sum.misses,
                 (unsigned long long)sum.stored, (unsigned long long)sum.exists,
                 (unsigned long long)evicted->entries, (unsigned long long)evicted->bytes,
                 (unsigned long long)evicted->cost,
                 (long long)((clock_now() - exchange->router->started) / 1000), LIARA_VERSION);
    answer_text(exchange, text, (size_t)length);
}

static void answer(struct exchange *exchange, enum store_status status)
{
    if (status == STORE_FAILED)
        answer_failed(exchange);
    else
        exchange->answer(exchange, status);
}

static void session_done(struct cache_session *session)
{
    struct exchange *exchange = container_of(session, struct exchange, session);
    answer(exchange, session->call.result.status);
    exchange->done(exchange);
}

/* What the cache's call returned becomes the answer, now or when session_done() brings it. */
static enum router_next await(struct exchange *exchange, enum store_status status,
                              void (*how)(struct exchange *, enum store_status))
{
    exchange->answer = how;
    if (status == STORE_PENDING)
        return ROUTER_PENDING;
    answer(exchange, status);
    return ROUTER_REPLY;
}

static bool join_key(struct exchange *exchange, const struct request *request)
{
    if (cache_key(&exchange->session, request->key, request->key_length))
        return true;
    message_error(&exchange->reply, ERROR_TOO_LARGE,
                  "prefix and key together are longer than %d bytes", MESSAGE_KEY_MAX);
    return false;
}

static enum router_next start_get(struct exchange *exchange, const struct request *request)
{
    if (!join_key(exchange, request))
        return ROUTER_REPLY;
    exchange->wants_fd = request->fd;
    return await(exchange, cache_get(&exchange->session, request->lease), answer_get);
}

static enum router_next start_head(struct exchange *exchange, const struct request *request)
{
    if (!join_key(exchange, request))
        return ROUTER_REPLY;
    return await(exchange, cache_head(&exchange->session), answer_head);
}

static enum router_next start_delete(struct exchange *exchange, const struct request *request)
{
    if (!join_key(exchange, request))
        return ROUTER_REPLY;
    return await(exchange, cache_delete(&exchange->session), answer_delete);
}

static bool put_allowed(struct exchange *exchange, const struct request *request)
{
    const struct limits *limits = exchange->router->limits;
    uint64_t max = atomic_load_explicit(&limits->max_value_size, memory_order_relaxed);
    uint64_t inflight =
        atomic_load_explicit(&limits->max_inflight_per_connection, memory_order_relaxed);
    if (request->length > max || request->length > VALUE_LENGTH_MAX)
        message_error(&exchange->reply, ERROR_TOO_LARGE,
                      "the value has %llu bytes, at most %llu are taken (max-value-size)",
                      (unsigned long long)request->length, (unsigned long long)max);
    else if (request->length > inflight)
        message_error(&exchange->reply, ERROR_BUSY,
                      "a connection may have %llu bytes in flight (max-inflight-per-connection)",
                      (unsigned long long)inflight);
    else
        return true;
    return false;
}

/* A value for the request's bytes, or NULL and the reply says why. */
static struct value *put_value(struct exchange *exchange, const struct request *request)
{
    if (!join_key(exchange, request) || !put_allowed(exchange, request))
        return NULL;
    struct value *value = cache_new_value(&exchange->session, (uint32_t)request->length);
    if (value == NULL) {
        refuse(exchange, ERROR_BUSY, "too many bytes are in flight; try again (max-inflight)");
        return NULL;
    }
    value->flags = request->flags;
    if (request->ttl > 0)
        value->expires = clock_now() + (int64_t)request->ttl * 1000;
    return value;
}

enum router_next router_body(struct exchange *exchange)
{
    struct value *value = exchange->value;
    exchange->value = NULL;
    return await(exchange, cache_put(&exchange->session, value, &exchange->put), answer_put);
}

static void fetch_refused(struct exchange *exchange, int error)
{
    const char *text = error == EINVAL    ? "the descriptor is no regular file or memfd"
                       : error == ENODATA ? "the descriptor holds fewer bytes than the length says"
                       : error == EBADF   ? "the descriptor can't be read; open it for reading"
                                          : strerror(error);
    value_unref(exchange->value);
    exchange->value = NULL;
    refuse(exchange, ERROR_SYNTAX, text);
}

static void fetched(struct fetch *fetch)
{
    struct exchange *exchange = container_of(fetch, struct exchange, fetch);
    enum router_next next = ROUTER_REPLY;
    exchange->fetching = false;
    if (fetch->error == 0)
        next = router_body(exchange);
    else
        fetch_refused(exchange, fetch->error);
    if (next == ROUTER_REPLY)
        exchange->done(exchange);
}

static enum router_next start_put(struct exchange *exchange, const struct request *request)
{
    exchange->value = put_value(exchange, request);
    exchange->put = (struct cache_put){
        .overwrite = request->overwrite, .has_cost = request->has_cost, .cost = request->cost};
    return exchange->value != NULL ? ROUTER_BODY : ROUTER_REPLY;
}

static enum router_next start_put_fd(struct exchange *exchange, const struct request *request,
                                     int *fd)
{
    if (*fd < 0)
        return refuse(exchange, ERROR_SYNTAX, "PUT with fd came without a descriptor");
    enum router_next next = start_put(exchange, request);
    if (next != ROUTER_BODY)
        return next;
    exchange->fetching = true;
    fetch_start(&exchange->fetch, exchange->router->files, exchange->session.call.request.loop, *fd,
                exchange->value, fetched);
    *fd = -1;
    return ROUTER_PENDING;
}

static enum router_next start_prefix(struct exchange *exchange, const struct request *request)
{
    if (!cache_prefix(&exchange->session, request->key, request->key_length))
        return refuse(exchange, ERROR_TOO_LARGE, "the prefix is longer than a key may be");
    reply_kind(exchange, REPLY_OK);
    return ROUTER_REPLY;
}

static enum router_next start_clear(struct exchange *exchange, const struct request *request)
{
    (void)request;
    return await(exchange, cache_clear(&exchange->session), answer_clear);
}

static enum router_next start_inspect(struct exchange *exchange, const struct request *request)
{
    (void)request;
    return await(exchange, cache_inspect(&exchange->session), answer_inspect);
}

static enum router_next start_persist(struct exchange *exchange, const struct request *request)
{
    (void)request;
    return await(exchange, cache_persist(&exchange->session), answer_persist);
}

static enum router_next start_ping(struct exchange *exchange, const struct request *request)
{
    (void)request;
    reply_kind(exchange, REPLY_OK);
    return ROUTER_REPLY;
}

static enum router_next start_help(struct exchange *exchange, const struct request *request)
{
    (void)request;
    answer_text(exchange, line_help(), strlen(line_help()));
    return ROUTER_REPLY;
}

static enum router_next start_quit(struct exchange *exchange, const struct request *request)
{
    (void)exchange;
    (void)request;
    return ROUTER_QUIT;
}

static enum router_next (*const routes[VERB_COUNT])(struct exchange *, const struct request *) = {
    [VERB_GET] = start_get,         [VERB_PUT] = start_put,         [VERB_HEAD] = start_head,
    [VERB_DELETE] = start_delete,   [VERB_PREFIX] = start_prefix,   [VERB_CLEAR] = start_clear,
    [VERB_INSPECT] = start_inspect, [VERB_PERSIST] = start_persist, [VERB_PING] = start_ping,
    [VERB_HELP] = start_help,       [VERB_QUIT] = start_quit,
};

enum router_next router_start(struct exchange *exchange, const struct request *request, int *fd)
{
    exchange->value = NULL;
    exchange->bytes = NULL;
    exchange->pinned.bytes = NULL;
    exchange->fd = -1;
    if (request->verb == VERB_PUT && request->fd)
        return start_put_fd(exchange, request, fd);
    return routes[request->verb](exchange, request);
}

void exchange_start(struct exchange *exchange, const struct router *router, struct loop *loop,
                    uint8_t room[VALUE_COPY_MAX], void (*done)(struct exchange *exchange))
{
    exchange->router = router;
    exchange->fetching = false;
    exchange->value = NULL;
    exchange->bytes = NULL;
    exchange->pinned.bytes = NULL;
    exchange->fd = -1;
    exchange->done = done;
    cache_session_start(&exchange->session, router->cache, loop, room, session_done);
}

bool exchange_busy(struct exchange *exchange)
{
    return cache_session_busy(&exchange->session);
}

/* What was to be sent and is not. */
static void drop_answer(struct exchange *exchange)
{
    value_unref(exchange->value);
    pinned_release(&exchange->pinned);
    exchange->value = NULL;
    exchange->fd = -1;
}

bool exchange_end(struct exchange *exchange)
{
    bool ended = cache_session_end(&exchange->session) && !exchange->fetching;
    if (ended)
        drop_answer(exchange);
    return ended;
}

void exchange_abandon(struct exchange *exchange)
{
    cache_session_abandon(&exchange->session);
    drop_answer(exchange);
}
