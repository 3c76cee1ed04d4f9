#include "../../clock.h"
#include "../../log.h"
#include "seglog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FLUSH_STEP = 1 << 20 };

/* Segments come and go. */

/* Makes a preallocated file under this name. A file system that can't preallocate has it grow. */
static int make_file(struct seglog *log, const char *name, uint64_t size, int *fd)
{
    *fd = segment_open_file(log, name, O_RDWR | O_CREAT | O_EXCL);
    if (*fd < 0 && errno == EEXIST && unlinkat(log->directory_fd, name, 0) == 0)
        *fd = segment_open_file(log, name, O_RDWR | O_CREAT | O_EXCL);
    if (*fd < 0)
        return errno;
    log->directory_dirty = true;
    int error = fallocate(*fd, 0, 0, (off_t)size) == 0 ? 0 : errno;
    if (error == 0 || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL)
        return 0;
    close(*fd);
    unlinkat(log->directory_fd, name, 0);
    return error;
}

int seglog_make_spare(struct seglog *log)
{
    struct stat st;
    if (log->spare_fd >= 0)
        return 0;
    int error = make_file(log, "spare", log->segment_size, &log->spare_fd);
    if (error != 0) {
        log->spare_fd = -1;
        return error;
    }
    log->spare_size = log->spare_disk = log->segment_size;
    if (fstat(log->spare_fd, &st) == 0 && (uint64_t)st.st_blocks * 512 > log->spare_disk)
        log->spare_disk = (uint64_t)st.st_blocks * 512;
    log->disk_bytes += log->spare_disk;
    return 0;
}

void seglog_drop_spare(struct seglog *log)
{
    if (log->spare_fd < 0)
        return;
    close(log->spare_fd);
    unlinkat(log->directory_fd, "spare", 0);
    log->spare_fd = -1;
    log->disk_bytes -= log->spare_disk;
    log->directory_dirty = true;
}

/* count: of the segments before it in the table. */
static int write_header(struct seglog *log, int fd, uint64_t number, unsigned count)
{
    struct log_header header;
    uint64_t ends[LOG_ENDS] = {0};
    for (unsigned i = 0; i < LOG_ENDS && i < count; i++)
        ends[i] = log->segments[count - 1 - i]->end;
    log_header_make(&header, log->secret, number, ends);
    struct iovec iov = {&header, sizeof(header)};
    return segment_write(fd, &iov, 1, 0);
}

/* The file of this name becomes the segment behind the head, or is removed. */
static int promote(struct seglog *log, const char *from, int fd, uint64_t size)
{
    char name[SEGMENT_NAME];
    uint64_t number = log->head != NULL ? log->head->number + 1 : 1;
    int error = write_header(log, fd, number, log->count);
    segment_name(number, name);
    if (error == 0 && renameat(log->directory_fd, from, log->directory_fd, name) != 0)
        error = errno;
    struct segment *segment = error == 0 ? segment_add(log, number, fd) : NULL;
    if (segment == NULL) {
        unlinkat(log->directory_fd, error == 0 ? name : from, 0);
        close(fd);
        return error == 0 ? ENOMEM : error;
    }
    log->directory_dirty = segment->entry_dirty = segment->dirty = true;
    segment->size = size;
    segment_account(log, segment);
    pthread_mutex_lock(&log->lock);
    segment->references++;
    if (log->head != NULL)
        log->head->references--;
    pthread_mutex_unlock(&log->lock);
    log->head = segment;
    return 0;
}

/* Frees the list of a segment whose footer tells the same. */
static void free_list(struct seglog *log, struct segment *segment)
{
    struct segment_list list = {0};
    pthread_mutex_lock(&log->lock);
    if (segment->sealed && segment != log->head) {
        list = segment->list;
        segment->list = (struct segment_list){0};
    }
    pthread_mutex_unlock(&log->lock);
    segment_list_free(&list);
}

/* Without a footer a segment is usable all the same. */
static void write_footer(struct seglog *log, struct segment *head)
{
    int error = segment_write_footer(head);
    if (error != 0)
        seglog_complain(log, error, "can't write the footer of a segment");
    pthread_mutex_lock(&log->lock);
    head->count = head->list.count;
    head->keys_length = head->list.keys_length;
    head->sealed = error == 0;
    pthread_mutex_unlock(&log->lock);
    head->vouched = head->synced == head->end;
    head->dirty = true;
}

