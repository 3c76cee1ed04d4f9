/*
 * A stretch of memory backed by a memfd: reserved at once, backed by pages as it is used, given
 * back in parts. In pages of 2 MiB where asked for and the kernel can (MADV_COLLAPSE), otherwise in
 * small ones. Offsets in it are the same for everyone who maps the memfd.
 */
#ifndef LIARA_REGION_H
#define LIARA_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGION_LARGE_PAGE ((uint64_t)2 << 20)

struct region {
    uint8_t *base; /* NULL: none; a multiple of REGION_LARGE_PAGE */
    uint64_t size;
    int fd;
};

/* Reserves size bytes (rounded up to REGION_LARGE_PAGE) without using memory yet. name: what
 * /proc/PID/maps shows. false with errno. */
bool region_open(struct region *region, const char *name, uint64_t size);

/* Unmaps and closes; fine for one that is zeroed. */
void region_close(struct region *region);

/*
 * Backs one large page, at a multiple of REGION_LARGE_PAGE, with memory at once instead of 512
 * small ones as they are touched. Nothing is lost where that is not to be had. Any thread; not
 * twice for one page at the same time.
 */
void region_use_large_page(struct region *region, uint64_t offset);

/* Gives the memory of a part (multiples of 4,096) back to the system; it reads as zeros afterwards.
 * false with errno: it stays. Any thread. */
bool region_release(struct region *region, uint64_t offset, uint64_t size);

#endif
