/* What all clients of one check recorded, over all runs of the daemon, and what is wrong with it.
 */
#ifndef LIARA_TESTS_TRACE_H
#define LIARA_TESTS_TRACE_H

#include "client.h"
#include "linear.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TRACE_CLIENTS = 16 };

/* The records of one client, in the order in which it sent them. */
struct log {
    struct record *records;
    size_t count, capacity;
};

struct times {
    uint64_t *items;
    size_t count, capacity;
};

/* Zero is an empty one. */
struct trace {
    struct log logs[TRACE_CLIENTS];
    struct times crashes;
    struct times barriers; /* further moments from which on a crash loses nothing older */
    struct span *vanish;   /* see linear.h */
    size_t vanish_count, vanish_capacity;
};

/* Room for `more` records, which come next in the log. NULL without memory. */
struct record *log_reserve(struct log *log, size_t more);
void trace_free(struct trace *trace);

/* The daemon was killed, and was gone at this time. Requests without an answer end here. */
void trace_crash(struct trace *trace, uint64_t time);
/* From here on, what was STORED before survives a crash, as if by a PERSIST. */
void trace_barrier(struct trace *trace, uint64_t time);
/* Values may go by themselves in this span. */
void trace_vanish(struct trace *trace, struct span span);

/* What was found wrong. */
struct findings {
    size_t in_use; /* answers that don't fit, while a daemon ran */
    size_t starts; /* starts after which something was there that may not, or was not */
    size_t given_up;
};

/* Checks the histories of all keys. What `looker` sees, who looks at every key after each start, is
 * about the start. Of each kind, the first `excerpts` are printed with a part of their key's
 * history. */
struct findings trace_check(const struct trace *trace, uint32_t looker, size_t excerpts);

#endif
