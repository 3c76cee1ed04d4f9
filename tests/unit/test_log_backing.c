/*
 * The log backing against an owner that is a table of keys, and a model of what may be found after
 * a crash: at every system call that changes the disk the directory is copied, as a killed process
 * and as a power cut would leave it, and the copy is loaded.
 */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/log.h"
#include "../../daemon/store/engine/backing.h"
#include "../../daemon/store/log/format.h"
#include "../../daemon/value.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    KEYS = 40,
    VERSIONS = 4000,
    GONE = -1, /* in place of a version: the key is absent */
    FILES = 256,
    PAGE = 4096,
    K = 1024,
    M = 1024 * K
};

static char directory[64], copy[64];
static uint64_t max_size = 64 * K;

/* Chance. */

static uint64_t chance_state = 1;

/* LIARA_SEED has the tests of crashes and failures take other ways. */
static void seed(unsigned loop)
{
    const char *more = getenv("LIARA_SEED");
    chance_state = loop * 77 + 5 + (more != NULL ? strtoul(more, NULL, 10) * 1000 : 0);
}

static unsigned chance(unsigned below)
{
    chance_state = chance_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((chance_state >> 33) % below);
}

/* Files. */

static void empty_directory(const char *path)
{
    char name[512];
    DIR *listing = opendir(path);
    for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;) {
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            remove(name);
    }
    if (listing != NULL)
        closedir(listing);
}

struct file {
    char name[64];
    ino_t inode;
    size_t size;
    uint8_t *data;
};

struct image {
    struct file file[FILES];
    unsigned count;
};

static void free_image(struct image *image)
{
    for (unsigned i = 0; i < image->count; i++)
        free(image->file[i].data);
    image->count = 0;
}

static void read_fd(struct file *file, int fd)
{
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    file->inode = st.st_ino;
    file->size = (size_t)st.st_size;
    file->data = malloc(file->size + 1);
    ck_assert_int_eq(pread(fd, file->data, file->size, 0), (ssize_t)file->size);
}

/* All files, in the order of their names. */
static void read_directory(struct image *image, const char *path)
{
    char name[512];
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    image->count = 0;
    for (int i = 0; i < count; i++) {
        if (entries[i]->d_name[0] != '.') {
            struct file *file = &image->file[image->count++];
            ck_assert_uint_lt(image->count, FILES);
            snprintf(file->name, sizeof(file->name), "%.60s", entries[i]->d_name);
            snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
            int fd = open(name, O_RDONLY);
            read_fd(file, fd);
            close(fd);
        }
        free(entries[i]);
    }
    free(entries);
}

static void write_file(const char *path, const struct file *file)
{
    char name[512];
    snprintf(name, sizeof(name), "%s/%s", path, file->name);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_eq(write(fd, file->data, file->size), (ssize_t)file->size);
    close(fd);
}

static void write_directory(const struct image *image, const char *path)
{
    empty_directory(path);
    for (unsigned i = 0; i < image->count; i++)
        write_file(path, &image->file[i]);
}

static const struct file *find_inode(const struct image *image, ino_t inode)
{
    for (unsigned i = 0; i < image->count; i++)
        if (image->file[i].inode == inode)
            return &image->file[i];
    return NULL;
}

/* The system calls that change the disk: a crash may come before each, and each may fail. */

static struct {
    bool on;
    bool crash;                  /* load a copy before each */
    bool short_writes;           /* write only a part at a time */
    unsigned calls;              /* so far */
    unsigned fail_from, fail_to; /* these calls fail, counted from 1 */
    const char *only;            /* this call alone fails */
    int error;
    unsigned failed;
    unsigned crashes;
    unsigned every; /* crash before each so manieth call */
} disk;

/* The model: every key's versions in the order in which they were written. */

struct key {
    char name[24];
    size_t length;
    uint64_t hash;
    int version[VERSIONS];
    unsigned count;
    unsigned synced;  /* so many of them are on stable storage */
    unsigned evicted; /* a miss is right, too, if no more than so many are synced */
    int pending;      /* of the append that is under way; 0: none */
    bool lost;        /* a failed sync has taken its record, and it was not written anew yet */
    int ghost;        /* the first of those whose append failed since the last sync */
    bool ghost_gone;  /* a deletion did */
};

static struct key keys[KEYS];
static int next_version;

/* Sizes and bytes follow from the version. */
static uint32_t length_of(int version)
{
    unsigned kind = (unsigned)version * 2654435761u >> 16;
    if (kind % 16 == 0)
        return 1500 + kind % 3000; /* above a quarter of the smallest segment */
    return kind % 16 == 1 ? 0 : kind % 400;
}

static void fill(uint8_t *data, int version)
{
    uint32_t length = length_of(version);
    for (uint32_t i = 0; i < length; i++)
        data[i] = (uint8_t)(version * 31 + (int)i * 7 + (int)(i >> 8));
    if (length >= sizeof(version))
        memcpy(data, &version, sizeof(version));
}

static uint32_t flags_of(int version)
{
    return (uint32_t)version * 17;
}

static int latest(const struct key *key)
{
    return key->count > 0 ? key->version[key->count - 1] : GONE;
}

static void add_version(struct key *key, int version)
{
    ck_assert_uint_lt(key->count, VERSIONS);
    key->version[key->count++] = version;
}

static void make_keys(void)
{
    memset(keys, 0, sizeof(keys));
    next_version = 1;
    for (unsigned i = 0; i < KEYS; i++) {
        keys[i].length = (size_t)snprintf(keys[i].name, sizeof(keys[i].name), "key/%u", i * i * i);
        keys[i].hash = XXH3_64bits(keys[i].name, keys[i].length);
    }
}

/* Where a store's keys are: what the engine's index would know. */

struct table {
    struct backing *backing;
    uint64_t place[KEYS];
    int64_t expires[KEYS];
    bool must_rewrite[KEYS]; /* lost from the disk */
    bool live; /* the store under test, whose owner keeps the model; else one that is looked at */
    unsigned founds, moves, drops, losses;
    unsigned keep_percent;
};

static struct table live = {.live = true, .keep_percent = 60};
static uint8_t secret[BACKING_SECRET];
static char why[512];

static unsigned key_of(uint64_t hash)
{
    unsigned i = 0;
    while (i < KEYS && keys[i].hash != hash)
        i++;
    return i;
}

static void on_found(void *arg, const struct backing_found *found, unsigned count)
{
    struct table *table = arg;
    ck_assert_uint_ge(count, 1);
    ck_assert_uint_le(count, BACKING_FOUND_MAX);
    for (unsigned i = 0; i < count; i++) {
        unsigned at = key_of(found[i].hash);
        table->founds++;
        if (at == KEYS)
            continue;
        table->place[at] = found[i].place;
        table->expires[at] = found[i].expires;
        if (found[i].place != 0)
            ck_assert_uint_eq(found[i].key_length, keys[at].length);
    }
}

