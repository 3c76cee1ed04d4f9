/* What the memory store promises beyond the contract of all: exact accounts, a bound that always
 * holds, what is used staying, slices for what takes long, memory that is given back. */
#include "store_answer.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/store.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    KEY_SIZE = 32,
    WAIT_MS = 60000,
    SOON_MS = 5000,
    THREADS = 4,
    ROUNDS = 5000,
    MANY = 100000,
    MIB = 1 << 20,
    SLACK = 5 << 19 /* beyond a bound: a large page of the index, and each shard's first bucket */
};

static struct store *store;
static struct loop *loop;

static void start(uint64_t max_size)
{
    char why[256] = "";
    struct config config = {.max_size = max_size};
    store = store_open(&store_memory, &config, why, sizeof(why));
    ck_assert_msg(store != NULL, "%s", why);
    loop = loop_new(0);
    ck_assert_ptr_nonnull(loop);
}

static void stop(void)
{
    store_close(store);
    loop_free(loop);
    ck_assert_uint_eq(value_total(), 0);
}

struct ask {
    struct store_call call;
    int finished;
    char key[KEY_SIZE];
};

static void ask_done(struct store_call *call)
{
    ((struct ask *)(void *)((char *)call - offsetof(struct ask, call)))->finished++;
}

static void submit(struct ask *ask, struct loop *on, enum store_op op, const char *key)
{
    snprintf(ask->key, sizeof(ask->key), "%s", key);
    ask->call.request.op = op;
    ask->call.request.key = (const uint8_t *)ask->key;
    ask->call.request.key_length = (uint32_t)strlen(ask->key);
    ask->call.request.loop = on;
    ask->call.done = ask_done;
    ask->finished = 0;
    if (store_submit(store, &ask->call) != STORE_PENDING)
        ask->finished = 1;
}

static enum store_status wait_for(struct ask *ask, struct loop *on)
{
    int64_t end = clock_now() + WAIT_MS;
    while (ask->finished == 0 && clock_now() < end)
        loop_step(on, 50);
    ck_assert_int_eq(ask->finished, 1);
    return ask->call.result.status;
}

static enum store_status run(struct ask *ask, enum store_op op, const char *key)
{
    submit(ask, loop, op, key);
    return wait_for(ask, loop);
}

static struct value *new_value(const char *key, uint32_t length)
{
    struct value *value = value_new((const uint8_t *)key, strlen(key), length);
    ck_assert_ptr_nonnull(value);
    memset(value_bytes(value), key[strlen(key) - 1], length);
    return value;
}

static enum store_status put(const char *key, uint32_t length, bool overwrite)
{
    struct ask ask = {
        .call = {.request = {.value = new_value(key, length), .overwrite = overwrite}}};
    return run(&ask, STORE_PUT, key);
}

static bool has(const char *key)
{
    struct ask ask = {.finished = 0};
    return run(&ask, STORE_HEAD, key) == STORE_OK;
}

/* What the counters say (""), or what a walk finds (a prefix). */
static struct ask inspect(const char *prefix)
{
    struct ask ask = {.finished = 0};
    ck_assert_int_eq(run(&ask, STORE_INSPECT, prefix), STORE_OK);
    return ask;
}

/* What is counted is what a walk finds, and what the store keeps is not in flight. */
static void accounts_are_true(const char *prefix)
{
    struct ask counted = inspect(""), walked = inspect(prefix);
    ck_assert_uint_eq(counted.call.result.entries, walked.call.result.entries);
    ck_assert_uint_eq(counted.call.result.size, walked.call.result.size);
    ck_assert_uint_eq(value_total(), 0);
}

