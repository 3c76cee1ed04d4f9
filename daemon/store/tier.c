#include "tier.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../log.h"
#include "memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GATES = 1024,
    CHAINS = 16,        /* of a gate; what is under way at one time is bounded */
    FLUSH_MS = 100,     /* the oldest dirty value waits no longer before it is written */
    FLUSH_COUNT = 1024, /* as many are written without waiting */
    FLUSH_BYTES = 4 << 20,
    RETRY_MS = 500,    /* after a failed write */
    DIRTY_MAX = 65536, /* entries */
    DETACH_MS = 30000,
    DIRTY_SHARE = 4 /* of the memory may be dirty: one in so many bytes */
};

/* A dirty value on its way: first in a lane's queue, then at the slower store. */
struct flush {
    struct store_call call;
    struct lane *lane;
    struct entry *entry;
    struct flush *next;
    struct value *value;
};

/* A key about which the slower store does not have, or not yet, the last word. */
struct entry {
    struct entry *next;
    struct value *dirty;  /* the newest value that it has not acknowledged; a reference */
    struct flush *queued; /* it waits in a lane, where a newer value may take its place */
    unsigned flushing;    /* writes of dirty values that are under way */
    unsigned direct;      /* PUTs and DELETEs of clients that are under way */
    bool fresh;           /* nothing of it has ever been sent to the slower store */
    uint32_t key_length;
    uint64_t hash;
    uint8_t key[];
};

/* The order of all that changes a key is made under its gate. */
struct gate {
    pthread_mutex_t lock;
    uint64_t generation; /* counts changes: what was read before one must not be kept after it */
    struct entry *chains[CHAINS];
} __attribute__((aligned(64)));

/* What waits until all that was dirty in every lane has been written. */
struct barrier {
    struct tier *tier;
    struct store_call *call; /* who waits, and is told by then() */
    void (*then)(struct barrier *barrier);
    atomic_uint left; /* lanes, and one for the start */
    atomic_bool failed;
    pthread_mutex_t lock; /* of the first error */
    enum error_code error;
    char text[MESSAGE_TEXT_MAX];
    struct loop_task back; /* to the loop that waits */
    struct barrier_part {
        struct loop_task task;
        struct barrier *barrier;
        struct lane *lane;
        struct barrier_part *next;
        uint64_t target;
    } parts[];
};

/* A loop's share of what is dirty. The loop's thread only. */
struct lane {
    struct tier *tier;
    struct loop *loop;
    bool attached; /* under the tier's lanes_lock: barriers are to reach it */
    struct flush *first, **last;
    unsigned count;
    uint64_t bytes;
    uint64_t queued, finished; /* writes since the start */
    bool timing;
    struct loop_timer timer;
    struct barrier_part *waiting;
};

struct tier {
    struct store store;
    struct store_ops ops; /* the slower store's name, our methods */
    struct store *memory, *back;
    uint64_t memory_size, dirty_max;
    _Atomic uint64_t dirty_bytes;
    _Atomic uint64_t dirty_count;
    atomic_uint clearing;       /* CLEARs under way: nothing may become dirty */
    pthread_mutex_t lanes_lock; /* of which lanes are attached */
    unsigned lane_count;
    struct lane *lanes;
    struct gate gates[GATES];
};

static struct tier *tier_of(struct store *store)
{
    return container_of(store, struct tier, store);
}

static struct gate *gate_of(struct tier *tier, uint64_t hash)
{
    return &tier->gates[hash % GATES];
}

static struct entry **entry_link(struct gate *gate, const uint8_t *key, uint32_t length,
                                 uint64_t hash)
{
    struct entry **link = &gate->chains[hash / GATES % CHAINS];
    while (*link != NULL && ((*link)->hash != hash || (*link)->key_length != length ||
                             memcmp((*link)->key, key, length) != 0))
        link = &(*link)->next;
    return link;
}

static struct entry *entry_find(struct gate *gate, const struct store_call *call)
{
    return *entry_link(gate, call->key, call->key_length, call->hash);
}

static struct entry *entry_add(struct gate *gate, const struct store_call *call)
{
    struct entry *entry = calloc(1, sizeof(*entry) + call->key_length);
    if (entry == NULL)
        return NULL;
    entry->hash = call->hash;
    entry->key_length = call->key_length;
    memcpy(entry->key, call->key, call->key_length);
    struct entry **chain = &gate->chains[call->hash / GATES % CHAINS];
    entry->next = *chain;
    *chain = entry;
    return entry;
}

