/*
 * Leases: who is to compute a missing key, and who waits for it. Many sessions that miss the same
 * key at once become one that computes and others that are told, each on its own loop; nobody
 * polls.
 *
 * It knows keys and sessions, not whether a key is stored: the cache looks that up.
 */
#ifndef LIARA_LEASE_H
#define LIARA_LEASE_H

#include "loop.h"
#include "value.h"

struct leases;
struct lease;

/* One who can hold leases and wait for one at a time: lives in a connection's session. */
struct lease_session {
    struct leases *leases;
    struct loop *loop;
    struct lease *held;      /* a list, under the table's lock */
    unsigned held_count;     /* likewise */
    struct loop_timer timer; /* the first end among those held; the loop's thread only */
    int64_t timer_due;

    /* The one wait. */
    struct loop_task task;
    struct lease *waits_for; /* under the table's lock; NULL: not in line */
    struct lease_session *next, **link;
    uint32_t seconds;
    bool told;           /* its task is posted, under the table's lock */
    bool granted;        /* what ready() is told */
    struct value *value; /* likewise; a reference for the session */

    /*
     * The end of a wait, on the session's loop: granted: the session holds the lease now; else
     * value is what was PUT (the callee's reference) or NULL: look again.
     */
    void (*ready)(struct lease_session *session, bool granted, struct value *value);
};

enum lease_answer {
    LEASE_GRANTED, /* the session holds it */
    LEASE_WAIT,    /* ready() follows */
    LEASE_REFUSED  /* no memory, or the session holds max already */
};

/* A table for all workers. NULL where memory is short. */
struct leases *leases_new(void);

/* Every session has ended. NULL is fine. */
void leases_free(struct leases *leases);

/* The rest of *session is zeroed by it; ready as above. The loop's thread. */
void lease_session_start(struct lease_session *session, struct leases *leases, struct loop *loop,
                         void (*ready)(struct lease_session *, bool, struct value *));

/*
 * Asks for the lease on the key for seconds; one who holds it already has it renewed. max: leases
 * that the session may hold. The session's loop.
 */
enum lease_answer lease_ask(struct lease_session *session, const uint8_t *key, size_t length,
                            uint64_t hash, uint32_t seconds, unsigned max);

/* Whether any lease is held at all; cheap, and true for every lease granted before the question.
 * Any thread. */
bool lease_any(struct leases *leases);

/* Milliseconds since the lease on the key was granted to its holder, who may have renewed it since;
 * -1: nobody holds it. Any thread. */
int64_t lease_age(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash);

/* The key has come: its lease ends and all who wait are told. value: what came (a reference is
 * taken for each), or NULL: they are to look again. Any thread. */
void lease_fulfil(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash,
                  struct value *value);

/* The lease on the key ends without a value; the next in line gets it. Any thread. */
void lease_pass_on(struct leases *leases, const uint8_t *key, size_t length, uint64_t hash);

/* Whether the session holds any or waits for one. The session's loop. */
bool lease_busy(struct lease_session *session);

/*
 * Takes the session out of its line and passes on all it holds. true: it is done with; false:
 * ready() is on its way, after which this is to be called again. The session's loop.
 */
bool lease_session_end(struct lease_session *session);

#endif
