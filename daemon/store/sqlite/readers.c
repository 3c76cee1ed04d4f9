#include "readers.h"

#include "../../log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void sqlite_readers_init(struct sqlite_readers *readers, const char *path, uint64_t seed)
{
    *readers = (struct sqlite_readers){.path = path, .seed = seed};
    pthread_mutex_init(&readers->lock, NULL);
    pthread_cond_init(&readers->freed, NULL);
    for (unsigned i = 0; i < READERS; i++) {
        readers->all[i].next = readers->free;
        readers->free = &readers->all[i];
    }
}

void sqlite_readers_destroy(struct sqlite_readers *readers)
{
    for (unsigned i = 0; i < READERS; i++)
        sqlite_db_close(&readers->all[i].connection);
    pthread_cond_destroy(&readers->freed);
    pthread_mutex_destroy(&readers->lock);
}

static void give_back(struct sqlite_readers *readers, struct sqlite_reader *reader)
{
    pthread_mutex_lock(&readers->lock);
    reader->next = readers->free;
    readers->free = reader;
    pthread_cond_signal(&readers->freed);
    pthread_mutex_unlock(&readers->lock);
}

/* The first question makes SQLite open its log, too. */
static int connect_reader(struct sqlite_readers *readers, struct sqlite_reader *reader,
                          uint64_t epoch)
{
    sqlite_db_close(&reader->connection);
    reader->epoch = 0;
    int rc = sqlite_db_open_reader(&reader->connection, readers->path);
    if (rc == SQLITE_OK)
        rc = sqlite_db_run(sqlite_db_with(&reader->connection, SQL_READ, 0));
    reader->epoch = rc == SQLITE_OK ? epoch : 0;
    return rc;
}

void sqlite_readers_begin(struct sqlite_readers *readers)
{
    uint64_t epoch = ++readers->epochs;
    pthread_mutex_lock(&readers->lock);
    struct sqlite_reader *idle = readers->free;
    readers->free = NULL;
    pthread_mutex_unlock(&readers->lock);
    while (idle != NULL) {
        struct sqlite_reader *next = idle->next;
        connect_reader(readers, idle, epoch);
        give_back(readers, idle);
        idle = next;
    }
    atomic_store(&readers->epoch, epoch);
}

void sqlite_readers_end(struct sqlite_readers *readers)
{
    atomic_store(&readers->epoch, 0);
}

/* NULL: there is no database (*rc is SQLITE_OK), or it can't be opened. A connection to a database
 * that was given up is closed here, by the next one who uses it. */
static struct sqlite_reader *take(struct sqlite_readers *readers, int *rc)
{
    pthread_mutex_lock(&readers->lock);
    while (readers->free == NULL)
        pthread_cond_wait(&readers->freed, &readers->lock);
    struct sqlite_reader *reader = readers->free;
    readers->free = reader->next;
    pthread_mutex_unlock(&readers->lock);

    uint64_t epoch = atomic_load(&readers->epoch);
    *rc = SQLITE_OK;
    if (epoch != 0 && reader->epoch != epoch)
        *rc = connect_reader(readers, reader, epoch);
    if (epoch != 0 && *rc == SQLITE_OK)
        return reader;
    if (atomic_load(&readers->epoch) != epoch)
        *rc = SQLITE_OK;
    else if (*rc != SQLITE_OK)
        errno = sqlite_db_errno(reader->connection.db, *rc);
    give_back(readers, reader);
    return NULL;
}

/* For the row of SQL_READ that the statement stands on. The value's checksum is looked at later,
 * when the row is let go. */
static enum backing_read copy_row(sqlite3_stmt *row, struct sqlite_readers *readers, uint64_t place,
                                  const uint8_t *key, size_t key_length, struct sqlite_head *head,
                                  struct value **value)
{
    if (!sqlite_head_read(head, readers->seed, place, sqlite3_column_blob(row, 0),
                          (size_t)sqlite3_column_bytes(row, 0)))
        return BACKING_READ_DAMAGED;
    if (head->key_length != key_length || memcmp(head->key, key, key_length) != 0)
        return BACKING_READ_OTHER;
    const void *bytes = sqlite3_column_blob(row, 1);
    uint32_t length = (uint32_t)sqlite3_column_bytes(row, 1);
    if (length != head->length || (bytes == NULL && length > 0))
        return BACKING_READ_DAMAGED;
    *value = value_new(key, key_length, length);
    if (*value == NULL)
        return BACKING_READ_FAILED;
    if (length > 0)
        memcpy(value_bytes(*value), bytes, length);
    return BACKING_READ_OK;
}