static enum backing_verdict on_judge(void *arg, uint64_t hash, uint64_t place, bool urgent)
{
    struct table *table = arg;
    unsigned at = key_of(hash);
    bool current = at < KEYS && table->place[at] == place;
    /* Without space, what superseded it may be lost and not rewritten yet. */
    if (table->live && at < KEYS && (current || urgent))
        keys[at].evicted = keys[at].count;
    if (!current)
        return BACKING_DEAD;
    return (hash ^ place) % 100 < table->keep_percent ? BACKING_KEEP : BACKING_DROP;
}

static bool on_moved(void *arg, uint64_t hash, uint64_t from, uint64_t to)
{
    struct table *table = arg;
    unsigned at = key_of(hash);
    if (at == KEYS || table->place[at] != from)
        return false;
    table->place[at] = to;
    table->moves++;
    keys[at].evicted = 0;
    return true;
}

static void on_forget(void *arg, uint64_t hash, uint64_t place)
{
    struct table *table = arg;
    unsigned at = key_of(hash);
    if (at == KEYS || table->place[at] != place)
        return;
    table->place[at] = 0;
    table->drops++;
    add_version(&keys[at], GONE);
    keys[at].evicted = keys[at].count;
}

static void on_lost(void *arg, uint64_t first, uint64_t last)
{
    struct table *table = arg;
    ck_assert_uint_le(first, last);
    table->losses++;
    for (unsigned i = 0; i < KEYS; i++) {
        if (table->place[i] >= first && table->place[i] <= last) {
            table->place[i] = 0;
            table->must_rewrite[i] = true;
            keys[i].lost = true;
        }
    }
}

static bool open_table(struct table *table, const char *path)
{
    struct backing_options options = {
        .directory = path,
        .max_size = max_size,
        .owner = {table, on_found, on_judge, on_moved, on_forget, on_lost}};
    memset(table->place, 0, sizeof(table->place));
    memset(table->must_rewrite, 0, sizeof(table->must_rewrite));
    table->founds = 0;
    table->backing = backing_log.open(&options, secret, why, sizeof(why));
    if (table->backing == NULL)
        return false;
    ck_assert_msg(backing_log.load(table->backing, why, sizeof(why)), "%s", why);
    return true;
}

static void close_table(struct table *table)
{
    backing_log.close(table->backing);
    table->backing = NULL;
}

static enum backing_read read_place(struct table *table, unsigned at, uint64_t place, bool wait,
                                    struct value **value)
{
    return backing_log.read(table->backing, place, 6 * K, (const uint8_t *)keys[at].name,
                            keys[at].length, wait, value);
}

/* The version that a store has of a key, or GONE. Bytes that were never stored fail. */
static int look(struct table *table, unsigned at)
{
    static uint8_t expected[6 * K];
    struct value *value = NULL;
    if (table->place[at] == 0)
        return GONE;
    enum backing_read result = read_place(table, at, table->place[at], true, &value);
    if (result == BACKING_READ_DAMAGED)
        return GONE;
    ck_assert_int_eq(result, BACKING_READ_OK);
    int version = (int)(value->flags / 17);
    fill(expected, version);
    ck_assert_uint_eq(value->length, length_of(version));
    ck_assert_mem_eq(value_bytes(value), expected, value->length);
    ck_assert_mem_eq(value_key(value), keys[at].name, keys[at].length);
    value_unref(value);
    return version;
}

/* What a store may have of a key after a crash, with only what was synced for certain. */
static bool may_have(const struct key *key, int version, bool power_cut)
{
    unsigned from = key->synced > 0 ? key->synced - 1 : 0;
    if (key->synced == 0 && version == GONE)
        return true;
    for (unsigned i = from; i < key->count; i++)
        if (key->version[i] == version)
            return true;
    if (version == GONE && key->evicted >= key->synced && key->evicted > 0)
        return true;
    /* Without space the oldest segment is removed, whether or not what superseded it is safe. */
    if (version == GONE && disk.error == ENOSPC && (key->count > key->synced || key->lost))
        return true;
    /* A directory that can't be synced, and then a power cut, may cost everything. */
    if (power_cut && version == GONE && disk.only != NULL && strcmp(disk.only, "fsync") == 0)
        return true;
    if (version == key->pending)
        return true;
    return power_cut &&
           (version == GONE ? key->ghost_gone : key->ghost > 0 && version >= key->ghost);
}

static struct image durable_files; /* by inode: as last synced */
static struct image durable_names; /* as the directory was last synced; no data */

static void check_copy(bool power_cut)
{
    static struct table other;
    bool on = disk.on;
    disk.on = false;
    ck_assert_msg(open_table(&other, copy), "%s", why);
    for (unsigned i = 0; i < KEYS; i++) {
        int version = look(&other, i);
        ck_assert_msg(may_have(&keys[i], version, power_cut),
                      "%s has version %d after call %u (%s); %u of %u synced, last %d",
                      keys[i].name, version, disk.calls, power_cut ? "power cut" : "kill",
                      keys[i].synced, keys[i].count, latest(&keys[i]));
    }
    close_table(&other);
    disk.on = on;
}

/* The file as a power cut leaves it: each page as it was synced, or as it is now. */
static void tear(struct file *file, const struct file *synced, bool all)
{
    size_t old_size = synced != NULL ? synced->size : 0;
    size_t size = !all && chance(2) ? file->size : old_size;
    uint8_t *data = calloc(1, size + 1);
    for (size_t at = 0; at < size; at += PAGE) {
        bool old = all || chance(2);
        const uint8_t *from = old ? (synced != NULL ? synced->data : NULL) : file->data;
        size_t there = old ? old_size : file->size, part = size - at < PAGE ? size - at : PAGE;
        if (from != NULL && at < there)
            memcpy(data + at, from + at, part < there - at ? part : there - at);
    }
    free(file->data);
    file->data = data;
    file->size = size;
}

static void cut_power(bool all)
{
    static struct image now, left;
    read_directory(&now, directory);
    bool old_names = all || chance(2);
    const struct image *names = old_names ? &durable_names : &now;
    left.count = 0;
    for (unsigned i = 0; i < names->count; i++) {
        struct file *file = &left.file[left.count++];
        const struct file *current = find_inode(&now, names->file[i].inode);
        const struct file *synced = find_inode(&durable_files, names->file[i].inode);
        *file = names->file[i];
        const struct file *from = current != NULL ? current : synced;
        file->size = from != NULL ? from->size : 0;
        file->data = malloc(file->size + 1);
        if (file->size > 0)
            memcpy(file->data, from->data, file->size);
        tear(file, synced, all);
    }
    write_directory(&left, copy);
    free_image(&left);
    free_image(&now);
}

