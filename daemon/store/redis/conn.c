#include "conn.h"

#include "../../clock.h"
#include "../../container_of.h"
#include "../../log.h"
#include "greeting.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    RATE = 65536, /* bytes in a millisecond */
    RETRY_FIRST_MS = 50,
    RETRY_LAST_MS = 1000,
    READ_SIZE = 65536,
    READS = 4,           /* in a row, until others get a turn */
    REPLY_MAX = 64 << 20 /* bytes of one answer; more is no Redis */
};

enum conn_state {
    CONN_DOWN, /* waits for the next attempt; calls fail at once */
    CONN_CONNECTING,
    CONN_GREETING, /* connected, and not logged in yet */
    CONN_READY
};

struct redis_conn {
    struct redis_server *server;
    struct loop *loop;
    enum conn_state state;
    int fd; /* -1: there is none; then the next four are NULL */
    struct event *readable, *writable;
    struct evbuffer *out;
    redisReader *reader;
    size_t unparsed;         /* bytes since the last whole answer */
    struct loop_timer alarm; /* the only one */
    bool alarm_set;
    bool broken;             /* to be closed by the event that is being handled, or the next */
    bool away;               /* see redis_server_lost() */
    unsigned address;        /* index of the one in use */
    unsigned tried;          /* addresses in this attempt */
    int64_t attempt;         /* when it began, whichever address */
    int64_t began;           /* when the state did */
    int64_t delay;           /* before the next attempt */
    uint64_t sent;           /* bytes, over all connections */
    char why[REDIS_WHY_MAX]; /* the server is not to be had */
    struct redis_greeting greeting;
    struct redis_op *ops; /* oldest first; if ready, all have been put out */
    struct redis_op **last;
};

static void conn_connect(struct redis_conn *conn);

/* Fails what is there now, not what is asked anew by those who hear of it. */
static void conn_fail_ops(struct redis_conn *conn)
{
    struct redis_op *op = conn->ops;
    conn->ops = NULL;
    conn->last = &conn->ops;
    for (struct redis_op *next; op != NULL; op = next) {
        bool late = clock_now() >= op->started + conn->server->answer_ms;
        next = op->next;
        op->call->result.status = store_fail(op->call, late ? ERROR_TIMEOUT : ERROR_UNAVAILABLE,
                                             "Redis at %s: %s", conn->server->where, conn->why);
        op->finish(op);
    }
}

static void conn_alarm(struct loop_timer *timer);

static void conn_set_alarm(struct redis_conn *conn, int64_t milliseconds)
{
    conn->alarm_set = loop_timer_set(conn->loop, &conn->alarm, conn_alarm, milliseconds);
    if (!conn->alarm_set)
        log_error("Redis at %s: can't set a timer: %m", conn->server->where);
}

static void conn_enter(struct redis_conn *conn, enum conn_state state)
{
    conn->state = state;
    conn->began = clock_now();
}

/* What the kernel has not sent yet is not to be sent any more. */
static void conn_close(struct redis_conn *conn)
{
    struct linger now = {.l_onoff = 1};
    if (conn->readable != NULL)
        event_free(conn->readable);
    if (conn->writable != NULL)
        event_free(conn->writable);
    if (conn->out != NULL)
        evbuffer_free(conn->out);
    if (conn->reader != NULL)
        redisReaderFree(conn->reader);
    conn->readable = conn->writable = NULL;
    conn->out = NULL;
    conn->reader = NULL;
    if (conn->fd < 0)
        return;
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(conn->fd);
    conn->fd = -1;
}

/* Begins an attempt, now or after a while that doubles until Redis has shown itself useful. */
static void conn_retry(struct redis_conn *conn)
{
    int64_t delay = conn->delay;
    conn->delay = delay == 0 ? RETRY_FIRST_MS : MIN(delay * 2, RETRY_LAST_MS);
    conn->tried = 0;
    conn->greeting.refused = false;
    conn_enter(conn, CONN_DOWN);
    if (delay == 0)
        conn_connect(conn);
    else
        conn_set_alarm(conn, delay);
}

