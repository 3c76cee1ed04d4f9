#include "../../clock.h"
#include "../../log.h"
#include "seglog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

enum { AT_ONCE = 64 * 1024, HEAD_MAX = sizeof(struct log_record) + sizeof(int64_t) };

/* A read under way. */
struct reading {
    struct seglog *log;
    struct segment *segment;
    int fd;
    bool wait;
    uint64_t at; /* where the record lies */
    const uint8_t *key;
    size_t key_length;
};

/* As segment_read(); without wait, -1 and EAGAIN where the page cache does not have it all. */
static ssize_t read_some(const struct reading *reading, void *buffer, size_t length, uint64_t at)
{
    if (reading->wait)
        return segment_read(reading->fd, buffer, length, at);
    if (atomic_load_explicit(&reading->log->no_nowait, memory_order_relaxed)) {
        errno = EAGAIN;
        return -1;
    }
    struct iovec iov = {buffer, length};
    ssize_t got = preadv2(reading->fd, &iov, 1, (off_t)at, RWF_NOWAIT);
    if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)) {
        atomic_store(&reading->log->no_nowait, true);
        errno = EAGAIN;
    } else if (got < 0 && errno == EINTR) {
        errno = EAGAIN;
    }
    return got;
}

static enum backing_read damaged(const struct reading *reading, const char *what)
{
    char name[SEGMENT_NAME];
    segment_name(reading->segment->number, name);
    log_warning("a record at %llu of %s/%s %s: it is lost", (unsigned long long)reading->at,
                reading->log->directory, name, what);
    return BACKING_READ_DAMAGED;
}

/* What an attempt to read so many bytes came to. Short of the file's end, a wait may help. */
static enum backing_read short_read(const struct reading *reading, ssize_t got)
{
    if (got < 0 && errno == EIO)
        return damaged(reading, "can't be read");
    if (got < 0 && errno != EAGAIN)
        return BACKING_READ_FAILED;
    return reading->wait ? damaged(reading, "is cut off") : BACKING_READ_AGAIN;
}

static void set_flags_and_end(struct value *value, const uint8_t *head)
{
    struct log_record record;
    int64_t end;
    memcpy(&record, head, sizeof(record));
    value->flags = record.flags;
    if (record.kind & LOG_HAS_END) {
        memcpy(&end, head + sizeof(record), sizeof(end));
        value->expires = clock_from_wall(end, log_ttl_milliseconds(record.ttl));
    }
}

/* The head says how long the record is; it is not checked yet. false: it can't be right. */
static bool take_head(const uint8_t *head, uint64_t size, struct log_record *record)
{
    memcpy(record, head, sizeof(*record));
    return !(record->kind & LOG_TOMBSTONE) && (uint64_t)record->key_length + record->length <= size;
}

/* A record all of which is in image. */
static enum backing_read take_image(const struct reading *reading, const uint8_t *image,
                                    const struct log_record *record, struct value **value)
{
    size_t head = log_head_length(record->kind);
    size_t length = head + record->key_length + record->length;
    if (!log_is_signed(image, length, reading->segment->seed, reading->at))
        return damaged(reading, "has a wrong checksum");
    if (record->key_length != reading->key_length ||
        memcmp(image + head, reading->key, reading->key_length) != 0)
        return BACKING_READ_OTHER;
    *value = value_new(reading->key, reading->key_length, record->length);
    if (*value == NULL)
        return BACKING_READ_FAILED;
    memcpy(value_bytes(*value), image + head + record->key_length, record->length);
    set_flags_and_end(*value, image);
    return BACKING_READ_OK;
}

static enum backing_read read_small(const struct reading *reading, uint64_t size,
                                    struct value **value)
{
    uint8_t image[HEAD_MAX + AT_ONCE];
    struct log_record record;
    ssize_t got = read_some(reading, image, HEAD_MAX + size, reading->at);
    if (got < (ssize_t)sizeof(record))
        return short_read(reading, got);
    if (!take_head(image, size, &record))
        return damaged(reading, "has a wrong length");
    if ((size_t)got < log_head_length(record.kind) + record.key_length + record.length)
        return short_read(reading, got);
    return take_image(reading, image, &record, value);
}

/* Straight into the value: its key and bytes lie side by side, as in the record. */
static enum backing_read read_large(const struct reading *reading, uint64_t size,
                                    struct value **value)
{
    static const uint8_t no_key[UINT16_MAX];
    uint8_t head[HEAD_MAX];
    struct log_record record;
    ssize_t got = read_some(reading, head, sizeof(head), reading->at);
    if (got < (ssize_t)sizeof(head))
        return short_read(reading, got);
    if (!take_head(head, size, &record))
        return damaged(reading, "has a wrong length");
    struct value *filled = value_new(no_key, record.key_length, record.length);
    if (filled == NULL)
        return BACKING_READ_FAILED;
    size_t head_length = log_head_length(record.kind);
    size_t length = (size_t)record.key_length + record.length;
    enum backing_read result = BACKING_READ_OK;
    got = read_some(reading, filled->data, length, reading->at + head_length);
    if (got < (ssize_t)length)
        result = short_read(reading, got);
    else if (log_record_check(head, head_length, filled->data, length, reading->segment->seed,
                              reading->at) != record.check)
        result = damaged(reading, "has a wrong checksum");
    else if (record.key_length != reading->key_length ||
             memcmp(value_key(filled), reading->key, reading->key_length) != 0)
        result = BACKING_READ_OTHER;
    if (result != BACKING_READ_OK) {
        int error = errno;
        value_unref(filled);
        errno = error;
        return result;
    }
    set_flags_and_end(filled, head);
    *value = filled;
    return BACKING_READ_OK;
}

