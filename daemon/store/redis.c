/*
 * Keeps values on a Redis server, which several hosts may share. Every loop has a connection of its
 * own (redis_conn.h), and nothing here blocks.
 *
 * An entry is one Redis string under redis-prefix and the key: a header (a mark, the client's
 * flags, a checksum) and the value's bytes. A string under our prefix that does not begin with the
 * mark is somebody else's: a miss, and left alone, so that a PUT of that key answers EXISTS until
 * its owner removes it. One with the mark and a wrong checksum is damaged: a miss, and deleted.
 *
 * What Redis holds is bounded by its own maxmemory; max-size is not enforced here. What the daemon
 * holds is bounded by its clients, each with one request: a value goes out in pieces from where it
 * is, and comes in slices that are copied to where it will be, between which others get a turn.
 */
#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../log.h"
#include "redis_conn.h"
#include "redis_server.h"

#include <endian.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <xxhash.h>

enum {
    LOOPS_MAX = 256,
    PREFIX_MAX = 255,
    FULL_KEY_MAX = PREFIX_MAX + MESSAGE_KEY_MAX,
    HEADER_SIZE = 16,
    SCAN_TIMES = 5, /* CLEAR or INSPECT as a whole may take, in redis-timeout */
    SCAN_COUNT = 1000,
    SCAN_SAMPLES = 4096, /* entries whose size INSPECT asks for */
    SLICE = 1 << 20,     /* bytes of an entry that are asked for at once, */
    SLICES = 4,          /* and how often in one step */
    RATE = 65536,        /* bytes that come in a millisecond, at least */
    GET_TRIES = 4,       /* of an entry that is replaced while its slices come */
    COMPLAIN_MS = 10000
};

static const char mark[4] = {'L', 'C', 'v', '1'};
static const char nonsense[] = "an answer that makes no sense";

struct redis {
    struct store store;
    struct redis_server server;
    size_t prefix_length;
    char prefix[PREFIX_MAX + 1];
    int64_t expiration;
    atomic_bool no_unlink;               /* the server is older than UNLINK */
    _Atomic int64_t complained;          /* when an entry was last complained about */
    struct redis_conn *conns[LOOPS_MAX]; /* each its own loop's alone */
};

/* A call on its way, and what its steps hand on. */
struct work {
    struct redis_op op;
    struct redis *redis;
    enum store_status status;

    struct value *value; /* PUT: until it is out; GET: what comes */
    uint64_t done;       /* PUT: bytes of it that are out; GET: bytes of the entry that came */
    int64_t life;        /* PUT: milliseconds, or CLOCK_NEVER */

    uint64_t length;   /* GET: of the entry */
    XXH3_state_t *sum; /* GET: where it comes in slices */
    unsigned tries;
    bool damaged; /* GET: it is to be deleted where it begins with header */
    char header[HEADER_SIZE];
    size_t header_length;

    bool by_del; /* DELETE, CLEAR: by DEL, not by UNLINK */

    char cursor[24];  /* CLEAR, INSPECT: SCAN's */
    int64_t ends;     /* of the whole call */
    redisReply *keys; /* what SCAN has found */
    uint64_t sampled, sampled_size;
};

static struct redis *redis_of(struct store *store)
{
    return container_of(store, struct redis, store);
}

static struct work *work_of(struct redis_op *op)
{
    return container_of(op, struct work, op);
}

/* What came from elsewhere, as it may stand in a log or an error. */
static const char *printable(char *out, size_t size, const void *text, size_t length)
{
    const unsigned char *bytes = text;
    size_t used = 0;
    for (; used < length && used + 1 < size; used++)
        out[used] = (char)(bytes[used] >= 0x20 && bytes[used] <= 0x7e ? bytes[used] : '?');
    out[used] = '\0';
    return out;
}

/* One line about an entry, and silence about others for a while. */
static void complain(struct redis *redis, const struct store_call *call, const char *what)
{
    char key[128];
    int64_t now = clock_now(), last = atomic_load(&redis->complained);
    if (now < last + COMPLAIN_MS || !atomic_compare_exchange_strong(&redis->complained, &last, now))
        return;
    log_warning("Redis at %s: the entry %s%s %s", redis->server.where, redis->prefix,
                printable(key, sizeof(key), call->key, call->key_length), what);
}

