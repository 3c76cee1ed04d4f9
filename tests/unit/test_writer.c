/*
 * What the engine promises of what it writes: order, PERSIST, failures, crashes. On a disk in
 * memory that fails and crashes as it is told (tests/fake_disk.h), before any format matters.
 */
#include "store_answer.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/log.h"
#include "../../daemon/store/engine/engine.h"
#include "../fake_disk.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WAIT_MS = 60000, KEYS = 24, HISTORY = 4096, MANY = 3000 };

static struct store_ops ops; /* the engine's, so that store_submit() finds them */
static struct store *store;
static struct loop *loop;
static uint64_t memory_size, max_size;

static void open_store(void)
{
    char why[256] = "";
    struct config config = {.memory_size = memory_size, .max_size = max_size, .stop_timeout = 1};
    store = engine_open_disk(&config, &fake_disk_ops, why, sizeof(why));
    ck_assert_msg(store != NULL, "%s", why);
    ops = (struct store_ops){.get = engine_get,
                             .head = engine_head,
                             .put = engine_put,
                             .delete = engine_delete,
                             .clear = engine_clear,
                             .inspect = engine_inspect,
                             .persist = engine_persist};
    store->ops = &ops;
    atomic_store(&store->max_size, max_size);
}

static void start(uint64_t memory)
{
    fake_disk_reset();
    memory_size = memory;
    max_size = 1 << 30;
    loop = loop_new(0);
    open_store();
}

static void stop(void)
{
    fake_disk_hold(false);
    engine_close(store);
    loop_free(loop);
    ck_assert_uint_eq(value_total(), 0);
}

/* What a crash leaves: the engine ends without a word, the disk loses what was not synced but for
 * the first keep records. */
static void crash(unsigned keep)
{
    fake_disk_power_off(keep);
    engine_close(store); /* which finds no disk any more */
    fake_disk_power_on();
    open_store();
}

struct ask {
    struct store_call call;
    int finished;
    char key[32];
};

static void ask_done(struct store_call *call)
{
    ((struct ask *)(void *)((char *)call - offsetof(struct ask, call)))->finished++;
}

static void submit(struct ask *ask, enum store_op op, const char *key)
{
    snprintf(ask->key, sizeof(ask->key), "%s", key);
    ask->call.request.op = op;
    ask->call.request.key = (const uint8_t *)ask->key;
    ask->call.request.key_length = (uint32_t)strlen(key);
    ask->call.request.loop = loop;
    ask->call.done = ask_done;
    ask->finished = store_submit(store, &ask->call) != STORE_PENDING;
}

static enum store_status wait_for(struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (ask->finished == 0 && clock_now() < end)
        loop_step(loop, 50);
    ck_assert_int_eq(ask->finished, 1);
    return ask->call.result.status;
}

static enum store_status run(enum store_op op, const char *key)
{
    struct ask ask = {.finished = 0};
    submit(&ask, op, key);
    enum store_status status = wait_for(&ask);
    store_answer_release(&ask.call);
    return status;
}

/* A value that says which PUT it is from. */
static void begin_put(struct ask *ask, const char *key, uint32_t id, uint32_t length,
                      bool overwrite)
{
    struct value *value = value_new((const uint8_t *)key, strlen(key), length);
    ck_assert_ptr_nonnull(value);
    memset(value_bytes(value), (int)(id * 31), length);
    memcpy(value_bytes(value), &id, sizeof(id));
    ask->call.request.value = value;
    ask->call.request.overwrite = overwrite;
    submit(ask, STORE_PUT, key);
}

static enum store_status put(const char *key, uint32_t id, uint32_t length, bool overwrite)
{
    struct ask ask = {.finished = 0};
    begin_put(&ask, key, id, length, overwrite);
    return wait_for(&ask);
}

/* The id of the key's value; 0: a miss. Any other byte of it is right, too. */
static uint32_t get(const char *key)
{
    struct ask ask = {.finished = 0};
    submit(&ask, STORE_GET, key);
    if (wait_for(&ask) == STORE_MISS)
        return 0;
    ck_assert_msg(ask.call.result.status == STORE_OK, "GET failed: %s", ask.call.result.text);
    struct store_answer answer = store_answer_of(&ask.call);
    uint32_t id;
    ck_assert_uint_ge(answer.length, sizeof(id));
    memcpy(&id, answer.bytes, sizeof(id));
    const uint8_t *rest = answer.bytes + sizeof(id);
    uint64_t length = answer.length - sizeof(id);
    ck_assert(length == 0 || rest[0] == (uint8_t)(id * 31));
    ck_assert(length == 0 || memcmp(rest, rest + 1, length - 1) == 0);
    store_answer_release(&ask.call);
    return id;
}

