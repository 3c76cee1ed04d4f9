#include "filesystem_journal.h"

#include "../clock.h"
#include "../log.h"
#include "filesystem_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SEGMENT_MIN = 64 * 1024,
    SEGMENT_MAX = 32 * 1024 * 1024,
    SEGMENTS_OF_BOUND = 8, /* as many fill the bound */
    LIVE_MAX = 32,         /* segments, even small ones */
    EARLY = 4 * 1024 * 1024
};

struct segment {
    int fd; /* -1: there is none */
    unsigned readers;
    uint64_t number, salt;
    uint32_t end, synced;
    uint32_t begun; /* so much the kernel was told to write */
    bool sealed;    /* not appended to any more */
    bool failed;    /* its sync did: what is beyond synced may be lost */
    bool dropped;   /* the last reader closes it */
};

struct fs_journal {
    struct fs_directory directory;
    int folder;
    _Atomic uint64_t bound;
    _Atomic uint64_t bytes; /* of all segments */
    _Atomic int64_t appended_at;
    atomic_bool folder_dirty;
    pthread_mutex_t append_lock; /* held over an append; taken before lock */
    pthread_mutex_t lock;        /* of the segments; never held over I/O */
    uint64_t last_number;
    unsigned current; /* the segment that is appended to, 0: none */
    atomic_uint live;
    struct segment segments[FS_SEGMENTS + 1]; /* the first is none */
    struct {                                  /* under append_lock */
        struct fs_segment_record record;
        struct fs_header header;
    } heads[FS_JOURNAL_BATCH];
    struct iovec parts[2 * FS_JOURNAL_BATCH];
};

static unsigned slot_of(uint64_t number)
{
    return (unsigned)(number % FS_SEGMENTS) + 1;
}

uint64_t fs_journal_bound(struct fs_journal *journal)
{
    return atomic_load_explicit(&journal->bound, memory_order_relaxed);
}

static uint32_t segment_size(struct fs_journal *journal)
{
    uint64_t size = fs_journal_bound(journal) / SEGMENTS_OF_BOUND;
    if (size < SEGMENT_MIN)
        return SEGMENT_MIN;
    return size < SEGMENT_MAX ? (uint32_t)size : SEGMENT_MAX;
}

/* Adds a segment to those that are known; it must be the newest. */
static void know(struct fs_journal *journal, const struct segment *segment)
{
    pthread_mutex_lock(&journal->lock);
    journal->segments[slot_of(segment->number)] = *segment;
    journal->last_number = segment->number;
    journal->live++;
    journal->current = segment->sealed ? 0 : slot_of(segment->number);
    pthread_mutex_unlock(&journal->lock);
    atomic_fetch_add(&journal->bytes, segment->end);
}

static bool is_taken(struct fs_journal *journal, unsigned slot)
{
    pthread_mutex_lock(&journal->lock);
    bool taken = journal->segments[slot].fd >= 0;
    pthread_mutex_unlock(&journal->lock);
    return taken;
}

/* The append_lock is held. 0 or errno. */
static int new_segment(struct fs_journal *journal)
{
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW;
    char name[FS_SEGMENT_NAME];
    const struct fs_segment_header header = fs_segment_header();
    struct segment segment = {
        .number = journal->last_number + 1, .salt = header.salt, .end = sizeof(header)};
    fs_segment_name(segment.number, name);
    if (is_taken(journal, slot_of(segment.number)))
        return ENOSPC;
    segment.fd = openat(journal->folder, name, flags, 0600);
    if (segment.fd < 0)
        return errno;
    atomic_store(&journal->folder_dirty, true);
    ssize_t done = write(segment.fd, &header, sizeof(header));
    if (done == (ssize_t)sizeof(header)) {
        know(journal, &segment);
        return 0;
    }
    int error = done < 0 ? errno : ENOSPC;
    close(segment.fd);
    unlinkat(journal->folder, name, 0);
    return error;
}

static void seal(struct fs_journal *journal, unsigned slot)
{
    pthread_mutex_lock(&journal->lock);
    journal->segments[slot].sealed = true;
    if (journal->current == slot)
        journal->current = 0;
    pthread_mutex_unlock(&journal->lock);
}

