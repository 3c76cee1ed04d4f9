#include "option.h"

#include "store/store.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What a value of each kind is called, how it is to be written, and how --help names it. */
static const struct {
    const char *name, *advice, *argument;
} kinds[] = {
    [OPTION_SIZE] = {"a size", "write bytes with an optional K, M, G or T, as 5G", "SIZE"},
    [OPTION_NUMBER] = {"a number", "write decimal digits alone, as 1024", "NUMBER"},
    [OPTION_TIME] = {"a time", "write seconds, or a number with ms, s, m, h or d, as 10m", "TIME"},
    [OPTION_MODE] = {"a mode", "write three or four octal digits, as 0660", "MODE"},
    [OPTION_LEVEL] = {"a level", "write error, warning, info or debug", "LEVEL"},
    [OPTION_BACKEND] = {"a backend", NULL, "NAME"},
    [OPTION_TEXT] = {"a text", NULL, "TEXT"},
    [OPTION_PATH] = {"an absolute path", "write the whole path, from /", "PATH"},
    [OPTION_SOCKET] = {"an absolute path", "write the whole path, from /", "PATH"},
    [OPTION_READABLE] = {"an absolute path", "write the whole path, from /", "PATH"},
};

static const struct {
    const char *name;
    enum log_level level;
} levels[] = {
    {"error", LOG_LEVEL_ERROR},
    {"warning", LOG_LEVEL_WARNING},
    {"info", LOG_LEVEL_INFO},
    {"debug", LOG_LEVEL_DEBUG},
};

struct unit {
    const char *name;
    uint64_t factor;
};

#define KILO ((uint64_t)1 << 10)
#define MEGA ((uint64_t)1 << 20)
#define GIGA ((uint64_t)1 << 30)
#define TERA ((uint64_t)1 << 40)

/* A number is printed with the first unit that divides it. */
static const struct unit size_units[] = {
    {"T", TERA},   {"G", GIGA},   {"M", MEGA},   {"K", KILO},   {"", 1},      {"B", 1},
    {"TiB", TERA}, {"GiB", GIGA}, {"MiB", MEGA}, {"KiB", KILO}, {"TB", TERA}, {"GB", GIGA},
    {"MB", MEGA},  {"KB", KILO},  {"t", TERA},   {"g", GIGA},   {"m", MEGA},  {"k", KILO},
};
static const struct unit time_units[] = {
    {"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}, {"", 1000},
};

struct option_shown option_show(const char *text)
{
    struct option_shown shown;
    size_t i;

    for (i = 0; i < sizeof(shown.text) - 4 && text[i] != '\0'; i++)
        shown.text[i] = iscntrl((unsigned char)text[i]) ? '?' : text[i];
    strcpy(shown.text + i, text[i] == '\0' ? "" : "...");
    return shown;
}

const char *option_argument(enum option_kind kind)
{
    return kinds[kind].argument;
}

/* Digits of the base, at least one; *end is what follows them. */
static bool parse_digits(const char *text, unsigned base, uint64_t *number, const char **end)
{
    uint64_t sum = 0;
    const char *at;

    for (at = text; *at >= '0' && *at < (char)('0' + base); at++) {
        if (__builtin_mul_overflow(sum, base, &sum) ||
            __builtin_add_overflow(sum, (uint64_t)(*at - '0'), &sum))
            return false;
    }
    *number = sum;
    *end = at;
    return at != text;
}

static bool parse_united(const char *text, const struct unit *units, size_t count, uint64_t *number)
{
    const char *unit;

    if (!parse_digits(text, 10, number, &unit))
        return false;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(unit, units[i].name) == 0)
            return !__builtin_mul_overflow(*number, units[i].factor, number);
    }
    return false;
}

static bool parse_plain(const char *text, unsigned base, uint64_t *number)
{
    const char *end;

    return parse_digits(text, base, number, &end) && *end == '\0';
}

static bool parse_level(const char *text, uint64_t *number)
{
    for (size_t i = 0; i < COUNT(levels); i++) {
        if (strcmp(text, levels[i].name) == 0) {
            *number = i;
            return true;
        }
    }
    return false;
}

static bool parse_number(enum option_kind kind, const char *text, uint64_t *number)
{
    switch (kind) {
    case OPTION_SIZE:
        return parse_united(text, size_units, COUNT(size_units), number);
    case OPTION_TIME:
        return parse_united(text, time_units, COUNT(time_units), number);
    case OPTION_MODE:
        return parse_plain(text, 8, number) && strlen(text) >= 3 && strlen(text) <= 4;
    case OPTION_LEVEL:
        return parse_level(text, number);
    default:
        return parse_plain(text, 10, number);
    }
}

static void format_united(uint64_t number, const struct unit *units, char *out, size_t size)
{
    while (number % units->factor != 0)
        units++;
    if (number == 0)
        snprintf(out, size, "0");
    else
        snprintf(out, size, "%llu%s", (unsigned long long)(number / units->factor), units->name);
}

static void format_number(enum option_kind kind, uint64_t number, char *out, size_t size)
{
    if (kind == OPTION_SIZE)
        format_united(number, size_units, out, size);
    else if (kind == OPTION_TIME)
        format_united(number, time_units, out, size);
    else if (kind == OPTION_MODE)
        snprintf(out, size, "%04llo", (unsigned long long)number);
    else if (kind == OPTION_LEVEL)
        snprintf(out, size, "%s", levels[number].name);
    else
        snprintf(out, size, "%llu", (unsigned long long)number);
}

