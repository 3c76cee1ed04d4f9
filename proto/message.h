/*
 * What can be asked of a cache and what it can answer, whatever the protocol on the wire.
 *
 * Plain data. A codec (line.h is one) turns bytes into a struct request and a struct reply into
 * bytes; a client's side does the inverse. Values themselves are never in here: their bytes follow
 * the message on the wire, or come as a descriptor.
 */
#ifndef LIARA_PROTO_MESSAGE_H
#define LIARA_PROTO_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MESSAGE_KEY_MAX = 1024, MESSAGE_TEXT_MAX = 160 };

enum verb {
    VERB_GET,
    VERB_PUT,
    VERB_HEAD,
    VERB_DELETE,
    VERB_PREFIX,
    VERB_CLEAR,
    VERB_INSPECT,
    VERB_PERSIST,
    VERB_PING,
    VERB_HELP,
    VERB_QUIT,
    VERB_COUNT
};

/* Why a request was refused; the wire's names stand in message_error_name(). */
enum error_code {
    ERROR_SYNTAX,
    ERROR_TOO_LARGE,
    ERROR_NO_SPACE,
    ERROR_DENIED,
    ERROR_UNAVAILABLE,
    ERROR_TIMEOUT,
    ERROR_BUSY,
    ERROR_INTERNAL,
    ERROR_CODE_COUNT
};

struct request {
    enum verb verb;
    bool overwrite;      /* PUT: replace what is there */
    bool fd;             /* GET: answer with a descriptor if you can; PUT: the value is in one */
    bool has_cost;       /* PUT: cost says something */
    uint32_t flags;      /* PUT: the client's own number */
    uint32_t ttl;        /* PUT: seconds to live, 0: no limit */
    uint32_t cost;       /* PUT: milliseconds that the value took to compute */
    uint32_t lease;      /* GET: seconds of lease wanted on a miss, 0: none */
    uint64_t length;     /* PUT: bytes of the value */
    uint32_t key_length; /* bytes used of key; 0 is possible for PREFIX alone */
    uint8_t key[MESSAGE_KEY_MAX];
};

enum reply_kind {
    REPLY_VALUE, /* length, flags, ttl; the value's bytes follow */
    REPLY_FD,    /* length, offset, flags, ttl; a descriptor comes with it */
    REPLY_SIZE,  /* length, flags, ttl */
    REPLY_MISS,  /* lease: the asker is to compute the value */
    REPLY_STORED,
    REPLY_EXISTS,
    REPLY_DELETED,
    REPLY_OK,   /* has_entries: CLEAR's count; is_volatile: PERSIST without stable storage */
    REPLY_ERROR /* error, text */
};

struct reply {
    enum reply_kind kind;
    bool lease;
    bool has_entries;
    bool is_volatile;
    uint32_t flags;
    uint32_t ttl; /* seconds left, 0: no limit */
    uint64_t length;
    uint64_t offset;
    uint64_t entries;
    enum error_code error;
    char text[MESSAGE_TEXT_MAX]; /* NUL-terminated, printable ASCII, no LF */
};

/* The wire's word for a code, "too-large" for ERROR_TOO_LARGE; a static string. */
const char *message_error_name(enum error_code code);

/* The verb in capitals, "GET" for VERB_GET; a static string. */
const char *message_verb_name(enum verb verb);

/*
 * Makes *reply the error code with a text in printf's manner. Bytes of the text outside 0x20-0x7E
 * become '?', so that nothing a client sent is echoed raw; what is too long is cut.
 */
void message_error(struct reply *reply, enum error_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
