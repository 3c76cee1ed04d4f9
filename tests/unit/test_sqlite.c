/*
 * What the SQLite store promises beyond the contract of all stores (test_store.c): what is
 * persisted survives a kill and a power loss, a damaged file is a miss and never a wrong byte,
 * space is given back, a full disk is told.
 *
 * Power loss is simulated: the program's own fdatasync() notes what a file held at its last sync
 * and which files their folder knew, and a disk that holds that and no more is what a test goes on
 * with.
 */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/log.h"
#include "../../daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WAIT_MS = 60000, NAME_SIZE = 300 };

/* The folder of the whole run; set once by main(). */
static char folder[128];

static struct bench {
    struct config config;
    char directory[200];
    struct store *store;
    struct loop *loop;
} bench;

/* The disk, as far as syncs have made it known to it. */
static struct disk {
    pthread_mutex_t lock;
    char directory[200]; /* what is elsewhere is none of its business */
    struct {
        uint8_t *bytes; /* at the last sync */
        size_t size;
        bool linked; /* its folder was synced since it was made */
    } files[2];
    unsigned syncs;
    bool broken; /* every sync fails */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const char *const file_names[2] = {"cache.db", "cache.db-wal"};

static void path_of(char path[NAME_SIZE], const char *name)
{
    snprintf(path, NAME_SIZE, "%s/%s", bench.directory, name);
}

static bool exists(const char *name)
{
    char path[NAME_SIZE];
    path_of(path, name);
    return access(path, F_OK) == 0;
}

static off_t size_of(const char *name)
{
    char path[NAME_SIZE];
    struct stat st;
    path_of(path, name);
    return stat(path, &st) == 0 ? st.st_size : 0;
}

/* Through the descriptor that is there: closing another one would drop SQLite's locks. */
static void note_content(int fd, unsigned file)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        abort();
    free(disk.files[file].bytes);
    disk.files[file].size = (size_t)st.st_size;
    disk.files[file].bytes = malloc((size_t)st.st_size + 1);
    if (disk.files[file].bytes == NULL ||
        pread(fd, disk.files[file].bytes, (size_t)st.st_size, 0) != st.st_size)
        abort();
}

/* The file's name, where it is in the folder of the disk; the folder's own is "". */
static const char *name_of(int fd, char path[NAME_SIZE])
{
    char link[64];
    size_t length = strlen(disk.directory);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, NAME_SIZE - 1);
    if (size < 0)
        abort();
    path[size] = '\0';
    if (strncmp(path, disk.directory, length) != 0)
        return NULL;
    return path[length] == '/' ? path + length + 1 : path[length] == '\0' ? path + length : NULL;
}

static void note_sync(int fd)
{
    char path[NAME_SIZE];
    const char *name = name_of(fd, path);
    for (unsigned i = 0; name != NULL && i < 2; i++) {
        char file[NAME_SIZE];
        snprintf(file, sizeof(file), "%s/%s", disk.directory, file_names[i]);
        if (strcmp(name, file_names[i]) == 0)
            note_content(fd, i);
        if (name[0] == '\0')
            disk.files[i].linked = access(file, F_OK) == 0;
    }
    disk.syncs++;
}

/* Stands in for the C library's, in SQLite too. A kill leaves what the kernel has: it need not
 * sync. */
__attribute__((visibility("default"))) int fdatasync(int fd)
{
    pthread_mutex_lock(&disk.lock);
    bool broken = disk.broken;
    if (!broken)
        note_sync(fd);
    pthread_mutex_unlock(&disk.lock);
    errno = broken ? EIO : errno;
    return broken ? -1 : 0;
}

static unsigned syncs(void)
{
    pthread_mutex_lock(&disk.lock);
    unsigned count = disk.syncs;
    pthread_mutex_unlock(&disk.lock);
    return count;
}

