/*
 * The line protocol, version 1 (PROTOCOL.md): bytes to requests and replies, and back.
 *
 * Pure functions: no I/O, no allocation, no errno, no log, no state of their own; any thread may
 * call them at any time. Formatting is the exact inverse of parsing, for requests and for replies.
 */
#ifndef LIARA_PROTO_LINE_H
#define LIARA_PROTO_LINE_H

#include "message.h"

#include <sys/types.h>

enum { LINE_MAX_BYTES = 4096 }; /* a line with its LF */

enum line_result {
    LINE_OK,   /* a whole message; *used bytes are taken */
    LINE_MORE, /* no LF yet; nothing is taken, call again with more bytes behind the same ones */
    LINE_BAD,  /* refused, and the stream is in step once *used + *skip bytes are passed */
    LINE_LOST  /* refused, and where the next message begins can't be known: answer and close */
};

/*
 * Parses the request at bytes[0..length). length may be more than one line; only the first counts.
 *
 * LINE_OK:   *request is filled (of key only key_length bytes are written), *used is the line with
 *            its LF. The bytes of a PUT (request->length and one LF, unless request->fd) follow.
 * LINE_BAD:  *error is the reply to send, *used the line, *skip the bytes of a value that follow it
 *            and are to be passed over (with its LF; 0 where none follow).
 * LINE_LOST: *error is the reply to send. A line of LINE_MAX_BYTES or more without an LF is this.
 *
 * *request and *error are unspecified where not named. The work done is linear in the line.
 */
enum line_result line_parse_request(const char *bytes, size_t length, struct request *request,
                                    size_t *used, uint64_t *skip, struct reply *error);

/*
 * Writes the request's line with its LF into out[0..size); returns its length, or 0 where it does
 * not fit size or request is no valid one (a key of 0 bytes where one is needed, say). size of
 * LINE_MAX_BYTES always suffices. No NUL is added. A PUT's bytes and the LF after them are the
 * caller's to send.
 */
size_t line_format_request(char *out, size_t size, const struct request *request);

/*
 * Parses the reply line at bytes[0..length). LINE_OK: *reply is filled, *used is the line with its
 * LF; for REPLY_VALUE reply->length bytes and one LF follow. LINE_MORE as above. LINE_LOST: this is
 * not the protocol. Never LINE_BAD.
 */
enum line_result line_parse_reply(const char *bytes, size_t length, struct reply *reply,
                                  size_t *used);

/* The inverse, with the same rules as line_format_request. */
size_t line_format_reply(char *out, size_t size, const struct reply *reply);

/*
 * A key as it is written in a line: 0x21-0x7E but '%' as they are, all else as %XX in capitals.
 * Returns the bytes written to out, at most 3 * length, or 0 where size is too small. No NUL.
 */
size_t line_encode_key(char *out, size_t size, const uint8_t *key, size_t length);

/*
 * The inverse: the bytes of key, at most size of them. Returns their number, or -1 for a byte that
 * must be escaped and is not or a '%' without two hex digits, or -2 where there are more than size.
 */
ssize_t line_decode_key(uint8_t *key, size_t size, const char *text, size_t length);

/* HELP's value: a line each for the requests, NUL-terminated, static. */
const char *line_help(void);

#endif
