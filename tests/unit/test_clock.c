#include "suite.h"

#include "../../daemon/clock.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

static int64_t wall_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

START_TEST(now_goes_forward)
{
    int64_t before = clock_now();
    usleep(20000);
    int64_t after = clock_now();
    ck_assert_int_ge(after - before, 19);
    ck_assert_int_lt(after - before, 5000);
}
END_TEST

START_TEST(tick_always_grows)
{
    uint64_t last = 0;
    for (int i = 0; i < 100000; i++) {
        uint64_t tick = clock_tick();
        ck_assert(tick > last);
        last = tick;
    }
}
END_TEST

static void *take_tick(void *arg)
{
    uint64_t *tick = arg;
    *tick = clock_tick();
    return NULL;
}

START_TEST(tick_follows_the_clock_across_threads)
{
    uint64_t before = clock_tick(), other;
    pthread_t thread;
    usleep(5000);
    ck_assert_int_eq(pthread_create(&thread, NULL, take_tick, &other), 0);
    pthread_join(thread, NULL);
    ck_assert_uint_gt(other, before);
    usleep(5000);
    ck_assert_uint_gt(clock_tick(), other);
}
END_TEST

START_TEST(wall_is_since_1970)
{
    int64_t wall = clock_to_wall(clock_now());
    ck_assert_int_lt(llabs(wall - wall_now()), 1000);
}
END_TEST

START_TEST(never_stays_never)
{
    ck_assert_int_eq(clock_to_wall(CLOCK_NEVER), CLOCK_NEVER);
    ck_assert_int_eq(clock_from_wall(CLOCK_NEVER, 1000), CLOCK_NEVER);
    ck_assert_int_eq(clock_from_wall(CLOCK_NEVER, CLOCK_NEVER), CLOCK_NEVER);
}
END_TEST

START_TEST(wall_and_back)
{
    int64_t expires = clock_now() + 60000;
    ck_assert_int_eq(clock_from_wall(clock_to_wall(expires), 3600000), expires);
}
END_TEST

/* The wall clock was set back by a day since the entry was stored. */
START_TEST(a_jump_back_does_not_prolong_a_life)
{
    int64_t stored = clock_to_wall(clock_now() + 60000) + 86400000;
    int64_t expires = clock_from_wall(stored, 60000);
    ck_assert_int_le(expires, clock_now() + 60000);
    ck_assert_int_gt(expires, clock_now() + 50000);
}
END_TEST

START_TEST(what_has_ended_stays_ended)
{
    int64_t stored = clock_to_wall(clock_now() - 5000);
    ck_assert_int_le(clock_from_wall(stored, 60000), clock_now());
}
END_TEST

START_TEST(absurd_numbers_do_not_overflow)
{
    int64_t now = clock_now();
    ck_assert_int_le(clock_from_wall(INT64_MAX - 1, 1000), now + 2000);
    ck_assert_int_le(clock_from_wall(INT64_MIN + INT64_MAX / 2, 1000), now);
    ck_assert_int_gt(clock_from_wall(INT64_MAX - 1, INT64_MAX - 1), now);
}
END_TEST

int main(void)
{
    clock_start();
    Suite *suite = suite_create("clock");
    TCase *tcase = suite_case(suite, "clock", 10);
    tcase_add_test(tcase, now_goes_forward);
    tcase_add_test(tcase, tick_always_grows);
    tcase_add_test(tcase, tick_follows_the_clock_across_threads);
    tcase_add_test(tcase, wall_is_since_1970);
    tcase_add_test(tcase, never_stays_never);
    tcase_add_test(tcase, wall_and_back);
    tcase_add_test(tcase, a_jump_back_does_not_prolong_a_life);
    tcase_add_test(tcase, what_has_ended_stays_ended);
    tcase_add_test(tcase, absurd_numbers_do_not_overflow);
    return suite_run(suite);
}