static bool answered(const redisReply *reply, const char *beginning)
{
    return reply->type == REDIS_REPLY_ERROR &&
           strncmp(reply->str, beginning, strlen(beginning)) == 0;
}

static enum store_status fail_as(struct store_call *call, const redisReply *reply)
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
        if (answered(reply, known[i].beginning))
            code = known[i].code;
    }
    return store_fail(call, code, "Redis: %s",
                      printable(text, sizeof(text), reply->str, reply->len));
}

static void work_free(struct work *work)
{
    value_unref(work->value);
    freeReplyObject(work->keys);
    XXH3_freeState(work->sum);
    free(work);
}

static void work_finish(struct redis_op *op)
{
    struct work *work = work_of(op);
    struct store_call *call = op->call;
    if (call->op == STORE_GET && call->status == STORE_OK) {
        call->value = work->value;
        work->value = NULL;
    }
    work_free(work);
    call->done(call);
}

static struct redis_conn *conn_of(const struct redis *redis, const struct store_call *call)
{
    unsigned index = loop_index(call->loop);
    return index < LOOPS_MAX ? redis->conns[index] : NULL;
}

static struct work *work_new(struct redis *redis, struct store_call *call, unsigned times)
{
    struct work *work = calloc(1, sizeof(*work));
    if (work == NULL)
        return NULL;
    work->redis = redis;
    work->op.call = call;
    work->op.finish = work_finish;
    work->value = call->value;
    call->value = NULL;
    work->ends = clock_now() + times * redis->server.answer_ms;
    strcpy(work->cursor, "0");
    return work;
}

