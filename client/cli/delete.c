#include "command.h"

#include <string.h>

int command_delete(struct cli *cli)
{
    const char *key = cli->arguments.words[0];
    return report(cli, liara_cache_delete(cli->cache, key, strlen(key)));
}
