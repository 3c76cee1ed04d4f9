/* Replies on their way: whatever they consist of and however little the client reads, its bytes
 * come in order and once. */
#include "../../daemon/output.h"
#include "suite.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LARGE = 300000, EXPECTED_MAX = 8 << 20 };

static struct output out;
static int ours, theirs;
static char *expected;
static size_t expected_length, received;

/* The bytes are the test's, and stand still as long as something pins them. */
static uint8_t store_bytes[LARGE];
static atomic_uint pins;

static void start(void)
{
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    ours = pair[0];
    theirs = pair[1];
    out = (struct output){0};
    expected = malloc(EXPECTED_MAX);
    ck_assert_ptr_nonnull(expected);
    expected_length = received = 0;
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 0; i < LARGE; i++)
        store_bytes[i] = (uint8_t)(i * 37 >> 3);
}

static void stop(void)
{
    output_clear(&out);
    close(ours);
    if (theirs >= 0)
        close(theirs);
    free(expected);
    ck_assert_uint_eq(value_total(), 0);
    ck_assert_uint_eq(atomic_load(&pins), 0);
}

static void expect(const void *bytes, size_t length)
{
    ck_assert_uint_le(expected_length + length, EXPECTED_MAX);
    memcpy(expected + expected_length, bytes, length);
    expected_length += length;
}

static void add_line(int number)
{
    char *room = output_room(&out, 64);
    ck_assert_ptr_nonnull(room);
    int length = snprintf(room, 64, "line %d\n", number);
    expect(room, (size_t)length);
    ck_assert(output_line(&out, (size_t)length));
}

static void add_bytes(int number)
{
    const uint8_t bytes[] = "a few bytes";
    char *room = output_room(&out, 64 + sizeof(bytes));
    ck_assert_ptr_nonnull(room);
    int length = snprintf(room, 64, "VALUE %d\n", number);
    expect(room, (size_t)length);
    expect("a few bytes\n", sizeof(bytes));
    ck_assert(output_line_with_bytes(&out, (size_t)length, bytes, sizeof(bytes) - 1));
}

static void add_value(uint32_t length, bool shared)
{
    struct value *value = value_new((const uint8_t *)"key", 3, length);
    ck_assert_ptr_nonnull(value);
    for (uint32_t i = 0; i < length; i++)
        value_bytes(value)[i] = (uint8_t)(i * 31 + length);
    ck_assert(!shared || value_share(value));
    expect(value_bytes(value), length);
    expect("\n", 1);
    ck_assert(output_value(&out, value));
}

static void add_pinned(uint32_t length)
{
    char *room = output_room(&out, 64);
    ck_assert_ptr_nonnull(room);
    int written = snprintf(room, 64, "VALUE %u\n", length);
    expect(room, (size_t)written);
    uint32_t offset = length > 0 ? (uint32_t)random() % (LARGE - length) : 0;
    expect(store_bytes + offset, length);
    expect("\n", 1);
    atomic_fetch_add(&pins, 1);
    struct pinned pinned = {.bytes = store_bytes + offset, .pins = &pins};
    ck_assert(output_line_with_pinned(&out, (size_t)written, pinned, length));
}

static void read_some(size_t most)
{
    static char bytes[65536];
    ssize_t got = recv(theirs, bytes, most < sizeof(bytes) ? most : sizeof(bytes), 0);
    if (got < 0)
        return;
    ck_assert_uint_le(received + (size_t)got, expected_length);
    ck_assert_int_eq(memcmp(bytes, expected + received, (size_t)got), 0);
    received += (size_t)got;
}

static void read_all(void)
{
    for (int i = 0; i < 100000 && received < expected_length; i++) {
        ck_assert_int_ne(output_flush(&out, ours), OUTPUT_FAILED);
        read_some(65536);
    }
    ck_assert_uint_eq(received, expected_length);
    ck_assert_int_eq(output_flush(&out, ours), OUTPUT_EMPTY);
    ck_assert_uint_eq(out.bytes, 0);
}

START_TEST(anything_in_any_order)
{
    static const uint32_t lengths[] = {0, 1, 256, 257, 5000, LARGE};
    start();
    srandom(1);
    for (int i = 0; i < 200 && expected_length < EXPECTED_MAX - 2 * LARGE; i++) {
        uint32_t length = lengths[random() % 6];
        if (random() % 3 == 0)
            add_line(i);
        else if (random() % 3 == 0)
            add_bytes(i);
        else if (random() % 3 == 0)
            add_pinned(length < LARGE ? length : 60000);
        else
            add_value(length, length > 0 && random() % 2 == 0);
        if (random() % 4 == 0) {
            ck_assert_int_ne(output_flush(&out, ours), OUTPUT_FAILED);
            read_some((size_t)random() % 60000);
        }
    }
    read_all();
    stop();
}
END_TEST

