/*
 * What differs between the servers that are measured: the bytes of a request and of its reply. All
 * else is the same code for all of them.
 */
#ifndef LIARA_BENCH_PEER_H
#define LIARA_BENCH_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PEER_KEY = 20,      /* bytes of every key: "obj:" and 16 hex digits */
    PEER_HEAD_MAX = 160 /* bytes of a request before its value, and of a reply before its */
};

enum reply_kind { REPLY_MORE, REPLY_VALUE, REPLY_STORED, REPLY_EXISTS, REPLY_MISS, REPLY_BAD };

/* A reply as far as its value: head bytes, then the value, then tail bytes. */
struct reply {
    enum reply_kind kind;
    size_t head, tail;
    uint64_t length;
};

struct peer {
    const char *name;

    /* Writes the request to out, at most PEER_HEAD_MAX bytes; returns how many. */
    size_t (*get)(char *out, const char *key);

    /* The same up to the value of size bytes, which comes next, and after it put_tail. */
    size_t (*put)(char *out, const char *key, uint64_t size, bool overwrite);
    const char *put_tail;

    /* Reads the beginning of a reply to a GET or a PUT out of length bytes. */
    struct reply (*parse)(const char *in, size_t length, bool is_put);

    /* The bare server's replies carry no key's own value. */
    bool fixed_reply;
};

/* By its name, liara, memcached, redis or bare; NULL: no such peer. */
const struct peer *peer_find(const char *name);

/* The key of a number: all have the same length, and neighbours have nothing in common. */
void peer_key(char key[PEER_KEY], uint64_t number);

#endif
