#include "engine.h"

#include "../../clock.h"
#include "../../config.h"
#include "../../container_of.h"
#include "../../log.h"
#include "../../pool.h"
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    INDEX_SHARE = 2,       /* of the bound, at most, is index */
    CLEAN_AHEAD = 4,       /* times its own size a PUT looks at, where room is short */
    STEPS_IN_A_ROW = 8,    /* of emptying, until others get a turn */
    LOOK_FIRST = 4096,     /* bytes from which on a PUT looks whether it is worth copying them */
    PATIENCE_MS = 10000,   /* until a request that gets no room is answered busy */
    SHRINK_STEP = 1 << 20, /* bytes */
    UNWRITTEN_SHARE = 4,   /* of the memory may be unwritten: one in so many bytes */
    UNWRITTEN_LEAST = 1 << 20,
    CHANGES = 1 << 16,      /* in the writer's queue */
    OVERSIZE_SHARE = 8,     /* a value of more than one in so many bytes only passes through */
    INDEX_LEAST = 16 << 20, /* bytes, where memory is small */
    READERS = 4
};

enum store_status engine_fail(struct store_call *call, int error)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return store_fail(call, ERROR_NO_SPACE, "the store can't write: %s", strerror(error));
    case EBUSY:
        return store_fail(call, ERROR_UNAVAILABLE, "another program has locked the store's files");
    case ENOBUFS:
        return store_fail(call, ERROR_BUSY,
                          "too many bytes are in flight; try again (max-inflight)");
    case ENOMEM:
        return store_fail(call, ERROR_BUSY, "out of memory; try again");
    default:
        return store_fail(call, ERROR_INTERNAL, "the store failed: %s", strerror(error));
    }
}

static void describe(struct store_call *call, const struct entry_view *view)
{
    call->result.length = view->length;
    call->result.flags = view->flags;
    call->result.expires = view->expires;
}

/* Few bytes are copied, a large value goes by reference, and what is between is pinned. */
static void hand_out(struct engine *engine, struct store_call *call, const struct entry_view *view,
                     bool may_copy)
{
    describe(call, view);
    if (call->request.op == STORE_HEAD)
        return;
    if (may_copy && call->request.room_size > 0 && view->length <= call->request.room_size) {
        memcpy(call->request.room, view->bytes, view->length);
        call->result.copied = true;
    } else if (view->large != NULL) {
        call->result.value = value_ref(view->large->value);
    } else {
        call->result.pinned = arena_pin(engine->entries.arena, view->small);
    }
}

enum store_status engine_look_up(struct engine *engine, struct store_call *call, bool wait)
{
    struct entries *entries = &engine->entries;
    enum store_status status = STORE_MISS;
    uint64_t gone = 0; /* a place at which nothing lay */
    bool again = true;
    while (again) {
        struct entry_view view = {.place = 0};
        struct slot_word word = {.place = 0};
        struct index_shard *shard = index_lock(entries->index, call->request.hash);
        struct slot *slot = entries_find(entries, shard, call->request.hash, call->request.key,
                                         call->request.key_length, &view);
        if (slot != NULL) {
            word = slot_get(slot);
            if (call->request.op == STORE_GET)
                evict_used(entries->evict, slot);
            if (view.key != NULL)
                hand_out(engine, call, &view, !wait);
        }
        index_unlock(shard);
        again = false;
        if (slot != NULL && view.key != NULL)
            status = STORE_OK;
        else if (slot != NULL && view.place == gone)
            disk_drop(engine, call->request.hash, gone);
        else if (slot != NULL)
            status =
                disk_read(engine, call, view.place, evict_class_limit(word.size), wait, &again);
        else
            status = STORE_MISS;
        gone = view.place;
    }
    return status;
}

enum store_status engine_get(struct store *store, struct store_call *call)
{
    struct engine *engine = engine_of(store);
    enum store_status status = engine_look_up(engine, call, false);
    return status == STORE_PENDING ? disk_look_up_later(engine, call) : status;
}

enum store_status engine_head(struct store *store, struct store_call *call)
{
    return engine_get(store, call);
}

static void run_step(struct loop_task *task)
{
    struct writer_wait *wait = container_of(task, struct writer_wait, task);
    struct steps *steps = container_of(wait, struct steps, wait);
    struct store_call *call = steps->call;
    steps->wants_writer = false;
    enum store_status status = steps->step(steps);
    if (status != STORE_PENDING) {
        free(steps);
        call->result.status = status;
        call->done(call);
    } else if (steps->wants_writer) {
        writer_wait_for_room(steps->engine->writer, wait);
    } else {
        loop_post(call->request.loop, task);
    }
}

