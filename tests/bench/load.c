/*
 * load: asks one server over its Unix socket, checks every reply, and prints what it measured as
 * one JSON object. The same code drives every server; peer.c has what differs.
 *
 * Time and CPU are read at the two ends of the measured window alone. Any reply that is not as it
 * should be, or a miss where none was announced, makes the run fail: there is no figure then.
 */
#include "traffic.h"

#include <err.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 16, PIDS_MAX = 8 };

struct options {
    struct traffic_plan plan;
    unsigned threads, idle;
    double warm, seconds, skew;
    bool misses_are_fine, windowed;
    clockid_t servers[PIDS_MAX];
    unsigned server_count;
};

/* What was used up to a moment. */
struct mark {
    uint64_t at, answered, server_cpu, own_cpu;
    uint64_t machine_busy, machine_all; /* ticks of all processors */
};

static const char usage[] =
    "usage: load [options] SOCKET\n"
    "  --peer NAME          liara (default), memcached, redis, bare\n"
    "  --connections N      50       --in-flight N  1, requests sent at once on each\n"
    "  --threads N          1, of this program; connections are divided among them\n"
    "  --idle N             0, further connections that ask nothing\n"
    "  --put-percent N      0        --only-absent  PUTs do not overwrite\n"
    "  --keys N             100000   --first-key N  0\n"
    "  --skew S             0, exponent of a Zipf choice of keys\n"
    "  --in-sequence        keys one after the other\n"
    "  --size N             100, bytes of a value\n"
    "  --rate N             0, batches a second in all, however fast they are answered\n"
    "  --prefix P           of the connections, with this daemon\n"
    "  --reconnect          a new connection for each batch\n"
    "  --spin US            0, poll this long before sleeping\n"
    "  --seconds S          1        --warm S       0.3, before them\n"
    "  --windowed           measure from the first byte of standard input to its end instead\n"
    "  --count N            so many requests instead, all of them measured\n"
    "  --misses             are no failure\n"
    "  --seed N             1\n"
    "  --pid PID            of the server, for its CPU time; may be repeated\n";

static uint64_t clock_of(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        err(1, "clock_gettime of a server");
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void add_server(struct options *options, pid_t pid)
{
    if (options->server_count == PIDS_MAX)
        errx(2, "at most %d of --pid", PIDS_MAX);
    if (clock_getcpuclockid(pid, &options->servers[options->server_count++]) != 0)
        errx(1, "no process %d", (int)pid);
}

static void machine(struct mark *mark)
{
    unsigned long long ticks[8] = {0};
    FILE *file = fopen("/proc/stat", "re");
    if (file == NULL ||
        fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &ticks[0], &ticks[1], &ticks[2],
               &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]) != 8)
        err(1, "/proc/stat");
    fclose(file);
    for (unsigned i = 0; i < 8; i++)
        mark->machine_all += ticks[i];
    mark->machine_busy = mark->machine_all - ticks[3] - ticks[4];
}

static struct mark take_mark(const struct options *options, struct traffic *const *traffics)
{
    struct mark mark = {0};
    machine(&mark);
    for (unsigned i = 0; i < options->threads; i++)
        mark.answered += traffic_answered(traffics[i]);
    for (unsigned i = 0; i < options->server_count; i++)
        mark.server_cpu += clock_of(options->servers[i]);
    mark.own_cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    mark.at = traffic_clock();
    return mark;
}

