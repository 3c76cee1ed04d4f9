/*
 * The SQLite store's entries, as its writer changes them: always inside a transaction, which these
 * open and the caller commits. The writer's thread only.
 *
 * What returns an int returns SQLite's codes. After one that is no success the caller rolls back.
 */
#ifndef LIARA_STORE_SQLITE_ENTRIES_H
#define LIARA_STORE_SQLITE_ENTRIES_H

#include "sqlite_writer.h"
#include "store.h"

/* The bytes that count against max-size: each entry has a flat share of the indexes. */
enum { SQ_ENTRY_OVERHEAD = 128, SQ_CLEAR_ROWS = 1024 };
uint64_t sq_entries_charge(const struct sq_writer *writer);

/* What a value with its key and flags must add up to, or it is damaged. Any thread. */
int64_t sq_entries_checksum(const struct value *value);

/* Finds a key as sq_find() does, without holding on to the moment. */
int sq_entries_find(struct sq_writer *writer, const uint8_t *key, size_t length,
                    struct sq_row *row);

/* Removes the entry that was found as row. */
int sq_entries_remove(struct sq_writer *writer, const uint8_t *key, size_t length,
                      const struct sq_row *row);

/* Stores the call's value, or sets *exists where the key is there and the call would leave it. */
int sq_entries_put(struct sq_writer *writer, const struct store_call *call, struct value *value,
                   bool *exists);

/* A CLEAR under way. */
struct sq_clear {
    struct sq_key from, to; /* what is left */
    int64_t newest;         /* entries with later ids stay */
    uint64_t live;          /* how many were removed that had not ended */
    unsigned count;
    int64_t ids[SQ_CLEAR_ROWS]; /* of one step */
};

/*
 * Begins to remove all that begins with the prefix and was stored before. SQLITE_DONE: it is done
 * and committed already; SQLITE_ROW: by steps. Not inside a transaction.
 */
int sq_entries_begin_clear(struct sq_writer *writer, const uint8_t *prefix, size_t length,
                           struct sq_clear *clear);

/* Removes some and commits. SQLITE_ROW: there may be more. Not inside a transaction. */
int sq_entries_step_clear(struct sq_writer *writer, struct sq_clear *clear);

/* Gives the space of one cleared value back; SQLITE_DONE where there is none. */
int sq_entries_drop_gone(struct sq_writer *writer);

/* Removes the entry that is worth least; there must be one. */
int sq_entries_evict(struct sq_writer *writer);

/* Removes one entry that is past its end; SQLITE_DONE where there is none. */
int sq_entries_drop_ended(struct sq_writer *writer);

/* Removes those of the noted suspects that are still there. */
int sq_entries_drop_suspects(struct sq_writer *writer);

/* Whether any entry has an end at all. */
bool sq_entries_have_ends(struct sq_writer *writer);

/* Reads some keys into the writer's set; SQLITE_ROW: there are more. */
int sq_entries_read_keys(struct sq_writer *writer);

/* Writes down a use that was noted. */
int sq_entries_set_use(struct sq_writer *writer, const struct sq_use *use);

#endif
