/* A value whose VALUE line has come, into memory of its own. */
#ifndef LIARA_CLIENT_RECEIVE_H
#define LIARA_CLIENT_RECEIVE_H

#include "handle.h"

/*
 * Takes the value's bytes and the LF behind them. OK: value->bytes is allocated, with a NUL behind
 * the value. Otherwise it is NULL, and the connection is closed.
 */
enum liara_cache_status receive_value(struct liara_cache *cache, const struct reply *reply,
                                      struct liara_cache_value *value);

#endif
