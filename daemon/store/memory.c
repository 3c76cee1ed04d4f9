/* The memory store: the engine without a disk. */
#include "engine/engine.h"

const struct store_ops store_memory = {
    .name = "memory",
    .title = "In-Memory",
    .open = engine_open_memory,
    .close = engine_close,
    .set_max_size = engine_set_max_size,
    .get = engine_get,
    .head = engine_head,
    .put = engine_put,
    .delete = engine_delete,
    .clear = engine_clear,
    .inspect = engine_inspect,
    .persist = engine_persist,
};
