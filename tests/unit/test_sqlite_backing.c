/*
 * The engine's backing in a SQLite database (daemon/store/sqlite/), against an owner that is no
 * more than a table: after a kill, a power loss, damage anywhere, failing calls and on a full disk,
 * what was synced is there or a miss, and nothing older.
 *
 * Each key goes through versions, 1, 2, 3 …; a value's bytes and flags tell its version. Power loss
 * is simulated: the program's own fdatasync() keeps what a file held at its last sync.
 */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/log.h"
#include "../../daemon/store/engine/backing.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEYS = 400, VERSIONS = 64, NAME_SIZE = 300, FILES = 3, MIB = 1 << 20 };

static const char *const file_names[FILES] = {"cache.db", "cache.db-wal", "cache.anchor"};

/* The folder of the whole run; set once by main(). */
static char folder[128];

struct image {
    uint8_t *bytes[FILES]; /* NULL: there is no such file */
    size_t sizes[FILES];
};

/* What the C library's calls meet in the folder under test. */
static struct disk {
    pthread_mutex_t lock;
    char directory[200];
    struct image synced;
    unsigned syncs, log_syncs, calls;
    unsigned fail_sync; /* this one from now on fails; 0: none */
    unsigned fail_call; /* likewise, of all writes, cuts and syncs */
    int error;
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

enum rule { KEEP_ALL, DROP_ALL, KEEP_EVEN, DROP_URGENT };

struct key {
    uint64_t place;
    unsigned version;       /* the last that was tried */
    unsigned good, synced;  /* the last that was written, and that a sync covered */
    bool removed[VERSIONS]; /* that version is a removal */
};

static struct bench {
    char directory[200];
    struct backing *backing;
    uint8_t secret[BACKING_SECRET];
    uint64_t max_size;
    enum rule rule;
    struct key keys[KEYS];
    unsigned found, forgotten, lost;
    uint64_t last_lost, last_place;
} bench;

/* The disk. */

static int file_of(int fd)
{
    char link[64], path[NAME_SIZE];
    size_t length = strlen(disk.directory);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof(path) - 1);
    if (size < 0 || length == 0)
        return -1;
    path[size] = '\0';
    if (strncmp(path, disk.directory, length) != 0)
        return -1;
    for (int i = 0; i < FILES; i++) {
        if (strcmp(path + length, "") == 0)
            return FILES;
        if (path[length] == '/' && strcmp(path + length + 1, file_names[i]) == 0)
            return i;
    }
    return -1;
}

static void keep_content(int fd, int file)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        abort();
    free(disk.synced.bytes[file]);
    disk.synced.sizes[file] = (size_t)st.st_size;
    disk.synced.bytes[file] = malloc((size_t)st.st_size + 1);
    if (disk.synced.bytes[file] == NULL ||
        pread(fd, disk.synced.bytes[file], (size_t)st.st_size, 0) != st.st_size)
        abort();
}

/* Whether this call is to fail. */
static bool fails(int file, bool sync)
{
    if (file < 0)
        return false;
    disk.calls++;
    bool now = disk.fail_call > 0 && --disk.fail_call == 0;
    if (sync) {
        disk.syncs++;
        disk.log_syncs += file == 1;
        now |= disk.fail_sync > 0 && --disk.fail_sync == 0;
    }
    return now;
}

static int sync_fd(int fd)
{
    pthread_mutex_lock(&disk.lock);
    int file = file_of(fd);
    bool broken = fails(file, true);
    if (!broken && file >= 0 && file < FILES)
        keep_content(fd, file);
    pthread_mutex_unlock(&disk.lock);
    errno = broken ? disk.error : errno;
    return broken ? -1 : 0;
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    return sync_fd(fd);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
    return sync_fd(fd);
}

static bool write_fails(int fd)
{
    pthread_mutex_lock(&disk.lock);
    bool broken = disk.fail_call > 0 && fails(file_of(fd), false);
    pthread_mutex_unlock(&disk.lock);
    errno = broken ? disk.error : errno;
    return broken;
}

__attribute__((visibility("default"))) ssize_t pwrite64(int fd, const void *bytes, size_t size,
                                                        off64_t offset)
{
    return write_fails(fd) ? -1 : syscall(SYS_pwrite64, fd, bytes, size, offset);
}

__attribute__((visibility("default"))) int ftruncate64(int fd, off64_t size)
{
    return write_fails(fd) ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

static void path_of(char path[NAME_SIZE], const char *name)
{
    snprintf(path, NAME_SIZE, "%s/%s", bench.directory, name);
}

static uint8_t *read_file(const char *name, size_t *size)
{
    char path[NAME_SIZE];
    struct stat st;
    path_of(path, name);
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    ck_assert_int_eq(fstat(fd, &st), 0);
    uint8_t *bytes = malloc((size_t)st.st_size + 1);
    ck_assert_ptr_nonnull(bytes);
    ck_assert_int_eq(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    *size = (size_t)st.st_size;
    close(fd);
    return bytes;
}

static void write_file(const char *name, const uint8_t *bytes, size_t size)
{
    char path[NAME_SIZE];
    path_of(path, name);
    unlink(path);
    if (bytes == NULL)
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, size), (ssize_t)size);
    close(fd);
}

