/*
 * The filesystem store with damaged files: whatever is done to an entry or to the index, an answer
 * is right or a miss, and the next PUT works.
 */
#include "filesystem_bench.h"

/* Puts a store's index back, damaged, and opens it: all is there as if nothing had been. */
static void try_index(const struct bytes *index, size_t length)
{
    write_file(path_of("index"), index->data, length);
    open_store();
    ck_assert_uint_eq(get_many(0, 5), 5);
    ck_assert(!get("deleted", nth(5)));
    ck_assert_int_eq(put(nth_key(3), nth(4)), STORE_EXISTS);
    struct store_call call = inspect_exactly();
    ck_assert_uint_eq(call.entries, 5);
    ck_assert_uint_eq(call.size, 5 * strlen("key-0") + 0 + 1 + 100 + 5000 + 8192);
    close_store();
}

static struct bytes five_entries(void)
{
    start();
    put_many(0, 5);
    ck_assert_int_eq(put("deleted", nth(5)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, "deleted"), STORE_OK);
    close_store();
    return read_file(path_of("index"));
}

START_TEST(a_torn_index_is_mended)
{
    struct bytes index = five_entries();
    size_t at = sizeof(uint64_t);
    for (size_t length = 0; length < at; length += 3)
        try_index(&index, length);
    while (at < index.length) {
        struct fs_record record;
        memcpy(&record, index.data + at, sizeof(record));
        try_index(&index, at);
        try_index(&index, at + 1);
        try_index(&index, at + (sizeof(record) + record.key_length) / 2);
        at += sizeof(record) + record.key_length;
        try_index(&index, at - 1);
    }
    ck_assert_uint_eq(at, index.length);
    try_index(&index, index.length);
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_with_a_flipped_byte_is_mended)
{
    struct bytes index = five_entries();
    for (size_t at = 0; at < index.length; at += 2) {
        index.data[at] ^= (uint8_t)(1 << at % 8);
        try_index(&index, index.length);
        index.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_of_garbage_is_mended)
{
    struct bytes index = five_entries(), garbage = {.data = malloc(BIG), .length = BIG};
    fill(garbage.data, BIG, 1);
    try_index(&garbage, 1000);
    memcpy(garbage.data, index.data, sizeof(uint64_t));
    try_index(&garbage, BIG);
    memset(garbage.data + index.length, 0, BIG - index.length);
    memcpy(garbage.data, index.data, index.length);
    try_index(&garbage, BIG);
    free(garbage.data);
    free(index.data);
    remove_folder();
}
END_TEST

START_TEST(an_index_of_another_time_is_not_believed)
{
    struct bytes old = five_entries();
    open_store();
    put_many(5, 20);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(0)), STORE_OK);
    ck_assert_int_eq(put(nth_key(1), (struct put){.seed = 99, .length = 300, .overwrite = true}),
                     STORE_OK);
    close_store();
    write_file(path_of("index"), old.data, old.length);
    open_store();
    ck_assert_uint_eq(inspect_exactly().entries, 19);
    ck_assert(!get(nth_key(0), nth(0)));
    ck_assert(get(nth_key(1), (struct put){.seed = 99, .length = 300}));
    ck_assert_uint_eq(get_many(2, 20), 18);
    ck_assert_uint_eq(inspect_exactly().entries, 19);
    free(old.data);
    remove_folder();
}
END_TEST

START_TEST(a_wrong_size_in_the_index_is_corrected)
{
    struct bytes old = five_entries();
    open_store();
    struct put longer = {.seed = 99, .length = 300, .overwrite = true};
    ck_assert_int_eq(put(nth_key(1), longer), STORE_OK);
    uint64_t size = inspect("").size;
    close_store();
    write_file(path_of("index"), old.data, old.length);
    open_store();
    ck_assert_uint_eq(inspect_exactly().size, size);
    free(old.data);
    remove_folder();
}
END_TEST

/* Damaged entries. */

/* The entry that the damage is done to, and how its file looks when it is whole. */
static const struct put whole = {.seed = 3, .length = 25, .flags = 77, .lives = HOUR};

static struct bytes whole_file(void)
{
    start();
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    return read_file(file_of("victim"));
}

/* Whatever is in place of the file: a miss, gone, and the next PUT works. */
static void expect_discarded(void)
{
    ck_assert(!get("victim", whole));
    ck_assert(!exists(file_of("victim")));
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    ck_assert(get("victim", whole));
}

START_TEST(an_entry_with_a_flipped_byte_is_a_miss)
{
    struct bytes file = whole_file();
    ck_assert_uint_eq(file.length, sizeof(struct fs_header) + strlen("victim") + whole.length);
    for (size_t at = 0; at < file.length; at++) {
        for (unsigned flip = 1; flip < 256; flip <<= 1) {
            file.data[at] ^= (uint8_t)flip;
            write_file(file_of("victim"), file.data, file.length);
            expect_discarded();
            file.data[at] ^= (uint8_t)flip;
        }
    }
    free(file.data);
    remove_folder();
}
END_TEST

