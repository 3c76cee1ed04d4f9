#include "pool.h"

#include "container_of.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* Upkeep that is due waits for a pause, but under unbroken load no longer than this. */
enum { POOL_UPKEEP_PATIENCE_MS = 100 };

struct pool_thread {
    struct pool *pool;
    unsigned index;
    pthread_t id;
};

struct pool {
    struct pool_hooks hooks;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct pool_task *first, **last; /* under lock */
    bool stopping;                   /* under lock */
    unsigned count;
    struct pool_thread threads[];
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until there is work, an end, or due has come. The lock is held. */
static void wait_for_work(struct pool *pool, int64_t due)
{
    while (pool->first == NULL && !pool->stopping) {
        if (due == INT64_MAX) {
            pthread_cond_wait(&pool->ready, &pool->lock);
            continue;
        }
        struct timespec until = {.tv_sec = due / 1000, .tv_nsec = due % 1000 * 1000000};
        if (pthread_cond_timedwait(&pool->ready, &pool->lock, &until) == ETIMEDOUT)
            return;
    }
}

/* Takes the tasks of one batch off the queue, chained by next. The lock is held. */
static struct pool_task *take_batch(struct pool *pool)
{
    struct pool_task *batch = pool->first, *end = batch;
    if (batch == NULL)
        return NULL;
    for (unsigned n = 1; n < pool->hooks.batch && end->next != NULL; n++)
        end = end->next;
    pool->first = end->next;
    if (pool->first == NULL)
        pool->last = &pool->first;
    end->next = NULL;
    return batch;
}

void pool_submit(struct pool *pool, struct pool_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&pool->lock);
    *pool->last = task;
    pool->last = &task->next;
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_signal(&pool->ready);
}

static void task_back(struct loop_task *back)
{
    struct pool_task *task = container_of(back, struct pool_task, back);
    task->finished(task);
}

static void run_batch(struct pool *pool, unsigned thread, struct pool_task *batch)
{
    if (pool->hooks.begin != NULL)
        pool->hooks.begin(pool->hooks.arg);
    for (struct pool_task *task = batch; task != NULL; task = task->next) {
        task->thread = thread;
        task->again = false;
        task->run(task);
    }
    if (pool->hooks.end != NULL)
        pool->hooks.end(pool->hooks.arg, batch);
    for (struct pool_task *task = batch, *next; task != NULL; task = next) {
        next = task->next; /* once posted, the task may be gone */
        if (task->again) {
            pool_submit(pool, task);
            continue;
        }
        task->back.run = task_back;
        if (task->loop != NULL)
            loop_post(task->loop, &task->back);
        else
            task->finished(task);
    }
}

/* One step of upkeep; returns when the next is due. */
static int64_t run_idle(struct pool *pool)
{
    int wait = pool->hooks.idle(pool->hooks.arg);
    return wait < 0 ? INT64_MAX : now_ms() + wait;
}

static void *pool_main(void *arg)
{
    struct pool_thread *self = arg;
    struct pool *pool = self->pool;
    bool upkeep = self->index == 0 && pool->hooks.idle != NULL;
    int64_t due = upkeep ? now_ms() : INT64_MAX;

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        wait_for_work(pool, due);
        struct pool_task *batch = take_batch(pool);
        if (batch == NULL && pool->stopping)
            break;
        pthread_mutex_unlock(&pool->lock);
        if (batch != NULL) {
            run_batch(pool, self->index, batch);
            if (upkeep && due == INT64_MAX)
                due = now_ms();
        }
        pthread_mutex_lock(&pool->lock);
        int patience = pool->first == NULL ? 0 : POOL_UPKEEP_PATIENCE_MS;
        if (due != INT64_MAX && !pool->stopping && now_ms() >= due + patience) {
            pthread_mutex_unlock(&pool->lock);
            due = run_idle(pool);
            pthread_mutex_lock(&pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Signals are for the main thread: the pool's are started with all of them blocked. */
static bool start_threads(struct pool *pool, const char *name, unsigned threads)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (; pool->count < threads && error == 0; pool->count += error == 0) {
        struct pool_thread *thread = &pool->threads[pool->count];
        *thread = (struct pool_thread){.pool = pool, .index = pool->count};
        error = pthread_create(&thread->id, NULL, pool_main, thread);
        if (error == 0)
            pthread_setname_np(thread->id, name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error == 0;
}

struct pool *pool_new(const char *name, unsigned threads, const struct pool_hooks *hooks)
{
    struct pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
    if (pool == NULL)
        return NULL;
    if (hooks != NULL)
        pool->hooks = *hooks;
    pool->last = &pool->first;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->ready, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!start_threads(pool, name, threads)) {
        int saved = errno;
        pool_free(pool);
        errno = saved;
        return NULL;
    }
    return pool;
}

void pool_free(struct pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_broadcast(&pool->ready);
    for (unsigned i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i].id, NULL);
    pthread_cond_destroy(&pool->ready);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}