/* Ends the head: writes its footer, syncs it. */
static int seal(struct seglog *log)
{
    struct segment *head = log->head;
    if (head == NULL)
        return 0;
    if (!head->sealed && !head->dead)
        write_footer(log, head);
    head->closed = true;
    segment_account(log, head);
    return seglog_sync_head(log);
}

/*
 * The next header tells where the segments before it end, those that no header on the disk tells of
 * included, but only so many. Where the last ones all failed, this one's must become durable first.
 */
static int end_row_of_failures(struct seglog *log)
{
    unsigned failed = 0;
    while (failed < log->count && log->segments[log->count - 1 - failed]->dead &&
           log->segments[log->count - 1 - failed]->synced <= LOG_RECORDS_AT)
        failed++;
    if (failed < LOG_ENDS - 1)
        return 0;
    struct segment *head = log->head;
    int error = write_header(log, head->fd, head->number, log->count - 1);
    if (error == 0)
        error = segment_write_footer(head);
    if (error == 0 && (fdatasync(head->fd) != 0 || fsync(log->directory_fd) != 0))
        error = errno;
    head->dead = error != 0;
    return error;
}

/* Seals the head and begins the next segment; large: the bytes that it must hold, or 0. */
static int roll(struct seglog *log, uint64_t large)
{
    int error = seal(log), fd;
    if (error == 0)
        error = end_row_of_failures(log);
    if (error != 0)
        return error;
    if (log->spare_fd >= 0 && large == 0) {
        fd = log->spare_fd;
        log->disk_bytes -= log->spare_disk;
        log->spare_fd = -1;
        return promote(log, "spare", fd, log->spare_size);
    }
    uint64_t size = large > 0 ? large : log->segment_size;
    error = make_file(log, "new", size, &fd);
    if (error == 0)
        error = promote(log, "new", fd, size);
    if (error == 0)
        log->head->large = large > 0;
    return error;
}

/* Takes what lies behind end out of the segment, which gets nothing more. */
static void cut(struct seglog *log, struct segment *segment, uint64_t end, uint32_t count)
{
    pthread_mutex_lock(&log->lock);
    segment->end = end;
    segment->sealed = false;
    segment_list_cut(&segment->list, count);
    pthread_mutex_unlock(&log->lock);
    segment->synced = segment->synced < end ? segment->synced : end;
    segment->flushed = segment->flushed < end ? segment->flushed : end;
    segment->closed = true;
    segment->unmarked = false;
    segment->last_unit = segment->last_count = 0;
    if (ftruncate(segment->fd, (off_t)end) == 0)
        segment->dirty = !segment->dead;
    segment_account(log, segment);
}

struct seglog_mark seglog_mark(const struct seglog *log)
{
    const struct segment *head = log->head;
    if (head == NULL)
        return (struct seglog_mark){0};
    return (struct seglog_mark){
        .number = head->number, .end = head->end, .count = head->list.count};
}

void seglog_retreat(struct seglog *log, struct seglog_mark mark)
{
    char name[SEGMENT_NAME];
    bool removed = log->head != NULL && log->head->number > mark.number;
    log->batch.length = 0;
    while (log->head != NULL && log->head->number > mark.number) {
        struct segment *gone = log->head;
        segment_name(gone->number, name);
        unlinkat(log->directory_fd, name, 0);
        log->directory_dirty = true;
        log->head = log->count > 1 ? log->segments[log->count - 2] : NULL;
        pthread_mutex_lock(&log->lock);
        if (log->head != NULL)
            log->head->references++;
        gone->references--;
        pthread_mutex_unlock(&log->lock);
        if (log->owed == gone)
            log->owed = NULL;
        segment_remove(log, gone);
    }
    /* A header that a power cut brings back must not tell of more than its predecessor has. */
    if (removed)
        fsync(log->directory_fd);
    if (log->head != NULL && log->head->number == mark.number && log->head->end > mark.end)
        cut(log, log->head, mark.end, mark.count);
}

