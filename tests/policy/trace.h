/*
 * Traces of builds, made up: which object (a compiled file, a page) is asked for in which order,
 * how large each is and what it costs to make.
 *
 * The model. A tree has units. Each has a size (lognormal, within 1 KB and 4 MB) and a cost that
 * grows with a power of the size, times a lognormal factor (within 50 ms and 60 s). A build asks
 * for the present version of every unit, in nearly the same order each time (several compilers run
 * at once). Before each build some units change: few, chosen by a power law over the units, and
 * now and then a whole directory, as when a header changes. A changed unit is a new object of about
 * the same size and cost; the old one is dead unless a branch still has it. Branches have versions
 * of their own; the tree switches back and forth between them, and from time to time one begins
 * anew where the main branch is.
 *
 * Everything follows from the seed.
 */
#ifndef LIARA_TESTS_TRACE_H
#define LIARA_TESTS_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace_kind {
    const char *name, *text;
    uint32_t units, builds, branches;
    double size, size_spread; /* bytes: the median, and sigma of the logarithm (0: all alike) */
    double cost, cost_power, cost_spread; /* milliseconds at the median size; likewise */
    double changed;                       /* share of the units between two builds, in the mean */
    double skew;                          /* exponent of the power law; 0: all change alike often */
    double burst, burst_share; /* chance of a directory's change before a build; its share of all */
    double change_switch;      /* chance that a build is of another branch than the one before */
    double rebase;             /* chance that a branch begins anew when it is switched to */
};

struct trace_object {
    uint32_t size; /* bytes */
    uint32_t cost; /* milliseconds */
};

struct trace {
    const struct trace_kind *kind;
    struct trace_object *objects;
    uint32_t object_count;
    uint32_t *accesses; /* numbers of objects, the first time of each in the order of the numbers */
    size_t access_count;
    uint64_t footprint; /* bytes of all objects */
    uint64_t build;     /* bytes of those of the first build */
};

/* The kinds, ended by a NULL name. */
extern const struct trace_kind trace_kinds[];

/* shrink: divides the number of units, for short runs. The caller gives it to trace_free(). Ends
 * the program where memory is short. */
struct trace *trace_make(const struct trace_kind *kind, uint64_t seed, uint32_t shrink);
void trace_free(struct trace *trace);

#endif
