/* A value that was got, into memory of its own. */
#ifndef LIARA_CLIENT_RECEIVE_H
#define LIARA_CLIENT_RECEIVE_H

#include "passed.h"

/*
 * Takes the bytes of the value that reply says, from passed or, where that is NULL or has none,
 * from the connection, the LF behind them too. OK: value->bytes is allocated, with a NUL behind the
 * value. Otherwise it is NULL, and the connection is closed if the stream is not in step any more.
 */
enum liara_cache_status receive_value(struct liara_cache *cache, const struct reply *reply,
                                      const struct passed *passed, struct liara_cache_value *value);

#endif
