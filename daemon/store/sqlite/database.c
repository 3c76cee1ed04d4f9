#include "database.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    APPLICATION_ID = 0x4C696361,
    VERSION = 3,    /* 1 and 2 had a table with keys */
    BUSY_MS = 2000, /* to wait for a foreign program, the sqlite3 shell say */
    READERS_MS = 20 /* to wait for readers at a checkpoint */
};

static const char *const tables[] = {
    "CREATE TABLE state(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
    "CREATE TABLE entry(place INTEGER PRIMARY KEY, head BLOB NOT NULL)",
    "CREATE TABLE value(place INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
};

enum { TABLES = sizeof(tables) / sizeof(tables[0]) };

/* SQL_SEARCH looks at every row, not where the row should be. */
static const char *const sql[SQL_STATEMENTS] = {
    [SQL_READ] = "SELECT head, bytes FROM entry JOIN value USING(place) WHERE place = ?1",
    [SQL_HEADS] = "SELECT place, head FROM entry WHERE place > ?1 ORDER BY place",
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_ADD_ENTRY] = "INSERT INTO entry(place, head) VALUES(?1, ?2)",
    [SQL_ADD_VALUE] = "INSERT INTO value(place, bytes) VALUES(?1, ?2)",
    [SQL_REMOVE_ENTRY] = "DELETE FROM entry WHERE place = ?1",
    [SQL_REMOVE_VALUE] = "DELETE FROM value WHERE place = ?1",
    [SQL_SEARCH] = "SELECT count(*) FROM entry WHERE +place = ?1",
    [SQL_SET_STATE] = "INSERT OR REPLACE INTO state(id, bytes) VALUES(1, ?1)",
    [SQL_STATE] = "SELECT bytes FROM state WHERE id = 1",
    [SQL_PAGES] = "PRAGMA page_count",
    [SQL_FREE_PAGES] = "PRAGMA freelist_count",
    [SQL_VACUUM] = "PRAGMA incremental_vacuum(64)",
};

static int execute(sqlite3 *db, const char *const *texts, size_t count)
{
    int rc = SQLITE_OK;
    for (size_t i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_exec(db, texts[i], NULL, NULL, NULL);
    return rc;
}

static int done(int rc)
{
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* SQLite also says "full" of a page number beyond all bounds: then no system call has failed. */
int sqlite_db_run(sqlite3_stmt *statement)
{
    int rc;
    errno = 0;
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW)
        ;
    if (rc == SQLITE_FULL && errno == 0)
        rc = SQLITE_CORRUPT;
    sqlite3_reset(statement);
    return done(rc);
}

int sqlite_db_ask(sqlite3_stmt *statement, uint64_t *number)
{
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *number = (uint64_t)sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE ? SQLITE_CORRUPT : done(rc);
}

sqlite3_stmt *sqlite_db_with(struct sqlite_connection *connection, enum sqlite_statement which,
                             uint64_t number)
{
    sqlite3_stmt *statement = connection->statements[which];
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)number);
    return statement;
}

static int ask_text(sqlite3 *db, const char *text, uint64_t *number)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, text, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite_db_ask(statement, number);
    sqlite3_finalize(statement);
    return rc;
}

