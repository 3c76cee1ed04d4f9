#include "../../log.h"
#include "seglog.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Finding the segments. */

static int compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

/* The numbers of all segments, in order. 0 or errno; freed by the caller. */
static int list_numbers(struct seglog *log, uint64_t **numbers, size_t *count)
{
    size_t capacity = 0;
    int fd = openat(log->directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    *numbers = NULL;
    *count = 0;
    if (directory == NULL) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return error;
    }
    int error = 0;
    for (;;) {
        uint64_t number;
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (entry == NULL)
            break;
        if (!segment_parse_name(entry->d_name, &number))
            continue;
        if (*count == capacity) {
            capacity = capacity > 0 ? 2 * capacity : 128;
            uint64_t *grown = realloc(*numbers, capacity * sizeof(uint64_t));
            if (grown == NULL)
                break;
            *numbers = grown;
        }
        (*numbers)[(*count)++] = number;
    }
    error = errno;
    closedir(directory);
    if (*count > 0)
        qsort(*numbers, *count, sizeof(uint64_t), compare);
    return error;
}

static bool is_shortage_of_ours(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == EACCES ||
           error == EPERM;
}

/* The header of a segment's file. What can't be read counts as damaged, but for want of something
 * that is no fault of the file: then *error is set. */
static enum log_header_state read_header(struct seglog *log, uint64_t number,
                                         struct log_header *header, int *error)
{
    char name[SEGMENT_NAME];
    segment_name(number, name);
    int fd = segment_open_file(log, name, O_RDWR);
    ssize_t got = fd >= 0 ? segment_read(fd, header, sizeof(*header), 0) : -1;
    *error = got < 0 && is_shortage_of_ours(errno) ? errno : 0;
    if (fd >= 0)
        close(fd);
    return got == sizeof(*header) ? log_header_check(header, number) : LOG_HEADER_DAMAGED;
}

static bool is_of_older_layout(const struct seglog *log, const char **name)
{
    static const char *const names[] = {"version", "entries", "index", "journal"};
    struct stat st;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        *name = names[i];
        if (fstatat(log->directory_fd, names[i], &st, AT_SYMLINK_NOFOLLOW) == 0)
            return true;
    }
    return false;
}

static bool remove_segment_file(struct seglog *log, uint64_t number)
{
    char name[SEGMENT_NAME];
    segment_name(number, name);
    log->directory_dirty = true;
    return unlinkat(log->directory_fd, name, 0) == 0 || errno == ENOENT;
}

/* Looks into all headers: the newest sound one has the secret; another version is refused. */
static bool read_headers(struct seglog *log, const uint64_t *numbers, size_t count, bool *found,
                         char *why, size_t size)
{
    *found = false;
    for (size_t i = 0; i < count; i++) {
        struct log_header header;
        int error;
        enum log_header_state state = read_header(log, numbers[i], &header, &error);
        if (error != 0) {
            snprintf(why, size, "can't read %s: %s", log->directory, strerror(error));
            return false;
        }
        if (state == LOG_HEADER_OTHER_VERSION) {
            snprintf(why, size,
                     "the store in %s is of version %u, and this daemon knows %d alone: run the "
                     "version that made it, or empty the directory, or set another one",
                     log->directory, header.version, LOG_VERSION);
            return false;
        }
        if (state == LOG_HEADER_SOUND) {
            memcpy(log->secret, header.secret, BACKING_SECRET);
            *found = true;
        }
    }
    return true;
}

/* A table entry for each segment of the last run of consecutive numbers; the others are void. */
static int add_segments(struct seglog *log, const uint64_t *numbers, size_t count)
{
    size_t first = count;
    while (first > 0 && (first == count || numbers[first - 1] + 1 == numbers[first]))
        first--;
    for (size_t i = 0; i < first; i++)
        if (!remove_segment_file(log, numbers[i]))
            log_warning("can't remove segment %llu of %s, which no longer counts: %s",
                        (unsigned long long)numbers[i], log->directory, strerror(errno));
    if (first > 0)
        log_warning("segments are missing in %s: all entries before them are given up",
                    log->directory);
    for (; first < count; first++)
        if (segment_add(log, numbers[first], -1) == NULL)
            return ENOMEM;
    return 0;
}