/* Draws numbers below keys, the k-th likeliest with weight 1/k^skew. */
static uint32_t *skewed_draws(uint64_t keys, double skew)
{
    double *sums = malloc(keys * sizeof(*sums));
    uint32_t *draws = malloc(TRAFFIC_DRAWS * sizeof(*draws));
    double sum = 0;
    if (sums == NULL || draws == NULL)
        err(1, "no memory");
    for (uint64_t i = 0; i < keys; i++)
        sums[i] = sum += pow((double)(i + 1), -skew);
    srand48(1);
    for (size_t i = 0; i < TRAFFIC_DRAWS; i++) {
        double wanted = drand48() * sum;
        uint64_t low = 0, high = keys - 1;
        while (low < high) {
            uint64_t middle = low + (high - low) / 2;
            if (sums[middle] < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        draws[i] = (uint32_t)low;
    }
    free(sums);
    return draws;
}

/* One request on an idle connection: after its reply the server surely has it. */
static void greet(const struct peer *peer, int fd)
{
    char key[PEER_KEY], out[PEER_HEAD_MAX], in[4096];
    memset(key, 'x', sizeof(key));
    size_t length = peer->get(out, key);
    if (send(fd, out, length, MSG_NOSIGNAL) != (ssize_t)length || recv(fd, in, sizeof(in), 0) <= 0)
        err(1, "an idle connection");
}

static void open_idle(const struct options *options)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (unsigned i = 0; i < options->idle; i++)
        greet(options->plan.peer, traffic_connect(options->plan.socket));
}

/* The last takes what the others leave. */
static uint64_t share_of(uint64_t all, unsigned threads, unsigned index)
{
    uint64_t each = all / threads;
    return index + 1 < threads ? each : all - each * index;
}

/* This thread's part of connections, requests and, where they go in sequence, keys. */
static struct traffic_plan part_of(const struct options *options, unsigned index)
{
    struct traffic_plan part = options->plan;
    unsigned threads = options->threads;
    part.connections = part.connections / threads + (index < part.connections % threads);
    part.seed = part.seed * THREADS_MAX + index;
    part.rate /= threads;
    part.requests = share_of(part.requests, threads, index);
    if (part.in_sequence) {
        part.first_key += part.keys / threads * index;
        part.keys = share_of(part.keys, threads, index);
    }
    return part;
}

static void *thread_main(void *arg)
{
    traffic_run(arg);
    return NULL;
}

static void pause_for(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)};
    nanosleep(&time, NULL);
}

/* The time before what is measured, or (last) that which is. */
static void let_pass(const struct options *options, bool last)
{
    char byte;
    if (!options->windowed)
        pause_for(last ? options->seconds : options->warm);
    else if (read(STDIN_FILENO, &byte, 1) != (last ? 0 : 1))
        errx(1, "standard input: one byte to begin, and its end");
}

static void run(const struct options *options, struct traffic **traffics, struct mark ends[2])
{
    pthread_t threads[THREADS_MAX];
    bool timed = options->plan.requests == 0;
    atomic_store(options->plan.phase, timed ? PHASE_WARM : PHASE_MEASURE);
    ends[0] = take_mark(options, traffics);
    for (unsigned i = 0; i < options->threads; i++) {
        if (pthread_create(&threads[i], NULL, thread_main, traffics[i]) != 0)
            errx(1, "can't start a thread");
    }
    if (timed) {
        let_pass(options, false);
        atomic_store(options->plan.phase, PHASE_MEASURE);
        ends[0] = take_mark(options, traffics);
        let_pass(options, true);
        ends[1] = take_mark(options, traffics);
        atomic_store(options->plan.phase, PHASE_STOP);
    }
    for (unsigned i = 0; i < options->threads; i++)
        pthread_join(threads[i], NULL);
    if (!timed)
        ends[1] = take_mark(options, traffics);
}

/* Puts the threads' results together; exits where there was an error. */
static struct histogram *collect(const struct options *options, struct traffic *const *traffics)
{
    struct histogram *all = calloc(1, sizeof(*all));
    if (all == NULL)
        err(1, "no memory");
    for (unsigned i = 0; i < options->threads; i++) {
        struct traffic_result result = traffic_result(traffics[i]);
        if (result.errors > 0)
            errx(1, "%s: %" PRIu64 " bad replies, the first: %s", options->plan.peer->name,
                 result.errors, result.first_error);
        if (result.misses + result.exists > 0 && !options->misses_are_fine)
            errx(1, "%s: %" PRIu64 " misses, %" PRIu64 " present already", options->plan.peer->name,
                 result.misses, result.exists);
        histogram_merge(all, result.latencies);
    }
    return all;
}