static void write_file(const char *name, const void *bytes, size_t size)
{
    char path[NAME_SIZE];
    path_of(path, name);
    FILE *file = fopen(path, "we");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

/* The caller frees. */
static uint8_t *read_file(const char *name, size_t *size)
{
    char path[NAME_SIZE];
    path_of(path, name);
    *size = (size_t)size_of(name);
    uint8_t *bytes = malloc(*size + 1);
    FILE *file = fopen(path, "re");
    ck_assert(file != NULL && bytes != NULL);
    ck_assert_uint_eq(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

static void enter_folder(const char *name)
{
    snprintf(bench.directory, sizeof(bench.directory), "%s/%d-%s", folder, (int)getpid(), name);
    ck_assert_int_eq(mkdir(bench.directory, 0700), 0);
}

static bool try_open(char *why, size_t size)
{
    bench.config.directory = bench.directory;
    bench.store = store_open(&store_sqlite, &bench.config, why, size);
    return bench.store != NULL;
}

static void open_store(void)
{
    char why[1024] = "";
    ck_assert_msg(try_open(why, sizeof(why)), "%s", why);
}

static void close_store(void)
{
    store_close(bench.store);
    bench.store = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

/* A folder of its own and a loop, nothing open yet; no log line unless a test wants them. */
static void start(void)
{
    log_open((enum log_level)0);
    bench.config = (struct config){
        .max_size = 1 << 30, .max_value_size = 512 << 20, .max_inflight = 1 << 30, .workers = 1};
    bench.loop = loop_new(0);
    ck_assert_ptr_nonnull(bench.loop);
    enter_folder("store");
    memcpy(disk.directory, bench.directory, sizeof(disk.directory));
}

static void start_open(void)
{
    start();
    open_store();
}

static void stop(void)
{
    if (bench.store != NULL)
        close_store();
    loop_free(bench.loop);
}

/* What the key number n of a kind has: bytes that no other has, of a length of its own. */
static size_t length_of(unsigned n)
{
    static const size_t lengths[] = {0, 1, 100, 900, 4096, 20000, 65535, 65536, 150000};
    return lengths[n % 9];
}

static void fill(uint8_t *bytes, size_t length, unsigned n)
{
    uint32_t x = n * 2654435761u + 1;
    for (size_t i = 0; i < length; i++) {
        x = x * 1664525 + 1013904223;
        bytes[i] = (uint8_t)(x >> 24);
    }
}

struct ask {
    struct store_call call;
    bool finished;
    void (*then)(struct ask *ask);
    uint8_t key[64];
};

static void ask_done(struct store_call *call)
{
    struct ask *ask = (struct ask *)(void *)((char *)call - offsetof(struct ask, call));
    ask->finished = true;
    if (ask->then != NULL)
        ask->then(ask);
}

static void set_key(struct ask *ask, const char *kind, unsigned n)
{
    ask->call.key_length = (uint32_t)snprintf((char *)ask->key, sizeof(ask->key), "%s%u", kind, n);
}

static void submit(struct ask *ask)
{
    ask->call.key = ask->key;
    ask->call.loop = bench.loop;
    ask->call.done = ask_done;
    ck_assert_int_eq(store_submit(bench.store, &ask->call), STORE_PENDING);
}

static enum store_status wait_for(struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (!ask->finished && clock_now() < end)
        loop_step(bench.loop, 100);
    ck_assert(ask->finished);
    return ask->call.status;
}

static void prepare_put(struct ask *ask, const char *kind, unsigned n, size_t length)
{
    *ask = (struct ask){.call = {.op = STORE_PUT}};
    set_key(ask, kind, n);
    ask->call.value = value_new(ask->key, ask->call.key_length, (uint32_t)length);
    ck_assert_ptr_nonnull(ask->call.value);
    fill(value_bytes(ask->call.value), length, n);
    ask->call.value->flags = n;
}

static void submit_put(struct ask *ask, const char *kind, unsigned n, size_t length)
{
    prepare_put(ask, kind, n, length);
    submit(ask);
}

static void submit_op(struct ask *ask, enum store_op op, const char *kind, unsigned n)
{
    *ask = (struct ask){.call = {.op = op}};
    set_key(ask, kind, n);
    submit(ask);
}

static enum store_status put(const char *kind, unsigned n, size_t length)
{
    struct ask ask;
    submit_put(&ask, kind, n, length);
    return wait_for(&ask);
}

static enum store_status put_for(const char *kind, unsigned n, int64_t milliseconds)
{
    struct ask ask = {.call = {.op = STORE_PUT}};
    set_key(&ask, kind, n);
    ask.call.value = value_new(ask.key, ask.call.key_length, 0);
    ask.call.value->expires = clock_now() + milliseconds;
    submit(&ask);
    return wait_for(&ask);
}

static enum store_status op(enum store_op op, const char *kind, unsigned n)
{
    struct ask ask;
    submit_op(&ask, op, kind, n);
    wait_for(&ask);
    if (op == STORE_GET)
        value_unref(ask.call.value);
    return ask.call.status;
}

/* CLEAR, INSPECT or PERSIST of a prefix. */
static struct ask ask_all(enum store_op op, const void *prefix, size_t length)
{
    struct ask ask = {.call = {.op = op, .key_length = (uint32_t)length}};
    memcpy(ask.key, prefix, length);
    submit(&ask);
    ck_assert_int_eq(wait_for(&ask), STORE_OK);
    return ask;
}

static void persist(void)
{
    ck_assert(ask_all(STORE_PERSIST, "", 0).call.durable);
}

/* What a GET answers is right or nothing; true where it is there. */
static bool get(const char *kind, unsigned n, size_t length)
{
    static uint8_t bytes[4 << 20];
    struct ask ask;
    submit_op(&ask, STORE_GET, kind, n);
    enum store_status status = wait_for(&ask);
    ck_assert_msg(status == STORE_OK || status == STORE_MISS, "GET: %s", ask.call.text);
    if (status == STORE_MISS)
        return false;
    fill(bytes, length, n);
    ck_assert_uint_eq(ask.call.value->length, length);
    ck_assert(memcmp(value_bytes(ask.call.value), bytes, length) == 0);
    ck_assert_uint_eq(ask.call.value->flags, n);
    value_unref(ask.call.value);
    return true;
}

static unsigned count_there(const char *kind, unsigned count)
{
    unsigned there = 0;
    for (unsigned n = 0; n < count; n++)
        there += get(kind, n, length_of(n));
    return there;
}

static void put_many(const char *kind, unsigned count)
{
    for (unsigned n = 0; n < count; n++)
        ck_assert_int_eq(put(kind, n, length_of(n)), STORE_OK);
}

/* As another program would, while the store is closed. */
static void execute(const char *sql)
{
    char path[NAME_SIZE];
    sqlite3 *db = NULL;
    path_of(path, "cache.db");
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
    ck_assert_msg(rc == SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

static int64_t ask_file(const char *sql)
{
    char path[NAME_SIZE];
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    path_of(path, "cache.db");
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(statement), SQLITE_ROW);
    int64_t number = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return number;
}

START_TEST(a_clean_end_leaves_one_file)
{
    start_open();
    put_many("key", 45);
    close_store();
    ck_assert(exists("cache.db"));
    ck_assert(!exists("cache.db-wal"));
    ck_assert(!exists("cache.db-shm"));
    ck_assert_int_eq(ask_file("SELECT entries FROM meta"), 45);
    ck_assert_int_eq(ask_file("SELECT count(*) FROM value"), 45);
    open_store();
    ck_assert_uint_eq(count_there("key", 45), 45);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 45);
    stop();
}
END_TEST

START_TEST(every_length_is_kept)
{
    static const size_t lengths[] = {4000,  4061,          4092,    65535,         65536,
                                     65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20};
    start_open();
    for (unsigned i = 0; i < 10; i++)
        ck_assert_int_eq(put("key", i, lengths[i]), STORE_OK);
    for (unsigned i = 0; i < 10; i++)
        ck_assert(get("key", i, lengths[i]));
    stop();
}
END_TEST

START_TEST(of_a_batch_of_one_key_one_is_stored)
{
    enum { PUTS = 600 };
    static struct ask asks[PUTS];
    start_open();
    for (unsigned i = 0; i < PUTS; i++)
        submit_put(&asks[i], "same", 7, 1000);
    unsigned stored = 0;
    for (unsigned i = 0; i < PUTS; i++) {
        enum store_status status = wait_for(&asks[i]);
        ck_assert(status == STORE_OK || status == STORE_EXISTS);
        stored += status == STORE_OK;
    }
    ck_assert_uint_eq(stored, 1);
    ck_assert(get("same", 7, 1000));
    stop();
}
END_TEST

/* Reads finish while the writes of one long row are still going on. */
START_TEST(reads_do_not_wait_for_writes)
{
    enum { PUTS = 200, GETS = 20 };
    static struct ask puts[PUTS], gets[GETS];
    unsigned before = 0;
    start_open();
    put("read", 1, 4096);
    for (unsigned i = 0; i < PUTS; i++)
        submit_put(&puts[i], "written", i, 900000);
    for (unsigned i = 0; i < GETS; i++) {
        submit_op(&gets[i], STORE_GET, "read", 1);
        ck_assert_int_eq(wait_for(&gets[i]), STORE_OK);
        value_unref(gets[i].call.value);
        before += !puts[PUTS - 1].finished;
    }
    ck_assert_msg(before > 0, "the writes were over before the first read");
    for (unsigned i = 0; i < PUTS; i++)
        ck_assert_int_eq(wait_for(&puts[i]), STORE_OK);
    stop();
}
END_TEST

/* In a child, which ends as if the machine's memory had run out. */
static void put_until_killed(int persisted, unsigned round)
{
    char kind[32];
    snprintf(kind, sizeof(kind), "round-%u-", round);
    open_store();
    put_many(kind, 27);
    persist();
    if (write(persisted, "p", 1) != 1)
        _exit(1);
    for (unsigned n = 27;; n++)
        put(kind, n, length_of(n));
}

START_TEST(what_was_persisted_survives_a_kill)
{
    start();
    for (unsigned round = 0; round < 10; round++) {
        int ends[2];
        char byte, kind[32];
        ck_assert_int_eq(pipe(ends), 0);
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0)
            put_until_killed(ends[1], round);
        close(ends[1]);
        ck_assert_int_eq(read(ends[0], &byte, 1), 1);
        usleep(round * 3000);
        kill(child, SIGKILL);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
        close(ends[0]);

        open_store();
        for (unsigned old = 0; old <= round; old++) {
            snprintf(kind, sizeof(kind), "round-%u-", old);
            ck_assert_uint_eq(count_there(kind, 27), 27);
            count_there(kind, 60); /* the others are whole or not there */
        }
        close_store();
    }
    ck_assert(!exists("cache.db.damaged"));
    stop();
}
END_TEST

/* The folder becomes what a power loss would have left of it, in the worst case. */
static void lose_power(const struct disk *at)
{
    for (unsigned i = 0; i < 2; i++) {
        if (at->files[i].linked && at->files[i].bytes != NULL)
            write_file(file_names[i], at->files[i].bytes, at->files[i].size);
    }
}

static struct disk copy_disk(void)
{
    struct disk copy = {0};
    pthread_mutex_lock(&disk.lock);
    for (unsigned i = 0; i < 2; i++) {
        copy.files[i] = disk.files[i];
        copy.files[i].bytes = malloc(disk.files[i].size + 1);
        ck_assert_ptr_nonnull(copy.files[i].bytes);
        if (disk.files[i].size > 0)
            memcpy(copy.files[i].bytes, disk.files[i].bytes, disk.files[i].size);
    }
    pthread_mutex_unlock(&disk.lock);
    return copy;
}

static void free_disk(struct disk *copy)
{
    for (unsigned i = 0; i < 2; i++)
        free(copy->files[i].bytes);
}

START_TEST(what_was_persisted_survives_a_power_loss)
{
    start_open();
    for (unsigned round = 0; round < 4; round++) {
        char kind[32], name[32];
        snprintf(kind, sizeof(kind), "round-%u-", round);
        snprintf(name, sizeof(name), "image-%u", round);
        put_many(kind, 27);
        persist();
        struct disk left = copy_disk();
        put("not persisted", round, 30000);

        struct bench running = bench;
        enter_folder(name);
        lose_power(&left);
        free_disk(&left);
        open_store();
        for (unsigned old = 0; old <= round; old++) {
            snprintf(kind, sizeof(kind), "round-%u-", old);
            ck_assert_uint_eq(count_there(kind, 27), 27);
        }
        ck_assert(!exists("cache.db.damaged"));
        close_store();
        bench = running;
        usleep(round * 400000); /* the log is emptied at some time */
    }
    stop();
}
END_TEST

static struct disk at_persist[3];

static void keep_disk(struct ask *ask)
{
    at_persist[ask->key[ask->call.key_length - 1] - '0'] = copy_disk();
}

/* PERSIST as one of many in a batch covers all that came before it. */
START_TEST(persist_covers_its_batch)
{
    enum { EACH = 150 };
    static struct ask puts[3][EACH], persists[3];
    start_open();
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned n = 0; n < EACH; n++)
            submit_put(&puts[i][n], "key", i * EACH + n, length_of(n));
        submit_op(&persists[i], STORE_PERSIST, "", i);
        persists[i].then = keep_disk;
    }
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(wait_for(&persists[i]), STORE_OK);
    close_store();
    for (unsigned i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof(name), "image-%u", i);
        enter_folder(name);
        lose_power(&at_persist[i]);
        free_disk(&at_persist[i]);
        open_store();
        for (unsigned n = 0; n < (i + 1) * EACH; n++)
            ck_assert(get("key", n, length_of(n % EACH)));
        close_store();
    }
    stop();
}
END_TEST

