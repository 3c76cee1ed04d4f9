#include "sqlite_entries.h"

#include "../clock.h"

#include <xxhash.h>

enum {
    KEY_ROWS = 1024, /* read into the set of keys in one step */
    HAND_ROWS = 1024 /* that were used, passed in the search for one that was not */
};

uint64_t sq_entries_charge(const struct sq_writer *writer)
{
    return (uint64_t)(writer->totals.bytes + writer->totals.entries * SQ_ENTRY_OVERHEAD);
}

int64_t sq_entries_checksum(const struct value *value)
{
    uint64_t seed = (uint64_t)value->key_length << 32 | value->flags;
    size_t length = (size_t)value->key_length + value->length;
    return (int64_t)XXH3_64bits_withSeed(value->data, length, seed);
}

int sq_entries_find(struct sq_writer *writer, const uint8_t *key, size_t length, struct sq_row *row)
{
    int rc = sq_find(&writer->connection, key, length, row);
    sq_end_find(&writer->connection);
    return rc;
}

int sq_entries_remove(struct sq_writer *writer, const uint8_t *key, size_t length,
                      const struct sq_row *row)
{
    struct sq_connection *connection = &writer->connection;
    int rc = sq_writer_begin(writer);
    if (rc == SQLITE_OK)
        rc = sq_run(sq_with_key(connection, SQ_ENTRY_DELETE, key, length));
    if (rc == SQLITE_OK && sqlite3_changes(connection->db) != 1)
        rc = SQLITE_CORRUPT;
    if (rc == SQLITE_OK)
        rc = sq_run(sq_with_id(connection, SQ_VALUE_DELETE, row->id));
    if (rc == SQLITE_OK)
        rc = sq_run(sq_with_id(connection, SQ_USE_DELETE, row->id));
    if (rc == SQLITE_OK)
        rc = sq_writer_count(writer, -1, -((int64_t)length + row->size));
    if (rc == SQLITE_OK)
        keyset_remove(writer->keys, store_hash(key, length));
    return rc;
}

/* Stores what is known of the value, unless the key is there: *added says which. */
static int add_entry(struct sq_writer *writer, const struct store_call *call,
                     const struct value *value, int64_t id, bool *added)
{
    sqlite3_stmt *statement =
        sq_with_key(&writer->connection, SQ_ENTRY_ADD, call->key, call->key_length);
    sqlite3_bind_int64(statement, 2, id);
    sqlite3_bind_int64(statement, 3, value->length);
    sqlite3_bind_int64(statement, 4, value->flags);
    sqlite3_bind_null(statement, 5);
    sqlite3_bind_null(statement, 6);
    if (value->expires != CLOCK_NEVER) {
        int64_t ttl = value->expires - clock_now();
        sqlite3_bind_int64(statement, 5, clock_to_wall(value->expires));
        sqlite3_bind_int64(statement, 6, ttl > 0 ? ttl : 0);
    }
    sqlite3_bind_int64(statement, 7, sq_entries_checksum(value));
    int rc = sq_run(statement);
    *added = rc == SQLITE_OK && sqlite3_changes(writer->connection.db) == 1;
    return rc;
}

static int add_value(struct sq_writer *writer, const struct store_call *call, struct value *value,
                     int64_t id)
{
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_VALUE_ADD, id);
    sqlite3_bind_blob(statement, 2, call->key, (int)call->key_length, SQLITE_STATIC);
    sqlite3_bind_blob(statement, 3, value_bytes(value), (int)value->length, SQLITE_STATIC);
    int rc = sq_run(statement);
    if (rc == SQLITE_OK)
        rc = sq_writer_count(writer, 1, (int64_t)call->key_length + value->length);
    if (rc == SQLITE_OK)
        keyset_add(writer->keys, call->hash);
    return rc;
}

/* Removes what is in the way of a PUT, or says that it stays. */
static int displace(struct sq_writer *writer, const struct store_call *call, bool *exists)
{
    struct sq_row row;
    int rc = sq_entries_find(writer, call->key, call->key_length, &row);
    if (rc != SQLITE_ROW)
        return rc == SQLITE_DONE ? SQLITE_CORRUPT : rc;
    *exists = !call->overwrite && !sq_ended(&row);
    return *exists ? SQLITE_OK : sq_entries_remove(writer, call->key, call->key_length, &row);
}

