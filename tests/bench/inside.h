/*
 * A store in this process, without a socket: one thread asks, and waits for each answer. Whatever
 * fails ends the program with a message.
 */
#ifndef LIARA_BENCH_INSIDE_H
#define LIARA_BENCH_INSIDE_H

#include "../../daemon/config.h"
#include "../../daemon/store/store.h"

#include <stdbool.h>
#include <stdint.h>

enum { INSIDE_KEY = 20 }; /* bytes of every key */

/* Opens the one store that all below is about; closes it, and what is queued is written. */
void inside_open(const char *backend, const struct config *config);
void inside_close(void);
void inside_set_max_size(uint64_t bytes);

/* Stores a value of so many bytes under the key of a number. */
void inside_put(uint64_t number, uint32_t length, bool overwrite);

/* Whether there is one. Its bytes are not looked at. */
bool inside_get(uint64_t number);

struct inside_figures {
    uint64_t entries, size;
};

/* INSPECT, CLEAR or PERSIST of everything; what INSPECT says. */
struct inside_figures inside_ask_all(enum store_op op);

/* The same sequence in each run. */
uint64_t inside_random(void);

/* This thread's CPU time, and the monotonic clock, in ns. */
double inside_cpu(void);
double inside_clock(void);

/* The process's resident set in bytes, memory that it shares with its clients included. */
double inside_resident(void);

#endif
