/*
 * A set of keys by their hashes: enough to say that a key is certainly not among them, in 11 to 22
 * bytes a key. Two keys of one hash are one to it, and then removing one forgets both: with
 * store_hash()'s 64 bits and its seed of each run, nobody meets or makes two.
 */
#ifndef LIARA_STORE_KEYSET_H
#define LIARA_STORE_KEYSET_H

#include <stdbool.h>
#include <stdint.h>

struct keyset;

/* An empty one that is not certain yet: keyset_absent() says false to all. NULL: no memory. */
struct keyset *keyset_new(void);
void keyset_free(struct keyset *set);

/* Any thread may call these. An add that finds no memory makes the set uncertain for good. */
void keyset_add(struct keyset *set, uint64_t hash);
void keyset_remove(struct keyset *set, uint64_t hash);
void keyset_clear(struct keyset *set);

/* From here on the set is known to have every key that there is, or not to. */
void keyset_set_certain(struct keyset *set, bool certain);

/* Whether the key is certainly not there. */
bool keyset_absent(struct keyset *set, uint64_t hash);

#endif
