/* What a handle is, for the files of the library. */
#ifndef LIARA_CLIENT_HANDLE_H
#define LIARA_CLIENT_HANDLE_H

#include "../proto/message.h"
#include "liara_cache.h"
#include "wire.h"

struct liara_cache {
    char *socket;             /* as given or as LIARA_CACHE_SOCKET says; NULL: the default places */
    char path[WIRE_PATH_MAX]; /* last connected to */
    unsigned timeout;         /* milliseconds, 0: none */
    unsigned long_timeout;
    bool has_put_cost; /* for the next put: */
    uint32_t put_cost; /* milliseconds */
    bool descriptors;  /* large values may come as such */
    liara_cache_progress *progress;
    void *progress_arg;
    uint32_t prefix_length;
    uint8_t prefix[MESSAGE_KEY_MAX];
    char error[512];
    struct wire wire;
};

/* Begins a public call: the error text of the last one is forgotten. */
void handle_begin(struct liara_cache *cache);

/* Sets the error text and returns status. %m is errno's text, and errno stays as it is. */
enum liara_cache_status handle_fail(struct liara_cache *cache, enum liara_cache_status status,
                                    const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same from the daemon's ERROR. */
enum liara_cache_status handle_refused(struct liara_cache *cache, const struct reply *reply);

#endif
