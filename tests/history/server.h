/* A daemon with a folder of its own, that a check starts, kills and starts again. */
#ifndef LIARA_TESTS_SERVER_H
#define LIARA_TESTS_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { SERVER_OPTIONS = 32 };

struct server {
    const char *program;
    const char *backend;
    char folder[64], socket[96], store[96], log[96];
    const char *options[SERVER_OPTIONS]; /* more of its command line, NULL behind the last */
    char *const *environment;            /* added to ours; NULL: nothing */
    unsigned seconds;                    /* how long anything may take */
    pid_t pid;                           /* 0: it does not run */
};

/* Makes the folder. False with a message. */
bool server_init(struct server *server);
/* Starts it and waits until it answers. False with a message, which shows the end of its log. */
bool server_start(struct server *server);
/* The same, but false without a message if it ended by itself before it answered; *status is how.
 */
bool server_try_start(struct server *server, int *status);
/* kill -9, and returns when it is gone: the time, in nanoseconds. */
uint64_t server_kill(struct server *server);
/* Ends it as systemd would. False with a message if it did not end in time, or with another status
 * than 0. */
bool server_stop(struct server *server);
/* False with a message if it has ended by itself. */
bool server_runs(struct server *server);
/* Kills it if it runs, and removes its folder unless that is to be kept. */
void server_free(struct server *server, bool keep);

#endif
