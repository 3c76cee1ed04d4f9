/*
 * What the filesystem store promises beyond the contract of all stores (test_store.c): damage,
 * sudden ends, full disks and failing syncs, and the bound on what it takes up.
 */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/container_of.h"
#include "../../daemon/store/filesystem_file.h"
#include "../../daemon/store/filesystem_index.h"
#include "../../daemon/store/filesystem_log.h"
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

enum { PATH_SIZE = 512, WAIT_MS = 20000, HOUR = 3600 * 1000, BIG = 1 << 17 };

/*
 * The three ways to sync, of all code in this program: counted, failed at will, and only pretended
 * unless a test wants them real; no test can cut the power, so they are just slow.
 */
static struct {
    atomic_int fsync, fdatasync, syncfs;
    atomic_bool fail_fsync, fail_fdatasync, fail_syncfs;
    atomic_bool real;
} syncs;

static int sync_with(long number, int fd, atomic_int *count, atomic_bool *fail)
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

static void fail_syncs(bool fail)
{
    syncs.fail_fsync = syncs.fail_fdatasync = syncs.fail_syncfs = fail;
}

static int sync_count(void)
{
    return syncs.fsync + syncs.fdatasync + syncs.syncfs;
}

/* The store under test, its folder, and the loop of the test's thread. */
static struct bench {
    char directory[PATH_SIZE / 2];
    struct config config;
    struct store *store;
    struct loop *loop;
} bench;

static void open_store(void)
{
    char why[256] = "";
    bench.store = store_open(&store_filesystem, &bench.config, why, sizeof(why));
    ck_assert_msg(bench.store != NULL, "%s", why);
    bench.loop = loop_new(0);
}

