/* The filesystem store: the engine with its disk in log files. */
#include "engine/backing.h"
#include "engine/engine.h"

static struct store *filesystem_open(const struct config *config, char *why, size_t size)
{
    return engine_open_disk(config, &backing_log, why, size);
}

const struct store_ops store_filesystem = {
    .name = "filesystem",
    .title = "Filesystem",
    .in_directory = true,
    .open = filesystem_open,
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