static void crash_here(void)
{
    static struct image now;
    disk.on = false;
    disk.crashes++;
    read_directory(&now, directory);
    write_directory(&now, copy);
    free_image(&now);
    check_copy(false);
    cut_power(true);
    check_copy(true);
    cut_power(false);
    check_copy(true);
    disk.on = true;
}

/* Whether the call fails. */
static bool before_call(const char *name)
{
    if (!disk.on)
        return false;
    disk.calls++;
    if (disk.crash && disk.calls % disk.every == 0)
        crash_here();
    if (disk.calls < disk.fail_from || disk.calls > disk.fail_to ||
        (disk.only != NULL && strcmp(disk.only, name) != 0))
        return false;
    disk.failed++;
    errno = disk.error;
    return true;
}

static void note_synced_file(int fd)
{
    struct file file = {.name = ""};
    read_fd(&file, fd);
    struct file *old = (struct file *)(uintptr_t)find_inode(&durable_files, file.inode);
    if (old == NULL) {
        ck_assert_uint_lt(durable_files.count, FILES);
        old = &durable_files.file[durable_files.count++];
    } else {
        free(old->data);
    }
    *old = file;
}

static void note_synced_names(void)
{
    free_image(&durable_names);
    read_directory(&durable_names, directory);
    for (unsigned i = 0; i < durable_names.count; i++) {
        free(durable_names.file[i].data);
        durable_names.file[i].data = NULL;
    }
    /* What has no name any more is of no use. */
    for (unsigned i = 0; i < durable_files.count;) {
        if (find_inode(&durable_names, durable_files.file[i].inode) != NULL) {
            i++;
            continue;
        }
        free(durable_files.file[i].data);
        durable_files.file[i] = durable_files.file[--durable_files.count];
    }
}

/* All that is there now is on the disk. */
static void note_all_synced(void)
{
    struct dirent **entries;
    char name[512];
    note_synced_names();
    int count = scandir(directory, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "%s/%s", directory, entries[i]->d_name);
        int fd = entries[i]->d_name[0] != '.' ? open(name, O_RDONLY) : -1;
        if (fd >= 0) {
            note_synced_file(fd);
            close(fd);
        }
        free(entries[i]);
    }
    free(entries);
}

ssize_t __real_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __real_pwrite(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);
int __real_ftruncate(int fd, off_t length);
int __wrap_ftruncate(int fd, off_t length);
int __real_unlinkat(int at, const char *name, int flags);
int __wrap_unlinkat(int at, const char *name, int flags);
int __real_renameat(int at, const char *from, int to_at, const char *to);
int __wrap_renameat(int at, const char *from, int to_at, const char *to);

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    bool failing = before_call("pwritev");
    if (!failing && !(disk.on && disk.short_writes))
        return __real_pwritev(fd, iov, count, offset);
    struct iovec part = *iov;
    for (int i = 0; i < count && part.iov_len == 0; i++)
        part = iov[i];
    if (failing) {
        /* Something may be there all the same. */
        part.iov_len = chance((unsigned)part.iov_len + 1);
        if (part.iov_len > 0)
            __real_pwritev(fd, &part, 1, offset);
        errno = disk.error;
        return -1;
    }
    part.iov_len = part.iov_len > 1 ? 1 + chance((unsigned)part.iov_len) : part.iov_len;
    return __real_pwritev(fd, &part, 1, offset);
}

ssize_t __wrap_pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    return before_call("pwrite") ? -1 : __real_pwrite(fd, bytes, length, offset);
}

int __wrap_fdatasync(int fd)
{
    if (before_call("fdatasync"))
        return -1;
    if (disk.on && disk.crash)
        note_synced_file(fd);
    return disk.on ? 0 : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    if (before_call("fsync"))
        return -1;
    if (disk.on && disk.crash)
        note_synced_names();
    return disk.on ? 0 : __real_fsync(fd);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return before_call("fallocate") ? -1 : __real_fallocate(fd, mode, offset, length);
}

int __wrap_ftruncate(int fd, off_t length)
{
    return before_call("ftruncate") ? -1 : __real_ftruncate(fd, length);
}

/* Another file may have this number next. */
static void forget_inode(ino_t inode)
{
    static ino_t unique = (ino_t)1 << 62;
    struct image *const images[] = {&durable_files, &durable_names};
    for (unsigned k = 0; k < 2; k++)
        for (unsigned i = 0; i < images[k]->count; i++)
            if (images[k]->file[i].inode == inode)
                images[k]->file[i].inode = unique;
    unique++;
}

int __wrap_unlinkat(int at, const char *name, int flags)
{
    struct stat st;
    if (before_call("unlinkat"))
        return -1;
    if (disk.on && disk.crash && fstatat(at, name, &st, 0) == 0) {
        forget_inode(st.st_ino);
    }
    return __real_unlinkat(at, name, flags);
}

int __wrap_renameat(int at, const char *from, int to_at, const char *to)
{
    return before_call("renameat") ? -1 : __real_renameat(at, from, to_at, to);
}

/* As they are called where off_t was made to have 64 bits. */
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
    __attribute__((alias("__wrap_pwritev")));
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset)
    __attribute__((alias("__wrap_pwrite")));
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
    __attribute__((alias("__wrap_fallocate")));
int __wrap_ftruncate64(int fd, off_t length) __attribute__((alias("__wrap_ftruncate")));

/* What an engine does. */

/* Appends new versions of these keys; GONE in version deletes. Returns append()'s result. */
static int append_versions(const unsigned *at, const int *version, unsigned count)
{
    struct backing_record records[64];
    static uint8_t data[64][6 * K];
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        struct key *key = &keys[at[i]];
        records[i] = (struct backing_record){.hash = key->hash, .expires = CLOCK_NEVER};
        if (version[i] != GONE) {
            memcpy(data[i], key->name, key->length);
            fill(data[i] + key->length, version[i]);
            records[i].data = data[i];
            records[i].length = length_of(version[i]);
            records[i].key_length = (uint16_t)key->length;
            records[i].flags = flags_of(version[i]);
        }
        bytes += records[i].length + 32;
        key->pending = version[i];
    }
    int error = backing_log.append(live.backing, records, count);
    for (unsigned i = 0; i < count; i++) {
        struct key *key = &keys[at[i]];
        key->pending = 0;
        if (error != 0) {
            if (version[i] == GONE)
                key->ghost_gone = true;
            else if (key->ghost == 0 || version[i] < key->ghost)
                key->ghost = version[i];
            continue;
        }
        add_version(key, version[i]);
        live.place[at[i]] = records[i].place;
        live.must_rewrite[at[i]] = key->lost = false;
        ck_assert((records[i].place == 0) == (version[i] == GONE));
    }
    backing_log.upkeep(live.backing, bytes);
    return error;
}

