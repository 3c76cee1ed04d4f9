/*
 * The contract of store.h, one suite for all backends, and for the two with faults while nothing is
 * asked of them. Every test runs once for each backend in a process and a folder of its own; what a
 * backend does not promise (null stores nothing) stands in the table below.
 */
#include "store_answer.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/store.h"
#include "../fault_store.h"

#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    KEY_MAX = MESSAGE_KEY_MAX,
    WAIT_MS = 60000,
    LOOPS = 8,
    RACE_ROUNDS = 200,
    MIXED_ROUNDS = 1500,
    LARGE = 5 * 1024 * 1024
};

static const struct backend {
    const char *name, *title;
    bool stores, durable;
    bool evicts;     /* is bounded by max-size */
    uint64_t memory; /* memory-size */
} backends[] = {
    {"null", "Null", false, false, false, 0},
    {"memory", "In-Memory", true, false, true, 0},
    {"filesystem", "Filesystem", true, true, true, 0},
    {"sqlite", "Sqlite3", true, true, true, 0},
    {"redis", "Redis", true, false, false, 0},
    {"filesystem", "Filesystem", true, true, true, 64 << 20},
    {"sqlite", "Sqlite3", true, true, true, 64 << 20},
    {"redis", "Redis", true, false, false, 64 << 20},
    {"fault", "Fault", true, false, false, 0},
};

enum { BACKENDS = sizeof(backends) / sizeof(backends[0]) };

/* The folder of the whole run, with the Redis server's socket; set once by main(). */
static char folder[128];

/* One backend, open, and the loop of the test's own thread. */
static struct bench {
    const struct backend *is;
    struct config config;
    char directory[256], redis_socket[256], redis_prefix[64];
    struct store *store;
    struct loop *loop;
} bench;

static void open_store(void)
{
    char why[256] = "";
    bench.store = store_open(store_find(bench.is->name), &bench.config, why, sizeof(why));
    ck_assert_msg(bench.store != NULL, "%s: %s", bench.is->name, why);
    bench.loop = loop_new(0);
    ck_assert(store_attach(bench.store, bench.loop));
}

