/* What the engine's own files share: engine.c (requests for one key), disk.c (reading, and what the
 * backing asks), walk.c (requests about a prefix). */
#ifndef LIARA_ENGINE_INTERNAL_H
#define LIARA_ENGINE_INTERNAL_H

#include "../../container_of.h"
#include "clean.h"
#include "engine.h"
#include "entries.h"
#include "writer.h"

enum { BAR_EVERY = 1024 /* records that the disk asks about, between two settings of the bar */ };

struct engine {
    struct store store;
    struct entries entries;
    struct cleaner cleaner;

    /* With a disk; else NULL. */
    const struct backing_ops *ops;
    struct backing *backing;
    struct writer *writer;
    struct pool *readers;     /* read what the page cache does not have */
    struct pool *walkers;     /* go over all that is on disk: CLEAR, INSPECT */
    struct hash_key hash_key; /* the store's own, kept with it */
    unsigned judged;          /* records; the writer's thread alone */
};

static inline struct engine *engine_of(struct store *store)
{
    return container_of(store, struct engine, store);
}

/* A call that goes on in steps on its loop. */
struct steps {
    struct writer_wait wait; /* its task runs the next step */
    struct engine *engine;
    struct store_call *call;
    int64_t until;   /* clock_coarse() at which it gives up, for want of room */
    unsigned shard;  /* of a walk */
    uint64_t cursor; /* in it */
    /* STORE_PENDING: a further step is due; at once, or if wants_writer once it has room. */
    enum store_status (*step)(struct steps *steps);
    bool wants_writer;
};

/* Has the call go on by step. STORE_PENDING, or STORE_FAILED for want of memory. */
enum store_status steps_start(struct engine *engine, struct store_call *call,
                              enum store_status (*step)(struct steps *));

/* Finds the call's key. wait: this thread may wait for the disk; else STORE_PENDING says that it
 * would have to. With wait, nothing is copied into the call's room. */
enum store_status engine_look_up(struct engine *engine, struct store_call *call, bool wait);

/* Fails the call with what the errno means for a client. */
enum store_status engine_fail(struct store_call *call, int error);

/* Puts a value that was read into memory as a copy of the record at place, if there is room. */
void engine_promote(struct engine *engine, struct store_call *call, struct value *value,
                    uint64_t place);

/* Reads the record at place for the call, as engine_look_up(): STORE_OK with call->result.value.
 * *again: the index is to be asked anew. */
enum store_status disk_read(struct engine *engine, struct store_call *call, uint64_t place,
                            uint64_t size, bool wait, bool *again);

/* What lies at place can't be read, or is not there: if the index still says so, it is a miss from
 * here on. */
void disk_drop(struct engine *engine, uint64_t hash, uint64_t place);

/* Has a thread go on with a look-up that would have to wait. */
enum store_status disk_look_up_later(struct engine *engine, struct store_call *call);

/* What the backing is given at open(). */
struct backing_owner disk_owner(struct engine *engine);

#endif
