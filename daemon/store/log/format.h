/*
 * The log's format on disk, little-endian. The store's directory holds segments, files named by
 * their number in 16 hex digits and ".log", and "spare", a preallocated file without meaning.
 *
 *     segment = header batch… [footer]
 *     batch   = log_batch, directory, record…
 *     record  = log_record, [end: int64_t], key, bytes, padding to 8
 *     footer  = keys, padding to 8, page…, log_trailer     (ends at the end of the file)
 *     page    = log_page, log_item × up to LOG_PAGE_ITEMS
 *
 * A segment whose file does not end with a sound trailer has no footer; its batches are read one by
 * one instead. After the last batch lie zeros, the rest of the preallocated file. A record that is
 * larger than a quarter of a segment has a segment of its own.
 *
 * The log is the sequence of all records, by segment number and offset: the last record of a hash
 * is the one that counts. The header of a segment says how much of the segments before it belongs
 * to the log, and a segment is begun only when all of the one before it has been synced. So damage
 * in any but the last segment is rot, and a torn tail is possible in the last segment only. There a
 * footer is believed if it says that all records had been synced before it was written.
 *
 * A batch's directory repeats the hashes and offsets of the batch before it in the same segment, so
 * that a damaged record still tells whose older versions must not count any more. After each sync
 * an empty batch is appended, which says what has been synced and repeats the last batch.
 *
 * The file "anchor" (engine/anchor.h) holds the number of the last segment << 32 and its end in
 * units, as of the last sync of something that superseded older records. A log that ends before it
 * has lost its end to rot, and is given up.
 *
 * All checksums are XXH3 with a seed made of the store's secret, the segment's number and the
 * offset in the file: bytes that a client has stored can't pass for a record, nor can an old copy.
 * Offsets are in units of 8 bytes where they are 32 bits wide.
 */
#ifndef LIARA_STORE_LOG_FORMAT_H
#define LIARA_STORE_LOG_FORMAT_H

#include "../engine/backing.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

enum {
    LOG_VERSION = 1,
    LOG_RECORDS_AT = 128, /* offset of a segment's first batch */
    LOG_BATCH_MAX = 4096, /* records in a batch */
    LOG_PAGE_ITEMS = 256,
    LOG_UNIT = 8,
    LOG_RECORD_BESIDE = 48, /* bytes at most that a record takes beside key and value */
    LOG_ENDS = 8 /* so many segments in a row may fail without their headers on the disk */
};

#define LOG_HEADER_MAGIC  UINT64_C(0x474f4c415241494c) /* "LIARALOG" */
#define LOG_TRAILER_MAGIC UINT64_C(0x444e454152414c4c) /* "LLARAEND" */
#define LOG_BATCH_MAGIC   UINT32_C(0x68637442)         /* "Btch" */

/* The first 16 bytes are the same in all versions. */
struct log_header {
    uint64_t magic;
    uint32_t version;
    uint32_t version_check; /* of magic and version, without a secret */
    uint64_t check;         /* of the rest */
    uint64_t number;
    uint8_t secret[BACKING_SECRET];
    uint64_t ends[LOG_ENDS]; /* so many bytes of each segment before belong to the log, the last
                                segment's first; 0: there was none */
};

struct log_batch {
    uint64_t check; /* of the rest and the directory */
    uint32_t magic;
    uint32_t count;          /* of records */
    uint32_t units;          /* of records */
    uint32_t previous;       /* offset of the batch before; 0: this is the first */
    uint32_t previous_count; /* the directory: so many hashes, then so many offsets, padding */
    uint32_t synced;         /* what lies before this offset had been synced */
};

enum log_kind { LOG_TOMBSTONE = 1, LOG_HAS_END = 2 };

struct log_record {
    uint64_t check; /* of the rest, the end, the key and the bytes */
    uint64_t hash;
    uint32_t length; /* of the value's bytes */
    uint32_t flags;
    uint32_t ttl; /* what was left to live when it was written, see log_ttl() */
    uint16_t key_length;
    uint8_t cost;
    uint8_t kind;
};

/* A record as footers tell it. The footer also has an item for a damaged record that superseded
 * older ones: a tombstone. */
