/*
 * Entries, wherever they lie: what a slot of the index names in memory, on disk or both, and how
 * the index, the arena and the accounts change together. All of it happens under the shard's lock,
 * which every function that takes a shard wants held. Any thread.
 *
 * With a disk each entry in memory says how far its record is (enum entry_state). What is not
 * written is never dropped, only moved; its bytes are counted (entries->unwritten).
 */
#ifndef LIARA_ENGINE_ENTRIES_H
#define LIARA_ENGINE_ENTRIES_H

#include "../hash.h"
#include "arena.h"
#include "evict.h"
#include "index.h"

struct entries {
    struct index *index;
    struct arena *arena;
    struct evict *evict;
    const struct hash_key *hash_key; /* NULL: store_hash() */
    bool on_disk;
    _Atomic uint32_t clears;    /* begun so far, where there is a disk */
    _Atomic uint32_t clearing;  /* under way */
    _Atomic uint64_t unwritten; /* bytes of keys and values that are not on disk yet */
};

enum entry_state {
    ENTRY_UNWRITTEN, /* and its hash is in the writer's queue */
    ENTRY_IN_FLIGHT, /* in the batch that the writer is writing */
    ENTRY_WRITTEN
};

struct entry_view {
    const uint8_t *key, *bytes; /* NULL: on disk alone; else they hold while the shard is locked */
    uint32_t key_length, length, flags;
    int64_t expires;     /* clock_now()'s milliseconds, or CLOCK_NEVER */
    struct entry *small; /* in memory it is one of these */
    struct large *large;
    enum entry_state state;
    uint64_t place; /* of its record, or where it is not written, of the one that it replaces; 0 */
};

uint64_t entries_hash(const struct entries *entries, const uint8_t *key, size_t length);

/* What a slot (no SLOT_END) names. */
struct entry_view entries_view(struct entries *entries, struct index_shard *shard,
                               const struct slot *slot);

bool entry_expired(const struct entry_view *view);

/* Whether it is this key's, whose hash it has. Of what lies on disk alone the key is not known: the
 * hash stands for it. */
bool entry_is_of(const struct entry_view *view, const uint8_t *key, uint32_t key_length);

/*
 * The slot of the key with this hash (entry_is_of()), and *view of it; NULL: not there. What is
 * past its end is removed.
 */
struct slot *entries_find(struct entries *entries, struct index_shard *shard, uint64_t hash,
                          const uint8_t *key, uint32_t key_length, struct entry_view *view);

/* How far the record of an entry in memory is; for a new one before it is in the index, too. */
void entry_set_state(const struct entry_view *view, enum entry_state state, uint64_t place);

/*
 * Has the index name an entry: word (kind ARENA, LARGE) of bytes of key and value, used now.
 * state: as was set. before: the hash's slot, whatever it names (*was); NULL: there is none. false:
 * the index has no room within reach (see entries_least()); nothing has changed.
 */
bool entries_publish(struct entries *entries, struct index_shard *shard, uint64_t hash,
                     struct slot *before, const struct entry_view *was,
                     const struct slot_word *word, uint64_t bytes, enum entry_state state);

/*
 * Whether the entry in memory was put after the CLEAR with this number (entries->clears after it
 * was counted) had begun: such a one is not met by it. Therefore what was put since the last CLEAR
 * began stays in memory as long as one is under way, and nothing is brought there from disk.
 */
bool entries_is_newer(const struct entry_view *view, uint32_t clear);

/* Removes the slot and what it names. */
void entries_remove(struct entries *entries, struct index_shard *shard, struct slot *slot);

/* The same for want of room: unless the entry is past its end it is counted as evicted. */
void entries_evict(struct entries *entries, struct index_shard *shard, struct slot *slot);

/* What the entry has in memory goes, its record is what is left of it. false: a CLEAR keeps it, or
 * there is no room in the index to say when it ends; nothing has changed. */
bool entries_to_disk(struct entries *entries, struct index_shard *shard, struct slot *slot);

/* As entries_publish(), for a record at place that is on disk alone. */
bool entries_add_disk(struct entries *entries, struct index_shard *shard, uint64_t hash,
                      const struct slot_word *word, int64_t expires);

/*
 * The least worthy of those that stand where this hash could and are written; NULL: none. It is to
 * be removed to make room, and its record superseded.
 */
struct slot *entries_least(struct entries *entries, struct index_shard *shard, uint64_t hash);

/* Whether the slot names the record at place, and nothing newer. */
bool entries_names(struct entries *entries, struct index_shard *shard, const struct slot *slot,
                   uint64_t place);

/* The entry's record has been written to place, or is lost and has to be written again. */
void entries_written(struct entries *entries, struct index_shard *shard, struct slot *slot,
                     const struct entry_view *view, uint64_t place);
void entries_unwritten(struct entries *entries, const struct entry_view *view);

/* The record that the slot names, or that its entry will replace once it is written, has moved. */
void entries_moved(struct entries *entries, struct index_shard *shard, struct slot *slot,
                   uint64_t place);

#endif