static void print_latencies(const struct histogram *all)
{
    static const double shares[] = {0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 0.9999};
    printf("\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.3f, ",
           (double)histogram_at(all, 0.50) / 1e3, (double)histogram_at(all, 0.99) / 1e3,
           (double)histogram_at(all, 0.999) / 1e3, (double)all->most / 1e3);
    printf("\"mean_us\": %.3f, \"percentiles_us\": {",
           all->count > 0 ? (double)all->sum / (double)all->count / 1e3 : 0.0);
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++)
        printf("%s\"%g\": %.3f", i > 0 ? ", " : "", shares[i] * 100,
               (double)histogram_at(all, shares[i]) / 1e3);
    printf("}, ");
}

static void report(const struct options *options, const struct mark ends[2],
                   const struct histogram *all)
{
    double requests = (double)(ends[1].answered - ends[0].answered);
    double wall = (double)(ends[1].at - ends[0].at);
    double own = (double)(ends[1].own_cpu - ends[0].own_cpu);
    double server = (double)(ends[1].server_cpu - ends[0].server_cpu);
    double ticks = (double)(ends[1].machine_all - ends[0].machine_all);
    double busy = ticks > 0 ? (double)(ends[1].machine_busy - ends[0].machine_busy) / ticks : 0;
    if (requests <= 0)
        errx(1, "%s: nothing was answered", options->plan.peer->name);
    printf("{\"peer\": \"%s\", \"requests\": %.0f, \"seconds\": %.6f, \"rate\": %.1f, ",
           options->plan.peer->name, requests, wall / 1e9, requests / wall * 1e9);
    print_latencies(all);
    printf("\"server_cpu_ns\": %.1f, \"server_cores\": %.3f, ", server / requests, server / wall);
    printf("\"load_cpu_ns\": %.1f, \"load_share\": %.3f, \"machine_busy\": %.3f}\n", own / requests,
           own / wall / options->threads, busy);
}

static uint64_t number(const char *name, const char *text)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0')
        errx(2, "--%s: %s is no number", name, text);
    return value;
}

/* Options whose value is a number, and where it goes. */
static bool take_number(struct options *options, const char *name, const char *text)
{
    struct traffic_plan *plan = &options->plan;
    const struct {
        const char *name;
        unsigned *small;
        uint64_t *large;
    } numbers[] = {
        {"connections", &plan->connections, NULL},
        {"in-flight", &plan->in_flight, NULL},
        {"threads", &options->threads, NULL},
        {"idle", &options->idle, NULL},
        {"put-percent", &plan->put_percent, NULL},
        {"spin", &plan->spin_us, NULL},
        {"keys", NULL, &plan->keys},
        {"first-key", NULL, &plan->first_key},
        {"size", NULL, &plan->size},
        {"count", NULL, &plan->requests},
        {"seed", NULL, &plan->seed},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (strcmp(numbers[i].name, name) != 0)
            continue;
        if (numbers[i].small != NULL)
            *numbers[i].small = (unsigned)number(name, text);
        else
            *numbers[i].large = number(name, text);
        return true;
    }
    return false;
}