/*
 * More than SQLite's cache holds goes to the log before the commit; where pages of that are changed
 * once more, the log is written anew in its middle.
 */
START_TEST(a_transaction_larger_than_the_cache_is_whole)
{
    enum { SMALL = 5000, LARGE = 279, LENGTH = 60000, APART = 255 };
    struct ask *asks = calloc(SMALL, sizeof(*asks));
    start_open();
    for (unsigned n = 0; n < SMALL; n++)
        submit_put(&asks[n], "key", 10000 + n, 10);
    for (unsigned n = 0; n < SMALL; n++)
        ck_assert_int_eq(wait_for(&asks[n]), STORE_OK);
    for (unsigned n = 0; n < LARGE; n++)
        prepare_put(&asks[n], "key", (10000 + n % APART * 19) * 10 + n / APART, LENGTH);
    for (unsigned n = 0; n < LARGE; n++)
        submit(&asks[n]);
    for (unsigned n = 0; n < LARGE; n++)
        ck_assert_int_eq(wait_for(&asks[n]), STORE_OK);
    persist();
    struct disk left = copy_disk();
    close_store();
    enter_folder("image");
    lose_power(&left);
    free_disk(&left);
    open_store();
    for (unsigned n = 0; n < LARGE; n++)
        ck_assert(get("key", (10000 + n % APART * 19) * 10 + n / APART, LENGTH));
    for (unsigned n = 0; n < SMALL; n += 100)
        ck_assert(get("key", 10000 + n, 10));
    ck_assert(!exists("cache.db.damaged"));
    free(asks);
    close_store();
    ck_assert_int_eq(ask_file("SELECT count(*) FROM pragma_integrity_check() WHERE"
                              " integrity_check = 'ok'"),
                     1);
    stop();
}
END_TEST

/* Without PERSIST a power loss leaves any part of what was written, in any order: never wrong
 * bytes. */
