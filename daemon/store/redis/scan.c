/* CLEAR and INSPECT: SCAN over all keys of the database, for those with the prefix. */
#include "redis.h"

#include "../../clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

enum {
    TIMES = 5, /* the whole may take, in redis-timeout */
    COUNT = 1000,
    SAMPLES = 4096 /* entries whose size INSPECT asks for */
};

struct scan {
    struct redis_op op;
    struct store_call copies; /* CLEAR's for the cache */
    const char *verb;         /* CLEAR's */
    char cursor[24];          /* SCAN's */
    int64_t until;
    struct redis_reply *keys; /* what SCAN has found */
    uint64_t sampled, sampled_size;
};

static struct scan *scan_of(struct redis_op *op)
{
    return container_of(op, struct scan, op);
}

static void scan_ended(struct redis_op *op)
{
    struct scan *scan = scan_of(op);
    struct store_call *call = op->call;
    if (call->request.op == STORE_CLEAR)
        redis_cache_end_clear(redis_of(call)->cache, op->awaited > 0);
    redis_reply_free(scan->keys);
    free(scan);
    call->done(call);
}

/* Redis's pattern for whatever begins with the full prefix. */
static struct redis_word make_pattern(char *out, const struct store_call *call)
{
    char prefix[REDIS_KEY_MAX];
    size_t length = redis_key(prefix, call).length, used = 0;
    for (size_t i = 0; i < length; i++) {
        if (prefix[i] != '\0' && strchr("*?[]\\", prefix[i]) != NULL)
            out[used++] = '\\';
        out[used++] = prefix[i];
    }
    out[used++] = '*';
    return (struct redis_word){.bytes = out, .length = used};
}

static void send_scan(struct redis_op *op)
{
    struct scan *scan = scan_of(op);
    char pattern[2 * REDIS_KEY_MAX + 1], count[16];
    snprintf(count, sizeof(count), "%d", COUNT);
    struct redis_word words[] = {redis_text("SCAN"),  redis_text(scan->cursor),
                                 redis_text("MATCH"), make_pattern(pattern, op->call),
                                 redis_text("COUNT"), redis_text(count)};
    redis_op_command(op, words, 6);
}

static bool is_scan(const struct redis_reply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->length != 2 ||
        reply->elements[0]->type != REDIS_REPLY_STRING ||
        reply->elements[1]->type != REDIS_REPLY_ARRAY)
        return false;
    const struct redis_reply *keys = reply->elements[1];
    for (size_t i = 0; i < keys->length; i++) {
        if (keys->elements[i]->type != REDIS_REPLY_STRING)
            return false;
    }
    return true;
}

/* Takes cursor and keys out of SCAN's answer; false: it is none. */
static bool read_scan(struct scan *scan, struct redis_reply *reply)
{
    if (!is_scan(reply) || reply->elements[0]->length >= sizeof(scan->cursor))
        return false;
    memcpy(scan->cursor, reply->elements[0]->text, reply->elements[0]->length + 1);
    redis_reply_free(scan->keys);
    scan->keys = reply->elements[1];
    reply->elements[1] = NULL;
    return true;
}

static bool scan_is_whole(const struct scan *scan)
{
    return strcmp(scan->cursor, "0") == 0;
}

static void take_clear(struct redis_op *op, struct redis_reply *reply);

static void clear_on(struct redis_op *op)
{
    const struct scan *scan = scan_of(op);
    if (scan_is_whole(scan))
        redis_op_finish(op, STORE_OK);
    else if (clock_now() < scan->until)
        redis_op_again(op, send_scan, take_clear);
    else
        redis_op_finish(op, store_fail(op->call, ERROR_TIMEOUT,
                                       "%" PRIu64 " entries removed in time, not all; ask again",
                                       op->call->result.entries));
}

/* UNLINK key…: what SCAN has found. */
static void send_unlink(struct redis_op *op)
{
    struct scan *scan = scan_of(op);
    size_t count = scan->keys->length;
    struct redis_word *words = calloc(count + 1, sizeof(*words));
    if (words == NULL) {
        redis_op_break(op, "out of memory");
        return;
    }
    scan->verb = redis_unlink(redis_of(op->call));
    words[0] = redis_text(scan->verb);
    for (size_t i = 0; i < count; i++) {
        words[i + 1].bytes = scan->keys->elements[i]->text;
        words[i + 1].length = scan->keys->elements[i]->length;
    }
    redis_op_command(op, words, (unsigned)count + 1);
    free(words);
}

/* SCAN may name a key twice; this counts it once. */
static void take_unlink(struct redis_op *op, struct redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_INTEGER) {
        op->call->result.entries += (uint64_t)reply->integer;
        clear_on(op);
    } else if (redis_lacks_unlink(redis_of(op->call), scan_of(op)->verb, reply)) {
        redis_op_again(op, send_unlink, take_unlink);
    } else {
        redis_op_refuse(op, reply);
    }
}

