/*
 * What the tests of the filesystem store share: a store in a folder of its own, one call at a time,
 * values that follow from a number, and the store's files by name. Included once by each program.
 */
#ifndef LIARA_TESTS_FILESYSTEM_BENCH_H
#define LIARA_TESTS_FILESYSTEM_BENCH_H

#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/container_of.h"
#include "../../daemon/store/filesystem_file.h"
#include "../../daemon/store/filesystem_index.h"
#include "../../daemon/store/filesystem_log.h"
#include "../../daemon/store/filesystem_upkeep.h"
#include "../../daemon/store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATH_SIZE = 512, WAIT_MS = 60000, HOUR = 3600 * 1000, BIG = 1 << 17 };

/*
 * The three ways to sync, of all code in this program: counted, failed at will, and only pretended
 * unless a test wants them real; no test can cut the power, so they are just slow.
 */
static struct {
    atomic_int fsync, fdatasync, syncfs;
    atomic_bool fail_fsync, fail_fdatasync, fail_syncfs;
    atomic_bool real;
} syncs;

static inline int sync_with(long number, int fd, atomic_int *count, atomic_bool *fail)
{
    atomic_fetch_add(count, 1);
    if (atomic_load(fail)) {
        errno = EIO;
        return -1;
    }
    return atomic_load(&syncs.real) ? (int)syscall(number, fd) : 0;
}

int fsync(int fd)
{
    return sync_with(SYS_fsync, fd, &syncs.fsync, &syncs.fail_fsync);
}

int fdatasync(int fd)
{
    return sync_with(SYS_fdatasync, fd, &syncs.fdatasync, &syncs.fail_fdatasync);
}

int syncfs(int fd)
{
    return sync_with(SYS_syncfs, fd, &syncs.syncfs, &syncs.fail_syncfs);
}

static inline void fail_syncs(bool fail)
{
    syncs.fail_fsync = syncs.fail_fdatasync = syncs.fail_syncfs = fail;
}

static inline int sync_count(void)
{
    return syncs.fsync + syncs.fdatasync + syncs.syncfs;
}

/* The store under test, its folder, and the loop of the test's thread. Its journal's size is set
 * before it is opened: without one every value has its file at once. */
static struct bench {
    uint64_t journal_size;
    char directory[PATH_SIZE / 2];
    struct config config;
    struct store *store;
    struct loop *loop;
} bench;

static inline void open_store(void)
{
    char why[256] = "";
    bench.store = store_open(&store_filesystem, &bench.config, why, sizeof(why));
    ck_assert_msg(bench.store != NULL, "%s", why);
    bench.loop = loop_new(0);
}

