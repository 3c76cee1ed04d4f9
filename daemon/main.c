/* Wires the rooms together, runs, and takes them apart in reverse. */
#include "cache.h"
#include "clock.h"
#include "config.h"
#include "listener.h"
#include "log.h"
#include "notify.h"
#include "worker.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    EXIT_USAGE = 2,
    FILE_THREADS = 2,
    SIGNALS = 3,
    PERSIST_SLICE_MS = 100,
    PERSIST_PATIENCE_MS = 60000,
    DESCRIPTORS_BESIDE = 256 /* of stores, loops, locks */
};

struct daemon {
    int argc;
    char **argv;
    struct config *config;
    struct limits limits;
    int64_t stop_timeout; /* milliseconds; the configuration's last word */
    struct loop *loop;    /* the main thread's, for signals */
    struct event *signals[SIGNALS];
    struct listener listener;
    struct service service;
    struct worker **workers;
    unsigned worker_count;
    struct notify notify;
};

static void apply_limits(struct daemon *daemon, const struct config *config)
{
    config_limits(config, &daemon->limits);
    value_set_limit(config->max_inflight);
    store_set_max_size(daemon->service.store, config->max_size);
    log_open(config->log_level);
}

static void reload(struct daemon *daemon)
{
    enum config_action action;
    char fixed[512];
    struct config *config = config_load(daemon->argc, daemon->argv, &action, stderr);
    if (config == NULL) {
        log_error("the configuration is left as it was, since the new one has errors");
        return;
    }
    if (config_fixed_changes(daemon->config, config, fixed, sizeof(fixed)))
        log_warning("these changes need a restart: %s", fixed);
    daemon->stop_timeout = config->stop_timeout;
    apply_limits(daemon, config);
    config_free(config);
    log_info("read the configuration again");
}

static void signal_ready(evutil_socket_t number, short what, void *arg)
{
    struct daemon *daemon = arg;
    (void)what;
    if (number != SIGHUP) {
        log_info("stopping: %s", strsignal((int)number));
        loop_stop(daemon->loop);
        return;
    }
    notify_reloading();
    reload(daemon);
    notify_reloaded();
}

static bool watch_signals(struct daemon *daemon)
{
    static const int numbers[SIGNALS] = {SIGTERM, SIGINT, SIGHUP};
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < SIGNALS; i++) {
        daemon->signals[i] =
            evsignal_new(loop_base(daemon->loop), numbers[i], signal_ready, daemon);
        if (daemon->signals[i] == NULL || evsignal_add(daemon->signals[i], NULL) != 0)
            return false;
    }
    return true;
}

static rlim_t raise_limit(rlim_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return wanted;
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : before;
}

/* Each connection may bring a descriptor along. What is left over is for shared values. */
static void raise_descriptor_limit(const struct config *config)
{
    rlim_t needed = 2 * (rlim_t)config->max_connections + DESCRIPTORS_BESIDE;
    rlim_t limit = raise_limit(needed + VALUE_SHARED_MAX);
    value_set_shared_limit((unsigned)(limit > needed ? limit - needed : limit / 8));
    if (limit < needed)
        log_warning("only %llu descriptors may be open (ulimit -n), %llu are wanted for "
                    "max-connections %u",
                    (unsigned long long)limit, (unsigned long long)needed, config->max_connections);
}

static bool open_store(struct daemon *daemon)
{
    char why[512];
    const struct config *config = daemon->config;
    struct service *service = &daemon->service;
    service->store = store_open(store_find(config->backend), config, why, sizeof(why));
    if (service->store == NULL) {
        log_error("%s", why);
        return false;
    }
    apply_limits(daemon, config);
    service->limits = &daemon->limits;
    service->router.limits = &daemon->limits;
    service->router.started = clock_now();
    service->router.files = pool_new("files", FILE_THREADS);
    service->router.cache = cache_new(service->store, &daemon->limits, config->workers);
    return service->router.files != NULL && service->router.cache != NULL;
}

static bool start_listening(struct daemon *daemon)
{
    char why[512];
    const struct config *config = daemon->config;
    if (!listener_open(&daemon->listener, config->socket, config->socket_mode, why, sizeof(why))) {
        log_error("%s", why);
        return false;
    }
    daemon->service.listener = daemon->listener.fd;
    return true;
}

static bool start_workers(struct daemon *daemon)
{
    unsigned count = daemon->config->workers;
    daemon->workers = calloc(count, sizeof(struct worker *));
    for (unsigned i = 0; daemon->workers != NULL && i < count; i++) {
        daemon->workers[i] = worker_new(&daemon->service, i, daemon->config->busy_poll);
        if (daemon->workers[i] == NULL)
            return false;
        daemon->worker_count++;
        if (!worker_start(daemon->workers[i]))
            return false;
    }
    return daemon->workers != NULL;
}

