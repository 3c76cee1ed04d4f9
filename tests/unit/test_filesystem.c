/*
 * What the filesystem store promises beyond the contract of all stores (test_store.c). Damage and
 * PERSIST have programs of their own.
 */
#include "filesystem_bench.h"

/* What is found at the start. */

START_TEST(after_a_clean_close_no_scan_is_needed)
{
    start();
    put_many(0, 100);
    reopen_store();
    struct store_call call = inspect("");
    ck_assert(!call.approximate);
    ck_assert_uint_eq(call.entries, 100);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

/* A daemon that is killed before its first record must not leave the mark of the one before it. */
START_TEST(while_a_store_is_open_its_index_is_not_clean)
{
    start();
    put_many(0, 5);
    reopen_store();
    struct fs_record last;
    struct bytes index = read_file(path_of("index"));
    memcpy(&last, index.data + index.length - sizeof(last), sizeof(last));
    ck_assert_int_eq(last.type, FS_PERSISTED);
    free(index.data);
    close_store();
    index = read_file(path_of("index"));
    memcpy(&last, index.data + index.length - sizeof(last), sizeof(last));
    ck_assert_int_eq(last.type, FS_CLOSED);
    free(index.data);
    remove_folder();
}
END_TEST

static bool is_absent(const char *key)
{
    struct ask ask = new_ask(STORE_GET, key);
    return store_filesystem.absent(bench.store, &ask.call);
}

START_TEST(absence_is_certain_once_all_is_known)
{
    start();
    put_many(0, 5);
    ck_assert(is_absent("key-5"));
    ck_assert(!is_absent("key-4"));
    close_store();
    make_unclean();
    open_store();
    inspect_exactly();
    ck_assert(is_absent("key-5"));
    ck_assert(!is_absent("key-4"));
    remove_folder();
}
END_TEST

START_TEST(entries_are_found_without_an_index)
{
    start();
    put_many(0, 100);
    uint64_t size = inspect("").size;
    close_store();
    ck_assert_int_eq(unlink(path_of("index")), 0);
    open_store();
    ck_assert_uint_eq(get_many(0, 50), 50);
    struct store_call call = inspect_exactly();
    ck_assert_uint_eq(call.entries, 100);
    ck_assert_uint_eq(call.size, size);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

START_TEST(before_the_scan_is_over_put_if_absent_is_true)
{
    start();
    put_many(0, 100);
    close_store();
    ck_assert_int_eq(unlink(path_of("index")), 0);
    open_store();
    for (unsigned n = 0; n < 100; n++)
        ck_assert_int_eq(put(nth_key(n), nth(n + 1)), STORE_EXISTS);
    ck_assert_uint_eq(get_many(0, 100), 100);
    remove_folder();
}
END_TEST

START_TEST(an_entry_whose_file_is_gone_is_forgotten)
{
    start();
    put_many(0, 3);
    ck_assert_int_eq(unlink(file_of(nth_key(1))), 0);
    ck_assert(!get(nth_key(1), nth(1)));
    ck_assert_uint_eq(inspect("").entries, 2);
    ck_assert_int_eq(unlink(file_of(nth_key(2))), 0);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(2)), STORE_MISS);
    ck_assert_uint_eq(inspect("").entries, 1);
    ck_assert_int_eq(put(nth_key(1), nth(1)), STORE_OK);
    ck_assert(get(nth_key(1), nth(1)));
    remove_folder();
}
END_TEST

START_TEST(a_folder_that_is_gone_is_made_again)
{
    char name[FS_NAME_SIZE], path[PATH_SIZE];
    start();
    fs_file_name(fs_file_hash((const uint8_t *)nth_key(1), strlen(nth_key(1))), name);
    snprintf(path, sizeof(path), "%s/entries/%.2s", bench.directory, name);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(put(nth_key(1), nth(1)), STORE_OK);
    ck_assert(get(nth_key(1), nth(1)));
    remove_folder();
}
END_TEST

