#include "writer.h"

#include "../../log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    BATCH = 1024,          /* records */
    BATCH_BYTES = 4 << 20, /* of keys and values, the last record beyond it */
    BATCH_SHARE = 16,      /* of the store's bound, at least, if that is less */
    NAP_US = 1000,         /* in which more comes together */
    HURRY_BYTES = 2 << 20, /* unwritten, from which on there is no nap */
    RETRY_MS = 500,
    LAST_RETRY_MS = 50, /* at the end */
    OVERTAKEN_MAX = BATCH,
    SEEN = 4 * BATCH,            /* a power of two */
    RECORDS_MAX = 2 * BATCH + 1, /* a change may take two */
    DROPPED = -1                 /* no errno: the batch is to be formed anew */
};

struct change {
    uint64_t hash, place;
};

/*
 * A record that was deleted while it was being written. Its tombstone is in the queue and still
 * names the record before it, which has been replaced by this one meanwhile.
 */
struct overtaken {
    struct change record; /* where it lies */
    uint64_t before;      /* what the queue names instead */
    uint64_t until;       /* the queue's tail then: the tombstone comes before that */
    bool used;
};

/* A list of changes that grows; the writer's thread alone. */
struct changes {
    struct change *list;
    size_t count, size;
};

/* What holds a record's bytes while it is written. */
struct hold {
    struct pinned pinned;
    struct value *value;
    bool entry; /* the record is an entry's, not a tombstone */
};

struct writer {
    struct entries *entries;
    const struct backing_ops *ops;
    struct backing *backing;
    pthread_t thread;
    bool started; /* the owner's thread alone */
    _Atomic uint64_t unwritten_max;
    _Atomic uint64_t batch_bytes; /* a batch ends once it has so many */
    _Atomic int64_t room;         /* changes that can still be reserved */
    _Atomic int error;
    _Atomic uint64_t lost; /* entries that were acknowledged and are gone */

    pthread_mutex_t lock; /* over all up to the next empty line */
    pthread_cond_t ready; /* for the writer's thread */
    pthread_cond_t roomy; /* for writer_reserve_waiting() */
    struct change *ring;
    uint32_t capacity;
    uint64_t head, tail; /* changes popped and pushed so far */
    uint64_t persists;   /* asked for so far */
    struct writer_wait *barriers, **last_barrier;
    struct writer_wait *waits;
    bool asleep, stopping;
    bool upkeep_wanted; /* at once */
    int64_t deadline;   /* now_ms(), once it is stopping */

