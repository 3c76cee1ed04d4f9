/* The arena: segments that are appended to, emptied, read and used again, large entries, and the
 * bound on both. Slots are played by the test: an entry counts until it is forgotten. */
#include "../../daemon/store/engine/arena.h"
#include "../../daemon/store/engine/index.h"
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/container_of.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, MANY = 20000, KEY = 4, SEGMENT = 16 << 10 /* of a bound of 1 MiB */ };

static struct index *table;
static struct arena *arena;
static struct appender *appender;

static void start(uint64_t max)
{
    table = index_new(MIB);
    ck_assert_ptr_nonnull(table);
    arena = arena_new(max, table, false);
    ck_assert_ptr_nonnull(arena);
    appender = arena_lock_appender(arena, 0);
}

static void stop(void)
{
    if (appender != NULL)
        arena_unlock_appender(appender);
    arena_free(arena);
    index_free(table);
    ck_assert_uint_eq(value_total(), 0);
}

/* An entry whose key and bytes are the number's. NULL: no room. */
static struct entry *append_by(struct appender *by, uint32_t number, uint32_t length)
{
    uint32_t size = arena_entry_size(arena, KEY, length, false);
    struct entry *entry = arena_append(arena, by, size);
    if (entry == NULL)
        return NULL;
    *entry = (struct entry){.length = length, .key_length = KEY, .flags = number};
    memcpy(entry->rest, &number, KEY);
    memset(entry->rest + KEY, (int)number, length);
    ck_assert_uint_eq(entry_size(entry), size);
    return entry;
}

static struct entry *append(uint32_t number, uint32_t length)
{
    return append_by(appender, number, length);
}

static void expect(const struct entry *entry, uint32_t number, uint32_t length)
{
    ck_assert_uint_eq(entry->flags, number);
    ck_assert_uint_eq(entry->length, length);
    ck_assert(memcmp(entry_key(entry), &number, KEY) == 0);
    for (uint32_t i = 0; i < length; i++)
        ck_assert_int_eq(entry_bytes(entry)[i], (uint8_t)number);
}

/* Fills the arena with entries of length bytes; returns how many there are. */
static unsigned fill(struct entry **entries, uint32_t length)
{
    unsigned count = 0;
    while (count < MANY && (entries[count] = append(count, length)) != NULL)
        count++;
    ck_assert_uint_lt(count, MANY);
    ck_assert_uint_le(arena_used(arena), arena_max(arena));
    return count;
}

/* Empties the oldest segment, whose entries all still count; returns how many there were. */
static unsigned empty_oldest(void)
{
    uint32_t offset = 0;
    unsigned count = 0;
    struct arena_unit *unit = arena_take_oldest(arena);
    ck_assert_ptr_nonnull(unit);
    ck_assert(!unit->is_large);
    for (struct entry *entry; (entry = arena_next_entry(arena, unit, &offset)) != NULL; count++)
        arena_forget(arena, entry);
    arena_emptied(arena, unit);
    return count;
}

static struct value *new_value(uint32_t length)
{
    struct value *value = value_new((const uint8_t *)"key", 3, length);
    ck_assert_ptr_nonnull(value);
    memset(value_bytes(value), 7, length);
    return value;
}

START_TEST(entries_lie_where_they_were_put)
{
    static struct entry *entries[MANY];
    start(MIB);
    unsigned count = fill(entries, 100);
    ck_assert_uint_ge(count * 120, MIB * 9 / 10);
    for (unsigned i = 0; i < count; i++) {
        expect(entries[i], i, 100);
        ck_assert_ptr_eq(arena_entry(arena, arena_place(arena, entries[i])), entries[i]);
    }
    stop();
}
END_TEST

