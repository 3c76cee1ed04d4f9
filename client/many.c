/* Many requests on their way at once: they are sent while the replies are taken. */
#include "../proto/line.h"
#include "ask.h"
#include "receive.h"

#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 256,            /* requests sent and not yet answered */
    BATCH_BYTES = 32 * 1024, /* lines and small values that are sent together */
    SMALL_BYTES = 4 * 1024   /* a value up to here is copied behind its line */
};

struct batch;

/* What differs between getting and putting many. */
struct batch_kind {
    enum verb verb;
    /* The item's key, and for a PUT its value and options, into the request. */
    void (*describe)(const struct batch *batch, size_t index, struct request *request,
                     struct iovec *key, struct iovec *value);
    /* Takes a reply that is no ERROR, with its value. An error: the connection is closed. */
    enum liara_cache_status (*answer)(struct liara_cache *cache, const struct batch *batch,
                                      size_t index, const struct reply *reply);
    enum liara_cache_status *(*status)(const struct batch *batch, size_t index);
};

struct batch {
    const struct batch_kind *kind;
    void *items;
    size_t count, asked, answered; /* answered <= asked <= count */
    size_t length;                 /* bytes used */
    bool has_cost;
    uint32_t cost; /* of each value that is put */
    char bytes[BATCH_BYTES];
};

/* The line of the next item, and its value if that is small; otherwise the value is left in *value.
 */
static void add_item(struct liara_cache *cache, struct batch *batch, struct iovec *value)
{
    struct request request;
    struct iovec key = {NULL, 0};
    ask_request(&request, batch->kind->verb);
    batch->kind->describe(batch, batch->asked++, &request, &key, value);
    (void)ask_key(cache, &request, key.iov_base, key.iov_len);
    request.length = value->iov_len;
    batch->length += line_format_request(batch->bytes + batch->length, LINE_MAX_BYTES, &request);
    if (batch->kind->verb != VERB_PUT || value->iov_len > SMALL_BYTES)
        return;
    if (value->iov_len > 0)
        memcpy(batch->bytes + batch->length, value->iov_base, value->iov_len);
    batch->length += value->iov_len;
    batch->bytes[batch->length++] = '\n';
    value->iov_len = 0;
}

static enum liara_cache_status next_parts(struct liara_cache *cache, struct wire_output *output)
{
    static char line_feed[] = "\n";
    struct batch *batch = output->context;
    struct iovec value = {NULL, 0};
    batch->length = 0;
    while (batch->asked < batch->count && batch->asked - batch->answered < WINDOW &&
           BATCH_BYTES - batch->length > LINE_MAX_BYTES + SMALL_BYTES && value.iov_len == 0)
        add_item(cache, batch, &value);
    output->first = 0;
    output->count = batch->length > 0 ? 1 : 0;
    output->parts[0] = (struct iovec){batch->bytes, batch->length};
    if (value.iov_len > 0) {
        output->parts[1] = value;
        output->parts[2] = (struct iovec){line_feed, 1};
        output->count = 3;
    }
    return LIARA_CACHE_OK;
}

static enum liara_cache_status take_answers(struct liara_cache *cache, struct batch *batch)
{
    const struct batch_kind *kind = batch->kind;
    while (batch->answered < batch->count) {
        struct reply reply;
        enum liara_cache_status status = wire_reply(cache, &reply);
        if (status != LIARA_CACHE_OK)
            return status;
        if (reply.kind == REPLY_ERROR)
            status = handle_refused(cache, &reply);
        else
            status = kind->answer(cache, batch, batch->answered, &reply);
        if (cache->wire.fd < 0)
            return status;
        *kind->status(batch, batch->answered++) = status;
    }
    wire_finish(cache);
    handle_begin(cache);
    return LIARA_CACHE_OK;
}

static enum liara_cache_status run_batch(struct liara_cache *cache, struct batch *batch,
                                         uint64_t longest)
{
    enum liara_cache_status status;
    wire_call(&cache->wire);
    do {
        struct wire_output output = {.descriptor = -1, .more = next_parts, .context = batch};
        batch->asked = 0;
        status = ask_connect(cache);
        if (status == LIARA_CACHE_OK) {
            wire_begin(cache, &output, ask_limit(cache, longest));
            status = take_answers(cache, batch);
        }
    } while (ask_again(cache, status));
    for (size_t i = batch->answered; i < batch->count; i++)
        *batch->kind->status(batch, i) = status;
    return status;
}