/* The segment for so many bytes more, in *segment. The append_lock is held. 0 or errno. */
static int make_room(struct fs_journal *journal, uint64_t bytes, struct segment **segment)
{
    unsigned slot = journal->current;
    uint32_t end = journal->segments[slot].end;
    if (slot != 0 && end > sizeof(struct fs_segment_header) &&
        end + bytes > segment_size(journal) && journal->live < LIVE_MAX) {
        seal(journal, slot);
        slot = 0;
    }
    int error = slot == 0 ? new_segment(journal) : 0;
    *segment = &journal->segments[journal->current];
    return error;
}

static uint64_t image_length(const struct value *value)
{
    return value == NULL ? 0 : sizeof(struct fs_header) + value->key_length + value->length;
}

/* Fills in one record's head, and what of it is to be written; returns how many parts. */
static int prepare(struct fs_journal *journal, unsigned i, struct iovec *parts,
                   const struct fs_journal_record *record, uint64_t salt, uint32_t offset)
{
    const struct value *value = record->value;
    struct fs_segment_record *head = &journal->heads[i].record;
    *head = fs_segment_record(record->hash, (uint32_t)image_length(value), salt, offset);
    parts[0] = (struct iovec){.iov_base = &journal->heads[i], .iov_len = sizeof(*head)};
    if (value == NULL)
        return 1;
    fs_file_fill_header(&journal->heads[i].header, value);
    parts[0].iov_len = sizeof(journal->heads[i]);
    /* writev() takes no pointer to const, and changes nothing. */
    const union {
        const uint8_t *from;
        void *to;
    } data = {.from = value->data};
    parts[1] =
        (struct iovec){.iov_base = data.to, .iov_len = (size_t)value->key_length + value->length};
    return 2;
}

/* What was written in part must not be found by the next start. */
static int append_failed(struct fs_journal *journal, const struct segment *segment, int error)
{
    if (ftruncate(segment->fd, segment->end) != 0)
        seal(journal, slot_of(segment->number));
    return error;
}

/* Has the kernel begin to write, so that there is less to wait for in a sync. */
static void write_early(struct segment *segment)
{
    if (segment->end - segment->begun < EARLY)
        return;
    sync_file_range(segment->fd, segment->begun, segment->end - segment->begun,
                    SYNC_FILE_RANGE_WRITE);
    segment->begun = segment->end;
}

static int append_locked(struct fs_journal *journal, struct fs_journal_record *records,
                         unsigned count, unsigned *slot)
{
    struct segment *segment;
    uint64_t bytes = 0;
    int parts = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += sizeof(struct fs_segment_record) + image_length(records[i].value);
    int error = make_room(journal, bytes, &segment);
    if (error != 0)
        return error;
    if (bytes > UINT32_MAX - segment->end)
        return ENOSPC;
    uint32_t offset = segment->end;
    for (unsigned i = 0; i < count; i++) {
        parts += prepare(journal, i, journal->parts + parts, &records[i], segment->salt, offset);
        records[i].offset = offset + (uint32_t)sizeof(struct fs_segment_record);
        offset = records[i].offset + (uint32_t)image_length(records[i].value);
    }
    if (!fs_file_write_parts(segment->fd, journal->parts, parts))
        return append_failed(journal, segment, errno);
    pthread_mutex_lock(&journal->lock);
    segment->end = offset;
    pthread_mutex_unlock(&journal->lock);
    atomic_fetch_add(&journal->bytes, bytes);
    write_early(segment);
    *slot = slot_of(segment->number);
    return 0;
}

int fs_journal_append(struct fs_journal *journal, struct fs_journal_record *records, unsigned count,
                      unsigned *segment)
{
    pthread_mutex_lock(&journal->append_lock);
    int error = append_locked(journal, records, count, segment);
    pthread_mutex_unlock(&journal->append_lock);
    atomic_store_explicit(&journal->appended_at, clock_now(), memory_order_relaxed);
    return error;
}

