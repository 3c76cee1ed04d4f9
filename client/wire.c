#include "wire.h"

#include "../proto/line.h"
#include "descriptor.h"
#include "handle.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    DEADLINE_BYTES = 64 * 1024, /* as many must pass for the deadline to be set anew */
    TICK = 250,                 /* milliseconds between two calls of progress */
    LATE = 50                   /* milliseconds of a call after which its limit is looked after */
};

int64_t wire_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void wire_init(struct wire *wire)
{
    memset(wire, 0, offsetof(struct wire, in));
    wire->fd = -1;
    wire->passed = -1;
    busy_init(&wire->busy, 0);
}

static void close_passed(struct wire *wire)
{
    if (wire->passed >= 0)
        close(wire->passed);
    wire->passed = -1;
    wire->unpassed = false;
}

int wire_take_descriptor(struct wire *wire)
{
    int fd = wire->passed;
    wire->passed = -1;
    return fd;
}

void wire_attach(struct wire *wire, int fd, unsigned timeout)
{
    wire_drop(wire);
    wire->fd = fd;
    wire->fresh = true;
    wire_set_timeout(wire, timeout);
}

void wire_set_timeout(struct wire *wire, unsigned timeout)
{
    struct timeval limit = {.tv_sec = timeout / 1000,
                            .tv_usec = (suseconds_t)(timeout % 1000) * 1000};
    if (wire->fd < 0)
        return;
    if (setsockopt(wire->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0)
        wire->receive_timeout = timeout;
}

void wire_drop(struct wire *wire)
{
    int saved = errno;
    if (wire->fd >= 0)
        close(wire->fd);
    wire->fd = -1;
    close_passed(wire);
    wire->start = wire->end = 0;
    wire->output = NULL;
    errno = saved;
}

static void set_deadline(struct wire *wire, int64_t since)
{
    wire->deadline = wire->limit ? since + wire->limit : INT64_MAX;
    wire->moved = 0;
}

void wire_call(struct wire *wire)
{
    wire->called = wire_now();
    wire->fresh = false;
}

void wire_begin(struct liara_cache *cache, struct wire_output *output, unsigned limit)
{
    struct wire *wire = &cache->wire;
    close_passed(wire);
    wire->output = output;
    wire->limit = wire->after = limit;
    wire->answered = wire->waited = wire->cut = wire->alive = false;
    wire->done = wire->total = 0;
    set_deadline(wire, wire->called);
    /* The socket's own time-out would be too long for what is left of the limit. */
    if (wire->fresh)
        wire->waited = wire_now() - wire->called > LATE;
    wire->ticked = cache->progress ? wire_now() : 0;
}

/* Where the reply has come along with the one before it, there is nothing to wait for. */
void wire_wait(struct wire *wire, unsigned limit)
{
    wire->alive = true;
    if (wire->start < wire->end)
        return;
    wire->answered = false;
    wire->limit = limit;
    set_deadline(wire, wire_now());
}

static void note_answer(struct wire *wire)
{
    if (!wire->answered && wire->limit != wire->after) {
        wire->limit = wire->after;
        set_deadline(wire, wire_now());
    }
    wire->answered = true;
}

void wire_expect(struct wire *wire, uint64_t total)
{
    wire->done = 0;
    wire->total = total;
}

static bool unsent(const struct wire *wire)
{
    return wire->output && wire->output->count > 0;
}

/* A reply that came before all was sent, or more than was asked for: not in step any more. */
void wire_finish(struct liara_cache *cache)
{
    struct wire *wire = &cache->wire;
    struct wire_output *output = wire->output;
    bool left = wire->cut || unsent(wire);
    if (output && !left && output->more)
        left = output->more(cache, output) != LIARA_CACHE_OK || output->count > 0;
    wire->output = NULL;
    close_passed(wire);
    if (left || wire->start < wire->end)
        wire_drop(wire);
}

static void tell_progress(struct liara_cache *cache)
{
    struct wire *wire = &cache->wire;
    int64_t now = wire_now();
    if (now - wire->ticked < TICK)
        return;
    wire->ticked = now;
    uint64_t done = wire->done < wire->total ? wire->done : wire->total;
    cache->progress(cache->progress_arg, done, wire->total);
}

static void count_moved(struct liara_cache *cache, size_t bytes)
{
    struct wire *wire = &cache->wire;
    wire->done += bytes;
    wire->moved += bytes;
    if (wire->moved >= DEADLINE_BYTES)
        set_deadline(wire, wire_now());
    if (cache->progress)
        tell_progress(cache);
}

void wire_passed(struct liara_cache *cache, size_t bytes)
{
    cache->wire.done += bytes;
    if (cache->progress)
        tell_progress(cache);
}

static enum liara_cache_status lost(struct liara_cache *cache)
{
    wire_drop(&cache->wire);
    return handle_fail(cache, LIARA_CACHE_UNREACHABLE, "%s: the daemon closed the connection%s",
                       cache->path, cache->wire.answered ? " in the middle of a reply" : "");
}

static enum liara_cache_status timed_out(struct liara_cache *cache)
{
    wire_drop(&cache->wire);
    return handle_fail(cache, LIARA_CACHE_TIMED_OUT, "%s: the daemon did not answer within %u ms",
                       cache->path, cache->wire.limit);
}

static enum liara_cache_status out_of_step(struct liara_cache *cache)
{
    wire_drop(&cache->wire);
    return handle_fail(cache, LIARA_CACHE_PROTOCOL, "%s: what answers there is no liara-cached",
                       cache->path);
}

static void advance(struct wire_output *output, size_t sent)
{
    while (output->first < output->count && sent >= output->parts[output->first].iov_len)
        sent -= output->parts[output->first++].iov_len;
    if (output->first == output->count) {
        output->first = output->count = 0;
        return;
    }
    struct iovec *part = &output->parts[output->first];
    part->iov_base = (char *)part->iov_base + sent;
    part->iov_len -= sent;
}

static ssize_t send_parts(struct wire *wire, struct wire_output *output)
{
    const struct iovec *part = &output->parts[output->first];
    if (output->first + 1 == output->count && output->descriptor < 0)
        return send(wire->fd, part->iov_base, part->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = output->parts + output->first,
                             .msg_iovlen = output->count - output->first};
    if (output->descriptor >= 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &output->descriptor, sizeof(int));
    }
    ssize_t sent = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0)
        output->descriptor = -1;
    return sent;
}

