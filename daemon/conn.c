#include "conn.h"

#include "../proto/line.h"
#include "clock.h"
#include "container_of.h"
#include "log.h"
#include "output.h"
#include "router.h"
#include "worker.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Where in its stream the client is. */
enum conn_state {
    CONN_LINE,    /* at the beginning of a request */
    CONN_BODY,    /* in a PUT's value, whose first filled bytes are here */
    CONN_SKIP,    /* in bytes that nobody wants */
    CONN_WAITING, /* the router is at work */
    CONN_CLOSING, /* what is answered is still to be sent, nothing more is read */
    CONN_GONE     /* closed; here only until the router's work is back */
};

/* A descriptor that came with the bytes up to end, an index into the buffer. */
struct passed {
    int fd;
    uint32_t end;
};

/* One for the line that is being completed, one for the line behind it. */
enum { PASSED_MAX = 2 };

/* To read of what is likely to be the line of a large PUT, whose bytes are better read into place.
 */
enum { LINE_READ = 512 };

struct conn {
    struct conn_link link;
    struct worker *worker;
    struct event readable, writable;
    int fd;
    unsigned passed_count;
    struct passed passed[PASSED_MAX]; /* in the order in which they came */
    enum conn_state state;
    bool reading;  /* readable is added */
    bool blocked;  /* writable is added: replies wait for the client to read */
    bool finished; /* the client sends no more */
    bool draining;
    bool large; /* the last request was a PUT of more than the buffer takes; so may be the next */
    char *in;   /* of CONN_BUFFER, NULL while empty */
    uint32_t in_start, in_end;
    uint32_t filled;
    uint64_t skip;
    int64_t active; /* clock_coarse() of the last byte either way */
    struct output out;
    struct exchange exchange;
};

/* Takes the first descriptor off the list; it is the caller's. */
static int take_passed(struct conn *conn)
{
    int fd = conn->passed[0].fd;
    conn->passed_count--;
    memmove(&conn->passed[0], &conn->passed[1], conn->passed_count * sizeof(conn->passed[0]));
    return fd;
}

static void close_passed(struct conn *conn)
{
    while (conn->passed_count > 0)
        close(take_passed(conn));
}

/* Gives back all but the memory, which stays until the router's work is back. */
static void release(struct conn *conn)
{
    event_del(&conn->readable);
    event_del(&conn->writable);
    close(conn->fd);
    close_passed(conn);
    if (conn->in != NULL)
        worker_give_buffer(conn->worker, conn->in);
    conn->in = NULL;
    output_clear(&conn->out);
    atomic_fetch_sub(&worker_service(conn->worker)->connections, 1);
    conn->state = CONN_GONE;
}

static void free_if_ended(struct conn *conn)
{
    if (!exchange_end(&conn->exchange))
        return;
    worker_remove(conn->worker, &conn->link);
    free(conn);
}

static void conn_close(struct conn *conn)
{
    release(conn);
    free_if_ended(conn);
}

/* The line is in the output's room already. What goes with it is taken over. */
static bool send_line(struct conn *conn, size_t length)
{
    struct exchange *exchange = &conn->exchange;
    struct value *value = exchange->value;
    const uint8_t *bytes = exchange->bytes;
    struct pinned pinned = exchange->pinned;
    int fd = exchange->fd;
    exchange->pinned.bytes = NULL;
    exchange->value = NULL;
    exchange->bytes = NULL;
    exchange->fd = -1;
    if (fd >= 0)
        return output_line_with_fd(&conn->out, length, fd, value);
    if (bytes != NULL)
        return output_line_with_bytes(&conn->out, length, bytes, exchange->reply.length);
    if (pinned.bytes != NULL)
        return output_line_with_pinned(&conn->out, length, pinned, exchange->reply.length);
    if (value == NULL)
        return output_line(&conn->out, length);
    if (output_line(&conn->out, length))
        return output_value(&conn->out, value);
    value_unref(value);
    return false;
}

/* Adds a reply and what goes with it to what is sent. Without memory for that the stream is lost.
 */
static void send_reply(struct conn *conn)
{
    char *room = output_room(&conn->out, LINE_MAX_BYTES + VALUE_COPY_MAX + 1);
    size_t length =
        room != NULL ? line_format_reply(room, LINE_MAX_BYTES, &conn->exchange.reply) : 0;
    if (length > 0 && send_line(conn, length))
        return;
    log_error("no memory for a reply; the connection is closed");
    output_clear(&conn->out);
    conn->state = CONN_CLOSING;
}

