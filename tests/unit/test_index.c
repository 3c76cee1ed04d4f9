/* The index against a model of it: whatever is added, removed, grown and given back, each hash
 * leads to what was last said of it, and a walk meets what stays exactly once. */
#include "../../daemon/store/engine/index.h"
#include "suite.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { HASHES = 512, ROUNDS = 50000, WALKS = 100, MANY = 100000, CROWD = 210, LARGE = 31 << 20 };

static struct index *table;
static uint64_t random_state;

static void start(uint64_t max_bytes)
{
    table = index_new(max_bytes);
    ck_assert_ptr_nonnull(table);
    random_state = 0x9E3779B97F4A7C15;
}

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545F4914F6CDD1D;
}

static struct slot_word word_of(uint64_t place, enum slot_kind kind)
{
    return (struct slot_word){.place = place,
                              .kind = kind,
                              .has_end = place & 1,
                              .size = (uint8_t)(place * 7),
                              .cost = (uint8_t)(place * 11)};
}

static bool same_word(struct slot_word a, struct slot_word b)
{
    return a.place == b.place && a.kind == b.kind && a.has_end == b.has_end && a.size == b.size &&
           a.cost == b.cost;
}

static bool add(uint64_t hash, uint64_t place, enum slot_kind kind)
{
    struct slot_word word = word_of(place, kind);
    struct index_shard *shard = index_lock(table, hash);
    struct slot *slot = index_add(table, shard, hash, &word, (uint8_t)place);
    if (slot != NULL)
        ck_assert_uint_eq(slot_hash(table, shard, slot), hash);
    index_unlock(shard);
    return slot != NULL;
}

static void drop(uint64_t hash, bool end)
{
    struct index_shard *shard = index_lock(table, hash);
    struct slot *slot = end ? index_find_end(table, shard, hash) : index_find(table, shard, hash);
    ck_assert_ptr_nonnull(slot);
    index_remove(table, shard, slot);
    index_unlock(shard);
}

/* place 0: it is not to be there. */
static void expect(uint64_t hash, uint64_t place, enum slot_kind kind)
{
    struct index_shard *shard = index_lock(table, hash);
    struct slot *slot =
        kind == SLOT_END ? index_find_end(table, shard, hash) : index_find(table, shard, hash);
    ck_assert((slot != NULL) == (place != 0));
    if (slot != NULL) {
        ck_assert(same_word(slot_get(slot), word_of(place, kind)));
        ck_assert_uint_eq(slot_use(slot), (uint8_t)place);
    }
    index_unlock(shard);
}

struct known {
    uint64_t hash, place, end;
    enum slot_kind kind;
};

static void change(struct known *known)
{
    if (known->place != 0 && next_random() % 3 == 0) {
        if (known->end != 0)
            drop(known->hash, true);
        drop(known->hash, false);
        known->place = known->end = 0;
    } else if (known->place == 0) {
        known->place = next_random() >> 21 | 1;
        known->kind = SLOT_ARENA + next_random() % 3;
        ck_assert(add(known->hash, known->place, known->kind));
    } else if (known->end == 0) {
        known->end = next_random() >> 21 | 1;
        ck_assert(add(known->hash, known->end, SLOT_END));
    } else {
        struct index_shard *shard = index_lock(table, known->hash);
        struct slot *slot = index_find(table, shard, known->hash);
        known->place = next_random() >> 21 | 1;
        struct slot_word word = word_of(known->place, known->kind);
        slot_set(slot, &word);
        slot_touch(slot, (uint8_t)known->place);
        index_unlock(shard);
    }
}

/* In one shard or in few, so that they grow far and crowd; or in all. */
static void random_operations(unsigned shards)
{
    struct known *known = calloc(HASHES, sizeof(*known));
    start(LARGE);
    for (unsigned i = 0; i < HASHES; i++)
        known[i].hash = (uint64_t)(i % shards) << 54 | next_random() >> 10;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct known *one = &known[next_random() % HASHES];
        change(one);
        one = &known[next_random() % HASHES];
        expect(one->hash, one->place, one->kind);
        expect(one->hash, one->end, SLOT_END);
        if (round % 10000 == 9999)
            index_trim(table);
    }
    for (unsigned i = 0; i < HASHES; i++) {
        expect(known[i].hash, known[i].place, known[i].kind);
        expect(known[i].hash, known[i].end, SLOT_END);
    }
    index_free(table);
    free(known);
}

