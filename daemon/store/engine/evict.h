/*
 * What is worth keeping. An entry's score says how little it is worth: the square of its age times
 * its size, divided by the root of what it cost to compute. Where a segment is emptied, what scores
 * better than most of the residents is kept, and the rest goes.
 *
 * Age counts insertions since the last use, not time: after a quiet night nothing has aged. It is
 * kept as an epoch of 8 bits, which advances once in a sixteenth of the residents' number of
 * insertions. Sizes and costs are classes of 8 bits too: four times the binary logarithm.
 */
#ifndef LIARA_ENGINE_EVICT_H
#define LIARA_ENGINE_EVICT_H

#include "index.h"

struct evict;

/* Where room is short: in memory what is there competes, on disk all entries do. */
enum evict_room { EVICT_MEMORY, EVICT_DISK, EVICT_ROOMS };

/* For the entries of this index, which outlives it. NULL: ENOMEM. */
struct evict *evict_new(const struct index *index);
void evict_free(struct evict *evict);

/* The class of a size in bytes or a cost in milliseconds; and the least number above all of that
 * class. */
uint8_t evict_class(uint64_t number);
uint64_t evict_class_limit(uint8_t size_class);

/* About the middle of the class: what is counted where the number itself is not known. */
uint64_t evict_class_middle(uint8_t size_class);

/* What an entry is taken to have cost if nobody said. */
#define EVICT_COST_UNKNOWN 100 /* milliseconds */

/* The present epoch, for what is used now. Any thread. */
uint8_t evict_epoch(const struct evict *evict);

/* One more entry was inserted into so many. Any thread. */
void evict_inserted(struct evict *evict, uint64_t entries);

/*
 * Looks at some hundred residents and sets the bar for evict_worth_keeping(): before each segment
 * that is emptied. Any thread.
 */
void evict_set_bar(struct evict *evict, enum evict_room room);

/* Whether an entry with these classes, last used at that epoch, is to be kept. Any thread. */
bool evict_worth_keeping(const struct evict *evict, enum evict_room room,
                         const struct slot_word *word, uint8_t use);

/* The score; higher goes first. Any thread. */
unsigned evict_score(const struct evict *evict, const struct slot_word *word, uint8_t use);

#endif
