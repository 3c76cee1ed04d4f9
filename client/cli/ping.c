#include "command.h"

#include <stdio.h>

int command_ping(struct cli *cli)
{
    if (!can_print(cli))
        return RESULT_LOCAL;
    enum liara_cache_status status = liara_cache_ping(cli->cache);
    if (status != LIARA_CACHE_OK)
        return report(cli, status);
    printf("OK %s\n", liara_cache_socket(cli->cache));
    return finish_output();
}