static void send_error(struct conn *conn, enum error_code code, const char *text)
{
    message_error(&conn->exchange.reply, code, "%s", text);
    send_reply(conn);
}

/* A request has its answer: it is queued, and the stream goes on behind skip bytes. */
static void answered(struct conn *conn, uint64_t skip)
{
    conn->skip = skip;
    conn->state = skip > 0 ? CONN_SKIP : CONN_LINE;
    send_reply(conn);
}

static uint32_t buffered(const struct conn *conn)
{
    return conn->in_end - conn->in_start;
}

static uint32_t take_buffered(struct conn *conn, uint64_t most)
{
    uint32_t count = buffered(conn) < most ? buffered(conn) : (uint32_t)most;
    conn->in_start += count;
    return count;
}

/* What follows a refused PUT's line, to be passed over. */
static uint64_t bytes_after(const struct request *request)
{
    bool has_bytes = request->verb == VERB_PUT && !request->fd;
    return has_bytes ? request->length + 1 : 0;
}

/* Closes descriptors that came with earlier lines, which had no use for them. */
static void drop_stale(struct conn *conn, uint32_t line)
{
    while (conn->passed_count > 0 && conn->passed[0].end <= line)
        close(take_passed(conn));
}

static void start_request(struct conn *conn, const struct request *request)
{
    bool wants_fd = request->verb == VERB_PUT && request->fd && conn->passed_count > 0;
    int fd = wants_fd ? take_passed(conn) : -1;
    if (log_debugging())
        log_debug("%s, %u bytes of key", message_verb_name(request->verb), request->key_length);
    conn->large = false;
    enum router_next next = router_start(&conn->exchange, request, &fd);
    if (fd >= 0)
        close(fd);
    switch (next) {
    case ROUTER_REPLY:
        answered(conn, bytes_after(request));
        break;
    case ROUTER_PENDING:
        conn->state = CONN_WAITING;
        break;
    case ROUTER_BODY:
        conn->large = request->length > CONN_BUFFER;
        conn->filled = 0;
        conn->state = CONN_BODY;
        break;
    case ROUTER_QUIT:
        conn->state = CONN_CLOSING;
        break;
    }
}

/* Each step takes bytes off the buffer and returns whether there may be more to do. */
static bool step_line(struct conn *conn)
{
    struct request request;
    size_t used;
    uint64_t skip;
    if (buffered(conn) == 0)
        return false;
    drop_stale(conn, conn->in_start);
    switch (line_parse_request(conn->in + conn->in_start, buffered(conn), &request, &used, &skip,
                               &conn->exchange.reply)) {
    case LINE_MORE:
        return false;
    case LINE_OK:
        conn->in_start += (uint32_t)used;
        start_request(conn, &request);
        return true;
    case LINE_BAD:
        conn->in_start += (uint32_t)used;
        answered(conn, skip);
        return true;
    case LINE_LOST:
        break;
    }
    answered(conn, 0);
    conn->state = CONN_CLOSING;
    return true;
}

static bool body_complete(struct conn *conn)
{
    if (conn->in[conn->in_start] != '\n') {
        value_unref(conn->exchange.value);
        conn->exchange.value = NULL;
        send_error(conn, ERROR_SYNTAX,
                   "the value is not followed by a newline where its length says");
        conn->state = CONN_CLOSING;
        return true;
    }
    conn->in_start++;
    if (router_body(&conn->exchange) == ROUTER_PENDING)
        conn->state = CONN_WAITING;
    else
        answered(conn, 0);
    return true;
}

static bool step_body(struct conn *conn)
{
    struct value *value = conn->exchange.value;
    uint32_t start = conn->in_start;
    uint32_t count = take_buffered(conn, value->length - conn->filled);
    if (count > 0)
        memcpy(value_bytes(value) + conn->filled, conn->in + start, count);
    conn->filled += count;
    if (conn->filled < value->length || buffered(conn) == 0)
        return false;
    return body_complete(conn);
}

static bool step_skip(struct conn *conn)
{
    conn->skip -= take_buffered(conn, conn->skip);
    if (conn->skip > 0)
        return false;
    conn->state = CONN_LINE;
    return true;
}

