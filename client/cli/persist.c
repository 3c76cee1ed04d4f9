#include "command.h"

#include <stdio.h>

int command_persist(struct cli *cli)
{
    bool is_volatile;
    if (!can_print(cli))
        return RESULT_LOCAL;
    enum liara_cache_status status = liara_cache_persist(cli->cache, &is_volatile);
    if (status != LIARA_CACHE_OK)
        return report(cli, status);
    puts(is_volatile ? "OK volatile" : "OK");
    return finish_output();
}
