/*
 * A segment of the filesystem store's journal, as it lies on the disk: a header, then records, each
 * with the image of an entry or without one (filesystem_journal.h). And going through one.
 *
 * Checksums of records are seeded with a number that each segment draws, and with where they lie:
 * no bytes that a client stores can pass for a record. Where one is damaged, the next good one is
 * looked for.
 *
 * It knows nothing of the journal as a whole. A walk belongs to one thread at a time.
 */
#ifndef LIARA_STORE_FILESYSTEM_SEGMENT_H
#define LIARA_STORE_FILESYSTEM_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

enum {
    FS_SEGMENTS = 63,    /* a segment is known by a number from 1 to this */
    FS_SEGMENT_NAME = 20 /* bytes of a file's name */
};

/* In the machine's own byte order, as all that follows. */
struct fs_segment_header {
    uint64_t magic;
    uint64_t salt;
};

struct fs_segment_record {
    uint64_t check; /* of what follows here, seeded with the salt and the place */
    XXH128_hash_t hash;
    uint32_t length; /* of the image, which follows; 0: there is none */
    uint32_t magic;
};

/* Where an entry's image begins. segment 0: not in the journal. */
struct fs_place {
    uint32_t offset;
    uint8_t segment;
};

/* A record that is read. */
struct fs_segment_item {
    XXH128_hash_t hash;
    struct fs_place place;
    const uint8_t *image; /* NULL: there is none */
    size_t length;
};

/* A new segment's header, with a salt that nobody can guess; whether one that was read is of this
 * version. */
struct fs_segment_header fs_segment_header(void);
bool fs_segment_is_ours(const struct fs_segment_header *header);

/* What stands at offset of a segment before an image of length bytes. */
struct fs_segment_record fs_segment_record(XXH128_hash_t hash, uint32_t length, uint64_t salt,
                                           uint32_t offset);

/* The name of a segment's file; the inverse is false for any other name. */
void fs_segment_name(uint64_t number, char name[FS_SEGMENT_NAME]);
bool fs_segment_parse_name(const char *name, uint64_t *number);

struct fs_segment_walk {
    const char *path; /* of the store's folder, for what is said about it */
    uint64_t number, salt;
    int fd;
    uint32_t end;
    unsigned segment; /* for the items' places */
    bool silent;      /* says nothing of damage: another walk has */
    uint32_t offset;  /* of the next record */
    uint32_t good;    /* end of the last record that was whole */
    uint32_t skipped; /* bytes between records that were of no use */
    int error;        /* errno: it could not be read, for want of something of ours */
    uint8_t *window;
    uint32_t window_offset, window_length;
};

/* Begins; the fields down to silent are set by the caller. false: out of memory. */
bool fs_segment_walk_begin(struct fs_segment_walk *walk);

/* The next record, which stays until the next call; false where there is none, or walk->error says
 * why not. What lies between records is skipped, with a line in the log. */
bool fs_segment_walk_next(struct fs_segment_walk *walk, struct fs_segment_item *item);

/* Has the next call bring this record again. */
void fs_segment_walk_back(struct fs_segment_walk *walk, const struct fs_segment_item *item);

/* Ends; may be called more than once. */
void fs_segment_walk_end(struct fs_segment_walk *walk);

#endif