/* fault: why the segments that are there don't count. */
static bool begin_anew(struct seglog *log, const uint64_t *numbers, size_t count, const char *fault,
                       char *why, size_t size)
{
    if (count > 0)
        log_warning("%s in %s: the store begins anew", fault, log->directory);
    for (size_t i = 0; i < count; i++) {
        if (!remove_segment_file(log, numbers[i])) {
            snprintf(why, size, "can't remove a damaged segment from %s: %s", log->directory,
                     strerror(errno));
            return false;
        }
    }
    memcpy(log->secret, log->anchor.secret, BACKING_SECRET);
    log->directory_dirty = true;
    int error = anchor_begin(&log->anchor);
    if (error != 0)
        snprintf(why, size, "can't write %s/anchor: %s", log->directory, strerror(error));
    return error == 0;
}

/* false, and why. */
static bool open_anchor(struct seglog *log, char *why, size_t size)
{
    int error = anchor_open(&log->anchor, log->directory_fd, "anchor");
    if (error == EPROTO)
        snprintf(why, size, "%s was written by a newer version: use that, or another directory",
                 log->directory);
    else if (error != 0)
        snprintf(why, size, "can't open %s/anchor: %s", log->directory, strerror(error));
    return error == 0;
}

bool seglog_find(struct seglog *log, char *why, size_t size)
{
    const char *name;
    uint64_t *numbers;
    size_t count;
    bool found = false;
    if (is_of_older_layout(log, &name)) {
        snprintf(why, size,
                 "%s holds a store of an older layout (%s/%s): empty the directory, or set another "
                 "one",
                 log->directory, log->directory, name);
        return false;
    }
    int error = list_numbers(log, &numbers, &count);
    bool done = error == 0 && read_headers(log, numbers, count, &found, why, size) &&
                open_anchor(log, why, size);
    bool anchored =
        log->anchor.found && memcmp(log->anchor.secret, log->secret, BACKING_SECRET) == 0;
    if (done && !found)
        done = begin_anew(log, numbers, count, "no segment has a readable header", why, size);
    else if (done && !anchored)
        done = begin_anew(log, numbers, count, "the anchor is missing or damaged", why, size);
    else if (done)
        error = add_segments(log, numbers, count);
    free(numbers);
    if (error != 0)
        snprintf(why, size, "can't read the directory %s: %s", log->directory, strerror(error));
    if (!done || error != 0)
        return false;
    unlinkat(log->directory_fd, "spare", 0);
    unlinkat(log->directory_fd, "new", 0);
    return true;
}

/* Loading. */

struct loading {
    struct seglog *log;
    struct backing_found found[BACKING_FOUND_MAX];
    uint8_t *buffer; /* for a footer */
    size_t buffer_size;
};

static void tell(struct loading *loading, const struct segment *segment,
                 const struct log_item *items, unsigned count, bool as_gone)
{
    const struct backing_owner *owner = &loading->log->owner;
    _Static_assert((int)BACKING_FOUND_MAX >= (int)LOG_PAGE_ITEMS, "a page is told at a time");
    for (unsigned i = 0; i < count; i++) {
        uint64_t place = segment_place(segment->number, items[i].unit);
        loading->found[i] = log_found(&items[i], as_gone ? 0 : place);
    }
    if (count > 0)
        owner->found(owner->arg, loading->found, count);
}

static void tell_list(struct loading *loading, const struct segment *segment, bool as_gone)
{
    const struct segment_list *list = &segment->list;
    for (uint32_t i = 0; i < list->count; i += LOG_PAGE_ITEMS) {
        uint32_t rest = list->count - i;
        tell(loading, segment, list->items + i, rest < LOG_PAGE_ITEMS ? rest : LOG_PAGE_ITEMS,
             as_gone);
    }
}

