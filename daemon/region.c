#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

/* Maps the memfd at a multiple of a large page: only there can its pages become large ones. */
static uint8_t *map_aligned(int fd, uint64_t size)
{
    size_t room_size = size + REGION_LARGE_PAGE;
    uint8_t *room =
        mmap(NULL, room_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    uint8_t *begin = room + -(uintptr_t)room % REGION_LARGE_PAGE;
    uint8_t *end = begin + size;
    if (begin > room)
        munmap(room, (size_t)(begin - room));
    if (end < room + room_size)
        munmap(end, (size_t)(room + room_size - end));
    uint8_t *base = mmap(begin, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (base != MAP_FAILED)
        return base;
    munmap(begin, size);
    return NULL;
}

bool region_open(struct region *region, const char *name, uint64_t size)
{
    *region = (struct region){.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (region->fd < 0)
        return false;
    region->size = (size + REGION_LARGE_PAGE - 1) / REGION_LARGE_PAGE * REGION_LARGE_PAGE;
    if (ftruncate(region->fd, (off_t)region->size) == 0 &&
        (region->base = map_aligned(region->fd, region->size)) != NULL) {
        /* A core dump is no place for what clients keep here. */
        madvise(region->base, region->size, MADV_DONTDUMP);
        return true;
    }
    int saved = errno;
    close(region->fd);
    *region = (struct region){.fd = -1};
    errno = saved;
    return false;
}

void region_close(struct region *region)
{
    if (region->base == NULL)
        return;
    munmap(region->base, region->size);
    close(region->fd);
    *region = (struct region){.fd = -1};
}

void region_use_large_page(struct region *region, uint64_t offset)
{
    /* Only pages that are there can be made one large one. */
    __atomic_fetch_add(region->base + offset, 0, __ATOMIC_RELAXED);
    madvise(region->base + offset, REGION_LARGE_PAGE, MADV_COLLAPSE);
}

bool region_release(struct region *region, uint64_t offset, uint64_t size)
{
    return fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)size) == 0;
}