static int put(unsigned at)
{
    int version = next_version++;
    return append_versions(&at, &version, 1);
}

static int delete (unsigned at)
{
    int version = GONE;
    return append_versions(&at, &version, 1);
}

/* As an engine does after owner.lost(): what memory still has again, tombstones for the rest. */
static int rewrite_lost(void)
{
    unsigned again = 0;
    for (unsigned i = 0; i < KEYS; i++) {
        int version = chance(2) ? latest(&keys[i]) : GONE;
        if (!live.must_rewrite[i])
            continue;
        if (again++ > 4 * KEYS || append_versions(&i, &version, 1) != 0)
            return EIO;
        i = UINT_MAX; /* the upkeep after it may have lost others */
    }
    return 0;
}

static int sync_all(void)
{
    unsigned counts[KEYS];
    if (rewrite_lost() != 0)
        return EIO;
    for (unsigned i = 0; i < KEYS; i++)
        counts[i] = keys[i].count;
    int error = backing_log.sync(live.backing);
    for (unsigned i = 0; i < KEYS && error == 0; i++) {
        keys[i].synced = counts[i];
        keys[i].ghost = 0;
        keys[i].ghost_gone = false;
    }
    return error;
}

/* The live store has the last version of everything. */
static void check_live(void)
{
    for (unsigned i = 0; i < KEYS; i++)
        if (!live.must_rewrite[i])
            ck_assert_int_eq(look(&live, i), latest(&keys[i]));
}

static void random_batch(void)
{
    unsigned at[12], count = 1 + chance(12), used = 0;
    int version[12];
    for (unsigned i = 0; i < count; i++) {
        unsigned key = chance(KEYS);
        bool twice = false;
        for (unsigned k = 0; k < used; k++)
            twice = twice || at[k] == key;
        if (twice)
            continue;
        at[used] = key;
        version[used++] = chance(6) == 0 ? GONE : next_version++;
    }
    append_versions(at, version, used);
}

static void reopen(void)
{
    close_table(&live);
    ck_assert_msg(open_table(&live, directory), "%s", why);
}

static void set_up(void)
{
    log_open((enum log_level)0);
    snprintf(directory, sizeof(directory), "%s/log-XXXXXX", getenv("TMPDIR") ?: "/tmp");
    snprintf(copy, sizeof(copy), "%s/log-XXXXXX", getenv("TMPDIR") ?: "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    ck_assert_ptr_nonnull(mkdtemp(copy));
    make_keys();
    max_size = 64 * K;
    live.keep_percent = 60;
    live.moves = live.drops = live.losses = 0;
    ck_assert_msg(open_table(&live, directory), "%s", why);
}

static void tear_down(void)
{
    disk.on = false;
    if (live.backing != NULL)
        close_table(&live);
    empty_directory(directory);
    empty_directory(copy);
    rmdir(directory);
    rmdir(copy);
    free_image(&durable_files);
    free_image(&durable_names);
    ck_assert_uint_eq(value_total(), 0);
}

/* The directory as it is, as if the process were killed now. */
static void copy_directory(void)
{
    static struct image now;
    read_directory(&now, directory);
    write_directory(&now, copy);
    free_image(&now);
}

/* Plain use. */

START_TEST(what_is_appended_is_read)
{
    for (unsigned i = 0; i < KEYS; i++)
        ck_assert_int_eq(put(i), 0);
    check_live();
    struct value *value = NULL;
    uint64_t place = live.place[2];
    ck_assert_int_eq(read_place(&live, 3, place, true, &value), BACKING_READ_OTHER);
    ck_assert_int_eq(read_place(&live, 2, place + ((uint64_t)1 << 30), true, &value),
                     BACKING_READ_GONE);
    enum backing_read result = read_place(&live, 2, place, false, &value);
    ck_assert(result == BACKING_READ_OK || result == BACKING_READ_AGAIN);
    value_unref(value);
}
END_TEST

START_TEST(a_restart_finds_everything)
{
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = round; i < KEYS; i++)
            ck_assert_int_eq(i % 5 == 0 ? delete (i) : put(i), 0);
        copy_directory();
        reopen(); /* closed in order */
        check_live();
        struct table other = {.live = false};
        ck_assert(open_table(&other, copy)); /* killed */
        for (unsigned i = 0; i < KEYS; i++)
            ck_assert_int_eq(look(&other, i), look(&live, i));
        close_table(&other);
    }
}
END_TEST

START_TEST(restarts_go_on_in_the_same_segment)
{
    static struct image now;
    for (unsigned i = 0; i < 20; i++) {
        while (length_of(next_version) > 100)
            next_version++;
        ck_assert_int_eq(put(1), 0);
        if (i % 2)
            ck_assert_int_eq(sync_all(), 0);
        reopen();
        check_live();
    }
    close_table(&live);
    read_directory(&now, directory);
    ck_assert_uint_le(now.count, 3);
    free_image(&now);
}
END_TEST

START_TEST(the_secret_stays)
{
    uint8_t first[BACKING_SECRET];
    memcpy(first, secret, sizeof(first));
    put(1);
    reopen();
    ck_assert_mem_eq(first, secret, sizeof(first));
    close_table(&live);
    empty_directory(directory);
    make_keys();
    ck_assert(open_table(&live, directory));
    ck_assert_mem_ne(first, secret, sizeof(first));
}
END_TEST

START_TEST(ends_are_kept_and_clamped)
{
    int64_t lives[] = {1000, (int64_t)3600 * 1000, (int64_t)1000 * 86400 * 1000};
    for (unsigned i = 0; i < 3; i++) {
        uint8_t data[32];
        memcpy(data, keys[i].name, keys[i].length);
        struct backing_record record = {.hash = keys[i].hash,
                                        .data = data,
                                        .key_length = (uint16_t)keys[i].length,
                                        .cost = 7,
                                        .expires = clock_now() + lives[i]};
        ck_assert_int_eq(backing_log.append(live.backing, &record, 1), 0);
        struct value *value;
        ck_assert_int_eq(read_place(&live, i, record.place, true, &value), BACKING_READ_OK);
        ck_assert_int_le(value->expires, record.expires);
        ck_assert_int_ge(value->expires, record.expires - 1000);
        value_unref(value);
        reopen();
        ck_assert_int_le(live.expires[i], record.expires + 1);
        ck_assert_int_ge(live.expires[i], record.expires - 1000);
    }
}
END_TEST