static void close_store(void)
{
    store_detach(bench.store, bench.loop);
    store_close(bench.store);
    loop_free(bench.loop);
    bench.store = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

/* Check forks for each test, so a test's process number names its folder. */
static void start(int backend)
{
    static char empty[] = "", host[] = "127.0.0.1";
    bench.is = &backends[backend];
    snprintf(bench.directory, sizeof(bench.directory), "%s/%d", folder, (int)getpid());
    snprintf(bench.redis_socket, sizeof(bench.redis_socket), "%s/redis", folder);
    snprintf(bench.redis_prefix, sizeof(bench.redis_prefix), "test-%d/", (int)getpid());
    bench.config = (struct config){
        .directory = bench.directory,
        .max_size = 1 << 30,
        .memory_size = bench.is->memory,
        .max_value_size = 512 << 20,
        .max_inflight = 1 << 30,
        .workers = LOOPS,
        .redis_host = host,
        .redis_port = 6379,
        .redis_socket = bench.redis_socket,
        .redis_password_file = empty,
        .redis_prefix = bench.redis_prefix,
        .redis_expiration = 3600000,
        .redis_timeout = WAIT_MS,
        .redis_connect_timeout = WAIT_MS,
        .log_level = LOG_LEVEL_ERROR,
    };
    log_open(LOG_LEVEL_ERROR);
    open_store();
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void stop(void)
{
    close_store();
    remove_tree(bench.directory);
}

/* A call, what it is about, and how often it has finished. */
struct ask {
    struct store_call call;
    bool inside; /* of store_submit() */
    atomic_int finished;
    uint8_t key[KEY_MAX];
};

static struct ask *ask_of(struct store_call *call)
{
    return (struct ask *)(void *)((char *)call - offsetof(struct ask, call));
}

static void ask_done(struct store_call *call)
{
    struct ask *ask = ask_of(call);
    ck_assert_msg(!ask->inside, "done() was called from inside store_submit()");
    ck_assert_int_ne(call->result.status, STORE_PENDING);
    atomic_fetch_add(&ask->finished, 1);
}

static void submit(struct loop *loop, struct ask *ask)
{
    bool is_put = ask->call.request.op == STORE_PUT;
    ask->call.request.loop = loop;
    ask->call.done = ask_done;
    ask->call.request.key = ask->key;
    ask->inside = true;
    enum store_status status = store_submit(bench.store, &ask->call);
    ask->inside = false;
    ck_assert_int_eq(atomic_load(&ask->finished), 0);
    if (status != STORE_PENDING) {
        ck_assert_int_eq(status, ask->call.result.status);
        ck_assert_msg(!is_put || ask->call.request.value == NULL, "a PUT's value was not taken");
        atomic_fetch_add(&ask->finished, 1);
    }
}

static enum store_status wait_for(struct loop *loop, struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (atomic_load(&ask->finished) == 0 && clock_now() < end)
        loop_step(loop, 100);
    ck_assert_msg(atomic_load(&ask->finished) == 1, "op %d finished %d times",
                  (int)ask->call.request.op, atomic_load(&ask->finished));
    ck_assert_msg(ask->call.request.op != STORE_PUT || ask->call.request.value == NULL,
                  "a PUT's value was not taken");
    return ask->call.result.status;
}

static struct ask new_ask(enum store_op op, const void *key, size_t length)
{
    struct ask ask = {.call = {.request = {.op = op, .key_length = (uint32_t)length}}};
    memcpy(ask.key, key, length);
    return ask;
}

static enum store_status run_on(struct loop *loop, struct ask *ask)
{
    submit(loop, ask);
    return wait_for(loop, ask);
}

/* The value that a test puts: bytes, and the rest as it is given. */
struct put {
    const void *bytes;
    size_t length;
    uint32_t flags;
    int64_t lives; /* milliseconds, 0: no end */
    bool overwrite;
};

static struct ask new_put(const void *key, size_t key_length, const struct put *put)
{
    struct ask ask = new_ask(STORE_PUT, key, key_length);
    ask.call.request.value = value_new(key, key_length, (uint32_t)put->length);
    ck_assert_ptr_nonnull(ask.call.request.value);
    memcpy(value_bytes(ask.call.request.value), put->bytes, put->length);
    ask.call.request.value->flags = put->flags;
    ask.call.request.value->expires = put->lives == 0 ? CLOCK_NEVER : clock_now() + put->lives;
    ask.call.request.overwrite = put->overwrite;
    return ask;
}

static enum store_status put_as(const void *key, size_t key_length, const struct put *put)
{
    struct ask ask = new_put(key, key_length, put);
    enum store_status status = run_on(bench.loop, &ask);
    ck_assert_msg(status != STORE_FAILED, "PUT failed: %s", ask.call.result.text);
    return status;
}

static enum store_status put(const char *key, const char *bytes)
{
    struct put put = {.bytes = bytes, .length = strlen(bytes)};
    return put_as(key, strlen(key), &put);
}

static enum store_status ask_for(enum store_op op, const void *key, size_t length)
{
    struct ask ask = new_ask(op, key, length);
    enum store_status status = run_on(bench.loop, &ask);
    ck_assert_msg(status != STORE_FAILED, "op %d failed: %s", (int)op, ask.call.result.text);
    if (op == STORE_GET)
        store_answer_release(&ask.call);
    return status;
}

/* Holds the store to its answer for a key: these bytes and flags, by GET and by HEAD. */
static void expect_value(const void *key, size_t key_length, const void *bytes, size_t length,
                         uint32_t flags)
{
    struct ask get = new_ask(STORE_GET, key, key_length);
    ck_assert_int_eq(run_on(bench.loop, &get), STORE_OK);
    struct store_answer answer = store_answer_of(&get.call);
    ck_assert_uint_eq(answer.length, length);
    ck_assert(length == 0 || memcmp(answer.bytes, bytes, length) == 0);
    ck_assert_uint_eq(answer.flags, flags);
    store_answer_release(&get.call);

    struct ask head = new_ask(STORE_HEAD, key, key_length);
    ck_assert_int_eq(run_on(bench.loop, &head), STORE_OK);
    ck_assert_ptr_null(head.call.result.value);
    ck_assert_uint_eq(head.call.result.length, length);
    ck_assert_uint_eq(head.call.result.flags, flags);
}

static void expect_miss(const void *key, size_t key_length)
{
    ck_assert_int_eq(ask_for(STORE_GET, key, key_length), STORE_MISS);
    ck_assert_int_eq(ask_for(STORE_HEAD, key, key_length), STORE_MISS);
}

/* As it is for a backend that stores; a miss for one that does not. */
static void expect(const char *key, const char *bytes)
{
    if (bench.is->stores)
        expect_value(key, strlen(key), bytes, strlen(bytes), 0);
    else
        expect_miss(key, strlen(key));
}

static struct ask inspect(const char *prefix)
{
    struct ask ask = new_ask(STORE_INSPECT, prefix, strlen(prefix));
    ck_assert_int_eq(run_on(bench.loop, &ask), STORE_OK);
    return ask;
}

static uint64_t clear(const void *prefix, size_t length)
{
    struct ask ask = new_ask(STORE_CLEAR, prefix, length);
    ck_assert_int_eq(run_on(bench.loop, &ask), STORE_OK);
    return ask.call.result.entries;
}

START_TEST(it_has_its_name_and_title)
{
    start(_i);
    ck_assert_str_eq(bench.store->ops->name, bench.is->name);
    ck_assert_str_eq(bench.store->ops->title, bench.is->title);
    stop();
}
END_TEST

START_TEST(what_was_never_put_is_a_miss)
{
    start(_i);
    expect_miss("key", 3);
    ck_assert_int_eq(ask_for(STORE_DELETE, "key", 3), STORE_MISS);
    stop();
}
END_TEST

START_TEST(what_was_put_is_found)
{
    start(_i);
    ck_assert_int_eq(put("key", "value"), STORE_OK);
    expect("key", "value");
    expect("key", "value");
    expect_miss("kez", 3);
    expect_miss("ke", 2);
    expect_miss("keyy", 4);
    stop();
}
END_TEST

START_TEST(a_second_put_leaves_the_first)
{
    start(_i);
    struct put second = {.bytes = "longer second", .length = 13, .flags = 9, .lives = 100};
    ck_assert_int_eq(put("key", "first"), STORE_OK);
    ck_assert_int_eq(put_as("key", 3, &second), bench.is->stores ? STORE_EXISTS : STORE_OK);
    usleep(120000); /* the refused value's end must not have become the first's */
    expect("key", "first");
    stop();
}
END_TEST

START_TEST(overwrite_replaces)
{
    start(_i);
    struct put second = {.bytes = "longer second", .length = 13, .flags = 9, .overwrite = true};
    struct put third = {.bytes = "3rd", .length = 3, .flags = 0, .overwrite = true};
    ck_assert_int_eq(put("key", "first"), STORE_OK);
    ck_assert_int_eq(put_as("key", 3, &second), STORE_OK);
    if (bench.is->stores)
        expect_value("key", 3, "longer second", 13, 9);
    ck_assert_int_eq(put_as("key", 3, &third), STORE_OK);
    expect("key", "3rd");
    ck_assert_int_eq(put_as("new", 3, &third), STORE_OK);
    expect("new", "3rd");
    ck_assert_uint_eq(inspect("").call.result.entries, bench.is->stores ? 2 : 0);
    stop();
}
END_TEST

START_TEST(deleted_is_gone)
{
    start(_i);
    put("one", "1");
    put("two", "2");
    ck_assert_int_eq(ask_for(STORE_DELETE, "one", 3), bench.is->stores ? STORE_OK : STORE_MISS);
    ck_assert_int_eq(ask_for(STORE_DELETE, "one", 3), STORE_MISS);
    expect_miss("one", 3);
    expect("two", "2");
    ck_assert_int_eq(put("one", "again"), STORE_OK);
    expect("one", "again");
    stop();
}
END_TEST

START_TEST(every_byte_is_a_key)
{
    start(_i);
    for (int byte = 0; byte < 256; byte++) {
        uint8_t key[1] = {(uint8_t)byte}, bytes[3] = {(uint8_t)byte, 0, (uint8_t)~byte};
        struct put put = {.bytes = bytes, .length = 3};
        ck_assert_int_eq(put_as(key, 1, &put), STORE_OK);
    }
    for (int byte = 0; bench.is->stores && byte < 256; byte++) {
        uint8_t key[1] = {(uint8_t)byte}, bytes[3] = {(uint8_t)byte, 0, (uint8_t)~byte};
        expect_value(key, 1, bytes, 3, 0);
    }
    ck_assert_uint_eq(clear("\xff", 1), bench.is->stores);
    ck_assert_uint_eq(clear("\0", 1), bench.is->stores);
    ck_assert_uint_eq(clear("*", 1), bench.is->stores);
    ck_assert_uint_eq(clear("[", 1), bench.is->stores);
    ck_assert_uint_eq(clear("\\", 1), bench.is->stores);
    ck_assert_uint_eq(clear("%", 1), bench.is->stores);
    ck_assert_uint_eq(clear("", 0), bench.is->stores ? 250 : 0);
    stop();
}
END_TEST

START_TEST(keys_may_contain_each_other)
{
    start(_i);
    uint8_t key[256];
    for (int i = 0; i < 256; i++)
        key[i] = (uint8_t)i; /* begins with a NUL and has every byte */
    for (size_t length = 1; length <= 256; length += 51) {
        struct put put = {.bytes = key, .length = length};
        ck_assert_int_eq(put_as(key, length, &put), STORE_OK);
    }
    for (size_t length = 1; bench.is->stores && length <= 256; length += 51)
        expect_value(key, length, key, length, 0);
    stop();
}
END_TEST

START_TEST(every_byte_is_a_value)
{
    start(_i);
    uint8_t bytes[1024];
    for (int i = 0; i < 1024; i++)
        bytes[i] = (uint8_t)(i < 256 ? i : 7 * i + (i >> 8));
    struct put put = {.bytes = bytes, .length = sizeof(bytes)};
    ck_assert_int_eq(put_as("key", 3, &put), STORE_OK);
    if (bench.is->stores)
        expect_value("key", 3, bytes, sizeof(bytes), 0);
    stop();
}
END_TEST

START_TEST(nothing_is_a_value)
{
    start(_i);
    ck_assert_int_eq(put("key", ""), STORE_OK);
    ck_assert_int_eq(put("key", "not empty"), bench.is->stores ? STORE_EXISTS : STORE_OK);
    expect("key", "");
    stop();
}
END_TEST

START_TEST(the_longest_keys_differ_in_their_last_byte)
{
    start(_i);
    uint8_t key[KEY_MAX];
    memset(key, 0xF7, sizeof(key));
    struct put one = {.bytes = "one", .length = 3}, two = {.bytes = "two", .length = 3};
    ck_assert_int_eq(put_as(key, KEY_MAX, &one), STORE_OK);
    key[KEY_MAX - 1] = 0xF8;
    if (bench.is->stores)
        expect_miss(key, KEY_MAX);
    ck_assert_int_eq(put_as(key, KEY_MAX, &two), STORE_OK);
    if (bench.is->stores)
        expect_value(key, KEY_MAX, "two", 3, 0);
    key[KEY_MAX - 1] = 0xF7;
    if (bench.is->stores)
        expect_value(key, KEY_MAX, "one", 3, 0);
    stop();
}
END_TEST

START_TEST(a_large_value_is_whole)
{
    start(_i);
    uint8_t *bytes = malloc(LARGE);
    ck_assert_ptr_nonnull(bytes);
    for (uint32_t i = 0; i < LARGE; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 24);
    struct put put = {.bytes = bytes, .length = LARGE, .flags = 3};
    ck_assert_int_eq(put_as("large", 5, &put), STORE_OK);
    if (bench.is->stores)
        expect_value("large", 5, bytes, LARGE, 3);
    free(bytes);
    stop();
}
END_TEST

START_TEST(flags_have_32_bits)
{
    start(_i);
    const uint32_t flags[] = {0, 1, 255, 0x80000000, UINT32_MAX};
    for (int i = 0; bench.is->stores && i < 5; i++) {
        uint8_t key[1] = {(uint8_t)('a' + i)};
        struct put put = {.bytes = "v", .length = 1, .flags = flags[i]};
        ck_assert_int_eq(put_as(key, 1, &put), STORE_OK);
        expect_value(key, 1, "v", 1, flags[i]);
    }
    stop();
}
END_TEST

static void sleep_until(int64_t when)
{
    while (clock_now() <= when)
        usleep(5000);
}

START_TEST(an_end_is_kept_and_told)
{
    start(_i);
    if (bench.is->stores) {
        struct put put = {.bytes = "v", .length = 1, .lives = 60000};
        int64_t now = clock_now();
        ck_assert_int_eq(put_as("key", 3, &put), STORE_OK);
        struct ask get = new_ask(STORE_GET, "key", 3), head = new_ask(STORE_HEAD, "key", 3);
        ck_assert_int_eq(run_on(bench.loop, &get), STORE_OK);
        ck_assert_int_eq(run_on(bench.loop, &head), STORE_OK);
        ck_assert_int_ge(store_answer_of(&get.call).expires, now + 59000);
        ck_assert_int_le(store_answer_of(&get.call).expires, clock_now() + 60000);
        ck_assert_int_ge(head.call.result.expires, now + 59000);
        ck_assert_int_le(head.call.result.expires, clock_now() + 60000);
        store_answer_release(&get.call);
    }
    stop();
}
END_TEST

START_TEST(past_its_end_a_value_is_gone)
{
    start(_i);
    struct put short_lived = {.bytes = "v", .length = 1, .lives = 300};
    int64_t begin = clock_now();
    put_as("key", 3, &short_lived);
    put_as("again", 5, &short_lived);
    put("stays", "here");
    int64_t end = clock_now() + 300;
    enum store_status status = ask_for(STORE_GET, "key", 3);
    if (clock_now() < begin + 300) /* not on a machine that slept meanwhile */
        ck_assert_int_eq(status, bench.is->stores ? STORE_OK : STORE_MISS);
    sleep_until(end);
    expect_miss("key", 3);
    ck_assert_int_eq(ask_for(STORE_DELETE, "key", 3), STORE_MISS);
    ck_assert_int_eq(put("key", "new"), STORE_OK);
    expect("key", "new");
    struct put over = {.bytes = "over", .length = 4, .overwrite = true};
    ck_assert_int_eq(put_as("again", 5, &over), STORE_OK);
    expect("again", "over");
    expect("stays", "here");
    stop();
}
END_TEST

START_TEST(clear_takes_all)
{
    start(_i);
    char key[32];
    for (int i = 0; i < 300; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        put(key, "value");
    }
    ck_assert_uint_eq(clear("", 0), bench.is->stores ? 300 : 0);
    for (int i = 0; i < 300; i += 50) {
        snprintf(key, sizeof(key), "key-%d", i);
        expect_miss(key, strlen(key));
    }
    ck_assert_uint_eq(clear("", 0), 0);
    ck_assert_uint_eq(inspect("").call.result.entries, 0);
    ck_assert_int_eq(put("key-1", "again"), STORE_OK);
    expect("key-1", "again");
    stop();
}
END_TEST

START_TEST(clear_takes_what_has_the_prefix)
{
    start(_i);
    static const struct {
        const char *key;
        size_t length;
    } keys[] = {{"a", 1},        {"a\xff", 2},        {"a\xff\xff", 3}, {"a\xff\x01", 3},
                {"b", 1},        {"b\0", 2},          {"\xff", 1},      {"\xff\xff", 2},
                {"\xff\xfe", 2}, {"\xff\xff\xff", 3}, {"c*", 2},        {"c?x", 3}};
    for (int i = 0; i < 12; i++) {
        struct put put = {.bytes = keys[i].key, .length = keys[i].length};
        ck_assert_int_eq(put_as(keys[i].key, keys[i].length, &put), STORE_OK);
    }
    if (bench.is->stores) {
        ck_assert_uint_eq(clear("a\xff", 2), 3);
        expect_value("a", 1, "a", 1, 0);
        expect_value("b", 1, "b", 1, 0);
        ck_assert_uint_eq(clear("\xff\xff", 2), 2);
        expect_value("\xff", 1, "\xff", 1, 0);
        expect_value("\xff\xfe", 2, "\xff\xfe", 2, 0);
        ck_assert_uint_eq(clear("\xff", 1), 2);
        ck_assert_uint_eq(clear("b\0", 2), 1);
        ck_assert_uint_eq(clear("c*", 2), 1);
        expect_value("c?x", 3, "c?x", 3, 0);
        ck_assert_uint_eq(clear("no such", 7), 0);
        ck_assert_uint_eq(clear("", 0), 3);
    }
    stop();
}
END_TEST

START_TEST(inspect_counts)
{
    start(_i);
    char key[32], bytes[100];
    memset(bytes, 'x', sizeof(bytes));
    for (int i = 0; i < 100; i++) {
        struct put put = {.bytes = bytes, .length = sizeof(bytes)};
        snprintf(key, sizeof(key), "%s-%02d", i < 30 ? "one" : "two", i);
        put_as(key, strlen(key), &put);
    }
    struct ask all = inspect(""), one = inspect("one"), none = inspect("three");
    if (!all.call.result.approximate)
        ck_assert_uint_eq(all.call.result.entries, bench.is->stores ? 100 : 0);
    if (!one.call.result.approximate)
        ck_assert_uint_eq(one.call.result.entries, bench.is->stores ? 30 : 0);
    if (!none.call.result.approximate)
        ck_assert_uint_eq(none.call.result.entries, 0);
    ck_assert_uint_ge(all.call.result.size, bench.is->stores ? 100 * 100 : 0);
    ck_assert_uint_le(all.call.result.size, bench.is->stores ? 100 * 8192 : 0);
    ck_assert_uint_ge(all.call.result.size, one.call.result.size);
    stop();
}
END_TEST

START_TEST(persist_says_what_is_true)
{
    start(_i);
    put("key", "value");
    struct ask ask = new_ask(STORE_PERSIST, "", 0);
    ck_assert_int_eq(run_on(bench.loop, &ask), STORE_OK);
    ck_assert_int_eq(ask.call.result.durable, bench.is->durable);
    expect("key", "value");
    stop();
}
END_TEST

/* Flags and ends too, and what was deleted or replaced stays so. */
START_TEST(what_was_persisted_is_there_after_reopening)
{
    start(_i);
    if (bench.is->durable) {
        char key[32];
        struct put put_1 = {.bytes = "value", .length = 5, .flags = 77, .lives = 3600000};
        struct put over = {.bytes = "new", .length = 3, .overwrite = true};
        struct put brief = {.bytes = "brief", .length = 5, .lives = 50};
        for (int i = 0; i < 100; i++) {
            snprintf(key, sizeof(key), "key-%d", i);
            put_as(key, strlen(key), &put_1);
        }
        put_as("brief", 5, &brief);
        put_as("key-1", 5, &over);
        ask_for(STORE_DELETE, "key-2", 5);
        ask_for(STORE_PERSIST, "", 0);
        int64_t end = clock_now() + 50;
        close_store();
        sleep_until(end);
        open_store();
        expect_value("key-0", 5, "value", 5, 77);
        expect_value("key-99", 6, "value", 5, 77);
        expect("key-1", "new");
        expect_miss("key-2", 5);
        expect_miss("brief", 5);
        struct ask head = new_ask(STORE_HEAD, "key-5", 5);
        ck_assert_int_eq(run_on(bench.loop, &head), STORE_OK);
        ck_assert_int_le(head.call.result.expires, clock_now() + 3600000);
        ck_assert_int_ge(head.call.result.expires, clock_now() + 3500000);
        ck_assert_int_eq(put("key-3", "x"), STORE_EXISTS);
        ck_assert_int_eq(put("key-2", "x"), STORE_OK);
        ck_assert_uint_eq(clear("", 0), 100);
    }
    stop();
}
END_TEST

START_TEST(a_directory_has_one_owner)
{
    start(_i);
    char why[256] = "";
    if (bench.store->ops->in_directory) {
        put("key", "value");
        ck_assert_ptr_null(store_open(bench.store->ops, &bench.config, why, sizeof(why)));
        ck_assert_msg(strstr(why, bench.directory) != NULL, "names no directory: %s", why);
        ck_assert_msg(strstr(why, "use") != NULL, "does not say that it is in use: %s", why);
        expect("key", "value");
    }
    stop();
}
END_TEST

START_TEST(a_directory_that_cannot_be_is_explained)
{
    char why[256] = "", file[] = "/dev/null/store";
    start(_i);
    if (bench.store->ops->in_directory) {
        struct config config = bench.config;
        config.directory = file;
        ck_assert_ptr_null(store_open(bench.store->ops, &config, why, sizeof(why)));
        ck_assert_msg(strstr(why, "/dev/null") != NULL, "names no directory: %s", why);
    }
    stop();
}
END_TEST

/* Puts count values of 10,000 bytes; before each, "kept" is used. */
static void put_many(int count)
{
    char key[32];
    static uint8_t bytes[10000];
    struct put put = {.bytes = bytes, .length = sizeof(bytes)};
    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ask_for(STORE_GET, "kept", 4);
        ck_assert_int_eq(put_as(key, strlen(key), &put), STORE_OK);
    }
}

START_TEST(max_size_bounds_the_store)
{
    start(_i);
    if (bench.is->evicts) {
        uint64_t max = 1 << 20;
        store_set_max_size(bench.store, max);
        put("kept", "value");
        put_many(400);
        int64_t end = clock_now() + WAIT_MS;
        struct ask ask = inspect("");
        while (ask.call.result.size > max && clock_now() < end) {
            loop_step(bench.loop, 20);
            ask = inspect("");
        }
        ck_assert_uint_le(ask.call.result.size, max);
        ck_assert_uint_ge(ask.call.result.entries, 20); /* it did not throw everything away */
        ck_assert_int_eq(ask_for(STORE_HEAD, "key-0", 5), STORE_MISS);
        ck_assert_int_eq(ask_for(STORE_HEAD, "key-399", 7), STORE_OK);
    }
    stop();
}
END_TEST

START_TEST(what_is_used_stays_longest)
{
    start(_i);
    if (strcmp(bench.is->name, "memory") == 0) {
        store_set_max_size(bench.store, 12 * 10000);
        put("kept", "value");
        put_many(400);
        expect("kept", "value");
    }
    stop();
}
END_TEST

START_TEST(a_value_larger_than_the_store_is_refused_or_evicted)
{
    start(_i);
    if (bench.is->evicts) {
        static uint8_t bytes[1 << 18];
        struct put large = {.bytes = bytes, .length = sizeof(bytes)};
        store_set_max_size(bench.store, 1 << 17);
        struct ask ask = new_put("large", 5, &large);
        enum store_status status = run_on(bench.loop, &ask);
        if (status == STORE_FAILED)
            ck_assert(ask.call.result.error == ERROR_TOO_LARGE ||
                      ask.call.result.error == ERROR_NO_SPACE);
        else
            ck_assert_int_eq(status, STORE_OK);
        ck_assert_int_eq(put("small", "value"), STORE_OK);
        expect("small", "value");
    }
    stop();
}
END_TEST

/* Values that are read take memory, which is bounded: busy, and fine again afterwards. */
START_TEST(too_many_bytes_in_flight_are_refused)
{
    start(_i);
    static uint8_t bytes[1 << 20];
    struct put large = {.bytes = bytes, .length = sizeof(bytes)};
    put_as("large", 5, &large);
    value_set_limit(value_total() + 1000);
    struct ask get = new_ask(STORE_GET, "large", 5);
    enum store_status status = run_on(bench.loop, &get);
    if (status == STORE_FAILED)
        ck_assert_int_eq(get.call.result.error, ERROR_BUSY);
    else
        ck_assert_int_eq(status, bench.is->stores ? STORE_OK : STORE_MISS);
    store_answer_release(&get.call);
    value_set_limit(UINT64_MAX);
    if (bench.is->stores)
        expect_value("large", 5, bytes, sizeof(bytes), 0);
    stop();
}
END_TEST

START_TEST(many_calls_may_be_on_their_way)
{
    enum { CALLS = 500 };
    start(_i);
    struct ask *asks = calloc(CALLS, sizeof(*asks));
    char key[32];
    struct put put = {.bytes = "value", .length = 5};
    for (int i = 0; i < CALLS; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        asks[i] = new_put(key, strlen(key), &put);
        submit(bench.loop, &asks[i]);
    }
    for (int i = 0; i < CALLS; i++)
        ck_assert_int_eq(wait_for(bench.loop, &asks[i]), STORE_OK);
    for (int i = 0; i < CALLS; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        asks[i] = new_ask(STORE_GET, key, strlen(key));
        submit(bench.loop, &asks[i]);
    }
    for (int i = 0; i < CALLS; i++) {
        ck_assert_int_eq(wait_for(bench.loop, &asks[i]), bench.is->stores ? STORE_OK : STORE_MISS);
        store_answer_release(&asks[i].call);
    }
    free(asks);
    stop();
}
END_TEST

/* One of the threads of a race: a loop of its own. */
struct racer {
    unsigned index;
    pthread_t thread;
    pthread_barrier_t *barrier;
    struct loop *loop;
    int stored[RACE_ROUNDS]; /* 1: its PUT was the one that stored */
    unsigned seed;
};

static void *race(void *arg)
{
    struct racer *racer = arg;
    char key[32];
    racer->loop = loop_new(racer->index);
    ck_assert(store_attach(bench.store, racer->loop));
    for (int round = 0; round < RACE_ROUNDS; round++) {
        snprintf(key, sizeof(key), "round-%d", round);
        struct put put = {.bytes = &racer->index, .length = sizeof(racer->index)};
        struct ask ask = new_put(key, strlen(key), &put);
        pthread_barrier_wait(racer->barrier);
        enum store_status status = run_on(racer->loop, &ask);
        ck_assert(status == STORE_OK || status == STORE_EXISTS);
        racer->stored[round] = status == STORE_OK;
    }
    store_detach(bench.store, racer->loop);
    loop_free(racer->loop);
    return NULL;
}

static void start_racers(struct racer *racers, pthread_barrier_t *barrier, void *(*run)(void *))
{
    pthread_barrier_init(barrier, NULL, LOOPS);
    /* The test's own loop makes room for the racers', which are numbered from 0 as workers are. */
    store_detach(bench.store, bench.loop);
    for (unsigned i = 0; i < LOOPS; i++) {
        racers[i] = (struct racer){.index = i, .barrier = barrier, .seed = i + 1};
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, run, &racers[i]), 0);
    }
    for (unsigned i = 0; i < LOOPS; i++)
        pthread_join(racers[i].thread, NULL);
    pthread_barrier_destroy(barrier);
    ck_assert(store_attach(bench.store, bench.loop));
}

