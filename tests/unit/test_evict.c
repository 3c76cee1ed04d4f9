/* What is worth keeping: classes and their limits, the order of scores, the bar, and epochs. */
#include "../../daemon/store/engine/evict.h"
#include "suite.h"

#include <stdlib.h>

static struct index *table;
static struct evict *policy;

static void start(void)
{
    table = index_new(1 << 20);
    ck_assert_ptr_nonnull(table);
    policy = evict_new(table);
    ck_assert_ptr_nonnull(policy);
}

static void stop(void)
{
    evict_free(policy);
    index_free(table);
}

static struct slot_word word_of(uint64_t size, uint64_t cost)
{
    return (struct slot_word){
        .place = 1, .kind = SLOT_ARENA, .size = evict_class(size), .cost = evict_class(cost)};
}

static void add(uint64_t hash, struct slot_word word, uint8_t use)
{
    struct index_shard *shard = index_lock(table, hash);
    ck_assert_ptr_nonnull(index_add(table, shard, hash, &word, use));
    index_unlock(shard);
}

static unsigned score(uint64_t size, uint64_t cost, uint8_t use)
{
    struct slot_word word = word_of(size, cost);
    return evict_score(policy, &word, use);
}

static bool keeps(uint64_t size, uint8_t use)
{
    struct slot_word word = word_of(size, EVICT_COST_UNKNOWN);
    return evict_worth_keeping(policy, EVICT_DISK, &word, use);
}

START_TEST(a_class_holds_what_is_below_its_limit)
{
    for (unsigned class = 0; class < 248; class ++) {
        uint64_t limit = evict_class_limit((uint8_t) class);
        ck_assert_uint_eq(evict_class(limit), class + 1);
        ck_assert_uint_eq(evict_class(limit - 1), class);
        ck_assert_uint_gt(evict_class_limit((uint8_t)(class + 1)), limit);
    }
    ck_assert_uint_eq(evict_class(0), 0);
    ck_assert_uint_eq(evict_class(UINT64_MAX), 251);
    ck_assert(evict_class_limit(251) == UINT64_MAX);
    /* No more than a quarter is lost by it. */
    for (uint64_t number = 4; number < 100000; number += 7)
        ck_assert_uint_le(evict_class_limit(evict_class(number)), number + number / 4 + 1);
    for (uint64_t number = 0; number < 100000; number += 1 + number / 50) {
        uint64_t middle = evict_class_middle(evict_class(number));
        ck_assert_uint_le(middle, number + number / 8);
        ck_assert_uint_ge(middle + number / 8, number);
    }
}
END_TEST

static void advance(unsigned epochs)
{
    for (unsigned i = 0; i < epochs; i++) {
        uint8_t before = evict_epoch(policy);
        unsigned inserted = 0;
        while (evict_epoch(policy) == before) {
            evict_inserted(policy, 0);
            ck_assert_uint_le(++inserted, 64);
        }
        ck_assert_uint_eq(evict_epoch(policy), (uint8_t)(before + 1));
    }
}

START_TEST(old_and_large_and_cheap_goes_first)
{
    start();
    advance(100);
    uint8_t now = evict_epoch(policy);
    for (unsigned age = 0; age + 1 < 256; age++)
        ck_assert_uint_le(score(100, 100, (uint8_t)(now - age)),
                          score(100, 100, (uint8_t)(now - age - 1)));
    ck_assert_uint_lt(score(100, 100, now), score(200, 100, now));
    ck_assert_uint_gt(score(100, 100, now), score(100, 1000, now));
    /* Four times the age counts as twice the size, or a quarter of the cost, while no use is known.
     */
    unsigned four_times =
        score(100, 100, (uint8_t)(now - 31)) - score(100, 100, (uint8_t)(now - 7));
    ck_assert_uint_eq(four_times, score(200, 100, now) - score(100, 100, now));
    ck_assert_uint_eq(four_times, score(100, 256, now) - score(100, 1024, now));
    /* All of it stays above zero and below what the bar can say. */
    ck_assert_uint_gt(score(0, UINT64_MAX, now), 0);
    ck_assert_uint_lt(score(UINT64_MAX, 0, (uint8_t)(now + 1)), 1024);
    stop();
}
END_TEST

