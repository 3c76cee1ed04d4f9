#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum kind { KIND_TEXT, KIND_NUMBER, KIND_OPTIONAL_NUMBER, KIND_SWITCH };

struct rule {
    char letter;
    bool is_short; /* -x besides --name */
    enum kind kind;
    size_t offset; /* in struct arguments */
    uint32_t least;
    const char *name, *value, *text;
};

#define IN(MEMBER) offsetof(struct arguments, MEMBER)

/* Those with an upper-case letter belong to some commands only. */
static const struct rule rules[] = {
    {'s', true, KIND_TEXT, IN(socket), 0, "socket", "PATH", "the daemon's socket"},
    {'p', true, KIND_TEXT, IN(prefix), 0, "prefix", "PREFIX", "what all keys begin with"},
    {'t', false, KIND_NUMBER, IN(timeout), 1, "timeout", "SECONDS", "wait so long for the daemon"},
    {'h', true, KIND_SWITCH, IN(help), 0, "help", NULL, "this text"},
    {'v', false, KIND_SWITCH, IN(version), 0, "version", NULL, "the version"},
    {'O', false, KIND_TEXT, IN(output), 0, "output", "FILE",
     "get: write FILE, whole or not at all"},
    {'D', false, KIND_SWITCH, IN(no_descriptor), 0, "no-descriptor", NULL,
     "get: large values through the socket too"},
    {'T', false, KIND_NUMBER, IN(ttl), 0, "ttl", "SECONDS", "put, memo: the value's time to live"},
    {'F', false, KIND_NUMBER, IN(flags), 0, "flags", "N", "put: a number kept with the value"},
    {'C', false, KIND_OPTIONAL_NUMBER, IN(cost), 0, "cost", "MS",
     "put: milliseconds that the value took to compute"},
    {'W', false, KIND_SWITCH, IN(overwrite), 0, "overwrite", NULL, "put: replace what is there"},
    {'J', false, KIND_SWITCH, IN(json), 0, "json", NULL, "inspect: as a JSON object"},
    {'L', false, KIND_NUMBER, IN(lease), 1, "lease", "SECONDS",
     "memo: others wait so long for COMMAND (600)"},
    {'V', false, KIND_SWITCH, IN(verbose), 0, "verbose", NULL, "memo: say what was done"},
};
enum { RULES = sizeof(rules) / sizeof(rules[0]) };

/* -o is --output: its letter in the table is upper-case like those of all commands' own options. */
static const char short_options[] = "+:s:p:ho:";

static const struct rule *find_rule(int letter)
{
    for (size_t i = 0; i < RULES; i++)
        if (rules[i].letter == letter || (letter == 'o' && rules[i].letter == 'O'))
            return &rules[i];
    return NULL;
}

static void long_options(struct option out[RULES + 1])
{
    for (size_t i = 0; i < RULES; i++)
        out[i] =
            (struct option){rules[i].name, rules[i].kind != KIND_SWITCH, NULL, rules[i].letter};
    out[RULES] = (struct option){NULL, 0, NULL, 0};
}

static bool set_number(const struct rule *rule, const char *text, uint32_t *number)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value > UINT32_MAX ||
        value < rule->least) {
        complain("--%s takes a number from %u to %u, not '%s'", rule->name, rule->least, UINT32_MAX,
                 text);
        return false;
    }
    *number = (uint32_t)value;
    return true;
}

static bool set_option(const struct rule *rule, const char *text, struct arguments *arguments)
{
    void *field = (char *)arguments + rule->offset;
    switch (rule->kind) {
    case KIND_TEXT:
        *(const char **)field = text;
        return true;
    case KIND_NUMBER:
        return set_number(rule, text, field);
    case KIND_OPTIONAL_NUMBER:
        ((struct optional_number *)field)->is_given = true;
        return set_number(rule, text, &((struct optional_number *)field)->number);
    case KIND_SWITCH:
        *(bool *)field = true;
        return true;
    }
    return false;
}

static bool belongs(const struct rule *rule, const struct command *command)
{
    bool everywhere = rule->letter >= 'a';
    return everywhere || (command && strchr(command->takes, rule->letter));
}