/* A scan that lacks descriptors must not pass over what it could not open. */
START_TEST(a_scan_goes_on_after_a_shortage)
{
    char why[256];
    struct rlimit before;
    struct fs_sync sync;
    struct fs_upkeep upkeep;
    start();
    put_many(0, 20);
    close_store();
    unlink(path_of("index"));
    struct fs_tree *tree = fs_tree_open(bench.directory, 0, why, sizeof(why));
    ck_assert_ptr_nonnull(tree);
    fs_sync_init(&sync, tree);
    fs_upkeep_init(&upkeep, tree, &sync);
    int free_fd = dup(STDERR_FILENO);
    close(free_fd);
    /* The folder can be opened, but no file in it. */
    limit(RLIMIT_NOFILE, (rlim_t)free_fd + 1, &before);
    for (unsigned i = 0; i < 2 * FS_FOLDERS; i++)
        fs_upkeep_step(&upkeep, UINT64_MAX);
    ck_assert(!fs_index_certain(tree->index));
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_int_eq(fs_upkeep_finish_scan(&upkeep), 0);
    ck_assert(fs_index_certain(tree->index));
    ck_assert_uint_eq(fs_index_entries(tree->index), 20);
    fs_upkeep_end(&upkeep);
    fs_sync_end(&sync);
    fs_tree_close(tree, false);
    remove_folder();
}
END_TEST

START_TEST(puts_end_a_scan_that_never_gets_a_pause)
{
    char why[256];
    struct fs_sync sync;
    struct fs_upkeep upkeep;
    start();
    put_many(0, 20);
    close_store();
    unlink(path_of("index"));
    struct fs_tree *tree = fs_tree_open(bench.directory, 0, why, sizeof(why));
    ck_assert_ptr_nonnull(tree);
    fs_sync_init(&sync, tree);
    fs_upkeep_init(&upkeep, tree, &sync);
    for (unsigned i = 0; i < 2 * FS_FOLDERS; i++)
        fs_upkeep_help(&upkeep, UINT64_MAX, 4096);
    ck_assert(fs_index_certain(tree->index));
    ck_assert_uint_eq(fs_index_entries(tree->index), 20);
    fs_upkeep_end(&upkeep);
    fs_sync_end(&sync);
    fs_tree_close(tree, false);
    remove_folder();
}
END_TEST

START_TEST(files_of_others_are_left_alone)
{
    start();
    put_many(0, 3);
    close_store();
    make_unclean();
    write_file(path_of("entries/00/README"), "hello", 5);
    write_file(path_of("tmp/12"), "half an entry", 13);
    open_store();
    ck_assert_uint_eq(inspect_exactly().entries, 3);
    ck_assert(exists(path_of("entries/00/README")));
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    remove_folder();
}
END_TEST