static enum backing_read read_row(struct sqlite_reader *reader, struct sqlite_readers *readers,
                                  uint64_t place, const uint8_t *key, size_t key_length,
                                  struct sqlite_head *head, struct value **value)
{
    sqlite3_stmt *row = sqlite_db_with(&reader->connection, SQL_READ, place);
    int rc = sqlite3_step(row);
    enum backing_read result = BACKING_READ_GONE;
    if (rc == SQLITE_ROW)
        result = copy_row(row, readers, place, key, key_length, head, value);
    int error = errno;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
        error = sqlite_db_errno(reader->connection.db, rc);
        result = sqlite_db_is_lost(reader->connection.db, rc) ? BACKING_READ_DAMAGED
                                                              : BACKING_READ_FAILED;
    }
    sqlite3_reset(row);
    errno = error;
    return result;
}

enum backing_read sqlite_readers_read(struct sqlite_readers *readers, uint64_t place,
                                      const uint8_t *key, size_t key_length, struct value **value)
{
    struct sqlite_head head;
    int rc;
    *value = NULL;
    struct sqlite_reader *reader = take(readers, &rc);
    if (reader == NULL)
        return rc == SQLITE_OK ? BACKING_READ_GONE : BACKING_READ_FAILED;
    enum backing_read result = read_row(reader, readers, place, key, key_length, &head, value);
    int error = errno;
    give_back(readers, reader);
    if (result == BACKING_READ_OK) {
        (*value)->flags = head.flags;
        (*value)->expires = sqlite_head_expires(&head);
        if (!sqlite_value_sound(&head, readers->seed, place, value_bytes(*value))) {
            value_unref(*value);
            *value = NULL;
            result = BACKING_READ_DAMAGED;
        }
    }
    if (result == BACKING_READ_DAMAGED)
        log_warning("%s: the record at place %llu is damaged; it counts as a miss", readers->path,
                    (unsigned long long)place);
    errno = error;
    return result;
}

struct scanned {
    uint64_t place;
    struct sqlite_head head;
};

/* Reads up to SCAN_PAGE heads behind *cursor and advances it; damaged ones are left out. */
static int read_page(struct sqlite_readers *readers, struct sqlite_reader *reader, uint64_t *cursor,
                     struct scanned *scanned, unsigned *count, bool *more)
{
    sqlite3_stmt *row = sqlite_db_with(&reader->connection, SQL_HEADS, *cursor);
    int rc = SQLITE_ROW;
    *count = 0;
    for (unsigned i = 0; i < SCAN_PAGE && (rc = sqlite3_step(row)) == SQLITE_ROW; i++) {
        uint64_t place = (uint64_t)sqlite3_column_int64(row, 0);
        *cursor = scanned[*count].place = place;
        *count +=
            sqlite_head_read(&scanned[*count].head, readers->seed, place,
                             sqlite3_column_blob(row, 1), (size_t)sqlite3_column_bytes(row, 1));
    }
    *more = rc == SQLITE_ROW;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        errno = sqlite_db_errno(reader->connection.db, rc);
    sqlite3_reset(row);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

bool sqlite_readers_scan(struct sqlite_readers *readers, uint64_t *cursor,
                         bool (*found)(void *arg, const struct backing_found *found), void *arg)
{
    struct scanned *scanned = malloc(SCAN_PAGE * sizeof(*scanned));
    if (scanned == NULL)
        return false;
    unsigned count = 0;
    bool more = false;
    int rc;
    errno = 0;
    struct sqlite_reader *reader = take(readers, &rc);
    if (reader != NULL) {
        rc = read_page(readers, reader, cursor, scanned, &count, &more);
        give_back(readers, reader);
    }
    int error = rc == SQLITE_OK ? 0 : errno;
    for (unsigned i = 0; i < count; i++) {
        struct backing_found one;
        sqlite_head_found(&scanned[i].head, scanned[i].place, &one);
        if (!found(arg, &one)) {
            *cursor = one.place;
            more = false;
            break;
        }
    }
    free(scanned);
    errno = error;
    return more;
}
