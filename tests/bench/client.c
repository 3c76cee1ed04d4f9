/*
 * client: one client that GETs values one after the other, through the C library of a server or by
 * the bytes of its protocol, and can read every byte of what it got. Prints one JSON object.
 *
 * It shows what a user of the server waits for: the library's own work counts, and with --sum also
 * what it takes to have the bytes in the processor. Every value's length is checked, and with --sum
 * the sum of all its bytes.
 */
#include "../../client/liara_cache.h"
#include "histogram.h"
#include "peer.h"
#include "traffic.h"

#include <err.h>
#include <getopt.h>
#include <hiredis.h>
#include <inttypes.h>
#include <libmemcached/memcached.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct client;

/* A way to a value. get() returns its length, having added up its bytes if client->sum says so. */
struct way {
    const char *name;
    void (*open)(struct client *client, const char *socket);
    uint64_t (*get)(struct client *client, const char *key);
    const char *peer;
};

struct client {
    const struct way *way;
    const struct peer *peer;
    void *handle;
    int fd;
    char *buffer; /* of the ways that take a value into the caller's memory */
    size_t size;  /* expected of each value */
    uint64_t total;
    uint64_t descriptors; /* replies that were one */
    bool sum;
};

/* Adds up the bytes in words of eight, so that memory is the limit and not the adding. */
static uint64_t sum_of(const char *bytes, size_t length)
{
    uint64_t sums[4] = {0}, word;
    size_t at = 0;
    for (; at + 32 <= length; at += 32) {
        for (size_t i = 0; i < 4; i++) {
            memcpy(&word, bytes + at + 8 * i, 8);
            sums[i] += word;
        }
    }
    for (; at < length; at++)
        sums[0] += (unsigned char)bytes[at];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static uint64_t consume(struct client *client, const char *bytes, uint64_t length)
{
    if (client->sum)
        client->total = sum_of(bytes, length);
    return length;
}

static void liara_open(struct client *client, const char *socket)
{
    struct liara_cache *cache;
    if (liara_cache_open(&cache, socket) != LIARA_CACHE_OK)
        errx(1, "liara: %s", liara_cache_error(cache));
    client->handle = cache;
}

static uint64_t liara_get(struct client *client, const char *key)
{
    struct liara_cache_value value;
    enum liara_cache_status status = liara_cache_get(client->handle, key, PEER_KEY, &value);
    if (status != LIARA_CACHE_OK)
        errx(1, "liara: %s %s", liara_cache_status_name(status), liara_cache_error(client->handle));
    uint64_t length = consume(client, value.bytes, value.length);
    liara_cache_free(value.bytes);
    return length;
}

/* The library's own way to read a large value where it lies. */
static uint64_t map_get(struct client *client, const char *key)
{
    struct liara_cache_mapping mapping;
    enum liara_cache_status status = liara_cache_map(client->handle, key, PEER_KEY, &mapping);
    if (status != LIARA_CACHE_OK)
        errx(1, "liara: %s %s", liara_cache_status_name(status), liara_cache_error(client->handle));
    uint64_t length = consume(client, mapping.bytes, mapping.length);
    liara_cache_unmap(&mapping);
    return length;
}

static void hiredis_open(struct client *client, const char *socket)
{
    redisContext *context = redisConnectUnix(socket);
    if (context == NULL || context->err)
        errx(1, "hiredis: %s", context != NULL ? context->errstr : "no memory");
    client->handle = context;
}

static uint64_t hiredis_get(struct client *client, const char *key)
{
    redisReply *reply = redisCommand(client->handle, "GET %b", key, (size_t)PEER_KEY);
    if (reply == NULL || reply->type != REDIS_REPLY_STRING)
        errx(1, "hiredis: no value");
    uint64_t length = consume(client, reply->str, (uint64_t)reply->len);
    freeReplyObject(reply);
    return length;
}

static void libmemcached_open(struct client *client, const char *socket)
{
    memcached_st *memcached = memcached_create(NULL);
    if (memcached == NULL || memcached_server_add_unix_socket(memcached, socket) != 0)
        errx(1, "libmemcached: %s", socket);
    client->handle = memcached;
}

static uint64_t libmemcached_get(struct client *client, const char *key)
{
    size_t length;
    uint32_t flags;
    memcached_return_t result;
    char *value = memcached_get(client->handle, key, PEER_KEY, &length, &flags, &result);
    if (value == NULL)
        errx(1, "libmemcached: %s", memcached_strerror(client->handle, result));
    consume(client, value, length);
    free(value);
    return length;
}

static void bytes_open(struct client *client, const char *socket)
{
    client->peer = peer_find(client->way->peer);
    client->fd = traffic_connect(socket);
    client->buffer = malloc(client->size + 2 * PEER_HEAD_MAX);
    if (client->buffer == NULL)
        err(1, "no memory");
}

static void ask(struct client *client, const char *request, size_t length)
{
    if (send(client->fd, request, length, MSG_NOSIGNAL) != (ssize_t)length)
        err(1, "can't send to %s", client->way->name);
}

/* The rest of a VALUE reply whose first got bytes are in the buffer already. */
static uint64_t take_value(struct client *client, size_t got)
{
    struct reply reply = client->peer->parse(client->buffer, got, false);
    uint64_t all = reply.head + reply.length + reply.tail;
    while (reply.kind == REPLY_MORE || (reply.kind == REPLY_VALUE && got < all)) {
        size_t room = client->size + 2 * PEER_HEAD_MAX - got;
        ssize_t more = recv(client->fd, client->buffer + got, room, 0);
        if (more <= 0)
            err(1, "%s closed the connection", client->way->name);
        got += (size_t)more;
        if (reply.kind == REPLY_MORE)
            reply = client->peer->parse(client->buffer, got, false);
        all = reply.head + reply.length + reply.tail;
    }
    if (reply.kind != REPLY_VALUE || got != all || client->buffer[got - 1] != '\n')
        errx(1, "%s: not the value that was asked for", client->way->name);
    return consume(client, client->buffer + reply.head, reply.length);
}

static uint64_t bytes_get(struct client *client, const char *key)
{
    char request[PEER_HEAD_MAX];
    ask(client, request, client->peer->get(request, key));
    return take_value(client, 0);
}

/* Receives the beginning of a reply and the descriptor that came with it, or -1. */
static size_t receive_descriptor(struct client *client, int *descriptor)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {client->buffer, client->size + 2 * PEER_HEAD_MAX};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(client->fd, &message, MSG_CMSG_CLOEXEC);
    if (got <= 0)
        err(1, "%s closed the connection", client->way->name);
    *descriptor = -1;
    struct cmsghdr *first = CMSG_FIRSTHDR(&message);
    if (first != NULL && first->cmsg_type == SCM_RIGHTS)
        memcpy(descriptor, CMSG_DATA(first), sizeof(*descriptor));
    return (size_t)got;
}