/* Reads the pages of a footer without their keys. 0 or errno; EBADMSG: damaged. */
static int read_pages(struct loading *loading, struct segment *segment)
{
    uint64_t at = segment->end + log_align(segment->keys_length);
    size_t length = log_footer_size(segment->count, 0) - sizeof(struct log_trailer);
    if (length > loading->buffer_size) {
        free(loading->buffer);
        loading->buffer = malloc(length);
        loading->buffer_size = loading->buffer != NULL ? length : 0;
        if (loading->buffer == NULL)
            return ENOMEM;
    }
    ssize_t got = segment_read(segment->fd, loading->buffer, length, at);
    if (got < 0 && errno != EIO)
        return errno;
    if (got != (ssize_t)length)
        return EBADMSG;
    const size_t page = log_page_at(0, 1);
    for (size_t i = 0; i < length; i += page) {
        size_t size = length - i < page ? length - i : page;
        if (!log_is_signed(loading->buffer + i, size, segment->seed, at + i))
            return EBADMSG;
    }
    return 0;
}

static void tell_pages(struct loading *loading, const struct segment *segment, bool as_gone)
{
    const uint8_t *at = loading->buffer + sizeof(struct log_page);
    for (uint32_t i = 0; i < segment->count; i += LOG_PAGE_ITEMS, at += log_page_at(0, 1)) {
        uint32_t rest = segment->count - i;
        tell(loading, segment, (const struct log_item *)(const void *)at,
             rest < LOG_PAGE_ITEMS ? rest : LOG_PAGE_ITEMS, as_gone);
    }
}

/* Takes back what was told of all segments before this one, and removes them. */
static int give_up_older(struct loading *loading, struct segment *segment)
{
    struct seglog *log = loading->log;
    while (log->segments[0] != segment) {
        /* The newest goes first: a gap voids the rest, if this is interrupted. */
        unsigned at = 0;
        while (log->segments[at + 1] != segment)
            at++;
        struct segment *older = log->segments[at];
        int error = 0;
        if (older->list.items != NULL || !older->sealed) {
            tell_list(loading, older, true);
        } else {
            error = segment_fd(log, older, true) < 0 ? errno : read_pages(loading, older);
            if (error == 0)
                tell_pages(loading, older, true);
        }
        if (error == 0 && !remove_segment_file(log, older->number))
            error = errno;
        if (error != 0)
            return error;
        segment_remove(log, older);
    }
    return fsync(log->directory_fd) == 0 ? 0 : errno;
}

/* The keys of the last segment are wanted in memory, because it is written to again. */
static int read_list(struct seglog *log, struct segment *segment)
{
    struct segment_page *page = malloc(sizeof(*page));
    struct segment_list list = {0};
    int error = page != NULL ? 0 : ENOMEM;
    for (uint32_t i = 0; i * LOG_PAGE_ITEMS < segment->count && error == 0; i++) {
        error = segment_read_page(log, segment, i, true, page);
        if (error != 0)
            break;
        if (!segment_list_reserve(&list, segment->count - list.count, segment->keys_length))
            error = ENOMEM;
        const uint8_t *key = page->keys;
        for (unsigned k = 0; k < page->count && error == 0; k++) {
            segment_list_push(&list, &page->items[k], key);
            key += page->items[k].key_length;
        }
        free(page->keys);
    }
    free(page);
    if (error == 0)
        segment->list = list;
    else
        segment_list_free(&list);
    return error;
}

/* So much of the segment's file belongs to the log, as a later one's header says. */
static int end_as_known(struct seglog *log, unsigned at, uint64_t *end)
{
    struct log_header header;
    int error = 0;
    *end = UINT64_MAX;
    for (unsigned i = 0; i < LOG_ENDS && at + 1 + i < log->count && error == 0; i++) {
        if (read_header(log, log->segments[at + 1 + i]->number, &header, &error) !=
            LOG_HEADER_SOUND)
            continue;
        *end = header.ends[i];
        break;
    }
    return error;
}

/* Whether all records of the last segment had been synced when its footer was written. */
static bool was_synced(const struct segment *segment, uint32_t count)
{
    return segment->synced == segment->end || count == 0 ||
           (segment->last_count == 0 && segment->last_unit > 0 &&
            segment->synced == (uint64_t)segment->last_unit * LOG_UNIT);
}

