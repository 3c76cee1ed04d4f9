#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static void explain(int fd, const char *what, char *why, size_t size)
{
    char holder[16];
    ssize_t got = pread(fd, holder, sizeof(holder) - 1, 0);
    holder[got < 0 ? 0 : got] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    snprintf(why, size,
             "%s is in use by another daemon (process %s); stop that one or choose another", what,
             holder[0] != '\0' ? holder : "unknown");
}

static void write_holder(int fd)
{
    char text[16];
    int length = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    /* Only for people to read: the lock holds without it. */
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)length, 0) != length)
        return;
}

int lock_take(const char *path, const char *what, char *why, size_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        snprintf(why, size, "can't open the lock file %s: %s", path, strerror(errno));
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        write_holder(fd);
        return fd;
    }
    if (errno == EWOULDBLOCK)
        explain(fd, what, why, size);
    else
        snprintf(why, size, "can't lock %s: %s", path, strerror(errno));
    close(fd);
    return -1;
}
