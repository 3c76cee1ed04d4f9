/*
 * The memory tier before a store that is slow, held, or failing as the test says.
 */
#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/container_of.h"
#include "../../daemon/store/tier.h"
#include "suite.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

enum { ENTRIES = 4096, WAIT_MS = 10000, MEMORY = 1 << 20, LOOPS = 2 };

/* A blocking store of a few entries, whose writes and reads wait as long as they are held. */
struct slow {
    struct store store;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool writes_held, reads_held, failing;
    bool reads_delayed;        /* as reads_held, before they have read anything */
    atomic_uint reads, writes; /* begun */
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
    wait_while(&slow->reads_delayed);
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
    slow->writes++;
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
    enum store_status status = STORE_MISS;
    (void)store;
    pthread_mutex_lock(&slow->lock);
    slow->writes++;
    wait_while(&slow->writes_held);
    struct value **at = slow_find(call);
    if (slow->failing) {
        status = store_fail(call, ERROR_NO_SPACE, "the test's disk is full");
    } else if (at != NULL) {
        slow_take(at);
        status = STORE_OK;
    }
    pthread_mutex_unlock(&slow->lock);
    return status;
}

static enum store_status slow_clear(struct store *store, struct store_call *call)
{
    (void)store;
    pthread_mutex_lock(&slow->lock);
    wait_while(&slow->writes_held);
    call->entries = 0;
    for (unsigned i = slow->count; i-- > 0;) {
        struct value *value = slow->values[i];
        if (value->key_length < call->key_length ||
            memcmp(value_key(value), call->key, call->key_length) != 0)
            continue;
        slow_take(&slow->values[i]);
        call->entries++;
    }
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
static struct loop *loops[LOOPS], *loop; /* loop: where the next call is from */

static void start(void)
{
    char why[256] = "";
    struct config config = {.max_size = 1 << 30, .memory_size = MEMORY, .workers = LOOPS - 1};
    tier = store_open(&slow_ops, &config, why, sizeof(why));
    ck_assert_msg(tier != NULL, "%s", why);
    for (unsigned i = 0; i < LOOPS; i++) {
        loops[i] = loop_new(i);
        ck_assert(store_attach(tier, loops[i]));
    }
    loop = loops[0];
}

static void step(void)
{
    for (unsigned i = 0; i < LOOPS; i++)
        loop_step(loops[i], loops[i] == loop ? 5 : 0);
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
    for (unsigned i = 0; i < LOOPS; i++)
        store_detach(tier, loops[i]);
    store_close(tier);
    for (unsigned i = 0; i < LOOPS; i++)
        loop_free(loops[i]);
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

static void submit_put_until(struct ask *ask, const char *key, const char *text, bool overwrite,
                             int64_t expires)
{
    struct value *value = value_new((const uint8_t *)key, strlen(key), (uint32_t)strlen(text));
    memcpy(value_bytes(value), text, strlen(text));
    value->expires = expires;
    ask->call.value = value;
    ask->call.overwrite = overwrite;
    submit(ask, STORE_PUT, key);
}

static void submit_put(struct ask *ask, const char *key, const char *text, bool overwrite)
{
    submit_put_until(ask, key, text, overwrite, CLOCK_NEVER);
}

static enum store_status finish(struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (!ask->finished && clock_now() < end)
        step();
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

/* Waits until the slow store has begun as many PUTs and DELETEs. */
static void begun(unsigned writes)
{
    for (int64_t end = clock_now() + WAIT_MS; slow->writes < writes && clock_now() < end;)
        step();
    ck_assert_uint_eq(slow->writes, writes);
}

/* Stores old and has it written, then overwrites it with a value that is dirty. */
static void overwrite_what_was_written(const char *key)
{
    ck_assert_int_eq(put(key, "old", true), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    set(&slow->writes_held, true);
    ck_assert_int_eq(put(key, "new", true), STORE_OK);
    expect_behind(key, "old");
}

/* More than may be dirty. */
static const char *large(char fill)
{
    static char text[MEMORY / 3];
    memset(text, fill, sizeof(text) - 1);
    return text;
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
        step();
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
        step();
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
        step();
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
        step();
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

/* Has the slow store alone have the key. */
static void store_behind(const char *key, const char *text)
{
    ck_assert_int_eq(put(key, text, true), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    store_set_max_size(tier, 1); /* the memory forgets all at the next PUT */
    store_set_max_size(tier, 1 << 30);
    static char whole[MEMORY - 4096];
    memset(whole, 'x', sizeof(whole) - 1);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(put("large", whole, true), STORE_OK);
}

START_TEST(a_late_read_does_not_bring_back_what_was_replaced)
{
    struct ask late = {0};
    start();
    store_behind("key", "old");
    set(&slow->reads_held, true);
    unsigned before = slow->reads;
    submit(&late, STORE_GET, "key");
    for (int64_t end = clock_now() + 1000; clock_now() < end && slow->reads == before;)
        step();
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

START_TEST(a_large_value_does_not_overtake_one_that_waits)
{
    struct ask ask = {0};
    start();
    ck_assert_int_eq(put("key", "1", true), STORE_OK);
    submit_put(&ask, "key", large('2'), true);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    expect("key", large('2'));
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", large('2'));
    expect_behind("key", large('2'));
    stop();
}
END_TEST

START_TEST(a_large_value_does_not_overtake_one_that_is_being_written)
{
    struct ask ask = {0};
    start();
    set(&slow->writes_held, true);
    ck_assert_int_eq(put("key", "1", true), STORE_OK);
    begun(1);
    ck_assert_int_eq(put("key", "2", true), STORE_OK);
    loop = loops[1];
    submit_put(&ask, "key", large('3'), true);
    expect("key", "2");
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    expect("key", large('3'));
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", large('3'));
    expect_behind("key", large('3'));
    stop();
}
END_TEST

START_TEST(changes_that_wait_are_made_in_their_order)
{
    enum { COUNT = 8 };
    struct ask asks[COUNT] = {0};
    start();
    set(&slow->writes_held, true);
    ck_assert_int_eq(put("key", "1", true), STORE_OK);
    begun(1);
    for (int i = 0; i < COUNT; i++) {
        loop = loops[i % LOOPS];
        if (i == COUNT - 2)
            submit(&asks[i], STORE_DELETE, "key");
        else
            submit_put(&asks[i], "key", large((char)('a' + i)), i != COUNT - 1);
        ck_assert(!asks[i].finished);
    }
    set(&slow->writes_held, false);
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(finish(&asks[i]), STORE_OK);
    expect("key", large('a' + COUNT - 1));
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("key", large('a' + COUNT - 1));
    stop();
}
END_TEST

START_TEST(a_large_value_that_can_not_be_written_leaves_the_one_that_waits)
{
    struct ask ask = {0};
    start();
    overwrite_what_was_written("key");
    set(&slow->failing, true);
    submit_put(&ask, "key", large('x'), true);
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    expect("key", "new");
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_FAILED);
    set(&slow->failing, false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", "new");
    expect_behind("key", "new");
    stop();
}
END_TEST

START_TEST(an_overwrite_beside_a_clear_of_others_stays)
{
    struct ask clear = {0}, ask = {0};
    start();
    ck_assert_int_eq(put("key", "1", true), STORE_OK);
    submit(&clear, STORE_CLEAR, "other/");
    submit_put(&ask, "key", "2", true);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    expect("key", "2");
    ck_assert_int_eq(finish(&clear), STORE_OK);
    ck_assert_uint_eq(clear.call.entries, 0);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", "2");
    expect_behind("key", "2");
    stop();
}
END_TEST

START_TEST(a_get_beside_a_delete_finds_nothing_older)
{
    struct ask ask = {0}, get = {0};
    start();
    overwrite_what_was_written("key");
    submit(&ask, STORE_DELETE, "key");
    submit(&get, STORE_GET, "key");
    if (finish(&get) == STORE_OK)
        ck_assert(memcmp(value_bytes(get.call.value), "new", 3) == 0);
    value_unref(get.call.value);
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    ck_assert_int_eq(run(STORE_GET, "key"), STORE_MISS);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("key", NULL);
    stop();
}
END_TEST

START_TEST(of_two_deletes_one_deletes)
{
    struct ask asks[2] = {0};
    start();
    overwrite_what_was_written("key");
    for (int i = 0; i < 2; i++) {
        loop = loops[i];
        submit(&asks[i], STORE_DELETE, "key");
    }
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&asks[0]), STORE_OK);
    ck_assert_int_eq(finish(&asks[1]), STORE_MISS);
    stop();
}
END_TEST

START_TEST(a_delete_that_fails_brings_nothing_older_back)
{
    struct ask ask = {0};
    start();
    overwrite_what_was_written("key");
    set(&slow->failing, true);
    submit(&ask, STORE_DELETE, "key");
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&ask), STORE_FAILED);
    expect("key", "new");
    set(&slow->failing, false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("key", "new");
    stop();
}
END_TEST

START_TEST(what_was_overwritten_stays_away_when_the_new_one_ends)
{
    struct ask ask = {0};
    start();
    ck_assert_int_eq(put("key", "old", true), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    submit_put_until(&ask, "key", "new", true, clock_now() - 1);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    ck_assert_int_eq(run(STORE_GET, "key"), STORE_MISS);
    ck_assert_int_eq(run(STORE_HEAD, "key"), STORE_MISS);
    submit_put(&ask, "key", large('x'), false);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect("key", large('x'));
    expect_behind("key", large('x'));
    stop();
}
END_TEST

/* A read that sees what is still to be acknowledged, while memory answers others. */
static void read_beside_a_change(enum store_op op, enum store_op change)
{
    struct ask read = {0}, ask = {0};
    start();
    store_behind("key", "old");
    set(&slow->reads_delayed, true);
    submit(&read, op, "key");
    ck_assert_int_eq(put("key", "new", true), STORE_OK);
    unsigned writes = slow->writes;
    loop = loops[1]; /* which hears of nothing until the read has ended */
    if (change == STORE_PUT)
        submit_put(&ask, "key", large('x'), true);
    else
        submit(&ask, STORE_DELETE, "key");
    for (int64_t end = clock_now() + WAIT_MS; slow->writes == writes && clock_now() < end;)
        sched_yield();
    ck_assert_uint_eq(slow->writes, writes + 1);
    set(&slow->reads_delayed, false);
    for (int64_t end = clock_now() + WAIT_MS; !read.finished && clock_now() < end;)
        loop_step(loops[0], 5);
    ck_assert(read.finished);
    ck_assert_int_eq(read.call.status, STORE_OK);
    ck_assert_uint_eq(op == STORE_GET ? read.call.value->length : read.call.length, 3);
    value_unref(read.call.value);
    ck_assert_int_eq(finish(&ask), STORE_OK);
    stop();
}

START_TEST(a_get_does_not_run_ahead_of_a_put)
{
    read_beside_a_change(STORE_GET, STORE_PUT);
}
END_TEST

START_TEST(a_head_does_not_run_ahead_of_a_put)
{
    read_beside_a_change(STORE_HEAD, STORE_PUT);
}
END_TEST

START_TEST(a_get_does_not_run_ahead_of_a_delete)
{
    read_beside_a_change(STORE_GET, STORE_DELETE);
}
END_TEST

START_TEST(persist_waits_for_what_was_before_it_whatever_ends_meanwhile)
{
    struct ask persist = {0};
    start();
    set(&slow->writes_held, true);
    set(&slow->failing, true);
    ck_assert_int_eq(put("key", "value", false), STORE_OK);
    begun(1);
    submit(&persist, STORE_PERSIST, "");
    step(); /* it stands in line from here on */
    ck_assert_int_eq(put("brief", "value", false), STORE_OK);
    ck_assert_int_eq(run(STORE_DELETE, "brief"), STORE_OK);
    for (int i = 0; i < 30; i++) /* until there was nothing of it to write */
        step();
    set(&slow->writes_held, false);
    ck_assert_int_eq(finish(&persist), STORE_FAILED);
    set(&slow->failing, false);
    ck_assert_int_eq(run(STORE_PERSIST, ""), STORE_OK);
    expect_behind("key", "value");
    stop();
}
END_TEST

/* Two threads, each with a loop of its own, that do the same at once, round for round. */
enum { ROUNDS = 500 };

static atomic_uint arrived; /* steps that a thread has ended, of both */

/* Runs the thread's loop until the other one has come as far. */
static void meet(struct loop *mine, unsigned *steps)
{
    atomic_fetch_add(&arrived, 1);
    ++*steps;
    for (int64_t end = clock_now() + WAIT_MS; arrived < *steps * LOOPS && clock_now() < end;)
        loop_step(mine, 0);
    ck_assert_uint_ge(arrived, *steps * LOOPS);
}

static enum store_status finish_on(struct loop *mine, struct ask *ask)
{
    int64_t end = clock_now() + WAIT_MS;
    while (!ask->finished && clock_now() < end)
        loop_step(mine, 1);
    ck_assert(ask->finished);
    return ask->call.status;
}

static void submit_on(struct loop *mine, struct ask *ask, enum store_op op)
{
    ask->finished = false;
    ask->call.op = op;
    ask->call.key = (const uint8_t *)"key";
    ask->call.key_length = op == STORE_PERSIST ? 0 : 3;
    ask->call.loop = mine;
    ask->call.done = finished;
    if (store_submit(tier, &ask->call) != STORE_PENDING)
        ask->finished = true;
}

static void overwrite_on(struct loop *mine, struct ask *ask, unsigned length, unsigned number)
{
    struct value *value = value_new((const uint8_t *)"key", 3, length);
    memset(value_bytes(value), 0, length);
    memcpy(value_bytes(value), &number, sizeof(number));
    ask->call.value = value;
    ask->call.overwrite = true;
    submit_on(mine, ask, STORE_PUT);
    ck_assert_int_eq(finish_on(mine, ask), STORE_OK);
}

/* The number in the value that is there. */
static unsigned number_on(struct loop *mine)
{
    struct ask ask = {0};
    unsigned number;
    submit_on(mine, &ask, STORE_GET);
    ck_assert_int_eq(finish_on(mine, &ask), STORE_OK);
    memcpy(&number, value_bytes(ask.call.value), sizeof(number));
    value_unref(ask.call.value);
    return number;
}

static void persist_on(struct loop *mine)
{
    struct ask ask = {0};
    submit_on(mine, &ask, STORE_PERSIST);
    ck_assert_int_eq(finish_on(mine, &ask), STORE_OK);
}

static unsigned number_behind(void)
{
    struct store_call call = {.key = (const uint8_t *)"key", .key_length = 3};
    unsigned number;
    pthread_mutex_lock(&slow->lock);
    memcpy(&number, value_bytes(*slow_find(&call)), sizeof(number));
    pthread_mutex_unlock(&slow->lock);
    return number;
}

static void in_two_threads(void *(*work)(void *))
{
    pthread_t other;
    unsigned indices[LOOPS] = {0, 1};
    start();
    atomic_store(&arrived, 0);
    ck_assert_int_eq(pthread_create(&other, NULL, work, &indices[1]), 0);
    work(&indices[0]);
    pthread_join(other, NULL);
    stop();
}

/* In turn both values may wait, one is too large to, and both are. */
static void *overwrites(void *arg)
{
    unsigned index = *(unsigned *)arg, steps = 0;
    struct loop *mine = loops[index];
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct ask ask = {0};
        unsigned least = round * LOOPS;
        unsigned length = index < round % 3 ? MEMORY / 3 : 100;
        meet(mine, &steps);
        overwrite_on(mine, &ask, length, least + index);
        ck_assert_uint_ge(number_on(mine), least);
        overwrite_on(mine, &ask, 100, least + index);
        ck_assert_uint_ge(number_on(mine), least);
        meet(mine, &steps);
        unsigned number = number_on(mine);
        persist_on(mine);
        ck_assert_uint_eq(number_on(mine), number);
        ck_assert_uint_eq(number_behind(), number);
    }
    return NULL;
}

START_TEST(of_two_overwrites_at_once_the_same_one_stays_everywhere)
{
    in_two_threads(overwrites);
}
END_TEST

static atomic_uint deleted;

static void *deletes(void *arg)
{
    unsigned index = *(unsigned *)arg, steps = 0;
    struct loop *mine = loops[index];
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct ask ask = {0};
        if (index == 0) {
            atomic_store(&deleted, 0);
            overwrite_on(mine, &ask, 100, round);
            if (round % 2 == 0)
                persist_on(mine);
        }
        meet(mine, &steps);
        submit_on(mine, &ask, STORE_DELETE);
        deleted += finish_on(mine, &ask) == STORE_OK;
        meet(mine, &steps);
        ck_assert_uint_eq(deleted, 1);
        submit_on(mine, &ask, STORE_GET);
        ck_assert_int_eq(finish_on(mine, &ask), STORE_MISS);
        meet(mine, &steps);
    }
    return NULL;
}

START_TEST(of_two_deletes_at_once_one_deletes)
{
    in_two_threads(deletes);
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
        a_large_value_does_not_overtake_one_that_waits,
        a_large_value_does_not_overtake_one_that_is_being_written,
        changes_that_wait_are_made_in_their_order,
        a_large_value_that_can_not_be_written_leaves_the_one_that_waits,
        an_overwrite_beside_a_clear_of_others_stays,
        a_get_beside_a_delete_finds_nothing_older,
        of_two_deletes_one_deletes,
        a_delete_that_fails_brings_nothing_older_back,
        what_was_overwritten_stays_away_when_the_new_one_ends,
        a_get_does_not_run_ahead_of_a_put,
        a_head_does_not_run_ahead_of_a_put,
        a_get_does_not_run_ahead_of_a_delete,
        persist_waits_for_what_was_before_it_whatever_ends_meanwhile,
        of_two_overwrites_at_once_the_same_one_stays_everywhere,
        of_two_deletes_at_once_one_deletes,
    };
    Suite *suite = suite_create("tier");
    TCase *tcase = suite_case(suite, "tier", 60);
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        tcase_add_test(tcase, tests[i]);
    clock_start();
    return suite_run(suite);
}