    /* The writer's thread alone. */
    struct changes redo;    /* lost, to be written again or superseded, before all others */
    struct changes retired; /* records that were out of date when they were written */
    struct overtaken overtaken[OVERTAKEN_MAX];
    unsigned overtaken_count;
    uint64_t lost_first, lost_last; /* what could not be gone through for lack of memory; 0: none */
    int owed;                       /* an errno that a PERSIST is still to be told */
    int64_t upkeep_due;             /* now_ms(); INT64_MAX: not before the next batch */
    struct backing_record records[RECORDS_MAX];
    struct hold holds[RECORDS_MAX];
    unsigned count;      /* of both */
    uint16_t seen[SEEN]; /* hash table: which record is of an entry with this hash, from 1 on */
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool add_change(struct changes *changes, uint64_t hash, uint64_t place)
{
    if (changes->count == changes->size) {
        size_t size = changes->size > 0 ? changes->size * 2 : BATCH;
        struct change *list = realloc(changes->list, size * sizeof(*list));
        if (list == NULL)
            return false;
        changes->list = list;
        changes->size = size;
    }
    changes->list[changes->count++] = (struct change){hash, place};
    return true;
}

static void drop_changes(struct changes *changes, size_t count)
{
    if (count == 0)
        return;
    changes->count -= count;
    memmove(changes->list, changes->list + count, changes->count * sizeof(*changes->list));
}

bool writer_reserve(struct writer *writer, uint64_t bytes)
{
    uint64_t max = atomic_load_explicit(&writer->unwritten_max, memory_order_relaxed);
    uint64_t unwritten = atomic_load_explicit(&writer->entries->unwritten, memory_order_relaxed);
    if (unwritten > 0 && unwritten + bytes > max)
        return false;
    if (atomic_fetch_sub_explicit(&writer->room, 1, memory_order_relaxed) > 0)
        return true;
    writer_unreserve(writer);
    return false;
}

void writer_unreserve(struct writer *writer)
{
    atomic_fetch_add_explicit(&writer->room, 1, memory_order_relaxed);
}

void writer_set_unwritten_max(struct writer *writer, uint64_t bytes)
{
    atomic_store_explicit(&writer->unwritten_max, bytes, memory_order_relaxed);
}

int writer_error(const struct writer *writer)
{
    return atomic_load_explicit(&writer->error, memory_order_relaxed);
}

static bool in_a_hurry(const struct writer *writer)
{
    return writer->barriers != NULL || writer->stopping || writer->tail - writer->head >= BATCH ||
           atomic_load_explicit(&writer->entries->unwritten, memory_order_relaxed) >= HURRY_BYTES;
}

void writer_push(struct writer *writer, uint64_t hash, uint64_t place)
{
    pthread_mutex_lock(&writer->lock);
    writer->ring[writer->tail++ % writer->capacity] = (struct change){hash, place};
    bool wake = writer->asleep && (writer->tail - writer->head == 1 || in_a_hurry(writer));
    if (wake)
        writer->asleep = false;
    pthread_mutex_unlock(&writer->lock);
    if (wake)
        pthread_cond_signal(&writer->ready);
}

/* The lock is held. */
static void wake_writer(struct writer *writer)
{
    writer->asleep = false;
    pthread_cond_signal(&writer->ready);
}

void writer_wait_for_room(struct writer *writer, struct writer_wait *wait)
{
    pthread_mutex_lock(&writer->lock);
    wait->next = writer->waits;
    writer->waits = wait;
    wake_writer(writer);
    pthread_mutex_unlock(&writer->lock);
}

void writer_persist(struct writer *writer, struct writer_wait *wait)
{
    wait->next = NULL;
    pthread_mutex_lock(&writer->lock);
    wait->barrier = writer->tail;
    wait->number = ++writer->persists;
    *writer->last_barrier = wait;
    writer->last_barrier = &wait->next;
    wake_writer(writer);
    pthread_mutex_unlock(&writer->lock);
}

bool writer_reserve_waiting(struct writer *writer)
{
    while (!writer_reserve(writer, 0)) {
        pthread_mutex_lock(&writer->lock);
        bool failed = writer_error(writer) != 0;
        if (!failed) {
            wake_writer(writer);
            pthread_cond_wait(&writer->roomy, &writer->lock);
        }
        pthread_mutex_unlock(&writer->lock);
        if (failed)
            return false;
    }
    return true;
}

uint64_t writer_queued(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    uint64_t queued = writer->tail - writer->head;
    pthread_mutex_unlock(&writer->lock);
    return queued;
}

/* Runs the tasks of a list, each on its loop. */
static void answer(struct writer_wait *list, int error)
{
    for (struct writer_wait *wait = list, *next; wait != NULL; wait = next) {
        next = wait->next; /* once posted, it may be gone */
        wait->error = error;
        loop_post(wait->loop, &wait->task);
    }
}

static void wake_waits(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    struct writer_wait *waits = writer->waits;
    writer->waits = NULL;
    pthread_cond_broadcast(&writer->roomy);
    pthread_mutex_unlock(&writer->lock);
    answer(waits, 0);
}

static void add_record(struct writer *writer, const struct backing_record *record,
                       const struct hold *hold)
{
    writer->records[writer->count] = *record;
    writer->holds[writer->count++] = *hold;
}

static void add_retired(struct writer *writer, uint64_t hash, uint64_t place)
{
    struct backing_record record = {.hash = hash, .retire = true, .replaces = place};
    add_record(writer, &record, &(struct hold){.entry = false});
}

/* The entry's record, in flight from here on. The shard is locked. */
static uint64_t add_entry(struct writer *writer, uint64_t hash, const struct slot_word *word,
                          const struct entry_view *view)
{
    struct backing_record record = {.hash = hash,
                                    .data = view->key,
                                    .length = view->length,
                                    .key_length = (uint16_t)view->key_length,
                                    .cost = word->cost,
                                    .flags = view->flags,
                                    .expires = view->expires,
                                    .replaces = view->place};
    struct hold hold = {.entry = true};
    if (view->large != NULL)
        hold.value = value_ref(view->large->value);
    else
        hold.pinned = arena_pin(writer->entries->arena, view->small);
    entry_set_state(view, ENTRY_IN_FLIGHT, view->place);
    add_record(writer, &record, &hold);
    return (uint64_t)view->key_length + view->length;
}

static void retire(struct writer *writer, uint64_t hash, uint64_t place)
{
    if (!add_change(&writer->retired, hash, place))
        log_warning("no memory to note a record that is out of date; its room is not used again");
}

static void take_overtaken(struct writer *writer, unsigned i)
{
    writer->overtaken[i] = writer->overtaken[--writer->overtaken_count];
}

static void add_overtaken(struct writer *writer, const struct backing_record *record)
{
    if (writer->overtaken_count == OVERTAKEN_MAX) {
        retire(writer, writer->overtaken[0].record.hash, writer->overtaken[0].record.place);
        take_overtaken(writer, 0);
    }
    pthread_mutex_lock(&writer->lock);
    uint64_t until = writer->tail;
    pthread_mutex_unlock(&writer->lock);
    writer->overtaken[writer->overtaken_count++] =
        (struct overtaken){{record->hash, record->place}, record->replaces, until, false};
}

/* What the change really replaces. */
static uint64_t replaced_by(struct writer *writer, const struct change *change)
{
    for (unsigned i = 0; i < writer->overtaken_count && change->place != 0; i++) {
        struct overtaken *overtaken = &writer->overtaken[i];
        if (overtaken->record.hash != change->hash || overtaken->before != change->place)
            continue;
        overtaken->used = true; /* if the batch fails, it is asked for again */
        return overtaken->record.place;
    }
    return change->place;
}

/* Forgets those whose tombstones are written. Where there was none, the entry had come to its end.
 */
static void retire_overtaken(struct writer *writer, uint64_t head)
{
    for (unsigned i = writer->overtaken_count; i > 0; i--) {
        if (writer->overtaken[i - 1].until > head)
            continue;
        if (!writer->overtaken[i - 1].used)
            retire(writer, writer->overtaken[i - 1].record.hash,
                   writer->overtaken[i - 1].record.place);
        take_overtaken(writer, i - 1);
    }
}

/* Where the table has this hash, or would have it. */
static uint16_t *seen_at(struct writer *writer, uint64_t hash)
{
    unsigned at = (unsigned)hash & (SEEN - 1);
    while (writer->seen[at] != 0 && writer->records[writer->seen[at] - 1].hash != hash)
        at = (at + 1) & (SEEN - 1);
    return &writer->seen[at];
}

/* Adds what the change calls for by now, and its bytes to *bytes. false: an older version of the
 * entry is in this batch, so that this one has to wait for the next. */
static bool add_to_batch(struct writer *writer, const struct change *change, uint64_t *bytes)
{
    struct entries *entries = writer->entries;
    uint64_t place = replaced_by(writer, change);
    uint16_t *seen = seen_at(writer, change->hash);
    bool waits = false;
    struct index_shard *shard = index_lock(entries->index, change->hash);
    struct slot *slot = index_find(entries->index, shard, change->hash);
    if (slot == NULL) {
        struct backing_record tombstone = {.hash = change->hash, .replaces = place};
        add_record(writer, &tombstone, &(struct hold){.entry = false});
    } else {
        struct entry_view view = entries_view(entries, shard, slot);
        struct slot_word word = slot_get(slot);
        bool unwritten = view.key != NULL && view.state == ENTRY_UNWRITTEN;
        waits = unwritten && *seen != 0;
        /* An entry that was deleted and put again does not know what it replaces. */
        if (!waits && place != 0 && place != view.place)
            add_retired(writer, change->hash, place);
        if (unwritten && !waits) {
            *bytes += add_entry(writer, change->hash, &word, &view);
            *seen = (uint16_t)writer->count;
        }
    }
    index_unlock(shard);
    return !waits;
}

/* The record is on disk. If its entry has been overwritten or removed since, the record is out of
 * date, and what supersedes it is in the queue. */
static void written(struct writer *writer, const struct backing_record *record)
{
    struct entries *entries = writer->entries;
    struct index_shard *shard = index_lock(entries->index, record->hash);
    struct slot *slot = index_find(entries->index, shard, record->hash);
    bool current = false;
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        bool waits = view.key != NULL && view.state == ENTRY_UNWRITTEN;
        current = view.key != NULL && view.state == ENTRY_IN_FLIGHT;
        if (current) {
            entries_written(entries, shard, slot, &view, record->place);
        } else if (waits && view.place == record->replaces) {
            /* It was overwritten: this is what the newer entry will replace. */
            entry_set_state(&view, ENTRY_UNWRITTEN, record->place);
            current = true;
        }
    }
    index_unlock(shard);
    if (!current && record->replaces != 0)
        add_overtaken(writer, record);
    else if (!current)
        retire(writer, record->hash, record->place);
}

