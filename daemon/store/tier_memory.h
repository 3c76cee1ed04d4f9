/*
 * Values in memory, as the tier (tier.h) keeps them: a store that only the tier opens.
 */
#ifndef LIARA_STORE_TIER_MEMORY_H
#define LIARA_STORE_TIER_MEMORY_H

#include "store.h"

extern const struct store_ops store_tier_memory;

/*
 * Keeps the value, of which it takes a reference of its own, if room is to be had without evicting
 * many. replace: whatever else it has under the key goes in any case. Never blocks. Any thread.
 */
void memory_keep(struct store *store, struct value *value, uint64_t hash, bool replace);

/* Forgets the call's key; whether it was there. Any thread. */
bool memory_drop(struct store *store, struct store_call *call);

#endif
