/*
 * The memory store under all that it promises to bear at once: readers that keep what they were
 * handed for a while, writers that overwrite and delete, CLEARs, emptying under a tight bound, and
 * a bound that changes. A reader must never see bytes that nobody stored under the key, nor any
 * older than what was answered before it asked.
 *
 * Short as it stands; TORTURE_OPERATIONS says how many operations each thread does instead.
 */
#include "store_answer.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEYS = 512,
    WRITERS = 2,
    READERS = 2,
    KEPT = 16, /* answers that a reader has not released yet */
    WAIT_MS = 60000,
    OPERATIONS = 20000,
    BOUNDS = 4
};

static struct store *store;
static unsigned operations = OPERATIONS;

/* Of each key: the number of the last change that was answered, doubled, and whether it was a
 * DELETE. Written by the key's one writer. */
static _Atomic uint64_t done[KEYS];
static atomic_uint running;

struct torturer {
    pthread_t thread;
    struct loop *loop;
    unsigned index;
    uint64_t random;
    uint32_t length_max;
    uint64_t hits, misses;
};

struct ask {
    struct store_call call;
    bool finished;
    uint8_t room[VALUE_COPY_MAX];
    char name[24];
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xFF51AFD7ED558CCD;
    x ^= x >> 33;
    x *= 0xC4CEB9FE1A85EC53;
    return x ^ x >> 33;
}

static uint64_t next_random(struct torturer *torturer)
{
    torturer->random = torturer->random * 6364136223846793005u + 1442695040888963407u;
    return torturer->random >> 24;
}

/* What change number of the key has stored: a value tells both. */
static uint32_t length_of(unsigned key, uint64_t number, uint32_t length_max)
{
    uint64_t most = mix(key + number) % 4 == 0 ? length_max : length_max / 16 + 9;
    return 8 + (uint32_t)(mix(key * 31 + number) % (most - 8));
}

static void fill(uint8_t *bytes, unsigned key, uint64_t number, uint32_t length)
{
    memcpy(bytes, &number, 8);
    memset(bytes + 8, (int)mix((uint64_t)key << 32 ^ number), length - 8);
}

static bool is_filled(const uint8_t *bytes, unsigned key, uint64_t number, uint64_t length)
{
    uint8_t last = (uint8_t)mix((uint64_t)key << 32 ^ number);
    return length == 8 ||
           (bytes[8] == last && memcmp(bytes + 8, bytes + 9, (size_t)length - 9) == 0);
}

static void finished(struct store_call *call)
{
    ((struct ask *)(void *)((char *)call - offsetof(struct ask, call)))->finished = true;
}

static enum store_status run(struct torturer *torturer, struct ask *ask, enum store_op op)
{
    ask->call.request.op = op;
    ask->call.request.key = (const uint8_t *)ask->name;
    ask->call.request.key_length = (uint32_t)strlen(ask->name);
    ask->call.request.loop = torturer->loop;
    ask->call.done = finished;
    ask->finished = false;
    if (store_submit(store, &ask->call) != STORE_PENDING)
        return ask->call.result.status;
    int64_t end = clock_now() + WAIT_MS;
    while (!ask->finished && clock_now() < end)
        loop_step(torturer->loop, 50);
    ck_assert(ask->finished);
    return ask->call.result.status;
}

static void name_key(struct ask *ask, unsigned key)
{
    snprintf(ask->name, sizeof(ask->name), "%c%0*u", 'a' + (int)(key % 16), 4 + (int)(key % 13),
             key);
}

static void put(struct torturer *torturer, struct ask *ask, unsigned key, uint64_t number)
{
    uint32_t length = length_of(key, number, torturer->length_max);
    ask->call.request.value = value_new((const uint8_t *)ask->name, strlen(ask->name), length);
    ck_assert_ptr_nonnull(ask->call.request.value);
    fill(value_bytes(ask->call.request.value), key, number, length);
    ask->call.request.value->flags = (uint32_t)number;
    if (number % 4 == 0)
        ask->call.request.value->expires = clock_now() + 1000000;
    ask->call.request.overwrite = true;
    enum store_status status = run(torturer, ask, STORE_PUT);
    ck_assert_msg(status == STORE_OK, "PUT of %u bytes: %d, %s", length, (int)status,
                  ask->call.result.text);
    atomic_store_explicit(&done[key], number << 1, memory_order_release);
}