START_TEST(large_records_have_segments_of_their_own)
{
    close_table(&live);
    empty_directory(directory);
    max_size = 64 * M;
    ck_assert(open_table(&live, directory));
    size_t length = 5 * M + 3, key_length = keys[0].length;
    uint8_t *data = malloc(key_length + length);
    memcpy(data, keys[0].name, key_length);
    for (size_t i = 0; i < length; i++)
        data[key_length + i] = (uint8_t)(i * 7 >> 3);
    for (unsigned round = 0; round < 20; round++) {
        struct backing_record records[3] = {{.hash = keys[1].hash, .expires = CLOCK_NEVER},
                                            {.hash = keys[0].hash,
                                             .data = data,
                                             .length = (uint32_t)length,
                                             .key_length = (uint16_t)key_length,
                                             .expires = CLOCK_NEVER},
                                            {.hash = keys[2].hash, .expires = CLOCK_NEVER}};
        ck_assert_int_eq(backing_log.append(live.backing, records, 3), 0);
        live.place[0] = records[1].place;
        ck_assert_uint_le(backing_log.stats(live.backing).disk_bytes, max_size);
        while (backing_log.upkeep(live.backing, length) == 0)
            ;
    }
    for (unsigned round = 0; round < 2; round++) {
        struct value *value;
        ck_assert_int_eq(backing_log.read(live.backing, live.place[0], length + key_length + 100,
                                          data, key_length, true, &value),
                         BACKING_READ_OK);
        ck_assert_uint_eq(value->length, length);
        ck_assert_mem_eq(value_bytes(value), data + key_length, length);
        value_unref(value);
        ck_assert_int_eq(backing_log.read(live.backing, live.place[0], length + key_length + 100,
                                          (const uint8_t *)"other", 5, true, &value),
                         BACKING_READ_OTHER);
        if (round == 0) {
            ck_assert_int_eq(backing_log.sync(live.backing), 0);
            reopen();
        }
    }
    struct backing_record huge = {.hash = 1, .data = data, .length = UINT32_MAX - 5};
    ck_assert_int_eq(backing_log.append(live.backing, &huge, 1), EFBIG);
    free(data);
}
END_TEST

START_TEST(an_older_layout_is_refused_and_left_as_it_is)
{
    static const char *const names[] = {"version", "index", "spare"};
    struct file old = {.size = 2, .data = (uint8_t *)(uintptr_t) "2\n"};
    close_table(&live);
    empty_directory(directory);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(old.name, sizeof(old.name), "%s", names[i]);
        write_file(directory, &old);
    }
    ck_assert(!open_table(&live, directory));
    ck_assert_ptr_nonnull(strstr(why, directory));
    ck_assert_ptr_nonnull(strstr(why, "older layout"));
    static struct image now;
    read_directory(&now, directory);
    ck_assert_uint_eq(now.count, 3);
    free_image(&now);
}
END_TEST

START_TEST(a_newer_version_is_refused)
{
    static struct image now;
    put(1);
    close_table(&live);
    read_directory(&now, directory);
    struct log_header header;
    memcpy(&header, now.file[0].data, sizeof(header));
    header.version++;
    header.version_check =
        (uint32_t)XXH3_64bits(&header, offsetof(struct log_header, version_check));
    memcpy(now.file[0].data, &header, sizeof(header));
    write_directory(&now, directory);
    ck_assert(!open_table(&live, directory));
    ck_assert_ptr_nonnull(strstr(why, directory));
    ck_assert_ptr_nonnull(strstr(why, "version 2"));
    free_image(&now);
}
END_TEST

/* Keeping within max_size. */

START_TEST(the_oldest_segments_are_retired)
{
    for (unsigned round = 0; round < 3000; round++) {
        random_batch();
        ck_assert_uint_le(backing_log.stats(live.backing).disk_bytes, max_size + 8 * K);
        if (round % 50 == 0)
            check_live();
        if (round % 500 == 0)
            reopen();
    }
    check_live();
    ck_assert_uint_gt(live.moves, 100);
    ck_assert_uint_gt(live.drops, 100);
    struct backing_stats stats = backing_log.stats(live.backing);
    ck_assert_uint_gt(stats.moved_bytes, 0);
    ck_assert_uint_gt(stats.written_bytes, stats.moved_bytes);
}
END_TEST

START_TEST(all_kept_is_not_kept_for_ever)
{
    live.keep_percent = 100;
    for (unsigned round = 0; round < 2000; round++)
        random_batch();
    check_live();
    ck_assert_uint_le(backing_log.stats(live.backing).disk_bytes, max_size + 8 * K);
}
END_TEST

START_TEST(a_lower_bound_is_reached)
{
    close_table(&live);
    max_size = 1 * M;
    ck_assert(open_table(&live, directory));
    for (unsigned round = 0; round < 1000; round++)
        random_batch();
    max_size = 64 * K;
    backing_log.set_max_size(live.backing, max_size);
    for (unsigned steps = 0; backing_log.upkeep(live.backing, 0) == 0; steps++)
        ck_assert_uint_lt(steps, 10000);
    for (unsigned round = 0; round < 20; round++)
        random_batch();
    for (unsigned steps = 0; backing_log.upkeep(live.backing, 0) == 0; steps++)
        ck_assert_uint_lt(steps, 10000);
    ck_assert_uint_le(backing_log.stats(live.backing).disk_bytes, max_size);
    check_live();
}
END_TEST

/* An evicted entry is served until its file is gone, and its file is gone before it is forgotten.
 */
START_TEST(what_is_dropped_does_not_come_back)
{
    for (unsigned round = 0; round < 500; round++) {
        random_batch();
        ck_assert_int_eq(sync_all(), 0);
        if (round % 20 != 0)
            continue;
        copy_directory();
        struct table other = {.live = false};
        ck_assert(open_table(&other, copy));
        for (unsigned i = 0; i < KEYS; i++)
            ck_assert_int_eq(look(&other, i), latest(&keys[i]));
        close_table(&other);
    }
    ck_assert_uint_gt(live.drops, 10);
}
END_TEST

/* Listing. */

struct listing {
    bool seen[KEYS];
    unsigned calls, stop_after;
};

static bool on_listed(void *arg, const struct backing_found *found)
{
    struct listing *listing = arg;
    unsigned at = key_of(found->hash);
    ck_assert_uint_lt(at, KEYS);
    ck_assert_uint_eq(found->key_length, keys[at].length);
    ck_assert_mem_eq(found->key, keys[at].name, keys[at].length);
    if (live.place[at] == found->place)
        listing->seen[at] = true;
    return ++listing->calls % listing->stop_after != 0;
}