/* Frees the entry if the slower store has the last word again. */
static void entry_settle(struct gate *gate, struct entry *entry)
{
    if (entry->dirty != NULL || entry->queued != NULL || entry->flushing > 0 || entry->direct > 0)
        return;
    *entry_link(gate, entry->key, entry->key_length, entry->hash) = entry->next;
    free(entry);
}

static bool absent(struct tier *tier, const struct store_call *call)
{
    return tier->back->ops->absent != NULL && tier->back->ops->absent(tier->back, call);
}

/* The memory's methods answer at once where they are asked for one key. */
static struct value *memory_look(struct tier *tier, struct store_call *call)
{
    enum store_status status = store_memory.get(tier->memory, call);
    struct value *value = status == STORE_OK ? call->value : NULL;
    call->value = NULL;
    return value;
}

/* What is dirty: a reference, or NULL. The gate's lock is held. */
static struct value *dirty_look(const struct entry *entry)
{
    if (entry == NULL || entry->dirty == NULL || store_expired(entry->dirty->expires, clock_now()))
        return NULL;
    return value_ref(entry->dirty);
}

static void count_dirty(struct tier *tier, const struct value *value, bool more)
{
    uint64_t cost = value_cost(value);
    if (more) {
        atomic_fetch_add(&tier->dirty_bytes, cost);
        atomic_fetch_add(&tier->dirty_count, 1);
    } else {
        atomic_fetch_sub(&tier->dirty_bytes, cost);
        atomic_fetch_sub(&tier->dirty_count, 1);
    }
}

static void set_dirty(struct tier *tier, struct entry *entry, struct value *value)
{
    struct value *before = entry->dirty;
    entry->dirty = value;
    if (value != NULL)
        count_dirty(tier, value, true);
    if (before != NULL)
        count_dirty(tier, before, false);
    value_unref(before);
}

/* Calls to the slower store come back to us first. */

static void pass_on(struct store_call *call, enum store_status status)
{
    call->store = call->via.tier;
    call->done = call->via.done;
    call->status = status;
    call->done(call);
}

static enum store_status forward(struct tier *tier, struct store_call *call,
                                 void (*done)(struct store_call *))
{
    call->via.done = call->done;
    call->via.tier = &tier->store;
    call->done = done;
    enum store_status status = store_submit(tier->back, call);
    if (status != STORE_PENDING)
        call->done = call->via.done;
    return status;
}

/* Reads. */

static void filled(struct tier *tier, struct store_call *call)
{
    struct gate *gate = gate_of(tier, call->hash);
    pthread_mutex_lock(&gate->lock);
    if (call->value != NULL && gate->generation == call->via.generation &&
        entry_find(gate, call) == NULL)
        memory_keep(tier->memory, call->value, call->hash, false);
    pthread_mutex_unlock(&gate->lock);
}

static void get_done(struct store_call *call)
{
    if (call->status == STORE_OK)
        filled(tier_of(call->via.tier), call);
    pass_on(call, call->status);
}

static enum store_status tier_get(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    if (store_memory.get(tier->memory, call) == STORE_OK)
        return STORE_OK;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    call->value = dirty_look(entry);
    call->via.generation = gate->generation;
    bool is_absent = entry == NULL ? absent(tier, call) : entry->dirty != NULL;
    pthread_mutex_unlock(&gate->lock);
    if (call->value != NULL)
        return STORE_OK;
    if (is_absent)
        return STORE_MISS;
    enum store_status status = forward(tier, call, get_done);
    if (status == STORE_OK)
        filled(tier, call);
    return status;
}

static void just_pass_on(struct store_call *call)
{
    pass_on(call, call->status);
}

static enum store_status tier_head(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    struct value *value = memory_look(tier, call);
    if (value == NULL) {
        pthread_mutex_lock(&gate->lock);
        value = dirty_look(entry_find(gate, call));
        pthread_mutex_unlock(&gate->lock);
    }
    if (value == NULL)
        return forward(tier, call, just_pass_on);
    call->length = value->length;
    call->flags = value->flags;
    call->expires = value->expires;
    value_unref(value);
    return STORE_OK;
}

