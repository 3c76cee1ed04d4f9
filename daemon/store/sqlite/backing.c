/*
 * The backing in one SQLite database, cache.db: what the writer's thread does with it.
 *
 * A record is a row in each of two tables: entry, narrow, with its head and key, which load(),
 * eviction and scan() read, and value, with its bytes. A place is the rowid, from a counter that
 * never goes back. Every commit also writes the state: how many commits there were, and the sum of
 * a mark for each place that is in entry.
 *
 * Why nothing older ever counts again:
 *  - A commit that replaces or removes a record deletes its row, so only rot can bring it back.
 *  - Rot in the log cuts it: the database is then that of an older commit. Before sync() says OK,
 *    the anchor holds the number of the last commit that has deleted a row; a database with fewer
 *    is given up. One with as many has every deletion that was ever synced; what it lacks are new
 *    records, and those are misses.
 *  - Rot in the database's pages can make rows appear or vanish. The sum says what must be in
 *    entry; if it differs the database is given up. Heads and values have their own checksums,
 *    seeded by the place, so that a row's content is right or a miss.
 *  - The anchor's id says which database counts: one that was given up is void from the moment
 *    when a new id is durable, whatever becomes of its files.
 */
#include "../engine/anchor.h"
#include "readers.h"

#include "../../log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VALUE_MAX = 999000000, /* SQLite's own bound on a row is 10^9 bytes */
    LOG_BYTES_MAX = 16 << 20,
    LOG_BYTES_MIN = 4 * DB_PAGE,
    LOG_BYTES_SHORT = 1 << 20, /* where the disk is full; so much is taken at the start */
    HINT_BYTES = 1 << 20,    /* the kernel begins to write the log each time that so much is new */
    EVICT_ROWS = 1024,       /* in one transaction */
    EVICT_PAGE = 64,         /* rows that are read and judged together */
    EVICT_BYTES = 8 << 20,   /* that an idle step frees at most */
    OTHER_BYTES = 128 << 10, /* the anchor and SQLite's index of its log */
    BATCH_PAGES = 6,         /* that a batch may take beside its bytes: inner pages, state, maps */
    ROW_BYTES = 128,         /* that a record takes beside key and value */
    RESERVE_BYTES = 1 << 20,
    VACUUM_PAGES = 64, /* as SQL_VACUUM says */
    LIMIT_MIN = 24,    /* pages: a lower max_size is not kept */
    IDLE_MS = 1000
};

/* A list of records that a transaction removes. */
struct removed {
    uint64_t hash, place;
};

struct backing {
    struct backing_owner owner;
    char path[PATH_MAX];
    int directory;
    _Atomic uint64_t max_size;
    struct anchor anchor;
    uint64_t seed;
    struct sqlite_connection writer;
    struct sqlite_readers readers;
    bool usable;               /* there is a database */
    struct sqlite_state state; /* as committed */
    struct sqlite_state work;  /* as the open transaction will commit it */
    uint64_t first;            /* the lowest place that this database can have */
    bool deletes;              /* the open transaction does */
    uint64_t last_delete;      /* the number of the last commit that did */
    bool unsynced;             /* something that is committed may not be on the disk */
    bool inherited;            /* the log is of an earlier run, whose syncs nobody can vouch for */
    int lost_error;            /* why a database was given up, until a sync() has said so */
    atomic_bool compacting;    /* the log's room is to be given back too */
    struct removed *removed;   /* by evict() since the call began */
    size_t removed_count, removed_room;
    /* Other descriptors of the two files, to take room and to have the log written early. To close
     * one of the database drops SQLite's locks, so they are closed after SQLite's own. */
    int db_fd, log_fd;
    bool short_of_room; /* the disk was full once */
    uint64_t reserved;  /* bytes that the database's file has room for */
    uint64_t log_bytes, hinted;
    uint64_t retry_at; /* bytes in the log at which a checkpoint that could not be is due again */
    uint64_t written;
};

/* The log's part of max_size. */
static uint64_t log_limit(struct backing *backing)
{
    uint64_t part = atomic_load(&backing->max_size) / 8;
    uint64_t most = backing->short_of_room ? LOG_BYTES_SHORT : LOG_BYTES_MAX;
    return part < LOG_BYTES_MIN ? LOG_BYTES_MIN : part > most ? most : part;
}

/* The pages that may hold something. The log passes its limit by a batch. */
static uint64_t page_limit(struct backing *backing)
{
    uint64_t size = atomic_load(&backing->max_size);
    uint64_t others = log_limit(backing) * 3 / 2 + OTHER_BYTES;
    uint64_t pages = size > others ? (size - others) / DB_PAGE : 0;
    return pages < LIMIT_MIN ? LIMIT_MIN : pages;
}

/* Pages that a record takes at most: beyond half a page no two share one. */
static uint64_t pages_of(const struct backing_record *record)
{
    uint64_t bytes = (uint64_t)record->key_length + record->length + ROW_BYTES;
    return bytes > DB_PAGE / 2 ? bytes / (DB_PAGE - 8) + 1 : 0;
}

