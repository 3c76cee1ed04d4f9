/*
 * A worker: a thread with one event loop, which accepts connections and keeps those it accepted.
 */
#ifndef LIARA_WORKER_H
#define LIARA_WORKER_H

#include "loop.h"
#include "router.h"

struct conn;
struct worker;

/* What all workers share; filled by main.c, in place until the last worker is freed. */
struct service {
    struct router router;
    const struct limits *limits;
    struct store *store;
    int listener;                 /* a listening, non-blocking socket */
    _Atomic uint32_t connections; /* of all workers */
};

/* The links of a worker's list of connections, the first member of struct conn. */
struct conn_link {
    struct conn *next, **link;
};

/* A worker with the number index, not yet running; busy_poll as loop_set_busy_poll(). NULL with
 * errno. */
struct worker *worker_new(struct service *service, unsigned index, unsigned busy_poll);

/* Starts its thread. false with errno. */
bool worker_start(struct worker *worker);

/* No new connections; idle ones are closed, the others once they are answered; after milliseconds
 * those that are left are closed too. Then the thread ends. Any thread. */
void worker_stop(struct worker *worker, int64_t milliseconds);

/* Waits for the thread's end; fine where it was never started. */
void worker_join(struct worker *worker);

/* Frees it and what connections are left; its thread has ended and the store is closed. NULL is
 * fine. */
void worker_free(struct worker *worker);

struct loop *worker_loop(struct worker *worker);
struct service *worker_service(struct worker *worker);

/* For conn.c, on the worker's thread: a connection joins the worker's list, and leaves it. */
void worker_add(struct worker *worker, struct conn *conn, struct conn_link *link);
void worker_remove(struct worker *worker, struct conn_link *link);

/* For conn.c: the room of cache_session_start(), one for all of the worker's connections. */
uint8_t *worker_room(struct worker *worker);

/* For conn.c: a buffer of CONN_BUFFER bytes, from a spare one if there is any; NULL where memory is
 * short. What was taken goes back by worker_give_buffer(). */
enum { CONN_BUFFER = 16384 };
char *worker_take_buffer(struct worker *worker);
void worker_give_buffer(struct worker *worker, char *buffer);

#endif
