/*
 * What is worth keeping. An entry's score says how little it is worth: its size, divided by the
 * root of what it cost to compute, times what its age says. Where a segment is emptied, what scores
 * better than most of the residents is kept, and the rest goes.
 *
 * What an age says is learned from the entries that are used: at which ages they are used again.
 * Up to there an entry is as good as another (a build uses all of its files once; the one that was
 * used longest ago is the next to be used). Beyond, the longer the less likely is it that it will
 * ever be used again. While no use has been seen the root of the age counts.
 *
 * Age counts insertions since the last use, not time: after a quiet night nothing has aged. It is
 * kept as an epoch of 8 bits, which advances 32 times while as many entries are inserted as there
 * are. Sizes and costs are classes of 8 bits too: four times the binary logarithm.
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

/* The present epoch, for what is put now. Any thread. */
uint8_t evict_epoch(const struct evict *evict);

/* The slot's entry is used now; its shard is locked. Any thread. */
void evict_used(struct evict *evict, struct slot *slot);

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
