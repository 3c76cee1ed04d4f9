#include "fault_store.h"

#include "../daemon/clock.h"
#include "../daemon/container_of.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_MAX = 40 };

/* What one key asks for. */
struct orders {
    char hold[WORD_MAX], release[WORD_MAX], on[WORD_MAX], error[WORD_MAX];
    int delay;
    bool lose, rot;
};

struct fault_store {
    struct store store;
    pthread_mutex_t lock;
    struct value *values;                  /* under lock: the entries, newest first */
    struct waiting *waiting;               /* under lock: calls that are delayed or held */
    struct orders next[STORE_PERSIST + 1]; /* under lock: for requests without a key */
};

/* A call that is not finished yet. */
struct waiting {
    struct loop_task task; /* posted to the call's loop when it is released */
    struct loop_timer timer;
    struct fault_store *store;
    struct store_call *call;
    struct orders orders;
    struct waiting *next;
};

static const char *const op_names[] = {
    [STORE_GET] = "get",         [STORE_HEAD] = "head",   [STORE_PUT] = "put",
    [STORE_DELETE] = "delete",   [STORE_CLEAR] = "clear", [STORE_INSPECT] = "inspect",
    [STORE_PERSIST] = "persist",
};

static struct fault_store *self(struct store *store)
{
    return container_of(store, struct fault_store, store);
}

static void set_word(struct orders *orders, const char *name, const char *argument)
{
    const struct {
        const char *name;
        char *to;
    } words[] = {
        {"hold", orders->hold},
        {"release", orders->release},
        {"on", orders->on},
        {"error", orders->error},
    };
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(words[i].name, name) == 0)
            snprintf(words[i].to, WORD_MAX, "%s", argument);
    }
    if (strcmp(name, "delay") == 0)
        orders->delay = atoi(argument);
    orders->lose |= strcmp(name, "lose") == 0;
    orders->rot |= strcmp(name, "rot") == 0;
}

static struct orders read_orders(const struct store_call *call)
{
    struct orders orders = {.delay = 0};
    char text[256], *rest = text, *word;
    const uint8_t *end = memchr(call->request.key, '/', call->request.key_length);
    if (call->request.key_length == 0 || call->request.key[0] != '!' || end == NULL)
        return orders;
    snprintf(text, sizeof(text), "%.*s", (int)(end - call->request.key),
             (const char *)call->request.key);
    while ((word = strsep(&rest, "!")) != NULL) {
        char *argument = word;
        strsep(&argument, "=");
        set_word(&orders, word, argument != NULL ? argument : "");
    }
    return orders;
}

static bool for_later(const struct orders *orders, enum store_op *op)
{
    for (*op = STORE_CLEAR; *op <= STORE_PERSIST; (*op)++) {
        if (strcmp(orders->on, op_names[*op]) == 0)
            return true;
    }
    return false;
}

/* What is to go wrong with this call. */
static struct orders orders_for(struct fault_store *store, const struct store_call *call)
{
    if (call->request.op >= STORE_CLEAR) {
        pthread_mutex_lock(&store->lock);
        struct orders orders = store->next[call->request.op];
        store->next[call->request.op] = (struct orders){.delay = 0};
        pthread_mutex_unlock(&store->lock);
        return orders;
    }
    struct orders orders = read_orders(call);
    enum store_op later;
    if (orders.on[0] == '\0' || strcmp(orders.on, op_names[call->request.op]) == 0)
        return orders;
    if (call->request.op == STORE_PUT && for_later(&orders, &later)) {
        pthread_mutex_lock(&store->lock);
        store->next[later] = orders;
        pthread_mutex_unlock(&store->lock);
        return (struct orders){.lose = true};
    }
    return (struct orders){.delay = 0};
}

static enum error_code code_of(const char *name)
{
    for (int code = 0; code < ERROR_CODE_COUNT; code++) {
        if (strcmp(message_error_name(code), name) == 0)
            return code;
    }
    return ERROR_INTERNAL;
}

static void drop_value(struct store_call *call)
{
    if (call->request.op == STORE_PUT) {
        value_unref(call->request.value);
        call->request.value = NULL;
    }
}

/* The link that points to the key's live value, or to NULL at the end. The lock is held. */
static struct value **find(struct fault_store *store, const struct store_call *call)
{
    struct value **link = &store->values, *value;
    while ((value = *link) != NULL) {
        if (store_expired(value->expires, clock_now())) {
            *link = value->next;
            value_unref(value);
        } else if (value->key_length == call->request.key_length &&
                   memcmp(value_key(value), call->request.key, call->request.key_length) == 0) {
            break;
        } else {
            link = &value->next;
        }
    }
    return link;
}

static void take_out(struct value **link)
{
    struct value *value = *link;
    *link = value->next;
    value_unref(value);
}

static enum store_status put(struct fault_store *store, struct store_call *call)
{
    struct value **link = find(store, call);
    if (*link != NULL && !call->request.overwrite) {
        drop_value(call);
        return STORE_EXISTS;
    }
    if (*link != NULL)
        take_out(link);
    call->request.value->next = store->values;
    store->values = call->request.value;
    call->request.value = NULL;
    return STORE_OK;
}

static enum store_status look(struct fault_store *store, struct store_call *call)
{
    struct value *value = *find(store, call);
    if (value == NULL)
        return STORE_MISS;
    call->result.length = value->length;
    call->result.flags = value->flags;
    call->result.expires = value->expires;
    if (call->request.op == STORE_GET)
        call->result.value = value_ref(value);
    return STORE_OK;
}

static enum store_status delete (struct fault_store *store, struct store_call *call) {
    struct value **link = find(store, call); if (*link == NULL) return STORE_MISS; take_out(link);
    return STORE_OK;
}

