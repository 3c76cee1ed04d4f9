/*
 * Keeping within max_size. The oldest segment is emptied in steps: the owner judges its records,
 * what is worth it is appended anew, all that is synced, the file is removed, and only then does
 * the owner forget what was dropped. Until then it is still served.
 *
 * A tombstone in the oldest segment has nothing left to supersede: every older segment was removed,
 * and the directory synced, before this one's removal.
 */
#include "../../log.h"
#include "seglog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    DROPPED = 0x80,    /* in an item's kind: the owner is to forget it */
    WORK_PER_BYTE = 4, /* with up to 3/4 kept, a segment is empty before the next is full */
    WORK_LEAST = 64 * 1024,
    WORK_PER_FORGET = 16 * 1024,
    RETRY_MS = 1000
};

/* Whether CLEAR has left so much behind that it is worth copying the rest together. */
static bool is_compacting(struct seglog *log)
{
    uint64_t wanted = atomic_exchange(&log->compact_wanted, 0);
    uint64_t head = log->head != NULL ? log->head->disk : 0;
    uint64_t used = log->disk_bytes - (log->spare_fd >= 0 ? log->spare_disk : 0) - head;
    if (wanted > 0 && log->head != NULL && used > 2 * (wanted - 1))
        log->compact_below = log->head->number;
    if (log->compact_below > 0 &&
        (log->count < 2 || log->segments[0]->number >= log->compact_below))
        log->compact_below = 0;
    return log->compact_below > 0;
}

static bool is_over(const struct seglog *log)
{
    uint64_t next = log->spare_fd < 0 ? log->segment_size : 0;
    return log->disk_bytes + next > log->max_size;
}

/* All items of the segment, for as long as it is retired. 0 or errno. */
static int read_items(struct seglog *log, struct segment *segment, struct seglog_retirement *to)
{
    struct segment_page *page = malloc(sizeof(*page));
    uint32_t count = segment->list.items != NULL ? segment->list.count : segment->count;
    to->items = malloc((count + 1) * sizeof(struct log_item));
    to->count = 0;
    int error = page != NULL && to->items != NULL ? 0 : ENOMEM;
    while (error == 0 && to->count < count) {
        error = segment_read_page(log, segment, to->count / LOG_PAGE_ITEMS, false, page);
        if (error != 0 || page->count == 0)
            break;
        memcpy(to->items + to->count, page->items, page->count * sizeof(struct log_item));
        to->count += page->count;
    }
    free(page);
    if (error != 0) {
        free(to->items);
        to->items = NULL;
    }
    return error;
}

/* Chooses the oldest segment. false: there is none but the head, or it can't be read now. */
static bool begin(struct seglog *log, unsigned keep_percent)
{
    struct seglog_retirement *retirement = &log->retirement;
    struct segment *segment = log->count > 1 ? log->segments[0] : NULL;
    if (segment == NULL)
        return false;
    pthread_mutex_lock(&log->lock);
    segment->references++;
    pthread_mutex_unlock(&log->lock);
    retirement->incomplete = false;
    int error = segment_fd(log, segment, true) >= 0 ? read_items(log, segment, retirement) : errno;
    if (error == EBADMSG) {
        error = seglog_relist(log, segment, &retirement->incomplete)
                    ? read_items(log, segment, retirement)
                    : errno;
    }
    if (error != 0) {
        seglog_complain(log, error, "can't read the oldest segment");
        segment_release(log, segment);
        return false;
    }
    uint64_t most = log->max_size / 8 > log->segment_size ? log->max_size / 8 : log->segment_size;
    retirement->credit += (segment->end - LOG_RECORDS_AT) * keep_percent / 100;
    retirement->credit = retirement->credit < most ? retirement->credit : most;
    if (keep_percent == 100)
        retirement->credit = segment->end;
    retirement->segment = segment;
    retirement->keep_all = keep_percent == 100;
    retirement->next = 0;
    retirement->judged = retirement->unlinked = false;
    return true;
}

/* The records that a step moves. */
struct moves {
    struct log_item *item[SEGLOG_STEP];
    uint64_t to[SEGLOG_STEP];
    unsigned count;
    size_t used;    /* of the retirement's buffer */
    uint8_t *large; /* what did not fit there */
};