/* Writing what is dirty. */

static void lane_run(struct lane *lane);
static void flush_done(struct store_call *call);

/* Barriers are told in the order in which the writes that they wait for end. */
static void barrier_left(struct barrier *barrier)
{
    if (atomic_fetch_sub(&barrier->left, 1) == 1)
        loop_post(barrier->call->loop, &barrier->back);
}

static void barrier_fail(struct barrier *barrier, const struct store_call *call)
{
    pthread_mutex_lock(&barrier->lock);
    if (!atomic_exchange(&barrier->failed, true)) {
        barrier->error = call->error;
        memcpy(barrier->text, call->text, sizeof(barrier->text));
    }
    pthread_mutex_unlock(&barrier->lock);
}

static void lane_check_barriers(struct lane *lane, const struct store_call *failed)
{
    for (struct barrier_part **link = &lane->waiting; *link != NULL;) {
        struct barrier_part *part = *link;
        if (failed != NULL)
            barrier_fail(part->barrier, failed);
        if (failed == NULL && lane->finished < part->target) {
            link = &part->next;
            continue;
        }
        *link = part->next;
        barrier_left(part->barrier);
    }
}

static void lane_timer(struct loop_timer *timer)
{
    struct lane *lane = container_of(timer, struct lane, timer);
    lane->timing = false;
    lane_run(lane);
}

static void lane_wait(struct lane *lane, int64_t milliseconds)
{
    if (!lane->timing)
        lane->timing = loop_timer_set(lane->loop, &lane->timer, lane_timer, milliseconds);
    if (!lane->timing)
        lane_run(lane);
}

/* Takes the flush's value as it is now: from here on a newer one needs a write of its own. */
static void take_off_queue(struct flush *flush)
{
    struct tier *tier = flush->lane->tier;
    struct gate *gate = gate_of(tier, flush->entry->hash);
    pthread_mutex_lock(&gate->lock);
    flush->entry->queued = NULL;
    flush->entry->fresh = false;
    flush->entry->flushing++;
    flush->value = flush->entry->dirty != NULL ? value_ref(flush->entry->dirty) : NULL;
    pthread_mutex_unlock(&gate->lock);
}

static void lane_submit(struct lane *lane, struct flush *flush)
{
    struct store_call *call = &flush->call;
    enum store_status status = STORE_OK;
    take_off_queue(flush);
    memset(call, 0, sizeof(*call));
    call->loop = lane->loop;
    call->done = flush_done;
    if (flush->value != NULL) {
        call->op = STORE_PUT;
        call->overwrite = true; /* nobody else has stored the key, or is meant to lose */
        call->key = value_key(flush->value);
        call->key_length = flush->value->key_length;
        call->value = value_ref(flush->value);
        status = store_submit(lane->tier->back, call);
    }
    if (status == STORE_PENDING)
        return;
    call->status = status;
    flush_done(call);
}

/* Sends all that waits to the slower store. */
static void lane_run(struct lane *lane)
{
    struct flush *flush = lane->first;
    lane->first = NULL;
    lane->last = &lane->first;
    lane->count = 0;
    lane->bytes = 0;
    for (struct flush *next; flush != NULL; flush = next) {
        next = flush->next;
        lane_submit(lane, flush);
    }
}

static void lane_add(struct lane *lane, struct flush *flush, uint64_t bytes)
{
    flush->next = NULL;
    *lane->last = flush;
    lane->last = &flush->next;
    lane->count++;
    lane->bytes += bytes;
}

/* The write failed: the value waits again, unless a newer one does or it was deleted meanwhile. */
static bool flush_again(struct flush *flush)
{
    struct entry *entry = flush->entry;
    return entry->dirty == flush->value && flush->value != NULL && entry->queued == NULL;
}

