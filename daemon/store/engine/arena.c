#include "arena.h"

#include "../../clock.h"
#include "../../container_of.h"
#include "../../region.h"
#include "index.h"

#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SEGMENT_MAX = 256 << 10,
    SEGMENTS_LEAST = 64,    /* that the first bound is divided into */
    SEGMENTS_AT_LEAST = 16, /* that a later one has to leave */
    SMALL_SHARE = 4,        /* what takes more than one in so many of a segment is large */
    APPENDERS_MAX = 16,     /* besides the cleaner's */
    SEGMENTS_PER_APPENDER = 8,
    FREE_LOW = 4, /* free segments below which the next is emptied */
    CHARGE_GRANULE = 64,
    GROWTH_ROOM = 4 /* how many times its first bound the arena may be given later */
};

/* Smaller bounds are not worth dividing: all entries are large ones. */
#define SEGMENTED_FROM (UINT64_C(1) << 20)
/* From this bound on memory is taken by the large page. */
#define LARGE_PAGES_FROM (UINT64_C(64) << 20)
#define NO_SEGMENT       UINT32_MAX

enum segment_state { ABSENT, FREE, OPEN, SEALED, EMPTYING, DRAINING };

struct segment {
    struct arena_unit unit;
    atomic_uint pins;
    _Atomic uint32_t live; /* bytes that the index names */
    uint32_t filled;       /* bytes appended; known once it is sealed */
    enum segment_state state;
};

struct arena {
    struct region region;
    const struct index *index;
    bool with_disk;
    uint32_t segment_size; /* 0: all entries are large */
    uint32_t segment_count;
    uint32_t extent; /* segments in a large page; 1: none are asked for */
    uint32_t appender_count;
    _Atomic uint64_t max;
    _Atomic uint64_t used; /* segments that are there, and the charges of large entries */

    pthread_mutex_t lock; /* over all that follows, but for the atomics in a segment */
    struct arena_unit *oldest, **end;
    _Atomic uint32_t free_count;
    uint32_t first_free;   /* no lower segment is free */
    uint32_t first_absent; /* no lower segment has no memory */
    uint32_t highest;      /* segments from here on have never been there */
    uint32_t draining;
    struct segment *segments;
    struct appender cleaner;
    struct appender appenders[APPENDERS_MAX];
};

static uint64_t align8(uint64_t size)
{
    return (size + 7) & ~UINT64_C(7);
}

/* No more than the machine has is ever of use, and a region has to have some size. */
static uint64_t reserve_for(uint64_t max)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return max < memory / GROWTH_ROOM ? max * GROWTH_ROOM : memory;
}

static uint32_t segment_size_for(uint64_t max)
{
    uint32_t size = SEGMENT_MAX;
    if (max < SEGMENTED_FROM)
        return 0;
    while ((uint64_t)size * SEGMENTS_LEAST > max)
        size /= 2;
    return size;
}

static bool make_segments(struct arena *arena, uint64_t max_bytes)
{
    arena->segment_size = segment_size_for(max_bytes);
    arena->extent = 1;
    if (arena->segment_size == 0)
        return true;
    if (!region_open(&arena->region, "liara-cache-arena", reserve_for(max_bytes)))
        return false;
    if (max_bytes >= LARGE_PAGES_FROM)
        arena->extent = REGION_LARGE_PAGE / arena->segment_size;
    arena->segment_count = (uint32_t)(arena->region.size / arena->segment_size);
    arena->first_free = arena->segment_count;
    uint64_t appenders = max_bytes / arena->segment_size / SEGMENTS_PER_APPENDER;
    arena->appender_count = appenders < APPENDERS_MAX ? (uint32_t)appenders : APPENDERS_MAX;
    arena->segments = calloc(arena->segment_count, sizeof(*arena->segments));
    return arena->segments != NULL;
}

static void init_appender(struct appender *appender)
{
    pthread_mutex_init(&appender->lock, NULL);
    appender->segment = NO_SEGMENT;
}

