/*
 * Reading a segment that has no footer, batch by batch. A batch counts if its header and all its
 * records are sound. Otherwise it was never synced, and the log ends before it (a torn tail); or it
 * is rotten, and the directory of the batch behind it tells which hashes it had.
 */
#include "../../log.h"
#include "seglog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL /* states on the stack */
#include <xxhash.h>

enum {
    WINDOW = 256 * 1024, /* read at a time; a batch's front and a record's head and key fit in */
    BAD_BLOCK = 4096     /* what is taken for zeros where the disk can't be read */
};

struct recovery {
    struct segment *segment;
    uint64_t limit; /* nothing behind counts */
    uint8_t *window;
    uint64_t window_at;
    size_t window_length;
    int error; /* errno: the segment can't be read, for another reason than damage */
};

/* Block by block, because one can't be read. */
static size_t read_around_damage(struct recovery *recovery, uint64_t at, size_t length)
{
    size_t done = 0;
    while (done < length) {
        size_t part = length - done < BAD_BLOCK ? length - done : BAD_BLOCK;
        ssize_t got = segment_read(recovery->segment->fd, recovery->window + done, part, at + done);
        if (got < 0 && errno != EIO) {
            recovery->error = errno;
            return 0;
        }
        if (got < 0)
            memset(recovery->window + done, 0, part);
        done += got < 0 ? part : (size_t)got;
        if (got >= 0 && (size_t)got < part)
            break;
    }
    return done;
}

/* So many bytes at this offset, until the next call; NULL: there are fewer. */
static const uint8_t *peek(struct recovery *recovery, uint64_t at, size_t length)
{
    if (at > recovery->limit || length > recovery->limit - at || length > WINDOW)
        return NULL;
    if (at < recovery->window_at || at + length > recovery->window_at + recovery->window_length) {
        uint64_t rest = recovery->limit - at;
        size_t wanted = rest < WINDOW ? rest : WINDOW;
        ssize_t got = segment_read(recovery->segment->fd, recovery->window, wanted, at);
        if (got < 0 && errno == EIO)
            got = (ssize_t)read_around_damage(recovery, at, wanted);
        else if (got < 0)
            recovery->error = errno;
        recovery->window_at = at;
        recovery->window_length = got > 0 ? (size_t)got : 0;
    }
    if (at + length > recovery->window_at + recovery->window_length)
        return NULL;
    return recovery->window + (at - recovery->window_at);
}

static size_t front_length(const struct log_batch *batch)
{
    return sizeof(*batch) + log_directory_size(batch->previous_count);
}

static uint64_t batch_end(const struct log_batch *batch, uint64_t at)
{
    return at + front_length(batch) + (uint64_t)batch->units * LOG_UNIT;
}

/* The header of a batch, sound together with its directory. */
static bool read_batch(struct recovery *recovery, uint64_t at, struct log_batch *batch)
{
    const uint8_t *bytes = peek(recovery, at, sizeof(*batch));
    if (bytes == NULL)
        return false;
    memcpy(batch, bytes, sizeof(*batch));
    if (!log_batch_is_plausible(batch) || batch_end(batch, at) > recovery->limit)
        return false;
    bytes = peek(recovery, at, front_length(batch));
    return bytes != NULL && log_is_signed(bytes, front_length(batch), recovery->segment->seed, at);
}

/* Whether the record's checksum is right; item is filled from its head. */
static bool read_record(struct recovery *recovery, uint64_t at, struct log_item *item)
{
    struct log_record record;
    XXH3_state_t state;
    const uint8_t *bytes = peek(recovery, at, sizeof(record));
    if (bytes == NULL)
        return false;
    memcpy(&record, bytes, sizeof(record));
    *item = (struct log_item){.hash = record.hash,
                              .unit = (uint32_t)(at / LOG_UNIT),
                              .length = record.length,
                              .ttl = record.ttl,
                              .key_length = record.key_length,
                              .cost = record.cost,
                              .kind = record.kind};
    uint64_t left = log_head_length(item->kind) + log_item_data_length(item);
    bytes = peek(recovery, at, log_head_length(item->kind));
    if (bytes == NULL || left > recovery->limit - at)
        return false;
    if (item->kind & LOG_HAS_END)
        memcpy(&item->end, bytes + sizeof(record), sizeof(item->end));
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset_withSeed(&state, recovery->segment->seed + at);
    at += sizeof(record.check);
    left -= sizeof(record.check);
    while (left > 0) {
        size_t part = left < WINDOW / 4 ? left : WINDOW / 4;
        bytes = peek(recovery, at, part);
        if (bytes == NULL)
            return false;
        XXH3_64bits_update(&state, bytes, part);
        at += part;
        left -= part;
    }
    return XXH3_64bits_digest(&state) == record.check;
}