static void flush_done(struct store_call *call)
{
    struct flush *flush = container_of(call, struct flush, call);
    struct lane *lane = flush->lane;
    struct tier *tier = lane->tier;
    struct entry *entry = flush->entry;
    struct gate *gate = gate_of(tier, entry->hash);
    struct value *value = flush->value;
    struct store_call failed = {.error = call->error};
    bool ok = call->status != STORE_FAILED, again;
    memcpy(failed.text, call->text, sizeof(failed.text));

    pthread_mutex_lock(&gate->lock);
    entry->flushing--;
    again = !ok && flush_again(flush);
    if (again)
        entry->queued = flush;
    else if (entry->dirty == value && value != NULL)
        set_dirty(tier, entry, NULL);
    flush->value = NULL;
    entry_settle(gate, entry);
    pthread_mutex_unlock(&gate->lock);

    lane->finished++;
    if (again) {
        log_debug("can't write a value to the store yet: %s", failed.text);
        lane->queued++;
        lane_add(lane, flush, value_cost(value));
        lane_wait(lane, RETRY_MS);
    } else {
        free(flush);
    }
    value_unref(value);
    lane_check_barriers(lane, ok ? NULL : &failed);
}

static struct lane *lane_of(struct tier *tier, const struct store_call *call)
{
    return &tier->lanes[loop_index(call->loop)];
}

/* Changes. */

static bool room_for_dirty(struct tier *tier, const struct value *value)
{
    return atomic_load(&tier->clearing) == 0 && atomic_load(&tier->dirty_count) < DIRTY_MAX &&
           atomic_load(&tier->dirty_bytes) + value_cost(value) <= tier->dirty_max;
}

/* Makes the call's value dirty. false where memory is short. The gate's lock is held. */
static bool make_dirty(struct tier *tier, struct gate *gate, struct entry *entry,
                       struct store_call *call, struct flush **queued)
{
    bool is_new = entry == NULL;
    *queued = NULL;
    if (is_new && (entry = entry_add(gate, call)) == NULL)
        return false;
    if (entry->queued == NULL) {
        *queued = calloc(1, sizeof(**queued));
        if (*queued == NULL) {
            entry_settle(gate, entry);
            return false;
        }
        **queued = (struct flush){.lane = lane_of(tier, call), .entry = entry};
        entry->queued = *queued;
    }
    if (is_new)
        entry->fresh = !call->overwrite;
    set_dirty(tier, entry, value_ref(call->value));
    gate->generation++;
    memory_keep(tier->memory, call->value, call->hash, true);
    return true;
}

enum road { ROAD_EXISTS, ROAD_DIRTY, ROAD_DIRECT };

/* How a PUT is to go. The gate's lock is held. */
static enum road choose_road(struct tier *tier, const struct entry *entry, struct store_call *call)
{
    struct value *value = call->value;
    if (tier->back->ops->absent == NULL)
        return ROAD_DIRECT; /* others share the slower store: it alone can tell */
    struct value *there = dirty_look(entry);
    bool is_dirty = entry != NULL && entry->dirty != NULL;
    if (there == NULL && (entry == NULL || entry->direct == 0))
        there = memory_look(tier, call);
    call->value = value;
    value_unref(there);
    if (there != NULL && !call->overwrite)
        return ROAD_EXISTS;
    if (entry != NULL && entry->direct > 0)
        return ROAD_DIRECT;
    if (!room_for_dirty(tier, call->value))
        return ROAD_DIRECT;
    return call->overwrite || is_dirty || absent(tier, call) ? ROAD_DIRTY : ROAD_DIRECT;
}

/* From here until direct_done() all other changes of the key queue up behind it. */
static bool start_direct(struct gate *gate, struct entry *entry, struct store_call *call)
{
    if (entry == NULL && (entry = entry_add(gate, call)) == NULL)
        return false;
    entry->direct++;
    entry->fresh = false;
    call->via.generation = ++gate->generation;
    return true;
}

/* Ends a direct change; what was stored may be kept if nothing came in between. */
static void end_direct(struct tier *tier, struct store_call *call)
{
    struct gate *gate = gate_of(tier, call->hash);
    struct value *stored = call->via.value;
    call->via.value = NULL;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    entry->direct--;
    bool alone = entry->direct == 0 && entry->dirty == NULL;
    if (alone && stored != NULL && call->status == STORE_OK &&
        gate->generation == call->via.generation)
        memory_keep(tier->memory, stored, call->hash, true);
    else if (call->status == STORE_OK && entry->dirty == NULL)
        memory_drop(tier->memory, call);
    gate->generation++;
    entry_settle(gate, entry);
    pthread_mutex_unlock(&gate->lock);
    value_unref(stored);
}

