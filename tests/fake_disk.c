#include "fake_disk.h"

#include "../daemon/clock.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct fake_record {
    uint64_t hash;
    uint8_t *data; /* key and value; NULL: a tombstone */
    uint32_t length;
    uint16_t key_length;
    uint8_t cost;
    uint32_t flags;
    int64_t expires;
    bool lost, damaged, freed;
};

/* A record's place is its number, from 1 on, over all runs. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t released;
    struct fake_record *records;
    uint64_t count, size, synced, first; /* records before first have been given back */
    uint64_t bytes, max_size;
    unsigned fail_appends, fail_syncs, appends, syncs;
    uint64_t record_max;
    int append_error, sync_error;
    bool hold, off;
    uint8_t secret[BACKING_SECRET];
    struct backing_owner owner;
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .released = PTHREAD_COND_INITIALIZER};

struct backing {
    int nothing;
};

static struct backing the_backing;

static void free_record(struct fake_record *record)
{
    if (record->data != NULL)
        disk.bytes -= (uint64_t)record->length + record->key_length;
    free(record->data);
    record->data = NULL;
    record->freed = true;
}

static void cut(uint64_t count)
{
    while (disk.count > count)
        free_record(&disk.records[--disk.count]);
}

void fake_disk_reset(void)
{
    pthread_mutex_lock(&disk.lock);
    cut(0);
    disk.synced = disk.first = 0;
    disk.fail_appends = disk.fail_syncs = disk.appends = disk.syncs = 0;
    disk.hold = false;
    disk.record_max = UINT64_MAX;
    memset(disk.secret, 7, sizeof(disk.secret));
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_power_off(unsigned keep)
{
    pthread_mutex_lock(&disk.lock);
    uint64_t rest = disk.count - disk.synced;
    cut(disk.synced + (keep < rest ? keep : rest));
    disk.synced = disk.count;
    disk.off = true;
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_power_on(void)
{
    pthread_mutex_lock(&disk.lock);
    disk.off = false;
    disk.fail_appends = disk.fail_syncs = 0;
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_limit_records(uint64_t bytes)
{
    pthread_mutex_lock(&disk.lock);
    disk.record_max = bytes;
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_fail_appends(unsigned count, int error)
{
    pthread_mutex_lock(&disk.lock);
    disk.fail_appends = count;
    disk.append_error = error;
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_fail_syncs(unsigned count, int error)
{
    pthread_mutex_lock(&disk.lock);
    disk.fail_syncs = count;
    disk.sync_error = error;
    pthread_mutex_unlock(&disk.lock);
}

void fake_disk_hold(bool hold)
{
    pthread_mutex_lock(&disk.lock);
    disk.hold = hold;
    pthread_mutex_unlock(&disk.lock);
    pthread_cond_broadcast(&disk.released);
}

static unsigned locked(const unsigned *counter)
{
    pthread_mutex_lock(&disk.lock);
    unsigned count = *counter;
    pthread_mutex_unlock(&disk.lock);
    return count;
}

unsigned fake_disk_appends(void)
{
    return locked(&disk.appends);
}

unsigned fake_disk_syncs(void)
{
    return locked(&disk.syncs);
}

void fake_disk_damage(const char *key)
{
    pthread_mutex_lock(&disk.lock);
    for (uint64_t i = disk.count; i > 0; i--) {
        struct fake_record *record = &disk.records[i - 1];
        if (record->data == NULL || record->key_length != strlen(key) ||
            memcmp(record->data, key, record->key_length) != 0)
            continue;
        record->damaged = true;
        break;
    }
    pthread_mutex_unlock(&disk.lock);
}

static struct backing *fake_open(const struct backing_options *options,
                                 uint8_t secret[BACKING_SECRET], char *why, size_t size)
{
    (void)why;
    (void)size;
    disk.owner = options->owner;
    disk.max_size = options->max_size;
    memcpy(secret, disk.secret, BACKING_SECRET);
    return &the_backing;
}

static struct backing_found found_of(uint64_t number)
{
    const struct fake_record *record = &disk.records[number];
    return (struct backing_found){.hash = record->hash,
                                  .place = record->data != NULL ? number + 1 : 0,
                                  .length = record->length,
                                  .key_length = record->key_length,
                                  .cost = record->cost,
                                  .expires = record->expires,
                                  .key = record->data};
}

static bool fake_load(struct backing *backing, char *why, size_t size)
{
    (void)backing;
    (void)why;
    (void)size;
    for (uint64_t i = disk.first; i < disk.count; i++) {
        if (disk.records[i].lost || disk.records[i].freed)
            continue;
        struct backing_found found = found_of(i);
        found.key = NULL;
        disk.owner.found(disk.owner.arg, &found, 1);
    }
    return true;
}

static bool make_room(void)
{
    if (disk.count < disk.size)
        return true;
    uint64_t size = disk.size > 0 ? disk.size * 2 : 1024;
    struct fake_record *records = realloc(disk.records, size * sizeof(*records));
    if (records == NULL)
        return false;
    disk.records = records;
    disk.size = size;
    return true;
}

/* Adds a copy; the lock is held. Returns its place. */
static uint64_t add(const struct backing_record *record)
{
    struct fake_record copy = {.hash = record->hash,
                               .length = record->length,
                               .key_length = record->key_length,
                               .cost = record->cost,
                               .flags = record->flags,
                               .expires = record->expires};
    size_t bytes = (size_t)record->key_length + record->length;
    if (!make_room())
        abort();
    if (record->data != NULL) {
        copy.data = malloc(bytes + 1);
        if (copy.data == NULL)
            abort();
        memcpy(copy.data, record->data, bytes);
        disk.bytes += bytes;
    }
    disk.records[disk.count++] = copy;
    return record->data != NULL ? disk.count : 0;
}

static void wait_while_held(void)
{
    while (disk.hold)
        pthread_cond_wait(&disk.released, &disk.lock);
}

static int fake_append(struct backing *backing, struct backing_record *records, unsigned count)
{
    int error = 0;
    (void)backing;
    pthread_mutex_lock(&disk.lock);
    wait_while_held();
    disk.appends++;
    if (disk.fail_appends > 0) {
        disk.fail_appends -= disk.fail_appends != UINT_MAX;
        error = disk.append_error;
    }
    if (disk.off)
        error = EIO;
    for (unsigned i = 0; i < count && error == 0; i++) {
        if (records[i].data != NULL &&
            (uint64_t)records[i].key_length + records[i].length > disk.record_max)
            error = EFBIG;
    }
    for (unsigned i = 0; i < count && error == 0; i++) {
        if (!records[i].retire)
            records[i].place = add(&records[i]);
    }
    pthread_mutex_unlock(&disk.lock);
    return error;
}

/* A tombstone is written again by the disk itself; what else is lost is the engine's to write. */
static void lose(uint64_t number)
{
    struct backing_record tombstone = {.hash = disk.records[number].hash};
    bool again = disk.records[number].data == NULL && !disk.records[number].lost;
    disk.records[number].lost = true;
    if (again)
        add(&tombstone);
}

static int fake_sync(struct backing *backing)
{
    int error = 0;
    (void)backing;
    pthread_mutex_lock(&disk.lock);
    wait_while_held();
    disk.syncs++;
    uint64_t first = disk.synced, last = disk.count;
    if (disk.off) {
        pthread_mutex_unlock(&disk.lock);
        return EIO;
    }
    if (disk.fail_syncs > 0) {
        disk.fail_syncs -= disk.fail_syncs != UINT_MAX;
        error = disk.sync_error;
        for (uint64_t i = first; i < last; i++)
            lose(i);
    } else {
        disk.synced = disk.count;
    }
    pthread_mutex_unlock(&disk.lock);
    if (error != 0 && first < last)
        disk.owner.lost(disk.owner.arg, first + 1, last);
    return error;
}

/* The oldest record, if the disk is too full. Where it is kept, the copy is synced before the old
 * one is given back. */
static bool retire_oldest(void)
{
    pthread_mutex_lock(&disk.lock);
    bool full = !disk.off && disk.bytes > disk.max_size && disk.first < disk.count;
    uint64_t number = disk.first;
    struct fake_record record = full ? disk.records[number] : (struct fake_record){.hash = 0};
    pthread_mutex_unlock(&disk.lock);
    if (!full)
        return false;
    enum backing_verdict verdict = BACKING_DEAD;
    if (record.data != NULL && !record.lost)
        verdict = disk.owner.judge(disk.owner.arg, record.hash, number + 1, false);
    if (verdict == BACKING_KEEP) {
        struct backing_record moved = {.hash = record.hash,
                                       .data = record.data,
                                       .length = record.length,
                                       .key_length = record.key_length,
                                       .cost = record.cost,
                                       .flags = record.flags,
                                       .expires = record.expires};
        pthread_mutex_lock(&disk.lock);
        uint64_t place = add(&moved);
        pthread_mutex_unlock(&disk.lock);
        disk.owner.moved(disk.owner.arg, record.hash, number + 1, place);
    }
    pthread_mutex_lock(&disk.lock);
    disk.synced = disk.count;
    free_record(&disk.records[number]);
    disk.first++;
    pthread_mutex_unlock(&disk.lock);
    if (verdict == BACKING_DROP)
        disk.owner.forget(disk.owner.arg, record.hash, number + 1);
    return true;
}

static int fake_upkeep(struct backing *backing, uint64_t bytes)
{
    (void)backing;
    (void)bytes;
    for (unsigned i = 0; i < 64; i++) {
        if (!retire_oldest())
            return -1;
    }
    return 0;
}

static void fake_set_max_size(struct backing *backing, uint64_t bytes)
{
    (void)backing;
    pthread_mutex_lock(&disk.lock);
    disk.max_size = bytes;
    pthread_mutex_unlock(&disk.lock);
}

static enum backing_read fake_read(struct backing *backing, uint64_t place, uint64_t size,
                                   const uint8_t *key, size_t key_length, bool wait,
                                   struct value **value)
{
    enum backing_read result = BACKING_READ_OK;
    (void)backing;
    if (!wait && place % 2 == 0)
        return BACKING_READ_AGAIN;
    pthread_mutex_lock(&disk.lock);
    const struct fake_record *record = &disk.records[place - 1];
    if (place > disk.count || record->freed || record->lost) {
        result = BACKING_READ_GONE;
    } else if (record->damaged) {
        result = BACKING_READ_DAMAGED;
    } else if (record->key_length != key_length || memcmp(record->data, key, key_length) != 0) {
        result = BACKING_READ_OTHER;
    } else if (size < (uint64_t)record->key_length + record->length) {
        abort(); /* the estimate is too low */
    } else if ((*value = value_new(key, key_length, record->length)) == NULL) {
        result = BACKING_READ_FAILED;
    } else {
        memcpy(value_bytes(*value), record->data + key_length, record->length);
        (*value)->flags = record->flags;
        (*value)->expires = record->expires;
    }
    pthread_mutex_unlock(&disk.lock);
    return result;
}

static bool fake_scan(struct backing *backing, uint64_t *cursor,
                      bool (*found)(void *arg, const struct backing_found *found), void *arg)
{
    uint8_t key[UINT16_MAX];
    (void)backing;
    for (;;) {
        pthread_mutex_lock(&disk.lock);
        if (*cursor < disk.first)
            *cursor = disk.first;
        bool more = *cursor < disk.count;
        bool tell = false;
        struct backing_found one = {.place = 0};
        if (more) {
            const struct fake_record *record = &disk.records[*cursor];
            tell = record->data != NULL && !record->lost;
            one = found_of(*cursor);
            if (tell)
                memcpy(key, record->data, record->key_length);
            one.key = key;
            ++*cursor;
        }
        pthread_mutex_unlock(&disk.lock);
        if (!more)
            break;
        if (tell && !found(arg, &one))
            return true;
    }
    errno = 0;
    return false;
}

static uint64_t fake_record_max(struct backing *backing)
{
    (void)backing;
    pthread_mutex_lock(&disk.lock);
    uint64_t bytes = disk.record_max;
    pthread_mutex_unlock(&disk.lock);
    return bytes;
}

static void fake_compact(struct backing *backing, uint64_t live_bytes)
{
    (void)backing;
    (void)live_bytes;
}

static struct backing_stats fake_stats(struct backing *backing)
{
    (void)backing;
    return (struct backing_stats){.disk_bytes = disk.bytes};
}

static void fake_close(struct backing *backing)
{
    (void)backing;
}

const struct backing_ops fake_disk_ops = {
    .name = "the fake disk",
    .open = fake_open,
    .load = fake_load,
    .append = fake_append,
    .sync = fake_sync,
    .upkeep = fake_upkeep,
    .set_max_size = fake_set_max_size,
    .record_max = fake_record_max,
    .compact = fake_compact,
    .read = fake_read,
    .scan = fake_scan,
    .stats = fake_stats,
    .close = fake_close,
};