START_TEST(ends_and_sizes_are_told)
{
    start(MIB);
    int64_t end = 123456789;
    uint32_t size = arena_entry_size(arena, 3, 5, true);
    struct entry *entry = arena_append(arena, appender, size);
    *entry = (struct entry){.length = 5, .key_length = 3, .bits = ENTRY_HAS_END};
    memcpy(entry->rest, &end, 8);
    memcpy(entry->rest + 8, "keybytes", 8);
    ck_assert_int_eq(entry_end(entry), end);
    ck_assert_uint_eq(size, 32);
    ck_assert_uint_eq(entry_size(entry), size);
    ck_assert(memcmp(entry_key(entry), "key", 3) == 0);
    ck_assert(memcmp(entry_bytes(entry), "bytes", 5) == 0);
    ck_assert_int_eq(entry_end(append(1, 0)), CLOCK_NEVER);
    ck_assert_uint_eq(arena_entry_size(arena, 1024, UINT32_MAX - 1, true), UINT32_MAX);
    ck_assert_uint_eq(arena_small_max(arena), SEGMENT / 4);
    stop();
}
END_TEST

START_TEST(what_is_taken_back_leaves_its_room)
{
    start(MIB);
    struct entry *first = append(1, 100), *second = append(2, 100);
    arena_take_back(arena, appender, second);
    struct entry *third = append(3, 50);
    ck_assert_ptr_eq(third, second);
    expect(first, 1, 100);
    expect(third, 3, 50);
    /* Also where it has just opened a segment. */
    for (unsigned i = 0; i < 1000; i++) {
        struct entry *entry = append(i, 3000);
        ck_assert_ptr_nonnull(entry);
        arena_take_back(arena, appender, entry);
    }
    ck_assert_uint_le(arena_used(arena), 5 * SEGMENT);
    stop();
}
END_TEST

START_TEST(a_segment_that_nobody_names_is_used_again)
{
    start(MIB);
    for (unsigned i = 0; i < MANY; i++) {
        struct entry *entry = append(i, 1000);
        ck_assert_ptr_nonnull(entry);
        arena_forget(arena, entry);
    }
    ck_assert_uint_le(arena_used(arena), 5 * SEGMENT);
    ck_assert(arena_line_is_empty(arena));
    stop();
}
END_TEST

START_TEST(the_oldest_is_emptied_first)
{
    static struct entry *entries[MANY];
    start(MIB);
    unsigned count = fill(entries, 1000), gone = 0;
    ck_assert(arena_is_short(arena));
    for (unsigned i = 0; i < 10; i++) {
        struct entry *next = entries[gone];
        uint32_t offset = 0;
        struct arena_unit *unit = arena_take_oldest(arena);
        ck_assert_ptr_eq(arena_next_entry(arena, unit, &offset), next);
        /* It goes to the end of the line if it is not emptied after all. */
        if (i == 5) {
            arena_put_back(arena, unit);
            gone += SEGMENT / 1024;
            continue;
        }
        offset = 0;
        for (struct entry *entry; (entry = arena_next_entry(arena, unit, &offset)) != NULL; gone++)
            arena_forget(arena, entry);
        arena_emptied(arena, unit);
    }
    ck_assert(!arena_is_short(arena));
    for (unsigned i = gone; i < count; i++)
        expect(entries[i], i, 1000);
    unsigned more = 0;
    while (append(more, 1000) != NULL)
        more++;
    ck_assert_uint_ge(more, 8 * (SEGMENT / 1024 - 1));
    stop();
}
END_TEST

/* What is free last is the cleaner's, so that emptying can always copy on. */
START_TEST(the_cleaner_has_a_segment_left)
{
    static struct entry *entries[MANY];
    start(MIB);
    fill(entries, 1000);
    struct appender *cleaner = arena_lock_cleaner(arena);
    unsigned copied = 0;
    while (append_by(cleaner, copied, 1000) != NULL)
        copied++;
    arena_unlock_appender(cleaner);
    ck_assert_uint_ge(copied, SEGMENT / 1024 - 1);
    ck_assert_ptr_null(append(1, 1000));
    stop();
}
END_TEST

START_TEST(a_pinned_segment_is_not_used_again)
{
    static struct entry *entries[MANY];
    start(MIB);
    fill(entries, 1000);
    struct pinned pinned = arena_pin(arena, entries[3]), again = arena_pin(arena, entries[4]);
    uint32_t number;
    memcpy(&number, entry_key(entries[3]), KEY);
    for (unsigned round = 0; round < 1000; round++) {
        empty_oldest();
        while (append(1000 + round, 1000) != NULL)
            ;
        for (unsigned i = 0; i < 1000; i++)
            ck_assert_int_eq(pinned.bytes[i], (uint8_t)number);
        if (round == 400)
            pinned_release(&again);
    }
    /* It is drained by then: once it is released it is there for others. */
    uint64_t used = arena_used(arena);
    pinned_release(&pinned);
    pinned_release(&pinned);
    ck_assert_ptr_nonnull(append(1, 1000));
    ck_assert_uint_eq(arena_used(arena), used);
    stop();
}
END_TEST

