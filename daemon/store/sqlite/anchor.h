/*
 * The anchor: a small file beside the database that says which database counts and how far it must
 * go. What is damaged in SQLite's write-ahead log cuts the log there, and every page that the lost
 * commits had changed is an older one again. SQLite can't tell that from a crash; the anchor can.
 *
 * It lies in two slots, each in a sector of its own with its own checksum, which are written in
 * turns: a crash in the middle of a write, or a damaged spot, leaves the other.
 *
 * What returns an int returns 0 or an errno. One thread at a time.
 */
#ifndef LIARA_STORE_SQLITE_ANCHOR_H
#define LIARA_STORE_SQLITE_ANCHOR_H

#include "../engine/backing.h"

struct sqlite_anchor {
    int fd;
    bool found;       /* the file was there, and sound */
    uint64_t id;      /* of the one database that counts; any other one is void */
    uint64_t commits; /* that it must have: fewer mean that synced changes are gone from it */
    uint64_t serial;  /* of the last write; its lowest bit chooses the slot */
    uint8_t secret[BACKING_SECRET];
};

/*
 * Opens or makes the file and reads it. Where it is new or damaged, found is false and the secret
 * new; then sqlite_anchor_begin() comes next. EPROTO: a newer program's, which stays untouched.
 */
int sqlite_anchor_open(struct sqlite_anchor *anchor, int directory, const char *name);

/* Makes a new id and declares every database but the one with it void, durably. commits is 0. */
int sqlite_anchor_begin(struct sqlite_anchor *anchor);

/* Declares durably that the database must have so many commits. After a failure the slot in use is
 * as it was, and the next call writes the other one anew. */
int sqlite_anchor_advance(struct sqlite_anchor *anchor, uint64_t commits);

/* Fine for one that is closed (fd -1). */
void sqlite_anchor_close(struct sqlite_anchor *anchor);

#endif
