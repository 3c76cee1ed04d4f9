/*
 * The memory before Redis: copies of values that GETs have read there, in the engine's arena and
 * index, within memory-size. Redis has the truth; a copy answers GET and HEAD without asking it.
 *
 * Whatever this daemon changes is never answered from an older copy. A change (PUT, DELETE, CLEAR)
 * removes the copy before it is sent, and from then until it has ended no copy of the key is made.
 * What a GET has read becomes a copy only if no change of the key has begun or ended since that GET
 * was sent. For this keys are dealt out onto stripes by their hash, and each stripe counts the
 * changes of its keys.
 *
 * Redis may still make a change whose answer was lost, so for a minute after one no copy is made in
 * its stripe. A change that comes later than that, or from another daemon, is not noticed: a copy
 * then lives until its own end, or until this daemon changes the key.
 */
#ifndef LIARA_REDIS_CACHE_H
#define LIARA_REDIS_CACHE_H

#include "../store.h"

struct redis_cache;

/* A cache of so many bytes; of 0 it never has anything. NULL, and why. */
struct redis_cache *redis_cache_new(uint64_t bytes, char *why, size_t size);
void redis_cache_free(struct redis_cache *cache);

/* Answers a GET or HEAD: STORE_OK or STORE_MISS. Any thread, as all that follow. */
enum store_status redis_cache_find(struct redis_cache *cache, struct store_call *call);

/* Before a GET is sent: a number that is to be passed to redis_cache_fill() with what it read. */
uint64_t redis_cache_generation(struct redis_cache *cache, const struct store_call *call);

/* Keeps a copy of the value, whose reference stays the caller's, unless a change came between. */
void redis_cache_fill(struct redis_cache *cache, const struct store_call *call, struct value *value,
                      uint64_t generation);

/* Around a PUT or DELETE: before it is sent, and once it has ended. lost: it was sent, and its
 * answer did not come. */
void redis_cache_begin_change(struct redis_cache *cache, struct store_call *call);
void redis_cache_end_change(struct redis_cache *cache, const struct store_call *call, bool lost);

/*
 * Around a CLEAR, as around a change of every key. redis_cache_begin_clear() may return
 * STORE_PENDING: then call->done() is called once the copies are gone, else they are gone; or
 * STORE_FAILED. In each case redis_cache_end_clear() is to follow.
 */
enum store_status redis_cache_begin_clear(struct redis_cache *cache, struct store_call *call);
void redis_cache_end_clear(struct redis_cache *cache, bool lost);

#endif