/* CLEAR and INSPECT: everything with the prefix. */
static enum store_status walk(struct fault_store *store, struct store_call *call)
{
    call->result.entries = 0;
    call->result.size = 0;
    call->result.approximate = false;
    for (struct value **link = &store->values, *value; (value = *link) != NULL;) {
        bool ours = value->key_length >= call->request.key_length &&
                    memcmp(value_key(value), call->request.key, call->request.key_length) == 0;
        call->result.entries += ours;
        call->result.size += ours ? value_cost(value) : 0;
        if (ours && call->request.op == STORE_CLEAR)
            take_out(link);
        else
            link = &value->next;
    }
    return STORE_OK;
}

static enum store_status persist(struct fault_store *store, struct store_call *call)
{
    (void)store;
    call->result.durable = false;
    return STORE_OK;
}

static enum store_status serve(struct fault_store *store, struct store_call *call)
{
    enum store_status (*const methods[])(struct fault_store *, struct store_call *) = {
        [STORE_GET] = look,        [STORE_HEAD] = look,  [STORE_PUT] = put,
        [STORE_DELETE] = delete,   [STORE_CLEAR] = walk, [STORE_INSPECT] = walk,
        [STORE_PERSIST] = persist,
    };
    pthread_mutex_lock(&store->lock);
    enum store_status status = methods[call->request.op](store, call);
    pthread_mutex_unlock(&store->lock);
    return status;
}

/* Does what the call asks for, with its fault, once it has waited. */
static enum store_status perform(struct fault_store *store, struct store_call *call,
                                 const struct orders *orders)
{
    if (orders->error[0] != '\0') {
        drop_value(call);
        return store_fail(call, code_of(orders->error), "a fault was asked for");
    }
    if (orders->lose && call->request.op == STORE_PUT) {
        drop_value(call);
        return STORE_OK;
    }
    if (orders->rot && call->request.op == STORE_GET)
        return STORE_MISS;
    return serve(store, call);
}

/* On the loop of the call. */
static void finish(struct waiting *waiting)
{
    struct fault_store *store = waiting->store;
    struct store_call *call = waiting->call;
    call->result.status = perform(store, call, &waiting->orders);
    loop_timer_clear(&waiting->timer);
    free(waiting);
    call->done(call);
}

static void unlink_waiting(struct waiting *waiting)
{
    struct fault_store *store = waiting->store;
    pthread_mutex_lock(&store->lock);
    struct waiting **at = &store->waiting;
    while (*at != NULL && *at != waiting)
        at = &(*at)->next;
    if (*at != NULL)
        *at = waiting->next;
    pthread_mutex_unlock(&store->lock);
}

static void delay_over(struct loop_timer *timer)
{
    struct waiting *waiting = container_of(timer, struct waiting, timer);
    unlink_waiting(waiting);
    finish(waiting);
}

static void released(struct loop_task *task)
{
    finish(container_of(task, struct waiting, task));
}

/* Posts what is held under that name to the loops that asked. */
static void release(struct fault_store *store, const char *name)
{
    pthread_mutex_lock(&store->lock);
    for (struct waiting **at = &store->waiting, *waiting; (waiting = *at) != NULL;) {
        if (strcmp(waiting->orders.hold, name) != 0) {
            at = &waiting->next;
            continue;
        }
        *at = waiting->next;
        waiting->task.run = released;
        loop_post(waiting->call->request.loop, &waiting->task);
    }
    pthread_mutex_unlock(&store->lock);
}

static enum store_status wait_on_loop(struct fault_store *store, struct store_call *call,
                                      const struct orders *orders)
{
    struct waiting *waiting = calloc(1, sizeof(*waiting));
    if (waiting == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    waiting->store = store;
    waiting->call = call;
    waiting->orders = *orders;
    pthread_mutex_lock(&store->lock);
    waiting->next = store->waiting;
    store->waiting = waiting;
    pthread_mutex_unlock(&store->lock);
    if (orders->hold[0] == '\0')
        loop_timer_set(call->request.loop, &waiting->timer, delay_over, orders->delay);
    return STORE_PENDING;
}

static enum store_status fault_on_loop(struct store *base, struct store_call *call)
{
    struct fault_store *store = self(base);
    struct orders orders = orders_for(store, call);
    if (orders.release[0] != '\0')
        release(store, orders.release);
    if (orders.hold[0] != '\0' || orders.delay > 0)
        return wait_on_loop(store, call, &orders);
    return perform(store, call, &orders);
}

static struct store *fault_open(const struct config *config, char *why, size_t size)
{
    (void)config;
    struct fault_store *store = calloc(1, sizeof(*store));
    if (store == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&store->lock, NULL);
    return &store->store;
}

static void fault_close(struct store *base)
{
    struct fault_store *store = self(base);
    while (store->values != NULL)
        take_out(&store->values);
    pthread_mutex_destroy(&store->lock);
    free(store);
}

const struct store_ops store_fault = {
    .name = "fault",
    .title = "Fault",
    .open = fault_open,
    .close = fault_close,
    .get = fault_on_loop,
    .head = fault_on_loop,
    .put = fault_on_loop,
    .delete = fault_on_loop,
    .clear = fault_on_loop,
    .inspect = fault_on_loop,
    .persist = fault_on_loop,
};

/* The linker sends the daemon's store_find() here (--wrap=store_find). */
const struct store_ops *__wrap_store_find(const char *name);
const struct store_ops *__real_store_find(const char *name);

const struct store_ops *__wrap_store_find(const char *name)
{
    if (strcmp(name, store_fault.name) == 0)
        return &store_fault;
    return __real_store_find(name);
}
