#include "passed.h"

#include "ask.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PIECE = 16 * 1024 * 1024, /* bytes between two calls of progress */
    MAP_LEAST = 256 * 1024,   /* bytes below which a copy costs less than the pages' faults */
    HUGE_PAGE = 2 * 1024 * 1024,
    HUGE_LEAST = HUGE_PAGE / 2 /* from here on the daemon takes large pages */
};

static bool holds_value(int fd, uint64_t offset, uint64_t length)
{
    struct stat file;
    return fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && offset <= (uint64_t)file.st_size &&
           length <= (uint64_t)file.st_size - offset;
}

enum liara_cache_status passed_take(struct liara_cache *cache, const struct reply *reply,
                                    struct passed *passed)
{
    passed->fd = wire_take_descriptor(&cache->wire);
    if (passed->fd < 0 || !holds_value(passed->fd, reply->offset, reply->length)) {
        passed_close(passed);
        wire_drop(&cache->wire);
        return handle_fail(cache, LIARA_CACHE_PROTOCOL,
                           "%s: no descriptor of the value came with the answer", cache->path);
    }
    passed->offset = (off_t)reply->offset;
    passed->end = (off_t)(reply->offset + reply->length);
    ask_end(cache);
    wire_expect(&cache->wire, reply->length);
    return LIARA_CACHE_OK;
}

void passed_close(struct passed *passed)
{
    int saved = errno;
    if (passed->fd >= 0)
        close(passed->fd);
    passed->fd = -1;
    errno = saved;
}

/* Less came than was to come: a part, or -1 with errno. */
static enum liara_cache_status failed(struct liara_cache *cache, const char *what, int64_t came)
{
    if (came < 0)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "can't %s the value: %m", what);
    return handle_fail(cache, LIARA_CACHE_PROTOCOL, "%s: the file of the value was cut short",
                       cache->path);
}

static size_t piece_of(off_t left)
{
    return left < PIECE ? (size_t)left : PIECE;
}

enum liara_cache_status passed_read(struct liara_cache *cache, const struct passed *passed,
                                    void *bytes)
{
    for (off_t at = passed->offset; at < passed->end;) {
        size_t piece = piece_of(passed->end - at);
        ssize_t got = file_read(passed->fd, (char *)bytes + (at - passed->offset), piece, at);
        if (got != (ssize_t)piece)
            return failed(cache, "read", got);
        at += got;
        wire_passed(cache, piece);
    }
    return LIARA_CACHE_OK;
}

enum liara_cache_status passed_write(struct liara_cache *cache, const struct passed *passed, int to)
{
    for (off_t at = passed->offset; at < passed->end;) {
        size_t piece = piece_of(passed->end - at);
        int64_t sent = file_send(passed->fd, at, at + (off_t)piece, to);
        if (sent != (int64_t)piece)
            return failed(cache, "write", sent);
        at += sent;
        wire_passed(cache, piece);
    }
    return LIARA_CACHE_OK;
}

/* A file that may shrink would end the process by SIGBUS, one that may change would change. */
static bool is_sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) && (seals & F_SEAL_WRITE);
}

/*
 * Where large pages of the file, if it has any, can be mapped as such: at an address as far from a
 * large page's beginning as begin is, and all of the last one, also where the file ends in it.
 */
static char *map_aligned(int fd, off_t begin, size_t length, void **base, size_t *size)
{
    size_t more = (size_t) - (begin + (off_t)length) % HUGE_PAGE;
    size_t room_size = length + more + HUGE_PAGE;
    char *room =
        mmap(NULL, room_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    size_t skip = ((uintptr_t)begin - (uintptr_t)room) % HUGE_PAGE;
    char *memory = mmap(room + skip, length + more, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, begin);
    if (memory == MAP_FAILED) {
        munmap(room, room_size);
        return NULL;
    }
    *base = room;
    *size = room_size;
    return memory;
}

static char *map_anywhere(int fd, off_t begin, size_t length, void **base, size_t *size)
{
    char *memory = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, begin);
    if (memory == MAP_FAILED)
        return NULL;
    *base = memory;
    *size = length;
    return memory;
}

const void *passed_map(const struct passed *passed, void **base, size_t *size)
{
    if (passed->end - passed->offset < MAP_LEAST || !is_sealed(passed->fd))
        return NULL;
    off_t before = passed->offset % sysconf(_SC_PAGESIZE), begin = passed->offset - before;
    size_t length = (size_t)(passed->end - begin);
    const char *memory = length < HUGE_LEAST ? map_anywhere(passed->fd, begin, length, base, size)
                                             : map_aligned(passed->fd, begin, length, base, size);
    return memory ? memory + before : NULL;
}
