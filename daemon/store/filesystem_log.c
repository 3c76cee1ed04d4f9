#include "filesystem_log.h"

#include "../../proto/message.h"
#include "../log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_SIZE = 256 * 1024, SLACK_RECORDS = 4096 };

static const uint64_t MAGIC = 0x314946415241494c; /* "LIARAFI1" where the lowest byte comes first */

static const char INDEX[] = "index", INDEX_NEW[] = "index.new";

struct buffer {
    uint8_t *bytes;
    size_t length, capacity;
};

/* A file that is appended to; fd is -1 where there is none. */
struct stream {
    int fd;
    int error; /* not 0: it is given up, for this */
    uint64_t records;
    struct buffer waiting;
};

struct fs_log {
    struct fs_directory directory;
    pthread_mutex_t lock; /* of the streams' waiting, records and error; never held over I/O */
    struct stream current;
    struct stream fresh; /* while the file is written afresh */
};

static uint64_t check_record(const struct fs_record *record, const uint8_t *key)
{
    const size_t start = offsetof(struct fs_record, hash);
    uint64_t fields = XXH3_64bits((const uint8_t *)record + start, sizeof(*record) - start);
    return XXH3_64bits_withSeed(key, record->key_length, fields);
}

static bool buffer_reserve(struct buffer *buffer, size_t more)
{
    size_t capacity = buffer->capacity > 0 ? buffer->capacity : 4096;
    while (capacity - buffer->length < more)
        capacity *= 2;
    if (capacity == buffer->capacity)
        return true;
    uint8_t *bytes = realloc(buffer->bytes, capacity);
    if (bytes == NULL)
        return false;
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return true;
}

static void buffer_append(struct buffer *buffer, const void *bytes, size_t length)
{
    if (length > 0)
        memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

/* The lock is held. A stream that lost a record is of no use any more. */
static void stream_add(struct stream *stream, const struct fs_record *record, const uint8_t *key)
{
    if (stream->fd < 0 || stream->error != 0)
        return;
    if (!buffer_reserve(&stream->waiting, sizeof(*record) + record->key_length)) {
        stream->error = ENOMEM;
        return;
    }
    buffer_append(&stream->waiting, record, sizeof(*record));
    buffer_append(&stream->waiting, key, record->key_length);
    stream->records++;
}

static bool write_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t done = write(fd, bytes, length);
        if (done < 0 && errno != EINTR)
            return false;
        if (done > 0) {
            bytes += done;
            length -= (size_t)done;
        }
    }
    return true;
}

static int stream_fail(struct fs_log *log, struct stream *stream, int error, const char *what)
{
    log_error("can't %s %s/index: %s; it will be written afresh", what, log->directory.path,
              strerror(error));
    pthread_mutex_lock(&log->lock);
    stream->error = error;
    stream->waiting.length = 0;
    pthread_mutex_unlock(&log->lock);
    return error;
}

static int stream_flush(struct fs_log *log, struct stream *stream)
{
    pthread_mutex_lock(&log->lock);
    struct buffer taken = stream->waiting;
    stream->waiting = (struct buffer){0};
    int error = stream->fd < 0 ? EBADF : stream->error;
    pthread_mutex_unlock(&log->lock);
    if (error == 0 && !write_all(stream->fd, taken.bytes, taken.length))
        error = stream_fail(log, stream, errno, "write");
    free(taken.bytes);
    return error;
}

static int stream_sync(struct fs_log *log, struct stream *stream)
{
    int error = stream_flush(log, stream);
    if (error == 0 && fdatasync(stream->fd) != 0)
        error = stream_fail(log, stream, errno, "sync");
    return error;
}

static void stream_close(struct stream *stream)
{
    if (stream->fd >= 0)
        close(stream->fd);
    free(stream->waiting.bytes);
    *stream = (struct stream){.fd = -1};
}

static void add_mark(struct fs_log *log, struct stream *stream, struct fs_record record)
{
    record.check = check_record(&record, NULL);
    pthread_mutex_lock(&log->lock);
    stream_add(stream, &record, NULL);
    pthread_mutex_unlock(&log->lock);
}

/* Reading at the start. */
struct reader {
    int fd;
    uint8_t *bytes;
    size_t start, end; /* of bytes, what is read and not used */
    uint64_t used;     /* bytes of the file that were good */
};

