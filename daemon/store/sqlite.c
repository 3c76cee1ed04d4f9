/* The SQLite store: the engine with its disk in one database. */
#include "engine/backing.h"
#include "engine/engine.h"

static struct store *sqlite_open(const struct config *config, char *why, size_t size)
{
    return engine_open_disk(config, &backing_sqlite, why, size);
}

const struct store_ops store_sqlite = {
    .name = "sqlite",
    .title = "Sqlite3",
    .in_directory = true,
    .open = sqlite_open,
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
