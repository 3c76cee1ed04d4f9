/*
 * One option of the configuration: what kind of value it takes, which field of struct config holds
 * it, what is allowed. The table of all of them stands in config.c. Pure but for option_set()'s
 * look at a file that has to be readable. The main thread only.
 */
#ifndef LIARA_OPTION_H
#define LIARA_OPTION_H

#include "config.h"

enum option_kind {
    OPTION_SIZE,    /* uint64_t, bytes */
    OPTION_NUMBER,  /* uint32_t */
    OPTION_TIME,    /* int64_t, milliseconds */
    OPTION_MODE,    /* uint32_t, permissions */
    OPTION_LEVEL,   /* enum log_level */
    OPTION_BACKEND, /* from here on char *, allocated: a name that store_find() knows */
    OPTION_TEXT,
    OPTION_PATH,     /* absolute */
    OPTION_SOCKET,   /* the path of a socket, not of a folder */
    OPTION_READABLE, /* the path of a file that the daemon must be able to read */
};

enum {
    OPTION_PATH_MAX = 4000,   /* bytes of a path */
    OPTION_VALUE_SIZE = 4200, /* room for any value as text */
    OPTION_WHY_SIZE = 512,    /* room for any complaint */
};

/* Computes a default that depends on who runs the daemon; *note (static) says from what. False
 * where none is known. */
typedef bool option_default(char *out, size_t size, const char **note);

struct option {
    const char *name;
    enum option_kind kind;
    size_t offset;           /* in struct config */
    uint64_t min, max;       /* of the number, or of the text's bytes */
    bool live;               /* may change while the daemon runs */
    const char *fallback;    /* the default, as a file would have it */
    option_default *compute; /* or what computes it; fallback is then what --help shows */
    const char *help;
};

/* Reads text into the option's field, freeing what was there. False with the field unchanged and in
 * why (OPTION_WHY_SIZE): what is wrong; what would be right. */
bool option_set(const struct option *option, struct config *config, const char *text, char *why);

/* The field as option_set() would read it, into out (OPTION_VALUE_SIZE). */
void option_format(const struct option *option, const struct config *config, char *out);

/* Frees what the field holds. */
void option_clear(const struct option *option, struct config *config);

/* What --help calls a value of the kind, "SIZE". Static. */
const char *option_argument(enum option_kind kind);

/* Text from outside as a complaint may show it: short, and without what moves a cursor. */
struct option_shown {
    char text[84];
};
struct option_shown option_show(const char *text);

#endif