int sq_entries_put(struct sq_writer *writer, const struct store_call *call, struct value *value,
                   bool *exists)
{
    bool added = false;
    int64_t id = sq_notes_tick(writer->notes);
    *exists = false;
    int rc = sq_writer_begin(writer);
    if (rc == SQLITE_OK)
        rc = add_entry(writer, call, value, id, &added);
    if (rc == SQLITE_OK && !added)
        rc = displace(writer, call, exists);
    if (rc == SQLITE_OK && !added && !*exists)
        rc = add_entry(writer, call, value, id, &added);
    if (rc == SQLITE_OK && added)
        rc = add_value(writer, call, value, id);
    return rc;
}

/*
 * Without a WHERE SQLite frees whole trees, not row by row, and a commit that vacuums gives all
 * their pages back at once, since none is left that would have to be moved.
 */
static int clear_all(struct sq_writer *writer, uint64_t *live)
{
    static const enum sq_statement all[] = {SQ_ENTRIES_CLEAR, SQ_VALUES_CLEAR, SQ_USES_CLEAR,
                                            SQ_GONE_CLEAR};
    struct sq_connection *connection = &writer->connection;
    struct sq_totals before = writer->totals;
    int64_t ended = 0, now = clock_to_wall(clock_now());
    int rc = sq_ask(sq_with_id(connection, SQ_ENDED_COUNT, now), &ended);
    for (unsigned i = 0; i < 4 && rc == SQLITE_OK; i++)
        rc = sq_run(connection->statements[all[i]]);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(connection->db, "PRAGMA auto_vacuum=FULL", NULL, NULL, NULL);
    if (rc == SQLITE_OK) {
        writer->totals = (struct sq_totals){0};
        rc = sq_writer_commit(writer);
    }
    if (rc == SQLITE_OK)
        keyset_clear(writer->keys);
    else
        sq_writer_roll_back(writer);
    int back = sqlite3_exec(connection->db, "PRAGMA auto_vacuum=INCREMENTAL", NULL, NULL, NULL);
    *live = (uint64_t)(before.entries - ended);
    return rc != SQLITE_OK ? rc : back;
}

int sq_entries_begin_clear(struct sq_writer *writer, const uint8_t *prefix, size_t length,
                           struct sq_clear *clear)
{
    int64_t others = 1;
    *clear = (struct sq_clear){.newest = sq_notes_tick(writer->notes)};
    sq_range(prefix, length, &clear->from, &clear->to);
    int rc = sq_writer_begin(writer);
    if (rc == SQLITE_OK)
        rc = sq_ask(sq_with_range(&writer->connection, SQ_OTHERS, &clear->from, &clear->to),
                    &others);
    if (rc == SQLITE_OK && !others)
        rc = clear_all(writer, &clear->live);
    if (rc == SQLITE_OK && !others)
        return SQLITE_DONE;
    if (rc == SQLITE_OK)
        rc = sq_writer_commit(writer);
    return rc == SQLITE_OK ? SQLITE_ROW : rc;
}

/* Notes the entries of one step, up to *last; SQLITE_DONE: there are no more. */
static int gather(struct sq_writer *writer, struct sq_clear *clear, struct sq_key *last,
                  int64_t *bytes)
{
    sqlite3_stmt *statement =
        sq_with_range(&writer->connection, SQ_RANGE, &clear->from, &clear->to);
    struct sq_row row;
    int rc = SQLITE_ROW;
    clear->count = 0;
    *last = clear->from;
    for (unsigned n = 0; n < SQ_CLEAR_ROWS && (rc = sqlite3_step(statement)) == SQLITE_ROW; n++) {
        sq_read_row(statement, &row);
        if (!sq_read_key(statement, SQ_KEY_COLUMN, last)) {
            rc = SQLITE_CORRUPT;
            break;
        }
        if (row.id > clear->newest)
            continue;
        clear->ids[clear->count++] = row.id;
        *bytes += last->length + row.size;
        clear->live += !sq_ended(&row);
        keyset_remove(writer->keys, store_hash(last->bytes, last->length));
    }
    sqlite3_reset(statement);
    return rc;
}