/* What can't be looked through stays uncertain; the rest of the store goes on. */
START_TEST(a_folder_that_is_none_spoils_no_other)
{
    start();
    put_many(0, 50);
    close_store();
    make_unclean();
    nftw(path_of("entries/00"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
    write_file(path_of("entries/00"), "", 0);
    open_store();
    ck_assert_uint_ge(get_many(0, 50), 45);
    usleep(300 * 1000);
    ck_assert(inspect("").approximate);
    ck_assert_int_eq(run_op(STORE_CLEAR, ""), STORE_FAILED);
    ck_assert_int_eq(unlink(path_of("entries/00")), 0);
    reopen_store();
    ck_assert_uint_eq(inspect_exactly().entries, get_many(0, 50));
    ck_assert_int_eq(run_op(STORE_CLEAR, ""), STORE_OK);
    remove_folder();
}
END_TEST

static void expect_refusal(const char *part)
{
    char why[256] = "";
    struct store *store = store_open(&store_filesystem, &bench.config, why, sizeof(why));
    ck_assert_ptr_null(store);
    ck_assert_msg(strstr(why, part) != NULL && strstr(why, bench.directory) != NULL, "%s", why);
}

START_TEST(a_store_from_before_the_journal_is_taken_over)
{
    start();
    put_many(0, 10);
    close_store();
    write_file(path_of("version"), "1\n", 2);
    ck_assert_int_eq(rmdir(path_of("journal")), 0);
    open_store();
    ck_assert_uint_eq(get_many(0, 10), 10);
    ck_assert(!inspect("").approximate);
    struct bytes version = read_file(path_of("version"));
    ck_assert_uint_eq(version.length, 2);
    ck_assert_mem_eq(version.data, "2\n", 2);
    free(version.data);
    remove_folder();
}
END_TEST

START_TEST(a_folder_that_is_no_store_of_ours_is_refused)
{
    make_folder();
    write_file(path_of("version"), "3\n", 2);
    expect_refusal("version 3");
    write_file(path_of("version"), "what is this", 12);
    expect_refusal("is this a store?");
    write_file(path_of("version"), "", 0);
    open_store();
    close_store();
    struct bytes version = read_file(path_of("version"));
    ck_assert_mem_eq(version.data, "2\n", 2);
    free(version.data);
    nftw(path_of("entries"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
    write_file(path_of("entries"), "", 0);
    expect_refusal("entries");
    ck_assert_int_eq(unlink(path_of("entries")), 0);
    unlink(path_of("index"));
    ck_assert_int_eq(mkdir(path_of("index"), 0700), 0);
    expect_refusal("index");
    remove_folder();
}
END_TEST

/* Ends. */

START_TEST(an_end_outlives_a_restart)
{
    start();
    int64_t before = clock_now();
    ck_assert_int_eq(put("hour", (struct put){.lives = HOUR}), STORE_OK);
    ck_assert_int_eq(put("moment", (struct put){.lives = 300}), STORE_OK);
    ck_assert_int_eq(put("ever", (struct put){.length = 9}), STORE_OK);
    int64_t after = clock_now();
    for (int unclean = 0; unclean < 2; unclean++) {
        close_store();
        if (unclean)
            make_unclean();
        open_store();
        ck_assert_int_ge(end_of("hour"), before + HOUR);
        ck_assert_int_le(end_of("hour"), after + HOUR);
        ck_assert(end_of("ever") == CLOCK_NEVER);
    }
    usleep(310 * 1000);
    ck_assert(!get("moment", (struct put){0}));
    ck_assert_int_eq(put("moment", (struct put){.length = 2}), STORE_OK);
    remove_folder();
}
END_TEST

START_TEST(what_has_ended_gives_its_space_back)
{
    start();
    put_many(0, 10);
    for (unsigned n = 10; n < 200; n++) {
        struct put what = nth(n);
        what.lives = 100;
        ck_assert_int_eq(put(nth_key(n), what), STORE_OK);
    }
    for (unsigned n = 10; n < 200; n++)
        wait_until_gone(nth_key(n));
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    ck_assert_uint_eq(get_many(0, 10), 10);
    remove_folder();
}
END_TEST

/* Bounds. */

static uint64_t disk_total;

static int add_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path;
    (void)ftw;
    if (type == FTW_F)
        disk_total += (uint64_t)st->st_blocks * 512;
    return 0;
}

/* What the entries take up on the disk, by the file system's own count. */
static uint64_t disk_usage(void)
{
    disk_total = 0;
    nftw(path_of("entries"), add_file, 16, FTW_PHYS);
    return disk_total;
}

START_TEST(the_store_keeps_within_its_bound)
{
    enum { MAX = 4 << 20 };
    make_folder();
    bench.config.max_size = MAX;
    open_store();
    /* Small ones first, so that a large one needs many of them to go. */
    for (unsigned n = 0; n < 3000; n++) {
        struct put what = {.seed = n, .length = n < 2000 ? 3000 : 300 * (n % 400)};
        ck_assert_int_eq(put(nth_key(n), what), STORE_OK);
        if (n % 100 == 99)
            ck_assert_uint_le(disk_usage(), MAX + MAX / 20 + 2 * 4096);
    }
    for (int64_t end = clock_now() + WAIT_MS; disk_usage() > MAX && clock_now() < end;)
        usleep(10000);
    ck_assert_uint_le(disk_usage(), MAX);
    ck_assert_uint_ge(disk_usage(), MAX / 2);
    struct ask ask = new_put("large", (struct put){.length = MAX});
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_TOO_LARGE);
    remove_folder();
}
END_TEST

START_TEST(of_few_entries_the_least_recently_used_goes)
{
    make_folder();
    bench.config.max_size = 10 * 8192;
    open_store();
    for (unsigned n = 0; n < 10; n++)
        ck_assert_int_eq(put(nth_key(n), (struct put){.seed = n, .length = 8000}), STORE_OK);
    usleep(20000); /* some clocks tell times apart by milliseconds only */
    for (unsigned n = 0; n < 10; n += 2)
        ck_assert(get(nth_key(n), (struct put){.seed = n, .length = 8000}));
    usleep(20000);
    ck_assert_int_eq(put("new", (struct put){.length = 8000}), STORE_OK);
    wait_until_gone(nth_key(1));
    for (unsigned n = 0; n < 10; n += 2)
        ck_assert(get(nth_key(n), (struct put){.seed = n, .length = 8000}));
    ck_assert(get("new", (struct put){.length = 8000}));
    remove_folder();
}
END_TEST

START_TEST(use_is_remembered_across_a_restart)
{
    make_folder();
    bench.config.max_size = 10 * 8192;
    open_store();
    for (unsigned n = 0; n < 10; n++) {
        ck_assert_int_eq(put(nth_key(n), (struct put){.seed = n, .length = 8000}), STORE_OK);
        usleep(20000);
    }
    reopen_store();
    ck_assert_int_eq(put("new", (struct put){.length = 8000}), STORE_OK);
    wait_until_gone(nth_key(0));
    ck_assert(get(nth_key(9), (struct put){.seed = 9, .length = 8000}));
    ck_assert(get("new", (struct put){.length = 8000}));
    remove_folder();
}
END_TEST

START_TEST(clear_counts_and_gives_the_space_back)
{
    start();
    put_many(0, 300);
    for (unsigned n = 0; n < 5; n++) {
        char key[16];
        snprintf(key, sizeof(key), "other-%u", n);
        ck_assert_int_eq(put(key, (struct put){.length = n}), STORE_OK);
    }
    close_store();
    make_unclean();
    open_store();
    ck_assert_uint_eq(clear("key-1"), 1 + 10 + 100);
    ck_assert_uint_eq(get_many(0, 300), 300 - 111);
    ck_assert_uint_eq(inspect("other-").entries, 5);
    ck_assert_uint_eq(inspect("other-").size, 5 * strlen("other-0") + 0 + 1 + 2 + 3 + 4);
    ck_assert_uint_eq(clear(""), 300 - 111 + 5);
    ck_assert_uint_eq(inspect("").entries, 0);
    ck_assert_uint_eq(inspect("").size, 0);
    ck_assert_uint_eq(disk_usage(), 0);
    ck_assert_uint_eq(clear(""), 0);
    remove_folder();
}
END_TEST

START_TEST(clear_takes_what_no_index_knows)
{
    start();
    put_many(0, 100);
    close_store();
    unlink(path_of("index"));
    open_store();
    ck_assert_uint_eq(clear(""), 100);
    ck_assert_uint_eq(disk_usage(), 0);
    remove_folder();
}
END_TEST

/* Values by descriptor. */

static struct store_call get_fd(const char *key)
{
    struct ask ask = new_ask(STORE_GET, key);
    ask.call.wants_fd = true;
    run(&ask);
    return ask.call;
}

/* The call's descriptor has the bytes, and can't be written to. Closes it. */
static void expect_file(struct store_call *call, struct put expected)
{
    static uint8_t bytes[BIG], right[BIG];
    ck_assert_int_eq(call->status, STORE_OK);
    ck_assert_ptr_null(call->value);
    ck_assert_int_ge(call->fd, 0);
    ck_assert_uint_eq(call->length, expected.length);
    ck_assert_uint_eq(call->flags, expected.flags);
    ck_assert_int_eq(pread(call->fd, bytes, expected.length, (off_t)call->offset), expected.length);
    fill(right, expected.length, expected.seed);
    ck_assert_mem_eq(bytes, right, expected.length);
    ck_assert_int_lt(pwrite(call->fd, "x", 1, 0), 0);
    close(call->fd);
}

START_TEST(a_large_value_is_answered_with_its_file)
{
    struct put large = {.seed = 1, .length = 65536, .flags = 7, .overwrite = true};
    start();
    for (unsigned i = 0; i < 3; i++, large.seed++, large.length += 1000) {
        ck_assert_int_eq(put("large", large), STORE_OK);
        struct store_call held = get_fd("large"), again = get_fd("large");
        expect_file(&again, large);
        struct put other = {.seed = 9, .length = 70000, .overwrite = true};
        ck_assert_int_eq(put("large", other), STORE_OK);
        expect_file(&held, large);
    }
    ck_assert_int_eq(put("small", (struct put){.seed = 1, .length = 65535}), STORE_OK);
    struct store_call small = get_fd("small");
    ck_assert_int_eq(small.fd, -1);
    ck_assert(has_bytes(small.value, 1, 65535));
    value_unref(small.value);
    remove_folder();
}
END_TEST

START_TEST(a_damaged_file_is_not_handed_out)
{
    const struct put large = {.seed = 1, .length = 100000};
    start();
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(put("large", large), STORE_OK);
        struct bytes bytes = read_file(file_of("large"));
        bytes.data[bytes.length - 1 - i * 90000] ^= 4;
        write_file(file_of("large"), bytes.data, bytes.length);
        free(bytes.data);
        struct store_call call = get_fd("large");
        ck_assert_int_eq(call.status, STORE_MISS);
        ck_assert_int_eq(call.fd, -1);
        ck_assert(!exists(file_of("large")));
    }
    remove_folder();
}
END_TEST

/* Shortages. */

START_TEST(a_full_disk_fails_a_put_and_nothing_else)
{
    const struct put small = {.seed = 1, .length = 100, .overwrite = true};
    const struct put large = {.seed = 2, .length = 100000, .overwrite = true};
    struct rlimit before;
    start();
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(put("key", small), STORE_OK);
    limit(RLIMIT_FSIZE, 50000, &before);
    struct ask ask = new_put("key", large);
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    ck_assert(get("key", small));
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(put("key", large), STORE_OK);
    ck_assert(get("key", large));
    remove_folder();
}
END_TEST

/* The limit holds for Check's own files too, so the index has to be longer than those: long keys.
 */
START_TEST(an_index_that_can_not_grow_is_made_good)
{
    struct rlimit before;
    char key[1001] = "";
    start();
    signal(SIGXFSZ, SIG_IGN);
    for (unsigned n = 0; n < 200; n++) {
        snprintf(key, sizeof(key), "%01000u", n);
        ck_assert_int_eq(put(key, (struct put){.length = 10}), STORE_OK);
    }
    ck_assert_int_eq(persist(), STORE_OK);
    limit(RLIMIT_FSIZE, (rlim_t)index_size() - 500, &before);
    ck_assert_int_eq(put("key", (struct put){.length = 10}), STORE_OK);
    struct ask ask = new_ask(STORE_PERSIST, "");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    ck_assert(get("key", (struct put){.length = 10}));
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(persist(), STORE_OK);
    reopen_store();
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(inspect("").entries, 201);
    remove_folder();
}
END_TEST

START_TEST(without_descriptors_the_answer_is_busy)
{
    struct rlimit before;
    start();
    put_many(0, 2);
    limit(RLIMIT_NOFILE, 3, &before);
    struct ask ask = new_ask(STORE_GET, "key-1");
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_BUSY);
    ask = new_put("key-2", nth(2));
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_BUSY);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_uint_eq(get_many(0, 2), 2);
    remove_folder();
}
END_TEST

