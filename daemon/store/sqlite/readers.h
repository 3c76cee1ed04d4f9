/*
 * The connections that only read, handed out to whichever thread reads. There is a fixed number of
 * them, opened with the database, so that no client's descriptors take their place; a thread that
 * finds none waits for one.
 *
 * A connection reads one moment's database and keeps the log from beginning anew for as long, so no
 * reading spans a call of the engine's.
 */
#ifndef LIARA_STORE_SQLITE_READERS_H
#define LIARA_STORE_SQLITE_READERS_H

#include "database.h"
#include "record.h"

#include <pthread.h>

enum { READERS = 4, SCAN_PAGE = 64 /* records that a scan reads at a time */ };

struct sqlite_reader {
    struct sqlite_connection connection;
    uint64_t epoch; /* of the database it has open; 0: none */
    struct sqlite_reader *next;
};

struct sqlite_readers {
    const char *path;
    uint64_t seed;
    _Atomic uint64_t epoch; /* counts the databases that were begun; 0 while there is none */
    uint64_t epochs;        /* the last one; the writer's */
    pthread_mutex_t lock;   /* of free and next */
    pthread_cond_t freed;
    struct sqlite_reader *free;
    struct sqlite_reader all[READERS];
};

void sqlite_readers_init(struct sqlite_readers *readers, const char *path, uint64_t seed);

/* Opens those that no thread has for the database that is there from now on; what can't be opened
 * yet is tried again when it is used. The writer's thread. */
void sqlite_readers_begin(struct sqlite_readers *readers);

/* Nothing of the database that was there is read from now on, but by who has begun. The writer's.
 */
void sqlite_readers_end(struct sqlite_readers *readers);

/* No reading is under way. */
void sqlite_readers_destroy(struct sqlite_readers *readers);

/* As backing_ops.read and scan. */
enum backing_read sqlite_readers_read(struct sqlite_readers *readers, uint64_t place,
                                      const uint8_t *key, size_t key_length, struct value **value);
bool sqlite_readers_scan(struct sqlite_readers *readers, uint64_t *cursor,
                         bool (*found)(void *arg, const struct backing_found *found), void *arg);

#endif
