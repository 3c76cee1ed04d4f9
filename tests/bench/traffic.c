#include "traffic.h"

#include <err.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    SCRATCH = 256 * 1024,   /* what one read may bring */
    KEPT_MAX = 2048,        /* the beginning of a reply that is not complete */
    COPIED_MAX = 16 * 1024, /* larger values are sent from where they lie */
    EVENTS = 64,
    PATIENCE_MS = 20000 /* without any event this is an error, not a slow server */
};

#define STAMP 16 /* bytes of the key that a value begins with */

struct asked {
    char key[PEER_KEY];
    bool is_put;
    uint64_t at;
};

struct conn {
    struct traffic *traffic;
    int fd;
    bool awaits_room; /* the batch is not all sent: EPOLLOUT is on */
    unsigned count;   /* requests in the batch */
    unsigned answered;
    struct asked *asked;
    struct conn *next; /* of those that have none, at a fixed rate */
    char *out;         /* the batch, but for a large value and the tail behind it */
    size_t out_length, sent;
    uint64_t body;      /* of the large value */
    uint64_t body_left; /* of a reply: bytes of value and tail still to come */
    size_t kept_length;
    char kept[KEPT_MAX];
};

struct traffic {
    struct traffic_plan plan;
    int epoll;
    enum phase phase;
    uint64_t random;
    uint64_t started; /* requests */
    uint64_t next_key;
    unsigned open;          /* connections that have a batch on its way */
    struct conn *idle;      /* the others, at a fixed rate */
    uint64_t due, interval; /* when the next batch is to be sent; 0: as soon as one is answered */
    _Atomic uint64_t answered;
    uint64_t misses, exists, errors;
    char first_error[128];
    struct conn *conns;
    char *value; /* what every value is made of, behind its stamp */
    struct histogram latencies;
    char scratch[KEPT_MAX + SCRATCH];
};

uint64_t traffic_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int traffic_connect(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof(address.sun_path))
        errx(1, "%s: too long for a socket's path", socket_path);
    strcpy(address.sun_path, socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        err(1, "can't connect to %s", socket_path);
    return fd;
}

/* A connection of the plan's, with its prefix set. */
static int connect_as_planned(const struct traffic_plan *plan)
{
    char line[64], answer[4] = "";
    int fd = traffic_connect(plan->socket);
    if (plan->prefix == NULL)
        return fd;
    int length = snprintf(line, sizeof(line), "PREFIX %s\n", plan->prefix);
    if (length >= (int)sizeof(line) || send(fd, line, (size_t)length, MSG_NOSIGNAL) != length ||
        recv(fd, answer, 3, MSG_WAITALL) != 3 || strcmp(answer, "OK\n") != 0)
        errx(1, "%s took no prefix", plan->peer->name);
    return fd;
}

static uint64_t random_number(struct traffic *traffic)
{
    traffic->random ^= traffic->random >> 12;
    traffic->random ^= traffic->random << 25;
    traffic->random ^= traffic->random >> 27;
    return traffic->random * 0x2545f4914f6cdd1du;
}

static uint64_t choose_key(struct traffic *traffic)
{
    const struct traffic_plan *plan = &traffic->plan;
    if (plan->in_sequence)
        return plan->first_key + traffic->next_key++ % plan->keys;
    uint64_t number = random_number(traffic) >> 32;
    if (plan->draws != NULL)
        return plan->first_key + plan->draws[number % TRAFFIC_DRAWS];
    return plan->first_key + ((number * plan->keys) >> 32);
}

static bool choose_put(struct traffic *traffic)
{
    unsigned percent = traffic->plan.put_percent;
    if (percent == 0 || percent == 100)
        return percent == 100;
    return (random_number(traffic) >> 33) % 100 < percent;
}

/* How many more requests the plan has room for. */
static uint64_t left_to_start(const struct traffic *traffic)
{
    const struct traffic_plan *plan = &traffic->plan;
    if (traffic->phase == PHASE_STOP)
        return 0;
    return plan->requests > 0 ? plan->requests - traffic->started : UINT64_MAX;
}

/* Copies the beginning of the value, all of it where it is small, and what follows a small one. */
static void add_value(struct conn *conn, const char *key)
{
    const struct traffic *traffic = conn->traffic;
    uint64_t size = traffic->plan.size;
    size_t stamp = size < STAMP ? (size_t)size : STAMP;
    memcpy(conn->out + conn->out_length, key + PEER_KEY - STAMP, stamp);
    conn->out_length += stamp;
    if (size > COPIED_MAX) {
        conn->body = size - stamp;
        return;
    }
    size_t tail = strlen(traffic->plan.peer->put_tail);
    memcpy(conn->out + conn->out_length, traffic->value, size - stamp);
    memcpy(conn->out + conn->out_length + size - stamp, traffic->plan.peer->put_tail, tail);
    conn->out_length += size - stamp + tail;
}

