#include "config.h"

#include "config_file.h"
#include "config_place.h"
#include "option.h"
#include "store/store.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define K          ((uint64_t)1024)
#define M          (1024 * K)
#define G          (1024 * M)
#define T          (1024 * G)
#define DAY        ((uint64_t)24 * 3600 * 1000)
#define YEAR       (365 * DAY)
#define SOCKET_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

enum { COMPLAINTS = 100 }; /* after which a file is not read any further */

#define AT(field) offsetof(struct config, field)

/* name, kind, field, least, most, may change while running, default, what computes it, help */
static const struct option options[] = {
    {"socket", OPTION_SOCKET, AT(socket), 1, SOCKET_MAX, false,
     "$XDG_RUNTIME_DIR/liara-cached/socket", config_place_socket, "where clients connect"},
    {"socket-mode", OPTION_MODE, AT(socket_mode), 0, 0777, false, "0600, the system's 0660",
     config_place_socket_mode, "permissions of the socket, octal"},
    {"backend", OPTION_BACKEND, AT(backend), 1, 32, false, "sqlite", NULL, "where values are kept"},
    {"directory", OPTION_PATH, AT(directory), 1, OPTION_PATH_MAX, false,
     "$XDG_CACHE_HOME/liara-cached", config_place_directory, "of the backends that keep files"},
    {"max-size", OPTION_SIZE, AT(max_size), 4 * K, 1024 * T, true, "5G", NULL,
     "bytes in the store; the backend makes room beyond them"},
    {"memory-size", OPTION_SIZE, AT(memory_size), 0, 1024 * T, false, "256M", NULL,
     "bytes of memory of a backend that keeps values elsewhere"},
    {"max-value-size", OPTION_SIZE, AT(max_value_size), 1, 4095 * M, true, "512M", NULL,
     "bytes of one value"},
    {"max-inflight", OPTION_SIZE, AT(max_inflight), 64 * K, 1024 * T, true, "2G", NULL,
     "bytes of values in memory on their way, all connections together"},
    {"max-inflight-per-connection", OPTION_SIZE, AT(max_inflight_per_connection), 0, 1024 * T, true,
     "0", NULL, "the same of one connection; 0: as max-value-size"},
    {"max-unread", OPTION_SIZE, AT(max_unread), 1 * K, 4 * G, true, "1M", NULL,
     "reply bytes a client may leave unread before its next request waits"},
    {"workers", OPTION_NUMBER, AT(workers), 0, 64, false, "0", NULL,
     "threads that serve connections; 0: one for every 4 processors, at most 4"},
    {"busy-poll", OPTION_NUMBER, AT(busy_poll), 0, 1000, false, "50", NULL,
     "microseconds a worker looks for work before it sleeps, where that pays; 0: never"},
    {"max-connections", OPTION_NUMBER, AT(max_connections), 1, 1000000, true, "4096", NULL,
     "clients at the same time"},
    {"max-leases", OPTION_NUMBER, AT(max_leases), 1, 1000000, true, "1024", NULL,
     "leases that one connection may hold"},
    {"idle-timeout", OPTION_TIME, AT(idle_timeout), 0, 10 * YEAR, true, "10m", NULL,
     "how long a connection may ask nothing; 0: for ever"},
    {"request-timeout", OPTION_TIME, AT(request_timeout), 0, 10 * YEAR, true, "30s", NULL,
     "how long a client may pause inside a request or reply; 0: for ever"},
    {"stop-timeout", OPTION_TIME, AT(stop_timeout), 1, DAY, true, "5s", NULL,
     "how long pending requests may take when the daemon stops"},
    {"log-level", OPTION_LEVEL, AT(log_level), 0, UINT64_MAX, true, "info", NULL,
     "error, warning, info or debug"},
    {"redis-host", OPTION_TEXT, AT(redis_host), 1, 255, false, "127.0.0.1", NULL,
     "the Redis server's name or address"},
    {"redis-port", OPTION_NUMBER, AT(redis_port), 1, 65535, false, "6379", NULL, "its port"},
    {"redis-socket", OPTION_SOCKET, AT(redis_socket), 0, SOCKET_MAX, false, "", NULL,
     "its Unix socket; used instead of host and port"},
    {"redis-database", OPTION_NUMBER, AT(redis_database), 0, INT32_MAX, false, "0", NULL,
     "the number of its database"},
    {"redis-password-file", OPTION_READABLE, AT(redis_password_file), 0, OPTION_PATH_MAX, false, "",
     NULL, "a file whose first line is its password"},
    {"redis-prefix", OPTION_TEXT, AT(redis_prefix), 0, 255, false, "liara/", NULL,
     "what all keys in it begin with"},
    {"redis-expiration", OPTION_TIME, AT(redis_expiration), 0, 10 * YEAR, false, "1h", NULL,
     "life of an entry that has none of its own; 0: for ever"},
    {"redis-timeout", OPTION_TIME, AT(redis_timeout), 1, DAY, false, "1s", NULL,
     "how long an answer of it may take"},
    {"redis-connect-timeout", OPTION_TIME, AT(redis_connect_timeout), 1, DAY, false, "100ms", NULL,
     "how long a request waits for a connection to it"},
};

enum { OPTIONS = sizeof(options) / sizeof(options[0]) };

/* What the command line knows beside the options and --config; none takes a value. */
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

enum { ACTIONS = sizeof(actions) / sizeof(actions[0]) };

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

