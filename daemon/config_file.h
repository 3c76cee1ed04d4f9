/*
 * The form of a configuration file: which bytes are an option's name and which its value. Lines are
 * taken apart by libinih, one at a time, so that every complaint has its line. The main thread
 * only.
 */
#ifndef LIARA_CONFIG_FILE_H
#define LIARA_CONFIG_FILE_H

#include <stdbool.h>
#include <stdio.h>

enum {
    CONFIG_FILE_MAX = 1024 * 1024, /* bytes */
    CONFIG_LINE_MAX = 4607,        /* bytes: a path and its option's name fit */
    CONFIG_NAME_SIZE = 64,         /* of a name; a longer one is cut and matches none */
};

/* Who reads. Both return whether the rest of the file is wanted. */
struct config_reader {
    void *arg;
    bool (*option)(void *arg, unsigned line, const char *name, const char *value);
    /* why: what is wrong; what would be right. line 0: the file as a whole. */
    bool (*complaint)(void *arg, unsigned line, const char *why);
};

/* Reads the whole file. False where the reader wanted no more of it. */
bool config_file_read(FILE *file, const struct config_reader *reader);

#endif
