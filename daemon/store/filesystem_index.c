#include "filesystem_index.h"

#include "../clock.h"
#include "store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_LENGTH_MASK = 0x7ff,
    FIRST_BUCKETS = 8,
    MOST_FIRST_BUCKETS = 1 << 16, /* of a shard that is not there yet */
    WALK_BUCKETS = 4096,          /* of one collect, under the lock */
    SAMPLES = 16,                 /* residents among which a victim is chosen */
    FEW_ENTRIES = 64,             /* among so few, all are looked at */
    COPY_SHARDS = 2,              /* of one step of writing the log afresh */
    FLUSH_BYTES = 64 * 1024,
    RENEW_PAUSE_MS = 1000 /* after a failure */
};

struct shard {
    pthread_mutex_t lock;
    struct fs_entry **buckets;
    uint32_t mask; /* buckets - 1 */
    uint32_t count;
    int64_t earliest; /* no entry ends before */
    bool certain;
};

struct fs_index {
    struct fs_log *log;
    uint32_t block;
    bool clean;       /* how the log was found: what was loaded from it needs no look at the file */
    bool renewing;    /* the log; for who tends it */
    unsigned renewed; /* shards copied */
    int64_t renew_not_before;
    atomic_uint uncertain; /* shards */
    atomic_uint epoch, durable;
    _Atomic int64_t earliest;
    _Atomic uint64_t entries, bytes, disk, random;
    struct shard shards[FS_FOLDERS];
};

static struct shard *shard_of(struct fs_index *index, XXH128_hash_t hash)
{
    return &index->shards[fs_file_folder(hash)];
}

/* The link that points to the entry, or to NULL at its chain's end. The lock is held. */
static struct fs_entry **find(struct shard *shard, XXH128_hash_t hash)
{
    struct fs_entry **link = &shard->buckets[hash.low64 & shard->mask];
    while (*link != NULL &&
           ((*link)->hash.low64 != hash.low64 || (*link)->hash.high64 != hash.high64))
        link = &(*link)->next;
    return link;
}

/* Where memory for twice the buckets is short, the chains just get longer. The lock is held. */
static void grow(struct shard *shard)
{
    uint32_t count = (shard->mask + 1) * 2;
    struct fs_entry **buckets = calloc(count, sizeof(struct fs_entry *));
    if (buckets == NULL)
        return;
    for (uint32_t i = 0; i <= shard->mask; i++) {
        for (struct fs_entry *entry = shard->buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            struct fs_entry **bucket = &buckets[entry->hash.low64 & (count - 1)];
            entry->next = *bucket;
            *bucket = entry;
        }
    }
    free(shard->buckets);
    shard->buckets = buckets;
    shard->mask = count - 1;
}

static uint64_t round_up(const struct fs_index *index, uint64_t bytes)
{
    return (bytes + index->block - 1) / index->block * index->block;
}

static uint64_t file_size(size_t key_length, uint64_t length)
{
    return sizeof(struct fs_header) + key_length + length;
}

uint64_t fs_index_cost(const struct fs_index *index, size_t key_length, uint64_t length)
{
    return round_up(index, file_size(key_length, length));
}

static bool in_journal(const struct fs_entry *entry)
{
    return entry != NULL && entry->segment != 0;
}

static bool has_file(const struct fs_entry *entry)
{
    return entry->segment == 0 || entry->has_file;
}

static uint64_t cost_of(const struct fs_index *index, const struct fs_entry *entry)
{
    if (!has_file(entry))
        return 0;
    return fs_index_cost(index, entry->key_length, entry->length);
}

static void count_in(struct fs_index *index, const struct fs_entry *entry)
{
    atomic_fetch_add(&index->entries, 1);
    atomic_fetch_add(&index->bytes, (uint64_t)entry->key_length + entry->length);
    atomic_fetch_add(&index->disk, cost_of(index, entry));
}

static void count_out(struct fs_index *index, const struct fs_entry *entry)
{
    atomic_fetch_sub(&index->entries, 1);
    atomic_fetch_sub(&index->bytes, (uint64_t)entry->key_length + entry->length);
    atomic_fetch_sub(&index->disk, cost_of(index, entry));
}

static void lower(_Atomic int64_t *earliest, int64_t time)
{
    int64_t now = atomic_load(earliest);
    while (time < now && !atomic_compare_exchange_weak(earliest, &now, time))
        ;
}

