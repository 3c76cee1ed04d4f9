/*
 * The memory tier before a store that is slow, held, or failing as the test says.
 */
#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/container_of.h"
#include "../../daemon/store/tier.h"
#include "suite.h"

#include <pthread.h>
#include <string.h>

enum { ENTRIES = 4096, WAIT_MS = 10000, MEMORY = 1 << 20 };

/* A blocking store of a few entries, whose writes and reads wait as long as they are held. */
struct slow {
    struct store store;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool writes_held, reads_held, failing;
    atomic_uint reads; /* begun */
    atomic_uint puts, persists;
    unsigned count;
    struct value *values[ENTRIES];
};

static struct slow *slow; /* the one under test */

static struct value **slow_find(const struct store_call *call)
{
    for (unsigned i = 0; i < slow->count; i++) {
        struct value *value = slow->values[i];
        if (value->key_length == call->key_length &&
            memcmp(value_key(value), call->key, call->key_length) == 0)
            return &slow->values[i];
    }
    return NULL;
}

static void slow_take(struct value **at)
{
    value_unref(*at);
    *at = slow->values[--slow->count];
}

static void wait_while(const bool *held)
{
    while (*held)
        pthread_cond_wait(&slow->changed, &slow->lock);
}

static enum store_status slow_get(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    struct value **at = slow_find(call);
    call->value = at != NULL ? value_ref(*at) : NULL;
    slow->reads++;
    wait_while(&slow->reads_held);
    pthread_mutex_unlock(&slow->lock);
    return call->value != NULL ? STORE_OK : STORE_MISS;
}

static enum store_status slow_head(struct store *store, struct store_call *call)
{
    enum store_status status = slow_get(store, call);
    if (status == STORE_OK)
        call->length = call->value->length;
    value_unref(call->value);
    call->value = NULL;
    return status;
}

/* A copy, as a real store would keep: the tier's table owns the value's links. */
static struct value *copy(struct value *value)
{
    struct value *other = value_new(value_key(value), value->key_length, value->length);
    memcpy(value_bytes(other), value_bytes(value), value->length);
    return other;
}

static enum store_status slow_put(struct store *store, struct store_call *call)
{
    enum store_status status = STORE_OK;
    (void)store;
    pthread_mutex_lock(&slow->lock);
    wait_while(&slow->writes_held);
    struct value **at = slow_find(call);
    if (slow->failing)
        status = store_fail(call, ERROR_NO_SPACE, "the test's disk is full");
    else if (at != NULL && !call->overwrite)
        status = STORE_EXISTS;
    else {
        if (at != NULL)
            slow_take(at);
        ck_assert_uint_lt(slow->count, ENTRIES);
        slow->values[slow->count++] = copy(call->value);
        slow->puts++;
    }
    pthread_mutex_unlock(&slow->lock);
    value_unref(call->value);
    call->value = NULL;
    return status;
}

static enum store_status slow_delete(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    wait_while(&slow->writes_held);
    struct value **at = slow_find(call);
    if (at != NULL)
        slow_take(at);
    pthread_mutex_unlock(&slow->lock);
    return at != NULL ? STORE_OK : STORE_MISS;
}

static enum store_status slow_clear(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    wait_while(&slow->writes_held);
    call->entries = slow->count;
    while (slow->count > 0)
        slow_take(&slow->values[0]);
    pthread_mutex_unlock(&slow->lock);
    return STORE_OK;
}

static enum store_status slow_inspect(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    call->entries = slow->count;
    pthread_mutex_unlock(&slow->lock);
    return STORE_OK;
}

static enum store_status slow_persist(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    wait_while(&slow->writes_held);
    slow->persists++;
    pthread_mutex_unlock(&slow->lock);
    call->durable = true;
    return STORE_OK;
}

static bool slow_absent(struct store *store, const struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    bool absent = slow_find(call) == NULL;
    pthread_mutex_unlock(&slow->lock);
    return absent;
}

static struct store *slow_open(const struct config *config, char *why, size_t size)
{
    (void)config;
    (void)why;
    (void)size;
    slow = calloc(1, sizeof(*slow));
    pthread_mutex_init(&slow->lock, NULL);
    pthread_cond_init(&slow->changed, NULL);
    return &slow->store;
}

static void slow_close(struct store *store)
{
    (void)store;
    while (slow->count > 0)
        slow_take(&slow->values[0]);
    free(slow);
}

static const struct store_ops slow_ops = {
    .name = "slow",
    .title = "Slow",
    .readers = 1,
    .writers = 1,
    .tiered = true,
    .open = slow_open,
    .close = slow_close,
    .absent = slow_absent,
    .get = slow_get,
    .head = slow_head,
    .put = slow_put,
    .delete = slow_delete,
    .clear = slow_clear,
    .inspect = slow_inspect,
    .persist = slow_persist,
};

static struct store *tier;
static struct loop *loop;

static void start(void)
{
    char why[256] = "";
    struct config config = {.max_size = 1 << 30, .memory_size = MEMORY, .workers = 1};
    tier = store_open(&slow_ops, &config, why, sizeof(why));
    ck_assert_msg(tier != NULL, "%s", why);
    loop = loop_new(0);
    ck_assert(store_attach(tier, loop));
}

