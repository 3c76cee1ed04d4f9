/*
 * One system call of the store fails, at every place where it can: what was promised is kept.
 *
 *     faults --daemon=PROGRAM --shim=SHIM --backend=NAME --group=sync|write|file
 *            [--error=eio|enospc|short] [--mode=once|early|for-good] [--call=N]
 *            [--rounds=N] [--changes=N] [--seed=N] [--keep] [-- OPTION...]
 *
 * A round: a store is filled, persisted and killed. The daemon starts again, and from there on the
 * Nth call on its files of the group fails, and in mode for-good all after it, while one client
 * goes through a fixed script of puts, overwrites, deletes, clears and PERSISTs. In mode early that
 * ends with the first PERSIST after the fault that is OK, else it goes on. The daemon is killed,
 * what failed syncs did not bring to the disk is taken out of the files (see fault.h), and it
 * starts without faults. Then every key is looked at. Checked is what histories checks, where from
 * the fault to the next PERSIST that is answered OK a value may go by itself (but not come back),
 * and what is answered with an error may have happened or not.
 *
 * Without --call every N has its round, up to the first round that ends without a fault; with
 * --rounds only so many, by chance. Without --error and --mode all that the group has.
 *
 * The last line is `good …` or `bad …`; stuck counts rounds in which, after one fault, PERSIST was
 * not OK again, which breaks no promise. Exit status as that of histories.
 */
#include "../history/server.h"
#include "../history/trace.h"
#include "fault.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FILL = 30, PERSISTS_MAX = 100, EXCERPTS = 1, CALLS_MAX = 5000 };

enum mode { ONCE, EARLY, FOR_GOOD, MODES };

static const char mode_names[MODES][16] = {"once", "early", "for-good"};

#define BIT(call) (1U << (call))

static const struct group {
    const char *name;
    uint32_t kinds;
    int errors[3];
} groups[] = {
    {"sync",
     BIT(FAULT_FSYNC) | BIT(FAULT_FDATASYNC) | BIT(FAULT_SYNCFS) | BIT(FAULT_SYNC_FILE_RANGE),
     {EIO}},
    {"write", BIT(FAULT_WRITE), {ENOSPC, EIO, FAULT_SHORT}},
    {"file",
     BIT(FAULT_OPEN) | BIT(FAULT_RENAME) | BIT(FAULT_UNLINK) | BIT(FAULT_MKDIR) |
         BIT(FAULT_FTRUNCATE) | BIT(FAULT_FALLOCATE) | BIT(FAULT_MMAP),
     {EIO, ENOSPC}},
};

struct plan {
    const char *program, *backend, *shim;
    const struct group *group;
    int error; /* 0: all of the group */
    int mode;  /* MODES: all */
    uint32_t call;
    unsigned long rounds;
    int changes;
    uint64_t seed;
    bool keep;
    const char *options[SERVER_OPTIONS];
};

/* One round. */
struct round {
    const struct plan *plan;
    enum mode mode;
    struct server server;
    struct trace trace;
    struct client client;
    struct fault_control *control;
    char control_path[80], lost_path[80];
    char environment[3][160];
    char *variables[4];
    uint64_t random, last_end;
    uint32_t writes, failed;
    struct span fault; /* end is 0 while none is open */
    bool is_fault_open;
    bool bad;   /* something is wrong that no history shows */
    bool stuck; /* PERSIST was not OK again after one fault */
};

static void complain(struct round *round, const char *what, const char *more)
{
    printf("violation: %s %s\n", what, more);
    round->bad = true;
}

/* Where a fault happened between two looks, values may go from the first look on. */
static void look_for_fault(struct round *round)
{
    uint32_t failed = atomic_load(&round->control->failed);
    if (failed != round->failed && !round->is_fault_open) {
        round->is_fault_open = true;
        round->fault.begin = round->last_end;
    }
    round->failed = failed;
}

static void close_fault(struct round *round, uint64_t end)
{
    if (!round->is_fault_open || end < round->fault.begin)
        return;
    round->fault.end = end;
    round->is_fault_open = false;
    trace_vanish(&round->trace, round->fault);
}

