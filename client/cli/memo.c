#include "command.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LEASE = 600,   /* seconds, unless --lease says otherwise */
    PATIENCE = 30, /* seconds that are waited beyond a lease */
    PIECE = 64 * 1024
};

/* More than this is printed, but not kept: no daemon takes more unless it was told to. */
static const uint64_t spool_limit = 512 * 1024 * 1024;

static int open_spool(void)
{
    const char *folder = getenv("TMPDIR");
    int fd = open(folder && folder[0] ? folder : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : memfd_create("liara-cache-cli", MFD_CLOEXEC);
}

static void say(const struct cli *cli, const char *what)
{
    if (cli->arguments.verbose)
        complain("%s", what);
}

static int print_spool(int spool)
{
    char bytes[PIECE];
    ssize_t got;
    lseek(spool, 0, SEEK_SET);
    while ((got = read(spool, bytes, sizeof(bytes))) > 0)
        if (fwrite(bytes, 1, (size_t)got, stdout) != (size_t)got)
            break;
    if (got >= 0)
        return finish_output();
    complain("can't read what was cached: %s", strerror(errno));
    return RESULT_LOCAL;
}

static void store(struct cli *cli, const char *key, int spool)
{
    const struct liara_cache_put_options options = {.ttl = cli->arguments.ttl};
    lseek(spool, 0, SEEK_SET);
    enum liara_cache_status status =
        liara_cache_put_fd(cli->cache, key, strlen(key), spool, -1, &options);
    progress_clear(&cli->progress);
    if (status < LIARA_CACHE_USAGE)
        say(cli, status == LIARA_CACHE_OK ? "stored" : "stored by another meanwhile");
    else
        say(cli, liara_cache_error(cli->cache));
}

static int compute(struct cli *cli, const char *key, int spool)
{
    bool whole;
    int result = run_and_keep(cli->arguments.run, spool, spool_limit, &whole);
    if (result == 0 && whole)
        store(cli, key, spool);
    else
        say(cli, result != 0 ? "not stored: COMMAND failed" : "not stored: it could not be kept");
    return result;
}

/* Whatever is wrong with the cache, COMMAND runs as it would without. */
static int ask_and_compute(struct cli *cli, const char *key, int spool)
{
    struct liara_cache_value value;
    uint32_t lease = cli->arguments.lease > 0 ? cli->arguments.lease : LEASE;
    uint32_t most = UINT32_MAX / 1000 - PATIENCE;
    liara_cache_set_long_timeout(cli->cache, ((lease < most ? lease : most) + PATIENCE) * 1000);
    enum liara_cache_status status =
        liara_cache_get_fd(cli->cache, key, strlen(key), spool, lease, &value);
    progress_clear(&cli->progress);
    if (status == LIARA_CACHE_OK) {
        say(cli, "a hit");
        return print_spool(spool);
    }
    if (status == LIARA_CACHE_LEASE || status == LIARA_CACHE_MISS)
        return compute(cli, key, spool);
    say(cli, liara_cache_error(cli->cache));
    return run_instead(cli->arguments.run);
}

int command_memo(struct cli *cli)
{
    if (!cli->arguments.run || !cli->arguments.run[0]) {
        complain("right would be: memo KEY [--ttl SECONDS] [--lease SECONDS] -- COMMAND...");
        return RESULT_USAGE;
    }
    if (!can_print(cli))
        return RESULT_LOCAL;
    int spool = cli->cache ? open_spool() : -1;
    if (spool < 0) {
        say(cli, "there is no daemon or no temporary file");
        return run_instead(cli->arguments.run);
    }
    int result = ask_and_compute(cli, cli->arguments.words[0], spool);
    close(spool);
    return result;
}