static bool step_none(struct conn *conn)
{
    (void)conn;
    return false;
}

static bool (*const steps[])(struct conn *) = {
    [CONN_LINE] = step_line,    [CONN_BODY] = step_body,    [CONN_SKIP] = step_skip,
    [CONN_WAITING] = step_none, [CONN_CLOSING] = step_none, [CONN_GONE] = step_none,
};

static bool too_much_unread(const struct conn *conn)
{
    const struct limits *limits = worker_service(conn->worker)->limits;
    return conn->out.bytes > atomic_load_explicit(&limits->max_unread, memory_order_relaxed);
}

/* Whether the client's bytes so far belong to a request that is not complete. */
static bool in_a_request(const struct conn *conn)
{
    return conn->state == CONN_BODY || conn->state == CONN_SKIP || buffered(conn) > 0;
}

static void watch(struct conn *conn)
{
    bool wanted = !conn->finished && conn->state != CONN_CLOSING && conn->in_end < CONN_BUFFER;
    /* A read could bring a further descriptor while one still waits for its line's turn. */
    if (conn->state == CONN_WAITING && conn->passed_count > 0)
        wanted = false;
    if (wanted && !conn->reading)
        event_add(&conn->readable, NULL);
    else if (!wanted && conn->reading)
        event_del(&conn->readable);
    conn->reading = wanted;
}

/* Room for the next bytes; a buffer with nothing in it goes back. */
static void tidy_buffer(struct conn *conn)
{
    uint32_t count = buffered(conn);
    if (conn->in == NULL)
        return;
    drop_stale(conn, conn->in_start);
    if (count == 0) {
        worker_give_buffer(conn->worker, conn->in);
        conn->in = NULL;
    } else if (conn->in_start > 0) {
        memmove(conn->in, conn->in + conn->in_start, count);
        for (unsigned i = 0; i < conn->passed_count; i++)
            conn->passed[i].end -= conn->in_start;
    }
    conn->in_start = 0;
    conn->in_end = count;
}

static bool nothing_more_to_do(const struct conn *conn)
{
    if (conn->blocked || conn->state == CONN_WAITING)
        return false;
    if (conn->state == CONN_CLOSING || conn->finished)
        return true;
    return conn->draining && !in_a_request(conn);
}

/* Runs the stream as far as the bytes at hand and the client's reading allow. */
static void conn_run(struct conn *conn)
{
    bool held_back;
    do {
        while (!too_much_unread(conn) && steps[conn->state](conn))
            ;
        held_back = too_much_unread(conn);
        enum output_result result = output_flush(&conn->out, conn->fd);
        if (result == OUTPUT_FAILED) {
            conn_close(conn);
            return;
        }
        conn->blocked = result == OUTPUT_BLOCKED;
        if (conn->blocked && !output_settle(&conn->out)) {
            log_error("no memory for what a slow client has not read; the connection is closed");
            conn_close(conn);
            return;
        }
    } while (held_back && !conn->blocked);
    if (conn->blocked)
        event_add(&conn->writable, NULL);
    tidy_buffer(conn);
    if (nothing_more_to_do(conn))
        conn_close(conn);
    else
        watch(conn);
}

static void keep_passed(struct conn *conn, int fd)
{
    if (conn->passed_count < PASSED_MAX)
        conn->passed[conn->passed_count++] = (struct passed){.fd = fd, .end = conn->in_end};
    else
        close(fd);
}

/* The bytes that they came with are in the buffer already. */
static void take_descriptors(struct conn *conn, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
            keep_passed(conn, fd);
        }
    }
}

/*
 * One read: in a body straight into the value, what comes behind it into the buffer. A second read
 * that would find nothing is not tried; what is left makes the descriptor readable again.
 */
static ssize_t receive(struct conn *conn)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec iov[2];
    size_t count = 0;
    uint32_t missing = 0;
    if (conn->in == NULL && (conn->in = worker_take_buffer(conn->worker)) == NULL)
        return -1;
    if (conn->state == CONN_BODY && buffered(conn) == 0) {
        struct value *value = conn->exchange.value;
        missing = value->length - conn->filled;
        iov[count++] = (struct iovec){value_bytes(value) + conn->filled, missing};
    }
    uint32_t room = CONN_BUFFER - conn->in_end;
    if (conn->large && conn->state == CONN_LINE && room > LINE_READ)
        room = LINE_READ;
    iov[count++] = (struct iovec){conn->in + conn->in_end, room};
    struct msghdr message = {.msg_iov = iov,
                             .msg_iovlen = count,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    ssize_t got = recvmsg(conn->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got <= 0)
        return got;
    uint32_t direct = (uint64_t)got < missing ? (uint32_t)got : missing;
    conn->filled += direct;
    conn->in_end += (uint32_t)got - direct;
    if (message.msg_controllen > 0)
        take_descriptors(conn, &message);
    return got;
}