/* Puts the entry in the place of *link, which may be NULL; the one that was there is freed. */
static void replace(struct fs_index *index, struct shard *shard, struct fs_entry **link,
                    struct fs_entry *entry)
{
    struct fs_entry *old = *link;
    entry->next = old != NULL ? old->next : NULL;
    *link = entry;
    if (in_journal(entry) && old != NULL)
        entry->has_file = has_file(old);
    count_in(index, entry);
    if (entry->expires < shard->earliest)
        shard->earliest = entry->expires;
    lower(&index->earliest, entry->expires);
    if (old != NULL)
        count_out(index, old);
    else if (++shard->count > shard->mask)
        grow(shard);
    free(old);
}

/* Takes out and frees *link; returns what it took up on the disk. */
static uint64_t drop(struct fs_index *index, struct shard *shard, struct fs_entry **link)
{
    struct fs_entry *entry = *link;
    uint64_t cost = cost_of(index, entry);
    *link = entry->next;
    shard->count--;
    count_out(index, entry);
    free(entry);
    return cost;
}

static struct fs_record record_of(const struct fs_entry *entry)
{
    int64_t ttl = entry->expires == CLOCK_NEVER ? CLOCK_NEVER : entry->expires - clock_now();
    return (struct fs_record){
        .type = FS_PUT,
        .hash = entry->hash,
        .end = clock_to_wall(entry->expires),
        .ttl = ttl,
        .used = clock_to_wall(entry->used / 1000),
        .length = entry->length,
        .key_length = entry->key_length,
    };
}

static void log_put(struct fs_index *index, const struct fs_entry *entry)
{
    if (index->log != NULL)
        fs_log_add(index->log, record_of(entry), entry->key);
}

static void log_delete(struct fs_index *index, XXH128_hash_t hash)
{
    if (index->log != NULL)
        fs_log_add(index->log, (struct fs_record){.type = FS_DELETE, .hash = hash}, NULL);
}

struct fs_entry *fs_entry_new(XXH128_hash_t hash, const uint8_t *key, size_t key_length,
                              uint32_t length, int64_t expires)
{
    size_t size = offsetof(struct fs_entry, key) + key_length;
    struct fs_entry *entry = malloc(size > sizeof(*entry) ? size : sizeof(*entry));
    if (entry == NULL)
        return NULL;
    *entry = (struct fs_entry){
        .hash = hash,
        .expires = expires,
        .used = (int64_t)clock_tick(),
        .length = length,
        .key_length = key_length & KEY_LENGTH_MASK,
    };
    memcpy(entry->key, key, key_length);
    return entry;
}

/* The log, too, has an entry that was read from the journal; listed: and knows all about it. */
static void meet_journaled(struct fs_entry *entry, const struct fs_record *record, int64_t used)
{
    entry->used = used;
    entry->listed = record->length == entry->length &&
                    clock_from_wall(record->end, record->ttl) == entry->expires;
}

static bool replay_put(struct fs_index *index, const struct fs_record *record, const uint8_t *key)
{
    struct shard *shard = shard_of(index, record->hash);
    int64_t used = clock_from_wall(record->used, 0) * 1000;
    struct fs_entry **link = find(shard, record->hash);
    if (in_journal(*link)) {
        meet_journaled(*link, record, used);
        return true;
    }
    int64_t expires = clock_from_wall(record->end, record->ttl);
    struct fs_entry *entry =
        fs_entry_new(record->hash, key, record->key_length, record->length, expires);
    if (entry == NULL)
        return false;
    entry->used = used;
    entry->epoch = index->epoch;
    entry->loaded = true;
    replace(index, shard, link, entry);
    return true;
}

static bool replay(void *arg, const struct fs_record *record, const uint8_t *key)
{
    struct fs_index *index = arg;
    struct shard *shard = shard_of(index, record->hash);
    if (record->type == FS_PUT)
        return replay_put(index, record, key);
    if (record->type == FS_PERSISTED || record->type == FS_CLOSED)
        fs_index_set_durable(index, fs_index_next_epoch(index));
    struct fs_entry **link = find(shard, record->hash);
    if (record->type == FS_DELETE && in_journal(*link))
        (*link)->listed = false;
    else if (record->type == FS_DELETE && *link != NULL)
        drop(index, shard, link);
    return true;
}

static bool open_shards(struct fs_index *index, uint64_t entries)
{
    bool ok = true;
    uint32_t buckets = FIRST_BUCKETS;
    while (buckets < MOST_FIRST_BUCKETS && buckets < entries / FS_FOLDERS)
        buckets *= 2;
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        struct shard *shard = &index->shards[i];
        pthread_mutex_init(&shard->lock, NULL);
        shard->earliest = CLOCK_NEVER;
        shard->mask = buckets - 1;
        shard->buckets = calloc(buckets, sizeof(struct fs_entry *));
        ok = ok && shard->buckets != NULL;
    }
    return ok;
}

