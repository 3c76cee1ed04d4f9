/*
 * The daemon's log: lines on stderr. Plain for a person; with systemd's <N> prefixes where
 * log_open() finds that stderr goes to the journal. Any thread may log; a line is one write(2).
 * A line names the object and what to do; log once, where the trouble is detected.
 */
#ifndef LIARA_LOG_H
#define LIARA_LOG_H

#include <stdbool.h>

/* As syslog's and systemd's numbers. */
enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

/* Sets what is shown (levels up to and including level) and looks whether stderr is the journal's.
 */
void log_open(enum log_level level);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether log_debug() shows anything: to be asked first where every request comes by. */
bool log_debugging(void);

#endif
