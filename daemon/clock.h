/*
 * Time. Everything in memory counts milliseconds of one monotonic clock, which goes on while the
 * machine sleeps and never jumps. What is stored on disk counts milliseconds since 1970, read by a
 * wall clock that was set against the monotonic one once, at start: a jump while the daemon runs
 * changes nothing, and what is loaded after one is clamped by its own time to live.
 */
#ifndef LIARA_CLOCK_H
#define LIARA_CLOCK_H

#include <stdint.h>

#define CLOCK_NEVER INT64_MAX

/* Sets the wall clock against the monotonic one. Call once, before any thread starts. */
void clock_start(void);

/* Monotonic milliseconds. A vDSO call, no system call. Any thread. */
int64_t clock_now(void);

/* Milliseconds that go on while the machine runs, some 4 ms late, and cost nearly nothing: for how
 * long a client has been silent. Not to be compared with clock_now(). Any thread. */
int64_t clock_coarse(void);

/*
 * A number that is larger at every call of one thread and follows the monotonic clock across
 * threads (microseconds, some milliseconds late): when something was last used. Any thread.
 */
uint64_t clock_tick(void);

/* The wall clock's milliseconds for a monotonic time; CLOCK_NEVER stays. Any thread. */
int64_t clock_to_wall(int64_t monotonic);

/*
 * The monotonic time at which something stored with a life of ttl milliseconds and an end at wall
 * ends: never later than ttl from now, however the wall clock jumped since. CLOCK_NEVER stays.
 */
int64_t clock_from_wall(int64_t wall, int64_t ttl);

#endif