/* The entry is as it was before add_entry(), unless it was overwritten or removed. */
static void not_written(struct writer *writer, const struct backing_record *record)
{
    struct entries *entries = writer->entries;
    struct index_shard *shard = index_lock(entries->index, record->hash);
    struct slot *slot = index_find(entries->index, shard, record->hash);
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        if (view.key != NULL && view.state == ENTRY_IN_FLIGHT)
            entry_set_state(&view, ENTRY_UNWRITTEN, view.place);
    }
    index_unlock(shard);
}

/* The bound on records has become lower since the entry was put: it is given up, like all that no
 * longer has room. false: it has been overwritten or removed meanwhile. */
static bool drop_oversize(struct writer *writer, const struct backing_record *record)
{
    struct entries *entries = writer->entries;
    struct index_shard *shard = index_lock(entries->index, record->hash);
    struct slot *slot = index_find(entries->index, shard, record->hash);
    bool dropped = false;
    if (slot != NULL) {
        struct entry_view view = entries_view(entries, shard, slot);
        dropped = view.key != NULL && view.state == ENTRY_IN_FLIGHT;
    }
    if (dropped)
        entries_remove(entries, shard, slot);
    index_unlock(shard);
    if (!dropped)
        return false;
    if (record->replaces != 0)
        retire(writer, record->hash, record->replaces);
    atomic_fetch_add_explicit(&writer->lost, 1, memory_order_relaxed);
    log_warning("an entry of %llu bytes is dropped: it is larger than %s can hold within max-size",
                (unsigned long long)record->key_length + record->length, writer->ops->name);
    return true;
}

