/*
 * The library against a daemon that is played: each test has a script that a thread runs on the
 * other end, which receives exactly what it expects and answers what it likes.
 */
#include "../../client/liara_cache.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* In milliseconds: for what has to happen however busy the machine is, and a time-out that runs
 * out. */
enum { FAKE_WAIT = 60000, SHORT = 1000, LARGE = 1 << 20 };

struct fake {
    char folder[256], path[300], fault[512];
    int listener, client;
    void (*script)(struct fake *fake);
    int parameter;              /* the script's */
    atomic_uint accepted, left; /* clients, and those of them that it has hung up on */
    pthread_t thread;
};

static struct fake fake;
static struct liara_cache *cache;

/* The first fault of a script is kept, and fails the test when the script has ended. */
__attribute__((format(printf, 2, 3))) static void fault(struct fake *f, const char *format, ...)
{
    if (f->fault[0])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f->fault, sizeof(f->fault), format, arguments);
    va_end(arguments);
}

static bool can(struct fake *f, int fd, short events)
{
    struct pollfd ready = {.fd = fd, .events = events};
    if (!f->fault[0] && poll(&ready, 1, FAKE_WAIT) > 0)
        return true;
    fault(f, "the client did nothing for %d ms", FAKE_WAIT);
    return false;
}

static void hang_up(struct fake *f)
{
    if (f->client >= 0) {
        close(f->client);
        atomic_fetch_add(&f->left, 1);
    }
    f->client = -1;
}

/* The daemon's descriptors are not to be taken for the library's where 0 to 2 are closed. */
static int above_standard(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return moved;
}

static void accept_client(struct fake *f)
{
    hang_up(f);
    if (can(f, f->listener, POLLIN))
        f->client = above_standard(accept4(f->listener, NULL, NULL, SOCK_CLOEXEC));
    atomic_fetch_add(&f->accepted, f->client >= 0);
}

/* Waits until the script has come that far. */
static void until_first(const atomic_uint *clients)
{
    const struct timespec moment = {0, 1000000};
    for (int i = 0; atomic_load(clients) == 0 && i < FAKE_WAIT; i++)
        nanosleep(&moment, NULL);
    ck_assert_uint_ge(atomic_load(clients), 1);
}

static void say_bytes(struct fake *f, const void *bytes, size_t length)
{
    for (size_t at = 0; at < length && can(f, f->client, POLLOUT);) {
        ssize_t sent =
            send(f->client, (const char *)bytes + at, length - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            fault(f, "can't send: %s", strerror(errno));
        at += sent > 0 ? (size_t)sent : 0;
    }
}

static void say(struct fake *f, const char *text)
{
    say_bytes(f, text, strlen(text));
}

/* Every byte alone, so that no receive of the client ends where a message does. */
static void drip(struct fake *f, const char *text)
{
    const struct timespec moment = {0, 500000};
    for (; *text; text++) {
        say_bytes(f, text, 1);
        nanosleep(&moment, NULL);
    }
}

static void hear_bytes(struct fake *f, void *bytes, size_t length)
{
    for (size_t at = 0; at < length && can(f, f->client, POLLIN);) {
        ssize_t got = recv(f->client, (char *)bytes + at, length - at, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            fault(f, "the client left after %zu of %zu bytes", at, length);
        at += got > 0 ? (size_t)got : 0;
    }
}

static void hear(struct fake *f, const char *expected)
{
    char bytes[8192] = "";
    size_t length = strlen(expected);
    hear_bytes(f, bytes, length);
    if (memcmp(bytes, expected, length) != 0)
        fault(f, "the client sent '%.*s', not '%s'", (int)length, bytes, expected);
}

/* A line with one descriptor, which is returned. */
static int hear_with_descriptor(struct fake *f, const char *expected)
{
    char bytes[8192], control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {bytes, strlen(expected)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    int fd = -1;
    if (!can(f, f->client, POLLIN))
        return fd;
    ssize_t got = recvmsg(f->client, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (got != (ssize_t)part.iov_len || memcmp(bytes, expected, part.iov_len) != 0)
        fault(f, "the client sent '%.*s', not '%s'", got > 0 ? (int)got : 0, bytes, expected);
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    else
        fault(f, "no descriptor came with the line");
    return above_standard(fd);
}

static void hear_end(struct fake *f)
{
    char byte;
    if (can(f, f->client, POLLIN) && recv(f->client, &byte, 1, 0) > 0)
        fault(f, "the client sent '%c' instead of closing", byte);
}

static void *run_script(void *arg)
{
    struct fake *f = arg;
    f->script(f);
    hang_up(f);
    return NULL;
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    ck_assert_uint_lt(strlen(path), sizeof(address.sun_path));
    memcpy(address.sun_path, path, strlen(path));
    return address;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = address_of(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    return fd;
}

static void make_folder(struct fake *f)
{
    const char *parent = getenv("TMPDIR");
    int length = snprintf(f->folder, sizeof(f->folder), "%s/test_client.XXXXXX",
                          parent != NULL ? parent : "/tmp");
    ck_assert_int_lt(length, (int)sizeof(f->folder));
    ck_assert_ptr_nonnull(mkdtemp(f->folder));
    length = snprintf(f->path, sizeof(f->path), "%s/socket", f->folder);
    ck_assert_int_lt(length, (int)sizeof(f->path));
    f->client = -1;
    f->fault[0] = '\0';
    atomic_init(&f->accepted, 0);
    atomic_init(&f->left, 0);
}

static void start(struct fake *f, void (*script)(struct fake *fake), int parameter)
{
    f->script = script;
    f->parameter = parameter;
    ck_assert_int_eq(pthread_create(&f->thread, NULL, run_script, f), 0);
}

static void setup(void)
{
    make_folder(&fake);
    fake.listener = listen_at(fake.path);
}

static void teardown(void)
{
    liara_cache_close(cache);
    cache = NULL;
    close(fake.listener);
    unlink(fake.path);
    rmdir(fake.folder);
}

/* Starts the script, and opens the cache that the test uses. */
static void play_with(void (*script)(struct fake *fake), int parameter)
{
    start(&fake, script, parameter);
    ck_assert_int_eq(liara_cache_open(&cache, fake.path), LIARA_CACHE_OK);
}

static void play(void (*script)(struct fake *fake))
{
    play_with(script, 0);
}

static void end_play(void)
{
    pthread_join(fake.thread, NULL);
    ck_assert_msg(fake.fault[0] == '\0', "%s", fake.fault);
}

static unsigned count_descriptors(void)
{
    unsigned count = 0;
    DIR *folder = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(folder);
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static char *large_value(void)
{
    char *bytes = malloc(LARGE);
    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < LARGE; i++)
        bytes[i] = (char)(i * 31 + i / 251);
    return bytes;
}

/* A file without a name that holds those bytes, at its beginning. */
static int file_of(const void *bytes, size_t length)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, length), (ssize_t)length);
    ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static void check_file(int fd, const void *bytes, size_t length)
{
    char *found = malloc(length + 1);
    ck_assert_ptr_nonnull(found);
    ck_assert_int_eq(pread(fd, found, length + 1, 0), (ssize_t)length);
    ck_assert_mem_eq(found, bytes, length);
    free(found);
}

#define ck_status(call, expected)                                                                  \
    do {                                                                                           \
        enum liara_cache_status got_ = (call);                                                     \
        ck_assert_msg(got_ == (expected), "%s: %s (%s), not %s", #call,                            \
                      liara_cache_status_name(got_), liara_cache_error(cache),                     \
                      liara_cache_status_name(expected));                                          \
    } while (0)

static void hit_and_miss(struct fake *f)
{
    accept_client(f);
    hear(f, "GET a%20key fd\n");
    say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    hear(f, "GET other fd\n");
    say(f, "MISS\n");
    hear(f, "GET empty fd\n");
    say(f, "VALUE 0\n\n");
}

START_TEST(get_brings_value_flags_and_ttl)
{
    struct liara_cache_value value;
    play(hit_and_miss);
    ck_status(liara_cache_get(cache, "a key", 5, &value), LIARA_CACHE_OK);
    ck_assert_uint_eq(value.length, 5);
    ck_assert_str_eq(value.bytes, "hello");
    ck_assert_uint_eq(value.flags, 7);
    ck_assert_uint_eq(value.ttl, 60);
    liara_cache_free(value.bytes);
    ck_status(liara_cache_get(cache, "other", 5, &value), LIARA_CACHE_MISS);
    ck_assert_ptr_null(value.bytes);
    ck_assert_str_eq(liara_cache_error(cache), "");
    ck_status(liara_cache_get(cache, "empty", 5, &value), LIARA_CACHE_OK);
    ck_assert_ptr_nonnull(value.bytes);
    ck_assert_uint_eq(value.length, 0);
    liara_cache_free(value.bytes);
    end_play();
}
END_TEST

static void drop_by_drop(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    drip(f, "VALUE 9 flags=1\nnine\nbyte\n");
    hear(f, "PING\n");
    drip(f, "OK\r\n");
}

START_TEST(get_takes_a_reply_byte_by_byte)
{
    struct liara_cache_value value;
    play(drop_by_drop);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_OK);
    ck_assert_str_eq(value.bytes, "nine\nbyte");
    liara_cache_free(value.bytes);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static const char cut_reply[] = "VALUE 5 flags=7\nhello\n";

static void cut_then_whole(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_bytes(f, cut_reply, (size_t)f->parameter);
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, cut_reply);
}

/* The loop's index is where the reply ends; the next call is answered on a new connection. */
START_TEST(get_never_returns_part_of_a_value)
{
    struct liara_cache_value value;
    play_with(cut_then_whole, _i);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_UNREACHABLE);
    ck_assert_ptr_null(value.bytes);
    ck_assert_str_ne(liara_cache_error(cache), "");
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_OK);
    ck_assert_str_eq(value.bytes, "hello");
    liara_cache_free(value.bytes);
    end_play();
}
END_TEST

static void answer_late(struct fake *f)
{
    accept_client(f);
    int first = f->client;
    hear(f, "GET k fd\n");
    if (f->parameter)
        say(f, "VALUE 4\nla");
    f->client = -1;
    accept_client(f); /* the client has given the first up */
    send(first, "VALUE 4\nlate\n", 13, MSG_NOSIGNAL);
    hear(f, "GET k fd\n");
    say(f, "VALUE 4\ngood\n");
    close(first);
}

