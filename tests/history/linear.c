#include "linear.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 64, CONFIGS_MAX = 1 << 20, ABSENT = 0, NO_SLOT = -1 };

/* One possibility: the key's state, and which of the open steps have taken effect. */
struct config {
    uint64_t done;
    uint32_t state;
};

/* A set of configs in the order in which they came. A cell of the table counts if it has the
 * current stamp, so that emptying costs nothing. */
struct set {
    struct config *items;
    size_t count, capacity;
    struct cell {
        uint32_t stamp, index;
    } * cells;
    size_t cell_count;
    uint32_t stamp;
};

/* At the same time, what begins comes before what ends, which allows the most. */
enum event_kind { BEGIN, PERSIST, END, VANISH_END, CRASH };

struct event {
    uint64_t time;
    enum event_kind kind;
    size_t index;
};

struct search {
    const struct history *history;
    struct verdict *verdict;
    struct set now, seen, next;
    struct set kept; /* states that a crash may bring back; `done` is 0 */
    uint64_t open;   /* slots in use */
    size_t slots[SLOTS];
    uint64_t before[SLOTS]; /* open steps of the same client that go first */
    uint64_t last_persist;  /* the one that counts for the next crash */
    bool crash_ahead;
    bool lost;    /* after a violation, until no step is open */
    bool doubted; /* after a violation, until the next crash */
    uint64_t time;
};

static void set_clear(struct set *set)
{
    set->count = 0;
    set->stamp++;
}

static void set_free(struct set *set)
{
    free(set->items);
    free(set->cells);
}

static struct cell *set_cell(struct set *set, struct config config)
{
    uint64_t hash = (config.done ^ ((uint64_t)config.state << 20)) * 0x9E3779B97F4A7C15;
    size_t at = (size_t)(hash >> 32) & (set->cell_count - 1);
    while (set->cells[at].stamp == set->stamp) {
        const struct config *have = &set->items[set->cells[at].index];
        if (have->done == config.done && have->state == config.state)
            break;
        at = (at + 1) & (set->cell_count - 1);
    }
    return &set->cells[at];
}

static bool set_grow(struct set *set)
{
    size_t capacity = set->capacity == 0 ? 64 : 2 * set->capacity;
    struct config *items = realloc(set->items, capacity * sizeof(*items));
    if (items == NULL)
        return false;
    set->items = items;
    struct cell *cells = calloc(2 * capacity, sizeof(*cells));
    if (cells == NULL)
        return false;
    free(set->cells);
    set->cells = cells;
    set->capacity = capacity;
    set->cell_count = 2 * capacity;
    set->stamp = 1;
    for (size_t i = 0; i < set->count; i++)
        *set_cell(set, set->items[i]) = (struct cell){set->stamp, (uint32_t)i};
    return true;
}

static bool set_add(struct set *set, struct config config)
{
    if (set->count == set->capacity && (set->count >= CONFIGS_MAX || !set_grow(set)))
        return false;
    struct cell *cell = set_cell(set, config);
    if (cell->stamp != set->stamp) {
        *cell = (struct cell){set->stamp, (uint32_t)set->count};
        set->items[set->count++] = config;
    }
    return true;
}

static const struct expiring *expiring_find(const struct history *history, uint32_t write)
{
    for (size_t i = 0; i < history->expiring_count; i++)
        if (history->expiring[i].write == write)
            return &history->expiring[i];
    return NULL;
}

/* Whether the step is possible in this state, and which one it leaves. */
static bool apply(const struct search *search, const struct step *step, uint32_t state,
                  uint32_t *after)
{
    bool unknown = state == LINEAR_ANY;
    *after = state;
    switch (step->effect) {
    case SEES: {
        const struct expiring *end = expiring_find(search->history, step->write);
        *after = step->write;
        return (unknown || state == step->write) && (end == NULL || step->begin <= end->latest);
    }
    case SEES_ANY:
        return state != ABSENT;
    case STORES_IF_ABSENT:
        *after = step->write;
        return unknown || state == ABSENT;
    case STORES:
        *after = step->write;
        return true;
    case REMOVES:
        *after = ABSENT;
        return state != ABSENT;
    case CLEARS:
        *after = ABSENT;
        return true;
    }
    return false;
}

static bool is_enabled(const struct search *search, const struct config *config, int slot)
{
    return (config->done & ((uint64_t)1 << slot)) == 0 &&
           (search->before[slot] & search->open & ~config->done) == 0;
}

static const struct step *slot_step(const struct search *search, int slot)
{
    return &search->history->steps[search->slots[slot]];
}