static enum store_status persist(void)
{
    return run(STORE_PERSIST, "");
}

START_TEST(what_was_persisted_survives_a_crash)
{
    start(4 << 20);
    put("a", 1, 100, false);
    put("b", 2, 100, false);
    ck_assert_int_eq(persist(), STORE_OK);
    put("a", 3, 100, true);
    crash(0);
    ck_assert_uint_eq(get("b"), 2);
    uint32_t a = get("a"); /* the overwrite may have been synced by itself, or not */
    ck_assert(a == 1 || a == 3);
    stop();
}
END_TEST

START_TEST(a_persist_waits_for_all_before_it)
{
    start(4 << 20);
    fake_disk_hold(true);
    char key[32];
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_int_eq(put(key, (uint32_t)i + 1, 100, false), STORE_OK);
    }
    struct ask ask = {.finished = 0};
    submit(&ask, STORE_PERSIST, "");
    for (int i = 0; i < 20; i++)
        loop_step(loop, 1);
    ck_assert_int_eq(ask.finished, 0);
    fake_disk_hold(false);
    ck_assert_int_eq(wait_for(&ask), STORE_OK);
    crash(0);
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_uint_eq(get(key), (uint32_t)i + 1);
    }
    stop();
}
END_TEST

/* The first defect: a small value in the queue, then a large one that has no room beside
 * it. */
START_TEST(a_newer_value_never_goes_past_an_older_one)
{
    start(1 << 20);
    for (uint32_t i = 1; i < 40; i++) {
        char key[32];
        snprintf(key, sizeof(key), "key-%u", i);
        ck_assert_int_eq(put(key, i, 4, false), STORE_OK);
        ck_assert_int_eq(put(key, i + 1000, 300000, true), STORE_OK);
        ck_assert_uint_eq(get(key), i + 1000);
    }
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    for (uint32_t i = 1; i < 40; i++) {
        char key[32];
        snprintf(key, sizeof(key), "key-%u", i);
        ck_assert_uint_eq(get(key), i + 1000);
    }
    stop();
}
END_TEST

START_TEST(of_two_deletes_at_once_one_deletes)
{
    start(4 << 20);
    for (int i = 0; i < 100; i++) {
        struct ask one = {.finished = 0}, two = {.finished = 0};
        put("key", 1, 100, false);
        if (i % 2)
            persist();
        submit(&one, STORE_DELETE, "key");
        submit(&two, STORE_DELETE, "key");
        int deleted = (wait_for(&one) == STORE_OK) + (wait_for(&two) == STORE_OK);
        ck_assert_int_eq(deleted, 1);
        ck_assert_uint_eq(get("key"), 0);
    }
    stop();
}
END_TEST

START_TEST(what_was_deleted_stays_deleted)
{
    start(4 << 20);
    put("key", 1, 100, false);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(run(STORE_DELETE, "key"), STORE_OK);
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    ck_assert_uint_eq(get("key"), 0);
    ck_assert_int_eq(put("key", 2, 100, false), STORE_OK);
    stop();
}
END_TEST

/* The queue still names a key that was deleted and put again: the tombstone must not come last. */
START_TEST(what_was_deleted_and_put_again_is_there)
{
    start(4 << 20);
    put("key", 1, 100, false);
    persist();
    fake_disk_hold(true);
    put("other", 9, 100, false); /* the writer takes it, and is held */
    put("key", 2, 100, true);
    run(STORE_DELETE, "key");
    put("key", 3, 100, false);
    run(STORE_DELETE, "key");
    put("key", 4, 100, false);
    fake_disk_hold(false);
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    ck_assert_uint_eq(get("key"), 4);
    stop();
}
END_TEST

