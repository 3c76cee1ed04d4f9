/*
 * The filesystem store's journal: what lies in it is found, in the right order after any end, gets
 * its file in time, and is never a wrong byte.
 */
#include "filesystem_bench.h"

enum { JOURNAL = 64 << 20, SMALL = 3000 };

static struct put small(uint32_t seed)
{
    return (struct put){.seed = seed, .length = SMALL, .flags = seed, .overwrite = true};
}

static void start_with_journal(void)
{
    bench.journal_size = JOURNAL;
    start();
}

static void put_small(unsigned from, unsigned to)
{
    for (unsigned n = from; n < to; n++)
        ck_assert_int_eq(put(nth_key(n), small(n)), STORE_OK);
}

static unsigned get_small(unsigned from, unsigned to)
{
    unsigned found = 0;
    for (unsigned n = from; n < to; n++)
        found += get(nth_key(n), small(n));
    return found;
}

static bool has_file(unsigned n)
{
    return exists(file_of(nth_key(n)));
}

static void wait_until_filed(void)
{
    for (int64_t end = clock_now() + WAIT_MS; clock_now() < end; usleep(10000)) {
        if (files_in(path_of("journal")) == 0)
            return;
    }
    ck_abort_msg("the journal is never empty");
}

/* Opens the store in another process, which does something to it and is killed. */
static void live_and_die(void (*live)(void))
{
    int status;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        open_store();
        live();
        kill(getpid(), SIGKILL);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* The bytes of a record of a small value, with a key of 5. */
enum { RECORD = sizeof(struct fs_segment_record) + sizeof(struct fs_header) + 5 + SMALL };

static const char *segment(void)
{
    return path_of("journal/00000001");
}

/* In the journal, and out of it. */

START_TEST(small_values_lie_in_the_journal_and_are_found)
{
    start_with_journal();
    put_small(0, 100);
    ck_assert_int_eq(put("large", (struct put){.seed = 1, .length = 70000}), STORE_OK);
    ck_assert(!has_file(0));
    ck_assert(exists(file_of("large")));
    ck_assert_uint_eq(get_small(0, 100), 100);
    ck_assert_int_eq(put(nth_key(5), (struct put){.seed = 6}), STORE_EXISTS);
    struct ask head = new_ask(STORE_HEAD, nth_key(7));
    ck_assert_int_eq(run(&head), STORE_OK);
    ck_assert_uint_eq(head.call.length, SMALL);
    ck_assert_uint_eq(head.call.flags, 7);
    ck_assert_uint_eq(inspect("").entries, 101);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(3)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(3)), STORE_MISS);
    ck_assert_uint_eq(get_small(0, 100), 99);
    remove_folder();
}
END_TEST

START_TEST(after_a_pause_they_have_files)
{
    start_with_journal();
    put_small(0, 100);
    wait_until_filed();
    ck_assert(has_file(0) && has_file(99));
    ck_assert_uint_eq(get_small(0, 100), 100);
    ck_assert_uint_eq(files_in(path_of("tmp")), 0);
    put_small(100, 110);
    ck_assert(!has_file(105));
    reopen_store();
    ck_assert(has_file(105));
    ck_assert(!inspect("").approximate);
    ck_assert_uint_eq(get_small(0, 110), 110);
    remove_folder();
}
END_TEST

START_TEST(persist_syncs_the_journal_and_no_files)
{
    start_with_journal();
    ck_assert_int_eq(persist(), STORE_OK);
    int before = sync_count();
    put_small(0, 100);
    ck_assert_int_eq(sync_count(), before);
    ck_assert_int_eq(persist(), STORE_OK);
    /* The new segment, its folder, the index. */
    ck_assert_int_eq(sync_count(), before + 3);
    put_small(100, 200);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 5);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_int_eq(sync_count(), before + 5);
    remove_folder();
}
END_TEST

/* Readers of what is being filed never miss it. */
static atomic_bool reading;

