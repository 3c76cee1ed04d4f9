/*
 * The Redis store: values on a Redis server, which several hosts may share. Redis is the truth:
 * every PUT and DELETE waits for its answer, and whether a key is absent is decided there. What
 * GETs have read is kept in memory (cache.h). Every loop has a connection of its own (conn.h);
 * nothing here blocks.
 *
 * What Redis holds is bounded by its own maxmemory; max-size is not used. What the daemon holds is
 * bounded by memory-size, and beside that by its clients, each with one request: a value goes out
 * from where it is, and comes in slices that are copied to where it will be, between which others
 * get a turn.
 *
 * This header is what the store's own files share: redis.c (the store, PERSIST), get.c (GET, HEAD),
 * change.c (PUT, DELETE), scan.c (CLEAR, INSPECT), entry.c (an entry's bytes).
 */
#ifndef LIARA_REDIS_H
#define LIARA_REDIS_H

#include "../../container_of.h"
#include "cache.h"
#include "conn.h"

enum {
    REDIS_LOOPS_MAX = 256,
    REDIS_PREFIX_MAX = 255,
    REDIS_KEY_MAX = REDIS_PREFIX_MAX + MESSAGE_KEY_MAX,
    REDIS_HEADER_SIZE = 16
};

struct redis {
    struct store store;
    struct redis_server server;
    struct redis_cache *cache;
    size_t prefix_length;
    char prefix[REDIS_PREFIX_MAX + 1];
    int64_t expiration;
    atomic_bool no_unlink;                     /* the server is older than UNLINK */
    _Atomic int64_t complained;                /* when an entry was last complained about */
    struct redis_conn *conns[REDIS_LOOPS_MAX]; /* each its own loop's alone */
};

static inline struct redis *redis_of(const struct store_call *call)
{
    return container_of(call->store, struct redis, store);
}

/* The methods; see store.h. */
store_method redis_get, redis_head, redis_put, redis_delete, redis_clear, redis_inspect;

/* The calling loop's connection; NULL: it has none (it is detached). */
struct redis_conn *redis_conn_of(const struct redis *redis, const struct store_call *call);

/* redis_conn_start() on the loop's connection. */
bool redis_start(struct store_call *call, struct redis_op *op);

/* Ends the op with an error that the server has answered; an answer that can't be ends the
 * connection. */
void redis_op_refuse(struct redis_op *op, const struct redis_reply *reply);

/* The error of the call that the server's answer is. Returns STORE_FAILED. */
enum store_status redis_fail(struct store_call *call, const struct redis_reply *reply);

extern const char redis_nonsense[]; /* for redis_op_break(): no answer to what was asked */

/* Whether the server refused UNLINK as unknown: from now on redis_unlink() says DEL. */
const char *redis_unlink(struct redis *redis);
bool redis_lacks_unlink(struct redis *redis, const char *verb, const struct redis_reply *reply);

/* The key's name in Redis, as a word; key has REDIS_KEY_MAX bytes of room for it. */
struct redis_word redis_key(char *key, const struct store_call *call);

/*
 * An entry is one Redis string under redis-prefix and the key: a header of REDIS_HEADER_SIZE bytes
 * (a mark, the client's flags, a checksum that binds key, flags and bytes), then the value's bytes.
 * A string without the mark is somebody else's: a miss, and left alone, so that a PUT of that key
 * answers EXISTS until its owner removes it. One with the mark and a wrong checksum is damaged: a
 * miss, and deleted.
 */
void redis_header_make(char *header, const struct store_call *call, struct value *value);
bool redis_header_is_ours(const char *bytes, size_t length);
uint32_t redis_header_flags(const char *header);
uint64_t redis_header_sum(const char *header);

/* What the checksum of this key's entries begins with. */
uint64_t redis_sum_seed(const struct store_call *call, uint32_t flags);

/* One line in the log about the call's entry, and silence about others for a while. */
void redis_complain(const struct store_call *call, const char *what);

#endif
