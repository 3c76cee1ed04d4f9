/*
 * Makes room: empties the oldest segment or large entry, a step at a time. What is worth keeping is
 * copied on, the rest is evicted.
 */
#ifndef LIARA_ENGINE_CLEAN_H
#define LIARA_ENGINE_CLEAN_H

#include "entries.h"

struct cleaner {
    struct entries *entries;
    pthread_mutex_t lock;    /* over all that follows */
    struct arena_unit *unit; /* that is being emptied, or NULL */
    uint32_t offset;         /* in it */
    uint64_t credit;         /* bytes that may be copied on */
    unsigned until_bar;      /* units until the bar of what is kept is set again */
};

/* entries is the caller's and outlives the cleaner. */
void cleaner_init(struct cleaner *cleaner, struct entries *entries);
/* Ends it; a segment that it has begun goes back to the arena. */
void cleaner_end(struct cleaner *cleaner);

/*
 * Looks at entries of about so many bytes, but at 64 of them at most. false: there is nothing to
 * empty, or another thread is at it. No lock is held. Any thread.
 */
bool cleaner_step(struct cleaner *cleaner, uint64_t bytes);

#endif