static void *read_on(void *arg)
{
    struct racer {
        unsigned wrong, reads;
    } *racer = arg;
    for (unsigned n = 0; atomic_load(&reading); n = (n + 1) % 50, racer->reads++) {
        char key[32];
        snprintf(key, sizeof(key), "key-%u", n);
        struct ask ask = new_ask(STORE_GET, key);
        bool ok = store_filesystem.get(bench.store, &ask.call) == STORE_OK &&
                  ask.call.value->flags == n && ask.call.value->length == SMALL;
        racer->wrong += !ok;
        value_unref(ask.call.value);
    }
    return NULL;
}

START_TEST(readers_find_what_is_being_filed)
{
    unsigned counts[2] = {0, 0};
    pthread_t thread;
    start_with_journal();
    put_small(0, 50);
    atomic_store(&reading, true);
    ck_assert_int_eq(pthread_create(&thread, NULL, read_on, counts), 0);
    for (unsigned round = 0; round < 4; round++) {
        wait_until_filed();
        put_small(0, 50);
    }
    wait_until_filed();
    atomic_store(&reading, false);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(counts[0], 0);
    ck_assert_uint_gt(counts[1], 100);
    remove_folder();
}
END_TEST

static uint64_t journal_bytes(void)
{
    uint64_t bytes = 0;
    DIR *dir = opendir(path_of("journal"));
    ck_assert_ptr_nonnull(dir);
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        struct stat st;
        if (fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
            bytes += (uint64_t)st.st_size;
    }
    closedir(dir);
    return bytes;
}

/* Nothing can be filed for good here, so what has no room goes straight to its file. */
START_TEST(a_full_journal_takes_no_more)
{
    bench.journal_size = 300 * 1000;
    start();
    syncs.fail_syncfs = true;
    put_small(0, 400);
    ck_assert_uint_gt(journal_bytes(), 200 * 1000);
    ck_assert_uint_le(journal_bytes(), 300 * 1000);
    ck_assert(has_file(399));
    ck_assert_uint_eq(get_small(0, 400), 400);
    /* What lies in it can be changed all the same. */
    for (unsigned n = 0; n < 20; n++)
        ck_assert_int_eq(put(nth_key(n), small(n + 1000)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(20)), STORE_OK);
    syncs.fail_syncfs = false;
    wait_until_filed();
    reopen_store();
    for (unsigned n = 0; n < 20; n++)
        ck_assert(get(nth_key(n), small(n + 1000)));
    ck_assert_uint_eq(get_small(20, 400), 379);
    ck_assert_uint_eq(inspect_exactly().entries, 399);
    remove_folder();
}
END_TEST

START_TEST(many_segments_are_filed_in_time)
{
    bench.journal_size = 1 << 20;
    start();
    for (unsigned round = 0; round < 4; round++)
        put_small(round * 250, round * 250 + 500);
    wait_until_filed();
    ck_assert_uint_eq(get_small(0, 1250), 1250);
    ck_assert_uint_eq(inspect("").entries, 1250);
    remove_folder();
}
END_TEST

/* A kill at any moment. */

static void live_in_order(void)
{
    put_small(0, 10);
    ck_assert_int_eq(put(nth_key(1), small(1001)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(2)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(3)), STORE_OK);
    ck_assert_int_eq(put(nth_key(3), small(1003)), STORE_OK);
    struct put large = {.seed = 4, .length = 70000, .overwrite = true};
    ck_assert_int_eq(put(nth_key(4), large), STORE_OK);
    ck_assert_int_eq(put(nth_key(5), large), STORE_OK);
    ck_assert_int_eq(put(nth_key(5), small(1005)), STORE_OK);
    ck_assert_int_eq(put(nth_key(6), large), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(6)), STORE_OK);
}

static void expect_in_order(void)
{
    ck_assert(get(nth_key(0), small(0)));
    ck_assert(get(nth_key(1), small(1001)));
    ck_assert(!get(nth_key(2), small(2)));
    ck_assert(get(nth_key(3), small(1003)));
    ck_assert(get(nth_key(4), (struct put){.seed = 4, .length = 70000}));
    ck_assert(get(nth_key(5), small(1005)));
    ck_assert(!get(nth_key(6), small(6)));
    ck_assert_uint_eq(get_small(7, 10), 3);
    ck_assert_uint_eq(inspect_exactly().entries, 8);
}

