/*
 * One loop's connection to a Redis server, and the calls that are on their way over it: connecting
 * in the background, logging in, time-outs, and which answer belongs to whom. It knows commands and
 * replies, not what they mean. Everything here runs on the loop's own thread.
 *
 * hiredis 0.14.1 has no time-outs. Here the oldest command has redis-timeout, and a millisecond
 * more for each 64 KiB that were sent since. Once it is late the connection is closed, so that an
 * answer that comes later finds nobody. Nobody waits longer than redis-connect-timeout for a
 * connection.
 */
#ifndef LIARA_STORE_REDIS_CONN_H
#define LIARA_STORE_REDIS_CONN_H

#include "redis_server.h"
#include "store.h"

#include <hiredis/hiredis.h>

struct redis_conn;

/*
 * A call on its way: one step after another, each some commands that are asked at once and their
 * answers. Lives in its owner's struct, which is freed by finish() alone.
 */
struct redis_op {
    struct redis_op *next;   /* the connection's */
    struct redis_conn *conn; /* the connection's */
    struct store_call *call;
    /* Puts out the step's commands. false: there is no room for the rest now; it is called again
     * once there is. Others' commands wait until all is out. */
    bool (*ask)(struct redis_op *op);
    /* Takes one answer, in the order of the commands, and may take away reply's elements; at the
     * last (awaited is 0) it calls one of redis_op_again() and redis_op_finish(). An error of the
     * server is an answer too. */
    void (*take)(struct redis_op *op, redisReply *reply);
    /* The call has finished: call->status is set, and its error where it has failed. Frees the op,
     * answers the call. */
    void (*finish)(struct redis_op *op);
    unsigned awaited; /* answers of this step that are still to come */
    int64_t started;  /* the connection's: when the step began, and how much had been sent */
    int64_t sent;
};

/*
 * A connection on that loop, which begins to connect once the loop runs; it is tried for ever. NULL
 * where memory is short. The server outlives it. SIGPIPE must be ignored.
 */
struct redis_conn *redis_conn_new(struct redis_server *server, struct loop *loop);

/* Fails what is on its way, closes, frees. NULL is fine. Not from inside ask() or take(). */
void redis_conn_free(struct redis_conn *conn);

/* Bytes that the server takes as one value; the usual bound until it has told its own. */
uint64_t redis_conn_bulk_max(const struct redis_conn *conn);

/*
 * Starts op, whose call, ask, take and finish are set, behind all others. false: the server is not
 * to be had, the call has failed and says why, and the op is still the caller's; else finish() will
 * be called once, later.
 */
bool redis_conn_start(struct redis_conn *conn, struct redis_op *op);

/* The next step of op, behind what others asked meanwhile. From inside take(). */
void redis_op_again(struct redis_op *op, bool (*ask)(struct redis_op *),
                    void (*take)(struct redis_op *, redisReply *));

/* The end of op, which is the owner's again: finish() is called. From inside take(). */
void redis_op_finish(struct redis_op *op, enum store_status status);

/* Gives the connection up soon, and op fails with it; why in a few words. From ask() or take(),
 * which does no more with op. */
void redis_op_break(struct redis_op *op, const char *why);

/* Puts out a whole command. This and those below: from inside ask(). */
void redis_op_command(struct redis_op *op, int count, const char **words, const size_t *lengths);

/* Puts out the beginning of one command, as the protocol has it, up to all of its first word. */
void redis_op_begin(struct redis_op *op, const char *bytes, size_t length);

/* Puts out more of the command that was begun. */
void redis_op_more(struct redis_op *op, const void *bytes, size_t length);

/* How many bytes there is room for; what is put out beyond is no error, but takes memory. */
size_t redis_op_room(const struct redis_op *op);

#endif
