#include "cache.h"

#include "../../clock.h"
#include "../engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STRIPES = 1024, LOST_MS = 60000 };

struct stripe {
    pthread_mutex_t lock;
    unsigned changing;   /* changes that have begun and not ended */
    uint64_t generation; /* counts changes that have ended */
    int64_t until;       /* clock_now() before which no copy is made */
} __attribute__((aligned(64)));

struct redis_cache {
    struct store *copies; /* an engine without a disk; NULL: there are none */
    struct stripe stripes[STRIPES];
};

static struct stripe *stripe_of(struct redis_cache *cache, const struct store_call *call)
{
    return &cache->stripes[call->request.hash % STRIPES];
}

struct redis_cache *redis_cache_new(uint64_t bytes, char *why, size_t size)
{
    struct redis_cache *cache = aligned_alloc(_Alignof(struct redis_cache), sizeof(*cache));
    if (cache == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    memset(cache, 0, sizeof(*cache));
    for (unsigned i = 0; i < STRIPES; i++)
        pthread_mutex_init(&cache->stripes[i].lock, NULL);
    if (bytes == 0 || (cache->copies = engine_open_cache(bytes, why, size)) != NULL)
        return cache;
    redis_cache_free(cache);
    return NULL;
}

void redis_cache_free(struct redis_cache *cache)
{
    if (cache == NULL)
        return;
    if (cache->copies != NULL)
        engine_close(cache->copies);
    for (unsigned i = 0; i < STRIPES; i++)
        pthread_mutex_destroy(&cache->stripes[i].lock);
    free(cache);
}

enum store_status redis_cache_find(struct redis_cache *cache, struct store_call *call)
{
    return cache->copies != NULL ? engine_get(cache->copies, call) : STORE_MISS;
}

uint64_t redis_cache_generation(struct redis_cache *cache, const struct store_call *call)
{
    struct stripe *stripe = stripe_of(cache, call);
    pthread_mutex_lock(&stripe->lock);
    uint64_t generation = stripe->generation;
    pthread_mutex_unlock(&stripe->lock);
    return generation;
}

void redis_cache_fill(struct redis_cache *cache, const struct store_call *call, struct value *value,
                      uint64_t generation)
{
    struct stripe *stripe = stripe_of(cache, call);
    if (cache->copies == NULL)
        return;
    pthread_mutex_lock(&stripe->lock);
    if (stripe->changing == 0 && stripe->generation == generation && clock_now() >= stripe->until)
        engine_fill(cache->copies, call, value);
    pthread_mutex_unlock(&stripe->lock);
}

static void begin(struct stripe *stripe)
{
    pthread_mutex_lock(&stripe->lock);
    stripe->changing++;
    pthread_mutex_unlock(&stripe->lock);
}

static void end(struct stripe *stripe, bool lost)
{
    pthread_mutex_lock(&stripe->lock);
    stripe->changing--;
    stripe->generation++;
    if (lost)
        stripe->until = clock_now() + LOST_MS;
    pthread_mutex_unlock(&stripe->lock);
}

void redis_cache_begin_change(struct redis_cache *cache, struct store_call *call)
{
    begin(stripe_of(cache, call));
    if (cache->copies != NULL)
        engine_delete(cache->copies, call);
}

void redis_cache_end_change(struct redis_cache *cache, const struct store_call *call, bool lost)
{
    end(stripe_of(cache, call), lost);
}

enum store_status redis_cache_begin_clear(struct redis_cache *cache, struct store_call *call)
{
    for (unsigned i = 0; i < STRIPES; i++)
        begin(&cache->stripes[i]);
    return cache->copies != NULL ? engine_clear(cache->copies, call) : STORE_OK;
}

void redis_cache_end_clear(struct redis_cache *cache, bool lost)
{
    for (unsigned i = 0; i < STRIPES; i++)
        end(&cache->stripes[i], lost);
}
