#include "redis_conn.h"

#include "../clock.h"
#include "../container_of.h"
#include "../log.h"

#include <assert.h>
#include <fcntl.h>
#include <hiredis/adapters/libevent.h>
#include <hiredis/async.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

enum {
    RATE = 65536, /* bytes in a millisecond */
    RETRY_FIRST_MS = 50,
    RETRY_LAST_MS = 1000,
    WHY_MAX = 128,
    OUTPUT_MAX = 256 * 1024,
    ELEMENTS_MAX = 1 << 20 /* of an answer; more is no Redis */
};

/* Redis's proto-max-bulk-len where it does not say itself, and the least that it can be. */
#define BULK_MAX   (512ULL << 20)
#define BULK_LEAST (1ULL << 20)

enum conn_state {
    CONN_DOWN,       /* waits for the next attempt; calls fail at once */
    CONN_CONNECTING, /* ac is NULL until the alarm has begun it */
    CONN_GREETING,   /* connected, and not logged in yet */
    CONN_READY,
    CONN_BROKEN /* to be closed by the alarm: where it was found out hiredis may be our caller */
};

struct redis_conn {
    struct redis_server *server;
    struct loop *loop;
    enum conn_state state;
    redisAsyncContext *ac;             /* or NULL; hiredis frees it where it fails by itself */
    redisReplyObjectFunctions checked; /* what its parser makes replies with, */
    redisReplyObjectFunctions *make;   /* and hiredis's own, which they call */
    struct loop_timer alarm;           /* the only one */
    bool alarm_set;
    bool away;        /* see redis_server_lost() */
    bool refused;     /* in this attempt, by an answer of the server */
    unsigned address; /* index of the one in use */
    unsigned tried;   /* addresses in this attempt */
    int64_t attempt;  /* when it began, whichever address */
    int64_t began;    /* when the state did */
    int64_t delay;    /* before the next attempt */
    uint64_t bulk_max;
    int64_t put_out;      /* bytes, the greeting's not among them */
    char why[WHY_MAX];    /* the server is not to be had */
    struct redis_op *ops; /* oldest first: those asked, then those to be asked */
    struct redis_op **last;
    struct redis_op *unasked; /* the first of the latter; its command may be out in part */
};

static void conn_connect(struct redis_conn *conn);
static void conn_feed(struct redis_conn *conn);
static void conn_alarm(struct loop_timer *timer);

/* For comparing: how much has gone out. */
static int64_t conn_sent(const struct redis_conn *conn)
{
    return conn->put_out - (conn->ac == NULL ? 0 : (int64_t)sdslen(conn->ac->c.obuf));
}

/* Fails what is there now, not what is asked anew by those who hear of it. */
static void conn_fail_ops(struct redis_conn *conn)
{
    struct redis_op *op = conn->ops;
    conn->ops = conn->unasked = NULL;
    conn->last = &conn->ops;
    for (struct redis_op *next; op != NULL; op = next) {
        bool late = clock_now() >= op->started + conn->server->answer_ms;
        next = op->next;
        op->call->status = store_fail(op->call, late ? ERROR_TIMEOUT : ERROR_UNAVAILABLE,
                                      "Redis at %s: %s", conn->server->where, conn->why);
        op->finish(op);
    }
}

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

/* Begins an attempt, now or after a while that doubles until Redis has shown itself useful. */
static void conn_retry(struct redis_conn *conn)
{
    int64_t delay = conn->delay;
    conn->delay = delay == 0 ? RETRY_FIRST_MS : MIN(delay * 2, RETRY_LAST_MS);
    conn->tried = 0;
    conn->refused = false;
    conn_enter(conn, delay == 0 ? CONN_CONNECTING : CONN_DOWN);
    conn->attempt = conn->began;
    conn_set_alarm(conn, delay);
}

static void conn_next_address(struct redis_conn *conn)
{
    conn->address = (conn->address + 1) % conn->server->address_count;
    conn_set_alarm(conn, 0);
    if (clock_now() >= conn->attempt + conn->server->connect_ms)
        conn_fail_ops(conn);
}

