/*
 * Keeps everything in one SQLite database, cache.db.
 *
 * The writers' one thread owns one connection, and that connection does every write and every
 * checkpoint: SQLite up to 3.51.2 can corrupt a database whose write-ahead log two connections
 * restart. The readers' connections are opened read-only, and see the last commit without waiting
 * for the next. No code here opens the database's files itself, which would drop SQLite's locks.
 *
 * entry holds what is known of a key, value its bytes, use when it was last read. They meet in an
 * id, a number that is never given twice; ids, like last uses, come from one counter, the tick,
 * that goes on from run to run. What small things need often stays apart from the bytes, so that a
 * HEAD, a PUT of what is there, a CLEAR or a new last use never touches a large value's pages.
 *
 * Ordinary commits are not synced: what a kill -9 leaves is whole, what a power loss leaves is an
 * earlier whole. PERSIST makes the next commit sync the log, which covers all commits before it.
 *
 * max-size bounds the bytes of keys and values with a flat surcharge for each entry's share of the
 * indexes. The file follows, apart from pages that are partly filled.
 */
#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../log.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* Measured with 100 B, 4 KB and 1 MB values: larger pages write more for small values and gain
 * little for large ones; a memory map gains nothing that would be worth a SIGBUS on a bad disk. */
#define PAGE_SIZE    "4096"
#define WRITER_CACHE "-16384"
#define READER_CACHE "-4096"
#define LOG_BYTES    "16777216" /* that the write-ahead log's file keeps when it begins anew */

enum {
    READERS = 4,
    APPLICATION_ID = 0x4C696361,
    SCHEMA_VERSION = 1,
    ENTRY_OVERHEAD = 128,         /* an entry's share of the indexes, roughly */
    LARGE = 64 << 10,             /* bytes from which a value is read piecemeal */
    ALONE = 1 << 20,              /* bytes from which a PUT is a transaction of its own */
    TRANSACTION_BYTES = 16 << 20, /* after which a batch goes on in a new transaction */
    USES = 4096,                  /* last uses that are remembered until they are written */
    SUSPECTS = 16,                /* damaged entries that wait to be deleted */
    PUT_EVICTS = 16,              /* victims of one PUT, if it is a small one */
    STEP_MS = 4,                  /* of upkeep */
    QUIET_MS = 1000,              /* without a write, then the log is emptied */
    ENDS_MS = 1000,               /* between looks for what has ended */
    RETRY_MS = 1000,              /* after upkeep has failed */
    LOG_RETRY_MS = 100,           /* after readers have kept the log from being written back */
    LOG_PAGES = 1000,             /* after which the log is written back in a pause */
    LOG_PAGES_MAX = 4000,         /* after which it is written back before the next batch */
    VACUUM_PAGES = 64,            /* given back in one step */
    RANGE_ROWS = 4096,            /* counted in one read transaction */
    BUSY_MS = 2000,               /* to wait for a foreign program, as the sqlite3 shell */
    READER_WAIT_MS = 20           /* to wait for a reader before the log is emptied */
};

static const char *const schema[] = {
    "CREATE TABLE meta(id INTEGER PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL, "
    "tick INTEGER NOT NULL, sum INTEGER NOT NULL, wall INTEGER NOT NULL)",
    "CREATE TABLE entry(key BLOB PRIMARY KEY NOT NULL, id INTEGER NOT NULL, size INTEGER NOT NULL, "
    "flags INTEGER NOT NULL, expires INTEGER, ttl INTEGER, sum INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX entry_end ON entry(expires, ttl) WHERE expires IS NOT NULL",
    "CREATE TABLE value(id INTEGER PRIMARY KEY, key BLOB NOT NULL, bytes BLOB NOT NULL)",
    "CREATE TABLE use(id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
    "CREATE INDEX use_order ON use(used)",
};

enum { SCHEMA_COUNT = sizeof(schema) / sizeof(schema[0]) };

enum statement {
    FIND,
    BYTES,
    ENDED_COUNT,
    RANGE,
    READER_STATEMENTS,
    BEGIN = READER_STATEMENTS,
    COMMIT,
    ROLLBACK,
    META_SET,
    ENTRY_ADD,
    VALUE_ADD,
    USE_ADD,
    ENTRY_DELETE,
    VALUE_DELETE,
    USE_DELETE,
    USE_SET,
    USE_OLDEST,
    VALUE_KEY,
    ENDED_FIRST,
    ENTRIES_CLEAR,
    VALUES_CLEAR,
    USES_CLEAR,
    FREE_PAGES,
    PAGES,
    VACUUM,
    STATEMENTS
};

/* Those that find an entry return its columns in the order of read_row(). */
static const char *const sql[STATEMENTS] = {
    [FIND] = "SELECT id, size, flags, expires, ttl, sum, key FROM entry WHERE key = ?1",
    [BYTES] = "SELECT bytes FROM value WHERE id = ?1",
    [ENDED_COUNT] = "SELECT count(*) FROM entry WHERE expires <= ?1",
    [RANGE] = "SELECT id, size, flags, expires, ttl, sum, key FROM entry"
              " WHERE key >= ?1 AND key < ?2 ORDER BY key",
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [META_SET] = "UPDATE meta SET entries = ?1, bytes = ?2, tick = ?3, sum = ?4, wall = ?5",
    [ENTRY_ADD] = "INSERT INTO entry(key, id, size, flags, expires, ttl, sum)"
                  " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT(key) DO NOTHING",
    [VALUE_ADD] = "INSERT INTO value(id, key, bytes) VALUES(?1, ?2, ?3)",
    [USE_ADD] = "INSERT INTO use(id, used) VALUES(?1, ?1)",
    [ENTRY_DELETE] = "DELETE FROM entry WHERE key = ?1",
    [VALUE_DELETE] = "DELETE FROM value WHERE id = ?1",
    [USE_DELETE] = "DELETE FROM use WHERE id = ?1",
    [USE_SET] = "UPDATE use SET used = ?2 WHERE id = ?1",
    [USE_OLDEST] = "SELECT id FROM use ORDER BY used LIMIT 1",
    [VALUE_KEY] = "SELECT key FROM value WHERE id = ?1",
    [ENDED_FIRST] = "SELECT id, size, flags, expires, ttl, sum, key FROM entry"
                    " WHERE expires <= ?1 ORDER BY expires LIMIT 1",
    [ENTRIES_CLEAR] = "DELETE FROM entry",
    [VALUES_CLEAR] = "DELETE FROM value",
    [USES_CLEAR] = "DELETE FROM use",
    [FREE_PAGES] = "PRAGMA freelist_count",
    [PAGES] = "PRAGMA page_count",
    [VACUUM] = "PRAGMA incremental_vacuum(64)",
};

struct connection {
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENTS];
};

struct key {
    uint32_t length;
    uint8_t bytes[MESSAGE_KEY_MAX + 1]; /* one more than a key has: the end of a range */
};

/* What the table entry knows. */
struct row {
    int64_t id;
    int64_t size; /* of the value */
    int64_t flags;
    int64_t expires; /* clock_now()'s time */
    int64_t sum;
};

struct reader {
    pthread_mutex_t lock; /* held while it reads, and by the writer to replace the database */
    struct connection connection;
};

struct use {
    int64_t id; /* 0: none */
    int64_t tick;
};

struct suspect {
    int64_t id;
    struct key key;
};

struct totals {
    int64_t entries;
    int64_t bytes; /* of keys and values */
};

