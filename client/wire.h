/*
 * Bytes over a connected socket: what is sent, what is received, and how long that may take.
 *
 * A request's output is described first; it is sent while the reply is awaited, as far as the
 * daemon takes it, so the two can never block each other. Whatever fails here closes the
 * connection.
 */
#ifndef LIARA_CLIENT_WIRE_H
#define LIARA_CLIENT_WIRE_H

#include "../proto/message.h"
#include "busy.h"
#include "liara_cache.h"

#include <sys/uio.h>
#include <sys/un.h>

enum {
    WIRE_PATH_MAX = sizeof(((struct sockaddr_un *)0)->sun_path),
    WIRE_BUFFER = 64 * 1024,
    WIRE_PARTS = 3
};

/* What is still to be sent. */
struct wire_output {
    struct iovec parts[WIRE_PARTS];
    unsigned first, count; /* parts[first..count) are left */
    int descriptor;        /* goes with the first byte of the next part; -1: none */
    /*
     * Called when no part is left: sets parts, first and count, or leaves count 0 where there is
     * nothing (more) to send now. Not OK: the error is set, the connection will be closed. NULL:
     * there is never more.
     */
    enum liara_cache_status (*more)(struct liara_cache *cache, struct wire_output *output);
    void *context; /* more()'s */
};

struct wire {
    int fd;                   /* -1: not connected */
    int passed;               /* a descriptor that came with the bytes, -1: none */
    bool unpassed;            /* one came, but this process may have no more */
    bool answered;            /* a byte of a reply has come since wire_begin(), wire_wait() */
    bool waited;              /* the one blocking receive of this request is over */
    bool cut;                 /* the daemon takes no more */
    bool fresh;               /* connected by the call that is going on */
    bool alive;               /* wire_wait() was called since wire_begin() */
    unsigned limit;           /* milliseconds until a wait is given up, 0: never */
    unsigned after;           /* what limit becomes once a reply has begun */
    unsigned receive_timeout; /* what SO_RCVTIMEO is */
    int64_t called;           /* when the call began; connecting counts too */
    int64_t deadline;
    int64_t ticked;       /* when progress was last told */
    uint64_t moved;       /* bytes since the deadline was last set */
    uint64_t done, total; /* for progress */
    struct busy busy;
    struct wire_output *output;
    size_t start, end; /* received and not yet taken: in[start..end) */
    char in[WIRE_BUFFER];
};

/* Puts wire into the state of no connection, without polling. */
void wire_init(struct wire *wire);

/* Takes over a connected socket; timeout as below. */
void wire_attach(struct wire *wire, int fd, unsigned timeout);

/* What most requests' limit will be, in milliseconds: those wait in one system call. */
void wire_set_timeout(struct wire *wire, unsigned timeout);

/* Closes the connection, if there is one. Keeps errno. */
void wire_drop(struct wire *wire);

/* A call begins: what it does before its first reply shares one limit, connecting included. */
void wire_call(struct wire *wire);

/*
 * Begins a request whose replies may take limit milliseconds (0: for ever) each, the first one
 * since wire_call(). output must stay until wire_finish(); NULL: nothing is to be sent.
 */
void wire_begin(struct liara_cache *cache, struct wire_output *output, unsigned limit);

/* The next reply's line. Its deadline begins now. */
enum liara_cache_status wire_reply(struct liara_cache *cache, struct reply *reply);

/*
 * The daemon has just shown that it is alive, and the next reply may take limit milliseconds (0:
 * for ever) to begin. From its first byte on the limit of wire_begin() holds again.
 */
void wire_wait(struct wire *wire, unsigned limit);

/* Takes exactly length bytes of a value into bytes. */
enum liara_cache_status wire_take(struct liara_cache *cache, void *bytes, size_t length);

/* Shows at least 1 and at most limit (1 or more) bytes of a value; they are taken. Valid until the
 * next call. */
enum liara_cache_status wire_peek(struct liara_cache *cache, uint64_t limit, const void **bytes,
                                  size_t *length);

/* Takes the LF behind a value. */
enum liara_cache_status wire_end_value(struct liara_cache *cache);

/* The descriptor that came with the reply, now the caller's to close; -1: there was none. */
int wire_take_descriptor(struct wire *wire);

/*
 * A request's replies have been taken: where output is left unsent, the connection is closed. So is
 * a descriptor that nobody took.
 */
void wire_finish(struct liara_cache *cache);

/* total bytes of a value are on their way; for progress. */
void wire_expect(struct wire *wire, uint64_t total);

/* bytes of the value have passed otherwise than through the socket; for progress. */
void wire_passed(struct liara_cache *cache, size_t bytes);

/* Monotonic milliseconds. */
int64_t wire_now(void);

#endif