static bool is_text(const struct option *option)
{
    return option->kind >= OPTION_BACKEND;
}

static void *field(const struct option *option, struct config *config)
{
    return (char *)config + option->offset;
}

static const void *field_of(const struct option *option, const struct config *config)
{
    return (const char *)config + option->offset;
}

static void store_number(const struct option *option, struct config *config, uint64_t number)
{
    void *at = field(option, config);

    switch (option->kind) {
    case OPTION_SIZE:
        *(uint64_t *)at = number;
        break;
    case OPTION_TIME:
        *(int64_t *)at = (int64_t)number;
        break;
    case OPTION_LEVEL:
        *(enum log_level *)at = levels[number].level;
        break;
    default:
        *(uint32_t *)at = (uint32_t)number;
    }
}

/* Where a level stands in the list of them. */
static uint64_t level_index(enum log_level level)
{
    uint64_t i;

    for (i = 0; i < COUNT(levels) - 1 && levels[i].level != level; i++)
        ;
    return i;
}

static uint64_t load_number(const struct option *option, const struct config *config)
{
    const void *at = field_of(option, config);

    switch (option->kind) {
    case OPTION_SIZE:
        return *(const uint64_t *)at;
    case OPTION_TIME:
        return (uint64_t) * (const int64_t *)at;
    case OPTION_LEVEL:
        return level_index(*(const enum log_level *)at);
    default:
        return *(const uint32_t *)at;
    }
}

static bool __attribute__((format(printf, 2, 3))) refuse(char *why, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(why, OPTION_WHY_SIZE, format, arguments);
    va_end(arguments);
    return false;
}

/* The value is not even of its kind. */
static bool refuse_kind(const struct option *option, const char *text, char *why)
{
    return refuse(why, "\"%s\" is not %s; %s", option_show(text).text, kinds[option->kind].name,
                  kinds[option->kind].advice);
}

static bool set_number(const struct option *option, struct config *config, const char *text,
                       char *why)
{
    char low[32], high[32];
    uint64_t number;

    if (!parse_number(option->kind, text, &number))
        return refuse_kind(option, text, why);
    if (number < option->min || number > option->max) {
        format_number(option->kind, option->min, low, sizeof(low));
        format_number(option->kind, option->max, high, sizeof(high));
        return refuse(why, "\"%s\" is out of range; write %s to %s", option_show(text).text, low,
                      high);
    }
    store_number(option, config, number);
    return true;
}

/* Whether a file can say it: one line, nothing to trim at its ends or that begins a comment. */
static bool is_writable(const char *text)
{
    bool after_space = true;

    if (text[0] == ' ')
        return false;
    for (const char *at = text; *at != '\0'; at++) {
        if (iscntrl((unsigned char)*at) || (after_space && (*at == ';' || *at == '#')))
            return false;
        after_space = *at == ' ';
    }
    return text[0] == '\0' || !after_space;
}

static bool check_length(const struct option *option, const char *text, char *why)
{
    size_t length = strlen(text);

    if (length < option->min)
        return refuse(why, "there is no value; write %s, or leave the option out",
                      kinds[option->kind].name);
    if (length > option->max)
        return refuse(why, "\"%s\" is too long, %zu bytes; write at most %llu",
                      option_show(text).text, length, (unsigned long long)option->max);
    return true;
}

static bool check_path(const struct option *option, const char *text, char *why)
{
    if (text[0] != '/')
        return refuse_kind(option, text, why);
    if (option->kind == OPTION_SOCKET && text[strlen(text) - 1] == '/')
        return refuse(why, "\"%s\" is a folder; write the path of a socket in it",
                      option_show(text).text);
    if (option->kind == OPTION_READABLE && access(text, R_OK) != 0)
        return refuse(why, "\"%s\" can't be read: %s; name a file that the daemon's user may read",
                      option_show(text).text, strerror(errno));
    return true;
}

static bool check_text(const struct option *option, const char *text, char *why)
{
    if (!check_length(option, text, why))
        return false;
    if (!is_writable(text))
        return refuse(why,
                      "\"%s\" can't stand in a file; write no control characters, no space at its "
                      "ends, and no ; or # at its beginning or after a space",
                      option_show(text).text);
    if (option->kind == OPTION_BACKEND && store_find(text) == NULL)
        return refuse(why, "\"%s\" is not a backend; write one of %s", option_show(text).text,
                      store_names());
    return text[0] == '\0' || option->kind < OPTION_PATH || check_path(option, text, why);
}

static bool set_text(const struct option *option, struct config *config, const char *text,
                     char *why)
{
    char *copy;

    if (!check_text(option, text, why))
        return false;
    copy = strdup(text);
    if (copy == NULL)
        return refuse(why, "there is not enough memory");
    option_clear(option, config);
    *(char **)field(option, config) = copy;
    return true;
}

bool option_set(const struct option *option, struct config *config, const char *text, char *why)
{
    return is_text(option) ? set_text(option, config, text, why)
                           : set_number(option, config, text, why);
}

void option_clear(const struct option *option, struct config *config)
{
    if (!is_text(option))
        return;
    free(*(char **)field(option, config));
    *(char **)field(option, config) = NULL;
}

void option_format(const struct option *option, const struct config *config, char *out)
{
    if (is_text(option))
        snprintf(out, OPTION_VALUE_SIZE, "%s", *(char *const *)field_of(option, config));
    else
        format_number(option->kind, load_number(option, config), out, OPTION_VALUE_SIZE);
}
