/*
 * The memory tier: the memory store before a slower one. To the cache it is a store like any other.
 *
 * Reads fill the memory. A PUT whose key is certainly absent (store_ops.absent) or that overwrites
 * is answered from memory and reaches the slower store in the background, in batches, at most a
 * second later; until then the value is dirty, and bounded. Every other PUT and DELETE goes to the
 * slower store and waits for its answer. PERSIST waits for all that was dirty before it.
 *
 * The changes of a key reach the slower store one after the other, in the order in which they are
 * acknowledged: each waits until the one before it has ended there. Redis, which others may change
 * too, orders them itself.
 *
 * What is dirty and can't be written stays dirty and is tried again; PERSIST then fails with the
 * reason, and once the bound is reached PUTs go to the slower store themselves and get its error.
 */
#ifndef LIARA_TIER_H
#define LIARA_TIER_H

#include "store.h"

/*
 * A tier of config->memory_size bytes before back, which it owns from here on and closes. NULL,
 * with why, where memory is short; back is the caller's then.
 */
struct store *tier_open(struct store *back, const struct config *config, char *why, size_t size);

#endif
