#include "notify.h"

#include "container_of.h"
#include "log.h"
#include "worker.h"

#include <stdlib.h>
#include <systemd/sd-daemon.h>

enum { STATUS_INTERVAL_MS = 10000 };

static void pinged(struct loop_task *task)
{
    atomic_store(&container_of(task, struct notify_ping, task)->answered, true);
}

/* Whether every worker has answered the last question; if so it is put again. */
static bool workers_alive(struct notify *notify)
{
    for (unsigned i = 0; i < notify->count; i++) {
        if (!atomic_load(&notify->pings[i].answered)) {
            log_warning("worker %u does not answer", i);
            return false;
        }
    }
    for (unsigned i = 0; i < notify->count; i++) {
        atomic_store(&notify->pings[i].answered, false);
        loop_post(worker_loop(notify->workers[i]), &notify->pings[i].task);
    }
    return true;
}

static void send_status(struct notify *notify)
{
    struct cache_counters sum;
    cache_count(notify->service->router.cache, &sum);
    sd_notifyf(0, "STATUS=%u connections, %llu hits, %llu misses, %llu stored",
               atomic_load(&notify->service->connections), (unsigned long long)sum.hits,
               (unsigned long long)sum.misses, (unsigned long long)sum.stored);
}

static void tick(struct loop_timer *timer)
{
    struct notify *notify = container_of(timer, struct notify, timer);
    send_status(notify);
    if (notify->watchdog && workers_alive(notify))
        sd_notify(0, "WATCHDOG=1");
    loop_timer_set(notify->loop, timer, tick, notify->interval);
}

static int64_t choose_interval(bool *watchdog)
{
    uint64_t microseconds;
    *watchdog = sd_watchdog_enabled(0, &microseconds) > 0;
    int64_t half = *watchdog ? (int64_t)(microseconds / 2000) : STATUS_INTERVAL_MS;
    return half < STATUS_INTERVAL_MS ? half : STATUS_INTERVAL_MS;
}

bool notify_start(struct notify *notify, struct loop *loop, struct service *service,
                  struct worker **workers, unsigned count)
{
    *notify = (struct notify){.loop = loop, .service = service, .workers = workers, .count = count};
    notify->pings = calloc(count, sizeof(*notify->pings));
    if (notify->pings == NULL)
        return false;
    for (unsigned i = 0; i < count; i++) {
        notify->pings[i].task.run = pinged;
        atomic_store(&notify->pings[i].answered, true);
    }
    notify->interval = choose_interval(&notify->watchdog);
    sd_notify(0, "READY=1");
    if (getenv("NOTIFY_SOCKET") != NULL)
        tick(&notify->timer);
    return true;
}

void notify_reloading(void)
{
    sd_notify(0, "RELOADING=1");
}

void notify_reloaded(void)
{
    sd_notify(0, "READY=1");
}

void notify_stop(struct notify *notify)
{
    sd_notify(0, "STOPPING=1");
    loop_timer_clear(&notify->timer);
}

void notify_free(struct notify *notify)
{
    loop_timer_clear(&notify->timer);
    free(notify->pings);
    notify->pings = NULL;
}
