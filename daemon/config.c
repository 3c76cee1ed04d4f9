#include "config.h"

#include "store/store.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <pwd.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SYSTEM_FILE   "/etc/liara-cached.conf"
#define FILE_MAX      (1024 * 1024)
#define LINE_MAX_SIZE 4608 /* a path of PATH_MAX bytes and its key */
#define PIECE_MAX     180  /* of a line, as libinih takes it: it was built for lines of 200 bytes */
#define PIECE_MIN     90
#define NAME_MAX_SIZE 64
#define COMPLAINTS    100 /* after which a file is not read any further */

#define K          ((uint64_t)1024)
#define M          (1024 * K)
#define G          (1024 * M)
#define T          (1024 * G)
#define SECOND     ((uint64_t)1000)
#define DAY        (24 * 3600 * SECOND)
#define YEAR       (365 * DAY)
#define SOCKET_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

enum kind { SIZE, COUNT, DURATION, MODE, LEVEL, BACKEND, TEXT, PATH, READABLE };

/* Computes a default that depends on who runs the daemon; *note says from what. False: none known.
 */
typedef bool computed_default(char *out, size_t size, const char **note);

static computed_default default_socket, default_socket_mode, default_directory;

/* Numbers are bounded by min and max, text by its length in bytes. */
struct option {
    const char *name;
    enum kind kind;
    size_t offset;
    const char *fallback;      /* the default as a file would have it */
    computed_default *compute; /* or where it comes from; fallback is then what --help shows */
    uint64_t min, max;
    bool live; /* may change while the daemon runs */
    const char *help;
};

#define AT(field) offsetof(struct config, field)

static const struct option options[] = {
    {"socket", PATH, AT(socket), "$XDG_RUNTIME_DIR/liara-cached/socket", default_socket, 1,
     SOCKET_MAX, false, "where clients connect"},
    {"socket-mode", MODE, AT(socket_mode), "0600, the system's 0660", default_socket_mode, 0, 0777,
     false, "permissions of the socket, octal"},
    {"backend", BACKEND, AT(backend), "sqlite", NULL, 1, 32, false, "where values are kept"},
    {"directory", PATH, AT(directory), "$XDG_CACHE_HOME/liara-cached", default_directory, 1, 4000,
     false, "of the backends that keep files"},
    {"max-size", SIZE, AT(max_size), "5G", NULL, 4 * K, 1024 * T, true,
     "bytes in the store; the backend makes room beyond them"},
    {"max-value-size", SIZE, AT(max_value_size), "512M", NULL, 1, 4095 * M, true,
     "bytes of one value"},
    {"max-inflight", SIZE, AT(max_inflight), "2G", NULL, 64 * K, 1024 * T, true,
     "bytes of values in memory on their way, all connections together"},
    {"max-inflight-per-connection", SIZE, AT(max_inflight_per_connection), "0", NULL, 0, 1024 * T,
     true, "the same of one connection; 0: as max-value-size"},
    {"max-unread", SIZE, AT(max_unread), "1M", NULL, 1 * K, 4 * G, true,
     "reply bytes a client may leave unread before its next request waits"},
    {"workers", COUNT, AT(workers), "0", NULL, 0, 64, false,
     "threads that serve connections; 0: as many as processors, at most 4"},
    {"max-connections", COUNT, AT(max_connections), "4096", NULL, 1, 1000000, true,
     "clients at the same time"},
    {"max-leases", COUNT, AT(max_leases), "1024", NULL, 1, 1000000, true,
     "leases that one connection may hold"},
    {"idle-timeout", DURATION, AT(idle_timeout), "10m", NULL, 0, 10 * YEAR, true,
     "how long a connection may ask nothing; 0: for ever"},
    {"request-timeout", DURATION, AT(request_timeout), "30s", NULL, 0, 10 * YEAR, true,
     "how long a client may pause inside a request or reply; 0: for ever"},
    {"stop-timeout", DURATION, AT(stop_timeout), "5s", NULL, 1, DAY, true,
     "how long pending requests may take when the daemon stops"},
    {"log-level", LEVEL, AT(log_level), "info", NULL, 0, 0, true, "error, warning, info or debug"},
    {"redis-host", TEXT, AT(redis_host), "127.0.0.1", NULL, 1, 255, false,
     "the Redis server's name or address"},
    {"redis-port", COUNT, AT(redis_port), "6379", NULL, 1, 65535, false, "its port"},
    {"redis-socket", PATH, AT(redis_socket), "", NULL, 0, SOCKET_MAX, false,
     "its Unix socket; used instead of host and port"},
    {"redis-database", COUNT, AT(redis_database), "0", NULL, 0, INT32_MAX, false,
     "the number of its database"},
    {"redis-password-file", READABLE, AT(redis_password_file), "", NULL, 0, 4000, false,
     "a file whose first line is its password"},
    {"redis-prefix", TEXT, AT(redis_prefix), "liara/", NULL, 0, 255, false,
     "what all keys in it begin with"},
    {"redis-expiration", DURATION, AT(redis_expiration), "1h", NULL, 0, 10 * YEAR, false,
     "life of an entry that has none of its own; 0: for ever"},
};