/* times: all steps together may take so many times redis-timeout, beside what its bytes take. */
static enum store_status begin(struct store *store, struct store_call *call, unsigned times,
                               bool (*ask)(struct redis_op *),
                               void (*take)(struct redis_op *, redisReply *))
{
    struct redis *redis = redis_of(store);
    struct redis_conn *conn = conn_of(redis, call);
    if (conn == NULL)
        return store_fail(call, ERROR_INTERNAL, "Redis: this loop has no connection");
    struct work *work = work_new(redis, call, times);
    if (work == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    work->op.ask = ask;
    work->op.take = take;
    if (redis_conn_start(conn, &work->op))
        return STORE_PENDING;
    work_free(work);
    return STORE_FAILED;
}

static size_t full_key(char *out, const struct work *work)
{
    const struct redis *redis = work->redis;
    const struct store_call *call = work->op.call;
    memcpy(out, redis->prefix, redis->prefix_length);
    if (call->key_length > 0)
        memcpy(out + redis->prefix_length, call->key, call->key_length);
    return redis->prefix_length + call->key_length;
}

/* VERB key [first [second]]; the words after the key may be NULL. */
static void ask_key(struct redis_op *op, const char *verb, const char *first, const char *second)
{
    char key[FULL_KEY_MAX];
    const char *words[] = {verb, key, first, second};
    size_t lengths[4] = {strlen(verb), full_key(key, work_of(op))};
    int count = 2;
    for (; count < 4 && words[count] != NULL; count++)
        lengths[count] = strlen(words[count]);
    redis_op_command(op, count, words, lengths);
}

/* An answer that is none of those that were expected: an error, or nonsense. */
static void take_other(struct redis_op *op, const redisReply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        redis_op_finish(op, fail_as(op->call, reply));
    else
        redis_op_break(op, nonsense);
}

/* The seed of an entry's checksum, which binds the bytes to their key and flags. */
static uint64_t seed_of(const struct store_call *call, uint32_t flags)
{
    return XXH3_64bits_withSeed(call->key, call->key_length, flags);
}

static void make_header(char *header, const struct store_call *call, struct value *value)
{
    uint32_t flags = htole32(value->flags);
    uint64_t sum = htole64(
        XXH3_64bits_withSeed(value_bytes(value), value->length, seed_of(call, value->flags)));
    memcpy(header, mark, sizeof(mark));
    memcpy(header + 4, &flags, sizeof(flags));
    memcpy(header + 8, &sum, sizeof(sum));
}

static bool has_mark(const redisReply *reply)
{
    return reply->len >= sizeof(mark) && memcmp(reply->str, mark, sizeof(mark)) == 0;
}

static uint32_t header_flags(const char *header)
{
    uint32_t flags;
    memcpy(&flags, header + 4, sizeof(flags));
    return le32toh(flags);
}

static uint64_t header_checksum(const char *header)
{
    uint64_t sum;
    memcpy(&sum, header + 8, sizeof(sum));
    return le64toh(sum);
}

static enum store_status foreign(struct work *work)
{
    complain(work->redis, work->op.call, "is none of ours, and left alone: a miss");
    return STORE_MISS;
}

/* PTTL's answer; the entry may have gone since it was read. */
static enum store_status read_life(const redisReply *reply, int64_t *expires)
{
    bool never = reply->integer == -1;
    if (!never && reply->integer <= 0)
        return STORE_MISS;
    *expires = never ? CLOCK_NEVER : clock_now() + reply->integer;
    return STORE_OK;
}

static bool ask_get(struct redis_op *op);
static void take_get(struct redis_op *op, redisReply *reply);

static void get_again(struct redis_op *op)
{
    struct work *work = work_of(op);
    value_unref(work->value);
    work->value = NULL;
    XXH3_freeState(work->sum);
    work->sum = NULL;
    work->damaged = false;
    redis_op_again(op, ask_get, take_get);
}

/* Deletes the entry only while it is the one that was read, by length and header. */
static bool ask_drop(struct redis_op *op)
{
    static const char script[] = "if redis.call('STRLEN',KEYS[1])==tonumber(ARGV[1]) and "
                                 "redis.call('GETRANGE',KEYS[1],0,#ARGV[2]-1)==ARGV[2] then "
                                 "return redis.call('DEL',KEYS[1]) end return 0";
    struct work *work = work_of(op);
    char key[FULL_KEY_MAX], length[24];
    const char *words[] = {"EVAL", script, "1", key, length, work->header};
    size_t lengths[] = {4, sizeof(script) - 1, 1, full_key(key, work), 0, work->header_length};
    lengths[4] = (size_t)sprintf(length, "%" PRIu64, work->length);
    redis_op_command(op, 6, words, lengths);
    return true;
}

/* What is another by now is read again. */
static void take_drop(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    bool same = reply->type != REDIS_REPLY_INTEGER || reply->integer != 0;
    if (!same && ++work->tries < GET_TRIES) {
        get_again(op);
        return;
    }
    if (same)
        complain(work->redis, op->call,
                 reply->type == REDIS_REPLY_INTEGER
                     ? "is damaged, and deleted: a miss"
                     : "is damaged, and left for want of leave to EVAL: a miss");
    redis_op_finish(op, STORE_MISS);
}

/* The life is asked for right behind the bytes. Should the entry be replaced in between it is the
 * new one's. */
static bool ask_get(struct redis_op *op)
{
    char last[16];
    sprintf(last, "%d", SLICE - 1);
    ask_key(op, "STRLEN", NULL, NULL);
    ask_key(op, "GETRANGE", "0", last);
    ask_key(op, "PTTL", NULL, NULL);
    return true;
}

/* Copies a slice to its place in the value; the first one has the header. */
static void add_slice(struct work *work, const char *bytes, size_t length)
{
    size_t skip = work->done == 0 ? HEADER_SIZE : 0;
    uint8_t *to = value_bytes(work->value) + (work->done + skip - HEADER_SIZE);
    memcpy(to, bytes + skip, length - skip);
    if (work->sum != NULL)
        XXH3_64bits_update(work->sum, to, length - skip);
    work->done += length;
}

static uint64_t sum_of(struct work *work)
{
    if (work->sum != NULL)
        return XXH3_64bits_digest(work->sum);
    return XXH3_64bits_withSeed(value_bytes(work->value), work->value->length,
                                seed_of(work->op.call, work->value->flags));
}

static bool start_sum(struct work *work, uint32_t flags)
{
    if (work->sum == NULL)
        work->sum = XXH3_createState();
    return work->sum != NULL &&
           XXH3_64bits_reset_withSeed(work->sum, seed_of(work->op.call, flags)) == XXH_OK;
}

/* What is less than a slice is the whole entry, whatever its length was a moment ago. */
static enum store_status read_first_slice(struct work *work, const redisReply *reply)
{
    struct store_call *call = work->op.call;
    if (reply->len == 0)
        return STORE_MISS;
    if (!has_mark(reply))
        return foreign(work);
    if (reply->len < SLICE)
        work->length = reply->len;
    work->header_length = MIN(reply->len, HEADER_SIZE);
    memcpy(work->header, reply->str, work->header_length);
    work->damaged = work->length < HEADER_SIZE || work->length < reply->len;
    if (work->damaged)
        return STORE_OK;
    uint32_t flags = header_flags(work->header);
    work->value = store_new_value(call, work->length - HEADER_SIZE);
    if (work->value == NULL)
        return STORE_FAILED;
    if (work->length > reply->len && !start_sum(work, flags))
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    work->value->flags = flags;
    work->done = 0;
    add_slice(work, reply->str, reply->len);
    return STORE_OK;
}

static enum store_status read_get_part(struct work *work, const redisReply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        return answered(reply, "WRONGTYPE") ? foreign(work) : fail_as(work->op.call, reply);
    if (work->op.awaited == 1)
        return read_first_slice(work, reply);
    if (work->op.awaited == 2)
        work->length = reply->integer > 0 ? (uint64_t)reply->integer : 0;
    else if (!work->damaged)
        return read_life(reply, &work->value->expires);
    return STORE_OK;
}

static bool ask_slices(struct redis_op *op)
{
    struct work *work = work_of(op);
    uint64_t from = work->done;
    for (int i = 0; i < SLICES && from < work->length; i++, from += SLICE) {
        char first[24], last[24];
        sprintf(first, "%" PRIu64, from);
        sprintf(last, "%" PRIu64, from + SLICE - 1);
        ask_key(op, "GETRANGE", first, last);
    }
    return true;
}

static void get_on(struct redis_op *op);

static void take_slice(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    bool fits = reply->len == MIN(SLICE, work->length - work->done);
    if (reply->type == REDIS_REPLY_ERROR)
        work->status = fail_as(op->call, reply);
    else if (reply->type != REDIS_REPLY_STRING || !fits)
        work->damaged = true;
    else if (!work->damaged && work->status == STORE_OK)
        add_slice(work, reply->str, reply->len);
    if (op->awaited == 0 && work->status == STORE_OK)
        get_on(op);
    else if (op->awaited == 0)
        redis_op_finish(op, work->status);
}

/* After each step of GET that has found something. */
static void get_on(struct redis_op *op)
{
    struct work *work = work_of(op);
    bool whole = work->done == work->length;
    if (work->damaged || (whole && sum_of(work) != header_checksum(work->header)))
        redis_op_again(op, ask_drop, take_drop);
    else if (whole)
        redis_op_finish(op, STORE_OK);
    else if (clock_now() < work->ends + (int64_t)(work->length / RATE))
        redis_op_again(op, ask_slices, take_slice);
    else
        redis_op_finish(op, store_fail(op->call, ERROR_TIMEOUT,
                                       "Redis: %" PRIu64 " of %" PRIu64 " bytes came in time",
                                       work->done, work->length));
}

static void take_get(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    int expected = op->awaited == 1 ? REDIS_REPLY_STRING : REDIS_REPLY_INTEGER;
    if (reply->type != expected && reply->type != REDIS_REPLY_ERROR) {
        redis_op_break(op, nonsense);
        return;
    }
    if (work->status == STORE_OK)
        work->status = read_get_part(work, reply);
    if (op->awaited == 0 && work->status == STORE_OK)
        get_on(op);
    else if (op->awaited == 0)
        redis_op_finish(op, work->status);
}

static enum store_status redis_get(struct store *store, struct store_call *call)
{
    return begin(store, call, 1, ask_get, take_get);
}

/* Without its bytes the checksum can't be compared: of a damaged entry this tells the size. */
static bool ask_head(struct redis_op *op)
{
    ask_key(op, "GETRANGE", "0", "15");
    ask_key(op, "STRLEN", NULL, NULL);
    ask_key(op, "PTTL", NULL, NULL);
    return true;
}

static enum store_status read_header(struct work *work, const redisReply *reply)
{
    if (reply->len == 0)
        return STORE_MISS;
    if (!has_mark(reply))
        return foreign(work);
    if (reply->len < HEADER_SIZE)
        return STORE_MISS;
    work->op.call->flags = header_flags(reply->str);
    return STORE_OK;
}

static enum store_status read_length(struct work *work, const redisReply *reply)
{
    if (reply->integer < HEADER_SIZE)
        return STORE_MISS;
    work->op.call->length = (uint64_t)reply->integer - HEADER_SIZE;
    return STORE_OK;
}

static enum store_status read_head_part(struct work *work, const redisReply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        return answered(reply, "WRONGTYPE") ? foreign(work) : fail_as(work->op.call, reply);
    if (work->op.awaited == 2)
        return read_header(work, reply);
    if (work->op.awaited == 1)
        return read_length(work, reply);
    return read_life(reply, &work->op.call->expires);
}

static void take_head(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    int expected = op->awaited == 2 ? REDIS_REPLY_STRING : REDIS_REPLY_INTEGER;
    if (reply->type != expected && reply->type != REDIS_REPLY_ERROR) {
        redis_op_break(op, nonsense);
        return;
    }
    if (work->status == STORE_OK)
        work->status = read_head_part(work, reply);
    if (op->awaited == 0)
        redis_op_finish(op, work->status);
}

static enum store_status redis_head(struct store *store, struct store_call *call)
{
    return begin(store, call, 1, ask_head, take_head);
}

/* Milliseconds that the value is to live: its own end or redis-expiration, whichever is first. */
static int64_t life_of(const struct redis *redis, const struct value *value)
{
    int64_t own = value->expires == CLOCK_NEVER ? CLOCK_NEVER : value->expires - clock_now();
    int64_t all = redis->expiration > 0 ? redis->expiration : CLOCK_NEVER;
    return MAX(MIN(own, all), 1);
}

/* SET key value [NX] [PX life]: all that stands before the value's bytes. */
static void put_head(struct redis_op *op)
{
    struct work *work = work_of(op);
    char head[FULL_KEY_MAX + HEADER_SIZE + 128];
    char key[FULL_KEY_MAX];
    size_t key_length = full_key(key, work);
    int words = 3 + (op->call->overwrite ? 0 : 1) + (work->life == CLOCK_NEVER ? 0 : 2);
    size_t used = (size_t)sprintf(head, "*%d\r\n$3\r\nSET\r\n$%zu\r\n", words, key_length);
    memcpy(head + used, key, key_length);
    used += key_length;
    used += (size_t)sprintf(head + used, "\r\n$%" PRIu64 "\r\n",
                            (uint64_t)work->value->length + HEADER_SIZE);
    make_header(head + used, op->call, work->value);
    redis_op_begin(op, head, used + HEADER_SIZE);
}

static void put_tail(struct redis_op *op)
{
    char tail[80], life[24];
    int used = sprintf(tail, "\r\n%s", op->call->overwrite ? "" : "$2\r\nNX\r\n");
    if (work_of(op)->life != CLOCK_NEVER) {
        int digits = sprintf(life, "%" PRId64, work_of(op)->life);
        used += sprintf(tail + used, "$2\r\nPX\r\n$%d\r\n%s\r\n", digits, life);
    }
    redis_op_more(op, tail, (size_t)used);
}

/* In pieces, without a copy of the whole: hiredis moves all that is left after each write. */
static bool ask_put(struct redis_op *op)
{
    struct work *work = work_of(op);
    if (op->awaited == 0) {
        work->life = life_of(work->redis, work->value);
        put_head(op);
    }
    size_t piece = MIN(work->value->length - work->done, redis_op_room(op));
    redis_op_more(op, value_bytes(work->value) + work->done, piece);
    work->done += piece;
    if (work->done < work->value->length)
        return false;
    put_tail(op);
    value_unref(work->value);
    work->value = NULL;
    return true;
}

static void take_put(struct redis_op *op, redisReply *reply)
{
    if (reply->type == REDIS_REPLY_STATUS)
        redis_op_finish(op, STORE_OK);
    else if (reply->type == REDIS_REPLY_NIL)
        redis_op_finish(op, STORE_EXISTS);
    else
        take_other(op, reply);
}

static enum store_status start_put(struct store *store, struct store_call *call)
{
    const struct redis_conn *conn = conn_of(redis_of(store), call);
    uint64_t most = conn == NULL ? 0 : redis_conn_bulk_max(conn);
    if (conn != NULL && call->value->length + (uint64_t)HEADER_SIZE > most)
        return store_fail(call, ERROR_TOO_LARGE,
                          "Redis takes no value of more than %" PRIu64
                          " bytes (its proto-max-bulk-len, less %d)",
                          most - HEADER_SIZE, HEADER_SIZE);
    return begin(store, call, 1, ask_put, take_put);
}

static enum store_status redis_put(struct store *store, struct store_call *call)
{
    enum store_status status = start_put(store, call);
    value_unref(call->value); /* where it was not taken */
    call->value = NULL;
    return status;
}

static const char *delete_verb(struct work *work)
{
    work->by_del = atomic_load(&work->redis->no_unlink);
    return work->by_del ? "DEL" : "UNLINK";
}

/* Whether the same is to be asked again by the older verb. */
static bool lacks_unlink(struct work *work, const redisReply *reply)
{
    if (work->by_del || !answered(reply, "ERR unknown command"))
        return false;
    atomic_store(&work->redis->no_unlink, true);
    return true;
}

static bool ask_delete(struct redis_op *op)
{
    ask_key(op, delete_verb(work_of(op)), NULL, NULL);
    return true;
}

static void take_delete(struct redis_op *op, redisReply *reply)
{
    if (reply->type == REDIS_REPLY_INTEGER)
        redis_op_finish(op, reply->integer > 0 ? STORE_OK : STORE_MISS);
    else if (lacks_unlink(work_of(op), reply))
        redis_op_again(op, ask_delete, take_delete);
    else
        take_other(op, reply);
}

static enum store_status redis_delete(struct store *store, struct store_call *call)
{
    return begin(store, call, 1, ask_delete, take_delete);
}

/* Redis's pattern for whatever begins with the full prefix. */
static size_t make_pattern(char *out, const struct work *work)
{
    char prefix[FULL_KEY_MAX];
    size_t length = full_key(prefix, work), used = 0;
    for (size_t i = 0; i < length; i++) {
        if (prefix[i] != '\0' && strchr("*?[]\\", prefix[i]) != NULL)
            out[used++] = '\\';
        out[used++] = prefix[i];
    }
    out[used++] = '*';
    return used;
}

static bool ask_scan(struct redis_op *op)
{
    struct work *work = work_of(op);
    char pattern[2 * FULL_KEY_MAX + 1], count[16];
    const char *words[] = {"SCAN", work->cursor, "MATCH", pattern, "COUNT", count};
    size_t lengths[6] = {4, strlen(work->cursor), 5, make_pattern(pattern, work), 5};
    lengths[5] = (size_t)sprintf(count, "%d", SCAN_COUNT);
    redis_op_command(op, 6, words, lengths);
    return true;
}

static bool is_scan(const redisReply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING ||
        reply->element[1]->type != REDIS_REPLY_ARRAY)
        return false;
    const redisReply *keys = reply->element[1];
    for (size_t i = 0; i < keys->elements; i++) {
        if (keys->element[i]->type != REDIS_REPLY_STRING)
            return false;
    }
    return true;
}

