/* Finds the daemon's socket and connects to it. */
#ifndef LIARA_CLIENT_CONNECT_H
#define LIARA_CLIENT_CONNECT_H

#include "liara_cache.h"

/*
 * Connects cache->wire to cache->socket or, where that is NULL, to the first of the default places
 * where somebody answers; sets cache->path. Takes what is left of cache->timeout milliseconds since
 * wire_call() for all of them.
 */
enum liara_cache_status connect_socket(struct liara_cache *cache);

#endif
