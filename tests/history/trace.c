#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXCERPT = 14, CLOCK_SLACK = 1000000000 };

static void *grow(void *items, size_t *capacity, size_t needed, size_t size)
{
    if (needed <= *capacity)
        return items;
    size_t more = 2 * needed + 64;
    void *larger = realloc(items, more * size);
    if (larger == NULL) {
        perror("the check's own memory");
        exit(2);
    }
    *capacity = more;
    return larger;
}

struct record *log_reserve(struct log *log, size_t more)
{
    log->records = grow(log->records, &log->capacity, log->count + more, sizeof(*log->records));
    memset(log->records + log->count, 0, more * sizeof(*log->records));
    return log->records + log->count;
}

void trace_free(struct trace *trace)
{
    for (size_t i = 0; i < TRACE_CLIENTS; i++)
        free(trace->logs[i].records);
    free(trace->crashes.items);
    free(trace->barriers.items);
    free(trace->vanish);
}

static void times_add(struct times *times, uint64_t time)
{
    times->items = grow(times->items, &times->capacity, times->count + 1, sizeof(*times->items));
    times->items[times->count++] = time;
}

/* A client may read an answer after the daemon that sent it has gone, and may ask once more. */
static void end_log(struct log *log, uint64_t time)
{
    size_t first = log->count;
    while (first > 0 && (log->records[first - 1].end == 0 || log->records[first - 1].end > time))
        first--;
    while (log->count > first && log->records[log->count - 1].begin > time)
        log->count--;
    for (size_t i = first; i < log->count; i++)
        log->records[i].end = time;
}

void trace_crash(struct trace *trace, uint64_t time)
{
    for (size_t i = 0; i < TRACE_CLIENTS; i++)
        end_log(&trace->logs[i], time);
    times_add(&trace->crashes, time);
}

void trace_barrier(struct trace *trace, uint64_t time)
{
    times_add(&trace->barriers, time);
}

void trace_vanish(struct trace *trace, struct span span)
{
    trace->vanish = grow(trace->vanish, &trace->vanish_capacity, trace->vanish_count + 1,
                         sizeof(*trace->vanish));
    trace->vanish[trace->vanish_count++] = span;
}

/* The history of one key. The step i is the record records[i]. */
struct view {
    struct step *steps;
    const struct record **records;
    struct expiring *expiring;
    size_t step_count, step_capacity, record_capacity, expiring_count, expiring_capacity;
    struct times persists;
};

static bool is_about(const struct record *record, unsigned key)
{
    if (record->verb == CLEAR)
        return record->key == ALL_GROUPS || record->key == key / GROUP;
    return record->verb < CLEAR && record->key == key;
}

/* False if the record says nothing about its key. */
static bool to_step(const struct record *record, struct step *step)
{
    static const enum effect asked[] = {
        [PUT] = STORES_IF_ABSENT, [PUT_FD] = STORES_IF_ABSENT,
        [PUT_OVERWRITE] = STORES, [DELETE] = REMOVES,
        [CLEAR] = CLEARS,
    };
    bool changes = record->verb >= PUT && record->verb <= CLEAR;
    *step = (struct step){record->begin,  record->end, record->write,
                          record->client, SEES,        .maybe = false};
    switch ((enum answer)record->answer) {
    case NO_ANSWER:
    case ERROR:
        step->effect = changes ? asked[record->verb] : SEES;
        step->maybe = true;
        return changes;
    case FOUND:
        return true;
    case MISS:
        step->write = 0;
        return true;
    case EXISTS:
        step->effect = SEES_ANY;
        return true;
    case STORED:
    case DELETED:
    case OK:
        step->effect = asked[record->verb];
        return true;
    case VOLATILE:
    case WRONG:
        return false;
    }
    return false;
}

static void view_add(struct view *view, const struct record *record)
{
    struct step step;
    if (record->end == 0 || !to_step(record, &step))
        return;
    size_t count = view->step_count + 1;
    view->steps = grow(view->steps, &view->step_capacity, count, sizeof(*view->steps));
    view->records = grow(view->records, &view->record_capacity, count, sizeof(*view->records));
    view->records[view->step_count] = record;
    view->steps[view->step_count++] = step;
    if (record->ttl == 0)
        return;
    uint64_t ttl = record->ttl * (uint64_t)1000000000;
    view->expiring = grow(view->expiring, &view->expiring_capacity, view->expiring_count + 1,
                          sizeof(*view->expiring));
    view->expiring[view->expiring_count++] = (struct expiring){
        record->write, record->begin + ttl - CLOCK_SLACK, record->end + ttl + CLOCK_SLACK};
}