/* The loop's index says whether part of the reply came in time. */
START_TEST(late_reply_answers_nothing)
{
    struct liara_cache_value value;
    play_with(answer_late, _i);
    liara_cache_set_timeout(cache, SHORT);
    struct timespec begun, ended;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_TIMED_OUT);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds =
        (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9;
    ck_assert_double_ge(seconds, SHORT / 1000.0 - 0.01);
    liara_cache_set_timeout(cache, FAKE_WAIT);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_OK);
    ck_assert_str_eq(value.bytes, "good");
    liara_cache_free(value.bytes);
    end_play();
}
END_TEST

static const struct {
    const char *code;
    enum liara_cache_status status;
} refusals[] = {
    {"syntax", LIARA_CACHE_ERROR_SYNTAX},
    {"too-large", LIARA_CACHE_ERROR_TOO_LARGE},
    {"no-space", LIARA_CACHE_ERROR_NO_SPACE},
    {"denied", LIARA_CACHE_ERROR_DENIED},
    {"unavailable", LIARA_CACHE_ERROR_UNAVAILABLE},
    {"timeout", LIARA_CACHE_ERROR_TIMEOUT},
    {"busy", LIARA_CACHE_ERROR_BUSY},
    {"internal", LIARA_CACHE_ERROR_INTERNAL},
};
enum { REFUSALS = sizeof(refusals) / sizeof(refusals[0]) };

static void refuse_all(struct fake *f)
{
    accept_client(f);
    for (size_t i = 0; i < REFUSALS; i++) {
        char line[64];
        snprintf(line, sizeof(line), "ERROR %s told so\n", refusals[i].code);
        hear(f, "HEAD k\n");
        say(f, line);
    }
}

START_TEST(refusals_have_their_status_and_text)
{
    struct liara_cache_value value;
    play(refuse_all);
    for (size_t i = 0; i < REFUSALS; i++) {
        ck_status(liara_cache_head(cache, "k", 1, &value), refusals[i].status);
        ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), "told so"));
        ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), refusals[i].code));
        ck_assert_str_eq(liara_cache_status_name(refusals[i].status), refusals[i].code);
    }
    end_play();
}
END_TEST

static const char *const nonsense[] = {
    "HTTP/1.1 400 Bad Request\r\n",
    "VALUE\n",
    "VALUE 5\nhelloX",
    "OK\nOK\n",
    "STORED\n",
    "VALUE -1\n\n",
    "FD 5 offset=0\n",
    "SIZE 5\n",
};

static void talk_nonsense(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, nonsense[f->parameter]);
    hear_end(f);
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\n");
}

START_TEST(nonsense_is_refused_and_the_connection_closed)
{
    struct liara_cache_value value;
    play_with(talk_nonsense, _i);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_PROTOCOL);
    ck_assert_ptr_null(value.bytes);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static void talk_endlessly(struct fake *f)
{
    char bytes[5000];
    memset(bytes, 'A', sizeof(bytes));
    accept_client(f);
    hear(f, "PING\n");
    say_bytes(f, bytes, sizeof(bytes));
    hear_end(f);
}

START_TEST(endless_line_is_refused)
{
    play(talk_endlessly);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_PROTOCOL);
    end_play();
}
END_TEST

static void answer_more_than_asked(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\nVALUE 3\nbad\n");
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, "MISS\n");
}

START_TEST(surplus_reply_answers_nothing)
{
    struct liara_cache_value value;
    play(answer_more_than_asked);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_MISS);
    end_play();
}
END_TEST

static void close_when_idle(struct fake *f)
{
    accept_client(f);
    hear(f, "PREFIX p/\n");
    say(f, "OK\n");
    hear(f, "PING\n");
    say(f, "OK\n");
    accept_client(f);
    hear(f, "PREFIX p/\n");
    say(f, "OK\n");
    hear(f, "PUT k 3 flags=1 ttl=9 overwrite\nabc\n");
    say(f, "STORED\n");
}