static int load_by_batches(struct loading *loading, struct segment *segment, uint64_t file_size,
                           uint64_t known_end, bool last)
{
    bool void_before = segment->void_before;
    int error = 0;
    segment->sealed = false;
    if (!segment->recovered)
        error = seglog_recover(loading->log, segment, file_size, known_end, last, &void_before);
    if (error == 0 && void_before)
        error = give_up_older(loading, segment);
    if (error == 0)
        tell_list(loading, segment, false);
    return error;
}

/* A footer tells of nothing that the log does not have, whatever else has happened. */
static int load_segment(struct loading *loading, unsigned at)
{
    struct seglog *log = loading->log;
    struct segment *segment = log->segments[at];
    bool last = at + 1 == log->count;
    uint64_t known_end;
    struct stat st = {0};
    if (segment_fd(log, segment, true) < 0)
        return errno;
    int error = end_as_known(log, at, &known_end);
    if (error != 0)
        return error;
    if (fstat(segment->fd, &st) != 0)
        return errno;
    uint64_t file_size = (uint64_t)st.st_size;
    segment->size = file_size;
    segment->closed = true;
    segment_account(log, segment);
    if (segment_read_trailer(segment, file_size) &&
        (last ? was_synced(segment, segment->count)
              : known_end == UINT64_MAX || known_end == segment->end)) {
        error = read_pages(loading, segment);
        if (error == 0 && last)
            error = read_list(log, segment);
        if (error == 0)
            tell_pages(loading, segment, false);
        if (error != EBADMSG)
            return error;
        log_warning("the footer of segment %llu in %s is damaged: its records are read instead",
                    (unsigned long long)segment->number, log->directory);
    }
    return load_by_batches(loading, segment, file_size, known_end, last);
}

/* The next segment's footer is on its way while this one's is looked at. */
static void read_ahead(struct seglog *log, unsigned at)
{
    enum { LIKELY = 4 << 20 };
    struct stat st;
    int fd = at < log->count ? segment_fd(log, log->segments[at], true) : -1;
    if (fd < 0 || fstat(fd, &st) != 0)
        return;
    off_t from = st.st_size > LIKELY ? st.st_size - LIKELY : 0;
    posix_fadvise(fd, from, st.st_size - from, POSIX_FADV_WILLNEED);
}

/* A segment that can't be opened is void, and so is all before it. Nothing has been told yet. */
static int leave_out_unreadable(struct seglog *log)
{
    unsigned void_before = 0;
    for (unsigned at = 0; at < log->count; at++) {
        if (segment_fd(log, log->segments[at], true) >= 0)
            continue;
        if (is_shortage_of_ours(errno))
            return errno;
        log_warning("can't open segment %llu of %s: it and all older entries are given up: %s",
                    (unsigned long long)log->segments[at]->number, log->directory, strerror(errno));
        void_before = at + 1;
    }
    for (; void_before > 0; void_before--) {
        if (!remove_segment_file(log, log->segments[void_before - 1]->number))
            return errno;
        segment_remove(log, log->segments[void_before - 1]);
    }
    return 0;
}

/* A last segment without a header and records never came into use. */
static int leave_out_unused(struct seglog *log)
{
    while (log->count > 0) {
        struct segment *last = log->segments[log->count - 1];
        struct log_header header;
        struct stat st;
        bool void_before;
        int error;
        if (read_header(log, last->number, &header, &error) == LOG_HEADER_SOUND || error != 0)
            return error;
        last->references++;
        if (segment_fd(log, last, true) < 0 || fstat(last->fd, &st) != 0)
            error = errno;
        else
            error = seglog_recover(log, last, (uint64_t)st.st_size, UINT64_MAX, true, &void_before);
        segment_list_free(&last->list);
        last->references--;
        if (error != 0 || last->end > LOG_RECORDS_AT)
            return error;
        if (!remove_segment_file(log, last->number))
            return errno;
        segment_remove(log, last);
    }
    return 0;
}

/*
 * Whether the last segment reaches the anchor. If not, some of what was synced is gone, and nobody
 * knows which older records it had superseded. Its batches are read if that is needed to know.
 */