START_TEST(of_many_puts_at_once_one_stores)
{
    static struct racer racers[LOOPS];
    pthread_barrier_t barrier;
    char key[32];
    start(_i);
    start_racers(racers, &barrier, race);
    for (int round = 0; round < RACE_ROUNDS; round++) {
        int stored = 0;
        unsigned winner = 0;
        for (unsigned i = 0; i < LOOPS; i++) {
            stored += racers[i].stored[round];
            winner = racers[i].stored[round] ? i : winner;
        }
        snprintf(key, sizeof(key), "round-%d", round);
        ck_assert_int_eq(stored, bench.is->stores ? 1 : LOOPS);
        if (bench.is->stores)
            expect_value(key, strlen(key), &winner, sizeof(winner), 0);
    }
    stop();
}
END_TEST

/* A value that says which key it is for and is the same byte all over: a wrong or torn one shows.
 */
static void check_self(const struct ask *ask)
{
    struct store_answer answer = store_answer_of(&ask->call);
    const uint8_t *bytes = answer.bytes;
    uint64_t length = answer.length;
    ck_assert_uint_ge(length, 2);
    ck_assert_int_eq(bytes[0], ask->key[0]);
    ck_assert_uint_eq(length, 2 + bytes[1] * 20u);
    ck_assert(length < 4 || memcmp(bytes + 1, bytes + 2, length - 2) == 0);
    ck_assert_uint_eq(answer.flags, bytes[1]);
}