/* Takes cursor and keys out of SCAN's answer; false where it is none. */
static bool read_scan(struct work *work, redisReply *reply)
{
    if (!is_scan(reply) || reply->element[0]->len >= sizeof(work->cursor))
        return false;
    memcpy(work->cursor, reply->element[0]->str, reply->element[0]->len + 1);
    freeReplyObject(work->keys);
    work->keys = reply->element[1];
    reply->element[1] = NULL;
    return true;
}

/* Whether another round of SCAN is due: not all was seen, and there is time. */
static bool scan_goes_on(const struct work *work)
{
    return strcmp(work->cursor, "0") != 0 && clock_now() < work->ends;
}

static void take_clear(struct redis_op *op, redisReply *reply);

static void clear_on(struct redis_op *op)
{
    struct work *work = work_of(op);
    if (scan_goes_on(work))
        redis_op_again(op, ask_scan, take_clear);
    else if (strcmp(work->cursor, "0") == 0)
        redis_op_finish(op, STORE_OK);
    else
        redis_op_finish(op, store_fail(op->call, ERROR_TIMEOUT,
                                       "%" PRIu64 " entries removed in time, not all; ask again",
                                       op->call->entries));
}

/* UNLINK key…: what SCAN has found. */
static bool ask_unlink(struct redis_op *op)
{
    struct work *work = work_of(op);
    size_t count = work->keys->elements;
    const char **words = calloc(count + 1, sizeof(*words));
    size_t *lengths = calloc(count + 1, sizeof(*lengths));
    if (words == NULL || lengths == NULL) {
        redis_op_break(op, "out of memory");
    } else {
        words[0] = delete_verb(work);
        lengths[0] = strlen(words[0]);
        for (size_t i = 0; i < count; i++) {
            words[i + 1] = work->keys->element[i]->str;
            lengths[i + 1] = work->keys->element[i]->len;
        }
        redis_op_command(op, (int)count + 1, words, lengths);
    }
    free(words);
    free(lengths);
    return true;
}

