#include "entries.h"

#include "../../clock.h"
#include "../store.h"

#include <string.h>

enum { STATE_BITS = 2, END_BITS = 44 };

uint64_t entries_hash(const struct entries *entries, const uint8_t *key, size_t length)
{
    return entries->hash_key != NULL ? hash_of(entries->hash_key, key, length)
                                     : store_hash(key, length);
}

static struct entry_view view_of_value(const struct value *value)
{
    return (struct entry_view){.key = value_key(value),
                               .bytes = value_key(value) + value->key_length,
                               .key_length = value->key_length,
                               .length = value->length,
                               .flags = value->flags,
                               .expires = value->expires};
}

/* The end of an entry that lies on disk alone. */
static int64_t end_of(struct entries *entries, struct index_shard *shard, const struct slot *slot)
{
    struct slot *end =
        index_find_end(entries->index, shard, slot_hash(entries->index, shard, slot));
    return end != NULL ? (int64_t)slot_get(end).place : CLOCK_NEVER;
}

static _Atomic uint64_t *disk_word(const struct entry_view *view)
{
    return view->large != NULL ? &view->large->disk : entry_disk(view->small);
}

static bool is_in_memory(const struct slot_word *word)
{
    return word->kind == SLOT_ARENA || word->kind == SLOT_LARGE;
}

struct entry_view entries_view(struct entries *entries, struct index_shard *shard,
                               const struct slot *slot)
{
    struct slot_word word = slot_get(slot);
    struct entry_view view;
    if (word.kind == SLOT_DISK)
        return (struct entry_view){.expires =
                                       word.has_end ? end_of(entries, shard, slot) : CLOCK_NEVER,
                                   .state = ENTRY_WRITTEN,
                                   .place = word.place};
    if (word.kind == SLOT_LARGE) {
        struct large *large = arena_large(word.place);
        view = view_of_value(large->value);
        view.large = large;
    } else {
        struct entry *entry = arena_entry(entries->arena, word.place);
        view = (struct entry_view){.key = entry_key(entry),
                                   .bytes = entry_bytes(entry),
                                   .key_length = entry->key_length,
                                   .length = entry->length,
                                   .flags = entry->flags,
                                   .expires = entry_end(entry),
                                   .small = entry};
    }
    if (entries->on_disk) {
        uint64_t disk = atomic_load_explicit(disk_word(&view), memory_order_relaxed);
        view.state = (enum entry_state)(disk & ((1 << STATE_BITS) - 1));
        view.place = disk >> STATE_BITS;
    }
    return view;
}

void entry_set_state(const struct entry_view *view, enum entry_state state, uint64_t place)
{
    atomic_store_explicit(disk_word(view), place << STATE_BITS | state, memory_order_relaxed);
}

bool entry_expired(const struct entry_view *view)
{
    return view->expires != CLOCK_NEVER && view->expires <= clock_now();
}

static uint32_t stamp_of(const struct entry_view *view)
{
    return view->large != NULL ? view->large->stamp : view->small->stamp;
}

bool entries_is_newer(const struct entry_view *view, uint32_t clear)
{
    return (int32_t)(stamp_of(view) - clear) >= 0;
}

static uint64_t bytes_of(const struct entry_view *view)
{
    return (uint64_t)view->key_length + view->length;
}

static void count_unwritten(struct entries *entries, uint64_t bytes)
{
    if (entries->on_disk)
        atomic_fetch_add_explicit(&entries->unwritten, bytes, memory_order_relaxed);
}

/* The slot is about to name something else: what it names, as *view says, is no longer named, nor
 * counted. */
static void forget(struct entries *entries, struct index_shard *shard, struct slot *slot,
                   const struct entry_view *view)
{
    struct slot_word word = slot_get(slot);
    shard->entries--;
    if (word.kind == SLOT_DISK) {
        shard->disk_bytes -= evict_class_middle(word.size);
        struct slot *end = NULL;
        if (word.has_end)
            end = index_find_end(entries->index, shard, slot_hash(entries->index, shard, slot));
        if (end != NULL)
            index_remove(entries->index, shard, end);
        return;
    }
    shard->bytes -= bytes_of(view);
    if (view->state != ENTRY_WRITTEN)
        count_unwritten(entries, -bytes_of(view));
    if (view->large != NULL)
        arena_remove_large(entries->arena, view->large);
    else
        arena_forget(entries->arena, view->small);
}

void entries_remove(struct entries *entries, struct index_shard *shard, struct slot *slot)
{
    struct entry_view view = entries_view(entries, shard, slot);
    forget(entries, shard, slot, &view);
    index_remove(entries->index, shard, slot);
}

bool entry_is_of(const struct entry_view *view, const uint8_t *key, uint32_t key_length)
{
    return view->key == NULL ||
           (view->key_length == key_length && memcmp(view->key, key, key_length) == 0);
}

void entries_evict(struct entries *entries, struct index_shard *shard, struct slot *slot)
{
    struct slot_word word = slot_get(slot);
    struct entry_view view = entries_view(entries, shard, slot);
    if (!entry_expired(&view)) {
        shard->evicted++;
        shard->evicted_bytes += view.key != NULL ? bytes_of(&view) : evict_class_middle(word.size);
        shard->evicted_cost += evict_class_middle(word.cost);
    }
    entries_remove(entries, shard, slot);
}

