#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/container_of.h"
#include "../../daemon/loop.h"

#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, TASKS = 5000, WAIT_MS = 60000 };

struct note {
    struct loop_task task;
    int number;
    int *log;
    int *count;
    struct loop *again; /* post to it once more */
};

static void write_note(struct loop_task *task)
{
    struct note *note = container_of(task, struct note, task);
    note->log[(*note->count)++] = note->number;
    if (note->again != NULL) {
        struct loop *loop = note->again;
        note->again = NULL;
        loop_post(loop, task);
    }
}

static void step_until(struct loop *loop, const int *count, int wanted)
{
    int64_t end = clock_now() + WAIT_MS;
    while (*count < wanted && clock_now() < end)
        loop_step(loop, 50);
}

START_TEST(a_loop_knows_its_number)
{
    struct loop *loop = loop_new(7);
    ck_assert_ptr_nonnull(loop);
    ck_assert_uint_eq(loop_index(loop), 7);
    ck_assert_ptr_nonnull(loop_base(loop));
    loop_free(loop);
    loop_free(NULL);
}
END_TEST

START_TEST(tasks_run_in_the_order_of_posting)
{
    int log[100], count = 0;
    struct note notes[100];
    struct loop *loop = loop_new(0);
    for (int i = 0; i < 100; i++) {
        notes[i] = (struct note){{NULL, write_note}, i, log, &count, NULL};
        loop_post(loop, &notes[i].task);
    }
    ck_assert_int_eq(count, 0); /* never from inside */
    step_until(loop, &count, 100);
    ck_assert_int_eq(count, 100);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(log[i], i);
    loop_free(loop);
}
END_TEST

START_TEST(a_task_may_post_itself_again)
{
    int log[2], count = 0;
    struct loop *loop = loop_new(0);
    struct note note = {{NULL, write_note}, 5, log, &count, loop};
    loop_post(loop, &note.task);
    step_until(loop, &count, 2);
    ck_assert_int_eq(count, 2);
    loop_free(loop);
}
END_TEST

START_TEST(a_step_ends_without_anything_to_do)
{
    struct loop *loop = loop_new(0);
    int64_t before = clock_now();
    loop_step(loop, 30);
    int64_t took = clock_now() - before;
    ck_assert_int_ge(took, 25);
    loop_free(loop);
}
END_TEST

struct poster {
    struct loop *loop;
    atomic_int *ran;
    struct counted {
        struct loop_task task;
        atomic_int *ran;
        int *plain; /* written by the loop's thread alone */
        struct loop *stop_at_last;
    } * tasks;
};

static void count_task(struct loop_task *task)
{
    struct counted *counted = container_of(task, struct counted, task);
    ++*counted->plain;
    if (atomic_fetch_add(counted->ran, 1) + 1 == THREADS * TASKS)
        loop_stop(counted->stop_at_last);
}

static void *post_all(void *arg)
{
    struct poster *poster = arg;
    for (int i = 0; i < TASKS; i++)
        loop_post(poster->loop, &poster->tasks[i].task);
    return NULL;
}

START_TEST(many_threads_post_to_one_loop)
{
    pthread_t threads[THREADS];
    struct poster posters[THREADS];
    atomic_int ran = 0;
    int plain = 0;
    struct loop *loop = loop_new(0);
    for (int i = 0; i < THREADS; i++) {
        posters[i] = (struct poster){loop, &ran, calloc(TASKS, sizeof(struct counted))};
        for (int n = 0; n < TASKS; n++)
            posters[i].tasks[n] = (struct counted){{NULL, count_task}, &ran, &plain, loop};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, post_all, &posters[i]), 0);
    }
    loop_run(loop);
    ck_assert_int_eq(atomic_load(&ran), THREADS * TASKS);
    ck_assert_int_eq(plain, THREADS * TASKS);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        free(posters[i].tasks);
    }
    loop_free(loop);
}
END_TEST

static void *run_loop(void *arg)
{
    loop_run(arg);
    return NULL;
}

/* It must not spin while it waits: that would take a processor from the compilers. */
START_TEST(a_loop_waits_asleep_and_stops_from_another_thread)
{
    pthread_t thread;
    clockid_t clock;
    struct timespec used;
    struct loop *loop = loop_new(0);
    ck_assert_int_eq(pthread_create(&thread, NULL, run_loop, loop), 0);
    usleep(100000);
    ck_assert_int_eq(pthread_getcpuclockid(thread, &clock), 0);
    ck_assert_int_eq(clock_gettime(clock, &used), 0);
    ck_assert_int_eq(used.tv_sec, 0);
    ck_assert_int_lt(used.tv_nsec, 50000000);
    loop_stop(loop);
    pthread_join(thread, NULL);
    loop_free(loop);
}
END_TEST