START_TEST(request_is_repeated_where_the_idle_connection_was_closed)
{
    const struct liara_cache_put_options options = {.flags = 1, .ttl = 9, .overwrite = true};
    play(close_when_idle);
    ck_status(liara_cache_prefix(cache, "p/", 2), LIARA_CACHE_OK);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    until_first(&fake.left);
    ck_status(liara_cache_put(cache, "k", 1, "abc", 3, &options), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static void store_with_costs(struct fake *f)
{
    accept_client(f);
    hear(f, "PUT k 1 cost=0\na\n");
    say(f, "STORED\n");
    hear(f, "PUT k 1\nb\n");
    say(f, "EXISTS\n");
    hear(f, "PUT k 1 ttl=9 cost=4294967295 overwrite\nc\n");
    say(f, "STORED\n");
    hear(f, "PUT one 1 cost=7\nd\nPUT two 1 cost=7\ne\n");
    say(f, "STORED\nSTORED\n");
    hear(f, "PUT one 1\nd\n");
    say(f, "EXISTS\n");
    hear(f, "PUT k 1\nf\n");
    say(f, "EXISTS\n");
}

/* Each call that puts takes the cost along, and none after it. */
START_TEST(a_put_says_what_its_value_cost)
{
    const struct liara_cache_put_options options = {.ttl = 9, .overwrite = true};
    struct liara_cache_put_item items[] = {
        {.key = "one", .key_length = 3, .bytes = "d", .length = 1},
        {.key = "two", .key_length = 3, .bytes = "e", .length = 1}};
    play(store_with_costs);
    liara_cache_set_put_cost(cache, 0);
    ck_status(liara_cache_put(cache, "k", 1, "a", 1, NULL), LIARA_CACHE_OK);
    ck_status(liara_cache_put(cache, "k", 1, "b", 1, NULL), LIARA_CACHE_EXISTS);
    liara_cache_set_put_cost(cache, UINT32_MAX);
    ck_status(liara_cache_put(cache, "k", 1, "c", 1, &options), LIARA_CACHE_OK);
    liara_cache_set_put_cost(cache, 7);
    ck_status(liara_cache_put_many(cache, items, 2), LIARA_CACHE_OK);
    ck_status(liara_cache_put_many(cache, items, 1), LIARA_CACHE_OK);
    liara_cache_set_put_cost(cache, 8);
    ck_status(liara_cache_put(cache, "", 0, "f", 1, NULL), LIARA_CACHE_USAGE);
    ck_status(liara_cache_put(cache, "k", 1, "f", 1, NULL), LIARA_CACHE_EXISTS);
    end_play();
}
END_TEST

static void close_again_and_again(struct fake *f)
{
    accept_client(f);
    accept_client(f);
    hear(f, "PING\n");
    hang_up(f);
    struct pollfd more = {.fd = f->listener, .events = POLLIN};
    if (poll(&more, 1, SHORT) > 0)
        fault(f, "the client came a third time");
}

START_TEST(request_is_repeated_once)
{
    play(close_again_and_again);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_UNREACHABLE);
    end_play();
}
END_TEST

static void refuse_prefix(struct fake *f)
{
    accept_client(f);
    hear(f, "PREFIX p\n");
    say(f, "ERROR denied not for you\n");
    accept_client(f);
    hear(f, "PREFIX p\n");
    say(f, "ERROR denied not for you\n");
    accept_client(f);
    hear(f, "PREFIX\n");
    say(f, "OK\n");
}

START_TEST(nothing_is_done_under_another_prefix)
{
    struct liara_cache_value value;
    play(refuse_prefix);
    ck_status(liara_cache_prefix(cache, "p", 1), LIARA_CACHE_ERROR_DENIED);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_ERROR_DENIED);
    ck_status(liara_cache_prefix(cache, NULL, 0), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static void store_small(struct fake *f)
{
    accept_client(f);
    hear(f, "PUT k 2\n\n\n\n");
    say(f, "STORED\n");
    hear(f, "PUT k 0 flags=4294967295\n\n");
    say(f, "EXISTS\n");
    hear(f, "DELETE k\n");
    say(f, "DELETED\n");
    hear(f, "DELETE k\n");
    say(f, "MISS\n");
    hear(f, "HEAD k\n");
    say(f, "SIZE 18446744073709551614 flags=3 ttl=2\n");
    hear(f, "PING\nCLEAR\n");
    say(f, "OK\nOK entries=12\n");
    hear(f, "PING\nPERSIST\n");
    say(f, "OK\nOK volatile\n");
    hear(f, "PING\nPERSIST\n");
    say(f, "OK\nOK\n");
}

START_TEST(small_requests)
{
    const struct liara_cache_put_options options = {.flags = UINT32_MAX};
    struct liara_cache_value value;
    uint64_t entries;
    bool is_volatile;
    play(store_small);
    ck_status(liara_cache_put(cache, "k", 1, "\n\n", 2, NULL), LIARA_CACHE_OK);
    ck_status(liara_cache_put(cache, "k", 1, NULL, 0, &options), LIARA_CACHE_EXISTS);
    ck_status(liara_cache_delete(cache, "k", 1), LIARA_CACHE_OK);
    ck_status(liara_cache_delete(cache, "k", 1), LIARA_CACHE_MISS);
    ck_status(liara_cache_head(cache, "k", 1, &value), LIARA_CACHE_OK);
    ck_assert_uint_eq(value.length, UINT64_MAX - 1);
    ck_assert_uint_eq(value.flags, 3);
    ck_assert_uint_eq(value.ttl, 2);
    ck_status(liara_cache_clear(cache, &entries), LIARA_CACHE_OK);
    ck_assert_uint_eq(entries, 12);
    ck_status(liara_cache_persist(cache, &is_volatile), LIARA_CACHE_OK);
    ck_assert(is_volatile);
    ck_status(liara_cache_persist(cache, &is_volatile), LIARA_CACHE_OK);
    ck_assert(!is_volatile);
    end_play();
}
END_TEST

static void inspect_twice(struct fake *f)
{
    const char *text = "name Sqlite3\nbackend sqlite\nnonsense\nsize 123456789012\nentries 42\n"
                       "approximate 1\nother thing with spaces\n";
    char line[32];
    accept_client(f);
    hear(f, "INSPECT\n");
    snprintf(line, sizeof(line), "VALUE %zu\n", strlen(text));
    say(f, line);
    say(f, text);
    say(f, "\n");
    hear(f, "INSPECT\n");
    say(f, "VALUE 13\nname In-Memory\n");
}

START_TEST(inspect_reads_the_lines)
{
    struct liara_cache_info info;
    play(inspect_twice);
    ck_status(liara_cache_inspect(cache, &info), LIARA_CACHE_OK);
    ck_assert_str_eq(info.name, "Sqlite3");
    ck_assert_str_eq(info.backend, "sqlite");
    ck_assert_uint_eq(info.size, 123456789012);
    ck_assert_uint_eq(info.entries, 42);
    ck_assert(info.approximate);
    ck_assert_ptr_nonnull(strstr(info.text, "other thing with spaces\n"));
    liara_cache_free(info.text);
    ck_status(liara_cache_inspect(cache, &info), LIARA_CACHE_PROTOCOL);
    ck_assert_ptr_null(info.text);
    end_play();
}
END_TEST

static void hear_value(struct fake *f, const char *line, const char *value, size_t length)
{
    char *found = malloc(length + 1);
    hear(f, line);
    hear_bytes(f, found, length + 1);
    if (memcmp(found, value, length) != 0 || found[length] != '\n')
        fault(f, "the value is another one");
    free(found);
}

static void hear_passed(struct fake *f, const char *line, const char *value, size_t length)
{
    char *found = malloc(length + 1);
    int fd = hear_with_descriptor(f, line);
    if (pread(fd, found, length, 0) != (ssize_t)length || memcmp(found, value, length) != 0)
        fault(f, "the descriptor's value is another one");
    close(fd);
    free(found);
}

static void store_files(struct fake *f)
{
    char *value = large_value();
    accept_client(f);
    hear_value(f, "PUT small 1000\n", value, 1000);
    say(f, "STORED\n");
    hear_passed(f, "PUT large 1048576 fd\n", value, LARGE);
    say(f, "STORED\n");
    hear_passed(f, "PUT part 131072 flags=2 fd\n", value, 131072);
    say(f, "EXISTS\n");
    hear_value(f, "PUT less 131071\n", value, 131071);
    say(f, "STORED\n");
    hear_value(f, "PUT rest 1048476\n", value + 100, LARGE - 100);
    say(f, "STORED\n");
    hear_value(f, "PUT beyond 0\n", value, 0);
    say(f, "STORED\n");
    free(value);
}

START_TEST(put_from_a_file)
{
    const struct liara_cache_put_options options = {.flags = 2};
    char *value = large_value();
    int fd = file_of(value, LARGE), small = file_of(value, 1000);
    play(store_files);
    ck_status(liara_cache_put_fd(cache, "small", 5, small, -1, NULL), LIARA_CACHE_OK);
    ck_status(liara_cache_put_fd(cache, "large", 5, fd, -1, NULL), LIARA_CACHE_OK);
    ck_status(liara_cache_put_fd(cache, "part", 4, fd, 131072, &options), LIARA_CACHE_EXISTS);
    ck_status(liara_cache_put_fd(cache, "less", 4, fd, 131071, NULL), LIARA_CACHE_OK);
    lseek(fd, 100, SEEK_SET);
    ck_status(liara_cache_put_fd(cache, "rest", 4, fd, -1, NULL), LIARA_CACHE_OK);
    ck_status(liara_cache_put_fd(cache, "long", 4, fd, LARGE, NULL), LIARA_CACHE_LOCAL);
    lseek(fd, LARGE + 5, SEEK_SET);
    ck_status(liara_cache_put_fd(cache, "beyond", 6, fd, -1, NULL), LIARA_CACHE_OK);
    end_play();
    close(fd);
    close(small);
    free(value);
}
END_TEST

struct feed {
    int fd;
    const char *bytes;
    size_t length;
};

static void *write_feed(void *arg)
{
    const struct feed *feed = arg;
    for (size_t at = 0; at < feed->length;) {
        ssize_t put = write(feed->fd, feed->bytes + at, feed->length - at);
        if (put <= 0)
            break;
        at += (size_t)put;
    }
    close(feed->fd);
    return NULL;
}

/* The read end of a pipe into which a thread writes the bytes, flags for pipe2(). */
static int pipe_of(struct feed *feed, const char *bytes, size_t length, int flags,
                   pthread_t *thread)
{
    int ends[2];
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    ck_assert_int_eq(fcntl(ends[0], F_SETFL, flags), 0);
    *feed = (struct feed){ends[1], bytes, length};
    ck_assert_int_eq(pthread_create(thread, NULL, write_feed, feed), 0);
    return ends[0];
}

static enum liara_cache_status put_pipe(const char *key, const char *bytes, size_t length,
                                        int64_t announced, int flags)
{
    struct feed feed;
    pthread_t thread;
    int fd = pipe_of(&feed, bytes, length, flags, &thread);
    enum liara_cache_status status =
        liara_cache_put_fd(cache, key, strlen(key), fd, announced, NULL);
    pthread_join(thread, NULL);
    close(fd);
    return status;
}

static void store_pipes(struct fake *f)
{
    char *value = large_value();
    accept_client(f);
    hear_value(f, "PUT short 100\n", value, 100);
    say(f, "STORED\n");
    hear_passed(f, "PUT long 1048576 fd\n", value, LARGE);
    say(f, "STORED\n");
    hear_value(f, "PUT known 1048576\n", value, LARGE);
    say(f, "STORED\n");
    hear_value(f, "PUT none 0\n", value, 0);
    say(f, "STORED\n");
    free(value);
}

START_TEST(put_from_a_pipe)
{
    char *value = large_value();
    play(store_pipes);
    ck_status(put_pipe("short", value, 100, -1, _i), LIARA_CACHE_OK);
    ck_status(put_pipe("long", value, LARGE, -1, _i), LIARA_CACHE_OK);
    ck_status(put_pipe("known", value, LARGE, LARGE, _i), LIARA_CACHE_OK);
    ck_status(put_pipe("none", value, 0, -1, _i), LIARA_CACHE_OK);
    end_play();
    free(value);
}
END_TEST

static void hear_too_little(struct fake *f)
{
    char bytes[16];
    accept_client(f);
    hear(f, "PUT k 1000\n");
    hear_end(f);
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\n");
    hear_bytes(f, bytes, 0);
}

START_TEST(pipe_that_ends_early_stores_nothing)
{
    play(hear_too_little);
    ck_status(put_pipe("k", "abc", 3, 1000, 0), LIARA_CACHE_LOCAL);
    ck_assert_int_eq(errno, ENODATA);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static void close_then_close(struct fake *f)
{
    accept_client(f);
    accept_client(f);
}

START_TEST(pipe_of_known_length_is_not_repeated)
{
    play(close_then_close);
    until_first(&fake.left);
    ck_status(put_pipe("k", "abc", 3, 3, 0), LIARA_CACHE_UNREACHABLE);
    end_play();
}
END_TEST

static void refuse_early(struct fake *f)
{
    accept_client(f);
    hear(f, "PUT k 1048576\n");
    say(f, "ERROR too-large at most 1000 bytes\n");
    if (f->parameter)
        hang_up(f);
    else
        hear_bytes(f, (char[1000]){0}, 1000);
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\n");
}

/* The loop's index says whether the daemon closes or just reads no more. */
START_TEST(refusal_is_heard_while_the_value_is_sent)
{
    char *value = large_value();
    play_with(refuse_early, _i);
    ck_status(liara_cache_put(cache, "k", 1, value, LARGE, NULL), LIARA_CACHE_ERROR_TOO_LARGE);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    free(value);
}
END_TEST

static void send_large(struct fake *f)
{
    char *value = large_value();
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, "VALUE 1048576 flags=5\n");
    say_bytes(f, value, LARGE);
    say(f, "\n");
    hear(f, "PING\n");
    say(f, "OK\n");
    free(value);
}

START_TEST(get_large_value)
{
    char *expected = large_value();
    struct liara_cache_value value;
    play(send_large);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_OK);
    ck_assert_uint_eq(value.length, LARGE);
    ck_assert_mem_eq(value.bytes, expected, LARGE);
    liara_cache_free(value.bytes);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    free(expected);
}
END_TEST

START_TEST(get_to_a_descriptor)
{
    char *expected = large_value();
    struct liara_cache_value value;
    int fd = file_of("", 0);
    play(send_large);
    ck_status(liara_cache_get_fd(cache, "k", 1, fd, 0, &value), LIARA_CACHE_OK);
    ck_assert_uint_eq(value.length, LARGE);
    ck_assert_uint_eq(value.flags, 5);
    ck_assert_ptr_null(value.bytes);
    check_file(fd, expected, LARGE);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(fd);
    free(expected);
}
END_TEST

static void send_in_vain(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, "VALUE 5\nhello\n");
    hear_end(f);
}

/* SIGPIPE has its default action here: a signal would end the test. */
START_TEST(get_to_a_pipe_that_nobody_reads)
{
    struct liara_cache_value value;
    int ends[2];
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    play(send_in_vain);
    ck_status(liara_cache_get_fd(cache, "k", 1, ends[1], 0, &value), LIARA_CACHE_LOCAL);
    ck_assert_int_eq(errno, EPIPE);
    sigset_t pending;
    sigpending(&pending);
    ck_assert(!sigismember(&pending, SIGPIPE));
    end_play();
    close(ends[1]);
}
END_TEST

static void send_three(struct fake *f)
{
    accept_client(f);
    for (int i = 0; i < 3; i++) {
        hear(f, "GET k fd\n");
        say(f, "VALUE 5\nhello\n");
    }
}