START_TEST(a_power_loss_leaves_no_wrong_bytes)
{
    unsigned random = (unsigned)_i + 1;
    start_open();
    put_many("persisted", 27);
    persist();
    struct disk left = copy_disk();
    put_many("written", 90);
    size_t size;
    char origin[NAME_SIZE];
    path_of(origin, "cache.db-wal");
    int fd = open(origin, O_RDONLY | O_CLOEXEC);
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    size = (size_t)st.st_size;
    uint8_t *log = calloc(1, size);
    ck_assert_int_eq(pread(fd, log, size, 0), (ssize_t)size);
    /* Of the pages written since, the disk has some. */
    for (size_t page = 0; page < size; page += 512) {
        size_t part = size - page < 512 ? size - page : 512;
        if (rand_r(&random) % 8 != 0)
            continue;
        memset(log + page, 0, part);
        if (page < left.files[1].size) {
            size_t old = left.files[1].size - page;
            memcpy(log + page, left.files[1].bytes + page, old < part ? old : part);
        }
    }
    free(left.files[1].bytes);
    left.files[1].bytes = log;
    left.files[1].size = size;
    close_store();
    close(fd);
    enter_folder("image");
    lose_power(&left);
    free_disk(&left);
    open_store();
    ck_assert_uint_eq(count_there("persisted", 27), 27);
    count_there("written", 90);
    stop();
}
END_TEST

START_TEST(persist_syncs_only_what_is_new)
{
    start_open();
    put("key", 1, 1000);
    unsigned before = syncs();
    persist();
    unsigned once = syncs();
    ck_assert_uint_gt(once, before);
    persist();
    ck_assert_uint_eq(syncs(), once);
    for (unsigned n = 2; n < 30; n++) {
        put("key", n, 1000);
        before = syncs();
        persist();
        ck_assert_uint_gt(syncs(), before);
    }
    stop();
}
END_TEST

/* After an fsync has failed, a later one that succeeds proves nothing. */
START_TEST(a_failed_sync_is_told_until_the_end)
{
    struct ask ask;
    start_open();
    put("key", 1, 1000);
    persist();
    put("key", 2, 1000);
    pthread_mutex_lock(&disk.lock);
    disk.broken = true;
    pthread_mutex_unlock(&disk.lock);
    submit_op(&ask, STORE_PERSIST, "", 0);
    ck_assert_int_eq(wait_for(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_INTERNAL);
    pthread_mutex_lock(&disk.lock);
    disk.broken = false;
    pthread_mutex_unlock(&disk.lock);
    ck_assert_int_eq(op(STORE_PERSIST, "", 0), STORE_FAILED);
    ck_assert_int_eq(put("key", 3, 1000), STORE_OK);
    ck_assert(get("key", 1, 1000));
    ck_assert(get("key", 3, 1000));
    close_store();
    open_store();
    ck_assert_int_eq(op(STORE_PERSIST, "", 0), STORE_OK);
    stop();
}
END_TEST

/* What a store has to do whatever its file looked like: answer rightly or not, and go on. */
static void expect_working(const char *kind, unsigned count)
{
    count_there(kind, count);
    for (unsigned n = 0; n < count; n += 3)
        op(STORE_HEAD, kind, n);
    for (unsigned n = 0; n < count; n += 4)
        op(STORE_DELETE, kind, n);
    for (unsigned n = 0; n < count; n++)
        put(kind, n, length_of(n));
    struct ask ask;
    submit_op(&ask, STORE_INSPECT, kind, 1);
    wait_for(&ask);
    submit_op(&ask, STORE_CLEAR, kind, 1);
    wait_for(&ask);
    count_there(kind, count);
    submit_op(&ask, STORE_PERSIST, "", 0);
    wait_for(&ask);
    close_store();
    open_store();
    count_there(kind, count);
    ask = (struct ask){.call = {.op = STORE_CLEAR}};
    submit(&ask);
    wait_for(&ask);
    /* Once the last damage was met, perhaps by upkeep, everything works. */
    bool works = false;
    for (unsigned n = 0; n < 5 && !works; n++)
        works = put("after", n, 70000) == STORE_OK && get("after", n, 70000);
    ck_assert(works);
    close_store();
}

static uint8_t *make_file(size_t *size)
{
    start_open();
    put_many("key", 36);
    close_store();
    return read_file("cache.db", size);
}

START_TEST(flipped_bytes_are_never_answered)
{
    enum { SEEDS = 15 };
    size_t size;
    uint8_t *good = make_file(&size), *bad = malloc(size);
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        unsigned random = (unsigned)_i * SEEDS + seed;
        unsigned flips = 1u << (seed % 10);
        memcpy(bad, good, size);
        for (unsigned n = 0; n < flips; n++)
            bad[(size_t)rand_r(&random) % size] ^= (uint8_t)(1 + rand_r(&random) % 255);
        write_file("cache.db", bad, size);
        open_store();
        expect_working("key", 36);
    }
    free(good);
    free(bad);
    stop();
}
END_TEST

/* The first pages hold the header, the tables' descriptions and roots: what is hit most there. */
START_TEST(a_damaged_beginning_is_never_answered)
{
    size_t size;
    uint8_t *good = make_file(&size), *bad = malloc(size);
    for (unsigned seed = 0; seed < 30; seed++) {
        unsigned random = (unsigned)_i * 30 + seed;
        memcpy(bad, good, size);
        for (unsigned n = 0; n < 1 + seed % 3; n++)
            bad[(unsigned)rand_r(&random) % (seed % 2 ? 100 : 40000)] =
                (uint8_t)(rand_r(&random) % 256);
        write_file("cache.db", bad, size);
        char why[1024];
        if (try_open(why, sizeof(why)))
            expect_working("key", 36);
        else /* one in some billions: it looks like another program's */
            ck_abort_msg("seed %u: %s", seed, why);
    }
    free(good);
    free(bad);
    stop();
}
END_TEST

START_TEST(zeroed_and_missing_pages_are_never_answered)
{
    size_t size;
    uint8_t *good = make_file(&size), *bad = malloc(size);
    for (unsigned seed = 0; seed < 24; seed++) {
        unsigned random = seed;
        size_t length = size;
        memcpy(bad, good, size);
        if (seed % 2 == 0)
            length = (size_t)rand_r(&random) % size;
        for (unsigned n = 0; seed % 2 == 1 && n < 1u << (seed % 6); n++)
            memset(bad + (size_t)rand_r(&random) % (size / 4096) * 4096, 0, 4096);
        write_file("cache.db", bad, length);
        open_store();
        expect_working("key", 36);
    }
    free(good);
    free(bad);
    stop();
}
END_TEST