static enum answer ask(struct round *round, struct record request)
{
    struct record *record = log_reserve(&round->trace.logs[0], 1);
    *record = request;
    round->trace.logs[0].count++;
    if (!client_send(&round->client, record, 1) || !client_receive(&round->client, record)) {
        complain(round, "no answer", errno == ETIMEDOUT ? "in time" : "");
        return NO_ANSWER;
    }
    look_for_fault(round);
    /* What it says is on the disk has come through the fault. */
    if (record->verb == PERSIST && record->answer == OK)
        close_fault(round, record->begin - 1);
    if (record->answer == WRONG || (record->answer == ERROR && round->failed == 0))
        complain(round, "answered", round->client.detail);
    round->last_end = record->end;
    return (enum answer)record->answer;
}

static struct record change(struct round *round)
{
    static const enum verb verbs[] = {PUT,           PUT,    PUT,    PUT_OVERWRITE, PUT_OVERWRITE,
                                      PUT_OVERWRITE, DELETE, DELETE, GET,           HEAD};
    uint64_t chance = random_next(&round->random);
    struct record record = {.verb = (uint8_t)verbs[chance % 10], .key = (chance >> 8) % KEYS};
    if (record.verb == PUT || record.verb == PUT_OVERWRITE)
        record.write = ++round->writes;
    return record;
}

static void look_at_all(struct round *round)
{
    for (uint16_t key = 0; key < KEYS && !round->bad; key++)
        ask(round, (struct record){.verb = GET, .key = key});
}

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

/* Asks until it is OK; a disk that fails for good is given up after some. */
static void persist(struct round *round)
{
    int most = round->control->for_good ? 3 : PERSISTS_MAX;
    for (int i = 0; i < most && !round->bad; i++) {
        if (ask(round, (struct record){.verb = PERSIST}) == OK)
            return;
        pause_briefly();
    }
    if (!round->control->for_good && !round->bad)
        round->stuck = true;
}

/* In mode early nothing is changed any more after the fault. */
static bool is_over(const struct round *round)
{
    return round->mode == EARLY && round->failed > 0;
}

static void change_some(struct round *round, int count)
{
    for (int i = 0; i < count && !round->bad && !is_over(round); i++) {
        ask(round, change(round));
        if (i % (count / 3 + 1) == count / 3)
            ask(round, (struct record){.verb = PERSIST});
    }
}

static void script(struct round *round)
{
    change_some(round, round->plan->changes / 2);
    if (!round->bad && !is_over(round))
        ask(round, (struct record){.verb = CLEAR, .key = 1});
    change_some(round, round->plan->changes / 2);
    persist(round);
    look_at_all(round);
    change_some(round, 10);
    persist(round);
    look_at_all(round);
}

static uint64_t lost_inode;
static char lost_name[256];

static int find_inode(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)kind, (void)walk;
    if (status->st_ino == lost_inode)
        snprintf(lost_name, sizeof(lost_name), "%s", path);
    return status->st_ino == lost_inode;
}

/* Whether a later line of the file says that the page has been written since. */
static bool is_written_later(const struct fault_page *pages, size_t count, size_t at)
{
    for (size_t i = at + 1; i < count; i++)
        if (pages[i].inode == pages[at].inode && pages[i].number == pages[at].number)
            return true;
    return false;
}

static void put_back(const struct round *round, const struct fault_page *page)
{
    struct stat status;
    off_t from = (off_t)(page->number * FAULT_PAGE);
    lost_inode = page->inode;
    if (nftw(round->server.store, find_inode, 16, FTW_PHYS) != 1)
        return;
    int fd = open(lost_name, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &status) == 0 && status.st_size > from) {
        size_t length = (size_t)(status.st_size - from);
        if (pwrite(fd, page->bytes, length < FAULT_PAGE ? length : FAULT_PAGE, from) < 0)
            perror(lost_name);
    }
    if (fd >= 0)
        close(fd);
}

/* Makes the files what the disk has, where failed syncs left it behind. */
static void lose_power(const struct round *round)
{
    struct stat status;
    int fd = open(round->lost_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size == 0) {
        if (fd >= 0)
            close(fd);
        return;
    }
    const struct fault_page *pages =
        mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    size_t count = (size_t)status.st_size / sizeof(*pages);
    for (size_t i = 0; pages != MAP_FAILED && i < count; i++)
        if (pages[i].is_lost && !is_written_later(pages, count, i))
            put_back(round, &pages[i]);
    close(fd);
}

static bool connect_client(struct round *round)
{
    return client_connect(&round->client, round->server.socket, round->server.seconds);
}

static void kill_daemon(struct round *round)
{
    uint64_t time = server_kill(&round->server);
    look_for_fault(round);
    close_fault(round, time);
    trace_crash(&round->trace, time);
    round->last_end = time;
}

