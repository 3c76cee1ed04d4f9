/*
 * The load of the stress test: many processes PUT the same keys at once, each with its own value.
 *
 *     load SOCKET PROCESSES PUTS KEYS SIZE
 *
 * Prints `stored=N exists=N errors=N once=N right=N`: the answers, how many keys were STORED
 * exactly once, and how many of all keys a GET finds with the whole value of the process that
 * stored it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WINDOW = 32, SIZE_MAX_BYTES = 65536, WAIT_SECONDS = 60 };

struct plan {
    const char *path;
    unsigned processes, puts, keys, size;
};

/* Shared by all processes. */
struct tally {
    atomic_uint ready, stored, exists, errors;
    struct {
        atomic_uint times, winner;
    } keys[];
};

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static FILE *dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval wait = {.tv_sec = WAIT_SECONDS};
    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) != 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
        die(path);
    FILE *stream = fdopen(fd, "r");
    if (stream == NULL)
        die("fdopen");
    return stream;
}

static void send_all(FILE *stream, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fileno(stream), bytes, length, MSG_NOSIGNAL);
        if (sent < 0)
            die("send");
        bytes += sent;
        length -= (size_t)sent;
    }
}

static void read_line(FILE *stream, char *line, size_t size)
{
    if (fgets(line, (int)size, stream) == NULL)
        die("no reply");
}

/* The value that a process puts under a key: no two are alike anywhere. */
static void make_value(char *value, unsigned size, unsigned process, unsigned key)
{
    for (unsigned i = 0; i < size; i++)
        value[i] = (char)((i + key) * 31 + process * 7 + (i >> 8));
}

static void send_puts(FILE *stream, const struct plan *plan, unsigned process, unsigned first,
                      unsigned count)
{
    static char out[WINDOW * 64 + SIZE_MAX_BYTES * 2];
    size_t used = 0;
    for (unsigned i = first; i < first + count; i++) {
        unsigned key = i % plan->keys;
        used += (size_t)sprintf(out + used, "PUT key-%u %u\n", key, plan->size);
        make_value(out + used, plan->size, process, key);
        used += plan->size;
        out[used++] = '\n';
        if (used > SIZE_MAX_BYTES || i + 1 == first + count) {
            send_all(stream, out, used);
            used = 0;
        }
    }
}

static void count_reply(struct tally *tally, const char *line, unsigned process, unsigned key)
{
    if (strcmp(line, "STORED\n") == 0) {
        atomic_fetch_add(&tally->stored, 1);
        atomic_fetch_add(&tally->keys[key].times, 1);
        atomic_store(&tally->keys[key].winner, process);
    } else if (strcmp(line, "EXISTS\n") == 0) {
        atomic_fetch_add(&tally->exists, 1);
    } else {
        atomic_fetch_add(&tally->errors, 1);
        fprintf(stderr, "load: %s", line);
    }
}

static void work(const struct plan *plan, struct tally *tally, unsigned process)
{
    char line[256];
    FILE *stream = dial(plan->path);
    atomic_fetch_add(&tally->ready, 1);
    while (atomic_load(&tally->ready) < plan->processes)
        usleep(100);
    for (unsigned done = 0; done < plan->puts; done += WINDOW) {
        unsigned count = plan->puts - done < WINDOW ? plan->puts - done : WINDOW;
        send_puts(stream, plan, process, done, count);
        for (unsigned i = 0; i < count; i++) {
            read_line(stream, line, sizeof(line));
            count_reply(tally, line, process, (done + i) % plan->keys);
        }
    }
    fclose(stream);
}

static bool is_right(FILE *stream, const struct plan *plan, unsigned key, unsigned winner)
{
    static char got[SIZE_MAX_BYTES + 1], expected[SIZE_MAX_BYTES + 1];
    char line[256];
    unsigned length;
    int used = sprintf(line, "GET key-%u\n", key);
    send_all(stream, line, (size_t)used);
    read_line(stream, line, sizeof(line));
    if (sscanf(line, "VALUE %u", &length) != 1 || length != plan->size ||
        fread(got, 1, length + 1, stream) != length + 1)
        return false;
    make_value(expected, plan->size, winner, key);
    return memcmp(got, expected, plan->size) == 0 && got[length] == '\n';
}

static void report(const struct plan *plan, struct tally *tally)
{
    unsigned once = 0, right = 0;
    FILE *stream = dial(plan->path);
    for (unsigned key = 0; key < plan->keys; key++) {
        once += atomic_load(&tally->keys[key].times) == 1;
        right += is_right(stream, plan, key, atomic_load(&tally->keys[key].winner));
    }
    fclose(stream);
    printf("stored=%u exists=%u errors=%u once=%u right=%u\n", atomic_load(&tally->stored),
           atomic_load(&tally->exists), atomic_load(&tally->errors), once, right);
}

static struct tally *new_tally(unsigned keys)
{
    size_t size = sizeof(struct tally) + keys * sizeof(((struct tally *)0)->keys[0]);
    struct tally *tally =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tally == MAP_FAILED)
        die("mmap");
    return tally;
}

static int run(const struct plan *plan)
{
    int failed = 0;
    struct tally *tally = new_tally(plan->keys);
    for (unsigned process = 0; process < plan->processes; process++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            work(plan, tally, process);
            exit(EXIT_SUCCESS);
        }
    }
    for (unsigned process = 0; process < plan->processes; process++) {
        int status;
        failed += wait(&status) < 0 || status != 0;
    }
    report(plan, tally);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load SOCKET PROCESSES PUTS KEYS SIZE\n");
        return 2;
    }
    struct plan plan = {
        .path = argv[1],
        .processes = (unsigned)atoi(argv[2]),
        .puts = (unsigned)atoi(argv[3]),
        .keys = (unsigned)atoi(argv[4]),
        .size = (unsigned)atoi(argv[5]),
    };
    if (plan.processes == 0 || plan.keys == 0 || plan.size > SIZE_MAX_BYTES) {
        fprintf(stderr, "load: PROCESSES and KEYS from 1, SIZE to %d\n", SIZE_MAX_BYTES);
        return 2;
    }
    return run(&plan);
}
