/* PUT and DELETE: made by Redis, and only once it has answered. */
#include "redis.h"

#include "../../clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/param.h>

struct change {
    struct redis_op op;
    struct value *value; /* PUT: until it is put out */
    const char *verb;    /* DELETE's */
};

static struct change *change_of(struct redis_op *op)
{
    return container_of(op, struct change, op);
}

static void change_ended(struct redis_op *op)
{
    struct change *change = change_of(op);
    struct store_call *call = op->call;
    redis_cache_end_change(redis_of(call)->cache, call, op->awaited > 0);
    value_unref(change->value);
    free(change);
    call->done(call);
}

static enum store_status start_change(struct store_call *call, void (*send)(struct redis_op *),
                                      void (*take)(struct redis_op *, struct redis_reply *))
{
    struct redis_cache *cache = redis_of(call)->cache;
    struct change *change = calloc(1, sizeof(*change));
    if (change == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    change->op =
        (struct redis_op){.call = call, .send = send, .take = take, .finish = change_ended};
    if (call->request.op == STORE_PUT)
        change->value = value_ref(call->request.value);
    redis_cache_begin_change(cache, call);
    if (redis_start(call, &change->op))
        return STORE_PENDING;
    redis_cache_end_change(cache, call, false);
    value_unref(change->value);
    free(change);
    return STORE_FAILED;
}

/* Milliseconds that the value is to live: its own end or redis-expiration, whichever is first. */
static int64_t life_of(const struct redis *redis, const struct value *value)
{
    int64_t own = value->expires == CLOCK_NEVER ? CLOCK_NEVER : value->expires - clock_now();
    int64_t all = redis->expiration > 0 ? redis->expiration : CLOCK_NEVER;
    return MAX(MIN(own, all), 1);
}

/* SET key value [NX] [PX life] */
static void send_put(struct redis_op *op)
{
    struct change *change = change_of(op);
    const struct store_call *call = op->call;
    char key[REDIS_KEY_MAX], header[REDIS_HEADER_SIZE], life[24];
    int64_t lives = life_of(redis_of(call), change->value);
    redis_header_make(header, call, change->value);
    struct redis_word words[6] = {
        redis_text("SET"), redis_key(key, call), {header, sizeof(header), change->value}};
    unsigned count = 3;
    change->value = NULL;
    if (!call->request.overwrite)
        words[count++] = redis_text("NX");
    if (lives != CLOCK_NEVER) {
        snprintf(life, sizeof(life), "%" PRId64, lives);
        words[count++] = redis_text("PX");
        words[count++] = redis_text(life);
    }
    redis_op_command(op, words, count);
}

static void take_put(struct redis_op *op, struct redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_STATUS)
        redis_op_finish(op, STORE_OK);
    else if (reply->type == REDIS_REPLY_NIL)
        redis_op_finish(op, STORE_EXISTS);
    else
        redis_op_refuse(op, reply);
}

static enum store_status start_put(struct store_call *call)
{
    const struct redis_conn *conn = redis_conn_of(redis_of(call), call);
    uint64_t most = conn == NULL ? UINT64_MAX : redis_conn_bulk_max(conn);
    if (call->request.value->length + (uint64_t)REDIS_HEADER_SIZE > most)
        return store_fail(call, ERROR_TOO_LARGE,
                          "Redis takes no value of more than %" PRIu64
                          " bytes (its proto-max-bulk-len, less %d)",
                          most - REDIS_HEADER_SIZE, REDIS_HEADER_SIZE);
    return start_change(call, send_put, take_put);
}

enum store_status redis_put(struct store *store, struct store_call *call)
{
    (void)store;
    enum store_status status = start_put(call);
    value_unref(call->request.value);
    call->request.value = NULL;
    return status;
}

static void send_delete(struct redis_op *op)
{
    struct change *change = change_of(op);
    char key[REDIS_KEY_MAX];
    change->verb = redis_unlink(redis_of(op->call));
    struct redis_word words[] = {redis_text(change->verb), redis_key(key, op->call)};
    redis_op_command(op, words, 2);
}

static void take_delete(struct redis_op *op, struct redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_INTEGER)
        redis_op_finish(op, reply->integer > 0 ? STORE_OK : STORE_MISS);
    else if (redis_lacks_unlink(redis_of(op->call), change_of(op)->verb, reply))
        redis_op_again(op, send_delete, take_delete);
    else
        redis_op_refuse(op, reply);
}

enum store_status redis_delete(struct store *store, struct store_call *call)
{
    (void)store;
    return start_change(call, send_delete, take_delete);
}
