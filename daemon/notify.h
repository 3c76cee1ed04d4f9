/*
 * What a service manager is told: READY, STATUS with live figures, RELOADING, STOPPING, and
 * WATCHDOG as long as every worker answers. Does nothing where no service manager listens. The main
 * thread's.
 */
#ifndef LIARA_NOTIFY_H
#define LIARA_NOTIFY_H

#include "loop.h"

#include <stdatomic.h>

struct service;
struct worker;

/* A question to a worker, whether it still runs its loop. */
struct notify_ping {
    struct loop_task task;
    atomic_bool answered;
};

struct notify {
    struct loop *loop; /* the main one */
    struct service *service;
    struct worker **workers;
    unsigned count;
    struct notify_ping *pings;
    struct loop_timer timer;
    int64_t interval; /* milliseconds */
    bool watchdog;
};

/* Says READY and goes on from the main loop's timer. false where memory is short. */
bool notify_start(struct notify *notify, struct loop *loop, struct service *service,
                  struct worker **workers, unsigned count);

/* Says that the configuration is read again, and that it has been. */
void notify_reloading(void);
void notify_reloaded(void);

/* Says STOPPING and ends the timer. The workers' threads may run until notify_free(). */
void notify_stop(struct notify *notify);

/* Frees what it holds; the workers have ended. */
void notify_free(struct notify *notify);

#endif
