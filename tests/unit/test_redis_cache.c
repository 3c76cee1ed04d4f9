/*
 * The memory before Redis (daemon/store/redis/cache.h): what is kept of what GETs have read, and
 * that no change of this daemon's is ever answered from before it. Redis itself is not asked here.
 */
#include "../../daemon/clock.h"
#include "../../daemon/container_of.h"
#include "../../daemon/store/redis/cache.h"
#include "store_answer.h"
#include "suite.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { MEMORY = 4 << 20, WAIT_MS = 10000, THREADS = 3, KEYS = 5, ROUNDS = 30000, LARGE = 40000 };

static struct redis_cache *cache;
static struct loop *loop;

static void start_with(uint64_t bytes)
{
    char why[256] = "";
    cache = redis_cache_new(bytes, why, sizeof(why));
    ck_assert_msg(cache != NULL, "%s", why);
    loop = loop_new(0);
}

static void start(void)
{
    start_with(MEMORY);
}

static void stop(void)
{
    redis_cache_free(cache);
    loop_free(loop);
    ck_assert_uint_eq(value_total(), 0);
}

static struct store_call call_of(enum store_op op, const char *key)
{
    const uint8_t *bytes = (const uint8_t *)key;
    uint32_t length = (uint32_t)strlen(key);
    return (struct store_call){.request = {.op = op,
                                           .key = bytes,
                                           .key_length = length,
                                           .hash = store_hash(bytes, length),
                                           .loop = loop}};
}

static uint64_t generation_of(const char *key)
{
    struct store_call call = call_of(STORE_GET, key);
    return redis_cache_generation(cache, &call);
}

/* What a GET that was sent at that generation has read. */
static void fill_bytes(const char *key, const void *bytes, uint32_t length, int64_t expires,
                       uint64_t generation)
{
    struct store_call call = call_of(STORE_GET, key);
    struct value *value = value_new(call.request.key, call.request.key_length, length);
    ck_assert_ptr_nonnull(value);
    memcpy(value_bytes(value), bytes, length);
    value->expires = expires;
    redis_cache_fill(cache, &call, value, generation);
    value_unref(value);
}

static void fill(const char *key, const char *text, uint64_t generation)
{
    fill_bytes(key, text, (uint32_t)strlen(text), CLOCK_NEVER, generation);
}

static void begin(const char *key)
{
    struct store_call call = call_of(STORE_PUT, key);
    redis_cache_begin_change(cache, &call);
}

static void end(const char *key, bool lost)
{
    struct store_call call = call_of(STORE_PUT, key);
    redis_cache_end_change(cache, &call, lost);
}

static bool has(const char *key)
{
    struct store_call get = call_of(STORE_GET, key), head = call_of(STORE_HEAD, key);
    bool found = redis_cache_find(cache, &get) == STORE_OK;
    ck_assert_int_eq(redis_cache_find(cache, &head), found ? STORE_OK : STORE_MISS);
    if (found)
        store_answer_release(&get);
    return found;
}

static void expect(const char *key, const char *text)
{
    struct store_call call = call_of(STORE_GET, key);
    ck_assert_int_eq(redis_cache_find(cache, &call), STORE_OK);
    struct store_answer answer = store_answer_of(&call);
    ck_assert_uint_eq(answer.length, strlen(text));
    ck_assert(memcmp(answer.bytes, text, answer.length) == 0);
    store_answer_release(&call);
}

START_TEST(what_was_read_is_kept)
{
    start();
    ck_assert(!has("key"));
    fill("key", "value", generation_of("key"));
    expect("key", "value");
    ck_assert(!has("other"));
    stop();
}
END_TEST

START_TEST(large_values_are_kept_and_handed_out_by_reference)
{
    static uint8_t bytes[MEMORY / 16];
    struct store_call call = call_of(STORE_GET, "key");
    start();
    memset(bytes, 7, sizeof(bytes));
    fill_bytes("key", bytes, sizeof(bytes), CLOCK_NEVER, generation_of("key"));
    ck_assert_int_eq(redis_cache_find(cache, &call), STORE_OK);
    ck_assert_ptr_nonnull(call.result.value);
    begin("key");
    ck_assert(!has("key"));
    ck_assert(memcmp(value_bytes(call.result.value), bytes, sizeof(bytes)) == 0);
    value_unref(call.result.value);
    end("key", false);
    stop();
}
END_TEST