enum store_status steps_start(struct engine *engine, struct store_call *call,
                              enum store_status (*step)(struct steps *))
{
    struct steps *steps = malloc(sizeof(*steps));
    if (steps == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *steps = (struct steps){.wait = {.loop = call->request.loop, .task = {.run = run_step}},
                            .engine = engine,
                            .call = call,
                            .until = clock_coarse() + PATIENCE_MS,
                            .step = step};
    loop_post(call->request.loop, &steps->wait.task);
    return STORE_PENDING;
}

/* A call that got no room, again: whether it is to be given up, with what error. */
static enum store_status still_no_room(struct steps *steps)
{
    int error = steps->engine->writer != NULL ? writer_error(steps->engine->writer) : 0;
    if (error != 0)
        return engine_fail(steps->call, error);
    if (clock_coarse() > steps->until)
        return store_fail(steps->call, ERROR_BUSY, "no room in memory for the entry; try again");
    return STORE_PENDING;
}

/* STORE_PENDING: the writer has no room for it. */
static enum store_status delete_entry(struct engine *engine, struct store_call *call)
{
    struct entries *entries = &engine->entries;
    struct entry_view view;
    if (engine->writer != NULL && !writer_reserve(engine->writer, 0))
        return STORE_PENDING;
    struct index_shard *shard = index_lock(entries->index, call->request.hash);
    struct slot *slot = entries_find(entries, shard, call->request.hash, call->request.key,
                                     call->request.key_length, &view);
    if (slot != NULL) {
        entries_remove(entries, shard, slot);
        if (engine->writer != NULL)
            writer_push(engine->writer, call->request.hash, view.place);
    }
    index_unlock(shard);
    if (slot == NULL && engine->writer != NULL)
        writer_unreserve(engine->writer);
    return slot != NULL ? STORE_OK : STORE_MISS;
}

static enum store_status delete_again(struct steps *steps)
{
    enum store_status status = delete_entry(steps->engine, steps->call);
    steps->wants_writer = true;
    return status == STORE_PENDING ? still_no_room(steps) : status;
}

enum store_status engine_delete(struct store *store, struct store_call *call)
{
    enum store_status status = delete_entry(engine_of(store), call);
    return status == STORE_PENDING ? steps_start(engine_of(store), call, delete_again) : status;
}

/* Removes an entry that stands where this hash's could. STORE_PENDING: its tombstone has no room in
 * the writer's queue. */
static enum store_status displace(struct engine *engine, struct index_shard *shard, uint64_t hash)
{
    struct entries *entries = &engine->entries;
    struct slot *least = entries_least(entries, shard, hash);
    if (least == NULL)
        return STORE_FAILED;
    if (engine->writer != NULL && !writer_reserve(engine->writer, 0))
        return STORE_PENDING;
    uint64_t its_hash = slot_hash(entries->index, shard, least);
    uint64_t place = entries_view(entries, shard, least).place;
    entries_evict(entries, shard, least);
    if (engine->writer != NULL)
        writer_push(engine->writer, its_hash, place);
    return STORE_OK;
}

/*
 * Has the index name the new entry, unless the key is there and is to stay. What else there is
 * under the hash is another key's, and goes. Where there is a disk, room for the change is
 * reserved, and is used or given back unless this returns STORE_PENDING. The shard is locked.
 */
static enum store_status publish(struct engine *engine, struct index_shard *shard,
                                 const struct store_call *call, const struct slot_word *word,
                                 const struct entry_view *entry)
{
    struct entries *entries = &engine->entries;
    uint64_t bytes = (uint64_t)call->request.key_length + entry->length, replaces = 0;
    struct entry_view view = {.place = 0};
    bool queued = false;
    struct slot *slot = index_find(entries->index, shard, call->request.hash);
    if (slot != NULL) {
        view = entries_view(entries, shard, slot);
        replaces = view.place;
        queued = view.key != NULL && view.state == ENTRY_UNWRITTEN;
    }
    if (slot != NULL && !call->request.overwrite &&
        entry_is_of(&view, call->request.key, call->request.key_length) && !entry_expired(&view)) {
        if (engine->writer != NULL)
            writer_unreserve(engine->writer);
        return STORE_EXISTS;
    }
    if (engine->writer != NULL)
        entry_set_state(entry, ENTRY_UNWRITTEN, replaces);
    while (!entries_publish(entries, shard, call->request.hash, slot, &view, word, bytes,
                            ENTRY_UNWRITTEN)) {
        enum store_status status = displace(engine, shard, call->request.hash);
        if (status != STORE_OK)
            return status;
    }
    if (engine->writer != NULL && queued)
        writer_unreserve(engine->writer);
    else if (engine->writer != NULL)
        writer_push(engine->writer, call->request.hash, 0);
    return STORE_OK;
}

static struct slot_word new_word(const struct store_call *call, const struct value *value)
{
    return (struct slot_word){
        .has_end = value->expires != CLOCK_NEVER,
        .size = evict_class((uint64_t)value->key_length + value->length),
        .cost = evict_class(call->request.has_cost ? call->request.cost : EVICT_COST_UNKNOWN)};
}

static void fill_entry(struct engine *engine, struct entry *entry, struct value *value)
{
    uint8_t *rest = entry->rest;
    bool has_end = value->expires != CLOCK_NEVER;
    bool has_disk = engine->writer != NULL;
    *entry = (struct entry){
        .length = value->length,
        .key_length = value->key_length,
        .flags = value->flags,
        .bits = (uint16_t)((has_end ? ENTRY_HAS_END : 0) | (has_disk ? ENTRY_HAS_DISK : 0))};
    if (has_disk)
        rest += sizeof(uint64_t);
    if (has_end) {
        memcpy(rest, &value->expires, sizeof(value->expires));
        rest += sizeof(value->expires);
    }
    memcpy(rest, value_key(value), (size_t)value->key_length + value->length);
}

/* An entry in memory that the index does not name yet. */
struct draft {
    struct entry_view view;
    struct slot_word word;
    struct appender *appender; /* of a small one: locked */
};

static bool draft_small(struct engine *engine, const struct store_call *call, struct value *value,
                        uint32_t size, struct draft *draft)
{
    struct arena *arena = engine->entries.arena;
    struct appender *appender = arena_lock_appender(arena, loop_index(call->request.loop));
    struct entry *entry = arena_append(arena, appender, size);
    if (entry == NULL) {
        arena_unlock_appender(appender);
        return false;
    }
    fill_entry(engine, entry, value);
    draft->view.small = entry;
    draft->word.kind = SLOT_ARENA;
    draft->word.place = arena_place(arena, entry);
    draft->appender = appender;
    return true;
}

/* counted: see arena_add_large(). */
static bool draft_large(struct engine *engine, const struct store_call *call, struct value *value,
                        bool counted, struct draft *draft)
{
    struct large *large =
        arena_add_large(engine->entries.arena, value_ref(value), call->request.hash, counted);
    if (large == NULL) {
        int error = errno;
        value_unref(value);
        errno = error;
        return false;
    }
    draft->view.large = large;
    draft->word.kind = SLOT_LARGE;
    draft->word.place = arena_large_place(large);
    return true;
}

static struct draft new_draft(const struct store_call *call, const struct value *value)
{
    return (struct draft){.view = {.length = value->length}, .word = new_word(call, value)};
}

/* The index names the draft's entry by now, or it is taken back. */
static void draft_end(struct engine *engine, struct draft *draft, bool is_named)
{
    struct arena *arena = engine->entries.arena;
    if (draft->view.large != NULL && !is_named)
        arena_remove_large(arena, draft->view.large);
    if (draft->view.small != NULL && !is_named)
        arena_take_back(arena, draft->appender, draft->view.small);
    if (draft->view.small != NULL)
        arena_unlock_appender(draft->appender);
}

static enum store_status publish_draft(struct engine *engine, const struct store_call *call,
                                       struct draft *draft)
{
    struct entries *entries = &engine->entries;
    struct index_shard *shard = index_lock(entries->index, call->request.hash);
    enum store_status status = publish(engine, shard, call, &draft->word, &draft->view);
    uint64_t count = shard->entries * INDEX_SHARDS;
    index_unlock(shard);
    draft_end(engine, draft, status == STORE_OK);
    if (status == STORE_OK)
        evict_inserted(entries->evict, count);
    return status;
}

/* STORE_PENDING: there is no room. The value stays the caller's. */
static enum store_status put_small(struct engine *engine, struct store_call *call,
                                   struct value *value, uint32_t size)
{
    struct draft draft = new_draft(call, value);
    return draft_small(engine, call, value, size, &draft) ? publish_draft(engine, call, &draft)
                                                          : STORE_PENDING;
}

/* As put_small(), for a value that goes into the store as it is. */
static enum store_status put_large(struct engine *engine, struct store_call *call,
                                   struct value *value)
{
    struct arena *arena = engine->entries.arena;
    struct draft draft = new_draft(call, value);
    /* What would push out too much of the rest stays in memory only until it is written. */
    bool passes =
        engine->writer != NULL &&
        (value_cost(value) > arena_max(arena) / OVERSIZE_SHARE || !arena_fits(arena, value));
    if (draft_large(engine, call, value, !passes, &draft))
        return publish_draft(engine, call, &draft);
    return errno == ENOBUFS ? STORE_PENDING : STORE_FAILED;
}

static bool is_there(struct engine *engine, const struct store_call *call)
{
    struct entries *entries = &engine->entries;
    struct entry_view view;
    struct index_shard *shard = index_lock(entries->index, call->request.hash);
    bool there = entries_find(entries, shard, call->request.hash, call->request.key,
                              call->request.key_length, &view) != NULL;
    index_unlock(shard);
    return there;
}

/* If nothing is left to empty, the memory is in open segments and an index that was once larger. */
static void squeeze(struct engine *engine)
{
    if (!arena_line_is_empty(engine->entries.arena))
        return;
    arena_seal(engine->entries.arena);
    index_trim(engine->entries.index);
}

/* Room is made for what is put, before and where it runs out. STORE_PENDING: not enough yet; and
 * *wants_writer: nothing more can be done until the writer has written more. */
static enum store_status put_step(struct engine *engine, struct store_call *call,
                                  struct value *value, bool *wants_writer)
{
    struct arena *arena = engine->entries.arena;
    uint32_t size =
        arena_entry_size(arena, value->key_length, value->length, value->expires != CLOCK_NEVER);
    bool small = size <= arena_small_max(arena);
    uint64_t missing = small ? arena_keep_max(arena) : size;
    enum store_status status = STORE_PENDING;
    *wants_writer = engine->writer != NULL;
    if (engine->writer != NULL && !writer_reserve(engine->writer, size))
        return STORE_PENDING;
    if (small && arena_is_short(arena))
        cleaner_step(&engine->cleaner, (uint64_t)size * CLEAN_AHEAD);
    bool cleaned = true;
    for (unsigned i = 0; status == STORE_PENDING && cleaned && i < STEPS_IN_A_ROW; i++) {
        status = small ? put_small(engine, call, value, size) : put_large(engine, call, value);
        if (status == STORE_PENDING)
            cleaned = cleaner_step(&engine->cleaner, missing);
        if (status == STORE_PENDING && !cleaned)
            squeeze(engine);
    }
    *wants_writer = *wants_writer && !cleaned;
    if (engine->writer != NULL && (status == STORE_PENDING || status == STORE_FAILED))
        writer_unreserve(engine->writer);
    return status;
}

/* Ends a PUT, unless it is still pending: the call gives its value up. */
static enum store_status put_ended(struct store_call *call, enum store_status status)
{
    if (status == STORE_PENDING)
        return status;
    value_unref(call->request.value);
    call->request.value = NULL;
    return status;
}

static enum store_status no_memory(struct store_call *call, enum store_status status)
{
    return status == STORE_FAILED
               ? store_fail(call, ERROR_BUSY, "no memory for the entry; try again")
               : status;
}

static enum store_status put_again(struct steps *steps)
{
    struct store_call *call = steps->call;
    enum store_status status =
        put_step(steps->engine, call, call->request.value, &steps->wants_writer);
    status = no_memory(call, status);
    return put_ended(call, status == STORE_PENDING ? still_no_room(steps) : status);
}

enum store_status engine_put(struct store *store, struct store_call *call)
{
    struct engine *engine = engine_of(store);
    struct arena *arena = engine->entries.arena;
    bool on_disk = engine->writer != NULL;
    uint64_t max = on_disk ? atomic_load(&store->max_size) : arena_max(arena);
    index_prefetch(engine->entries.index, call->request.hash);
    if (value_cost(call->request.value) > max ||
        (!on_disk && call->request.value->length > arena_small_max(arena) &&
         !arena_fits(arena, call->request.value))) {
        put_ended(call, STORE_FAILED);
        return store_fail(call, ERROR_TOO_LARGE,
                          "the value is larger than the whole cache (max-size %llu)",
                          (unsigned long long)max);
    }
    uint64_t record_max = on_disk ? engine->ops->record_max(engine->backing) : UINT64_MAX;
    if ((uint64_t)call->request.key_length + call->request.value->length > record_max) {
        put_ended(call, STORE_FAILED);
        return store_fail(call, ERROR_TOO_LARGE,
                          "this store holds at most %llu bytes of key and value in an entry",
                          (unsigned long long)record_max);
    }
    if (!call->request.overwrite && call->request.value->length >= LOOK_FIRST &&
        is_there(engine, call))
        return put_ended(call, STORE_EXISTS);
    bool wants_writer;
    enum store_status status = put_step(engine, call, call->request.value, &wants_writer);
    status = no_memory(call, status);
    if (status != STORE_PENDING)
        return put_ended(call, status);
    return put_ended(call, steps_start(engine, call, put_again));
}

/* Drafts a copy of what lies elsewhere too, if there is room or some can be made quickly. */
static bool draft_copy(struct engine *engine, const struct store_call *call, struct value *value,
                       struct draft *draft)
{
    struct arena *arena = engine->entries.arena;
    uint32_t size =
        arena_entry_size(arena, value->key_length, value->length, value->expires != CLOCK_NEVER);
    if (size <= arena_small_max(arena)) {
        if (arena_is_short(arena))
            cleaner_step(&engine->cleaner, (uint64_t)size * CLEAN_AHEAD);
        return draft_small(engine, call, value, size, draft);
    }
    if (value_cost(value) > arena_max(arena) / OVERSIZE_SHARE)
        return false;
    cleaner_step(&engine->cleaner, arena_used(arena) + size > arena_max(arena) ? size : 0);
    return draft_large(engine, call, value, true, draft);
}

void engine_promote(struct engine *engine, struct store_call *call, struct value *value,
                    uint64_t place)
{
    struct entries *entries = &engine->entries;
    uint64_t bytes = (uint64_t)value->key_length + value->length;
    struct draft draft = new_draft(call, value);
    bool done = false;
    if (atomic_load(&entries->clearing) > 0 || !draft_copy(engine, call, value, &draft))
        return;
    entry_set_state(&draft.view, ENTRY_WRITTEN, place);
    struct index_shard *shard = index_lock(entries->index, call->request.hash);
    struct slot *slot = index_find(entries->index, shard, call->request.hash);
    if (slot != NULL && slot_get(slot).kind == SLOT_DISK && slot_get(slot).place == place &&
        atomic_load(&entries->clearing) == 0) {
        struct entry_view view = entries_view(entries, shard, slot);
        draft.word.cost = slot_get(slot).cost;
        done = entries_publish(entries, shard, call->request.hash, slot, &view, &draft.word, bytes,
                               ENTRY_WRITTEN);
    }
    index_unlock(shard);
    draft_end(engine, &draft, done);
}

void engine_fill(struct store *store, const struct store_call *call, struct value *value)
{
    struct engine *engine = engine_of(store);
    struct draft draft = new_draft(call, value);
    if (draft_copy(engine, call, value, &draft))
        publish_draft(engine, call, &draft);
}

struct persist {
    struct writer_wait wait;
    struct store_call *call;
};

static void persisted(struct loop_task *task)
{
    struct writer_wait *wait = container_of(task, struct writer_wait, task);
    struct persist *persist = container_of(wait, struct persist, wait);
    struct store_call *call = persist->call;
    call->result.status = STORE_OK;
    if (wait->error != 0)
        call->result.status = engine_fail(call, wait->error);
    free(persist);
    call->done(call);
}

enum store_status engine_persist(struct store *store, struct store_call *call)
{
    struct engine *engine = engine_of(store);
    call->result.durable = engine->writer != NULL;
    if (engine->writer == NULL)
        return STORE_OK;
    struct persist *persist = malloc(sizeof(*persist));
    if (persist == NULL)
        return store_fail(call, ERROR_INTERNAL, "out of memory");
    *persist = (struct persist){.wait = {.loop = call->request.loop, .task = {.run = persisted}},
                                .call = call};
    writer_persist(engine->writer, &persist->wait);
    return STORE_PENDING;
}

/* Empties until memory is within the bound. */
static void shrink(struct engine *engine, uint64_t bytes)
{
    struct arena *arena = engine->entries.arena;
    uint64_t before = arena_max(arena);
    arena_set_max(arena, bytes);
    if (bytes >= before)
        return;
    arena_seal(arena);
    arena_trim(arena, bytes);
    while (arena_used(arena) > bytes && cleaner_step(&engine->cleaner, SHRINK_STEP))
        arena_trim(arena, bytes);
    /* What is still above the bound, because another thread was at it, goes with the next PUTs. */
    index_trim(engine->entries.index);
}

void engine_set_max_size(struct store *store, uint64_t bytes)
{
    struct engine *engine = engine_of(store);
    if (engine->backing != NULL) {
        engine->ops->set_max_size(engine->backing, bytes);
        writer_set_max_size(engine->writer, bytes);
    } else {
        shrink(engine, bytes);
    }
}

void engine_close(struct store *store)
{
    struct engine *engine = engine_of(store);
    uint64_t lost = 0;
    pool_free(engine->walkers);
    pool_free(engine->readers);
    if (engine->writer != NULL)
        lost = writer_stop(engine->writer, 0);
    if (lost > 0)
        log_error("%llu changes did not reach the disk and are lost", (unsigned long long)lost);
    writer_free(engine->writer);
    if (engine->backing != NULL)
        engine->ops->close(engine->backing);
    if (engine->entries.arena != NULL)
        cleaner_end(&engine->cleaner);
    arena_free(engine->entries.arena);
    evict_free(engine->entries.evict);
    index_free(engine->entries.index);
    free(engine);
}

/* No more than the machine has is ever of use, and address space has to be reserved for it. */
static uint64_t usable(uint64_t bytes)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return bytes < memory ? bytes : memory;
}

