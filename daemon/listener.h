/*
 * The socket that clients connect to: one that systemd hands over, or one of our own, made with its
 * mode from the first moment on, locked against a second daemon, and removed at the end.
 */
#ifndef LIARA_LISTENER_H
#define LIARA_LISTENER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct listener {
    int fd;
    int lock;   /* -1: systemd's socket */
    char *path; /* NULL: systemd's socket */
    dev_t device;
    ino_t inode; /* of our own socket: another's at the same path is not ours to remove */
};

/*
 * Listens at path with mode, or on the socket that systemd passed (LISTEN_FDS). Makes the socket's
 * folder if need be, for the owner alone, and refuses one in which others could replace the socket.
 * A stale socket is replaced, a live one never. false with why. Before any thread starts: it
 * changes the umask for a moment.
 */
bool listener_open(struct listener *listener, const char *path, uint32_t mode, char *why,
                   size_t size);

/* Stops listening, removes our socket, gives up its lock. Fine where open failed. */
void listener_close(struct listener *listener);

#endif
