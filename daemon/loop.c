#include "loop.h"

#include "log.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct loop {
    unsigned index;
    int wake; /* an eventfd, readable once the inbox is not empty or the loop is to stop */
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

void loop_run(struct loop *loop)
{
    while (!atomic_load(&loop->stopping)) {
        if (event_base_loop(loop->base, EVLOOP_NO_EXIT_ON_EMPTY) < 0) {
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
