#include "command.h"
#include "output.h"

#include <string.h>
#include <unistd.h>

static int get_to_file(struct cli *cli, const char *key, const char *path)
{
    struct output output;
    struct liara_cache_value value;
    if (!output_open(&output, path))
        return RESULT_LOCAL;
    enum liara_cache_status status =
        liara_cache_get_fd(cli->cache, key, strlen(key), output.fd, 0, &value);
    if (status == LIARA_CACHE_OK)
        return output_commit(&output) ? RESULT_DONE : RESULT_LOCAL;
    output_abandon(&output);
    return report(cli, status);
}

int command_get(struct cli *cli)
{
    const char *key = cli->arguments.words[0];
    struct liara_cache_value value;
    liara_cache_set_descriptors(cli->cache, !cli->arguments.no_descriptor);
    if (cli->arguments.output && strcmp(cli->arguments.output, "-") != 0)
        return get_to_file(cli, key, cli->arguments.output);
    if (!can_print(cli))
        return RESULT_LOCAL;
    if (isatty(STDOUT_FILENO))
        liara_cache_set_progress(cli->cache, NULL, NULL);
    return report(cli, liara_cache_get_fd(cli->cache, key, strlen(key), STDOUT_FILENO, 0, &value));
}
