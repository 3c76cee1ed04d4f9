#include "file.h"

#include "descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum {
    COPY_BYTES = 64 * 1024,
    SEND_BYTES = 256 * 1024,
    RESERVE_LEAST = 1024 * 1024,
    PIPE_BYTES = 1024 * 1024, /* the most that everybody may have */
};

static bool wait_for(int fd, short events)
{
    struct pollfd ready = {.fd = fd, .events = events};
    return poll(&ready, 1, -1) >= 0 || errno == EINTR;
}

ssize_t file_read(int fd, void *bytes, size_t size, off_t offset)
{
    size_t have = 0;
    while (have < size) {
        char *to = (char *)bytes + have;
        ssize_t got = offset < 0 ? read(fd, to, size - have)
                                 : pread(fd, to, size - have, offset + (off_t)have);
        if (got == 0)
            break;
        if (got > 0)
            have += (size_t)got;
        else if (errno == EAGAIN ? !wait_for(fd, POLLIN) : errno != EINTR)
            return -1;
    }
    return (ssize_t)have;
}

static bool write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, bytes, length);
        if (put >= 0) {
            bytes += put;
            length -= (size_t)put;
        } else if (errno == EAGAIN ? !wait_for(fd, POLLOUT) : errno != EINTR) {
            return false;
        }
    }
    return true;
}

struct pipe_guard {
    sigset_t before;
    bool pending;
};

/*
 * A write to a pipe that nobody reads raises SIGPIPE in this thread: it is held back meanwhile, and
 * the one that was raised is taken away, unless one was pending before.
 */
static bool guard_begin(struct pipe_guard *guard)
{
    sigset_t pipe_signal, pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigpending(&pending);
    guard->pending = sigismember(&pending, SIGPIPE);
    int failed = pthread_sigmask(SIG_BLOCK, &pipe_signal, &guard->before);
    if (failed)
        errno = failed;
    return !failed;
}

static void guard_end(const struct pipe_guard *guard, bool written)
{
    int saved = errno;
    if (!written && saved == EPIPE && !guard->pending) {
        const struct timespec at_once = {0, 0};
        sigset_t pipe_signal;
        sigemptyset(&pipe_signal);
        sigaddset(&pipe_signal, SIGPIPE);
        while (sigtimedwait(&pipe_signal, NULL, &at_once) < 0 && errno == EINTR)
            continue;
    }
    pthread_sigmask(SIG_SETMASK, &guard->before, NULL);
    errno = saved;
}

bool file_write(int fd, const void *bytes, size_t length)
{
    struct pipe_guard guard;
    if (!guard_begin(&guard))
        return false;
    bool written = write_all(fd, bytes, length);
    guard_end(&guard, written);
    return written;
}

/* By reference, if both files are where that can be; ext4 would but copy, and page by page. */
static ssize_t send_range(int from, off_t *offset, size_t length, int to)
{
    struct statfs system;
    errno = EOPNOTSUPP;
    if (fstatfs(to, &system) != 0 || system.f_type == EXT4_SUPER_MAGIC)
        return -1;
    return copy_file_range(from, offset, to, NULL, length, 0);
}

/* From one end of the pipe to the file, all of it; less where the file takes no more. */
static ssize_t drain(int pipe, size_t length, int to)
{
    size_t sent = 0;
    ssize_t got = 1;
    while (sent < length && got > 0) {
        got = splice(pipe, NULL, to, NULL, length - sent, 0);
        if (got > 0)
            sent += (size_t)got;
        else if (got < 0 && errno == EINTR)
            got = 1;
    }
    return sent > 0 ? (ssize_t)sent : got;
}

/*
 * What sendfile() does, but through a pipe that holds more: the file gets larger pages. Where the
 * file does not take all that the pipe holds, what is left goes with the pipe and is not counted.
 */