/* The memory of the store's memfds. */
static uint64_t memory_taken(void)
{
    uint64_t sum = 0;
    DIR *folder = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(folder);
    for (struct dirent *item; (item = readdir(folder)) != NULL;) {
        char target[256] = "";
        struct stat st;
        if (readlinkat(dirfd(folder), item->d_name, target, sizeof(target) - 1) <= 0 ||
            strstr(target, "memfd:liara-cache-") == NULL)
            continue;
        ck_assert_int_eq(fstatat(dirfd(folder), item->d_name, &st, 0), 0);
        sum += (uint64_t)st.st_blocks * 512;
    }
    closedir(folder);
    return sum;
}

static const char *key_of(const char *name, unsigned number)
{
    static char key[KEY_SIZE];
    snprintf(key, sizeof(key), "%s-%u", name, number);
    return key;
}

static void put_many(const char *name, unsigned count, uint32_t length)
{
    for (unsigned i = 0; i < count; i++)
        ck_assert_int_eq(put(key_of(name, i), length, false), STORE_OK);
}

static unsigned count_of(const char *name)
{
    return (unsigned)inspect(name).call.result.entries;
}

/* Bounds at which all entries are large ones, most are small ones, and memory comes by the large
 * page. */
static const uint64_t bounds[] = {100000, 2 * MIB, 70 * MIB};
enum { BOUNDS = sizeof(bounds) / sizeof(bounds[0]) };

START_TEST(it_grows)
{
    start(UINT64_MAX);
    char key[KEY_SIZE];
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_int_eq(put(key, 10, false), STORE_OK);
    }
    for (int i = 0; i < MANY; i += 7) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert(has(key));
    }
    ck_assert_uint_eq(inspect("").call.result.entries, MANY);
    accounts_are_true("key-");
    struct ask clear = {.finished = 0};
    ck_assert_int_eq(run(&clear, STORE_CLEAR, "key-1"), STORE_OK);
    ck_assert_uint_eq(clear.call.result.entries, 11111); /* 1, 1x, … 1xxxx below 100,000 */
    accounts_are_true("key-");
    stop();
}
END_TEST

START_TEST(whatever_happens_accounts_are_true)
{
    start(UINT64_MAX);
    struct ask ask = {.finished = 0};
    put("key-1", 100, false);
    put("key-2", 200, false);
    accounts_are_true("key-");
    put("key-1", 5000, false); /* EXISTS */
    accounts_are_true("key-");
    put("key-1", 3000, true);
    accounts_are_true("key-");
    ck_assert_int_eq(run(&ask, STORE_DELETE, "key-2"), STORE_OK);
    accounts_are_true("key-");
    ask = (struct ask){.call = {.request = {.value = new_value("key-brief", 100)}}};
    ask.call.request.value->expires = clock_now() + 20;
    ck_assert_int_eq(run(&ask, STORE_PUT, "key-brief"), STORE_OK);
    for (int64_t end = clock_now() + WAIT_MS; has("key-brief") && clock_now() < end;)
        usleep(5000);
    ck_assert(!has("key-brief"));
    accounts_are_true("key-");
    ck_assert_uint_eq(inspect("").call.result.entries, 1);
    stop();
}
END_TEST

START_TEST(the_bound_holds_after_every_put)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        uint64_t written = 0;
        start(bounds[n]);
        for (unsigned i = 0; written < 2 * bounds[n]; i++) {
            uint32_t length = i % 50 == 0 ? (uint32_t)bounds[n] / 8 : i * 37 % 3000;
            ck_assert_int_eq(put(key_of("key", i), length, i % 3 == 0), STORE_OK);
            ck_assert_uint_le(inspect("").call.result.size, bounds[n]);
            if (i % 100 == 0)
                ck_assert_uint_le(memory_taken(), bounds[n] + SLACK);
            written += length + 100;
        }
        ck_assert_uint_ge(inspect("").call.result.size, bounds[n] / 2);
        accounts_are_true("key-");
        stop();
    }
}
END_TEST

