/*
 * The Redis backend where it differs from the others: what it writes, logging in, a server that is
 * away, stopped, hung or mad, and time-outs. What it shares with them is in test_store.c.
 *
 * Every test has a redis-server of its own on a Unix socket, or a server that plays one.
 */
#include "store_answer.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/redis/conn.h"
#include "../../daemon/store/store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <hiredis/hiredis.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    WAIT_MS = 60000,      /* for what has to happen, however busy the machine is */
    ENDLESS_MS = 3600000, /* the store's time-outs where a test is not about them */
    CLOCKS_MS = 20,       /* how far the server's clock and ours may drift apart in a test */
    RACERS = 16,
    RACE_KEYS = 100,
    REPLACED = 300,
    MEMORY = 16 << 20
};

/* The folder of the whole run; set once by main(). */
static char root[64];

/* One test's server, store and loop. */
static struct bench {
    char folder[80], socket[96], log[96], file[96];
    pid_t server;
    struct config config;
    struct store *store;
    struct loop *loop;
    redisContext *raw; /* to look at the server behind the store's back */
} bench;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* Whether the server answers anything; that it wants a password is an answer. */
static bool answers(const char *path)
{
    struct timeval wait = {.tv_sec = 5};
    redisContext *raw = redisConnectUnixWithTimeout(path, wait);
    redisReply *reply = NULL;
    if (raw != NULL && raw->err == 0 && redisSetTimeout(raw, wait) == REDIS_OK)
        reply = redisCommand(raw, "PING");
    bool ok = reply != NULL && strncmp(reply->str, "LOADING", 7) != 0;
    freeReplyObject(reply);
    redisFree(raw);
    return ok;
}

static void run_server(pid_t parent, const char *const *more)
{
    const char *words[32] = {
        "redis-server", "--port", "0",     "--unixsocket", bench.socket,  "--save", "",
        "--appendonly", "no",     "--dir", bench.folder,   "--daemonize", "no"};
    size_t count = 13;
    for (; *more != NULL && count < 31; more++)
        words[count++] = *more;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent && freopen("/dev/null", "w", stdout) != NULL)
        execvp(words[0], (char *const *)(uintptr_t)words);
    _exit(127);
}

static void start_server_with(const char *const *more)
{
    pid_t parent = getpid();
    unlink(bench.socket);
    bench.server = fork();
    if (bench.server == 0)
        run_server(parent, more);
    for (int i = 0; bench.server > 0 && i < WAIT_MS / 10 && !answers(bench.socket); i++) {
        int status = 0;
        ck_assert_msg(waitpid(bench.server, &status, WNOHANG) == 0,
                      "redis-server ended with %d: is it installed (Debian's redis-tools)?",
                      WEXITSTATUS(status));
        usleep(10000);
    }
    ck_assert_msg(answers(bench.socket), "redis-server does not answer on %s", bench.socket);
}

/* start_server("--option", "value", …) */
#define start_server(...) start_server_with((const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

static void kill_server(void)
{
    if (bench.server <= 0)
        return;
    kill(bench.server, SIGKILL);
    waitpid(bench.server, NULL, 0);
    bench.server = 0;
    redisFree(bench.raw);
    bench.raw = NULL;
}

static redisReply *raw_ask(const char *format, va_list args)
{
    if (bench.raw == NULL || bench.raw->err != 0) {
        redisFree(bench.raw);
        bench.raw = redisConnectUnix(bench.socket);
        ck_assert(bench.raw != NULL && bench.raw->err == 0);
    }
    redisReply *reply = redisvCommand(bench.raw, format, args);
    ck_assert_ptr_nonnull(reply);
    return reply;
}

/* Asks the server itself; a number, or an OK as 1 and anything else as 0. */
static long long raw_number(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *reply = raw_ask(format, args);
    va_end(args);
    ck_assert_msg(reply->type != REDIS_REPLY_ERROR, "%s: %s", format, reply->str);
    long long number =
        reply->type == REDIS_REPLY_INTEGER ? reply->integer : reply->type == REDIS_REPLY_STATUS;
    freeReplyObject(reply);
    return number;
}

/* Asks the server itself for a string of that length into text. */
static void raw_string(char *text, size_t length, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *reply = raw_ask(format, args);
    va_end(args);
    ck_assert_int_eq(reply->type, REDIS_REPLY_STRING);
    ck_assert_uint_eq(reply->len, length);
    memcpy(text, reply->str, length);
    freeReplyObject(reply);
}

static void open_store(void)
{
    char why[512] = "";
    bench.store = store_open(&store_redis, &bench.config, why, sizeof(why));
    ck_assert_msg(bench.store != NULL, "%s", why);
    bench.loop = loop_new(0);
    ck_assert(store_attach(bench.store, bench.loop));
}