static void close_store(void)
{
    store_close(bench.store);
    loop_free(bench.loop);
    bench.store = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

static void reopen_store(void)
{
    close_store();
    open_store();
}

/* A folder for the store, which is not opened yet. */
static void make_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(bench.directory, sizeof(bench.directory), "%s/liara-fs-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(bench.directory));
    bench.config = (struct config){.directory = bench.directory, .max_size = 1 << 30};
    log_open(LOG_LEVEL_ERROR - 1);
    clock_start();
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_folder(void)
{
    if (bench.store != NULL)
        close_store();
    nftw(bench.directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void start(void)
{
    make_folder();
    open_store();
}

struct ask {
    struct store_call call;
    bool finished;
};

static void ask_done(struct store_call *call)
{
    container_of(call, struct ask, call)->finished = true;
}

static enum store_status run(struct ask *ask)
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

static struct ask new_ask(enum store_op op, const char *key)
{
    return (struct ask){
        .call = {.op = op, .key = (const uint8_t *)key, .key_length = (uint32_t)strlen(key)}};
}

static enum store_status run_op(enum store_op op, const char *key)
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
static void fill(uint8_t *bytes, uint32_t length, uint32_t seed)
{
    uint64_t x = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (uint32_t i = 0; i < length; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (uint8_t)x;
    }
}

static struct ask new_put(const char *key, struct put put)
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

static enum store_status put(const char *key, struct put what)
{
    struct ask ask = new_put(key, what);
    return run(&ask);
}

static bool has_bytes(struct value *value, uint32_t seed, uint32_t length)
{
    static uint8_t expected[BIG];
    ck_assert_uint_le(length, BIG);
    fill(expected, length, seed);
    return value->length == length && memcmp(value_bytes(value), expected, length) == 0;
}

/* Whether the key is there; if it is, it must have these bytes and flags. */
static bool get(const char *key, struct put expected)
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

static struct store_call inspect(const char *prefix)
{
    struct ask ask = new_ask(STORE_INSPECT, prefix);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call;
}

static uint64_t clear(const char *prefix)
{
    struct ask ask = new_ask(STORE_CLEAR, prefix);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call.entries;
}

/* Waits until INSPECT is exact. */
static struct store_call inspect_exactly(void)
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
static struct put nth(unsigned n)
{
    static const uint32_t lengths[] = {0, 1, 100, 5000, 8192, 9001, 70000};
    return (struct put){.seed = n, .length = lengths[n % 7], .flags = n * 7};
}

static const char *nth_key(unsigned n)
{
    static char key[32];
    snprintf(key, sizeof(key), "key-%u", n);
    return key;
}

static void put_many(unsigned from, unsigned to)
{
    for (unsigned n = from; n < to; n++)
        ck_assert_int_eq(put(nth_key(n), nth(n)), STORE_OK);
}

static unsigned get_many(unsigned from, unsigned to)
{
    unsigned found = 0;
    for (unsigned n = from; n < to; n++)
        found += get(nth_key(n), nth(n));
    return found;
}

/* Files. */
static const char *path_of(const char *name)
{
    static char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s/%s", bench.directory, name);
    return path;
}

static const char *file_of(const char *key)
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

static struct bytes read_file(const char *path)
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

static void write_file(const char *path, const void *data, size_t length)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
    ck_assert_int_eq(write(fd, data, length), (ssize_t)length);
    close(fd);
}

static bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static unsigned files_in(const char *path)
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
static void make_unclean(void)
{
    const char *path = path_of("index");
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(truncate(path, st.st_size - (off_t)sizeof(struct fs_record)), 0);
}

/* What is found at the start. */

START_TEST(after_a_clean_close_no_scan_is_needed)
{
    start();
    put_many(0, 100);
    reopen_store();
    struct store_call call = inspect("");
    ck_assert(!call.approximate);
    ck_assert_uint_eq(call.entries, 100);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

START_TEST(entries_are_found_without_an_index)
{
    start();
    put_many(0, 100);
    uint64_t size = inspect("").size;
    close_store();
    ck_assert_int_eq(unlink(path_of("index")), 0);
    open_store();
    ck_assert_uint_eq(get_many(0, 50), 50);
    struct store_call call = inspect_exactly();
    ck_assert_uint_eq(call.entries, 100);
    ck_assert_uint_eq(call.size, size);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

START_TEST(before_the_scan_is_over_put_if_absent_is_true)
{
    start();
    put_many(0, 100);
    close_store();
    ck_assert_int_eq(unlink(path_of("index")), 0);
    open_store();
    for (unsigned n = 0; n < 100; n++)
        ck_assert_int_eq(put(nth_key(n), nth(n + 1)), STORE_EXISTS);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

/* Puts a store's index back, damaged, and opens it: all is there as if nothing had been. */
static void try_index(const struct bytes *index, size_t length)
{
    write_file(path_of("index"), index->data, length);
    open_store();
    ck_assert_uint_eq(get_many(0, 5), 5);
    ck_assert(!get("deleted", nth(5)));
    ck_assert_int_eq(put(nth_key(3), nth(4)), STORE_EXISTS);
    struct store_call call = inspect_exactly();
    ck_assert_uint_eq(call.entries, 5);
    ck_assert_uint_eq(call.size, 5 * strlen("key-0") + 0 + 1 + 100 + 5000 + 8192);
    close_store();
}

static struct bytes five_entries(void)
{
    start();
    put_many(0, 5);
    ck_assert_int_eq(put("deleted", nth(5)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, "deleted"), STORE_OK);
    close_store();
    return read_file(path_of("index"));
}

START_TEST(a_torn_index_is_mended)
{
    struct bytes index = five_entries();
    size_t at = sizeof(uint64_t);
    for (size_t length = 0; length < at; length += 3)
        try_index(&index, length);
    while (at < index.length) {
        struct fs_record record;
        memcpy(&record, index.data + at, sizeof(record));
        try_index(&index, at);
        try_index(&index, at + 1);
        try_index(&index, at + (sizeof(record) + record.key_length) / 2);
        at += sizeof(record) + record.key_length;
        try_index(&index, at - 1);
    }
    ck_assert_uint_eq(at, index.length);
    try_index(&index, index.length);
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_with_a_flipped_byte_is_mended)
{
    struct bytes index = five_entries();
    for (size_t at = 0; at < index.length; at += 2) {
        index.data[at] ^= (uint8_t)(1 << at % 8);
        try_index(&index, index.length);
        index.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_of_garbage_is_mended)
{
    struct bytes index = five_entries(), garbage = {.data = malloc(BIG), .length = BIG};
    fill(garbage.data, BIG, 1);
    try_index(&garbage, 1000);
    memcpy(garbage.data, index.data, sizeof(uint64_t));
    try_index(&garbage, BIG);
    memset(garbage.data + index.length, 0, BIG - index.length);
    memcpy(garbage.data, index.data, index.length);
    try_index(&garbage, BIG);
    free(garbage.data);
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_of_another_time_is_not_believed)
{
    struct bytes old = five_entries();
    open_store();
    put_many(5, 20);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(0)), STORE_OK);
    ck_assert_int_eq(put(nth_key(1), (struct put){.seed = 99, .length = 300, .overwrite = true}),
                     STORE_OK);
    close_store();
    write_file(path_of("index"), old.data, old.length);
    open_store();
    ck_assert(!get(nth_key(0), nth(0)));
    ck_assert(get(nth_key(1), (struct put){.seed = 99, .length = 300}));
    ck_assert_uint_eq(get_many(2, 20), 18);
    ck_assert_uint_eq(inspect_exactly().entries, 19);
    free(old.data);
    remove_folder();
}
END_TEST

START_TEST(a_wrong_size_in_the_index_is_corrected)
{
    struct bytes old = five_entries();
    open_store();
    struct put longer = {.seed = 99, .length = 300, .overwrite = true};
    ck_assert_int_eq(put(nth_key(1), longer), STORE_OK);
    uint64_t size = inspect("").size;
    close_store();
    write_file(path_of("index"), old.data, old.length);
    open_store();
    ck_assert_uint_eq(inspect_exactly().size, size);
    free(old.data);
    remove_folder();
}
END_TEST

START_TEST(an_entry_whose_file_is_gone_is_forgotten)
{
    start();
    put_many(0, 3);
    ck_assert_int_eq(unlink(file_of(nth_key(1))), 0);
    ck_assert(!get(nth_key(1), nth(1)));
    ck_assert_uint_eq(inspect("").entries, 2);
    ck_assert_int_eq(unlink(file_of(nth_key(2))), 0);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(2)), STORE_MISS);
    ck_assert_uint_eq(inspect("").entries, 1);
    ck_assert_int_eq(put(nth_key(1), nth(1)), STORE_OK);
    ck_assert(get(nth_key(1), nth(1)));
    remove_folder();
}
END_TEST

START_TEST(a_folder_that_is_gone_is_made_again)
{
    char name[FS_NAME_SIZE], path[PATH_SIZE];
    start();
    fs_file_name(fs_file_hash((const uint8_t *)nth_key(1), strlen(nth_key(1))), name);
    snprintf(path, sizeof(path), "%s/entries/%.2s", bench.directory, name);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(put(nth_key(1), nth(1)), STORE_OK);
    ck_assert(get(nth_key(1), nth(1)));
    remove_folder();
}
END_TEST

START_TEST(files_of_others_are_left_alone)
{
    start();
    put_many(0, 3);
    close_store();
    make_unclean();
    write_file(path_of("entries/00/README"), "hello", 5);
    write_file(path_of("tmp/12"), "half an entry", 13);
    open_store();
    ck_assert_uint_eq(inspect_exactly().entries, 3);
    ck_assert(exists(path_of("entries/00/README")));
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    remove_folder();
}
END_TEST

static void expect_refusal(const char *part)
{
    char why[256] = "";
    struct store *store = store_open(&store_filesystem, &bench.config, why, sizeof(why));
    ck_assert_ptr_null(store);
    ck_assert_msg(strstr(why, part) != NULL && strstr(why, bench.directory) != NULL, "%s", why);
}

START_TEST(a_folder_that_is_no_store_of_ours_is_refused)
{
    make_folder();
    write_file(path_of("version"), "2\n", 2);
    expect_refusal("version 2");
    write_file(path_of("version"), "what is this", 12);
    expect_refusal("is this a store?");
    write_file(path_of("version"), "", 0);
    open_store();
    close_store();
    struct bytes version = read_file(path_of("version"));
    ck_assert_mem_eq(version.data, "1\n", 2);
    free(version.data);
    nftw(path_of("entries"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
    write_file(path_of("entries"), "", 0);
    expect_refusal("entries");
    remove_folder();
}
END_TEST

/* Damaged entries. */

/* The entry that the damage is done to, and how its file looks when it is whole. */
static const struct put whole = {.seed = 3, .length = 25, .flags = 77, .lives = HOUR};

static struct bytes whole_file(void)
{
    start();
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    return read_file(file_of("victim"));
}

/* Whatever is in place of the file: a miss, gone, and the next PUT works. */
static void expect_discarded(void)
{
    ck_assert(!get("victim", whole));
    ck_assert(!exists(file_of("victim")));
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    ck_assert(get("victim", whole));
}

START_TEST(an_entry_with_a_flipped_byte_is_a_miss)
{
    struct bytes file = whole_file();
    ck_assert_uint_eq(file.length, sizeof(struct fs_header) + strlen("victim") + whole.length);
    for (size_t at = 0; at < file.length; at++) {
        for (unsigned flip = 1; flip < 256; flip <<= 1) {
            file.data[at] ^= (uint8_t)flip;
            write_file(file_of("victim"), file.data, file.length);
            expect_discarded();
            file.data[at] ^= (uint8_t)flip;
        }
    }
    free(file.data);
    remove_folder();
}
END_TEST

/* HEAD does not read the value; about all else it is right, or it is a miss. */
START_TEST(head_of_a_damaged_entry_is_right_or_a_miss)
{
    struct bytes file = whole_file();
    for (size_t at = 0; at < file.length; at++) {
        file.data[at] ^= (uint8_t)(1 << at % 8);
        write_file(file_of("victim"), file.data, file.length);
        struct ask head = new_ask(STORE_HEAD, "victim");
        enum store_status status = run(&head);
        bool in_value = at >= file.length - whole.length || (at >= 8 && at < 16);
        ck_assert_int_eq(status, in_value ? STORE_OK : STORE_MISS);
        if (status == STORE_OK) {
            ck_assert_uint_eq(head.call.length, whole.length);
            ck_assert_uint_eq(head.call.flags, whole.flags);
            ck_assert_int_le(head.call.expires, clock_now() + HOUR);
            expect_discarded();
        } else {
            ck_assert_int_eq(put("victim", whole), STORE_OK);
        }
        file.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(file.data);
    remove_folder();
}
END_TEST

/* The same damage, met by the scan of a store that was not closed in order. */
START_TEST(a_damaged_entry_is_a_miss_while_the_index_is_uncertain)
{
    struct bytes file = whole_file();
    close_store();
    for (size_t at = 0; at < file.length; at += 3) {
        unlink(path_of("index"));
        file.data[at] ^= (uint8_t)(1 << at % 8);
        write_file(file_of("victim"), file.data, file.length);
        open_store();
        expect_discarded();
        close_store();
        file.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(a_truncated_entry_is_a_miss)
{
    struct bytes file = whole_file();
    for (size_t length = 0; length < file.length; length++) {
        write_file(file_of("victim"), file.data, length);
        expect_discarded();
    }
    file.data[file.length] = 0;
    write_file(file_of("victim"), file.data, file.length + 1);
    expect_discarded();
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(a_long_entry_with_a_flipped_byte_is_a_miss)
{
    const struct put long_one = {.seed = 5, .length = 70000};
    static const size_t places[] = {60, 8191, 8192, 8193, 70000};
    start();
    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        ck_assert_int_eq(put("victim", long_one), STORE_OK);
        struct bytes file = read_file(file_of("victim"));
        file.data[places[i]] ^= 1;
        write_file(file_of("victim"), file.data, file.length);
        ck_assert(!get("victim", long_one));
        ck_assert(!exists(file_of("victim")));
        write_file(file_of("victim"), file.data, file.length - 1);
        free(file.data);
    }
    remove_folder();
}
END_TEST

START_TEST(no_length_in_a_header_makes_it_allocate)
{
    struct bytes file = whole_file();
    value_set_limit(1 << 20);
    const struct fs_header *header = (const void *)file.data;
    const uint32_t lengths[] = {0, 24, 26, 1 << 24, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct bytes damaged = {.data = malloc(file.length), .length = file.length};
        memcpy(damaged.data, header, file.length);
        memcpy(damaged.data + offsetof(struct fs_header, length), &lengths[i], sizeof(lengths[i]));
        write_file(file_of("victim"), damaged.data, damaged.length);
        expect_discarded();
        free(damaged.data);
    }
    ck_assert_int_eq(truncate(file_of("victim"), (off_t)1 << 33), 0);
    expect_discarded();
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(swapped_files_are_misses)
{
    start();
    put_many(0, 2);
    char first[PATH_SIZE], second[PATH_SIZE];
    snprintf(first, sizeof(first), "%s", file_of(nth_key(0)));
    snprintf(second, sizeof(second), "%s", file_of(nth_key(1)));
    ck_assert_int_eq(renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE), 0);
    ck_assert_uint_eq(get_many(0, 2), 0);
    ck_assert(!exists(first) && !exists(second));
    put_many(0, 2);
    ck_assert_uint_eq(get_many(0, 2), 2);
    remove_folder();
}
END_TEST

START_TEST(what_is_no_file_is_a_miss)
{
    struct bytes file = whole_file();
    write_file(path_of("elsewhere"), file.data, file.length);
    free(file.data);
    unlink(file_of("victim"));
    ck_assert_int_eq(symlink(path_of("elsewhere"), file_of("victim")), 0);
    expect_discarded();
    unlink(file_of("victim"));
    ck_assert_int_eq(mkfifo(file_of("victim"), 0600), 0);
    expect_discarded();
    unlink(file_of("victim"));
    ck_assert_int_eq(mkdir(file_of("victim"), 0700), 0);
    ck_assert(!get("victim", whole));
    struct ask ask = new_put("victim", whole);
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_INTERNAL);
    ck_assert_int_eq(rmdir(file_of("victim")), 0);
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    remove_folder();
}
END_TEST

/* Ends. */

/* Writes the header's checksums anew after a test has changed it. */
static void seal(struct bytes *file)
{
    struct fs_header header;
    memcpy(&header, file->data, sizeof(header));
    const size_t start_of_fields = offsetof(struct fs_header, end);
    const uint8_t *key = file->data + sizeof(header);
    uint64_t fields = XXH3_64bits(file->data + start_of_fields, sizeof(header) - start_of_fields);
    header.head_check = XXH3_64bits_withSeed(key, header.key_length, fields);
    header.value_check =
        XXH3_64bits_withSeed(key + header.key_length, header.length, header.head_check);
    memcpy(file->data, &header, sizeof(header));
}

static int64_t end_of(const char *key)
{
    struct ask ask = new_ask(STORE_HEAD, key);
    ck_assert_int_eq(run(&ask), STORE_OK);
    return ask.call.expires;
}

START_TEST(an_end_outlives_a_restart)
{
    start();
    int64_t before = clock_now();
    ck_assert_int_eq(put("hour", (struct put){.lives = HOUR}), STORE_OK);
    ck_assert_int_eq(put("moment", (struct put){.lives = 300}), STORE_OK);
    ck_assert_int_eq(put("ever", (struct put){.length = 9}), STORE_OK);
    int64_t after = clock_now();
    for (int unclean = 0; unclean < 2; unclean++) {
        close_store();
        if (unclean)
            make_unclean();
        open_store();
        ck_assert_int_ge(end_of("hour"), before + HOUR);
        ck_assert_int_le(end_of("hour"), after + HOUR);
        ck_assert(end_of("ever") == CLOCK_NEVER);
    }
    usleep(310 * 1000);
    ck_assert(!get("moment", (struct put){0}));
    ck_assert_int_eq(put("moment", (struct put){.length = 2}), STORE_OK);
    remove_folder();
}
END_TEST

START_TEST(a_wall_clock_that_was_set_back_lengthens_no_life)
{
    struct bytes file = whole_file();
    close_store();
    unlink(path_of("index"));
    int64_t end = clock_to_wall(clock_now()) + (int64_t)HOUR * 24 * 365 * 100, ttl = 5000;
    memcpy(file.data + offsetof(struct fs_header, end), &end, sizeof(end));
    memcpy(file.data + offsetof(struct fs_header, ttl), &ttl, sizeof(ttl));
    seal(&file);
    write_file(file_of("victim"), file.data, file.length);
    open_store();
    ck_assert(get("victim", whole));
    int64_t first = end_of("victim");
    ck_assert_int_le(first, clock_now() + ttl);
    usleep(20000);
    ck_assert_int_le(end_of("victim"), first);
    inspect_exactly(); /* or the next start would look at the file again */
    reopen_store();
    ck_assert_int_le(end_of("victim"), first + 1);
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(an_end_before_the_machine_started_is_an_end)
{
    struct bytes file = whole_file();
    close_store();
    unlink(path_of("index"));
    int64_t end = 1000, ttl = 5000;
    memcpy(file.data + offsetof(struct fs_header, end), &end, sizeof(end));
    memcpy(file.data + offsetof(struct fs_header, ttl), &ttl, sizeof(ttl));
    seal(&file);
    write_file(file_of("victim"), file.data, file.length);
    open_store();
    ck_assert(!get("victim", whole));
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    ck_assert(get("victim", whole));
    free(file.data);
    remove_folder();
}
END_TEST

static void wait_until_gone(const char *key)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s", file_of(key));
    for (int64_t end = clock_now() + WAIT_MS; exists(path) && clock_now() < end;)
        usleep(10000);
    ck_assert(!exists(path));
}

START_TEST(what_has_ended_gives_its_space_back)
{
    start();
    put_many(0, 10);
    for (unsigned n = 10; n < 200; n++) {
        struct put what = nth(n);
        what.lives = 100;
        ck_assert_int_eq(put(nth_key(n), what), STORE_OK);
    }
    for (unsigned n = 10; n < 200; n++)
        wait_until_gone(nth_key(n));
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

/* The index of a killed daemon may know an entry by the end it had before it was replaced. */
START_TEST(an_end_of_an_unclean_index_is_checked_against_the_file)
{
    start();
    ck_assert_int_eq(put("a", (struct put){.length = 10, .lives = 100}), STORE_OK);
    close_store();
    struct bytes old = read_file(path_of("index"));
    open_store();
    ck_assert_int_eq(put("a", (struct put){.length = 10, .overwrite = true}), STORE_OK);
    close_store();
    write_file(path_of("index"), old.data, old.length);
    usleep(150 * 1000);
    open_store();
    inspect_exactly();
    usleep(300 * 1000);
    ck_assert(end_of("a") == CLOCK_NEVER);
    ck_assert(get("a", (struct put){.length = 10}));
    free(old.data);
    remove_folder();
}
END_TEST

/* PERSIST, and the end of the daemon at any moment. */

/* What the daemon does that is to be killed: round by round, all of it persisted but the last part.
 */
static void live_and_die(unsigned round)
{
    open_store();
    unsigned from = round * 60;
    put_many(from, from + 50);
    if (round > 0) {
        ck_assert_int_eq(run_op(STORE_DELETE, nth_key(from - 60)), STORE_OK);
        struct put other = nth(from - 59);
        other.overwrite = true;
        other.seed += 1000000;
        ck_assert_int_eq(put(nth_key(from - 59), other), STORE_OK);
    }
    struct ask persist = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&persist), STORE_OK);
    ck_assert(persist.call.durable);
    put_many(from + 50, from + 60);
    kill(getpid(), SIGKILL);
}

static void expect_all_of(unsigned round)
{
    unsigned from = round * 60;
    bool last = round == 9;
    ck_assert(last || !get(nth_key(from), nth(from)));
    struct put other = nth(from + 1);
    other.seed += last ? 0 : 1000000;
    ck_assert(get(nth_key(from + 1), other));
    ck_assert_uint_eq(get_many(from + 2, from + 50), 48);
    /* A process that is killed loses nothing that it has written, persisted or not. */
    ck_assert_uint_eq(get_many(from + 50, from + 60), 10);
}

START_TEST(what_was_persisted_survives_a_kill)
{
    syncs.real = true;
    make_folder();
    for (unsigned round = 0; round < 10; round++) {
        int status;
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0)
            live_and_die(round);
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        if (round % 3 == 2) {
            open_store();
            ck_assert_uint_eq(get_many(round * 60, round * 60 + 50), 50);
            close_store();
        }
    }
    open_store();
    for (unsigned round = 0; round < 10; round++)
        expect_all_of(round);
    ck_assert_uint_eq(inspect_exactly().entries, 600 - 9);
    remove_folder();
}
END_TEST

static enum store_status persist(void)
{
    return run_op(STORE_PERSIST, "");
}

START_TEST(a_put_does_not_sync_and_persist_syncs_what_is_new)
{
    start();
    int before = sync_count();
    put_many(0, 10);
    ck_assert_int_eq(sync_count(), before);
    ck_assert_int_eq(persist(), STORE_OK);
    /* 10 files, at least a folder, the index. */
    ck_assert_int_ge(sync_count() - before, 10 + 1 + 1);
    ck_assert_int_eq(syncs.syncfs, 0);
    before = sync_count();
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before);
    put_many(20, 21);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 3);
    put_many(21, 321);
    before = sync_count();
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 2);
    ck_assert_int_eq(syncs.syncfs, 1);
    remove_folder();
}
END_TEST

START_TEST(a_deletion_is_persisted_too)
{
    start();
    put_many(0, 2);
    ck_assert_int_eq(persist(), STORE_OK);
    int before = sync_count();
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(0)), STORE_OK);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 2);
    remove_folder();
}
END_TEST

