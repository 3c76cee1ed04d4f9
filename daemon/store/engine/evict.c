#include "evict.h"

#include <stdlib.h>
#include <string.h>

enum {
    SAMPLES = 256,
    ATTEMPTS = 16 * SAMPLES, /* few may be in memory */
    KEPT_PERCENT = 85,       /* of the residents score better than what goes */
    EPOCHS = 16,             /* that it takes to insert as many entries as there are */
    EPOCH_LEAST = 64,        /* insertions */
    FRACTION = 4,            /* of a class: steps in which a number doubles */
    COST_BASE = 128,         /* keeps scores above 0 */
    SCORE_MAX = 1024
};

struct evict {
    const struct index *index;
    _Atomic uint64_t insertions; /* in this epoch */
    _Atomic uint32_t epoch;
    _Atomic uint32_t bars[EVICT_ROOMS]; /* scores from which on an entry goes */
    pthread_mutex_t lock;               /* over random */
    uint64_t random;
    uint8_t age_class[256]; /* twice the class of the age + 1: its square's */
};

struct evict *evict_new(const struct index *index)
{
    struct evict *evict = calloc(1, sizeof(*evict));
    if (evict == NULL)
        return NULL;
    evict->index = index;
    pthread_mutex_init(&evict->lock, NULL);
    evict->random = 0x9E3779B97F4A7C15;
    for (unsigned i = 0; i < EVICT_ROOMS; i++)
        atomic_init(&evict->bars[i], SCORE_MAX);
    for (unsigned age = 0; age < 256; age++)
        evict->age_class[age] = (uint8_t)(2 * evict_class(age + 1));
    return evict;
}

void evict_free(struct evict *evict)
{
    free(evict);
}

uint8_t evict_class(uint64_t number)
{
    if (number < FRACTION)
        return (uint8_t)number;
    unsigned log = 63 - (unsigned)__builtin_clzll(number);
    return (uint8_t)((log - 1) * FRACTION + (number >> (log - 2) & (FRACTION - 1)));
}

uint64_t evict_class_limit(uint8_t size_class)
{
    if (size_class < FRACTION)
        return (uint64_t)size_class + 1;
    unsigned log = size_class / FRACTION + 1;
    if (log >= 63)
        return UINT64_MAX;
    return (uint64_t)(FRACTION + size_class % FRACTION + 1) << (log - 2);
}

uint64_t evict_class_middle(uint8_t size_class)
{
    uint64_t limit = evict_class_limit(size_class);
    return limit <= 2 * FRACTION ? limit - 1 : limit - limit / 10;
}

uint8_t evict_epoch(const struct evict *evict)
{
    return (uint8_t)atomic_load_explicit(&evict->epoch, memory_order_relaxed);
}

void evict_inserted(struct evict *evict, uint64_t entries)
{
    uint64_t most = entries / EPOCHS > EPOCH_LEAST ? entries / EPOCHS : EPOCH_LEAST;
    uint64_t count = atomic_fetch_add_explicit(&evict->insertions, 1, memory_order_relaxed) + 1;
    /* Who is overtaken here has advanced the epoch a little late. */
    if (count >= most &&
        atomic_compare_exchange_strong_explicit(&evict->insertions, &count, 0, memory_order_relaxed,
                                                memory_order_relaxed))
        atomic_fetch_add_explicit(&evict->epoch, 1, memory_order_relaxed);
}

unsigned evict_score(const struct evict *evict, const struct slot_word *word, uint8_t use)
{
    uint8_t age = (uint8_t)(evict_epoch(evict) - use);
    return COST_BASE + evict->age_class[age] + word->size - word->cost / 2U;
}

static uint64_t next_random(struct evict *evict)
{
    evict->random ^= evict->random << 13;
    evict->random ^= evict->random >> 7;
    evict->random ^= evict->random << 17;
    return evict->random * 0x2545F4914F6CDD1D;
}

void evict_set_bar(struct evict *evict, enum evict_room room)
{
    uint16_t count[SCORE_MAX] = {0};
    unsigned seen = 0;
    pthread_mutex_lock(&evict->lock);
    for (unsigned i = 0; i < ATTEMPTS && seen < SAMPLES; i++) {
        struct slot_word word;
        uint8_t use;
        if (!index_sample(evict->index, next_random(evict), &word, &use))
            continue;
        if (room == EVICT_MEMORY && word.kind == SLOT_DISK)
            continue;
        count[evict_score(evict, &word, use)]++;
        seen++;
    }
    pthread_mutex_unlock(&evict->lock);
    unsigned kept = seen * KEPT_PERCENT / 100, bar = 0;
    for (unsigned sum = count[0]; sum <= kept && bar < SCORE_MAX - 1; sum += count[bar])
        bar++;
    atomic_store_explicit(&evict->bars[room], bar, memory_order_relaxed);
}

bool evict_worth_keeping(const struct evict *evict, enum evict_room room,
                         const struct slot_word *word, uint8_t use)
{
    return evict_score(evict, word, use) <
           atomic_load_explicit(&evict->bars[room], memory_order_relaxed);
}
