/*
 * The checker of histories: it lets every history pass that a register can have, and stops at each
 * kind of one that it can't.
 *
 * Histories are written as steps of "who begin-end what", in any unit of time.
 */
#include "../history/linear.h"
#include "suite.h"

#include <stdio.h>
#include <string.h>

enum { STEPS_MAX = 4000 };

static struct step steps[STEPS_MAX];
static struct history history;
static struct verdict verdict;

static void reset(void)
{
    memset(steps, 0, sizeof(steps));
    history = (struct history){.steps = steps};
}

static void add(uint32_t client, uint64_t begin, uint64_t end, enum effect effect, uint32_t write)
{
    ck_assert_uint_lt(history.count, STEPS_MAX);
    steps[history.count++] = (struct step){begin, end, write, client, effect, false};
}

/* A step that may have happened or not. */
static void maybe(uint32_t client, uint64_t begin, uint64_t end, enum effect effect, uint32_t write)
{
    add(client, begin, end, effect, write);
    steps[history.count - 1].maybe = true;
}

static void passes(void)
{
    linear_check(&history, &verdict);
    ck_assert(!verdict.gave_up);
    ck_assert_uint_eq(verdict.violation_count, 0);
}

/* Stops once, at that step. */
static void stops_at(size_t step)
{
    linear_check(&history, &verdict);
    ck_assert(!verdict.gave_up);
    ck_assert_uint_eq(verdict.violation_count, 1);
    ck_assert_uint_eq(verdict.violations[0].step, step);
}

START_TEST(one_after_the_other)
{
    add(1, 1, 2, SEES, 0);
    add(1, 3, 4, STORES_IF_ABSENT, 1);
    add(2, 5, 6, SEES, 1);
    add(2, 7, 8, SEES_ANY, 0);
    add(1, 9, 10, STORES, 2);
    add(2, 11, 12, SEES, 2);
    add(2, 13, 14, REMOVES, 0);
    add(1, 15, 16, SEES, 0);
    add(1, 17, 18, CLEARS, 0);
    add(1, 19, 20, STORES_IF_ABSENT, 3);
    add(1, 21, 22, CLEARS, 0);
    add(1, 23, 24, SEES, 0);
    passes();
}
END_TEST

START_TEST(a_value_that_nobody_put)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, SEES, 7);
    stops_at(1);
    ck_assert_uint_eq(verdict.violations[0].possible_count, 1);
    ck_assert_uint_eq(verdict.violations[0].possible[0], 1);
}
END_TEST

START_TEST(an_older_value)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, STORES, 2);
    add(2, 5, 6, SEES, 1);
    stops_at(2);
}
END_TEST

START_TEST(a_value_that_is_lost)
{
    add(1, 1, 2, STORES_IF_ABSENT, 1);
    add(2, 3, 4, SEES, 0);
    stops_at(1);
}
END_TEST

START_TEST(what_was_deleted_is_seen)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, REMOVES, 0);
    add(2, 5, 6, SEES, 1);
    stops_at(2);
}
END_TEST

START_TEST(two_put_if_absent_both_store)
{
    add(1, 1, 4, STORES_IF_ABSENT, 1);
    add(2, 2, 5, STORES_IF_ABSENT, 2);
    stops_at(1);
}
END_TEST

START_TEST(two_deletes_both_delete)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 6, REMOVES, 0);
    add(2, 4, 7, REMOVES, 0);
    stops_at(2);
}
END_TEST

START_TEST(there_although_it_is_not)
{
    add(1, 1, 2, SEES_ANY, 0);
    stops_at(0);
}
END_TEST

START_TEST(concurrent_steps_may_go_either_way)
{
    add(1, 1, 10, STORES, 1);
    add(2, 2, 11, STORES, 2);
    add(3, 3, 4, SEES, 0);
    add(3, 5, 6, SEES, 2);
    add(3, 12, 13, SEES, 1);
    passes();
}
END_TEST

START_TEST(but_not_both_ways)
{
    add(1, 1, 10, STORES, 1);
    add(2, 2, 11, STORES, 2);
    add(3, 3, 4, SEES, 2);
    add(3, 5, 6, SEES, 1);
    add(4, 12, 13, SEES, 2);
    stops_at(4);
}
END_TEST

/* One client's reads go forward, also while the overwrite is under way. */
START_TEST(reads_go_backward)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 20, STORES, 2);
    add(2, 4, 5, SEES, 2);
    add(3, 6, 7, SEES, 1);
    stops_at(3);
}
END_TEST

/* DELETE is under way and has not happened yet for the GET; but the value is an overwritten one. */
START_TEST(an_overwritten_value_during_a_delete)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, STORES, 2);
    add(2, 5, 20, REMOVES, 0);
    add(3, 6, 7, SEES, 1);
    stops_at(3);
}
END_TEST

START_TEST(pipelined_steps_keep_their_order)
{
    add(1, 1, 10, STORES, 1);
    add(1, 1, 10, STORES, 2);
    add(2, 11, 12, SEES, 2);
    passes();
    add(1, 13, 20, STORES, 3);
    add(1, 13, 20, SEES, 2);
    stops_at(4);
}
END_TEST

