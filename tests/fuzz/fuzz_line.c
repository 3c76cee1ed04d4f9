/*
 * Anything at all as a request and as a reply: what is parsed comes back from what is formatted,
 * the stream stays in step, and no byte beyond the input is read (the input is copied into a block
 * of exactly its size, for AddressSanitizer to see).
 */
#include "../../proto/line.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static bool same_request(const struct request *a, const struct request *b)
{
    return a->verb == b->verb && a->overwrite == b->overwrite && a->fd == b->fd &&
           a->flags == b->flags && a->ttl == b->ttl && a->has_cost == b->has_cost &&
           a->cost == b->cost && a->lease == b->lease && a->length == b->length &&
           a->key_length == b->key_length && memcmp(a->key, b->key, a->key_length) == 0;
}

static bool same_reply(const struct reply *a, const struct reply *b)
{
    return a->kind == b->kind && a->lease == b->lease && a->has_entries == b->has_entries &&
           a->is_volatile == b->is_volatile && a->flags == b->flags && a->ttl == b->ttl &&
           a->length == b->length && a->offset == b->offset && a->entries == b->entries &&
           a->error == b->error && strcmp(a->text, b->text) == 0;
}

/* parse(format(x)) is x, and format(parse(line)) is line once it has been formatted. */
static void check_reply(const struct reply *reply)
{
    char line[LINE_MAX_BYTES], again[LINE_MAX_BYTES];
    struct reply back;
    size_t used;
    size_t length = line_format_reply(line, sizeof(line), reply);
    require(length > 0 && line[length - 1] == '\n');
    require(line_parse_reply(line, length, &back, &used) == LINE_OK);
    require(used == length && same_reply(reply, &back));
    require(line_format_reply(again, sizeof(again), &back) == length);
    require(memcmp(line, again, length) == 0);
}

static void check_request(const struct request *request)
{
    char line[LINE_MAX_BYTES], again[LINE_MAX_BYTES];
    struct request back;
    struct reply error;
    uint64_t skip;
    size_t used;
    size_t length = line_format_request(line, sizeof(line), request);
    require(length > 0 && line[length - 1] == '\n');
    require(line_parse_request(line, length, &back, &used, &skip, &error) == LINE_OK);
    require(used == length && same_request(request, &back));
    require(line_format_request(again, sizeof(again), &back) == length);
    require(memcmp(line, again, length) == 0);
}

/* An error's text is printable, and its line can be parsed. */
static void check_error(const struct reply *error)
{
    require(error->kind == REPLY_ERROR);
    for (const char *c = error->text; *c != '\0'; c++)
        require(*c >= 0x20 && *c <= 0x7E);
    check_reply(error);
}

/* The line that was taken is the first one; only a PUT is followed by bytes to be passed over. */
static void check_used(const char *bytes, size_t size, size_t used)
{
    require(used >= 1 && used <= size && used <= LINE_MAX_BYTES);
    require(memchr(bytes, '\n', size) == bytes + used - 1);
}

static void check_more(const char *bytes, size_t size)
{
    require(size < LINE_MAX_BYTES && memchr(bytes, '\n', size) == NULL);
}

static void fuzz_request(const char *bytes, size_t size)
{
    struct request request;
    struct reply error;
    uint64_t skip = 0;
    size_t used = 0;
    switch (line_parse_request(bytes, size, &request, &used, &skip, &error)) {
    case LINE_OK:
        check_used(bytes, size, used);
        check_request(&request);
        break;
    case LINE_MORE:
        check_more(bytes, size);
        break;
    case LINE_BAD:
        check_used(bytes, size, used);
        require(skip == 0 || (used > 4 && memcmp(bytes, "PUT ", 4) == 0));
        check_error(&error);
        break;
    case LINE_LOST:
        check_error(&error);
        break;
    }
}

static void fuzz_reply(const char *bytes, size_t size)
{
    struct reply reply;
    size_t used = 0;
    enum line_result result = line_parse_reply(bytes, size, &reply, &used);
    require(result != LINE_BAD);
    if (result == LINE_MORE)
        check_more(bytes, size);
    if (result != LINE_OK)
        return;
    check_used(bytes, size, used);
    check_reply(&reply);
}

/* The input as a key, and as the text of one. */
static void fuzz_key(const char *bytes, size_t size)
{
    size_t length = size < MESSAGE_KEY_MAX ? size : MESSAGE_KEY_MAX;
    char text[3 * MESSAGE_KEY_MAX];
    uint8_t key[MESSAGE_KEY_MAX];
    size_t written = line_encode_key(text, sizeof(text), (const uint8_t *)bytes, length);
    require((written == 0) == (length == 0));
    require(line_decode_key(key, sizeof(key), text, written) == (ssize_t)length);
    require(memcmp(key, bytes, length) == 0);

    ssize_t decoded = line_decode_key(key, sizeof(key), bytes, size);
    require(decoded >= -2 && decoded <= (ssize_t)size && decoded <= MESSAGE_KEY_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *bytes = malloc(size == 0 ? 1 : size);
    if (bytes == NULL)
        return 0;
    memcpy(bytes, data, size);
    fuzz_request(bytes, size);
    fuzz_reply(bytes, size);
    fuzz_key(bytes, size);
    free(bytes);
    return 0;
}
