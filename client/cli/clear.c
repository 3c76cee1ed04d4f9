#include "command.h"

#include <inttypes.h>
#include <stdio.h>

int command_clear(struct cli *cli)
{
    uint64_t entries;
    if (!can_print(cli))
        return RESULT_LOCAL;
    enum liara_cache_status status = liara_cache_clear(cli->cache, &entries);
    if (status != LIARA_CACHE_OK)
        return report(cli, status);
    printf("entries %" PRIu64 "\n", entries);
    return finish_output();
}