struct fs_index *fs_index_new(uint32_t block, uint64_t entries)
{
    struct fs_index *index = calloc(1, sizeof(*index));
    if (index == NULL || !open_shards(index, entries)) {
        fs_index_close(index, NULL);
        return NULL;
    }
    index->block = block;
    index->earliest = CLOCK_NEVER;
    index->random = clock_tick();
    index->epoch = 1;
    index->uncertain = FS_FOLDERS;
    return index;
}

/* What came from the journal may be news to the log. */
static void log_journaled(struct fs_index *index, const struct shard *shard)
{
    for (uint32_t bucket = 0; bucket <= shard->mask; bucket++) {
        for (struct fs_entry *entry = shard->buckets[bucket]; entry != NULL; entry = entry->next) {
            if (in_journal(entry) && !entry->listed)
                log_put(index, entry);
        }
    }
}

bool fs_index_load(struct fs_index *index, struct fs_directory directory,
                   const struct fs_found *found, char *why, size_t size)
{
    bool clean;
    index->log = fs_log_open(directory, found->state, replay, index, &clean, why, size);
    if (index->log == NULL)
        return false;
    index->clean = clean && !found->doubtful;
    for (unsigned i = 0; i < FS_FOLDERS; i++)
        log_journaled(index, &index->shards[i]);
    for (unsigned i = 0; i < FS_FOLDERS && (index->clean || found->empty); i++)
        fs_index_set_certain(index, i);
    return true;
}

static void free_shard(struct shard *shard)
{
    for (uint32_t i = 0; shard->buckets != NULL && i <= shard->mask; i++) {
        for (struct fs_entry *entry = shard->buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            free(entry);
        }
    }
    free(shard->buckets);
    pthread_mutex_destroy(&shard->lock);
}

void fs_index_close(struct fs_index *index, const XXH128_hash_t *state)
{
    if (index == NULL)
        return;
    fs_log_close(index->log, fs_index_certain(index) ? state : NULL);
    for (unsigned i = 0; i < FS_FOLDERS; i++)
        free_shard(&index->shards[i]);
    free(index);
}

/* Whether what the entry says may be relied on without a look at its file. */
static bool is_sure(const struct fs_index *index, const struct fs_entry *entry)
{
    return !entry->loaded || index->clean;
}

static bool has_key(const struct fs_entry *entry, const uint8_t *key, size_t length)
{
    return entry->key_length == length && memcmp(entry->key, key, length) == 0;
}

static struct fs_place place_of(const struct fs_entry *entry)
{
    struct fs_place place = {.segment = 0};
    if (in_journal(entry))
        place = (struct fs_place){.segment = entry->segment, .offset = entry->offset};
    return place;
}

enum fs_known fs_index_find(struct fs_index *index, XXH128_hash_t hash, const uint8_t *key,
                            size_t key_length, bool looked, struct fs_facts *facts)
{
    struct shard *shard = shard_of(index, hash);
    enum fs_known known = FS_ABSENT;
    pthread_mutex_lock(&shard->lock);
    struct fs_entry *entry = *find(shard, hash);
    bool sure = looked || (entry != NULL ? is_sure(index, entry) : shard->certain);
    if (!sure) {
        known = FS_UNSURE;
    } else if (entry != NULL && has_key(entry, key, key_length) &&
               !store_expired(entry->expires, clock_now())) {
        known = FS_PRESENT;
        entry->used = (int64_t)clock_tick();
        *facts = (struct fs_facts){
            .length = entry->length, .expires = entry->expires, .place = place_of(entry)};
    }
    pthread_mutex_unlock(&shard->lock);
    return known;
}

enum fs_known fs_index_alive(struct fs_index *index, XXH128_hash_t hash, bool looked)
{
    struct shard *shard = shard_of(index, hash);
    enum fs_known known = FS_ABSENT;
    pthread_mutex_lock(&shard->lock);
    const struct fs_entry *entry = *find(shard, hash);
    if (!looked && !(entry != NULL ? is_sure(index, entry) : shard->certain))
        known = FS_UNSURE;
    else if (entry != NULL && !store_expired(entry->expires, clock_now()))
        known = FS_PRESENT;
    pthread_mutex_unlock(&shard->lock);
    return known;
}

