/*
 * Checks the history of one key for linearizability.
 *
 * A key is a register: absent, or the value of one write; each write has a number of its own, from
 * 1. Every step must have taken effect at one instant between its begin and its end, and the steps
 * of one client in their order, so that each saw what the ones before it had left. Beyond that
 *
 * - a crash brings back one of the states that the key had since the last persist before the crash
 *   began, or later: nothing older, nothing that never was;
 * - within a `vanish` span the value may go by itself at any time (an eviction, a value that a
 * failing disk lost). It never comes back;
 * - a value with an end may go from `earliest` on, and is not seen by a step that begins after
 *   `latest`.
 *
 * The search keeps all states that are possible after the events so far (just-in-time
 * linearization, after Lowe), for as many choices of open steps as there are. It is bounded.
 */
#ifndef LIARA_TESTS_LINEAR_H
#define LIARA_TESTS_LINEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum effect {
    SEES,             /* the value of `write`, or that there is none where that is 0 */
    SEES_ANY,         /* that there is a value */
    STORES_IF_ABSENT, /* and it was absent */
    STORES,
    REMOVES, /* and it was there */
    CLEARS,  /* whether it was there or not */
};

/* Times are in nanoseconds of one clock. */
struct step {
    uint64_t begin, end;
    uint32_t write;
    uint32_t client;
    enum effect effect;
    bool maybe; /* nobody knows whether it happened: it had no answer, or an error */
};

struct span {
    uint64_t begin, end;
};

struct expiring {
    uint32_t write;
    uint64_t earliest, latest;
};

/* Steps of one client stand in the order in which it sent them. persists holds when each PERSIST
 * began that was answered OK, crashes when each crash was over; both ascend. */
struct history {
    const struct step *steps;
    size_t count;
    const uint64_t *persists;
    size_t persist_count;
    const uint64_t *crashes;
    size_t crash_count;
    const struct span *vanish;
    size_t vanish_count;
    const struct expiring *expiring;
    size_t expiring_count;
};

enum { LINEAR_VIOLATIONS = 64, LINEAR_POSSIBLE = 8 };
#define LINEAR_ANY UINT32_MAX /* among the possible states: nothing is known */

/* The step `step` is not possible; before it, the key was in one of the states `possible` (the
 * first of possible_count). */
struct violation {
    size_t step;
    size_t possible_count;
    uint32_t possible[LINEAR_POSSIBLE];
};

/* violation_count counts all, of which the first are kept. After a violation the check goes on from
 * the next moment without an open step, or the next crash, with whatever is seen then; what the
 * next crash brings back is not judged. */
struct verdict {
    bool gave_up; /* too many open steps or states, or no memory: nothing was proved */
    size_t violation_count;
    struct violation violations[LINEAR_VIOLATIONS];
};

void linear_check(const struct history *history, struct verdict *verdict);

#endif