/* As a kill leaves them. */
static struct image take_image(void)
{
    struct image image;
    for (unsigned i = 0; i < FILES; i++)
        image.bytes[i] = read_file(file_names[i], &image.sizes[i]);
    return image;
}

static void free_image(struct image *image)
{
    for (unsigned i = 0; i < FILES; i++)
        free(image->bytes[i]);
    *image = (struct image){0};
}

/* The owner. */

static struct key *key_of(uint64_t hash)
{
    ck_assert(hash >= 1 && hash <= KEYS);
    return &bench.keys[hash - 1];
}

static void found(void *arg, const struct backing_found *entries, unsigned count)
{
    ck_assert_ptr_eq(arg, &bench);
    ck_assert(count >= 1 && count <= BACKING_FOUND_MAX);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_uint_gt(entries[i].place, bench.last_place);
        bench.last_place = entries[i].place;
        key_of(entries[i].hash)->place = entries[i].place;
        bench.found++;
    }
}

static enum backing_verdict judge(void *arg, uint64_t hash, uint64_t place, bool urgent)
{
    (void)arg;
    if (key_of(hash)->place != place)
        return BACKING_DEAD;
    if (bench.rule == KEEP_ALL || (bench.rule == DROP_URGENT && !urgent) ||
        (bench.rule == KEEP_EVEN && hash % 2 == 0 && !urgent))
        return BACKING_KEEP;
    return BACKING_DROP;
}

static bool moved(void *arg, uint64_t hash, uint64_t from, uint64_t to)
{
    (void)arg, (void)hash, (void)from, (void)to;
    ck_abort_msg("this backing moves nothing");
    return false;
}

static void forget(void *arg, uint64_t hash, uint64_t place)
{
    (void)arg;
    bench.forgotten++;
    if (hash != 0 && key_of(hash)->place == place)
        key_of(hash)->place = 0;
}

static void lost(void *arg, uint64_t first, uint64_t last)
{
    (void)arg;
    bench.lost++;
    bench.last_lost = last;
    for (unsigned i = 0; i < KEYS; i++) {
        if (bench.keys[i].place >= first && bench.keys[i].place <= last)
            bench.keys[i].place = 0;
    }
}

/* The store. */

static bool try_open(char *why, size_t size)
{
    struct backing_options options = {
        .directory = bench.directory,
        .max_size = bench.max_size,
        .owner = {&bench, found, judge, moved, forget, lost},
    };
    bench.backing = backing_sqlite.open(&options, bench.secret, why, size);
    return bench.backing != NULL;
}

static void open_store(void)
{
    char why[1024] = "";
    ck_assert_msg(try_open(why, sizeof(why)), "%s", why);
    for (unsigned i = 0; i < KEYS; i++)
        bench.keys[i].place = 0;
    bench.found = bench.lost = bench.forgotten = 0;
    bench.last_place = 0;
    ck_assert_msg(backing_sqlite.load(bench.backing, why, sizeof(why)), "%s", why);
}

static void close_store(void)
{
    backing_sqlite.close(bench.backing);
    bench.backing = NULL;
    ck_assert_uint_eq(value_total(), 0);
}

static void enter(const char *name)
{
    static unsigned number;
    snprintf(bench.directory, sizeof(bench.directory), "%s/%d-%s-%u", folder, (int)getpid(), name,
             number++);
    ck_assert_int_eq(mkdir(bench.directory, 0700), 0);
}

static void start(void)
{
    log_open((enum log_level)0);
    bench.max_size = 256 * MIB;
    bench.rule = KEEP_ALL;
    disk.error = EIO;
    enter("store");
    memcpy(disk.directory, bench.directory, sizeof(disk.directory));
    open_store();
}

static void stop(void)
{
    if (bench.backing != NULL)
        close_store();
    free_image(&disk.synced);
}

static size_t key_bytes(unsigned n, uint8_t *bytes)
{
    return (size_t)sprintf((char *)bytes, "key-%u", n);
}

/* Lengths about pages and their halves, none and many pages. */
static uint32_t length_of(unsigned n, unsigned version)
{
    static const uint32_t lengths[] = {0,   1,     100, 900,   4096, 16384, 50,
                                       300, 32700, 500, 65536, 2000, 200};
    return lengths[(n * 7 + version) % 13];
}

static void fill(uint8_t *bytes, size_t length, unsigned n, unsigned version)
{
    uint32_t x = (n * 64 + version) * 2654435761u + 1;
    for (size_t i = 0; i < length; i++) {
        x = x * 1664525 + 1013904223;
        bytes[i] = (uint8_t)(x >> 24);
    }
}

/* The next version of n, whose bytes the caller frees. */
static struct backing_record next_version(unsigned n, bool remove, uint32_t length)
{
    struct key *key = &bench.keys[n];
    unsigned version = ++key->version;
    struct backing_record record = {.hash = n + 1, .replaces = key->place, .expires = CLOCK_NEVER};
    ck_assert_uint_lt(version, VERSIONS);
    key->removed[version] = remove;
    if (remove)
        return record;
    uint8_t *data = malloc(64 + (size_t)length);
    ck_assert_ptr_nonnull(data);
    record.key_length = (uint16_t)key_bytes(n, data);
    record.length = length;
    record.flags = version;
    record.cost = (uint8_t)n;
    fill(data + record.key_length, length, n, version);
    record.data = data;
    return record;
}

