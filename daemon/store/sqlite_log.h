/*
 * How the SQLite store's writer writes its write-ahead log. SQLite writes each frame of a
 * transaction with two small writes; here those that follow one another are gathered and written
 * with a few large ones. Everything else goes to SQLite's own files as it is.
 */
#ifndef LIARA_STORE_SQLITE_LOG_H
#define LIARA_STORE_SQLITE_LOG_H

/*
 * The name of the VFS, for the one connection that writes; NULL where it can't be had. What a
 * commit has written has reached the file when the commit returns, and before any reader is told of
 * it; what could not be written fails that commit. Any thread.
 */
const char *sq_log_vfs(void);

#endif
