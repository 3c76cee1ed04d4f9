/*
 * Caches that a trace is played to, each with the same bound on its bytes: exact LRU, and what
 * the engine does. Of the engine, index.c and evict.c are the real ones; how memory and disk are
 * emptied is modelled (model.c), or the whole memory store is run (model_memory()).
 */
#ifndef LIARA_TESTS_MODEL_H
#define LIARA_TESTS_MODEL_H

#include "trace.h"

/* What a cache of so many bytes made of a trace; an object's first miss does not count. */
struct outcome {
    uint64_t misses;
    double seconds; /* of computing again */
    double written; /* bytes, over those of the values that were put; 0: not known */
};

/* Each entry counts so many bytes beside its value's, under every policy. */
enum { MODEL_ENTRY_BYTES = 64 };

struct outcome model_lru(const struct trace *trace, uint64_t bytes);

/* The log: segments, the oldest of which is emptied; what is worth keeping is appended again. */
struct outcome model_log(const struct trace *trace, uint64_t bytes);

/* SQLite: a cursor goes over the rows in the order in which they were put and removes what is not
 * worth keeping. */
struct outcome model_cursor(const struct trace *trace, uint64_t bytes);

/* The memory store itself. clock_start() was called. */
struct outcome model_memory(const struct trace *trace, uint64_t bytes);

#endif