/* A segment that has lost its end meanwhile is no damage: its readers look again. */
static bool is_gone(const struct reading *reading)
{
    return reading->at >= atomic_load(&reading->segment->end);
}

enum backing_read seglog_read(struct backing *backing, uint64_t place, uint64_t size,
                              const uint8_t *key, size_t key_length, bool wait,
                              struct value **value)
{
    struct seglog *log = seglog_of(backing);
    struct segment *segment = segment_acquire(log, place);
    if (segment == NULL)
        return BACKING_READ_GONE;
    struct reading reading = {.log = log,
                              .segment = segment,
                              .fd = segment_fd(log, segment, wait),
                              .wait = wait,
                              .at = place % (SEGMENT_SIZE_MAX / LOG_UNIT) * LOG_UNIT,
                              .key = key,
                              .key_length = key_length};
    enum backing_read result;
    if (reading.fd < 0)
        result = errno == EAGAIN   ? BACKING_READ_AGAIN
                 : errno == ENOENT ? BACKING_READ_GONE
                                   : BACKING_READ_FAILED;
    else if (size <= AT_ONCE)
        result = read_small(&reading, size, value);
    else
        result = read_large(&reading, size, value);
    if (result == BACKING_READ_DAMAGED && is_gone(&reading))
        result = BACKING_READ_GONE;
    int error = errno;
    segment_release(log, segment);
    errno = error;
    return result;
}

int seglog_read_record(struct seglog *log, struct segment *segment, const struct log_item *item,
                       uint8_t *buffer)
{
    struct log_record record;
    uint64_t at = (uint64_t)item->unit * LOG_UNIT;
    size_t length = log_head_length(item->kind) + log_item_data_length(item);
    int fd = segment_fd(log, segment, true);
    ssize_t got = fd >= 0 ? segment_read(fd, buffer, length, at) : -1;
    if (got < 0)
        return errno;
    memcpy(&record, buffer, sizeof(record));
    return got == (ssize_t)length && record.kind == item->kind && record.hash == item->hash &&
                   log_is_signed(buffer, length, segment->seed, at)
               ? 0
               : EBADMSG;
}

/* Listing. The cursor has the segment's number and the item's, in it. */

enum { CURSOR_ITEM_BITS = 20 };

/* The page with the cursor's item; moves on to a later segment where there is none. 0 or errno;
 * *segment is NULL at the end, else the caller's reference. */
static int next_page(struct seglog *log, uint64_t *cursor, struct segment **segment,
                     struct segment_page *page)
{
    const uint64_t mask = (1u << CURSOR_ITEM_BITS) - 1;
    for (;;) {
        *segment = segment_acquire_from(log, *cursor >> CURSOR_ITEM_BITS);
        if (*segment == NULL)
            return 0;
        if ((*segment)->number != *cursor >> CURSOR_ITEM_BITS)
            *cursor = (*segment)->number << CURSOR_ITEM_BITS;
        uint32_t item = (uint32_t)(*cursor & mask);
        bool incomplete = false;
        int error = segment_read_page(log, *segment, item / LOG_PAGE_ITEMS, true, page);
        if (error == EBADMSG) {
            error = seglog_relist(log, *segment, &incomplete) ? EIO : errno;
            if (!incomplete && error == EIO)
                error = segment_read_page(log, *segment, item / LOG_PAGE_ITEMS, true, page);
        }
        if (error == 0 && item % LOG_PAGE_ITEMS < page->count)
            return 0;
        free(page->keys);
        page->keys = NULL;
        segment_release(log, *segment);
        if (error != 0)
            return error;
        *cursor = ((*cursor >> CURSOR_ITEM_BITS) + 1) << CURSOR_ITEM_BITS;
    }
}

bool seglog_scan(struct backing *backing, uint64_t *cursor,
                 bool (*found)(void *arg, const struct backing_found *found), void *arg)
{
    struct seglog *log = seglog_of(backing);
    struct segment *segment;
    struct segment_page page = {.keys = NULL};
    errno = next_page(log, cursor, &segment, &page);
    if (errno != 0 || segment == NULL)
        return false;
    unsigned first = *cursor % LOG_PAGE_ITEMS;
    const uint8_t *key = page.keys;
    bool more = true;
    for (unsigned i = 0; i < page.count && more; key += page.items[i++].key_length) {
        const struct log_item *item = &page.items[i];
        if (i < first)
            continue;
        ++*cursor;
        if (item->kind & LOG_TOMBSTONE)
            continue;
        struct backing_found one = log_found(item, segment_place(segment->number, item->unit));
        one.key = key;
        more = found(arg, &one);
    }
    free(page.keys);
    segment_release(log, segment);
    return true;
}
