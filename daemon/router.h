/*
 * Joins protocol and cache, the only file that knows both: a table from verb to function. A request
 * comes in as a message, goes to the cache, and what comes of it becomes a reply and, for some, a
 * value to send. The router knows no bytes on the wire and no connection.
 */
#ifndef LIARA_ROUTER_H
#define LIARA_ROUTER_H

#include "../proto/message.h"
#include "cache.h"
#include "fetch.h"

/* What all exchanges share; filled once by main.c, read-only afterwards. */
struct router {
    struct cache *cache;
    const struct limits *limits;
    struct pool *files; /* reads clients' descriptors, and makes some for them */
    int64_t started;    /* clock_now() */
};

enum router_next {
    ROUTER_REPLY,   /* reply and value say what to send */
    ROUTER_PENDING, /* done() follows, then they do */
    ROUTER_BODY,    /* fill value's bytes, then call router_body() */
    ROUTER_QUIT     /* close */
};

/* One connection's request under way and its answer. */
struct exchange {
    const struct router *router;
    struct cache_session session;
    struct fetch fetch;
    bool fetching;        /* it is under way */
    bool wants_fd;        /* GET: a descriptor is welcome */
    struct cache_put put; /* how */
    struct reply reply;
    /* ROUTER_BODY: to be filled; with a reply: its bytes. The caller's reference. */
    struct value *value;
    /* With a reply: its bytes, where they are no value. bytes hold until the loop's next request,
     * pinned ones until the caller releases them. */
    const uint8_t *bytes;
    struct pinned pinned;
    int fd; /* with REPLY_FD: value's own; else -1 */
    void (*answer)(struct exchange *exchange, enum store_status status);
    void (*done)(struct exchange *exchange);
};

/* room: as of cache_session_start(). */
void exchange_start(struct exchange *exchange, const struct router *router, struct loop *loop,
                    uint8_t room[VALUE_COPY_MAX], void (*done)(struct exchange *exchange));

/*
 * Starts the request. *fd is the descriptor that came with it, or -1; it is taken, and -1 put
 * there, where the request is a PUT with fd. A refused PUT answers at once (ROUTER_REPLY with
 * REPLY_ERROR): its bytes, if any follow, are the caller's to pass over.
 */
enum router_next router_start(struct exchange *exchange, const struct request *request, int *fd);

/* Goes on with a PUT whose value has been filled: ROUTER_REPLY or ROUTER_PENDING. */
enum router_next router_body(struct exchange *exchange);

/* Whether it holds or waits for a lease: then its silence is not idleness. */
bool exchange_busy(struct exchange *exchange);

/*
 * The client has left. true: all is freed and the memory may go. false: something is under way;
 * done() will be called, and then this again.
 */
bool exchange_end(struct exchange *exchange);

/* Frees what it holds although done() has not come: its loop has ended, the store is closed. */
void exchange_abandon(struct exchange *exchange);

#endif