static void free_record(struct backing_record *record)
{
    free((void *)(uintptr_t)record->data);
}

/* As the engine does: places change when the batch is written. */
static int append(struct backing_record *records, unsigned count)
{
    int error = backing_sqlite.append(bench.backing, records, count);
    for (unsigned i = 0; i < count; i++) {
        struct key *key = key_of(records[i].hash);
        if (error == 0) {
            key->place = records[i].place;
            key->good = key->version;
        }
        free_record(&records[i]);
    }
    return error;
}

static int put_range(unsigned from, unsigned to)
{
    struct backing_record records[KEYS];
    for (unsigned n = from; n < to; n++)
        records[n - from] = next_version(n, false, length_of(n, bench.keys[n].version + 1));
    return append(records, to - from);
}

static int put(unsigned n, uint32_t length)
{
    struct backing_record record = next_version(n, false, length);
    return append(&record, 1);
}

static int remove_key(unsigned n)
{
    struct backing_record record = next_version(n, true, 0);
    return append(&record, 1);
}

static void note_synced(void)
{
    for (unsigned i = 0; i < KEYS; i++)
        bench.keys[i].synced = bench.keys[i].good;
}

static void sync_store(void)
{
    ck_assert_int_eq(backing_sqlite.sync(bench.backing), 0);
    note_synced();
}

static enum backing_read read_place(unsigned n, uint64_t place, struct value **value)
{
    uint8_t key[64];
    size_t length = key_bytes(n, key);
    return backing_sqlite.read(bench.backing, place, 1 << 20, key, length, true, value);
}

/* The version that is there; 0: a miss. Its bytes are right. */
static unsigned version_of(unsigned n)
{
    struct value *value = NULL;
    if (bench.keys[n].place == 0)
        return 0;
    enum backing_read result = read_place(n, bench.keys[n].place, &value);
    if (result != BACKING_READ_OK) {
        ck_assert(result == BACKING_READ_GONE || result == BACKING_READ_DAMAGED);
        return 0;
    }
    unsigned version = value->flags;
    uint8_t *bytes = malloc((size_t)value->length + 1);
    ck_assert_ptr_nonnull(bytes);
    fill(bytes, value->length, n, version);
    ck_assert_int_eq(memcmp(bytes, value_bytes(value), value->length), 0);
    free(bytes);
    value_unref(value);
    return version;
}

/* Nothing is older than what was synced. exact: what was written last is there. */
static void check(bool exact)
{
    for (unsigned n = 0; n < KEYS; n++) {
        const struct key *key = &bench.keys[n];
        unsigned version = version_of(n);
        if (exact)
            ck_assert_uint_eq(version, key->removed[key->good] ? 0 : key->good);
        else if (version != 0)
            ck_assert_msg(version >= key->synced && version <= key->good && !key->removed[version],
                          "key %u is back at version %u, synced was %u", n, version, key->synced);
    }
}

/* Goes on with a copy in a folder of its own, checks it, comes back. */
static void check_image(const struct image *image, bool exact)
{
    struct bench here = bench;
    enter("image");
    for (unsigned i = 0; i < FILES; i++)
        write_file(file_names[i], image->bytes[i], image->sizes[i]);
    open_store();
    check(exact);
    close_store();
    static const char *const left[] = {"cache.db",
                                       "cache.db-wal",
                                       "cache.db-shm",
                                       "cache.db.damaged",
                                       "cache.db.damaged-wal",
                                       "cache.anchor",
                                       "cache.db.damaged-shm"};
    for (unsigned i = 0; i < sizeof(left) / sizeof(left[0]); i++)
        write_file(left[i], NULL, 0);
    ck_assert_int_eq(rmdir(bench.directory), 0);
    bench = here;
}

START_TEST(what_is_written_is_read)
{
    struct value *value = NULL;
    ck_assert_int_eq(put_range(0, KEYS), 0);
    check(true);
    uint64_t place = bench.keys[5].place;
    ck_assert_int_eq(read_place(6, place, &value), BACKING_READ_OTHER);
    ck_assert_int_eq(read_place(6, place + KEYS, &value), BACKING_READ_GONE);
    ck_assert_int_eq(backing_sqlite.read(bench.backing, place, 1, NULL, 0, false, &value),
                     BACKING_READ_AGAIN);
    ck_assert_int_eq(put(5, 20 * MIB), 0);
    ck_assert_int_eq(read_place(5, place, &value), BACKING_READ_GONE);
    ck_assert_int_eq(remove_key(6), 0);
    check(true);
    ck_assert_uint_gt(backing_sqlite.stats(bench.backing).written_bytes, 20 * MIB);
}
END_TEST

START_TEST(ends_are_kept_and_clamped)
{
    int64_t end = clock_now() + 1000000;
    struct backing_record record = next_version(1, false, 10);
    record.expires = end;
    ck_assert_int_eq(append(&record, 1), 0);
    struct value *value = NULL;
    ck_assert_int_eq(read_place(1, bench.keys[1].place, &value), BACKING_READ_OK);
    ck_assert_int_eq(value->expires, end);
    value_unref(value);
}
END_TEST