struct sqlite {
    struct store store;
    char *path;
    uint64_t max_length; /* of a value, SQLite's own */
    struct reader readers[READERS];
    _Atomic bool damaged; /* found to be so; the writer replaces it */
    _Atomic int64_t tick;
    _Atomic int64_t entries, bytes; /* as committed, for INSPECT */
    _Atomic int64_t logged;         /* when, last */

    pthread_mutex_t notes; /* what the readers leave for the writer: */
    struct use uses[USES];
    unsigned uses_noted;
    struct suspect suspects[SUSPECTS];
    unsigned suspects_noted;

    /* The rest is the writer's alone. */
    struct connection writer;
    struct totals totals, committed;
    int changes;      /* of the connection, when the open transaction began */
    uint64_t pending; /* bytes of values in the open transaction */
    bool persist;     /* wanted by a call of the batch */
    bool unsynced;    /* something may not have reached the disk */
    bool sync_failed; /* since then nothing is known of the disk */
    bool failed;      /* the batch, for the reason in failure */
    struct store_call failure;
    int log_pages;     /* in the write-ahead log, not yet written back */
    int64_t written;   /* when something was committed, last */
    int64_t log_retry; /* not before this time */
    int64_t open_retry;
    unsigned next_use; /* slot to write */
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

/*
 * Whether rc says that the file's content is at fault, not the disk, the memory or another program.
 * Every statement here is fixed and fits the schema, so what SQLite says against one is that, too.
 */
static bool is_damage(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_ERROR:
    case SQLITE_SCHEMA:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG:
        return true;
    default:
        return false;
    }
}

static bool is_full(sqlite3 *db, int rc)
{
    int error = (rc & 0xff) == SQLITE_IOERR ? sqlite3_system_errno(db) : 0;
    return (rc & 0xff) == SQLITE_FULL || error == ENOSPC || error == EDQUOT || error == EFBIG;
}

static enum store_status fail_damaged(struct store_call *call)
{
    return store_fail(call, ERROR_INTERNAL, "the database is damaged and is being replaced");
}

/* Fails the call for rc, which a statement of the connection has returned. */
static enum store_status fail(struct sqlite *sqlite, struct connection *connection, int rc,
                              struct store_call *call)
{
    bool log = may_log(sqlite);
    if (is_damage(rc)) {
        if (!atomic_exchange(&sqlite->damaged, true))
            log_error("%s: the database is damaged (%s); it will be replaced", sqlite->path,
                      sqlite3_errmsg(connection->db));
        return fail_damaged(call);
    }
    if (log)
        log_error("%s: %s (%s)", sqlite->path, sqlite3_errstr(rc),
                  strerror(sqlite3_system_errno(connection->db)));
    if (is_full(connection->db, rc))
        return store_fail(call, ERROR_NO_SPACE, "no space is left for the database");
    if ((rc & 0xff) == SQLITE_BUSY)
        return store_fail(call, ERROR_UNAVAILABLE, "another program has locked the database");
    return store_fail(call, ERROR_INTERNAL, "the database can't be used: %s", sqlite3_errstr(rc));
}

/* Statements. */

static sqlite3_stmt *with_id(struct connection *connection, enum statement which, int64_t id)
{
    sqlite3_stmt *statement = connection->statements[which];
    sqlite3_bind_int64(statement, 1, id);
    return statement;
}

/* The bytes stay the caller's, in place until the statement is reset. */
static sqlite3_stmt *with_key(struct connection *connection, enum statement which,
                              const uint8_t *key, size_t length)
{
    sqlite3_stmt *statement = connection->statements[which];
    sqlite3_bind_blob(statement, 1, key, (int)length, SQLITE_STATIC);
    return statement;
}

static int done(int rc)
{
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Runs a statement whose rows, if any, are of no interest. */
static int run(sqlite3_stmt *statement)
{
    int rc;
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW)
        ;
    sqlite3_reset(statement);
    return done(rc);
}

/* One number: SQLITE_OK, or why not. */
static int ask(sqlite3_stmt *statement, int64_t *number)
{
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *number = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE ? SQLITE_CORRUPT : done(rc);
}

static void read_row(sqlite3_stmt *statement, struct row *row)
{
    row->id = sqlite3_column_int64(statement, 0);
    row->size = sqlite3_column_int64(statement, 1);
    row->flags = sqlite3_column_int64(statement, 2);
    row->expires = CLOCK_NEVER;
    if (sqlite3_column_type(statement, 3) != SQLITE_NULL)
        row->expires =
            clock_from_wall(sqlite3_column_int64(statement, 3), sqlite3_column_int64(statement, 4));
    row->sum = sqlite3_column_int64(statement, 5);
}

/* Copies a column that is a key; false where it can't be one. */
static bool read_key(sqlite3_stmt *statement, int column, struct key *key)
{
    const void *bytes = sqlite3_column_blob(statement, column);
    int length = sqlite3_column_bytes(statement, column);
    if (bytes == NULL || length > MESSAGE_KEY_MAX)
        return false;
    memcpy(key->bytes, bytes, (size_t)length);
    key->length = (uint32_t)length;
    return true;
}

/* SQLITE_ROW: found, and the connection sees this moment's database until end_find(). */
static int find(struct connection *connection, const uint8_t *key, size_t length, struct row *row)
{
    sqlite3_stmt *statement = with_key(connection, FIND, key, length);
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        read_row(statement, row);
    return rc;
}

static void end_find(struct connection *connection)
{
    sqlite3_reset(connection->statements[FIND]);
}

static bool ended(const struct row *row)
{
    return row->expires != CLOCK_NEVER && store_expired(row->expires, clock_now());
}

/* No key has as many bytes as the end of the range of a prefix, so all with it sort before that. */
static void set_range(const struct store_call *call, struct key *from, struct key *to)
{
    from->length = call->key_length;
    to->length = sizeof(to->bytes);
    memset(to->bytes, 0xFF, sizeof(to->bytes));
    for (uint32_t i = 0; i < call->key_length; i++)
        from->bytes[i] = to->bytes[i] = call->key[i];
}

static sqlite3_stmt *with_range(struct connection *connection, const struct key *from,
                                const struct key *to)
{
    /* A blob of no bytes needs an address, too, or it would be NULL and match nothing. */
    sqlite3_stmt *statement = with_key(connection, RANGE, from->bytes, from->length);
    sqlite3_bind_blob(statement, 2, to->bytes, (int)to->length, SQLITE_STATIC);
    return statement;
}

/* Covers all that a client gets, and the key that it asked with. */
static int64_t checksum(const struct value *value)
{
    uint64_t seed = (uint64_t)value->key_length << 32 | value->flags;
    size_t length = (size_t)value->key_length + value->length;
    return (int64_t)XXH3_64bits_withSeed(value->data, length, seed);
}

/* What the readers leave for the writer. */

static void note_use(struct sqlite *sqlite, int64_t id)
{
    struct use *use = &sqlite->uses[(uint64_t)id % USES];
    pthread_mutex_lock(&sqlite->notes);
    sqlite->uses_noted += use->id == 0;
    *use = (struct use){.id = id, .tick = atomic_fetch_add(&sqlite->tick, 1) + 1};
    pthread_mutex_unlock(&sqlite->notes);
}

/* Takes a noted use away; its id is 0 where there was none of that id (of any, if id is 0). */
static struct use take_use(struct sqlite *sqlite, unsigned slot, int64_t id)
{
    struct use use = {0}, *noted = &sqlite->uses[slot];
    pthread_mutex_lock(&sqlite->notes);
    if (noted->id != 0 && (id == 0 || noted->id == id)) {
        use = *noted;
        noted->id = 0;
        sqlite->uses_noted--;
    }
    pthread_mutex_unlock(&sqlite->notes);
    return use;
}