/* HEAD does not read the value; about all else it is right, or it is a miss. */
START_TEST(head_of_a_damaged_entry_is_right_or_a_miss)
{
    struct bytes file = whole_file();
    for (size_t at = 0; at < file.length; at++) {
        file.data[at] ^= (uint8_t)(1 << at % 8);
        write_file(file_of("victim"), file.data, file.length);
        struct ask head = new_ask(STORE_HEAD, "victim");
        enum store_status status = run(&head);
        bool in_value = at >= file.length - whole.length || (at >= 8 && at < 16);
        ck_assert_int_eq(status, in_value ? STORE_OK : STORE_MISS);
        if (status == STORE_OK) {
            ck_assert_uint_eq(head.call.length, whole.length);
            ck_assert_uint_eq(head.call.flags, whole.flags);
            ck_assert_int_le(head.call.expires, clock_now() + HOUR);
            expect_discarded();
        } else {
            ck_assert_int_eq(put("victim", whole), STORE_OK);
        }
        file.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(file.data);
    remove_folder();
}
END_TEST

/* The same damage, met by the scan of a store that was not closed in order. */
START_TEST(a_damaged_entry_is_a_miss_while_the_index_is_uncertain)
{
    struct bytes file = whole_file();
    close_store();
    for (size_t at = 0; at < file.length; at += 3) {
        unlink(path_of("index"));
        file.data[at] ^= (uint8_t)(1 << at % 8);
        write_file(file_of("victim"), file.data, file.length);
        open_store();
        expect_discarded();
        close_store();
        file.data[at] ^= (uint8_t)(1 << at % 8);
    }
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(a_truncated_entry_is_a_miss)
{
    struct bytes file = whole_file();
    for (size_t length = 0; length < file.length; length++) {
        write_file(file_of("victim"), file.data, length);
        expect_discarded();
    }
    file.data[file.length] = 0;
    write_file(file_of("victim"), file.data, file.length + 1);
    expect_discarded();
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(a_long_entry_with_a_flipped_byte_is_a_miss)
{
    const struct put long_one = {.seed = 5, .length = 70000};
    static const size_t places[] = {60, 8191, 8192, 8193, 70000};
    start();
    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        ck_assert_int_eq(put("victim", long_one), STORE_OK);
        struct bytes file = read_file(file_of("victim"));
        file.data[places[i]] ^= 1;
        write_file(file_of("victim"), file.data, file.length);
        ck_assert(!get("victim", long_one));
        ck_assert(!exists(file_of("victim")));
        write_file(file_of("victim"), file.data, file.length - 1);
        free(file.data);
    }
    remove_folder();
}
END_TEST

START_TEST(no_length_in_a_header_makes_it_allocate)
{
    struct bytes file = whole_file();
    value_set_limit(1 << 20);
    const struct fs_header *header = (const void *)file.data;
    const uint32_t lengths[] = {0, 24, 26, 1 << 24, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct bytes damaged = {.data = malloc(file.length), .length = file.length};
        memcpy(damaged.data, header, file.length);
        memcpy(damaged.data + offsetof(struct fs_header, length), &lengths[i], sizeof(lengths[i]));
        write_file(file_of("victim"), damaged.data, damaged.length);
        expect_discarded();
        free(damaged.data);
    }
    ck_assert_int_eq(truncate(file_of("victim"), (off_t)1 << 33), 0);
    expect_discarded();
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(swapped_files_are_misses)
{
    start();
    put_many(0, 2);
    char first[PATH_SIZE], second[PATH_SIZE];
    snprintf(first, sizeof(first), "%s", file_of(nth_key(0)));
    snprintf(second, sizeof(second), "%s", file_of(nth_key(1)));
    ck_assert_int_eq(renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE), 0);
    ck_assert_uint_eq(get_many(0, 2), 0);
    ck_assert(!exists(first) && !exists(second));
    put_many(0, 2);
    ck_assert_uint_eq(get_many(0, 2), 2);
    remove_folder();
}
END_TEST

START_TEST(a_file_of_another_time_corrects_the_index)
{
    struct bytes old = whole_file();
    struct put longer = {.seed = 9, .length = 500, .overwrite = true};
    ck_assert_int_eq(put("victim", longer), STORE_OK);
    write_file(file_of("victim"), old.data, old.length);
    ck_assert(get("victim", whole));
    ck_assert_uint_eq(inspect("").size, strlen("victim") + whole.length);
    free(old.data);
    remove_folder();
}
END_TEST

START_TEST(what_is_no_file_is_a_miss)
{
    struct bytes file = whole_file();
    write_file(path_of("elsewhere"), file.data, file.length);
    free(file.data);
    unlink(file_of("victim"));
    ck_assert_int_eq(symlink(path_of("elsewhere"), file_of("victim")), 0);
    expect_discarded();
    unlink(file_of("victim"));
    ck_assert_int_eq(mkfifo(file_of("victim"), 0600), 0);
    expect_discarded();
    unlink(file_of("victim"));
    ck_assert_int_eq(mkdir(file_of("victim"), 0700), 0);
    ck_assert(!get("victim", whole));
    struct ask ask = new_put("victim", whole);
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_INTERNAL);
    ck_assert_int_eq(rmdir(file_of("victim")), 0);
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    remove_folder();
}
END_TEST

/* Ends that another clock wrote. */

/* Writes the header's checksums anew after a test has changed it. */
static void seal(struct bytes *file)
{
    struct fs_header header;
    memcpy(&header, file->data, sizeof(header));
    const size_t start_of_fields = offsetof(struct fs_header, end);
    const uint8_t *key = file->data + sizeof(header);
    uint64_t fields = XXH3_64bits(file->data + start_of_fields, sizeof(header) - start_of_fields);
    header.head_check = XXH3_64bits_withSeed(key, header.key_length, fields);
    header.value_check =
        XXH3_64bits_withSeed(key + header.key_length, header.length, header.head_check);
    memcpy(file->data, &header, sizeof(header));
}

START_TEST(a_wall_clock_that_was_set_back_lengthens_no_life)
{
    struct bytes file = whole_file();
    close_store();
    unlink(path_of("index"));
    int64_t end = clock_to_wall(clock_now()) + (int64_t)HOUR * 24 * 365 * 100, ttl = 60000;
    memcpy(file.data + offsetof(struct fs_header, end), &end, sizeof(end));
    memcpy(file.data + offsetof(struct fs_header, ttl), &ttl, sizeof(ttl));
    seal(&file);
    write_file(file_of("victim"), file.data, file.length);
    open_store();
    ck_assert(get("victim", whole));
    int64_t first = end_of("victim");
    ck_assert_int_le(first, clock_now() + ttl);
    usleep(20000);
    ck_assert_int_le(end_of("victim"), first);
    inspect_exactly(); /* or the next start would look at the file again */
    reopen_store();
    ck_assert_int_le(end_of("victim"), first + 1);
    free(file.data);
    remove_folder();
}
END_TEST

START_TEST(an_end_before_the_machine_started_is_an_end)
{
    struct bytes file = whole_file();
    close_store();
    unlink(path_of("index"));
    int64_t end = 1000, ttl = 5000;
    memcpy(file.data + offsetof(struct fs_header, end), &end, sizeof(end));
    memcpy(file.data + offsetof(struct fs_header, ttl), &ttl, sizeof(ttl));
    seal(&file);
    write_file(file_of("victim"), file.data, file.length);
    open_store();
    ck_assert(!get("victim", whole));
    ck_assert_int_eq(put("victim", whole), STORE_OK);
    ck_assert(get("victim", whole));
    free(file.data);
    remove_folder();
}
END_TEST

/* The index of a killed daemon may know an entry by the end it had before it was replaced. */
START_TEST(an_end_of_an_unclean_index_is_checked_against_the_file)
{
    start();
    ck_assert_int_eq(put("a", (struct put){.length = 10, .lives = 100}), STORE_OK);
    close_store();
    struct bytes old = read_file(path_of("index"));
    open_store();
    ck_assert_int_eq(put("a", (struct put){.length = 10, .overwrite = true}), STORE_OK);
    close_store();
    write_file(path_of("index"), old.data, old.length);
    usleep(150 * 1000);
    open_store();
    inspect_exactly();
    usleep(300 * 1000);
    ck_assert(end_of("a") == CLOCK_NEVER);
    ck_assert(get("a", (struct put){.length = 10}));
    free(old.data);
    remove_folder();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filesystem-damage");
    TCase *tcase = suite_case(suite, "index", 120);
    tcase_add_test(tcase, a_torn_index_is_mended);
    tcase_add_test(tcase, an_index_with_a_flipped_byte_is_mended);
    tcase_add_test(tcase, an_index_of_garbage_is_mended);
    tcase_add_test(tcase, an_index_of_another_time_is_not_believed);
    tcase_add_test(tcase, a_wrong_size_in_the_index_is_corrected);
    tcase = suite_case(suite, "entries", 60);
    tcase_add_test(tcase, an_entry_with_a_flipped_byte_is_a_miss);
    tcase_add_test(tcase, head_of_a_damaged_entry_is_right_or_a_miss);
    tcase_add_test(tcase, a_damaged_entry_is_a_miss_while_the_index_is_uncertain);
    tcase_add_test(tcase, a_truncated_entry_is_a_miss);
    tcase_add_test(tcase, a_long_entry_with_a_flipped_byte_is_a_miss);
    tcase_add_test(tcase, no_length_in_a_header_makes_it_allocate);
    tcase_add_test(tcase, swapped_files_are_misses);
    tcase_add_test(tcase, a_file_of_another_time_corrects_the_index);
    tcase_add_test(tcase, what_is_no_file_is_a_miss);
    tcase = suite_case(suite, "ends", 30);
    tcase_add_test(tcase, a_wall_clock_that_was_set_back_lengthens_no_life);
    tcase_add_test(tcase, an_end_before_the_machine_started_is_an_end);
    tcase_add_test(tcase, an_end_of_an_unclean_index_is_checked_against_the_file);
    return suite_run(suite);
}
