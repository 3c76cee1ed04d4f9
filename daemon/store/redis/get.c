/* GET and HEAD. */
#include "redis.h"

#include "../../clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <xxhash.h>

enum {
    SLICE = 1 << 20, /* bytes of an entry that are asked for at once, */
    SLICES = 4,      /* and how often in one step */
    RATE = 65536,    /* bytes that come in a millisecond, at least */
    TRIES = 4        /* of an entry that is replaced while its slices come */
};

struct get {
    struct redis_op op;
    uint64_t generation; /* see redis_cache_fill() */
    int64_t until;       /* for all slices together, beside what the bytes take */
    enum store_status status;
    struct value *value; /* what has come so far */
    int64_t expires;
    uint64_t length;   /* of the entry */
    uint64_t done;     /* bytes of it that have come */
    XXH3_state_t *sum; /* if it comes in slices */
    unsigned tries;
    char header[REDIS_HEADER_SIZE];
    size_t header_length;
};

static struct get *get_of(struct redis_op *op)
{
    return container_of(op, struct get, op);
}

static void get_forget(struct get *get)
{
    value_unref(get->value);
    XXH3_freeState(get->sum);
    get->value = NULL;
    get->sum = NULL;
}

static void get_ended(struct redis_op *op)
{
    struct get *get = get_of(op);
    struct store_call *call = op->call;
    if (call->request.op == STORE_GET && call->result.status == STORE_OK) {
        redis_cache_fill(redis_of(call)->cache, call, get->value, get->generation);
        call->result.value = get->value;
        get->value = NULL;
    }
    get_forget(get);
    free(get);
    call->done(call);
}

/* Bytes from first to last; strings, as Redis wants them. */
static void send_range(struct redis_op *op, uint64_t first, uint64_t last)
{
    char key[REDIS_KEY_MAX], from[24], to[24];
    snprintf(from, sizeof(from), "%" PRIu64, first);
    snprintf(to, sizeof(to), "%" PRIu64, last);
    struct redis_word range[] = {redis_text("GETRANGE"), redis_key(key, op->call), redis_text(from),
                                 redis_text(to)};
    redis_op_command(op, range, 4);
}

/*
 * Header, length, life, and then the bytes (of HEAD the header), whose beginning tells whether all
 * this was read of one and the same entry. (MULTI would say so too, but a full server refuses it.)
 */
static void send_read(struct redis_op *op)
{
    char key[REDIS_KEY_MAX];
    struct redis_word length[] = {redis_text("STRLEN"), redis_key(key, op->call)};
    struct redis_word life[] = {redis_text("PTTL"), length[1]};
    send_range(op, 0, REDIS_HEADER_SIZE - 1);
    redis_op_command(op, length, 2);
    redis_op_command(op, life, 2);
    send_range(op, 0, (op->call->request.op == STORE_HEAD ? REDIS_HEADER_SIZE : SLICE) - 1);
}

static void take_read(struct redis_op *op, struct redis_reply *reply);

/* Deletes the entry only while it is the one that was read, by length and header. */
static void send_remove(struct redis_op *op)
{
    static const char script[] = "if redis.call('STRLEN',KEYS[1])==tonumber(ARGV[1]) and "
                                 "redis.call('GETRANGE',KEYS[1],0,#ARGV[2]-1)==ARGV[2] then "
                                 "return redis.call('DEL',KEYS[1]) end return 0";
    const struct get *get = get_of(op);
    char key[REDIS_KEY_MAX], length[24];
    snprintf(length, sizeof(length), "%" PRIu64, get->length);
    struct redis_word words[] = {redis_text("EVAL"), redis_text(script),
                                 redis_text("1"),    redis_key(key, op->call),
                                 redis_text(length), {get->header, get->header_length, NULL}};
    redis_op_command(op, words, 6);
}

/* The entry was replaced while it was read. */
static void get_again(struct redis_op *op)
{
    struct get *get = get_of(op);
    get_forget(get);
    if (++get->tries < TRIES)
        redis_op_again(op, send_read, take_read);
    else
        redis_op_finish(
            op, store_fail(op->call, ERROR_BUSY, "the entry is replaced too often; try again"));
}

