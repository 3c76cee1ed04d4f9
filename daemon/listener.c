#include "listener.h"

#include "lock.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

static bool use_systemd(struct listener *listener, int count, char *why, size_t size)
{
    if (count > 1 || sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_STREAM, 1, NULL, 0) <= 0) {
        snprintf(why, size,
                 "systemd passed %d sockets; one listening Unix stream socket is expected "
                 "(ListenStream= of the .socket unit)",
                 count);
        return false;
    }
    listener->fd = SD_LISTEN_FDS_START;
    int flags = fcntl(listener->fd, F_GETFL);
    if (flags < 0 || fcntl(listener->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        snprintf(why, size, "can't use systemd's socket: %s", strerror(errno));
        return false;
    }
    return true;
}

/* Whoever may write into the folder may put a socket of his own in our place, unless it is sticky.
 */
static bool check_folder(const char *folder, char *why, size_t size)
{
    struct stat st;
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        snprintf(why, size, "can't make the socket's folder %s: %s", folder, strerror(errno));
        return false;
    }
    if (lstat(folder, &st) != 0) {
        snprintf(why, size, "can't look at the socket's folder %s: %s", folder, strerror(errno));
        return false;
    }
    bool sticky = (st.st_mode & S_ISVTX) != 0;
    bool ours = st.st_uid == geteuid() || st.st_uid == 0;
    if (S_ISDIR(st.st_mode) && ours && ((st.st_mode & S_IWOTH) == 0 || sticky))
        return true;
    snprintf(
        why, size,
        "the socket's folder %s is not safe: it must be a folder of ours or root's that others "
        "can't write to",
        folder);
    return false;
}

static bool fill_address(struct sockaddr_un *address, const char *path, char *why, size_t size)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address->sun_path)) {
        snprintf(why, size, "the socket's path is longer than %zu bytes: %s",
                 sizeof(address->sun_path) - 1, path);
        return false;
    }
    strcpy(address->sun_path, path);
    return true;
}

static bool answers(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return true;
    /* EAGAIN is a live socket whose queue is full. */
    bool live =
        connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN;
    close(fd);
    return live;
}

/* Removes a socket that nobody serves any more; we hold the lock. */
static bool clear_path(const struct sockaddr_un *address, char *why, size_t size)
{
    struct stat st;
    const char *path = address->sun_path;
    if (lstat(path, &st) != 0) {
        if (errno == ENOENT)
            return true;
        snprintf(why, size, "can't look at %s: %s", path, strerror(errno));
    } else if (!S_ISSOCK(st.st_mode)) {
        snprintf(why, size, "%s exists and is no socket; remove it or choose another path", path);
    } else if (answers(address)) {
        snprintf(why, size, "the socket %s is in use by another daemon", path);
    } else if (unlink(path) != 0) {
        snprintf(why, size, "can't remove the stale socket %s: %s", path, strerror(errno));
    } else {
        log_info("replaced the stale socket %s", path);
        return true;
    }
    return false;
}

/* The umask, not a chmod afterwards, so that no moment has a wider mode. */
static bool bind_and_listen(struct listener *listener, const struct sockaddr_un *address,
                            uint32_t mode)
{
    struct stat st;
    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0)
        return false;
    mode_t before = umask(0777 & ~(mode_t)mode);
    int bound = bind(listener->fd, (const struct sockaddr *)address, sizeof(*address));
    umask(before);
    if (bound != 0 || listen(listener->fd, SOMAXCONN) != 0 || stat(address->sun_path, &st) != 0)
        return false;
    listener->device = st.st_dev;
    listener->inode = st.st_ino;
    return true;
}

static bool take_lock(struct listener *listener, const char *path, char *why, size_t size)
{
    char lock[sizeof(((struct sockaddr_un *)0)->sun_path) + 8], what[160], folder[sizeof(lock)];
    snprintf(folder, sizeof(folder), "%s", path);
    if (!check_folder(dirname(folder), why, size))
        return false;
    snprintf(lock, sizeof(lock), "%s.lock", path);
    snprintf(what, sizeof(what), "the socket %s", path);
    listener->lock = lock_take(lock, what, why, size);
    return listener->lock >= 0;
}

static bool open_own(struct listener *listener, const char *path, uint32_t mode, char *why,
                     size_t size)
{
    struct sockaddr_un address;
    if (!fill_address(&address, path, why, size) || !take_lock(listener, path, why, size) ||
        !clear_path(&address, why, size))
        return false;
    if (!bind_and_listen(listener, &address, mode)) {
        snprintf(why, size, "can't listen on %s: %s", path, strerror(errno));
        return false;
    }
    listener->path = strdup(path);
    return true;
}

bool listener_open(struct listener *listener, const char *path, uint32_t mode, char *why,
                   size_t size)
{
    *listener = (struct listener){.fd = -1, .lock = -1};
    int passed = sd_listen_fds(1);
    bool ok = passed > 0 ? use_systemd(listener, passed, why, size)
                         : open_own(listener, path, mode, why, size);
    if (!ok)
        listener_close(listener);
    return ok;
}

void listener_close(struct listener *listener)
{
    struct stat st;
    if (listener->fd >= 0)
        close(listener->fd);
    if (listener->path != NULL && stat(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode)
        unlink(listener->path);
    if (listener->lock >= 0)
        close(listener->lock);
    free(listener->path);
    *listener = (struct listener){.fd = -1, .lock = -1};
}