START_TEST(clear_is_durable)
{
    start(1 << 20);
    char key[32];
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "%s-%d", i % 2 ? "one" : "two", i);
        put(key, (uint32_t)i + 1, 40000, false); /* most lie on disk alone */
    }
    persist();
    struct ask clear = {.finished = 0};
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "%s-%d", i % 2 ? "one" : "two", i);
        ck_assert_uint_eq(get(key), (uint32_t)i + 1);
    }
    submit(&clear, STORE_CLEAR, "one");
    ck_assert_int_eq(wait_for(&clear), STORE_OK);
    ck_assert_uint_eq(clear.call.result.entries, 50);
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "%s-%d", i % 2 ? "one" : "two", i);
        ck_assert_uint_eq(get(key), i % 2 ? 0 : (uint32_t)i + 1);
    }
    struct ask inspect = {.finished = 0};
    submit(&inspect, STORE_INSPECT, "");
    wait_for(&inspect);
    ck_assert_uint_eq(inspect.call.result.entries, 50);
    submit(&clear, STORE_CLEAR, "");
    ck_assert_int_eq(wait_for(&clear), STORE_OK);
    submit(&inspect, STORE_INSPECT, "");
    wait_for(&inspect);
    ck_assert_uint_eq(inspect.call.result.entries, 0);
    ck_assert_uint_eq(clear.call.result.entries, 50);
    stop();
}
END_TEST

