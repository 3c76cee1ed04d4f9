#include "sqlite_file.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { APPLICATION_ID = 0x4C696361, VERSION = 2, INCREMENTAL = 2 };

#define META                                                                                       \
    "CREATE TABLE meta(id INTEGER PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL, " \
    "tick INTEGER NOT NULL, sum INTEGER NOT NULL, wall INTEGER NOT NULL"

#define ENTRY                                                                                      \
    "CREATE TABLE entry(key BLOB PRIMARY KEY NOT NULL, id INTEGER NOT NULL, "                      \
    "size INTEGER NOT NULL, flags INTEGER NOT NULL, expires INTEGER, ttl INTEGER, "                \
    "sum INTEGER NOT NULL) WITHOUT ROWID"

#define GONE "CREATE TABLE gone(id INTEGER PRIMARY KEY)"

static const char *const tables[] = {
    META ", hand INTEGER NOT NULL)",
    ENTRY,
    "CREATE INDEX entry_end ON entry(expires, ttl) WHERE expires IS NOT NULL",
    "CREATE TABLE value(id INTEGER PRIMARY KEY, key BLOB NOT NULL, bytes BLOB NOT NULL)",
    "CREATE TABLE use(id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
    "CREATE INDEX use_order ON use(used)",
    GONE,
};

enum { TABLES = sizeof(tables) / sizeof(tables[0]) };

/* In version 1 every entry had a row in use. */
static const char *const from_version_1[] = {
    "BEGIN IMMEDIATE",
    "ALTER TABLE meta RENAME TO meta_1",
    META ", hand INTEGER NOT NULL)",
    "INSERT INTO meta SELECT id, entries, bytes, tick, sum, wall, tick FROM meta_1",
    "DROP TABLE meta_1",
    GONE,
    "PRAGMA user_version=2",
    "COMMIT",
};

static int ask(sqlite3 *db, const char *text, int64_t *number)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, text, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sq_ask(statement, number);
    sqlite3_finalize(statement);
    return rc;
}

/* How many of our tables and indexes that version has. */
static size_t tables_of(int64_t version)
{
    return version == 1 ? TABLES - 1 : TABLES;
}

/* How many of them are there, as that version makes them. */
static int count_ours(sqlite3 *db, int64_t version, int64_t *count)
{
    sqlite3_stmt *statement = NULL;
    int64_t same = 0;
    int rc = sqlite3_prepare_v2(db, "SELECT count(*) FROM sqlite_schema WHERE sql = ?1", -1,
                                &statement, NULL);
    *count = 0;
    for (size_t i = 0; i < tables_of(version) && rc == SQLITE_OK; i++) {
        const char *table = i == 0 && version == 1 ? META ")" : tables[i];
        sqlite3_bind_text(statement, 1, table, -1, SQLITE_STATIC);
        rc = sq_ask(statement, &same);
        *count += same;
    }
    sqlite3_finalize(statement);
    return rc;
}

/*
 * A header that does not fit tables that are ours is damaged; so is a file that says it is ours and
 * has other tables. Of what is not ours nothing is touched.
 */
static int examine(sqlite3 *db, enum sq_content *content, bool *empty, bool *older)
{
    int64_t application = 0, version = 0, all = 0, ours = 0;
    int rc = ask(db, "PRAGMA application_id", &application);
    if (rc == SQLITE_OK)
        rc = ask(db, "PRAGMA user_version", &version);
    if (rc == SQLITE_OK)
        rc = ask(db, "SELECT count(*) FROM sqlite_schema WHERE sql IS NOT NULL", &all);
    if (rc == SQLITE_OK)
        rc = count_ours(db, version, &ours);
    bool named = application == APPLICATION_ID;
    bool known = version == VERSION || version == 1;
    *empty = all == 0 && (named || application == 0) && version <= VERSION;
    *older = !*empty && version == 1;
    bool complete = ours == (int64_t)tables_of(version) && all == ours;
    if (*empty || (complete && named && known))
        *content = SQ_OURS;
    else if (complete)
        *content = SQ_DAMAGED;
    else if (named)
        *content = version > VERSION ? SQ_NEWER : SQ_DAMAGED;
    else
        *content = SQ_FOREIGN;
    return rc;
}

/*
 * All in one transaction: what is cut short is an empty file. Larger pages than 4 KB were measured
 * to write more for small values and to gain little for large ones.
 */
static int create(sqlite3 *db)
{
    static const char *const before[] = {
        "PRAGMA page_size=4096",
        "PRAGMA auto_vacuum=INCREMENTAL",
        "BEGIN IMMEDIATE",
    };
    char header[128];
    snprintf(header, sizeof(header), "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT",
             APPLICATION_ID, VERSION);
    int rc = sq_execute(db, before, sizeof(before) / sizeof(before[0]));
    if (rc == SQLITE_OK)
        rc = sq_execute(db, tables, TABLES);
    return rc == SQLITE_OK ? sqlite3_exec(db, header, NULL, NULL, NULL) : rc;
}

