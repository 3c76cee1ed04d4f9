#include "index.h"

#include "../../region.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    PASSED_BITS = 2,  /* of each slot's tag; eight for the bucket */
    PASSED_MAX = 255, /* stays there until the shard grows: how many there were is not known */
    USE_BITS = 8,
    TAG_SHIFT = PASSED_BITS + USE_BITS,
    FRACTION_SHIFT = 22, /* bits 22 to 53 of the hash say where in its shard an entry's home is */
    WALK_STEP = 64,
    STRIDE = 409, /* odd, so that it takes a shard to every place */
    /* Rows (a bucket of every shard) in a large page, and from which row on the first is worth one.
     */
    ROWS_IN_LARGE_PAGE = (2 << 20) / (INDEX_SHARDS * 64),
    FIRST_LARGE_ROW = 8
};

#define PASSED_MASK      ((UINT64_C(1) << PASSED_BITS) - 1)
#define USE_MASK         ((UINT64_C(0xFF)) << PASSED_BITS)
#define HASH_MASK        ((UINT64_C(1) << (64 - TAG_SHIFT)) - 1)
#define LARGE_PAGES_FROM (UINT64_C(32) << 20)

struct bucket {
    struct slot slots[INDEX_SLOTS];
} __attribute__((aligned(64)));

struct index {
    struct region region;
    uint32_t max_buckets; /* of a shard */
    bool large_pages;
    _Atomic uint64_t bytes;
    pthread_mutex_t pages_lock;
    uint32_t pages; /* that are large ones, under the lock */
    struct index_shard shards[INDEX_SHARDS];
};

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static uint32_t buckets_of(const struct index_shard *shard)
{
    return atomic_load_explicit(&shard->buckets, memory_order_relaxed);
}

static unsigned number_of(const struct index *index, const struct index_shard *shard)
{
    return (unsigned)(shard - index->shards);
}

static struct bucket *bucket_at(const struct index *index, unsigned shard, uint32_t bucket)
{
    /* A shard's place changes from row to row, so that its buckets do not all fall into one set of
     * the processor's caches. */
    uint64_t at = shard ^ (bucket * STRIDE & (INDEX_SHARDS - 1));
    uint64_t row = (uint64_t)bucket << INDEX_SHARD_BITS;
    return (struct bucket *)(void *)(index->region.base + (row | at) * sizeof(struct bucket));
}

static uint32_t fraction_of(uint64_t hash)
{
    return (uint32_t)(hash >> FRACTION_SHIFT);
}

static uint32_t home_of(uint64_t hash, uint32_t buckets)
{
    return (uint32_t)((uint64_t)fraction_of(hash) * buckets >> 32);
}

static uint32_t reach_of(uint32_t buckets)
{
    return buckets < INDEX_REACH ? buckets : INDEX_REACH;
}

static uint32_t wrap(uint32_t bucket, uint32_t buckets)
{
    return bucket < buckets ? bucket : bucket - buckets;
}

/* How many entries whose home is this bucket or one before it lie behind it. */
static unsigned passed(const struct bucket *bucket)
{
    unsigned count = 0;
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        count |= (unsigned)(load(&bucket->slots[i].tag) & PASSED_MASK) << (i * PASSED_BITS);
    return count;
}

static void set_passed(struct bucket *bucket, unsigned count)
{
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        uint64_t tag = load(&bucket->slots[i].tag) & ~PASSED_MASK;
        store(&bucket->slots[i].tag, tag | (count >> (i * PASSED_BITS) & PASSED_MASK));
    }
}

static uint64_t pack(const struct slot_word *word)
{
    return word->place << 20 | (uint64_t)word->kind << 17 | (uint64_t)word->has_end << 16 |
           (uint64_t)word->size << 8 | word->cost;
}

static struct slot_word unpack(uint64_t word)
{
    return (struct slot_word){.place = word >> 20,
                              .kind = (enum slot_kind)(word >> 17 & 7),
                              .has_end = word >> 16 & 1,
                              .size = (uint8_t)(word >> 8),
                              .cost = (uint8_t)word};
}

static bool is_end(uint64_t word)
{
    return (word >> 17 & 7) == SLOT_END;
}

struct slot_word slot_get(const struct slot *slot)
{
    return unpack(load(&slot->word));
}

void slot_set(struct slot *slot, const struct slot_word *word)
{
    /* A client that has mapped the index must find the entry's bytes complete. */
    atomic_store_explicit(&slot->word, pack(word), memory_order_release);
}

