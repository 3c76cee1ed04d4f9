/* Runs memo's COMMAND. */
#ifndef LIARA_CLI_RUN_H
#define LIARA_CLI_RUN_H

#include <stdbool.h>
#include <stdint.h>

/* Becomes COMMAND. Returns only where that can't be done: complained about, 127 or 126. */
int run_instead(char *const command[]);

/*
 * Runs COMMAND, whose standard output goes to this program's and, up to limit bytes, to the file
 * spool. SIGINT, SIGTERM, SIGHUP and SIGQUIT that this program is sent meanwhile go to COMMAND.
 * Returns its exit status, 128 and the signal's number where one ended it; *whole: spool has all
 * that it printed, and all was printed.
 */
int run_and_keep(char *const command[], int spool, uint64_t limit, bool *whole);

#endif