/* The log of a daemon that was killed. */
START_TEST(a_damaged_log_is_never_answered)
{
    size_t size, log_size;
    start();
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        open_store();
        put_many("key", 36);
        kill(getpid(), SIGKILL);
    }
    waitpid(child, NULL, 0);
    uint8_t *file = read_file("cache.db", &size), *log = read_file("cache.db-wal", &log_size);
    ck_assert_uint_gt(log_size, 100000);
    uint8_t *bad = malloc(log_size);
    for (unsigned seed = 0; seed < 24; seed++) {
        unsigned random = seed;
        memcpy(bad, log, log_size);
        for (unsigned n = 0; n < 1u << (seed % 8); n++)
            bad[(size_t)rand_r(&random) % log_size] ^= (uint8_t)(1 + rand_r(&random) % 255);
        write_file("cache.db", file, size);
        write_file("cache.db-wal", bad, log_size);
        open_store();
        expect_working("key", 36);
    }
    free(file);
    free(log);
    free(bad);
    stop();
}
END_TEST

START_TEST(garbage_is_set_aside)
{
    static uint8_t garbage[100000];
    start();
    fill(garbage, sizeof(garbage), 5);
    write_file("cache.db", garbage, sizeof(garbage));
    write_file("cache.db.damaged", "older", 5);
    open_store();
    put_many("key", 9);
    ck_assert_uint_eq(count_there("key", 9), 9);
    close_store();
    size_t size;
    uint8_t *kept = read_file("cache.db.damaged", &size);
    ck_assert_uint_eq(size, sizeof(garbage));
    ck_assert(memcmp(kept, garbage, size) == 0);
    free(kept);
    open_store();
    ck_assert_uint_eq(count_there("key", 9), 9);
    stop();
}
END_TEST

/* Bytes of the file change under the running store; another process does it, as another would. */
static void overwrite_pages(void)
{
    char path[NAME_SIZE];
    uint8_t junk[4096];
    path_of(path, "cache.db");
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        off_t size = lseek(fd, 0, SEEK_END);
        memset(junk, 0xA5, sizeof(junk));
        for (off_t at = 4096; at < size; at += 4096) {
            if (pwrite(fd, junk, sizeof(junk), at) != sizeof(junk))
                _exit(1);
        }
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}

START_TEST(damage_under_way_is_replaced)
{
    start_open();
    put_many("key", 90);
    close_store();
    open_store();
    overwrite_pages();
    ck_assert_uint_eq(count_there("key", 90), 0);
    int64_t end = clock_now() + WAIT_MS;
    enum store_status status = put("new", 1, 1000);
    while (status == STORE_FAILED && clock_now() < end)
        status = put("new", 1, 1000);
    ck_assert_int_eq(status, STORE_OK);
    ck_assert(get("new", 1, 1000));
    ck_assert(exists("cache.db.damaged"));
    put_many("key", 9);
    close_store();
    open_store();
    ck_assert(get("new", 1, 1000));
    ck_assert_uint_eq(count_there("key", 9), 9);
    stop();
}
END_TEST

/* Like all of stderr, the log goes to a file; returns how often word stands there. */
static unsigned count_logged(const char *word)
{
    size_t size;
    char *text = (char *)read_file("log", &size), *at = text;
    unsigned count = 0;
    text[size] = '\0';
    while ((at = strstr(at, word)) != NULL) {
        count++;
        at++;
    }
    free(text);
    return count;
}

START_TEST(a_damaged_entry_is_a_miss_and_a_line)
{
    char path[NAME_SIZE];
    start_open();
    put_many("key", 9);
    close_store();
    execute("UPDATE value SET bytes = zeroblob(4096) WHERE length(bytes) = 4096;"
            "UPDATE value SET bytes = zeroblob(150000) WHERE length(bytes) = 150000;"
            "UPDATE entry SET flags = flags + 1 WHERE size = 900;"
            "DELETE FROM value WHERE length(bytes) = 65535;"
            "DELETE FROM value WHERE length(bytes) = 65536");
    path_of(path, "log");
    ck_assert_ptr_nonnull(freopen(path, "we", stderr));
    log_open(LOG_LEVEL_WARNING);
    open_store();
    for (unsigned n = 0; n < 9; n++) {
        bool sound = n < 3 || n == 5;
        ck_assert_int_eq(get("key", n, length_of(n)), sound);
    }
    ck_assert_uint_eq(count_logged("damaged"), 1); /* one a second */
    for (unsigned n = 0; n < 9; n++) {
        bool sound = n < 3 || n == 5;
        ck_assert_int_eq(put("key", n, length_of(n)), sound ? STORE_EXISTS : STORE_OK);
        ck_assert(get("key", n, length_of(n)));
    }
    ck_assert(!exists("cache.db.damaged"));
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 9);
    stop();
}
END_TEST

static void expect_refused(const char *word)
{
    size_t size, after_size;
    char why[1024] = "";
    uint8_t *before = read_file("cache.db", &size);
    ck_assert(!try_open(why, sizeof(why)));
    ck_assert_msg(strstr(why, "cache.db") != NULL && strstr(why, word) != NULL, "%s", why);
    uint8_t *after = read_file("cache.db", &after_size);
    ck_assert_uint_eq(after_size, size);
    ck_assert(memcmp(before, after, size) == 0);
    ck_assert(!exists("cache.db.damaged"));
    free(before);
    free(after);
}

START_TEST(another_programs_file_is_left_alone)
{
    start();
    execute("CREATE TABLE theirs(x); INSERT INTO theirs VALUES(1)");
    expect_refused("another program");
    execute("PRAGMA application_id=77");
    expect_refused("another program");
    execute("DROP TABLE theirs");
    expect_refused("another program");
    stop();
}
END_TEST

START_TEST(a_newer_file_is_left_alone)
{
    start_open();
    put_many("key", 9);
    close_store();
    execute("PRAGMA user_version=3; ALTER TABLE entry ADD COLUMN more");
    expect_refused("newer");
    stop();
}
END_TEST

/* Ours by its tables, not by its header: damaged, whatever the header says. */
START_TEST(a_header_that_does_not_fit_is_damage)
{
    static const char *const changes[] = {"PRAGMA user_version=1", "PRAGMA application_id=77",
                                          "DELETE FROM meta", "UPDATE meta SET bytes = bytes + 1",
                                          "DROP INDEX use_order"};
    for (unsigned i = 0; i < 5; i++) {
        if (i == 0)
            start();
        open_store();
        put_many("key", 9);
        close_store();
        execute(changes[i]);
        open_store();
        ck_assert_uint_eq(count_there("key", 9), 0);
        ck_assert(exists("cache.db.damaged"));
        ck_assert_uint_eq(ask_all(STORE_CLEAR, "", 0).call.entries, 0);
        close_store();
    }
    stop();
}
END_TEST