static void close_store(void)
{
    if (bench.store == NULL)
        return;
    store_detach(bench.store, bench.loop);
    store_close(bench.store);
    loop_free(bench.loop);
    bench.store = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

/* stderr goes to a file, so that a test can look at the log. */
static void set_up(void)
{
    static char empty[] = "", host[] = "127.0.0.1", prefix[] = "liara/";
    signal(SIGPIPE, SIG_IGN);
    snprintf(bench.folder, sizeof(bench.folder), "%s/%d", root, (int)getpid());
    ck_assert_int_eq(mkdir(bench.folder, 0700), 0);
    snprintf(bench.socket, sizeof(bench.socket), "%s/socket", bench.folder);
    snprintf(bench.log, sizeof(bench.log), "%s/log", bench.folder);
    snprintf(bench.file, sizeof(bench.file), "%s/password", bench.folder);
    bench.config = (struct config){
        .workers = 1,
        .redis_host = host,
        .redis_port = 6379,
        .redis_socket = bench.socket,
        .redis_password_file = empty,
        .redis_prefix = prefix,
        .redis_expiration = 3600000,
        .redis_timeout = ENDLESS_MS,
        .redis_connect_timeout = ENDLESS_MS,
    };
    fflush(stderr);
    int fd = open(bench.log, O_CREAT | O_WRONLY | O_APPEND, 0600);
    ck_assert(fd >= 0 && dup2(fd, STDERR_FILENO) == STDERR_FILENO);
    close(fd);
    log_open(LOG_LEVEL_INFO);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void tear_down(void)
{
    close_store();
    redisFree(bench.raw);
    bench.raw = NULL;
    kill_server();
    remove_tree(bench.folder);
}

static void start(void)
{
    start_server();
    open_store();
}

/* How many lines of the log have that in them. */
static int logged(const char *text)
{
    char line[2048];
    int count = 0;
    FILE *file = fopen(bench.log, "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof(line), file) != NULL)
        count += strstr(line, text) != NULL;
    fclose(file);
    return count;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

/* A call, and how often it has finished. */
struct ask {
    struct store_call call;
    bool inside; /* of store_submit() */
    int finished;
    int64_t began, took;
    uint8_t key[MESSAGE_KEY_MAX];
};

static void ask_done(struct store_call *call)
{
    struct ask *ask = (struct ask *)(void *)((char *)call - offsetof(struct ask, call));
    ck_assert_msg(!ask->inside, "done() was called from inside store_submit()");
    ck_assert_int_ne(call->result.status, STORE_PENDING);
    ask->finished++;
    ask->took = clock_now() - ask->began;
}

static struct ask new_ask_of(enum store_op op, const void *key, size_t length)
{
    struct ask ask = {.call = {.request = {.op = op, .key_length = (uint32_t)length}}};
    memcpy(ask.key, key, length);
    return ask;
}

static struct ask new_ask(enum store_op op, const char *key)
{
    return new_ask_of(op, key, strlen(key));
}

static struct ask new_put_of(const void *key, size_t key_length, const void *bytes, size_t length)
{
    struct ask ask = new_ask_of(STORE_PUT, key, key_length);
    ask.call.request.value = value_new(key, key_length, (uint32_t)length);
    ck_assert_ptr_nonnull(ask.call.request.value);
    memcpy(value_bytes(ask.call.request.value), bytes, length);
    return ask;
}

static struct ask new_put(const char *key, const char *bytes)
{
    return new_put_of(key, strlen(key), bytes, strlen(bytes));
}

static void submit(struct loop *loop, struct ask *ask)
{
    ask->call.request.loop = loop;
    ask->call.done = ask_done;
    ask->call.request.key = ask->key;
    ask->began = clock_now();
    ask->inside = true;
    enum store_status status = store_submit(bench.store, &ask->call);
    ask->inside = false;
    ck_assert_int_eq(status, ask->call.result.status);
    ck_assert_int_eq(ask->finished, 0);
    ck_assert(ask->call.request.op != STORE_PUT || ask->call.request.value == NULL);
    if (status != STORE_PENDING) {
        ask->finished++;
        ask->took = clock_now() - ask->began;
    }
}

static enum store_status wait_for(struct loop *loop, struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (ask->finished == 0 && clock_now() < end)
        loop_step(loop, 100);
    ck_assert_int_eq(ask->finished, 1);
    return ask->call.result.status;
}

static enum store_status run(struct ask *ask)
{
    submit(bench.loop, ask);
    return wait_for(bench.loop, ask);
}

/* Lets the store's connections do what they do in the background. */
static void pass(int64_t milliseconds)
{
    int64_t end = clock_now() + milliseconds;
    for (int64_t left; (left = end - clock_now()) > 0;)
        loop_step(bench.loop, (int)left);
}

static void expect_status(struct ask ask, enum store_status status)
{
    enum store_status got = run(&ask);
    ck_assert_msg(got == status, "op %d of %.*s: %d instead of %d: %s", (int)ask.call.request.op,
                  (int)ask.call.request.key_length, (const char *)ask.key, (int)got, (int)status,
                  got == STORE_FAILED ? ask.call.result.text : "");
    if (ask.call.request.op == STORE_GET && got == STORE_OK)
        value_unref(ask.call.request.value);
}

static void put(const char *key, const char *bytes)
{
    expect_status(new_put(key, bytes), STORE_OK);
}

static void expect_bytes(const struct ask *get, const void *bytes, size_t length)
{
    ck_assert_int_eq(get->call.result.status, STORE_OK);
    ck_assert_uint_eq(get->call.result.value->length, length);
    ck_assert(memcmp(value_bytes(get->call.result.value), bytes, length) == 0);
    value_unref(get->call.result.value);
}

static void expect_get(const char *key, const char *bytes)
{
    struct ask get = new_ask(STORE_GET, key);
    ck_assert_msg(run(&get) == STORE_OK, "GET %s: %d %s", key, (int)get.call.result.status,
                  get.call.result.text);
    expect_bytes(&get, bytes, strlen(bytes));
}

/* The call fails like that, after so many milliseconds or more. */
static void expect_failure_after(struct ask ask, enum error_code error, int64_t least)
{
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_msg(ask.call.result.error == error, "%s: %s",
                  message_error_name(ask.call.result.error), ask.call.result.text);
    ck_assert_msg(ask.took >= least, "%s: after %d ms", ask.call.result.text, (int)ask.took);
}

/* That it needs no time-out to fail shows where these are endless. */
static void expect_failure(struct ask ask, enum error_code error)
{
    expect_failure_after(ask, error, 0);
}

/* Asks until the server answers, though it may be away for a while. */
static void until_it_answers(void)
{
    int64_t end = clock_now() + WAIT_MS;
    for (;;) {
        struct ask head = new_ask(STORE_HEAD, "nothing");
        if (run(&head) == STORE_MISS)
            return;
        ck_assert_msg(clock_now() < end, "no answer: %s", head.call.result.text);
        pass(10);
    }
}

/* The server that was away is used again. */
static void expect_back(const char *key, const char *bytes)
{
    until_it_answers();
    expect_get(key, bytes);
}

/* A GET or HEAD that is answered at once, so from memory. */
static void expect_copy(const char *key, const char *bytes)
{
    struct ask get = new_ask(STORE_GET, key), head = new_ask(STORE_HEAD, key);
    submit(bench.loop, &get);
    submit(bench.loop, &head);
    ck_assert_int_eq(get.finished, 1);
    ck_assert_int_eq(head.finished, 1);
    ck_assert_int_eq(head.call.result.status, STORE_OK);
    ck_assert_uint_eq(head.call.result.length, strlen(bytes));
    ck_assert_int_eq(get.call.result.status, STORE_OK);
    struct store_answer answer = store_answer_of(&get.call);
    ck_assert_uint_eq(answer.length, strlen(bytes));
    ck_assert(memcmp(answer.bytes, bytes, answer.length) == 0);
    store_answer_release(&get.call);
}

static void start_with_memory(void)
{
    bench.config.memory_size = MEMORY;
    start();
    put("key", "value");
    expect_get("key", "value");
    expect_copy("key", "value");
}

START_TEST(an_entry_is_one_string_under_the_prefix)
{
    char header[16];
    start();
    struct ask ask = new_put("key", "value");
    ask.call.request.value->flags = 0x01020304;
    expect_status(ask, STORE_OK);
    ck_assert_int_eq(raw_number("DBSIZE"), 1);
    ck_assert_int_eq(raw_number("STRLEN liara/key"), 16 + 5);
    raw_string(header, 16, "GETRANGE liara/key 0 15");
    ck_assert_mem_eq(header, "LCv1\x04\x03\x02\x01", 8);

    struct ask get = new_ask(STORE_GET, "key"), head = new_ask(STORE_HEAD, "key");
    ck_assert_int_eq(run(&get), STORE_OK);
    ck_assert_uint_eq(get.call.result.value->flags, 0x01020304);
    expect_bytes(&get, "value", 5);
    ck_assert_int_eq(run(&head), STORE_OK);
    ck_assert_uint_eq(head.call.result.flags, 0x01020304);
    ck_assert_uint_eq(head.call.result.length, 5);
}
END_TEST

/* Keys that would mean something to Redis's patterns and to C, each beside what it would match. */
START_TEST(keys_are_bytes)
{
    static const struct {
        const char *key;
        size_t length;
    } keys[] = {{"*", 1},     {"a*", 2},       {"ab", 2},   {"a?", 2},   {"[ab]", 4},
                {"a\\", 2},   {"\\a", 2},      {"a\0b", 3}, {"a\0c", 3}, {"\r\n", 2},
                {" x \"", 4}, {"\xff\xfe", 2}, {"^a", 2},   {"[^a]", 4}, {"a-b", 3}};
    enum { KEYS = sizeof(keys) / sizeof(keys[0]) };
    start();
    for (int i = 0; i < KEYS; i++)
        expect_status(new_put_of(keys[i].key, keys[i].length, &i, sizeof(i)), STORE_OK);
    for (int i = 0; i < KEYS; i++) {
        struct ask get = new_ask_of(STORE_GET, keys[i].key, keys[i].length);
        ck_assert_int_eq(run(&get), STORE_OK);
        expect_bytes(&get, &i, sizeof(i));
    }
    ck_assert_int_eq(raw_number("STRLEN %b", "liara/a\0c", (size_t)9), 16 + sizeof(int));
    for (int i = 0; i < KEYS; i++) {
        struct ask clear = new_ask_of(STORE_CLEAR, keys[i].key, keys[i].length);
        ck_assert_int_eq(run(&clear), STORE_OK);
        ck_assert_uint_eq(clear.call.result.entries, 1);
        ck_assert_int_eq(raw_number("DBSIZE"), KEYS - 1 - i);
    }
}
END_TEST

START_TEST(clear_takes_only_its_own)
{
    static char prefix[] = "li[a]r?*/";
    enum { OURS = 3500 };
    char key[32];
    bench.config.redis_prefix = prefix;
    start();
    for (int i = 0; i < OURS; i++) {
        snprintf(key, sizeof(key), i % 2 == 0 ? "one/%d" : "two/%d", i);
        put(key, "value");
    }
    const char *const foreign[] = {"other",   "liara/one/1", "li[a]r?*",
                                   "lixr?*/", "liar0*/",     "lia/"};
    for (size_t i = 0; i < 6; i++)
        raw_number("SET %s %s", foreign[i], "foreign");
    raw_number("SELECT 1");
    raw_number("SET li[a]r?*/one/1 elsewhere");
    raw_number("SELECT 0");

    struct ask one = new_ask(STORE_CLEAR, "one/"), all = new_ask(STORE_CLEAR, "");
    ck_assert_int_eq(run(&one), STORE_OK);
    ck_assert_uint_eq(one.call.result.entries, OURS / 2);
    ck_assert_int_eq(raw_number("DBSIZE"), OURS / 2 + 6);
    expect_get("two/1", "value");
    ck_assert_int_eq(run(&all), STORE_OK);
    ck_assert_uint_eq(all.call.result.entries, OURS / 2);
    for (size_t i = 0; i < 6; i++)
        ck_assert_int_eq(raw_number("EXISTS %s", foreign[i]), 1);
    raw_number("SELECT 1");
    ck_assert_int_eq(raw_number("DBSIZE"), 1);
}
END_TEST

/* More entries than are asked for their size; all of one size, so that the average is theirs. */
START_TEST(inspect_extrapolates)
{
    enum { ENTRIES = 6000 };
    start();
    raw_number("SET other %s", "not ours");
    for (int i = 0; i < ENTRIES; i++) {
        char key[32];
        snprintf(key, sizeof(key), "k%05d", i);
        put(key, "0123456789");
    }
    struct ask ask = new_ask(STORE_INSPECT, "");
    ck_assert_int_eq(run(&ask), STORE_OK);
    ck_assert(ask.call.result.approximate);
    /* SCAN may name a key twice while the server resizes its table. */
    ck_assert_uint_ge(ask.call.result.entries, ENTRIES);
    ck_assert_uint_le(ask.call.result.entries, ENTRIES + ENTRIES / 20);
    ck_assert_uint_eq(ask.call.result.size, ask.call.result.entries * 16);

    struct ask some = new_ask(STORE_INSPECT, "k0000");
    ck_assert_int_eq(run(&some), STORE_OK);
    ck_assert_uint_eq(some.call.result.entries, 10);
    ck_assert_uint_eq(some.call.result.size, 160);
}
END_TEST

START_TEST(what_is_foreign_is_a_miss_and_stays)
{
    char text[7];
    start();
    raw_number("SET liara/key foreign");
    raw_number("RPUSH liara/list element");
    raw_number("SET liara/empty %b", "", (size_t)0);
    const char *const keys[] = {"key", "list", "empty"};
    for (size_t i = 0; i < 3; i++) {
        expect_status(new_ask(STORE_GET, keys[i]), STORE_MISS);
        expect_status(new_ask(STORE_HEAD, keys[i]), STORE_MISS);
        expect_status(new_put(keys[i], "ours"), STORE_EXISTS);
        expect_status(new_ask(STORE_GET, keys[i]), STORE_MISS);
    }
    raw_string(text, 7, "GET liara/key");
    ck_assert_mem_eq(text, "foreign", 7);
    ck_assert_int_eq(logged("none of ours"), 1);

    struct ask over = new_put("list", "ours");
    over.call.request.overwrite = true;
    expect_status(over, STORE_OK);
    expect_get("list", "ours");
    expect_status(new_ask(STORE_DELETE, "key"), STORE_OK);
    put("key", "ours");
    expect_get("key", "ours");
}
END_TEST

/* Every byte of an entry, header and value, changed by one bit. */
START_TEST(what_is_damaged_is_a_miss_and_deleted)
{
    char entry[16 + 5];
    start();
    put("key", "value");
    raw_string(entry, sizeof(entry), "GET liara/key");
    for (size_t i = 4; i < sizeof(entry); i++) {
        entry[i] ^= 0x10;
        raw_number("SET liara/key %b", entry, sizeof(entry));
        entry[i] ^= 0x10;
        expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
        ck_assert_int_eq(raw_number("EXISTS liara/key"), 0);
    }
    for (size_t length = 4; length < sizeof(entry); length++) {
        raw_number("SET liara/key %b", entry, length);
        expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
        ck_assert_int_eq(raw_number("EXISTS liara/key"), 0);
    }
    raw_number("SET liara/other %b", entry, sizeof(entry)); /* another key's */
    expect_status(new_ask(STORE_GET, "other"), STORE_MISS);
    ck_assert_int_eq(logged("damaged"), 1);
    put("key", "again");
    expect_get("key", "again");
}
END_TEST

/* Puts a value that lives so long by itself: the server's view of its life is told, and GET's. */
static void put_living(const char *key, int64_t lives, long long *server, int64_t *told)
{
    struct ask ask = new_put(key, "value"), get = new_ask(STORE_GET, key);
    ask.call.request.value->expires = lives == 0 ? CLOCK_NEVER : clock_now() + lives;
    expect_status(ask, STORE_OK);
    *server = raw_number("PTTL liara/%s", key);
    ck_assert_int_eq(run(&get), STORE_OK);
    *told = get.call.result.value->expires;
    if (*told != CLOCK_NEVER)
        *told -= clock_now();
    expect_bytes(&get, "value", 5);
}

/* A life of that many milliseconds, of which so much may be over as this takes; HEAD tells it too.
 */
static void expect_life(const char *key, int64_t lives, int64_t milliseconds)
{
    struct ask head = new_ask(STORE_HEAD, key);
    int64_t began = clock_now(), told;
    long long server;
    put_living(key, lives, &server, &told);
    ck_assert_int_eq(run(&head), STORE_OK);
    int64_t now = clock_now(), least = milliseconds - (now - began) - CLOCKS_MS;
    ck_assert_int_le(server, milliseconds);
    ck_assert_int_ge(server, least);
    ck_assert_int_le(told, milliseconds);
    ck_assert_int_ge(told, least);
    ck_assert_int_le(head.call.result.expires, now + milliseconds);
    ck_assert_int_ge(head.call.result.expires, now + least);
}

START_TEST(a_life_is_the_shorter_of_two)
{
    struct ask head = new_ask(STORE_HEAD, "never");
    long long server;
    int64_t told;
    start();
    expect_life("default", 0, 3600000);
    expect_life("own", 60000, 60000);
    expect_life("longer", 7200000, 3600000);
    close_store();
    bench.config.redis_expiration = 0;
    open_store();
    put_living("never", 0, &server, &told);
    ck_assert_int_eq(server, -1);
    ck_assert_int_eq(told, CLOCK_NEVER);
    ck_assert_int_eq(run(&head), STORE_OK);
    ck_assert_int_eq(head.call.result.expires, CLOCK_NEVER);
    expect_life("alone", 7200000, 7200000);
}
END_TEST

START_TEST(past_its_end_it_is_gone)
{
    start();
    struct ask brief = new_put("brief", "value"), past = new_put("past", "value");
    brief.call.request.value->expires = clock_now() + 60;
    past.call.request.value->expires = clock_now() - 5;
    expect_status(brief, STORE_OK);
    expect_status(past, STORE_OK);
    pass(120);
    expect_status(new_ask(STORE_GET, "brief"), STORE_MISS);
    expect_status(new_ask(STORE_HEAD, "past"), STORE_MISS);
    put("brief", "again");
    /* An overwrite without an end takes the old one away. */
    struct ask over = new_put("brief", "third");
    over.call.request.overwrite = true;
    over.call.request.value->expires = clock_now() + 100;
    expect_status(over, STORE_OK);
    over = new_put("brief", "fourth");
    over.call.request.overwrite = true;
    expect_status(over, STORE_OK);
    pass(150);
    expect_get("brief", "fourth");
}
END_TEST

START_TEST(the_password_is_used)
{
    start_server("--requirepass", "se cr%et");
    write_file(bench.file, "se cr%et\r\nsecond line\n");
    bench.config.redis_password_file = bench.file;
    open_store();
    put("key", "value");
    expect_get("key", "value");
    ck_assert_int_eq(logged("Redis"), 0);
}
END_TEST

/* Whoever asks is told, and so is the log, once, without the password. */
static void expect_refusal(const char *words)
{
    open_store();
    for (int i = 0; i < 3; i++) {
        struct ask ask = new_ask(STORE_GET, "key");
        ck_assert_int_eq(run(&ask), STORE_FAILED);
        ck_assert_int_eq(ask.call.result.error, ERROR_UNAVAILABLE);
        ck_assert_msg(strstr(ask.call.result.text, words) != NULL, "%s", ask.call.result.text);
        pass(200);
    }
    ck_assert_int_eq(logged("Redis at"), 1);
    ck_assert_int_eq(logged(words), 1);
    ck_assert_int_eq(logged("tellnobody"), 0);
}

START_TEST(a_wrong_password_is_refused)
{
    start_server("--requirepass", "right");
    write_file(bench.file, "tellnobody\n");
    bench.config.redis_password_file = bench.file;
    expect_refusal("refuses the password of redis-password-file (WRONGPASS)");
}
END_TEST

START_TEST(a_missing_password_is_told)
{
    start_server("--requirepass", "right");
    expect_refusal("it wants a password: set redis-password-file (NOAUTH");
}
END_TEST

START_TEST(a_needless_password_is_told)
{
    start_server();
    write_file(bench.file, "tellnobody");
    bench.config.redis_password_file = bench.file;
    expect_refusal("it has no password: unset redis-password-file");
}
END_TEST

/* An unknown command's arguments come back in the error. */
START_TEST(a_server_that_repeats_the_password_is_not_repeated)
{
    start_server("--rename-command", "AUTH", "");
    write_file(bench.file, "tellnobody");
    bench.config.redis_password_file = bench.file;
    expect_refusal("refuses the password of redis-password-file (ERR)");
}
END_TEST

START_TEST(a_database_beyond_the_last_is_told)
{
    start_server("--databases", "2");
    bench.config.redis_database = 2;
    expect_refusal("it refuses redis-database (ERR DB index is out of range)");
}
END_TEST

START_TEST(the_refusal_ends_with_its_reason)
{
    start_server("--requirepass", "right");
    write_file(bench.file, "later");
    bench.config.redis_password_file = bench.file;
    expect_refusal("WRONGPASS");
    bench.raw = redisConnectUnix(bench.socket);
    raw_number("AUTH right");
    raw_number("CONFIG SET requirepass later");
    raw_number("SET liara/key foreign");
    until_it_answers();
    expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
    ck_assert_int_eq(logged("back again"), 1);
}
END_TEST

START_TEST(the_database_is_used)
{
    start_server();
    bench.config.redis_database = 3;
    open_store();
    put("key", "value");
    ck_assert_int_eq(raw_number("DBSIZE"), 0);
    raw_number("SELECT 3");
    ck_assert_int_eq(raw_number("EXISTS liara/key"), 1);
}
END_TEST

static void expect_no_store(const char *words)
{
    char why[512] = "";
    ck_assert_ptr_null(store_open(&store_redis, &bench.config, why, sizeof(why)));
    ck_assert_msg(strstr(why, words) != NULL, "%s", why);
}

START_TEST(a_bad_configuration_is_explained)
{
    static char nowhere[] = "/nonexistent/password", folder[] = "/", empty[] = "";
    char text[1100], path[120];
    bench.config.redis_password_file = nowhere;
    expect_no_store("redis-password-file /nonexistent/password: No such file");
    bench.config.redis_password_file = folder;
    expect_no_store("can't read redis-password-file /");
    bench.config.redis_password_file = bench.file;
    write_file(bench.file, "");
    expect_no_store("first line must be the password");
    write_file(bench.file, "\nsecond line");
    expect_no_store("first line must be the password");
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    write_file(bench.file, text);
    expect_no_store("at most");
    bench.config.redis_password_file = empty;

    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[108] = '\0';
    bench.config.redis_socket = path;
    expect_no_store("redis-socket");
    text[300] = '\0';
    bench.config.redis_socket = empty;
    bench.config.redis_host = text;
    expect_no_store("redis-host");
    bench.config.redis_socket = bench.socket;
    bench.config.redis_prefix = text;
    expect_no_store("redis-prefix has 300 bytes");
}
END_TEST

START_TEST(a_server_that_is_not_there_is_waited_for)
{
    open_store();
    expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
    for (enum store_op op = STORE_GET; op <= STORE_PERSIST; op++) {
        struct ask ask = op == STORE_PUT ? new_put("key", "value") : new_ask(op, "key");
        expect_failure(ask, ERROR_UNAVAILABLE);
    }
    pass(1500); /* some attempts */
    ck_assert_int_eq(logged("Redis at"), 1);
    ck_assert_int_eq(logged("No such file"), 1);
    start_server();
    int64_t end = clock_now() + WAIT_MS;
    while (logged("back again") == 0 && clock_now() < end) /* though nobody asks */
        pass(10);
    ck_assert_int_eq(logged("back again"), 1);
    put("key", "value");
}
END_TEST

/* A store that gives up soon, on a server that now answers it. */
static void open_impatient_store(void)
{
    bench.config.redis_timeout = 3000;
    bench.config.redis_connect_timeout = 100;
    open_store();
    until_it_answers();
}

/* While the first had to wait for the time-out, these don't: together they are far below theirs. */
static void expect_cheap_failures(void)
{
    int64_t began = clock_now();
    for (int i = 0; i < 20; i++) {
        struct ask ask = new_ask(STORE_GET, "key-3");
        ck_assert_int_eq(run(&ask), STORE_FAILED);
        ck_assert(ask.call.result.error == ERROR_UNAVAILABLE ||
                  ask.call.result.error == ERROR_TIMEOUT);
    }
    ck_assert_int_lt(clock_now() - began, 10 * bench.config.redis_timeout);
}

START_TEST(a_stopped_server_costs_the_timeout_and_no_more)
{
    char key[32], bytes[32];
    start();
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        snprintf(bytes, sizeof(bytes), "value-%d", i);
        put(key, bytes);
    }
    close_store();
    open_impatient_store();
    for (int round = 0; round < 2; round++) {
        kill(bench.server, SIGSTOP);
        struct ask first = new_ask(STORE_GET, "key-1"), second = new_ask(STORE_HEAD, "key-2");
        submit(bench.loop, &first);
        submit(bench.loop, &second);
        ck_assert_int_eq(wait_for(bench.loop, &first), STORE_FAILED);
        ck_assert_int_eq(wait_for(bench.loop, &second), STORE_FAILED);
        ck_assert_int_eq(first.call.result.error, ERROR_TIMEOUT);
        ck_assert_int_ge(first.took, bench.config.redis_timeout);
        expect_cheap_failures();
        pass(round * 3500);
        kill(bench.server, SIGCONT);
        expect_back("key-5", "value-5");
        /* The answers that the stopped server owed come now, to nobody. */
        for (int i = 0; i < 200; i++) {
            snprintf(key, sizeof(key), "key-%d", i * 7 % 20);
            snprintf(bytes, sizeof(bytes), "value-%d", i * 7 % 20);
            expect_get(key, bytes);
        }
        ck_assert_int_eq(logged("trying again"), round + 1);
        ck_assert_int_eq(logged("back again"), round + 1);
    }
}
END_TEST

START_TEST(a_killed_server_is_used_again)
{
    start();
    put("key", "value");
    struct ask asks[3] = {new_ask(STORE_GET, "key"), new_put("other", "value"),
                          new_ask(STORE_INSPECT, "")};
    kill(bench.server, SIGSTOP); /* so that they are on their way */
    for (int i = 0; i < 3; i++)
        submit(bench.loop, &asks[i]);
    pass(50);
    kill_server();
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(wait_for(bench.loop, &asks[i]), STORE_FAILED);
        ck_assert_int_eq(asks[i].call.result.error, ERROR_UNAVAILABLE);
    }
    pass(20);
    for (int i = 0; i < 5; i++)
        expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
    pass(2500); /* the longest back-off */
    start_server();
    until_it_answers();
    put("key", "after");
    expect_get("key", "after");
    ck_assert_int_eq(logged("trying again"), 1);
    ck_assert_int_eq(logged("back again"), 1);
}
END_TEST

/* How many clients the server has. */
static int raw_clients(void)
{
    redisReply *reply = redisCommand(bench.raw, "CLIENT LIST TYPE normal");
    ck_assert(reply != NULL && reply->type == REDIS_REPLY_STRING);
    int lines = 0;
    for (const char *c = reply->str; *c != '\0'; c++)
        lines += *c == '\n';
    freeReplyObject(reply);
    return lines;
}

START_TEST(an_idle_connection_may_be_closed)
{
    start();
    put("key", "value");
    for (int i = 0; i < 3; i++) {
        ck_assert_int_ge(raw_number("CLIENT KILL TYPE normal"), 1);
        int64_t end = clock_now() + WAIT_MS;
        while (raw_clients() < 2 && clock_now() < end) /* ours and the store's next */
            pass(10);
        expect_get("key", "value");
    }
    ck_assert_int_eq(logged("Redis at"), 0);
}
END_TEST

/* A server that plays Redis badly: it greets well, and answers the first other command with text.
 */
struct fake {
    int fd;
    const char *greeting; /* for SELECT; NULL: nothing at all */
    const char *text;
    bool closes; /* after text */
    bool drips;  /* text byte by byte, 20 a second */
    atomic_bool stopping;
    atomic_int accepted;
    pthread_t thread;
};

static void fake_send(struct fake *fake, int fd, const char *text)
{
    for (size_t i = 0, step; i < strlen(text) && !atomic_load(&fake->stopping); i += step) {
        step = fake->drips ? 1 : strlen(text);
        if (send(fd, text + i, step, MSG_NOSIGNAL) < 0)
            return;
        if (fake->drips)
            usleep(50000);
    }
}

/* Answers what has come; false where the connection is to be closed. */
static bool fake_answer(struct fake *fake, int fd, char *bytes, size_t length)
{
    bytes[length] = '\0';
    if (fake->greeting == NULL)
        return true;
    if (strstr(bytes, "SELECT") != NULL) {
        send(fd, fake->greeting, strlen(fake->greeting), MSG_NOSIGNAL);
        send(fd, "*0\r\n", 4, MSG_NOSIGNAL); /* CONFIG GET, which comes with it */
        return true;
    }
    fake_send(fake, fd, fake->text);
    return !fake->closes;
}

static void fake_serve(struct fake *fake, int fd)
{
    char bytes[65536];
    struct timeval wait = {.tv_usec = 20000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    while (!atomic_load(&fake->stopping)) {
        ssize_t got = recv(fd, bytes, sizeof(bytes) - 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            return;
        if (got > 0 && !fake_answer(fake, fd, bytes, (size_t)got))
            return;
    }
}

static void *fake_run(void *arg)
{
    struct fake *fake = arg;
    while (!atomic_load(&fake->stopping)) {
        int fd = accept(fake->fd, NULL, NULL);
        if (fd < 0)
            break;
        atomic_fetch_add(&fake->accepted, 1);
        fake_serve(fake, fd);
        close(fd);
    }
    return NULL;
}

static void fake_start(struct fake *fake)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", bench.socket);
    fake->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(fake->fd, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(listen(fake->fd, 10), 0);
    ck_assert_int_eq(pthread_create(&fake->thread, NULL, fake_run, fake), 0);
    open_store();
}

static void fake_stop(struct fake *fake)
{
    atomic_store(&fake->stopping, true);
    shutdown(fake->fd, SHUT_RDWR);
    pthread_join(fake->thread, NULL);
    close(fake->fd);
    close_store();
}

static void fake_await(struct fake *fake, int accepted)
{
    int64_t end = clock_now() + WAIT_MS;
    while (atomic_load(&fake->accepted) < accepted && clock_now() < end)
        pass(10);
    ck_assert_int_ge(atomic_load(&fake->accepted), accepted);
}

START_TEST(a_server_that_never_answers_is_no_server)
{
    struct fake fake = {.greeting = NULL};
    int64_t began = clock_now();
    bench.config.redis_timeout = 3000;
    bench.config.redis_connect_timeout = 100;
    fake_start(&fake);
    expect_failure_after(new_put("key", "value"), ERROR_UNAVAILABLE, 90);
    expect_cheap_failures();
    fake_await(&fake, 2);
    ck_assert_int_eq(logged("it does not answer"), 1);
    /* Each attempt lasts as long as an answer may. */
    ck_assert_int_le(atomic_load(&fake.accepted),
                     2 + (clock_now() - began) / bench.config.redis_timeout);
    fake_stop(&fake);
}
END_TEST

/* Who asks while such an attempt goes on does not wait for its end, which never comes here. */
START_TEST(a_server_that_never_answers_is_not_waited_for)
{
    struct fake fake = {.greeting = NULL};
    bench.config.redis_connect_timeout = 100;
    fake_start(&fake);
    expect_failure_after(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE, 90);
    for (int i = 0; i < 5; i++)
        expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
    fake_stop(&fake);
}
END_TEST

START_TEST(a_server_that_falls_silent_costs_the_timeout)
{
    struct fake fake = {.greeting = "+OK\r\n", .text = ""};
    bench.config.redis_timeout = 1000;
    fake_start(&fake);
    for (enum store_op op = STORE_GET; op <= STORE_PERSIST; op++) {
        struct ask ask = op == STORE_PUT ? new_put("key", "value") : new_ask(op, "key");
        expect_failure_after(ask, ERROR_TIMEOUT, 1000);
        close_store(); /* else the next might meet a back-off */
        open_store();
    }
    fake_stop(&fake);
}
END_TEST

/* Bytes that come slowly are no progress: all of them would take longer. */
START_TEST(a_server_that_drips_costs_the_timeout)
{
    struct fake fake = {.greeting = "+OK\r\n",
                        .text = "$16\r\nLCv1aaaabbbbbbbb\r\n:30\r\n:-1\r\n"
                                "$30\r\nLCv1aaaabbbbbbbbcccccccccccccc\r\n",
                        .drips = true};
    bench.config.redis_timeout = 1000;
    fake_start(&fake);
    expect_failure_after(new_ask(STORE_GET, "key"), ERROR_TIMEOUT, 1000);
    fake_stop(&fake);
}
END_TEST

/* Whatever comes, the call fails as unavailable without a time-out, and the next one does too. */
static const struct mad {
    const char *text;
    bool closes;
} mad[] = {
    {"", true},
    {"$1", true},
    {"$16\r\nLCv1", true},
    {"$16\r\nLCv1aaaabbbbbbbb\r\n:21\r\n:-1\r\n$10", true},
    {"*2\r\n$1\r\n0\r\n", true},
    {"HTTP/1.1 400 Bad Request\r\n\r\n", false},
    {"\r\n", false},
    {"$-2\r\n", false},
    {"$abc\r\n", false},
    {":12x\r\n", false},
    {"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", false},
    {"*2147483647\r\n", false},
    {"*99999999999\r\n", false},
    {"$99999999999999999999\r\n", false},
    {":1\r\n", false},                 /* bytes are no number, */
    {"*0\r\n", false},                 /* nor an array, */
    {"+OK\r\n", false},                /* nor a status, */
    {"$-1\r\n", false},                /* nor nothing; */
    {"$1\r\nx\r\n$1\r\nx\r\n", false}, /* a length is no string, */
    {"$1\r\nx\r\n:-1\r\n", false},     /* nor below 0 */
    {"$1\r\nx\r\n$-1\r\n", false},     /* nor nothing */
};

enum { MAD = sizeof(mad) / sizeof(mad[0]) };

START_TEST(a_mad_server_does_no_harm)
{
    struct fake fake = {.greeting = "+OK\r\n", .text = mad[_i].text, .closes = mad[_i].closes};
    fake_start(&fake);
    for (int i = 0; i < 3; i++) {
        expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
        pass(150);
    }
    fake_stop(&fake);
}
END_TEST

/* Answers that nobody asked for, after one that was. */
START_TEST(more_answers_than_questions_do_no_harm)
{
    static const char *const more[] = {"+OK\r\n",          ":1\r\n",  "$-1\r\n",
                                       "*1\r\n:1\r\n",     "*-1\r\n", "$3\r\nabc\r\n",
                                       "-ERR gone mad\r\n"};
    char text[64];
    snprintf(text, sizeof(text), "$0\r\n\r\n:0\r\n:-2\r\n$0\r\n\r\n%s", more[_i]);
    struct fake fake = {.greeting = "+OK\r\n", .text = text};
    fake_start(&fake);
    for (int i = 0; i < 3; i++) {
        struct ask ask = new_ask(STORE_GET, "key");
        run(&ask);
        ck_assert(ask.call.result.status == STORE_MISS ||
                  ask.call.result.error == ERROR_UNAVAILABLE);
        pass(150);
    }
    fake_await(&fake, 2);
    fake_stop(&fake);
}
END_TEST

static struct ask following;

static void ask_following(struct store_call *call)
{
    ck_assert_int_eq(call->result.status, STORE_MISS);
    submit(bench.loop, &following);
}

/* It comes with the answer to a GET, whose client deletes next. */
START_TEST(an_answer_from_before_the_question_is_none)
{
    struct fake fake = {.greeting = "+OK\r\n", .text = "$0\r\n\r\n:0\r\n:-2\r\n$0\r\n\r\n:1\r\n"};
    struct ask get = new_ask(STORE_GET, "key");
    following = new_ask(STORE_DELETE, "key");
    fake_start(&fake);
    get.call.request.loop = bench.loop;
    get.call.done = ask_following;
    get.call.request.key = get.key;
    ck_assert_int_eq(store_submit(bench.store, &get.call), STORE_PENDING);
    ck_assert_int_eq(wait_for(bench.loop, &following), STORE_FAILED);
    ck_assert_int_eq(following.call.result.error, ERROR_UNAVAILABLE);
    fake_stop(&fake);
}
END_TEST

/* Each method against each kind of answer that it does not expect. */
START_TEST(every_method_survives_every_kind_of_answer)
{
    static const char *const kinds[] = {"+OK\r\n",
                                        ":7\r\n",
                                        "$-1\r\n",
                                        "$2\r\nxy\r\n",
                                        "*0\r\n",
                                        "*2\r\n:1\r\n:2\r\n",
                                        "*2\r\n$1\r\n0\r\n*1\r\n:3\r\n",
                                        "-ERR no\x01way\x7f\r\n",
                                        "-LOADING later\r\n"};
    char text[128];
    snprintf(text, sizeof(text), "%s%s%s", kinds[_i], kinds[_i], kinds[_i]);
    struct fake fake = {.greeting = "+OK\r\n", .text = text};
    bench.config.redis_timeout = 1000; /* some await more answers than there are */
    fake_start(&fake);
    for (enum store_op op = STORE_GET; op <= STORE_PERSIST; op++) {
        struct ask ask = op == STORE_PUT ? new_put("key", "value") : new_ask(op, "key");
        enum store_status status = run(&ask);
        ck_assert(!(op == STORE_GET && status == STORE_OK));
        for (const char *c = ask.call.result.text; status == STORE_FAILED && *c != '\0'; c++)
            ck_assert(*c >= 0x20 && *c <= 0x7e);
        pass(120);
    }
    fake_stop(&fake);
}
END_TEST

/* A keyspace without end: INSPECT answers what it has seen, CLEAR how far it came. */
START_TEST(a_scan_without_end_ends)
{
    struct fake fake = {.greeting = "+OK\r\n", .text = "*2\r\n$1\r\n7\r\n*0\r\n"};
    bench.config.redis_timeout = 1500;
    fake_start(&fake);
    struct ask inspect = new_ask(STORE_INSPECT, "");
    ck_assert_int_eq(run(&inspect), STORE_OK);
    ck_assert(inspect.call.result.approximate);
    ck_assert_int_ge(inspect.took, 5 * 1500);
    expect_failure_after(new_ask(STORE_CLEAR, ""), ERROR_TIMEOUT, 5 * 1500);
    fake_stop(&fake);
}
END_TEST

static uint8_t *pattern(size_t length)
{
    uint8_t *bytes = malloc(length);
    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)((uint32_t)i * 2654435761u >> 24);
    return bytes;
}

/* Large values go out in pieces; what was asked before and after keeps its place. */
START_TEST(large_values_and_small_share_a_connection)
{
    enum { LARGE = 30 * 1024 * 1024 + 7, SMALL = 40 };
    uint8_t *bytes = pattern(LARGE);
    struct ask large[2] = {new_put_of("large", 5, bytes, LARGE),
                           new_put_of("large2", 6, bytes, LARGE)};
    struct ask get = new_ask(STORE_GET, "large"), puts[SMALL], gets[SMALL];
    char key[32];
    start();
    for (int i = 0; i < SMALL; i++) {
        snprintf(key, sizeof(key), "small-%d", i);
        puts[i] = new_put(key, key);
        gets[i] = new_ask(STORE_GET, key);
        submit(bench.loop, &puts[i]);
        if (i % 20 == 0)
            submit(bench.loop, &large[i / 20]);
        submit(bench.loop, &gets[i]);
    }
    submit(bench.loop, &get);
    for (int i = 0; i < SMALL; i++) {
        snprintf(key, sizeof(key), "small-%d", i);
        ck_assert_int_eq(wait_for(bench.loop, &puts[i]), STORE_OK);
        wait_for(bench.loop, &gets[i]);
        expect_bytes(&gets[i], key, strlen(key));
    }
    ck_assert_int_eq(wait_for(bench.loop, &large[0]), STORE_OK);
    ck_assert_int_eq(wait_for(bench.loop, &large[1]), STORE_OK);
    wait_for(bench.loop, &get);
    expect_bytes(&get, bytes, LARGE);
    ck_assert_int_eq(raw_number("STRLEN liara/large2"), 16 + LARGE);
    free(bytes);
}
END_TEST

/* Sizes around the borders of the pieces that go out and of the slices that come in. */
START_TEST(values_of_every_size_are_whole)
{
    enum { PIECE = 256 * 1024, SLICE = 1024 * 1024 };
    static const size_t sizes[] = {
        0,
        1,
        15,
        16,
        PIECE - 100,
        PIECE - 1,
        PIECE,
        PIECE + 1,
        2 * PIECE - 60,
        SLICE - 18,
        SLICE - 2,
        2 * SLICE - 18,
        4 * SLICE - 18,
        4 * SLICE + 1,
        5 * SLICE - 18,
    };
    uint8_t *bytes = pattern(6 * SLICE);
    start();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t length = sizes[i]; length < sizes[i] + 5; length++) {
            struct ask put_it = new_put_of("key", 3, bytes, length),
                       get = new_ask(STORE_GET, "key");
            put_it.call.request.overwrite = true;
            expect_status(put_it, STORE_OK);
            run(&get);
            expect_bytes(&get, bytes, length);
        }
    }
    free(bytes);
}
END_TEST

struct racer {
    unsigned index;
    pthread_t thread;
    pthread_barrier_t *barrier;
    bool stored[RACE_KEYS];
};

/* A large entry that is damaged somewhere, beyond the first slice. */
START_TEST(damage_is_found_in_every_slice)
{
    enum { LENGTH = 5 * 1024 * 1024 };
    uint8_t *bytes = pattern(LENGTH);
    start();
    for (long long at = 700000; at < LENGTH; at += 1000000) {
        expect_status(new_put_of("key", 3, bytes, LENGTH), STORE_OK);
        uint8_t wrong = (uint8_t)~bytes[at];
        raw_number("SETRANGE liara/key %lld %b", 16 + at, &wrong, (size_t)1);
        expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
        ck_assert_int_eq(raw_number("EXISTS liara/key"), 0);
    }
    expect_status(new_put_of("key", 3, bytes, LENGTH), STORE_OK);
    raw_number("APPEND liara/key x");
    expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
    ck_assert_int_eq(raw_number("EXISTS liara/key"), 0);
    free(bytes);
}
END_TEST

/* Replaces one entry again and again by values of different lengths, each one byte all over. */
static void *replace(void *arg)
{
    struct racer *racer = arg;
    struct loop *loop = loop_new(racer->index);
    ck_assert(store_attach(bench.store, loop));
    for (unsigned i = 0; i < REPLACED; i++) {
        size_t length = 500000 + i * 7 % 5 * 900000;
        struct ask ask = new_ask(STORE_PUT, "key");
        ask.call.request.value = value_new(ask.key, 3, (uint32_t)length);
        memset(value_bytes(ask.call.request.value), (int)i, length);
        ask.call.request.value->flags = (uint32_t)length;
        ask.call.request.overwrite = true;
        submit(loop, &ask);
        ck_assert_int_eq(wait_for(loop, &ask), STORE_OK);
    }
    store_detach(bench.store, loop);
    loop_free(loop);
    return NULL;
}

/* Its slices are never of two values, and it is never taken for damaged. */
START_TEST(an_entry_that_is_replaced_is_whole)
{
    struct racer racer = {.index = 1};
    start();
    put("key", "first");
    ck_assert_int_eq(pthread_create(&racer.thread, NULL, replace, &racer), 0);
    for (int i = 0; i < REPLACED; i++) {
        struct ask get = new_ask(STORE_GET, "key"), head = new_ask(STORE_HEAD, "key");
        ck_assert_int_eq(run(&head), STORE_OK);
        ck_assert(head.call.result.flags == head.call.result.length ||
                  head.call.result.length == 5);
        if (run(&get) != STORE_OK || get.call.result.value->length == 5) {
            value_unref(get.call.result.value);
            continue;
        }
        const uint8_t *bytes = value_bytes(get.call.result.value);
        uint32_t length = get.call.result.value->length;
        ck_assert_uint_eq(get.call.result.value->flags, length);
        ck_assert(memcmp(bytes, bytes + 1, length - 1) == 0);
        value_unref(get.call.result.value);
    }
    pthread_join(racer.thread, NULL);
    ck_assert_int_eq(logged("damaged"), 0);
    ck_assert_int_eq(raw_number("EXISTS liara/key"), 1);
}
END_TEST

START_TEST(a_value_beyond_the_servers_limit_is_refused)
{
    enum { LIMIT = 1024 * 1024 };
    uint8_t *bytes = pattern(3 * LIMIT);
    start_server("--proto-max-bulk-len", "1mb");
    open_store();
    put("key", "value");
    struct ask fits = new_put_of("fits", 4, bytes, LIMIT - 16);
    struct ask above = new_put_of("above", 5, bytes, LIMIT - 15);
    expect_status(fits, STORE_OK);
    expect_failure(above, ERROR_TOO_LARGE);
    /* Lowered behind our back: the server hangs up, and is used again. */
    close_store();
    raw_number("CONFIG SET proto-max-bulk-len 3mb");
    open_store();
    put("other", "value");
    raw_number("CONFIG SET proto-max-bulk-len 1mb");
    struct ask late = new_put_of("late", 4, bytes, 2 * LIMIT);
    ck_assert_int_eq(run(&late), STORE_FAILED);
    ck_assert(late.call.result.error == ERROR_TOO_LARGE ||
              late.call.result.error == ERROR_UNAVAILABLE);
    expect_back("key", "value");
    free(bytes);
}
END_TEST

START_TEST(a_full_server_is_no_space)
{
    start();
    put("key", "value");
    raw_number("CONFIG SET maxmemory 1");
    struct ask ask = new_put("other", "value");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.result.error, ERROR_NO_SPACE);
    ck_assert_msg(strstr(ask.call.result.text, "OOM") != NULL, "%s", ask.call.result.text);
    expect_get("key", "value");
}
END_TEST