/* There is no context any more; conn->why says why. */
static void conn_lost(struct redis_conn *conn)
{
    enum conn_state state = conn->state;
    if (state == CONN_CONNECTING && ++conn->tried < conn->server->address_count) {
        conn_next_address(conn);
        return;
    }
    if (state == CONN_READY && clock_now() >= conn->began + conn->server->answer_ms)
        conn->delay = 0;
    /* A server may close an idle connection; only if it is not to be had again is that an outage.
     */
    if (state != CONN_READY || conn->ops != NULL || conn->delay != 0)
        redis_server_lost(conn->server, &conn->away, conn->refused ? REDIS_REFUSED : REDIS_LOST,
                          conn->why);
    conn_retry(conn);
    conn_fail_ops(conn);
}

/* Never from inside hiredis: it would go on with what is freed. */
static void conn_close(struct redis_conn *conn)
{
    redisAsyncContext *ac = conn->ac;
    if (ac == NULL)
        return;
    conn->ac = NULL;
    ac->data = NULL;
    redisAsyncFree(ac);
}

static void __attribute__((format(printf, 2, 3)))
conn_drop(struct redis_conn *conn, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(conn->why, sizeof(conn->why), format, args);
    va_end(args);
    conn_close(conn);
    conn_lost(conn);
}

/* Drops it soon, wherever this is called from. */
static void __attribute__((format(printf, 2, 3)))
conn_break(struct redis_conn *conn, const char *format, ...)
{
    va_list args;
    if (conn->state == CONN_BROKEN)
        return;
    va_start(args, format);
    vsnprintf(conn->why, sizeof(conn->why), format, args);
    va_end(args);
    conn_enter(conn, CONN_BROKEN);
    conn_set_alarm(conn, 0);
}

static void alarm_connecting(struct redis_conn *conn)
{
    if (conn->ac == NULL)
        conn_connect(conn);
    else
        conn_drop(conn, "no connection within %" PRId64 " ms", conn->server->connect_ms);
}

/* Those who wait for the connection give up before it does. */
static void alarm_greeting(struct redis_conn *conn)
{
    int64_t now = clock_now();
    int64_t left = conn->began + conn->server->answer_ms - now;
    int64_t patience = conn->attempt + conn->server->connect_ms - now;
    if (left <= 0) {
        conn_drop(conn, "it does not answer");
    } else if (patience > 0) {
        conn_set_alarm(conn, MIN(patience, left));
    } else {
        conn_set_alarm(conn, left);
        snprintf(conn->why, sizeof(conn->why), "it does not answer");
        conn_fail_ops(conn);
    }
}

static void alarm_ready(struct redis_conn *conn)
{
    const struct redis_op *op = conn->ops;
    if (op == NULL)
        return;
    int64_t extra = MAX(conn_sent(conn) - op->sent, 0) / RATE;
    int64_t left = op->started + conn->server->answer_ms + extra - clock_now();
    if (left > 0)
        conn_set_alarm(conn, left);
    else
        conn_drop(conn, "no answer within %" PRId64 " ms", conn->server->answer_ms);
}

static void alarm_broken(struct redis_conn *conn)
{
    conn_close(conn);
    conn_lost(conn);
}

static void conn_alarm(struct loop_timer *timer)
{
    static void (*const alarms[])(struct redis_conn * conn) = {
        [CONN_DOWN] = conn_connect,       [CONN_CONNECTING] = alarm_connecting,
        [CONN_GREETING] = alarm_greeting, [CONN_READY] = alarm_ready,
        [CONN_BROKEN] = alarm_broken,
    };
    struct redis_conn *conn = container_of(timer, struct redis_conn, alarm);
    conn->alarm_set = false;
    alarms[conn->state](conn);
}

/* Who greets, where this answer still counts. */
static struct redis_conn *greeter(const redisAsyncContext *ac, const redisReply *reply)
{
    struct redis_conn *conn = ac->data;
    return conn == NULL || reply == NULL || conn->state != CONN_GREETING ? NULL : conn;
}

static bool is_ok(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, "OK") == 0;
}

