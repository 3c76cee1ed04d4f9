/*
 * Many clients on few keys, every verb, and a check that what they were answered fits together.
 *
 *     histories --daemon=PROGRAM --backend=NAME [--seed=N] [--operations=N] [--kills=N]
 *               [--clients=N] [--evicts] [--seconds=N] [--keep] [-- OPTION...]
 *
 * OPTIONs are added to the daemon's command line. With --kills the daemon is killed so many times
 * amid the operations and started again; without, it is stopped at the end and started once more.
 * --evicts says that the store is too small for all values, so that any may go by itself.
 *
 * The last line is `good …` or `bad …`: in_use, answers that don't fit together (with --kills these
 * alone are not bad: they are found without it too); starts, starts after which a persisted value
 * was missing or something was there that may not; errors, answers that are wrong by themselves;
 * the seed. Exit status: 0 if good, 1 if bad, 2 if it could not run.
 */
#include "server.h"
#include "trace.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 4, CLIENTS_MAX = 12, EXCERPTS = 3 };

struct plan {
    uint64_t seed;
    unsigned long operations, kills;
    unsigned clients, seconds;
    bool evicts, keep;
};

struct run {
    struct plan plan;
    struct server server;
    struct trace trace;
    struct worker {
        pthread_t thread;
        struct run *run;
        struct client client;
        uint64_t random;
        uint32_t writes;
        int lease; /* the key whose lease it holds, or -1 */
        unsigned long left;
    } workers[CLIENTS_MAX + 1]; /* the last looks at every key after a start */
    atomic_ulong done;
    atomic_uint errors, running, busy;
    atomic_bool killing;
};

static pthread_mutex_t print_lock = PTHREAD_MUTEX_INITIALIZER;

static void complain(struct run *run, const struct record *record, const char *what)
{
    pthread_mutex_lock(&print_lock);
    if (atomic_fetch_add(&run->errors, 1) < EXCERPTS)
        printf("violation: client %u, verb %u on %s: %s\n", record->client, record->verb,
               record->verb < CLEAR ? key_name(record->key) : "-", what);
    pthread_mutex_unlock(&print_lock);
}

static unsigned below(struct worker *worker, unsigned limit)
{
    return (unsigned)(random_next(&worker->random) % limit);
}

static uint32_t next_write(struct worker *worker)
{
    return ++worker->writes * 16 + worker->client.number;
}

/* Of 1,000 requests. Before a kill mostly changes count, and PERSIST. */
static const struct weight {
    enum verb verb;
    unsigned in_use, before_kill;
} weights[] = {
    {GET, 300, 60},    {HEAD, 100, 20},  {PUT, 220, 300},  {PUT_OVERWRITE, 190, 400},
    {DELETE, 80, 120}, {GET_FD, 30, 10}, {PUT_FD, 20, 20}, {GET_LEASE, 40, 35},
    {INSPECT, 3, 3},   {PERSIST, 5, 10}, {CLEAR, 12, 22},
};

static enum verb choose_verb(struct worker *worker)
{
    bool kills = worker->run->plan.kills > 0;
    unsigned chance = below(worker, 1000);
    const struct weight *one = weights;
    while (chance >= (kills ? one->before_kill : one->in_use)) {
        chance -= kills ? one->before_kill : one->in_use;
        one++;
    }
    return one->verb;
}

/* Mostly the group that nobody else is much about. */
static uint16_t choose_group(struct worker *worker)
{
    unsigned chance = below(worker, 100);
    return chance < 85 ? 2 : chance < 97 ? (uint16_t)below(worker, 2) : ALL_GROUPS;
}

/* last: the key of the request before it, which is often asked about again. */
static void choose(struct worker *worker, struct record *record, uint16_t last)
{
    record->verb = (uint8_t)choose_verb(worker);
    record->key = below(worker, 3) == 0 ? last : (uint16_t)below(worker, KEYS);
    if (record->verb == CLEAR)
        record->key = choose_group(worker);
    if (record->verb >= PUT && record->verb <= PUT_FD) {
        record->write = next_write(worker);
        record->ttl = below(worker, 100) == 0 ? 1 : 0;
    }
}

/* Whoever holds a lease ends it at once, or, rarely, by letting its time pass. */
static void end_lease(struct worker *worker, struct record *record)
{
    unsigned chance = below(worker, 100);
    *record = (struct record){.key = (uint16_t)worker->lease, .verb = HEAD};
    if (chance < 80)
        *record = (struct record){
            .key = (uint16_t)worker->lease, .verb = PUT, .write = next_write(worker)};
    else if (chance < 98)
        record->verb = DELETE;
    worker->lease = -1;
}