/* SCAN may name a key twice; this counts it once. */
static void take_unlink(struct redis_op *op, redisReply *reply)
{
    if (reply->type == REDIS_REPLY_INTEGER) {
        op->call->entries += (uint64_t)reply->integer;
        clear_on(op);
    } else if (lacks_unlink(work_of(op), reply)) {
        redis_op_again(op, ask_unlink, take_unlink);
    } else {
        take_other(op, reply);
    }
}

static void take_clear(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    if (!read_scan(work, reply))
        take_other(op, reply);
    else if (work->keys->elements > 0)
        redis_op_again(op, ask_unlink, take_unlink);
    else
        clear_on(op);
}

static enum store_status redis_clear(struct store *store, struct store_call *call)
{
    call->entries = 0;
    return begin(store, call, SCAN_TIMES, ask_scan, take_clear);
}

static void take_inspect(struct redis_op *op, redisReply *reply);

/* Entries whose size was not asked for are taken to be the others' average. */
static void add_sizes(struct work *work)
{
    struct store_call *call = work->op.call;
    if (work->sampled >= call->entries)
        call->size += work->sampled_size;
    else if (work->sampled > 0)
        call->size +=
            (uint64_t)((double)work->sampled_size / (double)work->sampled * (double)call->entries);
}

static void inspect_on(struct redis_op *op)
{
    struct work *work = work_of(op);
    if (scan_goes_on(work)) {
        redis_op_again(op, ask_scan, take_inspect);
        return;
    }
    add_sizes(work);
    redis_op_finish(op, STORE_OK);
}

