#include "clean.h"

#include "../../container_of.h"
#include "../store.h"

#include <string.h>

enum {
    STEP = 64,        /* entries */
    LARGE_UNITS = 32, /* large entries between two settings of the bar */
    /* Segments whose share of bytes to be copied on may be saved up. Where all is alive, the share
     * of one alone would cost every segment some of it. */
    CREDIT_SEGMENTS = 16
};

void cleaner_init(struct cleaner *cleaner, struct entries *entries)
{
    *cleaner = (struct cleaner){.entries = entries};
    pthread_mutex_init(&cleaner->lock, NULL);
}

void cleaner_end(struct cleaner *cleaner)
{
    if (cleaner->unit != NULL)
        arena_put_back(cleaner->entries->arena, cleaner->unit);
    pthread_mutex_destroy(&cleaner->lock);
}

static void add_credit(struct cleaner *cleaner)
{
    uint64_t share = arena_keep_max(cleaner->entries->arena);
    uint64_t most = CREDIT_SEGMENTS * share;
    cleaner->credit = cleaner->credit + share < most ? cleaner->credit + share : most;
}

static void begin_unit(struct cleaner *cleaner)
{
    cleaner->unit = arena_take_oldest(cleaner->entries->arena);
    cleaner->offset = 0;
    if (cleaner->unit != NULL && !cleaner->unit->is_large)
        add_credit(cleaner);
    if (cleaner->unit == NULL || cleaner->until_bar-- > 0)
        return;
    evict_set_bar(cleaner->entries->evict, EVICT_MEMORY);
    cleaner->until_bar = cleaner->unit->is_large ? LARGE_UNITS : 0;
}

/*
 * What the slot names is not worth its room in memory: it goes, or, if it is on disk, its record is
 * what is left. false: it has to stay.
 */
static bool drop(struct cleaner *cleaner, struct index_shard *shard, struct slot *slot,
                 const struct entry_view *view)
{
    struct entries *entries = cleaner->entries;
    if (entries->on_disk)
        return view->state == ENTRY_WRITTEN && entries_to_disk(entries, shard, slot);
    entries_evict(entries, shard, slot);
    return true;
}

static uint64_t empty_large(struct cleaner *cleaner)
{
    struct entries *entries = cleaner->entries;
    struct large *large = container_of(cleaner->unit, struct large, unit);
    uint64_t bytes = large->value->length;
    struct index_shard *shard = index_lock(entries->index, large->hash);
    struct slot *slot = index_find(entries->index, shard, large->hash);
    if (slot != NULL) {
        struct slot_word word = slot_get(slot);
        struct entry_view view = entries_view(entries, shard, slot);
        if (view.large == large &&
            !evict_worth_keeping(entries->evict, EVICT_MEMORY, &word, slot_use(slot)))
            drop(cleaner, shard, slot, &view);
    }
    index_unlock(shard);
    arena_put_back(entries->arena, cleaner->unit); /* which frees it if it was dropped */
    cleaner->unit = NULL;
    return bytes;
}

/* Copies the entry to where the cleaner appends, and has the slot name the copy. */
static bool keep(struct cleaner *cleaner, struct appender *appender, struct slot *slot,
                 struct entry *entry, uint32_t size)
{
    struct arena *arena = cleaner->entries->arena;
    struct entry *copy = arena_append(arena, appender, size);
    if (copy == NULL)
        return false;
    memcpy((void *)copy, (const void *)entry, size);
    struct slot_word word = slot_get(slot);
    word.place = arena_place(arena, copy);
    slot_set(slot, &word);
    arena_forget(arena, entry);
    cleaner->credit -= size < cleaner->credit ? size : cleaner->credit;
    return true;
}

/* Keeps or drops an entry of the segment; false: it is still there, since it can neither go, nor is
 * there room for a copy. */
static bool empty_entry(struct cleaner *cleaner, struct appender *appender, struct entry *entry)
{
    struct entries *entries = cleaner->entries;
    uint32_t size = entry_size(entry);
    uint64_t hash = entries_hash(entries, entry_key(entry), entry->key_length);
    struct index_shard *shard = index_lock(entries->index, hash);
    struct slot *slot = index_find(entries->index, shard, hash);
    bool done = true;
    if (slot != NULL && slot_get(slot).kind == SLOT_ARENA &&
        arena_entry(entries->arena, slot_get(slot).place) == entry) {
        struct slot_word word = slot_get(slot);
        struct entry_view view = entries_view(entries, shard, slot);
        bool worth = size <= cleaner->credit && !entry_expired(&view) &&
                     evict_worth_keeping(entries->evict, EVICT_MEMORY, &word, slot_use(slot));
        done = (worth && keep(cleaner, appender, slot, entry, size)) ||
               drop(cleaner, shard, slot, &view) || keep(cleaner, appender, slot, entry, size);
    }
    index_unlock(shard);
    return done;
}

/* Some entries of the segment; returns the bytes of those that it looked at. */
static uint64_t empty_segment(struct cleaner *cleaner, uint64_t bytes)
{
    struct arena *arena = cleaner->entries->arena;
    uint64_t seen = 0;
    struct appender *appender = arena_lock_cleaner(arena);
    for (unsigned i = 0; i < STEP && seen < bytes; i++) {
        uint32_t offset = cleaner->offset;
        struct entry *entry = arena_next_entry(arena, cleaner->unit, &offset);
        if (entry == NULL) {
            arena_emptied(arena, cleaner->unit);
            cleaner->unit = NULL;
            break;
        }
        if (!empty_entry(cleaner, appender, entry))
            break;
        seen += offset - cleaner->offset;
        cleaner->offset = offset;
    }
    arena_unlock_appender(appender);
    return seen;
}

bool cleaner_step(struct cleaner *cleaner, uint64_t bytes)
{
    if (pthread_mutex_trylock(&cleaner->lock) != 0)
        return false;
    uint64_t seen = 0;
    bool any = false;
    for (unsigned units = 0; units < STEP && seen < bytes; units++) {
        if (cleaner->unit == NULL)
            begin_unit(cleaner);
        if (cleaner->unit == NULL)
            break;
        bool is_segment = !cleaner->unit->is_large;
        seen += is_segment ? empty_segment(cleaner, bytes - seen) : empty_large(cleaner);
        any = any || seen > 0 || cleaner->unit == NULL;
        if (is_segment)
            break;
    }
    pthread_mutex_unlock(&cleaner->lock);
    return any;
}
