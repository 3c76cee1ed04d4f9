/*
 * engine: the memory store in this process, without a socket: what a call takes and what an entry
 * takes of memory. Times are of this thread's CPU; memory is the process's resident set, the
 * store's memfds included, without what it was before.
 *
 *     engine                    all of it
 *     engine entries N LENGTH MAX-SIZE    N entries of 20-byte keys, then a store that is full
 *     engine json N LENGTH MAX-SIZE       the same as one JSON object
 */
#include "inside.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, SETTLE_SECONDS = 20 };

static void open_memory(uint64_t max_size)
{
    struct config config = {.max_size = max_size};
    inside_open("memory", &config);
}

struct result {
    double put_new, get, put_over, put_full; /* ns */
    double entry;                            /* bytes */
    double live, resident;                   /* of max-size, when full */
};

/* Puts so many new entries; ns each. */
static double put_new(uint64_t first, uint64_t count, uint32_t length)
{
    double begin = inside_cpu();
    for (uint64_t i = 0; i < count; i++)
        inside_put(first + i, length, false);
    return (inside_cpu() - begin) / (double)count;
}

static double get_all(uint64_t count)
{
    uint64_t hits = 0;
    double begin = inside_cpu();
    for (uint64_t i = 0; i < count; i++)
        hits += inside_get(inside_random() % count);
    if (hits != count)
        errx(1, "%llu GETs missed", (unsigned long long)(count - hits));
    return (inside_cpu() - begin) / (double)count;
}

/* count new entries, so many more calls of each kind, then a store that is full. */
static struct result measure(uint64_t count, uint32_t length, uint64_t max_size)
{
    struct result result;
    open_memory(max_size);
    double before = inside_resident();
    result.put_new = put_new(0, count, length);
    result.entry = (inside_resident() - before) / (double)inside_ask_all(STORE_INSPECT).entries;
    result.get = get_all(count);
    double begin = inside_cpu();
    for (uint64_t i = 0; i < count; i++)
        inside_put(inside_random() % count, length, true);
    result.put_over = (inside_cpu() - begin) / (double)count;
    uint64_t full = max_size / (length + 60);
    put_new(count, full, length);
    result.put_full = put_new(count + full, count, length);
    result.live = (double)inside_ask_all(STORE_INSPECT).size / (double)max_size;
    result.resident = (inside_resident() - before) / (double)max_size;
    inside_close();
    return result;
}

static void entries(uint64_t count, uint32_t length, uint64_t max_size)
{
    printf("%llu entries of %u + %u bytes, max-size %llu MiB\n", (unsigned long long)count,
           INSIDE_KEY, length, (unsigned long long)max_size / MIB);
    struct result result = measure(count, length, max_size);
    const struct {
        const char *what;
        double number;
        const char *unit;
    } lines[] = {{"PUT of a new entry", result.put_new, "ns"},
                 {"memory of an entry", result.entry, "bytes"},
                 {"GET", result.get, "ns"},
                 {"PUT over an entry", result.put_over, "ns"},
                 {"PUT of a new entry into a full store", result.put_full, "ns"}};
    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        printf("  %-40s %7.1f %s\n", lines[i].what, lines[i].number, lines[i].unit);
    printf("  %-40s %7.3f of max-size, resident %.3f\n", "keys and values, when full", result.live,
           result.resident);
}

static void entries_json(uint64_t count, uint32_t length, uint64_t max_size)
{
    struct result result = measure(count, length, max_size);
    printf("{\"put_new_ns\": %.1f, \"get_ns\": %.1f, \"put_over_ns\": %.1f, "
           "\"put_full_ns\": %.1f, \"entry_bytes\": %.1f, \"live\": %.3f, "
           "\"resident\": %.3f}\n",
           result.put_new, result.get, result.put_over, result.put_full, result.entry, result.live,
           result.resident);
}

/* Lengths up to 4 MB, as many of each power of two. */
static uint32_t mixed_length(void)
{
    unsigned log = 6 + (unsigned)(inside_random() % 16);
    return (uint32_t)((1U << log) + inside_random() % (1U << log)) % (4 << 20);
}

/* Once the allocator has given back what it keeps for some seconds. */
static void say_memory(const char *what, double before, uint64_t max_size)
{
    sleep(SETTLE_SECONDS);
    double size = (double)inside_ask_all(STORE_INSPECT).size;
    printf("  %-40s %7.1f MB resident, %.1f MB of keys and values (%.3f of max-size)\n", what,
           (inside_resident() - before) / 1e6, size / 1e6, size / (double)max_size);
}

static void mixed(uint64_t max_size)
{
    uint64_t written = 0, number = 0;
    printf("sizes from 64 bytes to 4 MB, max-size %.0f MB\n", (double)max_size / 1e6);
    open_memory(max_size);
    double before = inside_resident(), most = 0;
    while (written < 6 * max_size) {
        uint32_t length = mixed_length();
        inside_put(number++, length, false);
        written += length;
        if (number % 256 == 0 && inside_resident() > most)
            most = inside_resident();
    }
    printf("  %-40s %7.1f MB resident\n", "at the most", (most - before) / 1e6);
    say_memory("full", before, max_size);
    inside_set_max_size(max_size / 4);
    say_memory("a quarter of max-size", before, max_size / 4);
    inside_set_max_size(max_size);
    for (uint64_t i = 0; i < number / 4; i++)
        inside_put(number + i, mixed_length(), false);
    say_memory("max-size as it was", before, max_size);
    inside_ask_all(STORE_CLEAR);
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
    if (argc == 5) {
        bool json = strcmp(argv[1], "json") == 0;
        (json ? entries_json : entries)(strtoull(argv[2], NULL, 10),
                                        (uint32_t)strtoul(argv[3], NULL, 10),
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
