/*
 * Reads a value out of a descriptor that a client handed over. The file may lie on a slow disk, so
 * it is read on a thread of a pool; it may shrink meanwhile, so it is read, never mapped.
 */
#ifndef LIARA_FETCH_H
#define LIARA_FETCH_H

#include "pool.h"
#include "value.h"

struct fetch {
    struct pool_task task;
    int fd;
    struct value *value;
    int error; /* 0: value is filled; EINVAL: no regular file; ENODATA: too short; else read's errno
                */
    void (*done)(struct fetch *fetch);
};

/*
 * Fills value's bytes from the beginning of fd, which is closed at the end. done() is called once
 * on loop's thread, never from inside the call; fetch and value stay in place until then.
 */
void fetch_start(struct fetch *fetch, struct pool *pool, struct loop *loop, int fd,
                 struct value *value, void (*done)(struct fetch *fetch));

#endif