/* Writes the batch's records; an errno, 0, or DROPPED. */
static int write_records(struct writer *writer, size_t retired)
{
    int error = 0;
    if (writer->count > 0)
        error = writer->ops->append(writer->backing, writer->records, writer->count);
    unsigned dropped = 0;
    uint64_t record_max = error == EFBIG ? writer->ops->record_max(writer->backing) : 0;
    for (unsigned i = 0; i < writer->count; i++) {
        struct hold *hold = &writer->holds[i];
        if (!hold->entry)
            continue;
        const struct backing_record *record = &writer->records[i];
        if (error == 0)
            written(writer, record);
        else if (error == EFBIG && (uint64_t)record->key_length + record->length > record_max)
            dropped += drop_oversize(writer, record);
        else
            not_written(writer, record);
        pinned_release(&hold->pinned);
        value_unref(hold->value);
    }
    if (error == 0)
        drop_changes(&writer->retired, retired);
    return dropped > 0 ? DROPPED : error;
}

static void note_result(struct writer *writer, int error)
{
    int before = atomic_exchange(&writer->error, error);
    if (error != 0 && error != before)
        log_error("the store can't write to %s: %s; what is in memory stays there",
                  writer->ops->name, strerror(error));
    else if (error == 0 && before != 0)
        log_warning("the store can write to %s again", writer->ops->name);
}

