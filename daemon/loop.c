#include "loop.h"

#include "log.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/*
 * How far polling is trusted: it rises with every wait that ended, or would have ended, within the
 * budget, and falls faster with every one that did not. Who yields where others want the core has
 * lost it for a time slice, some milliseconds, for which its clients wait: after that there is no
 * polling for a while, and for twice as long if it happens again soon.
 */
enum {
    TRUST_MAX = 16,
    TRUST_MIN = 4,
    TRUST_LOST = 4,
    YIELD_LONG_US = 100,
    PENALTY_FIRST_US = 10000,
    PENALTY_MAX_US = 200000
};

struct loop {
    unsigned index;
    unsigned busy_poll; /* microseconds */
    unsigned trust;
    unsigned penalty; /* microseconds, the last one */
    uint64_t barred;  /* now_us() until which there is no polling */
    bool worked;      /* since it was last cleared */
    int wake;         /* an eventfd, readable once the inbox is not empty or the loop is to stop */
    atomic_bool stopping;
    struct event_base *base;
    struct event *wake_event;
    pthread_mutex_t lock;
    struct loop_task *first, **last; /* the inbox, under lock */
};

static void wake_up(struct loop *loop)
{
    uint64_t one = 1;
    while (write(loop->wake, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static struct loop_task *take_inbox(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    struct loop_task *tasks = loop->first;
    loop->first = NULL;
    loop->last = &loop->first;
    pthread_mutex_unlock(&loop->lock);
    return tasks;
}

static void inbox_ready(evutil_socket_t fd, short what, void *arg)
{
    struct loop *loop = arg;
    uint64_t count;
    (void)what;
    loop->worked = true;
    ssize_t got = read(fd, &count, sizeof(count));
    (void)got; /* EAGAIN is all that can be: then the inbox is looked at once too often */
    for (struct loop_task *task = take_inbox(loop), *next; task != NULL; task = next) {
        next = task->next;
        task->run(task);
    }
    if (atomic_load(&loop->stopping))
        event_base_loopbreak(loop->base);
}

static bool loop_open(struct loop *loop)
{
    struct event_config *config = event_config_new();
    if (config == NULL)
        return false;
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    loop->base = event_base_new_with_config(config);
    event_config_free(config);
    loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->base == NULL || loop->wake < 0)
        return false;
    loop->wake_event = event_new(loop->base, loop->wake, EV_READ | EV_PERSIST, inbox_ready, loop);
    return loop->wake_event != NULL && event_add(loop->wake_event, NULL) == 0;
}

struct loop *loop_new(unsigned index)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL)
        return NULL;
    loop->index = index;
    loop->wake = -1;
    loop->last = &loop->first;
    pthread_mutex_init(&loop->lock, NULL);
    if (!loop_open(loop)) {
        loop_free(loop);
        return NULL;
    }
    return loop;
}

void loop_free(struct loop *loop)
{
    if (loop == NULL)
        return;
    if (loop->wake_event != NULL)
        event_free(loop->wake_event);
    if (loop->base != NULL)
        event_base_free(loop->base);
    if (loop->wake >= 0)
        close(loop->wake);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

unsigned loop_index(const struct loop *loop)
{
    return loop->index;
}

struct event_base *loop_base(struct loop *loop)
{
    return loop->base;
}

void loop_set_busy_poll(struct loop *loop, unsigned microseconds)
{
    loop->busy_poll = microseconds;
}

void loop_worked(struct loop *loop)
{
    loop->worked = true;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void judge(struct loop *loop, bool paid)
{
    if (paid)
        loop->trust += loop->trust < TRUST_MAX;
    else
        loop->trust -= loop->trust < TRUST_LOST ? loop->trust : TRUST_LOST;
}

static void bar_polling(struct loop *loop, uint64_t now)
{
    bool soon = now < loop->barred + 4 * (uint64_t)loop->penalty;
    loop->penalty = soon ? loop->penalty * 2 : PENALTY_FIRST_US;
    if (loop->penalty > PENALTY_MAX_US)
        loop->penalty = PENALTY_MAX_US;
    loop->barred = now + loop->penalty;
    loop->trust = 0;
}

/* Others get the core between two looks. */
static bool poll_from(struct loop *loop, uint64_t now)
{
    for (uint64_t end = now + loop->busy_poll; now < end && loop->trust > 0;) {
        event_base_loop(loop->base, EVLOOP_NONBLOCK);
        if (loop->worked || atomic_load(&loop->stopping))
            return true;
        uint64_t before = now_us();
        sched_yield();
        now = now_us();
        if (now - before > YIELD_LONG_US)
            bar_polling(loop, now);
    }
    return false;
}

/* Waits for work and does it: polls first if that is likely to be worth it. */
static bool wait_and_work(struct loop *loop)
{
    uint64_t start = now_us();
    bool polled = loop->trust >= TRUST_MIN && start >= loop->barred;
    loop->worked = false;
    if (polled && poll_from(loop, start)) {
        judge(loop, true);
        return true;
    }
    bool ok = event_base_loop(loop->base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY) >= 0;
    judge(loop, !polled && loop->worked && now_us() - start < loop->busy_poll);
    return ok;
}

void loop_run(struct loop *loop)
{
    while (!atomic_load(&loop->stopping)) {
        bool ok = loop->busy_poll > 0 ? wait_and_work(loop)
                                      : event_base_loop(loop->base, EVLOOP_NO_EXIT_ON_EMPTY) >= 0;
        if (!ok) {
            log_error("event loop %u failed: %m", loop->index);
            return;
        }
    }
}

static void step_over(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
}

void loop_step(struct loop *loop, int milliseconds)
{
    struct timeval wait = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000};
    struct event *timer = evtimer_new(loop->base, step_over, NULL);
    if (timer == NULL)
        return;
    event_add(timer, &wait);
    event_base_loop(loop->base, EVLOOP_ONCE);
    event_free(timer);
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stopping, true);
    wake_up(loop);
}

void loop_post(struct loop *loop, struct loop_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&loop->lock);
    bool was_empty = loop->first == NULL;
    *loop->last = task;
    loop->last = &task->next;
    pthread_mutex_unlock(&loop->lock);
    if (was_empty)
        wake_up(loop);
}

static void timer_ready(evutil_socket_t fd, short what, void *arg)
{
    struct loop_timer *timer = arg;
    (void)fd;
    (void)what;
    timer->run(timer);
}

bool loop_timer_set(struct loop *loop, struct loop_timer *timer, void (*run)(struct loop_timer *),
                    int64_t milliseconds)
{
    if (milliseconds < 0)
        milliseconds = 0;
    struct timeval wait = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000};
    timer->run = run;
    if (timer->event == NULL)
        timer->event = evtimer_new(loop->base, timer_ready, timer);
    return timer->event != NULL && event_add(timer->event, &wait) == 0;
}

void loop_timer_clear(struct loop_timer *timer)
{
    if (timer->event != NULL)
        event_free(timer->event);
    timer->event = NULL;
}