static int prepare(struct sqlite_connection *connection, unsigned count)
{
    int rc = SQLITE_OK;
    for (unsigned i = 0; i < count && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v3(connection->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                &connection->statements[i], NULL);
    return rc;
}

static int connect_to(struct sqlite_connection *connection, const char *path, int flags)
{
    *connection = (struct sqlite_connection){0};
    int rc = sqlite3_open_v2(path, &connection->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK)
        return rc;
    sqlite3_extended_result_codes(connection->db, 1);
    sqlite3_busy_timeout(connection->db, BUSY_MS);
    return sqlite3_db_config(connection->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
}

void sqlite_db_close(struct sqlite_connection *connection)
{
    for (unsigned i = 0; i < SQL_STATEMENTS; i++)
        sqlite3_finalize(connection->statements[i]);
    sqlite3_close(connection->db);
    *connection = (struct sqlite_connection){0};
}

/*
 * synchronous=NORMAL: a commit syncs nothing, a checkpoint syncs the log before it copies and the
 * database after, and a log that begins anew has its head synced; OFF would leave these out too,
 * and a power loss could tear the database. A memory map would turn a bad disk into a SIGBUS.
 */
static int set_up(struct sqlite_connection *connection)
{
    static const char *const settings[] = {
        "PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0", "PRAGMA cache_size=-16384",
        "PRAGMA mmap_size=0",        "PRAGMA temp_store=MEMORY",    "PRAGMA secure_delete=OFF",
        "PRAGMA cell_size_check=ON",
    };
    if (sqlite3_db_readonly(connection->db, "main"))
        return SQLITE_READONLY;
    return execute(connection->db, settings, sizeof(settings) / sizeof(settings[0]));
}

int sqlite_db_open_reader(struct sqlite_connection *connection, const char *path)
{
    static const char *const settings[] = {
        "PRAGMA query_only=1",     "PRAGMA wal_autocheckpoint=0", "PRAGMA cell_size_check=ON",
        "PRAGMA cache_size=-2048", "PRAGMA mmap_size=0",
    };
    int rc = connect_to(connection, path, SQLITE_OPEN_READONLY);
    if (rc == SQLITE_OK)
        rc = execute(connection->db, settings, sizeof(settings) / sizeof(settings[0]));
    return rc == SQLITE_OK ? prepare(connection, SQL_READER_STATEMENTS) : rc;
}

/* How many of our tables the file has, as we make them. */
static int count_ours(sqlite3 *db, uint64_t *count)
{
    sqlite3_stmt *statement = NULL;
    uint64_t same = 0;
    int rc = sqlite3_prepare_v2(db, "SELECT count(*) FROM sqlite_schema WHERE sql = ?1", -1,
                                &statement, NULL);
    *count = 0;
    for (size_t i = 0; i < TABLES && rc == SQLITE_OK; i++) {
        sqlite3_bind_text(statement, 1, tables[i], -1, SQLITE_STATIC);
        rc = sqlite_db_ask(statement, &same);
        *count += same;
    }
    sqlite3_finalize(statement);
    return rc;
}

/* What errors say of a file that is opened: a damaged head can also make SQLite believe that it
 * must not write to what it may write to. */
static enum sqlite_content content_after(sqlite3 *db, const char *path, int rc)
{
    bool writable = (rc & 0xFF) == SQLITE_READONLY && access(path, W_OK) == 0;
    bool sick = (rc & 0xFF) != SQLITE_IOERR && (rc & 0xFF) != SQLITE_CANTOPEN &&
                (rc & 0xFF) != SQLITE_READONLY && (rc & 0xFF) != SQLITE_PERM &&
                (rc & 0xFF) != SQLITE_AUTH && sqlite_db_is_lost(db, rc);
    return writable || sick || rc == SQLITE_IOERR_SHORT_READ ? DB_DAMAGED : DB_UNUSABLE;
}

/* A header that does not fit tables that are ours is damaged, and so are our tables in part. */
static int examine(sqlite3 *db, enum sqlite_content *content)
{
    uint64_t application = 0, version = 0, all = 0, ours = 0;
    int rc = ask_text(db, "PRAGMA application_id", &application);
    if (rc == SQLITE_OK)
        rc = ask_text(db, "PRAGMA user_version", &version);
    if (rc == SQLITE_OK)
        rc = ask_text(db, "SELECT count(*) FROM sqlite_schema WHERE sql IS NOT NULL", &all);
    if (rc == SQLITE_OK)
        rc = count_ours(db, &ours);
    bool named = application == APPLICATION_ID;
    if (all == 0 && (named || application == 0) && version <= VERSION)
        *content = DB_NONE;
    else if (ours > 0 || (named && version == VERSION))
        *content =
            named && version == VERSION && ours == TABLES && all == ours ? DB_OURS : DB_DAMAGED;
    else if (named)
        *content = version > VERSION ? DB_NEWER : DB_OLDER;
    else
        *content = DB_FOREIGN;
    return rc;
}

enum sqlite_content sqlite_db_open(struct sqlite_connection *connection, const char *path, int *rc)
{
    enum sqlite_content content = DB_NONE;
    *rc = SQLITE_OK;
    *connection = (struct sqlite_connection){0};
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return DB_NONE;
    *rc = connect_to(connection, path, SQLITE_OPEN_READWRITE);
    if (*rc == SQLITE_OK)
        *rc = examine(connection->db, &content);
    if (*rc == SQLITE_OK && content == DB_OURS)
        *rc = set_up(connection);
    if (*rc == SQLITE_OK && content == DB_OURS)
        *rc = prepare(connection, SQL_STATEMENTS);
    return *rc == SQLITE_OK ? content : content_after(connection->db, path, *rc);
}

static int use_log(sqlite3 *db)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, "PRAGMA journal_mode=WAL", -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    const unsigned char *mode = rc == SQLITE_ROW ? sqlite3_column_text(statement, 0) : NULL;
    if (rc == SQLITE_ROW && (mode == NULL || strcmp((const char *)mode, "wal") != 0))
        rc = SQLITE_CANTOPEN;
    sqlite3_finalize(statement);
    return done(rc);
}

/* The tables come in one transaction: a creation that is cut short leaves an empty file.
 * auto_vacuum costs nothing that could be measured. */
int sqlite_db_create(struct sqlite_connection *connection, const char *path,
                     struct sqlite_state *state, uint64_t seed)
{
    char before[96], header[96];
    snprintf(before, sizeof(before), "PRAGMA page_size=%d; PRAGMA auto_vacuum=INCREMENTAL",
             DB_PAGE);
    snprintf(header, sizeof(header), "PRAGMA application_id=%d; PRAGMA user_version=%d",
             APPLICATION_ID, VERSION);
    int rc = connect_to(connection, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(connection->db, before, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = use_log(connection->db);
    if (rc == SQLITE_OK)
        rc = set_up(connection);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(connection->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = execute(connection->db, tables, TABLES);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(connection->db, header, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = prepare(connection, SQL_STATEMENTS);
    if (rc == SQLITE_OK)
        rc = sqlite_db_set_state(connection, state, seed);
    return rc == SQLITE_OK ? sqlite_db_run(connection->statements[SQL_COMMIT]) : rc;
}

/* The log goes first: a database without its log is whole or seen to be damaged, but a new one that
 * finds an old log would take it for its own. */
int sqlite_db_discard(const char *path, bool aside)
{
    static const char *const parts[] = {"-wal", "-shm", "-journal", ""};
    char from[PATH_MAX], to[PATH_MAX];
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        int length = snprintf(from, sizeof(from), "%s%s", path, parts[i]);
        if (length >= (int)sizeof(from) ||
            snprintf(to, sizeof(to), "%s.damaged%s", path, parts[i]) >= (int)sizeof(to))
            return ENAMETOOLONG;
        if (aside && unlink(to) != 0 && errno != ENOENT)
            return errno;
        if ((aside ? rename(from, to) : unlink(from)) != 0 && errno != ENOENT)
            return errno;
    }
    return 0;
}

static uint64_t state_check(const struct sqlite_state *state, uint64_t seed)
{
    return XXH3_64bits_withSeed(state, offsetof(struct sqlite_state, check), seed);
}

int sqlite_db_set_state(struct sqlite_connection *connection, struct sqlite_state *state,
                        uint64_t seed)
{
    sqlite3_stmt *statement = connection->statements[SQL_SET_STATE];
    state->check = state_check(state, seed);
    sqlite3_bind_blob(statement, 1, state, sizeof(*state), SQLITE_STATIC);
    return sqlite_db_run(statement);
}

int sqlite_db_state(struct sqlite_connection *connection, struct sqlite_state *state, uint64_t seed)
{
    sqlite3_stmt *statement = connection->statements[SQL_STATE];
    int rc = sqlite3_step(statement);
    const void *bytes = rc == SQLITE_ROW ? sqlite3_column_blob(statement, 0) : NULL;
    bool sound = bytes != NULL && sqlite3_column_bytes(statement, 0) == sizeof(*state);
    if (sound)
        memcpy(state, bytes, sizeof(*state));
    sound = sound && state->check == state_check(state, seed);
    sqlite3_reset(statement);
    return done(rc) == SQLITE_OK && !sound ? SQLITE_CORRUPT : done(rc);
}

/* The log's file, as SQLite has it open; NULL if it has not. */
static sqlite3_file *log_file(sqlite3 *db)
{
    sqlite3_file *file = NULL;
    int rc = sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &file);
    return rc == SQLITE_OK && file != NULL && file->pMethods != NULL ? file : NULL;
}

/* This is what a commit does with synchronous=FULL, without the commit: it needs no room. SQLite
 * syncs the folder too if the log's file is new. */
int sqlite_db_sync_log(struct sqlite_connection *connection)
{
    sqlite3_file *file = log_file(connection->db);
    return file != NULL ? file->pMethods->xSync(file, SQLITE_SYNC_NORMAL) : SQLITE_IOERR_FSYNC;
}

int sqlite_db_checkpoint(struct sqlite_connection *connection, uint64_t log_bytes, bool cut)
{
    int mode = cut ? SQLITE_CHECKPOINT_TRUNCATE : SQLITE_CHECKPOINT_RESTART;
    char limit[64];
    snprintf(limit, sizeof(limit), "PRAGMA journal_size_limit=%llu", (unsigned long long)log_bytes);
    int rc = sqlite3_exec(connection->db, limit, NULL, NULL, NULL);
    sqlite3_busy_timeout(connection->db, READERS_MS);
    if (rc == SQLITE_OK)
        rc = sqlite3_wal_checkpoint_v2(connection->db, NULL, mode, NULL, NULL);
    sqlite3_busy_timeout(connection->db, BUSY_MS);
    return rc;
}

/* The system's number for what has just failed. SQLite's own is lost where a COMMIT failed, but
 * each file knows its last. */
static int system_errno(sqlite3 *db)
{
    int error = sqlite3_system_errno(db);
    if (error == 0)
        sqlite3_file_control(db, "main", SQLITE_FCNTL_LAST_ERRNO, &error);
    sqlite3_file *file = error == 0 ? log_file(db) : NULL;
    if (file != NULL)
        file->pMethods->xFileControl(file, SQLITE_FCNTL_LAST_ERRNO, &error);
    return error;
}

static bool is_want_of_room(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

int sqlite_db_errno(sqlite3 *db, int rc)
{
    int error = 0;
    switch (rc & 0xFF) {
    case SQLITE_OK:
        return 0;
    case SQLITE_FULL:
        return ENOSPC;
    case SQLITE_NOMEM:
        return ENOMEM;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return EBUSY;
    case SQLITE_TOOBIG:
        return EFBIG;
    case SQLITE_READONLY:
    case SQLITE_PERM:
        return EROFS;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        error = rc == SQLITE_IOERR_NOMEM ? ENOMEM : system_errno(db);
        break;
    default:
        break;
    }
    return error != 0 ? error : EIO;
}

bool sqlite_db_is_lost(sqlite3 *db, int rc)
{
    switch (rc & 0xFF) {
    case SQLITE_OK:
    case SQLITE_FULL:
    case SQLITE_NOMEM:
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_TOOBIG:
        return false;
    case SQLITE_IOERR:
        if (rc == SQLITE_IOERR_FSYNC || rc == SQLITE_IOERR_DIR_FSYNC)
            return true;
        return rc != SQLITE_IOERR_NOMEM && !is_want_of_room(system_errno(db));
    default:
        return true;
    }
}
