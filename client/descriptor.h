/*
 * Keeps the library off descriptors 0 to 2. A process may run with one of them closed; the next
 * descriptor that is made takes its place, and what the process then prints would go into the
 * connection or into a value.
 */
#ifndef LIARA_CLIENT_DESCRIPTOR_H
#define LIARA_CLIENT_DESCRIPTOR_H

#include <stdbool.h>

/*
 * Takes over a descriptor that was just made or received; fd may be -1 with errno. Returns fd, or
 * where that is 0 to 2 a duplicate above them that is closed on exec, with fd closed; -1 with errno
 * where none could be made, with fd closed all the same.
 */
int descriptor_move(int fd);

/* pipe2() with O_CLOEXEC, both ends above 2. false with errno: none is open. */
bool descriptor_pipe(int ends[2]);

#endif
