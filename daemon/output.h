/*
 * Replies on their way to one client: lines, and values that are sent from where they lie, written
 * together with as few calls as the socket takes. One thread's.
 */
#ifndef LIARA_OUTPUT_H
#define LIARA_OUTPUT_H

#include "pinned.h"
#include "value.h"

#include <stdbool.h>
#include <stddef.h>

struct output_piece {
    struct value *value; /* NULL: bytes of text, or pinned ones */
    struct pinned pinned;
    bool file;           /* sent from the value's descriptor */
    uint32_t offset;     /* into text, the value's bytes, or the pinned ones */
    uint32_t length;     /* what is still to be sent */
    int fd;              /* to be passed along with the first byte of text, or -1 */
    struct value *owner; /* of fd; NULL: fd is the piece's own */
};

struct output {
    char *text;
    uint32_t text_used, text_size;
    struct output_piece *pieces;
    unsigned first, count, size;
    uint64_t bytes; /* to be sent in all */
    bool widened;   /* the socket has been told to take much at a time */
};

enum output_result { OUTPUT_EMPTY, OUTPUT_BLOCKED, OUTPUT_FAILED };

/* Room for a line of at most size bytes, to be written by the caller and then taken by
 * output_line(); NULL where memory is short. */
char *output_room(struct output *output, size_t size);

/* Takes length bytes of the room. false where memory is short: the stream is lost. */
bool output_line(struct output *output, size_t length);

/* The same, with length bytes and an LF behind the line, which are copied into the same room: it
 * was asked for with space for them. As output_line(). */
bool output_line_with_bytes(struct output *output, size_t line, const uint8_t *bytes,
                            size_t length);

/*
 * Takes the line out of the room, which was asked for with space for an LF behind it; adds length
 * pinned bytes, which are taken over whatever it returns, and the LF. As output_line(). Bytes are
 * not to stay pinned for long: see output_settle().
 */
bool output_line_with_pinned(struct output *output, size_t line, struct pinned pinned,
                             uint64_t length);

/* Adds the value's bytes and an LF, and takes the reference, whatever it returns. As output_line().
 */
bool output_value(struct output *output, struct value *value);

/*
 * As output_line(), and passes fd along with the line. It stays owner's, of which a reference is
 * taken over, or where owner is NULL is taken over itself; either way whatever it returns.
 */
bool output_line_with_fd(struct output *output, size_t length, int fd, struct value *owner);

/* Sends what the socket takes. OUTPUT_BLOCKED: more is left. OUTPUT_FAILED: errno says why. */
enum output_result output_flush(struct output *output, int fd);

/* Copies what is still pinned, so that no slow client keeps a store from using its memory. false:
 * no memory, or too much is in flight; the stream is lost. After a flush that did not send all. */
bool output_settle(struct output *output);

/* Frees what it holds; it is empty and can be used again, for the same socket. */
void output_clear(struct output *output);

#endif
