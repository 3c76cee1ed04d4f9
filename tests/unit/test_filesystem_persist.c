/*
 * PERSIST of the filesystem store, and what is left when the daemon, the disk or the power fails at
 * any moment.
 */
#include "filesystem_bench.h"

/* Some tests are run twice. */
static uint64_t with_journal(int i)
{
    return i == 0 ? 0 : 64 << 20;
}

/* What the daemon does that is to be killed: round by round, all of it persisted but the last part.
 */
static void live_and_die(unsigned round)
{
    open_store();
    unsigned from = round * 60;
    put_many(from, from + 50);
    if (round > 0) {
        ck_assert_int_eq(run_op(STORE_DELETE, nth_key(from - 60)), STORE_OK);
        struct put other = nth(from - 59);
        other.overwrite = true;
        other.seed += 1000000;
        ck_assert_int_eq(put(nth_key(from - 59), other), STORE_OK);
    }
    struct ask persist = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&persist), STORE_OK);
    ck_assert(persist.call.durable);
    put_many(from + 50, from + 60);
    kill(getpid(), SIGKILL);
}

static void expect_all_of(unsigned round)
{
    unsigned from = round * 60;
    bool last = round == 9;
    ck_assert(last || !get(nth_key(from), nth(from)));
    struct put other = nth(from + 1);
    other.seed += last ? 0 : 1000000;
    ck_assert(get(nth_key(from + 1), other));
    ck_assert_uint_eq(get_many(from + 2, from + 50), 48);
    /* A process that is killed loses nothing that it has written, persisted or not. */
    ck_assert_uint_eq(get_many(from + 50, from + 60), 10);
}

START_TEST(what_was_persisted_survives_a_kill)
{
    bench.journal_size = with_journal(_i);
    syncs.real = true;
    make_folder();
    for (unsigned round = 0; round < 10; round++) {
        int status;
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0)
            live_and_die(round);
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        if (round % 3 == 2) {
            open_store();
            ck_assert_uint_eq(get_many(round * 60, round * 60 + 50), 50);
            close_store();
        }
    }
    open_store();
    for (unsigned round = 0; round < 10; round++)
        expect_all_of(round);
    ck_assert_uint_eq(inspect_exactly().entries, 600 - 9);
    remove_folder();
}
END_TEST

START_TEST(a_put_does_not_sync_and_persist_syncs_what_is_new)
{
    start();
    int before = sync_count();
    put_many(0, 10);
    ck_assert_int_eq(sync_count(), before);
    ck_assert_int_eq(persist(), STORE_OK);
    /* 10 files, at least a folder, the index. */
    ck_assert_int_ge(sync_count() - before, 10 + 1 + 1);
    ck_assert_int_eq(syncs.syncfs, 0);
    before = sync_count();
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before);
    put_many(20, 21);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 3);
    put_many(21, 321);
    before = sync_count();
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 2);
    ck_assert_int_eq(syncs.syncfs, 1);
    remove_folder();
}
END_TEST

/* Too many to be named, though their folder is one. */
START_TEST(many_new_files_in_one_folder_are_synced_at_once)
{
    start();
    ck_assert_int_eq(persist(), STORE_OK);
    for (unsigned n = 0, found = 0; found < 20; n++) {
        const char *key = nth_key(n);
        if (fs_file_folder(fs_file_hash((const uint8_t *)key, strlen(key))) != 0)
            continue;
        ck_assert_int_eq(put(key, (struct put){.length = 1}), STORE_OK);
        found++;
    }
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(syncs.syncfs, 1);
    remove_folder();
}
END_TEST

START_TEST(a_deletion_is_persisted_too)
{
    start();
    put_many(0, 2);
    ck_assert_int_eq(persist(), STORE_OK);
    int before = sync_count();
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(0)), STORE_OK);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 2);
    remove_folder();
}
END_TEST

