/*
 * Keeps everything in one SQLite database, cache.db. The writers' one thread owns the connection
 * that writes (sqlite_writer.h), each readers' thread one that only reads: it sees the last commit
 * and does not wait for the next.
 *
 * Ordinary commits are not synced: what a kill -9 leaves is whole, what a power loss leaves is an
 * earlier whole. PERSIST has the disk hold all before it.
 *
 * max-size bounds the bytes of keys and values, with a flat share of the indexes for each. The file
 * follows, but for pages that are partly filled; its write-ahead log comes on top.
 */
#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../log.h"
#include "sqlite_entries.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    READERS = 4,
    LARGE = 64 << 10,       /* bytes from which a value is read piecemeal */
    ALONE = 1 << 20,        /* bytes from which a PUT is a transaction of its own */
    BATCH_BYTES = 16 << 20, /* after which a batch goes on in a new transaction */
    PUT_EVICTS = 16,        /* victims of one PUT, if it is a small one */
    RANGE_ROWS = 4096,      /* counted in one read transaction */
    LOG_PAGES = 4000,       /* after which the log is written back in a pause */
    LOG_PAGES_MAX = 32000,  /* after which it is written back before the next batch */
    PAUSE_MS = 250,         /* without a batch; the tier sends what it has more often */
    STEP_MS = 4,            /* of upkeep */
    QUIET_MS = 1000,        /* without a batch, then the log is written back anyway */
    EMPTY_MS = 10000, /* without a batch; before, its file is cheaper to write anew as it is */
    AGAIN_MS = 1000   /* between looks for what has ended, or after a failure */
};

struct reader {
    pthread_mutex_t lock; /* held while it reads, and by the writer to replace the database */
    struct sq_connection connection;
};

struct sqlite {
    struct store store;
    char *path;
    struct sq_notes notes;
    struct reader readers[READERS];
    struct keyset *keys;            /* of all entries */
    _Atomic bool damaged;           /* found to be so: it holds nothing until it is replaced */
    _Atomic int64_t entries, bytes; /* as committed, for INSPECT */
    _Atomic int64_t logged;         /* when, last */

    /* The rest is the writer's alone. */
    struct sq_writer writer;
    uint64_t max_length; /* of a value, SQLite's */
    uint64_t pending;    /* bytes of values in the open transaction */
    bool persist;        /* wanted by a call of the batch */
    bool failed;         /* the batch, for the reason in failure */
    struct store_call failure;
    int64_t written;    /* when the last batch ended */
    int64_t open_retry; /* the time before which a damaged database is not replaced again */
    unsigned next_use;  /* slot of the notes, to be written */
};

static struct sqlite *sqlite_of(struct store *store)
{
    return container_of(store, struct sqlite, store);
}

/* At most one line a second: what is broken is broken for every request. */
static bool may_log(struct sqlite *sqlite)
{
    int64_t now = clock_now(), last = atomic_load(&sqlite->logged);
    return now - last >= 1000 && atomic_compare_exchange_strong(&sqlite->logged, &last, now);
}

static enum store_status fail_damaged(struct store_call *call)
{
    return store_fail(call, ERROR_INTERNAL, "the database is damaged and is being replaced");
}

/* Fails the call for rc, which the connection has just returned. */
static enum store_status fail(struct sqlite *sqlite, const struct sq_connection *connection, int rc,
                              struct store_call *call)
{
    if (sq_is_damage(rc)) {
        if (!atomic_exchange(&sqlite->damaged, true))
            log_error("%s: the database is damaged (%s); it will be replaced", sqlite->path,
                      sqlite3_errstr(rc));
        return fail_damaged(call);
    }
    int error = sq_errno(connection->db);
    if (may_log(sqlite))
        log_error("%s: %s%s%s", sqlite->path, sqlite3_errstr(rc), error != 0 ? ", " : "",
                  error != 0 ? strerror(error) : "");
    if (sq_is_full(connection->db, rc))
        return store_fail(call, ERROR_NO_SPACE, "no space is left for the database");
    if ((rc & 0xFF) == SQLITE_BUSY)
        return store_fail(call, ERROR_UNAVAILABLE, "another program has locked the database");
    return store_fail(call, ERROR_INTERNAL, "the database can't be used: %s", sqlite3_errstr(rc));
}

