/*
 * The SQLite store's writer: transactions, the write-ahead log, the sums over all entries. It owns
 * the one connection that does every write and every checkpoint, because SQLite up to 3.51.2 can
 * corrupt a database whose log two connections restart. One thread at a time.
 *
 * What returns an int returns SQLite's codes. After one that is no success the caller rolls back.
 */
#ifndef LIARA_STORE_SQLITE_WRITER_H
#define LIARA_STORE_SQLITE_WRITER_H

#include "keyset.h"
#include "sqlite_connection.h"
#include "sqlite_file.h"
#include "sqlite_notes.h"

struct sq_totals {
    int64_t entries;
    int64_t bytes; /* of keys and values */
    int64_t hand;  /* up to this id all entries were used since they were stored, or are gone */
};

struct sq_writer {
    struct sq_connection connection;
    struct sq_notes *notes;
    struct keyset *keys; /* of all entries, certain once they have been read */
    bool keys_read;
    struct sq_key keys_from; /* where to read on */
    struct sq_totals totals, committed;
    int changes;       /* that the connection had made when the transaction began */
    bool unsynced;     /* something that is committed may not be on the disk */
    bool sync_failed;  /* since then nothing is known of the disk */
    int log_pages;     /* in the log since it was last emptied */
    int64_t log_retry; /* the time before which readers are not waited for again */
};

/*
 * Opens the file as sq_file_open() does, and loads what the last run left. notes and keys must stay
 * in place. On failure, too, the caller closes.
 */
int sq_writer_open(struct sq_writer *writer, const char *path, struct sq_notes *notes,
                   struct keyset *keys, enum sq_content *content);

/* Closes without a word to the file; with, as is usual, the log is written back to it. */
void sq_writer_close(struct sq_writer *writer, bool write_back);

/* Opens a transaction unless one is open. */
int sq_writer_begin(struct sq_writer *writer);

/* Commits the open transaction, if any. */
int sq_writer_commit(struct sq_writer *writer);

/* Gives the open transaction up, if any; fine where nothing is open at all. */
void sq_writer_roll_back(struct sq_writer *writer);

/* The set of keys may lack some that are there: from here on nothing is certainly absent, until
 * they have been read anew. */
void sq_writer_forget_keys(struct sq_writer *writer);

/* Adds to the sums; SQLITE_CORRUPT where they can't be. */
int sq_writer_count(struct sq_writer *writer, int64_t entries, int64_t bytes);

/*
 * Has the disk hold all that was committed, at the cost of what was written since the last time.
 * Not inside a transaction.
 */
int sq_writer_sync(struct sq_writer *writer);

/*
 * Writes the log back to the database: with SQLITE_CHECKPOINT_RESTART the next write begins it
 * anew, with SQLITE_CHECKPOINT_TRUNCATE its file becomes empty, too. Waits for readers, though not
 * long: SQLITE_BUSY where they need it longer, and nothing is lost. Not inside a transaction.
 */
int sq_writer_write_back(struct sq_writer *writer, int mode);

/*
 * Gives a few free pages back from the end of the file, except some that the next PUTs will need.
 * SQLITE_ROW: there are more. Not inside a transaction.
 */
int sq_writer_shrink(struct sq_writer *writer);

#endif
