/*
 * direct: several processes that PUT or GET values, each through its own handle: on one SQLite file
 * in WAL mode, on a file per entry with rename, or through this project's library. What people use
 * instead of a daemon, and a daemon, by the same code. Prints one JSON object.
 */
#include "../../client/liara_cache.h"
#include "histogram.h"
#include "peer.h"
#include "traffic.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROCESSES_MAX = 64, STAMP = 16, BUSY_MS = 60000 };

struct store;

/* A way to keep values; each function exits with a message where something fails. */
struct kind {
    const char *name;
    void (*prepare)(struct store *store); /* once, before the processes are there */
    void (*open)(struct store *store);    /* in each */
    void (*put)(struct store *store, const char *key);
    void (*get)(struct store *store, const char *key);
    void (*persist)(struct store *store); /* once, after all PUTs */
};

struct store {
    const struct kind *kind;
    const char *place;
    size_t size;
    char *value;
    char *buffer; /* of what is got */
    sqlite3 *db;
    sqlite3_stmt *insert, *select;
    struct liara_cache *cache;
    int directory;
    unsigned process;
};

static void fail_sqlite(const struct store *store)
{
    errx(1, "sqlite: %s", sqlite3_errmsg(store->db));
}

static void run_sql(struct store *store, const char *sql)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail_sqlite(store);
}

static void sqlite_connect(struct store *store)
{
    if (sqlite3_open(store->place, &store->db) != SQLITE_OK)
        fail_sqlite(store);
    sqlite3_busy_timeout(store->db, BUSY_MS);
    run_sql(store, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL");
}

static void sqlite_prepare(struct store *store)
{
    sqlite_connect(store);
    run_sql(store, "CREATE TABLE IF NOT EXISTS cache (key BLOB PRIMARY KEY, value BLOB)");
    sqlite3_close(store->db);
}

static void sqlite_open(struct store *store)
{
    sqlite_connect(store);
    if (sqlite3_prepare_v2(store->db, "INSERT OR IGNORE INTO cache VALUES (?, ?)", -1,
                           &store->insert, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(store->db, "SELECT value FROM cache WHERE key = ?", -1, &store->select,
                           NULL) != SQLITE_OK)
        fail_sqlite(store);
}

static void sqlite_put(struct store *store, const char *key)
{
    sqlite3_bind_blob(store->insert, 1, key, PEER_KEY, SQLITE_STATIC);
    sqlite3_bind_blob(store->insert, 2, store->value, (int)store->size, SQLITE_STATIC);
    if (sqlite3_step(store->insert) != SQLITE_DONE)
        fail_sqlite(store);
    sqlite3_reset(store->insert);
}

static void sqlite_get(struct store *store, const char *key)
{
    sqlite3_bind_blob(store->select, 1, key, PEER_KEY, SQLITE_STATIC);
    if (sqlite3_step(store->select) != SQLITE_ROW ||
        sqlite3_column_bytes(store->select, 0) != (int)store->size)
        fail_sqlite(store);
    memcpy(store->buffer, sqlite3_column_blob(store->select, 0), store->size);
    sqlite3_reset(store->select);
}

static void nothing(struct store *store)
{
    (void)store;
}

static void files_open(struct store *store)
{
    store->directory = open(store->place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->directory < 0)
        err(1, "%s", store->place);
}

static void files_prepare(struct store *store)
{
    char name[8];
    if (mkdir(store->place, 0700) != 0 && errno != EEXIST)
        err(1, "%s", store->place);
    files_open(store);
    for (unsigned i = 0; i < 256; i++) {
        snprintf(name, sizeof(name), "%02x", i);
        if (mkdirat(store->directory, name, 0700) != 0 && errno != EEXIST)
            err(1, "%s/%s", store->place, name);
    }
    close(store->directory);
}

/* A key's file: its last digits choose the folder. */
static void file_name(char name[64], const char *key)
{
    snprintf(name, 64, "%.2s/%.*s", key + PEER_KEY - 2, PEER_KEY - 4, key + 4);
}

static void files_put(struct store *store, const char *key)
{
    char name[64], beside[32];
    file_name(name, key);
    snprintf(beside, sizeof(beside), "%.2s/new-%u", key + PEER_KEY - 2, store->process);
    int fd = openat(store->directory, beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, store->value, store->size) != (ssize_t)store->size || close(fd) != 0 ||
        renameat(store->directory, beside, store->directory, name) != 0)
        err(1, "%s/%s", store->place, name);
}

static void files_get(struct store *store, const char *key)
{
    char name[64];
    file_name(name, key);
    int fd = openat(store->directory, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, store->buffer, store->size) != (ssize_t)store->size)
        err(1, "%s/%s", store->place, name);
    close(fd);
}

static void cache_open(struct store *store)
{
    if (liara_cache_open(&store->cache, store->place) != LIARA_CACHE_OK)
        errx(1, "liara: %s", liara_cache_error(store->cache));
}

static void check_cache(struct store *store, enum liara_cache_status status)
{
    if (status != LIARA_CACHE_OK)
        errx(1, "liara: %s %s", liara_cache_status_name(status), liara_cache_error(store->cache));
}

static void cache_put(struct store *store, const char *key)
{
    check_cache(store,
                liara_cache_put(store->cache, key, PEER_KEY, store->value, store->size, NULL));
}

static void cache_get(struct store *store, const char *key)
{
    struct liara_cache_value value;
    check_cache(store, liara_cache_get_into(store->cache, key, PEER_KEY, store->buffer, store->size,
                                            &value));
    if (value.length != store->size)
        errx(1, "liara: a value of another length");
}