START_TEST(a_replica_is_read_only)
{
    start();
    put("key", "value");
    raw_number("REPLICAOF 127.0.0.1 1");
    expect_failure(new_put("other", "value"), ERROR_UNAVAILABLE);
    expect_failure(new_ask(STORE_CLEAR, ""), ERROR_UNAVAILABLE);
    expect_get("key", "value");
    raw_number("REPLICAOF NO ONE");
    put("other", "value");
}
END_TEST

START_TEST(what_is_not_allowed_is_denied)
{
    start_server();
    raw_number("ACL SETUSER default -set -unlink -config -eval");
    open_store();
    expect_failure(new_put("key", "value"), ERROR_DENIED);
    expect_failure(new_ask(STORE_DELETE, "key"), ERROR_DENIED);
    expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
    struct ask persist = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&persist), STORE_OK);
    ck_assert(!persist.call.result.durable);
}
END_TEST

START_TEST(a_server_without_unlink_is_asked_to_del)
{
    start_server("--rename-command", "UNLINK", "");
    open_store();
    put("one", "1");
    put("two", "2");
    put("three", "3");
    put("four", "4");
    struct ask deletes[2] = {new_ask(STORE_DELETE, "one"), new_ask(STORE_DELETE, "two")};
    submit(bench.loop, &deletes[0]);
    submit(bench.loop, &deletes[1]);
    ck_assert_int_eq(wait_for(bench.loop, &deletes[0]), STORE_OK);
    ck_assert_int_eq(wait_for(bench.loop, &deletes[1]), STORE_OK);
    expect_status(new_ask(STORE_DELETE, "two"), STORE_MISS);
    struct ask clear = new_ask(STORE_CLEAR, "");
    ck_assert_int_eq(run(&clear), STORE_OK);
    ck_assert_uint_eq(clear.call.result.entries, 2);
}
END_TEST