static void set(bool *what, bool to)
{
    pthread_mutex_lock(&slow->lock);
    *what = to;
    pthread_cond_broadcast(&slow->changed);
    pthread_mutex_unlock(&slow->lock);
}

static void stop(void)
{
    set(&slow->writes_held, false);
    set(&slow->failing, false);
    store_detach(tier, loop);
    store_close(tier);
    loop_free(loop);
    ck_assert_uint_eq(value_total(), 0);
}

struct ask {
    struct store_call call;
    bool finished;
    char key[32];
};

static void finished(struct store_call *call)
{
    container_of(call, struct ask, call)->finished = true;
}

static void submit(struct ask *ask, enum store_op op, const char *key)
{
    snprintf(ask->key, sizeof(ask->key), "%s", key);
    ask->finished = false;
    ask->call.op = op;
    ask->call.key = (const uint8_t *)ask->key;
    ask->call.key_length = (uint32_t)strlen(key);
    ask->call.loop = loop;
    ask->call.done = finished;
    if (store_submit(tier, &ask->call) != STORE_PENDING)
        ask->finished = true;
}

static void submit_put(struct ask *ask, const char *key, const char *text, bool overwrite)
{
    struct value *value = value_new((const uint8_t *)key, strlen(key), (uint32_t)strlen(text));
    memcpy(value_bytes(value), text, strlen(text));
    ask->call.value = value;
    ask->call.overwrite = overwrite;
    submit(ask, STORE_PUT, key);
}

static enum store_status finish(struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (!ask->finished && clock_now() < end)
        loop_step(loop, 10);
    ck_assert_msg(ask->finished, "op %d on %s has not finished", (int)ask->call.op, ask->key);
    return ask->call.status;
}

static enum store_status run(enum store_op op, const char *key)
{
    struct ask ask = {0};
    submit(&ask, op, key);
    return finish(&ask);
}

static enum store_status put(const char *key, const char *text, bool overwrite)
{
    struct ask ask = {0};
    submit_put(&ask, key, text, overwrite);
    return finish(&ask);
}

static void expect(const char *key, const char *text)
{
    struct ask ask = {0};
    submit(&ask, STORE_GET, key);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    ck_assert_uint_eq(ask.call.value->length, strlen(text));
    ck_assert(memcmp(value_bytes(ask.call.value), text, strlen(text)) == 0);
    value_unref(ask.call.value);
}

/* What the slow store itself has. */
static void expect_behind(const char *key, const char *text)
{
    struct store_call call = {.key = (const uint8_t *)key, .key_length = (uint32_t)strlen(key)};
    pthread_mutex_lock(&slow->lock);
    struct value **at = slow_find(&call);
    ck_assert_msg((at != NULL) == (text != NULL), "%s behind the tier: %s", key,
                  at != NULL ? "there" : "not there");
    if (text != NULL)
        ck_assert(memcmp(value_bytes(*at), text, strlen(text)) == 0);
    pthread_mutex_unlock(&slow->lock);
}

START_TEST(a_put_does_not_wait_for_the_store)
{
    struct ask ask = {0};
    start();
    set(&slow->writes_held, true);
    submit_put(&ask, "key", "value", false);
    ck_assert(ask.finished);
    ck_assert_int_eq(ask.call.status, STORE_OK);
    expect("key", "value");
    ck_assert_int_eq(put("key", "other", false), STORE_EXISTS);
    expect_behind("key", NULL);
    set(&slow->writes_held, false);
    stop();
}
END_TEST

START_TEST(what_is_dirty_is_written_within_a_second)
{
    start();
    ck_assert_int_eq(put("key", "value", false), STORE_OK);
    for (int64_t end = clock_now() + 1000; clock_now() < end && slow->puts == 0;)
        loop_step(loop, 10);
    expect_behind("key", "value");
    stop();
}
END_TEST

START_TEST(persist_waits_for_all_that_is_dirty)
{
    struct ask persist = {0};
    char key[16];
    start();
    set(&slow->writes_held, true);
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        ck_assert_int_eq(put(key, "value", false), STORE_OK);
    }
    submit(&persist, STORE_PERSIST, "");
    for (int i = 0; i < 30; i++)
        loop_step(loop, 10);
    ck_assert(!persist.finished);
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&persist), STORE_OK);
    ck_assert(persist.call.durable);
    ck_assert_uint_eq(slow->puts, 1000);
    ck_assert_uint_eq(slow->persists, 1);
    stop();
}
END_TEST

