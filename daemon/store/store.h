/*
 * What a backend is: a table of methods over whole values, by key. store.c holds the list of them.
 *
 * A backend keeps these promises, and the contract suite (tests/unit/test_store.c) holds it to
 * them:
 * - PUT without overwrite stores only if the key is absent, atomically, however many ask at once.
 * - A value that was stored is found by every later GET, whole, until it is deleted, cleared,
 *   evicted, replaced or past its end. Never a wrong byte: what is damaged is a miss and a log
 * line.
 * - A call finishes exactly once: it returns its status, or STORE_PENDING and then done() is called
 *   once, later, on the loop that asked, never from inside the call.
 *
 * A backend knows no connection and no protocol. It does not hold leases, wait for anything but its
 * own storage, or retry for the caller.
 */
#ifndef LIARA_STORE_H
#define LIARA_STORE_H

#include "../../proto/message.h"
#include "../loop.h"
#include "../pinned.h"
#include "../value.h"
#include "hash.h"

struct config;
struct store;
struct store_call;

enum store_status {
    STORE_OK,      /* found, stored, deleted, cleared, inspected, persisted */
    STORE_MISS,    /* GET, HEAD, DELETE: not there */
    STORE_EXISTS,  /* PUT: there already, left as it was */
    STORE_PENDING, /* done() will follow */
    STORE_FAILED   /* result.error and result.text say why */
};

enum store_op {
    STORE_GET,
    STORE_HEAD,
    STORE_PUT,
    STORE_DELETE,
    STORE_CLEAR,   /* of all keys with a prefix */
    STORE_INSPECT, /* likewise */
    STORE_PERSIST
};

/* What is asked. The caller fills it, and leaves it and the key as they are until the call has
 * finished. */
struct store_request {
    enum store_op op;
    uint32_t key_length;
    const uint8_t *key;  /* CLEAR, INSPECT: the prefix, of 0 bytes too */
    uint64_t hash;       /* the key's, as the store hashes; set by store_submit() */
    struct value *value; /* PUT: the store takes the reference and nulls the field, in any case */
    uint32_t cost;       /* PUT: milliseconds that the value took to compute, if has_cost */
    bool has_cost;
    bool overwrite; /* PUT */
    /* GET: a store that answers at once may copy the value's bytes to room, if they are no more
     * than room_size (0: it may not). */
    uint32_t room_size;
    uint8_t *room;
    struct loop *loop; /* on whose thread the call was made, and done() runs */
};

/* What went since the start because there was no room for it. */
struct store_evicted {
    uint64_t entries, bytes; /* bytes of keys and values */
    uint64_t cost;           /* milliseconds that it takes to compute them again */
};

/* What has become of it. */
struct store_result {
    enum store_status status;
    enum error_code error; /* STORE_FAILED, with text */

    /* GET: one of three: a reference that is the caller's; bytes that are pinned, the caller's to
     * release soon; or a copy in request.room. HEAD: none. */
    struct value *value;
    struct pinned pinned;
    bool copied;

    bool approximate;             /* INSPECT: entries or size may be off */
    bool durable;                 /* PERSIST: false for a backend without stable storage */
    uint32_t flags;               /* HEAD, and GET unless it is by reference */
    uint64_t length;              /* likewise */
    int64_t expires;              /* likewise */
    uint64_t entries;             /* CLEAR: how many were removed; INSPECT: how many there are */
    uint64_t size;                /* INSPECT: their bytes of keys and values */
    uint64_t unwritten;           /* INSPECT, of the whole store: bytes that are not on disk yet */
    uint64_t lost;                /* likewise: entries that were lost because the disk failed */
    struct store_evicted evicted; /* likewise; 0 where it can't tell */
    char text[MESSAGE_TEXT_MAX];
};

struct store_call {
    struct store *store; /* set by store_submit() */
    struct store_request request;
    struct store_result result;
    void (*done)(struct store_call *call); /* if store_submit() has returned STORE_PENDING */
};

typedef enum store_status store_method(struct store *store, struct store_call *call);

struct store_ops {
    const char *name;  /* as the configuration spells it, "sqlite" */
    const char *title; /* as INSPECT shows it, "Sqlite3" */

    /* What a call has changed is where it belongs once the call has finished: at the end nothing is
     * left to be persisted. */
    bool writes_through;

    /* It keeps its data in config->directory: store.c makes it (mode 0700) and locks it. */
    bool in_directory;

    /* NULL, and why in one line: what was wrong, with which object, what would be right. */
    struct store *(*open)(const struct config *config, char *why, size_t size);
    /* After the last call has finished. */
    void (*close)(struct store *store);

    /* For a backend that works on the callers' loops: called once on each loop's thread before its
     * first call and after its last; loops are numbered by loop_index(). May be NULL. */
    bool (*attach)(struct store *store, struct loop *loop);
    void (*detach)(struct store *store, struct loop *loop);

    /* As store_set_max_size(), for a store that has another behind it; may be NULL. */
    void (*set_max_size)(struct store *store, uint64_t bytes);

    store_method *get, *head, *put, *delete, *clear, *inspect, *persist;
};

/* What every backend's own struct begins with; filled by store_open(). */
struct store {
    const struct store_ops *ops;
    int lock;                        /* of the directory, or -1 */
    const struct hash_key *hash_key; /* the store's own; NULL: store_hash() */
    _Atomic uint64_t max_size;       /* bytes; may change while running */
};

/* The backends' own tables, one a file. */
extern const struct store_ops store_null, store_memory, store_filesystem, store_sqlite, store_redis;

/* The table of that name, or NULL. store_names() lists them, "memory, filesystem, …", static. */
const struct store_ops *store_find(const char *name);
const char *store_names(void);

/* Opens a backend as config says: locks its directory, starts its threads. NULL, and why. */
struct store *store_open(const struct store_ops *ops, const struct config *config, char *why,
                         size_t size);

/* Sets the bound on the bytes it keeps; what is over it goes in the background. Any thread. */
void store_set_max_size(struct store *store, uint64_t bytes);

/* Finishes what is queued, closes. The loops must still accept posts. NULL is fine. */
void store_close(struct store *store);

/* See store_ops.attach; fine for backends that have none. */
bool store_attach(struct store *store, struct loop *loop);
void store_detach(struct store *store, struct loop *loop);

/*
 * Starts the call: op, key, key_length, value, overwrite, loop and done are set by the caller,
 * which keeps *call in place until it has finished. Returns the status, which call->result.status
 * has too, or STORE_PENDING. The loop's own thread only.
 */
enum store_status store_submit(struct store *store, struct store_call *call);

/* For backends: fills error and text, returns STORE_FAILED. */
enum store_status store_fail(struct store_call *call, enum error_code error, const char *format,
                             ...) __attribute__((format(printf, 3, 4)));

/* For backends: a value for the call's key with length bytes to fill, or NULL with the call failed
 * as busy (too many bytes in flight) or internal (no memory). */
struct value *store_new_value(struct store_call *call, uint64_t length);

/* The hash of a key. Seeded anew in each run, so that nobody can choose keys that collide: it must
 * not reach a disk. Any thread. */
uint64_t store_hash(const uint8_t *key, size_t length);

/* The hash of a key as the store's calls have it. Any thread. */
uint64_t store_key_hash(const struct store *store, const uint8_t *key, size_t length);

/* Whether the value is past its end at clock_now()'s time now. */
bool store_expired(int64_t expires, int64_t now);

#endif