START_TEST(get_into_a_buffer)
{
    struct liara_cache_value value;
    char buffer[6] = "......";
    play(send_three);
    ck_status(liara_cache_get_into(cache, "k", 1, buffer, 5, &value), LIARA_CACHE_OK);
    ck_assert_mem_eq(buffer, "hello.", 6);
    ck_assert_ptr_eq(value.bytes, buffer);
    ck_status(liara_cache_get_into(cache, "k", 1, buffer, 4, &value), LIARA_CACHE_NO_ROOM);
    ck_assert_uint_eq(value.length, 5);
    ck_assert_ptr_null(value.bytes);
    ck_status(liara_cache_get_into(cache, "k", 1, buffer, 6, &value), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static void lend(struct fake *f)
{
    const struct timespec computing = {3 * SHORT / 1000, 0};
    accept_client(f);
    hear(f, "PING\nGET k lease=10 fd\n");
    drip(f, "OK\nMISS lease\n");
    hear(f, "PING\nGET k lease=10 fd\n");
    say(f, "OK\n");
    nanosleep(&computing, NULL);
    say(f, "VALUE 3\nabc\n");
    hear(f, "PING\nGET k lease=10 fd\n");
    say(f, "OK\nMISS\n");
    hear(f, "PING\nGET k lease=10 fd\n");
    say(f, "OK\n");
    hear_end(f);
}

START_TEST(lease_waits_for_the_long_time)
{
    struct liara_cache_value value;
    play(lend);
    liara_cache_set_timeout(cache, SHORT);
    liara_cache_set_long_timeout(cache, 10 * SHORT);
    ck_status(liara_cache_get_lease(cache, "k", 1, 10, &value), LIARA_CACHE_LEASE);
    ck_status(liara_cache_get_lease(cache, "k", 1, 10, &value), LIARA_CACHE_OK);
    ck_assert_str_eq(value.bytes, "abc");
    liara_cache_free(value.bytes);
    ck_status(liara_cache_get_lease(cache, "k", 1, 10, &value), LIARA_CACHE_MISS);
    liara_cache_set_long_timeout(cache, SHORT);
    ck_status(liara_cache_get_lease(cache, "k", 1, 10, &value), LIARA_CACHE_TIMED_OUT);
    end_play();
}
END_TEST

/* What a daemon that hangs has said of its answer to a GET with a lease, in one go or in two. */
static const struct {
    const char *first, *second;
} halves[] = {
    {"", ""},
    {"O", ""},
    {"OK\nVAL", ""},
    {"OK\n", "VAL"},
    {"OK\nVALUE 1000\n", ""},
    {"OK\n", "VALUE 1000\nabc"},
    {"OK\nVALUE 1000\nabc", "def"},
};
enum { HALVES = sizeof(halves) / sizeof(halves[0]) };

static void hang(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\nGET k lease=600 fd\n");
    say(f, halves[f->parameter].first);
    if (halves[f->parameter].second[0]) {
        const struct timespec moment = {0, SHORT / 4 * 1000000L};
        nanosleep(&moment, NULL);
        say(f, halves[f->parameter].second);
    }
    hear_end(f);
}

/* Long before the lease is over, which the test's own limit says. */
START_TEST(lease_is_not_waited_for_where_the_daemon_hangs)
{
    struct liara_cache_value value;
    play_with(hang, _i);
    liara_cache_set_timeout(cache, SHORT);
    liara_cache_set_long_timeout(cache, 600000);
    ck_status(liara_cache_get_lease(cache, "k", 1, 600, &value), LIARA_CACHE_TIMED_OUT);
    ck_assert_ptr_null(value.bytes);
    end_play();
}
END_TEST

static void hang_over_all(struct fake *f)
{
    accept_client(f);
    hear(f, f->parameter ? "PING\nCLEAR\n" : "PING\nPERSIST\n");
    hear_end(f);
}

START_TEST(persist_and_clear_do_not_wait_where_the_daemon_hangs)
{
    play_with(hang_over_all, _i);
    liara_cache_set_timeout(cache, SHORT);
    ck_status(_i ? liara_cache_clear(cache, NULL) : liara_cache_persist(cache, NULL),
              LIARA_CACHE_TIMED_OUT);
    end_play();
}
END_TEST

/* So does a daemon that has as many connections as it may have. */
static void refuse_a_ping(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\nGET k lease=9 fd\n");
    say(f, "ERROR busy no more connections\n");
    hear_end(f);
    accept_client(f);
    hear(f, "PING\nGET k lease=9 fd\n");
    say(f, "MISS\nOK\n");
    hear_end(f);
}

START_TEST(ping_before_a_lease_may_be_refused)
{
    struct liara_cache_value value;
    play(refuse_a_ping);
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_ERROR_BUSY);
    ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), "no more connections"));
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_PROTOCOL);
    end_play();
}
END_TEST

static void die_while_waited_for(struct fake *f)
{
    const struct timespec computing = {0, 2 * SHORT * 1000000L};
    accept_client(f);
    hear(f, "PING\nGET k lease=9 fd\n");
    say(f, "OK\n");
    nanosleep(&computing, NULL);
    accept_client(f);
    hear(f, "PING\nGET k lease=9\n");
    say(f, "OK\nMISS lease\n");
}

/* By then more time has passed than connecting may take. */
START_TEST(lease_is_asked_for_again_where_the_daemon_was_restarted)
{
    struct liara_cache_value value;
    play(die_while_waited_for);
    liara_cache_set_timeout(cache, SHORT);
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_LEASE);
    end_play();
}
END_TEST

enum { LONG = 4000 };

/* The client is to give up a quarter of the time-out after this answer. */
static void hang_after_the_prefix(struct fake *f)
{
    const struct timespec most = {LONG / 1000 * 3 / 4, 0};
    accept_client(f);
    hear(f, "PREFIX p/\n");
    say(f, "OK\n");
    accept_client(f);
    hear(f, "PREFIX p/\n");
    nanosleep(&most, NULL);
    say(f, "OK\n");
    hear(f, "PING\nGET k lease=9 fd\n");
    struct pollfd gone = {.fd = f->client, .events = POLLIN};
    if (poll(&gone, 1, LONG - LONG / 50) <= 0)
        fault(f, "the client waits for each answer anew");
}

START_TEST(connecting_and_answering_share_one_time_out)
{
    struct liara_cache_value value;
    play(hang_after_the_prefix);
    ck_status(liara_cache_prefix(cache, "p/", 2), LIARA_CACHE_OK);
    liara_cache_disconnect(cache);
    liara_cache_set_timeout(cache, LONG);
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_TIMED_OUT);
    end_play();
}
END_TEST

static void answer_many(struct fake *f)
{
    char *value = large_value(), line[2048];
    accept_client(f);
    for (int i = 0; i < 600; i++) {
        snprintf(line, sizeof(line), "GET %01000d\n", i);
        hear(f, line);
        if (i % 3 == 0) {
            say(f, "MISS\n");
        } else if (i % 3 == 1) {
            say(f, "ERROR busy later\n");
        } else {
            snprintf(line, sizeof(line), "VALUE %d flags=%d\n", 100 * i, i);
            say(f, line);
            say_bytes(f, value, (size_t)i * 100);
            say(f, "\n");
        }
    }
    hear(f, "PING\n");
    say(f, "OK\n");
    free(value);
}

/* Both directions fill: 600 kB of questions, and answers that the daemon can't get rid of. */
START_TEST(get_many_does_not_block_itself)
{
    enum { COUNT = 600 };
    static char keys[COUNT][1001];
    struct liara_cache_get_item items[COUNT];
    char *expected = large_value();
    for (int i = 0; i < COUNT; i++) {
        snprintf(keys[i], sizeof(keys[i]), "%01000d", i);
        items[i].key = keys[i];
        items[i].key_length = 1000;
    }
    play(answer_many);
    ck_status(liara_cache_get_many(cache, items, COUNT), LIARA_CACHE_OK);
    for (int i = 0; i < COUNT; i++) {
        static const enum liara_cache_status statuses[] = {LIARA_CACHE_MISS, LIARA_CACHE_ERROR_BUSY,
                                                           LIARA_CACHE_OK};
        ck_status(items[i].status, statuses[i % 3]);
        if (i % 3 != 2) {
            ck_assert_ptr_null(items[i].value.bytes);
            continue;
        }
        ck_assert_uint_eq(items[i].value.length, (size_t)i * 100);
        ck_assert_uint_eq(items[i].value.flags, (unsigned)i);
        ck_assert_mem_eq(items[i].value.bytes, expected, (size_t)i * 100);
        liara_cache_free(items[i].value.bytes);
    }
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    free(expected);
}
END_TEST

/* Reads nothing at first, then answers with pauses. */
static void store_many(struct fake *f)
{
    const struct timespec pause = {0, 100000000};
    char *value = large_value();
    accept_client(f);
    nanosleep(&pause, NULL);
    for (int i = 0; i < 1000; i++) {
        size_t length = i % 100 == 99 ? LARGE : (size_t)i % 5000;
        char line[64];
        snprintf(line, sizeof(line), "PUT key%d %zu flags=%d\n", i, length, i + 1);
        hear_value(f, line, value, length);
        say(f, i % 2 ? "EXISTS\n" : "STORED\n");
        if (i % 250 == 0)
            nanosleep(&pause, NULL);
    }
    free(value);
}

START_TEST(put_many_waits_for_a_daemon_that_does_not_read)
{
    enum { COUNT = 1000 };
    static char keys[COUNT][16];
    static struct liara_cache_put_item items[COUNT];
    char *value = large_value();
    for (int i = 0; i < COUNT; i++) {
        int length = snprintf(keys[i], sizeof(keys[i]), "key%d", i);
        items[i] = (struct liara_cache_put_item){
            .key = keys[i],
            .key_length = (size_t)length,
            .bytes = value,
            .length = i % 100 == 99 ? LARGE : (size_t)i % 5000,
            .options = {.flags = (uint32_t)i + 1},
        };
    }
    play(store_many);
    ck_status(liara_cache_put_many(cache, items, COUNT), LIARA_CACHE_OK);
    for (int i = 0; i < COUNT; i++)
        ck_status(items[i].status, i % 2 ? LIARA_CACHE_EXISTS : LIARA_CACHE_OK);
    end_play();
    free(value);
}
END_TEST

static void die_between(struct fake *f)
{
    accept_client(f);
    accept_client(f);
    hear(f, "GET a\nGET b\nGET c\n");
    say(f, "VALUE 1\nA\nVALUE 5\nhal");
}

/* Repeated on a new connection at first; what comes after an answer is not. */
START_TEST(get_many_says_which_were_answered)
{
    struct liara_cache_get_item items[] = {{.key = "a", .key_length = 1},
                                           {.key = "b", .key_length = 1},
                                           {.key = "c", .key_length = 1}};
    play(die_between);
    ck_status(liara_cache_get_many(cache, items, 3), LIARA_CACHE_UNREACHABLE);
    ck_status(items[0].status, LIARA_CACHE_OK);
    ck_assert_str_eq(items[0].value.bytes, "A");
    liara_cache_free(items[0].value.bytes);
    ck_status(items[1].status, LIARA_CACHE_UNREACHABLE);
    ck_assert_ptr_null(items[1].value.bytes);
    ck_status(items[2].status, LIARA_CACHE_UNREACHABLE);
    end_play();
}
END_TEST

static void accept_only(struct fake *f)
{
    accept_client(f);
    hear_end(f);
}

START_TEST(mistakes_are_told_and_nothing_is_sent)
{
    char long_key[LIARA_CACHE_KEY_MAX + 1] = "";
    struct liara_cache_value value;
    struct liara_cache_get_item items[] = {{.key = "a", .key_length = 1},
                                           {.key = "", .key_length = 0}};
    play(accept_only);
    ck_status(liara_cache_get(cache, "", 0, &value), LIARA_CACHE_USAGE);
    ck_status(liara_cache_get(cache, long_key, sizeof(long_key), &value), LIARA_CACHE_USAGE);
    ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), "1025"));
    ck_status(liara_cache_put_fd(cache, "", 0, -1, -1, NULL), LIARA_CACHE_USAGE);
    ck_status(liara_cache_put_fd(cache, "k", 1, -1, -1, NULL), LIARA_CACHE_LOCAL);
    ck_status(liara_cache_get_lease(cache, "k", 1, 0, &value), LIARA_CACHE_USAGE);
    ck_status(liara_cache_prefix(cache, long_key, sizeof(long_key)), LIARA_CACHE_USAGE);
    ck_status(liara_cache_get_many(cache, items, 2), LIARA_CACHE_USAGE);
    ck_status(liara_cache_get_many(cache, items, 0), LIARA_CACHE_OK);
    liara_cache_disconnect(cache);
    end_play();
}
END_TEST

