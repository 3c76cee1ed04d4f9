#include "progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum {
    QUIET = 500, /* milliseconds without a bar */
    CELLS = 30,
    LINE = 160,
    LEAST = 64 * 1024 /* bytes that are more than a request */
};

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void show(const char *line, int length)
{
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
        return;
}

static double mebibytes(uint64_t bytes)
{
    return (double)bytes / (1024 * 1024);
}

/* Where nothing passes, the daemon reads a file by itself or somebody else is computing. */
static void draw(uint64_t done, uint64_t total, int64_t seconds)
{
    char line[LINE], bar[CELLS + 1];
    int length;
    if (total == 0 || done < LEAST) {
        length = snprintf(line, sizeof(line), "\r\033[Kwaiting, %lld s", (long long)seconds);
    } else {
        int filled = (int)((double)done / (double)total * CELLS);
        for (int i = 0; i < CELLS; i++)
            bar[i] = i < filled ? '#' : '.';
        bar[CELLS] = '\0';
        length = snprintf(line, sizeof(line), "\r\033[K[%s] %.1f of %.1f MiB", bar, mebibytes(done),
                          mebibytes(total));
    }
    show(line, length);
}

static void tell(void *arg, uint64_t done, uint64_t total)
{
    struct progress *progress = arg;
    int64_t passed = now() - progress->begun;
    if (passed < QUIET)
        return;
    progress->shown = true;
    draw(done, total, passed / 1000);
}

void progress_start(struct progress *progress, struct liara_cache *cache)
{
    progress->begun = now();
    progress->shown = false;
    liara_cache_set_progress(cache, tell, progress);
}

void progress_clear(struct progress *progress)
{
    static const char erase[] = "\r\033[K";
    if (progress->shown)
        show(erase, sizeof(erase) - 1);
    progress->shown = false;
}