START_TEST(clear_goes_by_del_where_it_must)
{
    start_server("--rename-command", "UNLINK", "");
    open_store();
    put("one", "1");
    struct ask clear = new_ask(STORE_CLEAR, "");
    ck_assert_int_eq(run(&clear), STORE_OK);
    ck_assert_uint_eq(clear.call.result.entries, 1);
}
END_TEST

static bool persists(void)
{
    struct ask ask = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call.result.durable;
}

START_TEST(persist_says_what_the_server_does)
{
    start();
    ck_assert(!persists());
    raw_number("CONFIG SET appendfsync always");
    ck_assert(!persists());
    close_store();
    kill_server();
    start_server("--appendonly", "yes", "--appendfsync", "always");
    open_store();
    put("key", "value");
    ck_assert(persists());
    kill_server();
    start_server("--appendonly", "yes", "--appendfsync", "everysec");
    expect_back("key", "value");
    ck_assert(!persists());
}
END_TEST

START_TEST(detaching_fails_what_is_on_its_way)
{
    enum { LARGE = 4 * 1024 * 1024 };
    uint8_t *bytes = pattern(LARGE);
    struct ask asks[STORE_PERSIST + 2];
    start();
    put("key", "value");
    kill(bench.server, SIGSTOP);
    for (enum store_op op = STORE_GET; op <= STORE_PERSIST; op++)
        asks[op] = op == STORE_PUT ? new_put("other", "value") : new_ask(op, "key");
    asks[STORE_PERSIST + 1] = new_put_of("large", 5, bytes, LARGE);
    for (int i = 0; i < STORE_PERSIST + 2; i++)
        submit(bench.loop, &asks[i]);
    pass(_i * 30); /* before and after they were sent */
    store_detach(bench.store, bench.loop);
    for (int i = 0; i < STORE_PERSIST + 2; i++) {
        ck_assert_int_eq(asks[i].finished, 1);
        ck_assert_int_eq(asks[i].call.result.status, STORE_FAILED);
        ck_assert_int_eq(asks[i].call.result.error, ERROR_UNAVAILABLE);
    }
    ck_assert_uint_eq(value_total(), 0);
    free(bytes);
}
END_TEST

