/*
 * Memory for entries. Small ones are appended to segments of one memfd; large ones are values of
 * their own, by reference. The bytes of an entry never change. Segments and large entries stand in
 * one line, oldest first; who needs room empties the oldest (clean.h).
 *
 * A segment is *open* while it is appended to, by one appender; then *sealed*, in the line;
 * *emptying* while clean.c looks at its entries; then free again, once nobody reads from it any
 * more. A reader *pins* a segment, under the lock of the entry's shard, as long as the index still
 * names the entry: so once no slot names anything in a segment, no new pin can come.
 *
 * The arena knows bytes, not keys' hashes or what is worth keeping. Who changes a slot tells it
 * (arena_forget()), so that it knows how much of a segment still counts.
 *
 * Locks: an appender's, then a shard's of the index, then the arena's own, which is held for a few
 * pointers or, where memory is asked of the system, for that.
 */
#ifndef LIARA_ENGINE_ARENA_H
#define LIARA_ENGINE_ARENA_H

#include "../../pinned.h"
#include "../../value.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct arena;

/* An entry in a segment: this head, then for a store with a disk a word about it (entry_disk()),
 * the end if it has one, key and bytes, up to the next multiple of 8. */
struct entry {
    uint32_t length; /* of the value's bytes */
    uint16_t key_length;
    uint16_t bits; /* ENTRY_HAS_… */
    uint32_t flags;
    uint32_t stamp; /* entries->clears when it was put */
    _Alignas(8) uint8_t rest[];
};

enum { ENTRY_HAS_END = 1, ENTRY_HAS_DISK = 2 };

/* A member of the line: a segment or a large entry. The arena's. */
struct arena_unit {
    struct arena_unit *next, **link; /* link NULL: not in the line */
    bool is_large;
};

/* A large entry, named by the index as SLOT_LARGE. */
struct large {
    struct arena_unit unit; /* the arena's */
    bool emptying, removed; /* likewise */
    uint32_t charge;        /* bytes that it is counted as, in granules of 64 */
    uint32_t stamp;         /* entries->clears when it was put */
    uint64_t hash;
    struct value *value; /* a reference */
    _Atomic uint64_t disk;
};

/* A place to append to: one for each thread that stores much, so that they seldom meet. */
struct appender {
    pthread_mutex_t lock;
    uint32_t segment; /* UINT32_MAX: none is open */
    uint32_t at;      /* bytes in it that are used */
} __attribute__((aligned(64)));

/* Shared by index and arena: index_bytes are counted in the bound. */
struct index;

/*
 * An empty arena that keeps itself, its large entries and the index within max_bytes. with_disk:
 * entries have a word for their place on disk. NULL with errno.
 */
struct arena *arena_new(uint64_t max_bytes, const struct index *index, bool with_disk);

/* Frees all. No pin is left. NULL is fine. */
void arena_free(struct arena *arena);

/* Changes the bound; what is over it is for clean.c to empty. Any thread. */
void arena_set_max(struct arena *arena, uint64_t bytes);
uint64_t arena_max(const struct arena *arena);

/* Bytes taken, index included. Any thread. */
uint64_t arena_used(const struct arena *arena);

/* Bytes of an entry in a segment, and the largest that goes into one; 0: none does. Any thread. */
uint32_t arena_entry_size(const struct arena *arena, uint32_t key_length, uint32_t length,
                          bool has_end);
uint32_t arena_small_max(const struct arena *arena);

/* Entry and place (slot_word.place). */
struct entry *arena_entry(const struct arena *arena, uint64_t place);
uint64_t arena_place(const struct arena *arena, const struct entry *entry);
struct large *arena_large(uint64_t place);
uint64_t arena_large_place(const struct large *large);

uint32_t entry_size(const struct entry *entry);
const uint8_t *entry_key(const struct entry *entry);
const uint8_t *entry_bytes(const struct entry *entry);
int64_t entry_end(const struct entry *entry); /* CLOCK_NEVER: none */
_Atomic uint64_t *entry_disk(struct entry *entry);

/* Takes and gives the appender that the nth thread is to use; appender NULL: of clean.c. */
struct appender *arena_lock_appender(struct arena *arena, unsigned thread);
struct appender *arena_lock_cleaner(struct arena *arena);
void arena_unlock_appender(struct appender *appender);

/*
 * size bytes (arena_entry_size()) behind what the appender appended last, as an entry whose head
 * says has_end; the caller fills the rest. It counts as named by the index. NULL: there is no room.
 * The appender's lock is held.
 */
struct entry *arena_append(struct arena *arena, struct appender *appender, uint32_t size);

/* Takes back what was appended last. The appender's lock is still held since. */
void arena_take_back(struct arena *arena, struct appender *appender, struct entry *entry);

/* The index no longer names the entry. Its shard's lock is held. */
void arena_forget(struct arena *arena, struct entry *entry);

/* Whether the value, as a large entry, could be in memory if all else went. Any thread. */
bool arena_fits(const struct arena *arena, struct value *value);

/*
 * Takes the value, a reference, into the line as a large entry; its bytes are counted here from now
 * on and no longer among those in flight, unless counted is false: then it is not within the bound,
 * for one that only passes through. NULL: no room (errno ENOBUFS), or ENOMEM. arena_remove_large()
 * ends it; readers may keep their references. The shard's lock may be held.
 */
struct large *arena_add_large(struct arena *arena, struct value *value, uint64_t hash,
                              bool counted);
void arena_remove_large(struct arena *arena, struct large *large);

/* The entry's bytes for a reader, who releases them soon: a segment with a pin left is not used
 * again. The entry's shard is locked. */
struct pinned arena_pin(struct arena *arena, const struct entry *entry);

/* Whether nothing stands in the line: what is in memory is in open segments, is being emptied, or
 * is still read. Any thread. */
bool arena_line_is_empty(struct arena *arena);

/* For clean.c, under a lock of its own: takes the oldest out of the line (NULL: it is empty), and
 * says what became of it: all its entries were looked at, or it goes back to the end of the line.
 */
struct arena_unit *arena_take_oldest(struct arena *arena);
void arena_emptied(struct arena *arena, struct arena_unit *segment);
void arena_put_back(struct arena *arena, struct arena_unit *unit);

/* The entry at *offset (0 at first) of a segment that is being emptied, and advances *offset; NULL
 * at its end. What the index no longer names is among them. */
struct entry *arena_next_entry(struct arena *arena, struct arena_unit *segment, uint32_t *offset);

/*
 * Whether appenders will soon find no segment, so that the next is to be emptied: fewer than some
 * are free and the bound allows no more; or more is taken than the bound allows, because the index
 * has grown or the bound was lowered. Any thread.
 */
bool arena_is_short(const struct arena *arena);

/* How many bytes of a segment may be copied on when it is emptied, in the mean, so that there is
 * room; 0 where the bound is so small that all entries are large ones. */
uint32_t arena_keep_max(const struct arena *arena);

/* Seals all open segments, so that they can be emptied. No lock is held. Any thread. */
void arena_seal(struct arena *arena);

/* Gives free memory beyond keep bytes in use back to the system. Any thread. */
void arena_trim(struct arena *arena, uint64_t keep);

#endif
