/*
 * libliara-cache: the client of liara-cached, a cache that many processes of one machine share over
 * a Unix socket. See liara-cache(3) for the whole with examples.
 *
 * A handle is one connection. It belongs to one thread at a time: no two threads may be in calls
 * with the same handle at once, and a handle may not be used on both sides of a fork(). Different
 * handles have nothing in common; any number of threads may each use their own.
 *
 * The library never prints, never exits, never raises SIGPIPE (not for the caller's descriptors
 * either), installs no signal handlers and keeps no state outside of its handles. All descriptors
 * it makes are close-on-exec, and none is 0, 1 or 2, also where the process runs without those.
 *
 * A daemon that hangs (it is stopped, or its machine is) holds up no call for longer than the
 * time-out. What may take long for good reasons, a get with a lease, persist and clear, is sent
 * behind a PING: if the daemon does not answer that within the time-out the call fails with
 * LIARA_CACHE_TIMED_OUT, and only then is the long time-out waited for.
 *
 * Where the connection is lost, times out or turns out of step, it is closed, so that a late reply
 * can never answer another request. The next call connects again by itself and sets the prefix
 * again. Leases end with the connection that asked for them.
 *
 * A daemon may close a connection that has been idle. A request that meets a connection closed
 * before any byte of the reply has come is sent once more on a new one. All requests are safe to
 * repeat in this way, with three answers to mind: a repeated put may find its own value and say
 * LIARA_CACHE_EXISTS, a repeated delete may say LIARA_CACHE_MISS, a repeated clear may count fewer
 * entries. Since a put stores only what is absent, and all who put under one key are expected to
 * put the same, neither changes what is stored. A put that reads a pipe of given length is not
 * repeated once it has read from it. A get is repeated on a connection that was new, too: without
 * asking for a descriptor, which the kernel may have refused to pass.
 */
#ifndef LIARA_CACHE_H
#define LIARA_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define LIARA_CACHE_API __attribute__((visibility("default")))
#else
#define LIARA_CACHE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LIARA_CACHE_KEY_MAX = 1024,  /* bytes of prefix and key together */
    LIARA_CACHE_TIMEOUT = 30000, /* milliseconds, unless liara_cache_set_timeout() is called */
    LIARA_CACHE_LONG_TIMEOUT = 600000, /* the same for liara_cache_set_long_timeout() */
    LIARA_CACHE_BUSY_POLL = 50,        /* microseconds, for liara_cache_set_busy_poll() */
    LIARA_CACHE_BUSY_POLL_MAX = 1000   /* more than that is taken as that */
};

/* What became of a call. Everything from LIARA_CACHE_USAGE on is an error and has a text. */
enum liara_cache_status {
    LIARA_CACHE_OK = 0,     /* a hit; stored; deleted; done */
    LIARA_CACHE_MISS = 1,   /* the key is not there */
    LIARA_CACHE_EXISTS = 2, /* put: the key was there already, its value is as it was */
    LIARA_CACHE_LEASE =
        3, /* get with a lease: not there, and the caller is to compute and put it */
    LIARA_CACHE_NO_ROOM = 4, /* get into a buffer: the value is longer */

    LIARA_CACHE_USAGE = 16, /* the caller's mistake: a key of no bytes, say; nothing was sent */
    LIARA_CACHE_UNREACHABLE = 17, /* nobody answers at the socket, or the connection was closed */
    LIARA_CACHE_TIMED_OUT = 18,   /* the daemon said nothing for too long */
    LIARA_CACHE_PROTOCOL = 19,    /* what came is no answer to what was asked */
    LIARA_CACHE_LOCAL = 20,       /* memory, or a descriptor of the caller's: errno says which */

    /* ERROR lines of the daemon, by their codes. */
    LIARA_CACHE_ERROR_SYNTAX = 32,
    LIARA_CACHE_ERROR_TOO_LARGE = 33,
    LIARA_CACHE_ERROR_NO_SPACE = 34,
    LIARA_CACHE_ERROR_DENIED = 35,
    LIARA_CACHE_ERROR_UNAVAILABLE = 36,
    LIARA_CACHE_ERROR_TIMEOUT = 37,
    LIARA_CACHE_ERROR_BUSY = 38,
    LIARA_CACHE_ERROR_INTERNAL = 39
};

struct liara_cache;

