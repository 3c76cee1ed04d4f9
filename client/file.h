/* Reading and writing the caller's descriptors, of whatever kind, without SIGPIPE. */
#ifndef LIARA_CLIENT_FILE_H
#define LIARA_CLIENT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Reads until size bytes are there or the end is reached, from offset on (pread) or, where offset
 * is -1, from the descriptor's position. Returns the bytes read, or -1 with errno. Waits as long as
 * the descriptor has nothing, also where it is non-blocking.
 */
ssize_t file_read(int fd, void *bytes, size_t size, off_t offset);

/* Writes all of it; false with errno, EPIPE instead of a signal among them. */
bool file_write(int fd, const void *bytes, size_t length);

/*
 * So many bytes are about to be written to the descriptor: where that makes the writes cheaper, a
 * file gets its room at once. Its length stays, and whatever fails here the writes will say.
 */
void file_expect(int to, uint64_t length);

/*
 * Writes the bytes from offset to end of the regular file from to the descriptor to, inside the
 * kernel where it can. Neither reads nor moves from's position. Returns the bytes written, less
 * than asked for only where from has ended; -1 with errno, EPIPE instead of a signal among them.
 */
int64_t file_send(int from, off_t offset, off_t end, int to);

/* An unnamed file to read and write, in TMPDIR or /tmp or else in memory; -1 with errno. */
int file_unnamed(void);

/* Copies what is left of one descriptor to another; -1 with errno, else the bytes copied. */
int64_t file_copy(int from, int to);

#endif