START_TEST(large_entries_count_and_stand_in_line)
{
    start(MIB);
    struct value *value = new_value(100000);
    struct large *one = arena_add_large(arena, value_ref(value), 1, true);
    struct large *two = arena_add_large(arena, new_value(200000), 2, true);
    ck_assert(one != NULL && two != NULL);
    ck_assert_ptr_eq(arena_large(arena_large_place(one)), one);
    ck_assert_uint_ge(arena_used(arena), 300000);
    ck_assert_uint_eq(value_total(), 0);
    /* Removed while it is being emptied: it is gone once it is put back. */
    struct arena_unit *unit = arena_take_oldest(arena);
    ck_assert_ptr_eq(container_of(unit, struct large, unit), one);
    arena_remove_large(arena, one);
    ck_assert_uint_ge(arena_used(arena), 300000);
    ck_assert_int_eq(value_bytes(one->value)[5], 7);
    arena_put_back(arena, unit);
    ck_assert_uint_lt(arena_used(arena), 250000);
    /* A reader still has it, and now it is in flight. */
    ck_assert_uint_eq(value_total(), value_cost(value));
    value_unref(value);
    unit = arena_take_oldest(arena);
    ck_assert_ptr_eq(container_of(unit, struct large, unit), two);
    arena_put_back(arena, unit);
    ck_assert(!arena_line_is_empty(arena));
    arena_remove_large(arena, two);
    ck_assert(arena_line_is_empty(arena));
    ck_assert_uint_eq(arena_used(arena), 0);
    stop();
}
END_TEST

START_TEST(large_entries_and_segments_share_the_bound)
{
    static struct entry *entries[MANY];
    start(MIB);
    fill(entries, 1000);
    struct value *value = new_value(500000);
    ck_assert(arena_fits(arena, value));
    ck_assert_ptr_null(arena_add_large(arena, value, 1, true));
    ck_assert_int_eq(errno, ENOBUFS);
    while (!arena_line_is_empty(arena))
        empty_oldest();
    struct large *large = arena_add_large(arena, value, 1, true);
    ck_assert_ptr_nonnull(large);
    ck_assert_uint_le(arena_used(arena), arena_max(arena));
    unsigned count = fill(entries, 1000);
    ck_assert_uint_le(count, 520);
    ck_assert_uint_ge(count, 400);
    arena_remove_large(arena, large);
    ck_assert_ptr_nonnull(append(1, 1000));
    value = new_value(MIB - 3 * SEGMENT);
    ck_assert(!arena_fits(arena, value));
    value_unref(value);
    stop();
}
END_TEST

START_TEST(trimming_gives_all_but_some_back)
{
    static struct entry *entries[MANY];
    start(MIB);
    fill(entries, 1000);
    arena_trim(arena, 0); /* nothing is free */
    ck_assert_uint_ge(arena_used(arena), MIB - 4 * SEGMENT);
    while (!arena_line_is_empty(arena))
        empty_oldest();
    arena_trim(arena, 500000);
    ck_assert_uint_le(arena_used(arena), 500000);
    ck_assert_uint_ge(arena_used(arena), 500000 - SEGMENT);
    arena_trim(arena, 0);
    ck_assert_uint_le(arena_used(arena), 6 * SEGMENT);
    ck_assert_uint_ge(fill(entries, 1000), 900);
    stop();
}
END_TEST

