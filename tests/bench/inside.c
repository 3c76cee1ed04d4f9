#include "inside.h"

#include "../../daemon/clock.h"

#include <err.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct store *store;
static struct loop *loop;
static bool finished;
static uint64_t random_state = 88172645463325252;

/* bench.py also builds this file with an older commit's store, whose calls are not divided into
 * request and result. */
#ifdef INSIDE_OLDER
#define REQUEST(call) (call)
#define RESULT(call)  (call)
#define CALL(...)     ((struct store_call){__VA_ARGS__})
#else
#define REQUEST(call) ((call).request)
#define RESULT(call)  ((call).result)
#define CALL(...)     ((struct store_call){.request = {__VA_ARGS__}})
#endif

static void done(struct store_call *call)
{
    (void)call;
    finished = true;
}

static enum store_status run(struct store_call *call)
{
    REQUEST(*call).loop = loop;
    call->done = done;
    finished = false;
    enum store_status status = store_submit(store, call);
    if (status != STORE_PENDING)
        return status;
    while (!finished)
        loop_step(loop, 50);
    return RESULT(*call).status;
}

static struct store_call new_call(enum store_op op, char key[INSIDE_KEY], uint64_t number)
{
    memcpy(key, "key-", 4);
    for (unsigned i = 4; i < INSIDE_KEY; i++)
        key[i] = "0123456789abcdef"[number >> (4 * (INSIDE_KEY - 1 - i)) & 15];
    return CALL(.op = op, .key = (uint8_t *)key, .key_length = INSIDE_KEY);
}

void inside_put(uint64_t number, uint32_t length, bool overwrite)
{
    char key[INSIDE_KEY];
    struct store_call call = new_call(STORE_PUT, key, number);
    REQUEST(call).value = value_new(REQUEST(call).key, INSIDE_KEY, length);
    if (REQUEST(call).value == NULL)
        errx(1, "no memory for a value");
    memset(value_bytes(REQUEST(call).value), (int)number, length);
    REQUEST(call).overwrite = overwrite;
    if (run(&call) == STORE_FAILED)
        errx(1, "PUT: %s", RESULT(call).text);
}

bool inside_get(uint64_t number)
{
    static uint8_t room[VALUE_COPY_MAX];
    char key[INSIDE_KEY];
    struct store_call call = new_call(STORE_GET, key, number);
    REQUEST(call).room = room;
    REQUEST(call).room_size = sizeof(room);
    enum store_status status = run(&call);
    if (status == STORE_FAILED)
        errx(1, "GET: %s", RESULT(call).text);
    value_unref(RESULT(call).value);
#if __has_include("../../daemon/pinned.h") /* older commits that are measured beside have no pins  \
                                            */
    pinned_release(&RESULT(call).pinned);
#endif
    return status == STORE_OK;
}

struct inside_figures inside_ask_all(enum store_op op)
{
    struct store_call call = CALL(.op = op, .key = (const uint8_t *)"");
    if (run(&call) != STORE_OK)
        errx(1, "%s", RESULT(call).text);
    return (struct inside_figures){RESULT(call).entries, RESULT(call).size};
}

uint64_t inside_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static double clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

double inside_cpu(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

double inside_clock(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

double inside_resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1)
        err(1, "/proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

void inside_open(const char *backend, const struct config *config)
{
    char why[256];
    const struct store_ops *ops = store_find(backend);
    if (ops == NULL)
        errx(2, "no backend %s", backend);
    clock_start();
    loop = loop_new(0);
    store = store_open(ops, config, why, sizeof(why));
    if (store == NULL || loop == NULL || !store_attach(store, loop))
        errx(1, "%s", why);
}

void inside_close(void)
{
    store_detach(store, loop);
    store_close(store);
    loop_free(loop);
}

void inside_set_max_size(uint64_t bytes)
{
    store_set_max_size(store, bytes);
}