static void add_request(struct conn *conn, uint64_t now)
{
    struct traffic *traffic = conn->traffic;
    const struct peer *peer = traffic->plan.peer;
    struct asked *asked = &conn->asked[conn->count++];
    char *out = conn->out + conn->out_length;
    asked->at = now;
    asked->is_put = choose_put(traffic);
    peer_key(asked->key, choose_key(traffic));
    if (!asked->is_put) {
        conn->out_length += peer->get(out, asked->key);
        return;
    }
    conn->out_length += peer->put(out, asked->key, traffic->plan.size, !traffic->plan.only_absent);
    add_value(conn, asked->key);
}

static void want_room(struct conn *conn, bool wanted)
{
    struct epoll_event event = {.events = wanted ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = conn};
    if (conn->awaits_room == wanted)
        return;
    conn->awaits_room = wanted;
    if (epoll_ctl(conn->traffic->epoll, EPOLL_CTL_MOD, conn->fd, &event) != 0)
        err(1, "epoll_ctl");
}

/* What of the three parts of the batch is not sent yet. */
static size_t unsent(const struct conn *conn, struct iovec parts[3])
{
    const struct traffic *traffic = conn->traffic;
    size_t tail = conn->body > 0 ? strlen(traffic->plan.peer->put_tail) : 0;
    const struct iovec all[3] = {
        {conn->out, conn->out_length},
        {traffic->value, conn->body},
        {(char *)(uintptr_t)traffic->plan.peer->put_tail, tail},
    };
    size_t skip = conn->sent, count = 0;
    for (size_t i = 0; i < 3; i++) {
        size_t gone = skip < all[i].iov_len ? skip : all[i].iov_len;
        skip -= gone;
        if (gone < all[i].iov_len)
            parts[count++] = (struct iovec){(char *)all[i].iov_base + gone, all[i].iov_len - gone};
    }
    return count;
}

static void flush(struct conn *conn)
{
    struct iovec parts[3];
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = unsent(conn, parts)};
    while (message.msg_iovlen > 0) {
        ssize_t got = sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (got < 0 && errno != EAGAIN)
            err(1, "can't send to %s", conn->traffic->plan.peer->name);
        if (got < 0)
            break;
        conn->sent += (size_t)got;
        message.msg_iovlen = unsent(conn, parts);
    }
    want_room(conn, message.msg_iovlen > 0);
}

static void watch(struct conn *conn)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    if (epoll_ctl(conn->traffic->epoll, EPOLL_CTL_ADD, conn->fd, &event) != 0)
        err(1, "epoll_ctl");
}

/* Sends the next batch, on a new connection if the plan wants one; false: there is none. */
static bool start_batch(struct conn *conn, uint64_t now)
{
    struct traffic *traffic = conn->traffic;
    uint64_t left = left_to_start(traffic);
    unsigned count = traffic->plan.in_flight < left ? traffic->plan.in_flight : (unsigned)left;
    conn->count = 0;
    conn->answered = 0;
    conn->out_length = 0;
    conn->body = 0;
    conn->sent = 0;
    if (count == 0)
        return false;
    if (conn->fd < 0) {
        conn->fd = connect_as_planned(&traffic->plan);
        watch(conn);
    }
    while (conn->count < count)
        add_request(conn, now);
    traffic->started += count;
    flush(conn);
    return true;
}

static void note_error(struct traffic *traffic, const char *in, size_t length)
{
    if (traffic->errors++ > 0)
        return;
    size_t shown = strcspn(in, "\r\n");
    shown = shown < length ? shown : length;
    snprintf(traffic->first_error, sizeof(traffic->first_error), "%.*s", (int)shown, in);
}

/* A value has the length that was put and begins with its key's stamp. */
static bool value_is_right(const struct traffic *traffic, const struct asked *asked,
                           const struct reply *reply, const char *in)
{
    if (reply->length != traffic->plan.size)
        return false;
    size_t stamp = reply->length < STAMP ? (size_t)reply->length : STAMP;
    return traffic->plan.peer->fixed_reply ||
           memcmp(in + reply->head, asked->key + PEER_KEY - STAMP, stamp) == 0;
}