void fs_index_put(struct fs_index *index, struct fs_entry *entry)
{
    struct shard *shard = shard_of(index, entry->hash);
    if (entry->segment == 0)
        entry->epoch = index->epoch;
    pthread_mutex_lock(&shard->lock);
    log_put(index, entry);
    replace(index, shard, find(shard, entry->hash), entry);
    pthread_mutex_unlock(&shard->lock);
}

struct fs_place fs_index_place(struct fs_index *index, XXH128_hash_t hash)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_place place = place_of(*find(shard, hash));
    pthread_mutex_unlock(&shard->lock);
    return place;
}

/* The entry at place, or NULL. The lock is held. */
static struct fs_entry *find_at(struct shard *shard, XXH128_hash_t hash, struct fs_place place)
{
    struct fs_entry *entry = *find(shard, hash);
    bool there =
        in_journal(entry) && entry->segment == place.segment && entry->offset == place.offset;
    return there ? entry : NULL;
}

static void count_file(struct fs_index *index, struct fs_entry *entry)
{
    if (has_file(entry))
        return;
    entry->has_file = true;
    atomic_fetch_add(&index->disk, cost_of(index, entry));
}

void fs_index_has_file(struct fs_index *index, XXH128_hash_t hash, struct fs_place place)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_entry *entry = find_at(shard, hash, place);
    if (entry != NULL)
        count_file(index, entry);
    pthread_mutex_unlock(&shard->lock);
}

void fs_index_filed(struct fs_index *index, XXH128_hash_t hash, struct fs_place place)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_entry *entry = find_at(shard, hash, place);
    if (entry != NULL) {
        count_file(index, entry);
        entry->segment = 0;
        entry->epoch = 0;
    }
    pthread_mutex_unlock(&shard->lock);
}

/*
 * Whether the file that was found is the one that is known. What is known for sure may end before
 * the file says: the wall clock was set back since the file was written.
 */
static bool confirms(const struct fs_entry *old, const struct fs_entry *found)
{
    bool same_end =
        old->expires == found->expires ||
        (!old->loaded && found->expires != CLOCK_NEVER && old->expires < found->expires);
    return same_end && old->length == found->length && has_key(old, found->key, found->key_length);
}

bool fs_index_verified(struct fs_index *index, XXH128_hash_t hash)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    const struct fs_entry *entry = *find(shard, hash);
    bool verified = entry != NULL && entry->verified;
    pthread_mutex_unlock(&shard->lock);
    return verified;
}

void fs_index_verify(struct fs_index *index, XXH128_hash_t hash)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_entry *entry = *find(shard, hash);
    if (entry != NULL && !in_journal(entry))
        entry->verified = true;
    pthread_mutex_unlock(&shard->lock);
}

void fs_index_settle(struct fs_index *index, struct fs_entry *entry)
{
    struct shard *shard = shard_of(index, entry->hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_entry **link = find(shard, entry->hash);
    struct fs_entry *old = *link;
    if (in_journal(old)) {
        free(entry);
    } else if (old != NULL && confirms(old, entry)) {
        old->loaded = false;
        free(entry);
    } else {
        entry->epoch = index->epoch;
        log_put(index, entry);
        replace(index, shard, link, entry);
    }
    pthread_mutex_unlock(&shard->lock);
}

uint64_t fs_index_remove(struct fs_index *index, XXH128_hash_t hash)
{
    struct shard *shard = shard_of(index, hash);
    uint64_t cost = 0;
    pthread_mutex_lock(&shard->lock);
    struct fs_entry **link = find(shard, hash);
    if (*link != NULL) {
        log_delete(index, hash);
        cost = drop(index, shard, link);
    }
    pthread_mutex_unlock(&shard->lock);
    return cost;
}

bool fs_index_listed(struct fs_index *index, XXH128_hash_t hash, uint64_t size)
{
    struct shard *shard = shard_of(index, hash);
    pthread_mutex_lock(&shard->lock);
    struct fs_entry *entry = *find(shard, hash);
    bool known =
        in_journal(entry) || (entry != NULL && file_size(entry->key_length, entry->length) == size);
    if (entry != NULL)
        entry->listed = true;
    pthread_mutex_unlock(&shard->lock);
    return known;
}

void fs_index_set_certain(struct fs_index *index, unsigned i)
{
    struct shard *shard = &index->shards[i];
    pthread_mutex_lock(&shard->lock);
    if (!shard->certain)
        atomic_fetch_sub(&index->uncertain, 1);
    shard->certain = true;
    pthread_mutex_unlock(&shard->lock);
}

bool fs_index_certain(const struct fs_index *index)
{
    return atomic_load(&index->uncertain) == 0;
}

uint64_t fs_index_entries(const struct fs_index *index)
{
    return atomic_load(&index->entries);
}

uint64_t fs_index_bytes(const struct fs_index *index)
{
    return atomic_load(&index->bytes);
}

uint64_t fs_index_disk(const struct fs_index *index)
{
    return atomic_load(&index->disk);
}

struct tally {
    const uint8_t *prefix;
    size_t length;
    int64_t now;
    uint64_t *entries, *bytes;
};

static void tally_entry(struct tally *tally, const struct fs_entry *entry)
{
    if (entry->key_length < tally->length ||
        memcmp(entry->key, tally->prefix, tally->length) != 0 ||
        store_expired(entry->expires, tally->now))
        return;
    ++*tally->entries;
    *tally->bytes += (uint64_t)entry->key_length + entry->length;
}

void fs_index_count(struct fs_index *index, const uint8_t *prefix, size_t length, uint64_t *entries,
                    uint64_t *bytes)
{
    struct tally tally = {prefix, length, clock_now(), entries, bytes};
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        struct shard *shard = &index->shards[i];
        pthread_mutex_lock(&shard->lock);
        for (uint32_t bucket = 0; bucket <= shard->mask; bucket++) {
            for (struct fs_entry *entry = shard->buckets[bucket]; entry != NULL;
                 entry = entry->next)
                tally_entry(&tally, entry);
        }
        pthread_mutex_unlock(&shard->lock);
    }
}