START_TEST(a_failed_write_keeps_everything)
{
    start(4 << 20);
    put("old", 1, 100, false);
    ck_assert_int_eq(persist(), STORE_OK);
    fake_disk_fail_appends(UINT_MAX, ENOSPC);
    put("new", 2, 100, false);
    put("old", 3, 100, true);
    struct ask ask = {.finished = 0};
    submit(&ask, STORE_PERSIST, "");
    ck_assert_int_eq(wait_for(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.result.error, ERROR_NO_SPACE);
    ck_assert_uint_eq(get("new"), 2);
    ck_assert_uint_eq(get("old"), 3);
    ck_assert_int_eq(run(STORE_DELETE, "old"), STORE_OK);
    ck_assert_uint_eq(get("old"), 0); /* what the overwrite had replaced does not come back */
    fake_disk_fail_appends(0, 0);
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    ck_assert_uint_eq(get("new"), 2);
    ck_assert_uint_eq(get("old"), 0);
    stop();
}
END_TEST

/* Memory fills up with what can't be written: PUTs are refused with the store's error, none is
 * lost. */
START_TEST(puts_are_refused_while_nothing_can_be_written)
{
    start(1 << 20);
    fake_disk_fail_appends(UINT_MAX, ENOSPC);
    uint32_t stored = 0;
    char key[32];
    enum store_status status = STORE_OK;
    struct ask ask;
    while (status == STORE_OK && stored < 1000) {
        ask = (struct ask){.finished = 0};
        snprintf(key, sizeof(key), "key-%u", stored);
        begin_put(&ask, key, stored + 1, 10000, false);
        status = wait_for(&ask);
        stored += status == STORE_OK;
    }
    ck_assert_int_eq(status, STORE_FAILED);
    ck_assert_int_eq(ask.call.result.error, ERROR_NO_SPACE);
    ck_assert_uint_ge(stored, 10);
    fake_disk_fail_appends(0, 0);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(put("more", 7, 10000, false), STORE_OK);
    for (uint32_t i = 0; i < stored; i++) {
        snprintf(key, sizeof(key), "key-%u", i);
        ck_assert_uint_eq(get(key), i + 1);
    }
    stop();
}
END_TEST

/* The kernel forgets what a failed sync was to write. What memory has is written again. */
START_TEST(an_entry_that_no_longer_fits_the_disk_is_dropped_and_the_rest_is_written)
{
    start(8 << 20);
    ck_assert_int_eq(put("large", 1, 100, false), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    fake_disk_hold(true);
    ck_assert_int_eq(put("large", 2, 200000, true), STORE_OK);
    ck_assert_int_eq(put("small", 3, 100, false), STORE_OK);
    fake_disk_limit_records(1000);
    fake_disk_hold(false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    ck_assert_uint_eq(get("large"), 0);
    ck_assert_uint_eq(get("small"), 3);
    ck_assert_int_eq(put("large", 4, 200000, true), STORE_FAILED); /* from here on it is refused */
    crash(0);
    ck_assert_uint_eq(get("large"), 0); /* and the older value does not come back */
    ck_assert_uint_eq(get("small"), 3);
    stop();
}
END_TEST

START_TEST(after_a_failed_sync_persist_proves_itself_anew)
{
    start(4 << 20);
    put("kept", 1, 100, false);
    ck_assert_int_eq(persist(), STORE_OK);
    put("a", 2, 100, false);
    fake_disk_fail_syncs(1, EIO);
    ck_assert_int_eq(persist(), STORE_FAILED);
    ck_assert_uint_eq(get("a"), 2);
    ck_assert_int_eq(put("a", 3, 100, false), STORE_EXISTS);
    ck_assert_int_eq(persist(), STORE_FAILED); /* one that began later is told, too */
    ck_assert_int_eq(persist(), STORE_OK);
    crash(0);
    ck_assert_uint_eq(get("kept"), 1);
    ck_assert_uint_eq(get("a"), 2);
    stop();
}
END_TEST

/* What lies on disk alone is gone with a failed sync, and so is whatever it had replaced. */
START_TEST(what_a_failed_sync_lost_is_a_miss_for_good)
{
    start(1 << 20);
    char key[32];
    put("key", 1, 50000, false);
    ck_assert_int_eq(persist(), STORE_OK);
    put("key", 2, 50000, true);
    for (uint32_t i = 0; i < 60; i++) { /* pushes it out of memory */
        snprintf(key, sizeof(key), "key-%u", i);
        put(key, i + 10, 50000, false);
    }
    fake_disk_fail_syncs(1, EIO);
    ck_assert_int_eq(persist(), STORE_FAILED);
    uint32_t now = get("key");
    ck_assert(now == 2 || now == 0);
    persist();
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_uint_eq(get("key"), now);
    crash(0);
    ck_assert_uint_eq(get("key"), now);
    stop();
}
END_TEST

START_TEST(a_damaged_record_is_a_miss)
{
    start(1 << 20);
    char key[32];
    put("key", 1, 50000, false);
    for (uint32_t i = 0; i < 60; i++) {
        snprintf(key, sizeof(key), "key-%u", i);
        put(key, i + 10, 50000, false);
    }
    ck_assert_int_eq(persist(), STORE_OK);
    fake_disk_damage("key");
    crash(0);
    ck_assert_uint_eq(get("key"), 0);
    ck_assert_int_eq(put("key", 2, 100, false), STORE_OK);
    ck_assert_uint_eq(get("key"), 2);
    stop();
}
END_TEST

/*
 * A random history against a model. Of each key the model has all states since the last PERSIST
 * that was OK: after a crash it is in one of them.
 */
struct history {
    uint32_t states[HISTORY]; /* ids, 0: absent */
    unsigned count;
};

static struct history histories[KEYS];
static bool
    lossy; /* a sync has failed: what lay on disk alone may be gone, but nothing older counts */

static void note(unsigned key, uint32_t id)
{
    struct history *history = &histories[key];
    ck_assert_uint_lt(history->count, HISTORY);
    history->states[history->count++] = id;
}

static uint32_t state_of(unsigned key)
{
    return histories[key].states[histories[key].count - 1];
}

static void forget_but_last(void)
{
    for (unsigned key = 0; key < KEYS; key++) {
        histories[key].states[0] = state_of(key);
        histories[key].count = 1;
    }
}

static void check_after_crash(bool may_evict)
{
    for (unsigned key = 0; key < KEYS; key++) {
        char name[32];
        snprintf(name, sizeof(name), "%c-%u", key % 2 ? 'a' : 'b', key);
        uint32_t id = get(name);
        bool known = (may_evict || lossy) && id == 0;
        for (unsigned i = 0; i < histories[key].count && !known; i++)
            known = histories[key].states[i] == id;
        ck_assert_msg(known, "%s is %u after a crash, which it was not since the last PERSIST",
                      name, id);
        histories[key].states[0] = id;
        histories[key].count = 1;
    }
}

static void one_step(unsigned *seed, uint32_t id, bool may_evict, bool syncs_fail)
{
    static const uint32_t lengths[] = {4, 60, 3000, 20000, 120000};
    unsigned key = (unsigned)rand_r(seed) % KEYS, what = (unsigned)rand_r(seed) % 100;
    uint32_t length = lengths[(unsigned)rand_r(seed) % 5];
    char name[32];
    snprintf(name, sizeof(name), "%c-%u", key % 2 ? 'a' : 'b', key);
    if (what < 40) {
        bool overwrite = what < 25;
        enum store_status status = put(name, id, length, overwrite);
        if (status == STORE_EXISTS)
            ck_assert(!overwrite && state_of(key) != 0);
        else if (status == STORE_OK)
            note(key, id);
        if (status == STORE_OK && !overwrite)
            ck_assert(histories[key].states[histories[key].count - 2] == 0 || may_evict || lossy);
    } else if (what < 55) {
        enum store_status status = run(STORE_DELETE, name);
        if (status == STORE_OK)
            ck_assert_uint_ne(state_of(key), 0);
        else
            ck_assert(state_of(key) == 0 || may_evict || lossy);
        note(key, 0);
    } else if (what < 85) {
        uint32_t got = get(name);
        ck_assert(got == state_of(key) || ((may_evict || lossy) && got == 0));
        if (got != state_of(key))
            note(key, got);
    } else if (what < 87) {
        enum store_status status = run(STORE_CLEAR, "a");
        for (unsigned k = 1; k < KEYS && status == STORE_OK; k += 2)
            note(k, 0);
        ck_assert(status == STORE_OK);
    } else if (what < 93) {
        if (persist() == STORE_OK)
            forget_but_last();
    } else if (what < 94 && syncs_fail) {
        fake_disk_fail_syncs(1, EIO);
        lossy = true;
    } else if (what < 95) {
        fake_disk_fail_appends(1 + (unsigned)rand_r(seed) % 3, EIO);
    } else if (what < 97) {
        crash((unsigned)rand_r(seed) % 4);
        check_after_crash(may_evict);
    }
}

static void random_history(unsigned seed, uint64_t memory, uint64_t disk)
{
    start(memory);
    max_size = disk;
    crash(0); /* with the disk's size */
    bool syncs_fail = seed % 2;
    memset(histories, 0, sizeof(histories));
    for (unsigned key = 0; key < KEYS; key++)
        note(key, 0);
    for (uint32_t step = 1; step <= MANY; step++)
        one_step(&seed, step, disk < 1 << 30, syncs_fail);
    stop();
}

START_TEST(random_histories_are_true)
{
    static const uint64_t memories[] = {0, 64 << 10, 1 << 20, 64 << 20};
    random_history((unsigned)_i + 1, memories[_i % 4], 1 << 30);
}
END_TEST

START_TEST(random_histories_are_true_of_a_full_disk)
{
    static const uint64_t memories[] = {64 << 10, 1 << 20};
    random_history((unsigned)_i + 100, memories[_i % 2], 400000);
}
END_TEST

int main(void)
{
    clock_start();
    Suite *suite = suite_create("writer");
    TCase *tcase = suite_case(suite, "writer", 300);
    tcase_add_test(tcase, what_was_persisted_survives_a_crash);
    tcase_add_test(tcase, a_persist_waits_for_all_before_it);
    tcase_add_test(tcase, a_newer_value_never_goes_past_an_older_one);
    tcase_add_test(tcase, of_two_deletes_at_once_one_deletes);
    tcase_add_test(tcase, what_was_deleted_stays_deleted);
    tcase_add_test(tcase, what_was_deleted_and_put_again_is_there);
    tcase_add_test(tcase, clear_is_durable);
    tcase_add_test(tcase, a_failed_write_keeps_everything);
    tcase_add_test(tcase, puts_are_refused_while_nothing_can_be_written);
    tcase_add_test(tcase, an_entry_that_no_longer_fits_the_disk_is_dropped_and_the_rest_is_written);
    tcase_add_test(tcase, after_a_failed_sync_persist_proves_itself_anew);
    tcase_add_test(tcase, what_a_failed_sync_lost_is_a_miss_for_good);
    tcase_add_test(tcase, a_damaged_record_is_a_miss);
    tcase_add_loop_test(tcase, random_histories_are_true, 0, 8);
    tcase_add_loop_test(tcase, random_histories_are_true_of_a_full_disk, 0, 4);
    return suite_run(suite);
}