START_TEST(detaching_while_connecting_is_fine)
{
    open_store();
    struct ask ask = new_ask(STORE_GET, "key");
    submit(bench.loop, &ask);
    store_detach(bench.store, bench.loop);
    ck_assert_int_eq(ask.finished, 1);
    ck_assert_int_eq(ask.call.result.status, STORE_FAILED);
    struct ask none = new_put("key", "value");
    ck_assert_int_eq(run(&none), STORE_FAILED);
}
END_TEST

/* A done() that asks again at once, also where it is told that the server is gone. */
static struct ask chain[2];
static int chained;

static void chain_done(struct store_call *call)
{
    (void)call;
    if (++chained >= 50)
        return;
    struct ask *ask = &chain[chained % 2];
    *ask = new_ask(STORE_GET, "key");
    ask->call.request.loop = bench.loop;
    ask->call.done = chain_done;
    ask->call.request.key = ask->key;
    if (store_submit(bench.store, &ask->call) != STORE_PENDING)
        chained = 1000;
    else if (chained == 25)
        kill(bench.server, SIGKILL);
}

START_TEST(who_is_answered_may_ask_at_once)
{
    start();
    chain[0] = new_ask(STORE_GET, "key");
    chain[0].call.request.loop = bench.loop;
    chain[0].call.done = chain_done;
    chain[0].call.request.key = chain[0].key;
    ck_assert_int_eq(store_submit(bench.store, &chain[0].call), STORE_PENDING);
    int64_t end = clock_now() + WAIT_MS;
    while (chained < 50 && clock_now() < end)
        loop_step(bench.loop, 100);
    ck_assert_int_ge(chained, 50);
}
END_TEST

