#include "command.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int command_head(struct cli *cli)
{
    struct liara_cache_value value;
    const char *key = cli->arguments.words[0];
    if (!can_print(cli))
        return RESULT_LOCAL;
    enum liara_cache_status status = liara_cache_head(cli->cache, key, strlen(key), &value);
    if (status != LIARA_CACHE_OK)
        return report(cli, status);
    printf("size %" PRIu64 "\nflags %" PRIu32 "\n", value.length, value.flags);
    if (value.ttl > 0)
        printf("ttl %" PRIu32 "\n", value.ttl);
    return finish_output();
}