static void note_suspect(struct sqlite *sqlite, const struct store_call *call, int64_t id)
{
    if (may_log(sqlite))
        log_warning("%s: the entry %lld is damaged; it is deleted", sqlite->path, (long long)id);
    pthread_mutex_lock(&sqlite->notes);
    if (sqlite->suspects_noted < SUSPECTS) {
        struct suspect *suspect = &sqlite->suspects[sqlite->suspects_noted++];
        suspect->id = id;
        suspect->key.length = call->key_length;
        memcpy(suspect->key.bytes, call->key, call->key_length);
    }
    pthread_mutex_unlock(&sqlite->notes);
}

static bool take_suspect(struct sqlite *sqlite, struct suspect *suspect)
{
    pthread_mutex_lock(&sqlite->notes);
    bool taken = sqlite->suspects_noted > 0;
    if (taken)
        *suspect = sqlite->suspects[--sqlite->suspects_noted];
    pthread_mutex_unlock(&sqlite->notes);
    return taken;
}

/* Reading, on the readers' threads. */

/* The value of the call's key with length bytes from *bytes or, where that is NULL, from blob. */
static enum store_status copy_value(struct sqlite *sqlite, struct connection *connection,
                                    struct store_call *call, const struct row *row,
                                    const void *bytes, sqlite3_blob *blob)
{
    struct value *value = store_new_value(call, (uint64_t)row->size);
    if (value == NULL)
        return STORE_FAILED;
    int rc = SQLITE_OK;
    if (blob != NULL)
        rc = sqlite3_blob_read(blob, value_bytes(value), (int)row->size, 0);
    else if (row->size > 0)
        memcpy(value_bytes(value), bytes, (size_t)row->size);
    value->flags = (uint32_t)row->flags;
    value->expires = row->expires;
    if (rc == SQLITE_OK && checksum(value) == row->sum) {
        call->value = value;
        return STORE_OK;
    }
    value_unref(value);
    if (rc != SQLITE_OK)
        return fail(sqlite, connection, rc, call);
    note_suspect(sqlite, call, row->id);
    return STORE_MISS;
}

static enum store_status get_small(struct sqlite *sqlite, struct connection *connection,
                                   struct store_call *call, const struct row *row)
{
    enum store_status status = STORE_MISS;
    sqlite3_stmt *statement = with_id(connection, BYTES, row->id);
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW && sqlite3_column_bytes(statement, 0) == row->size)
        status = copy_value(sqlite, connection, call, row, sqlite3_column_blob(statement, 0), NULL);
    else if (done(rc) == SQLITE_OK)
        note_suspect(sqlite, call, row->id);
    else
        status = fail(sqlite, connection, rc, call);
    sqlite3_reset(statement);
    return status;
}

/* Read piecemeal, so that SQLite does not hold a second copy that nobody counts. */
static enum store_status get_large(struct sqlite *sqlite, struct connection *connection,
                                   struct store_call *call, const struct row *row)
{
    enum store_status status = STORE_MISS;
    sqlite3_blob *blob = NULL;
    int rc = sqlite3_blob_open(connection->db, "main", "value", "bytes", row->id, 0, &blob);
    if (rc == SQLITE_OK && sqlite3_blob_bytes(blob) == row->size)
        status = copy_value(sqlite, connection, call, row, NULL, blob);
    else if (rc == SQLITE_OK || rc == SQLITE_ERROR) /* another length; no such row */
        note_suspect(sqlite, call, row->id);
    else
        status = fail(sqlite, connection, rc, call);
    sqlite3_blob_close(blob);
    return status;
}

static enum store_status get_found(struct sqlite *sqlite, struct connection *connection,
                                   struct store_call *call, const struct row *row)
{
    enum store_status status;
    if (row->size >= LARGE)
        status = get_large(sqlite, connection, call, row);
    else
        status = get_small(sqlite, connection, call, row);
    if (status == STORE_OK)
        note_use(sqlite, row->id);
    return status;
}

static enum store_status head_found(struct sqlite *sqlite, struct connection *connection,
                                    struct store_call *call, const struct row *row)
{
    (void)sqlite;
    (void)connection;
    call->length = (uint64_t)row->size;
    call->flags = (uint32_t)row->flags;
    call->expires = row->expires;
    return STORE_OK;
}

typedef enum store_status found_method(struct sqlite *sqlite, struct connection *connection,
                                       struct store_call *call, const struct row *row);

/* GET and HEAD: a damaged database holds nothing, until it is replaced. */
static enum store_status look_up(struct store *store, struct store_call *call, found_method *found)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct reader *reader = &sqlite->readers[call->task.thread];
    enum store_status status = STORE_MISS;
    struct row row;

    pthread_mutex_lock(&reader->lock);
    if (!atomic_load(&sqlite->damaged)) {
        int rc = find(&reader->connection, call->key, call->key_length, &row);
        if (rc == SQLITE_ROW && !ended(&row))
            status = found(sqlite, &reader->connection, call, &row);
        else if (done(rc) != SQLITE_OK)
            status = fail(sqlite, &reader->connection, rc, call);
        end_find(&reader->connection);
    }
    pthread_mutex_unlock(&reader->lock);
    return atomic_load(&sqlite->damaged) && status == STORE_FAILED ? STORE_MISS : status;
}

static enum store_status sqlite_get(struct store *store, struct store_call *call)
{
    return look_up(store, call, get_found);
}

static enum store_status sqlite_head(struct store *store, struct store_call *call)
{
    return look_up(store, call, head_found);
}

static int inspect_all(struct sqlite *sqlite, struct connection *connection,
                       struct store_call *call)
{
    int64_t count = 0;
    int rc = ask(with_id(connection, ENDED_COUNT, clock_to_wall(clock_now())), &count);
    int64_t entries = atomic_load(&sqlite->entries) - count;
    call->entries = entries > 0 ? (uint64_t)entries : 0;
    call->size = (uint64_t)atomic_load(&sqlite->bytes);
    call->approximate = count > 0; /* their bytes are still counted */
    return rc;
}

/* Counts some of the range, and moves its beginning behind them; SQLITE_ROW: there may be more. */
static int inspect_rows(struct connection *connection, struct store_call *call, struct key *from,
                        const struct key *to)
{
    sqlite3_stmt *statement = with_range(connection, from, to);
    struct key last = {0};
    struct row row;
    int rc = SQLITE_ROW;
    for (unsigned n = 0; n < RANGE_ROWS && (rc = sqlite3_step(statement)) == SQLITE_ROW; n++) {
        read_row(statement, &row);
        if (!read_key(statement, 6, &last)) {
            rc = SQLITE_CORRUPT;
            break;
        }
        call->entries += !ended(&row);
        call->size += ended(&row) ? 0 : last.length + (uint64_t)row.size;
    }
    sqlite3_reset(statement);
    *from = last;
    from->bytes[from->length++] = 0;
    return rc;
}

