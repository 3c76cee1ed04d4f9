#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { COPY_BYTES = 64 * 1024 };

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

/*
 * A write to a pipe that nobody reads raises SIGPIPE in this thread: it is held back meanwhile, and
 * the one that was raised is taken away, unless one was pending before.
 */
bool file_write(int fd, const void *bytes, size_t length)
{
    sigset_t pipe_signal, before, pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigpending(&pending);
    int failed = pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    if (failed) {
        errno = failed;
        return false;
    }
    bool written = write_all(fd, bytes, length);
    int saved = errno;
    if (!written && saved == EPIPE && !sigismember(&pending, SIGPIPE)) {
        const struct timespec at_once = {0, 0};
        while (sigtimedwait(&pipe_signal, NULL, &at_once) < 0 && errno == EINTR)
            continue;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return written;
}

int file_unnamed(void)
{
    const char *folder = secure_getenv("TMPDIR");
    if (!folder || !folder[0])
        folder = "/tmp";
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : memfd_create("liara-cache", MFD_CLOEXEC);
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
