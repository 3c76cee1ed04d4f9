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
    LEASE = 600, /* seconds, unless --lease says otherwise */
    PIECE = 64 * 1024
};

/* With --prefix in front: PREFIX would be a request more to wait for. */
struct key {
    char bytes[LIARA_CACHE_KEY_MAX];
    size_t length;
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

/* A put of many bytes may take its time: a daemon that hangs by now is found out before. */
static void store(struct cli *cli, const struct key *key, int spool)
{
    const struct liara_cache_put_options options = {.ttl = cli->arguments.ttl};
    lseek(spool, 0, SEEK_SET);
    enum liara_cache_status status = liara_cache_ping(cli->cache);
    if (status == LIARA_CACHE_OK)
        status = liara_cache_put_fd(cli->cache, key->bytes, key->length, spool, -1, &options);
    progress_clear(&cli->progress);
    if (status < LIARA_CACHE_USAGE)
        say(cli, status == LIARA_CACHE_OK ? "stored" : "stored by another meanwhile");
    else
        say(cli, liara_cache_error(cli->cache));
}

static int compute(struct cli *cli, const struct key *key, int spool)
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
static int ask_and_compute(struct cli *cli, const struct key *key, int spool)
{
    struct liara_cache_value value;
    uint32_t lease = cli->arguments.lease > 0 ? cli->arguments.lease : LEASE;
    uint64_t longest = (uint64_t)lease * 1000 + cli->timeout;
    liara_cache_set_long_timeout(cli->cache, longest < UINT32_MAX ? (unsigned)longest : UINT32_MAX);
    enum liara_cache_status status =
        liara_cache_get_fd(cli->cache, key->bytes, key->length, spool, lease, &value);
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

/* false: it is too long. */
static bool set_key(const struct cli *cli, struct key *key)
{
    const char *parts[] = {cli->arguments.prefix ? cli->arguments.prefix : "",
                           cli->arguments.words[0]};
    key->length = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        size_t length = strlen(parts[i]);
        if (length > sizeof(key->bytes) - key->length)
            return false;
        memcpy(key->bytes + key->length, parts[i], length);
        key->length += length;
    }
    return true;
}

int command_memo(struct cli *cli)
{
    struct key key;
    if (!cli->arguments.run || !cli->arguments.run[0]) {
        complain("right would be: memo KEY [--ttl SECONDS] [--lease SECONDS] -- COMMAND...");
        return RESULT_USAGE;
    }
    if (!can_print(cli))
        return RESULT_LOCAL;
    if (!set_key(cli, &key)) {
        say(cli, "prefix and key are too long together");
        return run_instead(cli->arguments.run);
    }
    int spool = cli->cache ? open_spool() : -1;
    if (spool < 0) {
        say(cli, "there is no memory or no temporary file");
        return run_instead(cli->arguments.run);
    }
    int result = ask_and_compute(cli, &key, spool);
    close(spool);
    return result;
}
