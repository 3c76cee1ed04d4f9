#include "sqlite_connection.h"

#include "../clock.h"
#include "sqlite_log.h"
#include "store.h"

#include <errno.h>
#include <string.h>

/* To wait for a foreign program, the sqlite3 shell say: our own connections never wait for a lock.
 */
enum { BUSY_MS = 2000 };

#define ROW "id, size, flags, expires, ttl, sum, key"

static const char *const sql[SQ_STATEMENTS] = {
    [SQ_FIND] = "SELECT " ROW " FROM entry WHERE key = ?1",
    [SQ_BYTES] = "SELECT bytes FROM value WHERE id = ?1",
    [SQ_ENDED_COUNT] = "SELECT count(*) FROM entry WHERE expires <= ?1",
    [SQ_RANGE] = "SELECT " ROW " FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key",
    [SQ_BEGIN] = "BEGIN IMMEDIATE",
    [SQ_COMMIT] = "COMMIT",
    [SQ_ROLLBACK] = "ROLLBACK",
    [SQ_META_SET] = "INSERT OR REPLACE INTO meta(id, entries, bytes, tick, sum, wall, hand)"
                    " VALUES(1, ?1, ?2, ?3, ?4, ?5, ?6)",
    [SQ_META] = "SELECT entries, bytes, tick, sum, wall, hand FROM meta",
    [SQ_ENTRY_ADD] = "INSERT INTO entry(key, id, size, flags, expires, ttl, sum)"
                     " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT(key) DO NOTHING",
    [SQ_VALUE_ADD] = "INSERT INTO value(id, key, bytes) VALUES(?1, ?2, ?3)",
    [SQ_ENTRY_DELETE] = "DELETE FROM entry WHERE key = ?1",
    [SQ_VALUE_DELETE] = "DELETE FROM value WHERE id = ?1",
    [SQ_USE_DELETE] = "DELETE FROM use WHERE id = ?1",
    [SQ_USE_SET] = "INSERT INTO use(id, used) SELECT id, ?2 FROM value WHERE id = ?1"
                   " AND NOT EXISTS(SELECT 1 FROM gone WHERE gone.id = value.id)"
                   " ON CONFLICT(id) DO UPDATE SET used = ?2",
    [SQ_USE_OLDEST] = "SELECT use.id, used, key FROM use LEFT JOIN value ON value.id = use.id"
                      " ORDER BY used LIMIT 1",
    [SQ_VALUES] = "SELECT id, EXISTS(SELECT 1 FROM use WHERE use.id = value.id)"
                  " OR EXISTS(SELECT 1 FROM gone WHERE gone.id = value.id), key"
                  " FROM value WHERE id > ?1 ORDER BY id",
    [SQ_ENDED_FIRST] = "SELECT " ROW " FROM entry WHERE expires <= ?1 ORDER BY expires LIMIT 1",
    [SQ_OTHERS] = "SELECT EXISTS(SELECT 1 FROM entry WHERE key < ?1)"
                  " OR EXISTS(SELECT 1 FROM entry WHERE key >= ?2)",
    [SQ_RANGE_DELETE] = "DELETE FROM entry WHERE key >= ?1 AND key <= ?2 AND id <= ?3",
    [SQ_GONE_ADD] = "INSERT INTO gone(id) VALUES(?1)",
    [SQ_GONE_FIRST] = "SELECT id FROM gone ORDER BY id LIMIT 1",
    [SQ_GONE_DELETE] = "DELETE FROM gone WHERE id = ?1",
    [SQ_ENTRIES_CLEAR] = "DELETE FROM entry",
    [SQ_VALUES_CLEAR] = "DELETE FROM value",
    [SQ_USES_CLEAR] = "DELETE FROM use",
    [SQ_GONE_CLEAR] = "DELETE FROM gone",
    [SQ_FREE_PAGES] = "PRAGMA freelist_count",
    [SQ_PAGES] = "PRAGMA page_count",
    [SQ_VACUUM] = "PRAGMA incremental_vacuum(64)",
};

static int open_connection(struct sq_connection *connection, const char *path, int flags,
                           const char *vfs)
{
    int rc = sqlite3_open_v2(path, &connection->db, flags | SQLITE_OPEN_NOMUTEX, vfs);
    if (rc != SQLITE_OK)
        return rc;
    sqlite3_extended_result_codes(connection->db, 1);
    return sqlite3_busy_timeout(connection->db, BUSY_MS);
}

int sq_connect_writer(struct sq_connection *connection, const char *path)
{
    return open_connection(connection, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                           sq_log_vfs());
}