static off_t index_size(void)
{
    struct stat st;
    ck_assert_int_eq(stat(path_of("index"), &st), 0);
    return st.st_size;
}

START_TEST(persist_appends_to_the_index_only_what_is_new)
{
    start();
    put_many(0, 300);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t before = index_size();
    put_many(300, 302);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t record = (off_t)(sizeof(struct fs_record) + strlen("key-300"));
    ck_assert_int_eq(index_size() - before, 2 * record + (off_t)sizeof(struct fs_record));
    remove_folder();
}
END_TEST

/* few: synced one by one, or all at once. */
static void lose_what_fails(unsigned count, atomic_bool *fault)
{
    start();
    put_many(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 10 + count);
    atomic_store(fault, true);
    struct ask ask = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_INTERNAL);
    atomic_store(fault, false);
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_uint_eq(get_many(10, 10 + count), 0);
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 20);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_uint_eq(get_many(0, 20), 20);
    remove_folder();
}

START_TEST(entries_whose_sync_fails_are_given_up)
{
    lose_what_fails(5, &syncs.fail_fsync);
    lose_what_fails(200, &syncs.fail_syncfs);
}
END_TEST

START_TEST(a_failed_sync_of_the_index_is_made_good)
{
    start();
    put_many(0, 10);
    syncs.fail_fdatasync = true;
    ck_assert_int_eq(persist(), STORE_FAILED);
    ck_assert_int_eq(persist(), STORE_FAILED);
    syncs.fail_fdatasync = false;
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert(!exists(path_of("index.new")));
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

START_TEST(a_store_that_can_not_be_synced_is_not_left_as_clean)
{
    start();
    put_many(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 20);
    fail_syncs(true);
    close_store();
    fail_syncs(false);
    open_store();
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    remove_folder();
}
END_TEST

START_TEST(the_index_file_is_written_afresh_when_most_of_it_is_past)
{
    const struct put small = {.length = 1, .overwrite = true};
    start();
    put_many(0, 10);
    for (unsigned n = 0; n < 6000; n++)
        ck_assert_int_eq(put("again", small), STORE_OK);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t full = 6000 * (off_t)(sizeof(struct fs_record) + strlen("again"));
    for (int64_t end = clock_now() + WAIT_MS; index_size() > full / 2 && clock_now() < end;)
        usleep(10000);
    ck_assert_int_le(index_size(), full / 2);
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(inspect("").entries, 11);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

/* Bounds. */

static uint64_t disk_total;

static int add_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path;
    (void)ftw;
    if (type == FTW_F)
        disk_total += (uint64_t)st->st_blocks * 512;
    return 0;
}

/* What the entries take up on the disk, by the file system's own count. */
static uint64_t disk_usage(void)
{
    disk_total = 0;
    nftw(path_of("entries"), add_file, 16, FTW_PHYS);
    return disk_total;
}

START_TEST(the_store_keeps_within_its_bound)
{
    enum { MAX = 4 << 20 };
    make_folder();
    bench.config.max_size = MAX;
    open_store();
    /* Small ones first, so that a large one needs many of them to go. */
    for (unsigned n = 0; n < 3000; n++) {
        struct put what = {.seed = n, .length = n < 2000 ? 3000 : 300 * (n % 400)};
        ck_assert_int_eq(put(nth_key(n), what), STORE_OK);
        if (n % 100 == 99)
            ck_assert_uint_le(disk_usage(), MAX + MAX / 20 + 2 * 4096);
    }
    for (int64_t end = clock_now() + WAIT_MS; disk_usage() > MAX && clock_now() < end;)
        usleep(10000);
    ck_assert_uint_le(disk_usage(), MAX);
    ck_assert_uint_ge(disk_usage(), MAX / 2);
    struct ask ask = new_put("large", (struct put){.length = MAX});
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_TOO_LARGE);
    remove_folder();
}
END_TEST