START_TEST(without_an_answer_it_may_happen_or_not)
{
    add(1, 1, 2, STORES, 1);
    maybe(2, 3, 6, STORES, 2);
    maybe(3, 3, 6, REMOVES, 0);
    add(1, 4, 5, SEES, 1);
    add(1, 7, 8, SEES, 2);
    passes();
    steps[4].write = 1;
    passes();
    steps[4].write = 0;
    passes();
}
END_TEST

START_TEST(without_an_answer_it_does_not_happen_later)
{
    add(1, 1, 2, STORES, 1);
    maybe(2, 3, 4, STORES, 2);
    add(1, 5, 6, SEES, 1);
    add(1, 7, 8, SEES, 2);
    stops_at(3);
}
END_TEST

START_TEST(evicted_within_a_span)
{
    static const struct span span = {5, 6};
    history.vanish = &span;
    history.vanish_count = 1;
    add(1, 1, 2, STORES, 1);
    add(1, 7, 8, SEES, 0);
    passes();
    /* It does not come back. */
    add(1, 9, 10, SEES, 1);
    stops_at(2);
}
END_TEST

START_TEST(evicted_outside_of_the_span)
{
    static const struct span span = {5, 6};
    history.vanish = &span;
    history.vanish_count = 1;
    add(1, 7, 8, STORES, 1);
    add(1, 9, 10, SEES, 0);
    stops_at(1);
}
END_TEST

START_TEST(expired)
{
    static const struct expiring end = {.write = 1, .earliest = 10, .latest = 20};
    history.expiring = &end;
    history.expiring_count = 1;
    add(1, 1, 2, STORES, 1);
    add(1, 11, 12, SEES, 1);
    add(1, 13, 14, SEES, 0);
    passes();
    steps[2] = (struct step){21, 22, 1, 1, SEES, false};
    stops_at(2);
    steps[2] = (struct step){8, 9, 0, 1, SEES, false};
    stops_at(2);
}
END_TEST

static const uint64_t crash_at[] = {100}, persist_at[] = {50};

static void crash_and_persist(void)
{
    history.crashes = crash_at;
    history.crash_count = 1;
    history.persists = persist_at;
    history.persist_count = 1;
}

START_TEST(a_crash_brings_back_a_state_since_the_persist)
{
    crash_and_persist();
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, STORES, 2);
    add(1, 60, 61, STORES, 3);
    add(1, 62, 63, REMOVES, 0);
    add(1, 64, 65, STORES, 4);
    maybe(2, 90, 100, STORES, 5);
    add(1, 101, 102, SEES, 0);
    static const uint32_t possible[] = {2, 3, 0, 4, 5};
    for (size_t i = 0; i < sizeof(possible) / sizeof(possible[0]); i++) {
        steps[6].write = possible[i];
        passes();
    }
    steps[6].write = 1; /* overwritten before the persist */
    stops_at(6);
    add(1, 103, 104, SEES, 4);
    steps[6].write = 3;
    stops_at(7);
}
END_TEST

START_TEST(a_crash_loses_what_was_persisted)
{
    crash_and_persist();
    add(1, 1, 2, STORES, 1);
    add(1, 101, 102, SEES, 0);
    stops_at(1);
}
END_TEST

START_TEST(a_crash_brings_back_what_was_deleted)
{
    crash_and_persist();
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, CLEARS, 0);
    add(1, 101, 102, SEES, 1);
    stops_at(2);
}
END_TEST

/* An answer that came after the persist began may not be covered by it. */
START_TEST(a_persist_covers_what_was_answered_before_it)
{
    crash_and_persist();
    add(1, 1, 51, STORES, 1);
    add(1, 101, 102, SEES, 0);
    passes();
    steps[0].end = 49;
    stops_at(1);
}
END_TEST

START_TEST(the_last_persist_counts)
{
    static const uint64_t persists[] = {10, 50};
    crash_and_persist();
    history.persists = persists;
    history.persist_count = 2;
    add(1, 1, 2, STORES, 1);
    add(1, 20, 21, STORES, 2);
    add(1, 101, 102, SEES, 1);
    stops_at(2);
}
END_TEST

START_TEST(without_a_persist_all_may_be_lost)
{
    history.crashes = crash_at;
    history.crash_count = 1;
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, STORES, 2);
    add(1, 101, 102, SEES, 0);
    passes();
    steps[2].write = 1;
    passes();
    steps[2].write = 3;
    stops_at(2);
}
END_TEST

START_TEST(after_a_second_crash)
{
    static const uint64_t crashes[] = {100, 200};
    crash_and_persist();
    history.crashes = crashes;
    history.crash_count = 2;
    add(1, 1, 2, STORES, 1);
    add(1, 110, 111, SEES, 1);
    add(1, 210, 211, SEES, 1);
    passes();
    steps[2].write = 0;
    stops_at(2);
}
END_TEST