static void take_remove(struct redis_op *op, struct redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer == 0) {
        get_again(op);
        return;
    }
    redis_complain(op->call, reply->type == REDIS_REPLY_INTEGER
                                 ? "is damaged, and deleted: a miss"
                                 : "is damaged, and left for want of leave to EVAL: a miss");
    redis_op_finish(op, STORE_MISS);
}

static void get_damaged(struct redis_op *op)
{
    get_forget(get_of(op));
    redis_op_again(op, send_remove, take_remove);
}

/* Copies a slice to its place in the value; the first one has the header. */
static void add_slice(struct get *get, const char *bytes, size_t length)
{
    size_t skip = get->done == 0 ? REDIS_HEADER_SIZE : 0;
    uint8_t *to = value_bytes(get->value) + (get->done + skip - REDIS_HEADER_SIZE);
    memcpy(to, bytes + skip, length - skip);
    if (get->sum != NULL)
        XXH3_64bits_update(get->sum, to, length - skip);
    get->done += length;
}

static bool sum_fits(struct get *get)
{
    uint64_t sum = get->sum != NULL
                       ? XXH3_64bits_digest(get->sum)
                       : XXH3_64bits_withSeed(value_bytes(get->value), get->value->length,
                                              redis_sum_seed(get->op.call, get->value->flags));
    return sum == redis_header_sum(get->header);
}

static void take_slice(struct redis_op *op, struct redis_reply *reply);

static void send_slices(struct redis_op *op)
{
    const struct get *get = get_of(op);
    uint64_t from = get->done;
    for (int i = 0; i < SLICES && from < get->length; i++, from += SLICE)
        send_range(op, from, from + SLICE - 1);
}

/* After each step that has brought bytes. */
static void get_on(struct redis_op *op)
{
    struct get *get = get_of(op);
    if (get->done == get->length && sum_fits(get))
        redis_op_finish(op, STORE_OK);
    else if (get->done == get->length)
        get_damaged(op);
    else if (clock_now() < get->until + (int64_t)(get->length / RATE))
        redis_op_again(op, send_slices, take_slice);
    else
        redis_op_finish(op, store_fail(op->call, ERROR_TIMEOUT,
                                       "Redis: %" PRIu64 " of %" PRIu64 " bytes came in time",
                                       get->done, get->length));
}

/* STORE_MISS: a slice is not what it was to be. */
static void take_slice(struct redis_op *op, struct redis_reply *reply)
{
    struct get *get = get_of(op);
    if (reply->type == REDIS_REPLY_ERROR && !redis_reply_failed(reply, "WRONGTYPE"))
        get->status = redis_fail(op->call, reply);
    else if (reply->type != REDIS_REPLY_STRING ||
             reply->length != MIN(SLICE, get->length - get->done))
        get->status = get->status == STORE_OK ? STORE_MISS : get->status;
    else if (get->status == STORE_OK)
        add_slice(get, reply->text, reply->length);
    if (op->awaited > 0)
        return;
    if (get->status == STORE_OK)
        get_on(op);
    else if (get->status == STORE_MISS)
        get_damaged(op);
    else
        redis_op_finish(op, get->status);
}

static bool start_sum(struct get *get, uint32_t flags)
{
    get->sum = XXH3_createState();
    return get->sum != NULL &&
           XXH3_64bits_reset_withSeed(get->sum, redis_sum_seed(get->op.call, flags)) == XXH_OK;
}

/* GET has read the entry, or its first slice. */
static void begin_value(struct redis_op *op, const struct redis_reply *bytes)
{
    struct get *get = get_of(op);
    uint32_t flags = redis_header_flags(get->header);
    get->done = 0;
    get->value = store_new_value(op->call, get->length - REDIS_HEADER_SIZE);
    if (get->value == NULL) {
        redis_op_finish(op, STORE_FAILED);
        return;
    }
    get->value->flags = flags;
    get->value->expires = get->expires;
    if (get->length > bytes->length && !start_sum(get, flags)) {
        redis_op_finish(op, store_fail(op->call, ERROR_INTERNAL, "out of memory"));
        return;
    }
    add_slice(get, bytes->text, bytes->length);
    get_on(op);
}