START_TEST(a_restart_finds_all_and_gives_new_places)
{
    uint8_t secret[BACKING_SECRET];
    ck_assert_int_eq(put_range(0, KEYS), 0);
    for (unsigned n = 0; n < KEYS; n += 3)
        ck_assert_int_eq(n % 2 ? remove_key(n) : put(n, 1000), 0);
    uint64_t last = 0;
    for (unsigned n = 0; n < KEYS; n++)
        last = bench.keys[n].place > last ? bench.keys[n].place : last;
    memcpy(secret, bench.secret, sizeof(secret));
    for (unsigned round = 0; round < 2; round++) {
        close_store();
        open_store();
        ck_assert_mem_eq(secret, bench.secret, sizeof(secret));
        ck_assert_uint_eq(bench.found, KEYS - 67);
        check(true);
    }
    ck_assert_int_eq(put(0, 5), 0);
    ck_assert_uint_gt(bench.keys[0].place, last);
}
END_TEST

/* As if the owner had lost track: a second record of a hash that replaces none. */
START_TEST(of_two_records_of_a_hash_the_last_counts)
{
    ck_assert_int_eq(put(3, 100), 0);
    uint64_t older = bench.keys[3].place;
    bench.keys[3].place = 0;
    ck_assert_int_eq(put(3, 200), 0);
    close_store();
    open_store();
    ck_assert_uint_eq(bench.found, 2);
    check(true);
    struct value *value;
    ck_assert_int_eq(read_place(3, older, &value), BACKING_READ_GONE);
    ck_assert_int_eq(remove_key(3), 0);
    close_store();
    open_store();
    ck_assert_uint_eq(bench.found, 0);
}
END_TEST

START_TEST(a_batch_counts_as_a_whole)
{
    struct backing_record records[3];
    ck_assert_int_eq(put(1, 100), 0);
    uint64_t place = bench.keys[1].place;
    records[0] = next_version(1, false, 50);
    records[1] = next_version(2, false, 50);
    records[2] = next_version(3, false, 50);
    uint32_t length = records[2].length;
    records[2].length = 1000000000;
    ck_assert_int_eq(backing_sqlite.append(bench.backing, records, 3), EFBIG);
    records[2].length = length;
    for (unsigned i = 0; i < 3; i++)
        free_record(&records[i]);
    ck_assert_uint_eq(place, bench.keys[1].place);
    check(true);
    close_store();
    open_store();
    check(true);
}
END_TEST

static bool see(void *arg, const struct backing_found *one)
{
    unsigned *seen = arg;
    uint8_t key[64];
    size_t length = key_bytes((unsigned)one->hash - 1, key);
    ck_assert_uint_eq(one->key_length, length);
    ck_assert_int_eq(memcmp(one->key, key, length), 0);
    ck_assert_uint_eq(one->place, key_of(one->hash)->place);
    ck_assert_uint_eq(one->cost, (uint8_t)(one->hash - 1));
    (*seen)++;
    return true;
}

START_TEST(a_scan_tells_all_keys)
{
    uint64_t cursor = 0;
    unsigned seen = 0, pages = 0;
    ck_assert_int_eq(put_range(0, KEYS), 0);
    ck_assert_int_eq(remove_key(7), 0);
    while (backing_sqlite.scan(bench.backing, &cursor, see, &seen))
        pages++;
    ck_assert_int_eq(errno, 0);
    ck_assert_uint_eq(seen, KEYS - 1);
    ck_assert_uint_gt(pages, 3);
}
END_TEST

/* One fdatasync of the log makes a commit durable, and a second, of the anchor, removals. */
START_TEST(a_sync_costs_what_it_must)
{
    sync_store();
    ck_assert_int_eq(put_range(0, 50), 0);
    unsigned syncs = disk.syncs, log_syncs = disk.log_syncs;
    sync_store();
    ck_assert_uint_eq(disk.syncs, syncs + 1);
    ck_assert_uint_eq(disk.log_syncs, log_syncs + 1);
    sync_store();
    ck_assert_uint_eq(disk.syncs, syncs + 1);
    ck_assert_int_eq(put_range(0, 50), 0);
    ck_assert_uint_eq(disk.syncs, syncs + 1);
    sync_store();
    ck_assert_uint_eq(disk.syncs, syncs + 3);
}
END_TEST

/* Random changes, a kill or a power loss after each few of them. */
static void run_changes(unsigned seed, unsigned rounds, bool look)
{
    srand(seed);
    for (unsigned i = 0; i < rounds; i++) {
        unsigned from = (unsigned)rand() % (KEYS - 12);
        switch (rand() % 8) {
        case 0:
        case 1:
        case 2:
            ck_assert_int_eq(put_range(from, from + 1 + (unsigned)rand() % 12), 0);
            break;
        case 3:
        case 4:
            ck_assert_int_eq(remove_key(from), 0);
            break;
        case 5:
            sync_store();
            if (look)
                check_image(&disk.synced, true);
            break;
        case 6:
            backing_sqlite.upkeep(bench.backing, (uint64_t)rand() % 2 * 100000);
            if (look)
                check_image(&disk.synced, false);
            break;
        default:
            if (look) {
                struct image image = take_image();
                check_image(&image, true);
                check_image(&disk.synced, false);
                free_image(&image);
            }
        }
    }
}