static bool prepare(struct round *round)
{
    const struct plan *plan = round->plan;
    round->server =
        (struct server){.program = plan->program, .backend = plan->backend, .seconds = 30};
    memcpy(round->server.options, plan->options, sizeof(plan->options));
    round->random = plan->seed;
    if (!server_init(&round->server) || !client_init(&round->client, 0))
        return false;
    snprintf(round->control_path, sizeof(round->control_path), "%s/control", round->server.folder);
    snprintf(round->lost_path, sizeof(round->lost_path), "%s/lost", round->server.folder);
    snprintf(round->environment[0], sizeof(round->environment[0]), "LD_PRELOAD=%s", plan->shim);
    snprintf(round->environment[1], sizeof(round->environment[1]), FAULT_CONTROL "=%s",
             round->control_path);
    snprintf(round->environment[2], sizeof(round->environment[2]), FAULT_LOST "=%s",
             round->lost_path);
    for (size_t i = 0; i < 3; i++)
        round->variables[i] = round->environment[i];
    int fd = open(round->control_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(*round->control)) != 0)
        return false;
    round->control = mmap(NULL, sizeof(*round->control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return round->control != MAP_FAILED;
}

static bool fill(struct round *round)
{
    if (!server_start(&round->server) || !connect_client(round))
        return false;
    change_some(round, FILL);
    persist(round);
    kill_daemon(round);
    return !round->bad;
}

static void with_faults(struct round *round)
{
    int status;
    round->server.environment = round->variables;
    snprintf(round->control->directory, sizeof(round->control->directory), "%s",
             round->server.store);
    bool runs = server_try_start(&round->server, &status);
    look_for_fault(round);
    if (runs && connect_client(round))
        script(round);
    else if (WIFSIGNALED(status) || (!runs && round->failed == 0))
        complain(round, "the daemon", "did not start, or crashed in it");
    if (runs && !server_runs(&round->server))
        complain(round, "the daemon", "has ended by itself");
    kill_daemon(round);
    lose_power(round);
    round->server.environment = NULL;
}

static void without_faults(struct round *round)
{
    if (!server_start(&round->server) || !connect_client(round)) {
        complain(round, "the daemon", "does not start after the fault");
        return;
    }
    /* Errors are no longer excused. */
    round->failed = 0;
    atomic_store(&round->control->failed, 0);
    round->client.number = 1;
    look_at_all(round);
    persist(round);
    round->bad |= !server_stop(&round->server);
}

struct outcome {
    bool bad, failed, stuck;
    uint32_t counted;
};

static const char *error_name(int error)
{
    return error == EIO ? "eio" : error == ENOSPC ? "enospc" : "short";
}

static const char *call_name(uint32_t call)
{
    static const char names[FAULT_CALLS][16] = {
        "write",  "fsync",  "fdatasync", "syncfs",    "sync_file_range", "open",
        "rename", "unlink", "mkdir",     "ftruncate", "fallocate",       "mmap"};
    return names[call % FAULT_CALLS];
}

static struct outcome run_round(const struct plan *plan, uint32_t nth, int error, enum mode mode)
{
    struct round round = {.plan = plan, .mode = mode};
    struct outcome outcome = {.bad = true};
    if (prepare(&round)) {
        *round.control = (struct fault_control){
            .kinds = plan->group->kinds, .nth = nth, .for_good = mode == FOR_GOOD, .error = error};
        if (fill(&round)) {
            with_faults(&round);
            outcome.failed = atomic_load(&round.control->failed) > 0;
            outcome.counted = atomic_load(&round.control->counted);
            without_faults(&round);
        }
        outcome.stuck = round.stuck;
        struct findings found = trace_check(&round.trace, 1, EXCERPTS);
        outcome.bad = round.bad || found.in_use + found.starts + found.given_up > 0;
        if (outcome.bad)
            printf("bad: --group=%s --call=%u --error=%s --mode=%s --seed=%llu: %s %s\n\n",
                   plan->group->name, nth, error_name(error), mode_names[mode],
                   (unsigned long long)plan->seed,
                   call_name(atomic_load(&round.control->first_failed)),
                   round.control->first_path + strlen(round.control->directory));
        munmap(round.control, sizeof(*round.control));
    }
    client_free(&round.client);
    server_free(&round.server, plan->keep && outcome.bad);
    trace_free(&round.trace);
    fflush(stdout);
    return outcome;
}

struct sums {
    unsigned rounds, bad, faults, stuck;
};

static bool count(struct sums *sums, struct outcome outcome)
{
    sums->rounds++;
    sums->bad += outcome.bad;
    sums->faults += outcome.failed;
    sums->stuck += outcome.stuck;
    return outcome.failed;
}

static void run_kind(const struct plan *plan, struct sums *sums, uint64_t *random, uint32_t calls,
                     int error, enum mode mode)
{
    if (plan->call != 0) {
        count(sums, run_round(plan, plan->call, error, mode));
    } else if (plan->rounds != 0) {
        for (unsigned long i = 0; i < plan->rounds; i++) {
            uint32_t nth = 1 + (uint32_t)(random_next(random) % calls);
            count(sums, run_round(plan, nth, error, mode));
        }
    } else {
        for (uint32_t nth = 1; nth < CALLS_MAX; nth++)
            if (!count(sums, run_round(plan, nth, error, mode)) && nth > calls)
                break;
    }
}

static struct sums run_plan(const struct plan *plan)
{
    struct sums sums = {0};
    uint64_t random = plan->seed;
    struct outcome without = run_round(plan, 0, EIO, ONCE);
    count(&sums, without);
    if (without.counted == 0) {
        printf("violation: no call of this group was counted\n");
        sums.bad++;
        return sums;
    }
    for (size_t i = 0; i < 3 && plan->group->errors[i] != 0; i++)
        for (int mode = 0; mode < MODES; mode++)
            if ((plan->error == 0 || plan->error == plan->group->errors[i]) &&
                (plan->mode == MODES || plan->mode == mode))
                run_kind(plan, &sums, &random, without.counted, plan->group->errors[i],
                         (enum mode)mode);
    return sums;
}

static int parse_error(const char *text)
{
    return strcmp(text, "eio") == 0 ? EIO : strcmp(text, "enospc") == 0 ? ENOSPC : FAULT_SHORT;
}

static int parse_mode(const char *text)
{
    int mode = 0;
    while (mode < MODES && strcmp(mode_names[mode], text) != 0)
        mode++;
    return mode;
}

static bool parse(struct plan *plan, int argc, char **argv)
{
    static const struct option options[] = {
        {"daemon", required_argument, NULL, 'd'}, {"backend", required_argument, NULL, 'b'},
        {"shim", required_argument, NULL, 'p'},   {"group", required_argument, NULL, 'g'},
        {"error", required_argument, NULL, 'e'},  {"mode", required_argument, NULL, 'm'},
        {"call", required_argument, NULL, 'c'},   {"rounds", required_argument, NULL, 'r'},
        {"seed", required_argument, NULL, 's'},   {"changes", required_argument, NULL, 'n'},
        {"keep", no_argument, NULL, 'K'},         {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned long number = optarg != NULL ? strtoul(optarg, NULL, 10) : 0;
        switch (option) {
        case 'd':
            plan->program = optarg;
            break;
        case 'b':
            plan->backend = optarg;
            break;
        case 'p':
            plan->shim = optarg;
            break;
        case 'g':
            for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
                if (strcmp(groups[i].name, optarg) == 0)
                    plan->group = &groups[i];
            break;
        case 'e':
            plan->error = parse_error(optarg);
            break;
        case 'm':
            plan->mode = parse_mode(optarg);
            break;
        case 'c':
            plan->call = (uint32_t)number;
            break;
        case 'r':
            plan->rounds = number;
            break;
        case 'n':
            plan->changes = (int)number;
            break;
        case 's':
            plan->seed = number;
            break;
        case 'K':
            plan->keep = true;
            break;
        default:
            return false;
        }
    }
    for (int i = optind; i < argc && i - optind < SERVER_OPTIONS - 1; i++)
        plan->options[i - optind] = argv[i];
    return plan->program != NULL && plan->backend != NULL && plan->shim != NULL &&
           plan->group != NULL;
}

int main(int argc, char **argv)
{
    struct plan plan = {.mode = MODES, .changes = 60, .seed = (uint64_t)time(NULL)};
    if (!parse(&plan, argc, argv)) {
        fprintf(stderr, "faults: bad arguments; see the head of tests/fault/faults.c\n");
        return 2;
    }
    struct sums sums = run_plan(&plan);
    printf("%s group=%s bad=%u stuck=%u rounds=%u faults=%u seed=%llu\n",
           sums.bad == 0 ? "good" : "bad", plan.group->name, sums.bad, sums.stuck, sums.rounds,
           sums.faults, (unsigned long long)plan.seed);
    return sums.bad == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
