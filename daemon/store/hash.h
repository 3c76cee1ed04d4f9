/*
 * The hash that stands for a key in tables and on disk. It is keyed: without the key nobody can
 * choose keys that collide.
 */
#ifndef LIARA_STORE_HASH_H
#define LIARA_STORE_HASH_H

#include <stddef.h>
#include <stdint.h>

enum { HASH_KEY_SIZE = 192 };

struct hash_key {
    uint8_t secret[HASH_KEY_SIZE];
};

/* A key made of size bytes that are kept secret; the same bytes make the same key. */
void hash_key_from(struct hash_key *key, const uint8_t *secret, size_t size);

/* A key of this run's own. Where the kernel has no random bytes yet, hashes are guessable. */
void hash_key_random(struct hash_key *key);

uint64_t hash_of(const struct hash_key *key, const uint8_t *bytes, size_t length);

#endif