START_TEST(what_can_not_be_written_is_neither_lost_nor_called_persisted)
{
    struct ask persist = {0};
    start();
    set(&slow->failing, true);
    ck_assert_int_eq(put("key", "value", false), STORE_OK);
    submit(&persist, STORE_PERSIST, "");
    ck_assert_int_eq(finish(&persist), STORE_FAILED);
    ck_assert_int_eq(persist.call.error, ERROR_NO_SPACE);
    ck_assert_str_eq(persist.call.text, "the test's disk is full");
    ck_assert_uint_eq(slow->persists, 0);
    expect("key", "value");
    set(&slow->failing, false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("key", "value");
    stop();
}
END_TEST

START_TEST(dirty_memory_is_bounded)
{
    static char text[4096];
    char key[16];
    unsigned refused = 0;
    start();
    memset(text, 'x', sizeof(text) - 1);
    set(&slow->failing, true);
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof(key), "key-%d", i);
        enum store_status status = put(key, text, false);
        refused += status == STORE_FAILED;
        ck_assert_uint_le(value_total(), 2 * MEMORY);
    }
    ck_assert_uint_gt(refused, 1000);
    expect("key-0", text);
    stop();
}
END_TEST

START_TEST(deleted_while_dirty_stays_away)
{
    start();
    set(&slow->writes_held, true);
    ck_assert_int_eq(put("early", "value", false), STORE_OK);
    ck_assert_int_eq(run(STORE_DELETE, "early"), STORE_OK);
    ck_assert_int_eq(run(STORE_GET, "early"), STORE_MISS);
    ck_assert_int_eq(put("late", "value", false), STORE_OK);
    for (int i = 0; i < 30; i++) /* until its write is on its way */
        loop_step(loop, 10);
    struct ask ask = {0};
    submit(&ask, STORE_DELETE, "late");
    ck_assert_int_eq(run(STORE_GET, "early"), STORE_MISS);
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    ck_assert_int_eq(run(STORE_GET, "late"), STORE_MISS);
    expect_behind("early", NULL);
    expect_behind("late", NULL);
    stop();
}
END_TEST

START_TEST(the_newest_of_several_overwrites_is_what_stays)
{
    start();
    set(&slow->writes_held, true);
    ck_assert_int_eq(put("key", "1", true), STORE_OK);
    for (int i = 0; i < 30; i++)
        loop_step(loop, 10);
    ck_assert_int_eq(put("key", "2", true), STORE_OK);
    ck_assert_int_eq(put("key", "3", true), STORE_OK);
    expect("key", "3");
    set(&slow->writes_held, false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", "3");
    expect_behind("key", "3");
    stop();
}
END_TEST

START_TEST(a_late_read_does_not_bring_back_what_was_replaced)
{
    struct ask late = {0};
    start();
    ck_assert_int_eq(put("key", "old", false), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    store_set_max_size(tier, 1); /* the memory forgets all at the next PUT */
    store_set_max_size(tier, 1 << 30);
    static char large[MEMORY - 4096];
    memset(large, 'x', sizeof(large) - 1);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(put("large", large, true), STORE_OK);
    set(&slow->reads_held, true);
    unsigned before = slow->reads;
    submit(&late, STORE_GET, "key");
    for (int64_t end = clock_now() + 1000; clock_now() < end && slow->reads == before;)
        loop_step(loop, 1);
    ck_assert(!late.finished);
    ck_assert_int_eq(put("key", "new", true), STORE_OK);
    set(&slow->reads_held, false);
    ck_assert_int_eq(finish(&late), STORE_OK);
    value_unref(late.call.value);
    expect("key", "new");
    stop();
}
END_TEST

START_TEST(clear_takes_what_is_dirty_too)
{
    struct ask clear = {0};
    start();
    ck_assert_int_eq(put("a", "value", false), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    ck_assert_int_eq(put("b", "value", false), STORE_OK);
    submit(&clear, STORE_CLEAR, "");
    ck_assert_int_eq(finish(&clear), STORE_OK);
    ck_assert_uint_eq(clear.call.entries, 2);
    ck_assert_int_eq(run(STORE_GET, "a"), STORE_MISS);
    ck_assert_int_eq(run(STORE_GET, "b"), STORE_MISS);
    ck_assert_int_eq(put("b", "again", false), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("b", "again");
    stop();
}
END_TEST

START_TEST(what_only_the_store_has_exists)
{
    start();
    struct value *value = value_new((const uint8_t *)"key", 3, 5);
    memcpy(value_bytes(value), "value", 5);
    slow->values[slow->count++] = value;
    ck_assert_int_eq(put("key", "other", false), STORE_EXISTS);
    expect("key", "value");
    stop();
}
END_TEST

START_TEST(an_absent_key_is_a_miss_without_asking)
{
    start();
    ck_assert_int_eq(run(STORE_GET, "nothing"), STORE_MISS);
    ck_assert_uint_eq(slow->reads, 0);
    stop();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_put_does_not_wait_for_the_store,
        what_is_dirty_is_written_within_a_second,
        persist_waits_for_all_that_is_dirty,
        what_can_not_be_written_is_neither_lost_nor_called_persisted,
        dirty_memory_is_bounded,
        deleted_while_dirty_stays_away,
        the_newest_of_several_overwrites_is_what_stays,
        a_late_read_does_not_bring_back_what_was_replaced,
        clear_takes_what_is_dirty_too,
        what_only_the_store_has_exists,
        an_absent_key_is_a_miss_without_asking,
    };
    Suite *suite = suite_create("tier");
    TCase *tcase = suite_case(suite, "tier", 60);
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        tcase_add_test(tcase, tests[i]);
    clock_start();
    return suite_run(suite);
}