/* words are the server's, or NULL. */
static void greet_refused(struct redis_conn *conn, const char *what, const char *words)
{
    conn->refused = true;
    conn_break(conn, "%s (%s)", what, words != NULL ? words : "a strange answer");
    for (char *c = conn->why; *c != '\0'; c++)
        *c = (char)(*c < 0x20 || *c > 0x7e ? '?' : *c);
}

/* Of an error only the first word is told: what follows may be the password. */
static void on_auth(redisAsyncContext *ac, void *data, void *arg)
{
    const redisReply *reply = data;
    struct redis_conn *conn = greeter(ac, reply);
    char code[16] = "";
    (void)arg;
    if (conn == NULL || is_ok(reply))
        return;
    bool error = reply->type == REDIS_REPLY_ERROR;
    bool needless = error && (strstr(reply->str, "without any password configured") != NULL ||
                              strstr(reply->str, "no password is set") != NULL);
    if (error)
        snprintf(code, sizeof(code), "%.*s", (int)strcspn(reply->str, " "), reply->str);
    greet_refused(conn,
                  needless ? "it has no password: unset redis-password-file"
                           : "it refuses the password of redis-password-file",
                  error ? code : NULL);
}

static void on_select(redisAsyncContext *ac, void *data, void *arg)
{
    const redisReply *reply = data;
    struct redis_conn *conn = greeter(ac, reply);
    (void)arg;
    if (conn == NULL || is_ok(reply))
        return;
    bool error = reply->type == REDIS_REPLY_ERROR;
    bool wants_password = error && strncmp(reply->str, "NOAUTH", 6) == 0;
    greet_refused(conn,
                  wants_password ? "it wants a password: set redis-password-file"
                                 : "it refuses redis-database",
                  error ? reply->str : NULL);
}

static void read_bulk_max(struct redis_conn *conn, const redisReply *reply)
{
    conn->bulk_max = BULK_MAX;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[1]->type != REDIS_REPLY_STRING)
        return; /* CONFIG may be forbidden */
    unsigned long long told = strtoull(reply->element[1]->str, NULL, 10);
    if (told >= BULK_LEAST)
        conn->bulk_max = told;
}

/* The last of the greeting. */
static void on_bulk_max(redisAsyncContext *ac, void *data, void *arg)
{
    struct redis_conn *conn = greeter(ac, data);
    (void)arg;
    if (conn == NULL)
        return;
    read_bulk_max(conn, data);
    conn_enter(conn, CONN_READY);
    redis_server_back(conn->server, &conn->away);
    conn_feed(conn);
}

static bool conn_greet(struct redis_conn *conn)
{
    const char *password = conn->server->password;
    return (password[0] == '\0' ||
            redisAsyncCommand(conn->ac, on_auth, NULL, "AUTH %s", password) == REDIS_OK) &&
           redisAsyncCommand(conn->ac, on_select, NULL, "SELECT %u",
                             (unsigned)conn->server->database) == REDIS_OK &&
           redisAsyncCommand(conn->ac, on_bulk_max, NULL, "CONFIG GET proto-max-bulk-len") ==
               REDIS_OK;
}

/* hiredis frees the context after this where it has failed, and after on_disconnect(). */
static void conn_let_go(struct redis_conn *conn)
{
    conn->ac->data = NULL;
    conn->ac = NULL;
    conn_lost(conn);
}

static void on_connect(const redisAsyncContext *ac, int status)
{
    struct redis_conn *conn = ac->data;
    if (conn == NULL)
        return;
    if (status != REDIS_OK) {
        snprintf(conn->why, sizeof(conn->why), "%s", ac->c.errstr);
        conn_let_go(conn);
        return;
    }
    conn_enter(conn, CONN_GREETING);
    conn_set_alarm(
        conn, MIN(conn->attempt + conn->server->connect_ms - conn->began, conn->server->answer_ms));
    if (!conn_greet(conn))
        conn_break(conn, "out of memory");
}

static void on_disconnect(const redisAsyncContext *ac, int status)
{
    struct redis_conn *conn = ac->data;
    (void)status;
    if (conn == NULL)
        return;
    if (conn->state != CONN_BROKEN)
        snprintf(conn->why, sizeof(conn->why), "%s", ac->c.errstr);
    conn_let_go(conn);
}