static void *race(void *arg)
{
    struct racer *racer = arg;
    struct loop *loop = loop_new(racer->index);
    char key[32];
    ck_assert(store_attach(bench.store, loop));
    for (int i = 0; i < RACE_KEYS; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        struct ask ask = new_put_of(key, strlen(key), &racer->index, sizeof(racer->index));
        pthread_barrier_wait(racer->barrier);
        submit(loop, &ask);
        enum store_status status = wait_for(loop, &ask);
        ck_assert_msg(status == STORE_OK || status == STORE_EXISTS, "%s", ask.call.result.text);
        racer->stored[i] = status == STORE_OK;
    }
    store_detach(bench.store, loop);
    loop_free(loop);
    return NULL;
}

START_TEST(of_many_loops_one_stores)
{
    static struct racer racers[RACERS];
    pthread_barrier_t barrier;
    start();
    pthread_barrier_init(&barrier, NULL, RACERS);
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){.index = i + 1, .barrier = &barrier};
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < RACERS; i++)
        pthread_join(racers[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    for (int k = 0; k < RACE_KEYS; k++) {
        unsigned winner = 0, winners = 0;
        char key[32];
        snprintf(key, sizeof(key), "key-%d", k);
        for (unsigned i = 0; i < RACERS; i++) {
            winners += racers[i].stored[k];
            winner = racers[i].stored[k] ? racers[i].index : winner;
        }
        ck_assert_uint_eq(winners, 1);
        struct ask get = new_ask(STORE_GET, key);
        run(&get);
        expect_bytes(&get, &winner, sizeof(winner));
    }
}
END_TEST

/* What the loops of the next test have met since the test looked last. */
static struct outage {
    atomic_bool over;
    atomic_int answered[RACERS + 1], failed[RACERS + 1]; /* by their numbers */
} outage;

static void *endure(void *arg)
{
    struct racer *racer = arg;
    struct loop *loop = loop_new(racer->index);
    ck_assert(store_attach(bench.store, loop));
    while (!atomic_load(&outage.over)) {
        struct ask get = new_ask(STORE_GET, "key");
        submit(loop, &get);
        wait_for(loop, &get);
        bool ok = get.call.result.status == STORE_OK;
        if (ok)
            expect_bytes(&get, "value", 5);
        atomic_fetch_add(ok ? &outage.answered[racer->index] : &outage.failed[racer->index], 1);
        loop_step(loop, 5);
    }
    store_detach(bench.store, loop);
    loop_free(loop);
    return NULL;
}

/* Waits until each loop has met that anew, twice: the first may have been asked before. */
static void all_meet(atomic_int *met)
{
    int64_t end = clock_now() + WAIT_MS;
    for (unsigned i = 1; i <= RACERS; i++) {
        int before = atomic_load(&met[i]);
        while (atomic_load(&met[i]) < before + 2 && clock_now() < end)
            usleep(1000);
        ck_assert_int_ge(atomic_load(&met[i]), before + 2);
    }
}

/* Many loops lose the server and find it again: one line each way. */
START_TEST(an_outage_is_logged_once)
{
    static struct racer racers[RACERS];
    start();
    put("key", "value");
    close_store();
    open_impatient_store();
    store_detach(bench.store, bench.loop); /* it does not run while this waits */
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){.index = i + 1};
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, endure, &racers[i]), 0);
    }
    all_meet(outage.answered);
    kill(bench.server, SIGSTOP);
    all_meet(outage.failed);
    kill(bench.server, SIGCONT);
    all_meet(outage.answered);
    atomic_store(&outage.over, true);
    for (unsigned i = 0; i < RACERS; i++)
        pthread_join(racers[i].thread, NULL);
    ck_assert_int_eq(logged("trying again"), 1);
    ck_assert_int_eq(logged("back again"), 1);
    ck_assert(store_attach(bench.store, bench.loop));
}
END_TEST

