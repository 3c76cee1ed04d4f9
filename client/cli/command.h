/* What liara-cache-cli is made of: the command line once it is read, and the commands. */
#ifndef LIARA_CLI_COMMAND_H
#define LIARA_CLI_COMMAND_H

#include "../liara_cache.h"
#include "progress.h"
#include "streams.h"

#include <stdbool.h>
#include <stdint.h>

/* What the program ends with, beside what memo passes on. */
enum result {
    RESULT_DONE = 0,
    RESULT_MISS = 1, /* or already present */
    RESULT_USAGE = 2,
    RESULT_UNREACHABLE = 3,
    RESULT_REFUSED = 4, /* the daemon answered an error */
    RESULT_LOCAL = 5    /* a file can't be read or written, or memory is short */
};

/* A number of which 0 says something else than nothing. */
struct optional_number {
    uint32_t number;
    bool is_given;
};

struct arguments {
    const char *socket; /* NULL: the default */
    const char *prefix; /* NULL: none */
    const char *output; /* get: NULL for standard output */
    uint32_t timeout;   /* seconds, 0: the command's */
    uint32_t ttl, flags, lease;
    struct optional_number cost;
    bool overwrite, json, verbose, no_descriptor, help, version;
    int count;    /* of words */
    char **words; /* behind the command's name: a key and so on */
    char **run;   /* memo: what is behind "--", NULL-terminated; NULL: there was none */
};

enum {
    TIMEOUT = 30,      /* seconds, unless --timeout says otherwise */
    TIMEOUT_ALONE = 2, /* where command.alone: a build goes on without the cache */
};

/* What a command works with. */
struct cli {
    struct streams streams;
    struct arguments arguments;
    unsigned timeout;          /* milliseconds */
    struct liara_cache *cache; /* NULL: memory is short, only where command.alone */
    struct progress progress;
};

struct command {
    const char *name;
    const char *usage; /* what is behind the name */
    const char *text;  /* what it does, for --help */
    int least, most;   /* words */
    const char *takes; /* letters of the options in options.c that are its own */
    bool alone;        /* it goes on without a daemon, and sees to --prefix itself */
    int (*call)(struct cli *cli);
};

/* The table, ended by a NULL name. */
extern const struct command commands[];

int command_get(struct cli *cli);
int command_put(struct cli *cli);
int command_head(struct cli *cli);
int command_delete(struct cli *cli);
int command_clear(struct cli *cli);
int command_inspect(struct cli *cli);
int command_persist(struct cli *cli);
int command_ping(struct cli *cli);
int command_memo(struct cli *cli);

/* One line "liara-cache-cli: …" on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The result for what the library returned; an error is complained about. */
int report(struct cli *cli, enum liara_cache_status status);

/* Whether standard output can be printed to; if it is closed, that is complained about. */
bool can_print(const struct cli *cli);

/* Ends what was printed: RESULT_LOCAL with a complaint where it could not all be written. */
int finish_output(void);

#endif