/* Reading, on the readers' threads. */

static enum store_status suspect(struct sqlite *sqlite, const struct store_call *call,
                                 const struct sq_row *row)
{
    if (may_log(sqlite))
        log_warning("%s: the entry %lld is damaged; it is deleted", sqlite->path,
                    (long long)row->id);
    sq_notes_suspect(&sqlite->notes, row->id, call->key, call->key_length);
    return STORE_MISS;
}

/* The value, with its bytes from blob where that is not NULL. */
static enum store_status copy_value(struct sqlite *sqlite, struct sq_connection *connection,
                                    struct store_call *call, const struct sq_row *row,
                                    const void *bytes, sqlite3_blob *blob)
{
    struct value *value = store_new_value(call, (uint64_t)row->size);
    int rc = SQLITE_OK;
    if (value == NULL)
        return STORE_FAILED;
    if (blob != NULL)
        rc = sqlite3_blob_read(blob, value_bytes(value), (int)row->size, 0);
    else if (row->size > 0)
        memcpy(value_bytes(value), bytes, (size_t)row->size);
    value->flags = (uint32_t)row->flags;
    value->expires = row->expires;
    if (rc == SQLITE_OK && sq_entries_checksum(value) == row->sum) {
        call->value = value;
        return STORE_OK;
    }
    value_unref(value);
    return rc == SQLITE_OK ? suspect(sqlite, call, row) : fail(sqlite, connection, rc, call);
}

static enum store_status get_small(struct sqlite *sqlite, struct sq_connection *connection,
                                   struct store_call *call, const struct sq_row *row)
{
    enum store_status status;
    sqlite3_stmt *statement = sq_with_id(connection, SQ_BYTES, row->id);
    int rc = sqlite3_step(statement);
    const void *bytes = sqlite3_column_blob(statement, 0);
    if (sq_done(rc) != SQLITE_OK)
        status = fail(sqlite, connection, rc, call);
    else if (rc == SQLITE_ROW && sqlite3_column_bytes(statement, 0) == row->size)
        status = copy_value(sqlite, connection, call, row, bytes, NULL);
    else
        status = suspect(sqlite, call, row);
    sqlite3_reset(statement);
    return status;
}

/* Read piecemeal, so that SQLite does not hold a second copy, which nobody would count. */
static enum store_status get_large(struct sqlite *sqlite, struct sq_connection *connection,
                                   struct store_call *call, const struct sq_row *row)
{
    enum store_status status;
    sqlite3_blob *blob = NULL;
    int rc = sqlite3_blob_open(connection->db, "main", "value", "bytes", row->id, 0, &blob);
    if (rc == SQLITE_OK && sqlite3_blob_bytes(blob) == row->size)
        status = copy_value(sqlite, connection, call, row, NULL, blob);
    else if (rc == SQLITE_OK || rc == SQLITE_ERROR) /* of another length; not there */
        status = suspect(sqlite, call, row);
    else
        status = fail(sqlite, connection, rc, call);
    sqlite3_blob_close(blob);
    return status;
}

static enum store_status get_found(struct sqlite *sqlite, struct sq_connection *connection,
                                   struct store_call *call, const struct sq_row *row)
{
    enum store_status status;
    if (row->size >= LARGE)
        status = get_large(sqlite, connection, call, row);
    else
        status = get_small(sqlite, connection, call, row);
    if (status == STORE_OK)
        sq_notes_use(&sqlite->notes, row->id);
    return status;
}

static enum store_status head_found(struct sqlite *sqlite, struct sq_connection *connection,
                                    struct store_call *call, const struct sq_row *row)
{
    (void)connection;
    if (row->size < 0)
        return suspect(sqlite, call, row);
    call->length = (uint64_t)row->size;
    call->flags = (uint32_t)row->flags;
    call->expires = row->expires;
    return STORE_OK;
}

