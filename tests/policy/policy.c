/*
 * policy: what is kept, measured on made-up traces of builds (trace.h) against exact LRU of the
 * same size: misses beyond each object's first, and the seconds that it takes to compute these
 * again. Both are shares of LRU's; for the log the third figure is bytes written to bytes put.
 *
 *     policy [KIND | SEED]...    a row for each kind of trace (all), seed (1) and size
 */
#include "../../daemon/clock.h"
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* No share can be told of what hardly happens. */
enum { FEW_MISSES = 100 };

static void compare(const char *name, struct outcome ours, struct outcome lru)
{
    if (lru.misses < FEW_MISSES) {
        printf("  %s %6llu more", name, (unsigned long long)(ours.misses - lru.misses));
        return;
    }
    printf("  %s %5.2f %5.2f", name, (double)ours.misses / (double)lru.misses,
           ours.seconds / lru.seconds);
    if (ours.written > 1)
        printf(" %4.2f", ours.written);
}

static void measure(const struct trace *trace, uint64_t seed, unsigned percent)
{
    uint64_t bytes = trace->footprint / 100 * percent;
    struct outcome lru = model_lru(trace, bytes);
    printf("%-8s %3llu %3u %% %5.2f builds %7.1f MB  lru %7llu %9.0f s", trace->kind->name,
           (unsigned long long)seed, percent, (double)bytes / (double)trace->build,
           (double)bytes / 1e6, (unsigned long long)lru.misses, lru.seconds);
    compare("memory", model_memory(trace, bytes), lru);
    compare("log", model_log(trace, bytes), lru);
    compare("cursor", model_cursor(trace, bytes), lru);
    printf("\n");
    fflush(stdout);
}

static void measure_seed(const struct trace_kind *kind, uint64_t seed)
{
    static const unsigned percents[] = {1, 5, 20};
    struct trace *trace = trace_make(kind, seed, 1);
    for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++)
        measure(trace, seed, percents[i]);
    trace_free(trace);
}

static const struct trace_kind *find_kind(const char *name)
{
    const struct trace_kind *kind = trace_kinds;
    while (kind->name != NULL && strcmp(kind->name, name) != 0)
        kind++;
    return kind->name != NULL ? kind : NULL;
}

/* Whether the words name the kind, or name none at all. */
static bool wanted(const struct trace_kind *kind, char **words)
{
    bool any = false;
    for (; *words != NULL; words++) {
        if (find_kind(*words) == kind)
            return true;
        any = any || find_kind(*words) != NULL;
    }
    return !any;
}

int main(int argc, char **argv)
{
    (void)argc;
    clock_start();
    for (const struct trace_kind *kind = trace_kinds; kind->name != NULL; kind++) {
        bool any = false;
        if (!wanted(kind, argv + 1))
            continue;
        printf("# %s: %s\n", kind->name, kind->text);
        for (char **word = argv + 1; *word != NULL; word++) {
            if (find_kind(*word) != NULL)
                continue;
            any = true;
            measure_seed(kind, strtoull(*word, NULL, 10));
        }
        if (!any)
            measure_seed(kind, 1);
    }
    return 0;
}
