#include "keyset.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { PART_BITS = 8, PARTS = 1 << PART_BITS, SLOTS_FIRST = 8 };

/* Open addressing with linear probing; 0 marks a free slot. Parts are small, so that a part that
 * doubles is quickly done. */
struct part {
    pthread_mutex_t lock;
    uint32_t mask, count;
    uint64_t *slots;
};

struct keyset {
    atomic_bool certain;
    atomic_bool lost; /* memory was short once: something is missing */
    struct part parts[PARTS];
};

struct keyset *keyset_new(void)
{
    struct keyset *set = calloc(1, sizeof(*set));
    for (unsigned i = 0; set != NULL && i < PARTS; i++)
        pthread_mutex_init(&set->parts[i].lock, NULL);
    return set;
}

void keyset_free(struct keyset *set)
{
    for (unsigned i = 0; set != NULL && i < PARTS; i++) {
        free(set->parts[i].slots);
        pthread_mutex_destroy(&set->parts[i].lock);
    }
    free(set);
}

static struct part *part_of(struct keyset *set, uint64_t hash)
{
    return &set->parts[hash >> (64 - PART_BITS)];
}

static uint64_t in_slot(uint64_t hash)
{
    return hash != 0 ? hash : 1;
}

/* The slot of the hash, or the free one where it would go. */
static uint32_t slot_of(const struct part *part, uint64_t hash)
{
    uint32_t slot = (uint32_t)hash & part->mask;
    while (part->slots[slot] != 0 && part->slots[slot] != hash)
        slot = (slot + 1) & part->mask;
    return slot;
}

static bool grow(struct part *part)
{
    struct part larger = *part;
    larger.mask = part->slots != NULL ? part->mask * 2 + 1 : SLOTS_FIRST - 1;
    larger.slots = calloc((size_t)larger.mask + 1, sizeof(*larger.slots));
    if (larger.slots == NULL)
        return false;
    for (uint32_t i = 0; part->slots != NULL && i <= part->mask; i++) {
        if (part->slots[i] != 0)
            larger.slots[slot_of(&larger, part->slots[i])] = part->slots[i];
    }
    free(part->slots);
    part->slots = larger.slots;
    part->mask = larger.mask;
    return true;
}

/* At most three quarters are taken. */
static bool has_room(const struct part *part)
{
    return part->slots != NULL && (part->count + 1) * 4ULL <= (part->mask + 1) * 3ULL;
}

void keyset_add(struct keyset *set, uint64_t hash)
{
    struct part *part = part_of(set, hash);
    hash = in_slot(hash);
    pthread_mutex_lock(&part->lock);
    if (!has_room(part) && !grow(part)) {
        atomic_store(&set->lost, true);
    } else {
        uint32_t slot = slot_of(part, hash);
        part->count += part->slots[slot] == 0;
        part->slots[slot] = hash;
    }
    pthread_mutex_unlock(&part->lock);
}

/* Moves what follows a freed slot back into it, as long as it stands away from its own place. */
static void close_gap(struct part *part, uint32_t gap)
{
    for (uint32_t i = (gap + 1) & part->mask; part->slots[i] != 0; i = (i + 1) & part->mask) {
        uint32_t home = (uint32_t)part->slots[i] & part->mask;
        if (((i - home) & part->mask) < ((i - gap) & part->mask))
            continue;
        part->slots[gap] = part->slots[i];
        part->slots[i] = 0;
        gap = i;
    }
}

void keyset_remove(struct keyset *set, uint64_t hash)
{
    struct part *part = part_of(set, hash);
    hash = in_slot(hash);
    pthread_mutex_lock(&part->lock);
    if (part->slots != NULL) {
        uint32_t slot = slot_of(part, hash);
        if (part->slots[slot] != 0) {
            part->slots[slot] = 0;
            part->count--;
            close_gap(part, slot);
        }
    }
    pthread_mutex_unlock(&part->lock);
}

void keyset_clear(struct keyset *set)
{
    for (unsigned i = 0; i < PARTS; i++) {
        struct part *part = &set->parts[i];
        pthread_mutex_lock(&part->lock);
        free(part->slots);
        part->slots = NULL;
        part->mask = part->count = 0;
        pthread_mutex_unlock(&part->lock);
    }
}

void keyset_set_certain(struct keyset *set, bool certain)
{
    atomic_store(&set->certain, certain);
}

bool keyset_absent(struct keyset *set, uint64_t hash)
{
    struct part *part = part_of(set, hash);
    hash = in_slot(hash);
    if (!atomic_load(&set->certain) || atomic_load(&set->lost))
        return false;
    pthread_mutex_lock(&part->lock);
    bool absent = part->slots == NULL || part->slots[slot_of(part, hash)] == 0;
    pthread_mutex_unlock(&part->lock);
    return absent;
}
