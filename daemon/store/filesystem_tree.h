/*
 * The folder of a filesystem store, with everything that touches an entry's file and its entry in
 * the index together:
 *
 *   version      "2"
 *   entries/ab/  256 folders, a file an entry (filesystem_file.h)
 *   journal/     what has no file of its own yet (filesystem_journal.h)
 *   tmp/         files that are being written; emptied at the start
 *   index        (filesystem_log.h)
 *
 * Files are put in place by a rename, whole or not at all, so who reads needs no lock. Who changes
 * what lies under a name holds the lock of its folder over the change of file and index; that is
 * also what makes put-if-absent atomic. Of an entry that lies in the journal, the journal has the
 * truth, and a file under its name may be of the past; of all others it is the files. The index
 * follows.
 *
 * Any thread. Numbers returned as "0 or errno" are logged by the caller, or told to the client.
 */
#ifndef LIARA_STORE_FILESYSTEM_TREE_H
#define LIARA_STORE_FILESYSTEM_TREE_H

#include "filesystem_file.h"
#include "filesystem_index.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    FS_TEMPORARY_SIZE = 24, /* a name in tmp */
    FS_FEW = 16,            /* files: so many are synced one by one, more all at once */
    FS_BATCH = 64           /* entries gathered from the index at a time */
};

/* What is not on stable storage yet. */
struct fs_dirty {
    bool many; /* more than are named here: everything is to be synced */
    unsigned files, folders;
    XXH128_hash_t file[FS_FEW];
    bool folder[FS_FOLDERS];
};

struct fs_tree {
    char *directory; /* for what is said about it */
    int root, entries, tmp;
    struct fs_index *index;
    struct fs_journal *journal;
    _Atomic uint64_t next_name; /* in tmp */
    _Atomic int64_t complain_after;
    pthread_mutex_t folders[FS_FOLDERS];
    pthread_mutex_t storing; /* see fs_tree_begin_store() */
    pthread_mutex_t dirty_lock;
    struct fs_dirty dirty; /* under dirty_lock */
};

/* Opens the store's folder, which exists, and reads its journal, which is to take up no more than
 * bound bytes, and its index. NULL, and why. */
struct fs_tree *fs_tree_open(const char *directory, uint64_t bound, char *why, size_t size);

/* Closes and frees; clean: all is on stable storage. NULL is fine. */
void fs_tree_close(struct fs_tree *tree, bool clean);

/*
 * Between the two, what was appended to the journal is not in the index yet. Who seals a segment to
 * go through it, and who makes void what lies in the journal on another thread than the writer's,
 * stands between them too: else it would take for gone, or for older, what is just being stored.
 * Taken before a folder's lock.
 */
void fs_tree_begin_store(struct fs_tree *tree);
void fs_tree_end_store(struct fs_tree *tree);

void fs_tree_lock(struct fs_tree *tree, XXH128_hash_t hash);
void fs_tree_unlock(struct fs_tree *tree, XXH128_hash_t hash);

/* The entry's file, opened to be read; -1 with errno. */
int fs_tree_open_entry(struct fs_tree *tree, XXH128_hash_t hash);

/* Whether an error says that the file is damaged, that we lack something (and not the file). */
bool fs_tree_is_damage(int error);
bool fs_tree_is_shortage(int error);

/* As fs_file_read_head(), and that the entry belongs under its name. */
enum fs_file_result fs_tree_read_head(int fd, XXH128_hash_t hash, struct fs_head *head,
                                      const char **what);

/*
 * Looks at the entry's file and corrects the index by it; a damaged file is removed, with a line in
 * the log. What lies in the journal is left alone. 0 or errno. settle: with the lock held; check
 * takes it.
 */
int fs_tree_settle(struct fs_tree *tree, XXH128_hash_t hash);
int fs_tree_check(struct fs_tree *tree, XXH128_hash_t hash);

/* Removes the file that fd has opened and found damaged, if it is still in its place; takes the
 * lock. */
void fs_tree_discard(struct fs_tree *tree, XXH128_hash_t hash, int fd, const char *what);

/* The same for the entry that lies at place in the journal and was found damaged there. */
void fs_tree_discard_journaled(struct fs_tree *tree, XXH128_hash_t hash, struct fs_place place,
                               const char *what);

/* Whether the file that fd has opened was found right in this run, and is still in its place; that
 * it was. Both take the lock. */
bool fs_tree_is_verified(struct fs_tree *tree, XXH128_hash_t hash, int fd);
void fs_tree_set_verified(struct fs_tree *tree, XXH128_hash_t hash, int fd);

/* Removes file and entry, the lock held. 0, or errno; ENOENT: it had no file, nor lay in the
 * journal. *freed: bytes. */
int fs_tree_remove(struct fs_tree *tree, XXH128_hash_t hash, uint64_t *freed);

/* A name in tmp that nothing has. */
void fs_tree_temporary(struct fs_tree *tree, char name[FS_TEMPORARY_SIZE]);

/* Moves the file of that name in tmp into its place and takes entry over, the lock held. 0 or
 * errno. */
int fs_tree_place(struct fs_tree *tree, const char *name, struct fs_entry *entry);

/* Takes over an entry that was written to the journal; takes the lock. */
void fs_tree_put(struct fs_tree *tree, struct fs_entry *entry);

/*
 * Writes the file of an entry that lies at place in the journal, if it still does; to the index it
 * goes on to lie there. A damaged image is discarded. 0 or errno. Takes the lock.
 */
int fs_tree_file(struct fs_tree *tree, const struct fs_segment_item *item);

/* The file of an entry that still lies at place is on stable storage, and its segment of the
 * journal gone from there: the index knows it by its file from here on. Takes the lock. */
void fs_tree_filed(struct fs_tree *tree, const struct fs_segment_item *item);

/*
 * What is dirty, which then is not any more, and in *epoch the epoch of the index that it ends:
 * every entry of that epoch or an older one that is not durable is among it.
 */
struct fs_dirty fs_tree_take_dirty(struct fs_tree *tree, uint32_t *epoch);

/* What was taken is dirty still, and with it everything: a sync has failed. */
void fs_tree_all_dirty(struct fs_tree *tree);

/* Logs what clients are told one by one, but not as often. */
void fs_tree_complain(struct fs_tree *tree, int error, const char *what);

#endif