/* Adds the record to the batch under way. 0; EBADMSG: it is damaged; or errno. */
static int move(struct seglog *log, struct log_item *item, struct moves *moves)
{
    struct seglog_retirement *retirement = &log->retirement;
    uint64_t size = log_item_size(item);
    uint8_t *buffer = retirement->buffer + moves->used;
    struct log_record record;
    if (size > SEGLOG_STAGING)
        buffer = moves->large = malloc(size);
    if (buffer == NULL)
        return ENOMEM;
    int error = seglog_read_record(log, retirement->segment, item, buffer);
    if (error != 0)
        return error == EIO ? EBADMSG : error;
    memcpy(&record, buffer, sizeof(record));
    error = seglog_add(log, *item, record.flags, buffer + log_head_length(item->kind),
                       &moves->to[moves->count]);
    if (error == 0)
        moves->item[moves->count++] = item;
    moves->used += moves->large == NULL ? size : SEGLOG_STAGING;
    return error;
}

static enum backing_verdict judge(struct seglog *log, const struct log_item *item, bool urgent)
{
    const struct backing_owner *owner = &log->owner;
    if (item->kind & LOG_TOMBSTONE)
        return BACKING_DEAD;
    uint64_t place = segment_place(log->retirement.segment->number, item->unit);
    return owner->judge(owner->arg, item->hash, place, urgent);
}

/* Tells the owner where its records are now; or drops them, because they could not be moved. */
static void end_moves(struct seglog *log, struct moves *moves, struct seglog_mark mark, int error)
{
    const struct backing_owner *owner = &log->owner;
    const struct segment *from = log->retirement.segment;
    if (error == 0)
        error = seglog_flush(log);
    if (error != 0) {
        seglog_complain(log, error, "can't move records");
        seglog_retreat(log, mark);
    } else {
        seglog_settle(log, mark);
    }
    for (unsigned i = 0; i < moves->count; i++) {
        struct log_item *item = moves->item[i];
        if (error != 0) {
            item->kind |= DROPPED;
            continue;
        }
        log->moved_bytes += log_item_size(item);
        owner->moved(owner->arg, item->hash, segment_place(from->number, item->unit), moves->to[i]);
    }
    free(moves->large);
}

/* Judges some records and moves some of them, if move_any. Returns the bytes looked at. */
static uint64_t judge_step(struct seglog *log, bool urgent, bool move_any)
{
    struct seglog_retirement *retirement = &log->retirement;
    struct seglog_mark mark = seglog_mark(log);
    struct moves moves = {.count = 0};
    uint64_t looked_at = 1;
    int error = 0;
    for (unsigned i = 0; i < SEGLOG_STEP && retirement->next < retirement->count; i++) {
        struct log_item *item = &retirement->items[retirement->next];
        uint64_t size = log_item_size(item);
        if (moves.used > 0 && moves.used + size > SEGLOG_STAGING)
            break;
        enum backing_verdict verdict = judge(log, item, urgent);
        if (verdict == BACKING_DROP && retirement->keep_all && !urgent)
            verdict = BACKING_KEEP;
        int failed = 0;
        if (verdict == BACKING_KEEP && move_any && error == 0 && size <= retirement->credit) {
            failed = move(log, item, &moves);
            retirement->credit -= size;
            if (failed != EBADMSG)
                error = failed;
        } else if (verdict == BACKING_KEEP) {
            failed = ENOSPC;
        }
        if (verdict == BACKING_DROP || failed != 0)
            item->kind |= DROPPED;
        retirement->next++;
        looked_at += size;
    }
    end_moves(log, &moves, mark, error);
    retirement->judged = retirement->next == retirement->count;
    return looked_at;
}

/* Removes the file, once all that takes its records' place is durable. What a failed sync has taken
 * is not, before the owner has appended it anew and synced; but without space there is no choice.
 */
static bool remove_file(struct seglog *log, bool without_space)
{
    struct seglog_retirement *retirement = &log->retirement;
    struct segment *segment = retirement->segment;
    char name[SEGMENT_NAME];
    if (seglog_sync_head(log) != 0 || (log->has_losses && !without_space))
        return false;
    segment_name(segment->number, name);
    if (unlinkat(log->directory_fd, name, 0) != 0 && errno != ENOENT) {
        seglog_complain(log, errno, "can't remove the oldest segment");
        return false;
    }
    log->directory_dirty = true;
    log->disk_bytes -= segment->disk;
    segment->disk = 0;
    retirement->unlinked = true;
    retirement->next = 0;
    return true;
}

