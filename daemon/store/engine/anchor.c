#include "anchor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

enum { ANCHOR_VERSION = 1, SLOT_DISTANCE = 4096 };
static const char magic[8] = "liaraANC";

struct slot {
    char magic[8];
    uint64_t version;
    uint64_t serial;
    uint64_t id;
    uint64_t position;
    uint8_t secret[BACKING_SECRET];
    uint64_t check; /* over all before */
};

static uint64_t check_of(const struct slot *slot)
{
    return XXH3_64bits(slot, offsetof(struct slot, check));
}

static bool read_slot(int fd, unsigned number, struct slot *slot)
{
    ssize_t size = pread(fd, slot, sizeof(*slot), (off_t)number * SLOT_DISTANCE);
    return size == (ssize_t)sizeof(*slot) && memcmp(slot->magic, magic, sizeof(magic)) == 0 &&
           slot->check == check_of(slot);
}

static int write_slot(struct anchor *anchor, uint64_t serial, uint64_t position)
{
    struct slot slot = {
        .version = ANCHOR_VERSION, .serial = serial, .id = anchor->id, .position = position};
    memcpy(slot.magic, magic, sizeof(magic));
    memcpy(slot.secret, anchor->secret, sizeof(slot.secret));
    slot.check = check_of(&slot);
    ssize_t size = pwrite(anchor->fd, &slot, sizeof(slot), (off_t)(serial & 1) * SLOT_DISTANCE);
    if (size != (ssize_t)sizeof(slot))
        return size < 0 ? errno : ENOSPC;
    return 0;
}

static int fill_random(void *bytes, size_t size)
{
    return getrandom(bytes, size, 0) == (ssize_t)size ? 0 : EIO;
}

int anchor_open(struct anchor *anchor, int directory, const char *name)
{
    *anchor = (struct anchor){.fd = openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    if (anchor->fd < 0)
        return errno;
    for (unsigned i = 0; i < 2; i++) {
        struct slot slot;
        if (!read_slot(anchor->fd, i, &slot) || (anchor->found && slot.serial < anchor->serial))
            continue;
        if (slot.version > ANCHOR_VERSION)
            return EPROTO;
        anchor->found = true;
        anchor->serial = slot.serial;
        anchor->id = slot.id;
        anchor->position = slot.position;
        memcpy(anchor->secret, slot.secret, sizeof(anchor->secret));
    }
    return anchor->found ? 0 : fill_random(anchor->secret, sizeof(anchor->secret));
}

/* Both slots are written, so that no damage to one brings back what the other says of files that
 * were given up. */
int anchor_begin(struct anchor *anchor)
{
    int error = fill_random(&anchor->id, sizeof(anchor->id));
    anchor->position = 0;
    for (unsigned i = 0; i < 2 && error == 0; i++) {
        error = write_slot(anchor, anchor->serial + 1, 0);
        if (error == 0 && fdatasync(anchor->fd) != 0)
            error = errno;
        if (error == 0)
            anchor->serial++;
    }
    return error;
}

int anchor_advance(struct anchor *anchor, uint64_t position)
{
    int error = write_slot(anchor, anchor->serial + 1, position);
    if (error == 0 && fdatasync(anchor->fd) != 0)
        error = errno;
    if (error != 0)
        return error;
    anchor->serial++;
    anchor->position = position;
    /* The other slot says the same, so that damage to this one does not make an older position
     * count. The next sync takes it along; until then this slot alone has to be sound. */
    if (write_slot(anchor, anchor->serial + 1, position) == 0)
        anchor->serial++;
    return 0;
}

void anchor_close(struct anchor *anchor)
{
    if (anchor->fd >= 0)
        close(anchor->fd);
    anchor->fd = -1;
}