static enum liara_cache_status run(struct liara_cache *cache, const struct batch_kind *kind,
                                   void *items, size_t count, uint64_t longest)
{
    struct batch *batch = malloc(sizeof(*batch));
    if (!batch)
        return handle_fail(cache, LIARA_CACHE_LOCAL, "no memory for many requests");
    batch->kind = kind;
    batch->items = items;
    batch->count = count;
    batch->answered = 0;
    batch->has_cost = cache->has_put_cost;
    batch->cost = cache->put_cost;
    enum liara_cache_status status = run_batch(cache, batch, longest);
    free(batch);
    return status;
}

static struct liara_cache_get_item *get_item(const struct batch *batch, size_t index)
{
    return (struct liara_cache_get_item *)batch->items + index;
}

static void describe_get(const struct batch *batch, size_t index, struct request *request,
                         struct iovec *key, struct iovec *value)
{
    const struct liara_cache_get_item *item = get_item(batch, index);
    (void)request;
    (void)value;
    *key = (struct iovec){(void *)(uintptr_t)item->key, item->key_length};
}

static enum liara_cache_status answer_get(struct liara_cache *cache, const struct batch *batch,
                                          size_t index, const struct reply *reply)
{
    if (reply->kind == REPLY_MISS)
        return LIARA_CACHE_MISS;
    if (reply->kind != REPLY_VALUE)
        return ask_unexpected(cache);
    return receive_value(cache, reply, NULL, &get_item(batch, index)->value);
}

static enum liara_cache_status *status_get(const struct batch *batch, size_t index)
{
    return &get_item(batch, index)->status;
}

enum liara_cache_status liara_cache_get_many(struct liara_cache *cache,
                                             struct liara_cache_get_item *items, size_t count)
{
    static const struct batch_kind kind = {VERB_GET, describe_get, answer_get, status_get};
    enum liara_cache_status bad = LIARA_CACHE_OK;
    handle_begin(cache);
    for (size_t i = 0; i < count; i++) {
        memset(&items[i].value, 0, sizeof(items[i].value));
        items[i].status = LIARA_CACHE_USAGE;
        if (bad == LIARA_CACHE_OK)
            bad = ask_check_key(cache, items[i].key_length);
    }
    if (bad != LIARA_CACHE_OK || count == 0)
        return bad;
    return run(cache, &kind, items, count, 0);
}

static struct liara_cache_put_item *put_item(const struct batch *batch, size_t index)
{
    return (struct liara_cache_put_item *)batch->items + index;
}

static void describe_put(const struct batch *batch, size_t index, struct request *request,
                         struct iovec *key, struct iovec *value)
{
    const struct liara_cache_put_item *item = put_item(batch, index);
    *key = (struct iovec){(void *)(uintptr_t)item->key, item->key_length};
    *value = (struct iovec){(void *)(uintptr_t)item->bytes, item->length};
    request->has_cost = batch->has_cost;
    request->cost = batch->cost;
    request->flags = item->options.flags;
    request->ttl = item->options.ttl;
    request->overwrite = item->options.overwrite;
}

static enum liara_cache_status answer_put(struct liara_cache *cache, const struct batch *batch,
                                          size_t index, const struct reply *reply)
{
    (void)batch;
    (void)index;
    if (reply->kind == REPLY_STORED)
        return LIARA_CACHE_OK;
    return reply->kind == REPLY_EXISTS ? LIARA_CACHE_EXISTS : ask_unexpected(cache);
}

static enum liara_cache_status *status_put(const struct batch *batch, size_t index)
{
    return &put_item(batch, index)->status;
}

enum liara_cache_status liara_cache_put_many(struct liara_cache *cache,
                                             struct liara_cache_put_item *items, size_t count)
{
    static const struct batch_kind kind = {VERB_PUT, describe_put, answer_put, status_put};
    enum liara_cache_status bad = LIARA_CACHE_OK;
    size_t longest = 0;
    handle_begin(cache);
    for (size_t i = 0; i < count; i++) {
        items[i].status = LIARA_CACHE_USAGE;
        longest = items[i].length > longest ? items[i].length : longest;
        if (bad == LIARA_CACHE_OK)
            bad = ask_check_key(cache, items[i].key_length);
    }
    if (bad == LIARA_CACHE_OK && count > 0)
        bad = run(cache, &kind, items, count, longest);
    cache->has_put_cost = false;
    return bad;
}
