/*
 * What the SQLite store's readers, which can't write, leave for its writer: which entries were used
 * last, and which are damaged. Bounded: what does not fit is forgotten. Any thread.
 */
#ifndef LIARA_STORE_SQLITE_NOTES_H
#define LIARA_STORE_SQLITE_NOTES_H

#include "sqlite_connection.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SQ_USES = 32768, SQ_SUSPECTS = 16 };

struct sq_use {
    int64_t id; /* 0: none */
    int64_t tick;
};

struct sq_suspect {
    int64_t id;
    struct sq_key key;
};

struct sq_notes {
    _Atomic int64_t tick; /* the last one given: orders ids and uses, goes on from run to run */
    pthread_mutex_t lock; /* of what follows */
    struct sq_use uses[SQ_USES];
    unsigned uses_count;
    struct sq_suspect suspects[SQ_SUSPECTS];
    unsigned suspects_count;
};

void sq_notes_init(struct sq_notes *notes);
void sq_notes_destroy(struct sq_notes *notes);

/* Forgets all: they are about a database that is gone. */
void sq_notes_clear(struct sq_notes *notes);

/* A number larger than all before. */
int64_t sq_notes_tick(struct sq_notes *notes);

/* The entry of that id was used now. */
void sq_notes_use(struct sq_notes *notes, int64_t id);

unsigned sq_notes_uses(struct sq_notes *notes);

/* Takes the last use of that id out, or that of any id at slot; false where there is none. */
bool sq_notes_take_use(struct sq_notes *notes, int64_t id, struct sq_use *use);
bool sq_notes_take_slot(struct sq_notes *notes, unsigned slot, struct sq_use *use);

/* The entry of that id and key is damaged. */
void sq_notes_suspect(struct sq_notes *notes, int64_t id, const uint8_t *key, size_t length);

/* Takes one of them out; false where there is none. */
bool sq_notes_take_suspect(struct sq_notes *notes, struct sq_suspect *suspect);

#endif