#define OPTIONS (sizeof(options) / sizeof(options[0]))

/* What a value of each kind is called, how it is to be written, and how --help names it. */
static const struct {
    const char *name, *advice, *argument;
} kinds[] = {
    [SIZE] = {"a size", "write bytes with an optional K, M, G or T, as 5G", "SIZE"},
    [COUNT] = {"a number", "write decimal digits alone, as 1024", "NUMBER"},
    [DURATION] = {"a time", "write seconds, or a number with ms, s, m, h or d, as 10m", "TIME"},
    [MODE] = {"a mode", "write three or four octal digits, as 0660", "MODE"},
    [LEVEL] = {"a level", "write error, warning, info or debug", "LEVEL"},
    [BACKEND] = {"a backend", NULL, "NAME"},
    [TEXT] = {"a text", NULL, "TEXT"},
    [PATH] = {"an absolute path", "write the whole path, from /", "PATH"},
    [READABLE] = {"an absolute path", "write the whole path, from /", "PATH"},
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

/* What the command line knows beside the options; none takes a value but config. */
static const struct {
    const char *name;
    enum config_action action;
    const char *help;
} actions[] = {
    {"check-config", CONFIG_CHECK, "read the configuration, say what is wrong, end"},
    {"print-config", CONFIG_PRINT, "print all values and where each came from, end"},
    {"version", CONFIG_VERSION, "print the version, end"},
    {"help", CONFIG_HELP, "print this, end"},
};

#define ACTIONS (sizeof(actions) / sizeof(actions[0]))
#define LEVELS  (sizeof(levels) / sizeof(levels[0]))

/* Where a value came from. */
struct origin {
    enum { FROM_NOWHERE, FROM_DEFAULT, FROM_FILE, FROM_COMMAND_LINE } from;
    unsigned line;
    const char *note; /* of a default; static */
};

/* What config_load() really returns: the struct that everybody sees, and its origins behind it. */
struct loaded {
    struct config config;
    struct origin origins[OPTIONS];
};

struct loader {
    struct loaded *loaded;
    FILE *err;
    struct origin place; /* of what is being read */
    unsigned complaints;
};

static const char *file_name(const struct loader *loader)
{
    return loader->loaded->config.config;
}

/* Prints a complaint about an option, or about the place itself where name is NULL. */
static void __attribute__((format(printf, 3, 4)))
complain(struct loader *loader, const char *name, const char *format, ...)
{
    va_list arguments;

    loader->complaints++;
    if (loader->place.from == FROM_FILE) {
        fprintf(loader->err, "%s:", file_name(loader));
        if (loader->place.line != 0)
            fprintf(loader->err, "%u:", loader->place.line);
        fputc(' ', loader->err);
    }
    if (name != NULL && loader->place.from == FROM_COMMAND_LINE)
        fprintf(loader->err, "--%s: ", name);
    else if (name != NULL)
        fprintf(loader->err, "option '%s': ", name);
    va_start(arguments, format);
    vfprintf(loader->err, format, arguments);
    va_end(arguments);
    fputc('\n', loader->err);
}

static void complain_memory(struct loader *loader)
{
    complain(loader, NULL, "there is not enough memory to read the configuration");
}

/* Text from outside as it may be shown in a complaint: short, and without what moves a cursor. */
struct shown {
    char text[84];
};

static struct shown show(const char *text)
{
    struct shown shown;
    size_t i;

    for (i = 0; i < sizeof(shown.text) - 4 && text[i] != '\0'; i++)
        shown.text[i] = iscntrl((unsigned char)text[i]) ? '?' : text[i];
    strcpy(shown.text + i, text[i] == '\0' ? "" : "...");
    return shown;
}

/* Numbers and their units. */

struct unit {
    const char *name;
    uint64_t factor;
};

/* The first that divides a number is how it is printed. */
static const struct unit size_units[] = {
    {"T", T},   {"G", G},   {"M", M},   {"K", K},   {"", 1},   {"B", 1},
    {"TiB", T}, {"GiB", G}, {"MiB", M}, {"KiB", K}, {"TB", T}, {"GB", G},
    {"MB", M},  {"KB", K},  {"t", T},   {"g", G},   {"m", M},  {"k", K},
};
static const struct unit time_units[] = {
    {"d", DAY}, {"h", 3600 * SECOND}, {"m", 60 * SECOND}, {"s", SECOND}, {"ms", 1}, {"", SECOND},
};

#define SIZE_UNITS (sizeof(size_units) / sizeof(size_units[0]))
#define TIME_UNITS (sizeof(time_units) / sizeof(time_units[0]))

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
    for (size_t i = 0; i < LEVELS; i++) {
        if (strcmp(text, levels[i].name) == 0) {
            *number = i;
            return true;
        }
    }
    return false;
}