/* Many threads, each calling the methods itself. */

enum { THREADS = 8, ROUNDS = 150, SAME_KEYS = 6 };

struct racer {
    pthread_t thread;
    unsigned number;
    unsigned stored[ROUNDS];
    unsigned wrong;
};

static pthread_barrier_t barrier;

static void *race_for_absent(void *arg)
{
    struct racer *racer = arg;
    for (unsigned n = 0; n < ROUNDS; n++) {
        char key[32];
        snprintf(key, sizeof(key), "race-%u", n);
        struct ask ask = new_put(key, (struct put){.seed = racer->number, .length = 500});
        pthread_barrier_wait(&barrier);
        racer->stored[n] = store_filesystem.put(bench.store, &ask.call) == STORE_OK;
    }
    return NULL;
}

static unsigned run_racers(struct racer *racers, void *(*race)(void *))
{
    unsigned wrong = 0;
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        racers[i].number = i;
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(racers[i].thread, NULL);
        wrong += racers[i].wrong;
    }
    pthread_barrier_destroy(&barrier);
    return wrong;
}

/* The one who stored is the one whose bytes are there. */
static void expect_one_winner(const struct racer *racers, unsigned n)
{
    unsigned winners = 0, winner = 0;
    char key[32];
    for (unsigned i = 0; i < THREADS; i++) {
        winners += racers[i].stored[n];
        winner = racers[i].stored[n] ? i : winner;
    }
    ck_assert_uint_eq(winners, 1);
    snprintf(key, sizeof(key), "race-%u", n);
    ck_assert(get(key, (struct put){.seed = winner, .length = 500}));
}