/* The values stay where they are for now: they lie scattered, in another order than the keys. */
static int remove_gathered(struct sq_writer *writer, const struct sq_clear *clear,
                           const struct sq_key *last, int64_t bytes)
{
    struct sq_connection *connection = &writer->connection;
    int rc = sq_writer_begin(writer);
    sqlite3_stmt *statement = sq_with_range(connection, SQ_RANGE_DELETE, &clear->from, last);
    sqlite3_bind_int64(statement, 3, clear->newest);
    if (rc == SQLITE_OK)
        rc = sq_run(statement);
    if (rc == SQLITE_OK && sqlite3_changes(connection->db) != (int)clear->count)
        rc = SQLITE_CORRUPT;
    for (unsigned i = 0; i < clear->count && rc == SQLITE_OK; i++) {
        rc = sq_run(sq_with_id(connection, SQ_GONE_ADD, clear->ids[i]));
        if (rc == SQLITE_OK)
            rc = sq_run(sq_with_id(connection, SQ_USE_DELETE, clear->ids[i]));
    }
    if (rc == SQLITE_OK)
        rc = sq_writer_count(writer, -(int64_t)clear->count, -bytes);
    return rc == SQLITE_OK ? sq_writer_commit(writer) : rc;
}

int sq_entries_step_clear(struct sq_writer *writer, struct sq_clear *clear)
{
    struct sq_key last;
    int64_t bytes = 0;
    int step = gather(writer, clear, &last, &bytes);
    int rc = sq_done(step);
    if (rc == SQLITE_OK && clear->count > 0)
        rc = remove_gathered(writer, clear, &last, bytes);
    clear->from = last;
    clear->from.bytes[clear->from.length++] = 0; /* the first that is larger */
    return rc == SQLITE_OK ? step : rc;
}

int sq_entries_drop_gone(struct sq_writer *writer)
{
    struct sq_connection *connection = &writer->connection;
    sqlite3_stmt *statement = connection->statements[SQ_GONE_FIRST];
    int rc = sqlite3_step(statement);
    int64_t id = rc == SQLITE_ROW ? sqlite3_column_int64(statement, 0) : 0;
    sqlite3_reset(statement);
    if (rc != SQLITE_ROW)
        return rc;
    rc = sq_writer_begin(writer);
    if (rc == SQLITE_OK)
        rc = sq_run(sq_with_id(connection, SQ_VALUE_DELETE, id));
    if (rc == SQLITE_OK)
        rc = sq_run(sq_with_id(connection, SQ_GONE_DELETE, id));
    return rc;
}

int sq_entries_read_keys(struct sq_writer *writer)
{
    struct sq_key *from = &writer->keys_from, key, first, end;
    unsigned n = 0;
    int rc = SQLITE_ROW;
    if (writer->keys_read)
        return SQLITE_OK;
    sq_range(NULL, 0, &first, &end);
    sqlite3_stmt *statement = sq_with_range(&writer->connection, SQ_RANGE, from, &end);
    for (; n < KEY_ROWS && (rc = sqlite3_step(statement)) == SQLITE_ROW; n++) {
        if (!sq_read_key(statement, SQ_KEY_COLUMN, &key)) {
            rc = SQLITE_CORRUPT;
            break;
        }
        keyset_add(writer->keys, store_hash(key.bytes, key.length));
    }
    sqlite3_reset(statement);
    if (rc == SQLITE_ROW) {
        *from = key;
        from->bytes[from->length++] = 0; /* the first that is larger */
        return SQLITE_ROW;
    }
    writer->keys_read = rc == SQLITE_DONE;
    keyset_set_certain(writer->keys, writer->keys_read);
    return sq_done(rc);
}

int sq_entries_set_use(struct sq_writer *writer, const struct sq_use *use)
{
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_USE_SET, use->id);
    sqlite3_bind_int64(statement, 2, use->tick);
    int rc = sq_writer_begin(writer);
    return rc == SQLITE_OK ? sq_run(statement) : rc;
}

/* An entry that might go, and when it was last used; id 0: none. */
struct candidate {
    int64_t id, used;
    struct sq_key key;
};

static int take_candidate(sqlite3_stmt *statement, int64_t used, struct candidate *candidate)
{
    candidate->id = sqlite3_column_int64(statement, 0);
    candidate->used = used;
    return sq_read_key(statement, 2, &candidate->key) ? SQLITE_OK : SQLITE_CORRUPT;
}