START_TEST(it_holds_what_a_model_holds)
{
    random_operations(1);
    random_operations(3);
    random_operations(64);
}
END_TEST

/* As many as fit within reach of one home have one hash's place; then the next does not fit. */
static unsigned add_crowd(uint64_t first, uint64_t step)
{
    unsigned added = 0;
    while (added < CROWD && add(first + added * step, added + 1, SLOT_ARENA))
        added++;
    return added;
}

/* Hashes whose home is the same in a table of any size: they differ only in the 22 bits that do not
 * decide it. */
START_TEST(hashes_that_crowd_cost_no_more_than_their_number)
{
    start(LARGE);
    uint64_t first = UINT64_C(5) << 54 | UINT64_C(0x80000000) << 22;
    unsigned added = add_crowd(first, 1);
    ck_assert_uint_eq(added, INDEX_REACH * INDEX_SLOTS);
    ck_assert_uint_le(index_bytes(table), 8 * CROWD * sizeof(uint64_t[2]));
    for (unsigned i = 0; i < added; i++)
        expect(first + i, i + 1, SLOT_ARENA);
    /* What stands within reach is told, and one of it makes room. */
    struct index_shard *shard = index_lock(table, first);
    unsigned n = 0;
    while (index_reach(table, shard, first, n) != NULL)
        n++;
    ck_assert_uint_eq(n, INDEX_REACH * INDEX_SLOTS);
    index_remove(table, shard, index_reach(table, shard, first, 140));
    index_unlock(shard);
    ck_assert(add(first + CROWD, CROWD, SLOT_ARENA));
    expect(first + CROWD, CROWD, SLOT_ARENA);
    index_free(table);
}
END_TEST

/* Crowds side by side, of which each bucket's count of entries that passed it tells: whatever is
 * removed, all that is left is found, and nobody beside them is touched. */
START_TEST(neighbouring_crowds_do_not_hide_each_other)
{
    enum { OTHERS = 600, NEAR = 500 };
    static uint64_t hashes[NEAR];
    start(LARGE);
    for (uint64_t i = 0; i < OTHERS; i++) /* which make the shard large, elsewhere in it */
        ck_assert(add((i * 769 % OTHERS * 2 + 800) << 43, i + 1, SLOT_ARENA));
    unsigned count = 0;
    for (unsigned i = 0; i < NEAR; i++) {
        uint64_t hash = (uint64_t)(i % 8) << 46 | i;
        if (add(hash, i + 1, SLOT_LARGE))
            hashes[count++] = hash;
    }
    ck_assert_uint_gt(count, INDEX_REACH * INDEX_SLOTS);
    ck_assert_uint_lt(count, NEAR);
    for (unsigned removed = 0; removed < count; removed += 2) {
        drop(hashes[removed], false);
        for (unsigned i = 0; i < count; i++)
            expect(hashes[i], i <= removed && i % 2 == 0 ? 0 : (hashes[i] & 0xFFFF) + 1,
                   SLOT_LARGE);
    }
    for (uint64_t i = 0; i < OTHERS; i++)
        expect((i * 769 % OTHERS * 2 + 800) << 43, i + 1, SLOT_ARENA);
    index_free(table);
}
END_TEST

struct meeting {
    unsigned met[HASHES];
    uint64_t first;
    bool remove;
};

static void meet(void *arg, struct index_shard *shard, struct slot *slot)
{
    struct meeting *meeting = arg;
    struct slot_word word = slot_get(slot);
    ck_assert_int_ne(word.kind, SLOT_END);
    ck_assert_uint_lt(word.place - 1, HASHES);
    meeting->met[word.place - 1]++;
    if (meeting->remove && word.place % 4 == 1)
        index_remove(table, shard, slot);
}

/* Between two steps of a walk over a shard: some come, some go, all of which are among the odd. */
static void disturb(const uint64_t *hashes, bool *there, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        unsigned n = (unsigned)(next_random() % HASHES) | 1;
        if (there[n])
            drop(hashes[n], false);
        else
            ck_assert(add(hashes[n], n + 1, SLOT_DISK));
        there[n] = !there[n];
    }
}