START_TEST(of_eight_threads_one_stores)
{
    static struct racer racers[THREADS];
    start();
    run_racers(racers, race_for_absent);
    for (unsigned n = 0; n < ROUNDS; n++)
        expect_one_winner(racers, n);
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    remove_folder();
}
END_TEST

START_TEST(of_eight_threads_none_stores_what_only_the_disk_knows)
{
    static struct racer racers[THREADS];
    start();
    run_racers(racers, race_for_absent);
    close_store();
    unlink(path_of("index"));
    open_store();
    run_racers(racers, race_for_absent);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned n = 0; n < ROUNDS; n++)
            ck_assert_uint_eq(racers[i].stored[n], 0);
    }
    remove_folder();
}
END_TEST

/* A value's first bytes say what all of it must be, so a mixture is seen. */
static bool is_whole(struct value *value)
{
    uint32_t seed;
    static _Thread_local uint8_t expected[10000];
    if (value->length < sizeof(seed) || value->length > sizeof(expected))
        return false;
    memcpy(&seed, value_bytes(value), sizeof(seed));
    fill(expected, value->length, seed);
    return value->length == 2000 + seed % 7000 &&
           memcmp(value_bytes(value) + sizeof(seed), expected + sizeof(seed),
                  value->length - sizeof(seed)) == 0;
}