/* A port of 127.0.0.1 that nobody has, for now. */
static uint16_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    close(fd);
    return ntohs(address.sin_port);
}

/* Without /etc/hosts it may be no name. */
static bool is_known(const char *host)
{
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, NULL, NULL, &found) != 0)
        return false;
    freeaddrinfo(found);
    return true;
}

START_TEST(a_server_has_a_host_and_a_port)
{
    static char localhost[] = "localhost", empty[] = "";
    char port[8];
    bench.config.redis_port = free_port();
    snprintf(port, sizeof(port), "%u", (unsigned)bench.config.redis_port);
    start_server("--port", port, "--bind", "127.0.0.1");
    bench.config.redis_socket = empty;
    open_store();
    put("key", "value");
    if (is_known(localhost)) { /* it may also be ::1, where this server does not listen */
        close_store();
        bench.config.redis_host = localhost;
        open_store();
        expect_get("key", "value");
    }
    kill_server();
    pass(50);
    expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
    start_server("--port", port, "--bind", "127.0.0.1");
    until_it_answers();
    put("key", "after");
}
END_TEST

/* A listener whose queue is full, so that further connections hang. */
static void fill_listener(int *listener, int *clients, const char *host, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    *listener = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(*listener, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(listen(*listener, 0), 0);
    for (int i = 0; i < 8; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(clients[i], (struct sockaddr *)&address, sizeof(address)) != 0)
            ck_assert_int_eq(errno, EINPROGRESS);
    }
}

static void empty_listener(int listener, const int *clients)
{
    for (int i = 0; i < 8; i++)
        close(clients[i]);
    close(listener);
}

START_TEST(a_connection_is_not_waited_for_longer_than_that)
{
    static char empty[] = "";
    int listener, clients[8];
    bench.config.redis_port = free_port();
    bench.config.redis_socket = empty;
    bench.config.redis_connect_timeout = 100;
    fill_listener(&listener, clients, "127.0.0.1", (uint16_t)bench.config.redis_port);
    open_store();
    expect_failure_after(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE, 50);
    expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE);
    ck_assert_int_eq(logged("no connection within 100 ms"), 1);
    empty_listener(listener, clients);
}
END_TEST

START_TEST(what_was_read_is_answered_without_the_server)
{
    start_with_memory();
    ck_assert_int_eq(raw_number("DEL liara/key"), 1);
    expect_copy("key", "value");
    kill_server();
    pass(50);
    expect_copy("key", "value");
    expect_failure(new_ask(STORE_GET, "other"), ERROR_UNAVAILABLE);
    expect_failure(new_ask(STORE_DELETE, "key"), ERROR_UNAVAILABLE);
    expect_failure(new_ask(STORE_GET, "key"), ERROR_UNAVAILABLE); /* it may be deleted */
}
END_TEST

/* Whatever the change of this daemon's is answered, the server is asked again. */
START_TEST(a_change_ends_what_others_did_behind_its_back)
{
    start_with_memory();
    struct ask over = new_put("key", "newer");
    over.call.request.overwrite = true;
    expect_status(over, STORE_OK);
    expect_get("key", "newer");
    expect_copy("key", "newer");
    char entry[16 + 5];
    raw_string(entry, sizeof(entry), "GET liara/key");
    expect_status(new_ask(STORE_DELETE, "key"), STORE_OK);
    expect_status(new_ask(STORE_GET, "key"), STORE_MISS);

    put("key", "other");
    expect_get("key", "other");
    raw_number("SET liara/key %b", entry, sizeof(entry));
    expect_copy("key", "other");
    expect_status(new_put("key", "third"), STORE_EXISTS);
    expect_get("key", "newer");
}
END_TEST

START_TEST(a_change_that_the_server_refuses_leaves_nothing_open)
{
    start_with_memory();
    raw_number("CONFIG SET maxmemory 1");
    struct ask over = new_put("key", "newer");
    over.call.request.overwrite = true;
    expect_failure(over, ERROR_NO_SPACE);
    expect_get("key", "value");
    expect_copy("key", "value");
}
END_TEST

/* The server may make it later: what is read meanwhile is not kept. */
START_TEST(a_change_whose_answer_is_lost_may_still_come)
{
    char entry[16 + 5];
    start_with_memory();
    raw_string(entry, sizeof(entry), "GET liara/key");
    struct ask over = new_put("key", "newer");
    over.call.request.overwrite = true;
    kill(bench.server, SIGSTOP);
    submit(bench.loop, &over);
    pass(50);
    kill_server();
    ck_assert_int_eq(wait_for(bench.loop, &over), STORE_FAILED);
    start_server();
    raw_number("SET liara/key %b", entry, sizeof(entry));
    expect_back("key", "value");
    struct ask get = new_ask(STORE_GET, "key");
    submit(bench.loop, &get);
    ck_assert_int_eq(get.finished, 0);
    wait_for(bench.loop, &get);
    expect_bytes(&get, "value", 5);
}
END_TEST