START_TEST(of_few_entries_the_least_recently_used_goes)
{
    make_folder();
    bench.config.max_size = 10 * 8192;
    open_store();
    for (unsigned n = 0; n < 10; n++)
        ck_assert_int_eq(put(nth_key(n), (struct put){.seed = n, .length = 8000}), STORE_OK);
    for (unsigned n = 0; n < 10; n += 2)
        ck_assert(get(nth_key(n), (struct put){.seed = n, .length = 8000}));
    ck_assert_int_eq(put("new", (struct put){.length = 8000}), STORE_OK);
    wait_until_gone(nth_key(1));
    for (unsigned n = 0; n < 10; n += 2)
        ck_assert(get(nth_key(n), (struct put){.seed = n, .length = 8000}));
    ck_assert(get("new", (struct put){.length = 8000}));
    remove_folder();
}
END_TEST

START_TEST(use_is_remembered_across_a_restart)
{
    make_folder();
    bench.config.max_size = 10 * 8192;
    open_store();
    for (unsigned n = 0; n < 10; n++) {
        ck_assert_int_eq(put(nth_key(n), (struct put){.seed = n, .length = 8000}), STORE_OK);
        usleep(2000);
    }
    reopen_store();
    ck_assert_int_eq(put("new", (struct put){.length = 8000}), STORE_OK);
    wait_until_gone(nth_key(0));
    ck_assert(get(nth_key(9), (struct put){.seed = 9, .length = 8000}));
    ck_assert(get("new", (struct put){.length = 8000}));
    remove_folder();
}
END_TEST