/* A value that was got. */
struct liara_cache_value {
    void *bytes; /* see each call; where there are some, a NUL that does not count is behind them */
    uint64_t length; /* of the value, in bytes */
    uint32_t flags;  /* the number that was put with it */
    uint32_t ttl;    /* seconds it will live, 0: no limit */
};

/* A value to be read where it lies; all zero is none. */
struct liara_cache_mapping {
    const void *bytes;
    uint64_t length;
    uint32_t flags, ttl; /* as above */
    void *base;          /* this and size are the library's own */
    size_t size;
};

/* A value as an open file. */
struct liara_cache_file {
    int fd; /* the value is its bytes from offset on, length of them; -1: none */
    uint64_t offset, length;
    uint32_t flags, ttl; /* as above */
};

/* How to put a value; all zero is what most want. */
struct liara_cache_put_options {
    uint32_t flags; /* any number, kept with the value */
    uint32_t ttl;   /* seconds it is to live, 0: no limit */
    bool overwrite; /* replace what is there */
};

/* What INSPECT says about the connection's prefix. */
struct liara_cache_info {
    char name[64];    /* of the backend for people, "Sqlite3" */
    char backend[32]; /* as the configuration spells it, "sqlite" */
    uint64_t size;    /* bytes */
    uint64_t entries;
    bool approximate; /* the two are estimates */
    char *text;       /* all of it: lines "name value"; NUL-terminated; to liara_cache_free() */
};

/* Of liara_cache_get_many(): key and key_length go in, the rest comes out. */
struct liara_cache_get_item {
    const void *key;
    size_t key_length;
    enum liara_cache_status status;
    struct liara_cache_value value; /* as by liara_cache_get() */
};

/* Of liara_cache_put_many(): status comes out, the rest goes in. */
struct liara_cache_put_item {
    const void *key;
    size_t key_length;
    const void *bytes;
    size_t length;
    struct liara_cache_put_options options;
    enum liara_cache_status status;
};

/*
 * Called from inside a call that takes its time, about four times a second: done bytes of total
 * have passed (total 0: not known). It must not use the handle.
 */
typedef void liara_cache_progress(void *arg, uint64_t done, uint64_t total);

/*
 * Makes a handle without connecting it: the first call does, for as long as its time-out allows.
 * socket and *cache are as in liara_cache_open(). LOCAL: memory is short, and *cache is NULL.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_new(struct liara_cache **cache,
                                                        const char *socket);

/* Connects the handle, and sets the prefix, where there is no connection. OK: there is one. */
LIARA_CACHE_API enum liara_cache_status liara_cache_connect(struct liara_cache *cache);

/*
 * Makes a handle and connects it. socket is the socket's path; where it is NULL, the first of these
 * that there is: LIARA_CACHE_SOCKET from the environment; $XDG_RUNTIME_DIR/liara-cached/socket;
 * /tmp/liara-cached-UID/socket; /run/liara-cached/socket. Of the last three the next is tried where
 * nobody answers, and the user's own two count only in a folder that belongs to the user and that
 * nobody else can write to.
 *
 * *cache is a handle also where that failed (liara_cache_error() says why, each later call tries
 * again), and NULL only where memory is short. The caller gives it to liara_cache_close().
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_open(struct liara_cache **cache,
                                                         const char *socket);

/* Closes the connection and frees the handle. NULL is fine. Values that were got stay. */
LIARA_CACHE_API void liara_cache_close(struct liara_cache *cache);

/* Closes the connection, which gives back the leases it holds; the next call connects again. */
LIARA_CACHE_API void liara_cache_disconnect(struct liara_cache *cache);

/*
 * How long a call may wait, in milliseconds, 0 for ever: to connect and for its reply, together. It
 * counts anew with every 64 KiB that pass, and a put has a second more for each 8 MiB of its value.
 */
LIARA_CACHE_API void liara_cache_set_timeout(struct liara_cache *cache, unsigned milliseconds);

/*
 * How long what may take long may wait for its reply to begin, in milliseconds, 0 for ever: a get
 * with a lease, while another computes; persist; clear. It counts from when the daemon has shown
 * within the time-out that it answers, and the rest of the reply is under the time-out again.
 */
LIARA_CACHE_API void liara_cache_set_long_timeout(struct liara_cache *cache, unsigned milliseconds);