START_TEST(a_kill_or_a_power_loss_loses_nothing_that_was_synced)
{
    run_changes((unsigned)_i, 120, true);
}
END_TEST

/* A database whose pages hold one generation and whose log a later one. */
static struct image make_two_generations(void)
{
    ck_assert_int_eq(put_range(0, KEYS), 0);
    sync_store();
    backing_sqlite.upkeep(bench.backing, 0);
    for (unsigned n = 0; n < KEYS; n += 20) {
        ck_assert_int_eq(put_range(n, n + 5), 0);
        ck_assert_int_eq(remove_key(n + 7), 0);
    }
    sync_store();
    ck_assert_int_eq(put(1, 100), 0);
    return take_image();
}

static unsigned rounds_of(unsigned otherwise)
{
    const char *text = getenv("LIARA_ROUNDS");
    return text != NULL ? (unsigned)atoi(text) : otherwise;
}

static void damage(uint8_t *bytes, size_t size)
{
    size_t at = (size_t)rand() % size;
    size_t length = 1;
    switch (rand() % 4) {
    case 0:
        bytes[at] ^= (uint8_t)(1u << rand() % 8);
        return;
    case 1:
        at = at / 512 * 512;
        length = 512;
        break;
    case 2:
        at = at / 4096 * 4096;
        length = 4096;
        break;
    default:
        break;
    }
    for (size_t i = at; i < at + length && i < size; i++)
        bytes[i] = length == 4096 ? 0 : (uint8_t)rand();
}

START_TEST(a_damaged_spot_lets_nothing_older_count)
{
    struct image image = make_two_generations();
    check_image(&image, true);
    srand((unsigned)_i + 1);
    for (unsigned round = 0; round < rounds_of(30); round++) {
        unsigned file = (unsigned)_i;
        struct image copy = image;
        copy.bytes[file] = malloc(image.sizes[file] + 1);
        ck_assert_ptr_nonnull(copy.bytes[file]);
        memcpy(copy.bytes[file], image.bytes[file], image.sizes[file]);
        /* Half of them in the first pages, which say where all others are. */
        size_t size = rand() % 2 && file == 0 ? 8 * 32768 : image.sizes[file];
        damage(copy.bytes[file], size < image.sizes[file] ? size : image.sizes[file]);
        check_image(&copy, false);
        free(copy.bytes[file]);
    }
    free_image(&image);
}
END_TEST

START_TEST(a_log_that_is_cut_or_gone_lets_nothing_older_count)
{
    struct image image = make_two_generations(), copy = image;
    for (unsigned i = 0; i < 20; i++) {
        copy.sizes[1] = image.sizes[1] / 20 * i;
        check_image(&copy, false);
    }
    copy.bytes[1] = NULL;
    check_image(&copy, false);
    copy = image;
    copy.bytes[2] = NULL;
    check_image(&copy, false);
    free_image(&image);
}
END_TEST

/* Commits behind the last removal that was synced only bring what is new: to lose them is no reason
 * to lose the rest. */
START_TEST(a_log_that_lacks_only_new_records_keeps_the_others)
{
    ck_assert_int_eq(put_range(0, 200), 0);
    sync_store();
    backing_sqlite.upkeep(bench.backing, 0);
    ck_assert_int_eq(put_range(200, KEYS), 0);
    sync_store();
    struct image image = take_image(), copy = image;
    copy.bytes[1] = NULL;
    struct bench here = bench;
    enter("image");
    for (unsigned i = 0; i < FILES; i++)
        write_file(file_names[i], copy.bytes[i], copy.sizes[i]);
    open_store();
    ck_assert_uint_eq(bench.found, 200);
    check(false);
    close_store();
    bench = here;
    free_image(&image);
}
END_TEST

START_TEST(a_failed_sync_gives_the_database_up)
{
    struct value *value;
    ck_assert_int_eq(put_range(0, 100), 0);
    sync_store();
    ck_assert_int_eq(put_range(50, 150), 0);
    uint64_t place = bench.keys[0].place, last = bench.keys[149].place;
    disk.fail_sync = 1;
    ck_assert_int_eq(backing_sqlite.sync(bench.backing), EIO);
    ck_assert_uint_eq(bench.lost, 1);
    ck_assert_uint_eq(bench.last_lost, last);
    ck_assert_int_eq(read_place(0, place, &value), BACKING_READ_GONE);
    ck_assert_int_eq(put_range(10, 60), 0);
    ck_assert_uint_gt(bench.keys[10].place, last);
    sync_store();
    check_image(&disk.synced, false);
    check(false);
    close_store();
    open_store();
    ck_assert_uint_eq(bench.found, 50);
    check(false);
}
END_TEST

/* The checkpoint's syncs: the engine hears of it by lost(), and the next sync says so once. */
START_TEST(a_failed_checkpoint_gives_the_database_up)
{
    ck_assert_int_eq(put_range(0, 100), 0);
    sync_store();
    ck_assert_int_eq(put_range(50, 150), 0);
    disk.fail_sync = 1 + (unsigned)_i;
    backing_sqlite.upkeep(bench.backing, 0);
    ck_assert_uint_eq(bench.lost, 1);
    ck_assert_int_eq(backing_sqlite.sync(bench.backing), EIO);
    ck_assert_int_eq(put_range(0, 10), 0);
    sync_store();
    check_image(&disk.synced, false);
}
END_TEST