/* Has at least wanted bytes at start, if the file has; false where it has not. */
static bool reader_fill(struct reader *reader, size_t wanted)
{
    if (reader->end - reader->start >= wanted)
        return true;
    memmove(reader->bytes, reader->bytes + reader->start, reader->end - reader->start);
    reader->end -= reader->start;
    reader->start = 0;
    while (reader->end < wanted) {
        ssize_t got = read(reader->fd, reader->bytes + reader->end, READ_SIZE - reader->end);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        reader->end += (size_t)got;
    }
    return true;
}

static void reader_use(struct reader *reader, size_t length)
{
    reader->start += length;
    reader->used += length;
}

static bool plausible(const struct fs_record *record)
{
    bool put = record->type == FS_PUT;
    return record->type >= FS_PUT && record->type <= FS_CLOSED &&
           record->key_length <= MESSAGE_KEY_MAX && put == (record->key_length > 0);
}

/* The next record and its key, which stay until the next call; false at the first that is not
 * whole. */
static bool reader_next(struct reader *reader, struct fs_record *record, const uint8_t **key)
{
    if (!reader_fill(reader, sizeof(*record)))
        return false;
    memcpy(record, reader->bytes + reader->start, sizeof(*record));
    if (!plausible(record) || !reader_fill(reader, sizeof(*record) + record->key_length))
        return false;
    *key = reader->bytes + reader->start + sizeof(*record);
    if (check_record(record, *key) != record->check)
        return false;
    reader_use(reader, sizeof(*record) + record->key_length);
    return true;
}

/* What is to be kept of the file is reader->used bytes; *last is the last record of them. */
static bool read_records(struct fs_log *log, struct reader *reader, fs_log_replay *replay,
                         void *arg, struct fs_record *last)
{
    struct fs_record record;
    const uint8_t *key;
    struct stat st;
    if (!reader_fill(reader, sizeof(MAGIC)) || memcmp(reader->bytes, &MAGIC, sizeof(MAGIC)) != 0)
        return true;
    reader_use(reader, sizeof(MAGIC));
    while (reader_next(reader, &record, &key)) {
        if (!replay(arg, &record, key))
            return false;
        log->current.records++;
        *last = record;
    }
    if (fstat(reader->fd, &st) == 0 && (uint64_t)st.st_size == reader->used)
        return true;
    log_warning("%s/index is damaged after %llu bytes; what it lacks is looked for",
                log->directory.path, (unsigned long long)reader->used);
    last->type = 0;
    return true;
}

/* Without its mark (to cut needs no space on a full disk) the file is not clean any more. */
static int begin_appending(struct fs_log *log, uint64_t used, bool marked)
{
    uint64_t keep = marked ? used - sizeof(struct fs_record) : used;
    int fd = log->current.fd;
    if (ftruncate(fd, (off_t)keep) != 0)
        return errno;
    if (used == 0 && !write_all(fd, (const uint8_t *)&MAGIC, sizeof(MAGIC)))
        stream_fail(log, &log->current, errno, "write");
    return fsync(fd) == 0 ? 0 : errno;
}

/* *last: the last record of a file that is whole, or one of no type. */
static bool load(struct fs_log *log, fs_log_replay *replay, void *arg, struct fs_record *last,
                 char *why, size_t size)
{
    struct reader reader = {.fd = log->current.fd, .bytes = malloc(READ_SIZE)};
    bool ok = reader.bytes != NULL && read_records(log, &reader, replay, arg, last);
    free(reader.bytes);
    if (!ok) {
        snprintf(why, size, "out of memory for the index of the store");
        return false;
    }
    int error = begin_appending(log, reader.used, last->type == FS_CLOSED);
    if (error != 0)
        snprintf(why, size, "can't write %s/index: %s", log->directory.path, strerror(error));
    return error == 0;
}

