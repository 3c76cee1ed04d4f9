/* Bytes in a store's memory, which stay there and do not change until they are released. */
#ifndef LIARA_PINNED_H
#define LIARA_PINNED_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct pinned {
    const uint8_t *bytes; /* NULL: nothing is pinned */
    atomic_uint *pins;    /* counts the readers of what the bytes lie in */
};

/* Once for each pin, by any thread; fine where nothing is pinned. */
static inline void pinned_release(struct pinned *pinned)
{
    if (pinned->bytes != NULL)
        atomic_fetch_sub_explicit(pinned->pins, 1, memory_order_release);
    pinned->bytes = NULL;
}

#endif