/* A step that only looks can be taken as soon as it is possible: whatever can follow without it can
 * follow with it. In an unknown state it would change what is known, and is not. */
static void take_reads(const struct search *search, struct config *config)
{
    bool more = config->state != LINEAR_ANY;
    while (more) {
        more = false;
        for (uint64_t left = search->open & ~config->done; left != 0; left &= left - 1) {
            int slot = __builtin_ctzll(left);
            const struct step *step = slot_step(search, slot);
            uint32_t after;
            if (step->effect <= SEES_ANY && is_enabled(search, config, slot) &&
                apply(search, step, config->state, &after)) {
                config->done |= (uint64_t)1 << slot;
                more = true;
            }
        }
    }
}

static bool may_vanish(const struct search *search, uint32_t state)
{
    const struct history *history = search->history;
    if (state == ABSENT)
        return false;
    for (size_t i = 0; i < history->vanish_count; i++)
        if (history->vanish[i].begin <= search->time && search->time <= history->vanish[i].end)
            return true;
    const struct expiring *end = expiring_find(history, state);
    return end != NULL && end->earliest <= search->time;
}

static bool reach(struct search *search, struct config config)
{
    take_reads(search, &config);
    return set_add(&search->seen, config) &&
           (!search->crash_ahead || set_add(&search->kept, (struct config){.state = config.state}));
}

static bool reach_from(struct search *search, struct config config)
{
    bool good = true;
    for (uint64_t left = search->open & ~config.done; left != 0 && good; left &= left - 1) {
        int slot = __builtin_ctzll(left);
        struct config after = {.done = config.done | (uint64_t)1 << slot};
        if (is_enabled(search, &config, slot) &&
            apply(search, slot_step(search, slot), config.state, &after.state))
            good = reach(search, after);
    }
    if (good && may_vanish(search, config.state))
        good = reach(search, (struct config){.done = config.done, .state = ABSENT});
    return good;
}

/*
 * Leaves in `now` what is possible once the step in `slot` has ended: the configs in which it has
 * taken effect, and where `optional` those too in which it never will. With NO_SLOT everything that
 * can be reached by now.
 */
static bool advance(struct search *search, int slot, bool optional)
{
    uint64_t bit = slot == NO_SLOT ? 0 : (uint64_t)1 << slot;
    set_clear(&search->seen);
    set_clear(&search->next);
    for (size_t i = 0; i < search->now.count; i++)
        if (!reach(search, search->now.items[i]))
            return false;
    size_t given = search->seen.count;
    for (size_t i = 0; i < search->seen.count; i++) {
        struct config config = search->seen.items[i];
        bool done = (config.done & bit) != 0;
        if (!done && !reach_from(search, config))
            return false;
        if (done || slot == NO_SLOT || (optional && i < given)) {
            config.done &= ~bit;
            if (!set_add(&search->next, config))
                return false;
        }
    }
    struct set old = search->now;
    search->now = search->next;
    search->next = old;
    return true;
}

static bool begin_step(struct search *search, size_t index)
{
    const struct step *steps = search->history->steps;
    if (search->open == UINT64_MAX)
        return false;
    int slot = __builtin_ctzll(~search->open);
    search->before[slot] = 0;
    for (uint64_t left = search->open; left != 0; left &= left - 1) {
        int other = __builtin_ctzll(left);
        if (steps[search->slots[other]].client == steps[index].client)
            search->before[slot] |= (uint64_t)1 << other;
    }
    search->slots[slot] = index;
    search->open |= (uint64_t)1 << slot;
    return true;
}

static void close_slot(struct search *search, int slot)
{
    search->open &= ~((uint64_t)1 << slot);
    for (int other = 0; other < SLOTS; other++)
        search->before[other] &= ~((uint64_t)1 << slot);
}

static void add_violation(struct search *search, size_t step, const struct set *before)
{
    struct verdict *verdict = search->verdict;
    if (verdict->violation_count < LINEAR_VIOLATIONS) {
        struct violation *violation = &verdict->violations[verdict->violation_count];
        violation->step = step;
        violation->possible_count = 0;
        for (size_t i = 0; i < before->count; i++) {
            size_t at = 0;
            while (at < violation->possible_count && at < LINEAR_POSSIBLE &&
                   violation->possible[at] != before->items[i].state)
                at++;
            if (at < LINEAR_POSSIBLE && at == violation->possible_count)
                violation->possible[violation->possible_count++] = before->items[i].state;
        }
    }
    verdict->violation_count++;
}