/* A reply that brings two descriptors nobody asked for. */
static void send_descriptors(struct fake *f)
{
    char control[CMSG_SPACE(2 * sizeof(int))] = "";
    char text[] = "OK\n";
    struct iovec part = {text, 3};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){f->listener, f->listener}, 2 * sizeof(int));
    accept_client(f);
    for (int i = 0; i < 2; i++) {
        hear(f, "PING\n");
        if (sendmsg(f->client, &message, MSG_NOSIGNAL) != 3)
            fault(f, "can't send descriptors");
    }
}

START_TEST(descriptors_are_neither_leaked_nor_inherited)
{
    unsigned before = count_descriptors();
    play(send_descriptors);
    for (int fd = 3; fd < 64; fd++) {
        int flags = fcntl(fd, F_GETFD);
        struct stat file;
        if (flags >= 0 && fstat(fd, &file) == 0 && S_ISSOCK(file.st_mode))
            ck_assert_msg(flags & FD_CLOEXEC, "descriptor %d would be inherited", fd);
    }
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    liara_cache_close(cache);
    cache = NULL;
    ck_assert_uint_eq(count_descriptors(), before);
}
END_TEST

static void check_standard(struct fake *f, const char *when)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            fault(f, "the library uses descriptor %d %s", fd, when);
    }
}

enum { PIPE_VALUE = 64 * 1024 /* as much as is read from a pipe before it is spooled */ };

static void say_with(struct fake *f, const char *text, int first, int second);

static void serve_without_standard(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\n");
    check_standard(f, "for the connection");
    say(f, "OK\n");
    int spool = hear_with_descriptor(f, "PUT pipe 65536 fd\n");
    check_standard(f, "for what came out of a pipe");
    say(f, "STORED\n");
    hear(f, "GET passed fd\n");
    say_with(f, "FD 5 offset=0\n", spool, -1);
    close(spool);
    hear(f, "GET sent fd\n");
    say(f, "VALUE 5\nhello\n");
}

static void close_standard(int saved[3])
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        saved[fd] = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        ck_assert_int_ge(saved[fd], 0);
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        close(fd);
}

static void restore_standard(const int saved[3])
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        dup2(saved[fd], fd);
        close(saved[fd]);
    }
}

START_TEST(closed_standard_descriptors_are_left_alone)
{
    static char bytes[PIPE_VALUE];
    int saved[3], ends[2];
    struct liara_cache_file passed, sent;
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    ck_assert_int_eq(write(ends[1], bytes, sizeof(bytes)), PIPE_VALUE);
    close(ends[1]);
    close_standard(saved);
    play(serve_without_standard);
    liara_cache_set_timeout(cache, FAKE_WAIT);
    enum liara_cache_status statuses[] = {
        liara_cache_ping(cache),
        liara_cache_put_fd(cache, "pipe", 4, ends[0], -1, NULL),
        liara_cache_open_value(cache, "passed", 6, &passed),
        liara_cache_open_value(cache, "sent", 4, &sent),
    };
    pthread_join(fake.thread, NULL);
    check_standard(&fake, "afterwards");
    restore_standard(saved);
    ck_assert_msg(fake.fault[0] == '\0', "%s", fake.fault);
    for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
        ck_assert_int_eq(statuses[i], LIARA_CACHE_OK);
    ck_assert_int_gt(passed.fd, STDERR_FILENO);
    ck_assert_int_gt(sent.fd, STDERR_FILENO);
    close(passed.fd);
    close(sent.fd);
    close(ends[0]);
}
END_TEST

static void pong(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\n");
}

START_TEST(open_finds_the_socket_in_the_environment)
{
    setenv("LIARA_CACHE_SOCKET", fake.path, 1);
    start(&fake, pong, 0);
    ck_assert_int_eq(liara_cache_open(&cache, NULL), LIARA_CACHE_OK);
    ck_assert_str_eq(liara_cache_socket(cache), fake.path);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static const struct {
    mode_t mode;
    bool trusted;
} folders[] = {{0700, true}, {0755, true}, {0770, false}, {0777, false}};

START_TEST(open_trusts_only_the_users_own_folder)
{
    char folder[300], path[320];
    snprintf(folder, sizeof(folder), "%s/liara-cached", fake.folder);
    snprintf(path, sizeof(path), "%s/socket", folder);
    ck_assert_int_eq(mkdir(folder, 0700), 0);
    int listener = listen_at(path);
    ck_assert_int_eq(chmod(folder, folders[_i].mode), 0);
    unsetenv("LIARA_CACHE_SOCKET");
    setenv("XDG_RUNTIME_DIR", fake.folder, 1);
    liara_cache_open(&cache, NULL);
    ck_assert_ptr_nonnull(cache);
    ck_assert_int_eq(strcmp(liara_cache_socket(cache), path) == 0, folders[_i].trusted);
    close(listener);
    unlink(path);
    rmdir(folder);
}
END_TEST

START_TEST(open_without_a_daemon_gives_a_handle_that_tries_again)
{
    char long_path[200];
    close(fake.listener);
    unlink(fake.path);
    ck_assert_int_eq(liara_cache_open(&cache, fake.path), LIARA_CACHE_UNREACHABLE);
    ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), fake.path));
    ck_status(liara_cache_ping(cache), LIARA_CACHE_UNREACHABLE);
    fake.listener = listen_at(fake.path);
    start(&fake, pong, 0);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    ck_assert_str_eq(liara_cache_error(cache), "");
    end_play();
    liara_cache_close(cache);
    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    ck_assert_int_eq(liara_cache_open(&cache, long_path), LIARA_CACHE_USAGE);
}
END_TEST

/* Connections that nobody accepts, as many as there is room for. */
static void fill_backlog(const char *path, int *waiting, size_t most)
{
    struct sockaddr_un address = address_of(path);
    int result = 0;
    for (size_t i = 0; i < most && result == 0; i++) {
        waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        ck_assert_int_ge(waiting[i], 0);
        result = connect(waiting[i], (const struct sockaddr *)&address, sizeof(address));
    }
    ck_assert_int_eq(result, -1);
    ck_assert_int_eq(errno, EAGAIN);
}

START_TEST(handle_that_is_not_connected_can_be_told_how_long_to_wait)
{
    enum { WAITING = 64 };
    int waiting[WAITING];
    struct liara_cache_value value;
    memset(waiting, -1, sizeof(waiting));
    fill_backlog(fake.path, waiting, WAITING);
    ck_assert_int_eq(liara_cache_new(&cache, fake.path), LIARA_CACHE_OK);
    liara_cache_set_timeout(cache, SHORT);
    ck_status(liara_cache_connect(cache), LIARA_CACHE_TIMED_OUT);
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_TIMED_OUT);
    for (int i = 0; i < WAITING; i++)
        close(waiting[i]);
}
END_TEST

START_TEST(handle_connects_when_it_is_told_or_used)
{
    ck_assert_int_eq(liara_cache_new(&cache, fake.path), LIARA_CACHE_OK);
    ck_assert_str_eq(liara_cache_socket(cache), "");
    if (_i)
        ck_status(liara_cache_connect(cache), LIARA_CACHE_OK);
    start(&fake, pong, 0);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    ck_status(liara_cache_connect(cache), LIARA_CACHE_OK);
    ck_assert_str_eq(liara_cache_socket(cache), fake.path);
    end_play();
}
END_TEST

static void slow_value(struct fake *f)
{
    const struct timespec pause = {0, 300000000};
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, "VALUE 1000\n");
    for (int i = 0; i < 4; i++) {
        char quarter[250] = "";
        say_bytes(f, quarter, sizeof(quarter));
        nanosleep(&pause, NULL);
    }
    say(f, "\n");
}

struct seen {
    unsigned calls;
    uint64_t done, total;
};

static void see(void *arg, uint64_t done, uint64_t total)
{
    struct seen *seen = arg;
    ck_assert_uint_ge(done, seen->done);
    *seen = (struct seen){seen->calls + 1, done, total};
}

START_TEST(progress_is_told_while_it_lasts)
{
    struct liara_cache_value value;
    struct seen seen = {0};
    play(slow_value);
    liara_cache_set_progress(cache, see, &seen);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_OK);
    liara_cache_free(value.bytes);
    ck_assert_uint_ge(seen.calls, 3);
    ck_assert_uint_eq(seen.total, 1000);
    ck_assert_uint_ge(seen.done, 250);
    end_play();
}
END_TEST

static void serve_hundred(struct fake *f)
{
    accept_client(f);
    for (int i = 0; i < 100; i++) {
        hear(f, "GET k fd\n");
        say(f, "VALUE 5\nhello\n");
    }
}

static void *use_a_handle(void *arg)
{
    struct fake *f = arg;
    struct liara_cache *own;
    struct liara_cache_value value;
    uintptr_t hits = 0;
    liara_cache_open(&own, f->path);
    for (int i = 0; i < 100 && liara_cache_get(own, "k", 1, &value) == LIARA_CACHE_OK; i++) {
        hits += strcmp(value.bytes, "hello") == 0;
        liara_cache_free(value.bytes);
    }
    liara_cache_close(own);
    return (void *)hits;
}

START_TEST(threads_each_use_a_handle)
{
    enum { THREADS = 4 };
    struct fake daemons[THREADS];
    pthread_t users[THREADS];
    for (int i = 0; i < THREADS; i++) {
        make_folder(&daemons[i]);
        daemons[i].listener = listen_at(daemons[i].path);
        start(&daemons[i], serve_hundred, 0);
        ck_assert_int_eq(pthread_create(&users[i], NULL, use_a_handle, &daemons[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *hits;
        pthread_join(users[i], &hits);
        pthread_join(daemons[i].thread, NULL);
        ck_assert_uint_eq((uintptr_t)hits, 100);
        ck_assert_str_eq(daemons[i].fault, "");
        close(daemons[i].listener);
        unlink(daemons[i].path);
        rmdir(daemons[i].folder);
    }
}
END_TEST

/* Bytes that bring descriptors, as many as are not -1. */
static void say_with(struct fake *f, const char *text, int first, int second)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.bytes = ""};
    const int descriptors[] = {first, second};
    size_t size = second < 0 ? sizeof(int) : 2 * sizeof(int);
    struct iovec part = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (first >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(size);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(&control.header), descriptors, size);
    }
    if (sendmsg(f->client, &message, MSG_NOSIGNAL) != (ssize_t)part.iov_len)
        fault(f, "can't send a descriptor: %s", strerror(errno));
}