static void *write_all(void *arg)
{
    struct torturer *torturer = arg;
    struct ask ask;
    for (uint64_t number = 1; number <= operations; number++) {
        unsigned key = (unsigned)(next_random(torturer) % (KEYS / WRITERS)) * WRITERS +
                       torturer->index % WRITERS;
        ask = (struct ask){.finished = false};
        name_key(&ask, key);
        if (next_random(torturer) % 8 > 0) {
            put(torturer, &ask, key, number);
            continue;
        }
        ck_assert_int_ne(run(torturer, &ask, STORE_DELETE), STORE_FAILED);
        atomic_store_explicit(&done[key], number << 1 | 1, memory_order_release);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

struct kept {
    struct ask ask;
    unsigned key;
    uint64_t number;
};

static void check(const struct kept *kept, uint64_t before, uint32_t length_max)
{
    struct store_answer answer = store_answer_of(&kept->ask.call);
    ck_assert_uint_eq((uint32_t)kept->number, answer.flags);
    ck_assert_uint_eq(answer.length, length_of(kept->key, kept->number, length_max));
    ck_assert(is_filled(answer.bytes, kept->key, kept->number, answer.length));
    ck_assert_msg(kept->number > before >> 1 || (kept->number == before >> 1 && !(before & 1)),
                  "key %u: number %llu after %llu was answered", kept->key,
                  (unsigned long long)kept->number, (unsigned long long)before);
}

/* A copy lies in the room, which here is the ask's own. */
static void release(struct kept *kept, uint32_t length_max)
{
    if (kept->ask.call.result.value != NULL || kept->ask.call.result.pinned.bytes != NULL)
        check(kept, 0, length_max);
    store_answer_release(&kept->ask.call);
}

static void *read_all(void *arg)
{
    struct torturer *torturer = arg;
    struct kept *kept = calloc(KEPT, sizeof(*kept));
    while (atomic_load(&running) > 0) {
        struct kept *one = &kept[next_random(torturer) % KEPT];
        release(one, torturer->length_max);
        *one = (struct kept){.key = (unsigned)(next_random(torturer) % KEYS)};
        name_key(&one->ask, one->key);
        one->ask.call.request.room = one->ask.room;
        one->ask.call.request.room_size = next_random(torturer) % 2 == 0 ? VALUE_COPY_MAX : 0;
        uint64_t before = atomic_load_explicit(&done[one->key], memory_order_acquire);
        if (run(torturer, &one->ask, STORE_GET) != STORE_OK) {
            torturer->misses++;
            continue;
        }
        torturer->hits++;
        memcpy(&one->number, store_answer_of(&one->ask.call).bytes, 8);
        check(one, before, torturer->length_max);
    }
    for (unsigned i = 0; i < KEPT; i++)
        release(&kept[i], torturer->length_max);
    free(kept);
    return NULL;
}

/* CLEARs of a sixteenth, seldom of all; walks, and bounds, the first of which is the last too. */
static void disturb(struct torturer *torturer, const uint64_t *bounds)
{
    for (unsigned round = 0; atomic_load(&running) > 0; round++) {
        struct ask ask = {.finished = false};
        ask.name[0] = round % 64 == 63 ? '\0' : (char)('a' + next_random(torturer) % 16);
        ck_assert_int_eq(run(torturer, &ask, round % 2 == 0 ? STORE_INSPECT : STORE_CLEAR),
                         STORE_OK);
        if (round % 4 == 3)
            store_set_max_size(store, bounds[next_random(torturer) % BOUNDS]);
        loop_step(torturer->loop, 1);
    }
    store_set_max_size(store, bounds[0]);
}

static void start_thread(struct torturer *torturer, void *(*run_thread)(void *))
{
    ck_assert_int_eq(pthread_create(&torturer->thread, NULL, run_thread, torturer), 0);
}

static void accounts_are_true(struct torturer *torturer)
{
    uint64_t entries = 0, size = 0;
    struct ask all = {.finished = false};
    ck_assert_int_eq(run(torturer, &all, STORE_INSPECT), STORE_OK);
    for (char letter = 'a'; letter < 'a' + 16; letter++) {
        struct ask some = {.finished = false, .name = {letter}};
        ck_assert_int_eq(run(torturer, &some, STORE_INSPECT), STORE_OK);
        entries += some.call.result.entries;
        size += some.call.result.size;
    }
    ck_assert_uint_eq(all.call.result.entries, entries);
    ck_assert_uint_eq(all.call.result.size, size);
    ck_assert_uint_eq(value_total(), 0);
}

static void torture(const uint64_t *bounds, uint32_t length_max)
{
    enum { ALL = WRITERS + READERS + 1 };
    struct torturer all[ALL];
    char why[256] = "";
    struct config config = {.max_size = bounds[0]};
    store = store_open(&store_memory, &config, why, sizeof(why));
    ck_assert_msg(store != NULL, "%s", why);
    atomic_store(&running, WRITERS);
    for (unsigned i = 0; i < ALL; i++) {
        all[i] = (struct torturer){
            .loop = loop_new(i), .index = i, .random = i + 1, .length_max = length_max};
        if (i + 1 < ALL)
            start_thread(&all[i], i < WRITERS ? write_all : read_all);
    }
    disturb(&all[ALL - 1], bounds);
    for (unsigned i = 0; i + 1 < ALL; i++)
        pthread_join(all[i].thread, NULL);
    accounts_are_true(&all[ALL - 1]);
    ck_assert_uint_gt(all[WRITERS].hits, 0);
    store_close(store);
    for (unsigned i = 0; i < ALL; i++)
        loop_free(all[i].loop);
    ck_assert_uint_eq(value_total(), 0);
}

START_TEST(all_entries_are_large_ones)
{
    static const uint64_t bounds[BOUNDS] = {400000, 100000, 900000, 200000};
    torture(bounds, 20000);
}
END_TEST

START_TEST(entries_lie_in_small_segments)
{
    static const uint64_t bounds[BOUNDS] = {1 << 20, 2 << 20, 700000, 200000};
    torture(bounds, 4000);
}
END_TEST

START_TEST(entries_of_all_sizes)
{
    static const uint64_t bounds[BOUNDS] = {2 << 20, 1 << 20, 6 << 20, 300000};
    torture(bounds, 60000);
}
END_TEST

int main(void)
{
    const char *many = getenv("TORTURE_OPERATIONS");
    if (many != NULL)
        operations = (unsigned)strtoul(many, NULL, 10);
    clock_start();
    Suite *suite = suite_create("torture");
    TCase *tcase = suite_case(suite, "torture", many != NULL ? 3600 : 180);
    tcase_add_test(tcase, all_entries_are_large_ones);
    tcase_add_test(tcase, entries_lie_in_small_segments);
    tcase_add_test(tcase, entries_of_all_sizes);
    return suite_run(suite);
}
