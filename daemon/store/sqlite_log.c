#include "sqlite_log.h"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A frame of the log is a header and a page. SQLite's files take less than 128 KiB in one write. */
enum { FRAME_HEADER = 24, GATHERED_MAX = 127 << 10, HINT_BYTES = 4 << 20 };

/* The log's file, as SQLite has it open; SQLite's own file follows in memory. */
struct log_file {
    sqlite3_file base;
    uint8_t *bytes; /* gathered, not written yet */
    int length;
    int64_t offset; /* where they go */
    int64_t next;   /* the end of the last write */
    bool commits;   /* the frame whose header came last ends a transaction */
    int fd;         /* another descriptor, for hints; SQLite locks other files, not this one */
    int64_t hinted; /* up to here the system was told to begin to write */
};

/* A multiple of what any SQLite file needs its address to be one of. */
enum { LOG_FILE_SIZE = (sizeof(struct log_file) + 15) / 16 * 16 };

static struct log_file *log_of(sqlite3_file *file)
{
    return (struct log_file *)file;
}

static sqlite3_file *own(struct log_file *log)
{
    return (sqlite3_file *)((char *)log + LOG_FILE_SIZE);
}

/*
 * All that is in the log is synced some time, by PERSIST or before it is written back. Where the
 * disk has begun early the wait is short.
 */
static void hint(struct log_file *log, int64_t end)
{
    if (end < log->hinted)
        log->hinted = 0; /* the log began anew */
    if (end - log->hinted < HINT_BYTES)
        return;
    sync_file_range(log->fd, log->hinted, end - log->hinted, SYNC_FILE_RANGE_WRITE);
    log->hinted = end;
}

/* What could not be written is given up: the transaction fails that it belongs to. */
static int flush(struct log_file *log)
{
    int length = log->length;
    log->length = 0;
    if (length == 0)
        return SQLITE_OK;
    hint(log, log->offset);
    return own(log)->pMethods->xWrite(own(log), log->bytes, length, log->offset);
}

static void gather(struct log_file *log, const void *bytes, int length, int64_t offset)
{
    if (log->length == 0)
        log->offset = offset;
    memcpy(log->bytes + log->length, bytes, (size_t)length);
    log->length += length;
}

static bool ends_transaction(const uint8_t *header)
{
    return (header[4] | header[5] | header[6] | header[7]) != 0;
}

/*
 * Only what follows the last write is gathered: headers that SQLite writes anew in their old places
 * have no page after them that would tell when they must have been written.
 */
static int log_write(sqlite3_file *file, const void *bytes, int length, sqlite3_int64 offset)
{
    struct log_file *log = log_of(file);
    bool follows = offset == log->next, is_header = length == FRAME_HEADER;
    int rc = SQLITE_OK;
    log->next = offset + length;
    if (is_header)
        log->commits = ends_transaction(bytes);
    if (!follows || log->length + length > GATHERED_MAX)
        rc = flush(log);
    if (rc != SQLITE_OK)
        return rc;
    if (!follows || length > GATHERED_MAX)
        return own(log)->pMethods->xWrite(own(log), bytes, length, offset);
    gather(log, bytes, length, offset);
    return log->commits && !is_header ? flush(log) : SQLITE_OK;
}

static int log_close(sqlite3_file *file)
{
    struct log_file *log = log_of(file);
    free(log->bytes);
    log->bytes = NULL;
    if (log->fd >= 0)
        close(log->fd);
    return own(log)->pMethods->xClose(own(log));
}

static int log_read(sqlite3_file *file, void *bytes, int length, sqlite3_int64 offset)
{
    struct log_file *log = log_of(file);
    int rc = flush(log);
    return rc == SQLITE_OK ? own(log)->pMethods->xRead(own(log), bytes, length, offset) : rc;
}

static int log_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    struct log_file *log = log_of(file);
    int rc = flush(log);
    return rc == SQLITE_OK ? own(log)->pMethods->xTruncate(own(log), size) : rc;
}

static int log_sync(sqlite3_file *file, int flags)
{
    struct log_file *log = log_of(file);
    int rc = flush(log);
    return rc == SQLITE_OK ? own(log)->pMethods->xSync(own(log), flags) : rc;
}

static int log_size(sqlite3_file *file, sqlite3_int64 *size)
{
    struct log_file *log = log_of(file);
    int rc = flush(log);
    return rc == SQLITE_OK ? own(log)->pMethods->xFileSize(own(log), size) : rc;
}

static int log_lock(sqlite3_file *file, int lock)
{
    return own(log_of(file))->pMethods->xLock(own(log_of(file)), lock);
}

static int log_unlock(sqlite3_file *file, int lock)
{
    return own(log_of(file))->pMethods->xUnlock(own(log_of(file)), lock);
}

static int log_check_lock(sqlite3_file *file, int *reserved)
{
    return own(log_of(file))->pMethods->xCheckReservedLock(own(log_of(file)), reserved);
}

static int log_control(sqlite3_file *file, int operation, void *arg)
{
    return own(log_of(file))->pMethods->xFileControl(own(log_of(file)), operation, arg);
}

static int log_sector_size(sqlite3_file *file)
{
    return own(log_of(file))->pMethods->xSectorSize(own(log_of(file)));
}

static int log_characteristics(sqlite3_file *file)
{
    return own(log_of(file))->pMethods->xDeviceCharacteristics(own(log_of(file)));
}

static const sqlite3_io_methods methods = {
    .iVersion = 1,
    .xClose = log_close,
    .xRead = log_read,
    .xWrite = log_write,
    .xTruncate = log_truncate,
    .xSync = log_sync,
    .xFileSize = log_size,
    .xLock = log_lock,
    .xUnlock = log_unlock,
    .xCheckReservedLock = log_check_lock,
    .xFileControl = log_control,
    .xSectorSize = log_sector_size,
    .xDeviceCharacteristics = log_characteristics,
};

static sqlite3_vfs *below; /* SQLite's own; set once */

static int open_log(struct log_file *log, const char *name, int flags, int *out)
{
    *log = (struct log_file){.bytes = malloc(GATHERED_MAX), .next = -1, .fd = -1};
    if (log->bytes == NULL)
        return SQLITE_NOMEM;
    int rc = below->xOpen(below, name, own(log), flags, out);
    if (rc == SQLITE_OK) {
        log->base.pMethods = &methods;
        log->fd = open(name, O_RDONLY | O_CLOEXEC);
        return rc;
    }
    free(log->bytes);
    if (own(log)->pMethods != NULL)
        own(log)->pMethods->xClose(own(log));
    return rc;
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    (void)vfs;
    file->pMethods = NULL; /* nothing to close where it fails */
    if (flags & SQLITE_OPEN_WAL)
        return open_log(log_of(file), name, flags, out);
    return below->xOpen(below, name, file, flags, out);
}

static const char *vfs_name;

static void add_vfs(void)
{
    static sqlite3_vfs vfs;
    below = sqlite3_vfs_find(NULL);
    if (below == NULL)
        return;
    vfs = *below;
    vfs.zName = "liara";
    vfs.szOsFile = LOG_FILE_SIZE + below->szOsFile;
    vfs.xOpen = open_file;
    if (sqlite3_vfs_register(&vfs, 0) == SQLITE_OK)
        vfs_name = vfs.zName;
}

const char *sq_log_vfs(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, add_vfs);
    return vfs_name;
}