static int compare_times(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

static void list_persists(const struct trace *trace, struct times *persists)
{
    for (size_t i = 0; i < TRACE_CLIENTS; i++)
        for (size_t j = 0; j < trace->logs[i].count; j++)
            if (trace->logs[i].records[j].verb == PERSIST && trace->logs[i].records[j].answer == OK)
                times_add(persists, trace->logs[i].records[j].begin);
    for (size_t i = 0; i < trace->barriers.count; i++)
        times_add(persists, trace->barriers.items[i]);
    if (persists->count > 0)
        qsort(persists->items, persists->count, sizeof(uint64_t), compare_times);
}

static void print_asked(const struct record *record)
{
    static const char names[][16] = {"GET",   "GET lease", "GET fd", "HEAD",
                                     "PUT",   "PUT over",  "PUT fd", "DELETE",
                                     "CLEAR", "INSPECT",   "PERSIST"};
    char write[64] = "", ttl[16] = "";
    if (record->verb >= PUT && record->verb <= PUT_FD)
        snprintf(write, sizeof(write), " #%u of %zu", record->write, value_length(record->write));
    if (record->ttl != 0)
        snprintf(ttl, sizeof(ttl), " ttl=%u", record->ttl);
    printf("%s%s%s", names[record->verb], write, ttl);
}

static void print_record(const struct record *record, uint64_t zero, bool is_bad)
{
    static const char names[][10] = {"no answer", "found", "MISS",     "STORED", "EXISTS",
                                     "DELETED",   "OK",    "volatile", "ERROR",  "wrong"};
    printf("%s %2u  %12.6f %+10.6f  ", is_bad ? " >>" : "   ", record->client,
           (double)(int64_t)(record->begin - zero) / 1e9,
           (double)(record->end - record->begin) / 1e9);
    print_asked(record);
    printf("  %s", names[record->answer]);
    if (record->answer == FOUND)
        printf(" #%u", record->write);
    printf("\n");
}

static uint64_t first_time(const struct trace *trace)
{
    uint64_t first = UINT64_MAX;
    for (size_t i = 0; i < TRACE_CLIENTS; i++)
        if (trace->logs[i].count > 0 && trace->logs[i].records[0].begin < first)
            first = trace->logs[i].records[0].begin;
    return first;
}

static int compare_records(const void *left, const void *right)
{
    const struct record *const *a = left, *const *b = right;
    return compare_times(&(*a)->begin, &(*b)->begin);
}

/* Copies those that the excerpt shows: the last ones that began before the bad one ended, and the
 * writes that it is about. */
static size_t choose(const struct view *view, const struct violation *violation,
                     const struct record **chosen)
{
    size_t count = 0, around = 0;
    const struct record *bad = view->records[violation->step];
    const struct record **sorted = calloc(view->step_count, sizeof(struct record *));
    if (sorted == NULL)
        return 0;
    memcpy(sorted, view->records, view->step_count * sizeof(struct record *));
    qsort(sorted, view->step_count, sizeof(struct record *), compare_records);
    for (size_t i = view->step_count; i > 0; i--) {
        const struct record *one = sorted[i - 1];
        bool is_near = one->begin <= bad->end && around < EXCERPT;
        bool is_cause = one->verb >= PUT && one->verb <= PUT_FD && one->write == bad->write;
        around += is_near;
        if ((is_near || is_cause) && count < 2 * EXCERPT)
            chosen[count++] = one;
    }
    free(sorted);
    qsort(chosen, count, sizeof(struct record *), compare_records);
    return count;
}

static void print_mark(const char *what, const struct times *times, uint64_t from, uint64_t to,
                       uint64_t zero)
{
    for (size_t i = 0; i < times->count; i++)
        if (from < times->items[i] && times->items[i] <= to)
            printf("        %12.6f             -- %s\n", (double)(times->items[i] - zero) / 1e9,
                   what);
}

static void print_state(uint32_t state)
{
    if (state == LINEAR_ANY)
        printf(" anything");
    else if (state == 0)
        printf(" absent");
    else
        printf(" #%u", state);
}

static void print_violation(const struct trace *trace, const struct view *view, unsigned key,
                            const struct violation *violation)
{
    const struct record *chosen[2 * EXCERPT];
    const struct record *bad = view->records[violation->step];
    uint64_t zero = first_time(trace), last = UINT64_MAX;
    size_t count = choose(view, violation, chosen);
    printf("violation: key %s: what client %u was answered at >> can't be. Before it, possible:",
           key_name(key), bad->client);
    for (size_t i = 0; i < violation->possible_count; i++)
        print_state(violation->possible[i]);
    printf("\n    client  begins       took        asked, answered (s; #N: write N)\n");
    for (size_t i = 0; i < count; i++) {
        if (last != UINT64_MAX) {
            print_mark("a PERSIST that is answered OK", &view->persists, last, chosen[i]->begin,
                       zero);
            print_mark("killed", &trace->crashes, last, chosen[i]->begin, zero);
        }
        last = chosen[i]->begin;
        print_record(chosen[i], zero, chosen[i] == bad);
    }
}

struct checking {
    const struct trace *trace;
    struct view view;
    struct verdict verdict;
    struct findings findings;
    uint32_t looker;
    size_t excerpts;
    bool *bad_starts; /* one for each crash */
};

static size_t starts_before(const struct trace *trace, uint64_t time)
{
    size_t count = 0;
    while (count < trace->crashes.count && trace->crashes.items[count] <= time)
        count++;
    return count;
}

static void count_violation(struct checking *checking, unsigned key,
                            const struct violation *violation)
{
    const struct record *record = checking->view.records[violation->step];
    size_t start = starts_before(checking->trace, record->begin);
    bool is_start = record->client == checking->looker && start > 0;
    size_t *count = is_start ? &checking->findings.starts : &checking->findings.in_use;
    bool is_new = !is_start || !checking->bad_starts[start - 1];
    if (is_start)
        checking->bad_starts[start - 1] = true;
    *count += is_new;
    if (is_new && *count <= checking->excerpts)
        print_violation(checking->trace, &checking->view, key, violation);
}

static void check_key(struct checking *checking, unsigned key)
{
    const struct trace *trace = checking->trace;
    const struct view *view = &checking->view;
    const struct verdict *verdict = &checking->verdict;
    struct history history = {
        .steps = view->steps,
        .count = view->step_count,
        .persists = view->persists.items,
        .persist_count = view->persists.count,
        .crashes = trace->crashes.items,
        .crash_count = trace->crashes.count,
        .vanish = trace->vanish,
        .vanish_count = trace->vanish_count,
        .expiring = view->expiring,
        .expiring_count = view->expiring_count,
    };
    linear_check(&history, &checking->verdict);
    if (verdict->gave_up)
        printf("key %s: given up, too much is possible\n", key_name(key));
    checking->findings.given_up += verdict->gave_up;
    for (size_t i = 0; i < verdict->violation_count && i < LINEAR_VIOLATIONS; i++)
        count_violation(checking, key, &verdict->violations[i]);
}

static void list_steps(struct checking *checking, unsigned key)
{
    const struct trace *trace = checking->trace;
    checking->view.step_count = checking->view.expiring_count = 0;
    for (size_t i = 0; i < TRACE_CLIENTS; i++)
        for (size_t j = 0; j < trace->logs[i].count; j++)
            if (is_about(&trace->logs[i].records[j], key))
                view_add(&checking->view, &trace->logs[i].records[j]);
}

struct findings trace_check(const struct trace *trace, uint32_t looker, size_t excerpts)
{
    struct checking checking = {.trace = trace, .looker = looker, .excerpts = excerpts};
    checking.bad_starts = calloc(trace->crashes.count + 1, sizeof(bool));
    if (checking.bad_starts == NULL)
        return (struct findings){.given_up = KEYS};
    list_persists(trace, &checking.view.persists);
    for (unsigned key = 0; key < KEYS; key++) {
        list_steps(&checking, key);
        check_key(&checking, key);
    }
    free(checking.view.steps);
    free(checking.view.records);
    free(checking.view.expiring);
    free(checking.view.persists.items);
    free(checking.bad_starts);
    return checking.findings;
}
