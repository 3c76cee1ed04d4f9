/* What the memory store promises beyond the contract of all: exact accounts, a bound that always
 * holds, the least recently used going first, slices for what takes long. */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/store.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { KEY_SIZE = 32, WAIT_MS = 60000, THREADS = 8, ROUNDS = 20000, MANY = 200000 };

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
    ask->call.op = op;
    ask->call.key = (const uint8_t *)ask->key;
    ask->call.key_length = (uint32_t)strlen(ask->key);
    ask->call.loop = on;
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
    return ask->call.status;
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
    struct ask ask = {.call = {.value = new_value(key, length), .overwrite = overwrite}};
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

static void accounts_are_true(const char *prefix)
{
    struct ask counted = inspect(""), walked = inspect(prefix);
    ck_assert_uint_eq(counted.call.entries, walked.call.entries);
    ck_assert_uint_eq(counted.call.size, walked.call.size);
    ck_assert_uint_eq(counted.call.size, value_total());
}

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
    ck_assert_uint_eq(inspect("").call.entries, MANY);
    accounts_are_true("key-");
    struct ask clear = {.finished = 0};
    ck_assert_int_eq(run(&clear, STORE_CLEAR, "key-1"), STORE_OK);
    ck_assert_uint_eq(clear.call.entries, 111111); /* 1, 1x, … 1xxxxx below 200,000 */
    accounts_are_true("key-");
    stop();
}
END_TEST

START_TEST(whatever_happens_accounts_are_true)
{
    start(UINT64_MAX);
    struct ask ask = {.call = {.value = new_value("key-brief", 100)}};
    ask.call.value->expires = clock_now() + 20;
    ck_assert_int_eq(run(&ask, STORE_PUT, "key-brief"), STORE_OK);
    put("key-1", 100, false);
    put("key-2", 200, false);
    accounts_are_true("key-");
    put("key-1", 5000, false); /* EXISTS */
    accounts_are_true("key-");
    put("key-1", 3000, true);
    accounts_are_true("key-");
    ck_assert_int_eq(run(&ask, STORE_DELETE, "key-2"), STORE_OK);
    accounts_are_true("key-");
    usleep(30000);
    ck_assert(!has("key-brief"));
    accounts_are_true("key-");
    ck_assert_uint_eq(inspect("").call.entries, 1);
    stop();
}
END_TEST

START_TEST(the_bound_holds_after_every_put)
{
    uint64_t max = 100000;
    start(max);
    char key[KEY_SIZE];
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_int_eq(put(key, (uint32_t)(i * 37 % 3000), i % 3 == 0), STORE_OK);
        ck_assert_uint_le(inspect("").call.size, max);
    }
    ck_assert_uint_gt(inspect("").call.entries, 20);
    accounts_are_true("key-");
    stop();
}
END_TEST

/* Few enough to be looked at all together: then it is exactly the one used longest ago that goes.
 */
START_TEST(the_least_recently_used_goes)
{
    start(10 * (sizeof(struct value) + 5 + 1000 + 1));
    char key[KEY_SIZE];
    struct ask get = {.finished = 0};
    for (int i = 0; i < 10; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        put(key, 1000, false);
    }
    for (int i = 9; i >= 5; i--) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_int_eq(run(&get, STORE_GET, key), STORE_OK);
        value_unref(get.call.value);
    }
    for (int i = 0; i < 5; i++) {
        snprintf(key, sizeof(key), "new-%d", i);
        ck_assert_int_eq(put(key, 1000, false), STORE_OK);
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_msg(!has(key), "%s was to go", key);
    }
    for (int i = 5; i < 10; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_msg(has(key), "%s was to stay", key);
    }
    stop();
}
END_TEST

START_TEST(a_large_value_takes_its_room_in_slices)
{
    enum { SMALL = 5000 };
    uint64_t max = SMALL * (sizeof(struct value) + 10 + 100 + 1);
    start(max);
    char key[KEY_SIZE];
    for (int i = 0; i < SMALL; i++) {
        snprintf(key, sizeof(key), "key-%06d", i);
        put(key, 100, false);
    }
    struct ask large = {.call = {.value = new_value("key-large", (uint32_t)max / 2)}};
    submit(&large, loop, STORE_PUT, "key-large");
    ck_assert_int_eq(large.finished, 0); /* others get their turn in between */
    ck_assert_int_eq(put("key-other", 100, false), STORE_OK);
    ck_assert_int_eq(wait_for(&large, loop), STORE_OK);
    ck_assert(has("key-large"));
    ck_assert_uint_le(inspect("").call.size, max);
    ck_assert_uint_ge(inspect("").call.entries, SMALL / 4);
    accounts_are_true("key-");
    stop();
}
END_TEST