static bool parse_number(enum kind kind, const char *text, uint64_t *number)
{
    switch (kind) {
    case SIZE:
        return parse_united(text, size_units, SIZE_UNITS, number);
    case DURATION:
        return parse_united(text, time_units, TIME_UNITS, number);
    case MODE:
        return parse_plain(text, 8, number) && strlen(text) >= 3 && strlen(text) <= 4;
    case LEVEL:
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

static void format_number(enum kind kind, uint64_t number, char *out, size_t size)
{
    if (kind == SIZE)
        format_united(number, size_units, out, size);
    else if (kind == DURATION)
        format_united(number, time_units, out, size);
    else if (kind == MODE)
        snprintf(out, size, "%04llo", (unsigned long long)number);
    else if (kind == LEVEL)
        snprintf(out, size, "%s", levels[number].name);
    else
        snprintf(out, size, "%llu", (unsigned long long)number);
}

/* The fields of the struct. */

static bool is_text(enum kind kind)
{
    return kind >= BACKEND;
}

static char **text_field(const struct config *config, const struct option *option)
{
    return (char **)((uintptr_t)config + option->offset);
}

static void store_number(struct config *config, const struct option *option, uint64_t number)
{
    void *field = (char *)config + option->offset;

    switch (option->kind) {
    case SIZE:
        *(uint64_t *)field = number;
        break;
    case DURATION:
        *(int64_t *)field = (int64_t)number;
        break;
    case LEVEL:
        *(enum log_level *)field = levels[number].level;
        break;
    default:
        *(uint32_t *)field = (uint32_t)number;
    }
}

static uint64_t load_level(enum log_level level)
{
    uint64_t i;

    for (i = 0; i < LEVELS - 1 && levels[i].level != level; i++)
        ;
    return i;
}

static uint64_t load_number(const struct config *config, const struct option *option)
{
    const void *field = (const char *)config + option->offset;

    switch (option->kind) {
    case SIZE:
        return *(const uint64_t *)field;
    case DURATION:
        return (uint64_t) * (const int64_t *)field;
    case LEVEL:
        return load_level(*(const enum log_level *)field);
    default:
        return *(const uint32_t *)field;
    }
}

/* Setting an option from text. */

static bool set_number(struct loader *loader, const struct option *option, const char *text)
{
    char low[32], high[32];
    uint64_t number;

    if (!parse_number(option->kind, text, &number)) {
        complain(loader, option->name, "\"%s\" is not %s; %s", show(text).text,
                 kinds[option->kind].name, kinds[option->kind].advice);
        return false;
    }
    if (option->kind != LEVEL && (number < option->min || number > option->max)) {
        format_number(option->kind, option->min, low, sizeof(low));
        format_number(option->kind, option->max, high, sizeof(high));
        complain(loader, option->name, "\"%s\" is out of range; write %s to %s", show(text).text,
                 low, high);
        return false;
    }
    store_number(&loader->loaded->config, option, number);
    return true;
}

/* Whether a file can say it: one line, not trimmed at its ends, and nothing that begins a comment.
 */
static bool is_writable_text(const char *text)
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

static bool check_path(struct loader *loader, const struct option *option, const char *text)
{
    if (text[0] != '/') {
        complain(loader, option->name, "\"%s\" is not %s; %s", show(text).text,
                 kinds[option->kind].name, kinds[option->kind].advice);
        return false;
    }
    if (option->max == SOCKET_MAX && text[strlen(text) - 1] == '/') {
        complain(loader, option->name, "\"%s\" is a folder; write the path of a socket in it",
                 show(text).text);
        return false;
    }
    if (option->kind == READABLE && access(text, R_OK) != 0) {
        complain(loader, option->name,
                 "\"%s\" can't be read: %s; name a file that the daemon's user may read",
                 show(text).text, strerror(errno));
        return false;
    }
    return true;
}

static bool check_backend(struct loader *loader, const struct option *option, const char *text)
{
    if (store_find(text) != NULL)
        return true;
    complain(loader, option->name, "\"%s\" is not a backend; write one of %s", show(text).text,
             store_names());
    return false;
}

static bool check_text(struct loader *loader, const struct option *option, const char *text)
{
    if (strlen(text) < option->min) {
        complain(loader, option->name, "there is no value; write %s, or leave the option out",
                 kinds[option->kind].name);
        return false;
    }
    if (strlen(text) > option->max) {
        complain(loader, option->name, "\"%s\" is too long, %zu bytes; write at most %llu",
                 show(text).text, strlen(text), (unsigned long long)option->max);
        return false;
    }
    if (!is_writable_text(text)) {
        complain(loader, option->name,
                 "\"%s\" can't stand in a file; write no control characters, no space at its ends, "
                 "and no ; or # at its beginning or after a space",
                 show(text).text);
        return false;
    }
    if (option->kind == BACKEND)
        return check_backend(loader, option, text);
    if (text[0] != '\0' && (option->kind == PATH || option->kind == READABLE))
        return check_path(loader, option, text);
    return true;
}

static bool set_text(struct loader *loader, const struct option *option, const char *text)
{
    char **field = text_field(&loader->loaded->config, option);
    char *copy;

    if (!check_text(loader, option, text))
        return false;
    copy = strdup(text);
    if (copy == NULL) {
        complain_memory(loader);
        return false;
    }
    free(*field);
    *field = copy;
    return true;
}

static bool set_option(struct loader *loader, const struct option *option, const char *text)
{
    loader->loaded->origins[option - options] = loader->place;
    return is_text(option->kind) ? set_text(loader, option, text)
                                 : set_number(loader, option, text);
}

/* Names, and what may have been meant by one that is not there. */

static const struct option *find_option(const char *name)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        if (strcmp(name, options[i].name) == 0)
            return &options[i];
    }
    return NULL;
}

