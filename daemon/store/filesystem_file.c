#include "filesystem_file.h"

#include "../../proto/message.h"
#include "../clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 256 * 1024 }; /* of a value that is checked and not kept */

static const uint64_t MAGIC = 0x314546415241494c; /* "LIARAFE1" where the lowest byte comes first */

XXH128_hash_t fs_file_hash(const uint8_t *key, size_t length)
{
    return XXH3_128bits(key, length);
}

unsigned fs_file_folder(XXH128_hash_t hash)
{
    return (unsigned)(hash.high64 >> 56);
}

void fs_file_name(XXH128_hash_t hash, char name[FS_NAME_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *out = name;
    for (unsigned i = 0; i < 32; i++) {
        uint64_t half = i < 16 ? hash.high64 : hash.low64;
        *out++ = digits[half >> (60 - i % 16 * 4) & 15];
        if (i == 1)
            *out++ = '/';
    }
    *out = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool fs_file_parse_name(unsigned folder, const char *name, XXH128_hash_t *hash)
{
    uint64_t halves[2] = {folder, 0};
    for (unsigned i = 2; i < 32; i++) {
        int value = digit(*name++);
        if (value < 0)
            return false;
        halves[i / 16] = halves[i / 16] << 4 | (uint64_t)value;
    }
    hash->high64 = halves[0];
    hash->low64 = halves[1];
    return *name == '\0';
}

static uint64_t check_head(const struct fs_header *header, const uint8_t *key)
{
    const size_t start = offsetof(struct fs_header, end);
    uint64_t fields = XXH3_64bits((const uint8_t *)header + start, sizeof(*header) - start);
    return XXH3_64bits_withSeed(key, header->key_length, fields);
}

void fs_file_fill_header(struct fs_header *header, const struct value *value)
{
    bool ends = value->expires != CLOCK_NEVER;
    *header = (struct fs_header){
        .magic = MAGIC,
        .end = clock_to_wall(value->expires),
        .ttl = ends ? value->expires - clock_now() : CLOCK_NEVER,
        .flags = value->flags,
        .length = value->length,
        .key_length = value->key_length,
    };
    header->head_check = check_head(header, value_key(value));
    header->value_check =
        XXH3_64bits_withSeed(value->data + value->key_length, value->length, header->head_check);
}

bool fs_file_write_parts(int fd, struct iovec *parts, int count)
{
    while (count > 0) {
        ssize_t done = writev(fd, parts, count);
        if (done < 0 && errno != EINTR)
            return false;
        for (; count > 0 && done >= (ssize_t)parts->iov_len; parts++, count--)
            done -= (ssize_t)parts->iov_len;
        if (count > 0 && done > 0) {
            parts->iov_base = (uint8_t *)parts->iov_base + done;
            parts->iov_len -= (size_t)done;
        }
    }
    return true;
}

static int write_file(int directory, const char *name, struct iovec *parts, int count)
{
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return errno;
    int error = fs_file_write_parts(fd, parts, count) ? 0 : errno;
    /* A file system may tell of a full disk or quota only now. */
    if (close(fd) != 0 && error == 0 && errno != EINTR)
        error = errno;
    if (error != 0)
        unlinkat(directory, name, 0);
    return error;
}

/* writev() takes no pointer to const, and changes nothing. */
static struct iovec part(const void *bytes, size_t length)
{
    const union {
        const void *from;
        void *to;
    } data = {.from = bytes};
    return (struct iovec){.iov_base = data.to, .iov_len = length};
}

int fs_file_write(int directory, const char *name, const struct value *value)
{
    struct fs_header header;
    fs_file_fill_header(&header, value);
    struct iovec parts[] = {part(&header, sizeof(header)),
                            part(value->data, (size_t)value->key_length + value->length)};
    return write_file(directory, name, parts, 2);
}

int fs_file_write_image(int directory, const char *name, const uint8_t *image, size_t length)
{
    struct iovec parts[] = {part(image, length)};
    return write_file(directory, name, parts, 1);
}

/* Reads up to length bytes; fewer only at the file's end. Negative with errno. */
static ssize_t read_at(int fd, uint8_t *bytes, size_t length, uint64_t offset)
{
    size_t have = 0;
    while (have < length) {
        ssize_t got = pread(fd, bytes + have, length - have, (off_t)(offset + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

/* What a device can't read is damage like any other; what we lack ourselves is not. */
static enum fs_file_result read_failed(const char **what)
{
    if (errno == ENOMEM || errno == EAGAIN)
        return FS_FILE_FAILED;
    *what = "it can't be read";
    return FS_FILE_DAMAGED;
}

/* NULL, or what is wrong with the head of an image of size bytes, of which there are have. */
static const char *judge(const struct fs_header *header, const uint8_t *key, size_t have,
                         uint64_t size)
{
    if (have < sizeof(*header))
        return "shorter than a header";
    if (header->magic != MAGIC)
        return "not an entry of this version";
    if (header->key_length == 0 || header->key_length > MESSAGE_KEY_MAX)
        return "impossible length of its key";
    if (size != sizeof(*header) + (uint64_t)header->key_length + header->length)
        return "its size is not what its header says";
    if (have < sizeof(*header) + header->key_length)
        return "shorter than its key";
    if (check_head(header, key) != header->head_check)
        return "wrong checksum of its header";
    return NULL;
}

const char *fs_file_check_head(const uint8_t *image, size_t length, struct fs_header *header)
{
    memcpy(header, image, length < sizeof(*header) ? length : sizeof(*header));
    return judge(header, image + sizeof(*header), length, length);
}

static bool right_value(const struct fs_header *header, const uint8_t *bytes)
{
    return XXH3_64bits_withSeed(bytes, header->length, header->head_check) == header->value_check;
}

const char *fs_file_check(const uint8_t *image, size_t length)
{
    struct fs_header header;
    const char *what = fs_file_check_head(image, length, &header);
    if (what == NULL && !right_value(&header, image + sizeof(header) + header.key_length))
        what = "wrong checksum of its value";
    return what;
}

enum fs_file_result fs_file_read_head_at(int fd, uint64_t start, uint64_t size,
                                         struct fs_head *head, const char **what)
{
    ssize_t got = read_at(fd, head->bytes, size < FS_HEAD_SIZE ? size : FS_HEAD_SIZE, start);
    if (got < 0)
        return read_failed(what);
    head->start = start;
    head->have = (size_t)got;
    if (head->have >= sizeof(head->header))
        memcpy(&head->header, head->bytes, sizeof(head->header));
    *what = judge(&head->header, fs_file_key(head), head->have, size);
    return *what == NULL ? FS_FILE_OK : FS_FILE_DAMAGED;
}

enum fs_file_result fs_file_read_head(int fd, struct fs_head *head, const char **what)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return read_failed(what);
    *what = "not a regular file";
    if (!S_ISREG(st.st_mode))
        return FS_FILE_DAMAGED;
    return fs_file_read_head_at(fd, 0, (uint64_t)st.st_size, head, what);
}

const uint8_t *fs_file_key(const struct fs_head *head)
{
    return head->bytes + sizeof(head->header);
}

enum fs_file_result fs_file_read_value(int fd, const struct fs_head *head, struct value *value,
                                       const char **what)
{
    uint8_t *bytes = value_bytes(value);
    size_t start = sizeof(head->header) + head->header.key_length;
    size_t have = head->have - start;
    if (have > value->length)
        have = value->length;
    memcpy(bytes, head->bytes + start, have);
    ssize_t got = read_at(fd, bytes + have, value->length - have, head->start + start + have);
    if (got < 0)
        return read_failed(what);
    *what = "shorter than its value";
    if (have + (size_t)got != value->length)
        return FS_FILE_DAMAGED;
    *what = "wrong checksum of its value";
    return right_value(&head->header, bytes) ? FS_FILE_OK : FS_FILE_DAMAGED;
}

/* Reads on from the image's beginning into the state, piece by piece. FS_FILE_OK: all is read. */
static enum fs_file_result digest(int fd, const struct fs_head *head, XXH3_state_t *state,
                                  uint8_t *piece, const char **what)
{
    uint64_t at = head->start + sizeof(head->header) + head->header.key_length;
    for (uint64_t left = head->header.length, got; left > 0; left -= got, at += got) {
        size_t wanted = left < PIECE ? (size_t)left : PIECE;
        ssize_t came = read_at(fd, piece, wanted, at);
        if (came < 0)
            return read_failed(what);
        *what = "shorter than its value";
        if ((size_t)came != wanted)
            return FS_FILE_DAMAGED;
        got = (uint64_t)came;
        XXH3_64bits_update(state, piece, (size_t)got);
    }
    return FS_FILE_OK;
}

enum fs_file_result fs_file_check_value(int fd, const struct fs_head *head, const char **what)
{
    enum fs_file_result result = FS_FILE_FAILED;
    XXH3_state_t *state = XXH3_createState();
    uint8_t *piece = malloc(PIECE);
    errno = ENOMEM;
    if (state != NULL && piece != NULL) {
        XXH3_64bits_reset_withSeed(state, head->header.head_check);
        result = digest(fd, head, state, piece, what);
    }
    if (result == FS_FILE_OK && XXH3_64bits_digest(state) != head->header.value_check) {
        *what = "wrong checksum of its value";
        result = FS_FILE_DAMAGED;
    }
    int saved = errno;
    free(piece);
    XXH3_freeState(state);
    errno = saved;
    return result;
}
