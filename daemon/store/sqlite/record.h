/*
 * What the database holds of a record: a head with its key, in the narrow table, and the value's
 * bytes, in the wide one. Both have checksums whose seed comes from the store's secret and the
 * record's place, so that neither damage nor a client's bytes can pass one for another.
 */
#ifndef LIARA_STORE_SQLITE_RECORD_H
#define LIARA_STORE_SQLITE_RECORD_H

#include "../../../proto/message.h"
#include "../engine/backing.h"

/* As stored, in the machine's own byte order. */
struct sqlite_head {
    uint64_t check;       /* over the rest of the head and the key */
    uint64_t value_check; /* over the value's bytes */
    uint64_t hash;
    int64_t expires; /* the wall clock's milliseconds, or CLOCK_NEVER */
    int64_t ttl;     /* milliseconds from the write to the end */
    uint32_t length; /* of the value's bytes */
    uint32_t flags;
    uint16_t key_length;
    uint8_t cost;
    uint8_t unused[5];
    uint8_t key[MESSAGE_KEY_MAX];
};

/* The seed of all checksums of a store. */
uint64_t sqlite_seed(const uint8_t secret[BACKING_SECRET]);

/* A number that stands for the place in the sum over all places. */
uint64_t sqlite_place_mark(uint64_t seed, uint64_t place);

/* Fills the head of a record that will lie at place; returns its size with the key. */
size_t sqlite_head_fill(struct sqlite_head *head, uint64_t seed, uint64_t place,
                        const struct backing_record *record);

/* Copies and checks what was read at place. false: it is damaged. */
bool sqlite_head_read(struct sqlite_head *head, uint64_t seed, uint64_t place, const void *bytes,
                      size_t size);

/* Whether these are the bytes that the head was filled for. */
bool sqlite_value_sound(const struct sqlite_head *head, uint64_t seed, uint64_t place,
                        const uint8_t *bytes);

/* What load() and scan() tell of it. found->key is head->key. */
void sqlite_head_found(const struct sqlite_head *head, uint64_t place, struct backing_found *found);

/* clock_now()'s milliseconds, never further ahead than the record's own time to live. */
int64_t sqlite_head_expires(const struct sqlite_head *head);

#endif
