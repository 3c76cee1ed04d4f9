/*
 * What all backends share, written once: sessions with their key prefix, leases, counters. The
 * cache knows keys and values, not how a client spells them and not where the backend keeps them.
 *
 * A session makes one call at a time. Each cache_* call returns its status, or STORE_PENDING, after
 * which the session's done() is called once, later, on the session's loop, never from inside the
 * call; the result stands in session->call (see store.h) and session->leased either way.
 * All functions but cache_new() and cache_free() belong to the session's loop.
 */
#ifndef LIARA_CACHE_H
#define LIARA_CACHE_H

#include "lease.h"
#include "limits.h"
#include "store/store.h"

struct cache;

/* Figures since the start, of one worker; the worker alone writes, anyone reads. */
struct cache_counters {
    _Atomic uint64_t hits, misses, stored, exists;
} __attribute__((aligned(64)));

/* How to put a value. */
struct cache_put {
    bool overwrite;
    bool has_cost;
    uint32_t cost; /* milliseconds that it took to compute */
};

struct cache_session {
    struct cache *cache;
    struct store_call call;
    struct lease_session lease;
    enum store_status (*next)(
        struct cache_session *session); /* what to do with the store's answer */
    bool asking;                        /* the store has not answered yet */
    struct value *published;            /* a PUT's value, kept for those who wait for it */
    uint32_t lease_seconds;             /* of the GET under way */
    bool leased; /* GET's result: STORE_MISS, and the session is to compute */
    void (*done)(struct cache_session *session);
    uint32_t prefix_length;
    uint8_t key[MESSAGE_KEY_MAX]; /* the prefix, then the key of the call */
};

/* store and limits stay the caller's and outlive the cache; workers: how many loops have sessions.
 * NULL where memory is short. */
struct cache *cache_new(struct store *store, const struct limits *limits, unsigned workers);

/* Every session has ended. NULL is fine. */
void cache_free(struct cache *cache);

/* room: where a GET that is answered at once may put the value (store_call.copied). It may be
 * shared by all sessions of a loop, and what is in it holds until the loop's next call. */
void cache_session_start(struct cache_session *session, struct cache *cache, struct loop *loop,
                         uint8_t room[VALUE_COPY_MAX], void (*done)(struct cache_session *session));

/*
 * The client has left: what it held is passed on, what it waited for is given up. true: the session
 * is done with. false: a call is pending; done() will still be called, and then this again.
 */
bool cache_session_end(struct cache_session *session);

/* Frees what it holds although done() has not come: its loop has ended, the store is closed. */
void cache_session_abandon(struct cache_session *session);

/* Whether the session holds a lease or waits for one. */
bool cache_session_busy(struct cache_session *session);

/* From here on the session's keys begin with these bytes; false: more than MESSAGE_KEY_MAX. */
bool cache_prefix(struct cache_session *session, const uint8_t *prefix, size_t length);

/*
 * Joins the session's prefix and the key, for the call that follows. false: together they are
 * longer than MESSAGE_KEY_MAX.
 */
bool cache_key(struct cache_session *session, const uint8_t *key, size_t length);

/* A value of length bytes for cache_key()'s key, for cache_put(). NULL with errno as value_new().
 */
struct value *cache_new_value(struct cache_session *session, uint32_t length);

/* Calls on cache_key()'s key. lease: seconds, or 0. cache_put() takes
 * the value; if the cost is not said and the key's lease is held, the time since it was granted is
 * the cost. */
enum store_status cache_get(struct cache_session *session, uint32_t lease);
enum store_status cache_head(struct cache_session *session);
enum store_status cache_put(struct cache_session *session, struct value *value,
                            const struct cache_put *how);
enum store_status cache_delete(struct cache_session *session);

/* Calls on everything under the session's prefix; cache_persist() on everything. */
enum store_status cache_clear(struct cache_session *session);
enum store_status cache_inspect(struct cache_session *session);
enum store_status cache_persist(struct cache_session *session);

/* The sum of all workers' counters; the backend's names. Any thread. */
void cache_count(struct cache *cache, struct cache_counters *sum);
const struct store_ops *cache_backend(const struct cache *cache);

#endif
