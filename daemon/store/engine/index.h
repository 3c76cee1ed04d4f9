/*
 * The index: from a key's hash to where its entry is. It is the truth about what the store has;
 * memory and disk are only places that it points to.
 *
 * 1,024 shards by the hash's upper bits, each under a lock of its own. A shard is a row of buckets
 * of one cache line, four slots of 16 bytes each. An entry lies in the bucket that its hash says
 * (its home) or, where that was full, in one of the next; each bucket counts how many entries went
 * past it, so that a search ends where none did. A full shard grows by an eighth: all shards
 * together stay between 75 and 85 % full.
 *
 * Identity is the 64-bit hash: ten bits of it are the shard's number, 54 are in the slot. Two keys
 * of one hash displace each other; the caller compares keys where it hands bytes out.
 *
 * The buckets lie in a region (memfd), bucket b of shard s at (b * 1024 + (s ^ b * 409 % 1024)) *
 * 64, so that a client may map them later, and growth needs only the used beginning. Slots are
 * atomic words for that reason; within the daemon the shard's lock orders everything.
 *
 * Functions that take a shard want its lock held, unless they say otherwise. Any thread.
 */
#ifndef LIARA_ENGINE_INDEX_H
#define LIARA_ENGINE_INDEX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    INDEX_SHARD_BITS = 10,
    INDEX_SHARDS = 1 << INDEX_SHARD_BITS,
    INDEX_SLOTS = 4, /* in a bucket */
    /* Buckets from its home on, in one of which an entry lies. With 16 a shard in a hundred finds
     * a crowd at 75 % already, and grows for it: a third more index for all, since rows are shared.
     */
    INDEX_REACH = 48,
    INDEX_PLACE_BITS = 44
};

enum slot_kind {
    SLOT_FREE,
    SLOT_ARENA, /* place: in the arena, in granules of 8 bytes */
    SLOT_LARGE, /* place: the address of a struct large, in granules of 8 bytes */
    SLOT_DISK,  /* place: the backing's, and nothing in memory */
    SLOT_END    /* beside a SLOT_DISK of the same hash: place is its end, in clock_now()'s
                   milliseconds. index_find() passes over these. */
};

/* What a slot says beside the hash. cost and size are classes of evict.h. */
struct slot_word {
    uint64_t place;
    enum slot_kind kind;
    bool has_end; /* the entry's bytes, or a SLOT_END, say when it ends */
    uint8_t size, cost;
};

/* tag: 54 bits of the hash, 8 of the last use, 2 of the bucket's count of entries that went past.
 * word: a struct slot_word, packed; 0 is free. */
struct slot {
    _Atomic uint64_t tag;
    _Atomic uint64_t word;
};

struct index_shard {
    pthread_mutex_t lock;
    _Atomic uint32_t buckets; /* also read without the lock */
    _Atomic uint32_t used;    /* slots; likewise */
    uint64_t entries;         /* the caller's account: entries, without SLOT_END */
    uint64_t bytes;           /* the caller's account: keys and values of these */
    uint64_t disk_bytes;      /* the caller's account: of these, what lies on disk alone */
    /* The caller's account: what went for want of room, its bytes and milliseconds to compute it.
     */
    uint64_t evicted, evicted_bytes, evicted_cost;
} __attribute__((aligned(64)));

struct index;

/* An empty index of at most max_bytes of buckets. NULL with errno. */
struct index *index_new(uint64_t max_bytes);

/* No lock is held. NULL is fine. */
void index_free(struct index *index);

/* Memory that the buckets take beyond the first of each shard. Without a lock. */
uint64_t index_bytes(const struct index *index);

/*
 * Takes room for so many entries, as far as the bound allows: growing shard by shard would lay each
 * entry out anew some eight times. index_fit() gives back what is far too much of it. For load(),
 * before other threads know the index.
 */
void index_reserve(struct index *index, uint64_t entries);
void index_fit(struct index *index);

/* Gives back what the buckets of shards that have become emptier take; holds one shard's lock at a
 * time. No lock is held by the caller. */
void index_trim(struct index *index);

/* Locks the shard of this hash and returns it. */
struct index_shard *index_lock(struct index *index, uint64_t hash);
void index_unlock(struct index_shard *shard);

/* As index_lock(), by number, 0 to INDEX_SHARDS - 1. */
struct index_shard *index_lock_shard(struct index *index, unsigned number);

/* Has the processor fetch the hash's home bucket. Without a lock. */
void index_prefetch(const struct index *index, uint64_t hash);

/* The hash's entry, or its SLOT_END; NULL where there is none. */
struct slot *index_find(struct index *index, struct index_shard *shard, uint64_t hash);
struct slot *index_find_end(struct index *index, struct index_shard *shard, uint64_t hash);

/*
 * A new slot for the hash, which is not there yet (in this kind), last used at epoch use. NULL: all
 * slots within reach are taken and the shard can't grow; remove one that index_reach() tells and
 * try again.
 */
struct slot *index_add(struct index *index, struct index_shard *shard, uint64_t hash,
                       const struct slot_word *word, uint8_t use);

void index_remove(struct index *index, struct index_shard *shard, struct slot *slot);

/* The nth slot (0 on) within the hash's reach, free or not; NULL: there are no more. Cheap. */
struct slot *index_reach(struct index *index, struct index_shard *shard, uint64_t hash, unsigned n);

struct slot_word slot_get(const struct slot *slot);
void slot_set(struct slot *slot, const struct slot_word *word);

/* The hash of a slot in the shard. */
uint64_t slot_hash(const struct index *index, const struct index_shard *shard,
                   const struct slot *slot);

/* The epoch of the last use; see evict.h. slot_touch() writes only where it changes. */
uint8_t slot_use(const struct slot *slot);
void slot_touch(struct slot *slot, uint8_t epoch);

/*
 * Walks over a shard in steps: calls each(arg, …) for the slots (SLOT_END left out) from *cursor (0
 * at first) on, some 64 at a time, and advances *cursor. Returns false at the end. each() may
 * change or remove the slot that it is given, but add none. Between two steps the lock may be given
 * up: an entry that is there all the time is met exactly once, whatever is added, removed or grown
 * meanwhile.
 */
bool index_walk(struct index *index, struct index_shard *shard, uint64_t *cursor,
                void (*each)(void *arg, struct index_shard *shard, struct slot *slot), void *arg);

/* Copies a slot somewhere in the index, by a random number; false: it met none. Without a lock: the
 * copy may be of the past. */
bool index_sample(const struct index *index, uint64_t random, struct slot_word *word, uint8_t *use);

#endif