static void put_done(struct store_call *call)
{
    end_direct(tier_of(call->via.tier), call);
    pass_on(call, call->status);
}

static enum store_status put_refused(struct store_call *call, enum store_status status)
{
    value_unref(call->value);
    call->value = NULL;
    return status;
}

/* What others share may have another end there than the value says: it is kept once it is read. */
static enum store_status put_direct(struct tier *tier, struct store_call *call)
{
    bool keeps = tier->back->ops->absent != NULL;
    call->via.value = keeps ? value_ref(call->value) : NULL;
    enum store_status status = forward(tier, call, put_done);
    if (status != STORE_PENDING)
        end_direct(tier, call);
    return status;
}

static enum store_status tier_put(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    struct flush *queued = NULL;
    bool ok = true;
    if (value_cost(call->value) > atomic_load(&tier->back->max_size))
        return put_refused(call,
                           store_fail(call, ERROR_TOO_LARGE,
                                      "the value is larger than the whole cache (max-size %llu)",
                                      (unsigned long long)atomic_load(&tier->back->max_size)));
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    enum road road = choose_road(tier, entry, call);
    if (road == ROAD_DIRTY)
        ok = make_dirty(tier, gate, entry, call, &queued);
    else if (road == ROAD_DIRECT)
        ok = start_direct(gate, entry, call);
    pthread_mutex_unlock(&gate->lock);
    if (!ok)
        return put_refused(call, store_fail(call, ERROR_INTERNAL, "out of memory"));
    if (road == ROAD_DIRECT)
        return put_direct(tier, call);
    if (queued != NULL) {
        struct lane *lane = queued->lane;
        lane->queued++;
        lane_add(lane, queued, value_cost(call->value));
        if (lane->count >= FLUSH_COUNT || lane->bytes >= FLUSH_BYTES)
            lane_run(lane);
        else
            lane_wait(lane, FLUSH_MS);
    }
    return put_refused(call, road == ROAD_EXISTS ? STORE_EXISTS : STORE_OK);
}

static void delete_done(struct store_call *call)
{
    struct tier *tier = tier_of(call->via.tier);
    enum store_status status = call->status;
    /* What was dirty was there, whatever the slower store has seen of it. */
    if (status == STORE_MISS && call->via.was_there)
        status = STORE_OK;
    call->status = STORE_OK;
    end_direct(tier, call);
    pass_on(call, status);
}

static enum store_status tier_delete(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    bool ok = true;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    struct value *there = dirty_look(entry);
    bool direct = entry != NULL ? !entry->fresh : !absent(tier, call);
    call->via.was_there = memory_drop(tier->memory, call) || there != NULL;
    if (entry != NULL)
        set_dirty(tier, entry, NULL); /* a write that is queued finds nothing to write */
    gate->generation++;
    if (direct)
        ok = start_direct(gate, entry, call);
    pthread_mutex_unlock(&gate->lock);
    value_unref(there);
    if (!ok)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    if (!direct)
        return call->via.was_there ? STORE_OK : STORE_MISS;
    call->via.value = NULL;
    enum store_status status = forward(tier, call, delete_done);
    if (status == STORE_PENDING)
        return status;
    end_direct(tier, call);
    return status == STORE_MISS && call->via.was_there ? STORE_OK : status;
}

/* What concerns everything: PERSIST, CLEAR, INSPECT. */

static void barrier_back(struct loop_task *task)
{
    struct barrier *barrier = container_of(task, struct barrier, back);
    barrier->then(barrier);
    pthread_mutex_destroy(&barrier->lock);
    free(barrier);
}

static void barrier_reaches_lane(struct loop_task *task)
{
    struct barrier_part *part = container_of(task, struct barrier_part, task);
    struct lane *lane = part->lane;
    part->target = lane->queued;
    part->next = lane->waiting;
    lane->waiting = part;
    lane_run(lane);
    lane_check_barriers(lane, NULL);
}

/* Has then() called on the call's loop once all that is dirty now has been written, or has failed.
 */