static void conn_next_address(struct redis_conn *conn)
{
    bool late = clock_now() >= conn->attempt + conn->server->connect_ms;
    conn->address = (conn->address + 1) % conn->server->address_count;
    conn_connect(conn);
    if (late)
        conn_fail_ops(conn);
}

/* conn->why says why. */
static void conn_lost(struct redis_conn *conn)
{
    enum conn_state state = conn->state;
    conn->broken = false;
    conn_close(conn);
    if (state == CONN_CONNECTING && ++conn->tried < conn->server->address_count) {
        conn_next_address(conn);
        return;
    }
    if (state == CONN_READY && clock_now() >= conn->began + conn->server->answer_ms)
        conn->delay = 0;
    /* A server may close an idle connection; only if it is not to be had again is that an outage.
     */
    if (state != CONN_READY || conn->ops != NULL || conn->delay != 0)
        redis_server_lost(conn->server, &conn->away,
                          conn->greeting.refused ? REDIS_REFUSED : REDIS_LOST, conn->why);
    conn_retry(conn);
    conn_fail_ops(conn);
}

/* Has the event that is being handled, or the next, give the connection up. */
static void __attribute__((format(printf, 2, 3)))
conn_break(struct redis_conn *conn, const char *format, ...)
{
    va_list args;
    if (conn->broken)
        return;
    va_start(args, format);
    vsnprintf(conn->why, sizeof(conn->why), format, args);
    va_end(args);
    conn->broken = true;
    if (conn->writable != NULL)
        event_active(conn->writable, EV_WRITE, 0);
}

static void alarm_connecting(struct redis_conn *conn)
{
    conn_break(conn, "no connection within %" PRId64 " ms", conn->server->connect_ms);
    conn_lost(conn);
}

/* Those who wait for the connection give up before it does. */
static void alarm_greeting(struct redis_conn *conn)
{
    int64_t now = clock_now();
    int64_t left = conn->began + conn->server->answer_ms - now;
    int64_t patience = conn->attempt + conn->server->connect_ms - now;
    if (left > 0 && patience > 0) {
        conn_set_alarm(conn, MIN(patience, left));
        return;
    }
    snprintf(conn->why, sizeof(conn->why), "it does not answer");
    if (left <= 0) {
        conn_lost(conn);
    } else {
        conn_set_alarm(conn, left);
        conn_fail_ops(conn);
    }
}

static void alarm_ready(struct redis_conn *conn)
{
    const struct redis_op *op = conn->ops;
    if (op == NULL)
        return;
    int64_t extra = (int64_t)((conn->sent - op->sent) / RATE);
    int64_t left = op->started + conn->server->answer_ms + extra - clock_now();
    if (left > 0) {
        conn_set_alarm(conn, left);
        return;
    }
    conn_break(conn, "no answer within %" PRId64 " ms", conn->server->answer_ms);
    conn_lost(conn);
}

static void conn_alarm(struct loop_timer *timer)
{
    static void (*const alarms[])(struct redis_conn * conn) = {
        [CONN_DOWN] = conn_connect,
        [CONN_CONNECTING] = alarm_connecting,
        [CONN_GREETING] = alarm_greeting,
        [CONN_READY] = alarm_ready,
    };
    struct redis_conn *conn = container_of(timer, struct redis_conn, alarm);
    conn->alarm_set = false;
    alarms[conn->state](conn);
}

/* Puts the op out, and has the bytes sent after all that is ready now: others' go with them. */
static void conn_put_out(struct redis_conn *conn, struct redis_op *op)
{
    op->awaited = 0;
    op->started = clock_now();
    op->sent = conn->sent;
    op->send(op);
    event_active(conn->writable, EV_WRITE, 0);
    if (!conn->alarm_set)
        conn_set_alarm(conn, conn->server->answer_ms);
}

