#include "filesystem_filing.h"

#include "../clock.h"
#include "../log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    STEP = 32,          /* entries */
    QUIET_MS = 500,     /* without an append: a pause */
    LONGEST_MS = 30000, /* without one */
    IDLE_MS = 1000,     /* between looks at an empty journal */
    RETRY_MS = 1000,
    NICE = 19
};

static bool begin_walk(struct fs_filing *filing)
{
    if (!filing->walking)
        filing->walking = fs_journal_walk(filing->tree->journal, filing->segment, &filing->walk);
    return filing->walking;
}

static void end_walk(struct fs_filing *filing, enum fs_filing_phase next)
{
    if (filing->walking)
        fs_segment_walk_end(&filing->walk);
    filing->walking = false;
    filing->phase = next;
}

/* Where the walk can't go on it begins again. */
static int walked(struct fs_filing *filing, enum fs_filing_phase next)
{
    int error = filing->walk.error;
    end_walk(filing, error == 0 ? next : filing->phase);
    return error;
}

static int file_one(struct fs_filing *filing, const struct fs_segment_item *item)
{
    int error = fs_tree_file(filing->tree, item);
    if (error == 0)
        filing->make_room(filing->arg, fs_index_cost(filing->tree->index, 0, item->length));
    return error;
}

static int file_entries(struct fs_filing *filing)
{
    struct fs_segment_item item;
    if (!begin_walk(filing))
        return ENOMEM;
    for (unsigned i = 0; i < STEP; i++) {
        if (!fs_segment_walk_next(&filing->walk, &item))
            return walked(filing, FS_SYNC_FILES);
        int error = item.image != NULL ? file_one(filing, &item) : 0;
        if (error != 0) {
            fs_segment_walk_back(&filing->walk, &item);
            return error;
        }
    }
    return 0;
}

/* After a failure the kernel takes what it lost for clean, so all is written again. */
static int sync_files(struct fs_filing *filing)
{
    int error = syncfs(filing->root) == 0 ? 0 : errno;
    end_walk(filing, error == 0 ? FS_REMOVE_SEGMENT : FS_FILE_ENTRIES);
    return error;
}

/* Before the index knows of the files: a change of one would leave no record behind, and a segment
 * that came back would bring back what was before it. */
static int remove_segment(struct fs_filing *filing)
{
    int error = fs_journal_remove(filing->tree->journal, filing->segment);
    if (error == 0)
        filing->phase = FS_CHANGE_INDEX;
    return error;
}

static int change_index(struct fs_filing *filing)
{
    struct fs_segment_item item;
    if (!begin_walk(filing))
        return ENOMEM;
    filing->walk.silent = true;
    while (fs_segment_walk_next(&filing->walk, &item)) {
        if (item.image != NULL)
            fs_tree_filed(filing->tree, &item);
    }
    int error = walked(filing, FS_FILE_ENTRIES);
    if (error != 0)
        return error;
    fs_journal_drop(filing->tree->journal, filing->segment);
    filing->segment = 0;
    filing->overdue = clock_now() + LONGEST_MS;
    return 0;
}

/* A step; returns the milliseconds until the next is due. In a hurry it waits for no pause. */
static int step(struct fs_filing *filing, bool hurry)
{
    static int (*const phases[])(struct fs_filing *) = {[FS_FILE_ENTRIES] = file_entries,
                                                        [FS_SYNC_FILES] = sync_files,
                                                        [FS_REMOVE_SEGMENT] = remove_segment,
                                                        [FS_CHANGE_INDEX] = change_index};
    struct fs_journal *journal = filing->tree->journal;
    bool now = hurry || fs_journal_quiet_for(journal) >= QUIET_MS || clock_now() > filing->overdue;
    if (!now && !fs_journal_is_pressed(journal))
        return QUIET_MS;
    if (filing->segment == 0) {
        fs_tree_begin_store(filing->tree);
        filing->segment = fs_journal_oldest(journal, now);
        fs_tree_end_store(filing->tree);
    }
    if (filing->segment == 0) {
        filing->overdue = clock_now() + LONGEST_MS;
        return IDLE_MS;
    }
    int error = phases[filing->phase](filing);
    if (error == 0)
        return 0;
    fs_tree_complain(filing->tree, error, "can't bring the journal's entries to their files");
    return RETRY_MS;
}

static int idle(void *arg)
{
    struct fs_filing *filing = arg;
    if (!filing->nice)
        setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    filing->nice = true;
    return step(filing, false);
}

bool fs_filing_start(struct fs_filing *filing, struct fs_tree *tree,
                     void (*make_room)(void *arg, uint64_t bytes), void *arg, char *why,
                     size_t size)
{
    const struct pool_hooks hooks = {.arg = filing, .idle = idle};
    *filing = (struct fs_filing){.tree = tree,
                                 .make_room = make_room,
                                 .arg = arg,
                                 .root = open(tree->directory, O_RDONLY | O_CLOEXEC),
                                 .overdue = clock_now() + LONGEST_MS};
    if (filing->root >= 0)
        filing->pool = pool_new("filing", 1, &hooks);
    if (filing->pool != NULL)
        return true;
    snprintf(why, size, "can't start the thread that files entries in %s: %s", tree->directory,
             strerror(errno));
    if (filing->root >= 0)
        close(filing->root);
    return false;
}

void fs_filing_end(struct fs_filing *filing, int64_t milliseconds)
{
    int64_t until = clock_now() + milliseconds;
    pool_free(filing->pool);
    while (clock_now() < until && step(filing, true) == 0)
        ;
    end_walk(filing, FS_FILE_ENTRIES);
    close(filing->root);
}