static void cache_persist(struct store *store)
{
    cache_open(store);
    liara_cache_set_long_timeout(store->cache, 0);
    check_cache(store, liara_cache_persist(store->cache, NULL));
    liara_cache_close(store->cache);
}

static const struct kind kinds[] = {
    {"sqlite", sqlite_prepare, sqlite_open, sqlite_put, sqlite_get, nothing},
    {"files", files_prepare, files_open, files_put, files_get, nothing},
    {"liara", nothing, cache_open, cache_put, cache_get, cache_persist},
};

/* What the processes and their parent share. */
struct shared {
    atomic_uint ready;
    atomic_bool go;
    struct histogram latencies[PROCESSES_MAX];
};

struct settings {
    unsigned processes;
    uint64_t count, first;
    bool get;
};

static void one(struct store *store, const struct settings *settings, uint64_t number)
{
    char key[PEER_KEY];
    peer_key(key, settings->first + number);
    size_t stamp = store->size < STAMP ? store->size : STAMP;
    if (!settings->get) {
        memcpy(store->value, key + PEER_KEY - STAMP, stamp);
        store->kind->put(store, key);
        return;
    }
    store->kind->get(store, key);
    if (memcmp(store->buffer, key + PEER_KEY - STAMP, stamp) != 0)
        errx(1, "%s: another key's value", store->kind->name);
}

/* Process p has the keys p, p + processes, ... */
static void work(struct store *store, const struct settings *settings, struct shared *shared)
{
    struct histogram *latencies = &shared->latencies[store->process];
    store->kind->open(store);
    atomic_fetch_add(&shared->ready, 1);
    while (!atomic_load(&shared->go))
        poll(NULL, 0, 1);
    for (uint64_t i = store->process; i < settings->count; i += settings->processes) {
        uint64_t before = traffic_clock();
        one(store, settings, i);
        histogram_add(latencies, traffic_clock() - before);
    }
}

static void start(struct store *store, const struct settings *settings, struct shared *shared)
{
    for (unsigned i = 0; i < settings->processes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            err(1, "fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            store->process = i;
            work(store, settings, shared);
            exit(0);
        }
    }
}

/* False where any of them failed. */
static bool wait_for_all(unsigned processes)
{
    bool good = true;
    for (unsigned i = 0; i < processes; i++) {
        int status;
        good &= wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    return good;
}

static void report(const struct store *store, const struct settings *settings, uint64_t wall,
                   uint64_t persist, struct shared *shared)
{
    struct histogram *all = &shared->latencies[0];
    for (unsigned i = 1; i < settings->processes; i++)
        histogram_merge(all, &shared->latencies[i]);
    double count = (double)settings->count, seconds = (double)wall / 1e9;
    printf("{\"kind\": \"%s\", \"requests\": %.0f, \"seconds\": %.6f, \"rate\": %.1f, "
           "\"persist_ms\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
           "\"max_us\": %.3f}\n",
           store->kind->name, count, seconds, count / seconds, (double)persist / 1e6,
           (double)histogram_at(all, 0.5) / 1e3, (double)histogram_at(all, 0.99) / 1e3,
           (double)histogram_at(all, 0.999) / 1e3, (double)all->most / 1e3);
}

static void measure(struct store *store, const struct settings *settings)
{
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        err(1, "no memory");
    store->kind->prepare(store);
    start(store, settings, shared);
    for (unsigned waited = 0; atomic_load(&shared->ready) < settings->processes; waited++) {
        if (waited == 30000)
            errx(1, "a process did not start");
        poll(NULL, 0, 1);
    }
    uint64_t from = traffic_clock();
    atomic_store(&shared->go, true);
    if (!wait_for_all(settings->processes))
        errx(1, "a process failed");
    uint64_t persisting = traffic_clock();
    if (!settings->get)
        store->kind->persist(store);
    uint64_t end = traffic_clock();
    report(store, settings, end - from, end - persisting, shared);
}

static const struct kind *find_kind(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    }
    return NULL;
}

static void make_value(struct store *store)
{
    store->value = malloc(store->size + 1);
    store->buffer = malloc(store->size + 1);
    if (store->value == NULL || store->buffer == NULL)
        err(1, "no memory");
    srand48(1);
    for (size_t i = 0; i < store->size; i++)
        store->value[i] = (char)lrand48();
}

int main(int argc, char **argv)
{
    struct settings settings = {.processes = 8, .count = 10000};
    struct store store = {.size = 4096};
    int option;
    while ((option = getopt(argc, argv, "p:n:s:f:g")) != -1) {
        if (option == 'p')
            settings.processes = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 'n')
            settings.count = strtoull(optarg, NULL, 10);
        else if (option == 's')
            store.size = strtoull(optarg, NULL, 10);
        else if (option == 'f')
            settings.first = strtoull(optarg, NULL, 10);
        else if (option == 'g')
            settings.get = true;
        else
            optind = argc;
    }
    store.kind = optind == argc - 2 ? find_kind(argv[optind]) : NULL;
    if (store.kind == NULL || settings.processes < 1 || settings.processes > PROCESSES_MAX)
        errx(2, "usage: direct [-p processes] [-n count] [-s bytes] [-f first key] [-g] "
                "sqlite|files|liara PLACE; -g: GETs");
    store.place = argv[optind + 1];
    make_value(&store);
    measure(&store, &settings);
    return 0;
}