static unsigned smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* Letters to add, drop or change until one word is the other (Levenshtein). */
static unsigned distance(const char *from, const char *to)
{
    unsigned row[NAME_MAX_SIZE + 1];
    size_t length = strlen(to);

    for (unsigned j = 0; j <= length; j++)
        row[j] = j;
    for (unsigned i = 1; from[i - 1] != '\0'; i++) {
        unsigned diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= length; j++) {
            unsigned above = row[j];
            unsigned change = diagonal + (from[i - 1] != to[j - 1]);

            row[j] = smaller(change, smaller(above, row[j - 1]) + 1);
            diagonal = above;
        }
    }
    return row[length];
}

/* The option with the nearest name, or NULL where none is near. */
static const char *nearest(const char *name)
{
    unsigned best = smaller(3, (unsigned)strlen(name) / 2) + 1;
    const char *found = NULL;

    for (size_t i = 0; i < OPTIONS; i++) {
        unsigned d = distance(name, options[i].name);

        if (d < best) {
            best = d;
            found = options[i].name;
        }
    }
    return found;
}

static void complain_unknown(struct loader *loader, const char *name)
{
    const char *dashes = loader->place.from == FROM_COMMAND_LINE ? "--" : "";
    const char *meant = nearest(name);

    if (meant != NULL)
        complain(loader, NULL, "there is no option '%s%s'; did you mean '%s%s'?", dashes,
                 show(name).text, dashes, meant);
    else
        complain(loader, NULL, "there is no option '%s%s'; --help lists them", dashes,
                 show(name).text);
}

/* The file. */

/* One line as libinih has taken it apart; a value comes in as many pieces as fold_line() made. */
struct assignment {
    char name[NAME_MAX_SIZE];
    char value[LINE_MAX_SIZE];
    size_t length;
    bool found;
};

