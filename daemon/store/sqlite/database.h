/*
 * The database file and the connections to it: its tables, what a file that is found holds, the
 * statements, what SQLite's codes mean. It knows nothing of the engine.
 *
 * One connection, the writer's, does every write and every checkpoint, because SQLite up to 3.51.2
 * can corrupt a database whose log two connections restart. The readers only read. No connection
 * writes the log back or deletes a file when it is closed: after a database was given up its files'
 * names belong to the next one.
 *
 * What returns an int returns SQLite's (extended) codes. A connection is used by one thread at a
 * time.
 */
#ifndef LIARA_STORE_SQLITE_DATABASE_H
#define LIARA_STORE_SQLITE_DATABASE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Measured with values of 4 KB: 4 KB pages cost 15 us of CPU a PUT, 16 KB 9, 32 KB 7, and 64 KB
 * save little more than they cost small batches. */
enum { DB_PAGE = 32 << 10 };

/* What each does stands in database.c. The first ones are the readers' too. */
enum sqlite_statement {
    SQL_READ,
    SQL_HEADS,
    SQL_READER_STATEMENTS,
    SQL_BEGIN = SQL_READER_STATEMENTS,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_ADD_ENTRY,
    SQL_ADD_VALUE,
    SQL_REMOVE_ENTRY,
    SQL_REMOVE_VALUE,
    SQL_SEARCH,
    SQL_SET_STATE,
    SQL_STATE,
    SQL_PAGES,
    SQL_FREE_PAGES,
    SQL_VACUUM,
    SQL_STATEMENTS
};

struct sqlite_connection {
    sqlite3 *db;
    sqlite3_stmt *statements[SQL_STATEMENTS];
};

/* The one row of the table state, written by every commit. */
struct sqlite_state {
    uint64_t id;      /* the anchor's */
    uint64_t commits; /* since the database was made */
    uint64_t next;    /* the place that the next record gets */
    uint64_t entries;
    uint64_t marks;  /* the sum of sqlite_place_mark() over all entries: what is there, exactly */
    uint64_t cursor; /* eviction goes on behind this place */
    uint64_t check;  /* over all before, seeded */
};

enum sqlite_content {
    DB_OURS,
    DB_NONE, /* no file, or nothing in it */
    DB_OLDER,
    DB_NEWER,
    DB_FOREIGN,
    DB_DAMAGED,
    DB_UNUSABLE /* it can't be opened or read: permissions, memory, the disk */
};

/*
 * Opens the file that is there for writing and looks what it holds, without changing it. Only if
 * that is DB_OURS can the connection be used, with all its statements. In each case the
 * caller disconnects it. *rc is SQLite's code, if one was the reason.
 */
enum sqlite_content sqlite_db_open(struct sqlite_connection *connection, const char *path, int *rc);

/* Makes the file, which must not exist, with its tables and state, and opens it as above. */
int sqlite_db_create(struct sqlite_connection *connection, const char *path,
                     struct sqlite_state *state, uint64_t seed);

/* Opens a file that has a writer for reading. */
int sqlite_db_open_reader(struct sqlite_connection *connection, const char *path);

/* Fine for one that is closed, or failed to open. */
void sqlite_db_close(struct sqlite_connection *connection);

/* Removes the database's files or, with aside, renames them to PATH.damaged, replacing older ones.
 * No writer has them open. 0 or an errno. */
int sqlite_db_discard(const char *path, bool aside);

/* The statement with its first parameter bound to a number. */
sqlite3_stmt *sqlite_db_with(struct sqlite_connection *connection, enum sqlite_statement which,
                             uint64_t number);

/* Runs a statement to its end. SQLITE_OK, or why not. */
int sqlite_db_run(sqlite3_stmt *statement);

/* Runs a statement that returns one number. SQLITE_OK, or why not. */
int sqlite_db_ask(sqlite3_stmt *statement, uint64_t *number);

/* Writes the state, with its checksum; within a transaction. */
int sqlite_db_set_state(struct sqlite_connection *connection, struct sqlite_state *state,
                        uint64_t seed);

/* Reads the state; SQLITE_CORRUPT if there is none that is sound. */
int sqlite_db_state(struct sqlite_connection *connection, struct sqlite_state *state,
                    uint64_t seed);

/* Syncs the write-ahead log by SQLite's own means: what is committed is durable then. */
int sqlite_db_sync_log(struct sqlite_connection *connection);

/*
 * Copies the log into the database and syncs both, so that the next commit begins the log anew. A
 * log that is longer than log_bytes is cut by that commit; with cut, it is emptied at once. Waits a
 * little for readers, SQLITE_BUSY if they need longer.
 */
int sqlite_db_checkpoint(struct sqlite_connection *connection, uint64_t log_bytes, bool cut);

/* The errno that stands for rc, which db has just returned. */
int sqlite_db_errno(sqlite3 *db, int rc);

/*
 * Whether after rc nothing that the database holds can be relied on: a sync failed, a write failed
 * for another reason than want of room, or its pages are damaged. Memory, room and locks are no
 * such reasons.
 */
bool sqlite_db_is_lost(sqlite3 *db, int rc);

#endif