void fs_journal_set_bound(struct fs_journal *journal, uint64_t bytes)
{
    atomic_store(&journal->bound, bytes);
}

bool fs_journal_takes(struct fs_journal *journal, uint64_t bytes, uint64_t waiting)
{
    uint64_t record = sizeof(struct fs_segment_record) + sizeof(struct fs_header) + bytes;
    return journal->live < LIVE_MAX && bytes <= FS_JOURNAL_VALUE_MAX &&
           fs_journal_bytes(journal) + waiting + record <= fs_journal_bound(journal);
}

uint64_t fs_journal_bytes(struct fs_journal *journal)
{
    return atomic_load(&journal->bytes);
}

bool fs_journal_is_pressed(struct fs_journal *journal)
{
    return fs_journal_bytes(journal) > fs_journal_bound(journal) / 2;
}

int64_t fs_journal_quiet_for(struct fs_journal *journal)
{
    return clock_now() - atomic_load_explicit(&journal->appended_at, memory_order_relaxed);
}

int fs_journal_hold(struct fs_journal *journal, unsigned slot)
{
    struct segment *segment = &journal->segments[slot];
    pthread_mutex_lock(&journal->lock);
    int fd = segment->dropped ? -1 : segment->fd;
    segment->readers += fd >= 0;
    pthread_mutex_unlock(&journal->lock);
    return fd;
}

/* The lock is held; returns what is to be closed, or -1. */
static int forget(struct fs_journal *journal, struct segment *segment)
{
    int fd = segment->fd;
    if (!segment->dropped || segment->readers > 0)
        return -1;
    *segment = (struct segment){.fd = -1};
    journal->live--;
    return fd;
}

void fs_journal_release(struct fs_journal *journal, unsigned slot)
{
    struct segment *segment = &journal->segments[slot];
    pthread_mutex_lock(&journal->lock);
    segment->readers--;
    int fd = forget(journal, segment);
    pthread_mutex_unlock(&journal->lock);
    if (fd >= 0)
        close(fd);
}

int fs_journal_remove(struct fs_journal *journal, unsigned slot)
{
    char name[FS_SEGMENT_NAME];
    fs_segment_name(journal->segments[slot].number, name);
    if (unlinkat(journal->folder, name, 0) != 0 && errno != ENOENT)
        return errno;
    return fsync(journal->folder) == 0 ? 0 : errno;
}

void fs_journal_drop(struct fs_journal *journal, unsigned slot)
{
    struct segment *segment = &journal->segments[slot];
    pthread_mutex_lock(&journal->lock);
    atomic_fetch_sub(&journal->bytes, segment->end);
    segment->dropped = true;
    int fd = forget(journal, segment);
    pthread_mutex_unlock(&journal->lock);
    if (fd >= 0)
        close(fd);
}

unsigned fs_journal_oldest(struct fs_journal *journal, bool seal_it)
{
    unsigned oldest = 0;
    if (seal_it) {
        pthread_mutex_lock(&journal->append_lock);
        if (journal->current != 0)
            seal(journal, journal->current);
        pthread_mutex_unlock(&journal->append_lock);
    }
    pthread_mutex_lock(&journal->lock);
    for (unsigned i = 1; i <= FS_SEGMENTS; i++) {
        const struct segment *segment = &journal->segments[i];
        if (segment->fd >= 0 && segment->sealed && !segment->dropped &&
            (oldest == 0 || segment->number < journal->segments[oldest].number))
            oldest = i;
    }
    pthread_mutex_unlock(&journal->lock);
    return oldest;
}

/* What it had voided beyond synced counts again after a crash, until it and all before it are gone.
 */
static bool is_broken(const struct segment *segment)
{
    return segment->fd >= 0 && !segment->dropped && segment->failed;
}

static bool is_dirty(const struct segment *segment)
{
    return segment->fd >= 0 && !segment->dropped && !segment->failed &&
           segment->synced < segment->end;
}