/* Options up to the first word (command NULL) or, behind the command's name, among the words. */
static bool read_options(int argc, char **argv, const struct command *command,
                         struct arguments *arguments)
{
    struct option table[RULES + 1];
    int letter;
    long_options(table);
    opterr = 0;
    optind = 0;
    while ((letter = getopt_long(argc, argv, short_options + (command ? 1 : 0), table, NULL)) !=
           -1) {
        const char *given = argv[optind - 1];
        const struct rule *rule = find_rule(letter);
        if (!rule && letter == ':') {
            complain("%s needs a value; see --help", given);
            return false;
        }
        if (!rule) {
            complain("there is no option %s; see --help", given);
            return false;
        }
        if (!belongs(rule, command)) {
            complain("%s takes no --%s; see --help",
                     command ? command->name : "what stands before a command", rule->name);
            return false;
        }
        if (!set_option(rule, optarg, arguments))
            return false;
    }
    return true;
}

static const struct command *find_command(const char *name)
{
    for (const struct command *command = commands; command->name; command++)
        if (strcmp(command->name, name) == 0)
            return command;
    return NULL;
}

/* Ends argv at "--", behind which is memo's COMMAND with options of its own. */
static int split_command(int argc, char **argv, struct arguments *arguments)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--") != 0)
            continue;
        arguments->run = argv + i + 1;
        return i;
    }
    return argc;
}

static bool check_words(const struct command *command, const struct arguments *arguments)
{
    if (arguments->count < command->least || arguments->count > command->most) {
        complain("right would be: %s%s%s", command->name, command->usage[0] ? " " : "",
                 command->usage);
        return false;
    }
    if (arguments->count > 0 && arguments->words[0][0] == '\0') {
        complain("a key has at least one byte");
        return false;
    }
    return true;
}

bool options_read(int argc, char **argv, struct arguments *arguments,
                  const struct command **command)
{
    memset(arguments, 0, sizeof(*arguments));
    *command = NULL;
    if (!read_options(argc, argv, NULL, arguments))
        return false;
    if (arguments->help || arguments->version)
        return true;
    argc -= optind;
    argv += optind;
    if (argc == 0) {
        complain("what is to be done? See --help");
        return false;
    }
    const struct command *found = find_command(argv[0]);
    if (!found) {
        complain("there is no command '%s'; see --help", argv[0]);
        return false;
    }
    if (found->alone)
        argc = split_command(argc, argv, arguments);
    if (!read_options(argc, argv, found, arguments))
        return false;
    arguments->count = argc - optind;
    arguments->words = argv + optind;
    if (arguments->help || arguments->version)
        return true;
    *command = found;
    return check_words(found, arguments);
}

static void help_option(FILE *out, const struct rule *rule)
{
    char left[64];
    int letter = rule->letter == 'O' ? 'o' : rule->letter;
    bool is_short = rule->is_short || letter == 'o';
    snprintf(left, sizeof(left), "%c%c%s --%s%s%s", is_short ? '-' : ' ', is_short ? letter : ' ',
             is_short ? "," : " ", rule->name, rule->value ? " " : "",
             rule->value ? rule->value : "");
    fprintf(out, "  %-24s %s\n", left, rule->text);
}

void options_help(FILE *out)
{
    fputs("liara-cache-cli [OPTION]... COMMAND [OPTION]... - asks liara-cached, the cache of this "
          "machine\n\n",
          out);
    for (const struct command *command = commands; command->name; command++) {
        char left[64];
        snprintf(left, sizeof(left), "%s %s", command->name, command->usage);
        fprintf(out, "  %-36s %s\n", left, command->text);
    }
    fputc('\n', out);
    for (size_t i = 0; i < RULES; i++)
        help_option(out, &rules[i]);
    fputs("\nThe socket is that of --socket, LIARA_CACHE_SOCKET, the user's own daemon or the "
          "system's.\n"
          "Ends with 0: done, a hit; 1: a miss, already present; 2: wrong usage; 3: no daemon "
          "answers;\n"
          "4: the daemon refused; 5: a file can't be read or written. memo: with COMMAND's "
          "status.\n",
          out);
}