static int take_piece(void *user, const char *section, const char *name, const char *value)
{
    struct assignment *assignment = user;
    size_t length = strnlen(value, sizeof(assignment->value) - assignment->length - 1);

    (void)section;
    if (!assignment->found)
        snprintf(assignment->name, sizeof(assignment->name), "%s", name);
    assignment->found = true;
    memcpy(assignment->value + assignment->length, value, length);
    assignment->length += length;
    assignment->value[assignment->length] = '\0';
    return 1;
}

/* Whether libinih gives back unchanged what was parted before at: it trims pieces. */
static bool may_part(const char *line, size_t at)
{
    return strchr(" \t;#", line[at - 1]) == NULL && strchr(" \t;#", line[at]) == NULL;
}

/*
 * Writes the line in pieces that fit libinih's buffer, each after the first as a continuation.
 * False where there is no place to part it.
 */
static bool fold_line(const char *line, char *out, size_t size)
{
    size_t length = strlen(line), used = 0;

    while (length > PIECE_MAX) {
        size_t cut = PIECE_MAX;

        while (cut > PIECE_MIN && !may_part(line, cut))
            cut--;
        if (cut == PIECE_MIN || used + cut + 3 > size)
            return false;
        memcpy(out + used, line, cut);
        memcpy(out + used + cut, "\n ", 2);
        used += cut + 2;
        line += cut;
        length -= cut;
    }
    if (used + length + 1 > size)
        return false;
    memcpy(out + used, line, length + 1);
    return true;
}

/* Ends the line where a comment begins: at # or ;, first in the line or after a space. */
static void cut_comment(char *line)
{
    bool after_space = true;

    for (char *at = line; *at != '\0'; at++) {
        if (after_space && (*at == '#' || *at == ';')) {
            *at = '\0';
            return;
        }
        after_space = *at == ' ' || *at == '\t';
    }
}

/* Between the white space at both ends. */
static char *trim(char *line)
{
    size_t length;

    line += strspn(line, " \t\r\f\v");
    length = strlen(line);
    while (length > 0 && strchr(" \t\r\f\v", line[length - 1]) != NULL)
        length--;
    line[length] = '\0';
    return line;
}

static void assign(struct loader *loader, const struct assignment *assignment)
{
    const struct option *option = find_option(assignment->name);
    const struct origin *origin;

    if (option == NULL && strcmp(assignment->name, "config") == 0) {
        complain(loader, "config", "a file can't name another; write --config on the command line");
        return;
    }
    if (option == NULL) {
        complain_unknown(loader, assignment->name);
        return;
    }
    origin = &loader->loaded->origins[option - options];
    if (origin->from == FROM_FILE)
        complain(loader, option->name, "it stands in line %u already; keep one of the two",
                 origin->line);
    else
        set_option(loader, option, assignment->value);
}

static void read_line(struct loader *loader, char *line)
{
    char folded[LINE_MAX_SIZE + 256];
    struct assignment assignment = {.found = false};

    cut_comment(line);
    line = trim(line);
    if (*line == '\0')
        return;
    if (*line == '[') {
        complain(loader, NULL, "there are no sections; write the options without '%s'",
                 show(line).text);
        return;
    }
    if (strlen(line) >= LINE_MAX_SIZE || !fold_line(line, folded, sizeof(folded))) {
        complain(loader, NULL, "the line is too long; write at most %d bytes", LINE_MAX_SIZE - 1);
        return;
    }
    if (ini_parse_string(folded, take_piece, &assignment) != 0 || !assignment.found)
        complain(loader, NULL, "\"%s\" is not an option; write name = value", show(line).text);
    else
        assign(loader, &assignment);
}

/* The text ends with a newline; text[length] is writable. */
static void read_lines(struct loader *loader, char *text, size_t length)
{
    char *end = text + length;

    if (strncmp(text, "\xEF\xBB\xBF", 3) == 0)
        text += 3;
    while (text < end && loader->complaints < COMPLAINTS) {
        char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t size = (size_t)(newline - text);

        *newline = '\0';
        loader->place.line++;
        if (strlen(text) != size)
            complain(loader, NULL, "there is a zero byte in the line; write plain text");
        else
            read_line(loader, text);
        text = newline + 1;
    }
    if (loader->complaints >= COMPLAINTS)
        complain(loader, NULL, "the rest of the file was not read; mend these first");
}