/* Each call fails once, and in another run each from then on for a while. Whatever a sync that said
 * OK has covered is there after a power loss; nothing older is. */
START_TEST(any_call_may_fail)
{
    for (unsigned at = 1, failed = 1; failed; at += 1 + at / 15) {
        stop();
        memset(&bench, 0, sizeof(bench));
        start();
        if (_i == 1)
            disk.error = ENOSPC;
        ck_assert_int_eq(put_range(0, 60), 0);
        sync_store();
        disk.fail_call = at;
        bool synced = false;
        for (unsigned i = 0; i < 6; i++) {
            int error = put_range(i * 10, i * 10 + 30);
            if (error == 0 && i % 2)
                error = remove_key(i * 10 + 1);
            synced = error == 0 && backing_sqlite.sync(bench.backing) == 0;
            if (synced)
                note_synced();
            backing_sqlite.upkeep(bench.backing, i % 2 * 100000);
        }
        failed = disk.fail_call == 0;
        disk.fail_call = 0;
        int error = backing_sqlite.sync(bench.backing);
        if (error != 0)
            error = backing_sqlite.sync(bench.backing);
        ck_assert_int_eq(error, 0);
        /* What the owner's table names is on the disk. */
        for (unsigned n = 0; n < KEYS; n++) {
            if (bench.keys[n].place != 0)
                ck_assert_uint_ne(version_of(n), 0);
        }
        check_image(&disk.synced, false);
        struct image image = take_image();
        check_image(&image, false);
        free_image(&image);
    }
}
END_TEST

static uint64_t disk_bytes(void)
{
    return backing_sqlite.stats(bench.backing).disk_bytes;
}

START_TEST(eviction_keeps_to_the_bound)
{
    static const enum rule rules[] = {DROP_ALL, KEEP_EVEN, DROP_URGENT};
    bench.rule = rules[_i];
    backing_sqlite.set_max_size(bench.backing, 8 * MIB);
    for (unsigned i = 0; i < 400; i++) {
        ck_assert_int_eq(put(i, 60000), 0);
        backing_sqlite.upkeep(bench.backing, 60000);
        ck_assert_uint_le(disk_bytes(), 8 * MIB);
    }
    ck_assert_uint_gt(bench.forgotten, 100);
    ck_assert_uint_gt(disk_bytes(), 5 * MIB);
    unsigned there = 0;
    for (unsigned n = 0; n < KEYS; n++) {
        unsigned version = version_of(n);
        ck_assert(version == (bench.keys[n].place != 0 ? bench.keys[n].good : 0));
        there += version != 0;
    }
    ck_assert_uint_gt(there, 70);
    close_store();
    open_store();
    ck_assert_uint_eq(bench.found, there);
    check(false);
}
END_TEST

START_TEST(dead_records_go_first)
{
    bench.rule = KEEP_ALL;
    backing_sqlite.set_max_size(bench.backing, 8 * MIB);
    for (unsigned n = 0; n < 60; n++)
        ck_assert_int_eq(put(n, 60000), 0);
    for (unsigned n = 0; n < 60; n += 2)
        bench.keys[n].place = 0;
    for (unsigned n = 100; n < 200; n++) {
        int error = put(n, 60000);
        ck_assert(error == 0 || error == ENOSPC);
        if (error == ENOSPC)
            break;
    }
    for (unsigned n = 1; n < 60; n += 2)
        ck_assert_uint_eq(version_of(n), 1);
}
END_TEST

START_TEST(a_lower_bound_makes_the_file_smaller)
{
    bench.rule = DROP_URGENT;
    for (unsigned n = 0; n < KEYS; n++)
        ck_assert_int_eq(put(n, 100000), 0);
    ck_assert_uint_gt(disk_bytes(), 30 * MIB);
    backing_sqlite.set_max_size(bench.backing, 10 * MIB);
    unsigned steps = 0;
    while (backing_sqlite.upkeep(bench.backing, 0) >= 0 && steps < 1000)
        steps++;
    ck_assert_uint_lt(steps, 1000);
    ck_assert_uint_le(disk_bytes(), 10 * MIB);
    ck_assert_uint_gt(bench.forgotten, 200);
    for (unsigned n = 0; n < KEYS; n++)
        ck_assert_uint_eq(version_of(n), bench.keys[n].place != 0);
}
END_TEST

START_TEST(the_smallest_bound_stores_small_values)
{
    bench.rule = DROP_ALL;
    backing_sqlite.set_max_size(bench.backing, 4096);
    for (unsigned i = 0; i < 2000; i++)
        ck_assert_int_eq(put(i % KEYS, 900), 0);
    ck_assert_int_eq(put(1, 64 * MIB), EFBIG);
    ck_assert_uint_le(disk_bytes(), 2 * MIB);
    sync_store();
}
END_TEST