static bool ask_sizes(struct redis_op *op)
{
    const struct work *work = work_of(op);
    size_t count = MIN(work->keys->elements, SCAN_SAMPLES - work->sampled);
    for (size_t i = 0; i < count; i++) {
        const char *words[] = {"STRLEN", work->keys->element[i]->str};
        size_t lengths[] = {6, work->keys->element[i]->len};
        redis_op_command(op, 2, words, lengths);
    }
    return true;
}

/* What is no string, or gone by now, counts as empty. */
static void take_size(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    work->sampled++;
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer > HEADER_SIZE)
        work->sampled_size += (uint64_t)reply->integer - HEADER_SIZE;
    if (op->awaited == 0)
        inspect_on(op);
}

static void count_keys(struct work *work)
{
    struct store_call *call = work->op.call;
    call->entries += work->keys->elements;
    for (size_t i = 0; i < work->keys->elements; i++) {
        size_t length = work->keys->element[i]->len;
        call->size += length - MIN(length, work->redis->prefix_length);
    }
}

static void take_inspect(struct redis_op *op, redisReply *reply)
{
    struct work *work = work_of(op);
    if (!read_scan(work, reply)) {
        take_other(op, reply);
        return;
    }
    count_keys(work);
    if (work->keys->elements > 0 && work->sampled < SCAN_SAMPLES)
        redis_op_again(op, ask_sizes, take_size);
    else
        inspect_on(op);
}

