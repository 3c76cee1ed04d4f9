/* Finds the daemon's socket and connects to it. */
#ifndef LIARA_CLIENT_CONNECT_H
#define LIARA_CLIENT_CONNECT_H

#include "liara_cache.h"

/*
 * Connects cache->wire to cache->socket or, where that is NULL, to the first of the default places
 * where somebody answers; sets cache->path. At most cache->timeout milliseconds for each.
 */
enum liara_cache_status connect_socket(struct liara_cache *cache);

#endif