static bool wait_for_dirty(struct tier *tier, struct store_call *call,
                           void (*then)(struct barrier *))
{
    struct barrier *barrier =
        calloc(1, sizeof(*barrier) + tier->lane_count * sizeof(barrier->parts[0]));
    if (barrier == NULL)
        return false;
    barrier->tier = tier;
    barrier->call = call;
    barrier->then = then;
    barrier->back.run = barrier_back;
    pthread_mutex_init(&barrier->lock, NULL);
    atomic_store(&barrier->left, 1);
    pthread_mutex_lock(&tier->lanes_lock);
    for (unsigned i = 0; i < tier->lane_count; i++) {
        struct barrier_part *part = &barrier->parts[i];
        if (!tier->lanes[i].attached)
            continue;
        part->task.run = barrier_reaches_lane;
        part->barrier = barrier;
        part->lane = &tier->lanes[i];
        atomic_fetch_add(&barrier->left, 1);
        loop_post(part->lane->loop, &part->task);
    }
    pthread_mutex_unlock(&tier->lanes_lock);
    barrier_left(barrier);
    return true;
}

static void finish(struct store_call *call, enum store_status status)
{
    call->status = status;
    call->done(call);
}

static bool barrier_failed(struct barrier *barrier)
{
    if (!atomic_load(&barrier->failed))
        return false;
    barrier->call->error = barrier->error;
    memcpy(barrier->call->text, barrier->text, sizeof(barrier->text));
    return true;
}

static void persist_flushed(struct barrier *barrier)
{
    struct store_call *call = barrier->call;
    enum store_status status = STORE_FAILED;
    if (!barrier_failed(barrier))
        status = forward(barrier->tier, call, just_pass_on);
    if (status != STORE_PENDING)
        finish(call, status);
}

static enum store_status tier_persist(struct store *store, struct store_call *call)
{
    if (!wait_for_dirty(tier_of(store), call, persist_flushed))
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    return STORE_PENDING;
}

/* What was read or is on its way from before must not be kept any more. */
static void forget_reads(struct tier *tier)
{
    for (unsigned i = 0; i < GATES; i++) {
        pthread_mutex_lock(&tier->gates[i].lock);
        tier->gates[i].generation++;
        pthread_mutex_unlock(&tier->gates[i].lock);
    }
}

static void clear_ended(struct tier *tier, struct store_call *call)
{
    atomic_fetch_sub(&tier->clearing, 1);
    call->entries = call->via.entries;
    finish(call, call->via.status);
}

static void memory_cleared(struct store_call *call)
{
    call->done = call->via.done;
    clear_ended(tier_of(call->via.tier), call);
}

static void back_cleared(struct store_call *call)
{
    struct tier *tier = tier_of(call->via.tier);
    call->via.status = call->status;
    call->via.entries = call->entries;
    call->done = memory_cleared;
    forget_reads(tier);
    if (store_submit(tier->memory, call) != STORE_PENDING)
        memory_cleared(call);
}

static void clear_flushed(struct barrier *barrier)
{
    struct store_call *call = barrier->call;
    struct tier *tier = barrier->tier;
    if (barrier_failed(barrier)) {
        atomic_fetch_sub(&tier->clearing, 1);
        finish(call, STORE_FAILED);
        return;
    }
    call->via.done = call->done;
    call->via.tier = &tier->store;
    call->done = back_cleared;
    forget_reads(tier);
    if (store_submit(tier->back, call) != STORE_PENDING)
        back_cleared(call);
}

static enum store_status tier_clear(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    atomic_fetch_add(&tier->clearing, 1);
    if (wait_for_dirty(tier, call, clear_flushed))
        return STORE_PENDING;
    atomic_fetch_sub(&tier->clearing, 1);
    return store_fail(call, ERROR_INTERNAL, "out of memory");
}

/* The slower store counts what it has, so it is given all first. Where that fails the figures are
 * those without. */
static void inspect_flushed(struct barrier *barrier)
{
    struct store_call *call = barrier->call;
    enum store_status status = forward(barrier->tier, call, just_pass_on);
    if (status != STORE_PENDING)
        finish(call, status);
}

static enum store_status tier_inspect(struct store *store, struct store_call *call)
{
    if (!wait_for_dirty(tier_of(store), call, inspect_flushed))
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    return STORE_PENDING;
}