static struct ask mixed_put(const char *key, uint32_t seed, bool overwrite)
{
    struct ask ask = new_put(
        key, (struct put){.seed = seed, .length = 2000 + seed % 7000, .overwrite = overwrite});
    memcpy(value_bytes(ask.call.value), &seed, sizeof(seed));
    return ask;
}

/* One of all that can be asked; whether it was answered as it should. */
static bool mixed_call(const char *key, uint32_t seed)
{
    struct ask ask = seed % 7 == 0   ? new_ask(STORE_DELETE, key)
                     : seed % 3 == 0 ? new_ask(STORE_GET, key)
                                     : mixed_put(key, seed, seed % 2 == 0);
    if (ask.call.op == STORE_DELETE)
        return store_filesystem.delete(bench.store, &ask.call) != STORE_FAILED;
    if (ask.call.op == STORE_PUT)
        return store_filesystem.put(bench.store, &ask.call) != STORE_FAILED;
    enum store_status status = store_filesystem.get(bench.store, &ask.call);
    bool right = status == STORE_MISS || (status == STORE_OK && is_whole(ask.call.value));
    value_unref(ask.call.value);
    return right;
}

static void *race_mixed(void *arg)
{
    struct racer *racer = arg;
    for (uint32_t n = 0; n < 5 * ROUNDS; n++) {
        char key[32];
        snprintf(key, sizeof(key), "mixed-%u", n % SAME_KEYS);
        racer->wrong += !mixed_call(key, n * THREADS + racer->number);
        struct ask persist = new_ask(STORE_PERSIST, ""), clear = new_ask(STORE_CLEAR, "mixed-1");
        if (n % 50 == 49 && racer->number < 2)
            racer->wrong += store_filesystem.persist(bench.store, &persist.call) != STORE_OK;
        if (n % 100 == 99 && racer->number == 3)
            racer->wrong += store_filesystem.clear(bench.store, &clear.call) != STORE_OK;
    }
    return NULL;
}

/* After all of it the index must agree with the files, and what is read back with both. */
START_TEST(many_threads_see_whole_values_only)
{
    static struct racer racers[THREADS];
    start();
    ck_assert_uint_eq(run_racers(racers, race_mixed), 0);
    struct store_call before = inspect("");
    close_store();
    unlink(path_of("index"));
    open_store();
    struct store_call after = inspect_exactly();
    ck_assert_uint_eq(before.entries, after.entries);
    ck_assert_uint_eq(before.size, after.size);
    remove_folder();
}
END_TEST

/* While the index file is written afresh, its log must still get all that happens. */
START_TEST(the_index_file_is_right_whatever_happens_while_it_is_written)
{
    static struct racer racers[THREADS];
    start();
    put_many(0, 100);
    for (unsigned round = 0; round < 3; round++)
        ck_assert_uint_eq(run_racers(racers, race_mixed), 0);
    struct store_call before = inspect("");
    reopen_store();
    struct store_call after = inspect("");
    ck_assert(!after.approximate);
    ck_assert_uint_eq(before.entries, after.entries);
    ck_assert_uint_eq(before.size, after.size);
    ck_assert_uint_eq(get_many(0, 100), 100);
    ck_assert_uint_eq(inspect("").entries, after.entries);
    remove_folder();
}
END_TEST

/* The index by itself: what can't be provoked through the store. */

static struct fs_index *open_index(int fd, XXH128_hash_t state, bool empty)
{
    char why[256] = "";
    const struct fs_found found = {.state = state, .empty = empty};
    struct fs_index *index = fs_index_new(4096, 0);
    ck_assert_ptr_nonnull(index);
    ck_assert_msg(
        fs_index_load(index, (struct fs_directory){fd, bench.directory}, &found, why, sizeof(why)),
        "%s", why);
    return index;
}