/* Removals need none: they must go on a full disk, too. */
static uint64_t pages_for(const struct backing_record *records, unsigned count)
{
    uint64_t small = 0, pages = 0;
    for (unsigned i = 0; i < count; i++) {
        if (records[i].data == NULL)
            continue;
        uint64_t own = pages_of(&records[i]);
        pages += own;
        small += own == 0 ? (uint64_t)records[i].key_length * 2 + records[i].length + ROW_BYTES : 0;
    }
    return pages + small > 0 ? pages + small * 2 / DB_PAGE + BATCH_PAGES : 0;
}

static int note_log(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct backing *backing = arg;
    (void)db;
    (void)name;
    backing->log_bytes = (uint64_t)pages * (DB_PAGE + 24);
    return SQLITE_OK;
}

/* The log's first blocks are taken early, so that a full disk still lets records be removed. */
static void take_log_room(struct backing *backing)
{
    uint64_t limit = log_limit(backing);
    if (backing->log_fd >= 0)
        fallocate(backing->log_fd, FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)(limit < LOG_BYTES_SHORT ? limit : LOG_BYTES_SHORT));
}

/* The connection has just been opened. */
static void adopt(struct backing *backing)
{
    char log[PATH_MAX + 8];
    snprintf(log, sizeof(log), "%s-wal", backing->path);
    backing->db_fd = open(backing->path, O_RDWR | O_CLOEXEC);
    backing->log_fd = open(log, O_RDWR | O_CLOEXEC);
    backing->short_of_room = false;
    take_log_room(backing);
    sqlite3_wal_hook(backing->writer.db, note_log, backing);
    backing->log_bytes = backing->hinted = backing->reserved = 0;
    backing->retry_at = 0;
    backing->last_delete = 0;
    backing->unsynced = true;
    backing->usable = true;
    sqlite_readers_begin(&backing->readers);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void disown(struct backing *backing)
{
    sqlite_readers_end(&backing->readers);
    backing->usable = false;
    sqlite_db_close(&backing->writer);
    close_fd(&backing->db_fd);
    close_fd(&backing->log_fd);
}

/*
 * Begins a new database, whose places follow those that were given out. The anchor comes first:
 * once it is durable no crash brings the old one back. 0 or an errno, and there is none.
 */
static int begin_anew(struct backing *backing, bool aside)
{
    uint64_t next = backing->state.next > 0 ? backing->state.next : 1;
    int error = anchor_begin(&backing->anchor);
    if (error == 0)
        error = sqlite_db_discard(backing->path, aside);
    if (error != 0)
        return error;
    backing->state = (struct sqlite_state){.id = backing->anchor.id, .commits = 1, .next = next};
    backing->first = next;
    int rc = sqlite_db_create(&backing->writer, backing->path, &backing->state, backing->seed);
    if (rc == SQLITE_OK && fsync(backing->directory) != 0)
        rc = SQLITE_IOERR_DIR_FSYNC;
    if (rc == SQLITE_OK) {
        backing->inherited = false;
        adopt(backing);
        return 0;
    }
    error = sqlite_db_errno(backing->writer.db, rc);
    sqlite_db_close(&backing->writer);
    return error;
}

/* Nothing in the database can be relied on any more: all of it is lost, and a new one begun. */
static void give_up(struct backing *backing, int error, const char *what, bool aside)
{
    uint64_t last = backing->state.next - 1;
    disown(backing);
    log_error("%s: %s: %s; all its entries are given up for a new database%s", backing->path, what,
              strerror(error), aside ? ", the old one is renamed to *.damaged" : "");
    int again = begin_anew(backing, aside);
    if (again != 0)
        log_error("%s: can't begin a new database: %s; tried again with the next write",
                  backing->path, strerror(again));
    if (last > 0)
        backing->owner.lost(backing->owner.arg, 1, last);
}

/* What SQLite's code means for the caller; gives the database up if it says so. */
static int failed(struct backing *backing, int rc, const char *what)
{
    int error = sqlite_db_errno(backing->writer.db, rc);
    if (sqlite_db_is_lost(backing->writer.db, rc)) {
        backing->lost_error = error;
        give_up(backing, error, what, false);
    }
    return error;
}

static int be_usable(struct backing *backing)
{
    return backing->usable ? 0 : begin_anew(backing, false);
}

/* Transactions. */

static int begin(struct backing *backing)
{
    backing->work = backing->state;
    backing->deletes = false;
    return sqlite_db_run(backing->writer.statements[SQL_BEGIN]);
}

/* The kernel begins to write early what the next sync has to wait for. */
static void hint(struct backing *backing)
{
    if (backing->log_bytes < backing->hinted)
        backing->hinted = 0; /* the log has begun anew */
    if (backing->log_fd < 0 || backing->log_bytes - backing->hinted < HINT_BYTES)
        return;
    sync_file_range(backing->log_fd, (off_t)backing->hinted,
                    (off_t)(backing->log_bytes - backing->hinted), SYNC_FILE_RANGE_WRITE);
    backing->hinted = backing->log_bytes;
}

static int commit(struct backing *backing)
{
    backing->work.commits++;
    int rc = sqlite_db_set_state(&backing->writer, &backing->work, backing->seed);
    if (rc == SQLITE_OK)
        rc = sqlite_db_run(backing->writer.statements[SQL_COMMIT]);
    if (rc != SQLITE_OK)
        return rc;
    backing->state = backing->work;
    backing->unsynced = true;
    if (backing->deletes)
        backing->last_delete = backing->state.commits;
    hint(backing);
    return SQLITE_OK;
}

/* Places that were given out in vain are not given out again. */
static void roll_back(struct backing *backing)
{
    if (!sqlite3_get_autocommit(backing->writer.db))
        sqlite_db_run(backing->writer.statements[SQL_ROLLBACK]);
    backing->state.next = backing->work.next;
}

/* SQLITE_NOTFOUND: there was no such entry. */
static int remove_row(struct backing *backing, uint64_t place)
{
    int rc = sqlite_db_run(sqlite_db_with(&backing->writer, SQL_REMOVE_ENTRY, place));
    if (rc != SQLITE_OK)
        return rc;
    if (sqlite3_changes(backing->writer.db) == 0)
        return SQLITE_NOTFOUND;
    backing->work.marks -= sqlite_place_mark(backing->seed, place);
    backing->work.entries--;
    backing->deletes = true;
    return sqlite_db_run(sqlite_db_with(&backing->writer, SQL_REMOVE_VALUE, place));
}

static bool was_evicted(const struct backing *backing, uint64_t place)
{
    for (size_t i = 0; i < backing->removed_count; i++) {
        if (backing->removed[i].place == place)
            return true;
    }
    return false;
}

/*
 * Removes what a record replaces. It is not there if this call has evicted it; if not, then damage
 * to an inner page may hide the row from a search by place, but not from load() after a restart, so
 * every row is looked at before it is taken for gone. That is a scan of the narrow table, for a
 * case that the engine does not make.
 */
static int remove_replaced(struct backing *backing, uint64_t place)
{
    uint64_t hidden = 0;
    if (place < backing->first)
        return SQLITE_OK;
    int rc = remove_row(backing, place);
    if (rc != SQLITE_NOTFOUND || was_evicted(backing, place))
        return rc == SQLITE_NOTFOUND ? SQLITE_OK : rc;
    rc = sqlite_db_ask(sqlite_db_with(&backing->writer, SQL_SEARCH, place), &hidden);
    return rc == SQLITE_OK && hidden > 0 ? SQLITE_CORRUPT : rc;
}

static int add_row(struct backing *backing, struct backing_record *record)
{
    struct sqlite_head head;
    uint64_t place = backing->work.next++;
    size_t size = sqlite_head_fill(&head, backing->seed, place, record);
    sqlite3_stmt *statement = sqlite_db_with(&backing->writer, SQL_ADD_ENTRY, place);
    sqlite3_bind_blob(statement, 2, &head, (int)size, SQLITE_STATIC);
    int rc = sqlite_db_run(statement);
    if (rc != SQLITE_OK)
        return rc;
    statement = sqlite_db_with(&backing->writer, SQL_ADD_VALUE, place);
    sqlite3_bind_blob(statement, 2, record->data + record->key_length, (int)record->length,
                      SQLITE_STATIC);
    record->place = place;
    backing->work.marks += sqlite_place_mark(backing->seed, place);
    backing->work.entries++;
    return sqlite_db_run(statement);
}

/* Eviction. */

static int note_removed(struct backing *backing, uint64_t hash, uint64_t place)
{
    if (backing->removed_count == backing->removed_room) {
        size_t room = backing->removed_room * 2 + EVICT_ROWS;
        struct removed *larger = realloc(backing->removed, room * sizeof(*larger));
        if (larger == NULL)
            return SQLITE_NOMEM;
        backing->removed = larger;
        backing->removed_room = room;
    }
    backing->removed[backing->removed_count++] = (struct removed){hash, place};
    return SQLITE_OK;
}

struct candidate {
    uint64_t hash, place, bytes;
    bool damaged;
};

/* The next entries behind the cursor, which advances. *count is 0 at the table's end. */
static int next_candidates(struct backing *backing, struct candidate *candidates, unsigned *count)
{
    sqlite3_stmt *row = sqlite_db_with(&backing->writer, SQL_HEADS, backing->work.cursor);
    int rc = SQLITE_ROW;
    *count = 0;
    while (*count < EVICT_PAGE && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        struct sqlite_head head = {0};
        uint64_t place = (uint64_t)sqlite3_column_int64(row, 0);
        bool sound = sqlite_head_read(&head, backing->seed, place, sqlite3_column_blob(row, 1),
                                      (size_t)sqlite3_column_bytes(row, 1));
        candidates[(*count)++] = (struct candidate){
            head.hash, place, (uint64_t)head.length + head.key_length + ROW_BYTES, !sound};
        backing->work.cursor = place;
    }
    sqlite3_reset(row);
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? SQLITE_OK : rc;
}

/* Found by its row and not by its place: damage. */
static int remove_candidate(struct backing *backing, const struct candidate *candidate)
{
    int rc = remove_row(backing, candidate->place);
    if (rc == SQLITE_NOTFOUND)
        return SQLITE_CORRUPT;
    return rc == SQLITE_OK ? note_removed(backing, candidate->hash, candidate->place) : rc;
}

/* Removes up to that many bytes of what may go, within the transaction. *ends counts how often the
 * cursor has come to the end of the table and gone on at its beginning. */
static int evict_rows(struct backing *backing, uint64_t bytes, bool urgent, unsigned *ends)
{
    struct candidate candidates[EVICT_PAGE];
    uint64_t freed = 0;
    unsigned before = *ends, count = 0;
    for (unsigned rows = 0; rows < EVICT_ROWS && freed < bytes; rows += count) {
        int rc = next_candidates(backing, candidates, &count);
        if (rc == SQLITE_OK && count == 0) {
            backing->work.cursor = 0;
            if ((*ends)++ > before)
                break;
        }
        for (unsigned i = 0; i < count && rc == SQLITE_OK; i++) {
            const struct candidate *one = &candidates[i];
            if (!one->damaged && backing->owner.judge(backing->owner.arg, one->hash, one->place,
                                                      urgent) == BACKING_KEEP)
                continue;
            freed += one->bytes;
            rc = remove_candidate(backing, one);
            if (freed >= bytes) {
                backing->work.cursor = one->place;
                break;
            }
        }
        if (rc != SQLITE_OK)
            return rc;
    }
    return SQLITE_OK;
}

/* The engine forgets what was removed once that is committed. */
static int evict(struct backing *backing, uint64_t bytes, bool urgent, unsigned *ends)
{
    size_t from = backing->removed_count;
    int rc = begin(backing);
    if (rc == SQLITE_OK)
        rc = evict_rows(backing, bytes, urgent, ends);
    if (rc == SQLITE_OK)
        rc = commit(backing);
    if (rc != SQLITE_OK) {
        backing->removed_count = from;
        roll_back(backing);
        return rc;
    }
    for (size_t i = from; i < backing->removed_count; i++)
        backing->owner.forget(backing->owner.arg, backing->removed[i].hash,
                              backing->removed[i].place);
    return SQLITE_OK;
}

struct room {
    uint64_t pages, free; /* of the database; those that are free are among them */
};

static int ask_room(struct backing *backing, struct room *room)
{
    int rc = sqlite_db_ask(backing->writer.statements[SQL_PAGES], &room->pages);
    if (rc == SQLITE_OK)
        rc = sqlite_db_ask(backing->writer.statements[SQL_FREE_PAGES], &room->free);
    return rc;
}

/* The log's room is used again after a checkpoint. SQLite cuts the database's file to its pages, so
 * that room beyond them has to be taken again. */
static int checkpoint(struct backing *backing, bool cut)
{
    int rc = sqlite_db_checkpoint(&backing->writer, log_limit(backing), cut);
    backing->reserved = 0;
    if (rc == SQLITE_OK) {
        backing->log_bytes = backing->hinted = 0;
        backing->retry_at = 0;
        backing->inherited = backing->unsynced = false;
    } else {
        backing->retry_at = backing->log_bytes + log_limit(backing) / 4;
    }
    return rc;
}

/* Readers and a full disk may keep a due one waiting. */
static int checkpoint_if_due(struct backing *backing)
{
    if (backing->log_bytes < log_limit(backing) || backing->log_bytes < backing->retry_at)
        return SQLITE_OK;
    int rc = checkpoint(backing, false);
    return rc == SQLITE_BUSY || rc == SQLITE_FULL ? SQLITE_OK : rc;
}

/* The disk is full: the log gets along with little, and gives back the rest. */
static int cut_log(struct backing *backing)
{
    backing->short_of_room = true;
    int rc = checkpoint(backing, true);
    if (rc == SQLITE_OK)
        take_log_room(backing);
    return rc;
}

/* Takes blocks for so many pages, some more at a time; a file system that can't is left alone. */
static int reserve(struct backing *backing, uint64_t pages)
{
    uint64_t bytes = pages * DB_PAGE, most = page_limit(backing) * DB_PAGE;
    if (bytes <= backing->reserved || backing->db_fd < 0)
        return SQLITE_OK;
    uint64_t wanted = bytes + RESERVE_BYTES < most ? bytes + RESERVE_BYTES : bytes;
    int failed = fallocate(backing->db_fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)wanted);
    if (failed != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return SQLITE_FULL;
    backing->reserved = wanted;
    return SQLITE_OK;
}

/*
 * Sees to it that need pages are free within max_size and on the disk, before anything is written:
 * a commit whose pages find no room in the database's file later could not leave the log. What has
 * to go for them goes oldest first.
 */
static int make_room(struct backing *backing, uint64_t need)
{
    struct room room = {0};
    unsigned ends = 0;
    bool cut = false;
    int rc = checkpoint_if_due(backing);
    while (rc == SQLITE_OK && (rc = ask_room(backing, &room)) == SQLITE_OK) {
        uint64_t grow = need > room.free ? need - room.free : 0;
        uint64_t used = room.pages - room.free + need, limit = page_limit(backing);
        uint64_t over = used > limit ? used - limit : 0;
        rc = over == 0 ? reserve(backing, room.pages + grow) : SQLITE_FULL;
        if (rc != SQLITE_FULL)
            return rc;
        if (over == 0 && !cut) {
            cut = true;
            rc = cut_log(backing);
            continue;
        }
        if (ends > 1 || backing->state.entries == 0)
            return SQLITE_FULL;
        rc = evict(backing, (over > 0 ? over : grow) * DB_PAGE, true, &ends);
        if (rc == SQLITE_OK)
            rc = checkpoint_if_due(backing);
    }
    return rc;
}

static int write_batch(struct backing *backing, struct backing_record *records, unsigned count)
{
    int rc = begin(backing);
    for (unsigned i = 0; i < count && rc == SQLITE_OK; i++) {
        records[i].place = 0;
        if (records[i].replaces != 0)
            rc = remove_replaced(backing, records[i].replaces);
        if (rc == SQLITE_OK && records[i].data != NULL)
            rc = add_row(backing, &records[i]);
    }
    if (rc == SQLITE_OK)
        rc = commit(backing);
    if (rc != SQLITE_OK)
        roll_back(backing);
    return rc;
}

/* What SQLite can hold, and what max_size has room for alone. */
static uint64_t sq_record_max(struct backing *backing)
{
    uint64_t bytes = (page_limit(backing) - BATCH_PAGES - 1) * (DB_PAGE - 8) - ROW_BYTES;
    return bytes < VALUE_MAX ? bytes : VALUE_MAX;
}

/* The log had no room on the disk. First what is in it goes to the database; if that is not enough,
 * the oldest records and their pages go, for a second attempt. */
static int make_log_room(struct backing *backing, uint64_t need, bool again)
{
    unsigned ends = 0;
    int rc = SQLITE_OK;
    if (again)
        rc = evict(backing, need * 2 * DB_PAGE, true, &ends);
    for (uint64_t pages = 0; again && pages < need * 2 && rc == SQLITE_OK; pages += VACUUM_PAGES)
        rc = sqlite_db_run(backing->writer.statements[SQL_VACUUM]);
    return rc == SQLITE_OK ? cut_log(backing) : rc;
}

static int sq_append(struct backing *backing, struct backing_record *records, unsigned count)
{
    uint64_t record_max = sq_record_max(backing);
    for (unsigned i = 0; i < count; i++) {
        if (records[i].data != NULL &&
            (uint64_t)records[i].key_length + records[i].length > record_max)
            return EFBIG;
    }
    int error = be_usable(backing);
    if (error != 0)
        return error;
    backing->removed_count = 0;
    uint64_t need = pages_for(records, count);
    int rc = need > 0 ? make_room(backing, need) : checkpoint_if_due(backing);
    if (rc == SQLITE_OK)
        rc = write_batch(backing, records, count);
    for (unsigned attempt = 0; rc == SQLITE_FULL && attempt < 2; attempt++) {
        rc = make_log_room(backing, need, attempt > 0);
        if (rc == SQLITE_OK && need > 0)
            rc = make_room(backing, need);
        if (rc == SQLITE_OK)
            rc = write_batch(backing, records, count);
    }
    if (rc != SQLITE_OK)
        return failed(backing, rc, "can't write");
    for (unsigned i = 0; i < count; i++)
        backing->written += records[i].data == NULL ? 0 : records[i].key_length + records[i].length;
    return 0;
}

/*
 * A commit alone is not durable; the log's fsync makes every commit so that it holds, and those
 * before are in the database, which a checkpoint has synced. A log of an earlier run is copied into
 * the database instead: if a sync failed just before that run ended, the kernel has marked pages as
 * clean that are not on the disk, and to sync them again would prove nothing.
 */
static int make_durable(struct backing *backing)
{
    int rc = SQLITE_BUSY;
    if (!backing->unsynced)
        return SQLITE_OK;
    if (backing->inherited)
        rc = checkpoint(backing, false);
    if (rc == SQLITE_BUSY || rc == SQLITE_FULL)
        rc = sqlite_db_sync_log(&backing->writer);
    backing->unsynced = rc != SQLITE_OK;
    return rc;
}

static int sq_sync(struct backing *backing)
{
    int error = be_usable(backing);
    int rc = error == 0 ? make_durable(backing) : SQLITE_OK;
    if (rc != SQLITE_OK)
        error = failed(backing, rc, "can't sync");
    if (error == 0)
        error = backing->lost_error;
    if (backing->usable)
        backing->lost_error = 0;
    if (error != 0 || backing->last_delete <= backing->anchor.position)
        return error;
    error = anchor_advance(&backing->anchor, backing->last_delete);
    if (error != 0)
        log_error("%s.anchor: can't write: %s; what was removed may come back after a crash",
                  backing->path, strerror(error));
    return error;
}

/* Shrinks a file that is larger than it may be, or that is idle and mostly empty. */
static int shrink(struct backing *backing, const struct room *room, bool idle, bool *more)
{
    bool large = room->pages > page_limit(backing) && room->free > BATCH_PAGES;
    *more = large || (idle && room->free > room->pages / 8 + 2 * BATCH_PAGES);
    return *more ? sqlite_db_run(backing->writer.statements[SQL_VACUUM]) : SQLITE_OK;
}

/* A step evicts twice what was appended, so that appending rarely has to wait for it. */
static int step(struct backing *backing, uint64_t bytes, bool *more)
{
    uint64_t limit = page_limit(backing), target = limit - limit / 64;
    uint64_t budget = bytes > 0 ? bytes * 2 + EVICT_PAGE * 1024 : EVICT_BYTES;
    struct room room = {0};
    unsigned ends = 0;
    *more = false;
    int rc = ask_room(backing, &room);
    uint64_t used = room.pages - room.free;
    if (rc == SQLITE_OK && used > target && backing->state.entries > 0) {
        uint64_t over = (used - target) * DB_PAGE;
        rc = evict(backing, over < budget ? over : budget, used > limit, &ends);
        *more = rc == SQLITE_OK && over > budget && ends == 0;
    }
    if (rc == SQLITE_OK && !*more)
        rc = shrink(backing, &room, bytes == 0, more);
    if (rc == SQLITE_OK && bytes == 0 && !*more && atomic_load(&backing->compacting)) {
        rc = checkpoint(backing, true);
        if (rc == SQLITE_OK) {
            atomic_store(&backing->compacting, false);
            take_log_room(backing);
        }
        return rc;
    }
    if (rc == SQLITE_OK && bytes == 0 && !*more && backing->log_bytes > 0)
        return checkpoint(backing, false);
    return rc == SQLITE_OK ? checkpoint_if_due(backing) : rc;
}

/* A full disk, a reader that takes its time or want of memory is met again by the next step. */
static int sq_upkeep(struct backing *backing, uint64_t bytes)
{
    bool more = false;
    if (!backing->usable)
        return IDLE_MS;
    backing->removed_count = 0;
    int rc = step(backing, bytes, &more);
    if (rc != SQLITE_OK && rc != SQLITE_BUSY)
        failed(backing, rc, "can't evict or write the log back");
    if (more)
        return 1;
    return backing->log_bytes > 0 || atomic_load(&backing->compacting) ? IDLE_MS : -1;
}

static void sq_set_max_size(struct backing *backing, uint64_t bytes)
{
    atomic_store(&backing->max_size, bytes);
}

/* Free pages go by themselves once nothing else is to do, see shrink(). */
static void sq_compact(struct backing *backing, uint64_t live_bytes)
{
    (void)live_bytes;
    atomic_store(&backing->compacting, true);
}

/* Load: entries are told page by page; a table of hashes finds older records of the same. */

struct load {
    struct backing *backing;
    struct removed *table; /* open addressing; a place of 0 is free */
    uint64_t mask;
    struct backing_found found[BACKING_FOUND_MAX];
    unsigned count;
    uint64_t entries, marks, damaged;
};

static bool start_table(struct load *load, uint64_t entries)
{
    uint64_t size = 1024;
    while (size < entries * 3 / 2)
        size *= 2;
    load->mask = size - 1;
    load->table = calloc(size, sizeof(*load->table));
    return load->table != NULL;
}

/* The last record of a hash counts. */
static int enter(struct load *load, const struct backing_found *found)
{
    uint64_t at = found->hash & load->mask;
    while (load->table[at].place != 0 && load->table[at].hash != found->hash)
        at = (at + 1) & load->mask;
    uint64_t older = load->table[at].place;
    load->table[at] = (struct removed){found->hash, found->place};
    return older != 0 ? note_removed(load->backing, found->hash, older) : SQLITE_OK;
}

static int tell(struct load *load)
{
    int rc = SQLITE_OK;
    for (unsigned i = 0; i < load->count; i++)
        __builtin_prefetch(&load->table[load->found[i].hash & load->mask], 1);
    for (unsigned i = 0; i < load->count && rc == SQLITE_OK; i++)
        rc = enter(load, &load->found[i]);
    struct backing_owner *owner = &load->backing->owner;
    if (rc == SQLITE_OK && load->count > 0)
        owner->found(owner->arg, load->found, load->count);
    load->count = 0;
    return rc;
}

/* More rows than the state knows of would not fit the table. */
static int load_row(struct load *load, sqlite3_stmt *row)
{
    struct backing *backing = load->backing;
    struct sqlite_head head;
    uint64_t place = (uint64_t)sqlite3_column_int64(row, 0);
    load->marks += sqlite_place_mark(backing->seed, place);
    if (++load->entries > backing->state.entries || place >= backing->state.next)
        return SQLITE_CORRUPT;
    if (!sqlite_head_read(&head, backing->seed, place, sqlite3_column_blob(row, 1),
                          (size_t)sqlite3_column_bytes(row, 1))) {
        load->damaged++;
        return note_removed(backing, 0, place);
    }
    sqlite_head_found(&head, place, &load->found[load->count]);
    load->found[load->count].key = NULL;
    return ++load->count == BACKING_FOUND_MAX ? tell(load) : SQLITE_OK;
}

static int load_rows(struct load *load)
{
    sqlite3_stmt *row = sqlite_db_with(&load->backing->writer, SQL_HEADS, 0);
    int rc = SQLITE_OK, step_rc = SQLITE_DONE;
    while (rc == SQLITE_OK && (step_rc = sqlite3_step(row)) == SQLITE_ROW)
        rc = load_row(load, row);
    sqlite3_reset(row);
    if (rc == SQLITE_OK && step_rc != SQLITE_DONE)
        rc = step_rc;
    if (rc == SQLITE_OK)
        rc = tell(load);
    bool exact =
        load->entries == load->backing->state.entries && load->marks == load->backing->state.marks;
    return rc == SQLITE_OK && !exact ? SQLITE_CORRUPT : rc;
}

/* Older records of a hash, and those that are damaged. On a full disk the next start does it. */
static int remove_noted(struct backing *backing)
{
    if (backing->removed_count == 0)
        return SQLITE_OK;
    int rc = begin(backing);
    for (size_t i = 0; i < backing->removed_count && rc == SQLITE_OK; i++)
        rc = remove_row(backing, backing->removed[i].place);
    if (rc == SQLITE_OK)
        rc = commit(backing);
    if (rc != SQLITE_OK)
        roll_back(backing);
    return rc == SQLITE_NOTFOUND ? SQLITE_CORRUPT : rc == SQLITE_FULL ? SQLITE_OK : rc;
}

static bool sq_load(struct backing *backing, char *why, size_t size)
{
    struct load load = {.backing = backing};
    int rc = SQLITE_NOMEM;
    backing->removed_count = 0;
    if (backing->owner.expect != NULL)
        backing->owner.expect(backing->owner.arg, backing->state.entries);
    if (start_table(&load, backing->state.entries))
        rc = load_rows(&load);
    free(load.table);
    if (load.damaged > 0)
        log_warning("%s: %llu damaged entries are left out", backing->path,
                    (unsigned long long)load.damaged);
    if (rc == SQLITE_OK)
        rc = remove_noted(backing);
    if (rc != SQLITE_OK && (rc & 0xFF) != SQLITE_NOMEM)
        give_up(backing, sqlite_db_errno(backing->writer.db, rc), "damaged", true);
    if ((rc & 0xFF) == SQLITE_NOMEM)
        snprintf(why, size, "can't load %s: %s", backing->path, strerror(ENOMEM));
    return (rc & 0xFF) != SQLITE_NOMEM;
}

/* Opening. */

/* Why the file that is there is not the database that the anchor speaks of; NULL: it is. */
static const char *find_fault(struct backing *backing)
{
    if (!backing->anchor.found)
        return "its cache.anchor is missing or damaged";
    int rc = sqlite_db_state(&backing->writer, &backing->state, backing->seed);
    if (rc != SQLITE_OK)
        return sqlite3_errstr(rc);
    if (backing->state.id != backing->anchor.id)
        return "it was given up";
    return backing->state.commits < backing->anchor.position
               ? "changes that were synced are gone from its log"
               : NULL;
}

/* What to do about a file that is left alone; false: it is none of those. */
static bool refuse(struct backing *backing, enum sqlite_content content, int rc, char *why,
                   size_t size)
{
    const char *path = backing->path;
    int error = sqlite_db_errno(backing->writer.db, rc);
    if (content == DB_OLDER)
        snprintf(why, size,
                 "%s has the layout of an older version: delete it, or use another directory",
                 path);
    else if (content == DB_NEWER)
        snprintf(why, size, "%s was written by a newer version: use that, or another directory",
                 path);
    else if (content == DB_FOREIGN)
        snprintf(why, size, "%s is another program's database: use another directory", path);
    else if (content == DB_UNUSABLE)
        snprintf(why, size, "can't open the database %s: %s", path, strerror(error));
    return content == DB_OLDER || content == DB_NEWER || content == DB_FOREIGN ||
           content == DB_UNUSABLE;
}

static bool open_database(struct backing *backing, char *why, size_t size)
{
    int rc;
    enum sqlite_content content = sqlite_db_open(&backing->writer, backing->path, &rc);
    if (refuse(backing, content, rc, why, size))
        return false;
    const char *fault = content == DB_OURS ? find_fault(backing) : sqlite3_errstr(rc);
    if (content == DB_OURS && fault == NULL) {
        backing->inherited = true;
        adopt(backing);
        return true;
    }
    sqlite_db_close(&backing->writer);
    if (content != DB_NONE)
        log_warning("%s is not used (%s): renamed to cache.db.damaged, and begun anew",
                    backing->path, fault);
    backing->state = (struct sqlite_state){0};
    int error = begin_anew(backing, content != DB_NONE);
    if (error != 0)
        snprintf(why, size, "can't make the database %s: %s", backing->path, strerror(error));
    return error == 0;
}

/* What an older program's or a foreign database lies beside needs no anchor: it is removed again
 * if it was made for nothing. */
static bool open_all(struct backing *backing, const char *directory, char *why, size_t size)
{
    backing->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = backing->directory < 0
                    ? errno
                    : anchor_open(&backing->anchor, backing->directory, "cache.anchor");
    if (error == EPROTO)
        snprintf(why, size, "%s was written by a newer version: use that, or another directory",
                 directory);
    else if (error != 0)
        snprintf(why, size, "can't open %s/cache.anchor: %s", directory, strerror(error));
    if (error != 0)
        return false;
    backing->seed = sqlite_seed(backing->anchor.secret);
    sqlite_readers_init(&backing->readers, backing->path, backing->seed);
    if (open_database(backing, why, size))
        return true;
    if (!backing->anchor.found && backing->anchor.serial == 0)
        unlinkat(backing->directory, "cache.anchor", 0);
    return false;
}

static void sq_close(struct backing *backing)
{
    if (backing->readers.path != NULL) {
        disown(backing);
        sqlite_readers_destroy(&backing->readers);
    }
    anchor_close(&backing->anchor);
    if (backing->directory >= 0)
        close(backing->directory);
    free(backing->removed);
    free(backing);
}

static void configure(void)
{
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
}

static struct backing *sq_open(const struct backing_options *options,
                               uint8_t secret[BACKING_SECRET], char *why, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, configure);
    struct backing *backing = calloc(1, sizeof(*backing));
    if (backing == NULL) {
        snprintf(why, size, "%s", strerror(errno));
        return NULL;
    }
    backing->owner = options->owner;
    backing->directory = backing->db_fd = backing->log_fd = backing->anchor.fd = -1;
    atomic_init(&backing->max_size, options->max_size);
    int length = snprintf(backing->path, sizeof(backing->path), "%s/cache.db", options->directory);
    if (length >= (int)sizeof(backing->path) - 16) {
        snprintf(why, size, "%s: %s", options->directory, strerror(ENAMETOOLONG));
    } else if (open_all(backing, options->directory, why, size)) {
        memcpy(secret, backing->anchor.secret, BACKING_SECRET);
        return backing;
    }
    sq_close(backing);
    return NULL;
}