static void read_stream(struct loader *loader, FILE *file)
{
    char *text = malloc(FILE_MAX + 2);
    size_t length;

    if (text == NULL) {
        complain_memory(loader);
        return;
    }
    length = fread(text, 1, FILE_MAX + 1, file);
    if (ferror(file))
        complain(loader, NULL, "the file can't be read: %s", strerror(errno));
    else if (length > FILE_MAX)
        complain(loader, NULL, "the file is larger than 1M; name a configuration file");
    else {
        text[length] = '\n';
        text[length + 1] = '\0';
        read_lines(loader, text, length + 1);
    }
    free(text);
}

/* Reads the file whose name stands in the configuration; takes the name away where it is missing.
 */
static void read_file(struct loader *loader, bool must_exist)
{
    struct config *config = &loader->loaded->config;
    FILE *file = fopen(config->config, "re");

    loader->place = (struct origin){.from = FROM_FILE};
    if (file != NULL) {
        read_stream(loader, file);
        fclose(file);
    } else if (must_exist || (errno != ENOENT && errno != ENOTDIR)) {
        complain(loader, NULL, "the file can't be opened: %s; --config names another",
                 strerror(errno));
    } else {
        free(config->config);
        config->config = NULL;
    }
}

/* Who runs the daemon, and what follows from that. */

/* An environment variable that holds an absolute path (the first of several), or NULL. */
static const char *environment_path(const char *name, char *out, size_t size)
{
    const char *value = getenv(name);
    size_t length;

    if (value == NULL || value[0] != '/')
        return NULL;
    length = strcspn(value, ":");
    if (length >= size)
        return NULL;
    memcpy(out, value, length);
    out[length] = '\0';
    return out;
}

static const char *home(char *out, size_t size)
{
    const struct passwd *user;

    if (environment_path("HOME", out, size) != NULL)
        return out;
    user = getpwuid(geteuid());
    if (user == NULL || user->pw_dir == NULL || user->pw_dir[0] != '/')
        return NULL;
    return (size_t)snprintf(out, size, "%s", user->pw_dir) < size ? out : NULL;
}

/* A service of the system has systemd's folders, but not a user's session. */
static bool is_system(void)
{
    return geteuid() == 0 || (getenv("XDG_RUNTIME_DIR") == NULL &&
                              (getenv("RUNTIME_DIRECTORY") || getenv("CACHE_DIRECTORY")));
}

static bool join(char *out, size_t size, const char *folder, const char *rest)
{
    int length = snprintf(out, size, "%s%s", folder, rest);

    return length >= 0 && (size_t)length < size;
}

static bool default_socket(char *out, size_t size, const char **note)
{
    char folder[4096];

    *note = "default in $RUNTIME_DIRECTORY";
    if (environment_path("RUNTIME_DIRECTORY", folder, sizeof(folder)) != NULL)
        return join(out, size, folder, "/socket");
    *note = "default in $XDG_RUNTIME_DIR";
    if (environment_path("XDG_RUNTIME_DIR", folder, sizeof(folder)) != NULL)
        return join(out, size, folder, "/liara-cached/socket");
    *note = "default";
    if (is_system())
        return join(out, size, "/run", "/liara-cached/socket");
    *note = "default without $XDG_RUNTIME_DIR";
    snprintf(folder, sizeof(folder), "/tmp/liara-cached-%lu", (unsigned long)geteuid());
    return join(out, size, folder, "/socket");
}

static bool default_socket_mode(char *out, size_t size, const char **note)
{
    *note = is_system() ? "default of the system's daemon" : "default";
    return join(out, size, is_system() ? "0660" : "0600", "");
}

static bool default_directory(char *out, size_t size, const char **note)
{
    char folder[4096];

    *note = "default in $CACHE_DIRECTORY";
    if (environment_path("CACHE_DIRECTORY", folder, sizeof(folder)) != NULL)
        return join(out, size, folder, "");
    *note = "default in $XDG_CACHE_HOME";
    if (environment_path("XDG_CACHE_HOME", folder, sizeof(folder)) != NULL)
        return join(out, size, folder, "/liara-cached");
    *note = "default";
    if (is_system())
        return join(out, size, "/var/cache", "/liara-cached");
    return home(folder, sizeof(folder)) != NULL && join(out, size, folder, "/.cache/liara-cached");
}

/* Where a file is looked for when none is named; root has one of its own only if it asks for it. */
static bool default_file(char *out, size_t size)
{
    char folder[4096];

    if (environment_path("XDG_CONFIG_HOME", folder, sizeof(folder)) != NULL &&
        join(out, size, folder, "/liara-cached.conf") && (!is_system() || access(out, F_OK) == 0))
        return true;
    if (is_system())
        return join(out, size, SYSTEM_FILE, "");
    return home(folder, sizeof(folder)) != NULL &&
           join(out, size, folder, "/.config/liara-cached.conf");
}