static void check_listing(unsigned stop_after)
{
    struct listing listing = {.stop_after = stop_after};
    uint64_t cursor = 0;
    while (backing_log.scan(live.backing, &cursor, on_listed, &listing))
        ck_assert_uint_lt(listing.calls, 100000);
    ck_assert_int_eq(errno, 0);
    for (unsigned i = 0; i < KEYS; i++)
        ck_assert(listing.seen[i] == (live.place[i] != 0));
}

START_TEST(all_keys_are_listed)
{
    for (unsigned round = 0; round < 400; round++) {
        random_batch();
        if (round % 20 == 0) {
            check_listing(1000000);
            check_listing(1 + chance(5));
        }
        if (round == 200)
            reopen();
    }
}
END_TEST

/* A footer that goes bad while the store runs: its segment is read instead. */
START_TEST(keys_are_listed_without_a_footer)
{
    static struct image now;
    for (unsigned round = 0; round < 30; round++)
        random_batch();
    read_directory(&now, directory);
    for (unsigned i = 0; i < now.count; i++) {
        char name[512];
        snprintf(name, sizeof(name), "%s/%s", directory, now.file[i].name);
        if (strcmp(now.file[i].name, "spare") == 0 || now.file[i].size == 4 * K)
            continue;
        int fd = open(name, O_WRONLY);
        ck_assert_int_eq(pwrite(fd, "x", 1, (off_t)now.file[i].size - 60), 1);
        close(fd);
    }
    free_image(&now);
    check_listing(1000000);
    for (unsigned round = 0; round < 300; round++)
        random_batch();
    check_live();
}
END_TEST

/* Damage. */

/* Every synced version is there, or a miss; nothing older. Returns the number of misses. */
static unsigned check_damaged(const char *what, size_t at)
{
    static struct table other;
    unsigned misses = 0;
    ck_assert_msg(open_table(&other, copy), "%s", why);
    for (unsigned i = 0; i < KEYS; i++) {
        int version = look(&other, i);
        ck_assert_msg(version == GONE || version == latest(&keys[i]),
                      "%s has version %d, not %d: %s at %zu", keys[i].name, version,
                      latest(&keys[i]), what, at);
        misses += version != latest(&keys[i]);
    }
    close_table(&other);
    return misses;
}

/* Where the last batch begins, which says what has been synced. */
static size_t last_batch(const struct file *file)
{
    const uint32_t magic = LOG_BATCH_MAGIC;
    size_t last = 0;
    for (size_t at = 8; at + sizeof(magic) <= file->size; at += 8)
        if (memcmp(file->data + at, &magic, sizeof(magic)) == 0)
            last = at - 8;
    return last;
}

/* Damage of more than a byte spares the last batch: without it a tail looks torn (format.h). */
static bool is_spared(const struct image *image, unsigned file, size_t at, size_t width)
{
    size_t last = last_batch(&image->file[file]);
    bool newest = file + 2 >= image->count; /* but for the spare segment */
    return width > 1 && newest && at <= last && last < at + width;
}

static void damage_everywhere(const struct image *image, size_t width, size_t step)
{
    unsigned rounds = 0, misses = 0;
    write_directory(image, copy);
    for (unsigned i = 0; i < image->count; i++) {
        const struct file *whole = &image->file[i];
        struct file damaged = *whole;
        for (size_t at = 0; at < whole->size; at += step) {
            size_t part = whole->size - at < width ? whole->size - at : width;
            if (is_spared(image, i, at, width))
                continue;
            damaged.data = malloc(whole->size);
            memcpy(damaged.data, whole->data, whole->size);
            if (width == 1)
                damaged.data[at] ^= (uint8_t)(1 << chance(8));
            else
                memset(damaged.data + at, chance(2) ? 0 : 0xff, part);
            write_file(copy, &damaged);
            misses += check_damaged(whole->name, at);
            rounds++;
            free(damaged.data);
            write_directory(image, copy);
        }
    }
    /* A byte costs what it is part of, and hardly ever more. */
    if (width == 1)
        ck_assert_msg(misses < rounds, "%u misses in %u rounds", misses, rounds);
}

/* Few short records, over some segments, of which the first versions are all superseded. */
static void make_small_store(bool closed, struct image *image)
{
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 12; i += 3) {
            unsigned at[3] = {i, i + 1, i + 2};
            int version[3] = {next_version, next_version + 1, GONE};
            next_version += 2;
            ck_assert_int_eq(append_versions(at, version, 3), 0);
        }
    }
    ck_assert_int_eq(sync_all(), 0);
    if (closed)
        close_table(&live);
    read_directory(image, directory);
    for (unsigned i = 0; i < image->count; i++)
        if (strcmp(image->file[i].name, "spare") == 0)
            image->file[i].size = 0;
}

START_TEST(a_flipped_byte_never_brings_back_an_older_version)
{
    static struct image image;
    make_small_store(_i & 1, &image);
    damage_everywhere(&image, 1, 1);
    free_image(&image);
}
END_TEST

START_TEST(a_lost_sector_never_brings_back_an_older_version)
{
    static struct image image;
    close_table(&live);
    max_size = 256 * K;
    ck_assert(open_table(&live, directory));
    for (unsigned round = 0; round < 60; round++)
        random_batch();
    ck_assert_int_eq(sync_all(), 0);
    if (_i & 1)
        close_table(&live);
    read_directory(&image, directory);
    damage_everywhere(&image, _i & 2 ? 512 : 4096, 1024);
    free_image(&image);
}
END_TEST

START_TEST(a_torn_tail_is_cut_off)
{
    static struct image before, after;
    for (unsigned i = 0; i < 10; i++)
        ck_assert_int_eq(put(i), 0);
    ck_assert_int_eq(sync_all(), 0);
    read_directory(&before, directory);
    unsigned at[3] = {1, 2, 3};
    int version[3] = {16 * 9 + 3, GONE, 16 * 9 + 5};
    ck_assert_int_eq(append_versions(at, version, 3), 0);
    read_directory(&after, directory);
    ck_assert_uint_eq(before.count, after.count);
    for (unsigned i = 0; i < after.count; i++) {
        struct file torn = after.file[i];
        size_t first = 0, last = torn.size;
        ck_assert_uint_eq(before.file[i].size, torn.size);
        while (first < torn.size && torn.data[first] == before.file[i].data[first])
            first++;
        while (last > first && torn.data[last - 1] == before.file[i].data[last - 1])
            last--;
        for (size_t cut = first; cut < last; cut++) {
            torn.data = malloc(torn.size);
            memcpy(torn.data, after.file[i].data, torn.size);
            if (_i == 0)
                memset(torn.data + cut, 0, torn.size - cut); /* what follows is missing */
            else
                torn.data[cut] ^= 0x10; /* an earlier page is missing */
            write_directory(&after, copy);
            write_file(copy, &torn);
            check_copy(false);
            free(torn.data);
        }
    }
    free_image(&before);
    free_image(&after);
}
END_TEST

