/* A value that was asked for and is there: its bytes are still to be taken. */
#ifndef LIARA_CLIENT_GET_H
#define LIARA_CLIENT_GET_H

#include "passed.h"

struct hit {
    struct reply reply;   /* REPLY_VALUE or REPLY_FD, with length, flags and ttl */
    struct passed passed; /* without a descriptor the bytes are on their way */
};

/*
 * Asks for the value, by a descriptor if the daemon likes. OK: of *hit the caller takes what there
 * is, by receive_value() and ask_end(), by get_write(), or by what passed.h has; and ends with
 * passed_close(). MISS; LEASE, where seconds of lease are not 0. Otherwise there is nothing to take
 * or close.
 */
enum liara_cache_status get_begin(struct liara_cache *cache, const void *key, size_t key_length,
                                  uint32_t lease, struct hit *hit);

/* Writes the whole value to the descriptor fd and ends the request. */
enum liara_cache_status get_write(struct liara_cache *cache, const struct hit *hit, int fd);

#endif