static struct ask random_ask(struct racer *racer)
{
    uint8_t key[1] = {(uint8_t)(rand_r(&racer->seed) % 20)}, bytes[2 + 255 * 20];
    int what = rand_r(&racer->seed) % 100;
    if (what < 50)
        return new_ask(what < 40 ? STORE_GET : STORE_HEAD, key, 1);
    if (what < 60)
        return new_ask(STORE_DELETE, key, 1);
    if (what < 62)
        return new_ask(what == 60 ? STORE_CLEAR : STORE_INSPECT, key, what % 2);
    uint8_t fill = (uint8_t)rand_r(&racer->seed);
    memset(bytes, fill, sizeof(bytes));
    bytes[0] = key[0];
    struct put put = {.bytes = bytes,
                      .length = 2 + fill * 20u,
                      .flags = fill,
                      .lives = what < 70 ? 5 : 0,
                      .overwrite = what % 2};
    return new_put(key, 1, &put);
}

static void *mix(void *arg)
{
    struct racer *racer = arg;
    racer->loop = loop_new(racer->index);
    ck_assert(store_attach(bench.store, racer->loop));
    for (int round = 0; round < MIXED_ROUNDS; round++) {
        struct ask ask = random_ask(racer);
        enum store_status status = run_on(racer->loop, &ask);
        ck_assert_msg(status != STORE_FAILED, "op %d: %s", (int)ask.call.request.op,
                      ask.call.result.text);
        if (ask.call.request.op == STORE_GET && status == STORE_OK) {
            check_self(&ask);
            store_answer_release(&ask.call);
        }
    }
    store_detach(bench.store, racer->loop);
    loop_free(racer->loop);
    return NULL;
}

