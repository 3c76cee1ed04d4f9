/*
 * When the client's wait is polled and when not, on a socket whose other end is at hand and by a
 * clock of the test's own.
 */
#include "../../client/busy.h"
#include "../../client/liara_cache.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { BUDGET = LIARA_CACHE_BUSY_POLL_MAX };

static struct busy busy;
static int ends[2];

/* The clock that busy.c reads: each look at it takes so many microseconds. */
static int64_t microseconds, a_look_takes;

int clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    microseconds += a_look_takes;
    *now = (struct timespec){.tv_sec = microseconds / 1000000,
                             .tv_nsec = microseconds % 1000000 * 1000};
    return 0;
}

static void setup(void)
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    busy_init(&busy, BUDGET);
    microseconds = 1000000;
    a_look_takes = 10;
}

static void teardown(void)
{
    close(ends[0]);
    close(ends[1]);
}

static ssize_t receive(void)
{
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return busy_receive(&busy, ends[0], &message);
}

static void send_byte(void)
{
    ck_assert_int_eq(send(ends[1], "x", 1, 0), 1);
}

/* A wait that ended asleep, sooner than a poll would have given up. */
static void sleep_shortly(void)
{
    ck_assert_int_lt(receive(), 0);
    ck_assert_int_eq(errno, EAGAIN);
    busy_judge(&busy);
}

/* As far as it has to be polled, and no poll was in vain. */
static void learn(void)
{
    while (busy.trust < 8)
        sleep_shortly();
}

static void learn_all(void)
{
    learn();
    while (busy.trust < 16) {
        send_byte();
        ck_assert_int_eq(receive(), 1);
    }
}

START_TEST(nothing_is_polled_before_it_has_paid)
{
    send_byte();
    ck_assert_int_lt(receive(), 0);
    ck_assert_int_eq(errno, EAGAIN);
    ck_assert(!busy.polled);
}
END_TEST

START_TEST(short_waits_are_polled_after_some)
{
    learn();
    send_byte();
    ck_assert_int_eq(receive(), 1);
    ck_assert_uint_eq(busy.trust, 9);
}
END_TEST

START_TEST(end_of_the_connection_is_seen)
{
    learn();
    close(ends[1]);
    ends[1] = -1;
    ck_assert_int_eq(receive(), 0);
}
END_TEST

START_TEST(two_polls_in_vain_are_the_last)
{
    learn_all();
    for (int i = 0; i < 2; i++) {
        ck_assert_uint_eq(busy.trust, 16 - 8 * (unsigned)i);
        ck_assert_int_lt(receive(), 0);
        ck_assert_int_eq(errno, EAGAIN);
        busy_judge(&busy);
    }
    ck_assert_uint_eq(busy.trust, 0);
    ck_assert_int_lt(receive(), 0);
    ck_assert(!busy.polled);
}
END_TEST

START_TEST(poll_in_vain_takes_its_budget)
{
    learn();
    int64_t begun = microseconds;
    ck_assert_int_lt(receive(), 0);
    ck_assert(busy.polled);
    ck_assert_int_ge(microseconds - begun, BUDGET);
    ck_assert_int_le(microseconds - begun, BUDGET + 2 * a_look_takes);
}
END_TEST

/* Others want the processor: who yields to them is late. */
START_TEST(a_yield_that_takes_long_is_followed_by_a_pause)
{
    unsigned first = busy.pause;
    learn_all();
    a_look_takes = 100;
    int64_t begun = microseconds;
    ck_assert_int_lt(receive(), 0);
    ck_assert_int_le(microseconds - begun, 2 * a_look_takes);
    ck_assert_uint_eq(busy.trust, 0);
    ck_assert_int_ge(busy.resume, begun + first);
    ck_assert_uint_eq(busy.pause, 2 * first);
}
END_TEST

START_TEST(long_waits_lose_trust_faster_than_short_ones_gain_it)
{
    for (int i = 0; i < 7; i++)
        sleep_shortly();
    ck_assert_int_lt(receive(), 0);
    microseconds += 3 * BUDGET;
    busy_judge(&busy);
    ck_assert_uint_eq(busy.trust, 0);
}
END_TEST

/* What a processor that others want leaves behind. */
START_TEST(nothing_is_polled_during_a_pause)
{
    learn_all();
    busy.resume = INT64_MAX;
    send_byte();
    ck_assert_int_lt(receive(), 0);
    ck_assert(!busy.polled);
    busy.resume = 0;
    ck_assert_int_eq(receive(), 1);
}
END_TEST

START_TEST(long_pauses_are_forgotten_with_what_pays)
{
    unsigned first = busy.pause;
    learn_all();
    busy.pause = 64 * first;
    for (int i = 0; i < 400; i++) {
        send_byte();
        ck_assert_int_eq(receive(), 1);
    }
    ck_assert_uint_lt(busy.pause, 2 * first);
    ck_assert_uint_ge(busy.pause, first);
}
END_TEST

START_TEST(budget_of_zero_polls_never)
{
    busy_init(&busy, 0);
    send_byte();
    for (int i = 0; i < 32; i++)
        sleep_shortly();
    ck_assert_uint_eq(busy.trust, 0);
}
END_TEST

START_TEST(budget_has_a_bound)
{
    busy_init(&busy, UINT32_MAX);
    ck_assert_uint_eq(busy.budget, LIARA_CACHE_BUSY_POLL_MAX);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("busy");
    TCase *tests = tcase_create("waits");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, nothing_is_polled_before_it_has_paid);
    tcase_add_test(tests, short_waits_are_polled_after_some);
    tcase_add_test(tests, end_of_the_connection_is_seen);
    tcase_add_test(tests, two_polls_in_vain_are_the_last);
    tcase_add_test(tests, poll_in_vain_takes_its_budget);
    tcase_add_test(tests, a_yield_that_takes_long_is_followed_by_a_pause);
    tcase_add_test(tests, long_waits_lose_trust_faster_than_short_ones_gain_it);
    tcase_add_test(tests, nothing_is_polled_during_a_pause);
    tcase_add_test(tests, long_pauses_are_forgotten_with_what_pays);
    tcase_add_test(tests, budget_of_zero_polls_never);
    tcase_add_test(tests, budget_has_a_bound);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}
