#include "hash.h"

#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

void hash_key_from(struct hash_key *key, const uint8_t *secret, size_t size)
{
    for (size_t at = 0; at < sizeof(key->secret); at += sizeof(uint64_t)) {
        uint64_t part = XXH3_64bits_withSeed(secret, size, at);
        memcpy(key->secret + at, &part, sizeof(part));
    }
}

void hash_key_random(struct hash_key *key)
{
    uint8_t secret[32] = {0};
    if (getrandom(secret, sizeof(secret), GRND_NONBLOCK) != (ssize_t)sizeof(secret)) {
        pid_t pid = getpid();
        memcpy(secret, &pid, sizeof(pid));
    }
    hash_key_from(key, secret, sizeof(secret));
}

uint64_t hash_of(const struct hash_key *key, const uint8_t *bytes, size_t length)
{
    return XXH3_64bits_withSecret(bytes, length, key->secret, sizeof(key->secret));
}
