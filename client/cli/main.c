/* liara-cache-cli: asks liara-cached, for scripts and people. */
#include "command.h"
#include "options.h"
#include "progress.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const struct command commands[] = {
    {"get", "KEY [-o FILE]", "the value, to standard output", 1, 1, "OD", false, command_get},
    {"put", "KEY [FILE|-] [--overwrite]", "stores FILE or standard input", 1, 2, "TFCW", false,
     command_put},
    {"head", "KEY", "the value's size, flags and time to live", 1, 1, "", false, command_head},
    {"delete", "KEY", "removes the value", 1, 1, "", false, command_delete},
    {"clear", "", "removes all, or all under --prefix", 0, 0, "", false, command_clear},
    {"inspect", "[--json]", "what the cache holds, in all or under --prefix", 0, 0, "J", false,
     command_inspect},
    {"persist", "", "returns when all is on stable storage", 0, 0, "", false, command_persist},
    {"ping", "", "whether the daemon answers", 0, 0, "", false, command_ping},
    {"memo", "KEY -- COMMAND...", "what COMMAND printed when it ran last", 1, 1, "TLV", true,
     command_memo},
    {NULL, NULL, NULL, 0, 0, NULL, false, NULL},
};

void complain(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    fprintf(stderr, "liara-cache-cli: %s\n", line);
}

static int result_of(enum liara_cache_status status)
{
    switch (status) {
    case LIARA_CACHE_OK:
        return RESULT_DONE;
    case LIARA_CACHE_MISS:
    case LIARA_CACHE_EXISTS:
        return RESULT_MISS;
    case LIARA_CACHE_USAGE:
        return RESULT_USAGE;
    case LIARA_CACHE_UNREACHABLE:
    case LIARA_CACHE_TIMED_OUT:
    case LIARA_CACHE_PROTOCOL:
        return RESULT_UNREACHABLE;
    case LIARA_CACHE_LOCAL:
        return RESULT_LOCAL;
    default:
        return RESULT_REFUSED;
    }
}

int report(struct cli *cli, enum liara_cache_status status)
{
    progress_clear(&cli->progress);
    if (status >= LIARA_CACHE_USAGE)
        complain("%s", liara_cache_error(cli->cache));
    return result_of(status);
}

bool can_print(const struct cli *cli)
{
    return streams_need(&cli->streams, STDOUT_FILENO);
}

int finish_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return RESULT_DONE;
    complain("can't write to standard output: %s", strerror(errno));
    return RESULT_LOCAL;
}

static unsigned choose_timeout(const struct arguments *arguments, const struct command *command)
{
    unsigned most = UINT32_MAX / 1000;
    unsigned seconds = command->alone ? TIMEOUT_ALONE : TIMEOUT;
    if (arguments->timeout > 0)
        seconds = arguments->timeout < most ? arguments->timeout : most;
    return seconds * 1000;
}

/* Without a connection where the command goes on without a daemon, too. */
static enum liara_cache_status open_cache(struct cli *cli, const struct command *command)
{
    const struct arguments *arguments = &cli->arguments;
    enum liara_cache_status status = liara_cache_new(&cli->cache, arguments->socket);
    if (status != LIARA_CACHE_OK)
        return status;
    cli->timeout = choose_timeout(arguments, command);
    liara_cache_set_timeout(cli->cache, cli->timeout);
    if (command->alone)
        return status;
    status = liara_cache_connect(cli->cache);
    if (status == LIARA_CACHE_OK && arguments->prefix)
        status = liara_cache_prefix(cli->cache, arguments->prefix, strlen(arguments->prefix));
    return status;
}

static int fail_to_open(struct cli *cli, enum liara_cache_status status)
{
    if (cli->cache)
        return report(cli, status);
    complain("no memory for a connection");
    return RESULT_LOCAL;
}

static int call(struct cli *cli, const struct command *command)
{
    int result;
    enum liara_cache_status status = open_cache(cli, command);
    if (status == LIARA_CACHE_OK || command->alone) {
        if (cli->cache && isatty(STDERR_FILENO))
            progress_start(&cli->progress, cli->cache);
        result = command->call(cli);
        progress_clear(&cli->progress);
    } else {
        result = fail_to_open(cli, status);
    }
    liara_cache_close(cli->cache);
    return result;
}

int main(int argc, char **argv)
{
    struct cli cli = {.cache = NULL};
    const struct command *command;
    if (!streams_occupy(&cli.streams)) {
        complain("can't occupy a closed standard stream: %s", strerror(errno));
        return RESULT_LOCAL;
    }
    if (!options_read(argc, argv, &cli.arguments, &command))
        return RESULT_USAGE;
    if (command)
        return call(&cli, command);
    if (!can_print(&cli))
        return RESULT_LOCAL;
    if (cli.arguments.help)
        options_help(stdout);
    else
        printf("liara-cache-cli %s\n", liara_cache_version());
    return finish_output();
}