START_TEST(who_never_reads_all_does_not_make_it_grow)
{
    start();
    for (int i = 0; i < 4; i++)
        add_value(LARGE, false);
    for (int i = 0; i < 20000; i++) {
        add_line(i);
        add_bytes(i);
        ck_assert_int_ne(output_flush(&out, ours), OUTPUT_FAILED);
        if (expected_length - received > 1000000)
            read_some(expected_length - received - 900000);
        ck_assert_uint_gt(out.bytes, 0);
    }
    ck_assert_uint_le(out.text_size, 2 << 20);
    ck_assert_uint_le(out.size, 64);
    read_all();
    stop();
}
END_TEST

/* What was pinned is copied with its first bytes gone or all there, and the store may use its
 * memory from then on. */
START_TEST(what_is_settled_is_pinned_no_more)
{
    start();
    for (int i = 0; i < 40; i++) {
        add_pinned(60000);
        add_line(i);
        if (i % 3 == 0)
            add_value(5000, false);
        if (i % 5 == 0)
            add_pinned(0);
    }
    ck_assert_int_eq(output_flush(&out, ours), OUTPUT_BLOCKED);
    uint64_t bytes = out.bytes;
    ck_assert_uint_gt(atomic_load(&pins), 30);
    ck_assert(output_settle(&out));
    ck_assert_uint_eq(atomic_load(&pins), 0);
    ck_assert_uint_eq(out.bytes, bytes);
    memset(store_bytes, 0xEE, sizeof(store_bytes));
    ck_assert(output_settle(&out));
    read_all();
    stop();
}
END_TEST

START_TEST(what_can_not_be_settled_stays_until_it_is_cleared)
{
    start();
    for (int i = 0; i < 20; i++)
        add_pinned(60000);
    ck_assert_int_eq(output_flush(&out, ours), OUTPUT_BLOCKED);
    value_set_limit(200000);
    ck_assert(!output_settle(&out));
    value_set_limit(UINT64_MAX);
    ck_assert_uint_gt(atomic_load(&pins), 0);
    read_all();
    for (int i = 0; i < 20; i++)
        add_pinned(60000);
    ck_assert_uint_eq(atomic_load(&pins), 20);
    output_clear(&out);
    ck_assert_uint_eq(atomic_load(&pins), 0);
    stop();
}
END_TEST

START_TEST(a_descriptor_comes_with_its_line)
{
    char bytes[256], room[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {bytes, sizeof(bytes)};
    start();
    add_line(1);
    char *line = output_room(&out, 8);
    memcpy(line, "FD\n", 3);
    ck_assert(output_line_with_fd(&out, 3, open("/dev/null", O_RDONLY | O_CLOEXEC), NULL));
    ck_assert_int_eq(output_flush(&out, ours), OUTPUT_EMPTY);
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
    ck_assert_int_eq(recv(theirs, bytes, 7, 0), 7);
    ck_assert_int_eq(recvmsg(theirs, &message, 0), 3);
    ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&message));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    ck_assert_int_eq(close(fd), 0);
    stop();
}
END_TEST

START_TEST(who_has_left_amid_a_value_is_an_error)
{
    for (int shared = 0; shared < 2; shared++) {
        start();
        add_line(1);
        for (int i = 0; i < 8; i++)
            add_value(LARGE, shared);
        ck_assert_int_eq(output_flush(&out, ours), OUTPUT_BLOCKED);
        read_some(1000);
        close(theirs);
        theirs = -1;
        ck_assert_int_eq(output_flush(&out, ours), OUTPUT_FAILED);
        ck_assert(errno == EPIPE || errno == ECONNRESET);
        stop();
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("output");
    TCase *tcase = suite_case(suite, "output", 60);
    tcase_add_test(tcase, anything_in_any_order);
    tcase_add_test(tcase, who_never_reads_all_does_not_make_it_grow);
    tcase_add_test(tcase, what_is_settled_is_pinned_no_more);
    tcase_add_test(tcase, what_can_not_be_settled_stays_until_it_is_cleared);
    tcase_add_test(tcase, a_descriptor_comes_with_its_line);
    tcase_add_test(tcase, who_has_left_amid_a_value_is_an_error);
    return suite_run(suite);
}
