#include "lease.h"

#include "clock.h"
#include "container_of.h"

#include <pthread.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

struct lease {
    uint64_t hash;
    const uint8_t *key; /* behind the struct, but where one is looked for: the asker's */
    size_t length;
    int64_t granted; /* to the holder, at first */
    int64_t deadline;
    struct lease_session *holder;
    struct lease *held_next, **held_link; /* in the holder's list */
    struct lease_session *waiting, **last;
};

/*
 * One lock for all: leases are asked for on misses alone, whose cost is a computation, and it is
 * held for the time of a tree's descent.
 */
struct leases {
    pthread_mutex_t lock;
    void *tree; /* tsearch's, of struct lease by key */
    _Atomic uint64_t count;
};

static int compare(const void *left, const void *right)
{
    const struct lease *a = left, *b = right;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return memcmp(a->key, b->key, a->length);
}

static struct lease *find(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash)
{
    struct lease wanted = {.hash = hash, .key = key, .length = length};
    struct lease **node = tfind(&wanted, &leases->tree, compare);
    return node != NULL ? *node : NULL;
}

static struct lease *add(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash)
{
    struct lease *lease = calloc(1, sizeof(*lease) + length);
    if (lease == NULL)
        return NULL;
    uint8_t *copy = (uint8_t *)(lease + 1);
    memcpy(copy, key, length);
    lease->hash = hash;
    lease->key = copy;
    lease->length = length;
    lease->granted = clock_now();
    lease->last = &lease->waiting;
    if (tsearch(lease, &leases->tree, compare) == NULL) {
        free(lease);
        return NULL;
    }
    atomic_fetch_add(&leases->count, 1);
    return lease;
}

static void hold(struct lease *lease, struct lease_session *holder, uint32_t seconds)
{
    lease->holder = holder;
    lease->deadline = clock_now() + (int64_t)seconds * 1000;
    lease->held_next = holder->held;
    lease->held_link = &holder->held;
    if (holder->held != NULL)
        holder->held->held_link = &lease->held_next;
    holder->held = lease;
    holder->held_count++;
}

static void let_go(struct lease *lease)
{
    *lease->held_link = lease->held_next;
    if (lease->held_next != NULL)
        lease->held_next->held_link = lease->held_link;
    lease->holder->held_count--;
    lease->holder = NULL;
}

static void drop(struct leases *leases, struct lease *lease)
{
    tdelete(lease, &leases->tree, compare);
    free(lease);
    atomic_fetch_sub(&leases->count, 1);
}

static void leave_line(struct lease_session *session)
{
    struct lease *lease = session->waits_for;
    *session->link = session->next;
    if (session->next != NULL)
        session->next->link = session->link;
    else
        lease->last = session->link;
    session->waits_for = NULL;
}

/* Has the first in line told what became of its wait. */
static void tell(struct lease_session *session, bool granted, struct value *value)
{
    leave_line(session);
    session->told = true;
    session->granted = granted;
    session->value = value != NULL ? value_ref(value) : NULL;
    loop_post(session->loop, &session->task);
}

/* The holder has let go without a value. */
static void next_in_line(struct leases *leases, struct lease *lease)
{
    struct lease_session *next = lease->waiting;
    if (next == NULL) {
        drop(leases, lease);
        return;
    }
    lease->granted = clock_now();
    hold(lease, next, next->seconds);
    tell(next, true, NULL);
}

struct leases *leases_new(void)
{
    struct leases *leases = calloc(1, sizeof(*leases));
    if (leases != NULL)
        pthread_mutex_init(&leases->lock, NULL);
    return leases;
}

void leases_free(struct leases *leases)
{
    if (leases == NULL)
        return;
    pthread_mutex_destroy(&leases->lock);
    free(leases);
}

/* Passes on what the session has held for too long; returns the next deadline, or CLOCK_NEVER. */
static int64_t expire(struct lease_session *session)
{
    int64_t now = clock_now(), due = CLOCK_NEVER;
    pthread_mutex_lock(&session->leases->lock);
    for (struct lease *lease = session->held, *next; lease != NULL; lease = next) {
        next = lease->held_next;
        if (lease->deadline <= now) {
            let_go(lease);
            next_in_line(session->leases, lease);
        } else if (lease->deadline < due) {
            due = lease->deadline;
        }
    }
    pthread_mutex_unlock(&session->leases->lock);
    return due;
}

static void deadline_reached(struct loop_timer *timer);