static inline void close_store(void)
{
    store_close(bench.store);
    loop_free(bench.loop);
    bench.store = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

static inline void reopen_store(void)
{
    close_store();
    open_store();
}

/* A folder for the store, which is not opened yet. */
static inline void make_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(bench.directory, sizeof(bench.directory), "%s/liara-fs-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(bench.directory));
    bench.config = (struct config){
        .directory = bench.directory, .max_size = 1 << 30, .journal_size = bench.journal_size};
    log_open(LOG_LEVEL_ERROR - 1);
    clock_start();
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline void remove_folder(void)
{
    if (bench.store != NULL)
        close_store();
    nftw(bench.directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void start(void)
{
    make_folder();
    open_store();
}

struct ask {
    struct store_call call;
    bool finished;
};

static inline void ask_done(struct store_call *call)
{
    container_of(call, struct ask, call)->finished = true;
}

static inline enum store_status run(struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    ask->call.loop = bench.loop;
    ask->call.done = ask_done;
    ask->finished = false;
    ck_assert_int_eq(store_submit(bench.store, &ask->call), STORE_PENDING);
    while (!ask->finished && clock_now() < end)
        loop_step(bench.loop, 100);
    ck_assert(ask->finished);
    return ask->call.status;
}

static inline struct ask new_ask(enum store_op op, const char *key)
{
    return (struct ask){
        .call = {.op = op, .key = (const uint8_t *)key, .key_length = (uint32_t)strlen(key)}};
}

static inline enum store_status run_op(enum store_op op, const char *key)
{
    struct ask ask = new_ask(op, key);
    return run(&ask);
}

struct put {
    uint32_t seed, length; /* of the bytes */
    uint32_t flags;
    int64_t lives; /* milliseconds, 0: no end */
    bool overwrite;
};

/* Bytes that follow from a seed, so that they need not be kept. */
static inline void fill(uint8_t *bytes, uint32_t length, uint32_t seed)
{
    uint64_t x = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (uint32_t i = 0; i < length; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (uint8_t)x;
    }
}

static inline struct ask new_put(const char *key, struct put put)
{
    struct ask ask = new_ask(STORE_PUT, key);
    struct value *value = value_new(ask.call.key, ask.call.key_length, put.length);
    ck_assert_ptr_nonnull(value);
    fill(value_bytes(value), put.length, put.seed);
    value->flags = put.flags;
    value->expires = put.lives > 0 ? clock_now() + put.lives : CLOCK_NEVER;
    ask.call.value = value;
    ask.call.overwrite = put.overwrite;
    return ask;
}

static inline enum store_status put(const char *key, struct put what)
{
    struct ask ask = new_put(key, what);
    return run(&ask);
}

static inline bool has_bytes(struct value *value, uint32_t seed, uint32_t length)
{
    static uint8_t expected[BIG];
    ck_assert_uint_le(length, BIG);
    fill(expected, length, seed);
    return value->length == length && memcmp(value_bytes(value), expected, length) == 0;
}

/* Whether the key is there; if it is, it must have these bytes and flags. */
static inline bool get(const char *key, struct put expected)
{
    struct ask ask = new_ask(STORE_GET, key);
    enum store_status status = run(&ask);
    if (status == STORE_MISS)
        return false;
    ck_assert_msg(status == STORE_OK, "GET %s: %s", key, ask.call.text);
    ck_assert_msg(has_bytes(ask.call.value, expected.seed, expected.length), "wrong bytes: %s",
                  key);
    ck_assert_uint_eq(ask.call.value->flags, expected.flags);
    value_unref(ask.call.value);
    return true;
}

static inline struct store_call inspect(const char *prefix)
{
    struct ask ask = new_ask(STORE_INSPECT, prefix);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call;
}

static inline uint64_t clear(const char *prefix)
{
    struct ask ask = new_ask(STORE_CLEAR, prefix);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call.entries;
}

/* Waits until INSPECT is exact. */
static inline struct store_call inspect_exactly(void)
{
    int64_t end = clock_now() + WAIT_MS;
    struct store_call call = inspect("");
    while (call.approximate && clock_now() < end) {
        usleep(5000);
        call = inspect("");
    }
    ck_assert(!call.approximate);
    return call;
}

/* Many keys, "key-0" and on, each with a value of its own; some are longer than one read. */
static inline struct put nth(unsigned n)
{
    static const uint32_t lengths[] = {0, 1, 100, 5000, 8192, 9001, 70000};
    return (struct put){.seed = n, .length = lengths[n % 7], .flags = n * 7};
}

static inline const char *nth_key(unsigned n)
{
    static char key[32];
    snprintf(key, sizeof(key), "key-%u", n);
    return key;
}

static inline void put_many(unsigned from, unsigned to)
{
    for (unsigned n = from; n < to; n++)
        ck_assert_int_eq(put(nth_key(n), nth(n)), STORE_OK);
}

static inline unsigned get_many(unsigned from, unsigned to)
{
    unsigned found = 0;
    for (unsigned n = from; n < to; n++)
        found += get(nth_key(n), nth(n));
    return found;
}

/* Files. */
static inline const char *path_of(const char *name)
{
    static char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s/%s", bench.directory, name);
    return path;
}

static inline const char *file_of(const char *key)
{
    static char path[PATH_SIZE];
    char name[FS_NAME_SIZE];
    fs_file_name(fs_file_hash((const uint8_t *)key, strlen(key)), name);
    snprintf(path, sizeof(path), "%s/entries/%s", bench.directory, name);
    return path;
}

struct bytes {
    uint8_t *data;
    size_t length;
};

static inline struct bytes read_file(const char *path)
{
    struct bytes bytes = {.data = malloc(BIG)};
    int fd = open(path, O_RDONLY);
    ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
    ssize_t got = read(fd, bytes.data, BIG);
    ck_assert(got >= 0 && got < BIG);
    bytes.length = (size_t)got;
    close(fd);
    return bytes;
}

static inline void write_file(const char *path, const void *data, size_t length)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
    ck_assert_int_eq(write(fd, data, length), (ssize_t)length);
    close(fd);
}

static inline bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static inline unsigned files_in(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);
    ck_assert_ptr_nonnull(dir);
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* Takes the mark of a clean close away, as if the daemon had been killed. */
static inline void make_unclean(void)
{
    const char *path = path_of("index");
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(truncate(path, st.st_size - (off_t)sizeof(struct fs_record)), 0);
}

static inline void limit(int what, rlim_t number, struct rlimit *before)
{
    ck_assert_int_eq(getrlimit(what, before), 0);
    const struct rlimit limited = {.rlim_cur = number, .rlim_max = before->rlim_max};
    ck_assert_int_eq(setrlimit(what, &limited), 0);
}

static inline void wait_until_gone(const char *key)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s", file_of(key));
    for (int64_t end = clock_now() + WAIT_MS; exists(path) && clock_now() < end;)
        usleep(10000);
    ck_assert(!exists(path));
}

static inline enum store_status persist(void)
{
    return run_op(STORE_PERSIST, "");
}

static inline off_t index_size(void)
{
    struct stat st;
    ck_assert_int_eq(stat(path_of("index"), &st), 0);
    return st.st_size;
}

static inline int64_t end_of(const char *key)
{
    struct ask ask = new_ask(STORE_HEAD, key);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call.expires;
}

#endif
