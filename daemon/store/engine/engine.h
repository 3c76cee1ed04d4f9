/*
 * The engine of all stores that are this daemon's alone: one index, which is the truth, and memory
 * and a disk as places that it points to. Its functions are the methods of such a store (store.h).
 *
 * Who calls what: any loop calls the methods; whatever would take long goes on in steps on the loop
 * that asked, between which others are served. A PUT that finds memory full empties a part of the
 * oldest segment in proportion to its own size, so that room is there before it runs out.
 *
 * Lock order: clean.c's lock; an appender's (arena.h); a shard's (index.h); the arena's own.
 * Nothing waits for a disk or a socket under any of them.
 */
#ifndef LIARA_ENGINE_H
#define LIARA_ENGINE_H

#include "../store.h"

/* An engine without a disk: its entries are in memory, within config->max_size. NULL, and why. */
struct store *engine_open_memory(const struct config *config, char *why, size_t size);

/* One with a disk: config->memory_size bytes of memory, the index among them, and config->max_size
 * on disk. NULL, and why. */
struct backing_ops;
struct store *engine_open_disk(const struct config *config, const struct backing_ops *ops,
                               char *why, size_t size);

/*
 * An engine without a disk as a cache of so many bytes before a store whose data is elsewhere. Of
 * the functions below engine_close(), _get(), _head(), _delete() and _clear() serve; none but the
 * last returns STORE_PENDING. NULL, and why.
 */
struct store *engine_open_cache(uint64_t memory, char *why, size_t size);

/* Puts a copy of a value that was read for the call into such a cache, unless its key has one, or
 * there is no room. The reference stays the caller's. */
void engine_fill(struct store *store, const struct store_call *call, struct value *value);

void engine_close(struct store *store);

void engine_set_max_size(struct store *store, uint64_t bytes);

enum store_status engine_get(struct store *store, struct store_call *call);
enum store_status engine_head(struct store *store, struct store_call *call);
enum store_status engine_put(struct store *store, struct store_call *call);
enum store_status engine_delete(struct store *store, struct store_call *call);
enum store_status engine_clear(struct store *store, struct store_call *call);
enum store_status engine_inspect(struct store *store, struct store_call *call);
enum store_status engine_persist(struct store *store, struct store_call *call);

#endif