size_t fs_index_collect(struct fs_index *index, unsigned i, uint32_t *bucket, fs_match *match,
                        const void *arg, XXH128_hash_t *hashes, size_t room)
{
    struct shard *shard = &index->shards[i];
    size_t count = 0;
    pthread_mutex_lock(&shard->lock);
    /* Growth leaves what is ahead of the cursor ahead of it: a chain splits into itself and a later
     * one. */
    for (unsigned walked = 0; walked < WALK_BUCKETS && *bucket <= shard->mask; walked++) {
        for (struct fs_entry *entry = shard->buckets[*bucket]; entry != NULL && count < room;
             entry = entry->next) {
            if (match(entry, arg))
                hashes[count++] = entry->hash;
        }
        if (count == room)
            break;
        ++*bucket;
    }
    if (*bucket > shard->mask)
        *bucket = FS_SHARD_END;
    pthread_mutex_unlock(&shard->lock);
    return count;
}

/* How much an entry deserves to stay. */
static int64_t worth(const struct fs_entry *entry)
{
    return entry->used;
}

struct choice {
    XXH128_hash_t hash;
    int64_t worth;
    unsigned seen;
};

static void consider(struct choice *choice, const struct fs_entry *entry)
{
    if (choice->seen++ > 0 && worth(entry) >= choice->worth)
        return;
    choice->hash = entry->hash;
    choice->worth = worth(entry);
}

