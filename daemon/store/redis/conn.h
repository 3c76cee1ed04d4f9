/*
 * One loop's connection to a Redis server, and the requests that are on their way over it:
 * connecting in the background, logging in, time-outs, and which answer belongs to which request.
 * It knows commands and answers, not what they mean. Everything here runs on the loop's own thread.
 *
 * Commands go out in one row, and Redis answers in that order, so an answer belongs to the oldest
 * command that waits for one. That command has redis-timeout, and a millisecond more for each
 * 64 KiB that were sent since it was put out. Once it is late, or an answer makes no sense, the
 * connection is closed for good: what comes later finds nobody. No request waits longer than
 * redis-connect-timeout for a connection.
 *
 * Of hiredis only the parser is used. Its own connections can't be told how long to wait: the
 * asynchronous ones have no time-out (and end the program if an answer comes that nobody asked
 * for), the blocking ones count each read alone.
 */
#ifndef LIARA_REDIS_CONN_H
#define LIARA_REDIS_CONN_H

#include "../store.h"
#include "command.h"
#include "reply.h"
#include "server.h"

struct redis_conn;

/*
 * A call on its way: one step after another, each some commands that go out at once and their
 * answers. Lives in its owner's struct, which is freed by finish() alone.
 */
struct redis_op {
    struct redis_op *next;   /* the connection's */
    struct redis_conn *conn; /* the connection's */
    struct store_call *call;
    /* Puts out the step's commands, at least one. */
    void (*send)(struct redis_op *op);
    /* Takes one answer, in the order of the commands, and may take away reply's elements; at the
     * last (awaited is 0) it calls one of redis_op_again() and redis_op_finish(). An error of the
     * server is an answer too. */
    void (*take)(struct redis_op *op, struct redis_reply *reply);
    /* The call has finished: call->result.status is set, and its error if it has failed. Frees the
     * op, answers the call. */
    void (*finish)(struct redis_op *op);
    unsigned awaited; /* answers of this step that are still to come; in finish(): that did not */
    int64_t started;  /* the connection's: when the step began, and how much had been sent */
    uint64_t sent;
};

/*
 * A connection on that loop, which is tried for ever. NULL: no memory. The server outlives it.
 * SIGPIPE must be ignored.
 */
struct redis_conn *redis_conn_new(struct redis_server *server, struct loop *loop);

/* Fails what is on its way, closes, frees. NULL is fine. Not from inside send() or take(). */
void redis_conn_free(struct redis_conn *conn);

/* Bytes that the server takes as one value; UINT64_MAX until it has told. */
uint64_t redis_conn_bulk_max(const struct redis_conn *conn);

/*
 * Starts op, whose call, send, take and finish are set, behind all others. false: the server is not
 * to be had, the call has failed and says why, and the op is still the caller's; else finish() will
 * be called once, later.
 */
bool redis_conn_start(struct redis_conn *conn, struct redis_op *op);

/* The next step of op, behind what others asked meanwhile. From inside take(). */
void redis_op_again(struct redis_op *op, void (*send)(struct redis_op *),
                    void (*take)(struct redis_op *, struct redis_reply *));

/* The end of op, which is the owner's again: finish() is called. From inside take(). */
void redis_op_finish(struct redis_op *op, enum store_status status);

/* Gives the connection up soon, and op fails with it; why in a few words. From send() or take(),
 * which does no more with op. */
void redis_op_break(struct redis_op *op, const char *why);

/* Puts out a command. From inside send(). */
void redis_op_command(struct redis_op *op, const struct redis_word *words, unsigned count);

#endif