/* Readers wait for nobody only with a write-ahead log, which some file systems can't have. */
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
    return sq_done(rc);
}

/*
 * The connection checkpoints when it is told to. Deleted bytes need not be overwritten. A memory
 * map was measured to gain a tenth, for which a bad disk would end the daemon with a SIGBUS.
 */
static int set_up(sqlite3 *db)
{
    static const char *const settings[] = {
        "PRAGMA synchronous=NORMAL",
        "PRAGMA wal_autocheckpoint=0",
        "PRAGMA journal_size_limit=134217728",
        "PRAGMA cache_size=-16384",
        "PRAGMA mmap_size=0",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA secure_delete=OFF",
        "PRAGMA cell_size_check=ON",
    };
    int64_t vacuum = 0;
    int rc = sqlite3_db_readonly(db, "main") ? SQLITE_READONLY : use_log(db);
    if (rc == SQLITE_OK)
        rc = sq_execute(db, settings, sizeof(settings) / sizeof(settings[0]));
    if (rc == SQLITE_OK)
        rc = ask(db, "PRAGMA auto_vacuum", &vacuum);
    /* A CLEAR that was cut short may have left another; on a full disk there is no room to set it.
     */
    if (rc == SQLITE_OK && vacuum != INCREMENTAL)
        rc = sqlite3_exec(db, "PRAGMA auto_vacuum=INCREMENTAL", NULL, NULL, NULL);
    return rc;
}

int sq_file_open(struct sq_connection *connection, const char *path, enum sq_content *content)
{
    bool empty = false, older = false;
    int rc = sq_connect_writer(connection, path);
    if (rc == SQLITE_OK)
        rc = examine(connection->db, content, &empty, &older);
    if (rc == SQLITE_OK && *content != SQ_OURS)
        return rc;
    if (rc == SQLITE_OK && empty)
        rc = create(connection->db);
    if (rc == SQLITE_OK && older)
        rc = sq_execute(connection->db, from_version_1,
                        sizeof(from_version_1) / sizeof(from_version_1[0]));
    if (rc == SQLITE_OK)
        rc = set_up(connection->db);
    if (rc == SQLITE_OK)
        rc = sq_prepare(connection, SQ_STATEMENTS);
    *content = rc == SQLITE_OK ? SQ_OURS : sq_file_fault(path, rc);
    return rc;
}

/* A damaged header can make SQLite believe that it must not write to a file that it may write to.
 */
enum sq_content sq_file_fault(const char *path, int rc)
{
    bool writable = (rc & 0xFF) == SQLITE_READONLY && access(path, W_OK) == 0;
    return sq_is_damage(rc) || writable ? SQ_DAMAGED : SQ_UNUSABLE;
}

void sq_file_explain(const struct sq_connection *connection, const char *path,
                     enum sq_content content, int rc, char *why, size_t size)
{
    int error = sq_errno(connection->db);
    if (content == SQ_NEWER)
        snprintf(
            why, size,
            "%s was written by a newer version of this program: use that, or another directory",
            path);
    else if (content == SQ_FOREIGN)
        snprintf(why, size, "%s is another program's database: use another directory", path);
    else if (content == SQ_DAMAGED)
        snprintf(why, size, "%s is damaged (%s)", path,
                 rc != SQLITE_OK ? sqlite3_errstr(rc) : "its header does not fit its tables");
    else
        snprintf(why, size, "can't open the database %s: %s%s%s", path, sqlite3_errstr(rc),
                 error != 0 ? ", " : "", error != 0 ? strerror(error) : "");
}

/*
 * A database's files in the order in which they go. The log first: should that be cut short, a
 * database without its log is whole or seen to be damaged, but a new one that finds an old log
 * would take it for its own.
 */
static const char *const parts[] = {"-wal", "-shm", ""};

bool sq_file_set_aside(const char *path, char *why, size_t size)
{
    char from[PATH_MAX], to[PATH_MAX];
    for (size_t i = 0; i < 3; i++) {
        snprintf(from, sizeof(from), "%s%s", path, parts[i]);
        snprintf(to, sizeof(to), "%s.damaged%s", path, parts[i]);
        unlink(to);
        if (rename(from, to) != 0 && errno != ENOENT) {
            snprintf(why, size, "can't rename the damaged %s to %s: %s", from, to, strerror(errno));
            return false;
        }
    }
    return true;
}

bool sq_file_remove(const char *path, char *why, size_t size)
{
    char name[PATH_MAX];
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "%s%s", path, parts[i]);
        if (unlink(name) != 0 && errno != ENOENT) {
            snprintf(why, size, "can't delete %s: %s", name, strerror(errno));
            return false;
        }
    }
    return true;
}
