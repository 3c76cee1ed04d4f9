/* A file that appears under its name only when it is complete. */
#ifndef LIARA_CLI_OUTPUT_H
#define LIARA_CLI_OUTPUT_H

#include <limits.h>
#include <stdbool.h>

struct output {
    int fd;              /* to write to */
    bool in_place;       /* name is a device or a pipe */
    bool named;          /* there is a file beside */
    char name[PATH_MAX]; /* what it will be */
    char beside[PATH_MAX];
};

/* Begins path. false: complained about, nothing was made. */
bool output_open(struct output *output, const char *path);

/* All is written: the file takes the name, whatever was there. false: complained about. */
bool output_commit(struct output *output);

/* Nothing of it remains, and what was under the name is as it was. */
void output_abandon(struct output *output);

#endif