/*
 * How long a call looks for its reply again and again before it sleeps, in microseconds; 0: never.
 * LIARA_CACHE_BUSY_POLL, or what the environment's variable of that name says. On an idle machine
 * most of a small request's time is two processors waking up, which this saves. It is done only
 * while it lately has been worth it, lets others have the processor meanwhile, and is given up for
 * some time where they want it.
 */
LIARA_CACHE_API void liara_cache_set_busy_poll(struct liara_cache *cache, unsigned microseconds);

/*
 * Whether large values may come as descriptors of the daemon's files, from which they are read or
 * copied; true at first. Otherwise their bytes come through the socket.
 */
LIARA_CACHE_API void liara_cache_set_descriptors(struct liara_cache *cache, bool wanted);

/*
 * Says how many milliseconds the value of the next put took to compute, or each of the next
 * liara_cache_put_many(): the daemon keeps longer what took longer. It holds for that one call,
 * whatever comes of it. Without it the daemon takes the time since it granted a lease on the key to
 * anybody, or else a tenth of a second. A daemon older than this refuses such a put.
 */
LIARA_CACHE_API void liara_cache_set_put_cost(struct liara_cache *cache, uint32_t milliseconds);

/* Has progress(arg, …) called during long calls; NULL: no more. */
LIARA_CACHE_API void liara_cache_set_progress(struct liara_cache *cache,
                                              liara_cache_progress *progress, void *arg);

/* Why the last call failed, one line without LF; "" where it did not. The handle's, until the next
 * call. */
LIARA_CACHE_API const char *liara_cache_error(const struct liara_cache *cache);

/* The path of the socket that the handle is or was last connected to; "" before. The handle's. */
LIARA_CACHE_API const char *liara_cache_socket(const struct liara_cache *cache);

/* A status in one word, "miss" or "too-large"; static. */
LIARA_CACHE_API const char *liara_cache_status_name(enum liara_cache_status status);

/* The library's version, "0.1.0"; static. */
LIARA_CACHE_API const char *liara_cache_version(void);

/* Frees what the library allocated for the caller; it is free(). NULL is fine. */
LIARA_CACHE_API void liara_cache_free(void *bytes);

/*
 * From here on all calls return a status, and an error besides those named is always possible.
 * Keys are any bytes, 1 up to LIARA_CACHE_KEY_MAX with the prefix. What a pointer shows is only
 * read, during the call, where it is const.
 */

/*
 * OK: *value is filled, and the caller gives value->bytes (never NULL) to liara_cache_free().
 * MISS. Otherwise value->bytes is NULL.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_get(struct liara_cache *cache, const void *key,
                                                        size_t key_length,
                                                        struct liara_cache_value *value);

/*
 * The same, but of all who ask in this way for a key that is not there, one gets LEASE: it is to
 * compute the value and put it, within seconds (1 or more) of time; or to give up by
 * liara_cache_delete() of the key or liara_cache_disconnect(). The others wait meanwhile (at most
 * for the long time-out) and get the value, or one of them the next LEASE. MISS: no leases are to
 * be had; compute without. So it is after any error: TIMED_OUT comes within the time-out where the
 * daemon hangs, and otherwise only when the long time-out is over.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_get_lease(struct liara_cache *cache,
                                                              const void *key, size_t key_length,
                                                              uint32_t seconds,
                                                              struct liara_cache_value *value);

/*
 * OK: the value is in buffer[0..value->length), with no NUL behind; value->bytes is buffer. MISS.
 * NO_ROOM: value->length, more than size, is what it takes; buffer is unspecified.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_get_into(struct liara_cache *cache,
                                                             const void *key, size_t key_length,
                                                             void *buffer, size_t size,
                                                             struct liara_cache_value *value);

/*
 * OK: the value was written to the descriptor fd, from its position on; value->bytes is NULL. MISS;
 * with lease (seconds; 0: without) also LEASE, as above. LOCAL: fd can't be written. After an error
 * a part may have been written. At no time is more than a small part in memory: a large value goes
 * from the daemon's file to fd inside the kernel, where file systems can by reference.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_get_fd(struct liara_cache *cache,
                                                           const void *key, size_t key_length,
                                                           int fd, uint32_t lease,
                                                           struct liara_cache_value *value);

/*
 * OK: mapping->bytes shows the value, for reading alone. Of a large one no copy is made where
 * the daemon has it in a file in memory that can't change. It stays, and stays the same, until
 * liara_cache_unmap(), whatever happens to the entry, the connection, the handle or the daemon.
 * bytes is never NULL then; no NUL is behind it. MISS. Otherwise *mapping is all zero.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_map(struct liara_cache *cache, const void *key,
                                                        size_t key_length,
                                                        struct liara_cache_mapping *mapping);

/* Ends what liara_cache_map() began; *mapping is all zero then, and may be before. Any thread. */
LIARA_CACHE_API void liara_cache_unmap(struct liara_cache_mapping *mapping);

