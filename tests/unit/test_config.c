/* The configuration: what a file and a command line may say, and what is answered to nonsense. */
#include "suite.h"

#include "../../daemon/config.h"

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ARGUMENTS = 16, TEXT_SIZE = 64 * 1024 };

/* A folder with an empty configuration file, which every test may write. */
static char folder[256];
static char file[300];
static char named[320]; /* --config= that file */
static bool was_root;

/* What the last load() printed and asked for. */
static char complaints[TEXT_SIZE];
static enum config_action action;

static void write_bytes(const char *path, const void *bytes, size_t length)
{
    FILE *out = fopen(path, "w");

    ck_assert_ptr_nonnull(out);
    ck_assert_uint_eq(fwrite(bytes, 1, length, out), length);
    ck_assert_int_eq(fclose(out), 0);
}

static void write_file(const char *text)
{
    write_bytes(file, text, strlen(text));
}

static void read_text(const char *path, char *text)
{
    FILE *in = fopen(path, "r");
    size_t length;

    ck_assert_msg(in != NULL, "%s: run this from the project's folder", path);
    length = fread(text, 1, TEXT_SIZE - 1, in);
    ck_assert_uint_lt(length, TEXT_SIZE - 1);
    text[length] = '\0';
    fclose(in);
}

static void setup(void)
{
    const char *parent = getenv("TMPDIR");

    clearenv();
    if (parent != NULL)
        setenv("TMPDIR", parent, 1);
    snprintf(folder, sizeof(folder), "%s/liara-config-XXXXXX", parent != NULL ? parent : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/liara-cached.conf", folder);
    snprintf(named, sizeof(named), "--config=%s", file);
    setenv("HOME", folder, 1);
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    setenv("XDG_CACHE_HOME", "/home/seven/.cache", 1);
    setenv("XDG_CONFIG_HOME", folder, 1);
    write_file("");
    was_root = geteuid() == 0;
}

static void teardown(void)
{
    char path[400];

    if (was_root && geteuid() != 0)
        ck_assert_int_eq(seteuid(0), 0);
    unlink(file);
    snprintf(path, sizeof(path), "%s/.config/liara-cached.conf", folder);
    unlink(path);
    snprintf(path, sizeof(path), "%s/.config", folder);
    rmdir(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

/* Root's defaults are the system's; here is what somebody else gets. */
static void be_a_user(void)
{
    if (!was_root)
        return;
    ck_assert_int_eq(chown(folder, 65534, 65534), 0);
    ck_assert_int_eq(chown(file, 65534, 65534), 0);
    ck_assert_int_eq(seteuid(65534), 0);
}

/* Loads with these arguments, up to a NULL; what is complained of stands in complaints. */
static struct config *load(const char *first, ...) __attribute__((sentinel));

static struct config *load(const char *first, ...)
{
    char *argv[ARGUMENTS] = {strdup("liara-cached")};
    int argc = 1;
    va_list arguments;
    FILE *err = fmemopen(complaints, sizeof(complaints), "w");
    struct config *config;

    complaints[0] = '\0';
    va_start(arguments, first);
    for (const char *next = first; next != NULL; next = va_arg(arguments, const char *)) {
        ck_assert_int_lt(argc, ARGUMENTS - 1);
        argv[argc++] = strdup(next);
    }
    va_end(arguments);
    ck_assert_ptr_nonnull(err);
    config = config_load(argc, argv, &action, err);
    fclose(err);
    while (argc > 0)
        free(argv[--argc]);
    return config;
}

/* Loads where nothing may be wrong. */
#define LOAD(...)                                                                                  \
    ({                                                                                             \
        struct config *loaded_ = load(__VA_ARGS__, NULL);                                          \
        ck_assert_str_eq(complaints, "");                                                          \
        ck_assert_ptr_nonnull(loaded_);                                                            \
        loaded_;                                                                                   \
    })

static struct config *load_file(const char *text)
{
    write_file(text);
    return LOAD(named);
}

/* Complaints name the file as it was named; here its name is cut from each. */
static const char *without_folder(void)
{
    static char text[TEXT_SIZE];
    size_t skip = strlen(folder) + 1;
    char *out = text;

    for (const char *at = complaints; *at != '\0';) {
        if (strncmp(at, file, strlen(file)) == 0)
            at += skip;
        *out++ = *at++;
    }
    *out = '\0';
    return text;
}

static void assert_file_refused(const char *text, const char *expected)
{
    write_file(text);
    ck_assert_ptr_null(load(named, NULL));
    ck_assert_str_eq(without_folder(), expected);
}

static void assert_argument_refused(const char *argument, const char *expected)
{
    ck_assert_ptr_null(load(named, argument, NULL));
    ck_assert_str_eq(complaints, expected);
}

static void print(const struct config *config, char *text)
{
    FILE *out = fmemopen(text, TEXT_SIZE, "w");

    ck_assert_ptr_nonnull(out);
    config_print(config, out);
    fclose(out);
}

/* The next "name = value" of what config_print() wrote, without its comment; false at the end. */
static bool next_line(char **text, char *name, char *value)
{
    char line[8192];
    size_t length;

    while (**text == '#')
        *text += strcspn(*text, "\n") + 1;
    if (**text == '\0')
        return false;
    length = strcspn(*text, "\n");
    ck_assert_uint_lt(length, sizeof(line));
    snprintf(line, sizeof(line), "%.*s", (int)length, *text);
    *text += length + 1;
    *strstr(line, " # ") = '\0';
    value[0] = '\0';
    ck_assert_int_ge(sscanf(line, "%63s = %8000[^\n]", name, value), 1);
    length = strlen(value);
    while (length > 0 && value[length - 1] == ' ')
        value[--length] = '\0';
    return true;
}

/* Asserts that both say the same of every option; returns how many there are. */
static unsigned assert_same(const struct config *one, const struct config *other)
{
    static char first[TEXT_SIZE], second[TEXT_SIZE];
    char names[2][64], values[2][8192];
    char *a = first, *b = second;
    unsigned count;

    print(one, first);
    print(other, second);
    for (count = 0; next_line(&a, names[0], values[0]); count++) {
        ck_assert(next_line(&b, names[1], values[1]));
        ck_assert_str_eq(names[0], names[1]);
        ck_assert_msg(strcmp(values[0], values[1]) == 0, "%s: '%s' and '%s'", names[0], values[0],
                      values[1]);
    }
    ck_assert(!next_line(&b, names[1], values[1]));
    return count;
}

START_TEST(defaults)
{
    struct config *config = LOAD(named);
    cpu_set_t set;

    ck_assert_int_eq(action, CONFIG_RUN);
    ck_assert_str_eq(config->backend, "sqlite");
    ck_assert_uint_eq(config->max_size, 5368709120);
    ck_assert_uint_eq(config->max_value_size, 536870912);
    ck_assert_uint_eq(config->max_inflight, 2147483648);
    ck_assert_uint_eq(config->max_inflight_per_connection, 536870912);
    ck_assert_uint_eq(config->max_unread, 1048576);
    ck_assert_int_eq(sched_getaffinity(0, sizeof(set), &set), 0);
    ck_assert_uint_eq(config->workers, config_workers((uint32_t)CPU_COUNT(&set)));
    ck_assert_uint_eq(config->max_connections, 4096);
    ck_assert_uint_eq(config->max_leases, 1024);
    ck_assert_int_eq(config->idle_timeout, 600000);
    ck_assert_int_eq(config->request_timeout, 30000);
    ck_assert_int_eq(config->stop_timeout, 5000);
    ck_assert_int_eq(config->log_level, LOG_LEVEL_INFO);
    ck_assert_str_eq(config->redis_host, "127.0.0.1");
    ck_assert_uint_eq(config->redis_port, 6379);
    ck_assert_str_eq(config->redis_socket, "");
    ck_assert_uint_eq(config->redis_database, 0);
    ck_assert_str_eq(config->redis_password_file, "");
    ck_assert_str_eq(config->redis_prefix, "liara/");
    ck_assert_int_eq(config->redis_expiration, 3600000);
    ck_assert_int_eq(config->redis_timeout, 1000);
    ck_assert_int_eq(config->redis_connect_timeout, 100);
    config_free(config);
}
END_TEST

/* Values of each kind, as they are written and as they are meant. */

static const struct {
    const char *text;
    uint64_t bytes; /* 0: refused */
} sizes[] = {
    {"65536", 65536},
    {"65536B", 65536},
    {"64K", 65536},
    {"64k", 65536},
    {"64KB", 65536},
    {"64KiB", 65536},
    {"3M", 3145728},
    {"3MiB", 3145728},
    {"1G", 1073741824},
    {"2T", 2199023255552},
    {"1024T", 1125899906842624},
    {"1025T", 0},
    {"65535", 0},
    {"0", 0},
    {"-1", 0},
    {"+65536", 0},
    {"1.5G", 0},
    {"5X", 0},
    {"5GG", 0},
    {"5 G", 0},
    {"0x10000", 0},
    {"G", 0},
    {"18446744073709551616", 0},
    {"18014398509481984K", 0},
    {"99999999999999999999T", 0},
};

START_TEST(size_values)
{
    char argument[80];
    struct config *config;

    snprintf(argument, sizeof(argument), "--max-inflight=%s", sizes[_i].text);
    config = load(named, argument, NULL);
    if (sizes[_i].bytes == 0) {
        ck_assert_ptr_null(config);
        ck_assert_ptr_nonnull(strstr(complaints, "--max-inflight: \""));
        ck_assert_ptr_nonnull(strstr(complaints, sizes[_i].text));
    } else {
        ck_assert_ptr_nonnull(config);
        ck_assert_uint_eq(config->max_inflight, sizes[_i].bytes);
    }
    config_free(config);
}
END_TEST

static const struct {
    const char *text;
    int64_t milliseconds; /* -1: refused */
} times[] = {
    {"0", 0},        {"1", 1000},        {"30s", 30000},    {"500ms", 500},
    {"10m", 600000}, {"36h", 129600000}, {"2d", 172800000}, {"3650d", 315360000000},
    {"3651d", -1},   {"0.5s", -1},       {"10min", -1},     {"-1s", -1},
    {"", -1},        {"s", -1},          {"10 s", -1},      {"18446744073709551615d", -1},
};

START_TEST(time_values)
{
    char argument[80];
    struct config *config;

    snprintf(argument, sizeof(argument), "--idle-timeout=%s", times[_i].text);
    config = load(named, argument, NULL);
    if (times[_i].milliseconds < 0) {
        ck_assert_ptr_null(config);
        ck_assert_ptr_nonnull(strstr(complaints, "--idle-timeout: \""));
    } else {
        ck_assert_ptr_nonnull(config);
        ck_assert_int_eq(config->idle_timeout, times[_i].milliseconds);
    }
    config_free(config);
}
END_TEST

static const struct {
    const char *text;
    int mode; /* -1: refused */
} modes[] = {
    {"0600", 0600}, {"660", 0660}, {"0777", 0777}, {"0000", 0},   {"1777", -1},
    {"0800", -1},   {"66", -1},    {"00660", -1},  {"rw-rw", -1}, {"", -1},
};

START_TEST(mode_values)
{
    char argument[80];
    struct config *config;

    snprintf(argument, sizeof(argument), "--socket-mode=%s", modes[_i].text);
    config = load(named, argument, NULL);
    ck_assert_int_eq(config == NULL, modes[_i].mode < 0);
    if (config != NULL)
        ck_assert_int_eq((int)config->socket_mode, modes[_i].mode);
    config_free(config);
}
END_TEST

START_TEST(levels_and_backends)
{
    static const char *const levels[] = {"error", "warning", "info", "debug"};
    static const enum log_level values[] = {LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO,
                                            LOG_LEVEL_DEBUG};
    static const char *const backends[] = {"memory", "filesystem", "sqlite", "redis", "null"};

    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        struct config *config = LOAD(named, "--log-level", levels[i]);

        ck_assert_int_eq(config->log_level, values[i]);
        config_free(config);
    }
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        struct config *config = LOAD(named, "--backend", backends[i]);

        ck_assert_str_eq(config->backend, backends[i]);
        config_free(config);
    }
}
END_TEST

/* What is wrong is said with the place, the value and what would be right. */

static const struct {
    const char *text, *complaint;
} wrong_files[] = {
    {"max-size = 5X\n", "1: option 'max-size': \"5X\" is not a size; "
                        "write bytes with an optional K, M, G or T, as 5G\n"},
    {"\n\nmax-size = 1\n", "3: option 'max-size': \"1\" is out of range; write 4K to 1024T\n"},
    {"max-value-size = 4G", "1: option 'max-value-size': \"4G\" is out of range; "
                            "write 1 to 4095M\n"},
    {"stop-timeout = 0", "1: option 'stop-timeout': \"0\" is out of range; write 1ms to 1d\n"},
    {"socket-mode = 888", "1: option 'socket-mode': \"888\" is not a mode; "
                          "write three or four octal digits, as 0660\n"},
    {"workers = two", "1: option 'workers': \"two\" is not a number; "
                      "write decimal digits alone, as 1024\n"},
    {"workers = 65", "1: option 'workers': \"65\" is out of range; write 0 to 64\n"},
    {"redis-port = 65536", "1: option 'redis-port': \"65536\" is out of range; "
                           "write 1 to 65535\n"},
    {"max-leases = 4294967297", "1: option 'max-leases': \"4294967297\" is out of range; "
                                "write 1 to 1000000\n"},
    {"idle-timeout = soon", "1: option 'idle-timeout': \"soon\" is not a time; "
                            "write seconds, or a number with ms, s, m, h or d, as 10m\n"},
    {"log-level = loud", "1: option 'log-level': \"loud\" is not a level; "
                         "write error, warning, info or debug\n"},
    {"socket = run/socket", "1: option 'socket': \"run/socket\" is not an absolute path; "
                            "write the whole path, from /\n"},
    {"socket = /run/", "1: option 'socket': \"/run/\" is a folder; "
                       "write the path of a socket in it\n"},
    {"socket =", "1: option 'socket': there is no value; "
                 "write an absolute path, or leave the option out\n"},
    {"directory = ~/cache", "1: option 'directory': \"~/cache\" is not an absolute path; "
                            "write the whole path, from /\n"},
    {"redis-password-file = /nonexistent/word",
     "1: option 'redis-password-file': \"/nonexistent/word\" can't be read: No such file or "
     "directory; name a file that the daemon's user may read\n"},
    {"redis-prefix = a\tb", "1: option 'redis-prefix': \"a?b\" can't stand in a file; write no "
                            "control characters, no space at its ends, and no ; or # at its "
                            "beginning or after a space\n"},
    {"max-sise = 5G", "1: there is no option 'max-sise'; did you mean 'max-size'?\n"},
    {"max_inflight = 1G", "1: there is no option 'max_inflight'; did you mean 'max-inflight'?\n"},
    {"Backend = null", "1: there is no option 'Backend'; did you mean 'backend'?\n"},
    {"colour = red", "1: there is no option 'colour'; --help lists them\n"},
    {"= 5G", "1: there is no option ''; --help lists them\n"},
    {"config = /etc/other.conf", "1: option 'config': a file can't name another; "
                                 "write --config on the command line\n"},
    {"workers = 2\n\nworkers = 2\n",
     "3: option 'workers': it stands in line 1 already; keep one of the two\n"},
    {"[cache]", "1: there are no sections; write the options without '[cache]'\n"},
    {"max-size 5G", "1: \"max-size 5G\" is not an option; write name = value\n"},
    {"\x1b[2J", "1: \"?[2J\" is not an option; write name = value\n"},
};

START_TEST(file_complaints)
{
    char expected[1024];

    snprintf(expected, sizeof(expected), "liara-cached.conf:%s", wrong_files[_i].complaint);
    assert_file_refused(wrong_files[_i].text, expected);
}
END_TEST

START_TEST(backend_complaint)
{
    static const char *const names[] = {"memory", "filesystem", "sqlite", "redis", "null"};

    write_file("backend = sqlight");
    ck_assert_ptr_null(load(named, NULL));
    ck_assert_ptr_nonnull(strstr(complaints, "\"sqlight\" is not a backend; write one of "));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        ck_assert_ptr_nonnull(strstr(complaints, names[i]));
}
END_TEST

START_TEST(all_complaints_are_shown)
{
    assert_file_refused("max-size = 5X\n"
                        "  workers = 0x\n"
                        "[more]\n"
                        "nonsense\n"
                        "max-size = 4G\n",
                        "liara-cached.conf:1: option 'max-size': \"5X\" is not a size; "
                        "write bytes with an optional K, M, G or T, as 5G\n"
                        "liara-cached.conf:2: option 'workers': \"0x\" is not a number; "
                        "write decimal digits alone, as 1024\n"
                        "liara-cached.conf:3: there are no sections; "
                        "write the options without '[more]'\n"
                        "liara-cached.conf:4: \"nonsense\" is not an option; "
                        "write name = value\n"
                        "liara-cached.conf:5: option 'max-size': it stands in line 1 already; "
                        "keep one of the two\n");
}
END_TEST

START_TEST(complaints_end)
{
    static char text[TEXT_SIZE];
    unsigned lines = 0;

    for (size_t i = 0; i < 30000; i += 2)
        memcpy(text + i, "x\n", 3);
    write_file(text);
    ck_assert_ptr_null(load(named, NULL));
    for (const char *at = complaints; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    ck_assert_uint_eq(lines, 101);
    ck_assert_ptr_nonnull(strstr(complaints, "the rest of the file was not read"));
}
END_TEST

START_TEST(command_line_complaints)
{
    assert_argument_refused("--max-size=5X", "--max-size: \"5X\" is not a size; "
                                             "write bytes with an optional K, M, G or T, as 5G\n");
    assert_argument_refused("--max-sise=5G",
                            "there is no option '--max-sise'; did you mean '--max-size'?\n");
    assert_argument_refused("--verbose", "there is no option '--verbose'; --help lists them\n");
    assert_argument_refused("--max-size",
                            "--max-size: there is no value; write --max-size=VALUE\n");
    assert_argument_refused("--config", "--config: there is no value; write --config=VALUE\n");
    assert_argument_refused("--check-config=yes",
                            "--check-config: it takes no value; leave out '=yes'\n");
    assert_argument_refused(
        "start", "'start' is not an option; write --name=value, --help lists the names\n");
    assert_argument_refused("-x",
                            "'-x' is not an option; write --name=value, --help lists the names\n");
    assert_argument_refused("--",
                            "'--' is not an option; write --name=value, --help lists the names\n");
}
END_TEST

/* How a file may be written. */

START_TEST(file_syntax)
{
    struct config *config = load_file("\xEF\xBB\xBFworkers = 3 # three\r\n"
                                      "# workers = 4\n"
                                      "  ; workers = 5\n"
                                      "\n"
                                      "max-connections = 8\t; eight\n"
                                      "   max-leases=7\n"
                                      "\tmax-unread:2K\n"
                                      "redis-socket =\n"
                                      "redis-password-file = # none\n"
                                      "directory = /a  b/c;d#e=f:g\n"
                                      "redis-prefix = [x]: \"y\" =z");

    ck_assert_uint_eq(config->workers, 3);
    ck_assert_uint_eq(config->max_connections, 8);
    ck_assert_uint_eq(config->max_leases, 7);
    ck_assert_uint_eq(config->max_unread, 2048);
    ck_assert_str_eq(config->redis_socket, "");
    ck_assert_str_eq(config->redis_password_file, "");
    ck_assert_str_eq(config->directory, "/a  b/c;d#e=f:g");
    ck_assert_str_eq(config->redis_prefix, "[x]: \"y\" =z");
    config_free(config);
}
END_TEST

START_TEST(zero_byte_in_file)
{
    static const char text[] = "workers = 1\nmax-leases = 1\0"
                               "0\nworkers = x\n";

    write_bytes(file, text, sizeof(text) - 1);
    ck_assert_ptr_null(load(named, NULL));
    ck_assert_str_eq(without_folder(),
                     "liara-cached.conf:2: there is a zero byte in the line; write plain text\n"
                     "liara-cached.conf:3: option 'workers': it stands in line 1 already; "
                     "keep one of the two\n");
}
END_TEST

/* libinih itself ends a line after 199 bytes. */
START_TEST(long_lines)
{
    static const char piece[] = "/folder; =";
    char path[4096] = "", text[8192];
    struct config *config;

    for (size_t length = 1; length < 3900; length += length < 400 ? 1 : 97) {
        for (size_t i = 0; i < length; i++)
            path[i] = i == length - 1 ? 'z' : piece[i % (sizeof(piece) - 1)];
        path[length] = '\0';
        path[0] = '/';
        snprintf(text, sizeof(text), "directory = %s # %0400d\nworkers = 3\n", path, 0);
        config = load_file(text);
        ck_assert_str_eq(config->directory, path);
        ck_assert_uint_eq(config->workers, 3);
        config_free(config);
    }
}
END_TEST

START_TEST(too_long_lines)
{
    char text[8192];

    snprintf(text, sizeof(text), "workers = 1\ndirectory = /%05000d\nworkers = 1\n", 0);
    assert_file_refused(text, "liara-cached.conf:2: the line is too long; "
                              "write at most 4607 bytes\n"
                              "liara-cached.conf:3: option 'workers': it stands in line 1 already; "
                              "keep one of the two\n");
    snprintf(text, sizeof(text), "directory = /a%200sb\n", "");
    assert_file_refused(text, "liara-cached.conf:1: the line is too long; "
                              "write at most 4607 bytes\n");
    snprintf(text, sizeof(text), "directory = /%04100d\n", 0);
    write_file(text);
    ck_assert_ptr_null(load(named, NULL));
    ck_assert_ptr_nonnull(strstr(complaints, "...\" is too long, 4101 bytes; write at most 4000"));
}
END_TEST

START_TEST(socket_path_length)
{
    char path[128], argument[160];
    struct config *config;

    memset(path, 'a', sizeof(path));
    path[0] = '/';
    path[107] = '\0';
    snprintf(argument, sizeof(argument), "--socket=%s", path);
    config = LOAD(named, argument);
    ck_assert_str_eq(config->socket, path);
    config_free(config);

    path[107] = 'a';
    path[108] = '\0';
    snprintf(argument, sizeof(argument), "--redis-socket=%s", path);
    ck_assert_ptr_null(load(named, argument, NULL));
    ck_assert_ptr_nonnull(strstr(complaints, "is too long, 108 bytes; write at most 107"));
}
END_TEST

static uint32_t random_next(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 16;
}

/* Whatever a file holds, it is either taken without a word or refused with one. */
START_TEST(random_files)
{
    static const char *const words[] = {"max-size",
                                        "=",
                                        " ",
                                        "\n",
                                        "5G",
                                        "#",
                                        ";",
                                        "[",
                                        ":",
                                        "/",
                                        "\r",
                                        "\t",
                                        "null",
                                        "backend",
                                        "redis-prefix",
                                        "x",
                                        "0",
                                        "\n",
                                        "\xEF\xBB\xBF",
                                        "idle-timeout"};
    uint32_t state = 20;

    for (int round = 0; round < 1000; round++) {
        char text[1024] = "";
        struct config *config;

        for (uint32_t left = random_next(&state) % 40; left > 0; left--)
            strcat(text, words[random_next(&state) % (sizeof(words) / sizeof(words[0]))]);
        write_file(text);
        config = load(named, NULL);
        ck_assert_msg((config == NULL) == (complaints[0] != '\0'), "%s", text);
        config_free(config);
    }
}
END_TEST

/* The command line. */

START_TEST(command_line)
{
    struct config *config;

    write_file("max-size = 1G\nworkers = 1\nmax-leases = 5\n");
    config = LOAD(named, "--max-size=2G", "--workers", "2", "--redis-prefix=", "--redis-host=a=b");
    ck_assert_uint_eq(config->max_size, 2147483648);
    ck_assert_uint_eq(config->workers, 2);
    ck_assert_uint_eq(config->max_leases, 5);
    ck_assert_str_eq(config->redis_prefix, "");
    ck_assert_str_eq(config->redis_host, "a=b");
    config_free(config);

    config = LOAD(named, "--workers=2", "--workers=4");
    ck_assert_uint_eq(config->workers, 4);
    config_free(config);

    config = LOAD("--config", file, "--workers=2");
    ck_assert_uint_eq(config->max_leases, 5);
    config_free(config);
}
END_TEST

START_TEST(file_complaints_stay_under_the_command_line)
{
    write_file("max-size = 5X\n");
    ck_assert_ptr_null(load(named, "--max-size=5G", NULL));
    ck_assert_ptr_nonnull(strstr(complaints, ":1: option 'max-size'"));
}
END_TEST

START_TEST(what_the_command_line_asks_for)
{
    config_free(LOAD(named, "--check-config"));
    ck_assert_int_eq(action, CONFIG_CHECK);
    config_free(LOAD(named, "--print-config", "--check-config"));
    ck_assert_int_eq(action, CONFIG_PRINT);
    config_free(load("--version", "--nonsense", NULL));
    ck_assert_int_eq(action, CONFIG_VERSION);
    ck_assert_str_eq(complaints, "");
    config_free(load("--help", "--version", "--config=/nonexistent", NULL));
    ck_assert_int_eq(action, CONFIG_HELP);
    ck_assert_str_eq(complaints, "");
    config_free(load("-h", NULL));
    ck_assert_int_eq(action, CONFIG_HELP);
    config_free(LOAD(named, "--redis-prefix", "--help"));
    ck_assert_int_eq(action, CONFIG_RUN);
}
END_TEST

/* Which file is read. */

START_TEST(named_file_must_exist)
{
    ck_assert_ptr_null(load("--config=/nonexistent/file", NULL));
    ck_assert_str_eq(complaints, "/nonexistent/file: the file can't be opened: No such file or "
                                 "directory; --config names another\n");
    ck_assert_ptr_null(load("--config=/", NULL));
    ck_assert_str_eq(complaints, "/: the file can't be read: Is a directory\n");
    ck_assert_ptr_null(load("--config=/dev/zero", NULL));
    ck_assert_str_eq(complaints, "/dev/zero: the file is larger than 1M; "
                                 "name a configuration file\n");
    config_free(LOAD("--config=/dev/null"));
}
END_TEST

START_TEST(file_of_a_user)
{
    char path[400];
    struct config *config;

    be_a_user();
    write_file("max-leases = 3\n");
    config = LOAD("--workers=1");
    ck_assert_str_eq(config->config, file);
    ck_assert_uint_eq(config->max_leases, 3);
    config_free(config);

    unlink(file);
    config = LOAD("--workers=1");
    ck_assert_ptr_null(config->config);
    config_free(config);

    snprintf(path, sizeof(path), "%s/.config", folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/.config/liara-cached.conf", folder);
    write_bytes(path, "max-leases = 4\n", 15);
    unsetenv("XDG_CONFIG_HOME");
    config = LOAD("--workers=1");
    ck_assert_str_eq(config->config, path);
    ck_assert_uint_eq(config->max_leases, 4);
    config_free(config);

    setenv("XDG_CONFIG_HOME", "relative/folder", 1);
    config = LOAD("--workers=1");
    ck_assert_uint_eq(config->max_leases, 4);
    config_free(config);
}
END_TEST

START_TEST(file_of_a_user_that_is_unreadable)
{
    be_a_user();
    write_file("max-leases = 3\n");
    ck_assert_int_eq(chmod(file, 0), 0);
    ck_assert_ptr_null(load("--workers=1", NULL));
    ck_assert_ptr_nonnull(strstr(complaints, "the file can't be opened: Permission denied"));
}
END_TEST

/* Where a daemon without a configuration serves and stores. */

static void assert_places(const char *socket, mode_t mode, const char *directory)
{
    struct config *config = LOAD(named);

    ck_assert_str_eq(config->socket, socket);
    ck_assert_uint_eq(config->socket_mode, mode);
    ck_assert_str_eq(config->directory, directory);
    config_free(config);
}

START_TEST(places_of_a_user)
{
    char socket[64], cache[300];

    be_a_user();
    assert_places("/run/user/7/liara-cached/socket", 0600, "/home/seven/.cache/liara-cached");

    setenv("XDG_RUNTIME_DIR", "not/absolute", 1);
    unsetenv("XDG_CACHE_HOME");
    snprintf(socket, sizeof(socket), "/tmp/liara-cached-%u/socket", (unsigned)geteuid());
    snprintf(cache, sizeof(cache), "%s/.cache/liara-cached", folder);
    assert_places(socket, 0600, cache);

    unsetenv("XDG_RUNTIME_DIR");
    assert_places(socket, 0600, cache);
}
END_TEST

START_TEST(places_of_the_system)
{
    unsetenv("XDG_RUNTIME_DIR");
    unsetenv("XDG_CACHE_HOME");
    setenv("RUNTIME_DIRECTORY", "/run/liara-cached:/run/other", 1);
    setenv("CACHE_DIRECTORY", "/var/cache/liara-cached", 1);
    assert_places("/run/liara-cached/socket", 0660, "/var/cache/liara-cached");

    unsetenv("RUNTIME_DIRECTORY");
    assert_places("/run/liara-cached/socket", 0660, "/var/cache/liara-cached");
}
END_TEST

START_TEST(places_of_a_users_service)
{
    be_a_user();
    setenv("RUNTIME_DIRECTORY", "/run/user/7/other", 1);
    setenv("CACHE_DIRECTORY", "/home/seven/.cache/other", 1);
    assert_places("/run/user/7/other/socket", 0600, "/home/seven/.cache/other");
}
END_TEST

START_TEST(places_of_root)
{
    if (!was_root)
        return;
    assert_places("/run/user/7/liara-cached/socket", 0660, "/home/seven/.cache/liara-cached");
    unsetenv("XDG_RUNTIME_DIR");
    unsetenv("XDG_CACHE_HOME");
    assert_places("/run/liara-cached/socket", 0660, "/var/cache/liara-cached");
}
END_TEST

START_TEST(places_too_long_for_a_socket)
{
    char path[128];

    memset(path, 'a', sizeof(path));
    path[0] = '/';
    path[100] = '\0';
    setenv("XDG_RUNTIME_DIR", path, 1);
    ck_assert_ptr_null(load(named, NULL));
    ck_assert_ptr_nonnull(strstr(complaints, "option 'socket': \"/aaa"));
    config_free(LOAD(named, "--socket=/run/s"));
}
END_TEST

START_TEST(one_worker_for_every_four_processors)
{
    static const struct {
        uint32_t processors, workers;
    } rows[] = {{0, 1}, {1, 1},  {2, 1},  {3, 1},  {4, 1},  {5, 2},    {8, 2},
                {9, 3}, {12, 3}, {13, 4}, {16, 4}, {17, 4}, {1024, 4}, {UINT32_MAX, 4}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        ck_assert_uint_eq(config_workers(rows[i].processors), rows[i].workers);
}
END_TEST

START_TEST(numbers_that_0_stands_for)
{
    struct config *config;
    cpu_set_t all, one;
    int first = 0;

    ck_assert_int_eq(sched_getaffinity(0, sizeof(all), &all), 0);
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
    config = LOAD(named, "--workers=0");
    ck_assert_uint_eq(config->workers, 1);
    config_free(config);
    ck_assert_int_eq(sched_setaffinity(0, sizeof(all), &all), 0);

    config = LOAD(named, "--max-inflight-per-connection=0", "--max-value-size=3M");
    ck_assert_uint_eq(config->max_inflight_per_connection, 3145728);
    config_free(config);
}
END_TEST

/* What is printed. */

START_TEST(print_says_where_from)
{
    static char text[TEXT_SIZE];
    char expected[512];
    struct config *config;

    write_file("\nmax-leases = 5\n");
    config = LOAD(named, "--max-size=1536K");
    print(config, text);
    config_free(config);
    snprintf(expected, sizeof(expected), "max-leases                  = %-31s # %s:2\n", "5", file);
    ck_assert_ptr_nonnull(strstr(text, expected));
    snprintf(expected, sizeof(expected), "max-size                    = %-31s # command line\n",
             "1536K");
    ck_assert_ptr_nonnull(strstr(text, expected));
    snprintf(expected, sizeof(expected), "idle-timeout                = %-31s # default\n", "10m");
    ck_assert_ptr_nonnull(strstr(text, expected));
    snprintf(expected, sizeof(expected),
             "socket                      = %-31s # default in $XDG_RUNTIME_DIR\n",
             "/run/user/7/liara-cached/socket");
    ck_assert_ptr_nonnull(strstr(text, expected));
}
END_TEST

/* What is printed is a file that says the same. */
static void assert_round_trip(struct config *config)
{
    static char text[TEXT_SIZE];
    struct config *again;

    print(config, text);
    again = load_file(text);
    ck_assert_uint_eq(assert_same(config, again), 27);
    config_free(again);
    config_free(config);
}

START_TEST(print_is_read_back)
{
    char directory[3100];

    assert_round_trip(LOAD(named));
    assert_round_trip(LOAD(named, "--max-size=1025K", "--max-unread=1537", "--max-inflight=3T",
                           "--max-value-size=4095M", "--idle-timeout=1500ms", "--stop-timeout=90s",
                           "--request-timeout=0", "--redis-expiration=25h", "--socket-mode=007",
                           "--log-level=error"));
    assert_round_trip(LOAD(named, "--redis-prefix=", "--redis-password-file=/dev/null",
                           "--redis-socket=/run/redis 2/a;b#c", "--redis-host=::1",
                           "--redis-database=2147483647", "--backend=null", "--workers=64"));
    assert_round_trip(LOAD(named, "--redis-prefix=[a] = \xC3\xA9:\"'%\\"));
    snprintf(directory, sizeof(directory), "--directory=/%03000d", 0);
    assert_round_trip(LOAD(named, directory));
}
END_TEST

/* What a file could not say is refused on the command line too. */
START_TEST(text_that_no_file_can_say)
{
    static const char *const texts[] = {" a", "a ", "#a", ";a", "a #b", "a ;b", "a\nb", "a\x7f"};
    char argument[64];

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        snprintf(argument, sizeof(argument), "--redis-prefix=%s", texts[i]);
        ck_assert_ptr_null(load(named, argument, NULL));
        ck_assert_ptr_nonnull(strstr(complaints, "can't stand in a file"));
    }
}
END_TEST

START_TEST(help_lists_every_option)
{
    static char text[TEXT_SIZE], printed[TEXT_SIZE];
    char name[64], value[8192], expected[80];
    struct config *config = LOAD(named);
    FILE *out = fmemopen(text, sizeof(text), "w");
    char *at = printed;

    config_help(out);
    fclose(out);
    print(config, printed);
    while (next_line(&at, name, value)) {
        snprintf(expected, sizeof(expected), "\n  --%s=", name);
        ck_assert_msg(strstr(text, expected) != NULL, "--help has no --%s", name);
    }
    ck_assert_ptr_nonnull(strstr(text, "--config=FILE"));
    ck_assert_ptr_nonnull(strstr(text, "--check-config "));
    ck_assert_ptr_nonnull(strstr(text, "--print-config "));
    ck_assert_ptr_nonnull(strstr(text, "[512M]\n"));
    config_free(config);
}
END_TEST

/* What may change while the daemon runs. */

START_TEST(limits_are_copied)
{
    struct config *config = LOAD(named, "--max-value-size=11M", "--max-inflight-per-connection=12M",
                                 "--max-unread=13K", "--max-connections=14", "--max-leases=15",
                                 "--idle-timeout=16", "--request-timeout=17");
    struct limits limits = {0};

    config_limits(config, &limits);
    ck_assert_uint_eq(limits.max_value_size, 11534336);
    ck_assert_uint_eq(limits.max_inflight_per_connection, 12582912);
    ck_assert_uint_eq(limits.max_unread, 13312);
    ck_assert_uint_eq(limits.max_connections, 14);
    ck_assert_uint_eq(limits.max_leases, 15);
    ck_assert_int_eq(limits.idle_timeout, 16000);
    ck_assert_int_eq(limits.request_timeout, 17000);
    config_free(config);
}
END_TEST

START_TEST(changes_that_need_a_restart)
{
    struct config *old = LOAD(named, "--workers=1");
    struct config *live =
        LOAD(named, "--workers=1", "--max-size=1G", "--max-value-size=1M", "--max-inflight=1G",
             "--max-inflight-per-connection=1M", "--max-unread=1K", "--max-connections=1",
             "--max-leases=1", "--idle-timeout=1", "--request-timeout=1", "--stop-timeout=1",
             "--log-level=debug");
    struct config *fixed =
        LOAD(named, "--workers=2", "--socket=/s", "--backend=null", "--redis-port=1");
    char names[256] = "unset", few[8];

    ck_assert(!config_fixed_changes(old, live, names, sizeof(names)));
    ck_assert_str_eq(names, "");
    ck_assert(config_fixed_changes(old, fixed, names, sizeof(names)));
    ck_assert_str_eq(names, "socket, backend, workers, redis-port");
    ck_assert(config_fixed_changes(old, fixed, few, sizeof(few)));
    ck_assert_str_eq(few, "socket,");
    config_free(old);
    config_free(live);
    config_free(fixed);
}
END_TEST

/* What is written about the options elsewhere. */

/* Takes the # from every line that is an option; returns how many those are. */
static unsigned uncomment(char *text)
{
    unsigned count = 0;

    for (char *line = text; line != NULL; line = strchr(line + 1, '\n')) {
        char *at = line == text ? line : line + 1;

        if (at[0] == '#' && at[1] >= 'a' && at[1] <= 'z') {
            at[0] = ' ';
            count++;
        }
    }
    return count;
}

START_TEST(example_is_the_default)
{
    static char text[TEXT_SIZE];
    struct config *standard, *example;

    unsetenv("XDG_RUNTIME_DIR");
    unsetenv("XDG_CACHE_HOME");
    setenv("RUNTIME_DIRECTORY", "/run/liara-cached", 1);
    setenv("CACHE_DIRECTORY", "/var/cache/liara-cached", 1);
    standard = LOAD(named);
    read_text("conf/liara-cached.conf", text);
    config_free(load_file(text));
    ck_assert_uint_eq(uncomment(text), assert_same(standard, standard));
    example = load_file(text);
    assert_same(standard, example);
    config_free(standard);
    config_free(example);
}
END_TEST

/* A name as a manual page spells it: its hyphens are not to be broken or changed. */
static void escape(const char *name, char *out)
{
    for (; *name != '\0'; name++) {
        if (*name == '-')
            *out++ = '\\';
        *out++ = *name;
    }
    *out = '\0';
}

START_TEST(manual_describes_every_option)
{
    static char manual[TEXT_SIZE], printed[TEXT_SIZE];
    char name[64], escaped[128], value[8192], expected[160];
    struct config *config = LOAD(named);
    char *at = printed;

    read_text("docs/liara-cached.conf.5", manual);
    print(config, printed);
    while (next_line(&at, name, value)) {
        escape(name, escaped);
        snprintf(expected, sizeof(expected), "\n.TP\n.BI %s \" = ", escaped);
        ck_assert_msg(strstr(manual, expected) != NULL, "liara-cached.conf(5) has no %s", name);
    }
    config_free(config);
}
END_TEST

static Suite *config_suite(void)
{
    Suite *suite = suite_create("config");
    TCase *tests = suite_case(suite, "config", 60);

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, defaults);
    tcase_add_loop_test(tests, size_values, 0, sizeof(sizes) / sizeof(sizes[0]));
    tcase_add_loop_test(tests, time_values, 0, sizeof(times) / sizeof(times[0]));
    tcase_add_loop_test(tests, mode_values, 0, sizeof(modes) / sizeof(modes[0]));
    tcase_add_test(tests, levels_and_backends);
    tcase_add_loop_test(tests, file_complaints, 0, sizeof(wrong_files) / sizeof(wrong_files[0]));
    tcase_add_test(tests, backend_complaint);
    tcase_add_test(tests, all_complaints_are_shown);
    tcase_add_test(tests, complaints_end);
    tcase_add_test(tests, command_line_complaints);
    tcase_add_test(tests, file_syntax);
    tcase_add_test(tests, zero_byte_in_file);
    tcase_add_test(tests, long_lines);
    tcase_add_test(tests, too_long_lines);
    tcase_add_test(tests, socket_path_length);
    tcase_add_test(tests, random_files);
    tcase_add_test(tests, command_line);
    tcase_add_test(tests, file_complaints_stay_under_the_command_line);
    tcase_add_test(tests, what_the_command_line_asks_for);
    tcase_add_test(tests, named_file_must_exist);
    tcase_add_test(tests, file_of_a_user);
    tcase_add_test(tests, file_of_a_user_that_is_unreadable);
    tcase_add_test(tests, places_of_a_user);
    tcase_add_test(tests, places_of_the_system);
    tcase_add_test(tests, places_of_a_users_service);
    tcase_add_test(tests, places_of_root);
    tcase_add_test(tests, places_too_long_for_a_socket);
    tcase_add_test(tests, one_worker_for_every_four_processors);
    tcase_add_test(tests, numbers_that_0_stands_for);
    tcase_add_test(tests, print_says_where_from);
    tcase_add_test(tests, print_is_read_back);
    tcase_add_test(tests, text_that_no_file_can_say);
    tcase_add_test(tests, help_lists_every_option);
    tcase_add_test(tests, limits_are_copied);
    tcase_add_test(tests, changes_that_need_a_restart);
    tcase_add_test(tests, example_is_the_default);
    tcase_add_test(tests, manual_describes_every_option);
    return suite;
}

int main(void)
{
    return suite_run(config_suite());
}