static bool tier_attach(struct store *store, struct loop *loop)
{
    struct tier *tier = tier_of(store);
    if (!store_attach(tier->back, loop))
        return false;
    pthread_mutex_lock(&tier->lanes_lock);
    struct lane *lane = &tier->lanes[loop_index(loop)];
    *lane = (struct lane){.tier = tier, .loop = loop, .attached = true, .last = &lane->first};
    pthread_mutex_unlock(&tier->lanes_lock);
    return true;
}

/* What is dirty is written first, as far as the slower store allows in that time. */
static void tier_detach(struct store *store, struct loop *loop)
{
    struct tier *tier = tier_of(store);
    struct lane *lane = &tier->lanes[loop_index(loop)];
    int64_t until = clock_now() + DETACH_MS;
    pthread_mutex_lock(&tier->lanes_lock);
    lane->attached = false;
    pthread_mutex_unlock(&tier->lanes_lock);
    loop_step(loop, 0); /* barriers that were on their way */
    lane_run(lane);
    while (lane->finished < lane->queued && clock_now() < until)
        loop_step(loop, 10);
    if (lane->finished < lane->queued)
        log_error("%llu values could not be written to the store and are lost",
                  (unsigned long long)(lane->queued - lane->finished));
    loop_timer_clear(&lane->timer);
    store_detach(tier->back, loop);
}

static void free_lane(struct lane *lane)
{
    for (struct flush *flush = lane->first, *next; flush != NULL; flush = next) {
        next = flush->next;
        free(flush);
    }
}

static void free_gate(struct gate *gate)
{
    for (unsigned i = 0; i < CHAINS; i++) {
        for (struct entry *entry = gate->chains[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            value_unref(entry->dirty);
            free(entry);
        }
    }
    pthread_mutex_destroy(&gate->lock);
}

static void tier_free(struct tier *tier)
{
    for (unsigned i = 0; tier->lanes != NULL && i < tier->lane_count; i++)
        free_lane(&tier->lanes[i]);
    for (unsigned i = 0; i < GATES; i++)
        free_gate(&tier->gates[i]);
    pthread_mutex_destroy(&tier->lanes_lock);
    store_close(tier->memory);
    free(tier->lanes);
    free(tier);
}

static void tier_close(struct store *store)
{
    struct tier *tier = tier_of(store);
    store_close(tier->back);
    tier_free(tier);
}

/* The memory holds no more than the store as a whole may. */
static void tier_set_max_size(struct store *store, uint64_t bytes)
{
    struct tier *tier = tier_of(store);
    store_set_max_size(tier->back, bytes);
    store_set_max_size(tier->memory, bytes < tier->memory_size ? bytes : tier->memory_size);
}

static const struct store_ops methods = {
    .set_max_size = tier_set_max_size,
    .close = tier_close,
    .attach = tier_attach,
    .detach = tier_detach,
    .get = tier_get,
    .head = tier_head,
    .put = tier_put,
    .delete = tier_delete,
    .clear = tier_clear,
    .inspect = tier_inspect,
    .persist = tier_persist,
};

static struct store *open_memory(const struct config *config, char *why, size_t size)
{
    struct config tier_config = *config;
    if (config->memory_size < config->max_size)
        tier_config.max_size = config->memory_size;
    return store_open(&store_memory, &tier_config, why, size);
}

struct store *tier_open(struct store *back, const struct config *config, char *why, size_t size)
{
    struct tier *tier = aligned_alloc(_Alignof(struct tier), sizeof(*tier));
    if (tier == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    memset(tier, 0, sizeof(*tier));
    tier->ops = methods;
    tier->ops.name = back->ops->name;
    tier->ops.title = back->ops->title;
    tier->store.ops = &tier->ops;
    tier->store.lock = -1;
    tier->memory_size = config->memory_size;
    tier->dirty_max = config->memory_size / DIRTY_SHARE;
    tier->lane_count = config->workers + 1;
    pthread_mutex_init(&tier->lanes_lock, NULL);
    for (unsigned i = 0; i < GATES; i++)
        pthread_mutex_init(&tier->gates[i].lock, NULL);
    tier->lanes = calloc(tier->lane_count, sizeof(*tier->lanes));
    tier->memory = tier->lanes != NULL ? open_memory(config, why, size) : NULL;
    if (tier->memory != NULL) {
        tier->back = back;
        return &tier->store;
    }
    tier_free(tier);
    return NULL;
}
