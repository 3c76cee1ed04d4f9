#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/sealed.h"
#include "../../daemon/value.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
    ck_assert_uint_eq(value_cost(value), sizeof(*value) + 1 + 1); /* key, LF */
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
    uint64_t worst[THREADS] = {0}, sum = 0, cost = sizeof(struct value) + 1003 + 1;
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

enum { MIB = 1 << 20, SHARED_MOST = 256 };

static uint8_t *numbers(size_t length)
{
    uint32_t *words = malloc(length + sizeof(*words));
    ck_assert_ptr_nonnull(words);
    for (size_t i = 0; i <= length / sizeof(*words); i++)
        words[i] = (uint32_t)i * 2654435761u;
    return (uint8_t *)words;
}

/* Lengths around those from which the file, or the last part of it, is in large pages. */
static const uint32_t sealed_lengths[] = {0,       1,           4097,     MIB - 1,
                                          MIB,     MIB + 1,     2 * MIB,  3 * MIB - 1,
                                          3 * MIB, 5 * MIB + 9, 16 * MIB, 16 * MIB + 100};
enum { SEALED_LENGTHS = sizeof(sealed_lengths) / sizeof(sealed_lengths[0]) };

START_TEST(a_sealed_file_has_the_bytes)
{
    uint32_t length = sealed_lengths[_i];
    uint8_t *bytes = numbers(length), *found = malloc(length + 1);
    struct stat file;
    int fd = sealed_file(bytes, length);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fstat(fd, &file), 0);
    ck_assert_int_eq(file.st_size, length);
    ck_assert_int_eq(pread(fd, found, length + 1, 0), length);
    ck_assert_mem_eq(found, bytes, length);
    ck_assert_uint_le((uint64_t)file.st_blocks * 512, sealed_cost(length));
    ck_assert_uint_le(sealed_cost(length), length < MIB ? length + 4095 : 2 * (uint64_t)length);
    close(fd);
    free(found);
    free(bytes);
}
END_TEST