START_TEST(a_change_takes_the_copy_away_before_it_is_sent)
{
    start();
    fill("key", "old", generation_of("key"));
    begin("key");
    ck_assert(!has("key"));
    end("key", false);
    ck_assert(!has("key"));
    fill("key", "new", generation_of("key"));
    expect("key", "new");
    stop();
}
END_TEST

START_TEST(a_read_from_before_a_change_is_not_kept)
{
    start();
    uint64_t generation = generation_of("key");
    begin("key");
    fill("key", "old", generation);
    ck_assert(!has("key"));
    end("key", false);
    fill("key", "old", generation);
    ck_assert(!has("key"));
    stop();
}
END_TEST

/* Redis may have read it before or after it made the change. */
START_TEST(a_read_that_was_sent_beside_a_change_is_not_kept)
{
    start();
    begin("key");
    uint64_t generation = generation_of("key");
    fill("key", "old", generation);
    ck_assert(!has("key"));
    end("key", false);
    fill("key", "old", generation);
    ck_assert(!has("key"));
    stop();
}
END_TEST

START_TEST(of_two_changes_at_once_both_have_to_end)
{
    start();
    begin("key");
    begin("key");
    end("key", false);
    fill("key", "old", generation_of("key"));
    ck_assert(!has("key"));
    end("key", false);
    fill("key", "new", generation_of("key"));
    expect("key", "new");
    stop();
}
END_TEST

/* Redis may still make it. */
START_TEST(after_a_change_whose_answer_was_lost_nothing_is_kept)
{
    start();
    begin("key");
    end("key", true);
    fill("key", "old", generation_of("key"));
    ck_assert(!has("key"));
    stop();
}
END_TEST

START_TEST(a_copy_ends_when_its_value_does)
{
    start();
    fill_bytes("past", "value", 5, clock_now() - 1, generation_of("past"));
    ck_assert(!has("past"));
    int64_t end_of_life = clock_now() + 50;
    fill_bytes("brief", "value", 5, end_of_life, generation_of("brief"));
    struct store_call call = call_of(STORE_HEAD, "brief");
    if (redis_cache_find(cache, &call) == STORE_OK)
        ck_assert_int_eq(call.result.expires, end_of_life);
    while (clock_now() < end_of_life)
        sched_yield();
    ck_assert(!has("brief"));
    stop();
}
END_TEST

START_TEST(without_memory_nothing_is_kept)
{
    const uint64_t sizes[] = {0, 1, 4096};
    for (int i = 0; i < 3; i++) {
        start_with(sizes[i]);
        begin("key");
        end("key", false);
        fill("key", "value", generation_of("key"));
        ck_assert(!has("key") || sizes[i] == 4096);
        stop();
    }
}
END_TEST

/* Old copies make room for new ones; the arena keeps its own bound. */
START_TEST(memory_is_not_filled_for_ever)
{
    static uint8_t bytes[LARGE];
    char key[16];
    unsigned kept = 0;
    start();
    for (int i = 0; i < 10 * MEMORY / LARGE; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        fill_bytes(key, bytes, i % 2 == 0 ? LARGE : 1000, CLOCK_NEVER, generation_of(key));
        kept += has(key);
    }
    ck_assert_uint_ge(kept, 5 * MEMORY / LARGE); /* the newest mostly are */
    kept = 0;
    for (int i = 0; i < 10 * MEMORY / LARGE; i += 2) {
        snprintf(key, sizeof(key), "key-%d", i);
        kept += has(key);
    }
    ck_assert_uint_ge(kept, MEMORY / LARGE / 4);
    ck_assert_uint_le(kept, MEMORY / LARGE);
    stop();
}
END_TEST

static bool cleared;

static void copies_cleared(struct store_call *call)
{
    ck_assert_int_eq(call->result.status, STORE_OK);
    cleared = true;
}