typedef enum store_status found_method(struct sqlite *sqlite, struct sq_connection *connection,
                                       struct store_call *call, const struct sq_row *row);

static enum store_status look_up(struct sqlite *sqlite, struct sq_connection *connection,
                                 struct store_call *call, found_method *found)
{
    enum store_status status = STORE_MISS;
    struct sq_row row;
    int rc = sq_find(connection, call->key, call->key_length, &row);
    if (rc == SQLITE_ROW && !sq_ended(&row))
        status = found(sqlite, connection, call, &row);
    else if (sq_done(rc) != SQLITE_OK)
        status = fail(sqlite, connection, rc, call);
    sq_end_find(connection);
    /* What can't be read for damage is not there. */
    return status == STORE_FAILED && atomic_load(&sqlite->damaged) ? STORE_MISS : status;
}

static enum store_status read_with(struct store *store, struct store_call *call,
                                   found_method *found)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct reader *reader = &sqlite->readers[call->task.thread];
    enum store_status status = STORE_MISS;
    pthread_mutex_lock(&reader->lock);
    if (!atomic_load(&sqlite->damaged))
        status = look_up(sqlite, &reader->connection, call, found);
    pthread_mutex_unlock(&reader->lock);
    return status;
}

static enum store_status sqlite_get(struct store *store, struct store_call *call)
{
    return read_with(store, call, get_found);
}

static enum store_status sqlite_head(struct store *store, struct store_call *call)
{
    return read_with(store, call, head_found);
}

static int inspect_all(struct sqlite *sqlite, struct sq_connection *connection,
                       struct store_call *call)
{
    int64_t ended = 0, entries = atomic_load(&sqlite->entries);
    int rc = sq_ask(sq_with_id(connection, SQ_ENDED_COUNT, clock_to_wall(clock_now())), &ended);
    call->entries = entries > ended ? (uint64_t)(entries - ended) : 0;
    call->size = (uint64_t)atomic_load(&sqlite->bytes);
    call->approximate = ended > 0; /* their bytes are still counted */
    return rc;
}

/* Counts some of the range and moves its beginning behind them; SQLITE_ROW: there may be more. */
static int inspect_rows(struct sq_connection *connection, struct store_call *call,
                        struct sq_key *from, const struct sq_key *to)
{
    sqlite3_stmt *statement = sq_with_range(connection, SQ_RANGE, from, to);
    struct sq_key last = {0};
    struct sq_row row;
    int rc = SQLITE_ROW;
    for (unsigned n = 0; n < RANGE_ROWS && (rc = sqlite3_step(statement)) == SQLITE_ROW; n++) {
        sq_read_row(statement, &row);
        if (!sq_read_key(statement, SQ_KEY_COLUMN, &last)) {
            rc = SQLITE_CORRUPT;
            break;
        }
        call->entries += !sq_ended(&row);
        call->size += sq_ended(&row) ? 0 : last.length + (uint64_t)row.size;
    }
    sqlite3_reset(statement);
    *from = last;
    from->bytes[from->length++] = 0;
    return rc;
}

/* In several short transactions, so that the log can be emptied in between. */
static int inspect_range(struct sq_connection *connection, struct store_call *call)
{
    struct sq_key from, to;
    int rc;
    sq_range(call->key, call->key_length, &from, &to);
    while ((rc = inspect_rows(connection, call, &from, &to)) == SQLITE_ROW)
        call->approximate = true;
    return sq_done(rc);
}

static enum store_status sqlite_inspect(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct reader *reader = &sqlite->readers[call->task.thread];
    enum store_status status = STORE_OK;
    int rc = SQLITE_OK;
    call->entries = 0;
    call->size = 0;
    call->approximate = false;
    pthread_mutex_lock(&reader->lock);
    if (atomic_load(&sqlite->damaged))
        call->approximate = true;
    else if (call->key_length == 0)
        rc = inspect_all(sqlite, &reader->connection, call);
    else
        rc = inspect_range(&reader->connection, call);
    if (rc != SQLITE_OK)
        status = fail(sqlite, &reader->connection, rc, call);
    pthread_mutex_unlock(&reader->lock);
    return status;
}