static void take_clear(struct redis_op *op, struct redis_reply *reply)
{
    struct scan *scan = scan_of(op);
    if (!read_scan(scan, reply))
        redis_op_refuse(op, reply);
    else if (scan->keys->length > 0)
        redis_op_again(op, send_unlink, take_unlink);
    else
        clear_on(op);
}

static void take_inspect(struct redis_op *op, struct redis_reply *reply);

/* Entries whose size was not asked for are taken to be the others' average. */
static void add_sizes(struct scan *scan)
{
    struct store_call *call = scan->op.call;
    if (scan->sampled >= call->result.entries)
        call->result.size += scan->sampled_size;
    else if (scan->sampled > 0)
        call->result.size += (uint64_t)((double)scan->sampled_size / (double)scan->sampled *
                                        (double)call->result.entries);
}

/* Where time runs out the answer is about what was seen. */
static void inspect_on(struct redis_op *op)
{
    struct scan *scan = scan_of(op);
    if (!scan_is_whole(scan) && clock_now() < scan->until) {
        redis_op_again(op, send_scan, take_inspect);
        return;
    }
    add_sizes(scan);
    redis_op_finish(op, STORE_OK);
}

static void send_sizes(struct redis_op *op)
{
    const struct scan *scan = scan_of(op);
    size_t count = MIN(scan->keys->length, SAMPLES - scan->sampled);
    for (size_t i = 0; i < count; i++) {
        const struct redis_reply *key = scan->keys->elements[i];
        struct redis_word words[] = {redis_text("STRLEN"), {key->text, key->length, NULL}};
        redis_op_command(op, words, 2);
    }
}

/* What is no string, or gone by now, counts as empty. */
static void take_size(struct redis_op *op, struct redis_reply *reply)
{
    struct scan *scan = scan_of(op);
    scan->sampled++;
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer > REDIS_HEADER_SIZE)
        scan->sampled_size += (uint64_t)reply->integer - REDIS_HEADER_SIZE;
    if (op->awaited == 0)
        inspect_on(op);
}

static void count_keys(struct scan *scan)
{
    struct store_call *call = scan->op.call;
    size_t prefix = redis_of(call)->prefix_length;
    call->result.entries += scan->keys->length;
    for (size_t i = 0; i < scan->keys->length; i++)
        call->result.size +=
            scan->keys->elements[i]->length - MIN(scan->keys->elements[i]->length, prefix);
}

static void take_inspect(struct redis_op *op, struct redis_reply *reply)
{
    struct scan *scan = scan_of(op);
    if (!read_scan(scan, reply)) {
        redis_op_refuse(op, reply);
        return;
    }
    count_keys(scan);
    if (scan->keys->length > 0 && scan->sampled < SAMPLES)
        redis_op_again(op, send_sizes, take_size);
    else
        inspect_on(op);
}

static struct scan *new_scan(struct store_call *call,
                             void (*take)(struct redis_op *, struct redis_reply *))
{
    struct scan *scan = calloc(1, sizeof(*scan));
    if (scan == NULL) {
        store_fail(call, ERROR_INTERNAL, "out of memory");
        return NULL;
    }
    scan->op =
        (struct redis_op){.call = call, .send = send_scan, .take = take, .finish = scan_ended};
    scan->until = clock_now() + TIMES * redis_of(call)->server.answer_ms;
    strcpy(scan->cursor, "0");
    call->result.entries = 0;
    call->result.size = 0;
    call->result.approximate = true;
    return scan;
}

/* The copies are gone, and no new ones are made: now Redis is asked. */
static void copies_cleared(struct store_call *copies)
{
    struct scan *scan = container_of(copies, struct scan, copies);
    if (redis_start(scan->op.call, &scan->op))
        return;
    scan->op.call->result.status = STORE_FAILED;
    scan_ended(&scan->op);
}

enum store_status redis_clear(struct store *store, struct store_call *call)
{
    (void)store;
    struct redis_cache *cache = redis_of(call)->cache;
    struct scan *scan = new_scan(call, take_clear);
    if (scan == NULL)
        return STORE_FAILED;
    scan->copies = (struct store_call){
        .request = {.op = STORE_CLEAR,
                    .key = call->request.key,
                    .key_length = call->request.key_length,
                    .loop = call->request.loop},
        .done = copies_cleared,
    };
    enum store_status status = redis_cache_begin_clear(cache, &scan->copies);
    if (status == STORE_PENDING || (status == STORE_OK && redis_start(call, &scan->op)))
        return STORE_PENDING;
    if (status == STORE_FAILED)
        store_fail(call, scan->copies.result.error, "%s", scan->copies.result.text);
    redis_cache_end_clear(cache, false);
    free(scan);
    return STORE_FAILED;
}

enum store_status redis_inspect(struct store *store, struct store_call *call)
{
    (void)store;
    struct scan *scan = new_scan(call, take_inspect);
    if (scan != NULL && redis_start(call, &scan->op))
        return STORE_PENDING;
    free(scan);
    return STORE_FAILED;
}