/* Counts one reply whose beginning, with the value's stamp, is at in. */
static void count_reply(struct conn *conn, const struct reply *reply, const char *in, size_t length)
{
    struct traffic *traffic = conn->traffic;
    const struct asked *asked = &conn->asked[conn->answered];
    conn->body_left = 0;
    if (reply->kind == REPLY_VALUE) {
        conn->body_left = reply->length + reply->tail;
        if (!value_is_right(traffic, asked, reply, in))
            note_error(traffic, in, length);
    } else if (reply->kind == REPLY_MISS) {
        traffic->misses++;
    } else if (reply->kind == REPLY_EXISTS) {
        traffic->exists++;
    } else if (reply->kind != REPLY_STORED) {
        note_error(traffic, in, length);
    }
}

/* A reply has come in full. */
static void answered(struct conn *conn, uint64_t now)
{
    struct traffic *traffic = conn->traffic;
    if (traffic->phase == PHASE_MEASURE)
        histogram_add(&traffic->latencies, now - conn->asked[conn->answered].at);
    conn->answered++;
    uint64_t before = atomic_load_explicit(&traffic->answered, memory_order_relaxed);
    atomic_store_explicit(&traffic->answered, before + 1, memory_order_relaxed);
}

/* Takes what it can of a reply off the length bytes at in; returns how many, 0: not enough. */
static size_t take(struct conn *conn, const char *in, size_t length, uint64_t now)
{
    if (conn->body_left == 0) {
        const struct traffic_plan *plan = &conn->traffic->plan;
        struct reply reply = plan->peer->parse(in, length, conn->asked[conn->answered].is_put);
        size_t stamp = reply.length < STAMP ? (size_t)reply.length : STAMP;
        if (reply.kind == REPLY_MORE || length < reply.head + stamp)
            return 0;
        count_reply(conn, &reply, in, length);
        if (conn->body_left == 0)
            answered(conn, now);
        return reply.head;
    }
    size_t taken = length < conn->body_left ? length : (size_t)conn->body_left;
    conn->body_left -= taken;
    if (conn->body_left == 0) {
        if (in[taken - 1] != '\n')
            note_error(conn->traffic, "no newline behind a value", 128);
        answered(conn, now);
    }
    return taken;
}

static void take_all(struct conn *conn, const char *in, size_t length, uint64_t now)
{
    while (length > 0 && conn->answered < conn->count) {
        size_t taken = take(conn, in, length, now);
        if (taken == 0)
            break;
        in += taken;
        length -= taken;
    }
    if (length > KEPT_MAX || (length > 0 && conn->answered == conn->count))
        errx(1, "%s: more was answered than asked", conn->traffic->plan.peer->name);
    memcpy(conn->kept, in, length);
    conn->kept_length = length;
}

static void batch_done(struct conn *conn, uint64_t now)
{
    if (conn->traffic->plan.reconnect) {
        close(conn->fd);
        conn->fd = -1;
        now = traffic_clock();
    }
    if (conn->traffic->interval > 0) {
        conn->next = conn->traffic->idle;
        conn->traffic->idle = conn;
        conn->traffic->open--;
    } else if (!start_batch(conn, now)) {
        conn->traffic->open--;
    }
}