START_TEST(clear_counts_and_gives_the_space_back)
{
    start();
    put_many(0, 300);
    for (unsigned n = 0; n < 5; n++) {
        char key[16];
        snprintf(key, sizeof(key), "other-%u", n);
        ck_assert_int_eq(put(key, (struct put){.length = n}), STORE_OK);
    }
    close_store();
    make_unclean();
    open_store();
    ck_assert_uint_eq(clear("key-1"), 1 + 10 + 100);
    ck_assert_uint_eq(get_many(0, 300), 300 - 111);
    ck_assert_uint_eq(inspect("other-").entries, 5);
    ck_assert_uint_eq(inspect("other-").size, 5 * strlen("other-0") + 0 + 1 + 2 + 3 + 4);
    ck_assert_uint_eq(clear(""), 300 - 111 + 5);
    ck_assert_uint_eq(inspect("").entries, 0);
    ck_assert_uint_eq(inspect("").size, 0);
    ck_assert_uint_eq(disk_usage(), 0);
    ck_assert_uint_eq(clear(""), 0);
    remove_folder();
}
END_TEST

START_TEST(clear_takes_what_no_index_knows)
{
    start();
    put_many(0, 100);
    close_store();
    unlink(path_of("index"));
    open_store();
    ck_assert_uint_eq(clear(""), 100);
    ck_assert_uint_eq(disk_usage(), 0);
    remove_folder();
}
END_TEST