/*
 * OK: file->fd is open for reading, and the caller's to close(); the value is in it, as above
 * whatever happens to the entry. Others may hold the same open file, and it has one position for
 * all: read by pread(), or sendfile() and copy_file_range() with an offset. A file on a disk can't
 * be mapped safely: who writes there could cut it. MISS. Otherwise file->fd is -1.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_open_value(struct liara_cache *cache,
                                                               const void *key, size_t key_length,
                                                               struct liara_cache_file *file);

/* OK: stored. EXISTS, unless options (NULL: none) say to overwrite. */
LIARA_CACHE_API enum liara_cache_status
liara_cache_put(struct liara_cache *cache, const void *key, size_t key_length, const void *bytes,
                size_t length, const struct liara_cache_put_options *options);

/*
 * The same with the bytes of the descriptor fd, from its position on: length of them, or up to its
 * end with -1. At no time is more than a small part in memory: what comes from a pipe or socket
 * without a length goes through an unnamed file in TMPDIR or /tmp, and a large regular file is read
 * by the daemon itself, through the descriptor. Nobody may change the file meanwhile. Where fd's
 * position is afterwards is unspecified. LOCAL: fd can't be read or ends before length.
 */
LIARA_CACHE_API enum liara_cache_status
liara_cache_put_fd(struct liara_cache *cache, const void *key, size_t key_length, int fd,
                   int64_t length, const struct liara_cache_put_options *options);

/* OK: *value is filled but for value->bytes, which is NULL. MISS. */
LIARA_CACHE_API enum liara_cache_status liara_cache_head(struct liara_cache *cache, const void *key,
                                                         size_t key_length,
                                                         struct liara_cache_value *value);

/* OK: it was there and is no more. MISS. A lease on the key ends too. */
LIARA_CACHE_API enum liara_cache_status liara_cache_delete(struct liara_cache *cache,
                                                           const void *key, size_t key_length);

/*
 * From here on all keys of this handle begin with these bytes, and clear and inspect are about them
 * alone; length 0: no prefix. After an error the new prefix holds all the same: later calls fail
 * rather than work under another one.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_prefix(struct liara_cache *cache,
                                                           const void *prefix, size_t length);

/* Removes everything under the prefix; *entries (may be NULL): how many there were. */
LIARA_CACHE_API enum liara_cache_status liara_cache_clear(struct liara_cache *cache,
                                                          uint64_t *entries);

/* *info is filled; info->text goes to liara_cache_free(), and is NULL after an error. */
LIARA_CACHE_API enum liara_cache_status liara_cache_inspect(struct liara_cache *cache,
                                                            struct liara_cache_info *info);

/*
 * OK: all that was stored before, by anybody, survives power loss; or the backend keeps nothing
 * and *is_volatile (may be NULL) is true.
 */
LIARA_CACHE_API enum liara_cache_status liara_cache_persist(struct liara_cache *cache,
                                                            bool *is_volatile);

/* OK: the daemon answers. */
LIARA_CACHE_API enum liara_cache_status liara_cache_ping(struct liara_cache *cache);

/*
 * Gets count keys in one go, without waiting for each answer before the next question. OK: every
 * item was answered, and its status is OK, MISS or an error of that item alone, whose text is not
 * kept. Otherwise the connection failed: the items that were not answered have that status. Each
 * value->bytes is the caller's as by liara_cache_get(), and NULL where there is none. USAGE, and
 * nothing was sent, where any key is no valid one.
 */
LIARA_CACHE_API enum liara_cache_status
liara_cache_get_many(struct liara_cache *cache, struct liara_cache_get_item *items, size_t count);

/* Puts count values in one go; the rest as above, with EXISTS. */
LIARA_CACHE_API enum liara_cache_status
liara_cache_put_many(struct liara_cache *cache, struct liara_cache_put_item *items, size_t count);

#ifdef __cplusplus
}
#endif

#endif