struct arena *arena_new(uint64_t max_bytes, const struct index *index, bool with_disk)
{
    struct arena *arena = aligned_alloc(64, sizeof(*arena));
    if (arena == NULL)
        return NULL;
    memset(arena, 0, sizeof(*arena));
    arena->index = index;
    arena->with_disk = with_disk;
    arena->end = &arena->oldest;
    arena->appender_count = 1;
    pthread_mutex_init(&arena->lock, NULL);
    init_appender(&arena->cleaner);
    for (unsigned i = 0; i < APPENDERS_MAX; i++)
        init_appender(&arena->appenders[i]);
    atomic_init(&arena->max, max_bytes);
    if (make_segments(arena, max_bytes))
        return arena;
    int saved = errno;
    arena_free(arena);
    errno = saved;
    return NULL;
}

void arena_free(struct arena *arena)
{
    if (arena == NULL)
        return;
    for (struct arena_unit *unit = arena->oldest, *next; unit != NULL; unit = next) {
        next = unit->next;
        if (!unit->is_large)
            continue;
        struct large *large = container_of(unit, struct large, unit);
        if (large->charge > 0)
            value_take_back(large->value);
        value_unref(large->value);
        free(large);
    }
    region_close(&arena->region);
    pthread_mutex_destroy(&arena->cleaner.lock);
    for (unsigned i = 0; i < APPENDERS_MAX; i++)
        pthread_mutex_destroy(&arena->appenders[i].lock);
    pthread_mutex_destroy(&arena->lock);
    free(arena->segments);
    free(arena);
}

void arena_set_max(struct arena *arena, uint64_t bytes)
{
    atomic_store_explicit(&arena->max, bytes, memory_order_relaxed);
}

uint64_t arena_max(const struct arena *arena)
{
    return atomic_load_explicit(&arena->max, memory_order_relaxed);
}

/* Bytes of the bound that the index takes. However large it is, a part of the bound is left to pass
 * through. */
static uint64_t beside_of(const struct arena *arena)
{
    uint64_t most = arena_max(arena) / 4 * 3, index = index_bytes(arena->index);
    return index < most ? index : most;
}

uint64_t arena_used(const struct arena *arena)
{
    return atomic_load_explicit(&arena->used, memory_order_relaxed) + beside_of(arena);
}

/* A bound that was lowered to a few segments' size is, like a small one, not worth dividing. */
static bool is_divided(const struct arena *arena)
{
    return arena->segment_size > 0 && arena_max(arena) / arena->segment_size >= SEGMENTS_AT_LEAST;
}

