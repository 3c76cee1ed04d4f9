/* What puts one value: from memory, from a descriptor of any kind. */
#include "ask.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PASS_BYTES = 128 * 1024, /* a regular file from this size on goes as a descriptor */
    CHUNK_BYTES = 64 * 1024, /* of a value that is read and sent piece by piece */
};

struct memory_value {
    struct ask_value value;
    const void *bytes;
    size_t length;
};

struct passed_value {
    struct ask_value value;
    int fd;
};

struct streamed_value {
    struct ask_value value;
    int fd;
    off_t offset; /* of the first byte; -1: the descriptor can't go back */
    bool begun;
    uint64_t length, left;
    bool ended;
    char *chunk; /* CHUNK_BYTES and one for the LF */
};

/* The request of a PUT but for the value's length. */
static enum liara_cache_status begin(struct liara_cache *cache, const void *key, size_t key_length,
                                     const struct liara_cache_put_options *options,
                                     struct request *request)
{
    handle_begin(cache);
    ask_request(request, VERB_PUT);
    request->has_cost = cache->has_put_cost;
    request->cost = cache->put_cost;
    cache->has_put_cost = false;
    if (options) {
        request->flags = options->flags;
        request->ttl = options->ttl;
        request->overwrite = options->overwrite;
    }
    return ask_key(cache, request, key, key_length);
}

static enum liara_cache_status put(struct liara_cache *cache, struct request *request,
                                   struct ask_value *value)
{
    struct reply reply;
    enum liara_cache_status status = ask(cache, request, value, &reply);
    if (status != LIARA_CACHE_OK || reply.kind == REPLY_STORED)
        return status;
    return reply.kind == REPLY_EXISTS ? LIARA_CACHE_EXISTS : ask_unexpected(cache);
}

static bool start_memory(struct ask_value *value, struct wire_output *output)
{
    static char line_feed[] = "\n";
    const struct memory_value *memory = (const struct memory_value *)value;
    output->parts[1].iov_base = (void *)(uintptr_t)memory->bytes;
    output->parts[1].iov_len = memory->length;
    output->parts[2].iov_base = line_feed;
    output->parts[2].iov_len = 1;
    output->count = 3;
    return true;
}

static enum liara_cache_status put_memory(struct liara_cache *cache, struct request *request,
                                          const void *bytes, size_t length)
{
    struct memory_value memory = {{start_memory}, bytes, length};
    request->length = length;
    return put(cache, request, &memory.value);
}

enum liara_cache_status liara_cache_put(struct liara_cache *cache, const void *key,
                                        size_t key_length, const void *bytes, size_t length,
                                        const struct liara_cache_put_options *options)
{
    struct request request;
    enum liara_cache_status status = begin(cache, key, key_length, options, &request);
    return status == LIARA_CACHE_OK ? put_memory(cache, &request, bytes, length) : status;
}

static bool start_passed(struct ask_value *value, struct wire_output *output)
{
    output->descriptor = ((const struct passed_value *)value)->fd;
    return true;
}

static enum liara_cache_status put_passed(struct liara_cache *cache, struct request *request,
                                          int fd, uint64_t length)
{
    struct passed_value passed = {{start_passed}, fd};
    request->length = length;
    request->fd = true;
    return put(cache, request, &passed.value);
}

static enum liara_cache_status next_chunk(struct liara_cache *cache, struct wire_output *output)
{
    struct streamed_value *streamed = output->context;
    if (streamed->ended)
        return LIARA_CACHE_OK;
    size_t size = streamed->left < CHUNK_BYTES ? (size_t)streamed->left : CHUNK_BYTES;
    off_t offset =
        streamed->offset < 0 ? -1 : streamed->offset + (off_t)(streamed->length - streamed->left);
    streamed->begun = true;
    ssize_t got = file_read(streamed->fd, streamed->chunk, size, offset);
    if (got < 0)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "can't read the value: %m");
    if ((size_t)got < size) {
        errno = ENODATA;
        return handle_fail(cache, LIARA_CACHE_LOCAL,
                           "the value ended %llu bytes before its length of %llu",
                           (unsigned long long)(streamed->left - (uint64_t)got),
                           (unsigned long long)streamed->length);
    }
    streamed->left -= size;
    if (streamed->left == 0) {
        streamed->chunk[size++] = '\n';
        streamed->ended = true;
    }
    output->parts[0].iov_base = streamed->chunk;
    output->parts[0].iov_len = size;
    output->first = 0;
    output->count = 1;
    return LIARA_CACHE_OK;
}