/* The part of the hash that a slot holds. */
static uint64_t tag_hash(const struct slot *slot)
{
    return load(&slot->tag) >> TAG_SHIFT;
}

uint64_t slot_hash(const struct index *index, const struct index_shard *shard,
                   const struct slot *slot)
{
    return (uint64_t)number_of(index, shard) << (64 - INDEX_SHARD_BITS) | tag_hash(slot);
}

uint8_t slot_use(const struct slot *slot)
{
    return (uint8_t)(load(&slot->tag) >> PASSED_BITS);
}

void slot_touch(struct slot *slot, uint8_t epoch)
{
    uint64_t tag = load(&slot->tag);
    if ((uint8_t)(tag >> PASSED_BITS) != epoch)
        store(&slot->tag, (tag & ~USE_MASK) | (uint64_t)epoch << PASSED_BITS);
}

struct index *index_new(uint64_t max_bytes)
{
    struct index *index = aligned_alloc(64, sizeof(*index));
    if (index == NULL)
        return NULL;
    memset(index, 0, sizeof(*index));
    uint64_t row = INDEX_SHARDS * sizeof(struct bucket);
    uint64_t rows = max_bytes / row + 1;
    index->max_buckets = rows < UINT32_MAX / 2 ? (uint32_t)rows : UINT32_MAX / 2;
    index->large_pages = max_bytes >= LARGE_PAGES_FROM;
    pthread_mutex_init(&index->pages_lock, NULL);
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        pthread_mutex_init(&index->shards[i].lock, NULL);
        atomic_init(&index->shards[i].buckets, 1);
    }
    if (region_open(&index->region, "liara-cache-index", index->max_buckets * row))
        return index;
    int saved = errno;
    index_free(index);
    errno = saved;
    return NULL;
}

void index_free(struct index *index)
{
    if (index == NULL)
        return;
    region_close(&index->region);
    for (unsigned i = 0; i < INDEX_SHARDS; i++)
        pthread_mutex_destroy(&index->shards[i].lock);
    pthread_mutex_destroy(&index->pages_lock);
    free(index);
}

uint64_t index_bytes(const struct index *index)
{
    return load(&index->bytes);
}

struct index_shard *index_lock_shard(struct index *index, unsigned number)
{
    struct index_shard *shard = &index->shards[number];
    pthread_mutex_lock(&shard->lock);
    return shard;
}

struct index_shard *index_lock(struct index *index, uint64_t hash)
{
    return index_lock_shard(index, (unsigned)(hash >> (64 - INDEX_SHARD_BITS)));
}

void index_unlock(struct index_shard *shard)
{
    pthread_mutex_unlock(&shard->lock);
}

void index_prefetch(const struct index *index, uint64_t hash)
{
    unsigned number = (unsigned)(hash >> (64 - INDEX_SHARD_BITS));
    uint32_t buckets = buckets_of(&index->shards[number]);
    __builtin_prefetch(bucket_at(index, number, home_of(hash, buckets)));
}

static struct slot *find(struct index *index, struct index_shard *shard, uint64_t hash, bool end)
{
    unsigned number = number_of(index, shard);
    uint32_t buckets = buckets_of(shard), reach = reach_of(buckets);
    uint32_t home = home_of(hash, buckets);
    for (uint32_t n = 0; n < reach; n++) {
        struct bucket *bucket = bucket_at(index, number, wrap(home + n, buckets));
        for (unsigned i = 0; i < INDEX_SLOTS; i++) {
            struct slot *slot = &bucket->slots[i];
            uint64_t word = load(&slot->word);
            if (tag_hash(slot) == (hash & HASH_MASK) && word != 0 && is_end(word) == end)
                return slot;
        }
        if (passed(bucket) == 0)
            break;
    }
    return NULL;
}

struct slot *index_find(struct index *index, struct index_shard *shard, uint64_t hash)
{
    return find(index, shard, hash, false);
}

struct slot *index_find_end(struct index *index, struct index_shard *shard, uint64_t hash)
{
    return find(index, shard, hash, true);
}

static struct slot *free_slot(struct bucket *bucket)
{
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        if (load(&bucket->slots[i].word) == 0)
            return &bucket->slots[i];
    }
    return NULL;
}