START_TEST(stopped_before_it_runs_it_returns)
{
    struct loop *loop = loop_new(0);
    loop_stop(loop);
    loop_run(loop);
    loop_free(loop);
}
END_TEST

struct alarm {
    struct loop_timer timer;
    int rang;
    int64_t at;
};

static void ring(struct loop_timer *timer)
{
    struct alarm *alarm = container_of(timer, struct alarm, timer);
    alarm->rang++;
    alarm->at = clock_now();
}

static void clear_itself(struct loop_timer *timer)
{
    ring(timer);
    loop_timer_clear(timer);
}

START_TEST(a_timer_rings_once_and_not_early)
{
    struct alarm alarm = {.rang = 0};
    struct loop *loop = loop_new(0);
    int64_t before = clock_now();
    ck_assert(loop_timer_set(loop, &alarm.timer, ring, 40));
    step_until(loop, &alarm.rang, 1);
    ck_assert_int_eq(alarm.rang, 1);
    ck_assert_int_ge(alarm.at - before, 35);
    for (int i = 0; i < 3; i++)
        loop_step(loop, 30);
    ck_assert_int_eq(alarm.rang, 1);
    loop_timer_clear(&alarm.timer);
    loop_free(loop);
}
END_TEST

START_TEST(a_timer_set_again_forgets_the_earlier_time)
{
    struct alarm alarm = {.rang = 0};
    struct loop *loop = loop_new(0);
    int64_t before = clock_now();
    ck_assert(loop_timer_set(loop, &alarm.timer, ring, 1));
    ck_assert(loop_timer_set(loop, &alarm.timer, ring, 80));
    step_until(loop, &alarm.rang, 1);
    ck_assert_int_eq(alarm.rang, 1);
    ck_assert_int_ge(alarm.at - before, 75);
    loop_timer_clear(&alarm.timer);
    loop_free(loop);
}
END_TEST

START_TEST(a_cleared_timer_is_silent)
{
    struct alarm alarm = {.rang = 0}, never = {.rang = 0};
    struct loop *loop = loop_new(0);
    loop_timer_clear(&never.timer);
    ck_assert(loop_timer_set(loop, &alarm.timer, ring, 1));
    loop_timer_clear(&alarm.timer);
    loop_step(loop, 30);
    ck_assert_int_eq(alarm.rang, 0);
    ck_assert(loop_timer_set(loop, &alarm.timer, clear_itself, 1)); /* it can be used again */
    step_until(loop, &alarm.rang, 1);
    ck_assert_int_eq(alarm.rang, 1);
    ck_assert_ptr_null(alarm.timer.event);
    loop_free(loop);
}
END_TEST

START_TEST(a_time_in_the_past_is_now)
{
    struct alarm alarm = {.rang = 0};
    struct loop *loop = loop_new(0);
    ck_assert(loop_timer_set(loop, &alarm.timer, ring, -1000));
    step_until(loop, &alarm.rang, 1);
    ck_assert_int_eq(alarm.rang, 1);
    loop_timer_clear(&alarm.timer);
    loop_free(loop);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loop");
    TCase *tcase = suite_case(suite, "loop", 30);
    tcase_add_test(tcase, a_loop_knows_its_number);
    tcase_add_test(tcase, tasks_run_in_the_order_of_posting);
    tcase_add_test(tcase, a_task_may_post_itself_again);
    tcase_add_test(tcase, a_step_ends_without_anything_to_do);
    tcase_add_test(tcase, many_threads_post_to_one_loop);
    tcase_add_test(tcase, a_loop_waits_asleep_and_stops_from_another_thread);
    tcase_add_test(tcase, stopped_before_it_runs_it_returns);
    tcase_add_test(tcase, a_timer_rings_once_and_not_early);
    tcase_add_test(tcase, a_timer_set_again_forgets_the_earlier_time);
    tcase_add_test(tcase, a_cleared_timer_is_silent);
    tcase_add_test(tcase, a_time_in_the_past_is_now);
    return suite_run(suite);
}
