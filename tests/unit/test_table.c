/* The memory store's table: what was added is found, what was removed is not, whatever collides. */
#include "../../daemon/store/table.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 3000, STEPS = 60000 };

static struct table table;
static struct value *values[KEYS];
static bool is_in[KEYS];

static void start(void)
{
    ck_assert(table_init(&table));
    for (int i = 0; i < KEYS; i++) {
        char key[16];
        int length = snprintf(key, sizeof(key), "key%d", i);
        values[i] = value_new((const uint8_t *)key, (size_t)length, 0);
        ck_assert_ptr_nonnull(values[i]);
        values[i]->flags = (uint32_t)i;
        is_in[i] = false;
    }
}

static void stop(void)
{
    for (int i = 0; i < KEYS; i++)
        value_unref(values[i]);
    table_free(&table);
}

/* Hashes of the worst kind: few different ones, close to each other, 0 among them. */
static uint64_t poor_hash(int i)
{
    return (uint64_t)(i % 7) + ((uint64_t)(i % 3) << 32);
}

static uint64_t good_hash(int i)
{
    return ((uint64_t)i + 1) * 0x9E3779B97F4A7C15;
}

static struct value **find(uint64_t (*hash)(int), int i)
{
    return table_find(&table, hash(i), value_key(values[i]), values[i]->key_length);
}

static void check(uint64_t (*hash)(int), int i)
{
    struct value **slot = find(hash, i);
    if (is_in[i])
        ck_assert_ptr_eq(*slot, values[i]);
    else
        ck_assert_ptr_null(slot);
}

/* What a walk over all meets is what is in, each once. */
static void check_walk(uint32_t expected)
{
    static bool met[KEYS];
    uint32_t count = 0;
    memset(met, 0, sizeof(met));
    for (uint32_t i = 0; i < table_slots(&table); i++) {
        struct value **slot = table_slot(&table, i);
        if (slot == NULL)
            continue;
        uint32_t key = (*slot)->flags;
        ck_assert(is_in[key] && !met[key]);
        met[key] = true;
        count++;
    }
    ck_assert_uint_eq(count, expected);
    ck_assert_uint_eq(table.count, expected);
}

static void change_at_random(uint64_t (*hash)(int), int keys)
{
    uint32_t count = 0;
    srandom(1);
    start();
    for (int step = 0; step < STEPS; step++) {
        int i = (int)(random() % keys);
        check(hash, i);
        if (is_in[i])
            ck_assert_ptr_eq(table_remove(&table, find(hash, i)), values[i]);
        else
            ck_assert(table_add(&table, hash(i), values[i]));
        count += is_in[i] ? -1u : 1u;
        is_in[i] = !is_in[i];
        check(hash, (int)(random() % keys));
    }
    check_walk(count);
    for (int i = 0; i < keys; i++)
        check(hash, i);
    stop();
}

START_TEST(changes_at_random)
{
    change_at_random(good_hash, KEYS);
}
END_TEST

START_TEST(changes_at_random_where_all_collide)
{
    change_at_random(poor_hash, 60);
}
END_TEST

START_TEST(all_that_was_added_stays_as_it_grows)
{
    start();
    for (int i = 0; i < KEYS; i++) {
        ck_assert(table_add(&table, good_hash(i), values[i]));
        is_in[i] = true;
        for (int j = i; j >= 0 && j > i - 20; j--)
            check(good_hash, j);
    }
    for (int i = 0; i < KEYS; i++)
        check(good_hash, i);
    check_walk(KEYS);
    ck_assert_uint_le(table_slots(&table), 4 * KEYS);
    stop();
}
END_TEST

/* Once all are gone nothing points further: a look-up ends in its own bucket. */
START_TEST(what_is_removed_leaves_no_trace)
{
    start();
    for (int i = 0; i < KEYS; i++)
        ck_assert(table_add(&table, good_hash(i), values[i]));
    for (int i = 0; i < KEYS; i++)
        table_remove(&table, find(good_hash, i));
    for (uint32_t b = 0; b <= table.mask; b++)
        ck_assert_uint_eq(table.buckets[b].passed, 0);
    check_walk(0);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("table");
    TCase *tcase = suite_case(suite, "table", 60);
    tcase_add_test(tcase, changes_at_random);
    tcase_add_test(tcase, changes_at_random_where_all_collide);
    tcase_add_test(tcase, all_that_was_added_stays_as_it_grows);
    tcase_add_test(tcase, what_is_removed_leaves_no_trace);
    return suite_run(suite);
}
