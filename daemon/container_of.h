/* From a pointer to a member back to the struct that holds it, checked by the member's type. */
#ifndef LIARA_CONTAINER_OF_H
#define LIARA_CONTAINER_OF_H

#include <stddef.h>

#define container_of(pointer, type, member)                                                        \
    ({                                                                                             \
        __typeof__(((type *)0)->member) *member_pointer = (pointer);                               \
        (type *)(void *)((char *)member_pointer - offsetof(type, member));                         \
    })

#endif