/* Copies the next changes of the queue, in order, without taking them out. */
static unsigned peek(struct writer *writer, struct change *changes)
{
    unsigned count = 0;
    pthread_mutex_lock(&writer->lock);
    for (uint64_t at = writer->head; at < writer->tail && count < BATCH; at++)
        changes[count++] = writer->ring[at % writer->capacity];
    pthread_mutex_unlock(&writer->lock);
    return count;
}

static void take_out(struct writer *writer, unsigned count)
{
    pthread_mutex_lock(&writer->lock);
    writer->head += count;
    uint64_t head = writer->head;
    pthread_mutex_unlock(&writer->lock);
    retire_overtaken(writer, head);
    atomic_fetch_add_explicit(&writer->room, count, memory_order_relaxed);
}

/* Goes through the index for what lies at these places. false: memory is short; it was left as it
 * is from there on. */
struct lost_walk {
    struct writer *writer;
    uint64_t first, last;
    bool complete;
};

static void lose_slot(void *arg, struct index_shard *shard, struct slot *slot)
{
    struct lost_walk *walk = arg;
    struct writer *writer = walk->writer;
    struct entries *entries = writer->entries;
    struct entry_view view = entries_view(entries, shard, slot);
    if (view.state != ENTRY_WRITTEN || view.place < walk->first || view.place > walk->last)
        return;
    uint64_t hash = slot_hash(entries->index, shard, slot);
    if (!add_change(&writer->redo, hash, view.place)) {
        walk->complete = false;
        return;
    }
    if (view.key != NULL) {
        entries_unwritten(entries, &view);
    } else {
        entries_remove(entries, shard, slot);
        atomic_fetch_add_explicit(&writer->lost, 1, memory_order_relaxed);
    }
}

static bool lose(struct writer *writer, uint64_t first, uint64_t last)
{
    struct index *index = writer->entries->index;
    struct lost_walk walk = {.writer = writer, .first = first, .last = last, .complete = true};
    for (unsigned i = 0; i < INDEX_SHARDS; i++) {
        uint64_t cursor = 0;
        bool more = true;
        while (more) {
            struct index_shard *shard = index_lock_shard(index, i);
            more = index_walk(index, shard, &cursor, lose_slot, &walk);
            index_unlock(shard);
        }
    }
    return walk.complete;
}

void writer_lost(struct writer *writer, uint64_t first, uint64_t last)
{
    writer->owed = writer->owed != 0 ? writer->owed : EIO;
    if (lose(writer, first, last))
        return;
    if (writer->lost_first == 0 || first < writer->lost_first)
        writer->lost_first = first;
    if (last > writer->lost_last)
        writer->lost_last = last;
}

bool writer_supersede(struct writer *writer, uint64_t hash, uint64_t place)
{
    return add_change(&writer->redo, hash, place);
}

/* Goes on with what writer_lost() had no memory for. */
static bool lost_is_clear(struct writer *writer)
{
    if (writer->lost_first == 0)
        return true;
    if (!lose(writer, writer->lost_first, writer->lost_last))
        return false;
    writer->lost_first = writer->lost_last = 0;
    return true;
}

/*
 * One batch: what was out of date, then what was lost, then the queue's next. Returns an errno, 0
 * or DROPPED, and in *bytes how much was written.
 */