static void publish(struct sqlite *sqlite)
{
    atomic_store(&sqlite->entries, sqlite->writer.committed.entries);
    atomic_store(&sqlite->bytes, sqlite->writer.committed.bytes);
}

static int commit(struct sqlite *sqlite)
{
    int rc = sq_writer_commit(&sqlite->writer);
    if (rc != SQLITE_OK)
        return rc;
    sqlite->pending = 0;
    publish(sqlite);
    return SQLITE_OK;
}

static void roll_back(struct sqlite *sqlite)
{
    sq_writer_roll_back(&sqlite->writer);
    sqlite->pending = 0;
}

/* Opening, and opening anew. */

/* The writer's connection first: it finds out what there is, and makes what is not. */
static int open_all(struct sqlite *sqlite, enum sq_content *content)
{
    int rc = sq_writer_open(&sqlite->writer, sqlite->path, &sqlite->notes, sqlite->keys, content);
    if (rc != SQLITE_OK || *content != SQ_OURS)
        return rc;
    for (unsigned i = 0; i < READERS && rc == SQLITE_OK; i++)
        rc = sq_connect_reader(&sqlite->readers[i].connection, sqlite->path);
    if (rc == SQLITE_OK)
        rc = commit(sqlite);
    if (rc != SQLITE_OK)
        *content = sq_file_fault(sqlite->path, rc);
    return rc;
}

static void close_all(struct sqlite *sqlite, bool write_back)
{
    for (unsigned i = 0; i < READERS; i++)
        sq_disconnect(&sqlite->readers[i].connection);
    sq_writer_close(&sqlite->writer, write_back);
}

/* A cache can be lost, but its daemon must start: what is damaged is set aside, once. */
static bool open_database(struct sqlite *sqlite, char *why, size_t size)
{
    enum sq_content content = SQ_DAMAGED;
    for (unsigned attempt = 0; attempt < 2 && content == SQ_DAMAGED; attempt++) {
        int rc = open_all(sqlite, &content);
        if (content == SQ_OURS)
            return true;
        sq_file_explain(&sqlite->writer.connection, sqlite->path, content, rc, why, size);
        close_all(sqlite, false);
        if (content != SQ_DAMAGED || !sq_file_set_aside(sqlite->path, why, size))
            return false;
        log_warning("%s; it is kept as %s.damaged, and the cache begins empty", why, sqlite->path);
    }
    return false;
}

/* Begins with an empty database, while no reader reads; the old one is kept where it is damaged. */
static bool renew(struct sqlite *sqlite, char *why, size_t size)
{
    bool damaged = atomic_load(&sqlite->damaged), gone;
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_lock(&sqlite->readers[i].lock);
    close_all(sqlite, false);
    sq_notes_clear(&sqlite->notes);
    if (damaged)
        gone = sq_file_set_aside(sqlite->path, why, size);
    else
        gone = sq_file_remove(sqlite->path, why, size);
    bool renewed = gone && open_database(sqlite, why, size);
    atomic_store(&sqlite->damaged, !renewed);
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_unlock(&sqlite->readers[i].lock);
    return renewed;
}

/* Replaces a damaged database, or will be asked to again. */
static bool replace(struct sqlite *sqlite)
{
    char why[1024];
    if (clock_now() < sqlite->open_retry)
        return false;
    bool replaced = renew(sqlite, why, sizeof(why));
    sqlite->open_retry = clock_now() + (replaced ? 0 : AGAIN_MS);
    if (replaced)
        log_warning("%s: the cache begins empty; the damaged database is kept as %s.damaged",
                    sqlite->path, sqlite->path);
    else
        log_error("%s", why);
    return replaced;
}

/* Writing, on the writers' one thread. */

static uint64_t max_size(struct sqlite *sqlite)
{
    return atomic_load_explicit(&sqlite->store.max_size, memory_order_relaxed);
}

/* Whether to write makes sense: not where the batch has failed or somebody has met damage. */
static bool is_usable(const struct sqlite *sqlite)
{
    return !sqlite->failed && !atomic_load(&sqlite->damaged);
}