START_TEST(sqlites_own_limit_is_told)
{
    char why[1024] = "";
    start();
    bench.config.max_value_size = 1500000000;
    ck_assert(!try_open(why, sizeof(why)));
    ck_assert_msg(strstr(why, "1500000000") != NULL, "%s", why);
    ck_assert_msg(strstr(why, " 9999") != NULL, "%s", why); /* a little less than 10^9 */
    bench.config.max_value_size = 999000000;
    open_store();
    stop();
}
END_TEST

/* Lets upkeep run until the file is no larger. */
/* A long log is written back in a pause. */
static void expect_growing_to(off_t size)
{
    int64_t end = clock_now() + WAIT_MS;
    while (size_of("cache.db") < size && clock_now() < end)
        usleep(20000);
    ck_assert_int_ge(size_of("cache.db"), size);
}

static void expect_shrinking_to(off_t size)
{
    int64_t end = clock_now() + WAIT_MS;
    while (size_of("cache.db") > size && clock_now() < end)
        usleep(20000);
    ck_assert_int_le(size_of("cache.db"), size);
}

/* A daemon that has nothing to do keeps no log. */
START_TEST(a_quiet_log_is_emptied)
{
    start_open();
    put_many("key", 9);
    ck_assert_int_gt(size_of("cache.db-wal"), 0);
    int64_t end = clock_now() + WAIT_MS;
    while (size_of("cache.db-wal") > 0 && clock_now() < end)
        usleep(20000);
    ck_assert_int_eq(size_of("cache.db-wal"), 0);
    ck_assert_uint_eq(count_there("key", 9), 9);
    stop();
}
END_TEST

static void put_megabytes(const char *kind, unsigned count)
{
    static struct ask asks[64];
    for (unsigned n = 0; n < count * 20; n += 20) {
        for (unsigned i = 0; i < 20; i++)
            submit_put(&asks[i], kind, n + i, 50000);
        for (unsigned i = 0; i < 20; i++)
            ck_assert_int_eq(wait_for(&asks[i]), STORE_OK);
    }
}

START_TEST(clear_gives_space_back)
{
    start_open();
    put_megabytes("a", 20);
    put_megabytes("b", 20);
    persist();
    expect_growing_to(40 * 1000000);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "a", 1).call.entries, 400);
    expect_shrinking_to(22 * 1000000);
    ck_assert(get("b", 7, 50000));
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "", 0).call.entries, 400);
    expect_shrinking_to(100000);
    ck_assert_int_eq(put("b", 7, 50000), STORE_OK);
    close_store();
    ck_assert_int_eq(ask_file("PRAGMA auto_vacuum"), 2);
    ck_assert_int_eq(ask_file("SELECT count(*) FROM pragma_integrity_check() WHERE"
                              " integrity_check = 'ok'"),
                     1);
    stop();
}
END_TEST

START_TEST(eviction_keeps_what_was_used_and_gives_space_back)
{
    start_open();
    put_megabytes("key", 20);
    for (unsigned n = 0; n < 400; n += 10)
        ck_assert(get("key", n, 50000));
    expect_growing_to(20 * 1000000);
    atomic_store(&bench.store->max_size, 5000000);
    ck_assert_int_eq(put("new", 1, 100), STORE_OK); /* upkeep follows a batch */
    expect_shrinking_to(6 * 1000000);
    struct ask all = ask_all(STORE_INSPECT, "", 0);
    ck_assert_uint_le(all.call.size, 5000000);
    ck_assert_uint_ge(all.call.size, 4800000);
    for (unsigned n = 0; n < 400; n += 10)
        ck_assert(get("key", n, 50000));
    ck_assert(get("new", 1, 100));
    ck_assert(!get("key", 1, 50000));
    stop();
}
END_TEST

/* With room for less than there is, what was used is kept and what was not goes. */
static void expect_first_used(void)
{
    atomic_store(&bench.store->max_size, 600000);
    for (unsigned n = 0; n < 9; n++)
        ck_assert_int_eq(put("new", n, 50000), STORE_OK);
    ck_assert(get("key", 0, 50000));
    ck_assert(!get("key", 1, 50000));
}

/* What was used last is known after a restart. */
START_TEST(last_uses_survive_a_restart)
{
    start_open();
    put_megabytes("key", 1);
    ck_assert(get("key", 0, 50000));
    close_store();
    ck_assert_int_eq(ask_file("SELECT count(*) FROM use"), 1);
    open_store();
    expect_first_used();
    stop();
}
END_TEST

/* As version 1 left it: every entry has a row in use, and meta no hand. */
START_TEST(an_older_file_is_taken_over)
{
    start_open();
    put_megabytes("key", 1);
    ck_assert(get("key", 0, 50000));
    close_store();
    execute("INSERT INTO use SELECT id, id FROM value WHERE id NOT IN (SELECT id FROM use);"
            "ALTER TABLE meta DROP COLUMN hand; DROP TABLE gone; PRAGMA user_version=1");
    open_store();
    ck_assert(!exists("cache.db.damaged"));
    expect_first_used();
    close_store();
    ck_assert_int_eq(ask_file("PRAGMA user_version"), 2);
    ck_assert_int_eq(ask_file("SELECT hand > 0 FROM meta"), 1);
    stop();
}
END_TEST

/* However fast they come, and without a pause for upkeep, PUTs stay near the bound. */
START_TEST(puts_evict_by_themselves)
{
    enum { PUTS = 256 };
    static struct ask asks[PUTS];
    start_open();
    atomic_store(&bench.store->max_size, 1000000);
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < PUTS; i++)
            submit_put(&asks[i], "key", round * PUTS + i, i % 50 == 0 ? 200000 : 500);
        for (unsigned i = 0; i < PUTS; i++)
            ck_assert_int_eq(wait_for(&asks[i]), STORE_OK);
        ck_assert_uint_le(ask_all(STORE_INSPECT, "", 0).call.size, 1050000);
    }
    stop();
}
END_TEST