typedef void use_descriptor(struct client *client, int fd, uint64_t length, uint64_t offset);

static void use_mapped(struct client *client, int fd, uint64_t length, uint64_t offset)
{
    uint64_t inside = offset % (uint64_t)sysconf(_SC_PAGESIZE);
    char *map = mmap(NULL, length + inside, PROT_READ, MAP_SHARED | MAP_POPULATE, fd,
                     (off_t)(offset - inside));
    if (map == MAP_FAILED)
        err(1, "mmap of a value");
    consume(client, map + inside, length);
    munmap(map, length + inside);
}

static void use_read(struct client *client, int fd, uint64_t length, uint64_t offset)
{
    for (uint64_t done = 0; done < length;) {
        ssize_t got = pread(fd, client->buffer + done, length - done, (off_t)(offset + done));
        if (got <= 0)
            err(1, "pread of a value");
        done += (uint64_t)got;
    }
    consume(client, client->buffer, length);
}

/* A server may send the value instead of a descriptor. */
static uint64_t descriptor_get(struct client *client, const char *key, use_descriptor *use)
{
    char request[PEER_HEAD_MAX];
    uint64_t length, offset;
    int fd, end = snprintf(request, sizeof(request), "GET %.*s fd\n", PEER_KEY, key);
    ask(client, request, (size_t)end);
    size_t got = receive_descriptor(client, &fd);
    if (fd < 0)
        return take_value(client, got);
    client->buffer[got] = '\0';
    if (sscanf(client->buffer, "FD %" SCNu64 " offset=%" SCNu64, &length, &offset) != 2 ||
        client->buffer[got - 1] != '\n' || length != client->size)
        errx(1, "not the descriptor that was asked for");
    use(client, fd, length, offset);
    close(fd);
    client->descriptors++;
    return length;
}

static uint64_t mapped_get(struct client *client, const char *key)
{
    return descriptor_get(client, key, use_mapped);
}

static uint64_t read_get(struct client *client, const char *key)
{
    return descriptor_get(client, key, use_read);
}

static const struct way ways[] = {
    {"liara", liara_open, liara_get, NULL},
    {"liara-map", liara_open, map_get, NULL},
    {"hiredis", hiredis_open, hiredis_get, NULL},
    {"libmemcached", libmemcached_open, libmemcached_get, NULL},
    {"liara-bytes", bytes_open, bytes_get, "liara"},
    {"redis-bytes", bytes_open, bytes_get, "redis"},
    {"memcached-bytes", bytes_open, bytes_get, "memcached"},
    {"descriptor-mmap", bytes_open, mapped_get, "liara"},
    {"descriptor-pread", bytes_open, read_get, "liara"},
};

static const struct way *find_way(const char *name)
{
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (strcmp(ways[i].name, name) == 0)
            return &ways[i];
    }
    return NULL;
}