bool fs_journal_is_dirty(struct fs_journal *journal)
{
    bool dirty = false;
    pthread_mutex_lock(&journal->lock);
    for (unsigned i = 1; i <= FS_SEGMENTS; i++)
        dirty = dirty || is_dirty(&journal->segments[i]) || is_broken(&journal->segments[i]);
    pthread_mutex_unlock(&journal->lock);
    return dirty;
}

bool fs_journal_is_synced(struct fs_journal *journal, struct fs_place place)
{
    pthread_mutex_lock(&journal->lock);
    bool synced = place.offset < journal->segments[place.segment].synced;
    pthread_mutex_unlock(&journal->lock);
    return synced;
}

static int sync_failed(struct fs_journal *journal, unsigned slot, int error)
{
    pthread_mutex_lock(&journal->append_lock);
    seal(journal, slot);
    pthread_mutex_unlock(&journal->append_lock);
    pthread_mutex_lock(&journal->lock);
    journal->segments[slot].failed = true;
    pthread_mutex_unlock(&journal->lock);
    return error;
}

static int sync_segment(struct fs_journal *journal, unsigned slot)
{
    struct segment *segment = &journal->segments[slot];
    pthread_mutex_lock(&journal->lock);
    uint32_t end = segment->end;
    bool dirty = is_dirty(segment), broken = is_broken(segment);
    segment->readers += dirty;
    pthread_mutex_unlock(&journal->lock);
    if (!dirty)
        return broken ? EIO : 0;
    int error = fdatasync(segment->fd) == 0 ? 0 : sync_failed(journal, slot, errno);
    pthread_mutex_lock(&journal->lock);
    if (error == 0)
        segment->synced = end;
    pthread_mutex_unlock(&journal->lock);
    fs_journal_release(journal, slot);
    return error;
}

int fs_journal_sync(struct fs_journal *journal)
{
    int error = 0;
    if (atomic_exchange(&journal->folder_dirty, false) && fsync(journal->folder) != 0) {
        error = errno;
        atomic_store(&journal->folder_dirty, true);
        return error;
    }
    for (unsigned i = 1; i <= FS_SEGMENTS; i++) {
        int failed = sync_segment(journal, i);
        error = error == 0 ? failed : error;
    }
    return error;
}

bool fs_journal_walk(struct fs_journal *journal, unsigned slot, struct fs_segment_walk *walk)
{
    const struct segment *segment = &journal->segments[slot];
    *walk = (struct fs_segment_walk){.path = journal->directory.path,
                                     .number = segment->number,
                                     .salt = segment->salt,
                                     .fd = segment->fd,
                                     .end = segment->end,
                                     .segment = slot};
    return fs_segment_walk_begin(walk);
}

/* The start. */

static int by_number(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;
    return (*left > *right) - (*left < *right);
}

/* The segments' numbers in order; negative with errno. E2BIG: more than we ever leave. */
static int list_segments(struct fs_journal *journal, uint64_t numbers[FS_SEGMENTS])
{
    int count = 0, fd = dup(journal->folder);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    for (const struct dirent *entry; count >= 0 && (entry = readdir(dir)) != NULL;) {
        uint64_t number;
        if (!fs_segment_parse_name(entry->d_name, &number))
            continue;
        if (count < FS_SEGMENTS)
            numbers[count++] = number;
        else
            count = -1;
    }
    closedir(dir);
    errno = E2BIG;
    if (count > 0)
        qsort(numbers, (size_t)count, sizeof(numbers[0]), by_number);
    bool fits = count <= 0 || numbers[count - 1] - numbers[0] < FS_SEGMENTS;
    return fits ? count : -1;
}