START_TEST(a_clear_takes_its_copies_and_keeps_none_until_it_has_ended)
{
    start();
    fill("a/key", "value", generation_of("a/key"));
    fill("b/key", "value", generation_of("b/key"));
    uint64_t generation = generation_of("a/late");
    struct store_call call = call_of(STORE_CLEAR, "a/");
    call.done = copies_cleared;
    enum store_status status = redis_cache_begin_clear(cache, &call);
    fill("a/late", "value", generation);
    for (int64_t until = clock_now() + WAIT_MS; !cleared && clock_now() < until;)
        loop_step(loop, 10);
    ck_assert(status == STORE_PENDING && cleared);
    ck_assert(!has("a/key"));
    expect("b/key", "value");
    generation = generation_of("a/later");
    fill("a/later", "value", generation);
    redis_cache_end_clear(cache, false);
    fill("a/late", "value", generation);
    fill("a/later", "value", generation);
    ck_assert(!has("a/late") && !has("a/later"));
    fill("a/later", "value", generation_of("a/later"));
    expect("a/later", "value");
    stop();
}
END_TEST

/* A Redis of numbers: each key has the number of its last change. */
static struct truth {
    pthread_mutex_t lock;
    unsigned number;
} truths[KEYS];

static unsigned truth_of(int key)
{
    pthread_mutex_lock(&truths[key].lock);
    unsigned number = truths[key].number;
    pthread_mutex_unlock(&truths[key].lock);
    return number;
}

static void change(int number, const char *key)
{
    begin(key);
    pthread_mutex_lock(&truths[number].lock);
    truths[number].number++;
    pthread_mutex_unlock(&truths[number].lock);
    sched_yield();
    end(key, false);
}

/* What a GET finds is no older than what was there when it was asked. */
static bool read_one(int number, const char *key)
{
    struct store_call call = call_of(STORE_GET, key);
    unsigned least = truth_of(number), found;
    if (redis_cache_find(cache, &call) == STORE_OK) {
        struct store_answer answer = store_answer_of(&call);
        memcpy(&found, answer.bytes, sizeof(found));
        store_answer_release(&call);
        ck_assert_uint_ge(found, least);
        return true;
    }
    uint64_t generation = generation_of(key);
    found = truth_of(number);
    sched_yield();
    fill_bytes(key, &found, sizeof(found), CLOCK_NEVER, generation);
    return false;
}

static void *work(void *arg)
{
    unsigned random = *(unsigned *)arg, hits = 0;
    char key[8];
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 1103515245 + 12345;
        int number = (int)(random >> 16) % KEYS;
        snprintf(key, sizeof(key), "key-%d", number);
        if ((random >> 8) % 8 == 0)
            change(number, key);
        else
            hits += read_one(number, key);
    }
    return (void *)(uintptr_t)hits;
}

START_TEST(whatever_many_do_at_once_nothing_older_is_found)
{
    pthread_t threads[THREADS];
    unsigned seeds[THREADS] = {1, 2, 3};
    uintptr_t hits = 0;
    start();
    for (int i = 0; i < KEYS; i++)
        pthread_mutex_init(&truths[i].lock, NULL);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &seeds[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        hits += (uintptr_t)result;
    }
    ck_assert_uint_gt(hits, ROUNDS / 10);
    stop();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        what_was_read_is_kept,
        large_values_are_kept_and_handed_out_by_reference,
        a_change_takes_the_copy_away_before_it_is_sent,
        a_read_from_before_a_change_is_not_kept,
        a_read_that_was_sent_beside_a_change_is_not_kept,
        of_two_changes_at_once_both_have_to_end,
        after_a_change_whose_answer_was_lost_nothing_is_kept,
        a_copy_ends_when_its_value_does,
        without_memory_nothing_is_kept,
        memory_is_not_filled_for_ever,
        a_clear_takes_its_copies_and_keeps_none_until_it_has_ended,
        whatever_many_do_at_once_nothing_older_is_found,
    };
    Suite *suite = suite_create("redis_cache");
    TCase *tcase = suite_case(suite, "cache", 60);
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        tcase_add_test(tcase, tests[i]);
    clock_start();
    return suite_run(suite);
}