/* Prints a complaint about an option, or about the place itself where name is NULL. */
static void __attribute__((format(printf, 3, 4)))
complain(struct loader *loader, const char *name, const char *format, ...)
{
    va_list arguments;

    loader->complaints++;
    if (loader->place.from == FROM_FILE) {
        fprintf(loader->err, "%s:", loader->loaded->config.config);
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

static void set_option(struct loader *loader, const struct option *option, const char *text)
{
    char why[OPTION_WHY_SIZE];

    loader->loaded->origins[option - options] = loader->place;
    if (!option_set(option, &loader->loaded->config, text, why))
        complain(loader, option->name, "%s", why);
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
    unsigned row[CONFIG_NAME_SIZE + 1];
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
                 option_show(name).text, dashes, meant);
    else
        complain(loader, NULL, "there is no option '%s%s'; --help lists them", dashes,
                 option_show(name).text);
}

/* The file. */

static void assign(struct loader *loader, const char *name, const char *value)
{
    const struct option *option = find_option(name);
    const struct origin *origin;

    if (option == NULL && strcmp(name, "config") == 0) {
        complain(loader, name, "a file can't name another; write --config on the command line");
        return;
    }
    if (option == NULL) {
        complain_unknown(loader, name);
        return;
    }
    origin = &loader->loaded->origins[option - options];
    if (origin->from == FROM_FILE)
        complain(loader, name, "it stands in line %u already; keep one of the two", origin->line);
    else
        set_option(loader, option, value);
}

static bool read_option(void *arg, unsigned line, const char *name, const char *value)
{
    struct loader *loader = arg;

    loader->place.line = line;
    assign(loader, name, value);
    return loader->complaints < COMPLAINTS;
}

static bool read_complaint(void *arg, unsigned line, const char *why)
{
    struct loader *loader = arg;

    loader->place.line = line;
    complain(loader, NULL, "%s", why);
    return loader->complaints < COMPLAINTS;
}

/* Reads the file that the configuration names; takes the name away where it is missing. */
static void read_file(struct loader *loader, bool must_exist)
{
    struct config *config = &loader->loaded->config;
    struct config_reader reader = {loader, read_option, read_complaint};
    FILE *file = fopen(config->config, "re");

    loader->place = (struct origin){.from = FROM_FILE};
    if (file != NULL) {
        if (!config_file_read(file, &reader) && loader->complaints >= COMPLAINTS)
            complain(loader, NULL, "the rest of the file was not read; mend these first");
        fclose(file);
    } else if (must_exist || (errno != ENOENT && errno != ENOTDIR)) {
        complain(loader, NULL, "the file can't be opened: %s; --config names another",
                 strerror(errno));
    } else {
        free(config->config);
        config->config = NULL;
    }
}

static void find_file(struct loader *loader, const char *named)
{
    char path[OPTION_VALUE_SIZE];

    if (named == NULL && !config_place_file(path, sizeof(path)))
        return;
    loader->loaded->config.config = strdup(named != NULL ? named : path);
    if (loader->loaded->config.config == NULL)
        complain_memory(loader);
    else
        read_file(loader, named != NULL);
}

/* The defaults. */

static void set_default(struct loader *loader, const struct option *option)
{
    char text[OPTION_VALUE_SIZE];
    const char *fallback = option->fallback;

    loader->place = (struct origin){.from = FROM_DEFAULT, .note = "default"};
    if (option->compute != NULL) {
        if (!option->compute(text, sizeof(text), &loader->place.note)) {
            complain(loader, option->name, "no folder is known to hold it; write a value");
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

uint32_t config_workers(uint32_t processors)
{
    uint32_t workers = processors / 4 + (processors % 4 != 0);
    return workers < 1 ? 1 : workers < 4 ? workers : 4;
}

/* Puts the real number where 0 stands for one. */
static void resolve(struct config *config)
{
    if (config->workers == 0)
        config->workers = config_workers(processors());
    if (config->max_inflight_per_connection == 0)
        config->max_inflight_per_connection = config->max_value_size;
}

/* The command line. */

struct argument {
    char name[CONFIG_NAME_SIZE];
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
                 option_show(text).text);
    else if (find_action(argument->name, &action)) {
        if (argument->value != NULL)
            complain(loader, argument->name, "it takes no value; leave out '=%s'",
                     option_show(argument->value).text);
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
    for (size_t i = 0; i < OPTIONS; i++)
        option_clear(&options[i], config);
    free(config->config);
    free(config);
}

void config_print(const struct config *config, FILE *out)
{
    const struct loaded *loaded = (const struct loaded *)config;
    char value[OPTION_VALUE_SIZE];

    fprintf(out, "# configuration file: %s\n", config->config != NULL ? config->config : "none");
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct origin *origin = &loaded->origins[i];

        option_format(&options[i], config, value);
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
        help_line(out, options[i].name, option_argument(options[i].kind), options[i].help);
        if (options[i].kind == OPTION_BACKEND)
            fprintf(out, ": %s", store_names());
        if (options[i].fallback[0] != '\0')
            fprintf(out, " [%s]", options[i].fallback);
        fputc('\n', out);
    }
    fputc('\n', out);
    help_line(out, "config", "FILE",
              "read this file instead of " CONFIG_SYSTEM_FILE " (root and the service) or "
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
    char before[OPTION_VALUE_SIZE], after[OPTION_VALUE_SIZE];
    size_t used = 0;

    if (size > 0)
        out[0] = '\0';
    for (size_t i = 0; i < OPTIONS; i++) {
        option_format(&options[i], old, before);
        option_format(&options[i], new, after);
        if (options[i].live || strcmp(before, after) == 0)
            continue;
        if (used < size)
            snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", options[i].name);
        used += strlen(options[i].name) + (used > 0 ? 2 : 0);
    }
    return used > 0;
}