START_TEST(a_replay_keeps_the_order_of_changes)
{
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_in_order);
    open_store();
    expect_in_order();
    wait_until_filed();
    expect_in_order();
    reopen_store();
    expect_in_order();
    /* All of them have files now, and are changed once more. */
    close_store();
    live_and_die(live_in_order);
    unlink(path_of("index"));
    open_store();
    expect_in_order();
    remove_folder();
}
END_TEST

static void live_small(void)
{
    put_small(0, 20);
}

/* What was killed is killed again before anything is filed: the segment is appended to. */
START_TEST(a_segment_is_appended_to_after_a_kill)
{
    bench.journal_size = JOURNAL;
    make_folder();
    for (unsigned i = 0; i < 70; i++)
        live_and_die(live_small);
    ck_assert_uint_le(files_in(path_of("journal")), 2);
    open_store();
    ck_assert_uint_eq(get_small(0, 20), 20);
    ck_assert_uint_eq(inspect_exactly().entries, 20);
    remove_folder();
}
END_TEST

static off_t size_of(const char *path)
{
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    return st.st_size;
}

START_TEST(a_torn_tail_is_cut_off)
{
    static const off_t cuts[] = {1, 100, SMALL - 1, SMALL + 50, SMALL + 80, RECORD + 1};
    bench.journal_size = JOURNAL;
    for (unsigned i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        make_folder();
        live_and_die(live_small);
        ck_assert_int_eq(truncate(segment(), size_of(segment()) - cuts[i]), 0);
        open_store();
        ck_assert_uint_eq(get_small(0, 19), 19);
        ck_assert(!get(nth_key(19), small(19)));
        ck_assert_int_eq(put(nth_key(19), (struct put){.seed = 5, .length = 100}), STORE_OK);
        ck_assert(get(nth_key(19), (struct put){.seed = 5, .length = 100}));
        ck_assert_uint_eq(inspect_exactly().entries, 20);
        reopen_store();
        ck_assert_uint_eq(get_small(0, 19), 19);
        ck_assert(get(nth_key(19), (struct put){.seed = 5, .length = 100}));
        remove_folder();
    }
}
END_TEST

/* Of what was not persisted a loss of power may leave any part; what was is there. */
static void live_and_persist(void)
{
    put_small(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_small(10, 20);
}

START_TEST(what_was_persisted_survives_holes_in_what_was_not)
{
    static uint8_t zeros[2 * RECORD];
    bench.journal_size = JOURNAL;
    for (unsigned i = 0; i < 6; i++) {
        make_folder();
        live_and_die(live_and_persist);
        off_t from = (off_t)sizeof(struct fs_segment_header) + (10 + i) * RECORD + i * 500;
        int fd = open(segment(), O_WRONLY);
        ck_assert_int_eq(pwrite(fd, zeros, sizeof(zeros), from), sizeof(zeros));
        close(fd);
        open_store();
        ck_assert_uint_eq(get_small(0, 10), 10);
        ck_assert_uint_le(get_small(10, 20), 8);
        put_small(10, 20);
        ck_assert_uint_eq(get_small(0, 20), 20);
        wait_until_filed();
        ck_assert_uint_eq(get_small(0, 20), 20);
        remove_folder();
    }
}
END_TEST

static void flip(const char *path, off_t position, uint8_t bits)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, position), 1);
    byte ^= bits;
    ck_assert_int_eq(pwrite(fd, &byte, 1, position), 1);
    close(fd);
}

/* One of 20 records is damaged somewhere; at most that one is a miss, and it can be put again. */
static void expect_one_lost(unsigned lost)
{
    ck_assert_uint_eq(get_small(0, lost), lost);
    ck_assert_uint_eq(get_small(lost + 1, 20), 19 - lost);
    get(nth_key(lost), small(lost));
    ck_assert_int_eq(put(nth_key(lost), small(lost)), STORE_OK);
}