START_TEST(it_goes_on_after_a_violation)
{
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, SEES, 9);
    add(1, 5, 6, SEES, 9);
    add(1, 7, 8, STORES, 2);
    add(1, 9, 10, SEES, 9);
    linear_check(&history, &verdict);
    ck_assert_uint_eq(verdict.violation_count, 2);
    ck_assert_uint_eq(verdict.violations[1].step, 4);
}
END_TEST

/* Which of the two was right can't be known, and so not what a crash may bring back. */
START_TEST(a_violation_is_not_counted_again_at_the_next_crash)
{
    crash_and_persist();
    add(1, 1, 2, STORES, 1);
    add(1, 3, 4, STORES, 2);
    add(1, 5, 6, SEES, 1);
    add(1, 101, 102, SEES, 2);
    stops_at(2);
}
END_TEST

START_TEST(too_many_open_steps_are_given_up)
{
    for (uint32_t i = 0; i < 65; i++)
        add(i, 1, 1000, STORES, i + 1);
    linear_check(&history, &verdict);
    ck_assert(verdict.gave_up);
}
END_TEST

START_TEST(too_many_states_are_given_up)
{
    for (uint32_t i = 0; i < 40; i++)
        add(i, 1, 1000 + i, STORES, i + 1);
    add(50, 2, 3, SEES, 40);
    linear_check(&history, &verdict);
    ck_assert(verdict.gave_up);
}
END_TEST

/* Takes a register's steps at random instants within random intervals. */
static void make_random(unsigned seed)
{
    uint32_t state = 0, write = 0;
    uint64_t free_at[8] = {0};
    srandom(seed);
    for (uint64_t instant = 100; history.count < STEPS_MAX; instant += 2) {
        uint32_t client = (uint32_t)random() % 8;
        uint64_t begin = instant - (uint64_t)random() % 40, end = instant + (uint64_t)random() % 40;
        if (begin <= free_at[client])
            begin = free_at[client] + 1;
        if (begin > instant)
            continue;
        free_at[client] = end;
        switch (random() % 4) {
        case 0:
            write++;
            add(client, begin, end, state == 0 ? STORES_IF_ABSENT : SEES_ANY,
                state == 0 ? write : 0);
            state = state == 0 ? write : state;
            break;
        case 1:
            state = ++write;
            add(client, begin, end, STORES, write);
            break;
        case 2:
            add(client, begin, end, state == 0 ? SEES : REMOVES, 0);
            state = 0;
            break;
        default:
            add(client, begin, end, SEES, state);
        }
    }
}

START_TEST(every_history_of_a_register_passes)
{
    make_random((unsigned)_i);
    passes();
}
END_TEST

/* One read among thousands sees what was overwritten long before. */
START_TEST(one_wrong_read_among_thousands)
{
    make_random((unsigned)_i);
    size_t at = STEPS_MAX / 2;
    while (steps[at].effect != SEES || steps[at].write == 0)
        at++;
    steps[at].write -= 100;
    stops_at(at);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("linear");
    TCase *tcase = suite_case(suite, "histories", 60);
    tcase_add_checked_fixture(tcase, reset, NULL);
    tcase_add_test(tcase, one_after_the_other);
    tcase_add_test(tcase, a_value_that_nobody_put);
    tcase_add_test(tcase, an_older_value);
    tcase_add_test(tcase, a_value_that_is_lost);
    tcase_add_test(tcase, what_was_deleted_is_seen);
    tcase_add_test(tcase, two_put_if_absent_both_store);
    tcase_add_test(tcase, two_deletes_both_delete);
    tcase_add_test(tcase, there_although_it_is_not);
    tcase_add_test(tcase, concurrent_steps_may_go_either_way);
    tcase_add_test(tcase, but_not_both_ways);
    tcase_add_test(tcase, reads_go_backward);
    tcase_add_test(tcase, an_overwritten_value_during_a_delete);
    tcase_add_test(tcase, pipelined_steps_keep_their_order);
    tcase_add_test(tcase, without_an_answer_it_may_happen_or_not);
    tcase_add_test(tcase, without_an_answer_it_does_not_happen_later);
    tcase_add_test(tcase, evicted_within_a_span);
    tcase_add_test(tcase, evicted_outside_of_the_span);
    tcase_add_test(tcase, expired);
    tcase_add_test(tcase, a_crash_brings_back_a_state_since_the_persist);
    tcase_add_test(tcase, a_crash_loses_what_was_persisted);
    tcase_add_test(tcase, a_crash_brings_back_what_was_deleted);
    tcase_add_test(tcase, a_persist_covers_what_was_answered_before_it);
    tcase_add_test(tcase, the_last_persist_counts);
    tcase_add_test(tcase, without_a_persist_all_may_be_lost);
    tcase_add_test(tcase, after_a_second_crash);
    tcase_add_test(tcase, it_goes_on_after_a_violation);
    tcase_add_test(tcase, a_violation_is_not_counted_again_at_the_next_crash);
    tcase_add_test(tcase, too_many_open_steps_are_given_up);
    tcase_add_test(tcase, too_many_states_are_given_up);
    tcase_add_loop_test(tcase, every_history_of_a_register_passes, 0, 20);
    tcase_add_loop_test(tcase, one_wrong_read_among_thousands, 0, 20);
    return suite_run(suite);
}
