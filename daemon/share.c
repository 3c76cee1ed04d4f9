#include "share.h"

#include "container_of.h"

#include <stdlib.h>

struct share {
    struct pool_task task;
    struct value *value; /* a reference */
};

static void share_run(struct pool_task *task)
{
    value_share(container_of(task, struct share, task)->value);
}

static void share_finished(struct pool_task *task)
{
    struct share *share = container_of(task, struct share, task);
    value_unref(share->value);
    free(share);
}

void share_start(struct pool *pool, struct value *value)
{
    struct share *share = malloc(sizeof(*share));
    if (share == NULL) {
        value_share_not(value);
        return;
    }
    *share = (struct share){
        .task = {.run = share_run, .finished = share_finished},
        .value = value_ref(value),
    };
    pool_submit(pool, &share->task);
}