START_TEST(a_full_disk_evicts_and_loses_nothing_that_was_synced)
{
    close_store();
    if (mount("tmpfs", bench.directory, "tmpfs", 0, "size=6m") != 0)
        return; /* only root can */
    open_store();
    bench.rule = DROP_ALL;
    for (unsigned i = 0; i < 1000; i++) {
        ck_assert_int_eq(put(i % KEYS, 30000), 0);
        if (i % 10 == 0)
            sync_store();
        backing_sqlite.upkeep(bench.backing, 30000);
    }
    ck_assert_uint_gt(bench.forgotten, 0);
    bench.rule = KEEP_ALL;
    int error = 0;
    for (unsigned i = 0; i < KEYS && error == 0; i++)
        error = put(i, 30000);
    ck_assert_int_eq(error, ENOSPC);
    ck_assert_uint_eq(bench.lost, 0);
    unsigned there = 0;
    for (unsigned n = 0; n < KEYS; n++)
        there += version_of(n) != 0;
    ck_assert_uint_gt(there, 50);
    for (unsigned n = 0; n < KEYS; n++) {
        if (bench.keys[n].place != 0)
            ck_assert_int_eq(remove_key(n), 0);
    }
    ck_assert_int_eq(put(1, 30000), 0);
    sync_store();
    close_store();
    umount2(bench.directory, MNT_DETACH);
}
END_TEST

static void run_sql(const char *text)
{
    char path[NAME_SIZE];
    sqlite3 *db;
    path_of(path, "cache.db");
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
}

START_TEST(other_databases_are_left_alone)
{
    static const struct {
        const char *sql, *why;
    } cases[] = {
        {"CREATE TABLE bookmarks(url TEXT); INSERT INTO bookmarks VALUES('x')",
         "another program's database: use another directory"},
        {"PRAGMA journal_mode=WAL; PRAGMA application_id=1281975137; PRAGMA user_version=2;"
         "CREATE TABLE meta(id INTEGER PRIMARY KEY)",
         "older version: delete it, or use another directory"},
        {"PRAGMA application_id=1281975137; PRAGMA user_version=4; CREATE TABLE x(y)",
         "newer version: use that, or another directory"},
    };
    char why[512] = "";
    size_t size, after;
    close_store();
    enter("foreign");
    run_sql(cases[_i].sql);
    uint8_t *bytes = read_file("cache.db", &size);
    ck_assert(!try_open(why, sizeof(why)));
    ck_assert_msg(strstr(why, cases[_i].why) != NULL && strstr(why, bench.directory) != NULL, "%s",
                  why);
    uint8_t *again = read_file("cache.db", &after);
    ck_assert_uint_eq(size, after);
    ck_assert_int_eq(memcmp(bytes, again, size), 0);
    ck_assert_ptr_null(read_file("cache.anchor", &size));
    free(bytes);
    free(again);
}
END_TEST

START_TEST(a_damaged_file_is_set_aside)
{
    uint8_t noise[5000];
    size_t size;
    fill(noise, sizeof(noise), 1, 1);
    ck_assert_int_eq(put_range(0, 10), 0);
    for (unsigned round = 0; round < 2; round++) {
        close_store();
        write_file("cache.db", noise, sizeof(noise) - round);
        write_file("cache.db-wal", NULL, 0);
        open_store();
        ck_assert_uint_eq(bench.found, 0);
        uint8_t *aside = read_file("cache.db.damaged", &size);
        ck_assert_uint_eq(size, sizeof(noise) - round);
        ck_assert_int_eq(memcmp(aside, noise, size), 0);
        free(aside);
        ck_assert_int_eq(put(1, 100), 0);
        sync_store();
    }
}
END_TEST

/* A database that was given up does not come back, also if a crash undoes the removal of its files.
 */
START_TEST(a_database_that_was_given_up_is_void)
{
    ck_assert_int_eq(put_range(0, 10), 0);
    sync_store();
    struct image old = take_image();
    disk.fail_sync = 1;
    ck_assert_int_eq(put_range(0, 10), 0);
    ck_assert_int_eq(backing_sqlite.sync(bench.backing), EIO);
    ck_assert_uint_eq(bench.lost, 1);
    close_store();
    write_file("cache.db", old.bytes[0], old.sizes[0]);
    write_file("cache.db-wal", old.bytes[1], old.sizes[1]);
    open_store();
    ck_assert_uint_eq(bench.found, 0);
    free_image(&old);
}
END_TEST

/* As damage to an inner page could do: a whole, sound row is there again that was removed. */
START_TEST(a_row_that_comes_back_does_not_count)
{
    ck_assert_int_eq(put_range(0, 10), 0);
    close_store();
    char text[600];
    snprintf(text, sizeof(text),
             "ATTACH '%s/kept' AS kept; CREATE TABLE kept.e AS SELECT * FROM entry LIMIT 1;"
             "CREATE TABLE kept.v AS SELECT * FROM value LIMIT 1",
             bench.directory);
    run_sql(text);
    open_store();
    ck_assert_int_eq(remove_key(0), 0);
    sync_store();
    close_store();
    snprintf(text, sizeof(text),
             "ATTACH '%s/kept' AS kept; INSERT INTO entry SELECT * FROM kept.e;"
             "INSERT INTO value SELECT * FROM kept.v",
             bench.directory);
    run_sql(text);
    open_store();
    check(false);
    ck_assert_uint_eq(version_of(0), 0);
    ck_assert_int_eq(put(0, 100), 0);
    sync_store();
    check(false);
}
END_TEST

struct reading {
    atomic_bool stop;
    atomic_uint reads;
    _Atomic uint64_t places[KEYS];
};