START_TEST(whatever_many_ask_no_value_is_wrong)
{
    static struct racer racers[LOOPS];
    pthread_barrier_t barrier;
    start(_i);
    start_racers(racers, &barrier, mix);
    clear("", 0);
    stop();
}
END_TEST

/* What the store with faults is for: calls that finish late, in another order, or not well. */
START_TEST(a_delayed_call_finishes_later)
{
    start(_i);
    put("!delay=0/key", "value");
    struct ask slow = new_ask(STORE_GET, "!delay=80/key", 13);
    int64_t before = clock_now();
    submit(bench.loop, &slow);
    ck_assert_int_eq(slow.call.result.status, STORE_PENDING);
    ck_assert_int_eq(put("fast", "value"), STORE_OK);
    ck_assert_int_eq(atomic_load(&slow.finished), 0);
    ck_assert_int_eq(wait_for(bench.loop, &slow), STORE_MISS);
    ck_assert_int_ge(clock_now() - before, 75);
    stop();
}
END_TEST

START_TEST(held_calls_wait_for_their_release)
{
    start(_i);
    struct put value = {.bytes = "v", .length = 1};
    struct ask one = new_ask(STORE_GET, "!hold=x/1", 9), two = new_ask(STORE_GET, "!hold=x/2", 9);
    submit(bench.loop, &one);
    submit(bench.loop, &two);
    loop_step(bench.loop, 30);
    ck_assert_int_eq(atomic_load(&one.finished) + atomic_load(&two.finished), 0);
    ck_assert_int_eq(put_as("!release=x/", 11, &value), STORE_OK);
    ck_assert_int_eq(wait_for(bench.loop, &two), STORE_MISS);
    ck_assert_int_eq(wait_for(bench.loop, &one), STORE_MISS);
    stop();
}
END_TEST