uint64_t seglog_position(const struct segment *segment, uint64_t end)
{
    return segment->number << 32 | end / LOG_UNIT;
}

void seglog_settle(struct seglog *log, struct seglog_mark mark)
{
    for (unsigned i = log->count; i > 0 && log->segments[i - 1]->number >= mark.number; i--)
        free_list(log, log->segments[i - 1]);
}

/* Batches. */

/* The head's file holds nothing behind its batches, and is preallocated again. */
static int trim(struct seglog *log, struct segment *head)
{
    if (ftruncate(head->fd, (off_t)head->end) != 0)
        return errno;
    pthread_mutex_lock(&log->lock);
    head->sealed = false;
    pthread_mutex_unlock(&log->lock);
    head->untrimmed = false;
    int error = fallocate(head->fd, 0, 0, (off_t)head->size) == 0 ? 0 : errno;
    segment_account(log, head);
    return seglog_is_shortage(error) ? error : 0;
}

static void begin_batch(struct seglog *log)
{
    struct seglog_batch *batch = &log->batch;
    const struct segment *head = log->head;
    uint32_t count = head->last_count;
    struct log_batch header = {.magic = LOG_BATCH_MAGIC,
                               .previous = head->last_unit,
                               .previous_count = count,
                               .synced = (uint32_t)(head->synced / LOG_UNIT)};
    batch->length = sizeof(header) + log_directory_size(count);
    memset(batch->staging, 0, batch->length);
    memcpy(batch->staging, &header, sizeof(header));
    uint8_t *hashes = batch->staging + sizeof(header), *units = hashes + count * sizeof(uint64_t);
    const struct log_item *items = head->list.items + head->list.count - count;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(hashes + i * sizeof(uint64_t), &items[i].hash, sizeof(uint64_t));
        memcpy(units + i * sizeof(uint32_t), &items[i].unit, sizeof(uint32_t));
    }
    batch->used = batch->length;
    batch->joined = 0;
    batch->iovs = 0;
    batch->count = 0;
    batch->keys_length = 0;
}

/* Puts what was copied since the last call among the batch's pieces. */
static void join(struct seglog_batch *batch)
{
    if (batch->used > batch->joined)
        batch->iov[batch->iovs++] =
            (struct iovec){batch->staging + batch->joined, batch->used - batch->joined};
    batch->joined = batch->used;
}

/* Bytes of a segment that holds this record, too, beside all it has, a batch that says what has
 * been synced, and the footer. */
static uint64_t size_with(const struct seglog *log, const struct segment *head, uint64_t size,
                          uint32_t key_length)
{
    const struct seglog_batch *batch = &log->batch;
    bool begun = batch->length > 0;
    uint32_t count = (begun ? batch->count : 0) + 1;
    uint64_t length = begun ? batch->length
                      : head != NULL
                          ? sizeof(struct log_batch) + log_directory_size(head->last_count)
                          : sizeof(struct log_batch);
    uint64_t items = (head != NULL ? head->list.count : 0) + count;
    uint64_t keys =
        (head != NULL ? head->list.keys_length : 0) + (begun ? batch->keys_length : 0) + key_length;
    return (head != NULL ? head->end : LOG_RECORDS_AT) + length + size + sizeof(struct log_batch) +
           log_directory_size(count) + log_footer_size(items, keys);
}

static bool has_room(const struct seglog *log, uint64_t size, uint32_t key_length)
{
    const struct segment *head = log->head;
    uint32_t count = log->batch.length > 0 ? log->batch.count : 0;
    return head != NULL && !head->closed && head->list.count + count < SEGMENT_RECORDS_MAX &&
           size_with(log, head, size, key_length) <= head->size;
}

static bool batch_is_full(const struct seglog_batch *batch)
{
    return batch->count == LOG_BATCH_MAX || batch->iovs + 4 > SEGLOG_IOVECS ||
           batch->used + SEGLOG_COPY + 64 > SEGLOG_STAGING;
}