static bool count_entry(void *arg, const struct backing_found *one)
{
    *(unsigned *)arg += one->key_length > 0;
    return true;
}

static void *read_on(void *arg)
{
    struct reading *reading = arg;
    for (unsigned i = 0; !atomic_load(&reading->stop); i++) {
        unsigned n = i * 13 % KEYS;
        uint64_t place = atomic_load(&reading->places[n]), cursor = 0;
        struct value *value = NULL;
        unsigned seen = 0;
        enum backing_read result = place != 0 ? read_place(n, place, &value) : BACKING_READ_GONE;
        ck_assert(result == BACKING_READ_OK || result == BACKING_READ_GONE);
        if (result == BACKING_READ_OK) {
            uint8_t *bytes = malloc((size_t)value->length + 1);
            fill(bytes, value->length, n, value->flags);
            if (memcmp(bytes, value_bytes(value), value->length) != 0)
                abort();
            free(bytes);
            atomic_fetch_add(&reading->reads, 1);
        }
        value_unref(value);
        if (i % 64 == 0)
            backing_sqlite.scan(bench.backing, &cursor, count_entry, &seen);
    }
    return NULL;
}

START_TEST(many_threads_read_meanwhile)
{
    static struct reading reading;
    pthread_t threads[7];
    for (unsigned i = 0; i < 7; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_on, &reading), 0);
    for (unsigned i = 0; i < 300 || atomic_load(&reading.reads) < 2000; i++) {
        unsigned from = i * 7 % (KEYS - 8);
        if (bench.keys[from].version > VERSIONS - 12)
            for (unsigned n = 0; n < KEYS; n++)
                bench.keys[n].version = bench.keys[n].good = 0;
        if (i % 100 == 50)
            disk.fail_sync = 1;
        int error = put_range(from, from + 8);
        ck_assert(error == 0 || error == EIO);
        if (i % 5 == 0)
            backing_sqlite.upkeep(bench.backing, i % 10 ? 0 : 1000000);
        if (i % 10 == 9)
            backing_sqlite.sync(bench.backing);
        for (unsigned n = 0; n < KEYS; n++)
            atomic_store(&reading.places[n], bench.keys[n].place);
    }
    ck_assert_uint_gt(bench.lost, 1);
    atomic_store(&reading.stop, true);
    for (unsigned i = 0; i < 7; i++)
        pthread_join(threads[i], NULL);
}
END_TEST

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static TCase *add_case(Suite *suite, const char *name)
{
    TCase *tcase = suite_case(suite, name, 120);
    tcase_add_checked_fixture(tcase, start, stop);
    return tcase;
}

int main(void)
{
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/sqlite-backing-XXXXXX",
             temporary != NULL ? temporary : "/tmp");
    if (mkdtemp(folder) == NULL)
        return EXIT_FAILURE;
    clock_start();
    Suite *suite = suite_create("sqlite_backing");
    TCase *tcase = add_case(suite, "records");
    tcase_add_test(tcase, what_is_written_is_read);
    tcase_add_test(tcase, ends_are_kept_and_clamped);
    tcase_add_test(tcase, a_restart_finds_all_and_gives_new_places);
    tcase_add_test(tcase, of_two_records_of_a_hash_the_last_counts);
    tcase_add_test(tcase, a_batch_counts_as_a_whole);
    tcase_add_test(tcase, a_scan_tells_all_keys);
    tcase = add_case(suite, "crashes");
    tcase_add_test(tcase, a_sync_costs_what_it_must);
    tcase_add_loop_test(tcase, a_kill_or_a_power_loss_loses_nothing_that_was_synced, 0, 3);
    tcase = add_case(suite, "damage");
    tcase_add_loop_test(tcase, a_damaged_spot_lets_nothing_older_count, 0, FILES);
    tcase_add_test(tcase, a_row_that_comes_back_does_not_count);
    tcase_add_test(tcase, a_log_that_is_cut_or_gone_lets_nothing_older_count);
    tcase_add_test(tcase, a_log_that_lacks_only_new_records_keeps_the_others);
    tcase = add_case(suite, "failures");
    tcase_add_test(tcase, a_failed_sync_gives_the_database_up);
    tcase_add_loop_test(tcase, a_failed_checkpoint_gives_the_database_up, 0, 2);
    tcase_add_loop_test(tcase, any_call_may_fail, 0, 2);
    tcase = add_case(suite, "room");
    tcase_add_loop_test(tcase, eviction_keeps_to_the_bound, 0, 3);
    tcase_add_test(tcase, dead_records_go_first);
    tcase_add_test(tcase, a_lower_bound_makes_the_file_smaller);
    tcase_add_test(tcase, the_smallest_bound_stores_small_values);
    tcase_add_test(tcase, a_full_disk_evicts_and_loses_nothing_that_was_synced);
    tcase = add_case(suite, "files");
    tcase_add_loop_test(tcase, other_databases_are_left_alone, 0, 3);
    tcase_add_test(tcase, a_damaged_file_is_set_aside);
    tcase_add_test(tcase, a_database_that_was_given_up_is_void);
    tcase = add_case(suite, "threads");
    tcase_add_test(tcase, many_threads_read_meanwhile);
    int status = suite_run(suite);
    nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return status;
}
