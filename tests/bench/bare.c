/*
 * bare: a server that knows no protocol, the limit of what any server on this socket can do. It
 * reads, counts the line ends that came, and writes its fixed reply once for each request. Threads
 * share the listening socket; each has its own epoll and keeps the connections that it accepted.
 */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { EVENTS = 64, READ_MAX = 64 * 1024, REPLIES_MAX = 64, CONNS_MAX = 65536 };

struct bare {
    int listener;
    unsigned lines; /* in a request */
    size_t length;  /* of one reply */
    char *replies;  /* several of them in a row */
    size_t replies_held;
};

/* What a client has not read yet, and the line ends of an incomplete request. */
struct client {
    uint64_t owed;
    unsigned lines;
    bool awaits_room;
};

/* One thread: the clients it accepted, by descriptor. */
struct server {
    const struct bare *bare;
    int epoll;
    struct client *clients;
    char in[READ_MAX];
};

static uint64_t line_ends(const char *in, size_t length)
{
    uint64_t count = 0;
    for (const char *end = in + length; (in = memchr(in, '\n', (size_t)(end - in))) != NULL; in++)
        count++;
    return count;
}

static void want_room(struct server *server, int fd, bool wanted)
{
    struct epoll_event event = {.events = wanted ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.fd = fd};
    if (server->clients[fd].awaits_room == wanted)
        return;
    server->clients[fd].awaits_room = wanted;
    epoll_ctl(server->epoll, EPOLL_CTL_MOD, fd, &event);
}

/* Sends what is owed, beginning inside a reply where the last send ended there. */
static void pay(struct server *server, int fd)
{
    const struct bare *bare = server->bare;
    struct client *client = &server->clients[fd];
    while (client->owed > 0) {
        size_t inside = (bare->length - client->owed % bare->length) % bare->length;
        uint64_t most = bare->length * bare->replies_held - inside;
        size_t length = client->owed < most ? (size_t)client->owed : (size_t)most;
        ssize_t got = send(fd, bare->replies + inside, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (got < 0)
            break;
        client->owed -= (uint64_t)got;
    }
    want_room(server, fd, client->owed > 0);
}

static void accept_one(struct server *server)
{
    int fd = accept4(server->bare->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (fd >= CONNS_MAX)
        errx(1, "too many connections");
    server->clients[fd] = (struct client){0};
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        err(1, "epoll_ctl");
}

static void readable(struct server *server, int fd)
{
    const struct bare *bare = server->bare;
    ssize_t got = recv(fd, server->in, READ_MAX, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        close(fd);
        return;
    }
    struct client *client = &server->clients[fd];
    uint64_t lines = client->lines + line_ends(server->in, (size_t)got);
    client->owed += lines / bare->lines * bare->length;
    client->lines = (unsigned)(lines % bare->lines);
    pay(server, fd);
}

static struct server *server_new(const struct bare *bare)
{
    struct epoll_event listen = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.fd = bare->listener};
    struct server *server = malloc(sizeof(*server));
    if (server == NULL)
        err(1, "no memory");
    server->bare = bare;
    server->clients = calloc(CONNS_MAX, sizeof(*server->clients));
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (server->clients == NULL || server->epoll < 0 ||
        epoll_ctl(server->epoll, EPOLL_CTL_ADD, bare->listener, &listen) != 0)
        err(1, "can't serve");
    return server;
}

static void *serve(void *arg)
{
    struct server *server = server_new(arg);
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(server->epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == server->bare->listener)
                accept_one(server);
            else if (events[i].events & EPOLLOUT)
                pay(server, fd);
            else
                readable(server, fd);
        }
    }
    return NULL;
}

/* A GET's reply with a value of size bytes, or without one a PUT's, as the line protocol has them.
 */
static void make_replies(struct bare *bare, long size)
{
    char head[64];
    int head_length = size >= 0 ? snprintf(head, sizeof(head), "VALUE %ld\n", size)
                                : snprintf(head, sizeof(head), "STORED\n");
    size_t value = size >= 0 ? (size_t)size + 1 : 0;
    bare->length = (size_t)head_length + value;
    bare->replies_held = bare->length > 65536 ? 1 : REPLIES_MAX;
    bare->replies = malloc(bare->length * bare->replies_held);
    if (bare->replies == NULL)
        err(1, "no memory");
    for (size_t i = 0; i < bare->replies_held; i++) {
        char *reply = bare->replies + i * bare->length;
        memcpy(reply, head, (size_t)head_length);
        memset(reply + head_length, 'v', value);
        reply[bare->length - 1] = '\n';
    }
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        errx(2, "%s: too long for a socket's path", path);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(fd, 1024) != 0)
        err(1, "can't listen at %s", path);
    return fd;
}

int main(int argc, char **argv)
{
    struct bare bare = {.lines = 1};
    long threads = 1, size = 100;
    int option;
    while ((option = getopt(argc, argv, "t:v:p")) != -1) {
        if (option == 't')
            threads = strtol(optarg, NULL, 10);
        else if (option == 'v')
            size = strtol(optarg, NULL, 10);
        else if (option == 'p')
            size = -1, bare.lines = 2;
        else
            optind = argc;
    }
    if (optind != argc - 1 || threads < 1)
        errx(2, "usage: bare [-t threads] [-v bytes | -p] SOCKET; -p: answers PUTs");
    make_replies(&bare, size);
    bare.listener = listen_at(argv[optind]);
    signal(SIGPIPE, SIG_IGN);
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, &bare) != 0)
            errx(1, "can't start a thread");
    }
    serve(&bare);
    return 0;
}