START_TEST(a_walk_meets_what_stays_exactly_once)
{
    static uint64_t hashes[HASHES];
    static bool there[HASHES];
    static struct meeting meeting;
    for (unsigned round = 0; round < WALKS; round++) {
        start(LARGE);
        random_state += round;
        memset(there, 0, sizeof(there));
        memset(&meeting, 0, sizeof(meeting));
        meeting.remove = round % 2 == 1;
        unsigned stay = round % 4 < 2 ? HASHES : HASHES / 16;
        for (unsigned n = 0; n < HASHES; n++)
            hashes[n] = UINT64_C(7) << 54 | next_random() >> 10;
        for (unsigned n = 0; n < stay; n += 2)
            ck_assert(add(hashes[n], n + 1, SLOT_DISK) && add(hashes[n], n + 1, SLOT_END));
        uint64_t cursor = 0;
        bool more = true;
        for (unsigned step = 0; more; step++) {
            ck_assert_uint_lt(step, 10000);
            struct index_shard *shard = index_lock_shard(table, 7);
            more = index_walk(table, shard, &cursor, meet, &meeting);
            index_unlock(shard);
            disturb(hashes, there, round % 3 == 0 ? 300 : 20);
            if (round % 5 == 0 && step % 4 == 0)
                index_trim(table);
        }
        for (unsigned n = 0; n < stay; n += 2)
            ck_assert_uint_eq(meeting.met[n], 1);
        for (unsigned n = 1; n < HASHES; n += 2)
            ck_assert_uint_le(meeting.met[n], 300);
        index_free(table);
    }
}
END_TEST

START_TEST(trimming_gives_memory_back)
{
    static uint64_t hashes[MANY];
    start(LARGE);
    for (unsigned i = 0; i < MANY; i++) {
        hashes[i] = next_random();
        ck_assert(add(hashes[i], i + 1, SLOT_ARENA));
    }
    uint64_t full = index_bytes(table);
    ck_assert_uint_ge(full, MANY * 16);
    ck_assert_uint_le(full, MANY * 22);
    for (unsigned i = MANY / 10; i < MANY; i++)
        drop(hashes[i], false);
    ck_assert_uint_eq(index_bytes(table), full);
    index_trim(table);
    ck_assert_uint_le(index_bytes(table), full / 5);
    for (unsigned i = 0; i < MANY / 10; i++) {
        expect(hashes[i], i + 1, SLOT_ARENA);
        drop(hashes[i], false);
    }
    index_trim(table);
    ck_assert_uint_eq(index_bytes(table), 0);
    for (unsigned i = 0; i < MANY; i++)
        ck_assert(add(hashes[i], i + 1, SLOT_LARGE));
    for (unsigned i = 0; i < MANY; i++)
        expect(hashes[i], i + 1, SLOT_LARGE);
    index_free(table);
}
END_TEST

/* Chance crowds must not make shards grow long before they are full, because a row of buckets is
 * there for all of them once one has it. */
/* What was reserved is enough for nearly all, and what is far too much is given back. */
START_TEST(room_is_reserved_and_fitted)
{
    start(LARGE);
    index_reserve(table, MANY);
    uint64_t reserved = index_bytes(table), places = 0;
    ck_assert_uint_le(reserved, MANY * 24);
    for (unsigned i = 0; i < MANY; i++)
        ck_assert(add(next_random(), i + 1, SLOT_DISK));
    ck_assert_uint_le(index_bytes(table), reserved + reserved / 16);
    index_fit(table);
    ck_assert_uint_ge(index_bytes(table), reserved);
    random_state = 0x9E3779B97F4A7C15;
    for (unsigned i = 0; i < MANY; i++)
        expect(next_random(), ++places, SLOT_DISK);
    index_reserve(table, 4 * MANY);
    ck_assert_uint_ge(index_bytes(table), 3 * reserved);
    index_fit(table);
    ck_assert_uint_le(index_bytes(table), reserved + reserved / 8);
    random_state = 0x9E3779B97F4A7C15;
    for (unsigned i = 0; i < MANY; i++)
        expect(next_random(), i + 1, SLOT_DISK);
    index_free(table);
}
END_TEST