/* hiredis asserts that whatever is no error was asked for; here what was not is an error. */
static bool is_unasked(const redisReadTask *task)
{
    const struct redis_conn *conn = task->privdata;
    return task->parent == NULL && task->type != REDIS_REPLY_ERROR &&
           (conn->ac == NULL || conn->ac->replies.head == NULL);
}

static void *make_string(const redisReadTask *task, char *text, size_t length)
{
    const struct redis_conn *conn = task->privdata;
    return is_unasked(task) ? NULL : conn->make->createString(task, text, length);
}

static void *make_array(const redisReadTask *task, int elements)
{
    const struct redis_conn *conn = task->privdata;
    if (is_unasked(task) || elements > ELEMENTS_MAX)
        return NULL;
    return conn->make->createArray(task, elements);
}

static void *make_integer(const redisReadTask *task, long long integer)
{
    const struct redis_conn *conn = task->privdata;
    return is_unasked(task) ? NULL : conn->make->createInteger(task, integer);
}

static void *make_nil(const redisReadTask *task)
{
    const struct redis_conn *conn = task->privdata;
    return is_unasked(task) ? NULL : conn->make->createNil(task);
}

/* hiredis's output is empty. */
static void on_drained(void *data)
{
    const redisLibeventEvents *events = data;
    struct redis_conn *conn = events->context->data;
    redisLibeventDelWrite(data);
    if (conn != NULL)
        conn_feed(conn);
}

static bool conn_adopt(struct redis_conn *conn, redisAsyncContext *ac)
{
    redisReader *reader = ac->c.reader;
    conn->make = reader->fn;
    conn->checked = (redisReplyObjectFunctions){make_string, make_array, make_integer, make_nil,
                                                conn->make->freeObject};
    reader->fn = &conn->checked;
    reader->privdata = conn;
    ac->data = conn;
    fcntl(ac->c.fd, F_SETFD, FD_CLOEXEC);
    if (redisLibeventAttach(ac, loop_base(conn->loop)) != REDIS_OK)
        return false;
    ac->ev.delWrite = on_drained;
    redisAsyncSetConnectCallback(ac, on_connect);
    redisAsyncSetDisconnectCallback(ac, on_disconnect);
    return true;
}

static void conn_connect(struct redis_conn *conn)
{
    const struct redis_server *server = conn->server;
    conn_enter(conn, CONN_CONNECTING);
    if (conn->tried == 0)
        conn->attempt = conn->began;
    /* The address is a number, so that hiredis's getaddrinfo() asks nobody. */
    conn->ac = server->path[0] != '\0'
                   ? redisAsyncConnectUnix(server->path)
                   : redisAsyncConnect(server->addresses[conn->address], server->port);
    if (conn->ac == NULL)
        conn_drop(conn, "out of memory");
    else if (conn->ac->err != 0)
        conn_drop(conn, "%s", conn->ac->errstr);
    else if (!conn_adopt(conn, conn->ac))
        conn_drop(conn, "can't watch the connection");
    else
        conn_set_alarm(conn, conn->server->connect_ms);
}

/* Whether a call has a chance: it may wait a little for a connection that is being made. */
static bool conn_usable(const struct redis_conn *conn)
{
    if (conn->state == CONN_CONNECTING && conn->ac == NULL && conn->tried == 0)
        return true;
    if (conn->state == CONN_CONNECTING || conn->state == CONN_GREETING)
        return clock_now() < conn->attempt + conn->server->connect_ms;
    return conn->state == CONN_READY;
}

/* Puts out what waits, as far as there is room. */
static void conn_feed(struct redis_conn *conn)
{
    while (conn->state == CONN_READY && conn->unasked != NULL &&
           sdslen(conn->ac->c.obuf) < OUTPUT_MAX) {
        struct redis_op *op = conn->unasked;
        if (!op->ask(op))
            break;
        conn->unasked = op->next;
    }
    if (conn->ops != NULL && !conn->alarm_set)
        conn_set_alarm(conn, conn->server->answer_ms);
}

/* Also called without a reply for each that a dying context awaits: those fail with it elsewhere.
 */
