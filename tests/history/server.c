#include "server.h"
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static void show_log(const struct server *server)
{
    char bytes[4096];
    int fd = open(server->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t size = lseek(fd, 0, SEEK_END);
    off_t from = size > (off_t)sizeof(bytes) ? size - (off_t)sizeof(bytes) : 0;
    ssize_t got = pread(fd, bytes, sizeof(bytes), from);
    if (got > 0)
        fprintf(stderr, "the end of the daemon's log:\n%.*s\n", (int)got, bytes);
    close(fd);
}

bool server_init(struct server *server)
{
    const char *base = getenv("TMPDIR");
    snprintf(server->folder, sizeof(server->folder), "%s/liara-check-XXXXXX",
             base != NULL && strlen(base) < 40 ? base : "/tmp");
    if (mkdtemp(server->folder) == NULL) {
        fprintf(stderr, "%s: %s\n", server->folder, strerror(errno));
        return false;
    }
    snprintf(server->socket, sizeof(server->socket), "%s/socket", server->folder);
    snprintf(server->store, sizeof(server->store), "%s/store", server->folder);
    snprintf(server->log, sizeof(server->log), "%s/log", server->folder);
    return true;
}

/* In the child; async-signal-safe calls alone would do, but no thread of ours holds a lock now. */
static void become_daemon(const struct server *server)
{
    char backend[64], socket[128], store[128];
    const char *arguments[SERVER_OPTIONS + 8] = {server->program, "--config=/dev/null"};
    size_t count = 2;
    snprintf(backend, sizeof(backend), "--backend=%s", server->backend);
    snprintf(socket, sizeof(socket), "--socket=%s", server->socket);
    snprintf(store, sizeof(store), "--directory=%s", server->store);
    arguments[count++] = "--workers=2";
    arguments[count++] = backend;
    arguments[count++] = socket;
    arguments[count++] = store;
    for (size_t i = 0; i < SERVER_OPTIONS && server->options[i] != NULL; i++)
        arguments[count++] = server->options[i];
    int log = open(server->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; server->environment != NULL && server->environment[i] != NULL; i++)
        putenv(server->environment[i]);
    /* execv() changes nothing of them. */
    union {
        const char **in;
        char *const *out;
    } words = {arguments};
    execv(server->program, words.out);
    perror(server->program);
    _exit(127);
}

static bool answers(const struct server *server)
{
    struct client probe;
    char reply[4] = "";
    bool good = client_init(&probe, 0) && client_connect(&probe, server->socket, server->seconds) &&
                send(probe.fd, "PING\n", 5, MSG_NOSIGNAL) == 5 &&
                recv(probe.fd, reply, 3, MSG_WAITALL) == 3 && memcmp(reply, "OK\n", 3) == 0;
    client_free(&probe);
    return good;
}

static bool has_ended(struct server *server, int *status)
{
    if (server->pid == 0 || waitpid(server->pid, status, WNOHANG) != server->pid)
        return false;
    server->pid = 0;
    return true;
}

bool server_try_start(struct server *server, int *status)
{
    *status = 0;
    server->pid = fork();
    if (server->pid == 0)
        become_daemon(server);
    uint64_t until = now_ns() + (uint64_t)server->seconds * 1000000000;
    while (!answers(server)) {
        if (has_ended(server, status))
            return false;
        if (now_ns() > until) {
            server_kill(server);
            return false;
        }
        pause_briefly();
    }
    return true;
}

static void explain(const struct server *server, const char *what, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "the daemon %s: signal %d\n", what, WTERMSIG(status));
    else
        fprintf(stderr, "the daemon %s: status %d\n", what, WEXITSTATUS(status));
    show_log(server);
}

bool server_start(struct server *server)
{
    int status;
    if (server_try_start(server, &status))
        return true;
    explain(server, "did not start", status);
    return false;
}

uint64_t server_kill(struct server *server)
{
    if (server->pid > 0) {
        kill(server->pid, SIGKILL);
        waitpid(server->pid, NULL, 0);
    }
    server->pid = 0;
    return now_ns();
}

bool server_stop(struct server *server)
{
    int status;
    uint64_t until = now_ns() + (uint64_t)server->seconds * 1000000000;
    if (!server_runs(server))
        return false;
    kill(server->pid, SIGTERM);
    while (!has_ended(server, &status)) {
        if (now_ns() > until) {
            fprintf(stderr, "the daemon does not stop\n");
            show_log(server);
            server_kill(server);
            return false;
        }
        pause_briefly();
    }
    if (status != 0)
        explain(server, "ended", status);
    return status == 0;
}

bool server_runs(struct server *server)
{
    int status;
    if (server->pid == 0)
        return false;
    if (!has_ended(server, &status))
        return true;
    explain(server, "ended by itself", status);
    return false;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

void server_free(struct server *server, bool keep)
{
    server_kill(server);
    if (keep)
        fprintf(stderr, "kept: %s\n", server->folder);
    else if (server->folder[0] != '\0')
        nftw(server->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
