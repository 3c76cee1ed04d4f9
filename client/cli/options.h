/* The command line: options before and behind the command's name, from one table. */
#ifndef LIARA_CLI_OPTIONS_H
#define LIARA_CLI_OPTIONS_H

#include "command.h"

#include <stdio.h>

/*
 * Reads argv into *arguments, and *command: NULL where --help or --version ask for something else.
 * false: it was complained about. argv is reordered, and the strings stay argv's.
 */
bool options_read(int argc, char **argv, struct arguments *arguments,
                  const struct command **command);

/* All of --help. */
void options_help(FILE *out);

#endif