/* The index grows after the bound is reached: what it takes is taken from the entries' share. */
START_TEST(the_index_is_within_the_bound)
{
    start(16 * MIB);
    put_many("key", 6000, 3000);
    put_many("small", 250000, 1);
    ck_assert_uint_gt(count_of("small"), 100000);
    ck_assert_uint_le(memory_taken(), 16 * MIB + SLACK);
    accounts_are_true("");
    stop();
}
END_TEST

/* Some hundred times as much is stored as there is room for. */
static void used_stay(uint64_t max, unsigned used, unsigned others, uint32_t length)
{
    struct ask get = {.finished = 0};
    start(max);
    put_many("used", used, length);
    for (unsigned i = 0; i < others; i++) {
        ck_assert_int_eq(put(key_of("other", i), length, false), STORE_OK);
        run(&get, STORE_GET, key_of("used", i % used));
        store_answer_release(&get.call);
    }
    ck_assert_uint_ge(count_of("used"), used * 9 / 10);
    accounts_are_true("");
    stop();
}

START_TEST(what_is_used_stays)
{
    used_stay(2 * MIB, 200, 60000, 100);
    used_stay(900000, 30, 10000, 2000);
}
END_TEST

START_TEST(a_large_value_takes_its_room_in_slices)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        uint32_t length = (uint32_t)bounds[n] / 2;
        unsigned small = (unsigned)bounds[n] / 200;
        start(bounds[n]);
        put_many("key", small, 100);
        struct ask large = {.call = {.request = {.value = new_value("key-large", length)}}};
        submit(&large, loop, STORE_PUT, "key-large");
        if (n > 0)
            ck_assert_int_eq(large.finished, 0); /* others get their turn in between */
        ck_assert_int_eq(put("key-other", 100, false), STORE_OK);
        ck_assert_int_eq(wait_for(&large, loop), STORE_OK);
        ck_assert(has("key-large"));
        ck_assert_uint_ge(inspect("").call.result.size, length);
        ck_assert_uint_le(inspect("").call.result.size, bounds[n]);
        accounts_are_true("key-");
        stop();
    }
}
END_TEST

/* Nearly all that is there: open segments and a grown index have to make room too. */
START_TEST(a_value_as_large_as_the_store_is_stored)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        uint32_t length = (uint32_t)(bounds[n] / 100 * 85);
        start(bounds[n]);
        put_many("key", (unsigned)(n == 0 ? bounds[0] : bounds[1]) / 60, 1);
        int64_t begin = clock_now();
        ck_assert_int_eq(put("key-large", length, false), STORE_OK);
        ck_assert(has("key-large"));
        ck_assert_int_eq(put("key-after", 10, false), STORE_OK);
        ck_assert_int_lt(clock_now() - begin, SOON_MS);
        accounts_are_true("key-");
        stop();
    }
}
END_TEST

START_TEST(what_can_never_fit_evicts_nothing)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        uint32_t max = (uint32_t)bounds[n];
        /* The first is larger than all, the second with what goes with it. */
        uint32_t lengths[] = {max + 1, max - (uint32_t)sizeof(struct value) - 9 - 1};
        start(max);
        put("key-1", 1000, false);
        put("key-2", 1000, false);
        for (unsigned i = 0; i < 2; i++) {
            struct ask ask = {.call = {.request = {.value = new_value("key-large", lengths[i])}}};
            int64_t begin = clock_now();
            ck_assert_int_eq(run(&ask, STORE_PUT, "key-large"), STORE_FAILED);
            ck_assert_int_eq(ask.call.result.error, ERROR_TOO_LARGE);
            ck_assert_ptr_null(ask.call.request.value);
            ck_assert(has("key-1") && has("key-2"));
            ck_assert_int_lt(clock_now() - begin, SOON_MS);
        }
        /* What is there already makes no room either. */
        ck_assert_int_eq(put("key-1", max / 10 * 8, false), STORE_EXISTS);
        ck_assert(has("key-1") && has("key-2"));
        accounts_are_true("key-");
        stop();
    }
}
END_TEST