static void take_greeting(struct redis_conn *conn, const struct redis_reply *reply)
{
    struct redis_greeting *greeting = &conn->greeting;
    redis_greeting_take(greeting, reply);
    if (greeting->refused)
        conn_break(conn, "%s", greeting->why);
    if (greeting->refused || greeting->awaited > 0)
        return;
    conn_enter(conn, CONN_READY);
    redis_server_back(conn->server, &conn->away);
    for (struct redis_op *waiting = conn->ops; waiting != NULL; waiting = waiting->next)
        conn_put_out(conn, waiting);
}

static void conn_greet(struct redis_conn *conn)
{
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
        conn_break(conn, "%s", strerror(error != 0 ? error : errno));
        return;
    }
    if (event_add(conn->readable, NULL) != 0 ||
        !redis_greeting_begin(&conn->greeting, conn->server, conn->out))
        conn_break(conn, "out of memory");
    conn_enter(conn, CONN_GREETING);
    conn_set_alarm(
        conn, MIN(conn->attempt + conn->server->connect_ms - conn->began, conn->server->answer_ms));
}

static void conn_send(struct redis_conn *conn)
{
    while (evbuffer_get_length(conn->out) > 0) {
        int sent = evbuffer_write(conn->out, conn->fd);
        if (sent > 0) {
            conn->sent += (uint64_t)sent;
        } else if (sent < 0 && errno == EAGAIN) {
            event_add(conn->writable, NULL);
            return;
        } else if (sent == 0 || errno != EINTR) {
            conn_break(conn, "%s", strerror(errno));
            return;
        }
    }
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct redis_conn *conn = arg;
    (void)fd;
    (void)what;
    if (conn->state == CONN_CONNECTING && !conn->broken)
        conn_greet(conn);
    if (!conn->broken)
        conn_send(conn);
    if (conn->broken)
        conn_lost(conn);
}

static void take_reply(struct redis_conn *conn, struct redis_reply *reply)
{
    struct redis_op *op = conn->ops;
    conn->unparsed = 0;
    if (conn->state == CONN_GREETING) {
        take_greeting(conn, reply);
    } else if (op == NULL || op->awaited == 0 || op->sent == conn->sent) {
        conn_break(conn, "an answer to nothing that was asked");
    } else {
        conn->delay = 0;
        op->awaited--;
        op->take(op, reply);
    }
}

static void parse(struct redis_conn *conn)
{
    void *reply;
    while (!conn->broken) {
        if (redisReaderGetReply(conn->reader, &reply) != REDIS_OK) {
            conn_break(conn, "%s", conn->reader->errstr);
            return;
        }
        if (reply == NULL)
            return;
        take_reply(conn, reply);
        redis_reply_free(reply);
    }
}

