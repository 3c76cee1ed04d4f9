#include "sqlite_notes.h"

#include <string.h>

void sq_notes_init(struct sq_notes *notes)
{
    pthread_mutex_init(&notes->lock, NULL);
}

void sq_notes_destroy(struct sq_notes *notes)
{
    pthread_mutex_destroy(&notes->lock);
}

void sq_notes_clear(struct sq_notes *notes)
{
    pthread_mutex_lock(&notes->lock);
    memset(notes->uses, 0, sizeof(notes->uses));
    notes->uses_count = 0;
    notes->suspects_count = 0;
    pthread_mutex_unlock(&notes->lock);
}

int64_t sq_notes_tick(struct sq_notes *notes)
{
    return atomic_fetch_add_explicit(&notes->tick, 1, memory_order_relaxed) + 1;
}

static unsigned slot_of(int64_t id)
{
    return (unsigned)((uint64_t)id % SQ_USES);
}

/* Another entry that is noted at the same slot is forgotten: it will seem to have been used
 * earlier. */
void sq_notes_use(struct sq_notes *notes, int64_t id)
{
    struct sq_use *use = &notes->uses[slot_of(id)];
    pthread_mutex_lock(&notes->lock);
    notes->uses_count += use->id == 0;
    *use = (struct sq_use){.id = id, .tick = sq_notes_tick(notes)};
    pthread_mutex_unlock(&notes->lock);
}

unsigned sq_notes_uses(struct sq_notes *notes)
{
    pthread_mutex_lock(&notes->lock);
    unsigned count = notes->uses_count;
    pthread_mutex_unlock(&notes->lock);
    return count;
}

/* The lock is held. */
static bool take(struct sq_notes *notes, struct sq_use *noted, struct sq_use *use)
{
    if (noted->id == 0)
        return false;
    *use = *noted;
    noted->id = 0;
    notes->uses_count--;
    return true;
}

bool sq_notes_take_use(struct sq_notes *notes, int64_t id, struct sq_use *use)
{
    struct sq_use *noted = &notes->uses[slot_of(id)];
    pthread_mutex_lock(&notes->lock);
    bool taken = noted->id == id && take(notes, noted, use);
    pthread_mutex_unlock(&notes->lock);
    return taken;
}

bool sq_notes_take_slot(struct sq_notes *notes, unsigned slot, struct sq_use *use)
{
    pthread_mutex_lock(&notes->lock);
    bool taken = take(notes, &notes->uses[slot], use);
    pthread_mutex_unlock(&notes->lock);
    return taken;
}

void sq_notes_suspect(struct sq_notes *notes, int64_t id, const uint8_t *key, size_t length)
{
    pthread_mutex_lock(&notes->lock);
    if (notes->suspects_count < SQ_SUSPECTS) {
        struct sq_suspect *suspect = &notes->suspects[notes->suspects_count++];
        suspect->id = id;
        suspect->key.length = (uint32_t)length;
        memcpy(suspect->key.bytes, key, length);
    }
    pthread_mutex_unlock(&notes->lock);
}

bool sq_notes_take_suspect(struct sq_notes *notes, struct sq_suspect *suspect)
{
    pthread_mutex_lock(&notes->lock);
    bool taken = notes->suspects_count > 0;
    if (taken)
        *suspect = notes->suspects[--notes->suspects_count];
    pthread_mutex_unlock(&notes->lock);
    return taken;
}