static void take_option(struct options *options, const char *name, const char *text)
{
    if (text != NULL && take_number(options, name, text))
        return;
    if (strcmp(name, "peer") == 0)
        options->plan.peer = peer_find(text);
    else if (strcmp(name, "skew") == 0)
        options->skew = strtod(text, NULL);
    else if (strcmp(name, "seconds") == 0)
        options->seconds = strtod(text, NULL);
    else if (strcmp(name, "warm") == 0)
        options->warm = strtod(text, NULL);
    else if (strcmp(name, "pid") == 0)
        add_server(options, (pid_t)number(name, text));
    else if (strcmp(name, "only-absent") == 0)
        options->plan.only_absent = true;
    else if (strcmp(name, "in-sequence") == 0)
        options->plan.in_sequence = true;
    else if (strcmp(name, "reconnect") == 0)
        options->plan.reconnect = true;
    else if (strcmp(name, "rate") == 0)
        options->plan.rate = strtod(text, NULL);
    else if (strcmp(name, "prefix") == 0)
        options->plan.prefix = text;
    else if (strcmp(name, "windowed") == 0)
        options->windowed = true;
    else if (strcmp(name, "misses") == 0)
        options->misses_are_fine = true;
}

static void check_options(struct options *options)
{
    const struct traffic_plan *plan = &options->plan;
    if (plan->peer == NULL)
        errx(2, "--peer: liara, memcached, redis or bare");
    if (options->threads > plan->connections)
        options->threads = plan->connections;
    if (options->threads < 1 || options->threads > THREADS_MAX)
        errx(2, "--threads: 1 to %d", THREADS_MAX);
    if (plan->rate < 0 || plan->in_flight < 1 || plan->in_flight > 1024 || plan->keys < 1 ||
        plan->keys > UINT32_MAX || plan->put_percent > 100 || plan->size > 1u << 30)
        errx(2, "a number is out of its range");
}

static void parse(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {
        {"peer", 1, NULL, 0},      {"connections", 1, NULL, 0}, {"in-flight", 1, NULL, 0},
        {"threads", 1, NULL, 0},   {"idle", 1, NULL, 0},        {"put-percent", 1, NULL, 0},
        {"keys", 1, NULL, 0},      {"first-key", 1, NULL, 0},   {"skew", 1, NULL, 0},
        {"size", 1, NULL, 0},      {"spin", 1, NULL, 0},        {"seconds", 1, NULL, 0},
        {"warm", 1, NULL, 0},      {"count", 1, NULL, 0},       {"seed", 1, NULL, 0},
        {"pid", 1, NULL, 0},       {"only-absent", 0, NULL, 0}, {"in-sequence", 0, NULL, 0},
        {"reconnect", 0, NULL, 0}, {"misses", 0, NULL, 0},      {"rate", 1, NULL, 0},
        {"prefix", 1, NULL, 0},    {"windowed", 0, NULL, 0},    {NULL, 0, NULL, 0},
    };
    int index, got;
    while ((got = getopt_long(argc, argv, "", names, &index)) == 0)
        take_option(options, names[index].name, optarg);
    if (got != -1 || optind != argc - 1) {
        fputs(usage, stderr);
        exit(2);
    }
    options->plan.socket = argv[optind];
    check_options(options);
}

int main(int argc, char **argv)
{
    atomic_int phase;
    struct traffic *traffics[THREADS_MAX];
    struct mark ends[2];
    struct options options = {
        .plan = {.peer = peer_find("liara"),
                 .phase = &phase,
                 .connections = 50,
                 .in_flight = 1,
                 .keys = 100000,
                 .size = 100,
                 .seed = 1},
        .threads = 1,
        .warm = 0.3,
        .seconds = 1,
    };
    signal(SIGPIPE, SIG_IGN);
    parse(&options, argc, argv);
    uint32_t *draws = options.skew > 0 ? skewed_draws(options.plan.keys, options.skew) : NULL;
    options.plan.draws = draws;
    open_idle(&options);
    for (unsigned i = 0; i < options.threads; i++) {
        struct traffic_plan part = part_of(&options, i);
        traffics[i] = traffic_new(&part);
    }
    run(&options, traffics, ends);
    struct histogram *all = collect(&options, traffics);
    report(&options, ends, all);
    free(all);
    free(draws);
    for (unsigned i = 0; i < options.threads; i++)
        traffic_free(traffics[i]);
    return 0;
}
