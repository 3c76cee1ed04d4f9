#include "connect.h"

#include "descriptor.h"
#include "handle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { PLACES = 3 };

/* A folder that somebody else owns or can write to may hold a socket that somebody else serves. */
static bool is_private_folder(const char *path)
{
    struct stat folder;
    return lstat(path, &folder) == 0 && S_ISDIR(folder.st_mode) && folder.st_uid == geteuid() &&
           (folder.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* The socket in a folder of the user's own; false where there is none to be trusted. */
static bool own_place(char *path, const char *folder)
{
    struct stat socket_file;
    if (!is_private_folder(folder))
        return false;
    int length = snprintf(path, WIRE_PATH_MAX, "%s/socket", folder);
    return length > 0 && length < WIRE_PATH_MAX && stat(path, &socket_file) == 0 &&
           S_ISSOCK(socket_file.st_mode);
}

static size_t default_places(char places[PLACES][WIRE_PATH_MAX])
{
    size_t count = 0;
    char folder[WIRE_PATH_MAX];
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    if (runtime && runtime[0] == '/') {
        int length = snprintf(folder, sizeof(folder), "%s/liara-cached", runtime);
        if (length < (int)sizeof(folder) && own_place(places[count], folder))
            count++;
    }
    snprintf(folder, sizeof(folder), "/tmp/liara-cached-%u", (unsigned)geteuid());
    if (own_place(places[count], folder))
        count++;
    strcpy(places[count++], "/run/liara-cached/socket");
    return count;
}

/* For connect() and 0 for ever, which is why at least 1 millisecond is left. */
static struct timeval time_left(const struct liara_cache *cache)
{
    struct timeval left = {0, 0};
    if (cache->timeout == 0)
        return left;
    int64_t milliseconds = cache->wire.called + cache->timeout - wire_now();
    if (milliseconds < 1)
        milliseconds = 1;
    left.tv_sec = milliseconds / 1000;
    left.tv_usec = milliseconds % 1000 * 1000;
    return left;
}

/*
 * connect() waits where the daemon's backlog is full, for SO_SNDTIMEO at most: EAGAIN then. A
 * signal interrupts it, and it goes on for what is left.
 */
static int connect_in_time(const struct liara_cache *cache, int fd,
                           const struct sockaddr_un *address)
{
    int result;
    do {
        struct timeval left = time_left(cache);
        if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &left, sizeof(left)) != 0)
            return -1;
        result = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    } while (result != 0 && errno == EINTR &&
             (cache->timeout == 0 || wire_now() < cache->wire.called + cache->timeout));
    return result;
}

static enum liara_cache_status connect_path(struct liara_cache *cache, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return handle_fail(cache, LIARA_CACHE_USAGE, "%s: longer than a socket's path can be (%zu)",
                           path, sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    strcpy(cache->path, path);
    int fd = descriptor_move(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (fd < 0)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no socket to be had: %m");
    if (connect_in_time(cache, fd, &address) == 0) {
        wire_attach(&cache->wire, fd, cache->timeout);
        return LIARA_CACHE_OK;
    }
    int failed = errno;
    close(fd);
    errno = failed;
    if (failed == EAGAIN || failed == EINTR)
        return handle_fail(cache, LIARA_CACHE_TIMED_OUT, "%s: the daemon accepts no connection",
                           path);
    return handle_fail(cache, LIARA_CACHE_UNREACHABLE, "no daemon answers at %s: %m", path);
}

static enum liara_cache_status none_answers(struct liara_cache *cache,
                                            char places[PLACES][WIRE_PATH_MAX], size_t count)
{
    return handle_fail(cache, LIARA_CACHE_UNREACHABLE,
                       "no daemon answers at %s%s%s%s%s; start liara-cached or set "
                       "LIARA_CACHE_SOCKET to its socket",
                       places[0], count > 1 ? ", " : "", count > 1 ? places[1] : "",
                       count > 2 ? ", " : "", count > 2 ? places[2] : "");
}

enum liara_cache_status connect_socket(struct liara_cache *cache)
{
    if (cache->socket)
        return connect_path(cache, cache->socket);
    char places[PLACES][WIRE_PATH_MAX];
    size_t count = default_places(places);
    for (size_t i = 0; i < count; i++) {
        enum liara_cache_status status = connect_path(cache, places[i]);
        if (status != LIARA_CACHE_UNREACHABLE)
            return status;
    }
    return none_answers(cache, places, count);
}