/*
 * Sends what the daemon takes without waiting. Where it takes nothing any more that is no failure
 * yet: it may have said why before it closed, and what it said is still to be received.
 */
static enum liara_cache_status pump(struct liara_cache *cache)
{
    struct wire *wire = &cache->wire;
    struct wire_output *output = wire->output;
    while (output && !wire->cut) {
        if (output->count == 0 && output->more) {
            enum liara_cache_status status = output->more(cache, output);
            if (status != LIARA_CACHE_OK) {
                wire_drop(wire);
                return status;
            }
        }
        if (output->count == 0)
            return LIARA_CACHE_OK;
        ssize_t sent = send_parts(wire, output);
        if (sent >= 0) {
            advance(output, (size_t)sent);
            count_moved(cache, (size_t)sent);
        } else if (errno == EAGAIN) {
            return LIARA_CACHE_OK;
        } else if (errno != EINTR) {
            wire->cut = true;
        }
    }
    return LIARA_CACHE_OK;
}

/* Milliseconds for poll(): -1 for ever, at least 0. */
static int time_left(const struct liara_cache *cache)
{
    const struct wire *wire = &cache->wire;
    int64_t left = wire->limit ? wire->deadline - wire_now() : INT64_MAX;
    if (cache->progress && left > TICK)
        left = TICK;
    if (left > INT32_MAX)
        return wire->limit ? INT32_MAX : -1;
    return left < 0 ? 0 : (int)left;
}

/*
 * A request that was sent whole at once needs no poll(): its first wait is a receive that the
 * socket's own time-out ends.
 */
static ssize_t block(struct liara_cache *cache, struct msghdr *message, bool sending)
{
    struct wire *wire = &cache->wire;
    if (!sending && !wire->waited && !cache->progress && wire->limit == wire->receive_timeout) {
        wire->waited = true;
        return recvmsg(wire->fd, message, MSG_CMSG_CLOEXEC);
    }
    ssize_t received = recvmsg(wire->fd, message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received >= 0 || errno != EAGAIN)
        return received;
    struct pollfd ready = {.fd = wire->fd, .events = POLLIN | (sending ? POLLOUT : 0)};
    poll(&ready, 1, time_left(cache));
    errno = EAGAIN;
    return -1;
}

/*
 * The one place that waits. Receives bytes that are there or come; -1 with EAGAIN or EINTR where
 * none came yet, but something else may be done now: there is room to send, it is time to tell
 * progress, or the time is up.
 */
static ssize_t await(struct liara_cache *cache, struct msghdr *message)
{
    struct wire *wire = &cache->wire;
    if (unsent(wire) && !wire->cut)
        return block(cache, message, true);
    ssize_t received = busy_receive(&wire->busy, wire->fd, message);
    if (received >= 0 || errno != EAGAIN)
        return received;
    received = block(cache, message, false);
    int saved = errno;
    busy_judge(&wire->busy);
    errno = saved;
    return received;
}