static void set_default(struct loader *loader, const struct option *option)
{
    char text[4200];
    const char *fallback = option->fallback;

    loader->place = (struct origin){.from = FROM_DEFAULT, .note = "default"};
    if (option->compute != NULL) {
        if (!option->compute(text, sizeof(text), &loader->place.note)) {
            complain(loader, option->name, "no home folder is known to hold it; write a value");
            return;
        }
        fallback = text;
    }
    set_option(loader, option, fallback);
}

static uint32_t processors(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) != 0 || CPU_COUNT(&set) < 1)
        return 1;
    return (uint32_t)CPU_COUNT(&set);
}

/* Puts the real number where 0 stands for one. */
static void resolve(struct config *config)
{
    if (config->workers == 0)
        config->workers = smaller(processors(), 4);
    if (config->max_inflight_per_connection == 0)
        config->max_inflight_per_connection = config->max_value_size;
}

/* The command line. */

struct argument {
    char name[NAME_MAX_SIZE];
    const char *value; /* NULL: none */
};

static bool find_action(const char *name, enum config_action *action)
{
    for (size_t i = 0; i < ACTIONS; i++) {
        if (strcmp(name, actions[i].name) == 0) {
            *action = actions[i].action;
            return true;
        }
    }
    return false;
}

static bool takes_value(const char *name)
{
    return find_option(name) != NULL || strcmp(name, "config") == 0;
}

/* Takes the argument at *at, and the next as its value where that stands apart. */
static void next_argument(int argc, char **argv, int *at, struct argument *argument)
{
    const char *text = argv[(*at)++];
    const char *name = strncmp(text, "--", 2) == 0 ? text + 2 : "";
    size_t length = strcspn(name, "=");

    *argument = (struct argument){.value = name[length] == '=' ? name + length + 1 : NULL};
    snprintf(argument->name, sizeof(argument->name), "%.*s", (int)smaller((unsigned)length, 200),
             name);
    if (argument->value == NULL && *at < argc && takes_value(argument->name))
        argument->value = argv[(*at)++];
}

/* The action asked for and the file named. Of several actions the one that does the least wins. */
static const char *scan_arguments(int argc, char **argv, enum config_action *action)
{
    const char *file = NULL;
    struct argument argument;

    *action = CONFIG_RUN;
    for (int at = 1; at < argc;) {
        enum config_action found;

        if (strcmp(argv[at], "-h") == 0)
            *action = CONFIG_HELP;
        next_argument(argc, argv, &at, &argument);
        if (find_action(argument.name, &found) && found > *action)
            *action = found;
        if (strcmp(argument.name, "config") == 0)
            file = argument.value;
    }
    return file;
}

static void apply_argument(struct loader *loader, const char *text, const struct argument *argument)
{
    const struct option *option = find_option(argument->name);
    enum config_action action;

    if (argument->name[0] == '\0')
        complain(loader, NULL, "'%s' is not an option; write --name=value, --help lists the names",
                 show(text).text);
    else if (find_action(argument->name, &action)) {
        if (argument->value != NULL)
            complain(loader, argument->name, "it takes no value; leave out '=%s'",
                     show(argument->value).text);
    } else if (!takes_value(argument->name))
        complain_unknown(loader, argument->name);
    else if (argument->value == NULL)
        complain(loader, argument->name, "there is no value; write --%s=VALUE", argument->name);
    else if (option != NULL)
        set_option(loader, option, argument->value);
}

static void apply_arguments(struct loader *loader, int argc, char **argv)
{
    struct argument argument;

    loader->place = (struct origin){.from = FROM_COMMAND_LINE};
    for (int at = 1; at < argc;) {
        const char *text = argv[at];

        next_argument(argc, argv, &at, &argument);
        apply_argument(loader, text, &argument);
    }
}

/* All of it together. */

static void find_file(struct loader *loader, const char *named)
{
    char path[4200];

    if (named == NULL && !default_file(path, sizeof(path)))
        return;
    loader->loaded->config.config = strdup(named != NULL ? named : path);
    if (loader->loaded->config.config == NULL)
        complain_memory(loader);
    else
        read_file(loader, named != NULL);
}