/* Begins a batch with room for this record, in the head or behind it. */
static int prepare(struct seglog *log, uint64_t size, uint32_t key_length)
{
    int error = 0;
    bool large = size > log->segment_size / 4;
    if (log->head != NULL && log->head->untrimmed && !large && has_room(log, size, key_length)) {
        error = trim(log, log->head);
        if (error != 0)
            log->head->closed = true;
    }
    if (large)
        error = roll(log, size_with(log, NULL, size, key_length));
    else if (!has_room(log, size, key_length))
        error = roll(log, 0);
    if (error == 0)
        begin_batch(log);
    return error;
}

/* The record's head and data, signed, go into the batch. */
static void put_record(struct seglog *log, const struct log_item *item, uint32_t flags,
                       const uint8_t *data, uint64_t offset)
{
    struct seglog_batch *batch = &log->batch;
    uint8_t *at = batch->staging + batch->used;
    size_t head_length = log_head_length(item->kind), length = log_item_data_length(item);
    size_t padding = log_item_size(item) - head_length - length;
    struct log_record record = {.hash = item->hash,
                                .length = item->length,
                                .flags = flags,
                                .ttl = item->ttl,
                                .key_length = item->key_length,
                                .cost = item->cost,
                                .kind = item->kind};
    memcpy(at, &record, sizeof(record));
    if (item->kind & LOG_HAS_END)
        memcpy(at + sizeof(record), &item->end, sizeof(item->end));
    batch->used += head_length;
    if (length <= SEGLOG_COPY) {
        if (length > 0)
            memcpy(at + head_length, data, length);
        log_sign(at, head_length + length, log->head->seed, offset);
        batch->used += length;
    } else {
        uint64_t check = log_record_check(at, head_length, data, length, log->head->seed, offset);
        memcpy(at, &check, sizeof(check));
        join(batch);
        batch->iov[batch->iovs++] = (struct iovec){(void *)(uintptr_t)data, length};
    }
    memset(batch->staging + batch->used, 0, padding);
    batch->used += padding;
}

int seglog_add(struct seglog *log, struct log_item item, uint32_t flags, const uint8_t *data,
               uint64_t *place)
{
    struct seglog_batch *batch = &log->batch;
    uint64_t size = log_item_size(&item);
    int error = 0;
    if (batch->length > 0 && (size > log->segment_size / 4 || batch_is_full(batch) ||
                              !has_room(log, size, item.key_length)))
        error = seglog_flush(log);
    if (error == 0 && batch->length == 0)
        error = prepare(log, size, item.key_length);
    if (error != 0)
        return error;
    uint64_t offset = log->head->end + batch->length;
    item.unit = (uint32_t)(offset / LOG_UNIT);
    put_record(log, &item, flags, data, offset);
    batch->items[batch->count] = item;
    batch->keys[batch->count++] = data;
    batch->keys_length += item.key_length;
    batch->length += size;
    *place = item.kind & LOG_TOMBSTONE ? 0 : segment_place(log->head->number, item.unit);
    return 0;
}

/* The kernel begins to write early, so that a sync finds little to wait for. */
static void start_writeback(struct segment *head)
{
    uint64_t to = head->end / FLUSH_STEP * FLUSH_STEP;
    if (to > head->flushed) {
        sync_file_range(head->fd, (off_t)head->flushed, (off_t)(to - head->flushed),
                        SYNC_FILE_RANGE_WRITE);
        head->flushed = to;
    }
}

/* Makes the batch part of the segment's list, and readable. */
static void publish(struct seglog *log)
{
    struct seglog_batch *batch = &log->batch;
    struct segment *head = log->head;
    pthread_mutex_lock(&log->lock);
    for (unsigned i = 0; i < batch->count; i++)
        segment_list_push(&head->list, &batch->items[i], batch->keys[i]);
    head->last_unit = (uint32_t)(head->end / LOG_UNIT);
    head->last_count = batch->count;
    head->end += batch->length;
    pthread_mutex_unlock(&log->lock);
    head->dirty = true;
    head->unmarked = batch->count > 0;
    head->closed = head->closed || head->large;
    log->written_bytes += batch->length;
}