START_TEST(persist_appends_to_the_index_only_what_is_new)
{
    start();
    put_many(0, 300);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t before = index_size();
    put_many(300, 302);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t record = (off_t)(sizeof(struct fs_record) + strlen("key-300"));
    ck_assert_int_eq(index_size() - before, 2 * record + (off_t)sizeof(struct fs_record));
    remove_folder();
}
END_TEST

/* few: synced one by one, or all at once. */
static void lose_what_fails(unsigned count, atomic_bool *fault)
{
    start();
    put_many(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 10 + count);
    atomic_store(fault, true);
    struct ask ask = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_INTERNAL);
    atomic_store(fault, false);
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_uint_eq(get_many(10, 10 + count), 0);
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 20);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_uint_eq(get_many(0, 20), 20);
    remove_folder();
}

START_TEST(entries_whose_sync_fails_are_given_up)
{
    lose_what_fails(5, &syncs.fail_fsync);
    lose_what_fails(200, &syncs.fail_syncfs);
}
END_TEST

START_TEST(a_failed_sync_of_the_index_is_made_good)
{
    start();
    put_many(0, 10);
    syncs.fail_fdatasync = true;
    ck_assert_int_eq(persist(), STORE_FAILED);
    ck_assert_int_eq(persist(), STORE_FAILED);
    syncs.fail_fdatasync = false;
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert(!exists(path_of("index.new")));
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

START_TEST(a_store_that_can_not_be_synced_is_not_left_as_clean)
{
    start();
    put_many(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_many(10, 20);
    fail_syncs(true);
    close_store();
    fail_syncs(false);
    open_store();
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    remove_folder();
}
END_TEST

/* What a loss of power may do to a file whose data or name had not reached the disk. */
static void maim(const char *path, unsigned how)
{
    struct bytes file = read_file(path);
    size_t half = file.length / 2;
    switch (how % 5) {
    case 0:
        ck_assert_int_eq(unlink(path), 0);
        break;
    case 1:
        write_file(path, file.data, 0);
        break;
    case 2:
        write_file(path, file.data, half);
        break;
    case 3:
        memset(file.data + half, 0, file.length - half);
        write_file(path, file.data, file.length);
        break;
    default: /* it has reached the disk */
        break;
    }
    free(file.data);
}

START_TEST(what_was_persisted_survives_a_loss_of_power)
{
    for (unsigned round = 0; round < 5; round++) {
        start();
        put_many(0, 40);
        ck_assert_int_eq(persist(), STORE_OK);
        off_t kept = index_size();
        put_many(40, 100);
        close_store();
        for (unsigned n = 40; n < 100; n++)
            maim(file_of(nth_key(n)), n + round);
        off_t torn = kept + (index_size() - kept) * (off_t)round / 5;
        ck_assert_int_eq(truncate(path_of("index"), torn), 0);
        write_file(path_of("index.new"), "", 0);
        write_file(path_of("tmp/7"), "", 0);
        open_store();
        ck_assert_uint_eq(get_many(0, 40), 40);
        ck_assert_uint_le(get_many(40, 100), 60 - 12);
        inspect_exactly();
        ck_assert_uint_eq(inspect("").entries, get_many(0, 100));
        ck_assert_uint_eq(files_in(path_of("tmp")), 0);
        remove_folder();
    }
}
END_TEST

/* A few keys, and for each the seed of its value, 0 where it is absent. */
enum { MODEL_KEYS = 40 };

static uint32_t model[MODEL_KEYS];

static struct put model_put(uint32_t seed)
{
    return (struct put){.seed = seed, .length = seed % 11 == 0 ? 20000 : seed % 300};
}

static void expect_model(void)
{
    unsigned entries = 0;
    for (unsigned n = 0; n < MODEL_KEYS; n++) {
        ck_assert_int_eq(get(nth_key(n), model_put(model[n])), model[n] != 0);
        entries += model[n] != 0;
    }
    ck_assert_uint_eq(inspect_exactly().entries, entries);
}

/* Leaves the store in one of the ways in which it may be found, and takes it again. */
static void end_and_begin(unsigned how, struct bytes *old_index)
{
    close_store();
    struct bytes index = read_file(path_of("index"));
    if (how % 5 == 1)
        make_unclean();
    else if (how % 5 == 2)
        unlink(path_of("index"));
    else if (how % 5 == 3)
        write_file(path_of("index"), index.data, how % index.length);
    else if (how % 5 == 4 && old_index->data != NULL)
        write_file(path_of("index"), old_index->data, old_index->length);
    free(old_index->data);
    *old_index = index;
    open_store();
}

static void model_step(uint32_t step, unsigned what, unsigned n)
{
    struct put new_one = model_put(step);
    new_one.overwrite = what < 3;
    if (what < 6) {
        bool stores = new_one.overwrite || model[n] == 0;
        ck_assert_int_eq(put(nth_key(n), new_one), stores ? STORE_OK : STORE_EXISTS);
        model[n] = stores ? step : model[n];
    } else if (what < 8) {
        ck_assert_int_eq(run_op(STORE_DELETE, nth_key(n)), model[n] ? STORE_OK : STORE_MISS);
        model[n] = 0;
    } else if (what == 8) {
        ck_assert_int_eq(get(nth_key(n), model_put(model[n])), model[n] != 0);
    } else if (n % 4 == 0) {
        unsigned cleared = model[3] != 0;
        for (unsigned i = 30; i < MODEL_KEYS; cleared += model[i] != 0, model[i++] = 0)
            ;
        model[3] = 0;
        ck_assert_uint_eq(clear("key-3"), cleared);
    } else {
        ck_assert_int_eq(persist(), STORE_OK);
    }
}

START_TEST(it_agrees_with_a_model_whatever_happens_to_its_index)
{
    struct bytes old_index = {0};
    uint8_t random[3];
    bench.journal_size = with_journal(_i);
    start();
    for (uint32_t step = 1; step <= 4000; step++) {
        fill(random, sizeof(random), step);
        model_step(step, random[0] % 10, random[1] % MODEL_KEYS);
        if (random[2] < 3)
            end_and_begin(random[0], &old_index);
        if (random[2] < 5 && random[0] % 2 == 0)
            expect_model();
    }
    expect_model();
    free(old_index.data);
    remove_folder();
}
END_TEST

START_TEST(the_index_file_is_written_afresh_when_most_of_it_is_past)
{
    const struct put small = {.length = 1, .overwrite = true};
    start();
    put_many(0, 10);
    for (unsigned n = 0; n < 6000; n++)
        ck_assert_int_eq(put("again", small), STORE_OK);
    ck_assert_int_eq(persist(), STORE_OK);
    off_t full = 6000 * (off_t)(sizeof(struct fs_record) + strlen("again"));
    for (int64_t end = clock_now() + WAIT_MS; index_size() > full / 2 && clock_now() < end;)
        usleep(10000);
    ck_assert_int_le(index_size(), full / 2);
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(inspect("").entries, 11);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filesystem-persist");
    TCase *tcase = suite_case(suite, "persist", 120);
    tcase_add_loop_test(tcase, what_was_persisted_survives_a_kill, 0, 2);
    tcase_add_test(tcase, a_put_does_not_sync_and_persist_syncs_what_is_new);
    tcase_add_test(tcase, many_new_files_in_one_folder_are_synced_at_once);
    tcase_add_test(tcase, a_deletion_is_persisted_too);
    tcase_add_test(tcase, persist_appends_to_the_index_only_what_is_new);
    tcase_add_test(tcase, entries_whose_sync_fails_are_given_up);
    tcase_add_test(tcase, a_failed_sync_of_the_index_is_made_good);
    tcase_add_test(tcase, a_store_that_can_not_be_synced_is_not_left_as_clean);
    tcase_add_test(tcase, what_was_persisted_survives_a_loss_of_power);
    tcase_add_loop_test(tcase, it_agrees_with_a_model_whatever_happens_to_its_index, 0, 2);
    tcase_add_test(tcase, the_index_file_is_written_afresh_when_most_of_it_is_past);
    return suite_run(suite);
}