START_TEST(keys_with_the_same_hash_are_told_apart)
{
    const XXH128_hash_t hash = {1, 2};
    struct fs_facts facts;
    make_folder();
    int fd = open(bench.directory, O_RDONLY | O_DIRECTORY);
    struct fs_index *index = open_index(fd, hash, true);
    fs_index_put(index, fs_entry_new(hash, (const uint8_t *)"one", 3, 10, CLOCK_NEVER));
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"one", 3, false, &facts),
                     FS_PRESENT);
    ck_assert_uint_eq(facts.length, 10);
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"two", 3, false, &facts),
                     FS_ABSENT);
    fs_index_put(index, fs_entry_new(hash, (const uint8_t *)"two", 3, 5000, CLOCK_NEVER));
    ck_assert_uint_eq(fs_index_entries(index), 1);
    ck_assert_uint_eq(fs_index_bytes(index), 5003);
    ck_assert_uint_eq(fs_index_disk(index), 8192);
    ck_assert_int_eq(fs_index_find(index, hash, (const uint8_t *)"one", 3, false, &facts),
                     FS_ABSENT);
    ck_assert_uint_eq(fs_index_remove(index, hash), 8192);
    ck_assert_uint_eq(fs_index_disk(index), 0);
    fs_index_close(index, NULL);
    close(fd);
    remove_folder();
}
END_TEST

static bool any(const struct fs_entry *entry, const void *arg)
{
    (void)entry;
    (void)arg;
    return true;
}

/* A walk that removes as it goes must meet every entry, though the table grows under it. */
START_TEST(a_walk_meets_everything_though_the_table_grows)
{
    enum { COUNT = 1000 };
    static bool met[COUNT];
    make_folder();
    int fd = open(bench.directory, O_RDONLY | O_DIRECTORY);
    struct fs_index *index = open_index(fd, (XXH128_hash_t){0, 0}, true);
    for (uint64_t n = 0; n < COUNT; n++)
        fs_index_put(index, fs_entry_new((XXH128_hash_t){n * 0x9E3779B97F4A7C15, n},
                                         (const uint8_t *)"k", 1, 1, CLOCK_NEVER));
    uint64_t more = COUNT;
    for (uint32_t bucket = 0; bucket != FS_SHARD_END;) {
        XXH128_hash_t hashes[16];
        size_t count = fs_index_collect(index, 0, &bucket, any, NULL, hashes, 16);
        for (size_t i = 0; i < count; i++) {
            if (hashes[i].high64 < COUNT)
                met[hashes[i].high64] = true;
            fs_index_remove(index, hashes[i]);
        }
        for (unsigned i = 0; i < 40 && more < 4 * COUNT; i++, more++)
            fs_index_put(index, fs_entry_new((XXH128_hash_t){more * 0x9E3779B97F4A7C15, more},
                                             (const uint8_t *)"k", 1, 1, CLOCK_NEVER));
    }
    for (unsigned n = 0; n < COUNT; n++)
        ck_assert_msg(met[n], "%u was not met", n);
    fs_index_close(index, NULL);
    close(fd);
    remove_folder();
}
END_TEST

static XXH128_hash_t nth_hash(uint64_t n)
{
    return (XXH128_hash_t){.high64 = n * 0x9E3779B97F4A7C15, .low64 = n};
}

static void put_nth_hash(struct fs_index *index, uint64_t n)
{
    fs_index_put(index, fs_entry_new(nth_hash(n), (const uint8_t *)"k", 1, 1, CLOCK_NEVER));
}

/* Between any two steps of writing the log afresh something is put, replaced and removed. */
START_TEST(what_happens_while_the_log_is_written_afresh_is_in_it)
{
    const XXH128_hash_t state = {1, 2};
    make_folder();
    const struct fs_directory directory = {open(bench.directory, O_RDONLY), bench.directory};
    struct fs_index *index = open_index(directory.fd, state, true);
    uint64_t n = 0;
    for (; n < 500; n++)
        put_nth_hash(index, n);
    for (unsigned i = 0; i < 6000; i++)
        put_nth_hash(index, 7);
    unsigned steps = 0;
    for (; fs_index_tend_log(index); steps++, n++) {
        put_nth_hash(index, n);
        put_nth_hash(index, n - 250);
        ck_assert_uint_gt(fs_index_remove(index, nth_hash(n - 500)), 0);
    }
    ck_assert_uint_gt(steps, 50);
    ck_assert_int_lt(index_size(), 6000 * (off_t)sizeof(struct fs_record));
    fs_index_close(index, &state);
    index = open_index(directory.fd, state, false);
    ck_assert(fs_index_certain(index));
    ck_assert_uint_eq(fs_index_entries(index), 500);
    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(fs_index_alive(index, nth_hash(i), false),
                         i + 500 < n ? FS_ABSENT : FS_PRESENT);
    fs_index_close(index, NULL);
    close(directory.fd);
    remove_folder();
}
END_TEST

