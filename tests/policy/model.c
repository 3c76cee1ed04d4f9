#include "model.h"

#include "../../daemon/clock.h"
#include "../../daemon/config.h"
#include "../../daemon/store/engine/internal.h"

#include <err.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOG_SEGMENT_MAX = 64 << 20,
    LOG_SEGMENTS = 16, /* at least */
    LARGE_SHARE = 4,   /* what takes more than one in so many of a segment has one of its own */
    KEEP_PERCENT = 75, /* of a segment, at most */
    NONE = -1
};

static void *array(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        err(1, "no memory for a model");
    return memory;
}

static uint64_t bytes_of(const struct trace *trace, uint32_t object)
{
    return (uint64_t)trace->objects[object].size + MODEL_ENTRY_BYTES;
}

/* Counts misses beyond the first of each object, whose numbers are in the order of their first. */
struct tally {
    const struct trace *trace;
    uint32_t seen;
    struct outcome outcome;
    uint64_t put, kept; /* bytes */
};

static void missed(struct tally *tally, uint32_t object)
{
    tally->put += bytes_of(tally->trace, object);
    if (object == tally->seen) {
        tally->seen++;
        return;
    }
    tally->outcome.misses++;
    tally->outcome.seconds += tally->trace->objects[object].cost / 1000.0;
}

static struct outcome end_of(struct tally *tally)
{
    tally->outcome.written = (double)(tally->put + tally->kept) / (double)tally->put;
    return tally->outcome;
}

/* A list of objects, each at most once; ends are NONE. */
struct list {
    int64_t first, last;
    struct link {
        int64_t before, after;
        bool is_in;
    } * links;
};

static void list_add(struct list *list, uint32_t object)
{
    list->links[object] = (struct link){.before = list->last, .after = NONE, .is_in = true};
    if (list->last != NONE)
        list->links[list->last].after = object;
    else
        list->first = object;
    list->last = object;
}

static void list_remove(struct list *list, uint32_t object)
{
    struct link *link = &list->links[object];
    if (link->before != NONE)
        list->links[link->before].after = link->after;
    else
        list->first = link->after;
    if (link->after != NONE)
        list->links[link->after].before = link->before;
    else
        list->last = link->before;
    link->is_in = false;
}

struct outcome model_lru(const struct trace *trace, uint64_t bytes)
{
    struct tally tally = {.trace = trace};
    struct list list = {NONE, NONE, array(trace->object_count, sizeof(struct link))};
    uint64_t used = 0;
    for (size_t i = 0; i < trace->access_count; i++) {
        uint32_t object = trace->accesses[i];
        if (list.links[object].is_in) {
            list_remove(&list, object);
        } else {
            missed(&tally, object);
            used += bytes_of(trace, object);
        }
        list_add(&list, object);
        for (; used > bytes; used -= bytes_of(trace, object)) {
            object = (uint32_t)list.first;
            list_remove(&list, object);
        }
    }
    free(list.links);
    return end_of(&tally);
}

/* The engine's index and score, and what the disk's models share. */
struct engine_model {
    struct tally tally;
    struct index *index;
    struct evict *evict;
    uint64_t used, max; /* bytes */
    uint64_t entries;
    unsigned judged;
};

static struct engine_model engine_model_new(const struct trace *trace, uint64_t bytes)
{
    struct engine_model model = {.tally = {.trace = trace}, .max = bytes};
    model.index = index_new((uint64_t)256 << 20);
    if (model.index != NULL)
        model.evict = evict_new(model.index);
    if (model.evict == NULL)
        err(1, "no memory for an index");
    return model;
}

static struct outcome engine_model_end(struct engine_model *model)
{
    evict_free(model->evict);
    index_free(model->index);
    return end_of(&model->tally);
}

static uint64_t hash_of_object(uint32_t object)
{
    uint64_t mixed = (object + UINT64_C(1)) * 0x9E3779B97F4A7C15;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    return mixed ^ mixed >> 31;
}