START_TEST(faults_are_answered)
{
    start(_i);
    struct put value = {.bytes = "v", .length = 1};
    struct ask full = new_put("!error=no-space/k", 17, &value);
    ck_assert_int_eq(run_on(bench.loop, &full), STORE_FAILED);
    ck_assert_int_eq(full.call.result.error, ERROR_NO_SPACE);
    ck_assert_int_eq(put_as("!on=persist!error=timeout/", 26, &value), STORE_OK);
    struct ask persist = new_ask(STORE_PERSIST, "", 0);
    ck_assert_int_eq(run_on(bench.loop, &persist), STORE_FAILED);
    ck_assert_int_eq(persist.call.result.error, ERROR_TIMEOUT);
    ck_assert_int_eq(put_as("!lose/k", 7, &value), STORE_OK);
    expect_miss("!lose/k", 7);
    stop();
}
END_TEST

START_TEST(names_find_their_tables)
{
    ck_assert_ptr_null(store_find("nothing"));
    ck_assert_ptr_null(store_find(""));
    for (int i = 0; i < 5; i++) {
        ck_assert_ptr_nonnull(store_find(backends[i].name));
        ck_assert_ptr_nonnull(strstr(store_names(), backends[i].name));
    }
}
END_TEST

START_TEST(hashes_tell_keys_apart)
{
    ck_assert_uint_eq(store_hash((const uint8_t *)"key", 3), store_hash((const uint8_t *)"key", 3));
    ck_assert_uint_ne(store_hash((const uint8_t *)"key", 3), store_hash((const uint8_t *)"kez", 3));
    ck_assert_uint_ne(store_hash((const uint8_t *)"key", 3), store_hash((const uint8_t *)"key", 2));
}
END_TEST

