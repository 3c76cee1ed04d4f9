#include "reply.h"

#include <stdlib.h>
#include <string.h>

enum { ELEMENTS_MAX = 1 << 20 };

/* A reply with size bytes behind it, in its place among its parent's elements. */
static struct redis_reply *new_reply(const redisReadTask *task, size_t size)
{
    struct redis_reply *reply = calloc(1, sizeof(*reply) + size);
    if (reply == NULL)
        return NULL;
    reply->type = task->type;
    if (task->parent != NULL) {
        const struct redis_reply *parent = task->parent->obj;
        parent->elements[task->idx] = reply;
    }
    return reply;
}

static void *new_string(const redisReadTask *task, char *text, size_t length)
{
    struct redis_reply *reply = new_reply(task, length + 1);
    if (reply == NULL)
        return NULL;
    reply->text = (char *)(reply + 1);
    reply->length = length;
    memcpy(reply->text, text, length);
    return reply;
}

static void *new_array(const redisReadTask *task, int elements)
{
    if (elements > ELEMENTS_MAX)
        return NULL;
    struct redis_reply *reply = new_reply(task, (size_t)elements * sizeof(reply->elements[0]));
    if (reply == NULL)
        return NULL;
    reply->elements = (struct redis_reply **)(reply + 1);
    reply->length = (size_t)elements;
    return reply;
}

static void *new_integer(const redisReadTask *task, long long integer)
{
    struct redis_reply *reply = new_reply(task, 0);
    if (reply != NULL)
        reply->integer = integer;
    return reply;
}

static void *new_nil(const redisReadTask *task)
{
    struct redis_reply *reply = new_reply(task, 0);
    if (reply != NULL)
        reply->type = REDIS_REPLY_NIL; /* the task is of what it would have been */
    return reply;
}

static void free_reply(void *object)
{
    redis_reply_free(object);
}

redisReader *redis_reader_new(void)
{
    static redisReplyObjectFunctions functions = {.createString = new_string,
                                                  .createArray = new_array,
                                                  .createInteger = new_integer,
                                                  .createNil = new_nil,
                                                  .freeObject = free_reply};
    return redisReaderCreateWithFunctions(&functions);
}

void redis_reply_free(struct redis_reply *reply)
{
    if (reply == NULL)
        return;
    for (size_t i = 0; reply->elements != NULL && i < reply->length; i++)
        redis_reply_free(reply->elements[i]);
    free(reply);
}

bool redis_reply_failed(const struct redis_reply *reply, const char *beginning)
{
    return reply->type == REDIS_REPLY_ERROR &&
           strncmp(reply->text, beginning, strlen(beginning)) == 0;
}

const char *redis_printable(char *out, size_t size, const void *text, size_t length)
{
    const unsigned char *bytes = text;
    size_t used = 0;
    for (; used < length && used + 1 < size; used++)
        out[used] = (char)(bytes[used] >= 0x20 && bytes[used] <= 0x7e ? bytes[used] : '?');
    out[used] = '\0';
    return out;
}
