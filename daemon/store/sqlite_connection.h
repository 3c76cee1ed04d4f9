/*
 * A connection of the SQLite store to its database: the handle, its prepared statements, and what
 * runs them. A connection is used by one thread at a time.
 *
 * What returns an int returns SQLite's (extended) codes.
 */
#ifndef LIARA_STORE_SQLITE_CONNECTION_H
#define LIARA_STORE_SQLITE_CONNECTION_H

#include "../../proto/message.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first ones are the readers', too; what each does stands in sqlite_connection.c. */
enum sq_statement {
    SQ_FIND,
    SQ_BYTES,
    SQ_ENDED_COUNT,
    SQ_RANGE,
    SQ_READER_STATEMENTS,
    SQ_BEGIN = SQ_READER_STATEMENTS,
    SQ_COMMIT,
    SQ_ROLLBACK,
    SQ_META_SET,
    SQ_META,
    SQ_ENTRY_ADD,
    SQ_VALUE_ADD,
    SQ_ENTRY_DELETE,
    SQ_VALUE_DELETE,
    SQ_USE_DELETE,
    SQ_USE_SET,
    SQ_USE_OLDEST,
    SQ_VALUES,
    SQ_ENDED_FIRST,
    SQ_OTHERS,
    SQ_RANGE_DELETE,
    SQ_GONE_ADD,
    SQ_GONE_FIRST,
    SQ_GONE_DELETE,
    SQ_ENTRIES_CLEAR,
    SQ_VALUES_CLEAR,
    SQ_USES_CLEAR,
    SQ_GONE_CLEAR,
    SQ_FREE_PAGES,
    SQ_PAGES,
    SQ_VACUUM,
    SQ_STATEMENTS
};

struct sq_connection {
    sqlite3 *db;
    sqlite3_stmt *statements[SQ_STATEMENTS];
};

/* A key, or with one byte more than any key has, the end of a range of them. */
struct sq_key {
    uint32_t length;
    uint8_t bytes[MESSAGE_KEY_MAX + 1];
};

/* What the database knows of a key beside its value. */
struct sq_row {
    int64_t id;
    int64_t size; /* of the value */
    int64_t flags;
    int64_t expires; /* clock_now()'s time, or CLOCK_NEVER */
    int64_t sum;     /* sq_checksum() of the value */
};

/*
 * Opens the file, making it if need be, without reading it. Connections are closed by
 * sq_disconnect(), also those that failed to open.
 */
int sq_connect_writer(struct sq_connection *connection, const char *path);

/* Opens a file that has a writer already, read-only and ready to be asked. */
int sq_connect_reader(struct sq_connection *connection, const char *path);

/* Prepares the first count statements. */
int sq_prepare(struct sq_connection *connection, unsigned count);

/* Fine for one that is closed. A writer's writes its log back where it was the last. */
void sq_disconnect(struct sq_connection *connection);

/* Runs texts without results, one after the other, up to the first that fails. */
int sq_execute(sqlite3 *db, const char *const *texts, size_t count);

/* The statement with its first parameter bound. A key's bytes must stay in place while it runs. */
sqlite3_stmt *sq_with_id(struct sq_connection *connection, enum sq_statement which, int64_t id);
sqlite3_stmt *sq_with_key(struct sq_connection *connection, enum sq_statement which,
                          const uint8_t *key, size_t length);

/* The statement with its first two parameters bound to the ends of a range. */
sqlite3_stmt *sq_with_range(struct sq_connection *connection, enum sq_statement which,
                            const struct sq_key *from, const struct sq_key *to);

/* SQLITE_OK for a code that says that a step went well, SQLITE_ROW or SQLITE_DONE. */
int sq_done(int rc);

/* Runs a statement to its end; its rows are of no interest. SQLITE_OK, or why not. */
int sq_run(sqlite3_stmt *statement);

/* Runs a statement that returns one number. SQLITE_OK, or why not. */
int sq_ask(sqlite3_stmt *statement, int64_t *number);

/* The row of SQ_FIND, SQ_RANGE or SQ_ENDED_FIRST that the statement stands on. */
void sq_read_row(sqlite3_stmt *statement, struct sq_row *row);

/* Copies a column that is a key; false where it can't be one. SQ_KEY_COLUMN is that of rows. */
enum { SQ_KEY_COLUMN = 6 };
bool sq_read_key(sqlite3_stmt *statement, int column, struct sq_key *key);

/*
 * Looks for a key: SQLITE_ROW with its row, SQLITE_DONE, or why not. In each case the connection
 * sees this moment's database, and holds its log, until sq_end_find().
 */
int sq_find(struct sq_connection *connection, const uint8_t *key, size_t length,
            struct sq_row *row);
void sq_end_find(struct sq_connection *connection);

/* Whether the row is past its end. */
bool sq_ended(const struct sq_row *row);

/* The keys that begin with the prefix: from, included, to, not included. */
void sq_range(const uint8_t *prefix, size_t length, struct sq_key *from, struct sq_key *to);

/*
 * Whether rc says that the file's content is at fault, not the disk, the memory or another program.
 * Every statement is fixed and fits the tables, so what SQLite says against one is that, too.
 */
bool sq_is_damage(int rc);

/* The write-ahead log's file, as SQLite has it open; NULL where it has not. */
sqlite3_file *sq_log(sqlite3 *db);

/* The system's number for what has just failed with SQLITE_IOERR or SQLITE_CANTOPEN, 0: unknown. */
int sq_errno(sqlite3 *db);

/* Whether rc, just returned by db, says that there is no room left on the disk. */
bool sq_is_full(sqlite3 *db, int rc);

#endif
