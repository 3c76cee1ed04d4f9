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
    unsigned thread;        /* set before run(): which of the pool's threads, from 0 */
    bool again; /* run() may set it: not finished, it is run once more after what waits by then */
    void (*run)(struct pool_task *task);      /* on a thread of the pool */
    void (*finished)(struct pool_task *task); /* the task is the owner's again */
};

/* What a pool does around its tasks; any may be NULL. Called on the pool's threads with arg. */
struct pool_hooks {
    void *arg;
    /* Before the first and after the last of a batch of tasks that were waiting together: none is
     * finished before end() has returned. At most batch of them. */
    void (*begin)(void *arg);
    void (*end)(void *arg, struct pool_task *batch);
    unsigned batch; /* 0 or 1: no batches */
    /* Once nothing waits, or 100 ms after it was due: a small step of upkeep. Returns the
     * milliseconds until it wants to be called again, whatever comes in between; 0: at once;
     * negative: not before the next task, and then behind it. */
    int (*idle)(void *arg);
};

/* threads of them (1 to 64), named name (at most 15 bytes). NULL with errno. hooks may be NULL. */
struct pool *pool_new(const char *name, unsigned threads, const struct pool_hooks *hooks);

/* Queues the task; never blocks. Any thread. */
void pool_submit(struct pool *pool, struct pool_task *task);

/* Runs what is queued, ends the threads, frees the pool. The loops must still accept posts. NULL is
 * fine. */
void pool_free(struct pool *pool);

#endif