/* In several short transactions, so that the write-ahead log can be emptied in between. */
static int inspect_range(struct connection *connection, struct store_call *call)
{
    struct key from, to;
    int rc;
    set_range(call, &from, &to);
    while ((rc = inspect_rows(connection, call, &from, &to)) == SQLITE_ROW)
        call->approximate = true;
    return done(rc);
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

/* Writing, on the writers' one thread. */

static void add_totals(struct sqlite *sqlite, int64_t entries, int64_t bytes)
{
    sqlite->totals.entries += entries;
    sqlite->totals.bytes += bytes;
}

/* What counts against max-size. */
static uint64_t charge(const struct sqlite *sqlite)
{
    return (uint64_t)(sqlite->totals.bytes + sqlite->totals.entries * ENTRY_OVERHEAD);
}

static uint64_t max_size(struct sqlite *sqlite)
{
    return atomic_load_explicit(&sqlite->store.max_size, memory_order_relaxed);
}

/* Opens a transaction unless one is open. */
static int begin(struct sqlite *sqlite)
{
    if (!sqlite3_get_autocommit(sqlite->writer.db))
        return SQLITE_OK;
    sqlite->changes = sqlite3_total_changes(sqlite->writer.db);
    return run(sqlite->writer.statements[BEGIN]);
}

static int64_t totals_sum(const struct totals *totals, int64_t tick)
{
    int64_t numbers[] = {totals->entries, totals->bytes, tick};
    return (int64_t)XXH3_64bits(numbers, sizeof(numbers));
}

static int save_totals(struct sqlite *sqlite)
{
    int64_t tick = atomic_fetch_add(&sqlite->tick, 1) + 1;
    sqlite3_stmt *statement = with_id(&sqlite->writer, META_SET, sqlite->totals.entries);
    sqlite3_bind_int64(statement, 2, sqlite->totals.bytes);
    sqlite3_bind_int64(statement, 3, tick);
    sqlite3_bind_int64(statement, 4, totals_sum(&sqlite->totals, tick));
    sqlite3_bind_int64(statement, 5, clock_to_wall(clock_now()));
    return run(statement);
}

static void publish_totals(struct sqlite *sqlite)
{
    sqlite->committed = sqlite->totals;
    atomic_store(&sqlite->entries, sqlite->totals.entries);
    atomic_store(&sqlite->bytes, sqlite->totals.bytes);
}

/* Commits the open transaction, if any. Where it fails, the caller rolls back. */
static int commit(struct sqlite *sqlite)
{
    sqlite3 *db = sqlite->writer.db;
    if (sqlite3_get_autocommit(db))
        return SQLITE_OK;
    bool changed = sqlite3_total_changes(db) != sqlite->changes;
    int rc = changed ? save_totals(sqlite) : SQLITE_OK;
    if (rc == SQLITE_OK)
        rc = run(sqlite->writer.statements[COMMIT]);
    if (rc != SQLITE_OK)
        return rc;
    publish_totals(sqlite);
    sqlite->pending = 0;
    sqlite->unsynced |= changed;
    sqlite->written = clock_now();
    return SQLITE_OK;
}

static void roll_back(struct sqlite *sqlite)
{
    if (sqlite->writer.db != NULL && !sqlite3_get_autocommit(sqlite->writer.db))
        run(sqlite->writer.statements[ROLLBACK]);
    sqlite->totals = sqlite->committed;
    sqlite->pending = 0;
}

/*
 * Has the disk hold all that was committed. With synchronous=FULL a commit ends with an fsync of
 * the log, which holds every commit since the log was last written back; the checkpoint that did
 * that has synced the database itself. The first fsync of a new log syncs its folder, too. A commit
 * that changes nothing writes nothing and syncs nothing, but each one moves the tick.
 */
static int sync_commits(struct sqlite *sqlite)
{
    sqlite3 *db = sqlite->writer.db;
    /* The kernel forgets what it could not write: a later fsync that succeeds proves nothing. */
    if (sqlite->sync_failed)
        return SQLITE_IOERR_FSYNC;
    if (!sqlite->unsynced)
        return SQLITE_OK;
    int rc = sqlite3_exec(db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = begin(sqlite);
    if (rc == SQLITE_OK)
        rc = save_totals(sqlite);
    if (rc == SQLITE_OK)
        rc = commit(sqlite);
    sqlite->unsynced = rc != SQLITE_OK;
    sqlite->sync_failed = rc == SQLITE_IOERR_FSYNC || rc == SQLITE_IOERR_DIR_FSYNC;
    if (rc != SQLITE_OK)
        roll_back(sqlite);
    int normal = sqlite3_exec(db, "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    return rc != SQLITE_OK ? rc : normal;
}

/* The batch is lost: for rc, or for what was found before. The call gets the reason, too. */
static enum store_status fail_batch(struct sqlite *sqlite, struct store_call *call, int rc)
{
    if (!sqlite->failed && rc != SQLITE_OK)
        fail(sqlite, &sqlite->writer, rc, &sqlite->failure);
    else if (!sqlite->failed)
        fail_damaged(&sqlite->failure);
    sqlite->failed = true;
    roll_back(sqlite);
    return store_fail(call, sqlite->failure.error, "%s", sqlite->failure.text);
}

/* Whether writing makes sense: not where the batch has failed or a reader has met damage. */
static bool usable(const struct sqlite *sqlite)
{
    return !sqlite->failed && !atomic_load(&sqlite->damaged);
}

static int remove_entry(struct sqlite *sqlite, const uint8_t *key, size_t length,
                        const struct row *row)
{
    struct connection *writer = &sqlite->writer;
    int rc = begin(sqlite);
    if (rc == SQLITE_OK)
        rc = run(with_key(writer, ENTRY_DELETE, key, length));
    if (rc == SQLITE_OK && sqlite3_changes(writer->db) != 1)
        rc = SQLITE_CORRUPT;
    if (rc == SQLITE_OK)
        rc = run(with_id(writer, VALUE_DELETE, row->id));
    if (rc == SQLITE_OK)
        rc = run(with_id(writer, USE_DELETE, row->id));
    if (rc == SQLITE_OK)
        add_totals(sqlite, -1, -((int64_t)length + row->size));
    return rc;
}

/* As find(), without holding on to the moment. */
static int peek(struct sqlite *sqlite, const uint8_t *key, size_t length, struct row *row)
{
    int rc = find(&sqlite->writer, key, length, row);
    end_find(&sqlite->writer);
    return rc;
}

static int set_use(struct sqlite *sqlite, const struct use *use)
{
    sqlite3_stmt *statement = with_id(&sqlite->writer, USE_SET, use->id);
    sqlite3_bind_int64(statement, 2, use->tick);
    int rc = begin(sqlite);
    return rc == SQLITE_OK ? run(statement) : rc;
}

/*
 * The entry to evict next: the one that was used least recently. What only the notes know of its
 * uses is written down first. SQLITE_DONE where there is none.
 */
static int choose_victim(struct sqlite *sqlite, int64_t *id)
{
    for (unsigned n = 0; n <= USES; n++) {
        sqlite3_stmt *statement = sqlite->writer.statements[USE_OLDEST];
        int rc = sqlite3_step(statement);
        *id = sqlite3_column_int64(statement, 0);
        sqlite3_reset(statement);
        if (rc != SQLITE_ROW)
            return rc;
        struct use use = take_use(sqlite, (unsigned)((uint64_t)*id % USES), *id);
        if (use.id == 0 || n == USES)
            return SQLITE_ROW;
        rc = set_use(sqlite, &use);
        if (rc != SQLITE_OK)
            return rc;
    }
    return SQLITE_ROW;
}

/* The tables always agree, and where more is charged than max-size there is something to evict. */
static int evict_one(struct sqlite *sqlite)
{
    struct key key = {0};
    struct row row;
    int64_t id;
    int rc = choose_victim(sqlite, &id);
    if (rc != SQLITE_ROW)
        return rc == SQLITE_DONE ? SQLITE_CORRUPT : rc;
    sqlite3_stmt *statement = with_id(&sqlite->writer, VALUE_KEY, id);
    rc = sqlite3_step(statement);
    bool known = rc == SQLITE_ROW && read_key(statement, 0, &key);
    sqlite3_reset(statement);
    if (known)
        rc = peek(sqlite, key.bytes, key.length, &row);
    if (known && rc == SQLITE_ROW && row.id == id)
        return remove_entry(sqlite, key.bytes, key.length, &row);
    return done(rc) == SQLITE_OK ? SQLITE_CORRUPT : rc;
}

/*
 * After a PUT of so many bytes: where upkeep has not kept up with max-size, evicts as much, or a
 * few entries if they are small.
 */
static int make_room(struct sqlite *sqlite, uint64_t bytes)
{
    uint64_t limit = max_size(sqlite), before = charge(sqlite);
    limit += limit / 20;
    int rc = SQLITE_OK;
    for (unsigned n = 0; rc == SQLITE_OK && charge(sqlite) > limit; n++) {
        if (n >= PUT_EVICTS && before - charge(sqlite) >= bytes)
            break;
        rc = evict_one(sqlite);
    }
    return rc;
}

/* Stores unless the key is there: *added says which. */
static int add_entry(struct sqlite *sqlite, const struct store_call *call,
                     const struct value *value, int64_t id, bool *added)
{
    sqlite3_stmt *statement = with_key(&sqlite->writer, ENTRY_ADD, call->key, call->key_length);
    sqlite3_bind_int64(statement, 2, id);
    sqlite3_bind_int64(statement, 3, value->length);
    sqlite3_bind_int64(statement, 4, value->flags);
    sqlite3_bind_null(statement, 5);
    sqlite3_bind_null(statement, 6);
    if (value->expires != CLOCK_NEVER) {
        sqlite3_bind_int64(statement, 5, clock_to_wall(value->expires));
        sqlite3_bind_int64(statement, 6, value->expires - clock_now());
    }
    sqlite3_bind_int64(statement, 7, checksum(value));
    int rc = run(statement);
    *added = rc == SQLITE_OK && sqlite3_changes(sqlite->writer.db) == 1;
    return rc;
}

static int add_value(struct sqlite *sqlite, const struct store_call *call, struct value *value,
                     int64_t id)
{
    sqlite3_stmt *statement = with_id(&sqlite->writer, VALUE_ADD, id);
    sqlite3_bind_blob(statement, 2, call->key, (int)call->key_length, SQLITE_STATIC);
    sqlite3_bind_blob(statement, 3, value_bytes(value), (int)value->length, SQLITE_STATIC);
    int rc = run(statement);
    if (rc == SQLITE_OK)
        rc = run(with_id(&sqlite->writer, USE_ADD, id));
    if (rc == SQLITE_OK)
        add_totals(sqlite, 1, (int64_t)call->key_length + value->length);
    sqlite->pending += value->length;
    return rc;
}

/* Removes what is in the way of a PUT, or says that it stays. */
static int displace(struct sqlite *sqlite, const struct store_call *call, bool *exists)
{
    struct row row;
    int rc = peek(sqlite, call->key, call->key_length, &row);
    if (rc != SQLITE_ROW)
        return rc == SQLITE_DONE ? SQLITE_CORRUPT : rc;
    *exists = !call->overwrite && !ended(&row);
    return *exists ? SQLITE_OK : remove_entry(sqlite, call->key, call->key_length, &row);
}

static int put_row(struct sqlite *sqlite, const struct store_call *call, struct value *value,
                   bool *exists)
{
    bool added = false;
    int64_t id = atomic_fetch_add(&sqlite->tick, 1) + 1;
    int rc = begin(sqlite);
    if (rc == SQLITE_OK)
        rc = add_entry(sqlite, call, value, id, &added);
    if (rc == SQLITE_OK && !added)
        rc = displace(sqlite, call, exists);
    if (rc != SQLITE_OK || *exists)
        return rc;
    if (!added)
        rc = add_entry(sqlite, call, value, id, &added);
    if (rc == SQLITE_OK)
        rc = add_value(sqlite, call, value, id);
    if (rc == SQLITE_OK)
        rc = make_room(sqlite, value->length);
    return rc;
}

/*
 * A large value is a transaction of its own: where the disk has no room for it, the others of the
 * batch are stored all the same.
 */
static enum store_status put_value(struct sqlite *sqlite, struct store_call *call,
                                   struct value *value)
{
    bool alone = value->length >= ALONE, exists = false;
    if (!usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    int rc = alone ? commit(sqlite) : SQLITE_OK;
    if (rc != SQLITE_OK)
        return fail_batch(sqlite, call, rc);
    rc = put_row(sqlite, call, value, &exists);
    if (rc == SQLITE_OK && (alone || sqlite->pending >= TRANSACTION_BYTES))
        rc = commit(sqlite);
    if (rc != SQLITE_OK && !alone)
        return fail_batch(sqlite, call, rc);
    if (rc != SQLITE_OK) {
        fail(sqlite, &sqlite->writer, rc, call);
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
    else if (call->key_length + (uint64_t)value->length + ENTRY_OVERHEAD > max_size(sqlite))
        status = store_fail(call, ERROR_TOO_LARGE,
                            "the value is larger than the whole cache (max-size %llu)",
                            (unsigned long long)max_size(sqlite));
    else
        status = put_value(sqlite, call, value);
    value_unref(value);
    return status;
}

static enum store_status sqlite_delete(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct row row;
    if (!usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    int rc = peek(sqlite, call->key, call->key_length, &row);
    if (rc == SQLITE_DONE)
        return STORE_MISS;
    if (rc == SQLITE_ROW)
        rc = remove_entry(sqlite, call->key, call->key_length, &row);
    if (rc != SQLITE_OK)
        return fail_batch(sqlite, call, rc);
    return ended(&row) ? STORE_MISS : STORE_OK;
}

/* Without a WHERE SQLite frees whole trees, not row by row. */
static int clear_all(struct sqlite *sqlite, struct store_call *call)
{
    static const enum statement all[] = {ENTRIES_CLEAR, VALUES_CLEAR, USES_CLEAR};
    int64_t count = 0;
    int rc = ask(with_id(&sqlite->writer, ENDED_COUNT, clock_to_wall(clock_now())), &count);
    for (unsigned i = 0; i < 3 && rc == SQLITE_OK; i++)
        rc = run(sqlite->writer.statements[all[i]]);
    if (rc != SQLITE_OK)
        return rc;
    call->entries = (uint64_t)(sqlite->totals.entries - count);
    sqlite->totals = (struct totals){0};
    return SQLITE_OK;
}

/* Removes the first entry that the statement finds; SQLITE_DONE where it finds none. */
static int remove_first(struct sqlite *sqlite, sqlite3_stmt *statement, struct row *row)
{
    struct key key;
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        read_row(statement, row);
    bool known = rc == SQLITE_ROW && read_key(statement, 6, &key);
    sqlite3_reset(statement);
    if (known)
        return remove_entry(sqlite, key.bytes, key.length, row);
    return rc == SQLITE_ROW ? SQLITE_CORRUPT : rc;
}

static int clear_range(struct sqlite *sqlite, struct store_call *call)
{
    struct key from, to;
    struct row row;
    int rc;
    set_range(call, &from, &to);
    sqlite3_stmt *statement = with_range(&sqlite->writer, &from, &to);
    while ((rc = remove_first(sqlite, statement, &row)) == SQLITE_OK)
        call->entries += !ended(&row);
    return done(rc);
}

static enum store_status sqlite_clear(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    call->entries = 0;
    if (!usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    int rc = begin(sqlite);
    if (rc == SQLITE_OK)
        rc = call->key_length == 0 ? clear_all(sqlite, call) : clear_range(sqlite, call);
    return rc == SQLITE_OK ? STORE_OK : fail_batch(sqlite, call, rc);
}

static enum store_status sqlite_persist(struct store *store, struct store_call *call)
{
    struct sqlite *sqlite = sqlite_of(store);
    if (!usable(sqlite))
        return fail_batch(sqlite, call, SQLITE_OK);
    sqlite->persist = true;
    call->durable = true;
    return STORE_OK;
}

static int drop_suspects(struct sqlite *sqlite)
{
    struct suspect suspect;
    struct row row;
    int rc = SQLITE_OK;
    while (rc == SQLITE_OK && take_suspect(sqlite, &suspect)) {
        const struct key *key = &suspect.key;
        rc = peek(sqlite, key->bytes, key->length, &row);
        if (rc == SQLITE_ROW && row.id == suspect.id)
            rc = remove_entry(sqlite, key->bytes, key->length, &row);
        rc = done(rc);
    }
    return rc;
}

/* Writes the log back to the database; SQLITE_BUSY where a reader still needs it. */
static int write_back(struct sqlite *sqlite, int mode)
{
    int64_t now = clock_now();
    if (now < sqlite->log_retry)
        return SQLITE_BUSY;
    sqlite3_busy_timeout(sqlite->writer.db, READER_WAIT_MS);
    int rc = sqlite3_wal_checkpoint_v2(sqlite->writer.db, NULL, mode, NULL, NULL);
    sqlite3_busy_timeout(sqlite->writer.db, BUSY_MS);
    if (rc == SQLITE_OK)
        sqlite->log_pages = 0;
    else
        sqlite->log_retry = now + LOG_RETRY_MS;
    return rc;
}

/* Opening. */

enum content { OURS, EMPTY, NEWER, FOREIGN, DAMAGED, UNUSABLE };

static int ask_once(sqlite3 *db, const char *text, int64_t *number)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, text, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = ask(statement, number);
    sqlite3_finalize(statement);
    return rc;
}

/* How many of our tables and indexes are there, as we would make them. */
static int count_ours(sqlite3 *db, int64_t *count)
{
    sqlite3_stmt *statement = NULL;
    int64_t same = 0;
    int rc = sqlite3_prepare_v2(db, "SELECT count(*) FROM sqlite_schema WHERE sql = ?1", -1,
                                &statement, NULL);
    *count = 0;
    for (unsigned i = 0; i < SCHEMA_COUNT && rc == SQLITE_OK; i++) {
        sqlite3_bind_text(statement, 1, schema[i], -1, SQLITE_STATIC);
        rc = ask(statement, &same);
        *count += same;
    }
    sqlite3_finalize(statement);
    return rc;
}

/*
 * What the file holds. A header that does not fit tables that are ours is damaged; so is anything
 * that says it is ours and is not. All else is left alone.
 */
static int examine(sqlite3 *db, enum content *content)
{
    int64_t application = 0, version = 0, all = 0, ours = 0;
    int rc = ask_once(db, "PRAGMA application_id", &application);
    if (rc == SQLITE_OK)
        rc = ask_once(db, "PRAGMA user_version", &version);
    if (rc == SQLITE_OK)
        rc = ask_once(db, "SELECT count(*) FROM sqlite_schema WHERE sql IS NOT NULL", &all);
    if (rc == SQLITE_OK)
        rc = count_ours(db, &ours);
    bool named = application == APPLICATION_ID;
    if (ours == SCHEMA_COUNT && all == ours)
        *content = named && version == SCHEMA_VERSION ? OURS : DAMAGED;
    else if (named && version > SCHEMA_VERSION)
        *content = NEWER;
    else if (all == 0 && (named || application == 0))
        *content = EMPTY;
    else
        *content = named ? DAMAGED : FOREIGN;
    return rc;
}

static int execute_all(sqlite3 *db, const char *const *texts, unsigned count)
{
    int rc = SQLITE_OK;
    for (unsigned i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_exec(db, texts[i], NULL, NULL, NULL);
    return rc;
}

/* All of it in one transaction: what is cut short is an empty file. */
static int create(sqlite3 *db)
{
    static const char *const before[] = {
        ("PRAGMA page_size=" PAGE_SIZE),
        "PRAGMA auto_vacuum=INCREMENTAL",
        "BEGIN IMMEDIATE",
    };
    char header[128];
    struct totals totals = {0};
    int rc = execute_all(db, before, 3);
    if (rc == SQLITE_OK)
        rc = execute_all(db, schema, SCHEMA_COUNT);
    snprintf(header, sizeof(header),
             "INSERT INTO meta VALUES(1, 0, 0, 0, %lld, 0); "
             "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT",
             (long long)totals_sum(&totals, 0), APPLICATION_ID, SCHEMA_VERSION);
    return rc == SQLITE_OK ? sqlite3_exec(db, header, NULL, NULL, NULL) : rc;
}

/*
 * An entry that ends later than its whole time to live from now was stored by a clock that was
 * ahead. There can be none unless the clock is behind what it was when the file was last written.
 */
static int clamp_ends(sqlite3 *db, int64_t last_written)
{
    int64_t wall = clock_to_wall(clock_now());
    char text[160];
    if (wall >= last_written)
        return SQLITE_OK;
    snprintf(text, sizeof(text),
             "UPDATE entry SET expires = %lld + ttl WHERE expires > %lld AND expires > %lld + ttl",
             (long long)wall, (long long)wall, (long long)wall);
    return sqlite3_exec(db, text, NULL, NULL, NULL);
}

static int load_totals(struct sqlite *sqlite, int64_t *last_written)
{
    sqlite3_stmt *statement = NULL;
    int rc =
        sqlite3_prepare_v2(sqlite->writer.db, "SELECT entries, bytes, tick, sum, wall FROM meta",
                           -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    int64_t tick = sqlite3_column_int64(statement, 2);
    sqlite->totals.entries = sqlite3_column_int64(statement, 0);
    sqlite->totals.bytes = sqlite3_column_int64(statement, 1);
    if (rc == SQLITE_DONE || (rc == SQLITE_ROW && sqlite3_column_int64(statement, 3) !=
                                                      totals_sum(&sqlite->totals, tick)))
        rc = SQLITE_CORRUPT;
    *last_written = sqlite3_column_int64(statement, 4);
    sqlite3_finalize(statement);
    atomic_store(&sqlite->tick, tick);
    publish_totals(sqlite);
    return done(rc);
}

static int prepare(struct connection *connection, unsigned count)
{
    int rc = SQLITE_OK;
    for (unsigned i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v3(connection->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                &connection->statements[i], NULL);
    return rc;
}

static void disconnect(struct connection *connection)
{
    for (unsigned i = 0; i < STATEMENTS; i++)
        sqlite3_finalize(connection->statements[i]);
    sqlite3_close(connection->db);
    *connection = (struct connection){0};
}

static int connect(struct sqlite *sqlite, struct connection *connection, int flags)
{
    int rc = sqlite3_open_v2(sqlite->path, &connection->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK)
        return rc;
    sqlite3_extended_result_codes(connection->db, 1);
    return sqlite3_busy_timeout(connection->db, BUSY_MS);
}

static int connect_reader(struct sqlite *sqlite, struct connection *reader)
{
    static const char *const settings[] = {
        ("PRAGMA cache_size=" READER_CACHE), "PRAGMA mmap_size=0",        "PRAGMA query_only=1",
        "PRAGMA wal_autocheckpoint=0",       "PRAGMA cell_size_check=ON",
    };
    int rc = connect(sqlite, reader, SQLITE_OPEN_READONLY);
    if (rc == SQLITE_OK)
        rc = sqlite3_db_config(reader->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (rc == SQLITE_OK)
        rc = execute_all(reader->db, settings, sizeof(settings) / sizeof(settings[0]));
    return rc == SQLITE_OK ? prepare(reader, READER_STATEMENTS) : rc;
}

static int note_log(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct sqlite *sqlite = arg;
    (void)db;
    (void)name;
    sqlite->log_pages = pages;
    return SQLITE_OK;
}

/* Readers wait for nobody only with a write-ahead log, which some file systems can't have. */
static int use_log(sqlite3 *db)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, "PRAGMA journal_mode=WAL", -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    const unsigned char *mode = sqlite3_column_text(statement, 0);
    if (rc == SQLITE_ROW && (mode == NULL || strcmp((const char *)mode, "wal") != 0))
        rc = SQLITE_CANTOPEN;
    sqlite3_finalize(statement);
    return done(rc);
}

/* Sets the writer's connection up for a file that is ours. */
static int configure_writer(struct sqlite *sqlite)
{
    static const char *const settings[] = {
        "PRAGMA synchronous=NORMAL",
        "PRAGMA wal_autocheckpoint=0",
        ("PRAGMA journal_size_limit=" LOG_BYTES),
        ("PRAGMA cache_size=" WRITER_CACHE),
        "PRAGMA mmap_size=0",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA secure_delete=OFF",
        "PRAGMA cell_size_check=ON",
    };
    sqlite3 *db = sqlite->writer.db;
    int64_t last_written = 0;
    int rc = use_log(db);
    if (rc == SQLITE_OK)
        rc = execute_all(db, settings, sizeof(settings) / sizeof(settings[0]));
    sqlite3_wal_hook(db, note_log, sqlite);
    if (rc == SQLITE_OK)
        rc = load_totals(sqlite, &last_written);
    if (rc == SQLITE_OK)
        rc = clamp_ends(db, last_written);
    if (rc == SQLITE_OK)
        rc = prepare(&sqlite->writer, STATEMENTS);
    sqlite->log_pages = 1; /* what a run before this one may have left */
    sqlite->unsynced = true;
    sqlite->sync_failed = false;
    return rc;
}

/* Opens every connection, the writer's first: it finds out what there is, and makes what is not. */
static int open_file(struct sqlite *sqlite, enum content *content)
{
    int rc = connect(sqlite, &sqlite->writer, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    *content = UNUSABLE;
    if (rc == SQLITE_OK)
        rc = examine(sqlite->writer.db, content);
    if (rc == SQLITE_OK && *content == EMPTY) {
        rc = create(sqlite->writer.db);
        *content = OURS;
    }
    if (rc == SQLITE_OK && *content == OURS)
        rc = configure_writer(sqlite);
    for (unsigned i = 0; i < READERS && rc == SQLITE_OK && *content == OURS; i++)
        rc = connect_reader(sqlite, &sqlite->readers[i].connection);
    bool writable = (rc & 0xff) == SQLITE_READONLY && access(sqlite->path, W_OK) == 0;
    if (rc != SQLITE_OK)
        *content = is_damage(rc) || writable ? DAMAGED : UNUSABLE;
    return rc;
}

/* Why the file can't be used, before its connections are closed. */
static void explain(struct sqlite *sqlite, enum content content, int rc, char *why, size_t size)
{
    int error = sqlite3_system_errno(sqlite->writer.db);
    if (content == NEWER)
        snprintf(why, size,
                 "%s was written by a newer version of this program; use that, "
                 "or another directory",
                 sqlite->path);
    else if (content == FOREIGN)
        snprintf(why, size, "%s is a database of another program; use another directory",
                 sqlite->path);
    else if (content == DAMAGED)
        snprintf(why, size, "%s is damaged (%s)", sqlite->path, sqlite3_errstr(rc));
    else
        snprintf(why, size, "can't open the database %s: %s%s%s", sqlite->path, sqlite3_errstr(rc),
                 error != 0 ? ", " : "", error != 0 ? strerror(error) : "");
}

static void disconnect_all(struct sqlite *sqlite)
{
    for (unsigned i = 0; i < READERS; i++)
        disconnect(&sqlite->readers[i].connection);
    disconnect(&sqlite->writer);
}

/*
 * Renames the files of a damaged database, none of which is open, to cache.db.damaged and so on.
 * The log goes first: without it an old database is whole or seen to be damaged, but a new one that
 * finds an old log would take it for its own.
 */
static bool set_aside(struct sqlite *sqlite, char *why, size_t size)
{
    static const char *const parts[] = {"-wal", "-shm", ""};
    char from[PATH_MAX], to[PATH_MAX];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(from, sizeof(from), "%s%s", sqlite->path, parts[i]);
        snprintf(to, sizeof(to), "%s.damaged%s", sqlite->path, parts[i]);
        if ((unlink(to) != 0 || rename(from, to) != 0) && errno != ENOENT) {
            snprintf(why, size, "can't rename %s to %s: %s", from, to, strerror(errno));
            return false;
        }
    }
    return true;
}

static bool open_database(struct sqlite *sqlite, char *why, size_t size)
{
    enum content content = DAMAGED;
    for (unsigned attempt = 0; attempt < 2 && content == DAMAGED; attempt++) {
        int rc = open_file(sqlite, &content);
        if (content == OURS)
            return true;
        explain(sqlite, content, rc, why, size);
        disconnect_all(sqlite);
        if (content == DAMAGED && !set_aside(sqlite, why, size))
            return false;
        if (content == DAMAGED)
            log_warning("%s; it is kept as %s.damaged, and the cache begins empty", why,
                        sqlite->path);
    }
    return false;
}

/* Replaces a damaged database by an empty one, while no reader reads. */
static bool replace(struct sqlite *sqlite)
{
    char why[1024];
    if (clock_now() < sqlite->open_retry)
        return false;
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_lock(&sqlite->readers[i].lock);
    disconnect_all(sqlite);
    memset(sqlite->uses, 0, sizeof(sqlite->uses));
    sqlite->uses_noted = 0;
    sqlite->suspects_noted = 0;
    bool replaced = set_aside(sqlite, why, sizeof(why)) && open_database(sqlite, why, sizeof(why));
    atomic_store(&sqlite->damaged, !replaced);
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_unlock(&sqlite->readers[i].lock);
    sqlite->open_retry = clock_now() + (replaced ? 0 : RETRY_MS);
    if (replaced)
        log_warning("%s: replaced by an empty database; the damaged one is kept as %s.damaged",
                    sqlite->path, sqlite->path);
    else
        log_error("%s; trying again", why);
    return replaced;
}

static void free_sqlite(struct sqlite *sqlite)
{
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_destroy(&sqlite->readers[i].lock);
    pthread_mutex_destroy(&sqlite->notes);
    free(sqlite->path);
    free(sqlite);
}

/* Absolute, for what the daemon may do to its working directory later. */
static char *database_path(const char *directory)
{
    char *path = NULL, *absolute = realpath(directory, NULL);
    if (absolute == NULL || asprintf(&path, "%s/cache.db", absolute) < 0)
        path = NULL;
    free(absolute);
    return path;
}

/* SQLite's bound on a row leaves so much for the value. */
static bool check_limit(struct sqlite *sqlite, const struct config *config, char *why, size_t size)
{
    int limit = sqlite3_limit(sqlite->writer.db, SQLITE_LIMIT_LENGTH, -1);
    sqlite->max_length = (uint64_t)limit - MESSAGE_KEY_MAX - ENTRY_OVERHEAD;
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
    if (sqlite == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    for (unsigned i = 0; i < READERS; i++)
        pthread_mutex_init(&sqlite->readers[i].lock, NULL);
    pthread_mutex_init(&sqlite->notes, NULL);
    sqlite->path = database_path(config->directory);
    bool opened = false;
    if (sqlite->path == NULL)
        snprintf(why, size, "can't use the directory %s: %s", config->directory, strerror(errno));
    else
        opened = open_database(sqlite, why, size) && check_limit(sqlite, config, why, size);
    if (opened)
        return &sqlite->store;
    disconnect_all(sqlite);
    free_sqlite(sqlite);
    return NULL;
}

/*
 * Upkeep: each step does what there is to do of its kind for a few milliseconds, in a transaction
 * that its caller commits. SQLITE_ROW: there is more of it.
 */

static bool is_quiet(const struct sqlite *sqlite)
{
    return clock_now() - sqlite->written >= QUIET_MS;
}

static int empty_long_log(struct sqlite *sqlite)
{
    int rc = sqlite->log_pages >= LOG_PAGES ? write_back(sqlite, SQLITE_CHECKPOINT_RESTART) : 0;
    return rc == SQLITE_BUSY ? SQLITE_OK : rc;
}

static int drop_ended(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    sqlite3_stmt *statement = with_id(&sqlite->writer, ENDED_FIRST, clock_to_wall(clock_now()));
    struct row row;
    int rc;
    while ((rc = remove_first(sqlite, statement, &row)) == SQLITE_OK) {
        if (clock_now() >= until)
            return SQLITE_ROW;
    }
    return done(rc);
}

static int evict(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    int rc = SQLITE_OK;
    while (rc == SQLITE_OK && charge(sqlite) > max_size(sqlite)) {
        if (clock_now() >= until)
            return SQLITE_ROW;
        rc = evict_one(sqlite);
    }
    return rc;
}

static unsigned uses_noted(struct sqlite *sqlite)
{
    pthread_mutex_lock(&sqlite->notes);
    unsigned noted = sqlite->uses_noted;
    pthread_mutex_unlock(&sqlite->notes);
    return noted;
}

/* Last uses wait until there are many of them, or nothing else is to be done. */
static int write_uses(struct sqlite *sqlite)
{
    int64_t until = clock_now() + STEP_MS;
    unsigned noted = uses_noted(sqlite);
    int rc = SQLITE_OK;
    if (noted < USES / 2 && !is_quiet(sqlite))
        return SQLITE_OK;
    for (unsigned n = 0; n < USES && noted > 0 && rc == SQLITE_OK; n++) {
        struct use use = take_use(sqlite, sqlite->next_use++ % USES, 0);
        if (use.id != 0)
            rc = set_use(sqlite, &use);
        if (use.id != 0 && clock_now() >= until)
            return SQLITE_ROW;
    }
    return rc;
}

/* Gives free pages back from the end of the file, except a few that the next PUTs will need. */
static int shrink(struct sqlite *sqlite)
{
    struct connection *writer = &sqlite->writer;
    int64_t spare = 0, pages = 0;
    int rc = ask(writer->statements[FREE_PAGES], &spare);
    if (rc == SQLITE_OK)
        rc = ask(writer->statements[PAGES], &pages);
    if (rc != SQLITE_OK || spare <= (pages - spare) / 32)
        return rc;
    rc = run(writer->statements[VACUUM]);
    sqlite->written = clock_now();
    return rc == SQLITE_OK ? SQLITE_ROW : rc;
}

static int empty_quiet_log(struct sqlite *sqlite)
{
    bool empty = sqlite->log_pages == 0;
    int rc = !empty && is_quiet(sqlite) ? write_back(sqlite, SQLITE_CHECKPOINT_TRUNCATE) : 0;
    return rc == SQLITE_BUSY ? SQLITE_OK : rc;
}

/* Milliseconds until there may be something to do, as pool_hooks.idle. */
static int until_next(struct sqlite *sqlite)
{
    int64_t elapsed = clock_now() - sqlite->written;
    if (sqlite->log_pages > 0 || uses_noted(sqlite) > 0)
        return elapsed < QUIET_MS ? (int)(QUIET_MS - elapsed) : LOG_RETRY_MS;
    sqlite3_stmt *statement = with_id(&sqlite->writer, ENDED_FIRST, INT64_MAX);
    int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_ROW ? ENDS_MS : -1;
}

static int sqlite_upkeep(struct store *store)
{
    static int (*const steps[])(struct sqlite *) = {
        empty_long_log, drop_suspects, drop_ended, evict, write_uses, shrink, empty_quiet_log,
    };
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    int more = SQLITE_OK, rc = SQLITE_OK;
    if (atomic_load(&sqlite->damaged))
        return replace(sqlite) ? 0 : RETRY_MS;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        more = steps[i](sqlite);
        rc = done(more) == SQLITE_OK ? commit(sqlite) : more;
        if (rc != SQLITE_OK || more == SQLITE_ROW)
            break;
    }
    if (rc == SQLITE_OK)
        return more == SQLITE_ROW ? 0 : until_next(sqlite);
    fail(sqlite, &sqlite->writer, rc, &unused);
    roll_back(sqlite);
    return RETRY_MS;
}

/* A batch. */

static void sqlite_begin(struct store *store)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    sqlite->failed = false;
    sqlite->persist = false;
    if (atomic_load(&sqlite->damaged) && !replace(sqlite))
        return;
    int rc = SQLITE_OK;
    if (sqlite->log_pages >= LOG_PAGES_MAX)
        rc = write_back(sqlite, SQLITE_CHECKPOINT_RESTART);
    if (rc == SQLITE_OK || rc == SQLITE_BUSY)
        rc = drop_suspects(sqlite);
    if (rc != SQLITE_OK)
        fail_batch(sqlite, &unused, rc);
}

static bool sqlite_commit(struct store *store, struct store_call *failed)
{
    struct sqlite *sqlite = sqlite_of(store);
    int rc = SQLITE_OK;
    if (usable(sqlite))
        rc = commit(sqlite);
    if (rc == SQLITE_OK && usable(sqlite) && sqlite->persist)
        rc = sync_commits(sqlite);
    if (rc == SQLITE_OK && usable(sqlite))
        return true;
    fail_batch(sqlite, failed, rc);
    return false;
}

static void sqlite_close(struct store *store)
{
    struct sqlite *sqlite = sqlite_of(store);
    struct store_call unused;
    if (!atomic_load(&sqlite->damaged)) {
        sqlite->written = 0;
        int rc = write_uses(sqlite);
        rc = done(rc) == SQLITE_OK ? commit(sqlite) : rc;
        if (rc != SQLITE_OK)
            fail_batch(sqlite, &unused, rc);
    }
    disconnect_all(sqlite);
    free_sqlite(sqlite);
}

const struct store_ops store_sqlite = {
    .name = "sqlite",
    .title = "Sqlite3",
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