/* Puts a slot's contents into the first free one within reach; NULL: there is none. */
static struct slot *place(struct index *index, struct index_shard *shard, uint64_t tag,
                          uint64_t word)
{
    unsigned number = number_of(index, shard);
    uint32_t buckets = buckets_of(shard), reach = reach_of(buckets);
    uint32_t home = home_of(tag >> TAG_SHIFT, buckets);
    struct slot *slot = NULL;
    uint32_t n = 0;
    for (; n < reach && slot == NULL; n++)
        slot = free_slot(bucket_at(index, number, wrap(home + n, buckets)));
    if (slot == NULL)
        return NULL;
    for (uint32_t i = 0; i + 1 < n; i++) {
        struct bucket *bucket = bucket_at(index, number, wrap(home + i, buckets));
        unsigned count = passed(bucket);
        if (count < PASSED_MAX)
            set_passed(bucket, count + 1);
    }
    store(&slot->tag, (tag & ~PASSED_MASK) | (load(&slot->tag) & PASSED_MASK));
    atomic_store_explicit(&slot->word, word, memory_order_release);
    return slot;
}

/* The lock is held. */
static void use_large_pages(struct index *index, uint32_t buckets)
{
    uint32_t pages = (buckets + ROWS_IN_LARGE_PAGE - 1) / ROWS_IN_LARGE_PAGE;
    if (!index->large_pages || buckets <= FIRST_LARGE_ROW)
        return;
    for (; index->pages < pages; index->pages++)
        region_use_large_page(&index->region, index->pages * REGION_LARGE_PAGE);
}

/* Under the lock, so that index_trim() does not give back what the shard is about to use. */
static void set_more_buckets(struct index *index, struct index_shard *shard, uint32_t buckets)
{
    pthread_mutex_lock(&index->pages_lock);
    use_large_pages(index, buckets);
    atomic_store_explicit(&shard->buckets, buckets, memory_order_relaxed);
    pthread_mutex_unlock(&index->pages_lock);
}

/* In atomic words, because index_sample() reads without the lock. from NULL: zeros. */
static void write_bucket(struct bucket *bucket, const struct bucket *from)
{
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        store(&bucket->slots[i].tag, from != NULL ? load(&from->slots[i].tag) : 0);
        store(&bucket->slots[i].word, from != NULL ? load(&from->slots[i].word) : 0);
    }
}

/* Lays the old buckets' slots out in the shard's present number of them. */
static bool lay_out(struct index *index, struct index_shard *shard, const struct bucket *old,
                    uint32_t old_buckets)
{
    unsigned number = number_of(index, shard);
    for (uint32_t i = 0; i < buckets_of(shard); i++)
        write_bucket(bucket_at(index, number, i), NULL);
    for (uint32_t i = 0; i < old_buckets; i++) {
        for (unsigned j = 0; j < INDEX_SLOTS; j++) {
            const struct slot *slot = &old[i].slots[j];
            uint64_t word = load(&slot->word);
            if (word != 0 && place(index, shard, load(&slot->tag), word) == NULL)
                return false;
        }
    }
    return true;
}

/* A copy of the shard's buckets, the caller's to free(). NULL: ENOMEM. */
static struct bucket *copy_buckets(struct index *index, struct index_shard *shard)
{
    uint32_t buckets = buckets_of(shard);
    struct bucket *copy = aligned_alloc(sizeof(*copy), buckets * sizeof(*copy));
    for (uint32_t i = 0; copy != NULL && i < buckets; i++)
        memcpy((void *)&copy[i], (void *)bucket_at(index, number_of(index, shard), i),
               sizeof(*copy));
    return copy;
}

/* Gives the shard so many buckets; false: its entries don't fit, and it is as it was. */
static bool resize(struct index *index, struct index_shard *shard, uint32_t buckets)
{
    uint32_t before = buckets_of(shard);
    struct bucket *old = copy_buckets(index, shard);
    if (old == NULL)
        return false;
    if (buckets > before)
        set_more_buckets(index, shard, buckets);
    else
        atomic_store_explicit(&shard->buckets, buckets, memory_order_relaxed);
    bool done = lay_out(index, shard, old, before);
    if (done) {
        uint64_t change = ((uint64_t)buckets - before) * sizeof(struct bucket);
        atomic_fetch_add_explicit(&index->bytes, change, memory_order_relaxed);
    } else {
        atomic_store_explicit(&shard->buckets, before, memory_order_relaxed);
        for (uint32_t i = 0; i < before; i++)
            write_bucket(bucket_at(index, number_of(index, shard), i), &old[i]);
    }
    free(old);
    return done;
}