START_TEST(damage_never_stops_the_start)
{
    static struct image image;
    struct file garbage = {.size = 3000, .data = malloc(3000)};
    for (unsigned i = 0; i < 3000; i++)
        garbage.data[i] = (uint8_t)chance(256);
    for (unsigned round = 0; round < 30; round++)
        random_batch();
    ck_assert_int_eq(sync_all(), 0);
    read_directory(&image, directory);
    for (unsigned i = 0; i < image.count; i++) {
        /* Garbage, empty, missing, a symbolic link to nowhere. */
        char name[512];
        snprintf(name, sizeof(name), "%s/%s", copy, image.file[i].name);
        for (unsigned kind = 0; kind < 4; kind++) {
            write_directory(&image, copy);
            snprintf(garbage.name, sizeof(garbage.name), "%s", image.file[i].name);
            garbage.size = kind == 0 ? 3000 : 0;
            write_file(copy, &garbage);
            if (kind >= 2)
                unlink(name);
            if (kind == 3)
                ck_assert_int_eq(symlink("/nowhere", name), 0);
            /* Without the last segment an unclosed store can't know that it was there. */
            static struct table other;
            ck_assert_msg(open_table(&other, copy), "%s", why);
            for (unsigned k = 0; k < KEYS; k++)
                look(&other, k);
            close_table(&other);
        }
    }
    free(garbage.data);
    free_image(&image);
}
END_TEST

/* Crashes. */

START_TEST(a_crash_at_any_step_keeps_what_was_synced)
{
    seed((unsigned)_i);
    disk.crash = disk.on = true;
    disk.short_writes = _i & 1;
    disk.every = _i & 1 ? 29 : 5;
    disk.calls = disk.crashes = 0;
    note_all_synced();
    while (disk.crashes < 120 || (disk.crashes < 1000 && (live.moves < 6 || live.drops < 6))) {
        random_batch();
        if (chance(5) == 0)
            ck_assert_int_eq(sync_all(), 0);
        if (chance(100) == 0) {
            ck_assert_int_eq(sync_all(), 0);
            reopen();
        }
    }
    disk.on = false;
    check_live();
    ck_assert_uint_gt(live.moves, 5);
    ck_assert_uint_gt(live.drops, 5);
}
END_TEST

/* Failures. */

static const int errors[] = {EIO, ENOSPC};

/* A failure at any call: nothing older comes back, in this run, after a crash, or in the end. */
START_TEST(a_failed_call_loses_nothing_that_was_synced)
{
    static const char *const calls[] = {"pwritev",   "pwrite",    "fdatasync", "fsync",
                                        "fallocate", "ftruncate", "unlinkat",  "renameat"};
    disk.only = calls[_i % 8];
    disk.error = errors[_i / 8 % 2];
    seed((unsigned)_i);
    disk.every = 11;
    note_all_synced();
    for (unsigned round = 0; round < 14; round++) {
        unsigned length = 1 + chance(3) * chance(20);
        disk.crash = disk.on = true;
        disk.failed = 0;
        disk.fail_from = disk.calls + 1 + chance(30);
        disk.fail_to = disk.fail_from + length * 7;
        for (unsigned i = 0; i < 30 && disk.failed < length; i++) {
            random_batch();
            if (chance(4) == 0)
                sync_all();
            check_live();
        }
        disk.fail_from = disk.fail_to = 0;
        unsigned tries = 0;
        while (sync_all() != 0)
            ck_assert_uint_lt(++tries, 10);
        check_live();
        disk.on = false;
        if (round % 4 == 0)
            reopen();
        for (unsigned i = 0; i < KEYS; i++)
            keys[i].count = keys[i].synced; /* nothing came since */
        check_live();
    }
}
END_TEST

START_TEST(a_failed_sync_is_final)
{
    for (unsigned i = 0; i < 10; i++)
        ck_assert_int_eq(put(i), 0);
    ck_assert_int_eq(sync_all(), 0);
    ck_assert_int_eq(put(1), 0);
    ck_assert_int_eq(delete (2), 0);
    uint64_t place = live.place[1];
    disk.on = true;
    disk.fail_from = disk.calls + 1;
    disk.fail_to = disk.calls + 1;
    disk.only = "fdatasync";
    disk.error = EIO;
    ck_assert_int_eq(backing_log.sync(live.backing), EIO);
    disk.on = false;
    ck_assert_uint_eq(live.losses, 1);
    ck_assert(live.must_rewrite[1]);
    struct value *value;
    ck_assert_int_eq(read_place(&live, 1, place, true, &value), BACKING_READ_GONE);
    ck_assert_int_eq(look(&live, 3), latest(&keys[3]));
    /* The engine deletes what it no longer has; the deletion of key 2 is the log's to repeat. */
    ck_assert_int_eq(delete (1), 0);
    ck_assert_int_eq(sync_all(), 0);
    copy_directory();
    struct table other = {.live = false};
    ck_assert(open_table(&other, copy));
    for (unsigned i = 0; i < KEYS; i++)
        ck_assert_int_eq(look(&other, i), latest(&keys[i]));
    close_table(&other);
}
END_TEST

START_TEST(a_full_disk_drops_the_oldest_and_recovers)
{
    for (unsigned round = 0; round < 50; round++)
        random_batch();
    unsigned failures = 0;
    disk.on = true;
    disk.only = "fallocate";
    disk.error = ENOSPC;
    disk.fail_from = disk.calls + 1;
    disk.fail_to = UINT32_MAX;
    for (unsigned round = 0; round < 100; round++) {
        unsigned at = chance(KEYS);
        failures += put(at) != 0;
        check_live();
    }
    ck_assert_uint_gt(failures, 50);
    ck_assert_uint_gt(live.drops, 5);
    disk.on = false;
    for (unsigned i = 0; i < KEYS; i++)
        ck_assert_int_eq(put(i), 0);
    ck_assert_int_eq(sync_all(), 0);
    check_live();
    reopen();
    check_live();
}
END_TEST

START_TEST(few_descriptors_suffice)
{
    struct rlimit limit, before;
    close_table(&live);
    max_size = 1 * M;
    getrlimit(RLIMIT_NOFILE, &before);
    limit = before;
    limit.rlim_cur = 40;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    ck_assert(open_table(&live, directory));
    for (unsigned round = 0; round < 100; round++)
        random_batch();
    /* Clients take all that is left. */
    int taken[64], count = 0;
    while (count < 64 && (taken[count] = open("/dev/null", O_RDONLY)) >= 0)
        count++;
    ck_assert_int_lt(count, 64);
    for (unsigned round = 0; round < 400; round++) {
        random_batch();
        ck_assert_int_eq(sync_all(), 0);
    }
    check_live();
    while (count > 0)
        close(taken[--count]);
    reopen();
    check_live();
    setrlimit(RLIMIT_NOFILE, &before);
}
END_TEST