/* Without its bytes the checksum can't be compared: of a damaged entry HEAD tells the size. */
static void tell_head(struct redis_op *op)
{
    const struct get *get = get_of(op);
    op->call->result.flags = redis_header_flags(get->header);
    op->call->result.length = get->length - REDIS_HEADER_SIZE;
    op->call->result.expires = get->expires;
    redis_op_finish(op, STORE_OK);
}

static enum store_status foreign(const struct store_call *call)
{
    redis_complain(call, "is none of ours, and left alone: a miss");
    return STORE_MISS;
}

/* bytes: the last that was asked for; the rest is known. */
static void take_entry(struct redis_op *op, const struct redis_reply *bytes)
{
    struct get *get = get_of(op);
    bool is_head = op->call->request.op == STORE_HEAD;
    size_t most = is_head ? REDIS_HEADER_SIZE : SLICE;
    if (bytes->length != MIN(most, get->length) ||
        get->header_length != MIN(REDIS_HEADER_SIZE, bytes->length) ||
        memcmp(get->header, bytes->text, get->header_length) != 0)
        get_again(op);
    else if (get->length == 0 || get->expires <= clock_now())
        redis_op_finish(op, STORE_MISS);
    else if (!redis_header_is_ours(bytes->text, bytes->length))
        redis_op_finish(op, foreign(op->call));
    else if (get->length < REDIS_HEADER_SIZE)
        get_damaged(op);
    else if (is_head)
        tell_head(op);
    else
        begin_value(op, bytes);
}

static void take_read(struct redis_op *op, struct redis_reply *reply)
{
    struct get *get = get_of(op);
    bool is_number = op->awaited == 2 || op->awaited == 1;
    if (reply->type == REDIS_REPLY_ERROR && get->status == STORE_OK) {
        get->status = redis_reply_failed(reply, "WRONGTYPE") ? foreign(op->call)
                                                             : redis_fail(op->call, reply);
    } else if (reply->type != REDIS_REPLY_ERROR &&
               (reply->type != (is_number ? REDIS_REPLY_INTEGER : REDIS_REPLY_STRING) ||
                (op->awaited == 2 && reply->integer < 0))) {
        redis_op_break(op, redis_nonsense);
        return;
    }
    if (op->awaited == 0 && get->status != STORE_OK)
        redis_op_finish(op, get->status);
    else if (op->awaited == 0)
        take_entry(op, reply);
    else if (op->awaited == 1)
        get->expires = reply->integer == -1 ? CLOCK_NEVER : clock_now() + reply->integer;
    else if (op->awaited == 2)
        get->length = (uint64_t)reply->integer;
    else if (get->status == STORE_OK)
        memcpy(get->header, reply->text,
               get->header_length = MIN(reply->length, REDIS_HEADER_SIZE));
}

static enum store_status start_read(struct store_call *call)
{
    const struct redis *redis = redis_of(call);
    struct get *get = calloc(1, sizeof(*get));
    if (get == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    get->op =
        (struct redis_op){.call = call, .send = send_read, .take = take_read, .finish = get_ended};
    get->generation = redis_cache_generation(redis->cache, call);
    get->until = clock_now() + redis->server.answer_ms;
    if (redis_start(call, &get->op))
        return STORE_PENDING;
    free(get);
    return STORE_FAILED;
}

enum store_status redis_get(struct store *store, struct store_call *call)
{
    (void)store;
    enum store_status status = redis_cache_find(redis_of(call)->cache, call);
    return status == STORE_MISS ? start_read(call) : status;
}

enum store_status redis_head(struct store *store, struct store_call *call)
{
    return redis_get(store, call);
}