/* By an eighth, or by as much more as it takes for every entry to lie within reach, but no more
 * than twofold: hashes that crowd must not cost more than their own number. */
static bool grow(struct index *index, struct index_shard *shard)
{
    uint32_t buckets = buckets_of(shard), most = 2 * buckets;
    if (most > index->max_buckets)
        most = index->max_buckets;
    while (buckets < most) {
        buckets += buckets / 8 + 1;
        if (buckets > most)
            buckets = most;
        if (resize(index, shard, buckets))
            return true;
    }
    return false;
}

static void set_empty(struct index *index, struct index_shard *shard)
{
    uint64_t bytes = (uint64_t)(buckets_of(shard) - 1) * sizeof(struct bucket);
    atomic_store_explicit(&shard->buckets, 1, memory_order_relaxed);
    write_bucket(bucket_at(index, number_of(index, shard), 0), NULL);
    atomic_fetch_sub_explicit(&index->bytes, bytes, memory_order_relaxed);
}

static void shrink(struct index *index, struct index_shard *shard)
{
    uint32_t buckets = buckets_of(shard);
    uint32_t enough = shard->used / (INDEX_SLOTS - 1) + 1;
    if (shard->used == 0)
        set_empty(index, shard);
    else if (enough < buckets / 2)
        resize(index, shard, enough);
}

/* Gives back the pages in which no shard has a bucket. */
static void release_pages(struct index *index)
{
    uint32_t most = 1;
    pthread_mutex_lock(&index->pages_lock);
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        if (buckets_of(&index->shards[i]) > most)
            most = buckets_of(&index->shards[i]);
    }
    uint64_t page = REGION_LARGE_PAGE;
    uint64_t from =
        ((uint64_t)most * INDEX_SHARDS * sizeof(struct bucket) + page - 1) / page * page;
    if (from < index->region.size) {
        region_release(&index->region, from, index->region.size - from);
        if (index->pages > from / page)
            index->pages = (uint32_t)(from / page);
    }
    pthread_mutex_unlock(&index->pages_lock);
}

void index_trim(struct index *index)
{
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(index, i);
        shrink(index, shard);
        index_unlock(shard);
    }
    release_pages(index);
}

static uint32_t buckets_for(const struct index *index, uint64_t entries)
{
    uint64_t buckets = entries / (INDEX_SLOTS * 4 / 5) + 1;
    return buckets < index->max_buckets ? (uint32_t)buckets : index->max_buckets;
}

void index_reserve(struct index *index, uint64_t entries)
{
    uint32_t buckets = buckets_for(index, entries / INDEX_SHARDS);
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(index, i);
        if (buckets > buckets_of(shard))
            resize(index, shard, buckets);
        index_unlock(shard);
    }
}

void index_fit(struct index *index)
{
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(index, i);
        uint32_t enough = buckets_for(index, shard->used);
        if (enough < buckets_of(shard) / 8 * 7)
            resize(index, shard, enough);
        index_unlock(shard);
    }
    release_pages(index);
}

/* At 85 % most entries still lie in their home bucket. */
static bool is_full(const struct index_shard *shard)
{
    return (uint64_t)shard->used * 20 >= (uint64_t)buckets_of(shard) * INDEX_SLOTS * 17;
}

static bool is_sparse(const struct index_shard *shard)
{
    return shard->used < buckets_of(shard) * (INDEX_SLOTS / 4);
}

struct slot *index_add(struct index *index, struct index_shard *shard, uint64_t hash,
                       const struct slot_word *word, uint8_t use)
{
    uint64_t tag = (hash & HASH_MASK) << TAG_SHIFT | (uint64_t)use << PASSED_BITS;
    struct slot *slot = NULL;
    if (is_full(shard))
        grow(index, shard);
    slot = place(index, shard, tag, pack(word));
    /* Where many hashes crowd, the shard grows before it is full, but not if it is rather empty:
     * hashes chosen to crowd would have it grow without end. */
    while (slot == NULL && !is_sparse(shard) && grow(index, shard))
        slot = place(index, shard, tag, pack(word));
    if (slot != NULL)
        atomic_store_explicit(&shard->used, shard->used + 1, memory_order_relaxed);
    return slot;
}