/* The batch is lost, for rc if it was not before. The call is told why, like all others later. */
static enum store_status fail_batch(struct sqlite *sqlite, struct store_call *call, int rc)
{
    if (!sqlite->failed && rc != SQLITE_OK)
        fail(sqlite, &sqlite->writer.connection, rc, &sqlite->failure);
    else if (!sqlite->failed)
        fail_damaged(&sqlite->failure);
    sqlite->failed = true;
    roll_back(sqlite);
    return store_fail(call, sqlite->failure.error, "%s", sqlite->failure.text);
}

/*
 * After a PUT of so many bytes: where upkeep has not kept up with max-size, evicts as much, or a
 * few entries if they are small.
 */
static int make_room(struct sqlite *sqlite, uint64_t bytes)
{
    struct sq_writer *writer = &sqlite->writer;
    uint64_t limit = max_size(sqlite), before = sq_entries_charge(writer);
    int rc = SQLITE_OK;
    limit += limit / 20;
    for (unsigned n = 0; rc == SQLITE_OK && sq_entries_charge(writer) > limit; n++) {
        if (n >= PUT_EVICTS && before - sq_entries_charge(writer) >= bytes)
            break;
        rc = sq_entries_evict(writer);
    }
    return rc;
}

static int put_row(struct sqlite *sqlite, const struct store_call *call, struct value *value,
                   bool *exists)
{
    int rc = sq_entries_put(&sqlite->writer, call, value, exists);
    sqlite->pending += value->length;
    return rc == SQLITE_OK && !*exists ? make_room(sqlite, value->length) : rc;
}

/*
 * A large value is a transaction of its own: where the disk has no room for it, the others of its
 * batch are stored all the same.
 */
static enum store_status put_value(struct sqlite *sqlite, struct store_call *call,
                                   struct value *value)
{
    bool alone = value->length >= ALONE, exists = false;
    int rc = alone ? commit(sqlite) : SQLITE_OK;
    if (rc != SQLITE_OK)
        return fail_batch(sqlite, call, rc);
    rc = put_row(sqlite, call, value, &exists);
    if (rc == SQLITE_OK && (alone || sqlite->pending >= BATCH_BYTES))
        rc = commit(sqlite);
    if (rc != SQLITE_OK && !alone)
        return fail_batch(sqlite, call, rc);
    if (rc != SQLITE_OK) {
        fail(sqlite, &sqlite->writer.connection, rc, call);
        roll_back(sqlite);
        return STORE_FAILED;
    }
    return exists ? STORE_EXISTS : STORE_OK;
}

static enum store_status sqlite_put(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct value *value = call->value;
    enum store_status status;
    call->value = NULL;
    if (value->length > sqlite->max_length)
        status = store_fail(call, ERROR_TOO_LARGE, "SQLite holds at most %llu bytes in a value",
                            (unsigned long long)sqlite->max_length);
    else if (call->key_length + (uint64_t)value->length + SQ_ENTRY_OVERHEAD > max_size(sqlite))
        status = store_fail(call, ERROR_TOO_LARGE,
                            "the value is larger than the whole cache (max-size %llu)",
                            (unsigned long long)max_size(sqlite));
    else if (!is_usable(sqlite))
        status = fail_batch(sqlite, call, SQLITE_OK);
    else
        status = put_value(sqlite, call, value);
    value_unref(value);
    return status;
}

