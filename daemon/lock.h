/*
 * A lock file: who holds it owns what it stands for (a store, a socket) for its lifetime.
 */
#ifndef LIARA_LOCK_H
#define LIARA_LOCK_H

#include <stddef.h>

/*
 * Takes the lock at path, which is made if need be and never removed (removing it would let two
 * hold "the" lock), and writes our process number into it. Returns a descriptor whose closing gives
 * the lock up, the end of the process too; -1 with why, which names what and the holder's process
 * where it is held already. Any thread.
 */
int lock_take(const char *path, const char *what, char *why, size_t size);

#endif
