/* What is kept, on short made-up traces of builds (tests/policy): no worse than these shares of
 * what exact LRU of the same size misses. Nothing in it depends on time or chance. */
#include "../../daemon/clock.h"
#include "../policy/model.h"
#include "suite.h"

#include <string.h>

enum { SHRINK = 8, SEED = 11 };

typedef struct outcome cache_model(const struct trace *trace, uint64_t bytes);

/* Most misses and seconds, in hundredths of exact LRU's. */
struct bound {
    const char *kind;
    unsigned percent; /* of the footprint */
    unsigned misses, seconds;
};

static void check(cache_model *model, const struct bound *bounds, size_t count)
{
    clock_start();
    for (size_t i = 0; i < count; i++) {
        const struct bound *bound = &bounds[i];
        const struct trace_kind *kind = trace_kinds;
        while (strcmp(kind->name, bound->kind) != 0)
            kind++;
        struct trace *trace = trace_make(kind, SEED, SHRINK);
        uint64_t bytes = trace->footprint / 100 * bound->percent;
        struct outcome lru = model_lru(trace, bytes), ours = model(trace, bytes);
        trace_free(trace);
        ck_assert_uint_gt(lru.misses, 1000);
        double misses = 100.0 * (double)ours.misses / (double)lru.misses;
        double seconds = 100.0 * ours.seconds / lru.seconds;
        ck_assert_msg(misses <= bound->misses && seconds <= bound->seconds,
                      "%s at %u %%: %.1f %% of LRU's misses, %.1f %% of its seconds", bound->kind,
                      bound->percent, misses, seconds);
    }
}

#define CHECK(MODEL, BOUNDS) check(MODEL, BOUNDS, sizeof(BOUNDS) / sizeof((BOUNDS)[0]))

START_TEST(memory_keeps_the_right_things)
{
    static const struct bound bounds[] = {{"c", 5, 62, 70},        {"c++", 5, 50, 62},
                                          {"monorepo", 5, 86, 92}, {"site", 5, 66, 65},
                                          {"alike", 5, 105, 105},  {"alike", 20, 105, 105}};
    CHECK(model_memory, bounds);
}
END_TEST

START_TEST(the_log_keeps_the_right_things)
{
    static const struct bound bounds[] = {{"c", 5, 48, 65},        {"c++", 5, 42, 60},
                                          {"monorepo", 5, 78, 87}, {"site", 5, 55, 55},
                                          {"alike", 5, 105, 105},  {"alike", 20, 105, 105}};
    CHECK(model_log, bounds);
}
END_TEST

START_TEST(sqlite_keeps_the_right_things)
{
    static const struct bound bounds[] = {{"c", 5, 31, 48},        {"c++", 5, 30, 48},
                                          {"monorepo", 5, 58, 68}, {"site", 5, 38, 38},
                                          {"alike", 5, 105, 105},  {"alike", 20, 105, 105}};
    CHECK(model_cursor, bounds);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("policy");
    TCase *tcase = suite_case(suite, "policy", 300);
    tcase_add_test(tcase, memory_keeps_the_right_things);
    tcase_add_test(tcase, the_log_keeps_the_right_things);
    tcase_add_test(tcase, sqlite_keeps_the_right_things);
    return suite_run(suite);
}
