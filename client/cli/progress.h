/* A bar on standard error, for what takes more than half a second. */
#ifndef LIARA_CLI_PROGRESS_H
#define LIARA_CLI_PROGRESS_H

#include "../liara_cache.h"

struct progress {
    int64_t begun; /* monotonic milliseconds */
    bool shown;
};

/* Has the bar drawn during the calls with cache; *progress must live as long. */
void progress_start(struct progress *progress, struct liara_cache *cache);

/* Takes the bar away before anything else is printed; nothing where none is shown. */
void progress_clear(struct progress *progress);

#endif