static struct slot *find(struct engine_model *model, struct index_shard *shard, uint32_t object)
{
    return index_find(model->index, shard, hash_of_object(object));
}

/* Whether the object is there, which is a use. */
static bool look_up(struct engine_model *model, uint32_t object)
{
    struct index_shard *shard = index_lock(model->index, hash_of_object(object));
    struct slot *slot = find(model, shard, object);
    if (slot != NULL)
        evict_used(model->evict, slot);
    index_unlock(shard);
    return slot != NULL;
}

static void insert(struct engine_model *model, uint32_t object)
{
    const struct trace_object *of = &model->tally.trace->objects[object];
    struct slot_word word = {.place = object + UINT64_C(1),
                             .kind = SLOT_DISK,
                             .size = evict_class(of->size),
                             .cost = evict_class(of->cost)};
    struct index_shard *shard = index_lock(model->index, hash_of_object(object));
    if (index_add(model->index, shard, hash_of_object(object), &word, evict_epoch(model->evict)) ==
        NULL)
        errx(1, "the index is full");
    index_unlock(shard);
    model->entries++;
    evict_inserted(model->evict, model->entries);
}

/* As the engine's owner_judge(); what is not worth keeping leaves the index. */
static bool judge(struct engine_model *model, uint32_t object)
{
    if (model->judged++ % BAR_EVERY == 0)
        evict_set_bar(model->evict, EVICT_DISK);
    struct index_shard *shard = index_lock(model->index, hash_of_object(object));
    struct slot *slot = find(model, shard, object);
    struct slot_word word = slot_get(slot);
    bool worth = evict_worth_keeping(model->evict, EVICT_DISK, &word, slot_use(slot));
    index_unlock(shard);
    return worth;
}

static void forget(struct engine_model *model, uint32_t object)
{
    struct index_shard *shard = index_lock(model->index, hash_of_object(object));
    index_remove(model->index, shard, find(model, shard, object));
    index_unlock(shard);
    model->entries--;
}

struct log_segment {
    struct log_segment *next;
    uint64_t bytes;
    uint32_t count, room;
    uint32_t *objects;
};

struct log_model {
    struct engine_model model;
    struct log_segment *oldest, *head;
    uint64_t segment_size, credit;
};

static void add_segment(struct log_model *log)
{
    struct log_segment *segment = array(1, sizeof(*segment));
    if (log->head != NULL)
        log->head->next = segment;
    else
        log->oldest = segment;
    log->head = segment;
}

static void append(struct log_model *log, uint32_t object)
{
    uint64_t bytes = bytes_of(log->model.tally.trace, object);
    if (log->head == NULL || log->head->bytes + bytes > log->segment_size)
        add_segment(log);
    struct log_segment *head = log->head;
    if (head->count == head->room) {
        head->room = head->room * 2 + 64;
        head->objects = reallocarray(head->objects, head->room, sizeof(*head->objects));
        if (head->objects == NULL)
            err(1, "no memory for a model");
    }
    head->objects[head->count++] = object;
    head->bytes += bytes;
    log->model.used += bytes;
}

static void retire_oldest(struct log_model *log)
{
    struct log_segment *segment = log->oldest;
    log->credit += segment->bytes * KEEP_PERCENT / 100;
    for (uint32_t i = 0; i < segment->count; i++) {
        uint32_t object = segment->objects[i];
        uint64_t bytes = bytes_of(log->model.tally.trace, object);
        if (judge(&log->model, object) && bytes <= log->credit) {
            append(log, object);
            log->credit -= bytes;
            log->model.tally.kept += bytes;
        } else {
            forget(&log->model, object);
        }
    }
    uint64_t most = log->model.max / 8 > log->segment_size ? log->model.max / 8 : log->segment_size;
    log->credit = log->credit < most ? log->credit : most;
    log->model.used -= segment->bytes;
    log->oldest = segment->next;
    free(segment->objects);
    free(segment);
}