struct log_item {
    uint64_t hash;
    int64_t end;   /* the wall clock's milliseconds, or CLOCK_NEVER */
    uint32_t unit; /* where the record lies */
    uint32_t length;
    uint32_t ttl;
    uint16_t key_length;
    uint8_t cost;
    uint8_t kind;
};

struct log_page {
    uint64_t check;   /* of the rest and the items */
    uint64_t keys_at; /* of the first item's key, from where the footer begins */
    uint64_t keys_check;
};

struct log_trailer {
    uint64_t check; /* of the rest */
    uint64_t magic;
    uint64_t end; /* of the batches: where the footer begins */
    uint64_t keys_length;
    uint32_t count;      /* of items */
    uint32_t last_unit;  /* offset of the last batch */
    uint32_t last_count; /* of the items at the end that are this batch's */
    uint32_t synced;     /* what lies before this offset had been synced */
};

_Static_assert(sizeof(struct log_header) == LOG_RECORDS_AT, "no padding");
_Static_assert(sizeof(struct log_batch) == 32 && sizeof(struct log_record) == 32, "no padding");
_Static_assert(sizeof(struct log_item) == 32 && sizeof(struct log_page) == 24, "no padding");
_Static_assert(sizeof(struct log_trailer) == 48, "no padding");

enum log_header_state { LOG_HEADER_SOUND, LOG_HEADER_DAMAGED, LOG_HEADER_OTHER_VERSION };

void log_header_make(struct log_header *header, const uint8_t secret[BACKING_SECRET],
                     uint64_t number, const uint64_t ends[LOG_ENDS]);
enum log_header_state log_header_check(const struct log_header *header, uint64_t number);

/* The part of all seeds of a segment that is not the offset. */
uint64_t log_seed(const uint8_t secret[BACKING_SECRET], uint64_t number);

/* Sets or compares the checksum, a structure's first 8 bytes, of the length bytes at image, which
 * lie at offset. */
void log_sign(void *image, size_t length, uint64_t seed, uint64_t offset);
bool log_is_signed(const void *image, size_t length, uint64_t seed, uint64_t offset);

/* The magic is right, and the numbers are possible; says nothing of the checksum. */
bool log_batch_is_plausible(const struct log_batch *batch);
bool log_trailer_is_plausible(const struct log_trailer *trailer, uint64_t file_size);

/* The checksum of a record whose head (log_record and end) and data do not lie side by side. */
uint64_t log_record_check(const uint8_t *head, size_t head_length, const uint8_t *data,
                          size_t data_length, uint64_t seed, uint64_t offset);

/* A time to live in 32 bits: milliseconds, or from 2^31 on seconds, rounded up. */
uint32_t log_ttl(int64_t milliseconds);
int64_t log_ttl_milliseconds(uint32_t ttl);

/* The item as the owner hears of it, at this place (0 where it is a tombstone), without its key. */
struct backing_found log_found(const struct log_item *item, uint64_t place);

static inline uint64_t log_align(uint64_t bytes)
{
    return (bytes + LOG_UNIT - 1) & ~(uint64_t)(LOG_UNIT - 1);
}

static inline size_t log_head_length(uint8_t kind)
{
    return sizeof(struct log_record) + (kind & LOG_HAS_END ? sizeof(int64_t) : 0);
}

static inline uint64_t log_item_data_length(const struct log_item *item)
{
    return (uint64_t)item->key_length + item->length;
}

/* What the record takes in its segment. */
static inline uint64_t log_item_size(const struct log_item *item)
{
    return log_align(log_head_length(item->kind) + log_item_data_length(item));
}

static inline uint64_t log_directory_size(uint64_t count)
{
    return log_align(count * (sizeof(uint64_t) + sizeof(uint32_t)));
}

static inline uint64_t log_footer_size(uint64_t count, uint64_t keys_length)
{
    uint64_t pages = (count + LOG_PAGE_ITEMS - 1) / LOG_PAGE_ITEMS;
    return log_align(keys_length) + pages * sizeof(struct log_page) +
           count * sizeof(struct log_item) + sizeof(struct log_trailer);
}

/* Where a page begins, from where the footer begins. */
static inline uint64_t log_page_at(uint64_t keys_length, uint64_t page)
{
    return log_align(keys_length) +
           page * (sizeof(struct log_page) + LOG_PAGE_ITEMS * sizeof(struct log_item));
}

#endif
