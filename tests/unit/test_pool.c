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

static bool recorded(struct record *record, const char *text)
{
    pthread_mutex_lock(&record->lock);
    bool is = strcmp(record->text, text) == 0;
    pthread_mutex_unlock(&record->lock);
    return is;
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
    int more; /* times that run() says "again" */
    unsigned thread;
    int finished;
    int *all; /* how many have finished on this loop */
    pthread_t ran_on, finished_on;
};

static void run_job(struct pool_task *task)
{
    struct job *job = container_of(task, struct job, task);
    job->thread = task->thread;
    job->ran_on = pthread_self();
    atomic_store(&job->started, 1);
    for (int i = 0; job->gate != NULL && atomic_load(job->gate) == 0 && i < WAIT_MS; i++)
        usleep(1000);
    if (job->record != NULL)
        record(job->record, job->name);
    task->again = job->more-- > 0;
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
    struct pool *pool = pool_new("test", 3, NULL);
    ck_assert_ptr_nonnull(pool);
    start_job(pool, loop, &job, &all);
    step_until(loop, &all, 1);
    ck_assert_int_eq(job.finished, 1);
    ck_assert(!pthread_equal(job.ran_on, pthread_self()));
    ck_assert(pthread_equal(job.finished_on, pthread_self()));
    ck_assert_uint_lt(job.thread, 3);
    pool_free(pool);
    pool_free(NULL);
    loop_free(loop);
}
END_TEST

START_TEST(threads_have_numbers_of_their_own)
{
    int all = 0;
    atomic_int gate = 0;
    struct job jobs[3] = {{.gate = &gate}, {.gate = &gate}, {.gate = &gate}};
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 3, NULL);
    for (int i = 0; i < 3; i++)
        start_job(pool, loop, &jobs[i], &all);
    for (int i = 0; i < 3; i++)
        wait_for(&jobs[i].started);
    atomic_store(&gate, 1);
    step_until(loop, &all, 3);
    ck_assert_uint_eq(jobs[0].thread + jobs[1].thread + jobs[2].thread, 0 + 1 + 2);
    ck_assert_uint_ne(jobs[0].thread, jobs[1].thread);
    ck_assert_uint_ne(jobs[1].thread, jobs[2].thread);
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
    struct pool *pool = pool_new("test", 1, NULL);
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

static void begin(void *arg)
{
    record(arg, '(');
}

static void end(void *arg, struct pool_task *batch)
{
    int tasks = 0;
    for (; batch != NULL; batch = batch->next) {
        tasks++;
        /* None is finished before end() has returned. */
        struct job *job = container_of(batch, struct job, task);
        ck_assert_int_eq(job->finished, 0);
    }
    record(arg, (char)('0' + tasks));
    record(arg, ')');
}

/* While the first task holds the thread the others gather; then they are one batch, of at most 3.
 */
START_TEST(what_waits_together_is_one_batch)
{
    int all = 0;
    atomic_int gate = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct pool_hooks hooks = {.arg = &log, .begin = begin, .end = end, .batch = 3};
    struct job jobs[6];
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 1, &hooks);
    for (int i = 0; i < 6; i++) {
        jobs[i] = (struct job){.record = &log, .name = (char)('a' + i)};
        jobs[i].gate = i == 0 ? &gate : NULL;
        start_job(pool, loop, &jobs[i], &all);
        if (i == 0)
            wait_for(&jobs[0].started);
    }
    atomic_store(&gate, 1);
    step_until(loop, &all, 6);
    ck_assert_str_eq(log.text, "(a1)(bcd3)(ef2)");
    pool_free(pool);
    loop_free(loop);
}
END_TEST

/* What is not finished lets what waits go first; the end of the pool waits for it. */
START_TEST(a_task_may_go_on_later)
{
    int all = 0;
    atomic_int gate = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct pool_hooks hooks = {.arg = &log, .begin = begin, .end = end, .batch = 2};
    struct job jobs[4];
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 1, &hooks);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){.record = &log, .name = (char)('a' + i)};
        jobs[i].gate = i == 0 ? &gate : NULL;
        jobs[i].more = i == 0 ? 2 : 0;
        start_job(pool, loop, &jobs[i], &all);
        if (i == 0)
            wait_for(&jobs[0].started);
    }
    atomic_store(&gate, 1);
    pool_free(pool);
    step_until(loop, &all, 4);
    ck_assert_str_eq(log.text, "(a1)(bc2)(da2)(a1)");
    ck_assert_int_eq(jobs[0].finished, 1);
    loop_free(loop);
}
END_TEST

