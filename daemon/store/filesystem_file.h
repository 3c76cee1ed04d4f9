/*
 * One entry's file: a header, the key, then the value's bytes, raw and contiguous, so that one day
 * the file itself can be handed to a client. It is written whole beside its place, renamed into it
 * and never changed again: who has it open reads the same bytes for as long as they like. The same
 * bytes, the entry's image, lie in the journal before there is a file.
 *
 * Two checksums chain: the first covers the header and the key, the second, seeded with it, the
 * value. Numbers are in the machine's own byte order; a store does not move between machines, and
 * where it does, the magic number does not match and every entry is a miss.
 *
 * Plain functions over descriptors, no state, any thread.
 */
#ifndef LIARA_STORE_FILESYSTEM_FILE_H
#define LIARA_STORE_FILESYSTEM_FILE_H

#include "../value.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include <xxhash.h>

enum {
    FS_FOLDERS = 256,
    FS_NAME_SIZE = 34, /* "ab/", 30 hex digits, NUL */
    FS_HEAD_SIZE = 8192
};

struct fs_header {
    uint64_t magic;
    uint64_t value_check; /* of the value, seeded with head_check: damage anywhere breaks it */
    uint64_t head_check;  /* of what follows here and the key */
    int64_t end;          /* the wall clock's milliseconds, or CLOCK_NEVER */
    int64_t ttl;          /* milliseconds from its storing to its end, or CLOCK_NEVER */
    uint32_t flags;
    uint32_t length; /* of the value */
    uint32_t key_length;
    uint32_t unused; /* 0 */
};

/* An image's beginning, as much of it as one read brings: of a small entry all. */
struct fs_head {
    struct fs_header header;
    uint64_t start; /* where the image begins in what it was read from */
    size_t have;    /* bytes read */
    uint8_t bytes[FS_HEAD_SIZE];
};

enum fs_file_result {
    FS_FILE_OK,
    FS_FILE_DAMAGED, /* *what says how, static */
    FS_FILE_FAILED   /* errno */
};

XXH128_hash_t fs_file_hash(const uint8_t *key, size_t length);

/* The folder of an entry with this hash, 0 to 255. */
unsigned fs_file_folder(XXH128_hash_t hash);

/* "ab/cdef…": where the entry lies under the folder of all entries. */
void fs_file_name(XXH128_hash_t hash, char name[FS_NAME_SIZE]);

/* The inverse for a name as it stands in a folder, 30 small hex digits; false for any other. */
bool fs_file_parse_name(unsigned folder, const char *name, XXH128_hash_t *hash);

/* What the image of a value begins with; its key and bytes follow. */
void fs_file_fill_header(struct fs_header *header, const struct value *value);

/*
 * Writes the value, or an image, as a new file of that name in directory. 0, or errno and nothing
 * left behind. Nothing is synced.
 */
int fs_file_write(int directory, const char *name, const struct value *value);
int fs_file_write_image(int directory, const char *name, const uint8_t *image, size_t length);

/* As writev(), until all is written; changes parts. false with errno. */
bool fs_file_write_parts(int fd, struct iovec *parts, int count);

/*
 * Reads the beginning of fd's file and checks everything about it but the value's bytes: that it is
 * a regular file whose size is what its header says, and the checksum over header and key.
 */
enum fs_file_result fs_file_read_head(int fd, struct fs_head *head, const char **what);

/* The same for an image of size bytes that begins at start. */
enum fs_file_result fs_file_read_head_at(int fd, uint64_t start, uint64_t size,
                                         struct fs_head *head, const char **what);

/* The same for an image in memory, all of it for check; NULL, or what is wrong, static. */
const char *fs_file_check_head(const uint8_t *image, size_t length, struct fs_header *header);
const char *fs_file_check(const uint8_t *image, size_t length);

/* The key of a head that is OK. */
const uint8_t *fs_file_key(const struct fs_head *head);

/* Fills the bytes of value, which has the head's key and length, from fd, and checks them. */
enum fs_file_result fs_file_read_value(int fd, const struct fs_head *head, struct value *value,
                                       const char **what);

/* Checks the bytes of the head's value where they are, without keeping them. */
enum fs_file_result fs_file_check_value(int fd, const struct fs_head *head, const char **what);

#endif