START_TEST(prefixes_are_bytes)
{
    static const char *const prefixes[] = {"\xFF\xFF", "\xFF", "\0a", "\0", "b\0", "b"};
    static const size_t lengths[] = {2, 1, 2, 1, 2, 1};
    start_open();
    for (unsigned i = 0; i < 6; i++) {
        struct ask ask = {.call = {.op = STORE_PUT, .key_length = (uint32_t)lengths[i] + 1}};
        memcpy(ask.key, prefixes[i], lengths[i]);
        ask.key[lengths[i]] = 0xFF;
        ask.call.value = value_new(ask.key, ask.call.key_length, 10);
        memset(value_bytes(ask.call.value), 0, 10);
        submit(&ask);
        ck_assert_int_eq(wait_for(&ask), STORE_OK);
    }
    static const unsigned counts[] = {2, 2, 1, 2, 1, 2}; /* "\xFF\xFF" begins two keys */
    for (unsigned i = 0; i < 6; i++) {
        struct ask some = ask_all(STORE_INSPECT, prefixes[i], lengths[i]);
        ck_assert_uint_eq(some.call.entries, counts[i]);
        ck_assert(!some.call.approximate);
    }
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "\xFF\xFF", 2).call.entries, 2);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "\0", 1).call.entries, 2);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "b\0", 2).call.entries, 1);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 1);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.size, 2 + 10);
    stop();
}
END_TEST

START_TEST(a_long_range_is_counted_and_cleared)
{
    enum { PUTS = 10000 };
    struct ask *asks = calloc(PUTS, sizeof(*asks));
    start_open();
    for (unsigned n = 0; n < PUTS; n++)
        submit_put(&asks[n], n % 4 == 0 ? "other" : "key", n, 10);
    for (unsigned n = 0; n < PUTS; n++)
        ck_assert_int_eq(wait_for(&asks[n]), STORE_OK);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "key", 3).call.entries, PUTS / 4 * 3);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "key", 3).call.entries, PUTS / 4 * 3);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, PUTS / 4);
    ck_assert(get("other", 4, 10));
    ck_assert(!get("key", 5, 10));
    free(asks);
    stop();
}
END_TEST

static struct ask *first_finished;

static void note_first(struct ask *ask)
{
    if (first_finished == NULL)
        first_finished = ask;
}

/* A CLEAR of many goes in steps: who comes later need not wait for its end, and what is stored
 * while it is under way is not its business. */
START_TEST(others_are_served_while_a_range_is_cleared)
{
    enum { PUTS = 10000 };
    struct ask *asks = calloc(PUTS, sizeof(*asks)), clear, later;
    start_open();
    for (unsigned n = 0; n < PUTS; n++)
        submit_put(&asks[n], "key", n, 10);
    for (unsigned n = 0; n < PUTS; n++)
        ck_assert_int_eq(wait_for(&asks[n]), STORE_OK);
    ck_assert_int_eq(put("other", 1, 10), STORE_OK);
    clear = (struct ask){.call = {.op = STORE_CLEAR, .key_length = 3}, .key = "key"};
    clear.then = note_first;
    submit(&clear);
    submit_put(&later, "key9999-later", 1, 10);
    later.then = note_first;
    ck_assert_int_eq(wait_for(&later), STORE_OK);
    ck_assert_int_eq(wait_for(&clear), STORE_OK);
    ck_assert_ptr_eq(first_finished, &later);
    ck_assert_uint_eq(clear.call.entries, PUTS);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "key", 3).call.entries, 1);
    ck_assert(get("key9999-later", 1, 10));
    ck_assert_int_eq(put("key", 5, 10), STORE_OK);
    free(asks);
    close_store();
    ck_assert_int_eq(ask_file("SELECT entries FROM meta"), 3);
    ck_assert_int_eq(ask_file("SELECT count(*) FROM value WHERE id NOT IN gone"), 3);
    stop();
}
END_TEST

/* The clock was an hour ahead when this was stored, and has been set right since. */
START_TEST(a_clock_set_back_does_not_prolong_a_life)
{
    struct ask ask;
    start_open();
    put_for("key", 1, 60000);
    close_store();
    execute("UPDATE entry SET expires = expires + 3600000; UPDATE meta SET wall = wall + 3600000");
    open_store();
    submit_op(&ask, STORE_HEAD, "key", 1);
    ck_assert_int_eq(wait_for(&ask), STORE_OK);
    ck_assert_int_le(ask.call.expires, clock_now() + 60000);
    ck_assert_int_ge(ask.call.expires, clock_now() + 50000);
    close_store();
    /* It counts from then on, not from each start anew. */
    ck_assert_int_le(ask_file("SELECT expires FROM entry"), clock_to_wall(clock_now()) + 60000);
    stop();
}
END_TEST

START_TEST(a_clock_set_forward_ends_lives)
{
    start_open();
    put_for("key", 1, 60000);
    put("stays", 1, 10);
    close_store();
    execute("UPDATE entry SET expires = expires - 3600000; UPDATE meta SET wall = wall - 3600000");
    open_store();
    ck_assert_int_eq(op(STORE_HEAD, "key", 1), STORE_MISS);
    ck_assert(get("stays", 1, 10));
    ck_assert_int_eq(put_for("key", 1, 60000), STORE_OK);
    ck_assert_int_eq(op(STORE_HEAD, "key", 1), STORE_OK);
    stop();
}
END_TEST

START_TEST(what_has_ended_is_removed)
{
    start_open();
    for (unsigned n = 0; n < 50; n++)
        put_for("key", n, 100);
    put("stays", 1, 10);
    usleep(110000);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 1);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "k", 1).call.entries, 0);
    int64_t end = clock_now() + WAIT_MS;
    while (ask_all(STORE_INSPECT, "", 0).call.size > 20 && clock_now() < end)
        usleep(20000);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.size, 6 + 10);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "", 0).call.entries, 1);
    stop();
}
END_TEST

static void limit_files(rlim_t size)
{
    struct rlimit limit;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = size;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

START_TEST(a_full_disk_is_told_and_harms_nothing)
{
    enum { PUTS = 100 };
    static struct ask asks[PUTS];
    unsigned stored = 0;
    start_open();
    signal(SIGXFSZ, SIG_IGN);
    put_many("key", 45);
    limit_files((rlim_t)size_of("cache.db-wal") + 1000000);
    for (unsigned i = 0; i < PUTS; i++)
        submit_put(&asks[i], "more", i, 50000);
    for (unsigned i = 0; i < PUTS; i++) {
        enum store_status status = wait_for(&asks[i]);
        ck_assert(status == STORE_OK || asks[i].call.error == ERROR_NO_SPACE);
        stored += status == STORE_OK;
    }
    ck_assert_uint_lt(stored, 40);
    ck_assert_uint_eq(count_there("key", 45), 45);
    for (unsigned i = 0; i < PUTS; i++)
        ck_assert_int_eq(get("more", i, 50000), asks[i].call.status == STORE_OK);
    limit_files(RLIM_INFINITY);
    ck_assert_int_eq(put("more", PUTS, 50000), STORE_OK);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 45 + stored + 1);
    persist();
    close_store();
    open_store();
    ck_assert_uint_eq(count_there("key", 45), 45);
    ck_assert(get("more", PUTS, 50000));
    ck_assert(!exists("cache.db.damaged"));
    stop();
}
END_TEST