static bool start(struct daemon *daemon)
{
    const struct config *config = daemon->config;
    raise_descriptor_limit(config);
    daemon->loop = loop_new(config->workers);
    if (daemon->loop == NULL || !watch_signals(daemon)) {
        log_error("can't start the main loop: %m");
        return false;
    }
    if (!open_store(daemon) || !start_listening(daemon))
        return false;
    if (!start_workers(daemon) || !notify_start(&daemon->notify, daemon->loop, &daemon->service,
                                                daemon->workers, daemon->worker_count)) {
        log_error("can't start the workers: %m");
        return false;
    }
    log_info("serving %s on %s with %u worker%s", config->backend,
             daemon->listener.path != NULL ? daemon->listener.path : "systemd's socket",
             config->workers, config->workers == 1 ? "" : "s");
    return true;
}

/* The call's memory is static because a store that hangs may still write to it after we gave up. */
static struct store_call last_persist;
static bool persisted;

static void persist_done(struct store_call *call)
{
    (void)call;
    persisted = true;
}

enum persist_result { PERSIST_OK, PERSIST_FAILED, PERSIST_HANGS };

static enum persist_result persist_once(struct daemon *daemon)
{
    struct store *store = daemon->service.store;
    int64_t until = clock_now() + PERSIST_PATIENCE_MS;
    last_persist = (struct store_call){
        .request = {.op = STORE_PERSIST, .key = (const uint8_t *)"", .loop = daemon->loop},
        .done = persist_done,
    };
    persisted = store_submit(store, &last_persist) != STORE_PENDING;
    while (!persisted && clock_now() < until)
        loop_step(daemon->loop, PERSIST_SLICE_MS);
    if (!persisted)
        return PERSIST_HANGS;
    return last_persist.result.status == STORE_FAILED ? PERSIST_FAILED : PERSIST_OK;
}

/* Nobody else has what is unwritten, so it is tried again for as long as the end may take. */
static enum persist_result persist(struct daemon *daemon, int64_t until)
{
    struct store *store = daemon->service.store;
    if (!store_attach(store, daemon->loop)) {
        log_error("can't persist at the end: out of memory");
        return PERSIST_FAILED;
    }
    enum persist_result result = persist_once(daemon);
    while (result == PERSIST_FAILED && clock_now() < until) {
        loop_step(daemon->loop, PERSIST_SLICE_MS);
        result = persist_once(daemon);
    }
    if (result == PERSIST_FAILED)
        log_error("can't persist at the end: %s", last_persist.result.text);
    else if (result == PERSIST_HANGS)
        log_error("the store has not persisted after %d s: what it has not written is lost",
                  PERSIST_PATIENCE_MS / 1000);
    store_detach(store, daemon->loop);
    return result;
}

static void stop_workers(struct daemon *daemon)
{
    for (unsigned i = 0; i < daemon->worker_count; i++)
        worker_stop(daemon->workers[i], daemon->stop_timeout);
    for (unsigned i = 0; i < daemon->worker_count; i++)
        worker_join(daemon->workers[i]);
}

/* false: acknowledged entries are lost. */
static bool stop(struct daemon *daemon)
{
    int64_t until = clock_now() + daemon->stop_timeout;
    enum persist_result result = PERSIST_OK;
    notify_stop(&daemon->notify);
    stop_workers(daemon);
    if (daemon->service.store != NULL && !daemon->service.store->ops->writes_through)
        result = persist(daemon, until);
    bool lost = result != PERSIST_OK;
    listener_close(&daemon->listener);
    if (result == PERSIST_HANGS)
        _exit(EXIT_FAILURE); /* its threads can't be waited for */
    pool_free(daemon->service.router.files);
    store_close(daemon->service.store);
    for (unsigned i = 0; i < daemon->worker_count; i++)
        worker_free(daemon->workers[i]);
    notify_free(&daemon->notify);
    cache_free(daemon->service.router.cache);
    for (int i = 0; i < SIGNALS; i++) {
        if (daemon->signals[i] != NULL)
            event_free(daemon->signals[i]);
    }
    loop_free(daemon->loop);
    free(daemon->workers);
    return !lost;
}

static int run(struct daemon *daemon)
{
    daemon->listener = (struct listener){.fd = -1, .lock = -1};
    daemon->stop_timeout = daemon->config->stop_timeout;
    log_open(daemon->config->log_level);
    clock_start();
    bool started = start(daemon);
    if (started)
        loop_run(daemon->loop);
    bool kept = stop(daemon);
    if (started)
        log_info("stopped");
    return started && kept ? EXIT_SUCCESS : EXIT_FAILURE;
}

/*
 * A socket or a store's file must not take the place of a stream that was closed at the start: log
 * lines would be written into it.
 */
static bool open_closed_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    enum config_action action = CONFIG_RUN;
    struct daemon daemon = {.argc = argc, .argv = argv};
    int status = EXIT_SUCCESS;
    if (!open_closed_streams()) {
        log_error("can't open /dev/null in place of a closed standard stream: %m");
        return EXIT_FAILURE;
    }
    daemon.config = config_load(argc, argv, &action, stderr);
    if (action == CONFIG_HELP)
        config_help(stdout);
    else if (action == CONFIG_VERSION)
        puts("liara-cached " LIARA_VERSION);
    else if (daemon.config == NULL)
        status = EXIT_USAGE;
    else if (action == CONFIG_PRINT)
        config_print(daemon.config, stdout);
    else if (action == CONFIG_RUN)
        status = run(&daemon);
    config_free(daemon.config);
    return status;
}
