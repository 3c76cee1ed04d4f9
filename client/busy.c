#include "busy.h"

#include "liara_cache.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

enum {
    TRUST_ENOUGH = 8, /* to poll */
    TRUST_MAX = 16,
    TRUST_LOST = 8,       /* by a poll in vain, or by a wait too long for one */
    YIELD_LONG = 100,     /* microseconds after which others are known to want the core */
    PAUSE_FIRST = 16000,  /* microseconds without polling then, doubled each time */
    PAUSE_LAST = 1024000, /* at most */
    PAUSE_FORGOTTEN = 32, /* a part of what it has grown, with each poll that pays */
    /* A wait asleep has the time of waking up in it, which a poll would not have. */
    ASLEEP_FACTOR = 2
};

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void busy_init(struct busy *busy, unsigned budget)
{
    *busy = (struct busy){.budget = budget, .pause = PAUSE_FIRST};
    if (budget > LIARA_CACHE_BUSY_POLL_MAX)
        busy->budget = LIARA_CACHE_BUSY_POLL_MAX;
}

static void gain(struct busy *busy)
{
    if (busy->trust < TRUST_MAX)
        busy->trust++;
}

static void lose(struct busy *busy)
{
    busy->trust -= busy->trust < TRUST_LOST ? busy->trust : TRUST_LOST;
}

static void rest(struct busy *busy, int64_t now)
{
    busy->trust = 0;
    busy->resume = now + busy->pause;
    if (busy->pause < PAUSE_LAST)
        busy->pause *= 2;
}

/* Looks until end. Others get the core between two looks; EAGAIN where they keep it, too. */
static ssize_t look(struct busy *busy, int fd, struct msghdr *message)
{
    int64_t now = busy->begun, before;
    do {
        ssize_t got = recvmsg(fd, message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got >= 0 || errno != EAGAIN)
            return got;
        sched_yield();
        before = now;
        now = now_us();
    } while (now - before < YIELD_LONG && now - busy->begun < busy->budget);
    if (now - before >= YIELD_LONG)
        rest(busy, now);
    errno = EAGAIN;
    return -1;
}

ssize_t busy_receive(struct busy *busy, int fd, struct msghdr *message)
{
    busy->polled = false;
    errno = EAGAIN;
    if (busy->budget == 0)
        return -1;
    busy->begun = now_us();
    if (busy->trust < TRUST_ENOUGH || busy->begun < busy->resume)
        return -1;
    ssize_t got = look(busy, fd, message);
    busy->polled = got < 0 && errno == EAGAIN;
    if (busy->polled)
        return got;
    gain(busy);
    busy->pause -= (busy->pause - PAUSE_FIRST) / PAUSE_FORGOTTEN;
    return got;
}

void busy_judge(struct busy *busy)
{
    if (busy->budget == 0)
        return;
    if (!busy->polled && now_us() - busy->begun < (int64_t)busy->budget * ASLEEP_FACTOR)
        gain(busy);
    else
        lose(busy);
}
