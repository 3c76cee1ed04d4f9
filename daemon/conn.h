/*
 * One client: its socket, its buffers, the state in which its stream is. Reads, parses, has the
 * router answer, writes; one request at a time, so that answers keep their order. All of it runs on
 * the worker that accepted it.
 */
#ifndef LIARA_CONN_H
#define LIARA_CONN_H

#include <stdbool.h>
#include <stdint.h>

struct conn;
struct worker;

/* Takes over the connected, non-blocking socket fd. false with errno, and fd is closed. */
bool conn_open(struct worker *worker, int fd);

/* Closes it if its time is up at clock_coarse()'s time now: see limits.h. */
void conn_check_timeouts(struct conn *conn, int64_t now);

/* Closes it unless a request is under way; once that is answered it closes by itself. */
void conn_drain(struct conn *conn);

/* Closes it whatever is under way, and frees it, now: the store has been closed. */
void conn_abandon(struct conn *conn);

#endif