static uint64_t random_number(struct fs_index *index)
{
    uint64_t x = atomic_fetch_add(&index->random, 0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

/* Considers the chain of a random bucket, or the next that is not empty. */
static void sample(struct fs_index *index, struct choice *choice)
{
    uint64_t random = random_number(index);
    struct shard *shard = &index->shards[random >> 56];
    pthread_mutex_lock(&shard->lock);
    uint32_t bucket = (uint32_t)random & shard->mask;
    struct fs_entry *entry = shard->buckets[bucket];
    for (uint32_t i = 0; entry == NULL && shard->count > 0 && i <= shard->mask; i++)
        entry = shard->buckets[++bucket & shard->mask];
    for (; entry != NULL; entry = entry->next)
        consider(choice, entry);
    pthread_mutex_unlock(&shard->lock);
}

static void consider_all(struct fs_index *index, struct choice *choice)
{
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        struct shard *shard = &index->shards[i];
        pthread_mutex_lock(&shard->lock);
        for (uint32_t bucket = 0; shard->count > 0 && bucket <= shard->mask; bucket++) {
            for (struct fs_entry *entry = shard->buckets[bucket]; entry; entry = entry->next)
                consider(choice, entry);
        }
        pthread_mutex_unlock(&shard->lock);
    }
}

bool fs_index_victim(struct fs_index *index, XXH128_hash_t *hash)
{
    struct choice choice = {.seen = 0};
    if (fs_index_entries(index) > FEW_ENTRIES) {
        for (unsigned i = 0; i < 8 * SAMPLES && choice.seen < SAMPLES; i++)
            sample(index, &choice);
    }
    if (choice.seen == 0)
        consider_all(index, &choice);
    *hash = choice.hash;
    return choice.seen > 0;
}

int64_t fs_index_earliest(const struct fs_index *index)
{
    return atomic_load(&index->earliest);
}

int64_t fs_index_shard_earliest(struct fs_index *index, unsigned i)
{
    struct shard *shard = &index->shards[i];
    pthread_mutex_lock(&shard->lock);
    int64_t earliest = shard->earliest;
    pthread_mutex_unlock(&shard->lock);
    return earliest;
}

void fs_index_renew_shard_earliest(struct fs_index *index, unsigned i)
{
    struct shard *shard = &index->shards[i];
    pthread_mutex_lock(&shard->lock);
    shard->earliest = CLOCK_NEVER;
    for (uint32_t bucket = 0; bucket <= shard->mask; bucket++) {
        for (struct fs_entry *entry = shard->buckets[bucket]; entry != NULL; entry = entry->next) {
            if (entry->expires < shard->earliest)
                shard->earliest = entry->expires;
        }
    }
    pthread_mutex_unlock(&shard->lock);
}

/* A put lowers its shard's before it lowers the common one, so none is lost in between. */
void fs_index_renew_earliest(struct fs_index *index)
{
    atomic_store(&index->earliest, CLOCK_NEVER);
    for (unsigned i = 0; i < FS_FOLDERS; i++)
        lower(&index->earliest, fs_index_shard_earliest(index, i));
}

uint32_t fs_index_next_epoch(struct fs_index *index)
{
    return atomic_fetch_add(&index->epoch, 1);
}

void fs_index_set_durable(struct fs_index *index, uint32_t epoch)
{
    atomic_store(&index->durable, epoch);
}

bool fs_index_not_durable(const struct fs_entry *entry, const void *arg)
{
    const struct fs_index *index = arg;
    return !in_journal(entry) && entry->epoch > atomic_load(&index->durable);
}

static void copy_shard(struct fs_index *index, struct shard *shard)
{
    pthread_mutex_lock(&shard->lock);
    for (uint32_t bucket = 0; bucket <= shard->mask; bucket++) {
        for (struct fs_entry *entry = shard->buckets[bucket]; entry != NULL; entry = entry->next)
            fs_log_renew_copy(index->log, record_of(entry), entry->key);
    }
    pthread_mutex_unlock(&shard->lock);
}

static int renew_begin(struct fs_index *index)
{
    int error = fs_log_renew_begin(index->log);
    index->renewing = error == 0;
    index->renewed = 0;
    if (error != 0)
        index->renew_not_before = clock_now() + RENEW_PAUSE_MS;
    return error;
}

/* Copies some shards; the last step puts the new file in place. 0, or errno and it is given up. */
static int renew_step(struct fs_index *index)
{
    for (unsigned i = 0; i < COPY_SHARDS && index->renewed < FS_FOLDERS; i++)
        copy_shard(index, &index->shards[index->renewed++]);
    fs_log_flush(index->log);
    if (index->renewed < FS_FOLDERS)
        return 0;
    index->renewing = false;
    int error = fs_log_renew_end(index->log);
    if (error != 0)
        index->renew_not_before = clock_now() + RENEW_PAUSE_MS;
    return error;
}

static bool renewal_due(struct fs_index *index)
{
    return fs_log_wants_renewal(index->log, fs_index_entries(index)) &&
           clock_now() >= index->renew_not_before;
}

bool fs_index_tend_log(struct fs_index *index)
{
    if (!index->renewing && renewal_due(index))
        renew_begin(index);
    if (index->renewing)
        renew_step(index);
    else if (fs_log_waiting(index->log) >= FLUSH_BYTES)
        fs_log_flush(index->log);
    return index->renewing;
}

bool fs_index_log_waits(struct fs_index *index)
{
    return fs_log_waiting(index->log) >= FLUSH_BYTES;
}

/* A fresh file may be on its way already; that one is finished. 0 or errno. */
static int renew_now(struct fs_index *index)
{
    int error = index->renewing ? 0 : renew_begin(index);
    while (error == 0 && index->renewing)
        error = renew_step(index);
    return error;
}

int fs_index_persist(struct fs_index *index)
{
    int error = fs_log_persist(index->log);
    if (error != 0)
        error = renew_now(index);
    return error;
}