static void on_reply(redisAsyncContext *ac, void *data, void *arg)
{
    struct redis_conn *conn = ac->data;
    redisReply *reply = data;
    struct redis_op *op = arg;
    if (conn == NULL || reply == NULL || conn->state != CONN_READY)
        return;
    conn->delay = 0;
    op->awaited--;
    op->take(op, reply);
}

/* The oldest goes, all its answers taken; an answer to half a command leaves the stream out of
 * step. */
static void op_take_off(struct redis_op *op)
{
    struct redis_conn *conn = op->conn;
    assert(conn->ops == op && op->awaited == 0);
    conn->ops = op->next;
    if (conn->ops == NULL)
        conn->last = &conn->ops;
    if (conn->unasked == op) {
        conn->unasked = op->next;
        conn_break(conn, "it answered before it was asked");
    }
    op->next = NULL;
}

static void op_queue(struct redis_op *op)
{
    struct redis_conn *conn = op->conn;
    op->next = NULL;
    op->awaited = 0;
    op->started = clock_now();
    op->sent = conn_sent(conn);
    *conn->last = op;
    conn->last = &op->next;
    if (conn->unasked == NULL)
        conn->unasked = op;
    conn_feed(conn);
}

bool redis_conn_start(struct redis_conn *conn, struct redis_op *op)
{
    if (!conn_usable(conn)) {
        op->call->status = store_fail(op->call, ERROR_UNAVAILABLE, "Redis at %s: %s",
                                      conn->server->where, conn->why);
        return false;
    }
    op->conn = conn;
    op_queue(op);
    return true;
}

void redis_op_again(struct redis_op *op, bool (*ask)(struct redis_op *),
                    void (*take)(struct redis_op *, redisReply *))
{
    op_take_off(op);
    op->ask = ask;
    op->take = take;
    op_queue(op);
}

void redis_op_finish(struct redis_op *op, enum store_status status)
{
    op_take_off(op);
    op->call->status = status;
    op->finish(op);
}

void redis_op_break(struct redis_op *op, const char *why)
{
    conn_break(op->conn, "%s", why);
}

/* hiredis does not say so where it had no memory to remember who awaits the answer. */
static void put_out(struct redis_op *op, int result, size_t before)
{
    struct redis_conn *conn = op->conn;
    const redisAsyncContext *ac = conn->ac;
    op->awaited++;
    if (result != REDIS_OK || ac->c.err != 0 || ac->replies.tail == NULL ||
        ac->replies.tail->privdata != op)
        conn_break(conn, "out of memory");
    else
        conn->put_out += (int64_t)(sdslen(ac->c.obuf) - before);
}

void redis_op_command(struct redis_op *op, int count, const char **words, const size_t *lengths)
{
    redisAsyncContext *ac = op->conn->ac;
    size_t before = sdslen(ac->c.obuf);
    put_out(op, redisAsyncCommandArgv(ac, on_reply, op, count, words, lengths), before);
}

void redis_op_begin(struct redis_op *op, const char *bytes, size_t length)
{
    redisAsyncContext *ac = op->conn->ac;
    size_t before = sdslen(ac->c.obuf);
    put_out(op, redisAsyncFormattedCommand(ac, on_reply, op, bytes, length), before);
}

void redis_op_more(struct redis_op *op, const void *bytes, size_t length)
{
    struct redis_conn *conn = op->conn;
    if (redisAppendFormattedCommand(&conn->ac->c, bytes, length) != REDIS_OK)
        conn_break(conn, "out of memory");
    conn->ac->ev.addWrite(conn->ac->ev.data);
    conn->put_out += (int64_t)length;
}

size_t redis_op_room(const struct redis_op *op)
{
    size_t used = sdslen(op->conn->ac->c.obuf);
    return used < OUTPUT_MAX ? OUTPUT_MAX - used : 0;
}

uint64_t redis_conn_bulk_max(const struct redis_conn *conn)
{
    return conn->bulk_max;
}

struct redis_conn *redis_conn_new(struct redis_server *server, struct loop *loop)
{
    struct redis_conn *conn = calloc(1, sizeof(*conn));
    if (conn == NULL)
        return NULL;
    conn->server = server;
    conn->loop = loop;
    conn->last = &conn->ops;
    conn->bulk_max = BULK_MAX;
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
