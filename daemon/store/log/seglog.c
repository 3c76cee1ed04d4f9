#include "seglog.h"

#include "../../clock.h"
#include "../../log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { COMPLAIN_PAUSE_MS = 10000, SEGMENTS_LEAST = 16, OPEN_MIN = 4, OPEN_MAX_FILES = 256 };

void seglog_complain(struct seglog *log, int error, const char *what)
{
    int64_t now = clock_now();
    if (now < log->complain_after)
        return;
    log->complain_after = now + COMPLAIN_PAUSE_MS;
    log_error("%s in %s: %s", what, log->directory, strerror(error));
}

/* A power of two, so that there are at least SEGMENTS_LEAST. */
static uint64_t segment_size_for(uint64_t max_size)
{
    uint64_t size = SEGMENT_SIZE_MAX;
    while (size > SEGMENT_SIZE_MIN && size > max_size / SEGMENTS_LEAST)
        size /= 2;
    return size;
}

/* Connections want descriptors too. */
static unsigned open_files_max(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur / 4 > OPEN_MAX_FILES)
        return OPEN_MAX_FILES;
    return limit.rlim_cur / 4 > OPEN_MIN ? (unsigned)(limit.rlim_cur / 4) : OPEN_MIN;
}

/* The spare and the head are the writer's, so it is the writer who changes them. */
static void set_max_size(struct backing *backing, uint64_t bytes)
{
    atomic_store(&seglog_of(backing)->wanted_size, bytes);
}

void seglog_take_max_size(struct seglog *log)
{
    uint64_t bytes = atomic_load(&log->wanted_size), size = segment_size_for(bytes);
    log->max_size = bytes;
    if (size == log->segment_size)
        return;
    log->segment_size = size;
    seglog_drop_spare(log);
    if (log->head != NULL && log->head->size > size && !log->head->large)
        log->head->closed = true;
}

static uint64_t record_max(struct backing *backing)
{
    uint64_t bytes = atomic_load(&seglog_of(backing)->wanted_size);
    return bytes > LOG_RECORD_BESIDE ? bytes - LOG_RECORD_BESIDE : 0;
}

static void compact(struct backing *backing, uint64_t live_bytes)
{
    atomic_store(&seglog_of(backing)->compact_wanted, live_bytes + 1);
}

static struct backing_stats get_stats(struct backing *backing)
{
    const struct seglog *log = seglog_of(backing);
    return (struct backing_stats){.disk_bytes = log->disk_bytes,
                                  .written_bytes = log->written_bytes,
                                  .moved_bytes = log->moved_bytes};
}

static void close_log(struct backing *backing)
{
    struct seglog *log = seglog_of(backing);
    if (log == NULL)
        return;
    seglog_end_retirement(log);
    seglog_finish(log);
    if (log->spare_fd >= 0)
        seglog_drop_spare(log);
    if (log->head != NULL)
        log->head->references--;
    while (log->count > 0)
        segment_remove(log, log->segments[log->count - 1]);
    free(log->segments);
    free(log->batch.staging);
    free(log->batch.items);
    free(log->batch.keys);
    free(log->retirement.buffer);
    if (log->reserve_fd >= 0)
        close(log->reserve_fd);
    anchor_close(&log->anchor);
    if (log->directory_fd >= 0)
        close(log->directory_fd);
    pthread_mutex_destroy(&log->lock);
    free(log->directory);
    free(log);
}

static struct seglog *new_log(const struct backing_options *options)
{
    struct seglog *log = calloc(1, sizeof(*log));
    if (log == NULL)
        return NULL;
    log->directory_fd = log->spare_fd = log->reserve_fd = log->anchor.fd = -1;
    pthread_mutex_init(&log->lock, NULL);
    log->owner = options->owner;
    log->max_size = options->max_size;
    atomic_init(&log->wanted_size, options->max_size);
    log->segment_size = segment_size_for(options->max_size);
    log->open_fds_max = open_files_max();
    log->directory = strdup(options->directory);
    log->batch.staging = malloc(SEGLOG_STAGING);
    log->batch.items = malloc(LOG_BATCH_MAX * sizeof(struct log_item));
    log->batch.keys = malloc(LOG_BATCH_MAX * sizeof(uint8_t *));
    log->retirement.buffer = malloc(SEGLOG_STAGING);
    if (log->directory != NULL && log->batch.staging != NULL && log->batch.items != NULL &&
        log->batch.keys != NULL && log->retirement.buffer != NULL)
        return log;
    close_log((struct backing *)(void *)log);
    return NULL;
}

static struct backing *open_log(const struct backing_options *options,
                                uint8_t secret[BACKING_SECRET], char *why, size_t size)
{
    struct seglog *log = new_log(options);
    if (log == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    struct backing *backing = (struct backing *)(void *)log;
    log->directory_fd = open(options->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (log->directory_fd >= 0)
        log->reserve_fd = fcntl(log->directory_fd, F_DUPFD_CLOEXEC, 3);
    if (log->reserve_fd < 0)
        snprintf(why, size, "can't open the directory %s: %s", options->directory, strerror(errno));
    else if (seglog_find(log, why, size)) {
        memcpy(secret, log->secret, BACKING_SECRET);
        return backing;
    }
    close_log(backing);
    return NULL;
}

const struct backing_ops backing_log = {
    .name = "log",
    .open = open_log,
    .load = seglog_load,
    .append = seglog_append,
    .sync = seglog_sync,
    .upkeep = seglog_upkeep,
    .set_max_size = set_max_size,
    .record_max = record_max,
    .compact = compact,
    .read = seglog_read,
    .scan = seglog_scan,
    .stats = get_stats,
    .close = close_log,
};