/* Whether more may be there. */
static bool read_some(struct redis_conn *conn)
{
    char bytes[READ_SIZE];
    ssize_t got = recv(conn->fd, bytes, sizeof(bytes), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (got < 0)
        conn_break(conn, "%s", strerror(errno));
    else if (got == 0)
        conn_break(conn, "it closed the connection");
    else if ((conn->unparsed += (size_t)got) > REPLY_MAX)
        conn_break(conn, "an answer without end");
    else if (redisReaderFeed(conn->reader, bytes, (size_t)got) != REDIS_OK)
        conn_break(conn, "%s", conn->reader->errstr);
    else
        parse(conn);
    return got == (ssize_t)sizeof(bytes) && !conn->broken;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct redis_conn *conn = arg;
    (void)fd;
    (void)what;
    for (unsigned i = 0; i < READS && read_some(conn); i++)
        ;
    if (conn->broken)
        conn_lost(conn);
}

static bool conn_open(struct redis_conn *conn, const struct redis_address *address)
{
    const struct sockaddr *to = (const struct sockaddr *)&address->storage;
    int yes = 1;
    conn->fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        return false;
    if (to->sa_family != AF_UNIX)
        setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    struct event_base *base = loop_base(conn->loop);
    conn->unparsed = 0;
    conn->reader = redis_reader_new();
    conn->out = evbuffer_new();
    conn->readable = event_new(base, conn->fd, EV_READ | EV_PERSIST, on_readable, conn);
    conn->writable = event_new(base, conn->fd, EV_WRITE, on_writable, conn);
    if (conn->reader == NULL || conn->out == NULL || conn->readable == NULL ||
        conn->writable == NULL || event_add(conn->writable, NULL) != 0) {
        errno = ENOMEM;
        return false;
    }
    return connect(conn->fd, to, address->length) == 0 || errno == EINPROGRESS;
}

static void conn_connect(struct redis_conn *conn)
{
    conn_enter(conn, CONN_CONNECTING);
    if (conn->tried == 0)
        conn->attempt = conn->began;
    conn_set_alarm(conn, conn->server->connect_ms);
    if (conn_open(conn, &conn->server->addresses[conn->address]))
        return;
    conn_break(conn, "%s", strerror(errno));
    conn_lost(conn);
}

/* Whether a call has a chance: it may wait a little for a connection that is being made. */
static bool conn_usable(const struct redis_conn *conn)
{
    if (conn->state == CONN_CONNECTING || conn->state == CONN_GREETING)
        return clock_now() < conn->attempt + conn->server->connect_ms;
    return conn->state == CONN_READY;
}

static void op_queue(struct redis_op *op)
{
    struct redis_conn *conn = op->conn;
    op->next = NULL;
    op->awaited = 0;
    op->started = clock_now();
    *conn->last = op;
    conn->last = &op->next;
    if (conn->state == CONN_READY)
        conn_put_out(conn, op);
}

/* The oldest goes, all its answers taken. */
static void op_take_off(struct redis_op *op)
{
    struct redis_conn *conn = op->conn;
    assert(conn->ops == op && op->awaited == 0);
    conn->ops = op->next;
    if (conn->ops == NULL)
        conn->last = &conn->ops;
}

bool redis_conn_start(struct redis_conn *conn, struct redis_op *op)
{
    if (!conn_usable(conn)) {
        op->call->result.status = store_fail(op->call, ERROR_UNAVAILABLE, "Redis at %s: %s",
                                             conn->server->where, conn->why);
        return false;
    }
    op->conn = conn;
    op_queue(op);
    return true;
}

void redis_op_again(struct redis_op *op, void (*send)(struct redis_op *),
                    void (*take)(struct redis_op *, struct redis_reply *))
{
    op_take_off(op);
    op->send = send;
    op->take = take;
    op_queue(op);
}

void redis_op_finish(struct redis_op *op, enum store_status status)
{
    op_take_off(op);
    op->call->result.status = status;
    op->finish(op);
}

void redis_op_break(struct redis_op *op, const char *why)
{
    op->awaited++; /* what came is no answer */
    conn_break(op->conn, "%s", why);
}

void redis_op_command(struct redis_op *op, const struct redis_word *words, unsigned count)
{
    op->awaited++;
    if (!redis_command_add(op->conn->out, words, count))
        conn_break(op->conn, "out of memory");
}

uint64_t redis_conn_bulk_max(const struct redis_conn *conn)
{
    return conn->greeting.bulk_max;
}

struct redis_conn *redis_conn_new(struct redis_server *server, struct loop *loop)
{
    struct redis_conn *conn = calloc(1, sizeof(*conn));
    if (conn == NULL)
        return NULL;
    conn->server = server;
    conn->loop = loop;
    conn->fd = -1;
    conn->last = &conn->ops;
    conn->greeting.bulk_max = UINT64_MAX;
    conn_retry(conn);
    return conn;
}

void redis_conn_free(struct redis_conn *conn)
{
    if (conn == NULL)
        return;
    if (conn->away)
        atomic_fetch_sub(&conn->server->away, 1);
    snprintf(conn->why, sizeof(conn->why), "the daemon is stopping");
    conn_close(conn);
    conn_enter(conn, CONN_DOWN);
    conn_fail_ops(conn);
    loop_timer_clear(&conn->alarm);
    free(conn);
}