struct idler {
    struct record *record;
    int waits[4]; /* what idle() returns, one after the other; the last again and again */
    atomic_int calls;
    int64_t at[64];
};

static int idle(void *arg)
{
    struct idler *idler = arg;
    int call = atomic_load(&idler->calls);
    if (call < 64)
        idler->at[call] = clock_now();
    atomic_fetch_add(&idler->calls, 1);
    record(idler->record, 'i');
    return idler->waits[call < 3 ? call : 3];
}

START_TEST(idle_comes_again_when_it_wants_to)
{
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct idler idler = {.record = &log, .waits = {0, 0, 50, -1}};
    struct pool_hooks hooks = {.arg = &idler, .idle = idle};
    struct pool *pool = pool_new("test", 1, &hooks);
    for (int i = 0; atomic_load(&idler.calls) < 4 && i < WAIT_MS; i++)
        usleep(1000);
    usleep(100000); /* a fifth call would come now */
    pool_free(pool);
    ck_assert(recorded(&log, "iiii"));
    ck_assert_int_ge(idler.at[3] - idler.at[2], 48);
}
END_TEST

START_TEST(idle_sleeps_until_the_next_task)
{
    int all = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct idler idler = {.record = &log, .waits = {-1, -1, -1, -1}};
    struct pool_hooks hooks = {.arg = &idler, .idle = idle};
    struct job job = {.record = &log, .name = 'a'};
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 1, &hooks);
    for (int i = 0; atomic_load(&idler.calls) < 1 && i < WAIT_MS; i++)
        usleep(1000);
    start_job(pool, loop, &job, &all);
    step_until(loop, &all, 1);
    for (int i = 0; atomic_load(&idler.calls) < 2 && i < WAIT_MS; i++)
        usleep(1000);
    pool_free(pool);
    loop_free(loop);
    ck_assert_str_eq(log.text, "iai");
}
END_TEST

/* Two tasks that are queued again each time they finish, until idle() has had its turns. */
struct load {
    struct job job;
    struct pool *pool;
    struct idler *idler;
    int64_t until;
};

static void submit_again(struct pool_task *task)
{
    struct job *job = container_of(task, struct job, task);
    struct load *load = container_of(job, struct load, job);
    if (atomic_load(&load->idler->calls) < 3 && clock_now() < load->until)
        pool_submit(load->pool, task);
    else
        job_finished(task);
}

/* Tasks come without a pause; upkeep that is due must not starve. */
START_TEST(idle_gets_its_turn_under_load)
{
    int all = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct idler idler = {.record = &log, .waits = {0, 0, 0, 0}};
    struct pool_hooks hooks = {.arg = &idler, .idle = idle};
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 1, &hooks);
    struct load loads[2];
    for (int i = 0; i < 2; i++) {
        loads[i] = (struct load){.pool = pool, .idler = &idler, .until = clock_now() + WAIT_MS};
        loads[i].job.all = &all;
        loads[i].job.task =
            (struct pool_task){.loop = loop, .run = run_job, .finished = submit_again};
        pool_submit(pool, &loads[i].job.task);
    }
    step_until(loop, &all, 2);
    int calls = atomic_load(&idler.calls);
    pool_free(pool);
    loop_free(loop);
    ck_assert_int_ge(calls, 3);
}
END_TEST

START_TEST(the_end_runs_what_is_queued)
{
    int all = 0;
    atomic_int gate = 0;
    struct record log = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct job jobs[10];
    struct loop *loop = loop_new(0);
    struct pool *pool = pool_new("test", 2, NULL);
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
    struct pool *pool = pool_new("test", (unsigned)_i, NULL);
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
    tcase_add_test(tcase, threads_have_numbers_of_their_own);
    tcase_add_test(tcase, one_thread_keeps_the_order);
    tcase_add_test(tcase, what_waits_together_is_one_batch);
    tcase_add_test(tcase, a_task_may_go_on_later);
    tcase_add_test(tcase, idle_comes_again_when_it_wants_to);
    tcase_add_test(tcase, idle_sleeps_until_the_next_task);
    tcase_add_test(tcase, idle_gets_its_turn_under_load);
    tcase_add_test(tcase, the_end_runs_what_is_queued);
    tcase_add_loop_test(tcase, many_loops_share_a_pool, 1, 5);
    return suite_run(suite);
}
