/*
 * A cached value: its key, its bytes, the client's flags, when it ends. Reference-counted and moved
 * by pointer; only where a few bytes are sent or a descriptor is wanted is it copied. Once it is
 * filled and handed on, key and bytes never change, so several threads may read and send it at
 * once.
 *
 * All live values together are bounded by value_set_limit(): beyond it value_new() fails, which is
 * what keeps 1,000 clients that each ask for a large thing from exhausting the memory.
 */
#ifndef LIARA_VALUE_H
#define LIARA_VALUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One less than fits a length: behind the bytes stands an LF. */
#define VALUE_LENGTH_MAX (UINT32_MAX - 1)

enum {
    /* So many have a descriptor at most; see value_share(). */
    VALUE_SHARED_MAX = 4096,
    /* Bytes of a value up to which copying them costs less than counting a reference and sending
     * them as a piece of its own. */
    VALUE_COPY_MAX = 256
};

struct value {
    atomic_uint references;
    uint32_t flags;
    uint32_t length;           /* of the bytes */
    uint16_t key_length;       /* 1 to MESSAGE_KEY_MAX */
    _Atomic uint16_t shared;   /* see value_share(): a slot, or how far it is */
    int64_t expires;           /* clock_now()'s milliseconds, or CLOCK_NEVER */
    union {                    /* the memory store's alone, into which a value comes once */
        _Atomic uint64_t used; /* when it was last, in the store's own time */
        struct value *next;    /* among those taken out together */
    };
    uint8_t data[]; /* the key, the bytes, and an LF, with which they are sent */
};

/* Bytes that all live values may hold together, with their headers; UINT64_MAX: no bound. Any
 * thread. */
void value_set_limit(uint64_t bytes);

/* Bytes that all live values hold. Any thread. */
uint64_t value_total(void);

/*
 * A new value with one reference, its key copied in, length bytes to be filled by the caller
 * through value_bytes(), no flags and no end. NULL with errno ENOBUFS where the limit is reached
 * (the caller answers ERROR busy) or ENOMEM. Any thread.
 */
struct value *value_new(const uint8_t *key, size_t key_length, uint32_t length);

/* One more reference; returns value. Any thread that holds one. */
struct value *value_ref(struct value *value);

/* Gives a reference up; the last frees. NULL is fine. Any thread. */
void value_unref(struct value *value);

/*
 * A store that keeps the value within a bound of its own takes its bytes out of value_total() while
 * it does; value_take_back() counts them again. Each once, by the holder of a reference. Any
 * thread.
 */
void value_hand_over(struct value *value);
void value_take_back(struct value *value);

/*
 * The descriptor of a sealed memfd with the value's bytes and an LF, for clients to read them
 * without a copy through the socket, and for the socket to take them without a copy; it stays the
 * value's. value_shared() returns it, or -1.
 *
 * value_worth_sharing() is asked for each GET, which goes through the socket otherwise: true where
 * making a descriptor is worth its cost, by the value's length and by how often it was asked for,
 * no other is being made, and no bound on the number and the bytes of all of them is reached. Then
 * the caller sees to it that value_share() makes it, which copies the bytes once, and is false
 * where it failed; or that value_share_not() says that there will be none yet. Any thread that
 * holds a reference.
 */
int value_shared(const struct value *value);
bool value_worth_sharing(struct value *value, bool as_descriptor);
bool value_share(struct value *value);
void value_share_not(struct value *value);

/* How many descriptors value_share() may use, VALUE_SHARED_MAX at most and at first. Any thread. */
void value_set_shared_limit(unsigned descriptors);

static inline const uint8_t *value_key(const struct value *value)
{
    return value->data;
}

static inline uint8_t *value_bytes(struct value *value)
{
    return value->data + value->key_length;
}

/* What the value costs in memory, header and key included. */
static inline uint64_t value_cost(const struct value *value)
{
    return sizeof(*value) + value->key_length + value->length + 1;
}

#endif
