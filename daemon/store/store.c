#include "store.h"

#include "../clock.h"
#include "../config.h"
#include "../container_of.h"
#include "../lock.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const struct store_ops *const backends[] = {
    &store_memory, &store_filesystem, &store_sqlite, &store_redis, &store_null,
};

enum { BACKENDS = sizeof(backends) / sizeof(backends[0]) };

const struct store_ops *store_find(const char *name)
{
    for (size_t i = 0; i < BACKENDS; i++) {
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    }
    return NULL;
}

const char *store_names(void)
{
    return "memory, filesystem, sqlite, redis, null";
}

static enum store_status run_method(struct store *store, struct store_call *call)
{
    const struct store_ops *ops = store->ops;
    switch (call->request.op) {
    case STORE_GET:
        return ops->get(store, call);
    case STORE_HEAD:
        return ops->head(store, call);
    case STORE_PUT:
        return ops->put(store, call);
    case STORE_DELETE:
        return ops->delete (store, call);
    case STORE_CLEAR:
        return ops->clear(store, call);
    case STORE_INSPECT:
        call->result.unwritten = call->result.lost = 0;
        call->result.evicted = (struct store_evicted){.entries = 0};
        return ops->inspect(store, call);
    case STORE_PERSIST:
        break;
    }
    return ops->persist(store, call);
}

/* As mkdir -p; the folders that it makes are the owner's alone. */
static bool make_directory(const char *path, char *why, size_t size)
{
    char part[4096];
    size_t length = strlen(path);
    if (length >= sizeof(part)) {
        snprintf(why, size, "the path of the directory is longer than %zu bytes", sizeof(part) - 1);
        return false;
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST) {
            snprintf(why, size, "can't make the directory %s: %s", part, strerror(errno));
            return false;
        }
    }
    return true;
}

/* Returns the lock's descriptor, -1 with why. */
static int take_directory(const struct config *config, char *why, size_t size)
{
    char path[4096], what[256];
    if (!make_directory(config->directory, why, size))
        return -1;
    if ((size_t)snprintf(path, sizeof(path), "%s/lock", config->directory) >= sizeof(path)) {
        snprintf(why, size, "the path of the directory is too long");
        return -1;
    }
    snprintf(what, sizeof(what), "the store in %s", config->directory);
    return lock_take(path, what, why, size);
}

struct store *store_open(const struct store_ops *ops, const struct config *config, char *why,
                         size_t size)
{
    int lock = ops->in_directory ? take_directory(config, why, size) : -1;
    if (ops->in_directory && lock < 0)
        return NULL;
    struct store *store = ops->open(config, why, size);
    if (store == NULL) {
        if (lock >= 0)
            close(lock);
        return NULL;
    }
    store->ops = ops;
    store->lock = lock;
    atomic_store(&store->max_size, config->max_size);
    return store;
}

void store_set_max_size(struct store *store, uint64_t bytes)
{
    atomic_store(&store->max_size, bytes);
    if (store->ops->set_max_size != NULL)
        store->ops->set_max_size(store, bytes);
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    int lock = store->lock;
    store->ops->close(store);
    if (lock >= 0)
        close(lock);
}

bool store_attach(struct store *store, struct loop *loop)
{
    return store->ops->attach == NULL || store->ops->attach(store, loop);
}

void store_detach(struct store *store, struct loop *loop)
{
    if (store->ops->detach != NULL)
        store->ops->detach(store, loop);
}

uint64_t store_key_hash(const struct store *store, const uint8_t *key, size_t length)
{
    return store->hash_key != NULL ? hash_of(store->hash_key, key, length)
                                   : store_hash(key, length);
}

enum store_status store_submit(struct store *store, struct store_call *call)
{
    call->request.hash = store_key_hash(store, call->request.key, call->request.key_length);
    call->result.copied = false;
    call->result.pinned.bytes = NULL;
    if (call->request.op != STORE_PUT)
        call->request.value = NULL;
    call->result.value = NULL;
    call->store = store;
    if (call->request.op != STORE_GET)
        call->request.room_size = 0;
    call->result.status = STORE_PENDING;
    enum store_status status = run_method(store, call);
    if (status != STORE_PENDING) /* else the call may already be another thread's */
        call->result.status = status;
    return status;
}

enum store_status store_fail(struct store_call *call, enum error_code error, const char *format,
                             ...)
{
    va_list args;
    call->result.error = error;
    va_start(args, format);
    vsnprintf(call->result.text, sizeof(call->result.text), format, args);
    va_end(args);
    return STORE_FAILED;
}

struct value *store_new_value(struct store_call *call, uint64_t length)
{
    if (length > VALUE_LENGTH_MAX) {
        store_fail(call, ERROR_TOO_LARGE, "the stored value has %llu bytes, more than can be sent",
                   (unsigned long long)length);
        return NULL;
    }
    struct value *value = value_new(call->request.key, call->request.key_length, (uint32_t)length);
    if (value == NULL && errno == ENOBUFS)
        store_fail(call, ERROR_BUSY, "too many bytes are in flight; try again (max-inflight)");
    else if (value == NULL)
        store_fail(call, ERROR_INTERNAL, "out of memory for a value of %llu bytes",
                   (unsigned long long)length);
    return value;
}

static uint64_t seed;

static void make_seed(void)
{
    /* Where the kernel has no random bytes yet the hash is merely guessable. */
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed))
        seed = (uint64_t)getpid();
}

uint64_t store_hash(const uint8_t *key, size_t length)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_seed);
    return XXH3_64bits_withSeed(key, length, seed);
}

bool store_expired(int64_t expires, int64_t now)
{
    return expires <= now;
}
