#include "share.h"

#include "container_of.h"

static void share_run(struct pool_task *task)
{
    value_share(container_of(task, struct share, task)->value);
}

static void share_finished(struct pool_task *task)
{
    struct share *share = container_of(task, struct share, task);
    share->done(share);
}

void share_start(struct share *share, struct pool *pool, struct loop *loop, struct value *value,
                 void (*done)(struct share *share))
{
    *share = (struct share){
        .task = {.loop = loop, .run = share_run, .finished = share_finished},
        .value = value,
        .done = done,
    };
    pool_submit(pool, &share->task);
}
