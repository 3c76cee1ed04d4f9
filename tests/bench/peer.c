#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void peer_key(char key[PEER_KEY], uint64_t number)
{
    static const char digits[] = "0123456789abcdef";
    uint64_t mixed = number + 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    mixed ^= mixed >> 31;
    memcpy(key, "obj:", 4);
    for (size_t i = 4; i < PEER_KEY; i++, mixed >>= 4)
        key[i] = digits[mixed & 15];
}

static char *append(char *out, const char *bytes, size_t length)
{
    memcpy(out, bytes, length);
    return out + length;
}

#define APPEND(out, literal) append(out, literal, sizeof(literal) - 1)

static char *append_number(char *out, uint64_t number)
{
    char text[24];
    size_t at = sizeof(text);
    do {
        text[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    return append(out, text + at, sizeof(text) - at);
}

/* Whether the reply begins with these bytes, which tell its kind. */
static bool begins(const char *in, size_t length, const char *with)
{
    size_t wanted = strlen(with);
    return length >= wanted && memcmp(in, with, wanted) == 0;
}

/* The number that begins at in; the line's end stops it. */
static uint64_t number_at(const char *in)
{
    uint64_t number = 0;
    for (; *in >= '0' && *in <= '9'; in++)
        number = number * 10 + (uint64_t)(*in - '0');
    return number;
}

/* The bytes of the first line with its LF; 0 where it has none yet. */
static size_t line_length(const char *in, size_t length)
{
    const char *end = memchr(in, '\n', length);
    return end != NULL ? (size_t)(end - in) + 1 : 0;
}

static struct reply no_line_yet(size_t length)
{
    return (struct reply){.kind = length < PEER_HEAD_MAX ? REPLY_MORE : REPLY_BAD, .head = length};
}

static size_t liara_get(char *out, const char *key)
{
    char *end = append(APPEND(out, "GET "), key, PEER_KEY);
    return (size_t)(APPEND(end, "\n") - out);
}

static size_t liara_put(char *out, const char *key, uint64_t size, bool overwrite)
{
    char *end = append(APPEND(out, "PUT "), key, PEER_KEY);
    end = append_number(APPEND(end, " "), size);
    end = overwrite ? APPEND(end, " overwrite\n") : APPEND(end, "\n");
    return (size_t)(end - out);
}

static struct reply liara_parse(const char *in, size_t length, bool is_put)
{
    struct reply reply = {.kind = REPLY_BAD, .head = line_length(in, length)};
    if (reply.head == 0)
        return no_line_yet(length);
    if (is_put && begins(in, length, "STORED\n"))
        reply.kind = REPLY_STORED;
    else if (is_put && begins(in, length, "EXISTS\n"))
        reply.kind = REPLY_EXISTS;
    else if (!is_put && begins(in, length, "MISS\n"))
        reply.kind = REPLY_MISS;
    else if (!is_put && begins(in, length, "VALUE "))
        reply = (struct reply){REPLY_VALUE, reply.head, 1, number_at(in + 6)};
    return reply;
}

static size_t memcached_get(char *out, const char *key)
{
    char *end = append(APPEND(out, "get "), key, PEER_KEY);
    return (size_t)(APPEND(end, "\r\n") - out);
}

static size_t memcached_put(char *out, const char *key, uint64_t size, bool overwrite)
{
    char *end = overwrite ? APPEND(out, "set ") : APPEND(out, "add ");
    end = append_number(APPEND(append(end, key, PEER_KEY), " 0 0 "), size);
    return (size_t)(APPEND(end, "\r\n") - out);
}

/* "VALUE key flags bytes", the key being ours. */
static struct reply memcached_value(const char *in, size_t head)
{
    static const size_t before_flags = 6 + PEER_KEY + 1;
    const char *space =
        head > before_flags ? memchr(in + before_flags, ' ', head - before_flags) : NULL;
    if (space == NULL)
        return (struct reply){.kind = REPLY_BAD, .head = head};
    return (struct reply){REPLY_VALUE, head, sizeof("\r\nEND\r\n") - 1, number_at(space + 1)};
}

static struct reply memcached_parse(const char *in, size_t length, bool is_put)
{
    struct reply reply = {.kind = REPLY_BAD, .head = line_length(in, length)};
    if (reply.head == 0)
        return no_line_yet(length);
    if (is_put && begins(in, length, "STORED\r\n"))
        reply.kind = REPLY_STORED;
    else if (is_put && begins(in, length, "NOT_STORED\r\n"))
        reply.kind = REPLY_EXISTS;
    else if (!is_put && begins(in, length, "END\r\n"))
        reply.kind = REPLY_MISS;
    else if (!is_put && begins(in, length, "VALUE "))
        reply = memcached_value(in, reply.head);
    return reply;
}

static size_t redis_get(char *out, const char *key)
{
    char *end = append(APPEND(out, "*2\r\n$3\r\nGET\r\n$20\r\n"), key, PEER_KEY);
    return (size_t)(APPEND(end, "\r\n") - out);
}

static size_t redis_put(char *out, const char *key, uint64_t size, bool overwrite)
{
    char *end = overwrite ? APPEND(out, "*3\r\n$3\r\nSET\r\n$20\r\n")
                          : APPEND(out, "*3\r\n$5\r\nSETNX\r\n$20\r\n");
    end = append_number(APPEND(append(end, key, PEER_KEY), "\r\n$"), size);
    return (size_t)(APPEND(end, "\r\n") - out);
}

static struct reply redis_parse(const char *in, size_t length, bool is_put)
{
    struct reply reply = {.kind = REPLY_BAD, .head = line_length(in, length)};
    if (reply.head == 0)
        return no_line_yet(length);
    if (is_put && (begins(in, length, "+OK\r\n") || begins(in, length, ":1\r\n")))
        reply.kind = REPLY_STORED;
    else if (is_put && begins(in, length, ":0\r\n"))
        reply.kind = REPLY_EXISTS;
    else if (!is_put && begins(in, length, "$-1\r\n"))
        reply.kind = REPLY_MISS;
    else if (!is_put && begins(in, length, "$"))
        reply = (struct reply){REPLY_VALUE, reply.head, 2, number_at(in + 1)};
    return reply;
}

static const struct peer peers[] = {
    {"liara", liara_get, liara_put, "\n", liara_parse, false},
    {"memcached", memcached_get, memcached_put, "\r\n", memcached_parse, false},
    {"redis", redis_get, redis_put, "\r\n", redis_parse, false},
    {"bare", liara_get, liara_put, "\n", liara_parse, true},
};

const struct peer *peer_find(const char *name)
{
    for (size_t i = 0; i < sizeof(peers) / sizeof(peers[0]); i++) {
        if (strcmp(peers[i].name, name) == 0)
            return &peers[i];
    }
    return NULL;
}