START_TEST(what_a_log_had_of_the_past_counts_after_a_restart)
{
    const XXH128_hash_t state = {1, 2};
    make_folder();
    const struct fs_directory directory = {open(bench.directory, O_RDONLY), bench.directory};
    struct fs_index *index = open_index(directory.fd, state, true);
    for (unsigned i = 0; i < 6000; i++)
        put_nth_hash(index, 7);
    fs_index_close(index, &state);
    off_t before = index_size();
    index = open_index(directory.fd, state, false);
    for (unsigned i = 0; fs_index_tend_log(index) && i < 2 * FS_FOLDERS; i++)
        ;
    ck_assert_int_lt(index_size(), before / 100);
    fs_index_close(index, NULL);
    close(directory.fd);
    remove_folder();
}
END_TEST

START_TEST(names_of_files_are_hashes_and_back)
{
    const XXH128_hash_t hash = {.high64 = 0xab0123456789cdef, .low64 = 0x00000000deadbeef};
    XXH128_hash_t back;
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    ck_assert_str_eq(name, "ab/0123456789cdef00000000deadbeef");
    ck_assert(fs_file_parse_name(0xab, name + 3, &back));
    ck_assert(XXH128_isEqual(hash, back));
    static const char *const others[] = {"",
                                         ".",
                                         "..",
                                         "0123456789cdef00000000deadbee",
                                         "0123456789cdef00000000deadbeef0",
                                         "0123456789CDEF00000000deadbeef",
                                         "0123456789cdeg00000000deadbeef"};
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        ck_assert(!fs_file_parse_name(0xab, others[i], &back));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filesystem");
    TCase *tcase = suite_case(suite, "start", 120);
    tcase_add_test(tcase, after_a_clean_close_no_scan_is_needed);
    tcase_add_test(tcase, while_a_store_is_open_its_index_is_not_clean);
    tcase_add_test(tcase, absence_is_certain_once_all_is_known);
    tcase_add_test(tcase, entries_are_found_without_an_index);
    tcase_add_test(tcase, before_the_scan_is_over_put_if_absent_is_true);
    tcase_add_test(tcase, an_entry_whose_file_is_gone_is_forgotten);
    tcase_add_test(tcase, a_folder_that_is_gone_is_made_again);
    tcase_add_test(tcase, a_scan_goes_on_after_a_shortage);
    tcase_add_test(tcase, puts_end_a_scan_that_never_gets_a_pause);
    tcase_add_test(tcase, files_of_others_are_left_alone);
    tcase_add_test(tcase, a_folder_that_is_none_spoils_no_other);
    tcase_add_test(tcase, a_store_from_before_the_journal_is_taken_over);
    tcase_add_test(tcase, a_folder_that_is_no_store_of_ours_is_refused);
    tcase_add_test(tcase, an_end_outlives_a_restart);
    tcase_add_test(tcase, what_has_ended_gives_its_space_back);
    tcase = suite_case(suite, "bounds", 120);
    tcase_add_test(tcase, the_store_keeps_within_its_bound);
    tcase_add_test(tcase, of_few_entries_the_least_recently_used_goes);
    tcase_add_test(tcase, use_is_remembered_across_a_restart);
    tcase_add_test(tcase, clear_counts_and_gives_the_space_back);
    tcase_add_test(tcase, clear_takes_what_no_index_knows);
    tcase_add_test(tcase, a_large_value_is_answered_with_its_file);
    tcase_add_test(tcase, a_damaged_file_is_not_handed_out);
    tcase_add_test(tcase, a_full_disk_fails_a_put_and_nothing_else);
    tcase_add_test(tcase, an_index_that_can_not_grow_is_made_good);
    tcase_add_test(tcase, without_descriptors_the_answer_is_busy);
    tcase = suite_case(suite, "threads", 120);
    tcase_add_test(tcase, of_eight_threads_one_stores);
    tcase_add_test(tcase, of_eight_threads_none_stores_what_only_the_disk_knows);
    tcase_add_test(tcase, many_threads_see_whole_values_only);
    tcase_add_test(tcase, the_index_file_is_right_whatever_happens_while_it_is_written);
    tcase = suite_case(suite, "parts", 30);
    tcase_add_test(tcase, keys_with_the_same_hash_are_told_apart);
    tcase_add_test(tcase, a_walk_meets_everything_though_the_table_grows);
    tcase_add_test(tcase, what_happens_while_the_log_is_written_afresh_is_in_it);
    tcase_add_test(tcase, what_a_log_had_of_the_past_counts_after_a_restart);
    tcase_add_test(tcase, names_of_files_are_hashes_and_back);
    return suite_run(suite);
}