int sq_connect_reader(struct sq_connection *connection, const char *path)
{
    static const char *const settings[] = {
        "PRAGMA query_only=1",     "PRAGMA wal_autocheckpoint=0", "PRAGMA cell_size_check=ON",
        "PRAGMA cache_size=-4096", "PRAGMA mmap_size=0",
    };
    int rc = open_connection(connection, path, SQLITE_OPEN_READONLY, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_db_config(connection->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (rc == SQLITE_OK)
        rc = sq_execute(connection->db, settings, sizeof(settings) / sizeof(settings[0]));
    return rc == SQLITE_OK ? sq_prepare(connection, SQ_READER_STATEMENTS) : rc;
}

int sq_prepare(struct sq_connection *connection, unsigned count)
{
    int rc = SQLITE_OK;
    for (unsigned i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v3(connection->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                &connection->statements[i], NULL);
    return rc;
}

void sq_disconnect(struct sq_connection *connection)
{
    for (unsigned i = 0; i < SQ_STATEMENTS; i++)
        sqlite3_finalize(connection->statements[i]);
    sqlite3_close(connection->db);
    *connection = (struct sq_connection){0};
}

int sq_execute(sqlite3 *db, const char *const *texts, size_t count)
{
    int rc = SQLITE_OK;
    for (size_t i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_exec(db, texts[i], NULL, NULL, NULL);
    return rc;
}

sqlite3_stmt *sq_with_id(struct sq_connection *connection, enum sq_statement which, int64_t id)
{
    sqlite3_stmt *statement = connection->statements[which];
    sqlite3_bind_int64(statement, 1, id);
    return statement;
}

sqlite3_stmt *sq_with_key(struct sq_connection *connection, enum sq_statement which,
                          const uint8_t *key, size_t length)
{
    sqlite3_stmt *statement = connection->statements[which];
    sqlite3_bind_blob(statement, 1, key, (int)length, SQLITE_STATIC);
    return statement;
}

sqlite3_stmt *sq_with_range(struct sq_connection *connection, enum sq_statement which,
                            const struct sq_key *from, const struct sq_key *to)
{
    sqlite3_stmt *statement = sq_with_key(connection, which, from->bytes, from->length);
    sqlite3_bind_blob(statement, 2, to->bytes, (int)to->length, SQLITE_STATIC);
    return statement;
}

int sq_done(int rc)
{
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Full, where no system call failed, is what SQLite says of a page number beyond all bounds. */
int sq_run(sqlite3_stmt *statement)
{
    int rc;
    errno = 0;
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW)
        ;
    if (rc == SQLITE_FULL && errno == 0)
        rc = SQLITE_CORRUPT;
    sqlite3_reset(statement);
    return sq_done(rc);
}

int sq_ask(sqlite3_stmt *statement, int64_t *number)
{
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *number = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE ? SQLITE_CORRUPT : sq_done(rc);
}

void sq_read_row(sqlite3_stmt *statement, struct sq_row *row)
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

bool sq_read_key(sqlite3_stmt *statement, int column, struct sq_key *key)
{
    const void *bytes = sqlite3_column_blob(statement, column);
    int length = sqlite3_column_bytes(statement, column);
    if (bytes == NULL || length > MESSAGE_KEY_MAX)
        return false;
    memcpy(key->bytes, bytes, (size_t)length);
    key->length = (uint32_t)length;
    return true;
}

int sq_find(struct sq_connection *connection, const uint8_t *key, size_t length, struct sq_row *row)
{
    sqlite3_stmt *statement = sq_with_key(connection, SQ_FIND, key, length);
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        sq_read_row(statement, row);
    return rc;
}

void sq_end_find(struct sq_connection *connection)
{
    sqlite3_reset(connection->statements[SQ_FIND]);
}

bool sq_ended(const struct sq_row *row)
{
    return row->expires != CLOCK_NEVER && store_expired(row->expires, clock_now());
}

/* No key has as many bytes as to, so all that have the prefix sort before it. */
void sq_range(const uint8_t *prefix, size_t length, struct sq_key *from, struct sq_key *to)
{
    memset(to->bytes, 0xFF, sizeof(to->bytes));
    for (size_t i = 0; i < length; i++)
        from->bytes[i] = to->bytes[i] = prefix[i];
    from->length = (uint32_t)length;
    to->length = sizeof(to->bytes);
}

bool sq_is_damage(int rc)
{
    switch (rc & 0xFF) {
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

sqlite3_file *sq_log(sqlite3 *db)
{
    sqlite3_file *log = NULL;
    int rc = sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
    return rc == SQLITE_OK && log != NULL && log->pMethods != NULL ? log : NULL;
}

/* What SQLite keeps of its own accord is lost where a COMMIT failed; each file knows its last. */
int sq_errno(sqlite3 *db)
{
    int error = sqlite3_system_errno(db);
    if (error == 0)
        sqlite3_file_control(db, "main", SQLITE_FCNTL_LAST_ERRNO, &error);
    sqlite3_file *log = error == 0 ? sq_log(db) : NULL;
    if (log != NULL)
        log->pMethods->xFileControl(log, SQLITE_FCNTL_LAST_ERRNO, &error);
    return error;
}

bool sq_is_full(sqlite3 *db, int rc)
{
    int error = (rc & 0xFF) == SQLITE_IOERR ? sq_errno(db) : 0;
    return (rc & 0xFF) == SQLITE_FULL || error == ENOSPC || error == EDQUOT || error == EFBIG;
}