void index_remove(struct index *index, struct index_shard *shard, struct slot *slot)
{
    unsigned number = number_of(index, shard);
    uint32_t buckets = buckets_of(shard);
    uint32_t at = home_of(tag_hash(slot), buckets);
    for (uint32_t n = 0; n < INDEX_REACH; n++, at = wrap(at + 1, buckets)) {
        struct bucket *bucket = bucket_at(index, number, at);
        if (slot >= bucket->slots && slot < bucket->slots + INDEX_SLOTS)
            break;
        unsigned count = passed(bucket);
        if (count > 0 && count < PASSED_MAX)
            set_passed(bucket, count - 1);
    }
    atomic_store_explicit(&slot->word, 0, memory_order_release);
    store(&slot->tag, load(&slot->tag) & PASSED_MASK);
    atomic_store_explicit(&shard->used, shard->used - 1, memory_order_relaxed);
}

struct slot *index_reach(struct index *index, struct index_shard *shard, uint64_t hash, unsigned n)
{
    uint32_t buckets = buckets_of(shard);
    if (n / INDEX_SLOTS >= reach_of(buckets))
        return NULL;
    uint32_t at = wrap(home_of(hash, buckets) + n / INDEX_SLOTS, buckets);
    return &bucket_at(index, number_of(index, shard), at)->slots[n % INDEX_SLOTS];
}

/* The lowest fraction whose home is this bucket or a later one. */
static uint64_t first_fraction(uint32_t bucket, uint32_t buckets)
{
    return (((uint64_t)bucket << 32) + buckets - 1) / buckets;
}

/* Calls each() for the entries whose home is this bucket and whose fraction is at least from. */
static unsigned walk_home(struct index *index, struct index_shard *shard, uint32_t home,
                          uint64_t from,
                          void (*each)(void *arg, struct index_shard *shard, struct slot *slot),
                          void *arg)
{
    unsigned number = number_of(index, shard), met = 0;
    uint32_t buckets = buckets_of(shard), reach = reach_of(buckets);
    bool more = true;
    for (uint32_t n = 0; n < reach && more; n++) {
        struct bucket *bucket = bucket_at(index, number, wrap(home + n, buckets));
        more = passed(bucket) > 0;
        for (unsigned i = 0; i < INDEX_SLOTS; i++) {
            struct slot *slot = &bucket->slots[i];
            uint64_t word = load(&slot->word), hash = tag_hash(slot);
            if (word == 0 || is_end(word) || home_of(hash, buckets) != home ||
                fraction_of(hash) < from)
                continue;
            each(arg, shard, slot);
            met++;
        }
    }
    return met;
}

bool index_walk(struct index *index, struct index_shard *shard, uint64_t *cursor,
                void (*each)(void *arg, struct index_shard *shard, struct slot *slot), void *arg)
{
    const uint64_t end = UINT64_C(1) << 32;
    uint32_t buckets = buckets_of(shard);
    unsigned met = 0;
    for (uint32_t seen = 0; *cursor < end && met < WALK_STEP && seen < WALK_STEP; seen++) {
        uint32_t home = (uint32_t)(*cursor * buckets >> 32);
        met += walk_home(index, shard, home, *cursor, each, arg);
        *cursor = home + 1 < buckets ? first_fraction(home + 1, buckets) : end;
    }
    return *cursor < end;
}

bool index_sample(const struct index *index, uint64_t random, struct slot_word *word, uint8_t *use)
{
    unsigned number = (unsigned)random & (INDEX_SHARDS - 1);
    unsigned shards = 0;
    while (atomic_load_explicit(&index->shards[number].used, memory_order_relaxed) == 0) {
        if (++shards == INDEX_SHARDS)
            return false;
        number = (number + 1) & (INDEX_SHARDS - 1);
    }
    uint32_t buckets = buckets_of(&index->shards[number]);
    uint32_t at = (uint32_t)((random >> INDEX_SHARD_BITS & UINT32_MAX) * buckets >> 32);
    for (uint32_t n = 0; n < buckets; n++, at = wrap(at + 1, buckets)) {
        const struct bucket *bucket = bucket_at(index, number, at);
        for (unsigned i = 0; i < INDEX_SLOTS; i++) {
            const struct slot *slot = &bucket->slots[(random >> 62) ^ i];
            uint64_t packed = load(&slot->word);
            if (packed == 0 || is_end(packed))
                continue;
            *word = unpack(packed);
            *use = slot_use(slot);
            return true;
        }
    }
    return false;
}