static enum store_status redis_inspect(struct store *store, struct store_call *call)
{
    call->entries = 0;
    call->size = 0;
    call->approximate = true;
    return begin(store, call, SCAN_TIMES, ask_scan, take_inspect);
}

/* Every write that was answered is in Redis; whether on its disk as well, its settings tell. */
static bool ask_persist(struct redis_op *op)
{
    static const char *const settings[] = {"appendonly", "appendfsync"};
    for (size_t i = 0; i < 2; i++) {
        const char *words[] = {"CONFIG", "GET", settings[i]};
        size_t lengths[] = {6, 3, strlen(settings[i])};
        redis_op_command(op, 3, words, lengths);
    }
    return true;
}

/* Where CONFIG is forbidden nothing is promised. */
static void take_persist(struct redis_op *op, redisReply *reply)
{
    const char *wanted = op->awaited == 1 ? "yes" : "always";
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[1]->type != REDIS_REPLY_STRING ||
        strcmp(reply->element[1]->str, wanted) != 0)
        op->call->durable = false;
    if (op->awaited == 0)
        redis_op_finish(op, STORE_OK);
}

static enum store_status redis_persist(struct store *store, struct store_call *call)
{
    call->durable = true;
    return begin(store, call, 1, ask_persist, take_persist);
}