/* What a value may lie in: a sealed file in memory, one that anybody may change, one on a disk. */
enum lying { SEALED, UNSEALED, ON_DISK, LYINGS };
enum { AHEAD = 5000 /* bytes before the value, no multiple of a page */, VALUE_FLAGS = 7 };

static int value_file(enum lying lying, const char *value, size_t length)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (lying == ON_DISK) {
        close(fd);
        fd = open(fake.folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    }
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, AHEAD), 0);
    ck_assert_int_eq(pwrite(fd, value, length, AHEAD), (ssize_t)length);
    if (lying == SEALED)
        ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
    return fd;
}

/* The file that a script passes; the value begins at AHEAD and goes up to its end. */
static int passed_file = -1;
static size_t passed_length;

static void pass_file(struct fake *f)
{
    char line[128];
    hear(f, "GET k fd\n");
    snprintf(line, sizeof(line), "FD %zu offset=%d flags=%d ttl=60\n", passed_length, AHEAD,
             VALUE_FLAGS);
    say_with(f, line, passed_file, -1);
}

static void pass_then_pong(struct fake *f)
{
    accept_client(f);
    pass_file(f);
    hear(f, "PING\n");
    say(f, "OK\n");
}

static int read_sink(int fd, const char *expected)
{
    check_file(fd, expected, passed_length);
    return close(fd);
}

static enum liara_cache_status take_by_get(const char *expected)
{
    struct liara_cache_value value;
    enum liara_cache_status status = liara_cache_get(cache, "k", 1, &value);
    ck_assert((status == LIARA_CACHE_OK) == (value.bytes != NULL));
    if (status != LIARA_CACHE_OK)
        return status;
    ck_assert_uint_eq(value.length, passed_length);
    ck_assert_uint_eq(value.flags, VALUE_FLAGS);
    ck_assert_uint_eq(value.ttl, 60);
    ck_assert_mem_eq(value.bytes, expected, passed_length);
    ck_assert_int_eq(((char *)value.bytes)[passed_length], '\0');
    liara_cache_free(value.bytes);
    return status;
}

static enum liara_cache_status take_by_get_into(const char *expected)
{
    struct liara_cache_value value;
    char *buffer = malloc(passed_length);
    enum liara_cache_status status =
        liara_cache_get_into(cache, "k", 1, buffer, passed_length, &value);
    if (status == LIARA_CACHE_OK) {
        ck_assert_ptr_eq(value.bytes, buffer);
        ck_assert_uint_eq(value.flags, VALUE_FLAGS);
        ck_assert_mem_eq(buffer, expected, passed_length);
    }
    free(buffer);
    return status;
}