/* A GET that waits for a lease ends a batch. */
static size_t compose(struct worker *worker, struct record *batch)
{
    size_t wanted = below(worker, 5) < 3 ? 1 : 2 + below(worker, BATCH - 1);
    size_t count = 0;
    uint16_t last = (uint16_t)below(worker, KEYS);
    if (worker->lease >= 0)
        end_lease(worker, &batch[count++]);
    while (count < wanted && (count == 0 || batch[count - 1].verb != GET_LEASE)) {
        choose(worker, &batch[count], last);
        last = batch[count].verb < CLEAR ? batch[count].key : last;
        count++;
    }
    return count;
}

static void look_at(struct worker *worker, struct record *record)
{
    if (record->answer == WRONG)
        complain(worker->run, record, worker->client.detail);
    if (record->answer == ERROR && strncmp(worker->client.detail, "ERROR busy", 10) == 0)
        atomic_fetch_add(&worker->run->busy, 1);
    else if (record->answer == ERROR)
        complain(worker->run, record, worker->client.detail);
    if (record->has_lease)
        worker->lease = record->key;
}

/* False if the connection has ended. */
static bool work_once(struct worker *worker)
{
    struct log *log = &worker->run->trace.logs[worker->client.number];
    struct record *batch = log_reserve(log, BATCH);
    size_t count = compose(worker, batch), answered = 0;
    log->count += count;
    bool good = client_send(&worker->client, batch, count);
    while (good && answered < count) {
        good = client_receive(&worker->client, &batch[answered]);
        if (good)
            look_at(worker, &batch[answered++]);
    }
    if (!good && !atomic_load(&worker->run->killing))
        complain(worker->run, &batch[answered],
                 errno == ETIMEDOUT ? "no answer in time" : "the connection has ended");
    atomic_fetch_add(&worker->run->done, answered);
    worker->left -= answered < worker->left ? answered : worker->left;
    return good;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    while (worker->left > 0 && work_once(worker))
        ;
    atomic_fetch_sub(&worker->run->running, 1);
    return NULL;
}

static bool start_workers(struct run *run, unsigned long each)
{
    atomic_store(&run->running, run->plan.clients);
    atomic_store(&run->killing, false);
    for (unsigned i = 0; i < run->plan.clients; i++) {
        struct worker *worker = &run->workers[i];
        worker->left = each;
        worker->lease = -1;
        if (!client_connect(&worker->client, run->server.socket, run->plan.seconds) ||
            pthread_create(&worker->thread, NULL, work, worker) != 0) {
            perror("a client");
            exit(2);
        }
    }
    return true;
}

static void join_workers(struct run *run)
{
    for (unsigned i = 0; i < run->plan.clients; i++)
        pthread_join(run->workers[i].thread, NULL);
    for (unsigned i = 0; i < run->plan.clients; i++)
        client_disconnect(&run->workers[i].client);
}

/* Asks for every key, so that what is there after a start is known. */
static bool sweep(struct run *run)
{
    struct worker *worker = &run->workers[run->plan.clients];
    struct log *log = &run->trace.logs[worker->client.number];
    bool good = client_connect(&worker->client, run->server.socket, run->plan.seconds);
    for (unsigned key = 0; key < KEYS && good; key++) {
        struct record *record = log_reserve(log, 1);
        *record = (struct record){.verb = GET, .key = (uint16_t)key};
        log->count++;
        good = client_send(&worker->client, record, 1) && client_receive(&worker->client, record);
        if (good)
            look_at(worker, record);
        else
            complain(run, record, "no answer after the start");
    }
    client_disconnect(&worker->client);
    return good;
}

/* Lets the clients work, and kills the daemon amid that, after some operations. */
static bool killed_round(struct run *run, unsigned long operations)
{
    struct worker *chooser = &run->workers[run->plan.clients];
    unsigned long until =
        atomic_load(&run->done) + 20 * run->plan.clients + below(chooser, 2 * (unsigned)operations);
    start_workers(run, operations * 100);
    while (atomic_load(&run->done) < until && atomic_load(&run->running) > 0)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    atomic_store(&run->killing, true);
    bool good = server_runs(&run->server);
    uint64_t time = server_kill(&run->server);
    join_workers(run);
    trace_crash(&run->trace, time);
    return good && server_start(&run->server) && sweep(run);
}

