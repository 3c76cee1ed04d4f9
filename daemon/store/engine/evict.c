#include "evict.h"

#include <stdlib.h>
#include <string.h>

enum {
    SAMPLES = 256,
    ATTEMPTS = 16 * SAMPLES, /* few may be in memory */
    AGES = 256,
    EPOCHS = 32,             /* that it takes to insert as many entries as there are */
    EPOCH_LEAST = 64,        /* insertions */
    FORGET_EPOCHS = 128,     /* in which the uses that were seen lose half their weight */
    FRACTION = 4,            /* of a class: steps in which a number doubles */
    POPULATION_WEIGHT = 256, /* insertions whose mean it is */
    USE_WEIGHT = 64,         /* of a use, so that it can be halved some times */
    DOUBT = 4,               /* weight of what is taken to be used at each age, unseen */
    LAST_AGE = 208,          /* what is older goes, before its age begins anew */
    NEVER_SHARE = 8,         /* one entry in so many is taken to be never used again */
    COST_BASE = 128,         /* keeps scores above 0 */
    SCORE_MAX = 1024
};

/* How many of a hundred residents score better than what goes. To copy on in memory is cheap. */
static const unsigned kept_percent[EVICT_ROOMS] = {[EVICT_MEMORY] = 92, [EVICT_DISK] = 85};

struct evict {
    const struct index *index;
    _Atomic uint64_t insertions; /* in this epoch */
    _Atomic uint64_t population; /* its running mean, times POPULATION_WEIGHT */
    _Atomic uint32_t epoch;
    _Atomic uint32_t bars[EVICT_ROOMS]; /* scores from which on an entry goes */
    _Atomic uint8_t age_score[AGES];
    _Atomic uint32_t uses[AGES]; /* weights of those that were seen, by the age before */
    pthread_mutex_t lock;        /* over what follows */
    uint64_t random;
    uint32_t halved; /* the epoch in which the uses were */
};

/*
 * Of an entry that was not used for so long, how likely is it that it will be? If of all uses a
 * share S comes at this age or later, and one entry in NEVER_SHARE is never used again, then the
 * odds are S to 1 / NEVER_SHARE. A root of the age is on top, for where no use has been seen.
 */
static void weigh_ages(struct evict *evict)
{
    uint64_t later[AGES], sum = 0;
    for (unsigned age = AGES; age-- > 0;) {
        sum += DOUBT + atomic_load_explicit(&evict->uses[age], memory_order_relaxed);
        later[age] = sum;
    }
    for (unsigned age = 0; age < AGES; age++) {
        uint64_t all = later[age] * NEVER_SHARE + sum;
        unsigned score = evict_class(all) - evict_class(later[age] * NEVER_SHARE);
        score = age < LAST_AGE ? score + evict_class(age + 1) / 2U : UINT8_MAX;
        atomic_store_explicit(&evict->age_score[age], (uint8_t)score, memory_order_relaxed);
    }
}

static void halve_uses(struct evict *evict)
{
    uint32_t epoch = atomic_load_explicit(&evict->epoch, memory_order_relaxed);
    if (epoch - evict->halved < FORGET_EPOCHS)
        return;
    evict->halved = epoch;
    for (unsigned age = 0; age < AGES; age++) {
        uint32_t weight = atomic_load_explicit(&evict->uses[age], memory_order_relaxed);
        atomic_store_explicit(&evict->uses[age], weight / 2, memory_order_relaxed);
    }
}

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
    weigh_ages(evict);
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
    uint64_t sum = atomic_load_explicit(&evict->population, memory_order_relaxed);
    sum = sum > 0 ? sum + entries - sum / POPULATION_WEIGHT : entries * POPULATION_WEIGHT;
    atomic_store_explicit(&evict->population, sum, memory_order_relaxed);
    uint64_t most = sum / (POPULATION_WEIGHT * EPOCHS);
    most = most > EPOCH_LEAST ? most : EPOCH_LEAST;
    uint64_t count = atomic_fetch_add_explicit(&evict->insertions, 1, memory_order_relaxed) + 1;
    /* Who is overtaken here has advanced the epoch a little late. */
    if (count >= most &&
        atomic_compare_exchange_strong_explicit(&evict->insertions, &count, 0, memory_order_relaxed,
                                                memory_order_relaxed))
        atomic_fetch_add_explicit(&evict->epoch, 1, memory_order_relaxed);
}

void evict_used(struct evict *evict, struct slot *slot)
{
    uint8_t epoch = evict_epoch(evict), age = (uint8_t)(epoch - slot_use(slot));
    if (age == 0)
        return;
    slot_touch(slot, epoch);
    uint32_t weight = atomic_load_explicit(&evict->uses[age], memory_order_relaxed);
    if (weight < UINT32_MAX / 2)
        atomic_store_explicit(&evict->uses[age], weight + USE_WEIGHT, memory_order_relaxed);
}

unsigned evict_score(const struct evict *evict, const struct slot_word *word, uint8_t use)
{
    uint8_t age = (uint8_t)(evict_epoch(evict) - use);
    return COST_BASE + atomic_load_explicit(&evict->age_score[age], memory_order_relaxed) +
           word->size - word->cost / 2U;
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
    halve_uses(evict);
    weigh_ages(evict);
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
    unsigned kept = seen * kept_percent[room] / 100, bar = 0;
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
