#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int command_put(struct cli *cli)
{
    const char *key = cli->arguments.words[0];
    const char *path = cli->arguments.count > 1 ? cli->arguments.words[1] : "-";
    const struct liara_cache_put_options options = {.flags = cli->arguments.flags,
                                                    .ttl = cli->arguments.ttl,
                                                    .overwrite = cli->arguments.overwrite};
    int fd = STDIN_FILENO;
    if (strcmp(path, "-") != 0)
        fd = open(path, O_RDONLY | O_CLOEXEC);
    else if (!streams_need(&cli->streams, STDIN_FILENO))
        return RESULT_LOCAL;
    if (fd < 0) {
        complain("can't read %s: %s", path, strerror(errno));
        return RESULT_LOCAL;
    }
    if (cli->arguments.cost.is_given)
        liara_cache_set_put_cost(cli->cache, cli->arguments.cost.number);
    int result = report(cli, liara_cache_put_fd(cli->cache, key, strlen(key), fd, -1, &options));
    if (fd != STDIN_FILENO)
        close(fd);
    return result;
}
