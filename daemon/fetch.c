#include "fetch.h"

#include "container_of.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static int read_whole(int fd, struct value *value)
{
    struct stat st;
    /* Anything but a file could block its reader for ever. */
    if (fstat(fd, &st) != 0)
        return errno;
    if (!S_ISREG(st.st_mode))
        return EINVAL;
    for (uint32_t filled = 0; filled < value->length;) {
        ssize_t got = pread(fd, value_bytes(value) + filled, value->length - filled, filled);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            return ENODATA;
        filled += (uint32_t)got;
    }
    return 0;
}

static void fetch_run(struct pool_task *task)
{
    struct fetch *fetch = container_of(task, struct fetch, task);
    fetch->error = read_whole(fetch->fd, fetch->value);
    close(fetch->fd);
    fetch->fd = -1;
}

static void fetch_finished(struct pool_task *task)
{
    struct fetch *fetch = container_of(task, struct fetch, task);
    fetch->done(fetch);
}

void fetch_start(struct fetch *fetch, struct pool *pool, struct loop *loop, int fd,
                 struct value *value, void (*done)(struct fetch *fetch))
{
    *fetch = (struct fetch){
        .task = {.loop = loop, .run = fetch_run, .finished = fetch_finished},
        .fd = fd,
        .value = value,
        .done = done,
    };
    pool_submit(pool, &fetch->task);
}