int seglog_flush(struct seglog *log)
{
    struct seglog_batch *batch = &log->batch;
    struct segment *head = log->head;
    struct log_batch header;
    if (batch->length == 0)
        return 0;
    size_t front = sizeof(header) + log_directory_size(head->last_count);
    memcpy(&header, batch->staging, sizeof(header));
    header.count = batch->count;
    header.units = (uint32_t)((batch->length - front) / LOG_UNIT);
    memcpy(batch->staging, &header, sizeof(header));
    log_sign(batch->staging, front, head->seed, head->end);
    join(batch);
    pthread_mutex_lock(&log->lock);
    bool room = segment_list_reserve(&head->list, batch->count, batch->keys_length);
    pthread_mutex_unlock(&log->lock);
    int error = room ? segment_write(head->fd, batch->iov, batch->iovs, head->end) : ENOMEM;
    if (error == 0) {
        publish(log);
        start_writeback(head);
    } else if (room) {
        cut(log, head, head->end, head->list.count);
    }
    batch->length = 0;
    return error;
}

/* Syncs. */

/* What was not synced in the head is lost, and must not count after a restart either. */
static void lose(struct seglog *log, struct segment *head, uint64_t from)
{
    uint32_t count = head->list.count, first = count;
    const struct log_item *items = head->list.items;
    uint64_t first_place = 0, last_place = 0;
    while (first > 0 && (uint64_t)items[first - 1].unit * LOG_UNIT >= from)
        first--;
    for (uint32_t i = first; i < count; i++) {
        if (items[i].kind & LOG_TOMBSTONE)
            continue;
        last_place = segment_place(head->number, items[i].unit);
        first_place = first_place == 0 ? last_place : first_place;
    }
    log->batch.length = 0;
    head->dead = true;
    cut(log, head, from, first);
    head->dirty = false;
    log->owed_to = log->owed == head ? log->owed_to : count;
    log->owed_from = first;
    log->owed = head;
    log->has_losses = true;
    if (first_place != 0)
        log->owner.lost(log->owner.arg, first_place, last_place);
}

int seglog_sync_head(struct seglog *log)
{
    struct segment *head = log->head;
    if (head != NULL && head->dirty) {
        if (fdatasync(head->fd) != 0) {
            int error = errno;
            seglog_complain(log, error, "can't sync a segment");
            lose(log, head, head->synced > 0 ? head->synced : LOG_RECORDS_AT);
            return error;
        }
        head->dirty = false;
        head->synced = head->end;
    }
    if (log->directory_dirty) {
        if (fsync(log->directory_fd) != 0) {
            int error = errno;
            seglog_complain(log, error, "can't sync the directory");
            if (head != NULL && head->entry_dirty)
                lose(log, head, LOG_RECORDS_AT);
            return error;
        }
        log->directory_dirty = false;
        if (head != NULL)
            head->entry_dirty = false;
    }
    return 0;
}

/*
 * The tombstones that a failed sync has taken along. Every record behind them was lost too, so they
 * come first, and whatever the owner appends anew counts after them.
 */
static int add_owed(struct seglog *log)
{
    uint64_t place;
    int error = 0;
    if (log->owed == NULL)
        return 0;
    for (uint32_t i = log->owed_from; i < log->owed_to && error == 0; i++) {
        struct log_item item = log->owed->list.items[i];
        if (item.kind & LOG_TOMBSTONE)
            error = seglog_add(log, item, 0, NULL, &place);
    }
    return error == 0 ? seglog_flush(log) : error;
}

int seglog_append_owed(struct seglog *log)
{
    struct seglog_mark mark = seglog_mark(log);
    log->superseding |= log->owed != NULL;
    struct segment *owed = log->owed;
    uint32_t from = log->owed_from, to = log->owed_to;
    int error = add_owed(log);
    if (error != 0) {
        seglog_retreat(log, mark);
        if (log->owed != owed) {
            log->owed = owed;
            log->owed_from = from;
            log->owed_to = to;
        }
        return error;
    }
    log->owed = NULL;
    seglog_settle(log, mark);
    return 0;
}

/* Says behind the last batch that it has been synced, and repeats what was in it; in a segment that
 * is closed the footer says so. A later start may need to know, not this run. */
static void append_synced(struct seglog *log)
{
    struct segment *head = log->head;
    if (head != NULL && head->closed && !head->dead && !(head->sealed && head->vouched))
        write_footer(log, head);
    if (head == NULL || head->closed || !head->unmarked ||
        (head->untrimmed && trim(log, head) != 0))
        return;
    begin_batch(log);
    if (seglog_flush(log) == 0)
        head->dirty = false;
}

