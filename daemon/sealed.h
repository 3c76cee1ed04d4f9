/* Files in memory that nobody can change any more. */
#ifndef LIARA_SEALED_H
#define LIARA_SEALED_H

#include <stdint.h>

/*
 * A sealed memfd with length bytes, in large pages where that many fill one at least by half and
 * the machine has some: a client maps those in a fraction of the time. Returns the descriptor, the
 * caller's to close; -1 with errno. Any thread.
 */
int sealed_file(const uint8_t *bytes, uint32_t length);

/* Bytes of memory that one of this length takes at most. */
uint64_t sealed_cost(uint32_t length);

#endif
