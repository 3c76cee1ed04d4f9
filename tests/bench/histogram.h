/*
 * Latencies in buckets whose width grows with the value: 64 to each power of two, so that a quoted
 * percentile is within 1.6 % of the true one, from nanoseconds to hours, at a fixed size.
 */
#ifndef LIARA_BENCH_HISTOGRAM_H
#define LIARA_BENCH_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_STEPS = 64, /* in a power of two */
    HISTOGRAM_BUCKETS = 40 * HISTOGRAM_STEPS
};

/* All zero is an empty one. */
struct histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t most;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* Adds one value. Values beyond the last bucket count there. */
void histogram_add(struct histogram *histogram, uint64_t value);

/* Adds all of other's values. */
void histogram_merge(struct histogram *histogram, const struct histogram *other);

/* The value that share (0 to 1) of all are not above; 0 where there are none. */
uint64_t histogram_at(const struct histogram *histogram, double share);

#endif