START_TEST(a_damaged_record_is_a_miss_and_no_other)
{
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_small);
    struct bytes whole = read_file(segment());
    const off_t begin = sizeof(struct fs_segment_header) + 7 * RECORD, end = begin + RECORD;
    for (off_t position = begin; position < end; position += position < begin + 110 ? 7 : 487) {
        remove_folder();
        make_folder();
        ck_assert_int_eq(mkdir(path_of("journal"), 0700), 0);
        write_file(segment(), whole.data, whole.length);
        flip(segment(), position, 0x10);
        open_store();
        expect_one_lost(7);
        ck_assert_uint_eq(get_small(0, 20), 20);
        if (position % 3 == 0)
            wait_until_filed();
    }
    free(whole.data);
    remove_folder();
}
END_TEST

/* The same while the daemon runs: who reads it first finds it, a GET or the thread that files. */
START_TEST(damage_while_it_runs_is_a_miss)
{
    for (unsigned i = 0; i < 2; i++) {
        start_with_journal();
        put_small(0, 20);
        flip(segment(), size_of(segment()) - 10, 1);
        if (i > 0)
            wait_until_filed();
        ck_assert_uint_eq(get_small(0, 20), 19);
        ck_assert(!has_file(19));
        ck_assert_int_eq(put(nth_key(19), (struct put){.seed = 19}), STORE_OK);
        ck_assert_uint_eq(inspect("").entries, 20);
        remove_folder();
    }
}
END_TEST

/* A value that was replaced is not to come back where the new one is damaged. */
static void live_and_replace(void)
{
    ck_assert_int_eq(put("key-0", small(777)), STORE_OK);
}

START_TEST(what_was_replaced_does_not_come_back_for_what_is_damaged)
{
    start_with_journal();
    put_small(0, 5);
    wait_until_filed();
    close_store();
    live_and_die(live_and_replace);
    ck_assert(has_file(0));
    flip(segment(), 60, 1); /* in the image's header */
    open_store();
    ck_assert(!get(nth_key(0), small(777)));
    ck_assert_uint_eq(get_small(1, 5), 4);
    ck_assert_uint_eq(inspect_exactly().entries, 4);
    remove_folder();
}
END_TEST

/* What was put since is not to go with it at the next start. */
static void live_with_damage(void)
{
    struct put large = {.seed = 9, .length = 70000, .overwrite = true};
    ck_assert(!get(nth_key(3), small(3)));
    ck_assert(!get(nth_key(4), small(4)));
    ck_assert_int_eq(put(nth_key(3), large), STORE_OK);
    ck_assert_int_eq(put(nth_key(4), large), STORE_OK);
}

START_TEST(what_replaced_what_was_damaged_stays)
{
    const struct put large = {.seed = 9, .length = 70000};
    const off_t begin = sizeof(struct fs_segment_header) + sizeof(struct fs_segment_record);
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_small);
    flip(segment(), begin + 3 * RECORD + 30, 1);           /* in its header */
    flip(segment(), begin + 4 * RECORD + RECORD - 500, 1); /* in its value */
    live_and_die(live_with_damage);
    open_store();
    ck_assert(get(nth_key(3), large));
    ck_assert(get(nth_key(4), large));
    ck_assert_uint_eq(get_small(0, 3) + get_small(5, 20), 18);
    wait_until_filed();
    ck_assert(get(nth_key(3), large));
    ck_assert(get(nth_key(4), large));
    ck_assert_uint_eq(inspect_exactly().entries, 20);
    remove_folder();
}
END_TEST

/* A client's value that looks like records is not taken for some, even where a record is damaged.
 */
static struct bytes forged;

static void live_and_forge(void)
{
    struct ask ask = new_ask(STORE_PUT, "forger");
    struct value *value = value_new((const uint8_t *)"forger", 6, (uint32_t)forged.length);
    memcpy(value_bytes(value), forged.data, forged.length);
    value->expires = CLOCK_NEVER;
    ask.call.value = value;
    ck_assert_int_eq(run(&ask), STORE_OK);
}