/* From here on a log that ends before this is damaged, see anchor.h. */
static int advance_anchor(struct seglog *log)
{
    int error = anchor_advance(&log->anchor, seglog_position(log->head, log->head->synced));
    if (error == 0)
        log->superseding = false;
    else
        seglog_complain(log, error, "can't write the anchor");
    return error;
}

int seglog_sync(struct backing *backing)
{
    struct seglog *log = seglog_of(backing);
    int error = seglog_append_owed(log);
    /* Only the next segment's header says for certain that the rest of a dead one is void. */
    if (error == 0 && log->head != NULL && log->head->dead)
        error = roll(log, 0);
    if (error == 0)
        error = seglog_sync_head(log);
    if (error == 0 && log->superseding && log->head != NULL)
        error = advance_anchor(log);
    if (error == 0) {
        log->has_losses = false;
        append_synced(log);
    }
    return error;
}

void seglog_finish(struct seglog *log)
{
    struct segment *head = log->head;
    if (head != NULL && !head->sealed && !head->dead && log->owed == NULL)
        segment_write_footer(head);
}

/* The owner's records. */

static struct log_item item_of(const struct backing_record *record)
{
    struct log_item item = {.hash = record->hash, .end = CLOCK_NEVER, .cost = record->cost};
    if (record->data == NULL) {
        item.kind = LOG_TOMBSTONE;
        return item;
    }
    item.length = record->length;
    item.key_length = record->key_length;
    if (record->expires != CLOCK_NEVER) {
        item.kind = LOG_HAS_END;
        item.end = clock_to_wall(record->expires);
        item.ttl = log_ttl(record->expires - clock_now());
    }
    return item;
}

/* All of them, or none. */
static int append_all(struct seglog *log, struct backing_record *records, unsigned count)
{
    int error = seglog_append_owed(log);
    if (error != 0)
        return error;
    struct seglog_mark mark = seglog_mark(log);
    for (unsigned i = 0; i < count && error == 0; i++) {
        log->superseding |= records[i].data == NULL || records[i].replaces != 0;
        /* In a log what comes later counts: nothing has to be said of what is out of date. */
        if (records[i].retire)
            continue;
        error = seglog_add(log, item_of(&records[i]), records[i].flags, records[i].data,
                           &records[i].place);
    }
    if (error == 0)
        error = seglog_flush(log);
    if (error == 0) {
        seglog_settle(log, mark);
        return 0;
    }
    seglog_retreat(log, mark);
    if (log->owed != NULL && log->owed->number == mark.number && log->owed_to > mark.count)
        log->owed_to = mark.count;
    return error;
}

/* What the records take beyond the head and the spare segment. */
static uint64_t room_needed(const struct seglog *log, const struct backing_record *records,
                            unsigned count, uint64_t *largest)
{
    /* largest: bytes of key and value */
    uint64_t needed = 0, small = 0;
    const struct segment *head = log->head;
    uint64_t room = log->spare_fd >= 0 ? log->spare_size : 0;
    room += head != NULL && !head->closed && head->end < head->size ? head->size - head->end : 0;
    *largest = 0;
    for (unsigned i = 0; i < count; i++) {
        struct log_item item = item_of(&records[i]);
        uint64_t size = log_item_size(&item);
        *largest = log_item_data_length(&item) > *largest ? log_item_data_length(&item) : *largest;
        *(size > log->segment_size / 4 ? &needed : &small) += size;
    }
    return needed + (small > room ? small - room : 0);
}

int seglog_append(struct backing *backing, struct backing_record *records, unsigned count)
{
    struct seglog *log = seglog_of(backing);
    seglog_take_max_size(log);
    uint64_t largest, needed = room_needed(log, records, count, &largest);
    int error;
    if (largest > (log->max_size > LOG_RECORD_BESIDE ? log->max_size - LOG_RECORD_BESIDE : 0))
        return EFBIG;
    if (needed > 0)
        seglog_make_room(log, needed);
    do {
        error = append_all(log, records, count);
    } while (seglog_is_shortage(error) && seglog_drop_oldest(log));
    return error;
}