static bool redis_attach(struct store *store, struct loop *loop)
{
    struct redis *redis = redis_of(store);
    unsigned index = loop_index(loop);
    if (index < LOOPS_MAX)
        redis->conns[index] = redis_conn_new(&redis->server, loop);
    if (index < LOOPS_MAX && redis->conns[index] != NULL)
        return true;
    log_error("Redis: no connection for loop %u: out of memory, or more than %d loops", index,
              LOOPS_MAX);
    return false;
}

static void redis_detach(struct store *store, struct loop *loop)
{
    struct redis *redis = redis_of(store);
    unsigned index = loop_index(loop);
    if (index >= LOOPS_MAX)
        return;
    struct redis_conn *conn = redis->conns[index];
    redis->conns[index] = NULL; /* who hears that his call has failed may ask again */
    redis_conn_free(conn);
}

static void redis_close(struct store *store)
{
    struct redis *redis = redis_of(store);
    redis_server_close(&redis->server);
    free(redis);
}

static bool set_prefix(struct redis *redis, const char *prefix, char *why, size_t size)
{
    redis->prefix_length = strlen(prefix);
    if (redis->prefix_length > PREFIX_MAX) {
        snprintf(why, size, "redis-prefix has %zu bytes; at most %d are right",
                 redis->prefix_length, PREFIX_MAX);
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
    atomic_init(&redis->complained, clock_now() - COMPLAIN_MS);
    if (!set_prefix(redis, config->redis_prefix, why, size) ||
        !redis_server_open(&redis->server, config, why, size)) {
        redis_close(&redis->store);
        return NULL;
    }
    return &redis->store;
}

const struct store_ops store_redis = {
    .name = "redis",
    .title = "Redis",
    .tiered = true,
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
