/*
 * An answer of Redis, parsed by hiredis's reader: the part of it that does no I/O (hiredis/read.h).
 */
#ifndef LIARA_REDIS_REPLY_H
#define LIARA_REDIS_REPLY_H

#include <hiredis/read.h>
#include <stdbool.h>
#include <stddef.h>

struct redis_reply {
    int type; /* hiredis's REDIS_REPLY_… */
    long long integer;
    size_t length; /* bytes of a string, status or error; elements of an array */
    struct redis_reply **elements;
    char *text; /* ended by a NUL that length does not count */
};

/*
 * A parser: redisReaderFeed() takes bytes, redisReaderGetReply() makes a struct redis_reply of
 * them. An array of more than a million elements is an error. NULL: no memory; redisReaderFree()
 * frees.
 */
redisReader *redis_reader_new(void);

/* NULL is fine. */
void redis_reply_free(struct redis_reply *reply);

/* Whether it is an error that begins so. */
bool redis_reply_failed(const struct redis_reply *reply, const char *beginning);

/* The text as it may stand in a log or an error; out is returned. */
const char *redis_printable(char *out, size_t size, const void *text, size_t length);

#endif