/* The client has shut down its sending side; has it closed the receiving one too? */
static bool hung_up(const struct conn *conn)
{
    struct pollfd poll_fd = {.fd = conn->fd};
    return poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & (POLLHUP | POLLERR)) != 0;
}

static void conn_readable(evutil_socket_t fd, short what, void *arg)
{
    struct conn *conn = arg;
    (void)fd;
    (void)what;
    ssize_t got = receive(conn);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        tidy_buffer(conn);
        return;
    }
    /* Whom nobody waits for any more is closed below; asking costs a system call. */
    bool awaited = conn->state == CONN_WAITING || conn->out.bytes > 0;
    if (got < 0 || (got == 0 && awaited && hung_up(conn))) {
        conn_close(conn);
        return;
    }
    conn->finished = got == 0;
    loop_worked(worker_loop(conn->worker));
    conn->active = clock_coarse();
    conn_run(conn);
}

static void conn_writable(evutil_socket_t fd, short what, void *arg)
{
    struct conn *conn = arg;
    uint64_t before = conn->out.bytes;
    (void)fd;
    (void)what;
    enum output_result result = output_flush(&conn->out, conn->fd);
    if (conn->out.bytes < before)
        conn->active = clock_coarse();
    if (result == OUTPUT_FAILED) {
        conn_close(conn);
    } else if (result == OUTPUT_EMPTY) {
        event_del(&conn->writable);
        conn->blocked = false;
        conn_run(conn);
    }
}

static void exchange_done(struct exchange *exchange)
{
    struct conn *conn = container_of(exchange, struct conn, exchange);
    if (conn->state == CONN_GONE) {
        free_if_ended(conn);
        return;
    }
    conn->active = clock_coarse();
    answered(conn, 0);
    conn_run(conn);
}

bool conn_open(struct worker *worker, int fd)
{
    struct conn *conn = malloc(sizeof(*conn));
    if (conn == NULL) {
        close(fd);
        return false;
    }
    memset(conn, 0, offsetof(struct conn, exchange));
    conn->worker = worker;
    conn->fd = fd;
    conn->active = clock_coarse();
    struct event_base *base = loop_base(worker_loop(worker));
    event_assign(&conn->readable, base, fd, EV_READ | EV_PERSIST, conn_readable, conn);
    event_assign(&conn->writable, base, fd, EV_WRITE | EV_PERSIST, conn_writable, conn);
    exchange_start(&conn->exchange, &worker_service(worker)->router, worker_loop(worker),
                   worker_room(worker), exchange_done);
    atomic_fetch_add(&worker_service(worker)->connections, 1);
    worker_add(worker, conn, &conn->link);
    conn->reading = true;
    if (event_add(&conn->readable, NULL) == 0)
        return true;
    conn_close(conn);
    errno = ENOMEM;
    return false;
}

void conn_check_timeouts(struct conn *conn, int64_t now)
{
    const struct limits *limits = worker_service(conn->worker)->limits;
    int64_t request = atomic_load_explicit(&limits->request_timeout, memory_order_relaxed);
    int64_t idle = atomic_load_explicit(&limits->idle_timeout, memory_order_relaxed);
    int64_t silent = now - conn->active;
    if (conn->state == CONN_GONE || (conn->state == CONN_WAITING && !conn->blocked))
        return;
    bool busy = conn->blocked || in_a_request(conn);
    if (busy ? request > 0 && silent >= request
             : idle > 0 && silent >= idle && !exchange_busy(&conn->exchange))
        conn_close(conn);
}

void conn_drain(struct conn *conn)
{
    conn->draining = true;
    if (conn->state != CONN_GONE && nothing_more_to_do(conn))
        conn_close(conn);
}

void conn_abandon(struct conn *conn)
{
    if (conn->state != CONN_GONE)
        release(conn);
    exchange_abandon(&conn->exchange);
    free(conn);
}