static bool start_streamed(struct ask_value *value, struct wire_output *output)
{
    struct streamed_value *streamed = (struct streamed_value *)value;
    if (streamed->begun && streamed->offset < 0)
        return false;
    streamed->left = streamed->length;
    streamed->ended = false;
    output->more = next_chunk;
    output->context = streamed;
    return true;
}

static enum liara_cache_status put_streamed(struct liara_cache *cache, struct request *request,
                                            int fd, off_t offset, uint64_t length)
{
    struct streamed_value streamed = {.value = {start_streamed},
                                      .fd = fd,
                                      .offset = offset,
                                      .length = length,
                                      .chunk = malloc(CHUNK_BYTES + 1)};
    if (!streamed.chunk)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no memory to read the value with");
    request->length = length;
    enum liara_cache_status status = put(cache, request, &streamed.value);
    int saved = errno;
    free(streamed.chunk);
    errno = saved;
    return status;
}

/* The end of a pipe's value is found by reading on into an unnamed file. */
static enum liara_cache_status put_spooled(struct liara_cache *cache, struct request *request,
                                           int fd, const char *head, size_t head_length)
{
    int spool = file_unnamed();
    if (spool < 0)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no temporary file for the value: %m");
    int64_t copied = file_write(spool, head, head_length) ? file_copy(fd, spool) : -1;
    enum liara_cache_status status;
    if (copied < 0)
        status =
            handle_fail(cache, LIARA_CACHE_LOCAL, "can't copy the value to a temporary file: %m");
    else
        status = put_passed(cache, request, spool, head_length + (uint64_t)copied);
    int saved = errno;
    close(spool);
    errno = saved;
    return status;
}

/* Most of what comes through a pipe is small: what ends within one chunk needs no file. */
static enum liara_cache_status put_to_end(struct liara_cache *cache, struct request *request,
                                          int fd)
{
    char *head = malloc(CHUNK_BYTES);
    if (!head)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no memory to read the value with");
    enum liara_cache_status status;
    ssize_t length = file_read(fd, head, CHUNK_BYTES, -1);
    if (length < 0)
        status = handle_fail(cache, LIARA_CACHE_LOCAL, "can't read the value: %m");
    else if (length < CHUNK_BYTES)
        status = put_memory(cache, request, head, (size_t)length);
    else
        status = put_spooled(cache, request, fd, head, (size_t)length);
    int saved = errno;
    free(head);
    errno = saved;
    return status;
}

/* offset is that of a regular file; as a descriptor it can go only whole and for reading. */
static enum liara_cache_status put_regular(struct liara_cache *cache, struct request *request,
                                           int fd, off_t offset, uint64_t length)
{
    int mode = fcntl(fd, F_GETFL);
    if (length >= PASS_BYTES && offset == 0 && mode >= 0 && (mode & O_ACCMODE) != O_WRONLY)
        return put_passed(cache, request, fd, length);
    return put_streamed(cache, request, fd, offset, length);
}

static enum liara_cache_status put_any(struct liara_cache *cache, struct request *request, int fd,
                                       int64_t length)
{
    struct stat file;
    if (fstat(fd, &file) != 0)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "can't read the value: %m");
    off_t offset = S_ISREG(file.st_mode) ? lseek(fd, 0, SEEK_CUR) : -1;
    /* Files of /proc and the like say that they have no bytes, and are read like a pipe. */
    if (offset < 0 || file.st_size == 0)
        return length < 0 ? put_to_end(cache, request, fd)
                          : put_streamed(cache, request, fd, -1, (uint64_t)length);
    uint64_t left = offset < file.st_size ? (uint64_t)(file.st_size - offset) : 0;
    if (length >= 0 && (uint64_t)length > left) {
        errno = ENODATA;
        return handle_fail(cache, LIARA_CACHE_LOCAL, "the file has %llu bytes left, not %lld",
                           (unsigned long long)left, (long long)length);
    }
    return put_regular(cache, request, fd, offset, length >= 0 ? (uint64_t)length : left);
}

enum liara_cache_status liara_cache_put_fd(struct liara_cache *cache, const void *key,
                                           size_t key_length, int fd, int64_t length,
                                           const struct liara_cache_put_options *options)
{
    struct request request;
    enum liara_cache_status status = begin(cache, key, key_length, options, &request);
    if (status != LIARA_CACHE_OK)
        return status;
    if (length < -1)
        return handle_fail(cache, LIARA_CACHE_USAGE, "a value can't have %lld bytes",
                           (long long)length);
    return put_any(cache, &request, fd, length);
}
