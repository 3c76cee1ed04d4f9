#include "config_file.h"

#include "option.h"

#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE_MAX = 180, /* of a line as libinih takes it: it was built for lines of 200 bytes */
    PIECE_MIN = 90,
};

static bool __attribute__((format(printf, 3, 4)))
complain(const struct config_reader *reader, unsigned line, const char *format, ...)
{
    char why[OPTION_WHY_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(why, sizeof(why), format, arguments);
    va_end(arguments);
    return reader->complaint(reader->arg, line, why);
}

/* One line as libinih has taken it apart; a value comes in as many pieces as fold_line() made. */
struct assignment {
    char name[CONFIG_NAME_SIZE];
    char value[CONFIG_LINE_MAX + 1];
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

static bool read_line(const struct config_reader *reader, unsigned number, char *line)
{
    char folded[CONFIG_LINE_MAX + 256];
    struct assignment assignment = {.found = false};

    cut_comment(line);
    line = trim(line);
    if (*line == '\0')
        return true;
    if (*line == '[')
        return complain(reader, number, "there are no sections; write the options without '%s'",
                        option_show(line).text);
    if (strlen(line) > CONFIG_LINE_MAX || !fold_line(line, folded, sizeof(folded)))
        return complain(reader, number, "the line is too long; write at most %d bytes",
                        CONFIG_LINE_MAX);
    if (ini_parse_string(folded, take_piece, &assignment) != 0 || !assignment.found)
        return complain(reader, number, "\"%s\" is not an option; write name = value",
                        option_show(line).text);
    return reader->option(reader->arg, number, assignment.name, assignment.value);
}

/* The text ends with a newline. */
static bool read_lines(const struct config_reader *reader, char *text, size_t length)
{
    const char *end = text + length;
    bool wanted = true;

    if (strncmp(text, "\xEF\xBB\xBF", 3) == 0)
        text += 3;
    for (unsigned number = 1; text < end && wanted; number++) {
        char *newline = memchr(text, '\n', (size_t)(end - text));

        *newline = '\0';
        if (strlen(text) != (size_t)(newline - text))
            wanted = complain(reader, number, "there is a zero byte in the line; write plain text");
        else
            wanted = read_line(reader, number, text);
        text = newline + 1;
    }
    return wanted;
}

bool config_file_read(FILE *file, const struct config_reader *reader)
{
    char *text = malloc(CONFIG_FILE_MAX + 2);
    size_t length;
    bool wanted;

    if (text == NULL)
        return complain(reader, 0, "there is not enough memory to read the file");
    length = fread(text, 1, CONFIG_FILE_MAX + 1, file);
    if (ferror(file))
        wanted = complain(reader, 0, "the file can't be read: %s", strerror(errno));
    else if (length > CONFIG_FILE_MAX)
        wanted = complain(reader, 0, "the file is larger than 1M; name a configuration file");
    else {
        memcpy(text + length, "\n", 2);
        wanted = read_lines(reader, text, length + 1);
    }
    free(text);
    return wanted;
}
