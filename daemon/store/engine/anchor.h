/*
 * The anchor: a small file beside a store's other files, which says how far they must reach. A cut
 * in the middle of a log looks like a crash: everything behind it is missing, and what it had
 * superseded would count again. The anchor holds the position up to which something had superseded
 * older records when that was last made durable; a store that ends before it has been damaged.
 *
 * It lies in two slots, each in a sector of its own with its own checksum. They say the same, and
 * are written one after the other: a crash in the middle of a write, or a damaged spot, leaves one.
 *
 * What returns an int returns 0 or an errno. One thread at a time.
 */
#ifndef LIARA_ENGINE_ANCHOR_H
#define LIARA_ENGINE_ANCHOR_H

#include "backing.h"

struct anchor {
    int fd;
    bool found;        /* the file was there, and sound */
    uint64_t id;       /* of the one set of files that counts; any other one is void */
    uint64_t position; /* that they must reach, in the backing's own terms */
    uint64_t serial;   /* of the last write; its lowest bit chooses the slot */
    uint8_t secret[BACKING_SECRET];
};

/*
 * Opens or makes the file and reads it. Where it is new or damaged, found is false and the secret
 * new; then anchor_begin() comes next. EPROTO: a newer program's, which stays untouched.
 */
int anchor_open(struct anchor *anchor, int directory, const char *name);

/* Makes a new id and declares all files but those with it void, durably. The position is 0. */
int anchor_begin(struct anchor *anchor);

/* Declares durably that the files must reach this position. After a failure the slot in use is as
 * it was, and the next call writes the other one anew. */
int anchor_advance(struct anchor *anchor, uint64_t position);

/* Fine for one that is closed (fd -1). */
void anchor_close(struct anchor *anchor);

#endif