/* Where no timer can be had the lease ends with its connection. */
static void watch(struct lease_session *session, int64_t due)
{
    if (due >= session->timer_due)
        return;
    session->timer_due = due;
    loop_timer_set(session->loop, &session->timer, deadline_reached, due - clock_now());
}

static void deadline_reached(struct loop_timer *timer)
{
    struct lease_session *session = container_of(timer, struct lease_session, timer);
    int64_t due = expire(session);
    session->timer_due = CLOCK_NEVER;
    watch(session, due);
}

static void wait_is_over(struct loop_task *task)
{
    struct lease_session *session = container_of(task, struct lease_session, task);
    struct value *value = session->value;
    session->value = NULL;
    pthread_mutex_lock(&session->leases->lock);
    session->told = false;
    pthread_mutex_unlock(&session->leases->lock);
    if (session->granted)
        watch(session, clock_now() + (int64_t)session->seconds * 1000);
    session->ready(session, session->granted, value);
}

void lease_session_start(struct lease_session *session, struct leases *leases, struct loop *loop,
                         void (*ready)(struct lease_session *, bool, struct value *))
{
    *session = (struct lease_session){
        .leases = leases,
        .loop = loop,
        .timer_due = CLOCK_NEVER,
        .task.run = wait_is_over,
        .ready = ready,
    };
}

static void stand_in_line(struct lease_session *session, struct lease *lease, uint32_t seconds)
{
    session->waits_for = lease;
    session->seconds = seconds;
    session->next = NULL;
    session->link = lease->last;
    *lease->last = session;
    lease->last = &session->next;
}

/* Under the lock. */
static enum lease_answer answer(struct lease_session *session, const uint8_t *key, size_t length,
                                uint64_t hash, uint32_t seconds, unsigned max)
{
    struct lease *lease = find(session->leases, key, length, hash);
    if (lease != NULL && lease->holder != session) {
        stand_in_line(session, lease, seconds);
        return LEASE_WAIT;
    }
    if (lease != NULL)
        let_go(lease);
    else if (session->held_count < max)
        lease = add(session->leases, key, length, hash);
    if (lease == NULL)
        return LEASE_REFUSED;
    hold(lease, session, seconds);
    return LEASE_GRANTED;
}

enum lease_answer lease_ask(struct lease_session *session, const uint8_t *key, size_t length,
                            uint64_t hash, uint32_t seconds, unsigned max)
{
    pthread_mutex_lock(&session->leases->lock);
    enum lease_answer got = answer(session, key, length, hash, seconds, max);
    pthread_mutex_unlock(&session->leases->lock);
    if (got == LEASE_GRANTED)
        watch(session, clock_now() + (int64_t)seconds * 1000);
    return got;
}

bool lease_any(struct leases *leases)
{
    return atomic_load(&leases->count) > 0;
}

int64_t lease_age(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash)
{
    if (!lease_any(leases))
        return -1;
    pthread_mutex_lock(&leases->lock);
    const struct lease *lease = find(leases, key, length, hash);
    int64_t age = lease != NULL ? clock_now() - lease->granted : -1;
    pthread_mutex_unlock(&leases->lock);
    return age;
}

void lease_fulfil(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash,
                  struct value *value)
{
    if (!lease_any(leases))
        return;
    pthread_mutex_lock(&leases->lock);
    struct lease *lease = find(leases, key, length, hash);
    if (lease != NULL) {
        let_go(lease);
        while (lease->waiting != NULL)
            tell(lease->waiting, false, value);
        drop(leases, lease);
    }
    pthread_mutex_unlock(&leases->lock);
}

void lease_pass_on(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash)
{
    if (!lease_any(leases))
        return;
    pthread_mutex_lock(&leases->lock);
    struct lease *lease = find(leases, key, length, hash);
    if (lease != NULL) {
        let_go(lease);
        next_in_line(leases, lease);
    }
    pthread_mutex_unlock(&leases->lock);
}

bool lease_busy(struct lease_session *session)
{
    pthread_mutex_lock(&session->leases->lock);
    bool busy = session->held != NULL || session->waits_for != NULL;
    pthread_mutex_unlock(&session->leases->lock);
    return busy;
}

bool lease_session_end(struct lease_session *session)
{
    pthread_mutex_lock(&session->leases->lock);
    if (session->waits_for != NULL)
        leave_line(session);
    while (session->held != NULL) {
        struct lease *lease = session->held;
        let_go(lease);
        next_in_line(session->leases, lease);
    }
    bool told = session->told;
    pthread_mutex_unlock(&session->leases->lock);
    loop_timer_clear(&session->timer);
    session->timer_due = CLOCK_NEVER;
    return !told;
}
