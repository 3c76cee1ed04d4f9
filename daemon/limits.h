/*
 * The bounds that a client can run into, those of the configuration that may change while the
 * daemon runs. main.c fills them and fills them again at SIGHUP; every worker reads them, any time.
 */
#ifndef LIARA_LIMITS_H
#define LIARA_LIMITS_H

#include <stdatomic.h>
#include <stdint.h>

struct limits {
    _Atomic uint64_t max_value_size;
    _Atomic uint64_t max_inflight_per_connection; /* bytes of one connection's request */
    _Atomic uint64_t
        max_unread; /* reply bytes a client may leave unread before its next request waits */
    _Atomic uint32_t max_connections;
    _Atomic uint32_t max_leases;  /* that one connection may hold */
    _Atomic int64_t idle_timeout; /* milliseconds; 0: never */
    _Atomic int64_t
        request_timeout; /* milliseconds without a byte of a request or reply begun; 0: never */
};

#endif