static ssize_t send_spliced(int from, off_t *offset, size_t length, int to)
{
    struct stat file;
    int ends[2];
    errno = EOPNOTSUPP;
    if (fstat(to, &file) != 0 || !S_ISREG(file.st_mode) || !descriptor_pipe(ends))
        return -1;
    fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
    ssize_t sent = 0, got = 1, filled = 1; /* in all; of the last piece: to the file, the pipe */
    while ((size_t)sent < length && got > 0 && got == filled) {
        off_t at = *offset;
        filled = got = splice(from, &at, ends[1], NULL, length - (size_t)sent, 0);
        if (got > 0)
            got = drain(ends[0], (size_t)got, to);
        sent += got > 0 ? got : 0;
        *offset += got > 0 ? got : 0;
    }
    int saved = errno;
    close(ends[0]);
    close(ends[1]);
    errno = saved;
    return sent > 0 ? sent : got;
}

static ssize_t send_pages(int from, off_t *offset, size_t length, int to)
{
    return sendfile(to, from, offset, length);
}

static bool send_by_hand(int from, off_t *offset, off_t end, int to)
{
    size_t size = end - *offset < SEND_BYTES ? (size_t)(end - *offset) : SEND_BYTES;
    char *buffer = malloc(size);
    ssize_t got = buffer ? 1 : -1;
    while (got > 0 && *offset < end) {
        size_t left = end - *offset < (off_t)size ? (size_t)(end - *offset) : size;
        got = file_read(from, buffer, left, *offset);
        if (got > 0 && !write_all(to, buffer, (size_t)got))
            got = -1;
        *offset += got > 0 ? got : 0;
    }
    int saved = errno;
    free(buffer);
    errno = saved;
    return got >= 0;
}

/* Which way goes depends on what the two are and where; the last one always goes if any does. */
static bool send_all(int from, off_t *offset, off_t end, int to)
{
    static ssize_t (*const ways[])(int, off_t *, size_t, int) = {send_range, send_spliced,
                                                                 send_pages};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        ssize_t sent = 1;
        while (*offset < end && sent > 0) {
            sent = ways[i](from, offset, (size_t)(end - *offset), to);
            if (sent < 0 && (errno == EINTR || (errno == EAGAIN && wait_for(to, POLLOUT))))
                sent = 1;
        }
    }
    return *offset == end || send_by_hand(from, offset, end, to);
}

void file_expect(int to, uint64_t length)
{
    struct stat file;
    struct statfs system;
    int saved = errno;
    if (length >= RESERVE_LEAST && length < INT64_MAX && fstat(to, &file) == 0 &&
        S_ISREG(file.st_mode) && fstatfs(to, &system) == 0 && system.f_type == EXT4_SUPER_MAGIC) {
        off_t at = lseek(to, 0, SEEK_CUR);
        if (at >= 0)
            fallocate(to, FALLOC_FL_KEEP_SIZE, at, (off_t)length);
    }
    errno = saved;
}

int64_t file_send(int from, off_t offset, off_t end, int to)
{
    struct pipe_guard guard;
    off_t at = offset;
    if (!guard_begin(&guard))
        return -1;
    bool sent = send_all(from, &at, end, to);
    guard_end(&guard, sent);
    return sent ? at - offset : -1;
}

int file_unnamed(void)
{
    const char *folder = secure_getenv("TMPDIR");
    if (!folder || !folder[0])
        folder = "/tmp";
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return descriptor_move(fd >= 0 ? fd : memfd_create("liara-cache", MFD_CLOEXEC));
}

int64_t file_copy(int from, int to)
{
    int64_t copied = 0;
    char *buffer = malloc(COPY_BYTES);
    if (!buffer)
        return -1;
    for (;;) {
        ssize_t got = file_read(from, buffer, COPY_BYTES, -1);
        if (got == 0)
            break;
        if (got < 0 || !file_write(to, buffer, (size_t)got)) {
            copied = -1;
            break;
        }
        copied += got;
    }
    int saved = errno;
    free(buffer);
    errno = saved;
    return copied;
}
