#include "run.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CANT_RUN = 126, NOT_FOUND = 127, BY_SIGNAL = 128, PIECE = 64 * 1024 };

struct run {
    pid_t child;     /* 0: it has ended */
    int status;      /* waitpid()'s */
    int output;      /* what it prints comes out here; -1: all of it came */
    int signals;     /* signalfd */
    sigset_t before; /* the mask that COMMAND gets */
    int spool;       /* -1: no longer kept */
    uint64_t room;
    bool printed; /* all that came went to standard output */
};

int run_instead(char *const command[])
{
    execvp(command[0], command);
    int failed = errno;
    complain("can't run %s: %s", command[0], strerror(failed));
    return failed == ENOENT ? NOT_FOUND : CANT_RUN;
}

static bool write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, bytes, length);
        if (put < 0 && errno != EINTR)
            return false;
        bytes += put > 0 ? put : 0;
        length -= put > 0 ? (size_t)put : 0;
    }
    return true;
}

static void stop_reading(struct run *run)
{
    close(run->output);
    run->output = -1;
}

/* What can't be kept is printed all the same; what can't be printed COMMAND need not go on with. */
static void pass_on(struct run *run)
{
    char bytes[PIECE];
    ssize_t got = read(run->output, bytes, sizeof(bytes));
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got <= 0) {
        stop_reading(run);
        return;
    }
    if ((uint64_t)got > run->room || !write_all(run->spool, bytes, (size_t)got))
        run->spool = -1;
    run->room -= run->spool >= 0 ? (uint64_t)got : 0;
    if (write_all(STDOUT_FILENO, bytes, (size_t)got))
        return;
    complain("can't write to standard output: %s", strerror(errno));
    run->printed = false;
    stop_reading(run);
}

/* A signal from the terminal reaches COMMAND by itself, only one that a process sent is passed on.
 */
static void take_signal(struct run *run)
{
    struct signalfd_siginfo signal;
    if (read(run->signals, &signal, sizeof(signal)) != sizeof(signal))
        return;
    if (signal.ssi_signo == SIGCHLD) {
        if (run->child > 0 && waitpid(run->child, &run->status, WNOHANG) == run->child)
            run->child = 0;
    } else if (run->child == 0) {
        sigprocmask(SIG_SETMASK, &run->before, NULL);
        raise((int)signal.ssi_signo);
    } else if (signal.ssi_code <= 0) {
        kill(run->child, (int)signal.ssi_signo);
    }
}

/* Until COMMAND has ended and nobody can print any more. */
static void attend(struct run *run)
{
    while (run->child > 0 || run->output >= 0) {
        struct pollfd ready[] = {{.fd = run->signals, .events = POLLIN},
                                 {.fd = run->output, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0)
            continue;
        if (ready[1].revents)
            pass_on(run);
        if (ready[0].revents)
            take_signal(run);
    }
}

static void become_command(struct run *run, char *const command[], int output)
{
    sigprocmask(SIG_SETMASK, &run->before, NULL);
    if (dup2(output, STDOUT_FILENO) >= 0)
        _exit(run_instead(command));
    complain("can't run %s: %s", command[0], strerror(errno));
    _exit(CANT_RUN);
}

static bool watch_signals(struct run *run)
{
    static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(forwarded) / sizeof(forwarded[0]); i++)
        sigaddset(&set, forwarded[i]);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &set, &run->before);
    run->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return run->signals >= 0;
}

static bool start(struct run *run, char *const command[])
{
    int ends[2];
    if (!watch_signals(run) || pipe2(ends, O_CLOEXEC) != 0)
        return false;
    run->output = ends[0];
    run->child = fork();
    if (run->child == 0)
        become_command(run, command, ends[1]);
    close(ends[1]);
    return run->child > 0;
}

int run_and_keep(char *const command[], int spool, uint64_t limit, bool *whole)
{
    struct run run = {.output = -1, .spool = spool, .room = limit, .printed = true};
    *whole = false;
    if (!start(&run, command)) {
        sigprocmask(SIG_SETMASK, &run.before, NULL);
        return run_instead(command);
    }
    attend(&run);
    close(run.signals);
    *whole = run.spool >= 0 && run.printed;
    if (WIFSIGNALED(run.status))
        return BY_SIGNAL + WTERMSIG(run.status);
    return run.printed || WEXITSTATUS(run.status) != 0 ? WEXITSTATUS(run.status) : RESULT_LOCAL;
}
