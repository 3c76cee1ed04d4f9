/*
 * One thread's share of the load: its connections, each of which sends a batch of requests, waits
 * for all its replies, checks them, and sends the next. At a fixed rate a batch has its time: if no
 * connection is free then, its latency counts from that time all the same. The thread shares
 * nothing with others but the phase that it reads and the counters that others may read while it
 * runs.
 */
#ifndef LIARA_BENCH_TRAFFIC_H
#define LIARA_BENCH_TRAFFIC_H

#include "histogram.h"
#include "peer.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* WARM asks without counting latencies, STOP sends nothing new and ends when all is answered. */
enum phase { PHASE_WARM, PHASE_MEASURE, PHASE_STOP };

struct traffic_plan {
    const struct peer *peer;
    const char *socket;
    const char *prefix; /* of this daemon's connections; NULL: none */
    atomic_int *phase;
    unsigned connections;
    unsigned in_flight;   /* requests in a batch */
    unsigned put_percent; /* of the requests; the others are GETs */
    bool only_absent;     /* PUTs store only what is not there */
    bool reconnect;       /* a new connection for each batch */
    bool in_sequence;     /* keys first, first + 1, ...; else drawn from all */
    uint64_t first_key, keys;
    const uint32_t *draws; /* of a skewed choice, TRAFFIC_DRAWS of them; NULL: all alike */
    uint64_t requests;     /* to send in all; 0: until STOP */
    uint64_t size;         /* of a value */
    double rate;           /* batches a second, whatever the server does; 0: each connection sends
                              as soon as its last batch is answered */
    unsigned spin_us;      /* how long to poll before going to sleep */
    uint64_t seed;
};

enum { TRAFFIC_DRAWS = 1 << 18 };

struct traffic;

/* Connects all; exits with a message where that fails. The caller frees by traffic_free(). */
struct traffic *traffic_new(const struct traffic_plan *plan);

/* Runs until STOP or until all requests are answered. On a thread of its own. */
void traffic_run(struct traffic *traffic);

/* Requests that were answered as they should be so far. Any thread. */
uint64_t traffic_answered(const struct traffic *traffic);

/* After traffic_run(): latencies in ns, misses and EXISTS among the answers, bad replies. */
struct traffic_result {
    const struct histogram *latencies;
    uint64_t misses, exists, errors;
    const char *first_error; /* NULL: none */
};
struct traffic_result traffic_result(const struct traffic *traffic);

void traffic_free(struct traffic *traffic);

/* A blocking connection to the socket; exits with a message where that fails. */
int traffic_connect(const char *socket);

/* Nanoseconds of the monotonic clock. */
uint64_t traffic_clock(void);

#endif