/* Until the server has answered, another client may hear from it what comes of the change. */
START_TEST(beside_a_change_no_copy_answers)
{
    start_with_memory();
    kill(bench.server, SIGSTOP);
    struct ask change = _i == 0   ? new_put("key", "newer")
                        : _i == 1 ? new_ask(STORE_DELETE, "key")
                                  : new_ask(STORE_CLEAR, "ke");
    struct ask get = new_ask(STORE_GET, "key"), head = new_ask(STORE_HEAD, "key");
    change.call.request.overwrite = true;
    submit(bench.loop, &change);
    pass(50);
    submit(bench.loop, &get);
    submit(bench.loop, &head);
    ck_assert_int_eq(get.finished, 0);
    ck_assert_int_eq(head.finished, 0);
    kill(bench.server, SIGCONT);
    ck_assert_int_eq(wait_for(bench.loop, &change), STORE_OK);
    enum store_status status = wait_for(bench.loop, &get);
    ck_assert(status == STORE_OK || _i > 0);
    if (status == STORE_OK)
        value_unref(get.call.result.value);
    wait_for(bench.loop, &head);
    if (_i == 0)
        expect_get("key", "newer");
    else
        expect_status(new_ask(STORE_GET, "key"), STORE_MISS);
}
END_TEST

/* An entry that is another with each look: what is told of it is never put together. */
START_TEST(an_entry_that_changes_all_the_time_is_busy)
{
    struct fake fake = {.greeting = "+OK\r\n",
                        .text = "$16\r\nLCv1aaaabbbbbbbb\r\n:16\r\n:-1\r\n"
                                "$16\r\nLCv1aaaacccccccc\r\n"};
    fake_start(&fake);
    expect_failure(new_ask(STORE_HEAD, "key"), ERROR_BUSY);
    expect_failure(new_ask(STORE_GET, "key"), ERROR_BUSY);
    fake_stop(&fake);
}
END_TEST

/* A call by the connection alone, without the backend. */
struct ping {
    struct redis_op op;
    struct store_call call;
    int finished;
};

static void send_ping(struct redis_op *op)
{
    struct redis_word ping = redis_text("PING");
    redis_op_command(op, &ping, 1);
}

static void take_ping(struct redis_op *op, struct redis_reply *reply)
{
    ck_assert_int_eq(reply->type, REDIS_REPLY_STATUS);
    redis_op_finish(op, STORE_OK);
}

static void finish_ping(struct redis_op *op)
{
    ((struct ping *)(void *)((char *)op - offsetof(struct ping, op)))->finished++;
}

static enum store_status ping(struct redis_conn *conn, struct loop *loop)
{
    struct ping ping = {.op = {.send = send_ping, .take = take_ping, .finish = finish_ping}};
    int64_t end = clock_now() + WAIT_MS;
    ping.op.call = &ping.call;
    if (!redis_conn_start(conn, &ping.op))
        return ping.call.result.status;
    while (ping.finished == 0 && clock_now() < end)
        loop_step(loop, 100);
    ck_assert_int_eq(ping.finished, 1);
    return ping.call.result.status;
}

/* Of several addresses the next is tried at once where nobody listens, or nothing comes back. */
START_TEST(the_next_address_is_tried)
{
    struct redis_server server = {.address_count = 3,
                                  .where = "three addresses",
                                  .answer_ms = ENDLESS_MS,
                                  .connect_ms = ENDLESS_MS};
    struct loop *loop = loop_new(0);
    char port[8];
    int listener, clients[8];
    uint16_t number = free_port();
    snprintf(port, sizeof(port), "%u", (unsigned)number);
    start_server("--port", port, "--bind", "127.0.0.3");
    for (int i = 0; i < 3; i++) {
        struct sockaddr_in *address = (struct sockaddr_in *)&server.addresses[i].storage;
        *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(number)};
        address->sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)i);
        server.addresses[i].length = sizeof(*address);
    }

    struct redis_conn *conn = redis_conn_new(&server, loop);
    ck_assert_int_eq(ping(conn, loop), STORE_OK);
    redis_conn_free(conn);
    ck_assert_int_eq(logged("Redis at"), 0);

    fill_listener(&listener, clients, "127.0.0.2", number);
    server.connect_ms = 100;
    int64_t end = clock_now() + WAIT_MS;
    conn = redis_conn_new(&server, loop);
    ck_assert_int_eq(ping(conn, loop), STORE_FAILED);
    while (ping(conn, loop) != STORE_OK) {
        ck_assert_int_lt(clock_now(), end);
        loop_step(loop, 10);
    }
    redis_conn_free(conn);
    empty_listener(listener, clients);
    loop_free(loop);
}
END_TEST

static TCase *new_case(Suite *suite, const char *name)
{
    TCase *tcase = suite_case(suite, name, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    return tcase;
}

static void add_entries(Suite *suite)
{
    TCase *tcase = new_case(suite, "entries");
    tcase_add_test(tcase, an_entry_is_one_string_under_the_prefix);
    tcase_add_test(tcase, keys_are_bytes);
    tcase_add_test(tcase, clear_takes_only_its_own);
    tcase_add_test(tcase, inspect_extrapolates);
    tcase_add_test(tcase, what_is_foreign_is_a_miss_and_stays);
    tcase_add_test(tcase, what_is_damaged_is_a_miss_and_deleted);
    tcase_add_test(tcase, a_life_is_the_shorter_of_two);
    tcase_add_test(tcase, past_its_end_it_is_gone);
    tcase_add_test(tcase, large_values_and_small_share_a_connection);
    tcase_add_test(tcase, values_of_every_size_are_whole);
    tcase_add_test(tcase, damage_is_found_in_every_slice);
    tcase_add_test(tcase, an_entry_that_is_replaced_is_whole);
    tcase_add_test(tcase, an_entry_that_changes_all_the_time_is_busy);
    tcase_add_test(tcase, persist_says_what_the_server_does);
    tcase_add_test(tcase, of_many_loops_one_stores);
}

static void add_memory(Suite *suite)
{
    TCase *tcase = new_case(suite, "memory");
    tcase_add_test(tcase, what_was_read_is_answered_without_the_server);
    tcase_add_test(tcase, a_change_ends_what_others_did_behind_its_back);
    tcase_add_loop_test(tcase, beside_a_change_no_copy_answers, 0, 3);
    tcase_add_test(tcase, a_change_that_the_server_refuses_leaves_nothing_open);
    tcase_add_test(tcase, a_change_whose_answer_is_lost_may_still_come);
}

static void add_settings(Suite *suite)
{
    TCase *tcase = new_case(suite, "settings");
    tcase_add_test(tcase, the_password_is_used);
    tcase_add_test(tcase, a_wrong_password_is_refused);
    tcase_add_test(tcase, a_missing_password_is_told);
    tcase_add_test(tcase, a_needless_password_is_told);
    tcase_add_test(tcase, a_server_that_repeats_the_password_is_not_repeated);
    tcase_add_test(tcase, the_refusal_ends_with_its_reason);
    tcase_add_test(tcase, the_database_is_used);
    tcase_add_test(tcase, a_database_beyond_the_last_is_told);
    tcase_add_test(tcase, a_bad_configuration_is_explained);
    tcase_add_test(tcase, a_server_has_a_host_and_a_port);
}

static void add_refusals(Suite *suite)
{
    TCase *tcase = new_case(suite, "refusals");
    tcase_add_test(tcase, a_value_beyond_the_servers_limit_is_refused);
    tcase_add_test(tcase, a_full_server_is_no_space);
    tcase_add_test(tcase, a_replica_is_read_only);
    tcase_add_test(tcase, what_is_not_allowed_is_denied);
    tcase_add_test(tcase, a_server_without_unlink_is_asked_to_del);
    tcase_add_test(tcase, clear_goes_by_del_where_it_must);
}

static void add_outages(Suite *suite)
{
    TCase *tcase = new_case(suite, "outages");
    tcase_add_test(tcase, a_server_that_is_not_there_is_waited_for);
    tcase_add_test(tcase, a_stopped_server_costs_the_timeout_and_no_more);
    tcase_add_test(tcase, a_killed_server_is_used_again);
    tcase_add_test(tcase, an_idle_connection_may_be_closed);
    tcase_add_test(tcase, a_server_that_never_answers_is_no_server);
    tcase_add_test(tcase, a_server_that_never_answers_is_not_waited_for);
    tcase_add_test(tcase, a_server_that_falls_silent_costs_the_timeout);
    tcase_add_test(tcase, a_server_that_drips_costs_the_timeout);
    tcase_add_loop_test(tcase, a_mad_server_does_no_harm, 0, MAD);
    tcase_add_loop_test(tcase, more_answers_than_questions_do_no_harm, 0, 7);
    tcase_add_test(tcase, an_answer_from_before_the_question_is_none);
    tcase_add_loop_test(tcase, every_method_survives_every_kind_of_answer, 0, 9);
    tcase_add_test(tcase, a_scan_without_end_ends);
    tcase_add_test(tcase, a_connection_is_not_waited_for_longer_than_that);
    tcase_add_test(tcase, the_next_address_is_tried);
    tcase_add_test(tcase, an_outage_is_logged_once);
    tcase_add_loop_test(tcase, detaching_fails_what_is_on_its_way, 0, 3);
    tcase_add_test(tcase, detaching_while_connecting_is_fine);
    tcase_add_test(tcase, who_is_answered_may_ask_at_once);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof(root), "%.40s/liara-redis-XXXXXX", tmp != NULL ? tmp : "/tmp");
    clock_start();
    if (mkdtemp(root) == NULL) {
        perror(root);
        return EXIT_FAILURE;
    }
    Suite *suite = suite_create("redis");
    add_entries(suite);
    add_memory(suite);
    add_settings(suite);
    add_refusals(suite);
    add_outages(suite);
    int result = suite_run(suite);
    remove_tree(root); /* a test that failed has left its own */
    return result;
}