static bool answers(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return false;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool ok = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    close(fd);
    return ok;
}

/* A server of our own, which ends with us. 0 where it does not start. */
static pid_t start_redis(const char *path)
{
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent && freopen("/dev/null", "w", stdout) != NULL)
            execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--save",
                   "", "--dir", folder, NULL);
        _exit(127);
    }
    for (int i = 0; pid > 0 && i < WAIT_MS / 10; i++) {
        if (answers(path))
            return pid;
        usleep(10000);
    }
    fprintf(stderr, "redis-server does not answer\n");
    return 0;
}

static void add_contract(TCase *tcase)
{
    const TTest *const tests[] = {
        it_has_its_name_and_title,
        what_was_never_put_is_a_miss,
        what_was_put_is_found,
        a_second_put_leaves_the_first,
        overwrite_replaces,
        deleted_is_gone,
        every_byte_is_a_key,
        keys_may_contain_each_other,
        every_byte_is_a_value,
        nothing_is_a_value,
        the_longest_keys_differ_in_their_last_byte,
        a_large_value_is_whole,
        flags_have_32_bits,
        an_end_is_kept_and_told,
        past_its_end_a_value_is_gone,
        clear_takes_all,
        clear_takes_what_has_the_prefix,
        inspect_counts,
        persist_says_what_is_true,
        what_was_persisted_is_there_after_reopening,
        a_directory_has_one_owner,
        a_directory_that_cannot_be_is_explained,
        max_size_bounds_the_store,
        what_is_used_stays_longest,
        a_value_larger_than_the_store_is_refused_or_evicted,
        too_many_bytes_in_flight_are_refused,
        many_calls_may_be_on_their_way,
        of_many_puts_at_once_one_stores,
        whatever_many_ask_no_value_is_wrong,
    };
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        tcase_add_loop_test(tcase, tests[i], 0, BACKENDS);
}

int main(void)
{
    char path[160];
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/liara-store-XXXXXX", tmp != NULL ? tmp : "/tmp");
    clock_start();
    if (mkdtemp(folder) == NULL)
        return EXIT_FAILURE;
    snprintf(path, sizeof(path), "%s/redis", folder);
    pid_t redis = start_redis(path);

    Suite *suite = suite_create("store");
    add_contract(suite_case(suite, "contract", 90));
    TCase *tcase = suite_case(suite, "faults", 30);
    tcase_add_loop_test(tcase, a_delayed_call_finishes_later, BACKENDS - 1, BACKENDS);
    tcase_add_loop_test(tcase, held_calls_wait_for_their_release, BACKENDS - 1, BACKENDS);
    tcase_add_loop_test(tcase, faults_are_answered, BACKENDS - 1, BACKENDS);
    tcase_add_test(tcase, names_find_their_tables);
    tcase_add_test(tcase, hashes_tell_keys_apart);
    int result = suite_run(suite);
    if (redis > 0) {
        kill(redis, SIGKILL);
        waitpid(redis, NULL, 0);
    }
    remove_tree(folder);
    return result;
}
