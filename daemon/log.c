#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_MAX = 1024 };

/* Set again at SIGHUP, while every thread logs. */
static atomic_int log_level = LOG_LEVEL_INFO;
static atomic_bool log_to_journal;

/* systemd says which device and inode the journal's stream has; a redirected stderr differs. */
static bool stderr_is_journal(void)
{
    unsigned long long device, inode;
    struct stat st;
    const char *stream = getenv("JOURNAL_STREAM");
    return stream != NULL && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

void log_open(enum log_level level)
{
    log_level = (int)level;
    log_to_journal = stderr_is_journal();
}

static size_t log_prefix(char *line, size_t size, enum log_level level)
{
    if (log_to_journal)
        return (size_t)snprintf(line, size, "<%d>", (int)level);
    struct tm tm;
    time_t now = time(NULL);
    localtime_r(&now, &tm);
    size_t used = strftime(line, size, "%Y-%m-%d %H:%M:%S liara-cached: ", &tm);
    const char *name = level == LOG_LEVEL_ERROR     ? "error: "
                       : level == LOG_LEVEL_WARNING ? "warning: "
                                                    : "";
    return used + (size_t)snprintf(line + used, size - used, "%s", name);
}

static void log_line(enum log_level level, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));

static void log_line(enum log_level level, const char *format, va_list args)
{
    char line[LOG_LINE_MAX];
    int saved = errno;
    size_t used = log_prefix(line, sizeof(line), level);
    errno = saved; /* for %m */
    int more = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    if (more > 0)
        used += (size_t)more < sizeof(line) - used - 1 ? (size_t)more : sizeof(line) - used - 2;
    line[used++] = '\n';
    /* A log that can't be written has nowhere to complain. */
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written;
    errno = saved;
}

#define LOG_FUNCTION(name, level)                                                                  \
    void name(const char *format, ...)                                                             \
    {                                                                                              \
        if ((int)(level) > log_level)                                                              \
            return;                                                                                \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        log_line((level), format, args);                                                           \
        va_end(args);                                                                              \
    }

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR)
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING)
LOG_FUNCTION(log_info, LOG_LEVEL_INFO)
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG)

bool log_debugging(void)
{
    return log_level >= LOG_LEVEL_DEBUG;
}
