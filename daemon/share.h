/*
 * Gives a value a descriptor that clients can be handed (value_share()). That copies the value
 * once, which takes its time, so it is done on a thread of a pool.
 */
#ifndef LIARA_SHARE_H
#define LIARA_SHARE_H

#include "pool.h"
#include "value.h"

struct share {
    struct pool_task task;
    struct value *value;
    void (*done)(struct share *share);
};

/* done() is called once on loop's thread, never from inside the call, whether it worked or not;
 * share and value stay in place until then. */
void share_start(struct share *share, struct pool *pool, struct loop *loop, struct value *value,
                 void (*done)(struct share *share));

#endif
