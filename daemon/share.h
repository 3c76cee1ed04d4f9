/*
 * Gives a value a descriptor that clients can be handed (value_share()). That copies the value
 * once, which takes its time, so it is done on a thread of a pool, and nobody waits for it.
 */
#ifndef LIARA_SHARE_H
#define LIARA_SHARE_H

#include "pool.h"
#include "value.h"

/* For a value that value_worth_sharing() was true of. Any thread that holds a reference. */
void share_start(struct pool *pool, struct value *value);

#endif