struct outcome model_log(const struct trace *trace, uint64_t bytes)
{
    struct log_model log = {.model = engine_model_new(trace, bytes)};
    log.segment_size = LOG_SEGMENT_MAX;
    while (log.segment_size * LOG_SEGMENTS > bytes)
        log.segment_size /= 2;
    for (size_t i = 0; i < trace->access_count; i++) {
        uint32_t object = trace->accesses[i];
        if (look_up(&log.model, object))
            continue;
        missed(&log.model.tally, object);
        append(&log, object);
        insert(&log.model, object);
        while (log.model.used > bytes && log.oldest != log.head)
            retire_oldest(&log);
    }
    while (log.oldest != NULL) {
        struct log_segment *next = log.oldest->next;
        free(log.oldest->objects);
        free(log.oldest);
        log.oldest = next;
    }
    return engine_model_end(&log.model);
}

struct outcome model_cursor(const struct trace *trace, uint64_t bytes)
{
    struct engine_model model = engine_model_new(trace, bytes);
    struct list rows = {NONE, NONE, array(trace->object_count, sizeof(struct link))};
    int64_t cursor = NONE;
    for (size_t i = 0; i < trace->access_count; i++) {
        uint32_t object = trace->accesses[i];
        if (look_up(&model, object))
            continue;
        missed(&model.tally, object);
        list_add(&rows, object);
        insert(&model, object);
        model.used += bytes_of(trace, object);
        while (model.used > bytes) {
            object = (uint32_t)(cursor != NONE ? cursor : rows.first);
            cursor = rows.links[object].after;
            if (judge(&model, object))
                continue;
            list_remove(&rows, object);
            forget(&model, object);
            model.used -= bytes_of(trace, object);
        }
    }
    free(rows.links);
    return engine_model_end(&model);
}

static void done(struct store_call *call)
{
    (void)call;
}

/* A call on the memory store; what it is asked it does within some steps of its loop. */
static enum store_status run(struct store *store, struct store_call *call)
{
    enum store_status status = store_submit(store, call);
    call->result.status = status;
    for (unsigned i = 0; call->result.status == STORE_PENDING; i++) {
        if (i > 100000)
            errx(1, "a call does not end");
        loop_step(call->request.loop, 0);
    }
    return call->result.status;
}

struct outcome model_memory(const struct trace *trace, uint64_t bytes)
{
    static const uint8_t secret[BACKING_SECRET] = {1};
    struct tally tally = {.trace = trace};
    struct config config = {.max_size = bytes};
    struct hash_key key;
    char why[256] = "";
    struct store *store = store_open(&store_memory, &config, why, sizeof(why));
    struct loop *loop = loop_new(0);
    if (store == NULL || loop == NULL)
        errx(1, "%s", why);
    /* The same in each run. */
    hash_key_from(&key, secret, sizeof(secret));
    engine_of(store)->entries.hash_key = store->hash_key = &key;
    for (size_t i = 0; i < trace->access_count; i++) {
        uint32_t object = trace->accesses[i];
        const struct trace_object *of = &trace->objects[object];
        struct store_call call = {.request = {.op = STORE_GET,
                                              .key = (const uint8_t *)&object,
                                              .key_length = sizeof(object),
                                              .loop = loop},
                                  .done = done};
        enum store_status status = run(store, &call);
        value_unref(call.result.value);
        pinned_release(&call.result.pinned);
        if (status == STORE_OK)
            continue;
        missed(&tally, object);
        call.request.op = STORE_PUT;
        call.request.has_cost = true;
        call.request.cost = of->cost;
        call.request.value = value_new(call.request.key, sizeof(object), of->size);
        if (call.request.value == NULL)
            err(1, "no memory for a value");
        memset(value_bytes(call.request.value), (int)object, of->size);
        if (run(store, &call) != STORE_OK && call.result.error != ERROR_TOO_LARGE)
            errx(1, "PUT: %s", call.result.text);
    }
    store_close(store);
    loop_free(loop);
    tally.outcome.written = 0;
    return tally.outcome;
}