/* The oldest entry that was not used since it was stored, unless very many older ones were. */
static int oldest_unused(struct sq_writer *writer, struct candidate *candidate)
{
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_VALUES, writer->totals.hand);
    int rc = SQLITE_DONE;
    candidate->id = 0;
    for (unsigned n = 0; n < HAND_ROWS && (rc = sqlite3_step(statement)) == SQLITE_ROW; n++) {
        int64_t id = sqlite3_column_int64(statement, 0);
        if (sqlite3_column_int(statement, 1) == 0) {
            rc = take_candidate(statement, id, candidate);
            break;
        }
        writer->totals.hand = id;
    }
    sqlite3_reset(statement);
    return sq_done(rc);
}

static int least_used(struct sq_writer *writer, struct candidate *candidate)
{
    sqlite3_stmt *statement = writer->connection.statements[SQ_USE_OLDEST];
    int rc = sqlite3_step(statement);
    candidate->id = 0;
    if (rc == SQLITE_ROW)
        rc = take_candidate(statement, sqlite3_column_int64(statement, 1), candidate);
    sqlite3_reset(statement);
    return sq_done(rc);
}

/* The entry that was used least recently, as far as the database knows. */
static int oldest(struct sq_writer *writer, struct candidate *candidate)
{
    struct candidate used;
    int64_t hand;
    int rc;
    do {
        hand = writer->totals.hand;
        rc = oldest_unused(writer, candidate);
        if (rc == SQLITE_OK)
            rc = least_used(writer, &used);
    } while (rc == SQLITE_OK && candidate->id == 0 && used.id == 0 && writer->totals.hand != hand);
    if (rc == SQLITE_OK && used.id != 0 && (candidate->id == 0 || used.used < candidate->used))
        *candidate = used;
    return rc;
}

/*
 * The entry that is worth least: the one that was used least recently. What only the notes know of
 * its uses is written down first, each time one note less.
 */
static int choose_victim(struct sq_writer *writer, struct candidate *victim)
{
    struct sq_use use;
    int rc = oldest(writer, victim);
    for (unsigned n = 0; n < SQ_USES && rc == SQLITE_OK; n++) {
        if (!sq_notes_take_use(writer->notes, victim->id, &use))
            break;
        rc = sq_entries_set_use(writer, &use);
        if (rc == SQLITE_OK)
            rc = oldest(writer, victim);
    }
    return rc;
}

int sq_entries_evict(struct sq_writer *writer)
{
    struct candidate victim;
    struct sq_row row;
    int rc = choose_victim(writer, &victim);
    if (rc == SQLITE_OK && victim.id != 0)
        rc = sq_entries_find(writer, victim.key.bytes, victim.key.length, &row);
    if (rc == SQLITE_ROW && row.id == victim.id)
        return sq_entries_remove(writer, victim.key.bytes, victim.key.length, &row);
    /* The tables always agree. */
    return sq_done(rc) == SQLITE_OK ? SQLITE_CORRUPT : rc;
}

int sq_entries_drop_ended(struct sq_writer *writer)
{
    int64_t now = clock_to_wall(clock_now());
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_ENDED_FIRST, now);
    struct sq_key key;
    struct sq_row row;
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        sq_read_row(statement, &row);
    bool known = rc == SQLITE_ROW && sq_read_key(statement, SQ_KEY_COLUMN, &key);
    sqlite3_reset(statement);
    if (known)
        return sq_entries_remove(writer, key.bytes, key.length, &row);
    return rc == SQLITE_ROW ? SQLITE_CORRUPT : rc;
}

int sq_entries_drop_suspects(struct sq_writer *writer)
{
    struct sq_suspect suspect;
    struct sq_row row;
    int rc = SQLITE_OK;
    while (rc == SQLITE_OK && sq_notes_take_suspect(writer->notes, &suspect)) {
        const struct sq_key *key = &suspect.key;
        rc = sq_entries_find(writer, key->bytes, key->length, &row);
        if (rc == SQLITE_ROW && row.id == suspect.id)
            rc = sq_entries_remove(writer, key->bytes, key->length, &row);
        rc = sq_done(rc);
    }
    return rc;
}

bool sq_entries_have_ends(struct sq_writer *writer)
{
    sqlite3_stmt *statement = sq_with_id(&writer->connection, SQ_ENDED_FIRST, INT64_MAX);
    int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_ROW;
}