static int write_batch(struct writer *writer, uint64_t *bytes)
{
    struct change changes[BATCH];
    size_t retired = 0;
    unsigned used = 0;
    uint64_t most = atomic_load(&writer->batch_bytes);
    writer->count = 0;
    memset(writer->seen, 0, sizeof(writer->seen));
    *bytes = 0;
    for (; retired < writer->retired.count && retired < BATCH / 2; retired++)
        add_retired(writer, writer->retired.list[retired].hash,
                    writer->retired.list[retired].place);
    if (writer->redo.count > 0) {
        while (used < writer->redo.count && used < BATCH / 2 && *bytes < most &&
               add_to_batch(writer, &writer->redo.list[used], bytes))
            used++;
    } else {
        unsigned count = peek(writer, changes);
        while (used < count && writer->count + 2 <= RECORDS_MAX && *bytes < most &&
               add_to_batch(writer, &changes[used], bytes))
            used++;
    }
    bool redone = writer->redo.count > 0;
    int error = write_records(writer, retired);
    if (error == DROPPED)
        return error;
    note_result(writer, error);
    if (error != 0)
        return error;
    if (redone)
        drop_changes(&writer->redo, used);
    else
        take_out(writer, used);
    return 0;
}

/* Takes the barriers that all of the queue before them is written for, and those that were asked
 * for up to number. */
static struct writer_wait *take_barriers(struct writer *writer, uint64_t number)
{
    struct writer_wait *list = NULL, **end = &list;
    pthread_mutex_lock(&writer->lock);
    while (writer->barriers != NULL &&
           (writer->barriers->number <= number || writer->barriers->barrier <= writer->head)) {
        *end = writer->barriers;
        writer->barriers = writer->barriers->next;
        end = &(*end)->next;
        *end = NULL;
    }
    if (writer->barriers == NULL)
        writer->last_barrier = &writer->barriers;
    pthread_mutex_unlock(&writer->lock);
    return list;
}

/* What was lost, and removals that were found to be due, have to be written before any PERSIST is
 * OK. */
static void answer_barriers(struct writer *writer)
{
    if (writer->retired.count > 0 || writer->redo.count > 0 || !lost_is_clear(writer) ||
        writer->redo.count > 0)
        return;
    struct writer_wait *list = take_barriers(writer, 0);
    if (list == NULL)
        return;
    int owed = writer->owed;
    writer->owed = 0;
    int error = writer->ops->sync(writer->backing);
    answer(list, error != 0 ? error : owed);
}

static void upkeep(struct writer *writer, uint64_t bytes)
{
    int wait = writer->ops->upkeep(writer->backing, bytes);
    writer->upkeep_due = wait < 0 ? INT64_MAX : now_ms() + wait;
}

static bool has_work(const struct writer *writer)
{
    return writer->tail > writer->head || writer->redo.count > 0 || writer->retired.count > 0 ||
           writer->lost_first != 0;
}

static void sleep_until(struct writer *writer, int64_t us)
{
    struct timespec until = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    writer->asleep = true;
    if (us == INT64_MAX)
        pthread_cond_wait(&writer->ready, &writer->lock);
    else
        pthread_cond_timedwait(&writer->ready, &writer->lock, &until);
    writer->asleep = false;
}