START_TEST(the_first_put_is_answered_at_once)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        start(bounds[n]);
        struct ask ask = {.call = {.request = {.value = new_value("key", 100)}}};
        submit(&ask, loop, STORE_PUT, "key");
        ck_assert_int_eq(ask.finished, 1);
        ck_assert_int_eq(ask.call.result.status, STORE_OK);
        stop();
    }
}
END_TEST

/* Large by reference, or pinned in a segment that is emptied meanwhile: its bytes stay until they
 * are released, and the store goes on. */
START_TEST(what_is_being_sent_survives_its_eviction)
{
    for (unsigned n = 0; n < BOUNDS; n++) {
        uint32_t length = n == 0 ? 60000 : 3000;
        struct ask get = {.finished = 0};
        start(bounds[n]);
        put("key-1", length, false);
        ck_assert_int_eq(run(&get, STORE_GET, "key-1"), STORE_OK);
        ck_assert((get.call.result.value != NULL) == (n == 0));
        ck_assert((get.call.result.pinned.bytes != NULL) == (n > 0));
        ck_assert_uint_eq(value_total(), 0);
        for (unsigned i = 0; i < 100000 && has("key-1"); i++)
            ck_assert_int_eq(put(key_of("new", i), length, false), STORE_OK);
        ck_assert(!has("key-1"));
        put_many("more", (unsigned)(2 * bounds[n] / length), length);
        struct store_answer answer = store_answer_of(&get.call);
        ck_assert_uint_eq(answer.length, length);
        for (uint32_t i = 0; i < length; i++)
            ck_assert_int_eq(answer.bytes[i], '1');
        store_answer_release(&get.call);
        put_many("last", (unsigned)(bounds[n] / length), length);
        accounts_are_true("");
        stop();
    }
}
END_TEST

START_TEST(a_smaller_bound_gives_memory_back)
{
    static const uint64_t smaller[] = {35 * MIB, 5 * MIB, 300000, 100000};
    for (unsigned n = 0; n < 4; n++) {
        struct ask get = {.finished = 0};
        start(70 * MIB);
        put_many("key", 20000, 3000);
        put_many("large", 40, 200000);
        if (n % 2 == 1)
            ck_assert_int_eq(run(&get, STORE_GET, key_of("key", 19999)), STORE_OK);
        store_set_max_size(store, smaller[n]);
        ck_assert_uint_le(inspect("").call.result.size, smaller[n]);
        store_answer_release(&get.call);
        int64_t begin = clock_now();
        put_many("new", 100, 3000);
        put_many("new-large", 10, 50000);
        ck_assert_int_lt(clock_now() - begin, SOON_MS);
        ck_assert(has("new-large-9"));
        ck_assert_uint_le(inspect("").call.result.size, smaller[n]);
        ck_assert_uint_le(memory_taken(), smaller[n] + SLACK);
        accounts_are_true("");
        /* And up again. */
        store_set_max_size(store, 70 * MIB);
        put_many("again", 10000, 3000);
        ck_assert_uint_eq(count_of("again"), 10000);
        accounts_are_true("");
        stop();
    }
}
END_TEST

START_TEST(clear_gives_memory_back)
{
    struct ask clear = {.finished = 0};
    start(128 * MIB);
    put_many("key", 20000, 3000);
    put_many("small", 200000, 10);
    ck_assert_uint_ge(memory_taken(), 60 * MIB);
    ck_assert_int_eq(run(&clear, STORE_CLEAR, ""), STORE_OK);
    ck_assert_uint_eq(clear.call.result.entries, 220000);
    ck_assert_uint_eq(inspect("").call.result.entries, 0);
    ck_assert_uint_eq(inspect("").call.result.size, 0);
    ck_assert_uint_le(memory_taken(), 16 * MIB + SLACK);
    put_many("key", 20000, 3000);
    ck_assert_uint_eq(count_of("key"), 20000);
    accounts_are_true("");
    stop();
}
END_TEST