static enum store_status sqlite_delete(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct sq_row row;
    if (!is_usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    int rc = sq_entries_find(&sqlite->writer, call->key, call->key_length, &row);
    if (rc == SQLITE_DONE)
        return STORE_MISS;
    if (rc == SQLITE_ROW)
        rc = sq_entries_remove(&sqlite->writer, call->key, call->key_length, &row);
    if (rc != SQLITE_OK)
        return fail_batch(sqlite, call, rc);
    return sq_ended(&row) ? STORE_MISS : STORE_OK;
}

/* Where there is no room on the disk even to note down that all is deleted, the files are. */
static enum store_status clear_full(struct sqlite *sqlite, struct store_call *call)
{
    char why[1024];
    roll_back(sqlite);
    call->entries = (uint64_t)sqlite->writer.totals.entries;
    if (renew(sqlite, why, sizeof(why)))
        return STORE_OK;
    log_error("%s", why);
    return fail_batch(sqlite, call, SQLITE_OK);
}

static int begin_clear(struct sqlite *sqlite, struct store_call *call)
{
    call->progress = malloc(sizeof(struct sq_clear));
    if (call->progress == NULL)
        return SQLITE_NOMEM;
    return sq_entries_begin_clear(&sqlite->writer, call->key, call->key_length, call->progress);
}

static enum store_status end_clear(struct sqlite *sqlite, struct store_call *call, int rc)
{
    struct sq_clear *clear = call->progress;
    call->entries = clear != NULL ? clear->live : 0;
    call->progress = NULL;
    free(clear);
    publish(sqlite);
    if (is_usable(sqlite) && sq_done(rc) == SQLITE_OK)
        return STORE_OK;
    if (call->key_length == 0 && sq_is_full(sqlite->writer.connection.db, rc))
        return clear_full(sqlite, call);
    return fail_batch(sqlite, call, rc);
}

/* In steps, each a transaction of its own: what waits meanwhile is served in between. */
static enum store_status sqlite_clear(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    int rc = is_usable(sqlite) ? commit(sqlite) : SQLITE_OK;
    if (rc == SQLITE_OK && is_usable(sqlite))
        rc = call->progress == NULL ? begin_clear(sqlite, call)
                                    : sq_entries_step_clear(&sqlite->writer, call->progress);
    return rc == SQLITE_ROW ? STORE_PENDING : end_clear(sqlite, call, rc);
}

static enum store_status sqlite_persist(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    if (!is_usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    sqlite->persist = true;
    call->durable = true;
    return STORE_OK;
}

static void free_sqlite(struct sqlite *sqlite)
{
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_destroy(&sqlite->readers[i].lock);
    sq_notes_destroy(&sqlite->notes);
    keyset_free(sqlite->keys);
    free(sqlite->path);
    free(sqlite);
}

/* Absolute, whatever becomes of the daemon's working directory. */
static char *database_path(const char *directory)
{
    char *path = NULL, *absolute = realpath(directory, NULL);
    if (absolute != NULL && asprintf(&path, "%s/cache.db", absolute) < 0)
        path = NULL;
    free(absolute);
    return path;
}

/* SQLite bounds a row, which holds the key and a few numbers beside the value. */
static bool check_limit(struct sqlite *sqlite, const struct config *config, char *why, size_t size)
{
    int limit = sqlite3_limit(sqlite->writer.connection.db, SQLITE_LIMIT_LENGTH, -1);
    sqlite->max_length = (uint64_t)limit - MESSAGE_KEY_MAX - SQ_ENTRY_OVERHEAD;
    if (config->max_value_size <= sqlite->max_length)
        return true;
    snprintf(why, size, "max-value-size is %llu, but SQLite holds at most %llu bytes in a value",
             (unsigned long long)config->max_value_size, (unsigned long long)sqlite->max_length);
    return false;
}

static struct store *sqlite_open(const struct config *config, char *why, size_t size)
{
    /* Nobody asks for the memory's statistics, which would cost a lock at each allocation. */
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    struct sqlite *sqlite = calloc(1, sizeof(*sqlite));
    bool opened = false;
    if (sqlite != NULL)
        sqlite->keys = keyset_new();
    if (sqlite == NULL || sqlite->keys == NULL) {
        free(sqlite);
        snprintf(why, size, "out of memory");
        return NULL;
    }
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_init(&sqlite->readers[i].lock, NULL);
    sq_notes_init(&sqlite->notes);
    sqlite->path = database_path(config->directory);
    if (sqlite->path == NULL)
        snprintf(why, size, "can't use the directory %s: %s", config->directory, strerror(errno));
    else
        opened = open_database(sqlite, why, size) && check_limit(sqlite, config, why, size);
    if (opened)
        return &sqlite->store;
    close_all(sqlite, true);
    free_sqlite(sqlite);
    return NULL;
}

/*
 * Upkeep: each step does what there is to do of its kind for a few milliseconds, in a transaction
 * that its caller commits. SQLITE_ROW: there is more of it.
 */

static bool is_quiet(const struct sqlite *sqlite, int64_t milliseconds)
{
    return clock_now() - sqlite->written >= milliseconds;
}

/*
 * A log that can't be written back grows, and nothing else is wrong; where the disk has no room,
 * what removes entries has to go on.
 */
static int write_back(struct sqlite *sqlite, int mode)
{
    struct store_call unused;
    int rc = sq_writer_write_back(&sqlite->writer, mode);
    if (rc == SQLITE_OK || (rc & 0xFF) == SQLITE_BUSY)
        return SQLITE_OK;
    fail(sqlite, &sqlite->writer.connection, rc, &unused);
    return sq_is_damage(rc) ? rc : SQLITE_OK;
}

static int empty_long_log(struct sqlite *sqlite)
{
    bool due = sqlite->writer.log_pages >= LOG_PAGES && is_quiet(sqlite, PAUSE_MS);
    return due ? write_back(sqlite, SQLITE_CHECKPOINT_RESTART) : SQLITE_OK;
}

static int drop_suspects(struct sqlite *sqlite)
{
    return sq_entries_drop_suspects(&sqlite->writer);
}

static int drop_ended(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    int rc;
    while ((rc = sq_entries_drop_ended(&sqlite->writer)) == SQLITE_OK) {
        if (clock_now() >= until)
            return SQLITE_ROW;
    }
    return sq_done(rc);
}

static int drop_gone(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    int rc;
    while ((rc = sq_entries_drop_gone(&sqlite->writer)) == SQLITE_OK) {
        if (clock_now() >= until)
            return SQLITE_ROW;
    }
    return sq_done(rc);
}

static int evict(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    int rc = SQLITE_OK;
    while (rc == SQLITE_OK && sq_entries_charge(&sqlite->writer) > max_size(sqlite)) {
        if (clock_now() >= until)
            return SQLITE_ROW;
        rc = sq_entries_evict(&sqlite->writer);
    }
    return rc;
}

/* SQLITE_ROW: some slots were not looked at. */
static int write_uses(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    struct sq_use use;
    int rc = SQLITE_OK;
    for (unsigned n = 0; n < SQ_USES && rc == SQLITE_OK; n++) {
        if (!sq_notes_take_slot(&sqlite->notes, sqlite->next_use++ % SQ_USES, &use))
            continue;
        rc = sq_entries_set_use(&sqlite->writer, &use);
        if (rc == SQLITE_OK && clock_now() >= until)
            return SQLITE_ROW;
    }
    return rc;
}

static int read_keys(struct sqlite *sqlite)
{
    return sq_entries_read_keys(&sqlite->writer);
}

/*
 * Last uses wait until there are many: what is only read causes no writes. Evicting asks the notes,
 * so it goes by what was really used last.
 */
static int write_many_uses(struct sqlite *sqlite)
{
    bool many = sq_notes_uses(&sqlite->notes) >= SQ_USES / 4;
    return many ? write_uses(sqlite) : SQLITE_OK;
}

static int shrink(struct sqlite *sqlite)
{
    return sq_writer_shrink(&sqlite->writer);
}

static int empty_quiet_log(struct sqlite *sqlite)
{
    if (sqlite->writer.log_pages > 0 && is_quiet(sqlite, EMPTY_MS))
        return write_back(sqlite, SQLITE_CHECKPOINT_TRUNCATE);
    bool due = sqlite->writer.log_pages > 1 && is_quiet(sqlite, QUIET_MS);
    return due ? write_back(sqlite, SQLITE_CHECKPOINT_RESTART) : SQLITE_OK;
}

/* Milliseconds without a batch after which there is something to do with the log. */
static int64_t log_due(int pages)
{
    return pages >= LOG_PAGES ? PAUSE_MS : pages > 1 ? QUIET_MS : EMPTY_MS;
}

/* Milliseconds until there may be something to do, as pool_hooks.idle. */
static int until_next(struct sqlite *sqlite)
{
    int pages = sqlite->writer.log_pages;
    int64_t left = log_due(pages) - (clock_now() - sqlite->written);
    bool again = sq_entries_have_ends(&sqlite->writer) || (pages > 0 && left <= 0);
    if (again && (pages == 0 || left <= 0 || left > AGAIN_MS))
        return AGAIN_MS;
    return pages > 0 ? (int)left : -1;
}

static int sqlite_upkeep(struct store *store)
{
    static int (*const steps[])(struct sqlite *) = {
        empty_long_log, drop_suspects,   drop_ended, evict,           read_keys,
        drop_gone,      write_many_uses, shrink,     empty_quiet_log,
    };
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    int step = SQLITE_OK, rc = SQLITE_OK;
    if (atomic_load(&sqlite->damaged))
        return replace(sqlite) ? 0 : AGAIN_MS;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        step = steps[i](sqlite);
        rc = sq_done(step) == SQLITE_OK ? commit(sqlite) : step;
        if (rc != SQLITE_OK || step == SQLITE_ROW)
            break;
    }
    if (rc == SQLITE_OK)
        return step == SQLITE_ROW ? 0 : until_next(sqlite);
    fail(sqlite, &sqlite->writer.connection, rc, &unused);
    roll_back(sqlite);
    return AGAIN_MS;
}

/* Batches. */

static void sqlite_begin(struct store *store)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    sqlite->failed = false;
    sqlite->persist = false;
    if (atomic_load(&sqlite->damaged) && !replace(sqlite))
        return;
    bool is_long = sqlite->writer.log_pages >= LOG_PAGES_MAX;
    int rc = is_long ? write_back(sqlite, SQLITE_CHECKPOINT_RESTART) : SQLITE_OK;
    if (rc == SQLITE_OK)
        rc = drop_suspects(sqlite);
    if (rc != SQLITE_OK)
        fail_batch(sqlite, &unused, rc);
}