/* An engine whose entries take so many bytes of memory. */
static struct engine *open_engine(uint64_t memory, uint64_t index, bool on_disk, char *why,
                                  size_t size)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    struct entries *entries = &engine->entries;
    entries->on_disk = on_disk;
    entries->index = index_new(index);
    if (entries->index != NULL)
        entries->evict = evict_new(entries->index);
    if (entries->evict != NULL)
        entries->arena = arena_new(memory, entries->index, on_disk);
    if (entries->arena != NULL) {
        cleaner_init(&engine->cleaner, entries);
        return engine;
    }
    snprintf(why, size, "can't reserve memory for the cache: %s", strerror(errno));
    engine_close(&engine->store);
    return NULL;
}

struct store *engine_open_cache(uint64_t memory, char *why, size_t size)
{
    uint64_t bytes = usable(memory);
    struct engine *engine = open_engine(bytes, bytes / INDEX_SHARE, false, why, size);
    return engine != NULL ? &engine->store : NULL;
}

struct store *engine_open_memory(const struct config *config, char *why, size_t size)
{
    return engine_open_cache(config->max_size, why, size);
}

static bool start_disk(struct engine *engine, const struct config *config,
                       const struct backing_ops *ops, char *why, size_t size)
{
    uint64_t unwritten = usable(config->memory_size) / UNWRITTEN_SHARE;
    struct backing_options options = {
        .directory = config->directory, .max_size = config->max_size, .owner = disk_owner(engine)};
    uint8_t secret[BACKING_SECRET];
    engine->ops = ops;
    engine->backing = ops->open(&options, secret, why, size);
    if (engine->backing == NULL)
        return false;
    hash_key_from(&engine->hash_key, secret, sizeof(secret));
    engine->entries.hash_key = engine->store.hash_key = &engine->hash_key;
    engine->writer = writer_new(&engine->entries, ops, engine->backing,
                                unwritten > UNWRITTEN_LEAST ? unwritten : UNWRITTEN_LEAST, CHANGES);
    if (engine->writer != NULL)
        writer_set_max_size(engine->writer, config->max_size);
    if (engine->writer != NULL && !ops->load(engine->backing, why, size))
        return false;
    index_fit(engine->entries.index);
    if (engine->writer != NULL)
        engine->readers = pool_new("store-reader", READERS);
    if (engine->readers != NULL)
        engine->walkers = pool_new("store-walker", 1);
    if (engine->walkers != NULL && writer_start(engine->writer))
        return true;
    snprintf(why, size, "can't start the threads of the store: %s", strerror(errno));
    return false;
}

struct store *engine_open_disk(const struct config *config, const struct backing_ops *ops,
                               char *why, size_t size)
{
    uint64_t memory = usable(config->memory_size);
    uint64_t index = memory / 4 * 3 > INDEX_LEAST ? memory / 4 * 3 : INDEX_LEAST;
    struct engine *engine = open_engine(memory, index, true, why, size);
    if (engine == NULL || start_disk(engine, config, ops, why, size))
        return engine != NULL ? &engine->store : NULL;
    engine_close(&engine->store);
    return NULL;
}