struct fs_log *fs_log_open(struct fs_directory directory, XXH128_hash_t state,
                           fs_log_replay *replay, void *arg, bool *clean, char *why, size_t size)
{
    struct fs_record last = {.type = 0};
    struct fs_log *log = calloc(1, sizeof(*log));
    if (log == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    log->directory = directory;
    log->fresh.fd = -1;
    pthread_mutex_init(&log->lock, NULL);
    unlinkat(directory.fd, INDEX_NEW, 0);
    log->current.fd =
        openat(directory.fd, INDEX, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log->current.fd < 0)
        snprintf(why, size, "can't open %s/index: %s", directory.path, strerror(errno));
    if (log->current.fd < 0 || !load(log, replay, arg, &last, why, size)) {
        fs_log_close(log, NULL);
        return NULL;
    }
    *clean = last.type == FS_CLOSED && XXH128_isEqual(last.hash, state);
    return log;
}

void fs_log_close(struct fs_log *log, const XXH128_hash_t *state)
{
    if (log == NULL)
        return;
    if (log->fresh.fd >= 0)
        unlinkat(log->directory.fd, INDEX_NEW, 0);
    if (state != NULL)
        add_mark(log, &log->current, (struct fs_record){.type = FS_CLOSED, .hash = *state});
    stream_sync(log, &log->current);
    stream_close(&log->fresh);
    stream_close(&log->current);
    pthread_mutex_destroy(&log->lock);
    free(log);
}

void fs_log_add(struct fs_log *log, struct fs_record record, const uint8_t *key)
{
    record.check = check_record(&record, key);
    pthread_mutex_lock(&log->lock);
    stream_add(&log->current, &record, key);
    stream_add(&log->fresh, &record, key);
    pthread_mutex_unlock(&log->lock);
}

size_t fs_log_waiting(struct fs_log *log)
{
    pthread_mutex_lock(&log->lock);
    size_t waiting = log->current.waiting.length + log->fresh.waiting.length;
    pthread_mutex_unlock(&log->lock);
    return waiting;
}

void fs_log_flush(struct fs_log *log)
{
    stream_flush(log, &log->current);
    stream_flush(log, &log->fresh);
}

int fs_log_persist(struct fs_log *log)
{
    const struct fs_record mark = {.type = FS_PERSISTED};
    add_mark(log, &log->current, mark);
    add_mark(log, &log->fresh, mark);
    return stream_sync(log, &log->current);
}

bool fs_log_wants_renewal(struct fs_log *log, uint64_t entries)
{
    pthread_mutex_lock(&log->lock);
    bool wants = log->current.error != 0 || log->current.records > 2 * entries + SLACK_RECORDS;
    pthread_mutex_unlock(&log->lock);
    return wants;
}

int fs_log_renew_begin(struct fs_log *log)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW;
    int fd = openat(log->directory.fd, INDEX_NEW, flags, 0600);
    if (fd < 0 || !write_all(fd, (const uint8_t *)&MAGIC, sizeof(MAGIC))) {
        int error = errno;
        log_error("can't write %s/index afresh: %s", log->directory.path, strerror(error));
        if (fd >= 0) {
            close(fd);
            unlinkat(log->directory.fd, INDEX_NEW, 0);
        }
        return error;
    }
    pthread_mutex_lock(&log->lock);
    log->fresh.fd = fd;
    pthread_mutex_unlock(&log->lock);
    return 0;
}

void fs_log_renew_copy(struct fs_log *log, struct fs_record record, const uint8_t *key)
{
    record.check = check_record(&record, key);
    pthread_mutex_lock(&log->lock);
    stream_add(&log->fresh, &record, key);
    pthread_mutex_unlock(&log->lock);
}

/* What was added since the last flush goes into the fresh one alone from here on. */
static struct stream take_over(struct fs_log *log)
{
    pthread_mutex_lock(&log->lock);
    struct stream old = log->current;
    log->current = log->fresh;
    log->fresh = (struct stream){.fd = -1};
    pthread_mutex_unlock(&log->lock);
    return old;
}

int fs_log_renew_end(struct fs_log *log)
{
    struct stream old = take_over(log);
    stream_close(&old);
    int error = stream_sync(log, &log->current);
    if (error == 0 && renameat(log->directory.fd, INDEX_NEW, log->directory.fd, INDEX) != 0)
        error = stream_fail(log, &log->current, errno, "put in place");
    if (error == 0 && fsync(log->directory.fd) != 0)
        error = stream_fail(log, &log->current, errno, "sync the folder of");
    if (error != 0)
        unlinkat(log->directory.fd, INDEX_NEW, 0);
    return error;
}