/* Shortages. */

static void limit(int what, rlim_t number, struct rlimit *before)
{
    ck_assert_int_eq(getrlimit(what, before), 0);
    const struct rlimit limited = {.rlim_cur = number, .rlim_max = before->rlim_max};
    ck_assert_int_eq(setrlimit(what, &limited), 0);
}

START_TEST(a_full_disk_fails_a_put_and_nothing_else)
{
    const struct put small = {.seed = 1, .length = 100, .overwrite = true};
    const struct put large = {.seed = 2, .length = 100000, .overwrite = true};
    struct rlimit before;
    start();
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(put("key", small), STORE_OK);
    limit(RLIMIT_FSIZE, 50000, &before);
    struct ask ask = new_put("key", large);
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    ck_assert(get("key", small));
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(put("key", large), STORE_OK);
    ck_assert(get("key", large));
    remove_folder();
}
END_TEST

/* The limit holds for Check's own files too, so the index has to be longer than those: long keys.
 */
START_TEST(an_index_that_can_not_grow_is_made_good)
{
    struct rlimit before;
    char key[1001] = "";
    start();
    signal(SIGXFSZ, SIG_IGN);
    for (unsigned n = 0; n < 200; n++) {
        snprintf(key, sizeof(key), "%01000u", n);
        ck_assert_int_eq(put(key, (struct put){.length = 10}), STORE_OK);
    }
    ck_assert_int_eq(persist(), STORE_OK);
    limit(RLIMIT_FSIZE, (rlim_t)index_size() - 500, &before);
    ck_assert_int_eq(put("key", (struct put){.length = 10}), STORE_OK);
    struct ask ask = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    ck_assert(get("key", (struct put){.length = 10}));
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(persist(), STORE_OK);
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(inspect("").entries, 201);
    remove_folder();
}
END_TEST

START_TEST(without_descriptors_the_answer_is_busy)
{
    struct rlimit before;
    start();
    put_many(0, 2);
    limit(RLIMIT_NOFILE, 3, &before);
    struct ask ask = new_ask(STORE_GET, "key-1");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_BUSY);
    ask = new_put("key-2", nth(2));
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_BUSY);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_uint_eq(get_many(0, 2), 2);
    remove_folder();
}
END_TEST

/* Many threads, each calling the methods itself. */

enum { THREADS = 8, ROUNDS = 150, SAME_KEYS = 6 };

struct racer {
    pthread_t thread;
    unsigned number;
    unsigned stored[ROUNDS];
    unsigned wrong;
};

static pthread_barrier_t barrier;

static void *race_for_absent(void *arg)
{
    struct racer *racer = arg;
    for (unsigned n = 0; n < ROUNDS; n++) {
        char key[32];
        snprintf(key, sizeof(key), "race-%u", n);
        struct ask ask = new_put(key, (struct put){.seed = racer->number, .length = 500});
        pthread_barrier_wait(&barrier);
        racer->stored[n] = store_filesystem.put(bench.store, &ask.call) == STORE_OK;
    }
    return NULL;
}

static unsigned run_racers(struct racer *racers, void *(*race)(void *))
{
    unsigned wrong = 0;
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        racers[i].number = i;
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(racers[i].thread, NULL);
        wrong += racers[i].wrong;
    }
    pthread_barrier_destroy(&barrier);
    return wrong;
}

/* The one who stored is the one whose bytes are there. */
static void expect_one_winner(const struct racer *racers, unsigned n)
{
    unsigned winners = 0, winner = 0;
    char key[32];
    for (unsigned i = 0; i < THREADS; i++) {
        winners += racers[i].stored[n];
        winner = racers[i].stored[n] ? i : winner;
    }
    ck_assert_uint_eq(winners, 1);
    snprintf(key, sizeof(key), "race-%u", n);
    ck_assert(get(key, (struct put){.seed = winner, .length = 500}));
}

START_TEST(of_eight_threads_one_stores)
{
    static struct racer racers[THREADS];
    start();
    run_racers(racers, race_for_absent);
    for (unsigned n = 0; n < ROUNDS; n++)
        expect_one_winner(racers, n);
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    remove_folder();
}
END_TEST

START_TEST(of_eight_threads_none_stores_what_only_the_disk_knows)
{
    static struct racer racers[THREADS];
    start();
    run_racers(racers, race_for_absent);
    close_store();
    unlink(path_of("index"));
    open_store();
    run_racers(racers, race_for_absent);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned n = 0; n < ROUNDS; n++)
            ck_assert_uint_eq(racers[i].stored[n], 0);
    }
    remove_folder();
}
END_TEST

