#include "tier.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../log.h"
#include "tier_memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    uint64_t number;       /* in its lane */
    bool parked;           /* under the gate's lock: it has left the queue and waits for its turn */
    struct loop_task turn; /* to the lane's loop once the turn has come */
};

/*
 * A key about which the slower store does not have, or not yet, the last word.
 *
 * The slower store has at most one change of a key at a time, be it a write of a dirty value or a
 * client's PUT or DELETE: the next one is sent once it has ended. So the changes reach that store
 * in the order in which they are acknowledged, whichever loops they come from. A store that others
 * share orders changes by itself, and is sent them at once.
 */
struct entry {
    struct entry *next;
    struct value *dirty;  /* the newest value that it has not acknowledged; a reference */
    struct flush *queued; /* it waits, and until then a newer value may take its place */
    bool flushing;        /* the slower store has the write of a dirty value */
    bool fresh;           /* nothing of it has ever been sent to the slower store */
    unsigned direct;      /* PUTs and DELETEs of clients that have not ended */
    unsigned running;     /* those of them that the slower store has */
    struct store_call *first, **last; /* those of them that wait for their turn */
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
        uint64_t target; /* the number of the last flush that it waits for */
        uint64_t left;   /* flushes that it waits for */
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
    uint64_t direct;           /* the loop's clients' own changes that have not ended */
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
    entry->last = &entry->first;
    struct entry **chain = &gate->chains[call->hash / GATES % CHAINS];
    entry->next = *chain;
    *chain = entry;
    return entry;
}

/* Frees the entry if the slower store has the last word again. */
static void entry_settle(struct gate *gate, struct entry *entry)
{
    if (entry->dirty != NULL || entry->queued != NULL || entry->flushing || entry->direct > 0)
        return;
    *entry_link(gate, entry->key, entry->key_length, entry->hash) = entry->next;
    free(entry);
}

/* Whether others may change the slower store too: it alone knows what is there. */
static bool is_shared(const struct tier *tier)
{
    return tier->back->ops->absent == NULL;
}

static bool absent(struct tier *tier, const struct store_call *call)
{
    return !is_shared(tier) && tier->back->ops->absent(tier->back, call);
}

static bool at_the_store(const struct entry *entry)
{
    return entry->flushing || entry->running > 0;
}