/* What a user of a full disk does. No write of the log has room, nor a PERSIST needs any. */
START_TEST(a_full_disk_can_be_cleared)
{
    start_open();
    signal(SIGXFSZ, SIG_IGN);
    put_many("key", 45);
    limit_files((rlim_t)size_of("cache.db-wal"));
    ck_assert_int_eq(put("more", 1, 50000), STORE_FAILED);
    persist();
    ck_assert_uint_eq(count_there("key", 45), 45);
    ck_assert_uint_eq(ask_all(STORE_CLEAR, "", 0).call.entries, 45);
    ck_assert_uint_eq(ask_all(STORE_INSPECT, "", 0).call.entries, 0);
    ck_assert_uint_eq(count_there("key", 45), 0);
    put_many("key", 9);
    ck_assert_uint_eq(count_there("key", 9), 9);
    ck_assert(!exists("cache.db.damaged"));
    stop();
}
END_TEST

/* A value for which there is no room is refused for itself; its batch is stored. */
START_TEST(a_large_value_fails_alone)
{
    enum { PUTS = 21 };
    static struct ask asks[PUTS];
    start_open();
    signal(SIGXFSZ, SIG_IGN);
    put_many("key", 9);
    limit_files((rlim_t)size_of("cache.db-wal") + 1000000);
    for (unsigned i = 0; i < PUTS; i++)
        submit_put(&asks[i], "more", i, i == 10 ? 3 << 20 : 1000);
    for (unsigned i = 0; i < PUTS; i++) {
        enum store_status status = wait_for(&asks[i]);
        ck_assert_int_eq(status, i == 10 ? STORE_FAILED : STORE_OK);
        ck_assert(i != 10 || asks[i].call.error == ERROR_NO_SPACE);
        ck_assert_int_eq(get("more", i, 1000), i != 10);
    }
    stop();
}
END_TEST

/* Somebody looks into the file with the sqlite3 shell, and is in no hurry. */
START_TEST(a_foreign_lock_is_waited_for)
{
    char path[NAME_SIZE], byte;
    int ends[2];
    start_open();
    put("key", 1, 100);
    path_of(path, "cache.db");
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        sqlite3 *db = NULL;
        bool ok = sqlite3_open(path, &db) == SQLITE_OK &&
                  sqlite3_busy_timeout(db, WAIT_MS) == SQLITE_OK &&
                  sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK &&
                  write(ends[1], "l", 1) == 1;
        usleep(100000); /* far less than the store waits for it */
        _exit(ok ? 0 : 1);
    }
    ck_assert_int_eq(read(ends[0], &byte, 1), 1);
    ck_assert_int_eq(put("key", 2, 100), STORE_OK);
    ck_assert(get("key", 2, 100));
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    stop();
}
END_TEST

static void add_tests(Suite *suite)
{
    TCase *tcase = suite_case(suite, "store", 60);
    tcase_add_test(tcase, a_clean_end_leaves_one_file);
    tcase_add_test(tcase, every_length_is_kept);
    tcase_add_test(tcase, of_a_batch_of_one_key_one_is_stored);
    tcase_add_test(tcase, reads_do_not_wait_for_writes);
    tcase_add_test(tcase, sqlites_own_limit_is_told);
    tcase_add_test(tcase, prefixes_are_bytes);
    tcase_add_test(tcase, a_long_range_is_counted_and_cleared);
    tcase_add_test(tcase, others_are_served_while_a_range_is_cleared);
    tcase_add_test(tcase, a_foreign_lock_is_waited_for);

    tcase = suite_case(suite, "persist", 60);
    tcase_add_test(tcase, what_was_persisted_survives_a_kill);
    tcase_add_test(tcase, what_was_persisted_survives_a_power_loss);
    tcase_add_test(tcase, persist_covers_its_batch);
    tcase_add_test(tcase, a_transaction_larger_than_the_cache_is_whole);
    tcase_add_loop_test(tcase, a_power_loss_leaves_no_wrong_bytes, 0, 5);
    tcase_add_test(tcase, persist_syncs_only_what_is_new);
    tcase_add_test(tcase, a_failed_sync_is_told_until_the_end);

    tcase = suite_case(suite, "damage", 120);
    tcase_add_loop_test(tcase, flipped_bytes_are_never_answered, 0, 4);
    tcase_add_loop_test(tcase, a_damaged_beginning_is_never_answered, 0, 2);
    tcase_add_test(tcase, zeroed_and_missing_pages_are_never_answered);
    tcase_add_test(tcase, a_damaged_log_is_never_answered);
    tcase_add_test(tcase, garbage_is_set_aside);
    tcase_add_test(tcase, damage_under_way_is_replaced);
    tcase_add_test(tcase, a_damaged_entry_is_a_miss_and_a_line);
    tcase_add_test(tcase, another_programs_file_is_left_alone);
    tcase_add_test(tcase, a_newer_file_is_left_alone);
    tcase_add_test(tcase, a_header_that_does_not_fit_is_damage);

    tcase = suite_case(suite, "space", 60);
    tcase_add_test(tcase, a_quiet_log_is_emptied);
    tcase_add_test(tcase, clear_gives_space_back);
    tcase_add_test(tcase, eviction_keeps_what_was_used_and_gives_space_back);
    tcase_add_test(tcase, last_uses_survive_a_restart);
    tcase_add_test(tcase, an_older_file_is_taken_over);
    tcase_add_test(tcase, puts_evict_by_themselves);
    tcase_add_test(tcase, a_full_disk_is_told_and_harms_nothing);
    tcase_add_test(tcase, a_full_disk_can_be_cleared);
    tcase_add_test(tcase, a_large_value_fails_alone);

    tcase = suite_case(suite, "time", 60);
    tcase_add_test(tcase, a_clock_set_back_does_not_prolong_a_life);
    tcase_add_test(tcase, a_clock_set_forward_ends_lives);
    tcase_add_test(tcase, what_has_ended_is_removed);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/liara-sqlite-XXXXXX", tmp != NULL ? tmp : "/tmp");
    clock_start();
    if (mkdtemp(folder) == NULL)
        return EXIT_FAILURE;
    Suite *suite = suite_create("sqlite");
    add_tests(suite);
    int result = suite_run(suite);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return result;
}