START_TEST(epochs_follow_insertions_and_wrap)
{
    start();
    unsigned steps = 0;
    for (unsigned i = 0; i < 32 * 1000; i++) {
        uint8_t before = evict_epoch(policy);
        /* What a shard knows of the whole varies. */
        evict_inserted(policy, i % 2 ? 2 * 32 * 1000 - 64 : 64);
        steps += evict_epoch(policy) != before;
    }
    ck_assert_uint_ge(steps, 31);
    ck_assert_uint_le(steps, 33);
    stop();
    start();
    advance(254);
    uint8_t late = evict_epoch(policy);
    ck_assert_uint_eq(late, 254);
    unsigned fresh = score(100, 100, late);
    advance(4);
    ck_assert_uint_eq(evict_epoch(policy), 2);
    ck_assert_uint_eq(score(100, 100, 2), fresh);
    ck_assert_uint_gt(score(100, 100, late), score(100, 100, 1));
    ck_assert_uint_gt(score(100, 100, 3), score(100, 100, late));
    stop();
}
END_TEST

/* count entries are used again at this age. */
static void use_at(unsigned age, unsigned count)
{
    struct slot_word word = word_of(100, EVICT_COST_UNKNOWN);
    for (unsigned i = 0; i < count; i++) {
        struct index_shard *shard = index_lock(table, i);
        struct slot *slot = index_add(table, shard, i, &word, (uint8_t)(evict_epoch(policy) - age));
        evict_used(policy, slot);
        ck_assert_uint_eq(slot_use(slot), evict_epoch(policy));
        index_remove(table, shard, slot);
        index_unlock(shard);
    }
    evict_set_bar(policy, EVICT_DISK);
}

START_TEST(what_is_older_than_all_that_was_used_again_goes)
{
    start();
    advance(100);
    uint8_t now = evict_epoch(policy), live = (uint8_t)(now - 40), dead = (uint8_t)(now - 41);
    /* So far age says little: what is twice as large goes first. */
    ck_assert_uint_gt(score(200, 100, live), score(100, 100, dead));
    use_at(40, 5000);
    now = evict_epoch(policy);
    /* Up to the age at which entries are used again no more than its root; beyond, nearly all. */
    ck_assert_uint_gt(score(1000, 100, now), score(100, 100, live));
    ck_assert_uint_gt(score(100, 100, dead), score(2000, 100, live));
    /* What is forgotten with time counts as little as at first. */
    advance(140);
    for (unsigned i = 0; i < 16; i++) {
        advance(128);
        evict_set_bar(policy, EVICT_DISK);
    }
    now = evict_epoch(policy);
    ck_assert_uint_gt(score(200, 100, (uint8_t)(now - 40)), score(100, 100, (uint8_t)(now - 41)));
    stop();
}
END_TEST

START_TEST(the_bar_lets_the_worst_go)
{
    start();
    /* Nothing is there: nothing is to go. */
    evict_set_bar(policy, EVICT_DISK);
    ck_assert(keeps(1 << 20, 1));
    /* All alike: then age alone can't tell, and room has to come from somewhere. */
    for (uint64_t i = 0; i < 400; i++)
        add(i << 54 | i << 30, word_of(100, EVICT_COST_UNKNOWN), 0);
    evict_set_bar(policy, EVICT_DISK);
    ck_assert(!keeps(100, 0));
    ck_assert(keeps(50, 0));
    /* A third of all is eight times as large: these go, the rest stays. */
    for (uint64_t i = 400; i < 600; i++)
        add(i << 54 | i << 30, word_of(800, EVICT_COST_UNKNOWN), 0);
    for (unsigned i = 0; i < 20; i++) {
        evict_set_bar(policy, EVICT_DISK);
        ck_assert(!keeps(800, 0));
        ck_assert(keeps(100, 0));
    }
    /* Who was used since stays whatever its size; who was not goes. */
    advance(40);
    for (uint64_t i = 600; i < 1000; i++)
        add(i << 54 | i << 30, word_of(100, EVICT_COST_UNKNOWN), evict_epoch(policy));
    evict_set_bar(policy, EVICT_DISK);
    ck_assert(keeps(100, evict_epoch(policy)));
    ck_assert(keeps(800, evict_epoch(policy)));
    ck_assert(!keeps(800, 0));
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("evict");
    TCase *tcase = suite_case(suite, "evict", 60);
    tcase_add_test(tcase, a_class_holds_what_is_below_its_limit);
    tcase_add_test(tcase, old_and_large_and_cheap_goes_first);
    tcase_add_test(tcase, epochs_follow_insertions_and_wrap);
    tcase_add_test(tcase, what_is_older_than_all_that_was_used_again_goes);
    tcase_add_test(tcase, the_bar_lets_the_worst_go);
    return suite_run(suite);
}
