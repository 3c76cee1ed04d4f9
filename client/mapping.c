/* What gives a value as it lies, without a copy: mapped, or as an open file. */
#include "ask.h"
#include "descriptor.h"
#include "get.h"
#include "receive.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What can't be mapped is held in memory. */
static enum liara_cache_status hold(struct liara_cache *cache, const struct hit *hit,
                                    struct liara_cache_mapping *mapping)
{
    struct liara_cache_value value;
    enum liara_cache_status status = receive_value(cache, &hit->reply, &hit->passed, &value);
    if (status != LIARA_CACHE_OK)
        return status;
    if (hit->passed.fd < 0)
        ask_end(cache);
    mapping->bytes = mapping->base = value.bytes;
    return LIARA_CACHE_OK;
}

enum liara_cache_status liara_cache_map(struct liara_cache *cache, const void *key,
                                        size_t key_length, struct liara_cache_mapping *mapping)
{
    struct hit hit;
    memset(mapping, 0, sizeof(*mapping));
    enum liara_cache_status status = get_begin(cache, key, key_length, 0, &hit);
    if (status != LIARA_CACHE_OK)
        return status;
    if (hit.passed.fd >= 0)
        mapping->bytes = passed_map(&hit.passed, &mapping->base, &mapping->size);
    if (!mapping->bytes)
        status = hold(cache, &hit, mapping);
    passed_close(&hit.passed);
    if (status != LIARA_CACHE_OK)
        return status;
    mapping->length = hit.reply.length;
    mapping->flags = hit.reply.flags;
    mapping->ttl = hit.reply.ttl;
    return status;
}

void liara_cache_unmap(struct liara_cache_mapping *mapping)
{
    if (mapping->size > 0)
        munmap(mapping->base, mapping->size);
    else
        liara_cache_free(mapping->base);
    memset(mapping, 0, sizeof(*mapping));
}

/* A file in memory that nobody can change any more, as the daemon makes them of larger values. */
static enum liara_cache_status spool(struct liara_cache *cache, const struct hit *hit, int *out)
{
    int fd = descriptor_move(memfd_create("liara-cache-value", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0) {
        wire_drop(&cache->wire);
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no file for the value: %m");
    }
    enum liara_cache_status status = get_write(cache, hit, fd);
    if (status == LIARA_CACHE_OK &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        status = handle_fail(cache, LIARA_CACHE_LOCAL, "can't seal the value's file: %m");
    if (status == LIARA_CACHE_OK) {
        *out = fd;
        return status;
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return status;
}

enum liara_cache_status liara_cache_open_value(struct liara_cache *cache, const void *key,
                                               size_t key_length, struct liara_cache_file *file)
{
    struct hit hit;
    *file = (struct liara_cache_file){.fd = -1};
    enum liara_cache_status status = get_begin(cache, key, key_length, 0, &hit);
    if (status != LIARA_CACHE_OK)
        return status;
    int fd = hit.passed.fd;
    if (fd < 0)
        status = spool(cache, &hit, &fd);
    if (status != LIARA_CACHE_OK)
        return status;
    *file =
        (struct liara_cache_file){.fd = fd,
                                  .offset = fd == hit.passed.fd ? (uint64_t)hit.passed.offset : 0,
                                  .length = hit.reply.length,
                                  .flags = hit.reply.flags,
                                  .ttl = hit.reply.ttl};
    return LIARA_CACHE_OK;
}
