#include "worker.h"

#include "clock.h"
#include "conn.h"
#include "container_of.h"
#include "log.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ACCEPT_BACKOFF_MS = 100, /* without descriptors accept() would fail again at once, for ever */
    SWEEP_MS = 1000
};

struct worker {
    struct service *service;
    struct loop *loop;
    struct event *accept;
    struct loop_timer accept_again, sweep, deadline;
    struct loop_task stop;
    int64_t stop_after;
    bool stopping;
    bool sweeping;
    bool started;
    struct conn *conns;
    char *spare; /* the buffer given back last */
    uint8_t room[VALUE_COPY_MAX];
    pthread_t thread;
};

struct loop *worker_loop(struct worker *worker)
{
    return worker->loop;
}

struct service *worker_service(struct worker *worker)
{
    return worker->service;
}

/* The link is the first member of its conn. */
static struct conn_link *link_of(struct conn *conn)
{
    return (struct conn_link *)conn;
}

/* Calls what for each connection, which may free itself. */
static void for_each(struct worker *worker, void (*what)(struct conn *))
{
    for (struct conn *conn = worker->conns, *next; conn != NULL; conn = next) {
        next = link_of(conn)->next;
        what(conn);
    }
}

static void check_timeouts(struct conn *conn)
{
    conn_check_timeouts(conn, clock_coarse());
}

static void sweep(struct loop_timer *timer)
{
    struct worker *worker = container_of(timer, struct worker, sweep);
    for_each(worker, check_timeouts);
    worker->sweeping = worker->conns != NULL;
    if (worker->sweeping)
        loop_timer_set(worker->loop, timer, sweep, SWEEP_MS);
}

void worker_add(struct worker *worker, struct conn *conn, struct conn_link *link)
{
    link->next = worker->conns;
    link->link = &worker->conns;
    if (worker->conns != NULL)
        link_of(worker->conns)->link = &link->next;
    worker->conns = conn;
    if (!worker->sweeping)
        worker->sweeping = loop_timer_set(worker->loop, &worker->sweep, sweep, SWEEP_MS);
}

void worker_remove(struct worker *worker, struct conn_link *link)
{
    *link->link = link->next;
    if (link->next != NULL)
        link_of(link->next)->link = link->link;
    if (worker->stopping && worker->conns == NULL)
        loop_stop(worker->loop);
}

char *worker_take_buffer(struct worker *worker)
{
    char *buffer = worker->spare;
    worker->spare = NULL;
    return buffer != NULL ? buffer : malloc(CONN_BUFFER);
}

void worker_give_buffer(struct worker *worker, char *buffer)
{
    if (worker->spare == NULL)
        worker->spare = buffer;
    else
        free(buffer);
}

uint8_t *worker_room(struct worker *worker)
{
    return worker->room;
}

static void refuse(int fd)
{
    static const char text[] = "ERROR busy too many connections; try again (max-connections)\n";
    ssize_t sent = send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)sent;
    close(fd);
}

static void accept_again(struct loop_timer *timer)
{
    struct worker *worker = container_of(timer, struct worker, accept_again);
    if (!worker->stopping)
        event_add(worker->accept, NULL);
}

static void accept_failed(struct worker *worker)
{
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ECONNABORTED)
        return;
    log_warning("can't accept a connection: %m; trying again in %d ms", ACCEPT_BACKOFF_MS);
    event_del(worker->accept);
    loop_timer_set(worker->loop, &worker->accept_again, accept_again, ACCEPT_BACKOFF_MS);
}

/* One at a time: a second try would mostly find that another worker was faster. */
static void accept_ready(evutil_socket_t listener, short what, void *arg)
{
    struct worker *worker = arg;
    struct service *service = worker->service;
    (void)what;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        accept_failed(worker);
    else if (atomic_load(&service->connections) >=
             atomic_load_explicit(&service->limits->max_connections, memory_order_relaxed))
        refuse(fd);
    else if (!conn_open(worker, fd))
        log_error("can't take a connection: %m");
}

static void deadline_reached(struct loop_timer *timer)
{
    struct worker *worker = container_of(timer, struct worker, deadline);
    log_warning("requests are still pending at the end; their connections are closed");
    loop_stop(worker->loop);
}

static void stop_requested(struct loop_task *task)
{
    struct worker *worker = container_of(task, struct worker, stop);
    worker->stopping = true;
    event_del(worker->accept);
    loop_timer_set(worker->loop, &worker->deadline, deadline_reached, worker->stop_after);
    for_each(worker, conn_drain);
    if (worker->conns == NULL)
        loop_stop(worker->loop);
}

struct worker *worker_new(struct service *service, unsigned index, unsigned busy_poll)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    if (worker == NULL)
        return NULL;
    worker->service = service;
    worker->stop.run = stop_requested;
    worker->loop = loop_new(index);
    if (worker->loop != NULL)
        loop_set_busy_poll(worker->loop, busy_poll);
    if (worker->loop != NULL)
        worker->accept = event_new(loop_base(worker->loop), service->listener, EV_READ | EV_PERSIST,
                                   accept_ready, worker);
    if (worker->accept == NULL || event_add(worker->accept, NULL) != 0) {
        worker_free(worker);
        errno = ENOMEM;
        return NULL;
    }
    return worker;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    if (!store_attach(worker->service->store, worker->loop))
        log_error("worker %u can't use the store", loop_index(worker->loop));
    loop_run(worker->loop);
    store_detach(worker->service->store, worker->loop);
    return NULL;
}

/* Signals are for the main thread. */
bool worker_start(struct worker *worker)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    errno = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    worker->started = errno == 0;
    if (worker->started)
        pthread_setname_np(worker->thread, "worker");
    return worker->started;
}

void worker_stop(struct worker *worker, int64_t milliseconds)
{
    worker->stop_after = milliseconds;
    loop_post(worker->loop, &worker->stop);
}

void worker_join(struct worker *worker)
{
    if (worker->started)
        pthread_join(worker->thread, NULL);
    worker->started = false;
}

void worker_free(struct worker *worker)
{
    if (worker == NULL)
        return;
    for_each(worker, conn_abandon);
    loop_timer_clear(&worker->accept_again);
    loop_timer_clear(&worker->sweep);
    loop_timer_clear(&worker->deadline);
    if (worker->accept != NULL)
        event_free(worker->accept);
    loop_free(worker->loop);
    free(worker->spare);
    free(worker);
}
