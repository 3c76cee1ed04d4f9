/*
 * Threads for what blocks. A pool is a queue of tasks and the threads that take from it; a task
 * that has run goes back to the loop that submitted it. What runs on a pool is plain sequential
 * code that knows neither the loop nor the connection.
 */
#ifndef LIARA_POOL_H
#define LIARA_POOL_H

#include "loop.h"

struct pool;

/* Lives in its owner's struct; in one queue at a time. */
struct pool_task {
    struct loop_task back;  /* the pool's, for the way home */
    struct pool_task *next; /* the pool's */
    struct loop *loop;      /* where finished() is to run; NULL: on the pool's thread */
    void (*run)(struct pool_task *task);      /* on a thread of the pool */
    void (*finished)(struct pool_task *task); /* the task is the owner's again */
};

/* threads of them (1 to 64), named name (at most 15 bytes). NULL with errno. */
struct pool *pool_new(const char *name, unsigned threads);

/* Queues the task; never blocks. Any thread. */
void pool_submit(struct pool *pool, struct pool_task *task);

/* Runs what is queued, ends the threads, frees the pool. The loops must still accept posts. NULL is
 * fine. */
void pool_free(struct pool *pool);

#endif
