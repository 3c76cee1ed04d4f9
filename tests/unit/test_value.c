#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/value.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { THREADS = 8, ROUNDS = 20000 };

static struct value *new_value(const char *key, const char *bytes)
{
    struct value *value = value_new((const uint8_t *)key, strlen(key), (uint32_t)strlen(bytes));
    ck_assert_ptr_nonnull(value);
    memcpy(value_bytes(value), bytes, strlen(bytes));
    return value;
}

START_TEST(a_new_value_has_its_key_and_no_end)
{
    struct value *value = new_value("key", "bytes");
    ck_assert_uint_eq(value->key_length, 3);
    ck_assert_uint_eq(value->length, 5);
    ck_assert_uint_eq(value->flags, 0);
    ck_assert_int_eq(value->expires, CLOCK_NEVER);
    ck_assert_mem_eq(value_key(value), "key", 3);
    ck_assert_mem_eq(value_bytes(value), "bytes", 5);
    value_unref(value);
}
END_TEST

START_TEST(an_empty_value_is_one)
{
    struct value *value = new_value("k", "");
    ck_assert_uint_eq(value->length, 0);
    ck_assert_uint_eq(value_cost(value), sizeof(*value) + 1);
    value_unref(value);
}
END_TEST

START_TEST(all_that_lives_is_counted)
{
    ck_assert_uint_eq(value_total(), 0);
    struct value *one = new_value("one", "1");
    struct value *two = new_value("two", "22");
    ck_assert_uint_eq(value_total(), value_cost(one) + value_cost(two));
    value_unref(one);
    ck_assert_uint_eq(value_total(), value_cost(two));
    value_unref(two);
    ck_assert_uint_eq(value_total(), 0);
}
END_TEST

START_TEST(the_last_reference_frees)
{
    struct value *value = new_value("key", "bytes");
    ck_assert_ptr_eq(value_ref(value), value);
    value_unref(value);
    ck_assert_mem_eq(value_bytes(value), "bytes", 5);
    ck_assert_uint_eq(value_total(), value_cost(value));
    value_unref(value);
    ck_assert_uint_eq(value_total(), 0);
    value_unref(NULL);
}
END_TEST

START_TEST(beyond_the_limit_is_refused)
{
    struct value *first = new_value("key", "0123456789");
    value_set_limit(2 * value_cost(first));
    struct value *second = new_value("key", "0123456789");
    errno = 0;
    ck_assert_ptr_null(value_new((const uint8_t *)"k", 1, 0));
    ck_assert_int_eq(errno, ENOBUFS);
    ck_assert_uint_eq(value_total(), value_cost(first) + value_cost(second));
    value_unref(second);
    second = new_value("kez", "0123456789");
    value_unref(second);
    value_unref(first);
    value_set_limit(UINT64_MAX);
}
END_TEST

/* Sizes that no machine has must be refused by the limit, not asked of malloc. */
START_TEST(the_largest_length_is_refused_by_a_limit)
{
    value_set_limit(1 << 20);
    ck_assert_ptr_null(value_new((const uint8_t *)"k", 1, VALUE_LENGTH_MAX));
    ck_assert_int_eq(errno, ENOBUFS);
    ck_assert_uint_eq(value_total(), 0);
    value_set_limit(UINT64_MAX);
}
END_TEST

static void *ref_and_unref(void *arg)
{
    struct value *value = arg;
    for (int i = 0; i < ROUNDS; i++) {
        struct value *mine = value_ref(value);
        struct value *other = value_new(value_key(value), value->key_length, 10);
        if (other != NULL)
            memcpy(value_bytes(other), value_bytes(mine), 5);
        value_unref(other);
        value_unref(mine);
    }
    value_unref(value);
    return NULL;
}

START_TEST(threads_share_a_value)
{
    pthread_t threads[THREADS];
    struct value *value = new_value("key", "bytes");
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, ref_and_unref, value_ref(value)), 0);
    value_unref(value);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(value_total(), 0);
}
END_TEST

static void *fill_up(void *arg)
{
    uint64_t *worst = arg;
    for (int i = 0; i < ROUNDS; i++) {
        struct value *value = value_new((const uint8_t *)"key", 3, 1000);
        if (value == NULL)
            continue;
        uint64_t total = value_total();
        *worst = total > *worst ? total : *worst;
        value_unref(value);
    }
    return NULL;
}

/* What is counted for a moment and refused may show in the total: a value for each thread at most.
 */
START_TEST(threads_share_the_limit)
{
    pthread_t threads[THREADS];
    uint64_t worst[THREADS] = {0}, sum = 0, cost = sizeof(struct value) + 1003;
    value_set_limit(3 * cost);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, fill_up, &worst[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_uint_le(worst[i], (3 + THREADS) * cost);
        sum += worst[i];
    }
    ck_assert_uint_gt(sum, 0);
    ck_assert_uint_eq(value_total(), 0);
    value_set_limit(UINT64_MAX);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("value");
    TCase *tcase = suite_case(suite, "value", 30);
    tcase_add_test(tcase, a_new_value_has_its_key_and_no_end);
    tcase_add_test(tcase, an_empty_value_is_one);
    tcase_add_test(tcase, all_that_lives_is_counted);
    tcase_add_test(tcase, the_last_reference_frees);
    tcase_add_test(tcase, beyond_the_limit_is_refused);
    tcase_add_test(tcase, the_largest_length_is_refused_by_a_limit);
    tcase_add_test(tcase, threads_share_a_value);
    tcase_add_test(tcase, threads_share_the_limit);
    return suite_run(suite);
}