static void push(struct recovery *recovery, const struct log_item *item)
{
    struct segment_list *list = &recovery->segment->list;
    uint64_t key_at = (uint64_t)item->unit * LOG_UNIT + log_head_length(item->kind);
    const uint8_t *key = NULL;
    if (item->key_length > 0)
        key = peek(recovery, key_at, item->key_length);
    if (item->key_length > 0 && key == NULL)
        return;
    if (!segment_list_reserve(list, 1, item->key_length))
        recovery->error = ENOMEM;
    else
        segment_list_push(list, item, key);
}

/* Takes the batch's records into the list; false: not all of them are sound, and none is taken. */
static bool take_batch(struct recovery *recovery, uint64_t at, const struct log_batch *batch)
{
    struct segment_list *list = &recovery->segment->list;
    uint32_t before = list->count, end = (uint32_t)(batch_end(batch, at) / LOG_UNIT);
    struct log_item item;
    uint64_t offset = at + front_length(batch);
    for (uint32_t i = 0; i < batch->count; i++) {
        if (!read_record(recovery, offset, &item) ||
            offset + log_item_size(&item) > (uint64_t)end * LOG_UNIT) {
            segment_list_cut(list, before);
            return false;
        }
        push(recovery, &item);
        offset += log_item_size(&item);
    }
    return true;
}

/* Takes the records of the batch before this one by its directory: the sound ones, and tombstones
 * for the others. */
static void take_by_directory(struct recovery *recovery, uint64_t at, const struct log_batch *batch)
{
    uint32_t count = batch->previous_count, unit;
    uint64_t hashes = at + sizeof(*batch), units = hashes + count * sizeof(uint64_t), hash;
    for (uint32_t i = 0; i < count && recovery->error == 0; i++) {
        struct log_item item;
        const uint8_t *bytes = peek(recovery, hashes + i * sizeof(hash), sizeof(hash));
        if (bytes == NULL)
            return;
        memcpy(&hash, bytes, sizeof(hash));
        bytes = peek(recovery, units + i * sizeof(unit), sizeof(unit));
        if (bytes == NULL)
            return;
        memcpy(&unit, bytes, sizeof(unit));
        if (!read_record(recovery, (uint64_t)unit * LOG_UNIT, &item) || item.hash != hash)
            item = (struct log_item){.hash = hash, .unit = unit, .kind = LOG_TOMBSTONE};
        push(recovery, &item);
    }
}

/* The next offset with a sound batch header; 0: there is none. Holes of the file are passed over.
 */
static uint64_t search(struct recovery *recovery, uint64_t at, struct log_batch *batch)
{
    const uint32_t magic = LOG_BATCH_MAGIC;
    const size_t magic_at = offsetof(struct log_batch, magic);
    at = log_align(at);
    while (at + sizeof(*batch) <= recovery->limit && recovery->error == 0) {
        off_t data = lseek(recovery->segment->fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data > (off_t)at)
            at = (uint64_t)data & ~(uint64_t)(LOG_UNIT - 1);
        uint64_t rest = recovery->limit > at ? recovery->limit - at : 0;
        size_t length = rest < WINDOW / 4 ? rest : WINDOW / 4;
        const uint8_t *bytes = rest >= sizeof(*batch) ? peek(recovery, at, length) : NULL;
        if (bytes == NULL)
            return 0;
        const uint8_t *hit = memmem(bytes + magic_at, length - magic_at, &magic, sizeof(magic));
        if (hit == NULL) {
            at += (length - sizeof(*batch)) / LOG_UNIT * LOG_UNIT + LOG_UNIT;
            continue;
        }
        at += (uint64_t)(hit - bytes) - magic_at;
        if (at % LOG_UNIT == 0 && read_batch(recovery, at, batch))
            return at;
        at = log_align(at + 1);
    }
    return 0;
}

