#include "command.h"

#include <stdio.h>
#include <string.h>

static void print_string(const char *text, size_t length)
{
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20 || byte == 0x7f)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

/* What JSON takes as a whole number: digits, with no 0 before others. */
static bool is_number(const char *text, size_t length)
{
    return length > 0 && strspn(text, "0123456789") >= length && (length == 1 || text[0] != '0');
}

static void print_member(const char *line, size_t length)
{
    const char *space = memchr(line, ' ', length);
    size_t name = space ? (size_t)(space - line) : length;
    const char *value = space ? space + 1 : "";
    size_t value_length = space ? length - name - 1 : 0;
    print_string(line, name);
    fputs(": ", stdout);
    if (is_number(value, value_length))
        fwrite(value, 1, value_length, stdout);
    else
        print_string(value, value_length);
}

static void print_json(const char *text)
{
    const char *between = "{\n  ";
    while (*text) {
        size_t length = strcspn(text, "\n");
        if (length > 0) {
            fputs(between, stdout);
            print_member(text, length);
            between = ",\n  ";
        }
        text += length + (text[length] == '\n');
    }
    puts(between[0] == '{' ? "{}" : "\n}");
}

int command_inspect(struct cli *cli)
{
    struct liara_cache_info info;
    if (!can_print(cli))
        return RESULT_LOCAL;
    enum liara_cache_status status = liara_cache_inspect(cli->cache, &info);
    if (status != LIARA_CACHE_OK)
        return report(cli, status);
    if (cli->arguments.json)
        print_json(info.text);
    else
        fputs(info.text, stdout);
    liara_cache_free(info.text);
    return finish_output();
}
