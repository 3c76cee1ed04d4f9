#include "clock.h"

#include <time.h>

/* Some 140,000 years: sums with it don't overflow. */
#define CLOCK_LONGEST (INT64_C(1) << 52)

/* What to add to the monotonic clock to get the wall clock's milliseconds; set once at start. */
static int64_t wall_offset;

static int64_t milliseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void clock_start(void)
{
    wall_offset = milliseconds(CLOCK_REALTIME) - milliseconds(CLOCK_BOOTTIME);
}

int64_t clock_now(void)
{
    return milliseconds(CLOCK_BOOTTIME);
}

int64_t clock_coarse(void)
{
    return milliseconds(CLOCK_MONOTONIC_COARSE);
}

uint64_t clock_tick(void)
{
    static _Thread_local uint64_t last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    uint64_t tick = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    last = tick > last ? tick : last + 1;
    return last;
}

int64_t clock_to_wall(int64_t monotonic)
{
    return monotonic == CLOCK_NEVER ? CLOCK_NEVER : monotonic + wall_offset;
}

int64_t clock_from_wall(int64_t wall, int64_t ttl)
{
    if (wall == CLOCK_NEVER)
        return CLOCK_NEVER;
    int64_t now = clock_now();
    /* What was stored may be any number. */
    if (wall < 0 || ttl < 0)
        return now;
    int64_t latest = now + (ttl < CLOCK_LONGEST ? ttl : CLOCK_LONGEST);
    return wall < latest + wall_offset ? wall - wall_offset : latest;
}
