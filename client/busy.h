/*
 * Waiting without falling asleep. On an idle machine most of a small request's time is two
 * processors waking up; who looks again and again for some microseconds saves that. It is done only
 * while it has lately paid off, and is given up for a while once others turn out to want the core.
 */
#ifndef LIARA_CLIENT_BUSY_H
#define LIARA_CLIENT_BUSY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct busy {
    unsigned budget; /* microseconds of one wait, 0: never */
    unsigned trust;  /* rises with each reply that polling met or would have met */
    unsigned pause;  /* how long the next pause will be, in microseconds */
    int64_t resume;  /* not before this time */
    int64_t begun;   /* the wait that is going on */
    bool polled;     /* it was polled in vain */
};

/* Begins without trust. More than LIARA_CACHE_BUSY_POLL_MAX microseconds count as that. */
void busy_init(struct busy *busy, unsigned budget);

/*
 * Begins a wait. Receives what comes within the budget; -1 with EAGAIN where nothing came or where
 * polling would not pay: then the caller blocks, and calls busy_judge() when it is awake again.
 */
ssize_t busy_receive(struct busy *busy, int fd, struct msghdr *message);

/* The wait ended otherwise than by busy_receive(). */
void busy_judge(struct busy *busy);

#endif