static bool start_anew(struct search *search, uint32_t state)
{
    set_clear(&search->now);
    return set_add(&search->now, (struct config){.state = state}) &&
           set_add(&search->kept, (struct config){.state = state});
}

static bool end_step(struct search *search, size_t index)
{
    const struct step *step = &search->history->steps[index];
    int slot = 0;
    while ((search->open & ((uint64_t)1 << slot)) == 0 || search->slots[slot] != index)
        slot++;
    if (!search->lost) {
        if (!advance(search, slot, step->maybe))
            return false;
        if (search->now.count == 0) {
            /* What was possible before it is where it came from. */
            add_violation(search, index, &search->next);
            search->lost = search->doubted = true;
        }
    }
    close_slot(search, slot);
    if (search->lost && search->open == 0) {
        search->lost = false;
        return start_anew(search, LINEAR_ANY);
    }
    return true;
}

/* From here on only what is possible now, and what will be, may be there after the next crash. */
static bool persist(struct search *search)
{
    if (search->time != search->last_persist)
        return true;
    set_clear(&search->kept);
    if (search->doubted)
        return set_add(&search->kept, (struct config){.state = LINEAR_ANY});
    for (size_t i = 0; i < search->now.count; i++)
        if (!set_add(&search->kept, (struct config){.state = search->now.items[i].state}))
            return false;
    return true;
}

/* Looks up which crash is next, and which persist counts for it. */
static void look_ahead(struct search *search)
{
    const struct history *history = search->history;
    size_t crash = 0, persist = history->persist_count;
    while (crash < history->crash_count && history->crashes[crash] <= search->time)
        crash++;
    search->crash_ahead = crash < history->crash_count;
    if (!search->crash_ahead)
        return;
    while (persist > 0 && history->persists[persist - 1] >= history->crashes[crash])
        persist--;
    search->last_persist = persist > 0 ? history->persists[persist - 1] : 0;
}

static bool crash(struct search *search)
{
    if (search->lost && !start_anew(search, LINEAR_ANY))
        return false;
    search->lost = search->doubted = false;
    if (!advance(search, NO_SLOT, true))
        return false;
    set_clear(&search->now);
    for (size_t i = 0; i < search->kept.count; i++)
        if (!set_add(&search->now, search->kept.items[i]))
            return false;
    look_ahead(search);
    return true;
}

static bool take(struct search *search, const struct event *event)
{
    search->time = event->time;
    switch (event->kind) {
    case BEGIN:
        return begin_step(search, event->index);
    case PERSIST:
        return persist(search);
    case END:
        return end_step(search, event->index);
    case VANISH_END:
        return search->lost || advance(search, NO_SLOT, true);
    case CRASH:
        return crash(search);
    }
    return false;
}

static int compare_events(const void *left, const void *right)
{
    const struct event *a = left, *b = right;
    if (a->time != b->time)
        return a->time < b->time ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    return (a->index > b->index) - (a->index < b->index);
}

static struct event *list_events(const struct history *history, size_t *count)
{
    size_t most =
        2 * history->count + history->persist_count + history->crash_count + history->vanish_count;
    struct event *events = calloc(most + 1, sizeof(*events));
    size_t n = 0;
    if (events == NULL)
        return NULL;
    for (size_t i = 0; i < history->count; i++) {
        events[n++] = (struct event){history->steps[i].begin, BEGIN, i};
        events[n++] = (struct event){history->steps[i].end, END, i};
    }
    for (size_t i = 0; i < history->persist_count; i++)
        events[n++] = (struct event){history->persists[i], PERSIST, i};
    for (size_t i = 0; i < history->crash_count; i++)
        events[n++] = (struct event){history->crashes[i], CRASH, i};
    for (size_t i = 0; i < history->vanish_count; i++)
        events[n++] = (struct event){history->vanish[i].end, VANISH_END, i};
    qsort(events, n, sizeof(*events), compare_events);
    *count = n;
    return events;
}

void linear_check(const struct history *history, struct verdict *verdict)
{
    struct search search = {.history = history, .verdict = verdict};
    size_t count = 0;
    struct event *events = list_events(history, &count);
    memset(verdict, 0, sizeof(*verdict));
    look_ahead(&search);
    bool good = events != NULL && start_anew(&search, ABSENT);
    for (size_t i = 0; i < count && good; i++)
        good = take(&search, &events[i]);
    verdict->gave_up = !good;
    free(events);
    set_free(&search.now);
    set_free(&search.seen);
    set_free(&search.next);
    set_free(&search.kept);
}