static enum liara_cache_status take_by_get_fd(const char *expected)
{
    struct liara_cache_value value;
    int fd = open(fake.folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    ck_assert_int_eq(write(fd, "before", 6), 6);
    enum liara_cache_status status = liara_cache_get_fd(cache, "k", 1, fd, 0, &value);
    ck_assert_ptr_null(value.bytes);
    if (status == LIARA_CACHE_OK) {
        char *found = malloc(passed_length + 1);
        ck_assert_uint_eq(value.ttl, 60);
        ck_assert_int_eq(pread(fd, found, passed_length + 1, 6), (ssize_t)passed_length);
        ck_assert_mem_eq(found, expected, passed_length);
        free(found);
    }
    close(fd);
    return status;
}

/* Whatever becomes of the file and the connection, what is mapped stays. */
static enum liara_cache_status take_by_map(const char *expected)
{
    struct liara_cache_mapping mapping;
    enum liara_cache_status status = liara_cache_map(cache, "k", 1, &mapping);
    if (status == LIARA_CACHE_OK) {
        bool cut = ftruncate(passed_file, 0) == 0;
        ck_assert_uint_eq(mapping.length, passed_length);
        ck_assert_uint_eq(mapping.flags, VALUE_FLAGS);
        ck_assert_uint_eq(mapping.ttl, 60);
        ck_assert_mem_eq(mapping.bytes, expected, passed_length);
        if (cut)
            ck_assert_int_eq(ftruncate(passed_file, (off_t)(AHEAD + passed_length)), 0);
    }
    liara_cache_unmap(&mapping);
    ck_assert_ptr_null(mapping.bytes);
    liara_cache_unmap(&mapping);
    return status;
}

static enum liara_cache_status take_by_open_value(const char *expected)
{
    struct liara_cache_file file;
    enum liara_cache_status status = liara_cache_open_value(cache, "k", 1, &file);
    ck_assert((status == LIARA_CACHE_OK) == (file.fd >= 0));
    if (status != LIARA_CACHE_OK)
        return status;
    char *found = malloc(passed_length);
    ck_assert_uint_eq(file.length, passed_length);
    ck_assert_uint_eq(file.flags, VALUE_FLAGS);
    ck_assert_int_eq(fcntl(file.fd, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq(pread(file.fd, found, passed_length, (off_t)file.offset),
                     (ssize_t)passed_length);
    ck_assert_mem_eq(found, expected, passed_length);
    free(found);
    close(file.fd);
    return status;
}

static enum liara_cache_status (*const takes[])(const char *expected) = {
    take_by_get, take_by_get_into, take_by_get_fd, take_by_map, take_by_open_value};
enum { TAKES = sizeof(takes) / sizeof(takes[0]), SIZES = 4 };

/* Values of these lengths are mapped or copied, with large pages and small, in one piece or more.
 */
static const size_t lengths[SIZES] = {0, 100, LARGE, 20 * LARGE + 1};

/* The loop's index counts through ways to take, ways to lie, and lengths. */
START_TEST(descriptor_brings_the_value)
{
    size_t length = lengths[_i / (TAKES * LYINGS)];
    char *value = calloc(1, length + 1), *large = large_value();
    ck_assert_ptr_nonnull(value);
    memcpy(value, large, length < LARGE ? length : LARGE);
    memcpy(value + length - (length < LARGE ? length : LARGE), large,
           length < LARGE ? length : LARGE);
    unsigned before = count_descriptors();
    passed_length = length;
    passed_file = value_file((enum lying)(_i / TAKES % LYINGS), value, length);
    play(pass_then_pong);
    ck_status(takes[_i % TAKES](value), LIARA_CACHE_OK);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(passed_file);
    liara_cache_close(cache);
    cache = NULL;
    ck_assert_uint_eq(count_descriptors(), before);
    free(value);
    free(large);
}
END_TEST

static void send_value(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    hear(f, "PING\n");
    say(f, "OK\n");
}

/* The same without a descriptor, which the daemon need not send. */
START_TEST(value_is_taken_in_the_same_ways)
{
    passed_length = 5;
    play(send_value);
    ck_status(takes[_i]("hello"), LIARA_CACHE_OK);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

/* Large pages are mapped as such only where they lie in memory as they lie in the file. */
START_TEST(large_value_is_mapped_where_large_pages_can_be)
{
    enum { LARGE_PAGE = 2 * 1024 * 1024 };
    static const uint32_t sizes[] = {LARGE_PAGE / 2, LARGE_PAGE + 1, 2 * LARGE_PAGE};
    struct liara_cache_mapping mapping;
    passed_length = sizes[_i];
    char *value = calloc(1, passed_length);
    memset(value + passed_length - 10, 'v', 10);
    passed_file = value_file(SEALED, value, passed_length);
    play(pass_then_pong);
    ck_status(liara_cache_map(cache, "k", 1, &mapping), LIARA_CACHE_OK);
    ck_assert_uint_eq((uintptr_t)mapping.bytes % LARGE_PAGE, AHEAD);
    ck_assert_uint_ge(mapping.size, LARGE_PAGE);
    ck_assert_mem_eq(mapping.bytes, value, passed_length);
    liara_cache_unmap(&mapping);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(passed_file);
    free(value);
}
END_TEST

START_TEST(small_value_is_opened_as_a_file_nobody_can_change)
{
    struct liara_cache_file file;
    play(send_value);
    ck_status(liara_cache_open_value(cache, "k", 1, &file), LIARA_CACHE_OK);
    ck_assert_int_lt(pwrite(file.fd, "x", 1, 0), 0);
    ck_assert_int_lt(ftruncate(file.fd, 0), 0);
    close(file.fd);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static const char *const false_lines[] = {
    "FD 101 offset=5000 flags=7\n",
    "FD 1 offset=5101\n",
    "FD 5101 offset=0\n",
    "FD 10 offset=18446744073709551610\n",
    "FD 18446744073709551615 offset=5000\n",
    "FD 9223372036854775807 offset=9223372036854775807\n",
    "MISS lease\nFD 100 offset=5000\n",
};
enum { FALSE_LINES = sizeof(false_lines) / sizeof(false_lines[0]) };

static void pass_falsely(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_with(f, false_lines[f->parameter], passed_file, -1);
    hear_end(f);
    accept_client(f);
    hear(f, "PING\n");
    say(f, "OK\n");
}

/* The loop's index counts through ways to take and lines; the file has 100 bytes behind AHEAD. */
START_TEST(descriptor_that_does_not_have_the_value_is_refused)
{
    char value[100] = "";
    enum liara_cache_status expected = LIARA_CACHE_PROTOCOL;
    if (_i / TAKES == FALSE_LINES - 1)
        expected = LIARA_CACHE_LEASE;
    passed_length = sizeof(value);
    passed_file = value_file(SEALED, value, sizeof(value));
    unsigned before = count_descriptors();
    play_with(pass_falsely, _i / (int)TAKES);
    ck_status(takes[_i % TAKES](value), expected);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    liara_cache_close(cache);
    cache = NULL;
    ck_assert_uint_eq(count_descriptors(), before);
    close(passed_file);
}
END_TEST

static int no_file(void)
{
    return -1;
}

static int a_pipe(void)
{
    int ends[2];
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    close(ends[1]);
    return ends[0];
}

static int a_folder(void)
{
    return open("/", O_RDONLY | O_CLOEXEC);
}

static int (*const other_things[])(void) = {no_file, a_pipe, a_folder};
enum { OTHER_THINGS = sizeof(other_things) / sizeof(other_things[0]) };

static void pass_other_thing(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_with(f, "FD 100 offset=0\n", passed_file, -1);
    hear_end(f);
}

START_TEST(descriptor_that_is_missing_or_no_file_is_refused)
{
    passed_length = 100;
    passed_file = other_things[_i / TAKES]();
    play(pass_other_thing);
    ck_status(takes[_i % TAKES](""), LIARA_CACHE_PROTOCOL);
    ck_assert_str_ne(liara_cache_error(cache), "");
    end_play();
    close(passed_file);
}
END_TEST

/* A file of which fstat() says that it has a page: like one that is cut while it is read. */
static struct stat cut_file;

int fstat(int fd, struct stat *file)
{
    int result = fstatat(fd, "", file, AT_EMPTY_PATH);
    if (result == 0 && file->st_ino == cut_file.st_ino && file->st_dev == cut_file.st_dev)
        file->st_size = 4096;
    return result;
}

static void pass_short(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_with(f, "FD 4000 offset=0\n", passed_file, -1);
}

START_TEST(file_that_is_cut_while_it_is_read_is_told)
{
    struct liara_cache_value value;
    struct liara_cache_mapping mapping;
    char buffer[4000];
    passed_file = file_of("0-1\n", 4);
    ck_assert_int_eq(fstat(passed_file, &cut_file), 0);
    int sink = file_of("", 0);
    play(pass_short);
    switch (_i) {
    case 0:
        ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_PROTOCOL);
        ck_assert_ptr_null(value.bytes);
        break;
    case 1:
        ck_status(liara_cache_get_into(cache, "k", 1, buffer, sizeof(buffer), &value),
                  LIARA_CACHE_PROTOCOL);
        ck_assert_ptr_null(value.bytes);
        break;
    case 2:
        ck_status(liara_cache_get_fd(cache, "k", 1, sink, 0, &value), LIARA_CACHE_PROTOCOL);
        break;
    default:
        ck_status(liara_cache_map(cache, "k", 1, &mapping), LIARA_CACHE_PROTOCOL);
        ck_assert_ptr_null(mapping.bytes);
        ck_assert_uint_eq(mapping.length, 0);
    }
    ck_assert_ptr_nonnull(strstr(liara_cache_error(cache), "cut short"));
    end_play();
    close(sink);
    close(passed_file);
}
END_TEST

/* One more than was announced, and some that were not. */
static void pass_too_many(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_with(f, "FD 5 offset=5000 flags=7 ttl=60\n", passed_file, f->listener);
    hear(f, "GET k fd\n");
    say_with(f, "VALUE 5 flags=7 ttl=60\nhe", passed_file, -1);
    say_with(f, "llo\n", passed_file, f->listener);
    hear(f, "GET k fd\n");
    say_with(f, "MISS\n", passed_file, -1);
    hear(f, "HEAD k\n");
    say_with(f, "FD 5 offset=5000\n", passed_file, -1);
}

START_TEST(descriptors_that_nobody_wants_are_closed)
{
    struct liara_cache_value value;
    passed_length = 5;
    passed_file = value_file(SEALED, "hello", 5);
    play(pass_too_many);
    until_first(&fake.accepted);
    unsigned before = count_descriptors();
    ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    ck_assert_uint_eq(count_descriptors(), before);
    ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    ck_assert_uint_eq(count_descriptors(), before);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_MISS);
    ck_assert_uint_eq(count_descriptors(), before);
    ck_status(liara_cache_head(cache, "k", 1, &value), LIARA_CACHE_PROTOCOL);
    end_play();
    liara_cache_disconnect(cache);
    ck_assert_uint_eq(count_descriptors(), before - 2);
    close(passed_file);
}
END_TEST

static void pass_and_stall(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k fd\n");
    say_with(f, "FD 5 off", passed_file, -1);
    hear_end(f);
}

START_TEST(descriptor_of_a_reply_that_stops_is_closed)
{
    struct liara_cache_value value;
    unsigned before = count_descriptors();
    passed_file = value_file(SEALED, "hello", 5);
    play(pass_and_stall);
    liara_cache_set_timeout(cache, SHORT);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_TIMED_OUT);
    end_play();
    close(passed_file);
    ck_assert_uint_eq(count_descriptors(), before);
}
END_TEST

static void pass_to_who_has_no_room(struct fake *f)
{
    accept_client(f);
    pass_file(f);
    hear(f, "GET k\n");
    say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    hear(f, "PING\n");
    say(f, "OK\n");
}

START_TEST(process_without_a_free_descriptor_gets_the_bytes)
{
    struct rlimit before, none;
    passed_length = 5;
    passed_file = value_file(SEALED, "hello", 5);
    play(pass_to_who_has_no_room);
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    until_first(&fake.accepted);
    int next = dup(0);
    close(next);
    none = (struct rlimit){.rlim_cur = (rlim_t)next, .rlim_max = before.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    enum liara_cache_status status = takes[_i]("hello");
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_status(status, LIARA_CACHE_OK);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(passed_file);
}
END_TEST

enum connected { BY_OPEN, USED, BY_GET, CONNECTEDS };

static void hang_up_on_descriptors(struct fake *f)
{
    accept_client(f);
    if (f->parameter == USED) {
        hear(f, "PING\n");
        say(f, "OK\n");
    }
    if (f->parameter == BY_GET) {
        hear_end(f);
        accept_client(f);
    }
    hear(f, "GET k fd\n");
    accept_client(f);
    hear(f, "GET k\n");
    say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    hear(f, "GET k fd\n");
    accept_client(f);
    hear(f, "GET k\n");
}

/* The loop's index says where the connection comes from that is lost; all are repeated once. */
START_TEST(connection_lost_for_a_descriptor_is_repeated_without)
{
    struct liara_cache_value value;
    passed_length = 5;
    play_with(hang_up_on_descriptors, _i);
    if (_i == USED)
        ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    if (_i == BY_GET)
        liara_cache_disconnect(cache);
    ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_UNREACHABLE);
    end_play();
}
END_TEST

static void pass_unasked(struct fake *f)
{
    accept_client(f);
    hear(f, "GET k\n");
    say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    hear(f, "GET k\n");
    say_with(f, "FD 5 offset=5000\n", passed_file, -1);
    hear_end(f);
}

START_TEST(descriptors_can_be_refused)
{
    struct liara_cache_value value;
    passed_length = 5;
    passed_file = value_file(SEALED, "hello", 5);
    play(pass_unasked);
    liara_cache_set_descriptors(cache, false);
    ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    ck_status(liara_cache_get(cache, "k", 1, &value), LIARA_CACHE_PROTOCOL);
    end_play();
    close(passed_file);
}
END_TEST

START_TEST(descriptor_of_a_value_too_long_for_the_buffer)
{
    struct liara_cache_value value;
    char buffer[4];
    passed_length = 5;
    passed_file = value_file(SEALED, "hello", 5);
    play(pass_then_pong);
    unsigned before = count_descriptors();
    ck_status(liara_cache_get_into(cache, "k", 1, buffer, sizeof(buffer), &value),
              LIARA_CACHE_NO_ROOM);
    ck_assert_uint_eq(value.length, 5);
    ck_assert_ptr_null(value.bytes);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    ck_assert_uint_le(count_descriptors(), before);
    close(passed_file);
}
END_TEST

static void pass_with_lease(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\nGET k lease=9 fd\n");
    say(f, "OK\n");
    say_with(f, "FD 5 offset=5000\n", passed_file, -1);
    hear(f, "PING\nGET k lease=9 fd\n");
    say_with(f, "OK\nFD 5 offset=5000\n", passed_file, -1);
    hear(f, "PING\nGET k lease=9 fd\n");
    say(f, "OK\nMISS lease\n");
}

START_TEST(get_with_a_lease_takes_a_descriptor)
{
    struct liara_cache_value value;
    passed_file = value_file(ON_DISK, "hello", 5);
    play(pass_with_lease);
    for (int i = 0; i < 2; i++) {
        ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_OK);
        ck_assert_str_eq(value.bytes, "hello");
        liara_cache_free(value.bytes);
    }
    ck_status(liara_cache_get_lease(cache, "k", 1, 9, &value), LIARA_CACHE_LEASE);
    end_play();
    close(passed_file);
}
END_TEST

/* What the value may be written to, beside a plain file. */
START_TEST(descriptor_is_copied_to_the_end_of_a_file)
{
    char *expected = large_value(), path[300];
    struct liara_cache_value value;
    passed_length = LARGE;
    passed_file = value_file((enum lying)_i, expected, LARGE);
    play(pass_then_pong);
    snprintf(path, sizeof(path), "%s/file", fake.folder);
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    ck_status(liara_cache_get_fd(cache, "k", 1, fd, 0, &value), LIARA_CACHE_OK);
    ck_assert_int_eq(read_sink(fd, expected), 0);
    unlink(path);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(passed_file);
    free(expected);
}
END_TEST

struct drain {
    int fd;
    char *bytes;
    size_t length;
};

static void *read_drain(void *arg)
{
    struct drain *drain = arg;
    ssize_t got;
    while ((got = read(drain->fd, drain->bytes + drain->length, LARGE - drain->length)) > 0)
        drain->length += (size_t)got;
    return NULL;
}

/* The loop's index counts through flags of the pipe and what the value lies in. */
START_TEST(descriptor_is_copied_to_a_pipe)
{
    char *expected = large_value();
    struct liara_cache_value value;
    struct drain drain = {.bytes = malloc(LARGE)};
    pthread_t thread;
    int ends[2];
    passed_length = LARGE;
    passed_file = value_file((enum lying)(_i / 2), expected, LARGE);
    play(pass_then_pong);
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    ck_assert_int_eq(fcntl(ends[1], F_SETFL, _i % 2 ? O_NONBLOCK : 0), 0);
    drain.fd = ends[0];
    ck_assert_int_eq(pthread_create(&thread, NULL, read_drain, &drain), 0);
    ck_status(liara_cache_get_fd(cache, "k", 1, ends[1], 0, &value), LIARA_CACHE_OK);
    close(ends[1]);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(drain.length, LARGE);
    ck_assert_mem_eq(drain.bytes, expected, LARGE);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(ends[0]);
    close(passed_file);
    free(drain.bytes);
    free(expected);
}
END_TEST

/* SIGPIPE has its default action here too. The connection is in step and stays. */
START_TEST(descriptor_for_what_can_not_be_written)
{
    struct liara_cache_value value;
    int ends[2];
    passed_length = 5;
    passed_file = value_file(SEALED, "hello", 5);
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    if (_i)
        dup3(open("/", O_RDONLY | O_CLOEXEC), ends[1], O_CLOEXEC);
    play(pass_then_pong);
    ck_status(liara_cache_get_fd(cache, "k", 1, ends[1], 0, &value), LIARA_CACHE_LOCAL);
    ck_assert_int_eq(errno, _i ? EBADF : EPIPE);
    sigset_t pending;
    sigpending(&pending);
    ck_assert(!sigismember(&pending, SIGPIPE));
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(ends[1]);
    close(passed_file);
}
END_TEST

/* A file takes a part of what the pipe between holds, then nothing more. */
static const rlim_t file_limits[] = {0, 100, 4096, LARGE / 2 + 100, LARGE - 1};

START_TEST(descriptor_for_a_file_that_may_not_grow)
{
    char *bytes = large_value();
    struct liara_cache_value value;
    const struct rlimit limit = {file_limits[_i], RLIM_INFINITY};
    passed_length = LARGE;
    passed_file = value_file(SEALED, bytes, LARGE);
    play(pass_then_pong);
    int fd = open(fake.folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_status(liara_cache_get_fd(cache, "k", 1, fd, 0, &value), LIARA_CACHE_LOCAL);
    ck_assert_int_eq(errno, EFBIG);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(fd);
    close(passed_file);
    free(bytes);
}
END_TEST

static void give_more_room(int number)
{
    const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    (void)number;
    setrlimit(RLIMIT_FSIZE, &none);
}

/* What was left of a piece must not stand where the next one belongs. */
START_TEST(descriptor_for_a_file_that_may_grow_again)
{
    char *bytes = large_value(), *written = malloc(LARGE);
    struct liara_cache_value value;
    const struct rlimit limit = {file_limits[_i], RLIM_INFINITY};
    passed_length = LARGE;
    passed_file = value_file(SEALED, bytes, LARGE);
    play(pass_then_pong);
    int fd = open(fake.folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    signal(SIGXFSZ, give_more_room);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    if (liara_cache_get_fd(cache, "k", 1, fd, 0, &value) == LIARA_CACHE_OK) {
        ck_assert_int_eq(pread(fd, written, LARGE, 0), LARGE);
        ck_assert(memcmp(written, bytes, LARGE) == 0);
    }
    give_more_room(0);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_OK);
    end_play();
    close(fd);
    close(passed_file);
    free(bytes);
    free(written);
}
END_TEST

static void pong_often(struct fake *f)
{
    const struct timespec late = {0, f->parameter};
    accept_client(f);
    for (int i = 0; i < 300; i++) {
        hear(f, "GET k fd\n");
        if (f->parameter)
            nanosleep(&late, NULL);
        say(f, "VALUE 5 flags=7 ttl=60\nhello\n");
    }
}

static const struct {
    unsigned budget; /* microseconds of polling */
    int late;        /* nanoseconds until the reply */
} waits[] = {{0, 0}, {0, 100000}, {50, 0}, {50, 30000}, {50, 1000000}, {1000, 0}, {5000, 500000}};

START_TEST(polling_changes_no_answer)
{
    passed_length = 5;
    play_with(pong_often, waits[_i].late);
    liara_cache_set_busy_poll(cache, waits[_i].budget);
    for (int i = 0; i < 300; i++)
        ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    end_play();
}
END_TEST

static double processor_seconds(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

/* Replies that polling never meets: it would cost 0.3 s of the processor if it did not stop. */
START_TEST(polling_stops_where_it_does_not_pay)
{
    passed_length = 5;
    play_with(pong_often, 4000000);
    liara_cache_set_busy_poll(cache, 1000);
    double before = processor_seconds();
    for (int i = 0; i < 300; i++)
        ck_status(take_by_get("hello"), LIARA_CACHE_OK);
    ck_assert_double_lt(processor_seconds() - before, 0.15);
    end_play();
}
END_TEST

static void hear_and_wait(struct fake *f)
{
    accept_client(f);
    hear(f, "PING\n");
    hear_end(f);
}

START_TEST(polling_leaves_timeouts_as_they_are)
{
    struct timespec begun, ended;
    play(hear_and_wait);
    liara_cache_set_timeout(cache, SHORT);
    liara_cache_set_busy_poll(cache, 1000);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    ck_status(liara_cache_ping(cache), LIARA_CACHE_TIMED_OUT);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds =
        (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9;
    ck_assert_double_ge(seconds, SHORT / 1000.0 - 0.01);
    end_play();
}
END_TEST

static TCase *replies(void)
{
    TCase *tests = tcase_create("replies");
    tcase_add_test(tests, get_brings_value_flags_and_ttl);
    tcase_add_test(tests, get_takes_a_reply_byte_by_byte);
    tcase_add_loop_test(tests, get_never_returns_part_of_a_value, 1, sizeof(cut_reply) - 1);
    tcase_add_loop_test(tests, late_reply_answers_nothing, 0, 2);
    tcase_add_test(tests, refusals_have_their_status_and_text);
    tcase_add_loop_test(tests, nonsense_is_refused_and_the_connection_closed, 0,
                        sizeof(nonsense) / sizeof(nonsense[0]));
    tcase_add_test(tests, endless_line_is_refused);
    tcase_add_test(tests, surplus_reply_answers_nothing);
    tcase_add_test(tests, small_requests);
    tcase_add_test(tests, inspect_reads_the_lines);
    tcase_add_test(tests, lease_waits_for_the_long_time);
    tcase_add_loop_test(tests, lease_is_not_waited_for_where_the_daemon_hangs, 0, HALVES);
    tcase_add_loop_test(tests, persist_and_clear_do_not_wait_where_the_daemon_hangs, 0, 2);
    tcase_add_test(tests, ping_before_a_lease_may_be_refused);
    tcase_add_test(tests, lease_is_asked_for_again_where_the_daemon_was_restarted);
    tcase_add_test(tests, progress_is_told_while_it_lasts);
    return tests;
}

static TCase *connections(void)
{
    TCase *tests = tcase_create("connections");
    tcase_add_test(tests, request_is_repeated_where_the_idle_connection_was_closed);
    tcase_add_test(tests, a_put_says_what_its_value_cost);
    tcase_add_test(tests, request_is_repeated_once);
    tcase_add_test(tests, nothing_is_done_under_another_prefix);
    tcase_add_test(tests, mistakes_are_told_and_nothing_is_sent);
    tcase_add_test(tests, descriptors_are_neither_leaked_nor_inherited);
    tcase_add_test(tests, closed_standard_descriptors_are_left_alone);
    tcase_add_test(tests, open_finds_the_socket_in_the_environment);
    tcase_add_loop_test(tests, open_trusts_only_the_users_own_folder, 0,
                        sizeof(folders) / sizeof(folders[0]));
    tcase_add_test(tests, open_without_a_daemon_gives_a_handle_that_tries_again);
    tcase_add_test(tests, handle_that_is_not_connected_can_be_told_how_long_to_wait);
    tcase_add_loop_test(tests, handle_connects_when_it_is_told_or_used, 0, 2);
    tcase_add_test(tests, connecting_and_answering_share_one_time_out);
    tcase_add_test(tests, threads_each_use_a_handle);
    return tests;
}

static TCase *transfers(void)
{
    TCase *tests = tcase_create("transfers");
    tcase_add_test(tests, put_from_a_file);
    tcase_add_loop_test(tests, put_from_a_pipe, 0, 1);
    tcase_add_loop_test(tests, put_from_a_pipe, O_NONBLOCK, O_NONBLOCK + 1);
    tcase_add_test(tests, pipe_that_ends_early_stores_nothing);
    tcase_add_test(tests, pipe_of_known_length_is_not_repeated);
    tcase_add_loop_test(tests, refusal_is_heard_while_the_value_is_sent, 0, 2);
    tcase_add_test(tests, get_large_value);
    tcase_add_test(tests, get_to_a_descriptor);
    tcase_add_test(tests, get_to_a_pipe_that_nobody_reads);
    tcase_add_test(tests, get_into_a_buffer);
    tcase_add_test(tests, get_many_does_not_block_itself);
    tcase_add_test(tests, put_many_waits_for_a_daemon_that_does_not_read);
    tcase_add_test(tests, get_many_says_which_were_answered);
    return tests;
}

static TCase *descriptors(void)
{
    TCase *tests = tcase_create("descriptors");
    tcase_add_loop_test(tests, descriptor_brings_the_value, 0, TAKES * LYINGS * SIZES);
    tcase_add_loop_test(tests, value_is_taken_in_the_same_ways, 0, TAKES);
    tcase_add_loop_test(tests, large_value_is_mapped_where_large_pages_can_be, 0, 3);
    tcase_add_test(tests, small_value_is_opened_as_a_file_nobody_can_change);
    tcase_add_loop_test(tests, descriptor_that_does_not_have_the_value_is_refused, 0,
                        TAKES * FALSE_LINES);
    tcase_add_loop_test(tests, descriptor_that_is_missing_or_no_file_is_refused, 0,
                        TAKES * OTHER_THINGS);
    tcase_add_loop_test(tests, file_that_is_cut_while_it_is_read_is_told, 0, 4);
    tcase_add_test(tests, descriptors_that_nobody_wants_are_closed);
    tcase_add_test(tests, descriptor_of_a_reply_that_stops_is_closed);
    tcase_add_loop_test(tests, process_without_a_free_descriptor_gets_the_bytes, 0, 2);
    tcase_add_loop_test(tests, connection_lost_for_a_descriptor_is_repeated_without, 0, CONNECTEDS);
    tcase_add_test(tests, descriptors_can_be_refused);
    tcase_add_test(tests, descriptor_of_a_value_too_long_for_the_buffer);
    tcase_add_test(tests, get_with_a_lease_takes_a_descriptor);
    tcase_add_loop_test(tests, descriptor_is_copied_to_the_end_of_a_file, 0, LYINGS);
    tcase_add_loop_test(tests, descriptor_is_copied_to_a_pipe, 0, 2 * LYINGS);
    int limits = (int)(sizeof(file_limits) / sizeof(file_limits[0]));
    tcase_add_loop_test(tests, descriptor_for_a_file_that_may_not_grow, 0, limits);
    tcase_add_loop_test(tests, descriptor_for_a_file_that_may_grow_again, 0, limits);
    tcase_add_loop_test(tests, descriptor_for_what_can_not_be_written, 0, 2);
    return tests;
}

static TCase *polling(void)
{
    TCase *tests = tcase_create("polling");
    tcase_add_loop_test(tests, polling_changes_no_answer, 0, sizeof(waits) / sizeof(waits[0]));
    tcase_add_test(tests, polling_stops_where_it_does_not_pay);
    tcase_add_test(tests, polling_leaves_timeouts_as_they_are);
    return tests;
}

int main(void)
{
    TCase *cases[] = {replies(), connections(), transfers(), descriptors(), polling()};
    Suite *suite = suite_create("client");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        tcase_add_checked_fixture(cases[i], setup, teardown);
        tcase_set_timeout(cases[i], 30);
        suite_add_tcase(suite, cases[i]);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}
