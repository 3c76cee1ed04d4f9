#include "sqlite_writer.h"

#include "../clock.h"

#include <stdio.h>
#include <xxhash.h>

enum {
    READER_WAIT_MS = 20, /* for a reader that holds the log */
    LOG_RETRY_MS = 100,  /* after one has held it for longer */
    BUSY_MS = 2000       /* as sqlite_connection.c's, for foreign programs */
};

static int64_t totals_sum(const struct sq_totals *totals, int64_t tick)
{
    int64_t numbers[] = {totals->entries, totals->bytes, tick};
    return (int64_t)XXH3_64bits(numbers, sizeof(numbers));
}

static int save_totals(struct sq_writer *writer)
{
    int64_t tick = sq_notes_tick(writer->notes);
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_META_SET, writer->totals.entries);
    sqlite3_bind_int64(statement, 2, writer->totals.bytes);
    sqlite3_bind_int64(statement, 3, tick);
    sqlite3_bind_int64(statement, 4, totals_sum(&writer->totals, tick));
    sqlite3_bind_int64(statement, 5, clock_to_wall(clock_now()));
    sqlite3_bind_int64(statement, 6, writer->totals.hand);
    return sq_run(statement);
}

/* A database without entries need not have been committed to since it was made. */
static int check_empty(struct sq_writer *writer)
{
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_VALUES, 0);
    int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_ROW ? SQLITE_CORRUPT : sq_done(rc);
}

static int load_totals(struct sq_writer *writer, int64_t *last_written)
{
    sqlite3_stmt *statement = writer->connection.statements[SQ_META];
    int64_t tick = 0;
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW) {
        writer->totals.entries = sqlite3_column_int64(statement, 0);
        writer->totals.bytes = sqlite3_column_int64(statement, 1);
        tick = sqlite3_column_int64(statement, 2);
        if (sqlite3_column_int64(statement, 3) != totals_sum(&writer->totals, tick))
            rc = SQLITE_CORRUPT;
        *last_written = sqlite3_column_int64(statement, 4);
        writer->totals.hand = sqlite3_column_int64(statement, 5);
    }
    sqlite3_reset(statement);
    writer->committed = writer->totals;
    atomic_store(&writer->notes->tick, tick);
    return rc == SQLITE_DONE ? check_empty(writer) : sq_done(rc);
}

/*
 * An entry that ends later than its whole time to live from now was stored by a clock that was
 * ahead. There can be none unless the clock is behind what it was when the file was last written.
 */
static int clamp_ends(struct sq_writer *writer, int64_t last_written)
{
    long long wall = clock_to_wall(clock_now());
    char text[160];
    if (wall >= last_written)
        return SQLITE_OK;
    snprintf(text, sizeof(text),
             "UPDATE entry SET expires = %lld + ttl WHERE expires > %lld AND expires > %lld + ttl",
             wall, wall, wall);
    return sqlite3_exec(writer->connection.db, text, NULL, NULL, NULL);
}

static int note_log(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct sq_writer *writer = arg;
    (void)db;
    (void)name;
    writer->log_pages = pages;
    return SQLITE_OK;
}

void sq_writer_forget_keys(struct sq_writer *writer)
{
    keyset_set_certain(writer->keys, false);
    keyset_clear(writer->keys);
    writer->keys_read = false;
    writer->keys_from.length = 0;
}

/* What a run before this one committed may be in a log that it had no time to empty or to sync. */
int sq_writer_open(struct sq_writer *writer, const char *path, struct sq_notes *notes,
                   struct keyset *keys, enum sq_content *content)
{
    int64_t last_written = 0;
    *writer = (struct sq_writer){.notes = notes, .keys = keys, .log_pages = 1, .unsynced = true};
    sq_writer_forget_keys(writer);
    int rc = sq_file_open(&writer->connection, path, content);
    if (rc != SQLITE_OK || *content != SQ_OURS)
        return rc;
    sqlite3_wal_hook(writer->connection.db, note_log, writer);
    rc = load_totals(writer, &last_written);
    if (rc == SQLITE_OK)
        rc = clamp_ends(writer, last_written);
    if (rc != SQLITE_OK)
        *content = sq_file_fault(path, rc);
    return rc;
}