/* Waits until there is something to do; a batch is given a moment to grow. false: the end. */
static bool wait_for_work(struct writer *writer, bool failed)
{
    pthread_mutex_lock(&writer->lock);
    int64_t start = now_ms();
    if (failed) {
        if (writer->barriers == NULL && !writer->stopping)
            sleep_until(writer, (start + RETRY_MS) * 1000);
    } else {
        while (!has_work(writer) && writer->barriers == NULL && writer->waits == NULL &&
               !writer->stopping && !writer->upkeep_wanted && now_ms() < writer->upkeep_due)
            sleep_until(writer,
                        writer->upkeep_due == INT64_MAX ? INT64_MAX : writer->upkeep_due * 1000);
        if ((has_work(writer) || writer->waits != NULL) && !in_a_hurry(writer)) {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            sleep_until(writer, (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + NAP_US);
        }
    }
    writer->upkeep_wanted = false;
    bool end = writer->stopping && !has_work(writer) && writer->barriers == NULL;
    pthread_mutex_unlock(&writer->lock);
    return !end;
}

/* Whether there is no time left to try again. */
static bool past_its_end(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    bool stopping = writer->stopping;
    bool past = stopping && now_ms() >= writer->deadline;
    pthread_mutex_unlock(&writer->lock);
    if (stopping && !past)
        nanosleep(&(struct timespec){.tv_nsec = LAST_RETRY_MS * 1000000L}, NULL);
    return past;
}

/* All is written: now it has to be synced, too, which may lose some of it once more. */
static bool synced_at_the_end(struct writer *writer)
{
    int error = writer->ops->sync(writer->backing);
    note_result(writer, error);
    return error == 0 || past_its_end(writer);
}

static void *writer_main(void *arg)
{
    struct writer *writer = arg;
    int error = 0;
    while (wait_for_work(writer, error != 0) || !synced_at_the_end(writer)) {
        uint64_t bytes = 0;
        pthread_mutex_lock(&writer->lock);
        uint64_t persists = writer->persists; /* one that comes later is worth another try */
        pthread_mutex_unlock(&writer->lock);
        error = write_batch(writer, &bytes);
        if (error == DROPPED) {
            error = 0;
            continue;
        }
        if (error != 0) {
            answer(take_barriers(writer, persists), error);
            wake_waits(writer);
            if (past_its_end(writer))
                break;
            continue;
        }
        wake_waits(writer);
        answer_barriers(writer);
        upkeep(writer, bytes);
    }
    return NULL;
}

struct writer *writer_new(struct entries *entries, const struct backing_ops *ops,
                          struct backing *backing, uint64_t unwritten_max, uint32_t changes)
{
    struct writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL)
        return NULL;
    writer->entries = entries;
    writer->ops = ops;
    writer->backing = backing;
    writer->capacity = changes;
    writer->last_barrier = &writer->barriers;
    writer->upkeep_due = now_ms();
    atomic_init(&writer->unwritten_max, unwritten_max);
    atomic_init(&writer->room, changes);
    atomic_init(&writer->batch_bytes, BATCH_BYTES);
    pthread_mutex_init(&writer->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&writer->ready, &attributes);
    pthread_cond_init(&writer->roomy, &attributes);
    pthread_condattr_destroy(&attributes);
    writer->ring = malloc(changes * sizeof(*writer->ring));
    if (writer->ring != NULL)
        return writer;
    writer_free(writer);
    errno = ENOMEM;
    return NULL;
}

void writer_set_max_size(struct writer *writer, uint64_t bytes)
{
    uint64_t most = bytes / BATCH_SHARE;
    atomic_store(&writer->batch_bytes, most < 1 ? 1 : most < BATCH_BYTES ? most : BATCH_BYTES);
    writer_want_upkeep(writer);
}

void writer_want_upkeep(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->upkeep_wanted = true;
    wake_writer(writer);
    pthread_mutex_unlock(&writer->lock);
}

uint64_t writer_lost_count(const struct writer *writer)
{
    return atomic_load_explicit(&writer->lost, memory_order_relaxed);
}

bool writer_start(struct writer *writer)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&writer->thread, NULL, writer_main, writer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0)
        pthread_setname_np(writer->thread, "store-writer");
    writer->started = error == 0;
    errno = error;
    return error == 0;
}

uint64_t writer_stop(struct writer *writer, int64_t milliseconds)
{
    if (!writer->started)
        return 0;
    pthread_mutex_lock(&writer->lock);
    writer->stopping = true;
    writer->deadline = now_ms() + milliseconds;
    wake_writer(writer);
    pthread_cond_broadcast(&writer->roomy);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->thread, NULL);
    writer->started = false;
    return writer->tail - writer->head + writer->redo.count;
}

void writer_free(struct writer *writer)
{
    if (writer == NULL)
        return;
    pthread_cond_destroy(&writer->ready);
    pthread_cond_destroy(&writer->roomy);
    pthread_mutex_destroy(&writer->lock);
    free(writer->ring);
    free(writer->redo.list);
    free(writer->retired.list);
    free(writer);
}
