/*
 * The daemon's log: lines on stderr. Plain for a person; with systemd's <N> prefixes where
 * log_open() finds that stderr goes to the journal. Any thread may log; a line is one write(2).
 * A line names the object and what to do; log once, where the trouble is detected.
 */
#ifndef LIARA_LOG_H
#define LIARA_LOG_H

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
/* For what happens per request; not even formatted unless the level asks for it. */
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
