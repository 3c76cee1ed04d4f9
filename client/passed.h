/*
 * A value that came as a descriptor. Its file is somebody else's: how long it is was checked once,
 * and whether it still is so is checked with every read, which is why it is mapped only where it is
 * sealed.
 */
#ifndef LIARA_CLIENT_PASSED_H
#define LIARA_CLIENT_PASSED_H

#include "handle.h"

#include <sys/types.h>

struct passed {
    int fd; /* -1: the value did not come so */
    off_t offset, end;
};

/*
 * Takes over the descriptor of the reply, a REPLY_FD, and ends the request. PROTOCOL, with the
 * connection closed: there is none, or it is no file that has the value. Otherwise the caller gives
 * *passed to passed_close().
 */
enum liara_cache_status passed_take(struct liara_cache *cache, const struct reply *reply,
                                    struct passed *passed);

/* Closes the descriptor, if there is one. Keeps errno. */
void passed_close(struct passed *passed);

/* Reads the whole value into bytes. */
enum liara_cache_status passed_read(struct liara_cache *cache, const struct passed *passed,
                                    void *bytes);

/* Writes the whole value to the descriptor to. */
enum liara_cache_status passed_write(struct liara_cache *cache, const struct passed *passed,
                                     int to);

/*
 * Maps the value for reading. Returns its first byte, and in *base and *size what munmap() takes;
 * NULL, with neither touched, where that is not safe or can't be done.
 */
const void *passed_map(const struct passed *passed, void **base, size_t *size);

#endif
