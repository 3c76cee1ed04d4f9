#include "segment.h"

#include "../../log.h"
#include "seglog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PLACE_UNIT_BITS = 23, PLACE_NUMBER_BITS = 21 };
#define PLACE_NUMBERS (UINT64_C(1) << PLACE_NUMBER_BITS)

_Static_assert(SEGMENT_SIZE_MAX / LOG_UNIT == 1 << PLACE_UNIT_BITS, "a place tells all units");
_Static_assert(PLACE_UNIT_BITS + PLACE_NUMBER_BITS == 44, "BACKING_PLACE_MAX");

void segment_name(uint64_t number, char name[SEGMENT_NAME])
{
    snprintf(name, SEGMENT_NAME, "%016llx.log", (unsigned long long)number);
}

bool segment_parse_name(const char *name, uint64_t *number)
{
    char again[SEGMENT_NAME];
    *number = strtoull(name, NULL, 16);
    segment_name(*number, again);
    return *number > 0 && strcmp(name, again) == 0;
}

uint64_t segment_place(uint64_t number, uint32_t unit)
{
    return (number % PLACE_NUMBERS) << PLACE_UNIT_BITS | unit;
}

/* Descriptors. */

/* Closes a descriptor that no one uses now. */
static bool close_idle(struct seglog *log)
{
    int fd = -1;
    pthread_mutex_lock(&log->lock);
    for (unsigned i = 0; i < log->count && fd < 0; i++) {
        struct segment *segment = log->segments[log->hand++ % log->count];
        if (segment->references == 0 && segment->fd >= 0) {
            fd = segment->fd;
            segment->fd = -1;
            log->open_fds--;
        }
    }
    if (fd < 0 && log->reserve_fd >= 0) {
        fd = log->reserve_fd;
        log->reserve_fd = -1;
    }
    pthread_mutex_unlock(&log->lock);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

int segment_open_file(struct seglog *log, const char *name, int flags)
{
    int fd;
    do {
        fd = openat(log->directory_fd, name, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    } while (fd < 0 &&
             (errno == EINTR || ((errno == EMFILE || errno == ENFILE) && close_idle(log))));
    return fd;
}

int segment_fd(struct seglog *log, struct segment *segment, bool wait)
{
    char name[SEGMENT_NAME];
    pthread_mutex_lock(&log->lock);
    int fd = segment->fd;
    bool many = log->open_fds >= log->open_fds_max;
    pthread_mutex_unlock(&log->lock);
    if (fd >= 0)
        return fd;
    if (!wait) {
        errno = EAGAIN;
        return -1;
    }
    if (many)
        close_idle(log);
    segment_name(segment->number, name);
    int opened = segment_open_file(log, name, O_RDWR);
    if (opened < 0)
        return -1;
    pthread_mutex_lock(&log->lock);
    if (segment->fd < 0) {
        segment->fd = opened;
        log->open_fds++;
        opened = -1;
    }
    fd = segment->fd;
    pthread_mutex_unlock(&log->lock);
    if (opened >= 0)
        close(opened);
    return fd;
}

/* The table. */

struct segment *segment_add(struct seglog *log, uint64_t number, int fd)
{
    struct segment *segment = calloc(1, sizeof(*segment));
    if (segment == NULL)
        return NULL;
    segment->number = number;
    segment->seed = log_seed(log->secret, number);
    segment->fd = fd;
    atomic_init(&segment->end, LOG_RECORDS_AT);
    pthread_mutex_lock(&log->lock);
    if (log->count == log->capacity) {
        unsigned capacity = log->capacity > 0 ? 2 * log->capacity : 128;
        struct segment **grown = realloc(log->segments, capacity * sizeof(struct segment *));
        if (grown == NULL) {
            pthread_mutex_unlock(&log->lock);
            free(segment);
            return NULL;
        }
        log->segments = grown;
        log->capacity = capacity;
    }
    log->segments[log->count++] = segment;
    log->open_fds += fd >= 0;
    pthread_mutex_unlock(&log->lock);
    return segment;
}

static void destroy(struct segment *segment)
{
    if (segment->fd >= 0)
        close(segment->fd);
    segment_list_free(&segment->list);
    free(segment);
}

void segment_remove(struct seglog *log, struct segment *segment)
{
    pthread_mutex_lock(&log->lock);
    unsigned at = 0;
    while (log->segments[at] != segment)
        at++;
    log->count--;
    memmove(log->segments + at, log->segments + at + 1,
            (log->count - at) * sizeof(struct segment *));
    log->open_fds -= segment->fd >= 0;
    segment->removed = true;
    bool last = segment->references == 0;
    pthread_mutex_unlock(&log->lock);
    log->disk_bytes -= segment->disk;
    segment->disk = 0;
    if (last)
        destroy(segment);
}

struct segment *segment_acquire(struct seglog *log, uint64_t place)
{
    struct segment *segment = NULL;
    uint64_t offset = (place & ((1u << PLACE_UNIT_BITS) - 1)) * LOG_UNIT;
    pthread_mutex_lock(&log->lock);
    if (log->count > 0) {
        uint64_t at = ((place >> PLACE_UNIT_BITS) - log->segments[0]->number) & (PLACE_NUMBERS - 1);
        if (at < log->count && offset < atomic_load(&log->segments[at]->end)) {
            segment = log->segments[at];
            segment->references++;
        }
    }
    pthread_mutex_unlock(&log->lock);
    return segment;
}

struct segment *segment_acquire_from(struct seglog *log, uint64_t number)
{
    struct segment *segment = NULL;
    pthread_mutex_lock(&log->lock);
    uint64_t first = log->count > 0 ? log->segments[0]->number : 0;
    uint64_t at = number > first ? number - first : 0;
    if (at < log->count) {
        segment = log->segments[at];
        segment->references++;
    }
    pthread_mutex_unlock(&log->lock);
    return segment;
}

void segment_release(struct seglog *log, struct segment *segment)
{
    pthread_mutex_lock(&log->lock);
    bool last = --segment->references == 0 && segment->removed;
    pthread_mutex_unlock(&log->lock);
    if (last)
        destroy(segment);
}

void segment_account(struct seglog *log, struct segment *segment)
{
    struct stat st;
    uint64_t disk = segment->disk;
    if (fstat(segment->fd, &st) == 0)
        disk = (uint64_t)st.st_blocks * 512;
    /* Where nothing is preallocated the room is spoken for all the same. */
    if (!segment->closed && disk < segment->size)
        disk = segment->size;
    log->disk_bytes += disk - segment->disk;
    segment->disk = disk;
}

/* Lists. */

static bool grow(void **array, uint32_t *capacity, uint64_t wanted, size_t item)
{
    if (wanted <= *capacity)
        return true;
    uint64_t more = 2 * (uint64_t)*capacity > wanted ? 2 * (uint64_t)*capacity : wanted;
    void *grown = more <= UINT32_MAX ? realloc(*array, more * item) : NULL;
    if (grown == NULL)
        return false;
    *array = grown;
    *capacity = (uint32_t)more;
    return true;
}

bool segment_list_reserve(struct segment_list *list, uint32_t items, uint32_t keys)
{
    if (list->keys_at == NULL)
        list->keys_at = malloc((SEGMENT_RECORDS_MAX / LOG_PAGE_ITEMS + 1) * sizeof(uint32_t));
    return list->keys_at != NULL && list->count + items <= SEGMENT_RECORDS_MAX &&
           grow((void **)&list->items, &list->capacity, (uint64_t)list->count + items,
                sizeof(struct log_item)) &&
           grow((void **)&list->keys, &list->keys_capacity, (uint64_t)list->keys_length + keys, 1);
}

void segment_list_push(struct segment_list *list, const struct log_item *item, const uint8_t *key)
{
    if (list->count % LOG_PAGE_ITEMS == 0)
        list->keys_at[list->count / LOG_PAGE_ITEMS] = list->keys_length;
    list->items[list->count++] = *item;
    if (item->key_length > 0)
        memcpy(list->keys + list->keys_length, key, item->key_length);
    list->keys_length += item->key_length;
}

uint32_t segment_list_keys(const struct segment_list *list, uint32_t count)
{
    if (count >= list->count)
        return list->keys_length;
    uint32_t at = list->keys_at[count / LOG_PAGE_ITEMS];
    for (uint32_t i = count - count % LOG_PAGE_ITEMS; i < count; i++)
        at += list->items[i].key_length;
    return at;
}

void segment_list_cut(struct segment_list *list, uint32_t count)
{
    list->keys_length = segment_list_keys(list, count);
    list->count = count < list->count ? count : list->count;
}

void segment_list_free(struct segment_list *list)
{
    free(list->items);
    free(list->keys);
    free(list->keys_at);
    *list = (struct segment_list){0};
}

/* Footers. */

int segment_write_footer(struct segment *segment)
{
    static const uint8_t zeros[LOG_UNIT];
    const struct segment_list *list = &segment->list;
    uint64_t end = segment->end, at = end + log_align(list->keys_length);
    size_t length = log_footer_size(list->count, list->keys_length) - (at - end);
    uint8_t *pages = malloc(length), *to = pages;
    if (pages == NULL)
        return ENOMEM;
    for (uint32_t i = 0; i < list->count; i += LOG_PAGE_ITEMS) {
        uint32_t count = list->count - i < LOG_PAGE_ITEMS ? list->count - i : LOG_PAGE_ITEMS;
        uint32_t keys_at = list->keys_at[i / LOG_PAGE_ITEMS];
        struct log_page page = {.keys_at = keys_at};
        page.keys_check = XXH3_64bits_withSeed(
            list->keys + keys_at, segment_list_keys(list, i + count) - keys_at, segment->seed);
        size_t size = sizeof(page) + count * sizeof(struct log_item);
        memcpy(to, &page, sizeof(page));
        memcpy(to + sizeof(page), list->items + i, count * sizeof(struct log_item));
        log_sign(to, size, segment->seed, at + (uint64_t)(to - pages));
        to += size;
    }
    struct log_trailer trailer = {.magic = LOG_TRAILER_MAGIC,
                                  .end = end,
                                  .keys_length = list->keys_length,
                                  .count = list->count,
                                  .last_unit = segment->last_unit,
                                  .last_count = segment->last_count,
                                  .synced = (uint32_t)(segment->synced / LOG_UNIT)};
    log_sign(&trailer, sizeof(trailer), segment->seed, at + (uint64_t)(to - pages));
    memcpy(to, &trailer, sizeof(trailer));
    struct iovec iov[] = {{list->keys, list->keys_length},
                          {(void *)(uintptr_t)zeros, at - end - list->keys_length},
                          {pages, length}};
    int error = segment_write(segment->fd, iov, 3, end);
    if (error == 0 && ftruncate(segment->fd, (off_t)(at + length)) != 0)
        error = errno;
    free(pages);
    return error;
}

bool segment_read_trailer(struct segment *segment, uint64_t file_size)
{
    struct log_trailer trailer;
    errno = 0;
    if (file_size < LOG_RECORDS_AT + sizeof(trailer))
        return false;
    uint64_t at = file_size - sizeof(trailer);
    if (segment_read(segment->fd, &trailer, sizeof(trailer), at) != sizeof(trailer) ||
        !log_trailer_is_plausible(&trailer, file_size) ||
        !log_is_signed(&trailer, sizeof(trailer), segment->seed, at) ||
        trailer.count > SEGMENT_RECORDS_MAX)
        return false;
    segment->end = trailer.end;
    segment->count = trailer.count;
    segment->keys_length = (uint32_t)trailer.keys_length;
    segment->last_unit = trailer.last_unit;
    segment->last_count = trailer.last_count;
    segment->synced = (uint64_t)trailer.synced * LOG_UNIT;
    segment->sealed = true;
    return true;
}

/* Copies a page out of the list, under the lock. 0 or ENOMEM. */
static int copy_page(const struct segment_list *list, uint32_t first, bool keys,
                     struct segment_page *page)
{
    uint32_t rest = first < list->count ? list->count - first : 0;
    page->count = rest < LOG_PAGE_ITEMS ? rest : LOG_PAGE_ITEMS;
    if (page->count == 0)
        return 0;
    memcpy(page->items, list->items + first, page->count * sizeof(struct log_item));
    if (!keys)
        return 0;
    uint32_t from = list->keys_at[first / LOG_PAGE_ITEMS];
    uint32_t to = segment_list_keys(list, first + page->count);
    page->keys = malloc(to - from + 1);
    if (page->keys == NULL)
        return ENOMEM;
    if (to > from)
        memcpy(page->keys, list->keys + from, to - from);
    return 0;
}

static int read_page(int fd, const struct segment *segment, uint32_t number, bool keys,
                     struct segment_page *page)
{
    struct {
        struct log_page page;
        struct log_item items[LOG_PAGE_ITEMS];
    } image;
    uint32_t first = number * LOG_PAGE_ITEMS;
    uint32_t rest = first < segment->count ? segment->count - first : 0;
    uint32_t count = rest < LOG_PAGE_ITEMS ? rest : LOG_PAGE_ITEMS;
    uint64_t at = segment->end + log_page_at(segment->keys_length, number), keys_length = 0;
    size_t size = sizeof(image.page) + count * sizeof(struct log_item);
    if (count == 0)
        return 0;
    ssize_t got = segment_read(fd, &image, size, at);
    if (got < 0 && errno != EIO)
        return errno;
    if (got != (ssize_t)size || !log_is_signed(&image, size, segment->seed, at))
        return EBADMSG;
    memcpy(page->items, image.items, count * sizeof(struct log_item));
    page->count = count;
    for (uint32_t i = 0; i < count; i++)
        keys_length += page->items[i].key_length;
    if (!keys)
        return 0;
    page->keys = malloc(keys_length + 1);
    if (page->keys == NULL)
        return ENOMEM;
    got = segment_read(fd, page->keys, keys_length, segment->end + image.page.keys_at);
    if (got < 0 && errno != EIO)
        return errno;
    if (got != (ssize_t)keys_length ||
        XXH3_64bits_withSeed(page->keys, keys_length, segment->seed) != image.page.keys_check)
        return EBADMSG;
    return 0;
}

int segment_read_page(struct seglog *log, struct segment *segment, uint32_t number, bool keys,
                      struct segment_page *page)
{
    int error;
    page->count = 0;
    page->keys = NULL;
    pthread_mutex_lock(&log->lock);
    bool listed = segment->list.items != NULL || !segment->sealed;
    error = listed ? copy_page(&segment->list, number * LOG_PAGE_ITEMS, keys, page) : 0;
    pthread_mutex_unlock(&log->lock);
    if (!listed) {
        int fd = segment_fd(log, segment, true);
        error = fd < 0 ? errno : read_page(fd, segment, number, keys, page);
    }
    if (error != 0) {
        free(page->keys);
        page->keys = NULL;
        page->count = 0;
    }
    return error;
}

ssize_t segment_read(int fd, void *buffer, size_t length, uint64_t offset)
{
    size_t done = 0;
    while (done < length) {
        ssize_t got = pread(fd, (uint8_t *)buffer + done, length - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

int segment_write(int fd, struct iovec *iov, unsigned count, uint64_t offset)
{
    while (count > 0) {
        if (iov->iov_len == 0) {
            iov++;
            count--;
            continue;
        }
        ssize_t wrote = pwritev(fd, iov, (int)count, (off_t)offset);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return wrote < 0 ? errno : EIO;
        offset += (uint64_t)wrote;
        for (size_t left = (size_t)wrote; left > 0;) {
            size_t part = left < iov->iov_len ? left : iov->iov_len;
            iov->iov_base = (uint8_t *)iov->iov_base + part;
            iov->iov_len -= part;
            left -= part;
            if (iov->iov_len == 0) {
                iov++;
                count--;
            }
        }
    }
    return 0;
}
