#include "streams.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

/*
 * What takes the place of a closed stream can be neither read nor written, and /dev/stdin and its
 * like can't open it anew: a null device would make "put KEY /dev/stdin" store an empty value.
 */
bool streams_occupy(struct streams *streams)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        streams->closed[fd] = fcntl(fd, F_GETFD) < 0 && errno == EBADF;
        if (streams->closed[fd] && epoll_create1(EPOLL_CLOEXEC) < 0)
            return false;
    }
    return true;
}

bool streams_need(const struct streams *streams, int stream)
{
    if (!streams->closed[stream])
        return true;
    complain("standard %s is closed", stream == STDIN_FILENO ? "input" : "output");
    return false;
}