struct racer {
    pthread_t thread;
    unsigned index, seed;
    uint32_t length_max;
    bool wrong;
};

/* A value's bytes are all its key's last letter. */
static bool is_right(const struct ask *ask)
{
    struct store_answer answer = store_answer_of(&ask->call);
    return answer.length == 0 ||
           (answer.bytes[0] == (uint8_t)ask->key[ask->call.request.key_length - 1] &&
            memcmp(answer.bytes, answer.bytes + 1, answer.length - 1) == 0);
}

static struct ask random_ask(struct racer *racer, struct loop *own, uint8_t *room)
{
    struct ask ask = {.finished = 0};
    char key[KEY_SIZE];
    unsigned what = (unsigned)rand_r(&racer->seed) % 100;
    snprintf(key, sizeof(key), "key-%u", (unsigned)rand_r(&racer->seed) % 300);
    if (what < 45) {
        ask.call.request.value = new_value(key, (uint32_t)rand_r(&racer->seed) % racer->length_max);
        ask.call.request.overwrite = what < 20;
        submit(&ask, own, STORE_PUT, key);
    } else if (what == 99) {
        submit(&ask, own, STORE_CLEAR, "key-7");
    } else {
        ask.call.request.room = room;
        ask.call.request.room_size = what % 2 == 0 ? VALUE_COPY_MAX : 0;
        submit(&ask, own, what < 90 ? STORE_GET : STORE_DELETE, key);
    }
    wait_for(&ask, own);
    return ask;
}

static void *race(void *arg)
{
    struct racer *racer = arg;
    struct loop *own = loop_new(racer->index);
    uint8_t room[VALUE_COPY_MAX];
    for (int round = 0; round < ROUNDS; round++) {
        struct ask ask = random_ask(racer, own, room);
        if (ask.call.request.op == STORE_GET && ask.call.result.status == STORE_OK) {
            racer->wrong |= !is_right(&ask);
            store_answer_release(&ask.call);
        }
    }
    loop_free(own);
    return NULL;
}

static void race_under(uint64_t max, uint32_t length_max)
{
    struct racer racers[THREADS];
    start(max);
    for (unsigned i = 0; i < THREADS; i++) {
        racers[i] = (struct racer){.index = i, .seed = i + 1, .length_max = length_max};
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(racers[i].thread, NULL);
        ck_assert(!racers[i].wrong);
    }
    ck_assert_uint_le(inspect("").call.result.size, max);
    accounts_are_true("key-");
    stop();
}

START_TEST(threads_race_under_a_bound)
{
    race_under(100000, 3000);
    race_under(MIB, 5000);
    race_under(MIB, 60000);
    race_under(4 * MIB, 60000);
}
END_TEST

int main(void)
{
    clock_start();
    Suite *suite = suite_create("memory");
    TCase *tcase = suite_case(suite, "memory", 240);
    tcase_add_test(tcase, it_grows);
    tcase_add_test(tcase, whatever_happens_accounts_are_true);
    tcase_add_test(tcase, the_bound_holds_after_every_put);
    tcase_add_test(tcase, the_index_is_within_the_bound);
    tcase_add_test(tcase, what_is_used_stays);
    tcase_add_test(tcase, a_large_value_takes_its_room_in_slices);
    tcase_add_test(tcase, a_value_as_large_as_the_store_is_stored);
    tcase_add_test(tcase, what_can_never_fit_evicts_nothing);
    tcase_add_test(tcase, the_first_put_is_answered_at_once);
    tcase_add_test(tcase, what_is_being_sent_survives_its_eviction);
    tcase_add_test(tcase, a_smaller_bound_gives_memory_back);
    tcase_add_test(tcase, clear_gives_memory_back);
    tcase_add_test(tcase, threads_race_under_a_bound);
    return suite_run(suite);
}