START_TEST(chance_makes_no_shard_large)
{
    uint32_t most = 0;
    start(LARGE);
    for (unsigned i = 0; i < 3 * MANY; i++)
        ck_assert(add(next_random(), i + 1, SLOT_ARENA));
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        struct index_shard *shard = index_lock_shard(table, i);
        if (atomic_load(&shard->buckets) > most)
            most = atomic_load(&shard->buckets);
        index_unlock(shard);
    }
    ck_assert_uint_le(most, 3 * MANY / INDEX_SHARDS / INDEX_SLOTS * 8 / 5);
    index_free(table);
}
END_TEST

START_TEST(a_full_index_refuses_and_goes_on)
{
    start(1); /* one row or two */
    unsigned added = 0;
    uint64_t last = 0;
    for (uint64_t i = 0; i < 100; i++) {
        uint64_t hash = i << 48;
        if (add(hash, i + 1, SLOT_ARENA)) {
            last = hash;
            added++;
        }
    }
    ck_assert_uint_ge(added, INDEX_SLOTS);
    drop(last, false);
    ck_assert(add(last, 1000, SLOT_LARGE));
    expect(last, 1000, SLOT_LARGE);
    index_free(table);
}
END_TEST

static uint64_t in_two_shards(uint64_t number)
{
    return (number % 2) << 54 | number * 0x9E3779B97F4A7C15 >> 10;
}

static void *grow_and_shrink(void *arg)
{
    atomic_bool *stop = arg;
    for (unsigned round = 0; round < 10; round++) {
        for (uint64_t i = 0; i < 3000; i++)
            ck_assert(add(in_two_shards(i), i + 1, SLOT_ARENA));
        for (uint64_t i = 0; i < 3000; i++)
            drop(in_two_shards(i), false);
        index_trim(table);
    }
    atomic_store(stop, true);
    return NULL;
}

/* A sample is taken without a lock, whatever becomes of the buckets meanwhile. */
START_TEST(samples_are_taken_beside_growth)
{
    pthread_t thread;
    atomic_bool stopped = false;
    uint64_t seen = 0;
    start(LARGE);
    ck_assert_int_eq(pthread_create(&thread, NULL, grow_and_shrink, &stopped), 0);
    while (!atomic_load(&stopped)) {
        struct slot_word word;
        uint8_t use;
        seen += index_sample(table, next_random(), &word, &use);
    }
    pthread_join(thread, NULL);
    ck_assert_uint_gt(seen, 0);
    index_free(table);
}
END_TEST

START_TEST(samples_meet_all_alike)
{
    enum { FEW = 64, TIMES = 64000 };
    unsigned met[FEW] = {0};
    struct slot_word word;
    uint8_t use;
    start(LARGE);
    ck_assert(!index_sample(table, next_random(), &word, &use));
    for (unsigned i = 0; i + 1 < FEW; i++)
        ck_assert(add(next_random(), i + 1, SLOT_DISK));
    uint64_t hash = next_random();
    ck_assert(add(hash, FEW, SLOT_DISK) && add(hash, FEW + 1, SLOT_END));
    for (unsigned i = 0; i < TIMES; i++) {
        ck_assert(index_sample(table, next_random(), &word, &use));
        ck_assert_uint_lt(word.place - 1, FEW);
        met[word.place - 1]++;
    }
    for (unsigned i = 0; i < FEW; i++)
        ck_assert_uint_gt(met[i], 0);
    index_free(table);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("index");
    TCase *tcase = suite_case(suite, "index", 240);
    tcase_add_test(tcase, it_holds_what_a_model_holds);
    tcase_add_test(tcase, hashes_that_crowd_cost_no_more_than_their_number);
    tcase_add_test(tcase, neighbouring_crowds_do_not_hide_each_other);
    tcase_add_test(tcase, a_walk_meets_what_stays_exactly_once);
    tcase_add_test(tcase, trimming_gives_memory_back);
    tcase_add_test(tcase, room_is_reserved_and_fitted);
    tcase_add_test(tcase, chance_makes_no_shard_large);
    tcase_add_test(tcase, a_full_index_refuses_and_goes_on);
    tcase_add_test(tcase, samples_are_taken_beside_growth);
    tcase_add_test(tcase, samples_meet_all_alike);
    return suite_run(suite);
}