/* From then on each segment that becomes free is given back, until the bound holds. */
START_TEST(a_lower_bound_is_reached)
{
    static struct entry *entries[MANY];
    start(MIB);
    fill(entries, 1000);
    arena_set_max(arena, MIB / 2);
    ck_assert(arena_is_short(arena));
    ck_assert_uint_gt(arena_used(arena), MIB / 2);
    while (arena_used(arena) > MIB / 2)
        empty_oldest();
    ck_assert(!arena_line_is_empty(arena));
    ck_assert_uint_ge(arena_used(arena), MIB / 2 - SEGMENT);
    /* So low that nothing is small any more, and no segment is to be kept. */
    arena_set_max(arena, 10000);
    ck_assert_uint_eq(arena_small_max(arena), 0);
    ck_assert_uint_eq(arena_keep_max(arena), 0);
    arena_unlock_appender(appender);
    appender = NULL;
    arena_seal(arena);
    while (!arena_line_is_empty(arena))
        empty_oldest();
    arena_trim(arena, 10000);
    ck_assert_uint_eq(arena_used(arena), 0);
    struct large *large = arena_add_large(arena, new_value(9000), 1, true);
    ck_assert_ptr_nonnull(large);
    arena_set_max(arena, 2 * MIB);
    ck_assert_uint_eq(arena_small_max(arena), SEGMENT / 4);
    appender = arena_lock_appender(arena, 0);
    ck_assert_uint_ge(fill(entries, 1000), 1900);
    stop();
}
END_TEST

START_TEST(a_small_bound_has_large_entries_alone)
{
    start(100000);
    ck_assert_uint_eq(arena_small_max(arena), 0);
    ck_assert(!arena_is_short(arena));
    struct large *all[1000];
    unsigned count = 0;
    for (;; count++) {
        struct value *value = new_value(900);
        ck_assert(arena_fits(arena, value));
        all[count] = arena_add_large(arena, value, count, true);
        if (all[count] != NULL)
            continue;
        value_unref(value);
        break;
    }
    ck_assert_uint_ge(count, 80);
    ck_assert_uint_le(arena_used(arena), 100000);
    for (unsigned i = 1; i < count; i += 2)
        arena_remove_large(arena, all[i]);
    ck_assert_uint_le(arena_used(arena), 55000);
    struct value *value = new_value(100000 - (uint32_t)sizeof(struct value) - 4);
    ck_assert_uint_eq(value_cost(value), 100000);
    ck_assert(!arena_fits(arena, value));
    value_unref(value);
    stop(); /* which frees the rest */
}
END_TEST

/* By the large page: whole ones first, small segments where less than one is left. */
START_TEST(large_pages_stay_within_the_bound)
{
    static struct entry *entries[MANY];
    start((uint64_t)65 * MIB + 300000);
    unsigned count = 0;
    while (count < MANY && (entries[count] = append(count, 60000)) != NULL)
        count++;
    ck_assert_uint_ge((uint64_t)count * 60000, (uint64_t)55 * MIB);
    ck_assert_uint_le(arena_used(arena), arena_max(arena));
    ck_assert_uint_ge(arena_used(arena), (uint64_t)65 * MIB);
    for (unsigned i = 0; i < count; i++)
        ck_assert_int_eq(entry_bytes(entries[i])[59999], (uint8_t)i);
    while (!arena_line_is_empty(arena))
        empty_oldest();
    arena_trim(arena, 0);
    ck_assert_uint_le(arena_used(arena), 2 * MIB);
    ck_assert_ptr_nonnull(append(1, 60000));
    stop();
}
END_TEST

int main(void)
{
    clock_start();
    Suite *suite = suite_create("arena");
    TCase *tcase = suite_case(suite, "arena", 120);
    tcase_add_test(tcase, entries_lie_where_they_were_put);
    tcase_add_test(tcase, ends_and_sizes_are_told);
    tcase_add_test(tcase, what_is_taken_back_leaves_its_room);
    tcase_add_test(tcase, a_segment_that_nobody_names_is_used_again);
    tcase_add_test(tcase, the_oldest_is_emptied_first);
    tcase_add_test(tcase, the_cleaner_has_a_segment_left);
    tcase_add_test(tcase, a_pinned_segment_is_not_used_again);
    tcase_add_test(tcase, large_entries_count_and_stand_in_line);
    tcase_add_test(tcase, large_entries_and_segments_share_the_bound);
    tcase_add_test(tcase, trimming_gives_all_but_some_back);
    tcase_add_test(tcase, a_lower_bound_is_reached);
    tcase_add_test(tcase, a_small_bound_has_large_entries_alone);
    tcase_add_test(tcase, large_pages_stay_within_the_bound);
    return suite_run(suite);
}
