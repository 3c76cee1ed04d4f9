/* One request and its reply, with connecting and repeating where that is needed. */
#ifndef LIARA_CLIENT_ASK_H
#define LIARA_CLIENT_ASK_H

#include "handle.h"

/* What follows the line of a PUT. Lives at the beginning of a larger struct of its kind. */
struct ask_value {
    /*
     * Describes the value from its first byte on in output, whose parts[0] is the line already:
     * adds parts behind it and counts them, sets more or descriptor. Called for each attempt; false
     * where the value can't be sent once more.
     */
    bool (*start)(struct ask_value *value, struct wire_output *output);
};

/* A request of that verb with all else zero; the key's bytes are not set. */
void ask_request(struct request *request, enum verb verb);

/* USAGE for a key that is empty or, with the prefix, too long. */
enum liara_cache_status ask_check_key(struct liara_cache *cache, size_t key_length);

/* Checks the key and copies it in. */
enum liara_cache_status ask_key(struct liara_cache *cache, struct request *request, const void *key,
                                size_t key_length);

/*
 * Sends the request and takes the reply's line. What may take long (a GET with a lease, PERSIST,
 * CLEAR) is sent behind a PING: its answer tells a daemon that hangs from one that is at work, and
 * is taken here. OK: *reply is it, and is no ERROR; of REPLY_VALUE
 * the bytes are still to be taken, by wire_take() or wire_peek() to the last, wire_end_value() and
 * ask_end(); of REPLY_FD the descriptor, by wire_take_descriptor() and ask_end(). value is NULL for
 * all but PUT. A GET that asks for a descriptor and loses the connection is repeated without
 * (request->fd is false then): the daemon's kernel may have refused to pass one.
 */
enum liara_cache_status ask(struct liara_cache *cache, struct request *request,
                            struct ask_value *value, struct reply *reply);

/* Milliseconds that the reply to a PUT of so many bytes may take, 0: for ever. */
unsigned ask_limit(const struct liara_cache *cache, uint64_t length);

/* After a value's bytes or its descriptor. */
void ask_end(struct liara_cache *cache);

/*
 * For who exchanges more than one request at once, after wire_call(): connects where there is no
 * connection, with the prefix set. And after wire_reply() has failed with status: whether the
 * connection had been idle and was closed before an answer began, so that all may be sent again.
 */
enum liara_cache_status ask_connect(struct liara_cache *cache);
bool ask_again(const struct liara_cache *cache, enum liara_cache_status status);

/* The reply is not one that belongs to the request: closes the connection. */
enum liara_cache_status ask_unexpected(struct liara_cache *cache);

#endif
