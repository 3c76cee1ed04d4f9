/*
 * One event loop and its inbox: libevent's base, and the one way in which another thread makes this
 * one do something. A worker has one, each test of a store has one.
 */
#ifndef LIARA_LOOP_H
#define LIARA_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct event_base;
struct loop;

/* Something to be done on a loop's thread. Lives in its owner's struct; queued at most once at a
 * time. */
struct loop_task {
    struct loop_task *next;
    void (*run)(struct loop_task *task);
};

/* A timer on a loop. Lives in its owner's struct; zeroed before its first use. */
struct loop_timer {
    struct event *event;
    void (*run)(struct loop_timer *timer);
};

/* A loop with a small number of its own (0, 1, 2 … among its kind). NULL with errno. */
struct loop *loop_new(unsigned index);

/* Frees it; its thread has ended and nobody posts any more. NULL is fine. */
void loop_free(struct loop *loop);

unsigned loop_index(const struct loop *loop);
struct event_base *loop_base(struct loop *loop);

/* Runs until loop_stop(). The calling thread is the loop's from here on. */
void loop_run(struct loop *loop);

/* Runs what is ready, waiting for at most milliseconds for the first; for tests. */
void loop_step(struct loop *loop, int milliseconds);

/*
 * Has loop_run() look for work for up to so many microseconds before it falls asleep, as long as
 * that has lately been worth it; 0, as at first: it never does. Before loop_run().
 */
void loop_set_busy_poll(struct loop *loop, unsigned microseconds);

/* Says that work has come from outside; what polling is judged by. The loop's own thread only. */
void loop_worked(struct loop *loop);

/* Ends loop_run() after what is being done; any thread. */
void loop_stop(struct loop *loop);

/* Has task->run(task) called on the loop's thread, in the order of posting. Any thread, this one
 * too. */
void loop_post(struct loop *loop, struct loop_task *task);

/*
 * Calls timer->run(timer) once, in milliseconds; set again, the earlier time is forgotten. false
 * with errno where memory is short. The loop's own thread only.
 */
bool loop_timer_set(struct loop *loop, struct loop_timer *timer, void (*run)(struct loop_timer *),
                    int64_t milliseconds);

/* Takes it back and frees what it holds; fine where it was never set. The loop's own thread only.
 */
void loop_timer_clear(struct loop_timer *timer);

#endif
