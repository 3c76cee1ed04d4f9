/* The three standard streams, any of which may be closed when the program starts. */
#ifndef LIARA_CLI_STREAMS_H
#define LIARA_CLI_STREAMS_H

#include <stdbool.h>

struct streams {
    bool closed[3]; /* by descriptor */
};

/*
 * Finds out which are closed, and occupies their descriptors, so that no file or socket of this
 * program takes their place. COMMAND does not inherit what occupies them. To be called first; false
 * with errno where that can't be done.
 */
bool streams_occupy(struct streams *streams);

/* Whether the stream, STDIN_FILENO or STDOUT_FILENO, was open. If not, that is complained about. */
bool streams_need(const struct streams *streams, int stream);

#endif
