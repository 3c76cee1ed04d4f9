/*
 * The configuration: one table of options (config.c) that the file, the command line, --help and
 * --print-config share, read into one plain struct that nobody changes afterwards.
 */
#ifndef LIARA_CONFIG_H
#define LIARA_CONFIG_H

#include "limits.h"
#include "log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct config {
    char *config; /* the file that was read, or NULL */
    char *socket;
    uint32_t socket_mode;
    char *backend;        /* a name that store_find() knows */
    char *directory;      /* of the persistent backends */
    uint64_t max_size;    /* bytes in the store */
    uint64_t memory_size; /* bytes of memory of a store that keeps values elsewhere */
    uint64_t max_value_size;
    uint64_t max_inflight; /* bytes of values on their way, all connections together */
    uint64_t max_inflight_per_connection;
    uint64_t max_unread;
    uint32_t workers;   /* at least 1: 0 in the file has become config_workers() */
    uint32_t busy_poll; /* microseconds that a worker looks for work before it sleeps */
    uint32_t max_connections;
    uint32_t max_leases;
    int64_t idle_timeout; /* times in milliseconds, 0: never */
    int64_t request_timeout;
    int64_t stop_timeout; /* for pending requests at the end */
    enum log_level log_level;
    char *redis_host;
    uint32_t redis_port;
    char *redis_socket; /* "" : by host and port */
    uint32_t redis_database;
    char *redis_password_file; /* "" : none */
    char *redis_prefix;        /* "liara/" */
    int64_t redis_expiration;  /* milliseconds, 0: never */
    int64_t redis_timeout;     /* milliseconds, as the next: at least 1 */
    int64_t redis_connect_timeout;
};

/* What the command line asks for beside options. */
enum config_action { CONFIG_RUN, CONFIG_CHECK, CONFIG_PRINT, CONFIG_VERSION, CONFIG_HELP };

/*
 * Defaults, then the file, then the command line. NULL where anything is wrong: every complaint is
 * printed to err as "FILE:LINE: what is wrong, what would be right" (or "--option: …"), and the
 * caller exits with 2. *action is what the command line asks for; for CONFIG_VERSION and
 * CONFIG_HELP the result may be NULL without a complaint. argv is not kept. The main thread only.
 */
struct config *config_load(int argc, char **argv, enum config_action *action, FILE *err);

void config_free(struct config *config);

/*
 * How many workers `workers = 0` means on so many processors: one for every four or part of four,
 * 1 to 4. The clients need the rest, and each worker that a few clients spread over wakes up for
 * less, which costs more CPU a request.
 */
uint32_t config_workers(uint32_t processors);

/* --print-config: every option as the file would have it, with where its value came from. */
void config_print(const struct config *config, FILE *out);

/* --help: every option with its meaning and default, from the same table. */
void config_help(FILE *out);

/* Copies what may change while running. */
void config_limits(const struct config *config, struct limits *limits);

/*
 * The names of the options that differ between the two and can't change while running, ", " between
 * them, into out; false where there are none.
 */
bool config_fixed_changes(const struct config *old, const struct config *new, char *out,
                          size_t size);

#endif