static int reach_anchor(struct seglog *log, bool *reached)
{
    struct segment *last = log->segments[log->count - 1];
    uint64_t number = log->anchor.position >> 32;
    struct stat st;
    int error = 0;
    *reached = last->number > number;
    if (last->number != number)
        return 0;
    last->references++;
    if (segment_fd(log, last, true) < 0 || fstat(last->fd, &st) != 0)
        error = errno;
    else if (!segment_read_trailer(last, (uint64_t)st.st_size) || !was_synced(last, last->count)) {
        last->recovered = true;
        error =
            seglog_recover(log, last, (uint64_t)st.st_size, UINT64_MAX, true, &last->void_before);
    }
    last->references--;
    *reached = seglog_position(last, last->end) >= log->anchor.position;
    return error;
}

/* Nothing that is there counts. Nothing has been told yet. */
static int give_up_all(struct seglog *log)
{
    log_warning("changes that were synced are gone from %s: the store begins anew", log->directory);
    /* The newest goes first: whatever is left of the rest ends before the anchor. */
    while (log->count > 0) {
        struct segment *last = log->segments[log->count - 1];
        if (!remove_segment_file(log, last->number))
            return errno;
        segment_remove(log, last);
    }
    return fsync(log->directory_fd) != 0 ? errno : 0;
}

/* The last segment is written to again, if its header is sound and its last batch is known. */
static int take_head(struct seglog *log)
{
    struct segment *head = log->segments[log->count - 1];
    struct log_header header;
    int error;
    bool sound = read_header(log, head->number, &header, &error) == LOG_HEADER_SOUND;
    if (sound && head->end < log->segment_size && (head->last_unit > 0 || head->list.count == 0)) {
        head->closed = false;
        head->size = log->segment_size;
        head->untrimmed = true;
    }
    head->references++;
    head->unmarked = !was_synced(head, head->list.count);
    head->dirty = true;
    head->entry_dirty = head->synced == 0;
    log->directory_dirty = true;
    log->head = head;
    return segment_fd(log, head, true) >= 0 ? 0 : errno;
}

/* As the footers say; what has none comes on top. */
static void tell_count(struct seglog *log)
{
    uint64_t records = 0;
    struct stat st;
    for (unsigned at = 0; at < log->count; at++) {
        struct segment *segment = log->segments[at];
        segment->references++;
        if (!segment->recovered && segment_fd(log, segment, true) >= 0 &&
            fstat(segment->fd, &st) == 0 && segment_read_trailer(segment, (uint64_t)st.st_size))
            records += segment->count;
        records += segment->list.count;
        segment->references--;
    }
    if (log->owner.expect != NULL)
        log->owner.expect(log->owner.arg, records);
}

bool seglog_load(struct backing *backing, char *why, size_t size)
{
    struct seglog *log = seglog_of(backing);
    struct loading loading = {.log = log};
    int error = leave_out_unreadable(log);
    if (error == 0)
        error = leave_out_unused(log);
    bool reached = true;
    if (error == 0 && log->count > 0)
        error = reach_anchor(log, &reached);
    if (error == 0 && !reached)
        error = give_up_all(log);
    if (error == 0 && log->count == 0 && log->anchor.position > 0)
        error = anchor_begin(&log->anchor); /* numbers begin anew */
    if (error == 0)
        tell_count(log);
    for (unsigned at = 0; at < log->count && error == 0; at++) {
        struct segment *segment = log->segments[at];
        read_ahead(log, at + 2);
        segment->references++;
        error = load_segment(&loading, at);
        segment->references--;
        /* Those before it may be gone now. */
        while (error == 0 && log->segments[at] != segment)
            at--;
    }
    if (error == 0 && log->count > 0)
        error = take_head(log);
    free(loading.buffer);
    if (error != 0) {
        snprintf(why, size, "can't read the store in %s: %s", log->directory, strerror(error));
        return false;
    }
    error = seglog_make_spare(log);
    if (error != 0)
        seglog_complain(log, error, "can't preallocate a segment");
    return true;
}
