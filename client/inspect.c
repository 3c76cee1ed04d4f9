/* INSPECT: lines "name value" into a struct. */
#include "ask.h"
#include "receive.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void set_field(struct liara_cache_info *info, const char *name, size_t name_length,
                      const char *text, size_t text_length)
{
    struct {
        const char *name;
        char *text;
        size_t size;
        uint64_t *number;
    } fields[] = {
        {"name", info->name, sizeof(info->name), NULL},
        {"backend", info->backend, sizeof(info->backend), NULL},
        {"size", NULL, 0, &info->size},
        {"entries", NULL, 0, &info->entries},
    };
    if (name_length == 11 && memcmp(name, "approximate", 11) == 0)
        info->approximate = text_length != 1 || text[0] != '0';
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (strlen(fields[i].name) != name_length || memcmp(fields[i].name, name, name_length) != 0)
            continue;
        if (fields[i].number)
            *fields[i].number = strtoull(text, NULL, 10);
        else
            snprintf(fields[i].text, fields[i].size, "%.*s", (int)text_length, text);
    }
}

static void read_lines(struct liara_cache_info *info)
{
    const char *line = info->text;
    while (*line) {
        size_t length = strcspn(line, "\n");
        const char *space = memchr(line, ' ', length);
        if (space) {
            size_t name_length = (size_t)(space - line);
            set_field(info, line, name_length, space + 1, length - name_length - 1);
        }
        line += length;
        if (*line == '\n')
            line++;
    }
}

enum liara_cache_status liara_cache_inspect(struct liara_cache *cache,
                                            struct liara_cache_info *info)
{
    struct request request;
    struct reply reply;
    struct liara_cache_value value;
    memset(info, 0, sizeof(*info));
    handle_begin(cache);
    ask_request(&request, VERB_INSPECT);
    enum liara_cache_status status = ask(cache, &request, NULL, &reply);
    if (status != LIARA_CACHE_OK)
        return status;
    if (reply.kind != REPLY_VALUE)
        return ask_unexpected(cache);
    status = receive_value(cache, &reply, NULL, &value);
    if (status != LIARA_CACHE_OK)
        return status;
    ask_end(cache);
    info->text = value.bytes;
    int saved = errno;
    read_lines(info);
    errno = saved;
    return LIARA_CACHE_OK;
}