/* Keeps the first descriptor that came, closes all others: nobody else would. */
static void keep_passed(struct wire *wire, struct msghdr *message)
{
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            if (wire->passed >= 0) {
                close(fd);
                continue;
            }
            wire->passed = descriptor_move(fd);
            wire->unpassed = wire->passed < 0;
        }
    }
    if ((message->msg_flags & MSG_CTRUNC) && wire->passed < 0)
        wire->unpassed = true;
}

/* Receives at least one byte into parts, sending meanwhile what is to be sent. */
static enum liara_cache_status receive(struct liara_cache *cache, struct iovec *parts, size_t count,
                                       size_t *received)
{
    struct wire *wire = &cache->wire;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    for (;;) {
        enum liara_cache_status status = pump(cache);
        if (status != LIARA_CACHE_OK)
            return status;
        struct msghdr message = {.msg_iov = parts,
                                 .msg_iovlen = count,
                                 .msg_control = control.bytes,
                                 .msg_controllen = sizeof(control.bytes)};
        ssize_t got = await(cache, &message);
        if (got > 0) {
            keep_passed(wire, &message);
            note_answer(wire);
            *received = (size_t)got;
            count_moved(cache, *received);
            return LIARA_CACHE_OK;
        }
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            return lost(cache);
        if (cache->progress)
            tell_progress(cache);
        if (wire->limit && wire_now() >= wire->deadline)
            return timed_out(cache);
    }
}

/* Receives more behind what is in the buffer. */
static enum liara_cache_status fill(struct liara_cache *cache)
{
    struct wire *wire = &cache->wire;
    if (wire->start > 0) {
        memmove(wire->in, wire->in + wire->start, wire->end - wire->start);
        wire->end -= wire->start;
        wire->start = 0;
    }
    struct iovec part = {wire->in + wire->end, sizeof(wire->in) - wire->end};
    size_t received = 0;
    enum liara_cache_status status = receive(cache, &part, 1, &received);
    wire->end += received;
    return status;
}

enum liara_cache_status wire_reply(struct liara_cache *cache, struct reply *reply)
{
    struct wire *wire = &cache->wire;
    if (wire->answered)
        set_deadline(wire, wire_now());
    for (;;) {
        size_t used = 0;
        enum line_result result = LINE_MORE;
        if (wire->end > wire->start)
            result =
                line_parse_reply(wire->in + wire->start, wire->end - wire->start, reply, &used);
        if (result == LINE_OK) {
            wire->start += used;
            return LIARA_CACHE_OK;
        }
        if (result != LINE_MORE || wire->end - wire->start >= LINE_MAX_BYTES)
            return out_of_step(cache);
        enum liara_cache_status status = fill(cache);
        if (status != LIARA_CACHE_OK)
            return status;
    }
}

/* What is behind the value on the stream comes with the same call and stays in the buffer. */
enum liara_cache_status wire_take(struct liara_cache *cache, void *bytes, size_t length)
{
    struct wire *wire = &cache->wire;
    size_t have = wire->end - wire->start;
    size_t taken = have < length ? have : length;
    memcpy(bytes, wire->in + wire->start, taken);
    wire->start += taken;
    while (taken < length) {
        struct iovec parts[2] = {{(char *)bytes + taken, length - taken},
                                 {wire->in, sizeof(wire->in)}};
        size_t received;
        enum liara_cache_status status = receive(cache, parts, 2, &received);
        if (status != LIARA_CACHE_OK)
            return status;
        size_t direct = received < length - taken ? received : length - taken;
        taken += direct;
        wire->start = 0;
        wire->end = received - direct;
    }
    return LIARA_CACHE_OK;
}

enum liara_cache_status wire_peek(struct liara_cache *cache, uint64_t limit, const void **bytes,
                                  size_t *length)
{
    struct wire *wire = &cache->wire;
    if (wire->start == wire->end) {
        enum liara_cache_status status = fill(cache);
        if (status != LIARA_CACHE_OK)
            return status;
    }
    size_t have = wire->end - wire->start;
    *length = have < limit ? have : (size_t)limit;
    *bytes = wire->in + wire->start;
    wire->start += *length;
    return LIARA_CACHE_OK;
}

enum liara_cache_status wire_end_value(struct liara_cache *cache)
{
    const void *byte;
    size_t length;
    enum liara_cache_status status = wire_peek(cache, 1, &byte, &length);
    if (status != LIARA_CACHE_OK)
        return status;
    return *(const char *)byte == '\n' ? LIARA_CACHE_OK : out_of_step(cache);
}
