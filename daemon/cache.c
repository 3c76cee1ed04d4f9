#include "cache.h"

#include "container_of.h"

#include <stdlib.h>
#include <string.h>

struct cache {
    struct store *store;
    const struct limits *limits;
    struct leases *leases;
    unsigned workers;
    struct cache_counters counters[];
};

struct cache *cache_new(struct store *store, const struct limits *limits, unsigned workers)
{
    size_t size = sizeof(struct cache) + workers * sizeof(struct cache_counters);
    struct cache *cache = aligned_alloc(64, (size + 63) / 64 * 64);
    if (cache == NULL)
        return NULL;
    memset(cache, 0, size);
    cache->store = store;
    cache->limits = limits;
    cache->workers = workers;
    cache->leases = leases_new();
    if (cache->leases == NULL) {
        free(cache);
        return NULL;
    }
    return cache;
}

void cache_free(struct cache *cache)
{
    if (cache == NULL)
        return;
    leases_free(cache->leases);
    free(cache);
}

/* One writer a counter: no locked instruction is needed. */
static void count(_Atomic uint64_t *counter)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + 1, memory_order_relaxed);
}

static struct cache_counters *counters_of(struct cache_session *session)
{
    return &session->cache->counters[loop_index(session->call.request.loop)];
}

static void finish(struct cache_session *session, enum store_status status)
{
    session->call.result.status = status;
    session->done(session);
}

static void store_done(struct store_call *call)
{
    struct cache_session *session = container_of(call, struct cache_session, call);
    session->asking = false;
    enum store_status status = session->next(session);
    if (status != STORE_PENDING)
        finish(session, status);
}

/* Asks the store; next sees its answer in session->call, at once or once it has come. */
static enum store_status ask(struct cache_session *session, enum store_op op,
                             enum store_status (*next)(struct cache_session *))
{
    session->call.request.op = op;
    session->next = next;
    session->asking = store_submit(session->cache->store, &session->call) == STORE_PENDING;
    return session->asking ? STORE_PENDING : next(session);
}

static enum store_status as_it_is(struct cache_session *session)
{
    return session->call.result.status;
}

static enum store_status found(struct cache_session *session)
{
    count(&counters_of(session)->hits);
    return STORE_OK;
}

static enum store_status missed(struct cache_session *session, bool leased)
{
    session->leased = leased;
    count(&counters_of(session)->misses);
    return STORE_MISS;
}

/*
 * The lease is ours, and between the miss that made us ask for it and now the value may have come:
 * it is looked for once more, so that of all who missed exactly one computes.
 */
static enum store_status looked_again(struct cache_session *session)
{
    struct store_call *call = &session->call;
    if (call->result.status == STORE_MISS)
        return missed(session, true);
    if (call->result.status == STORE_OK) {
        lease_fulfil(session->cache->leases, call->request.key, call->request.key_length,
                     call->request.hash, call->result.value);
        return found(session);
    }
    lease_pass_on(session->cache->leases, call->request.key, call->request.key_length,
                  call->request.hash);
    return call->result.status;
}

static enum store_status take_lease(struct cache_session *session)
{
    struct store_call *call = &session->call;
    unsigned max = atomic_load_explicit(&session->cache->limits->max_leases, memory_order_relaxed);
    switch (lease_ask(&session->lease, call->request.key, call->request.key_length,
                      call->request.hash, session->lease_seconds, max)) {
    case LEASE_GRANTED:
        return ask(session, STORE_GET, looked_again);
    case LEASE_WAIT:
        return STORE_PENDING;
    case LEASE_REFUSED:
        break;
    }
    return store_fail(call, ERROR_BUSY, "this connection holds too many leases (max-leases %u)",
                      max);
}

static enum store_status looked(struct cache_session *session)
{
    if (session->call.result.status == STORE_OK)
        return found(session);
    if (session->call.result.status != STORE_MISS)
        return session->call.result.status;
    return session->lease_seconds > 0 ? take_lease(session) : missed(session, false);
}

static void waited(struct lease_session *lease, bool granted, struct value *value)
{
    struct cache_session *session = container_of(lease, struct cache_session, lease);
    enum store_status status;
    session->call.result.value = value;
    session->call.result.copied = false;
    session->call.result.pinned.bytes = NULL;
    if (granted)
        status = missed(session, true);
    else if (value != NULL)
        status = found(session);
    else
        status = ask(session, STORE_GET, looked);
    if (status != STORE_PENDING)
        finish(session, status);
}

void cache_session_start(struct cache_session *session, struct cache *cache, struct loop *loop,
                         uint8_t room[VALUE_COPY_MAX], void (*done)(struct cache_session *session))
{
    session->cache = cache;
    memset(&session->call, 0, sizeof(session->call));
    session->call.request.loop = loop;
    session->call.request.room = room;
    session->call.done = store_done;
    session->published = NULL;
    session->lease_seconds = 0;
    session->leased = false;
    session->asking = false;
    session->done = done;
    session->prefix_length = 0;
    lease_session_start(&session->lease, cache->leases, loop, waited);
}