/* A value's first bytes say what all of it must be, so a mixture is seen. */
static bool is_whole(struct value *value)
{
    uint32_t seed;
    static _Thread_local uint8_t expected[10000];
    if (value->length < sizeof(seed) || value->length > sizeof(expected))
        return false;
    memcpy(&seed, value_bytes(value), sizeof(seed));
    fill(expected, value->length, seed);
    return value->length == 2000 + seed % 7000 &&
           memcmp(value_bytes(value) + sizeof(seed), expected + sizeof(seed),
                  value->length - sizeof(seed)) == 0;
}

static struct ask mixed_put(const char *key, uint32_t seed, bool overwrite)
{
    struct ask ask = new_put(
        key, (struct put){.seed = seed, .length = 2000 + seed % 7000, .overwrite = overwrite});
    memcpy(value_bytes(ask.call.value), &seed, sizeof(seed));
    return ask;
}

/* One of all that can be asked; whether it was answered as it should. */
static bool mixed_call(const char *key, uint32_t seed)
{
    struct ask ask = seed % 7 == 0   ? new_ask(STORE_DELETE, key)
                     : seed % 3 == 0 ? new_ask(STORE_GET, key)
                                     : mixed_put(key, seed, seed % 2 == 0);
    if (ask.call.op == STORE_DELETE)
        return store_filesystem.delete(bench.store, &ask.call) != STORE_FAILED;
    if (ask.call.op == STORE_PUT)
        return store_filesystem.put(bench.store, &ask.call) != STORE_FAILED;
    enum store_status status = store_filesystem.get(bench.store, &ask.call);
    bool right = status == STORE_MISS || (status == STORE_OK && is_whole(ask.call.value));
    value_unref(ask.call.value);
    return right;
}

static void *race_mixed(void *arg)
{
    struct racer *racer = arg;
    for (uint32_t n = 0; n < 5 * ROUNDS; n++) {
        char key[32];
        snprintf(key, sizeof(key), "mixed-%u", n % SAME_KEYS);
        racer->wrong += !mixed_call(key, n * THREADS + racer->number);
        struct ask persist = new_ask(STORE_PERSIST, ""), clear = new_ask(STORE_CLEAR, "mixed-1");
        if (n % 50 == 49 && racer->number < 2)
            racer->wrong += store_filesystem.persist(bench.store, &persist.call) != STORE_OK;
        if (n % 100 == 99 && racer->number == 3)
            racer->wrong += store_filesystem.clear(bench.store, &clear.call) != STORE_OK;
    }
    return NULL;
}

/* After all of it the index must agree with the files, and what is read back with both. */
START_TEST(many_threads_see_whole_values_only)
{
    static struct racer racers[THREADS];
    start();
    ck_assert_uint_eq(run_racers(racers, race_mixed), 0);
    struct store_call before = inspect("");
    close_store();
    unlink(path_of("index"));
    open_store();
    struct store_call after = inspect_exactly();
    ck_assert_uint_eq(before.entries, after.entries);
    ck_assert_uint_eq(before.size, after.size);
    remove_folder();
}
END_TEST

/* While the index file is written afresh, its log must still get all that happens. */
START_TEST(the_index_file_is_right_whatever_happens_while_it_is_written)
{
    static struct racer racers[THREADS];
    start();
    put_many(0, 100);
    for (unsigned round = 0; round < 3; round++)
        ck_assert_uint_eq(run_racers(racers, race_mixed), 0);
    struct store_call before = inspect("");
    reopen_store();
    struct store_call after = inspect("");
    ck_assert(!after.approximate);
    ck_assert_uint_eq(before.entries, after.entries);
    ck_assert_uint_eq(before.size, after.size);
    ck_assert_uint_eq(get_many(0, 100), 100);
    ck_assert_uint_eq(inspect("").entries, after.entries);
    remove_folder();
}
END_TEST

/* The index by itself: what can't be provoked through the store. */

START_TEST(keys_with_the_same_hash_are_told_apart)
{
    char why[256];
    const XXH128_hash_t hash = {1, 2};
    struct fs_facts facts;
    make_folder();
    int fd = open(bench.directory, O_RDONLY | O_DIRECTORY);
    struct fs_index *index = fs_index_open((struct fs_directory){fd, bench.directory}, 4096, hash,
                                           true, why, sizeof(why));
    ck_assert_ptr_nonnull(index);
    fs_index_put(index, fs_entry_new(hash, (const uint8_t *)"one", 3, 10, CLOCK_NEVER));
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"one", 3, false, &facts),
                     FS_PRESENT);
    ck_assert_uint_eq(facts.length, 10);
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"two", 3, false, &facts),
                     FS_ABSENT);
    fs_index_put(index, fs_entry_new(hash, (const uint8_t *)"two", 3, 5000, CLOCK_NEVER));
    ck_assert_uint_eq(fs_index_entries(index), 1);
    ck_assert_uint_eq(fs_index_bytes(index), 5003);
    ck_assert_uint_eq(fs_index_disk(index), 8192);
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"one", 3, false, &facts),
                     FS_ABSENT);
    ck_assert_uint_eq(fs_index_remove(index, hash), 8192);
    ck_assert_uint_eq(fs_index_disk(index), 0);
    fs_index_close(index, NULL);
    close(fd);
    remove_folder();
}
END_TEST

static bool any(const struct fs_entry *entry, const void *arg)
{
    (void)entry;
    (void)arg;
    return true;
}