/* How far the segment had been synced, as batches from at on say. */
static uint64_t synced_as_of(struct recovery *recovery, uint64_t at)
{
    struct log_batch batch;
    uint64_t synced = 0;
    for (at = search(recovery, at, &batch); at != 0; at = search(recovery, at + 1, &batch))
        if ((uint64_t)batch.synced * LOG_UNIT > synced)
            synced = (uint64_t)batch.synced * LOG_UNIT;
    return synced;
}

/* A rotten batch at this offset. Returns where to go on; 0: nothing follows. */
static uint64_t pass_damage(struct recovery *recovery, uint64_t at, uint64_t next,
                            bool *void_before)
{
    struct log_batch batch;
    if (next == 0 || !read_batch(recovery, next, &batch))
        next = search(recovery, at + 1, &batch);
    if (next != 0 && (uint64_t)batch.previous * LOG_UNIT == at) {
        take_by_directory(recovery, next, &batch);
        return next;
    }
    /* No one knows what the batch had superseded. */
    segment_list_cut(&recovery->segment->list, 0);
    *void_before = true;
    return next;
}

static void tell_of_damage(const struct seglog *log, const struct segment *segment, uint64_t at,
                           bool void_before)
{
    char name[SEGMENT_NAME];
    segment_name(segment->number, name);
    log_warning("%s/%s is damaged at %llu: %s", log->directory, name, (unsigned long long)at,
                void_before ? "all older entries are given up" : "some entries are lost");
}

static void walk(struct seglog *log, struct recovery *recovery, uint64_t known_end, bool last,
                 bool *void_before)
{
    struct segment *segment = recovery->segment;
    uint64_t at = LOG_RECORDS_AT, synced = last ? UINT64_MAX : known_end;
    while (at != known_end && recovery->error == 0) {
        struct log_batch batch;
        bool sound = read_batch(recovery, at, &batch);
        if (sound && (uint64_t)batch.synced * LOG_UNIT > segment->synced)
            segment->synced = (uint64_t)batch.synced * LOG_UNIT;
        if (sound && take_batch(recovery, at, &batch)) {
            segment->last_unit = (uint32_t)(at / LOG_UNIT);
            segment->last_count = batch.count;
            at = batch_end(&batch, at);
            continue;
        }
        if (last && synced == UINT64_MAX) {
            uint64_t told = synced_as_of(recovery, at + 1);
            synced = told > segment->synced ? told : segment->synced;
        }
        if (at >= synced || recovery->error != 0)
            break;
        uint64_t next = pass_damage(recovery, at, sound ? batch_end(&batch, at) : 0, void_before);
        tell_of_damage(log, segment, at, *void_before);
        if (next == 0)
            break;
        at = next;
    }
    segment->end = at;
}

int seglog_recover(struct seglog *log, struct segment *segment, uint64_t file_size,
                   uint64_t known_end, bool last, bool *void_before)
{
    struct recovery recovery = {.segment = segment,
                                .limit = known_end < file_size ? known_end : file_size,
                                .window = malloc(WINDOW)};
    *void_before = false;
    if (recovery.window == NULL)
        return ENOMEM;
    segment_list_free(&segment->list);
    segment->last_unit = segment->last_count = 0;
    walk(log, &recovery, known_end, last, void_before);
    free(recovery.window);
    return recovery.error;
}

bool seglog_relist(struct seglog *log, struct segment *segment, bool *incomplete)
{
    struct segment copy = {.number = segment->number, .seed = segment->seed};
    copy.fd = segment_fd(log, segment, true);
    if (copy.fd < 0)
        return false;
    int error = seglog_recover(log, &copy, segment->end, segment->end, false, incomplete);
    pthread_mutex_lock(&log->lock);
    if (error == 0 && segment->list.items == NULL) {
        struct segment_list empty = segment->list;
        segment->list = copy.list;
        segment->sealed = false;
        copy.list = empty;
    }
    pthread_mutex_unlock(&log->lock);
    segment_list_free(&copy.list);
    errno = error;
    return error == 0;
}