/* The memory's methods answer at once where they are asked for one key. */
static struct value *memory_look(struct tier *tier, struct store_call *call)
{
    enum store_status status = store_tier_memory.get(tier->memory, call);
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

/* What a GET would find without asking the slower store: a reference, or NULL. The gate's lock is
 * held. */
static struct value *look(struct tier *tier, const struct entry *entry, struct store_call *call)
{
    struct value *saved = call->value;
    struct value *there = dirty_look(entry);
    if (there == NULL)
        there = memory_look(tier, call);
    call->value = saved;
    return there;
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

/* Fills in what GET and HEAD tell of the value, whose reference is taken over. */
static void tell(struct store_call *call, struct value *value)
{
    if (call->fd >= 0)
        close(call->fd);
    call->fd = -1;
    value_unref(call->value);
    call->value = call->op == STORE_GET ? value : NULL;
    call->length = value->length;
    call->flags = value->flags;
    call->expires = value->expires;
    call->status = STORE_OK;
    if (call->op != STORE_GET)
        value_unref(value);
}

/*
 * Ends a read of the slower store. It may have seen a change that is still to be acknowledged,
 * while other clients are answered from memory with what was there before: then so is this one,
 * else it would see the newer value first and the older one next. Otherwise what was read may be
 * kept.
 */
static void read_ended(struct tier *tier, struct store_call *call)
{
    struct gate *gate = gate_of(tier, call->hash);
    struct value *here = NULL;
    if (call->status == STORE_FAILED)
        return;
    call->room_size = 0;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    if ((entry != NULL && entry->running > 0) || atomic_load(&tier->clearing) > 0)
        here = look(tier, entry, call);
    if (here == NULL && entry == NULL && call->value != NULL &&
        gate->generation == call->via.generation)
        memory_keep(tier->memory, call->value, call->hash, false);
    pthread_mutex_unlock(&gate->lock);
    if (here != NULL)
        tell(call, here);
}

static void read_done(struct store_call *call)
{
    read_ended(tier_of(call->via.tier), call);
    pass_on(call, call->status);
}

/* Has the slower store read. */
static enum store_status read_behind(struct tier *tier, struct store_call *call)
{
    enum store_status status = forward(tier, call, read_done);
    if (status == STORE_PENDING)
        return status;
    call->status = status;
    read_ended(tier, call);
    return call->status;
}

static enum store_status tier_get(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    if (store_tier_memory.get(tier->memory, call) == STORE_OK)
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
    return read_behind(tier, call);
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
    bool is_absent = false;
    if (value == NULL) {
        pthread_mutex_lock(&gate->lock);
        struct entry *entry = entry_find(gate, call);
        value = dirty_look(entry);
        is_absent = entry != NULL && entry->dirty != NULL;
        call->via.generation = gate->generation;
        pthread_mutex_unlock(&gate->lock);
    }
    if (value == NULL)
        return is_absent ? STORE_MISS : read_behind(tier, call);
    tell(call, value);
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

/* Tells the barriers that wait for the flush of that number how it ended; failed may be NULL. */
static void lane_tell_barriers(struct lane *lane, uint64_t number, const struct store_call *failed)
{
    for (struct barrier_part **link = &lane->waiting; *link != NULL;) {
        struct barrier_part *part = *link;
        bool waits = number <= part->target;
        if (waits && failed != NULL)
            barrier_fail(part->barrier, failed);
        if (!waits || (--part->left > 0 && failed == NULL)) {
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

/* Takes the flush's value as it is now: from here on a newer one needs a write of its own. The
 * gate's lock is held. */
static void take_off_queue(struct flush *flush)
{
    struct entry *entry = flush->entry;
    entry->queued = NULL;
    entry->fresh = false;
    entry->flushing = true;
    flush->parked = false;
    flush->value = entry->dirty != NULL ? value_ref(entry->dirty) : NULL;
}

/* Writes what take_off_queue() took. On the lane's loop. */
static void flush_send(struct flush *flush)
{
    struct store_call *call = &flush->call;
    enum store_status status = STORE_OK;
    memset(call, 0, sizeof(*call));
    call->loop = flush->lane->loop;
    call->done = flush_done;
    if (flush->value != NULL) {
        call->op = STORE_PUT;
        call->overwrite = true; /* nobody else has stored the key, or is meant to lose */
        call->key = value_key(flush->value);
        call->key_length = flush->value->key_length;
        call->value = value_ref(flush->value);
        status = store_submit(flush->lane->tier->back, call);
    }
    if (status == STORE_PENDING)
        return;
    call->status = status;
    flush_done(call);
}

static void flush_turn(struct loop_task *task)
{
    flush_send(container_of(task, struct flush, turn));
}

static void lane_submit(struct lane *lane, struct flush *flush)
{
    struct gate *gate = gate_of(lane->tier, flush->entry->hash);
    pthread_mutex_lock(&gate->lock);
    bool parked = at_the_store(flush->entry);
    flush->parked = parked;
    if (!parked)
        take_off_queue(flush);
    pthread_mutex_unlock(&gate->lock);
    if (!parked)
        flush_send(flush);
}

static void direct_turn(struct loop_task *task);

/* The key's next change, and the loop which it came from. */
struct turn {
    struct loop *loop; /* NULL: there is none */
    struct loop_task *task;
};

/*
 * Chooses what is sent to the slower store next, once that has no change of the key, and frees the
 * entry where nothing is left. Clients' changes go first, as each that succeeds makes the dirty
 * value one of the past, but for the turn after one of them: else a row of them that fail would
 * hold up PERSIST. The gate's lock is held; after it start_turn() is called.
 */
static struct turn next_turn(struct gate *gate, struct entry *entry, bool after_direct)
{
    struct flush *flush = entry->queued;
    struct store_call *call = entry->first;
    bool parked = flush != NULL && flush->parked;
    if (at_the_store(entry))
        return (struct turn){.loop = NULL};
    if (parked && (after_direct || call == NULL)) {
        take_off_queue(flush);
        flush->turn.run = flush_turn;
        return (struct turn){flush->lane->loop, &flush->turn};
    }
    if (call == NULL) {
        entry_settle(gate, entry);
        return (struct turn){.loop = NULL};
    }
    entry->first = call->via.next;
    if (entry->first == NULL)
        entry->last = &entry->first;
    entry->running++;
    call->via.turn.run = direct_turn;
    return (struct turn){call->loop, &call->via.turn};
}

static void start_turn(struct turn turn)
{
    if (turn.loop != NULL)
        loop_post(turn.loop, turn.task);
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
    flush->number = ++lane->queued;
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
    entry->flushing = false;
    again = !ok && flush_again(flush);
    if (again)
        entry->queued = flush;
    else if (entry->dirty == value && value != NULL)
        set_dirty(tier, entry, NULL);
    flush->value = NULL;
    struct turn turn = next_turn(gate, entry, false);
    pthread_mutex_unlock(&gate->lock);
    start_turn(turn);

    lane->finished++;
    lane_tell_barriers(lane, flush->number, ok ? NULL : &failed);
    if (again) {
        log_debug("can't write a value to the store yet: %s", failed.text);
        lane_add(lane, flush, value_cost(value));
        lane_wait(lane, RETRY_MS);
    } else {
        free(flush);
    }
    value_unref(value);
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
    if (is_shared(tier) || (entry != NULL && entry->direct > 0))
        return ROAD_DIRECT;
    struct value *there = look(tier, entry, call);
    bool is_dirty = entry != NULL && entry->dirty != NULL;
    value_unref(there);
    if (there != NULL && !call->overwrite)
        return ROAD_EXISTS;
    if (!room_for_dirty(tier, call->value))
        return ROAD_DIRECT;
    return call->overwrite || is_dirty || absent(tier, call) ? ROAD_DIRTY : ROAD_DIRECT;
}

enum start { START_NOW, START_LATER, START_NEVER };

/*
 * Until end_direct() nothing of the key becomes dirty. START_LATER: direct_turn() is called on the
 * call's loop once the changes before it have ended. START_NEVER: memory is short. The gate's lock
 * is held.
 */
static enum start start_direct(struct tier *tier, struct gate *gate, struct entry *entry,
                               struct store_call *call)
{
    if (entry == NULL && (entry = entry_add(gate, call)) == NULL)
        return START_NEVER;
    lane_of(tier, call)->direct++;
    entry->direct++;
    entry->fresh = false;
    if (is_shared(tier) || (!at_the_store(entry) && entry->first == NULL)) {
        entry->running++;
        return START_NOW;
    }
    call->via.done = call->done;
    call->via.tier = &tier->store;
    call->via.next = NULL;
    *entry->last = call;
    entry->last = &call->via.next;
    return START_LATER;
}

/* What has ended is the newest of the key: what was dirty is of the past. The gate's lock is held.
 */
static void put_ended(struct tier *tier, struct gate *gate, struct entry *entry,
                      struct store_call *call, struct value *stored)
{
    if (call->status != STORE_OK)
        return;
    set_dirty(tier, entry, NULL);
    /* A CLEAR may have come in between. */
    if (stored != NULL && gate->generation == call->via.generation)
        memory_keep(tier->memory, stored, call->hash, true);
    else
        memory_drop(tier->memory, call);
}

/* Forgets the call's key, of which a write that is queued then finds nothing to write; whether it
 * was there. entry may be NULL. The gate's lock is held. */
static bool forget(struct tier *tier, struct entry *entry, struct store_call *call)
{
    struct value *there = dirty_look(entry);
    bool was_there = memory_drop(tier->memory, call) || there != NULL;
    value_unref(there);
    if (entry != NULL)
        set_dirty(tier, entry, NULL);
    return was_there;
}

/* What was here was there, whatever the slower store has seen of it; but a store that others share
 * alone can tell. Where a DELETE fails all stays as it was, what is dirty too: otherwise what that
 * has replaced would come back. The gate's lock is held. */
static void delete_ended(struct tier *tier, struct entry *entry, struct store_call *call)
{
    if (is_shared(tier))
        memory_drop(tier->memory, call);
    else if (call->status != STORE_FAILED && forget(tier, entry, call))
        call->status = STORE_OK;
}

/* Ends a direct change, of which call->status says how, and lets the next one begin. */
static void end_direct(struct tier *tier, struct store_call *call)
{
    struct gate *gate = gate_of(tier, call->hash);
    struct value *stored = call->via.value;
    call->via.value = NULL;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    if (call->op == STORE_PUT)
        put_ended(tier, gate, entry, call, stored);
    else
        delete_ended(tier, entry, call);
    gate->generation++;
    entry->direct--;
    entry->running--;
    struct turn turn = next_turn(gate, entry, true);
    pthread_mutex_unlock(&gate->lock);
    start_turn(turn);
    lane_of(tier, call)->direct--;
    value_unref(stored);
}

static void direct_done(struct store_call *call)
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

/* Whether a PUT whose turn it is finds the key there. What is dirty and past its end counts as
 * absent, though the slower store may still have what it replaced. The gate's lock is held. */
static bool put_exists(struct tier *tier, struct entry *entry, struct store_call *call)
{
    if (call->overwrite || is_shared(tier))
        return false;
    struct value *there = look(tier, entry, call);
    value_unref(there);
    call->overwrite = there == NULL && entry->dirty != NULL;
    return there != NULL;
}

/* Sends a change whose turn it is to the slower store. What others share may have another end there
 * than the value says: it is kept once it is read. */
static enum store_status run_direct(struct tier *tier, struct store_call *call)
{
    struct gate *gate = gate_of(tier, call->hash);
    bool exists = false;
    call->via.value = NULL;
    pthread_mutex_lock(&gate->lock);
    call->via.generation = ++gate->generation;
    if (call->op == STORE_PUT)
        exists = put_exists(tier, entry_find(gate, call), call);
    pthread_mutex_unlock(&gate->lock);
    if (call->op == STORE_PUT && !exists && !is_shared(tier))
        call->via.value = value_ref(call->value);
    enum store_status status =
        exists ? put_refused(call, STORE_EXISTS) : forward(tier, call, direct_done);
    if (status == STORE_PENDING)
        return status;
    call->status = status;
    end_direct(tier, call);
    return call->status;
}

static void direct_turn(struct loop_task *task)
{
    struct store_call *call = container_of(task, struct store_call, via.turn);
    enum store_status status = run_direct(tier_of(call->via.tier), call);
    if (status != STORE_PENDING)
        pass_on(call, status);
}

static enum store_status tier_put(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    struct flush *queued = NULL;
    enum start start = START_NOW;
    if (value_cost(call->value) > atomic_load(&tier->back->max_size))
        return put_refused(call,
                           store_fail(call, ERROR_TOO_LARGE,
                                      "the value is larger than the whole cache (max-size %llu)",
                                      (unsigned long long)atomic_load(&tier->back->max_size)));
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    enum road road = choose_road(tier, entry, call);
    if (road == ROAD_DIRECT)
        start = start_direct(tier, gate, entry, call);
    else if (road == ROAD_DIRTY && !make_dirty(tier, gate, entry, call, &queued))
        start = START_NEVER;
    pthread_mutex_unlock(&gate->lock);
    if (start == START_NEVER)
        return put_refused(call, store_fail(call, ERROR_INTERNAL, "out of memory"));
    if (road == ROAD_DIRECT)
        return start == START_NOW ? run_direct(tier, call) : STORE_PENDING;
    if (queued != NULL) {
        struct lane *lane = queued->lane;
        lane_add(lane, queued, value_cost(call->value));
        if (lane->count >= FLUSH_COUNT || lane->bytes >= FLUSH_BYTES)
            lane_run(lane);
        else
            lane_wait(lane, FLUSH_MS);
    }
    return put_refused(call, road == ROAD_EXISTS ? STORE_EXISTS : STORE_OK);
}

/* Whether the slower store has nothing of the key, and will be sent nothing but what is dirty. The
 * gate's lock is held. */
static bool only_in_memory(struct tier *tier, const struct entry *entry,
                           const struct store_call *call)
{
    return entry != NULL ? entry->fresh : absent(tier, call);
}

static enum store_status tier_delete(struct store *store, struct store_call *call)
{
    struct tier *tier = tier_of(store);
    struct gate *gate = gate_of(tier, call->hash);
    enum start start = START_NOW;
    pthread_mutex_lock(&gate->lock);
    struct entry *entry = entry_find(gate, call);
    bool direct = !only_in_memory(tier, entry, call);
    if (direct) {
        start = start_direct(tier, gate, entry, call);
    } else {
        call->status = forget(tier, entry, call) ? STORE_OK : STORE_MISS;
        gate->generation++;
    }
    pthread_mutex_unlock(&gate->lock);
    if (start == START_NEVER)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    if (!direct)
        return call->status;
    return start == START_NOW ? run_direct(tier, call) : STORE_PENDING;
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
    part->left = lane->queued - lane->finished;
    if (part->left == 0) {
        barrier_left(part->barrier);
        return;
    }
    part->next = lane->waiting;
    lane->waiting = part;
    lane_run(lane);
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

static void give_up(struct lane *lane)
{
    struct store_call lost = {.error = ERROR_INTERNAL};
    snprintf(lost.text, sizeof(lost.text), "%llu values could not be written to the store",
             (unsigned long long)(lane->queued - lane->finished));
    log_error("%s and are lost", lost.text);
    lane_tell_barriers(lane, 0, &lost);
}

/* Whether other loops may still wait for changes that came through this lane, or it has dirty
 * values left. */
static bool busy(const struct lane *lane)
{
    return lane->finished < lane->queued || (lane->direct > 0 && !is_shared(lane->tier));
}

/* What is dirty is written first, as far as the slower store allows in that time. */
static void tier_detach(struct store *store, struct loop *loop)
{
    struct tier *tier = tier_of(store);
    struct lane *lane = &tier->lanes[loop_index(loop)];
    int64_t until = clock_now() + DETACH_MS;
    lane_run(lane);
    while (busy(lane) && clock_now() < until)
        loop_step(loop, 10);
    pthread_mutex_lock(&tier->lanes_lock);
    lane->attached = false;
    pthread_mutex_unlock(&tier->lanes_lock);
    loop_step(loop, 0); /* barriers that were on their way */
    if (lane->finished < lane->queued)
        give_up(lane);
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
            for (struct store_call *call = entry->first; call != NULL; call = call->via.next) {
                value_unref(call->value);
                call->value = NULL;
            }
            if (entry->queued != NULL && entry->queued->parked)
                free(entry->queued);
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
    return store_open(&store_tier_memory, &tier_config, why, size);
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