/* A PERSIST covers its whole batch: what came before it is in no earlier commit. */
static bool sqlite_commit(struct store *store, struct store_call *failed)
{
    struct sqlite *sqlite = sqlite_of(store);
    sqlite->written = clock_now();
    int rc = is_usable(sqlite) ? commit(sqlite) : SQLITE_OK;
    if (rc == SQLITE_OK && is_usable(sqlite) && sqlite->persist)
        rc = sq_writer_sync(&sqlite->writer);
    if (rc == SQLITE_OK && is_usable(sqlite))
        return true;
    fail_batch(sqlite, failed, rc);
    return false;
}

static void sqlite_close(struct store *store)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    int rc = SQLITE_ROW;
    while (rc == SQLITE_ROW && !atomic_load(&sqlite->damaged))
        rc = write_uses(sqlite);
    if (rc == SQLITE_OK)
        rc = commit(sqlite);
    if (sq_done(rc) != SQLITE_OK)
        fail_batch(sqlite, &unused, rc);
    close_all(sqlite, !atomic_load(&sqlite->damaged));
    free_sqlite(sqlite);
}

static bool sqlite_absent(struct store *store, const struct store_call *call)
{
    return keyset_absent(sqlite_of(store)->keys, call->hash);
}

const struct store_ops store_sqlite = {
    .name = "sqlite",
    .title = "Sqlite3",
    .tiered = true,
    .absent = sqlite_absent,
    .in_directory = true,
    .readers = READERS,
    .writers = 1,
    .open = sqlite_open,
    .close = sqlite_close,
    .get = sqlite_get,
    .head = sqlite_head,
    .put = sqlite_put,
    .delete = sqlite_delete,
    .clear = sqlite_clear,
    .inspect = sqlite_inspect,
    .persist = sqlite_persist,
    .begin = sqlite_begin,
    .commit = sqlite_commit,
    .upkeep = sqlite_upkeep,
};
