#include "filesystem_segment.h"

#include "../clock.h"
#include "../log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    WINDOW = 256 * 1024, /* what a walk reads at a time; the longest record fits in */
    BAD_BLOCK = 4096     /* what is passed over where the disk can't read */
};

static const uint64_t MAGIC = 0x314a46415241494c; /* "LIARAFJ1" where the lowest byte comes first */
static const uint32_t RECORD_MAGIC = 0x6c4a5261;

struct fs_segment_header fs_segment_header(void)
{
    struct fs_segment_header header = {.magic = MAGIC};
    if (getrandom(&header.salt, sizeof(header.salt), 0) != (ssize_t)sizeof(header.salt))
        header.salt = clock_tick();
    return header;
}

bool fs_segment_is_ours(const struct fs_segment_header *header)
{
    return header->magic == MAGIC;
}

static uint64_t check_of(const struct fs_segment_record *record, uint64_t salt, uint32_t offset)
{
    const size_t start = offsetof(struct fs_segment_record, hash);
    return XXH3_64bits_withSeed((const uint8_t *)record + start, sizeof(*record) - start,
                                salt + offset);
}

struct fs_segment_record fs_segment_record(XXH128_hash_t hash, uint32_t length, uint64_t salt,
                                           uint32_t offset)
{
    struct fs_segment_record record = {.hash = hash, .length = length, .magic = RECORD_MAGIC};
    record.check = check_of(&record, salt, offset);
    return record;
}

void fs_segment_name(uint64_t number, char name[FS_SEGMENT_NAME])
{
    snprintf(name, FS_SEGMENT_NAME, "%08llx", (unsigned long long)number);
}

bool fs_segment_parse_name(const char *name, uint64_t *number)
{
    char again[FS_SEGMENT_NAME], *end;
    *number = strtoull(name, &end, 16);
    fs_segment_name(*number, again);
    return end != name && strcmp(name, again) == 0;
}

bool fs_segment_walk_begin(struct fs_segment_walk *walk)
{
    walk->offset = walk->good = sizeof(struct fs_segment_header);
    walk->error = 0;
    walk->window = malloc(WINDOW);
    return walk->window != NULL;
}

void fs_segment_walk_end(struct fs_segment_walk *walk)
{
    free(walk->window);
    walk->window = NULL;
}

/* What the disk can't read is taken for zeros, which are no record. */
static void fill_window(struct fs_segment_walk *walk, uint32_t offset)
{
    ssize_t got;
    do
        got = pread(walk->fd, walk->window, WINDOW, offset);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EIO) {
        memset(walk->window, 0, BAD_BLOCK);
        got = BAD_BLOCK;
    } else if (got < 0) {
        walk->error = errno;
        got = 0;
    }
    walk->window_offset = offset;
    walk->window_length = (uint32_t)got;
}

/* So many bytes at offset; NULL where there are fewer. */
static const uint8_t *peek(struct fs_segment_walk *walk, uint32_t offset, uint64_t length)
{
    if (length > walk->end - offset || length > WINDOW)
        return NULL;
    if (offset < walk->window_offset ||
        offset + length > (uint64_t)walk->window_offset + walk->window_length)
        fill_window(walk, offset);
    if (offset + length > (uint64_t)walk->window_offset + walk->window_length)
        return NULL;
    return walk->window + (offset - walk->window_offset);
}

static bool read_record(struct fs_segment_walk *walk, struct fs_segment_item *item)
{
    struct fs_segment_record record;
    const uint8_t *bytes = peek(walk, walk->offset, sizeof(record));
    if (bytes == NULL)
        return false;
    memcpy(&record, bytes, sizeof(record));
    if (record.magic != RECORD_MAGIC || check_of(&record, walk->salt, walk->offset) != record.check)
        return false;
    bytes = peek(walk, walk->offset, sizeof(record) + (uint64_t)record.length);
    if (bytes == NULL)
        return false;
    *item = (struct fs_segment_item){
        .hash = record.hash,
        .place = {.offset = walk->offset + (uint32_t)sizeof(record),
                  .segment = (uint8_t)walk->segment},
        .image = record.length > 0 ? bytes + sizeof(record) : NULL,
        .length = record.length,
    };
    return true;
}

/* Moves on to where the next record may begin; to the end where there is none. */
static void search(struct fs_segment_walk *walk)
{
    const uint32_t head = sizeof(struct fs_segment_record),
                   at = offsetof(struct fs_segment_record, magic);
    for (walk->offset++; walk->end - walk->offset >= head;) {
        const uint8_t *bytes = peek(walk, walk->offset, head);
        if (bytes == NULL)
            break;
        uint32_t length = walk->window_offset + walk->window_length - walk->offset;
        const uint8_t *found = memmem(bytes + at, length - at, &RECORD_MAGIC, sizeof(RECORD_MAGIC));
        if (found != NULL) {
            walk->offset += (uint32_t)(found - bytes) - at;
            return;
        }
        walk->offset += length - head + 1;
    }
    walk->offset = walk->end;
}

static void tell_of_damage(const struct fs_segment_walk *walk, uint32_t bytes)
{
    log_warning("%s/journal/%08llx is damaged: %u bytes at %u are lost", walk->path,
                (unsigned long long)walk->number, bytes, walk->good);
}

bool fs_segment_walk_next(struct fs_segment_walk *walk, struct fs_segment_item *item)
{
    while (walk->offset < walk->end && !read_record(walk, item)) {
        if (walk->error == 0)
            search(walk);
        if (walk->error != 0)
            return false;
    }
    if (walk->offset > walk->good && !walk->silent)
        tell_of_damage(walk, walk->offset - walk->good);
    if (walk->offset >= walk->end)
        return false;
    walk->skipped += walk->offset - walk->good;
    walk->offset = walk->good = item->place.offset + (uint32_t)item->length;
    return true;
}

void fs_segment_walk_back(struct fs_segment_walk *walk, const struct fs_segment_item *item)
{
    walk->offset = walk->good = item->place.offset - (uint32_t)sizeof(struct fs_segment_record);
}