/* A walk that removes as it goes must meet every entry, though the table grows under it. */
START_TEST(a_walk_meets_everything_though_the_table_grows)
{
    enum { COUNT = 1000 };
    static bool met[COUNT];
    char why[256];
    make_folder();
    int fd = open(bench.directory, O_RDONLY | O_DIRECTORY);
    struct fs_index *index = fs_index_open((struct fs_directory){fd, bench.directory}, 4096,
                                           (XXH128_hash_t){0, 0}, true, why, sizeof(why));
    ck_assert_ptr_nonnull(index);
    for (uint64_t n = 0; n < COUNT; n++)
        fs_index_put(index, fs_entry_new((XXH128_hash_t){n * 0x9E3779B97F4A7C15, n},
                                         (const uint8_t *)"k", 1, 1, CLOCK_NEVER));
    uint64_t more = COUNT;
    for (uint32_t bucket = 0; bucket != FS_SHARD_END;) {
        XXH128_hash_t hashes[16];
        size_t count = fs_index_collect(index, 0, &bucket, any, NULL, hashes, 16);
        for (size_t i = 0; i < count; i++) {
            if (hashes[i].high64 < COUNT)
                met[hashes[i].high64] = true;
            fs_index_remove(index, hashes[i]);
        }
        for (unsigned i = 0; i < 40 && more < 4 * COUNT; i++, more++)
            fs_index_put(index, fs_entry_new((XXH128_hash_t){more * 0x9E3779B97F4A7C15, more},
                                             (const uint8_t *)"k", 1, 1, CLOCK_NEVER));
    }
    for (unsigned n = 0; n < COUNT; n++)
        ck_assert_msg(met[n], "%u was not met", n);
    fs_index_close(index, NULL);
    close(fd);
    remove_folder();
}
END_TEST

START_TEST(names_of_files_are_hashes_and_back)
{
    const XXH128_hash_t hash = {.high64 = 0xab0123456789cdef, .low64 = 0x00000000deadbeef};
    XXH128_hash_t back;
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    ck_assert_str_eq(name, "ab/0123456789cdef00000000deadbeef");
    ck_assert(fs_file_parse_name(0xab, name + 3, &back));
    ck_assert(XXH128_isEqual(hash, back));
    static const char *const others[] = {"",
                                         ".",
                                         "..",
                                         "0123456789cdef00000000deadbee",
                                         "0123456789cdef00000000deadbeef0",
                                         "0123456789CDEF00000000deadbeef",
                                         "0123456789cdeg00000000deadbeef"};
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        ck_assert(!fs_file_parse_name(0xab, others[i], &back));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filesystem");
    TCase *tcase = suite_case(suite, "start", 120);
    tcase_add_test(tcase, after_a_clean_close_no_scan_is_needed);
    tcase_add_test(tcase, entries_are_found_without_an_index);
    tcase_add_test(tcase, before_the_scan_is_over_put_if_absent_is_true);
    tcase_add_test(tcase, a_torn_index_is_mended);
    tcase_add_test(tcase, an_index_with_a_flipped_byte_is_mended);
    tcase_add_test(tcase, an_index_of_garbage_is_mended);
    tcase_add_test(tcase, an_index_of_another_time_is_not_believed);
    tcase_add_test(tcase, a_wrong_size_in_the_index_is_corrected);
    tcase_add_test(tcase, an_entry_whose_file_is_gone_is_forgotten);
    tcase_add_test(tcase, a_folder_that_is_gone_is_made_again);
    tcase_add_test(tcase, files_of_others_are_left_alone);
    tcase_add_test(tcase, a_folder_that_is_no_store_of_ours_is_refused);
    tcase = suite_case(suite, "damage", 60);
    tcase_add_test(tcase, an_entry_with_a_flipped_byte_is_a_miss);
    tcase_add_test(tcase, head_of_a_damaged_entry_is_right_or_a_miss);
    tcase_add_test(tcase, a_damaged_entry_is_a_miss_while_the_index_is_uncertain);
    tcase_add_test(tcase, a_truncated_entry_is_a_miss);
    tcase_add_test(tcase, a_long_entry_with_a_flipped_byte_is_a_miss);
    tcase_add_test(tcase, no_length_in_a_header_makes_it_allocate);
    tcase_add_test(tcase, swapped_files_are_misses);
    tcase_add_test(tcase, what_is_no_file_is_a_miss);
    tcase = suite_case(suite, "ends", 60);
    tcase_add_test(tcase, an_end_outlives_a_restart);
    tcase_add_test(tcase, a_wall_clock_that_was_set_back_lengthens_no_life);
    tcase_add_test(tcase, an_end_before_the_machine_started_is_an_end);
    tcase_add_test(tcase, what_has_ended_gives_its_space_back);
    tcase_add_test(tcase, an_end_of_an_unclean_index_is_checked_against_the_file);
    tcase = suite_case(suite, "persist", 120);
    tcase_add_test(tcase, what_was_persisted_survives_a_kill);
    tcase_add_test(tcase, a_put_does_not_sync_and_persist_syncs_what_is_new);
    tcase_add_test(tcase, a_deletion_is_persisted_too);
    tcase_add_test(tcase, persist_appends_to_the_index_only_what_is_new);
    tcase_add_test(tcase, entries_whose_sync_fails_are_given_up);
    tcase_add_test(tcase, a_failed_sync_of_the_index_is_made_good);
    tcase_add_test(tcase, a_store_that_can_not_be_synced_is_not_left_as_clean);
    tcase_add_test(tcase, the_index_file_is_written_afresh_when_most_of_it_is_past);
    tcase = suite_case(suite, "bounds", 120);
    tcase_add_test(tcase, the_store_keeps_within_its_bound);
    tcase_add_test(tcase, of_few_entries_the_least_recently_used_goes);
    tcase_add_test(tcase, use_is_remembered_across_a_restart);
    tcase_add_test(tcase, clear_counts_and_gives_the_space_back);
    tcase_add_test(tcase, clear_takes_what_no_index_knows);
    tcase_add_test(tcase, a_full_disk_fails_a_put_and_nothing_else);
    tcase_add_test(tcase, an_index_that_can_not_grow_is_made_good);
    tcase_add_test(tcase, without_descriptors_the_answer_is_busy);
    tcase = suite_case(suite, "threads", 120);
    tcase_add_test(tcase, of_eight_threads_one_stores);
    tcase_add_test(tcase, of_eight_threads_none_stores_what_only_the_disk_knows);
    tcase_add_test(tcase, many_threads_see_whole_values_only);
    tcase_add_test(tcase, the_index_file_is_right_whatever_happens_while_it_is_written);
    tcase = suite_case(suite, "parts", 30);
    tcase_add_test(tcase, keys_with_the_same_hash_are_told_apart);
    tcase_add_test(tcase, a_walk_meets_everything_though_the_table_grows);
    tcase_add_test(tcase, names_of_files_are_hashes_and_back);
    return suite_run(suite);
}
