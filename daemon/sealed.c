#include "sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

enum { PAGE = 4096, LARGE_PAGE = 2 * 1024 * 1024, LARGE_LEAST = LARGE_PAGE / 2 };

/* How much of the file is to be in large pages, which may reach beyond its end. */
static uint64_t large_part(uint32_t length)
{
    uint64_t more = length % LARGE_PAGE;
    return length - more + (more >= LARGE_LEAST ? LARGE_PAGE : 0);
}

uint64_t sealed_cost(uint32_t length)
{
    uint64_t large = large_part(length);
    uint64_t small = ((uint64_t)length + PAGE - 1) / PAGE * PAGE;
    return large > small ? large : small;
}

/* One byte in each: only a page that is there can become a large one. */
static bool begin_pages(int fd, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += LARGE_PAGE) {
        if (pwrite(fd, "", 1, (off_t)at) != 1)
            return false;
    }
    return true;
}

/*
 * What the machine does by itself with large pages does not matter here, for it is asked for them.
 * Where it has none, or its kernel can't, the file gets small ones as it is written.
 */
static void take_large_pages(int fd, uint64_t size)
{
    size_t room_size = size + LARGE_PAGE;
    char *room =
        mmap(NULL, room_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return;
    char *begin = room + -(uintptr_t)room % LARGE_PAGE;
    char *memory = mmap(begin, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (memory != MAP_FAILED)
        madvise(memory, size, MADV_COLLAPSE);
    munmap(room, room_size);
}

static bool write_all(int fd, const uint8_t *bytes, uint32_t length)
{
    off_t at = 0;
    while (at < (off_t)length) {
        ssize_t got = pwrite(fd, bytes + at, length - (size_t)at, at);
        if (got < 0 && errno != EINTR)
            return false;
        at += got > 0 ? got : 0;
    }
    return true;
}

static bool fill(int fd, const uint8_t *bytes, uint32_t length)
{
    uint64_t large = large_part(length);
    if (ftruncate(fd, (off_t)length) != 0)
        return false;
    if (large > 0 && begin_pages(fd, large))
        take_large_pages(fd, large);
    return write_all(fd, bytes, length) &&
           fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0;
}

int sealed_file(const uint8_t *bytes, uint32_t length)
{
    int fd = memfd_create("liara-cache-value", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fill(fd, bytes, length))
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}
