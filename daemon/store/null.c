/* Keeps nothing: for switching a cache off without changing who asks. The template of a backend. */
#include "store.h"

#include <stdio.h>
#include <stdlib.h>

static struct store *null_open(const struct config *config, char *why, size_t size)
{
    (void)config;
    struct store *store = calloc(1, sizeof(*store));
    if (store == NULL)
        snprintf(why, size, "out of memory");
    return store;
}

static void null_close(struct store *store)
{
    free(store);
}

static enum store_status null_miss(struct store *store, struct store_call *call)
{
    (void)store;
    (void)call;
    return STORE_MISS;
}

static enum store_status null_put(struct store *store, struct store_call *call)
{
    (void)store;
    value_unref(call->request.value);
    call->request.value = NULL;
    return STORE_OK;
}

/* CLEAR, INSPECT and PERSIST alike: there is nothing, exactly, and none of it is durable. */
static enum store_status null_nothing(struct store *store, struct store_call *call)
{
    (void)store;
    call->result.entries = 0;
    call->result.size = 0;
    call->result.approximate = false;
    call->result.durable = false;
    return STORE_OK;
}

const struct store_ops store_null = {
    .name = "null",
    .title = "Null",
    .open = null_open,
    .close = null_close,
    .get = null_miss,
    .head = null_miss,
    .put = null_put,
    .delete = null_miss,
    .clear = null_nothing,
    .inspect = null_nothing,
    .persist = null_nothing,
};