static void readable(struct conn *conn)
{
    char *in = conn->traffic->scratch + KEPT_MAX - conn->kept_length;
    ssize_t got = recv(conn->fd, conn->traffic->scratch + KEPT_MAX, SCRATCH, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        err(1, "%s closed the connection", conn->traffic->plan.peer->name);
    memcpy(in, conn->kept, conn->kept_length);
    uint64_t now = traffic_clock();
    take_all(conn, in, conn->kept_length + (size_t)got, now);
    if (conn->answered == conn->count)
        batch_done(conn, now);
}

/* At a fixed rate: sends what is due, as far as there are connections for it. */
static void send_due(struct traffic *traffic)
{
    uint64_t now = traffic_clock();
    while (traffic->idle != NULL && traffic->due <= now) {
        struct conn *conn = traffic->idle;
        if (!start_batch(conn, traffic->due))
            return;
        traffic->idle = conn->next;
        traffic->open++;
        traffic->due += traffic->interval;
    }
}

/* How long there is nothing to do but to wait for replies. */
static struct timespec patience(const struct traffic *traffic)
{
    uint64_t now = traffic_clock(), wait = PATIENCE_MS * UINT64_C(1000000);
    if (traffic->idle != NULL && left_to_start(traffic) > 0)
        wait = traffic->due > now ? traffic->due - now : 0;
    return (struct timespec){(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
}

/* Polls for a while if the plan says so, then sleeps until something comes. */
static int wait_for_events(struct traffic *traffic, struct epoll_event *events)
{
    if (traffic->plan.spin_us > 0) {
        uint64_t end = traffic_clock() + traffic->plan.spin_us * 1000u;
        do {
            int count = epoll_wait(traffic->epoll, events, EVENTS, 0);
            if (count != 0)
                return count;
        } while (traffic_clock() < end);
    }
    struct timespec wait = patience(traffic);
    int count = epoll_pwait2(traffic->epoll, events, EVENTS, &wait, NULL);
    if ((count == 0 && traffic->interval == 0) || (count < 0 && errno != EINTR))
        errx(1, "%s said nothing for %d ms", traffic->plan.peer->name, PATIENCE_MS);
    return count;
}

static void start_all(struct traffic *traffic)
{
    uint64_t now = traffic_clock();
    for (unsigned i = 0; i < traffic->plan.connections; i++) {
        struct conn *conn = &traffic->conns[i];
        if (traffic->interval == 0) {
            traffic->open += start_batch(conn, now);
        } else {
            conn->next = traffic->idle;
            traffic->idle = conn;
        }
    }
    traffic->due = now + traffic->interval;
}

void traffic_run(struct traffic *traffic)
{
    struct epoll_event events[EVENTS];
    traffic->phase = (enum phase)atomic_load(traffic->plan.phase);
    start_all(traffic);
    while (traffic->open > 0 || (traffic->interval > 0 && left_to_start(traffic) > 0)) {
        int count = wait_for_events(traffic, events);
        traffic->phase =
            (enum phase)atomic_load_explicit(traffic->plan.phase, memory_order_relaxed);
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (events[i].events & EPOLLOUT)
                flush(conn);
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                readable(conn);
        }
        if (traffic->interval > 0)
            send_due(traffic);
    }
}

static void *must(void *memory)
{
    if (memory == NULL)
        err(1, "no memory");
    return memory;
}

static void prepare(struct traffic *traffic, struct conn *conn)
{
    const struct traffic_plan *plan = &traffic->plan;
    size_t value = plan->put_percent > 0 && plan->size <= COPIED_MAX ? (size_t)plan->size : STAMP;
    conn->traffic = traffic;
    conn->asked = must(calloc(plan->in_flight, sizeof(*conn->asked)));
    conn->out = must(malloc(plan->in_flight * (PEER_HEAD_MAX + value + STAMP)));
    conn->fd = -1;
    if (plan->reconnect)
        return;
    conn->fd = connect_as_planned(plan);
    watch(conn);
}

struct traffic *traffic_new(const struct traffic_plan *plan)
{
    if (plan->put_percent > 0 && plan->size > COPIED_MAX && plan->in_flight > 1)
        errx(1, "PUTs of more than %d bytes go one at a time", COPIED_MAX);
    struct traffic *traffic = must(calloc(1, sizeof(*traffic)));
    traffic->plan = *plan;
    traffic->interval = plan->rate > 0 ? (uint64_t)(1e9 / plan->rate) : 0;
    traffic->random = plan->seed * 0x9e3779b97f4a7c15u | 1;
    traffic->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (traffic->epoll < 0)
        err(1, "epoll_create1");
    traffic->value = must(malloc(plan->size + 1));
    memset(traffic->value, 'v', plan->size + 1);
    traffic->conns = must(calloc(plan->connections, sizeof(*traffic->conns)));
    for (unsigned i = 0; i < plan->connections; i++)
        prepare(traffic, &traffic->conns[i]);
    return traffic;
}

uint64_t traffic_answered(const struct traffic *traffic)
{
    return atomic_load_explicit(&traffic->answered, memory_order_relaxed);
}

struct traffic_result traffic_result(const struct traffic *traffic)
{
    return (struct traffic_result){
        .latencies = &traffic->latencies,
        .misses = traffic->misses,
        .exists = traffic->exists,
        .errors = traffic->errors,
        .first_error = traffic->errors > 0 ? traffic->first_error : NULL,
    };
}

void traffic_free(struct traffic *traffic)
{
    for (unsigned i = 0; i < traffic->plan.connections; i++) {
        struct conn *conn = &traffic->conns[i];
        if (conn->fd >= 0)
            close(conn->fd);
        free(conn->asked);
        free(conn->out);
    }
    close(traffic->epoll);
    free(traffic->conns);
    free(traffic->value);
    free(traffic);
}
