#include "redis.h"

#include "../../clock.h"
#include "../../config.h"
#include "../../log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char redis_nonsense[] = "an answer that makes no sense";

struct redis_conn *redis_conn_of(const struct redis *redis, const struct store_call *call)
{
    unsigned index = loop_index(call->request.loop);
    return index < REDIS_LOOPS_MAX ? redis->conns[index] : NULL;
}

bool redis_start(struct store_call *call, struct redis_op *op)
{
    struct redis_conn *conn = redis_conn_of(redis_of(call), call);
    if (conn != NULL)
        return redis_conn_start(conn, op);
    store_fail(call, ERROR_INTERNAL, "Redis: this loop has no connection");
    return false;
}

enum store_status redis_fail(struct store_call *call, const struct redis_reply *reply)
{
    static const struct {
        const char *beginning;
        enum error_code code;
    } known[] = {
        {"OOM ", ERROR_NO_SPACE},
        {"NOPERM", ERROR_DENIED},
        {"NOAUTH", ERROR_DENIED},
        {"WRONGPASS", ERROR_DENIED},
        {"LOADING", ERROR_UNAVAILABLE},
        {"READONLY", ERROR_UNAVAILABLE},
        {"MASTERDOWN", ERROR_UNAVAILABLE},
        {"MISCONF", ERROR_UNAVAILABLE},
        {"NOREPLICAS", ERROR_UNAVAILABLE},
        {"BUSY ", ERROR_UNAVAILABLE},
        {"CLUSTERDOWN", ERROR_UNAVAILABLE},
        {"TRYAGAIN", ERROR_UNAVAILABLE},
        {"MOVED", ERROR_UNAVAILABLE},
        {"ASK", ERROR_UNAVAILABLE},
        {"ERR Protocol error: invalid bulk length", ERROR_TOO_LARGE},
        {"ERR string exceeds maximum allowed size", ERROR_TOO_LARGE},
    };
    char text[MESSAGE_TEXT_MAX];
    enum error_code code = ERROR_INTERNAL;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (redis_reply_failed(reply, known[i].beginning))
            code = known[i].code;
    }
    return store_fail(call, code, "Redis: %s",
                      redis_printable(text, sizeof(text), reply->text, reply->length));
}

void redis_op_refuse(struct redis_op *op, const struct redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        redis_op_finish(op, redis_fail(op->call, reply));
    else
        redis_op_break(op, redis_nonsense);
}

const char *redis_unlink(struct redis *redis)
{
    return atomic_load(&redis->no_unlink) ? "DEL" : "UNLINK";
}

bool redis_lacks_unlink(struct redis *redis, const char *verb, const struct redis_reply *reply)
{
    if (strcmp(verb, "UNLINK") != 0 || !redis_reply_failed(reply, "ERR unknown command"))
        return false;
    atomic_store(&redis->no_unlink, true);
    return true;
}

/* Every write that was answered is in Redis; whether on its disk as well, its settings tell. */
static void send_persist(struct redis_op *op)
{
    struct redis_word words[] = {redis_text("CONFIG"), redis_text("GET"), redis_text("appendonly")};
    redis_op_command(op, words, 3);
    words[2] = redis_text("appendfsync");
    redis_op_command(op, words, 3);
}

/* Where CONFIG is forbidden nothing is promised. */
static void take_persist(struct redis_op *op, struct redis_reply *reply)
{
    const char *wanted = op->awaited == 1 ? "yes" : "always";
    if (reply->type != REDIS_REPLY_ARRAY || reply->length != 2 ||
        reply->elements[1]->type != REDIS_REPLY_STRING ||
        strcmp(reply->elements[1]->text, wanted) != 0)
        op->call->result.durable = false;
    if (op->awaited == 0)
        redis_op_finish(op, STORE_OK);
}

static void persist_ended(struct redis_op *op)
{
    struct store_call *call = op->call;
    free(op);
    call->done(call);
}

static enum store_status redis_persist(struct store *store, struct store_call *call)
{
    (void)store;
    struct redis_op *op = malloc(sizeof(*op));
    if (op == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *op = (struct redis_op){
        .call = call, .send = send_persist, .take = take_persist, .finish = persist_ended};
    call->result.durable = true;
    if (redis_start(call, op))
        return STORE_PENDING;
    free(op);
    return STORE_FAILED;
}

static bool redis_attach(struct store *store, struct loop *loop)
{
    struct redis *redis = container_of(store, struct redis, store);
    unsigned index = loop_index(loop);
    if (index < REDIS_LOOPS_MAX)
        redis->conns[index] = redis_conn_new(&redis->server, loop);
    if (index < REDIS_LOOPS_MAX && redis->conns[index] != NULL)
        return true;
    log_error("Redis: no connection for loop %u: out of memory, or more than %d loops", index,
              REDIS_LOOPS_MAX);
    return false;
}

static void redis_detach(struct store *store, struct loop *loop)
{
    struct redis *redis = container_of(store, struct redis, store);
    unsigned index = loop_index(loop);
    if (index >= REDIS_LOOPS_MAX)
        return;
    struct redis_conn *conn = redis->conns[index];
    redis->conns[index] = NULL; /* who hears that his call has failed may ask again */
    redis_conn_free(conn);
}

static void redis_close(struct store *store)
{
    struct redis *redis = container_of(store, struct redis, store);
    redis_server_close(&redis->server);
    redis_cache_free(redis->cache);
    free(redis);
}

static bool set_prefix(struct redis *redis, const char *prefix, char *why, size_t size)
{
    redis->prefix_length = strlen(prefix);
    if (redis->prefix_length > REDIS_PREFIX_MAX) {
        snprintf(why, size, "redis-prefix has %zu bytes; at most %d are right",
                 redis->prefix_length, REDIS_PREFIX_MAX);
        return false;
    }
    strcpy(redis->prefix, prefix);
    return true;
}

/* That the server is down is no reason to fail. */
static struct store *redis_open(const struct config *config, char *why, size_t size)
{
    struct redis *redis = calloc(1, sizeof(*redis));
    if (redis == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    redis->expiration = config->redis_expiration;
    if (set_prefix(redis, config->redis_prefix, why, size) &&
        redis_server_open(&redis->server, config, why, size) &&
        (redis->cache = redis_cache_new(config->memory_size, why, size)) != NULL)
        return &redis->store;
    redis_close(&redis->store);
    return NULL;
}

const struct store_ops store_redis = {
    .name = "redis",
    .title = "Redis",
    .writes_through = true,
    .open = redis_open,
    .close = redis_close,
    .attach = redis_attach,
    .detach = redis_detach,
    .get = redis_get,
    .head = redis_head,
    .put = redis_put,
    .delete = redis_delete,
    .clear = redis_clear,
    .inspect = redis_inspect,
    .persist = redis_persist,
};
