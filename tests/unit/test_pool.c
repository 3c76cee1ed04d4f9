#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/container_of.h"
#include "../../daemon/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LOOPS = 4, TASKS = 2000, WAIT_MS = 60000, LOG_SIZE = 4096 };

/* What happened, in order, a letter each; several threads write. */
struct record {
    pthread_mutex_t lock;
    char text[LOG_SIZE];
    size_t used;
};

static void record(struct record *record, char what)
{
    pthread_mutex_lock(&record->lock);
    if (record->used < LOG_SIZE - 1)
        record->text[record->used++] = what;
    pthread_mutex_unlock(&record->lock);
}

static size_t times(struct record *record, char what)
{
    size_t count = 0;
    pthread_mutex_lock(&record->lock);
    for (size_t i = 0; i < record->used; i++)
        count += record->text[i] == what;
    pthread_mutex_unlock(&record->lock);
    return count;
}

struct job {
    struct pool_task task;
    struct record *record;
    char name;
    atomic_int *gate; /* run() waits until it is not 0 */
    atomic_int started;
    int finished;
    int *all; /* how many have finished on this loop */
    pthread_t ran_on, finished_on;
};

static void run_job(struct pool_task *task)
{
    struct job *job = container_of(task, struct job, task);
    job->ran_on = pthread_self();
    atomic_store(&job->started, 1);
    for (int i = 0; job->gate != NULL && atomic_load(job->gate) == 0 && i < WAIT_MS; i++)
        usleep(1000);
    if (job->record != NULL)
        record(job->record, job->name);
}

static void job_finished(struct pool_task *task)
{
    struct job *job = container_of(task, struct job, task);
    job->finished_on = pthread_self();
    job->finished++;
    ++*job->all;
}

static void start_job(struct pool *pool, struct loop *loop, struct job *job, int *all)
{
    job->task.loop = loop;
    job->task.run = run_job;
    job->task.finished = job_finished;
    job->all = all;
    pool_submit(pool, &job->task);
}

static void step_until(struct loop *loop, const int *count, int wanted)
{
    int64_t end = clock_now() + WAIT_MS;
    while (*count < wanted && clock_now() < end)
        loop_step(loop, 50);
    ck_assert_int_ge(*count, wanted);
}

static void wait_for(atomic_int *flag)
{
    for (int i = 0; atomic_load(flag) == 0 && i < WAIT_MS; i++)
        usleep(1000);
    ck_assert_int_ne(atomic_load(flag), 0);
}

START_TEST(a_task_runs_elsewhere_and_finishes_here)
{
    int all = 0;
    struct job job = {.name = 'a'};
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 3);
    ck_assert_ptr_nonnull(pool);
    start_job(pool, loop, &job, &all);
    step_until(loop, &all, 1);
    ck_assert_int_eq(job.finished, 1);
    ck_assert(!pthread_equal(job.ran_on, pthread_self()));
    ck_assert(pthread_equal(job.finished_on, pthread_self()));
    pool_free(pool);
    pool_free(NULL);
    loop_free(loop);
}
END_TEST

START_TEST(as_many_run_at_once_as_there_are_threads)
{
    int all = 0;
    atomic_int gate = 0;
    struct job jobs[3] = {{.gate = &gate}, {.gate = &gate}, {.gate = &gate}};
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 3);
    for (int i = 0; i < 3; i++)
        start_job(pool, loop, &jobs[i], &all);
    for (int i = 0; i < 3; i++)
        wait_for(&jobs[i].started);
    atomic_store(&gate, 1);
    step_until(loop, &all, 3);
    pool_free(pool);
    loop_free(loop);
}
END_TEST

START_TEST(one_thread_keeps_the_order)
{
    int all = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct job jobs[26];
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 1);
    for (int i = 0; i < 26; i++) {
        jobs[i] = (struct job){.record = &log, .name = (char)('a' + i)};
        start_job(pool, loop, &jobs[i], &all);
    }
    step_until(loop, &all, 26);
    ck_assert_str_eq(log.text, "abcdefghijklmnopqrstuvwxyz");
    pool_free(pool);
    loop_free(loop);
}
END_TEST

START_TEST(the_end_runs_what_is_queued)
{
    int all = 0;
    atomic_int gate = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct job jobs[10];
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 2);
    for (int i = 0; i < 10; i++) {
        jobs[i] = (struct job){.record = &log, .name = 'x', .gate = &gate};
        start_job(pool, loop, &jobs[i], &all);
    }
    atomic_store(&gate, 1);
    pool_free(pool);
    ck_assert_uint_eq(times(&log, 'x'), 10);
    step_until(loop, &all, 10);
    loop_free(loop);
}
END_TEST

struct asker {
    struct pool *pool;
    unsigned index;
    bool ok;
};

/* A loop that keeps some tasks on their way until each has been there and back. */
static void *ask_much(void *arg)
{
    struct asker *asker = arg;
    int all = 0;
    struct loop *loop = loop_new(asker->index);
    struct job *jobs = calloc(TASKS, sizeof(*jobs));
    for (int i = 0; i < TASKS; i++) {
        start_job(asker->pool, loop, &jobs[i], &all);
        if (i % 50 == 49)
            loop_step(loop, 0);
    }
    int64_t until = clock_now() + WAIT_MS;
    while (all < TASKS && clock_now() < until)
        loop_step(loop, 50);
    asker->ok = all == TASKS;
    for (int i = 0; i < TASKS; i++)
        asker->ok &= jobs[i].finished == 1 && pthread_equal(jobs[i].finished_on, pthread_self());
    free(jobs);
    loop_free(loop);
    return NULL;
}

START_TEST(many_loops_share_a_pool)
{
    pthread_t threads[LOOPS];
    struct asker askers[LOOPS];
    struct pool *pool = pool_new("test", (unsigned)_i);
    for (unsigned i = 0; i < LOOPS; i++) {
        askers[i] = (struct asker){pool, i, false};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, ask_much, &askers[i]), 0);
    }
    for (int i = 0; i < LOOPS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert(askers[i].ok);
    }
    pool_free(pool);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pool");
    TCase *tcase = suite_case(suite, "pool", 30);
    tcase_add_test(tcase, a_task_runs_elsewhere_and_finishes_here);
    tcase_add_test(tcase, as_many_run_at_once_as_there_are_threads);
    tcase_add_test(tcase, one_thread_keeps_the_order);
    tcase_add_test(tcase, the_end_runs_what_is_queued);
    tcase_add_loop_test(tcase, many_loops_share_a_pool, 1, 5);
    return suite_run(suite);
}