START_TEST(nobody_can_forge_a_record)
{
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_small);
    forged = read_file(segment());
    forged.length = FS_JOURNAL_VALUE_MAX - 100;
    remove_folder();
    make_folder();
    live_and_die(live_and_forge);
    flip(segment(), 20, 1); /* the record before the value */
    open_store();
    ck_assert_uint_eq(get_small(0, 20), 0);
    ck_assert_uint_eq(inspect_exactly().entries, 0);
    free(forged.data);
    remove_folder();
}
END_TEST

START_TEST(garbage_for_a_journal_is_passed_over)
{
    uint8_t noise[5000];
    fill(noise, sizeof(noise), 1);
    start_with_journal();
    put_small(0, 5);
    close_store();
    write_file(segment(), noise, sizeof(noise));
    write_file(path_of("journal/00000002"), noise, 3);
    write_file(path_of("journal/README"), "x", 1);
    open_store();
    ck_assert_uint_eq(get_small(0, 5), 5);
    put_small(5, 10);
    ck_assert_uint_eq(get_small(0, 10), 10);
    ck_assert_uint_eq(inspect_exactly().entries, 10);
    ck_assert(exists(path_of("journal/README")));
    remove_folder();
}
END_TEST

/* Between any two steps of filing. */

static void live_until_filed_and_not_synced(void)
{
    syncs.fail_syncfs = true;
    put_small(0, 20);
    for (int64_t end = clock_now() + WAIT_MS; !has_file(19) && clock_now() < end;)
        usleep(10000);
    ck_assert_int_eq(put(nth_key(1), small(1001)), STORE_OK);
    ck_assert_int_eq(run_op(STORE_DELETE, nth_key(2)), STORE_OK);
}

START_TEST(a_kill_between_the_files_and_the_end_of_the_segment_is_no_harm)
{
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_until_filed_and_not_synced);
    ck_assert(has_file(19));
    /* The power was lost, too: the files had not reached the disk. */
    write_file(file_of(nth_key(7)), "", 0);
    ck_assert_int_eq(unlink(file_of(nth_key(8))), 0);
    open_store();
    ck_assert(get(nth_key(1), small(1001)));
    ck_assert(!get(nth_key(2), small(2)));
    ck_assert_uint_eq(get_small(3, 20), 17);
    wait_until_filed();
    ck_assert_uint_eq(get_small(3, 20), 17);
    ck_assert_uint_eq(inspect_exactly().entries, 19);
    remove_folder();
}
END_TEST

/* The segment was filed and is there again, as after a loss of power before its removal was on the
 * disk; nothing had been changed since, for that comes only after it. */
START_TEST(a_segment_that_is_there_again_is_filed_again)
{
    bench.journal_size = JOURNAL;
    make_folder();
    live_and_die(live_small);
    struct bytes whole = read_file(segment());
    open_store();
    wait_until_filed();
    close_store();
    write_file(segment(), whole.data, whole.length);
    free(whole.data);
    make_unclean();
    open_store();
    ck_assert_uint_eq(get_small(0, 20), 20);
    wait_until_filed();
    ck_assert_uint_eq(get_small(0, 20), 20);
    ck_assert_uint_eq(inspect_exactly().entries, 20);
    remove_folder();
}
END_TEST

START_TEST(files_whose_sync_failed_are_written_again)
{
    start_with_journal();
    syncs.fail_syncfs = true;
    put_small(0, 20);
    for (int64_t end = clock_now() + WAIT_MS; syncs.syncfs == 0 && clock_now() < end;)
        usleep(10000);
    ck_assert_int_ge(syncs.syncfs, 1);
    ck_assert_uint_eq(files_in(path_of("journal")), 1);
    write_file(file_of(nth_key(7)), "", 0);
    ck_assert_uint_eq(get_small(0, 20), 20);
    syncs.fail_syncfs = false;
    wait_until_filed();
    ck_assert_uint_eq(get_small(0, 20), 20);
    remove_folder();
}
END_TEST

