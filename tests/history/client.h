/*
 * A client that keeps a record of what it asked and what it was answered.
 *
 * The keys are KEYS fixed ones. Each value says which write it is: its length and bytes follow from
 * the number of the write (and the bytes from the key too), which also goes with it as its flags.
 * So a reply alone shows whose value it is and whether each byte of it is right.
 */
#ifndef LIARA_TESTS_CLIENT_H
#define LIARA_TESTS_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Keys stand in three groups, each under a prefix of its own; CLEAR is about one group or all. */
enum { KEYS = 25, GROUP = 10, GROUPS = 3, ALL_GROUPS = GROUPS, VALUE_MAX = 300000 };

enum verb {
    GET,
    GET_LEASE,
    GET_FD,
    HEAD,
    PUT,
    PUT_OVERWRITE,
    PUT_FD,
    DELETE,
    CLEAR,
    INSPECT,
    PERSIST
};

enum answer {
    NO_ANSWER, /* the connection ended before it came */
    FOUND,     /* VALUE, SIZE or FD: `write` is whose value it is */
    MISS,
    STORED,
    EXISTS,
    DELETED,
    OK,
    VOLATILE,
    ERROR,
    WRONG, /* what came is no answer to this, or bytes that nobody put */
};

struct record {
    uint64_t begin, end; /* nanoseconds; end is 0 if there was no answer */
    uint32_t write;      /* what it put or saw */
    uint32_t client;
    uint16_t key; /* or group, for CLEAR */
    uint16_t ttl; /* seconds, of a PUT; 0: none */
    uint8_t verb, answer;
    bool has_lease; /* the answer was MISS lease */
};

struct client {
    int fd;
    uint32_t number;
    uint8_t *in, *out, *value; /* VALUE_MAX bytes and some */
    size_t in_start, in_end, out_used;
    int descriptor;   /* came with the last line read, or -1 */
    char detail[160]; /* after ERROR or WRONG: what it was */
};

uint64_t now_ns(void);
/* 64 random bits after *state. */
uint64_t random_next(uint64_t *state);
/* A key as it is written in a request. The result is constant. */
const char *key_name(unsigned key);
size_t value_length(uint32_t write);
/* Fills bytes with the value_length() bytes of that write's value. */
void value_fill(uint8_t *bytes, unsigned key, uint32_t write);

/* False without memory. It is not connected yet. */
bool client_init(struct client *client, uint32_t number);
void client_free(struct client *client);
/* Connects, or connects anew, to the daemon at path; replies are waited for up to `seconds`. False
 * if it is not there. */
bool client_connect(struct client *client, const char *path, unsigned seconds);
void client_disconnect(struct client *client);

/* Sends requests; of each record verb, key and ttl are given and, for a PUT, write. At most 4 at
 * once, so that no reply stays unread for too long. Sets begin and client. False if the connection
 * is broken. */
bool client_send(struct client *client, struct record *records, size_t count);
/* Reads the answer to a record that was sent; answers come in order. False if the connection is
 * broken or nothing came in time: the answer is NO_ANSWER then, and errno says which (ETIMEDOUT).
 */
bool client_receive(struct client *client, struct record *record);

#endif