static void end(struct seglog *log)
{
    struct seglog_retirement *retirement = &log->retirement;
    const struct backing_owner *owner = &log->owner;
    struct segment *segment = retirement->segment;
    if (retirement->incomplete)
        owner->lost(owner->arg, segment_place(segment->number, 1),
                    segment_place(segment->number, SEGMENT_SIZE_MAX / LOG_UNIT - 1));
    if (log->owed == segment)
        log->owed = NULL;
    segment_remove(log, segment);
    seglog_end_retirement(log);
}

void seglog_end_retirement(struct seglog *log)
{
    struct seglog_retirement *retirement = &log->retirement;
    if (retirement->segment == NULL)
        return;
    segment_release(log, retirement->segment);
    retirement->segment = NULL;
    free(retirement->items);
    retirement->items = NULL;
}

static void forget_step(struct seglog *log)
{
    struct seglog_retirement *retirement = &log->retirement;
    const struct backing_owner *owner = &log->owner;
    unsigned forgotten = 0;
    while (retirement->next < retirement->count && forgotten < SEGLOG_STEP) {
        const struct log_item *item = &retirement->items[retirement->next++];
        if (item->kind & DROPPED) {
            owner->forget(owner->arg, item->hash,
                          segment_place(retirement->segment->number, item->unit));
            forgotten++;
        }
    }
    if (retirement->next == retirement->count)
        end(log);
}

/* One step of the retirement under way. Returns what it cost, in bytes; 0: it can't go on now. */
static uint64_t step(struct seglog *log, bool urgent)
{
    struct seglog_retirement *retirement = &log->retirement;
    if (!retirement->judged)
        return judge_step(log, urgent, true);
    if (!retirement->unlinked)
        return remove_file(log, false) ? 1 : 0;
    forget_step(log);
    return WORK_PER_FORGET;
}

bool seglog_drop_oldest(struct seglog *log)
{
    struct seglog_retirement *retirement = &log->retirement;
    if (retirement->segment == NULL && !begin(log, 0))
        return false;
    while (!retirement->judged)
        judge_step(log, true, false);
    if (!retirement->unlinked && !remove_file(log, true))
        return false;
    while (retirement->segment != NULL)
        forget_step(log);
    return true;
}

void seglog_make_room(struct seglog *log, uint64_t bytes)
{
    struct seglog_retirement *retirement = &log->retirement;
    if (seglog_append_owed(log) != 0)
        return;
    if (retirement->segment != NULL && retirement->keep_all) {
        retirement->keep_all = false;
        retirement->credit /= 4;
    }
    while (log->disk_bytes + bytes > log->max_size &&
           (retirement->segment != NULL || begin(log, 25)) && step(log, true) > 0)
        ;
}

/* The next segment's room is taken ahead. Without space the oldest segment gives way. */
static void keep_spare(struct seglog *log)
{
    int error = is_over(log) ? 0 : seglog_make_spare(log);
    if (seglog_is_shortage(error) && seglog_drop_oldest(log))
        error = seglog_make_spare(log);
    if (error != 0)
        seglog_complain(log, error, "can't preallocate a segment");
}

int seglog_upkeep(struct backing *backing, uint64_t bytes)
{
    struct seglog *log = seglog_of(backing);
    struct seglog_retirement *retirement = &log->retirement;
    uint64_t work = bytes * WORK_PER_BYTE + WORK_LEAST, done = 0;
    seglog_take_max_size(log);
    if (log->reserve_fd < 0) {
        int fd = fcntl(log->directory_fd, F_DUPFD_CLOEXEC, 3);
        pthread_mutex_lock(&log->lock);
        log->reserve_fd = fd;
        pthread_mutex_unlock(&log->lock);
    }
    if (seglog_append_owed(log) != 0)
        return RETRY_MS;
    bool compacting = is_compacting(log);
    while (done < work && (retirement->segment != NULL || is_over(log) || compacting)) {
        uint64_t cost =
            retirement->segment != NULL || begin(log, compacting && !is_over(log) ? 100 : 75)
                ? step(log, false)
                : 0;
        if (cost == 0)
            break;
        done += cost;
        compacting = is_compacting(log);
    }
    keep_spare(log);
    if ((log->disk_bytes <= log->max_size && !compacting) || log->count <= 1)
        return -1;
    return done < work ? RETRY_MS : 0;
}