static bool whole_round(struct run *run)
{
    start_workers(run, run->plan.operations / run->plan.clients + 1);
    join_workers(run);
    bool good = server_runs(&run->server);
    uint64_t time = now_ns();
    bool is_kept = strcmp(run->server.backend, "memory") != 0;
    if (good && is_kept) {
        trace_barrier(&run->trace, time);
        good = server_stop(&run->server);
        trace_crash(&run->trace, now_ns());
        good = good && server_start(&run->server) && sweep(run);
    }
    return good;
}

static bool run_all(struct run *run)
{
    bool good = server_init(&run->server) && server_start(&run->server);
    unsigned long kills = run->plan.kills;
    for (unsigned long i = 0; i < kills && good; i++)
        good = killed_round(run, run->plan.operations / kills);
    if (kills == 0 && good)
        good = whole_round(run);
    return good && server_stop(&run->server);
}

static int usage(const char *text)
{
    fprintf(stderr, "histories: %s; see the head of tests/history/histories.c\n", text);
    return 2;
}

static bool parse(struct run *run, int argc, char **argv)
{
    static const struct option options[] = {
        {"daemon", required_argument, NULL, 'd'}, {"backend", required_argument, NULL, 'b'},
        {"seed", required_argument, NULL, 's'},   {"operations", required_argument, NULL, 'o'},
        {"kills", required_argument, NULL, 'k'},  {"clients", required_argument, NULL, 'c'},
        {"evicts", no_argument, NULL, 'e'},       {"seconds", required_argument, NULL, 't'},
        {"keep", no_argument, NULL, 'K'},         {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned long number = optarg != NULL ? strtoul(optarg, NULL, 10) : 0;
        switch (option) {
        case 'd':
            run->server.program = optarg;
            break;
        case 'b':
            run->server.backend = optarg;
            break;
        case 's':
            run->plan.seed = number;
            break;
        case 'o':
            run->plan.operations = number;
            break;
        case 'k':
            run->plan.kills = number;
            break;
        case 'c':
            run->plan.clients = (unsigned)number;
            break;
        case 'e':
            run->plan.evicts = true;
            break;
        case 't':
            run->plan.seconds = (unsigned)number;
            break;
        case 'K':
            run->plan.keep = true;
            break;
        default:
            return false;
        }
    }
    for (int i = optind; i < argc && i - optind < SERVER_OPTIONS - 1; i++)
        run->server.options[i - optind] = argv[i];
    return run->server.program != NULL && run->server.backend != NULL && run->plan.clients > 0 &&
           run->plan.clients <= CLIENTS_MAX;
}

static bool prepare(struct run *run)
{
    run->server.seconds = run->plan.seconds;
    if (run->plan.evicts)
        trace_vanish(&run->trace, (struct span){0, UINT64_MAX});
    for (unsigned i = 0; i <= run->plan.clients; i++) {
        run->workers[i].run = run;
        run->workers[i].random = run->plan.seed * 1000 + i;
        run->workers[i].lease = -1;
        if (!client_init(&run->workers[i].client, i))
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    static struct run run = {.plan = {.operations = 20000, .clients = 8, .seconds = 60}};
    run.plan.seed = (uint64_t)time(NULL);
    if (!parse(&run, argc, argv))
        return usage("bad arguments");
    if (!prepare(&run))
        return usage("no memory");
    uint64_t began = now_ns();
    bool ran = run_all(&run);
    server_free(&run.server, run.plan.keep);
    uint64_t ended = now_ns();
    struct findings found = trace_check(&run.trace, run.plan.clients, EXCERPTS);
    unsigned errors = atomic_load(&run.errors) + !ran;
    /* With kills it is the starts that count: what does not fit in use shows without them too. */
    bool good = errors == 0 && found.given_up == 0 && found.starts == 0 &&
                (found.in_use == 0 || run.plan.kills > 0);
    printf("%s in_use=%zu starts=%zu errors=%u given_up=%zu operations=%lu kills=%lu busy=%u "
           "seed=%llu "
           "ran=%.1f checked=%.1f\n",
           good ? "good" : "bad", found.in_use, found.starts, errors, found.given_up,
           atomic_load(&run.done), run.plan.kills, atomic_load(&run.busy),
           (unsigned long long)run.plan.seed, (double)(ended - began) / 1e9,
           (double)(now_ns() - ended) / 1e9);
    for (unsigned i = 0; i <= run.plan.clients; i++)
        client_free(&run.workers[i].client);
    trace_free(&run.trace);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