void sq_writer_close(struct sq_writer *writer, bool write_back)
{
    if (writer->connection.db != NULL && !write_back)
        sqlite3_db_config(writer->connection.db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sq_disconnect(&writer->connection);
}

int sq_writer_begin(struct sq_writer *writer)
{
    sqlite3 *db = writer->connection.db;
    if (!sqlite3_get_autocommit(db))
        return SQLITE_OK;
    writer->changes = sqlite3_total_changes(db);
    return sq_run(writer->connection.statements[SQ_BEGIN]);
}

int sq_writer_commit(struct sq_writer *writer)
{
    sqlite3 *db = writer->connection.db;
    if (sqlite3_get_autocommit(db))
        return SQLITE_OK;
    bool changed = sqlite3_total_changes(db) != writer->changes;
    int rc = changed ? save_totals(writer) : SQLITE_OK;
    if (rc == SQLITE_OK)
        rc = sq_run(writer->connection.statements[SQ_COMMIT]);
    if (rc != SQLITE_OK)
        return rc;
    writer->committed = writer->totals;
    writer->unsynced |= changed;
    return SQLITE_OK;
}

void sq_writer_roll_back(struct sq_writer *writer)
{
    sqlite3 *db = writer->connection.db;
    if (db != NULL && !sqlite3_get_autocommit(db))
        sq_run(writer->connection.statements[SQ_ROLLBACK]);
    writer->totals = writer->committed;
    sq_writer_forget_keys(writer);
}

int sq_writer_count(struct sq_writer *writer, int64_t entries, int64_t bytes)
{
    writer->totals.entries += entries;
    writer->totals.bytes += bytes;
    return writer->totals.entries < 0 || writer->totals.bytes < 0 ? SQLITE_CORRUPT : SQLITE_OK;
}

/*
 * The log holds every commit since it was last written back, so its fsync covers them all; those
 * before are in the database, which the checkpoint has synced. This is what a commit does with
 * synchronous=FULL, without the commit: it needs no room on the disk. SQLite syncs the folder, too,
 * where the log's file is new.
 */
int sq_writer_sync(struct sq_writer *writer)
{
    sqlite3_file *log = sq_log(writer->connection.db);
    /* The kernel drops what it could not write: a later fsync that succeeds proves nothing. */
    if (log == NULL || writer->sync_failed)
        return SQLITE_IOERR_FSYNC;
    if (!writer->unsynced)
        return SQLITE_OK;
    int rc = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
    writer->unsynced = rc != SQLITE_OK;
    writer->sync_failed = rc != SQLITE_OK;
    return rc;
}

int sq_writer_write_back(struct sq_writer *writer, int mode)
{
    sqlite3 *db = writer->connection.db;
    int64_t now = clock_now();
    if (now < writer->log_retry)
        return SQLITE_BUSY;
    sqlite3_busy_timeout(db, READER_WAIT_MS);
    int rc = sqlite3_wal_checkpoint_v2(db, NULL, mode, NULL, NULL);
    sqlite3_busy_timeout(db, BUSY_MS);
    if (rc == SQLITE_OK)
        writer->log_pages = mode == SQLITE_CHECKPOINT_TRUNCATE ? 0 : 1;
    else
        writer->log_retry = now + LOG_RETRY_MS;
    return rc;
}

int sq_writer_shrink(struct sq_writer *writer)
{
    sqlite3_stmt *const *statements = writer->connection.statements;
    int64_t spare = 0, pages = 0;
    int rc = sq_ask(statements[SQ_FREE_PAGES], &spare);
    if (rc == SQLITE_OK)
        rc = sq_ask(statements[SQ_PAGES], &pages);
    if (rc != SQLITE_OK || spare <= (pages - spare) / 32)
        return rc;
    rc = sq_run(statements[SQ_VACUUM]);
    return rc == SQLITE_OK ? SQLITE_ROW : rc;
}