bool cache_session_end(struct cache_session *session)
{
    session->lease_seconds = 0; /* a GET under way must not ask for one any more */
    return lease_session_end(&session->lease) && !session->asking;
}

void cache_session_abandon(struct cache_session *session)
{
    lease_session_end(&session->lease);
    value_unref(session->lease.value);
    value_unref(session->call.request.value);
    value_unref(session->call.result.value);
    pinned_release(&session->call.result.pinned);
    value_unref(session->published);
}

bool cache_session_busy(struct cache_session *session)
{
    return lease_busy(&session->lease);
}

bool cache_prefix(struct cache_session *session, const uint8_t *prefix, size_t length)
{
    if (length > sizeof(session->key))
        return false;
    memcpy(session->key, prefix, length);
    session->prefix_length = (uint32_t)length;
    return true;
}

bool cache_key(struct cache_session *session, const uint8_t *key, size_t length)
{
    if (length > sizeof(session->key) - session->prefix_length)
        return false;
    memcpy(session->key + session->prefix_length, key, length);
    session->call.request.key = session->key;
    session->call.request.key_length = session->prefix_length + (uint32_t)length;
    return true;
}

struct value *cache_new_value(struct cache_session *session, uint32_t length)
{
    return value_new(session->call.request.key, session->call.request.key_length, length);
}

enum store_status cache_get(struct cache_session *session, uint32_t lease)
{
    session->call.request.room_size =
        lease > 0 ? 0 : VALUE_COPY_MAX; /* who waits is handed the value itself */
    session->lease_seconds = lease;
    session->leased = false;
    return ask(session, STORE_GET, looked);
}

enum store_status cache_head(struct cache_session *session)
{
    return ask(session, STORE_HEAD, as_it_is);
}

static enum store_status was_put(struct cache_session *session)
{
    struct store_call *call = &session->call;
    struct value *published = session->published;
    session->published = NULL;
    if (call->result.status == STORE_OK) {
        count(&counters_of(session)->stored);
        lease_fulfil(session->cache->leases, call->request.key, call->request.key_length,
                     call->request.hash, published);
    } else if (call->result.status == STORE_EXISTS) {
        count(&counters_of(session)->exists);
        lease_fulfil(session->cache->leases, call->request.key, call->request.key_length,
                     call->request.hash, NULL);
    }
    value_unref(published);
    return call->result.status;
}

/* Whoever computed the key was told to do so when the lease was granted. */
static void take_cost_from_lease(struct cache_session *session)
{
    struct store_call *call = &session->call;
    struct cache *cache = session->cache;
    uint64_t hash = store_key_hash(cache->store, call->request.key, call->request.key_length);
    int64_t age = lease_age(cache->leases, call->request.key, call->request.key_length, hash);
    call->request.has_cost = age >= 0;
    if (call->request.has_cost)
        call->request.cost = age < UINT32_MAX ? (uint32_t)age : UINT32_MAX;
}

enum store_status cache_put(struct cache_session *session, struct value *value,
                            const struct cache_put *how)
{
    session->call.request.value = value;
    session->call.request.overwrite = how->overwrite;
    session->call.request.has_cost = how->has_cost;
    session->call.request.cost = how->cost;
    if (!how->has_cost && lease_any(session->cache->leases))
        take_cost_from_lease(session);
    session->published = lease_any(session->cache->leases) ? value_ref(value) : NULL;
    return ask(session, STORE_PUT, was_put);
}

static enum store_status was_deleted(struct cache_session *session)
{
    const struct store_call *call = &session->call;
    if (call->result.status != STORE_FAILED)
        lease_pass_on(session->cache->leases, call->request.key, call->request.key_length,
                      call->request.hash);
    return call->result.status;
}

enum store_status cache_delete(struct cache_session *session)
{
    return ask(session, STORE_DELETE, was_deleted);
}

static enum store_status ask_about_prefix(struct cache_session *session, enum store_op op)
{
    session->call.request.key = session->key;
    session->call.request.key_length = session->prefix_length;
    return ask(session, op, as_it_is);
}

enum store_status cache_clear(struct cache_session *session)
{
    return ask_about_prefix(session, STORE_CLEAR);
}

enum store_status cache_inspect(struct cache_session *session)
{
    return ask_about_prefix(session, STORE_INSPECT);
}

enum store_status cache_persist(struct cache_session *session)
{
    return ask_about_prefix(session, STORE_PERSIST);
}

void cache_count(struct cache *cache, struct cache_counters *sum)
{
    *sum = (struct cache_counters){0};
    for (unsigned i = 0; i < cache->workers; i++) {
        sum->hits += cache->counters[i].hits;
        sum->misses += cache->counters[i].misses;
        sum->stored += cache->counters[i].stored;
        sum->exists += cache->counters[i].exists;
    }
}

const struct store_ops *cache_backend(const struct cache *cache)
{
    return cache->store->ops;
}
