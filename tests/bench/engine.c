/*
 * engine: the memory store in this process, without a socket: what a call takes and what an entry
 * takes of memory. Times are of this thread's CPU; memory is the process's resident set, the
 * store's memfds included, without what it was before.
 *
 *     engine                    all of it
 *     engine entries N LENGTH MAX-SIZE    N entries of 20-byte keys alone, then a store that is
 * full
 */
#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/store.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KEY_LENGTH = 20, MIB = 1 << 20, SETTLE_SECONDS = 20 };

static struct store *store;
static struct loop *loop;
static bool finished;
static uint64_t random_state = 88172645463325252;

static void done(struct store_call *call)
{
    (void)call;
    finished = true;
}

static enum store_status run(struct store_call *call)
{
    call->request.loop = loop;
    call->done = done;
    finished = false;
    enum store_status status = store_submit(store, call);
    if (status != STORE_PENDING)
        return status;
    while (!finished)
        loop_step(loop, 50);
    return call->result.status;
}

static struct store_call new_call(enum store_op op, char key[KEY_LENGTH + 1], uint64_t number)
{
    snprintf(key, KEY_LENGTH + 1, "key-%016llx", (unsigned long long)number);
    return (struct store_call){
        .request = {.op = op, .key = (uint8_t *)key, .key_length = KEY_LENGTH}};
}

static void put(uint64_t number, uint32_t length, bool overwrite)
{
    char key[KEY_LENGTH + 1];
    struct store_call call = new_call(STORE_PUT, key, number);
    call.request.value = value_new(call.request.key, KEY_LENGTH, length);
    if (call.request.value == NULL)
        errx(1, "no memory for a value");
    memset(value_bytes(call.request.value), (int)number, length);
    call.request.overwrite = overwrite;
    if (run(&call) == STORE_FAILED)
        errx(1, "PUT: %s", call.result.text);
}

static bool get(uint64_t number)
{
    static uint8_t room[VALUE_COPY_MAX];
    char key[KEY_LENGTH + 1];
    struct store_call call = new_call(STORE_GET, key, number);
    call.request.room = room;
    call.request.room_size = sizeof(room);
    bool found = run(&call) == STORE_OK;
    value_unref(call.result.value);
    pinned_release(&call.result.pinned);
    return found;
}

static struct store_call ask_all(enum store_op op)
{
    struct store_call call = {.request = {.op = op, .key = (const uint8_t *)""}};
    if (run(&call) != STORE_OK)
        errx(1, "%s", call.result.text);
    return call;
}

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static double cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1)
        err(1, "/proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void open_store(uint64_t max_size)
{
    char why[256];
    struct config config = {.max_size = max_size};
    clock_start();
    store = store_open(&store_memory, &config, why, sizeof(why));
    loop = loop_new(0);
    if (store == NULL || loop == NULL)
        errx(1, "%s", why);
}

static void say_time(const char *what, double begin, uint64_t count)
{
    printf("  %-40s %7.0f ns\n", what, (cpu_ns() - begin) / (double)count);
}

/* count new entries, then so many more calls of each kind. */
static void entries(uint64_t count, uint32_t length, uint64_t max_size)
{
    printf("%llu entries of %u + %u bytes, max-size %llu MiB\n", (unsigned long long)count,
           KEY_LENGTH, length, (unsigned long long)max_size / MIB);
    open_store(max_size);
    double before = resident(), begin = cpu_ns();
    for (uint64_t i = 0; i < count; i++)
        put(i, length, false);
    say_time("PUT of a new entry", begin, count);
    struct store_call all = ask_all(STORE_INSPECT);
    printf("  %-40s %7.1f bytes\n", "memory of an entry",
           (resident() - before) / (double)all.entries);
    uint64_t hits = 0;
    begin = cpu_ns();
    for (uint64_t i = 0; i < count; i++)
        hits += get(next_random() % count);
    say_time("GET", begin, count);
    if (hits != count)
        printf("  %llu of them missed\n", (unsigned long long)(count - hits));
    begin = cpu_ns();
    for (uint64_t i = 0; i < count; i++)
        put(next_random() % count, length, true);
    say_time("PUT over an entry", begin, count);
    uint64_t full = max_size / (length + 60);
    for (uint64_t i = 0; i < full; i++)
        put(count + i, length, false);
    begin = cpu_ns();
    for (uint64_t i = 0; i < count; i++)
        put(count + full + i, length, false);
    say_time("PUT of a new entry into a full store", begin, count);
    all = ask_all(STORE_INSPECT);
    printf("  %-40s %7.3f of max-size, resident %.3f\n", "keys and values, when full",
           (double)all.size / (double)max_size, (resident() - before) / (double)max_size);
}

/* Lengths up to 4 MB, as many of each power of two. */
static uint32_t mixed_length(void)
{
    unsigned log = 6 + (unsigned)(next_random() % 16);
    return (uint32_t)((1U << log) + next_random() % (1U << log)) % (4 << 20);
}

/* Once the allocator has given back what it keeps for some seconds. */
static void say_memory(const char *what, double before, uint64_t max_size)
{
    sleep(SETTLE_SECONDS);
    struct store_call all = ask_all(STORE_INSPECT);
    printf("  %-40s %7.1f MB resident, %.1f MB of keys and values (%.3f of max-size)\n", what,
           (resident() - before) / 1e6, (double)all.size / 1e6,
           (double)all.size / (double)max_size);
}

static void mixed(uint64_t max_size)
{
    uint64_t written = 0, number = 0;
    printf("sizes from 64 bytes to 4 MB, max-size %.0f MB\n", (double)max_size / 1e6);
    open_store(max_size);
    double before = resident(), most = 0;
    while (written < 6 * max_size) {
        uint32_t length = mixed_length();
        put(number++, length, false);
        written += length;
        if (number % 256 == 0 && resident() > most)
            most = resident();
    }
    printf("  %-40s %7.1f MB resident\n", "at the most", (most - before) / 1e6);
    say_memory("full", before, max_size);
    store_set_max_size(store, max_size / 4);
    say_memory("a quarter of max-size", before, max_size / 4);
    store_set_max_size(store, max_size);
    for (uint64_t i = 0; i < number / 4; i++)
        put(number + i, mixed_length(), false);
    say_memory("max-size as it was", before, max_size);
    ask_all(STORE_CLEAR);
    say_memory("after CLEAR", before, max_size);
}

/* Each in a program of its own, so that none finds memory warm that another has left. */
static void in_a_process(const char *name)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "engine", name, (char *)NULL);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        errx(1, "the measurement %s failed", name);
}

static void million(void)
{
    entries(1000000, 100, (uint64_t)256 * MIB);
}

static void million_and_a_half(void)
{
    entries(1500000, 100, (uint64_t)384 * MIB);
}

static void mixed_sizes(void)
{
    mixed(200000000);
}

static const struct {
    const char *name;
    void (*run)(void);
} measurements[] = {
    {"million", million}, {"million-and-a-half", million_and_a_half}, {"mixed", mixed_sizes}};

int main(int argc, char **argv)
{
    enum { COUNT = sizeof(measurements) / sizeof(measurements[0]) };
    if (argc == 5 && strcmp(argv[1], "entries") == 0) {
        entries(strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10),
                strtoull(argv[4], NULL, 10));
        return 0;
    }
    for (unsigned i = 0; argc <= 2 && i < COUNT; i++) {
        if (argc == 1)
            in_a_process(measurements[i].name);
        else if (strcmp(argv[1], measurements[i].name) == 0)
            measurements[i].run();
    }
    return 0;
}