static void load_all(struct loader *loader, int argc, char **argv, const char *file)
{
    find_file(loader, file);
    apply_arguments(loader, argc, argv);
    for (size_t i = 0; i < OPTIONS; i++) {
        if (loader->loaded->origins[i].from == FROM_NOWHERE)
            set_default(loader, &options[i]);
    }
    resolve(&loader->loaded->config);
}

struct config *config_load(int argc, char **argv, enum config_action *action, FILE *err)
{
    struct loader loader = {.err = err};
    const char *file = scan_arguments(argc, argv, action);

    if (*action == CONFIG_VERSION || *action == CONFIG_HELP)
        return NULL;
    loader.loaded = calloc(1, sizeof(*loader.loaded));
    if (loader.loaded == NULL) {
        complain_memory(&loader);
        return NULL;
    }
    load_all(&loader, argc, argv, file);
    if (loader.complaints == 0)
        return &loader.loaded->config;
    config_free(&loader.loaded->config);
    return NULL;
}

void config_free(struct config *config)
{
    if (config == NULL)
        return;
    for (size_t i = 0; i < OPTIONS; i++) {
        if (is_text(options[i].kind))
            free(*text_field(config, &options[i]));
    }
    free(config->config);
    free(config);
}

static void format_value(const struct config *config, const struct option *option, char *out,
                         size_t size)
{
    if (is_text(option->kind))
        snprintf(out, size, "%s", *text_field(config, option));
    else
        format_number(option->kind, load_number(config, option), out, size);
}

void config_print(const struct config *config, FILE *out)
{
    const struct loaded *loaded = (const struct loaded *)config;
    char value[4200];

    fprintf(out, "# configuration file: %s\n", config->config != NULL ? config->config : "none");
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct origin *origin = &loaded->origins[i];

        format_value(config, &options[i], value, sizeof(value));
        fprintf(out, "%-27s = %-31s # ", options[i].name, value);
        if (origin->from == FROM_FILE)
            fprintf(out, "%s:%u\n", config->config, origin->line);
        else
            fprintf(out, "%s\n", origin->from == FROM_COMMAND_LINE ? "command line" : origin->note);
    }
}

static void help_line(FILE *out, const char *name, const char *argument, const char *help)
{
    char left[80];

    snprintf(left, sizeof(left), "--%s%s%s", name, argument[0] == '\0' ? "" : "=", argument);
    fprintf(out, "  %-36s %s", left, help);
}

void config_help(FILE *out)
{
    fputs("Usage: liara-cached [OPTION]...\n"
          "Serves a cache to the processes of this machine over a Unix socket, in the foreground.\n"
          "Each option may also stand in the configuration file, as: name = value\n\n",
          out);
    for (size_t i = 0; i < OPTIONS; i++) {
        help_line(out, options[i].name, kinds[options[i].kind].argument, options[i].help);
        if (options[i].kind == BACKEND)
            fprintf(out, ": %s", store_names());
        if (options[i].fallback[0] != '\0')
            fprintf(out, " [%s]", options[i].fallback);
        fputc('\n', out);
    }
    fputc('\n', out);
    help_line(out, "config", "FILE",
              "read this file instead of " SYSTEM_FILE " (root and the service) or "
              "$XDG_CONFIG_HOME/liara-cached.conf\n");
    for (size_t i = 0; i < ACTIONS; i++) {
        help_line(out, actions[i].name, "", actions[i].help);
        fputc('\n', out);
    }
}

void config_limits(const struct config *config, struct limits *limits)
{
    atomic_store(&limits->max_value_size, config->max_value_size);
    atomic_store(&limits->max_inflight_per_connection, config->max_inflight_per_connection);
    atomic_store(&limits->max_unread, config->max_unread);
    atomic_store(&limits->max_connections, config->max_connections);
    atomic_store(&limits->max_leases, config->max_leases);
    atomic_store(&limits->idle_timeout, config->idle_timeout);
    atomic_store(&limits->request_timeout, config->request_timeout);
}

bool config_fixed_changes(const struct config *old, const struct config *new, char *out,
                          size_t size)
{
    char before[4200], after[4200];
    size_t used = 0;

    if (size > 0)
        out[0] = '\0';
    for (size_t i = 0; i < OPTIONS; i++) {
        format_value(old, &options[i], before, sizeof(before));
        format_value(new, &options[i], after, sizeof(after));
        if (options[i].live || strcmp(before, after) == 0)
            continue;
        if (used < size)
            snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", options[i].name);
        used += strlen(options[i].name) + (used > 0 ? 2 : 0);
    }
    return used > 0;
}