/* Threads. */

static atomic_bool readers_stop;
static pthread_mutex_t places_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t places[KEYS];

static bool count_listed(void *arg, const struct backing_found *found)
{
    *(unsigned *)arg += found->key_length > 0;
    return true;
}

static void *read_all_the_time(void *arg)
{
    unsigned seed = *(unsigned *)arg, listed = 0;
    uint64_t cursor = 0;
    while (!atomic_load(&readers_stop)) {
        unsigned at = seed++ % KEYS;
        struct value *value = NULL;
        pthread_mutex_lock(&places_lock);
        uint64_t place = places[at];
        pthread_mutex_unlock(&places_lock);
        if (place == 0)
            continue;
        enum backing_read result = read_place(&live, at, place, seed % 3 != 0, &value);
        ck_assert(result == BACKING_READ_OK || result == BACKING_READ_GONE ||
                  result == BACKING_READ_AGAIN);
        value_unref(value);
        if (seed % 16 == 0 && !backing_log.scan(live.backing, &cursor, count_listed, &listed))
            cursor = 0;
    }
    return NULL;
}

START_TEST(readers_meet_the_writer)
{
    pthread_t threads[3];
    unsigned seeds[3] = {0, 13, 29};
    atomic_store(&readers_stop, false);
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_all_the_time, &seeds[i]), 0);
    for (unsigned round = 0; round < 1500; round++) {
        random_batch();
        pthread_mutex_lock(&places_lock);
        memcpy(places, live.place, sizeof(places));
        pthread_mutex_unlock(&places_lock);
    }
    atomic_store(&readers_stop, true);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    check_live();
}
END_TEST

/* How long a million entries take to load is printed, not judged. */
START_TEST(many_entries_are_loaded)
{
    enum { MANY = 200000, BATCH = 1000 };
    static struct backing_record records[BATCH];
    static uint8_t data[BATCH][64];
    unsigned many =
        getenv("LIARA_LOAD_ENTRIES") ? (unsigned)atoi(getenv("LIARA_LOAD_ENTRIES")) : MANY;
    close_table(&live);
    empty_directory(directory);
    max_size = (uint64_t)5 << 30;
    ck_assert(open_table(&live, directory));
    for (unsigned i = 0; i < many; i += BATCH) {
        for (unsigned k = 0; k < BATCH; k++) {
            int length = snprintf((char *)data[k], sizeof(data[k]), "some/key/%09u", i + k);
            records[k] = (struct backing_record){.hash = XXH3_64bits(data[k], (size_t)length),
                                                 .data = data[k],
                                                 .length = (uint32_t)(64 - length),
                                                 .key_length = (uint16_t)length,
                                                 .expires = CLOCK_NEVER};
        }
        ck_assert_int_eq(backing_log.append(live.backing, records, BATCH), 0);
        backing_log.upkeep(live.backing, BATCH * 100);
    }
    for (unsigned closed = 0; closed < 2; closed++) {
        struct timespec from, to;
        if (closed) {
            close_table(&live);
        } else {
            copy_directory();
            close_table(&live);
        }
        clock_gettime(CLOCK_MONOTONIC, &from);
        ck_assert(open_table(&live, closed ? directory : copy));
        clock_gettime(CLOCK_MONOTONIC, &to);
        ck_assert_uint_eq(live.founds, many);
        printf("%u entries, %s: loaded in %.1f ms\n", many, closed ? "closed" : "killed",
               (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
        if (!closed) {
            close_table(&live);
            ck_assert(open_table(&live, directory));
        }
    }
}
END_TEST

static void add_long_cases(Suite *suite)
{
    TCase *damage = suite_case(suite, "damage", 300);
    tcase_add_checked_fixture(damage, set_up, tear_down);
    tcase_add_loop_test(damage, a_flipped_byte_never_brings_back_an_older_version, 0, 2);
    tcase_add_loop_test(damage, a_lost_sector_never_brings_back_an_older_version, 0, 4);
    tcase_add_loop_test(damage, a_torn_tail_is_cut_off, 0, 2);
    tcase_add_test(damage, damage_never_stops_the_start);

    TCase *crash = suite_case(suite, "crash", 300);
    tcase_add_checked_fixture(crash, set_up, tear_down);
    tcase_add_loop_test(crash, a_crash_at_any_step_keeps_what_was_synced, 0, 4);
    tcase_add_loop_test(crash, a_failed_call_loses_nothing_that_was_synced, 0, 16);
    tcase_add_test(crash, a_failed_sync_is_final);
    tcase_add_test(crash, a_full_disk_drops_the_oldest_and_recovers);
}

static Suite *log_suite(void)
{
    Suite *suite = suite_create("log backing");
    TCase *plain = suite_case(suite, "plain", 60);
    tcase_add_checked_fixture(plain, set_up, tear_down);
    tcase_add_test(plain, what_is_appended_is_read);
    tcase_add_test(plain, a_restart_finds_everything);
    tcase_add_test(plain, restarts_go_on_in_the_same_segment);
    tcase_add_test(plain, the_secret_stays);
    tcase_add_test(plain, ends_are_kept_and_clamped);
    tcase_add_test(plain, large_records_have_segments_of_their_own);
    tcase_add_test(plain, an_older_layout_is_refused_and_left_as_it_is);
    tcase_add_test(plain, a_newer_version_is_refused);
    tcase_add_test(plain, all_keys_are_listed);
    tcase_add_test(plain, keys_are_listed_without_a_footer);
    tcase_add_test(plain, few_descriptors_suffice);
    tcase_add_test(plain, readers_meet_the_writer);
    tcase_add_test(plain, many_entries_are_loaded);

    TCase *room = suite_case(suite, "room", 120);
    tcase_add_checked_fixture(room, set_up, tear_down);
    tcase_add_test(room, the_oldest_segments_are_retired);
    tcase_add_test(room, all_kept_is_not_kept_for_ever);
    tcase_add_test(room, a_lower_bound_is_reached);
    tcase_add_test(room, what_is_dropped_does_not_come_back);

#ifndef __SANITIZE_THREAD__ /* one thread, and slow there */
    add_long_cases(suite);
#else
    (void)add_long_cases;
#endif
    return suite;
}

int main(void)
{
    clock_start();
    return suite_run(log_suite());
}