/* PERSIST of a disk that fails. */
START_TEST(what_the_journal_could_not_sync_is_given_up)
{
    start_with_journal();
    put_small(0, 10);
    ck_assert_int_eq(persist(), STORE_OK);
    put_small(10, 20);
    syncs.fail_fdatasync = true;
    ck_assert_int_eq(persist(), STORE_FAILED);
    syncs.fail_fdatasync = false;
    ck_assert_uint_eq(get_small(0, 10), 10);
    ck_assert_uint_eq(get_small(10, 20), 0);
    /* What the segment had made void may count again after a crash, as long as it is there. */
    ck_assert_int_eq(persist(), STORE_FAILED);
    wait_until_filed();
    ck_assert_int_eq(persist(), STORE_OK);
    put_small(10, 20);
    ck_assert_int_eq(persist(), STORE_OK);
    ck_assert_uint_eq(get_small(0, 20), 20);
    wait_until_filed();
    reopen_store();
    ck_assert_uint_eq(get_small(0, 20), 20);
    remove_folder();
}
END_TEST

/* All that goes at once. */

static void live_and_clear(void)
{
    put_small(0, 50);
    struct store_call call = inspect("key-1");
    ck_assert_uint_eq(clear("key-1"), call.entries);
    ck_assert_uint_eq(get_small(10, 20), 0);
    ck_assert_uint_eq(inspect("").entries, 39);
}

START_TEST(what_is_cleared_stays_away)
{
    bench.journal_size = JOURNAL;
    make_folder();
    for (unsigned i = 0; i < 2; i++) {
        live_and_die(live_and_clear);
        open_store();
        ck_assert_uint_eq(get_small(0, 50), 39);
        ck_assert_uint_eq(inspect_exactly().entries, 39);
        wait_until_filed();
        close_store();
    }
    open_store();
    put_small(50, 60);
    ck_assert_uint_eq(clear(""), 49);
    ck_assert_uint_eq(inspect("").entries, 0);
    reopen_store();
    ck_assert_uint_eq(inspect("").entries, 0);
    remove_folder();
}
END_TEST

enum { BOUND = 4 << 20 };

static uint64_t bytes_on_disk(void)
{
    uint64_t bytes = journal_bytes();
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "entries/%02x", i);
        bytes += files_in(path_of(name)) * UINT64_C(4096);
    }
    return bytes;
}

static void live_beyond_the_bound(void)
{
    put_small(0, 3000);
    ck_assert_uint_le(bytes_on_disk(), BOUND + BOUND / 20);
}

START_TEST(what_is_evicted_stays_away)
{
    bench.journal_size = JOURNAL;
    make_folder();
    bench.config.max_size = BOUND;
    live_and_die(live_beyond_the_bound);
    open_store();
    uint64_t entries = inspect_exactly().entries;
    ck_assert_uint_gt(entries, 500);
    ck_assert_uint_le(get_small(0, 3000), entries);
    wait_until_filed();
    ck_assert_uint_le(bytes_on_disk(), BOUND + BOUND / 20);
    /* Upkeep may just be at work. */
    bool same = false;
    for (int64_t end = clock_now() + WAIT_MS; !same && clock_now() < end;) {
        entries = inspect("").entries;
        same = get_small(0, 3000) == entries && inspect("").entries == entries;
    }
    ck_assert(same);
    ck_assert_uint_gt(entries, 500);
    remove_folder();
}
END_TEST

START_TEST(what_ends_in_the_journal_is_gone)
{
    start_with_journal();
    ck_assert_int_eq(put("short", (struct put){.seed = 1, .length = 10, .lives = 50}), STORE_OK);
    ck_assert_int_eq(put("long", (struct put){.seed = 1, .length = 10, .lives = HOUR}), STORE_OK);
    int64_t before = end_of("long");
    for (int64_t end = clock_now() + WAIT_MS; inspect("").entries > 1 && clock_now() < end;)
        usleep(10000);
    ck_assert(!get("short", (struct put){.seed = 1, .length = 10}));
    reopen_store();
    ck_assert_int_le(end_of("long"), before + 5);
    ck_assert_int_ge(end_of("long"), before - 1000);
    ck_assert_uint_eq(inspect("").entries, 1);
    remove_folder();
}
END_TEST