struct slot *entries_find(struct entries *entries, struct index_shard *shard, uint64_t hash,
                          const uint8_t *key, uint32_t key_length, struct entry_view *view)
{
    struct slot *slot = index_find(entries->index, shard, hash);
    if (slot == NULL)
        return NULL;
    *view = entries_view(entries, shard, slot);
    if (!entry_is_of(view, key, key_length))
        return NULL;
    if (!entry_expired(view))
        return slot;
    entries_remove(entries, shard, slot);
    return NULL;
}

static void count_entry(struct index_shard *shard, const struct slot_word *word, uint64_t bytes)
{
    shard->entries++;
    if (word->kind == SLOT_DISK)
        shard->disk_bytes += evict_class_middle(word->size);
    else
        shard->bytes += bytes;
}

bool entries_publish(struct entries *entries, struct index_shard *shard, uint64_t hash,
                     struct slot *before, const struct entry_view *was,
                     const struct slot_word *word, uint64_t bytes, enum entry_state state)
{
    uint8_t epoch = evict_epoch(entries->evict);
    uint32_t stamp = atomic_load_explicit(&entries->clears, memory_order_relaxed);
    if (word->kind == SLOT_ARENA)
        arena_entry(entries->arena, word->place)->stamp = stamp;
    else
        arena_large(word->place)->stamp = stamp;
    if (before != NULL) {
        forget(entries, shard, before, was);
        slot_set(before, word);
        slot_touch(before, epoch);
    } else if (index_add(entries->index, shard, hash, word, epoch) == NULL) {
        return false;
    }
    count_entry(shard, word, bytes);
    if (state != ENTRY_WRITTEN)
        count_unwritten(entries, bytes);
    return true;
}

/* A slot beside the hash's own that says when it ends. */
static bool add_end(struct entries *entries, struct index_shard *shard, uint64_t hash,
                    int64_t expires)
{
    const int64_t latest = ((int64_t)1 << END_BITS) - 1;
    struct slot_word end = {.kind = SLOT_END,
                            .place = (uint64_t)(expires < latest ? expires : latest)};
    return index_add(entries->index, shard, hash, &end, 0) != NULL;
}

bool entries_to_disk(struct entries *entries, struct index_shard *shard, struct slot *slot)
{
    struct entry_view view = entries_view(entries, shard, slot);
    struct slot_word word = slot_get(slot);
    uint64_t hash = slot_hash(entries->index, shard, slot);
    if (atomic_load(&entries->clearing) > 0 &&
        entries_is_newer(&view, atomic_load(&entries->clears)))
        return false;
    if (word.has_end) {
        if (!add_end(entries, shard, hash, view.expires))
            return false;
        slot = index_find(entries->index, shard, hash); /* the shard may have grown */
    }
    forget(entries, shard, slot, &view);
    word.kind = SLOT_DISK;
    word.place = view.place;
    slot_set(slot, &word);
    count_entry(shard, &word, 0);
    return true;
}

bool entries_add_disk(struct entries *entries, struct index_shard *shard, uint64_t hash,
                      const struct slot_word *word, int64_t expires)
{
    struct slot *slot = index_find(entries->index, shard, hash);
    if (slot != NULL)
        entries_remove(entries, shard, slot);
    if (word->has_end && !add_end(entries, shard, hash, expires))
        return false;
    if (index_add(entries->index, shard, hash, word, evict_epoch(entries->evict)) == NULL) {
        if (word->has_end)
            index_remove(entries->index, shard, index_find_end(entries->index, shard, hash));
        return false;
    }
    count_entry(shard, word, 0);
    return true;
}

struct slot *entries_least(struct entries *entries, struct index_shard *shard, uint64_t hash)
{
    struct slot *slot, *least = NULL;
    unsigned worst = 0;
    for (unsigned n = 0; (slot = index_reach(entries->index, shard, hash, n)) != NULL; n++) {
        struct slot_word word = slot_get(slot);
        if (word.kind == SLOT_FREE || word.kind == SLOT_END)
            continue;
        if (entries->on_disk && is_in_memory(&word) &&
            entries_view(entries, shard, slot).state != ENTRY_WRITTEN)
            continue;
        unsigned score = evict_score(entries->evict, &word, slot_use(slot));
        if (least == NULL || score > worst) {
            least = slot;
            worst = score;
        }
    }
    return least;
}

void entries_written(struct entries *entries, struct index_shard *shard, struct slot *slot,
                     const struct entry_view *view, uint64_t place)
{
    entry_set_state(view, ENTRY_WRITTEN, place);
    count_unwritten(entries, -bytes_of(view));
    /* There was no room for it in memory to begin with. What a CLEAR keeps there goes when it is
     * read. */
    if (view->large != NULL && view->large->charge == 0)
        entries_to_disk(entries, shard, slot);
}

void entries_unwritten(struct entries *entries, const struct entry_view *view)
{
    entry_set_state(view, ENTRY_UNWRITTEN, view->place);
    count_unwritten(entries, bytes_of(view));
}

bool entries_names(struct entries *entries, struct index_shard *shard, const struct slot *slot,
                   uint64_t place)
{
    struct entry_view view = entries_view(entries, shard, slot);
    return view.state == ENTRY_WRITTEN && view.place == place;
}

void entries_moved(struct entries *entries, struct index_shard *shard, struct slot *slot,
                   uint64_t place)
{
    struct slot_word word = slot_get(slot);
    if (word.kind == SLOT_DISK) {
        word.place = place;
        slot_set(slot, &word);
        return;
    }
    struct entry_view view = entries_view(entries, shard, slot);
    entry_set_state(&view, view.state, place);
}
