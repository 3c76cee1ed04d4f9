/*
 * The SQLite store's database file: its tables, what a file that is found holds, how a damaged one
 * is set aside. Only SQLite opens it: to close any other descriptor of it would drop SQLite's
 * locks.
 */
#ifndef LIARA_STORE_SQLITE_FILE_H
#define LIARA_STORE_SQLITE_FILE_H

#include "sqlite_connection.h"

/*
 * The tables: entry holds what is known of a key, value its bytes, use when it was last read,
 * where it was since it was stored, meta the sums over all of them. gone are values whose entries a
 * CLEAR has removed and whose space is still to be given back. They meet in an id, which no
 * other entry ever had or gets. What is small and often needed stays apart from the bytes, so that
 * neither HEAD, a PUT of what is there, CLEAR nor a new last use touches a large value's pages.
 */

enum sq_content {
    SQ_OURS,
    SQ_NEWER,   /* ours, but of a later version */
    SQ_FOREIGN, /* another program's */
    SQ_DAMAGED,
    SQ_UNUSABLE /* nobody knows: it can't be opened, read or written */
};

/*
 * Opens the file's first connection, the writer's, with all its statements, and makes the tables
 * where there are none. *content is SQ_OURS if and only if SQLITE_OK is returned and the connection
 * can be used; in each case the caller disconnects it.
 */
int sq_file_open(struct sq_connection *connection, const char *path, enum sq_content *content);

/* Which of the two: rc is what an attempt to open the file has returned. */
enum sq_content sq_file_fault(const char *path, int rc);

/* Why the file can't be used, for a person, while the connection is still there. */
void sq_file_explain(const struct sq_connection *connection, const char *path,
                     enum sq_content content, int rc, char *why, size_t size);

/*
 * Renames a damaged file, which no connection has open, to PATH.damaged, and its log likewise;
 * those of an earlier time are replaced. false, and why.
 */
bool sq_file_set_aside(const char *path, char *why, size_t size);

/* Deletes the file, which no connection has open, and its log. false, and why. */
bool sq_file_remove(const char *path, char *why, size_t size);

#endif