START_TEST(a_sealed_file_can_not_be_changed)
{
    int fd = sealed_file((const uint8_t *)"value", 5);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
    ck_assert_int_lt(pwrite(fd, "x", 1, 0), 0);
    ck_assert_int_lt(ftruncate(fd, 4), 0);
    ck_assert_int_lt(ftruncate(fd, 6), 0);
    ck_assert_int_lt(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
    ck_assert_ptr_eq(mmap(NULL, 5, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    close(fd);
}
END_TEST

static struct value *new_shared(uint32_t length)
{
    struct value *value = value_new((const uint8_t *)"key", 3, length);
    ck_assert_ptr_nonnull(value);
    memset(value_bytes(value), 'v', length);
    return value;
}

/* As GETs do it, the last of which makes the descriptor. */
static bool share(struct value *value)
{
    for (int i = 0; i < 4; i++) {
        if (value_worth_sharing(value, true))
            return value_share(value);
    }
    return false;
}

START_TEST(a_value_is_shared_once)
{
    char bytes[8] = "";
    struct value *value = new_value("key", "bytes");
    ck_assert_int_eq(value_shared(value), -1);
    ck_assert(share(value));
    int fd = value_shared(value);
    ck_assert_int_eq(pread(fd, bytes, 7, 0), 6);
    ck_assert_str_eq(bytes, "bytes\n");
    ck_assert(!share(value));
    ck_assert_int_eq(value_shared(value), fd);
    value_unref(value);
    ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
}
END_TEST

/* Each takes a large page, of which it fills a half and a bit. */
START_TEST(all_shared_values_together_are_bounded)
{
    static struct value *values[SHARED_MOST];
    int count = 0;
    do {
        values[count] = new_shared(MIB + MIB / 4);
    } while (share(values[count]) && ++count < SHARED_MOST);
    ck_assert_int_eq(count, SHARED_MOST / 2);
    ck_assert_int_eq(value_shared(values[count]), -1);
    value_unref(values[0]);
    ck_assert(share(values[count]));
    for (int i = 1; i <= count; i++)
        value_unref(values[i]);
    ck_assert_uint_eq(value_total(), 0);
}
END_TEST

/* The loop's index is what asks: a socket or who takes the descriptor. */
START_TEST(it_is_worth_sharing_by_length_and_use)
{
    struct value *small = new_shared(2 * MIB - 1), *large = new_shared(2 * MIB);
    for (int i = 0; i < 3; i++)
        ck_assert(!value_worth_sharing(small, _i));
    ck_assert_int_eq(value_shared(small), -1);
    ck_assert(value_worth_sharing(small, _i));
    ck_assert(!value_worth_sharing(small, _i));
    ck_assert(value_share(small));
    ck_assert_int_ge(value_shared(small), 0);
    ck_assert(!value_worth_sharing(small, _i));
    if (_i == 0)
        ck_assert(!value_worth_sharing(large, _i));
    ck_assert(value_worth_sharing(large, _i));
    value_share_not(large);
    ck_assert_int_eq(value_shared(large), -1);
    ck_assert(share(large));
    value_unref(small);
    value_unref(large);
}
END_TEST

START_TEST(one_is_shared_at_a_time)
{
    struct value *one = new_shared(2 * MIB), *other = new_shared(2 * MIB);
    ck_assert(value_worth_sharing(one, true));
    ck_assert(!value_worth_sharing(other, true));
    ck_assert(value_share(one));
    ck_assert(value_worth_sharing(other, true));
    value_share_not(other);
    ck_assert(share(other));
    value_unref(one);
    value_unref(other);
}
END_TEST

START_TEST(an_lf_stands_behind_the_bytes)
{
    struct value *value = new_shared(100);
    ck_assert_int_eq(value_bytes(value)[100], '\n');
    value_unref(value);
}
END_TEST

START_TEST(one_too_large_to_share_keeps_no_other_from_it)
{
    struct value *large = new_shared(300 * MIB), *small = new_shared(100);
    ck_assert(!share(large));
    ck_assert(share(small));
    value_unref(large);
    value_unref(small);
}
END_TEST

START_TEST(the_number_of_descriptors_can_be_bounded)
{
    struct value *values[3] = {new_shared(10), new_shared(10), new_shared(10)};
    value_set_shared_limit(2);
    ck_assert(share(values[0]) && share(values[1]));
    ck_assert(!share(values[2]));
    value_unref(values[0]);
    ck_assert(share(values[2]));
    value_unref(values[1]);
    value_unref(values[2]);
}
END_TEST

/* With its LF a value of a whole number of pages takes one more. */
START_TEST(what_is_counted_is_what_the_descriptor_takes)
{
    static const uint32_t lengths[] = {65536, MIB - 1, 3 * MIB - 1, 2 * MIB, 100};
    for (int i = 0; i < 5; i++) {
        struct stat file;
        struct value *value = new_shared(lengths[i]);
        ck_assert(share(value));
        ck_assert_int_eq(fstat(value_shared(value), &file), 0);
        ck_assert_int_eq(file.st_size, (off_t)lengths[i] + 1);
        ck_assert_uint_le((uint64_t)file.st_blocks * 512, sealed_cost(lengths[i] + 1));
        value_unref(value);
    }
}
END_TEST

static void *share_it(void *arg)
{
    return share(arg) ? arg : NULL;
}

START_TEST(threads_share_a_value_s_descriptor)
{
    pthread_t threads[THREADS];
    struct value *value = new_shared(2 * MIB);
    int made = 0;
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, share_it, value), 0);
    for (int i = 0; i < THREADS; i++) {
        void *shared;
        pthread_join(threads[i], &shared);
        made += shared != NULL;
    }
    ck_assert_int_eq(made, 1);
    ck_assert_int_ge(fcntl(value_shared(value), F_GETFD), 0);
    value_unref(value);
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
    tcase_add_loop_test(tcase, a_sealed_file_has_the_bytes, 0, SEALED_LENGTHS);
    tcase_add_test(tcase, a_sealed_file_can_not_be_changed);
    tcase_add_test(tcase, a_value_is_shared_once);
    tcase_add_test(tcase, one_is_shared_at_a_time);
    tcase_add_loop_test(tcase, it_is_worth_sharing_by_length_and_use, 0, 2);
    tcase_add_test(tcase, one_too_large_to_share_keeps_no_other_from_it);
    tcase_add_test(tcase, the_number_of_descriptors_can_be_bounded);
    tcase_add_test(tcase, what_is_counted_is_what_the_descriptor_takes);
    tcase_add_test(tcase, an_lf_stands_behind_the_bytes);
    tcase_add_test(tcase, all_shared_values_together_are_bounded);
    tcase_add_test(tcase, threads_share_a_value_s_descriptor);
    return suite_run(suite);
}