/* 0: it is known now. ENODATA: it has no header, so nothing of it can be read. Or errno. */
static int open_segment(struct fs_journal *journal, uint64_t number)
{
    char name[FS_SEGMENT_NAME];
    struct fs_segment_header header;
    struct stat st;
    struct segment segment = {.number = number};
    fs_segment_name(number, name);
    segment.fd = openat(journal->folder, name, O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
    if (segment.fd < 0)
        return errno;
    ssize_t got = fstat(segment.fd, &st) == 0 ? pread(segment.fd, &header, sizeof(header), 0) : -1;
    if (got < 0) {
        int error = errno;
        close(segment.fd);
        return error;
    }
    if (got < (ssize_t)sizeof(header) || !fs_segment_is_ours(&header) || st.st_size < got ||
        st.st_size > UINT32_MAX) {
        log_warning("%s/journal/%s is no journal of this version; what it had is lost",
                    journal->directory.path, name);
        close(segment.fd);
        return unlinkat(journal->folder, name, 0) == 0 ? ENODATA : errno;
    }
    segment.salt = header.salt;
    segment.end = (uint32_t)st.st_size;
    know(journal, &segment);
    return 0;
}

/* A torn tail is cut off, so that the segment can be appended to. */
static void cut(struct fs_journal *journal, unsigned slot, uint32_t good)
{
    struct segment *segment = &journal->segments[slot];
    if (ftruncate(segment->fd, good) != 0) {
        seal(journal, slot);
        return;
    }
    atomic_fetch_sub(&journal->bytes, segment->end - good);
    segment->end = good;
}

static int replay_segment(struct fs_journal *journal, uint64_t number, fs_journal_replay *replay,
                          void *arg, bool *intact)
{
    struct fs_segment_walk walk;
    struct fs_segment_item item;
    int error = open_segment(journal, number);
    *intact = *intact && error != ENODATA;
    if (error != 0)
        return error == ENODATA ? 0 : error;
    if (!fs_journal_walk(journal, slot_of(number), &walk))
        return ENOMEM;
    while (error == 0 && fs_segment_walk_next(&walk, &item))
        error = replay(arg, &item) ? 0 : ENOMEM;
    error = error == 0 ? walk.error : error;
    *intact = *intact && walk.skipped == 0 && walk.good == walk.end;
    if (error == 0 && walk.good < walk.end)
        cut(journal, slot_of(number), walk.good);
    fs_segment_walk_end(&walk);
    return error;
}

static int replay_all(struct fs_journal *journal, fs_journal_replay *replay, void *arg,
                      bool *intact)
{
    uint64_t numbers[FS_SEGMENTS];
    int error = 0, count = list_segments(journal, numbers);
    if (count < 0)
        return errno;
    for (int i = 0; i < count && error == 0; i++) {
        if (journal->current != 0)
            seal(journal, journal->current);
        error = replay_segment(journal, numbers[i], replay, arg, intact);
    }
    return error;
}

static int open_folder(struct fs_journal *journal)
{
    if (mkdirat(journal->directory.fd, "journal", 0700) != 0 && errno != EEXIST)
        return errno;
    journal->folder =
        openat(journal->directory.fd, "journal", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return journal->folder < 0 ? errno : 0;
}

struct fs_journal *fs_journal_open(struct fs_directory directory, uint64_t bound,
                                   fs_journal_replay *replay, void *arg, bool *intact, char *why,
                                   size_t size)
{
    struct fs_journal *journal = calloc(1, sizeof(*journal));
    if (journal == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    journal->directory = directory;
    journal->folder = -1;
    atomic_store(&journal->bound, bound);
    atomic_store(&journal->appended_at, clock_now());
    pthread_mutex_init(&journal->append_lock, NULL);
    pthread_mutex_init(&journal->lock, NULL);
    for (unsigned i = 0; i <= FS_SEGMENTS; i++)
        journal->segments[i].fd = -1;
    *intact = true;
    int error = open_folder(journal);
    if (error == 0)
        error = replay_all(journal, replay, arg, intact);
    if (error == 0)
        return journal;
    snprintf(why, size, "can't use the folder %s/journal: %s", directory.path, strerror(error));
    fs_journal_close(journal);
    return NULL;
}

void fs_journal_close(struct fs_journal *journal)
{
    if (journal == NULL)
        return;
    for (unsigned i = 1; i <= FS_SEGMENTS; i++) {
        if (journal->segments[i].fd >= 0)
            close(journal->segments[i].fd);
    }
    if (journal->folder >= 0)
        close(journal->folder);
    pthread_mutex_destroy(&journal->append_lock);
    pthread_mutex_destroy(&journal->lock);
    free(journal);
}