/* What the sum of a key's value is to be, as the load generator made it. */
static uint64_t expected_sum(char *value, size_t size, const char *key)
{
    memcpy(value, key + PEER_KEY - 16, size < 16 ? size : 16);
    return sum_of(value, size);
}

struct settings {
    const char *socket;
    uint64_t keys;
    double seconds, warm;
    clockid_t server;
    bool has_server;
};

static uint64_t clock_of(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        err(1, "clock_gettime");
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* GETs for so many seconds; the number of requests, their latencies added to the histogram. */
static uint64_t get_for(struct client *client, const struct settings *settings, double seconds,
                        const uint64_t *sums, struct histogram *latencies)
{
    uint64_t count = 0, now = traffic_clock(), random = 88172645463325252u;
    uint64_t end = now + (uint64_t)(seconds * 1e9);
    for (; now < end || count == 0; count++) {
        char key[PEER_KEY];
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint64_t number = random % settings->keys;
        peer_key(key, number);
        uint64_t before = now;
        if (client->way->get(client, key) != client->size)
            errx(1, "%s: a value of another length", client->way->name);
        now = traffic_clock();
        histogram_add(latencies, now - before);
        if (client->sum && client->total != sums[number])
            errx(1, "%s: a value with other bytes", client->way->name);
    }
    return count;
}

static uint64_t *all_sums(const struct client *client, const struct settings *settings)
{
    char *value = malloc(client->size + 16), key[PEER_KEY];
    uint64_t *sums = calloc(settings->keys, sizeof(*sums));
    if (value == NULL || sums == NULL)
        err(1, "no memory");
    memset(value, 'v', client->size + 16);
    for (uint64_t i = 0; client->sum && i < settings->keys; i++) {
        peer_key(key, i);
        sums[i] = expected_sum(value, client->size, key);
    }
    free(value);
    return sums;
}

static void measure(struct client *client, const struct settings *settings)
{
    static struct histogram warm, latencies;
    uint64_t *sums = all_sums(client, settings);
    get_for(client, settings, settings->warm, sums, &warm);
    uint64_t server = settings->has_server ? clock_of(settings->server) : 0;
    uint64_t own = clock_of(CLOCK_PROCESS_CPUTIME_ID), at = traffic_clock();
    double count = (double)get_for(client, settings, settings->seconds, sums, &latencies);
    double wall = (double)(traffic_clock() - at);
    own = clock_of(CLOCK_PROCESS_CPUTIME_ID) - own;
    server = settings->has_server ? clock_of(settings->server) - server : 0;
    printf("{\"way\": \"%s\", \"requests\": %.0f, \"seconds\": %.6f, \"rate\": %.1f, "
           "\"wall_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
           "\"client_cpu_ns\": %.1f, \"server_cpu_ns\": %.1f, \"both_cpu_ns\": %.1f, "
           "\"descriptors\": %.0f}\n",
           client->way->name, count, wall / 1e9, count / wall * 1e9, wall / count / 1e3,
           (double)histogram_at(&latencies, 0.5) / 1e3,
           (double)histogram_at(&latencies, 0.99) / 1e3,
           (double)histogram_at(&latencies, 0.999) / 1e3, (double)own / count,
           (double)server / count, (double)(own + server) / count, (double)client->descriptors);
    free(sums);
}

static void usage(void)
{
    fputs("usage: client [options] WAY SOCKET\n"
          "  --keys N  100000   --size N  100   --seconds S  1   --warm S  0.3\n"
          "  --sum     read every byte          --pid PID of the server, for its CPU time\n"
          "ways:",
          stderr);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        fprintf(stderr, " %s", ways[i].name);
    fputs("\n", stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"keys", 1, NULL, 'k'}, {"size", 1, NULL, 's'}, {"seconds", 1, NULL, 't'},
        {"warm", 1, NULL, 'w'}, {"sum", 0, NULL, 'S'},  {"pid", 1, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    struct client client = {.size = 100};
    struct settings settings = {.keys = 100000, .seconds = 1, .warm = 0.3};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'k':
            settings.keys = strtoull(optarg, NULL, 10);
            break;
        case 's':
            client.size = strtoull(optarg, NULL, 10);
            break;
        case 't':
            settings.seconds = strtod(optarg, NULL);
            break;
        case 'w':
            settings.warm = strtod(optarg, NULL);
            break;
        case 'S':
            client.sum = true;
            break;
        case 'p':
            settings.has_server =
                clock_getcpuclockid((pid_t)strtol(optarg, NULL, 10), &settings.server) == 0;
            break;
        default:
            usage();
        }
    }
    client.way = optind == argc - 2 ? find_way(argv[optind]) : NULL;
    if (client.way == NULL || settings.keys < 1)
        usage();
    client.way->open(&client, argv[optind + 1]);
    measure(&client, &settings);
    return 0;
}