/* SQLite can't say whether it would wait for the disk, so an event loop never asks it. */
static enum backing_read sq_read(struct backing *backing, uint64_t place, uint64_t size,
                                 const uint8_t *key, size_t key_length, bool wait,
                                 struct value **value)
{
    (void)size;
    if (!wait)
        return BACKING_READ_AGAIN;
    return sqlite_readers_read(&backing->readers, place, key, key_length, value);
}

static bool sq_scan(struct backing *backing, uint64_t *cursor,
                    bool (*found)(void *arg, const struct backing_found *found), void *arg)
{
    return sqlite_readers_scan(&backing->readers, cursor, found, arg);
}

/* stat() opens no descriptor, whose closing would drop SQLite's locks. */
static struct backing_stats sq_stats(struct backing *backing)
{
    static const char *const names[] = {"cache.db", "cache.db-wal", "cache.db-shm", "cache.anchor"};
    struct backing_stats stats = {.written_bytes = backing->written};
    struct stat st;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (fstatat(backing->directory, names[i], &st, 0) == 0)
            stats.disk_bytes += (uint64_t)st.st_blocks * 512;
    }
    return stats;
}

const struct backing_ops backing_sqlite = {
    .name = "sqlite",
    .open = sq_open,
    .load = sq_load,
    .append = sq_append,
    .sync = sq_sync,
    .upkeep = sq_upkeep,
    .set_max_size = sq_set_max_size,
    .record_max = sq_record_max,
    .compact = sq_compact,
    .read = sq_read,
    .scan = sq_scan,
    .stats = sq_stats,
    .close = sq_close,
};
