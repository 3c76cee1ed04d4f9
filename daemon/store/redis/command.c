#include "command.h"

#include <event2/buffer.h>

enum {
    NUMBER_MAX = 24, /* bytes of "$17" and the end of its line */
    COPY_MAX = 4096  /* bytes of a value that are copied */
};

static uint8_t *add_bytes(uint8_t *at, const void *bytes, size_t length)
{
    memcpy(at, bytes, length);
    return at + length;
}

static uint8_t *add_number(uint8_t *at, char kind, uint64_t number)
{
    char line[NUMBER_MAX], *first = line + sizeof(line);
    *--first = '\n';
    *--first = '\r';
    do
        *--first = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    *--first = kind;
    return add_bytes(at, first, (size_t)(line + sizeof(line) - first));
}

static void release_value(const void *bytes, size_t length, void *value)
{
    (void)bytes;
    (void)length;
    value_unref(value);
}

static bool is_copied(const struct value *value)
{
    return value->length <= COPY_MAX;
}

static size_t room_for(const struct redis_word *words, unsigned count)
{
    size_t size = NUMBER_MAX;
    for (unsigned i = 0; i < count; i++) {
        const struct value *value = words[i].value;
        size += NUMBER_MAX + words[i].length + 2;
        size += value != NULL && is_copied(value) ? value->length : 0;
    }
    return size;
}

/* Adds the value behind what was written up to at; returns where to write on, NULL: no memory. */
static uint8_t *add_value(struct evbuffer *out, struct evbuffer_iovec *space, uint8_t *at,
                          struct value *value)
{
    if (is_copied(value)) {
        at = add_bytes(at, value_bytes(value), value->length);
        value_unref(value);
        return at;
    }
    size_t room = space->iov_len;
    space->iov_len = (size_t)(at - (uint8_t *)space->iov_base);
    if (evbuffer_commit_space(out, space, 1) != 0 ||
        evbuffer_add_reference(out, value_bytes(value), value->length, release_value, value) != 0) {
        value_unref(value);
        return NULL;
    }
    return evbuffer_reserve_space(out, (ev_ssize_t)room, space, 1) == 1 ? space->iov_base : NULL;
}

bool redis_command_add(struct evbuffer *out, const struct redis_word *words, unsigned count)
{
    struct evbuffer_iovec space = {.iov_base = NULL};
    evbuffer_reserve_space(out, (ev_ssize_t)room_for(words, count), &space, 1);
    uint8_t *at = space.iov_base != NULL ? add_number(space.iov_base, '*', count) : NULL;
    for (unsigned i = 0; i < count; i++) {
        struct value *value = words[i].value;
        if (at == NULL) {
            value_unref(value);
            continue;
        }
        at = add_number(at, '$', words[i].length + (value != NULL ? value->length : 0));
        at = add_bytes(at, words[i].bytes, words[i].length);
        if (value != NULL)
            at = add_value(out, &space, at, value);
        if (at != NULL)
            at = add_bytes(at, "\r\n", 2);
    }
    if (at == NULL)
        return false;
    space.iov_len = (size_t)(at - (uint8_t *)space.iov_base);
    return evbuffer_commit_space(out, &space, 1) == 0;
}