START_TEST(what_can_never_fit_evicts_nothing)
{
    start(100000);
    put("key-1", 1000, false);
    put("key-2", 1000, false);
    struct ask ask = {.call = {.value = new_value("key-large", 100001)}};
    ck_assert_int_eq(run(&ask, STORE_PUT, "key-large"), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_TOO_LARGE);
    ck_assert_ptr_null(ask.call.value);
    ck_assert(has("key-1") && has("key-2"));
    /* What is there already makes no room either. */
    ck_assert_int_eq(put("key-1", 99000, false), STORE_EXISTS);
    ck_assert(has("key-1") && has("key-2"));
    accounts_are_true("key-");
    stop();
}
END_TEST

START_TEST(what_is_being_sent_survives_its_eviction)
{
    start(100000);
    put("key-1", 60000, false);
    struct ask get = {.finished = 0};
    ck_assert_int_eq(run(&get, STORE_GET, "key-1"), STORE_OK);
    ck_assert_int_eq(put("key-2", 60000, false), STORE_OK);
    ck_assert(!has("key-1"));
    for (uint32_t i = 0; i < get.call.value->length; i += 999)
        ck_assert_int_eq(value_bytes(get.call.value)[i], '1');
    value_unref(get.call.value);
    accounts_are_true("key-");
    stop();
}
END_TEST

START_TEST(a_smaller_bound_holds_from_the_next_put_on)
{
    start(1000000);
    char key[KEY_SIZE];
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        put(key, 5000, false);
    }
    atomic_store(&store->max_size, 100000);
    ck_assert_int_eq(put("key-new", 5000, false), STORE_OK);
    ck_assert_uint_le(inspect("").call.size, 100000);
    ck_assert(has("key-new"));
    accounts_are_true("key-");
    stop();
}
END_TEST

struct racer {
    pthread_t thread;
    unsigned index, seed;
    bool wrong;
};

/* A value's bytes are all its key's last letter. */
static bool is_right(const struct ask *ask)
{
    struct value *value = ask->call.value;
    const uint8_t *bytes = value_bytes(value);
    return value->length == 0 || (bytes[0] == (uint8_t)ask->key[ask->call.key_length - 1] &&
                                  memcmp(bytes, bytes + 1, value->length - 1) == 0);
}

static void *race(void *arg)
{
    struct racer *racer = arg;
    struct loop *own = loop_new(racer->index);
    for (int round = 0; round < ROUNDS; round++) {
        char key[KEY_SIZE];
        struct ask ask = {.finished = 0};
        unsigned what = (unsigned)rand_r(&racer->seed) % 100;
        snprintf(key, sizeof(key), "key-%u", (unsigned)rand_r(&racer->seed) % 300);
        if (what < 45) {
            ask.call.value = new_value(key, (uint32_t)rand_r(&racer->seed) % 3000);
            ask.call.overwrite = what < 20;
            submit(&ask, own, STORE_PUT, key);
        } else if (what == 99) {
            submit(&ask, own, STORE_CLEAR, "key-7");
        } else {
            submit(&ask, own, what < 90 ? STORE_GET : STORE_DELETE, key);
        }
        wait_for(&ask, own);
        if (ask.call.op == STORE_GET && ask.call.status == STORE_OK) {
            racer->wrong |= !is_right(&ask);
            value_unref(ask.call.value);
        }
    }
    loop_free(own);
    return NULL;
}

START_TEST(threads_race_under_a_bound)
{
    struct racer racers[THREADS];
    start(100000);
    for (unsigned i = 0; i < THREADS; i++) {
        racers[i] = (struct racer){.index = i, .seed = i + 1};
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(racers[i].thread, NULL);
        ck_assert(!racers[i].wrong);
    }
    ck_assert_uint_le(inspect("").call.size, 100000);
    accounts_are_true("key-");
    stop();
}
END_TEST

int main(void)
{
    clock_start();
    Suite *suite = suite_create("memory");
    TCase *tcase = suite_case(suite, "memory", 120);
    tcase_add_test(tcase, it_grows);
    tcase_add_test(tcase, whatever_happens_accounts_are_true);
    tcase_add_test(tcase, the_bound_holds_after_every_put);
    tcase_add_test(tcase, the_least_recently_used_goes);
    tcase_add_test(tcase, a_large_value_takes_its_room_in_slices);
    tcase_add_test(tcase, what_can_never_fit_evicts_nothing);
    tcase_add_test(tcase, what_is_being_sent_survives_its_eviction);
    tcase_add_test(tcase, a_smaller_bound_holds_from_the_next_put_on);
    tcase_add_test(tcase, threads_race_under_a_bound);
    return suite_run(suite);
}