/* Counts the bytes as used if that keeps within the bound. */
static bool reserve(struct arena *arena, uint64_t bytes)
{
    uint64_t max = arena_max(arena), beside = beside_of(arena);
    uint64_t used = atomic_load_explicit(&arena->used, memory_order_relaxed);
    do {
        if (bytes > max || used + beside > max - bytes)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&arena->used, &used, used + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

static void unreserve(struct arena *arena, uint64_t bytes)
{
    atomic_fetch_sub_explicit(&arena->used, bytes, memory_order_relaxed);
}

bool arena_is_short(const struct arena *arena)
{
    uint64_t used = arena_used(arena), max = arena_max(arena);
    if (arena->segment_size == 0 || used > max)
        return used > max;
    return atomic_load_explicit(&arena->free_count, memory_order_relaxed) < FREE_LOW &&
           used + arena->segment_size > max;
}

uint32_t arena_entry_size(const struct arena *arena, uint32_t key_length, uint32_t length,
                          bool has_end)
{
    uint64_t words = (arena->with_disk ? 8 : 0) + (has_end ? 8 : 0);
    uint64_t size = align8(sizeof(struct entry) + words + key_length + length);
    return size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
}

uint32_t arena_small_max(const struct arena *arena)
{
    return is_divided(arena) ? arena->segment_size / SMALL_SHARE : 0;
}

uint32_t arena_keep_max(const struct arena *arena)
{
    return is_divided(arena) ? arena->segment_size / 4 * 3 : 0;
}

struct entry *arena_entry(const struct arena *arena, uint64_t place)
{
    return (struct entry *)(void *)(arena->region.base + place * 8);
}

uint64_t arena_place(const struct arena *arena, const struct entry *entry)
{
    return (uint64_t)((const uint8_t *)entry - arena->region.base) / 8;
}

struct large *arena_large(uint64_t place)
{
    return (struct large *)(uintptr_t)(place * 8);
}

uint64_t arena_large_place(const struct large *large)
{
    return (uint64_t)(uintptr_t)large / 8;
}

_Atomic uint64_t *entry_disk(struct entry *entry)
{
    return (_Atomic uint64_t *)(void *)entry->rest;
}

int64_t entry_end(const struct entry *entry)
{
    int64_t end;
    if (!(entry->bits & ENTRY_HAS_END))
        return CLOCK_NEVER;
    memcpy(&end, entry->rest + (entry->bits & ENTRY_HAS_DISK ? 8 : 0), sizeof(end));
    return end;
}

const uint8_t *entry_key(const struct entry *entry)
{
    return entry->rest + (entry->bits & ENTRY_HAS_DISK ? 8 : 0) +
           (entry->bits & ENTRY_HAS_END ? 8 : 0);
}

const uint8_t *entry_bytes(const struct entry *entry)
{
    return entry_key(entry) + entry->key_length;
}

uint32_t entry_size(const struct entry *entry)
{
    const uint8_t *end = entry_bytes(entry) + entry->length;
    return (uint32_t)align8((uint64_t)(end - (const uint8_t *)entry));
}

static uint32_t segment_of(const struct arena *arena, const struct entry *entry)
{
    return (uint32_t)((uint64_t)((const uint8_t *)entry - arena->region.base) /
                      arena->segment_size);
}

static uint8_t *segment_base(const struct arena *arena, uint32_t number)
{
    return arena->region.base + (uint64_t)number * arena->segment_size;
}

static uint32_t number_of(const struct arena *arena, const struct segment *segment)
{
    return (uint32_t)(segment - arena->segments);
}

static void join_line(struct arena *arena, struct arena_unit *unit)
{
    unit->next = NULL;
    unit->link = arena->end;
    *arena->end = unit;
    arena->end = &unit->next;
}

static void leave_line(struct arena *arena, struct arena_unit *unit)
{
    *unit->link = unit->next;
    if (unit->next != NULL)
        unit->next->link = unit->link;
    else
        arena->end = unit->link;
    unit->link = NULL;
}

static void count_free(struct arena *arena, int change)
{
    atomic_fetch_add_explicit(&arena->free_count, (uint32_t)change, memory_order_relaxed);
}

/* Free segments that are not given back. */
static uint32_t free_to_leave(const struct arena *arena)
{
    return is_divided(arena) ? FREE_LOW : 0;
}

/* Gives the memory of a segment without entries back. false: the system does not take it. */
static bool release(struct arena *arena, struct segment *segment)
{
    uint32_t number = number_of(arena, segment);
    uint64_t size = arena->segment_size;
    if (!region_release(&arena->region, number * size, size))
        return false;
    segment->state = ABSENT;
    if (number < arena->first_absent)
        arena->first_absent = number;
    unreserve(arena, size);
    return true;
}

static void set_free(struct arena *arena, struct segment *segment)
{
    uint32_t number = number_of(arena, segment);
    /* The index grows without asking, and the bound may have been lowered. */
    bool over =
        arena_used(arena) > arena_max(arena) &&
        atomic_load_explicit(&arena->free_count, memory_order_relaxed) >= free_to_leave(arena);
    if (over && release(arena, segment))
        return;
    segment->state = FREE;
    count_free(arena, 1);
    if (number < arena->first_free)
        arena->first_free = number;
}

/* No slot names anything in it any more. It is free once no reader is left, whose reading has then
 * happened before what is written into it next. */
static void drain(struct arena *arena, struct segment *segment)
{
    if (atomic_load_explicit(&segment->pins, memory_order_acquire) == 0) {
        set_free(arena, segment);
        return;
    }
    segment->state = DRAINING;
    arena->draining++;
}

static void look_at_draining(struct arena *arena)
{
    for (uint32_t i = 0; i < arena->highest && arena->draining > 0; i++) {
        struct segment *segment = &arena->segments[i];
        if (segment->state != DRAINING)
            continue;
        if (atomic_load_explicit(&segment->pins, memory_order_acquire) != 0)
            continue;
        arena->draining--;
        set_free(arena, segment);
    }
}

/* Whether all segments of the large page that begins with this one have no memory. */
static bool is_whole_page(const struct arena *arena, uint32_t first)
{
    if (arena->extent == 1 || first % arena->extent != 0)
        return false;
    for (uint32_t i = 0; i < arena->extent; i++) {
        if (arena->segments[first + i].state != ABSENT)
            return false;
    }
    return true;
}

/* Takes memory for one more segment, or for a large page's. */
static bool take_memory(struct arena *arena)
{
    uint32_t first = arena->first_absent, count = 1;
    while (first < arena->segment_count && arena->segments[first].state != ABSENT)
        first++;
    arena->first_absent = first;
    if (first >= arena->segment_count)
        return false;
    if (is_whole_page(arena, first) && reserve(arena, REGION_LARGE_PAGE)) {
        count = arena->extent;
        region_use_large_page(&arena->region, (uint64_t)first * arena->segment_size);
    } else if (!reserve(arena, arena->segment_size)) {
        return false;
    }
    for (uint32_t i = count; i-- > 0;)
        set_free(arena, &arena->segments[first + i]);
    if (first + count > arena->highest)
        arena->highest = first + count;
    return true;
}

/* The lowest free segment, so that whole large pages become free higher up; leave: how many are to
 * be left to others. The lock is held. */
static struct segment *take_free(struct arena *arena, uint32_t leave)
{
    if (arena->draining > 0)
        look_at_draining(arena);
    while (atomic_load_explicit(&arena->free_count, memory_order_relaxed) <= leave) {
        if (!take_memory(arena))
            return NULL;
    }
    uint32_t number = arena->first_free;
    while (arena->segments[number].state != FREE)
        number++;
    arena->first_free = number + 1;
    count_free(arena, -1);
    return &arena->segments[number];
}

/* The appender's segment is full. The lock is held. */
static void seal(struct arena *arena, struct appender *appender)
{
    struct segment *segment = &arena->segments[appender->segment];
    segment->filled = appender->at;
    appender->segment = NO_SEGMENT;
    if (atomic_load_explicit(&segment->live, memory_order_acquire) == 0) {
        drain(arena, segment);
        return;
    }
    segment->state = SEALED;
    join_line(arena, &segment->unit);
}

static bool open_next(struct arena *arena, struct appender *appender)
{
    /* The last free one is what emptying others takes. */
    uint32_t leave = appender == &arena->cleaner ? 0 : 1;
    pthread_mutex_lock(&arena->lock);
    struct segment *segment = take_free(arena, leave);
    if (segment != NULL) {
        if (appender->segment != NO_SEGMENT)
            seal(arena, appender);
        segment->state = OPEN;
        atomic_store_explicit(&segment->live, 0, memory_order_relaxed);
        appender->segment = number_of(arena, segment);
        appender->at = 0;
    }
    pthread_mutex_unlock(&arena->lock);
    return segment != NULL;
}

struct appender *arena_lock_appender(struct arena *arena, unsigned thread)
{
    struct appender *appender = &arena->appenders[thread % arena->appender_count];
    pthread_mutex_lock(&appender->lock);
    return appender;
}

struct appender *arena_lock_cleaner(struct arena *arena)
{
    pthread_mutex_lock(&arena->cleaner.lock);
    return &arena->cleaner;
}

void arena_unlock_appender(struct appender *appender)
{
    pthread_mutex_unlock(&appender->lock);
}

struct entry *arena_append(struct arena *arena, struct appender *appender, uint32_t size)
{
    if (appender->segment == NO_SEGMENT || arena->segment_size - appender->at < size) {
        if (!open_next(arena, appender))
            return NULL;
    }
    uint8_t *at = segment_base(arena, appender->segment) + appender->at;
    appender->at += size;
    atomic_fetch_add_explicit(&arena->segments[appender->segment].live, size, memory_order_relaxed);
    return (struct entry *)(void *)at;
}

void arena_take_back(struct arena *arena, struct appender *appender, struct entry *entry)
{
    uint32_t at = (uint32_t)((uint8_t *)entry - segment_base(arena, appender->segment));
    atomic_fetch_sub_explicit(&arena->segments[appender->segment].live, appender->at - at,
                              memory_order_relaxed);
    appender->at = at;
}

void arena_forget(struct arena *arena, struct entry *entry)
{
    struct segment *segment = &arena->segments[segment_of(arena, entry)];
    uint32_t size = entry_size(entry);
    if (atomic_fetch_sub_explicit(&segment->live, size, memory_order_acq_rel) != size)
        return;
    /* An open one, or one that is being emptied, is free later; see seal() and arena_emptied(). */
    pthread_mutex_lock(&arena->lock);
    if (segment->state == SEALED &&
        atomic_load_explicit(&segment->live, memory_order_relaxed) == 0) {
        leave_line(arena, &segment->unit);
        drain(arena, segment);
    }
    pthread_mutex_unlock(&arena->lock);
}

/* Gives the memory of free segments back, the highest first, until so many bytes more may be taken;
 * a few stay free. */
static void give_back(struct arena *arena, uint64_t wanted)
{
    uint32_t leave = free_to_leave(arena);
    pthread_mutex_lock(&arena->lock);
    if (arena->draining > 0)
        look_at_draining(arena);
    for (uint32_t i = arena->highest; i > 0; i--) {
        struct segment *segment = &arena->segments[i - 1];
        if (arena_used(arena) + wanted <= arena_max(arena) ||
            atomic_load_explicit(&arena->free_count, memory_order_relaxed) <= leave)
            break;
        if (segment->state == FREE && release(arena, segment))
            count_free(arena, -1);
    }
    pthread_mutex_unlock(&arena->lock);
}

static uint64_t charge_of(struct value *value)
{
    uint64_t charge = malloc_usable_size(value) + sizeof(struct large);
    return (charge + CHARGE_GRANULE - 1) / CHARGE_GRANULE;
}

bool arena_fits(const struct arena *arena, struct value *value)
{
    uint64_t max = arena_max(arena);
    uint64_t kept = (uint64_t)(free_to_leave(arena) + 1) * arena->segment_size;
    return charge_of(value) * CHARGE_GRANULE <= (is_divided(arena) ? max - kept : max);
}

struct large *arena_add_large(struct arena *arena, struct value *value, uint64_t hash, bool counted)
{
    uint64_t charge = counted ? charge_of(value) : 0;
    struct large *large = malloc(sizeof(*large));
    if (large == NULL)
        return NULL;
    if (!reserve(arena, charge * CHARGE_GRANULE)) {
        if (arena->segment_size > 0)
            give_back(arena, charge * CHARGE_GRANULE);
        if (!reserve(arena, charge * CHARGE_GRANULE)) {
            free(large);
            errno = ENOBUFS;
            return NULL;
        }
    }
    *large = (struct large){
        .unit = {.is_large = true}, .charge = (uint32_t)charge, .hash = hash, .value = value};
    if (counted)
        value_hand_over(value);
    pthread_mutex_lock(&arena->lock);
    join_line(arena, &large->unit);
    pthread_mutex_unlock(&arena->lock);
    return large;
}

static void free_large(struct arena *arena, struct large *large)
{
    unreserve(arena, (uint64_t)large->charge * CHARGE_GRANULE);
    if (large->charge > 0)
        value_take_back(large->value);
    value_unref(large->value);
    free(large);
}

void arena_remove_large(struct arena *arena, struct large *large)
{
    pthread_mutex_lock(&arena->lock);
    bool emptying = large->emptying;
    if (emptying)
        large->removed = true; /* clean.c has it in its hands */
    else
        leave_line(arena, &large->unit);
    pthread_mutex_unlock(&arena->lock);
    if (!emptying)
        free_large(arena, large);
}

struct pinned arena_pin(struct arena *arena, const struct entry *entry)
{
    atomic_uint *pins = &arena->segments[segment_of(arena, entry)].pins;
    atomic_fetch_add_explicit(pins, 1, memory_order_relaxed);
    return (struct pinned){.bytes = entry_bytes(entry), .pins = pins};
}

bool arena_line_is_empty(struct arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    bool empty = arena->oldest == NULL;
    pthread_mutex_unlock(&arena->lock);
    return empty;
}

struct arena_unit *arena_take_oldest(struct arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    struct arena_unit *unit = arena->oldest;
    if (unit != NULL) {
        leave_line(arena, unit);
        if (unit->is_large)
            container_of(unit, struct large, unit)->emptying = true;
        else
            container_of(unit, struct segment, unit)->state = EMPTYING;
    }
    pthread_mutex_unlock(&arena->lock);
    return unit;
}

void arena_emptied(struct arena *arena, struct arena_unit *unit)
{
    struct segment *segment = container_of(unit, struct segment, unit);
    pthread_mutex_lock(&arena->lock);
    drain(arena, segment);
    pthread_mutex_unlock(&arena->lock);
}

void arena_put_back(struct arena *arena, struct arena_unit *unit)
{
    struct large *removed = NULL;
    pthread_mutex_lock(&arena->lock);
    if (unit->is_large) {
        struct large *large = container_of(unit, struct large, unit);
        large->emptying = false;
        if (large->removed)
            removed = large;
    } else {
        container_of(unit, struct segment, unit)->state = SEALED;
    }
    if (removed == NULL)
        join_line(arena, unit);
    pthread_mutex_unlock(&arena->lock);
    if (removed != NULL)
        free_large(arena, removed);
}

struct entry *arena_next_entry(struct arena *arena, struct arena_unit *unit, uint32_t *offset)
{
    const struct segment *segment = container_of(unit, struct segment, unit);
    if (*offset >= segment->filled)
        return NULL;
    uint8_t *base = segment_base(arena, number_of(arena, segment));
    struct entry *entry = (struct entry *)(void *)(base + *offset);
    *offset += entry_size(entry);
    /* The next but a few, whose head is the only thing of it that is looked at. */
    if (*offset + 512 < segment->filled)
        __builtin_prefetch(base + *offset + 512);
    return entry;
}

static void close_segment(struct arena *arena, struct appender *appender)
{
    pthread_mutex_lock(&appender->lock);
    pthread_mutex_lock(&arena->lock);
    if (appender->segment != NO_SEGMENT)
        seal(arena, appender);
    pthread_mutex_unlock(&arena->lock);
    pthread_mutex_unlock(&appender->lock);
}

void arena_seal(struct arena *arena)
{
    for (unsigned i = 0; i < arena->appender_count; i++)
        close_segment(arena, &arena->appenders[i]);
    close_segment(arena, &arena->cleaner);
}

void arena_trim(struct arena *arena, uint64_t keep)
{
    uint64_t max = arena_max(arena);
    if (arena->segment_size > 0 && arena_used(arena) > keep)
        give_back(arena, keep < max ? max - keep : 0);
}
