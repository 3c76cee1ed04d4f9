#include "pool.h"

#include "container_of.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct pool_task *first, **last; /* under lock */
    bool stopping;                   /* under lock */
    unsigned count;
    pthread_t threads[];
};

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

/* Waits for a task and takes it out of the queue. NULL: the end. */
static struct pool_task *take(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    while (pool->first == NULL && !pool->stopping)
        pthread_cond_wait(&pool->ready, &pool->lock);
    struct pool_task *task = pool->first;
    if (task != NULL)
        pool->first = task->next;
    if (pool->first == NULL)
        pool->last = &pool->first;
    pthread_mutex_unlock(&pool->lock);
    return task;
}

static void *pool_main(void *arg)
{
    struct pool *pool = arg;
    struct pool_task *task;
    while ((task = take(pool)) != NULL) {
        task->run(task);
        task->back.run = task_back;
        if (task->loop != NULL)
            loop_post(task->loop, &task->back);
        else
            task->finished(task);
    }
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
        pthread_t *thread = &pool->threads[pool->count];
        error = pthread_create(thread, NULL, pool_main, pool);
        if (error == 0)
            pthread_setname_np(*thread, name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error == 0;
}

struct pool *pool_new(const char *name, unsigned threads)
{
    struct pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
    if (pool == NULL)
        return NULL;
    pool->last = &pool->first;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->ready, NULL);
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
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->ready);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}
