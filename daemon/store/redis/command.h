/* Commands as Redis reads them: arrays of words. */
#ifndef LIARA_REDIS_COMMAND_H
#define LIARA_REDIS_COMMAND_H

#include "../../value.h"

#include <string.h>

struct evbuffer;

/* A word of a command: bytes, then those of the value, if there is one. */
struct redis_word {
    const void *bytes;
    size_t length;
    struct value *value; /* a reference, which redis_command_add() takes over */
};

/* A word that is text, which stays in place until the command has been added. */
static inline struct redis_word redis_text(const char *text)
{
    return (struct redis_word){.bytes = text, .length = strlen(text)};
}

/* Adds a command. A large value is not copied: out refers to it. At most one word has a value.
 * false: no memory; out is then of no more use. */
bool redis_command_add(struct evbuffer *out, const struct redis_word *words, unsigned count);

#endif