/* Many at once: one batch has the same key more than once. */
START_TEST(of_many_that_wait_together_one_stores)
{
    enum { COUNT = 600 };
    static struct ask asks[COUNT];
    unsigned stored = 0, finished = 0;
    start_with_journal();
    for (unsigned i = 0; i < COUNT; i++) {
        asks[i] = new_put("same", (struct put){.seed = i, .length = 100});
        asks[i].call.loop = bench.loop;
        asks[i].call.done = ask_done;
        ck_assert_int_eq(store_submit(bench.store, &asks[i].call), STORE_PENDING);
    }
    for (int64_t end = clock_now() + WAIT_MS; finished < COUNT && clock_now() < end;) {
        loop_step(bench.loop, 10);
        finished = 0;
        for (unsigned i = 0; i < COUNT; i++)
            finished += asks[i].finished;
    }
    ck_assert_uint_eq(finished, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        stored += asks[i].call.status == STORE_OK;
        if (asks[i].call.status == STORE_OK)
            ck_assert(get("same", (struct put){.seed = i, .length = 100}));
        else
            ck_assert_int_eq(asks[i].call.status, STORE_EXISTS);
    }
    ck_assert_uint_eq(stored, 1);
    remove_folder();
}
END_TEST

/* A limit on the size of files stands for a full disk. */
START_TEST(a_full_disk_fails_puts_and_nothing_else)
{
    struct rlimit before;
    start_with_journal();
    signal(SIGXFSZ, SIG_IGN);
    put_small(0, 10);
    off_t size = size_of(segment());
    limit(RLIMIT_FSIZE, (rlim_t)size + 1000, &before);
    struct ask ask = new_put("more", small(1));
    ck_assert_int_eq(run(&ask), STORE_FAILED);
    ck_assert_int_eq(ask.call.error, ERROR_NO_SPACE);
    setrlimit(RLIMIT_FSIZE, &before);
    ck_assert_int_eq(size_of(segment()), size);
    ck_assert(!get("more", small(1)));
    ck_assert_int_eq(put("more", small(2)), STORE_OK);
    reopen_store();
    ck_assert(get("more", small(2)));
    ck_assert_uint_eq(get_small(0, 10), 10);
    remove_folder();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filesystem-journal");
    TCase *tcase = suite_case(suite, "journal", 120);
    tcase_add_test(tcase, small_values_lie_in_the_journal_and_are_found);
    tcase_add_test(tcase, after_a_pause_they_have_files);
    tcase_add_test(tcase, persist_syncs_the_journal_and_no_files);
    tcase_add_test(tcase, readers_find_what_is_being_filed);
    tcase_add_test(tcase, a_full_journal_takes_no_more);
    tcase_add_test(tcase, many_segments_are_filed_in_time);
    tcase_add_test(tcase, a_replay_keeps_the_order_of_changes);
    tcase_add_test(tcase, a_segment_is_appended_to_after_a_kill);
    tcase_add_test(tcase, a_torn_tail_is_cut_off);
    tcase_add_test(tcase, what_was_persisted_survives_holes_in_what_was_not);
    tcase_add_test(tcase, a_damaged_record_is_a_miss_and_no_other);
    tcase_add_test(tcase, damage_while_it_runs_is_a_miss);
    tcase_add_test(tcase, what_was_replaced_does_not_come_back_for_what_is_damaged);
    tcase_add_test(tcase, what_replaced_what_was_damaged_stays);
    tcase_add_test(tcase, nobody_can_forge_a_record);
    tcase_add_test(tcase, garbage_for_a_journal_is_passed_over);
    tcase_add_test(tcase, a_kill_between_the_files_and_the_end_of_the_segment_is_no_harm);
    tcase_add_test(tcase, a_segment_that_is_there_again_is_filed_again);
    tcase_add_test(tcase, files_whose_sync_failed_are_written_again);
    tcase_add_test(tcase, what_the_journal_could_not_sync_is_given_up);
    tcase_add_test(tcase, what_is_cleared_stays_away);
    tcase_add_test(tcase, what_is_evicted_stays_away);
    tcase_add_test(tcase, what_ends_in_the_journal_is_gone);
    tcase_add_test(tcase, of_many_that_wait_together_one_stores);
    tcase_add_test(tcase, a_full_disk_fails_puts_and_nothing_else);
    return suite_run(suite);
}
