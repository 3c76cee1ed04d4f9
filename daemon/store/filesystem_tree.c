#include "filesystem_tree.h"

#include "../clock.h"
#include "../log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    VERSION = 2,
    VERSION_WITHOUT_JOURNAL = 1, /* and else the same */
    COMPLAIN_PAUSE_MS = 10000
};

bool fs_tree_is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM;
}

bool fs_tree_is_damage(int error)
{
    return error == ELOOP || error == EIO || error == ENXIO || error == EUCLEAN ||
           error == EBADMSG || error == EISDIR;
}

void fs_tree_complain(struct fs_tree *tree, int error, const char *what)
{
    int64_t now = clock_now(), after = atomic_load(&tree->complain_after);
    if (now >= after &&
        atomic_compare_exchange_strong(&tree->complain_after, &after, now + COMPLAIN_PAUSE_MS))
        log_error("%s in %s: %s", what, tree->directory, strerror(error));
}

int fs_tree_open_entry(struct fs_tree *tree, XXH128_hash_t hash)
{
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    /* O_NONBLOCK: whatever somebody may have put there, opening it must not wait. */
    return openat(tree->entries, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

void fs_tree_lock(struct fs_tree *tree, XXH128_hash_t hash)
{
    pthread_mutex_lock(&tree->folders[fs_file_folder(hash)]);
}

void fs_tree_unlock(struct fs_tree *tree, XXH128_hash_t hash)
{
    pthread_mutex_unlock(&tree->folders[fs_file_folder(hash)]);
}

void fs_tree_begin_store(struct fs_tree *tree)
{
    pthread_mutex_lock(&tree->storing);
}

void fs_tree_end_store(struct fs_tree *tree)
{
    pthread_mutex_unlock(&tree->storing);
}

/* The order matters: file, then this, then the index, whose epoch is then no earlier than this. */
static void note_change(struct fs_tree *tree, XXH128_hash_t hash, bool is_new)
{
    struct fs_dirty *dirty = &tree->dirty;
    unsigned folder = fs_file_folder(hash);
    pthread_mutex_lock(&tree->dirty_lock);
    dirty->folders += !dirty->folder[folder];
    dirty->folder[folder] = true;
    if (is_new && dirty->files < FS_FEW)
        dirty->file[dirty->files++] = hash;
    else if (is_new)
        dirty->many = true;
    pthread_mutex_unlock(&tree->dirty_lock);
}

/* The journal is not to bring back what lies in it now. 0 or errno. */
static int void_journaled(struct fs_tree *tree, XXH128_hash_t hash)
{
    unsigned segment;
    struct fs_journal_record gone = {.hash = hash};
    return fs_journal_append(tree->journal, &gone, 1, &segment);
}

static bool in_journal(struct fs_tree *tree, XXH128_hash_t hash)
{
    return fs_index_place(tree->index, hash).segment != 0;
}

int fs_tree_remove(struct fs_tree *tree, XXH128_hash_t hash, uint64_t *freed)
{
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    int error = unlinkat(tree->entries, name, 0) == 0 ? 0 : errno;
    if (error != 0 && error != ENOENT)
        return error;
    if (error == 0)
        note_change(tree, hash, false);
    /* The file goes first: once the record is there, what is left of it would count again. */
    if (in_journal(tree, hash))
        error = void_journaled(tree, hash);
    if (error == 0 || error == ENOENT)
        *freed = fs_index_remove(tree->index, hash);
    return error;
}

/* Takes a damaged file away, so that its place is free. The folder's lock is held. */
static void discard(struct fs_tree *tree, XXH128_hash_t hash, const char *what)
{
    char name[FS_NAME_SIZE];
    uint64_t freed;
    fs_file_name(hash, name);
    int error = fs_tree_remove(tree, hash, &freed);
    if (error == 0)
        log_warning("%s/entries/%s is damaged (%s); removed", tree->directory, name, what);
    else if (error != ENOENT)
        log_error("%s/entries/%s is damaged (%s) and can't be removed: %s", tree->directory, name,
                  what, strerror(error));
    fs_index_remove(tree->index, hash);
}

/* Whether the entry has its file, and that is the one that fd has opened. The lock is held. */
static bool is_placed(struct fs_tree *tree, XXH128_hash_t hash, int fd)
{
    char name[FS_NAME_SIZE];
    struct stat opened, placed;
    fs_file_name(hash, name);
    return !in_journal(tree, hash) && fstat(fd, &opened) == 0 &&
           fstatat(tree->entries, name, &placed, AT_SYMLINK_NOFOLLOW) == 0 &&
           opened.st_dev == placed.st_dev && opened.st_ino == placed.st_ino;
}

void fs_tree_discard(struct fs_tree *tree, XXH128_hash_t hash, int fd, const char *what)
{
    fs_tree_lock(tree, hash);
    if (is_placed(tree, hash, fd))
        discard(tree, hash, what);
    fs_tree_unlock(tree, hash);
}

bool fs_tree_is_verified(struct fs_tree *tree, XXH128_hash_t hash, int fd)
{
    if (!fs_index_verified(tree->index, hash))
        return false;
    fs_tree_lock(tree, hash);
    bool verified = is_placed(tree, hash, fd) && fs_index_verified(tree->index, hash);
    fs_tree_unlock(tree, hash);
    return verified;
}

void fs_tree_set_verified(struct fs_tree *tree, XXH128_hash_t hash, int fd)
{
    fs_tree_lock(tree, hash);
    if (is_placed(tree, hash, fd))
        fs_index_verify(tree->index, hash);
    fs_tree_unlock(tree, hash);
}

static bool lies_at(struct fs_tree *tree, XXH128_hash_t hash, struct fs_place place)
{
    struct fs_place now = fs_index_place(tree->index, hash);
    return now.segment == place.segment && now.offset == place.offset;
}

/* Removes what is damaged in the journal, and what a file under the name may have of the past. The
 * lock is held, or nobody else is there yet. */
static void discard_journaled(struct fs_tree *tree, XXH128_hash_t hash, const char *what)
{
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    if (unlinkat(tree->entries, name, 0) == 0)
        note_change(tree, hash, false);
    int error = void_journaled(tree, hash);
    if (error != 0)
        fs_tree_complain(tree, error, "can't write to the journal");
    fs_index_remove(tree->index, hash);
    log_warning("entry %s in %s/journal is damaged (%s); removed", name, tree->directory, what);
}

void fs_tree_discard_journaled(struct fs_tree *tree, XXH128_hash_t hash, struct fs_place place,
                               const char *what)
{
    fs_tree_begin_store(tree);
    fs_tree_lock(tree, hash);
    if (lies_at(tree, hash, place))
        discard_journaled(tree, hash, what);
    fs_tree_unlock(tree, hash);
    fs_tree_end_store(tree);
}

enum fs_file_result fs_tree_read_head(int fd, XXH128_hash_t hash, struct fs_head *head,
                                      const char **what)
{
    enum fs_file_result result = fs_file_read_head(fd, head, what);
    if (result != FS_FILE_OK)
        return result;
    *what = "it stands under another's name";
    XXH128_hash_t own = fs_file_hash(fs_file_key(head), head->header.key_length);
    return XXH128_isEqual(own, hash) ? FS_FILE_OK : FS_FILE_DAMAGED;
}

static int settle_opened(struct fs_tree *tree, XXH128_hash_t hash, int fd)
{
    struct fs_head head;
    const char *what;
    enum fs_file_result result = fs_tree_read_head(fd, hash, &head, &what);
    if (result == FS_FILE_FAILED)
        return errno;
    if (result == FS_FILE_DAMAGED) {
        discard(tree, hash, what);
        return 0;
    }
    struct fs_entry *entry =
        fs_entry_new(hash, fs_file_key(&head), head.header.key_length, head.header.length,
                     clock_from_wall(head.header.end, head.header.ttl));
    if (entry == NULL)
        return ENOMEM;
    fs_index_settle(tree->index, entry);
    return 0;
}

int fs_tree_settle(struct fs_tree *tree, XXH128_hash_t hash)
{
    if (in_journal(tree, hash))
        return 0;
    int fd = fs_tree_open_entry(tree, hash);
    if (fd < 0 && errno == ENOENT) {
        fs_index_remove(tree->index, hash);
        return 0;
    }
    if (fd < 0 && fs_tree_is_damage(errno)) {
        discard(tree, hash, "it can't be opened");
        return 0;
    }
    if (fd < 0)
        return errno;
    int error = settle_opened(tree, hash, fd);
    close(fd);
    return error;
}

int fs_tree_check(struct fs_tree *tree, XXH128_hash_t hash)
{
    fs_tree_lock(tree, hash);
    int error = fs_tree_settle(tree, hash);
    fs_tree_unlock(tree, hash);
    return error;
}

static int make_again(struct fs_tree *tree, const char *name)
{
    char folder[] = {name[0], name[1], '\0'};
    if (mkdirat(tree->entries, folder, 0700) != 0)
        return errno;
    pthread_mutex_lock(&tree->dirty_lock);
    tree->dirty.many = true;
    pthread_mutex_unlock(&tree->dirty_lock);
    return 0;
}

static int move_into_place(struct fs_tree *tree, const char *from, XXH128_hash_t hash)
{
    char name[FS_NAME_SIZE];
    fs_file_name(hash, name);
    int error = renameat(tree->tmp, from, tree->entries, name) == 0 ? 0 : errno;
    if (error == ENOENT && make_again(tree, name) == 0) /* somebody removed the folder */
        error = renameat(tree->tmp, from, tree->entries, name) == 0 ? 0 : errno;
    return error;
}

void fs_tree_temporary(struct fs_tree *tree, char name[FS_TEMPORARY_SIZE])
{
    unsigned long long number = atomic_fetch_add(&tree->next_name, 1);
    snprintf(name, FS_TEMPORARY_SIZE, "%llu", number);
}

int fs_tree_place(struct fs_tree *tree, const char *from, struct fs_entry *entry)
{
    int error = move_into_place(tree, from, entry->hash);
    if (error == 0)
        note_change(tree, entry->hash, true);
    if (error == 0 && in_journal(tree, entry->hash))
        error = void_journaled(tree, entry->hash);
    if (error == 0)
        fs_index_put(tree->index, entry);
    return error;
}

void fs_tree_put(struct fs_tree *tree, struct fs_entry *entry)
{
    XXH128_hash_t hash = entry->hash;
    fs_tree_lock(tree, hash);
    fs_index_put(tree->index, entry);
    fs_tree_unlock(tree, hash);
}

int fs_tree_file(struct fs_tree *tree, const struct fs_segment_item *item)
{
    char name[FS_TEMPORARY_SIZE];
    if (!lies_at(tree, item->hash, item->place))
        return 0;
    const char *what = fs_file_check(item->image, item->length);
    if (what != NULL) {
        fs_tree_discard_journaled(tree, item->hash, item->place, what);
        return 0;
    }
    fs_tree_temporary(tree, name);
    int error = fs_file_write_image(tree->tmp, name, item->image, item->length);
    if (error != 0)
        return error;
    fs_tree_lock(tree, item->hash);
    bool wanted = lies_at(tree, item->hash, item->place);
    if (wanted)
        error = move_into_place(tree, name, item->hash);
    if (wanted && error == 0)
        fs_index_has_file(tree->index, item->hash, item->place);
    fs_tree_unlock(tree, item->hash);
    if (!wanted || error != 0)
        unlinkat(tree->tmp, name, 0);
    return error;
}

void fs_tree_filed(struct fs_tree *tree, const struct fs_segment_item *item)
{
    fs_tree_lock(tree, item->hash);
    fs_index_filed(tree->index, item->hash, item->place);
    fs_tree_unlock(tree, item->hash);
}

struct fs_dirty fs_tree_take_dirty(struct fs_tree *tree, uint32_t *epoch)
{
    pthread_mutex_lock(&tree->dirty_lock);
    struct fs_dirty taken = tree->dirty;
    tree->dirty = (struct fs_dirty){0};
    *epoch = fs_index_next_epoch(tree->index);
    pthread_mutex_unlock(&tree->dirty_lock);
    return taken;
}

void fs_tree_all_dirty(struct fs_tree *tree)
{
    pthread_mutex_lock(&tree->dirty_lock);
    tree->dirty.many = true;
    pthread_mutex_unlock(&tree->dirty_lock);
}

/* Makes a folder, or finds it; *made says which. -1 with why. */
static int open_folder(struct fs_tree *tree, const char *name, bool *made, char *why, size_t size)
{
    *made = mkdirat(tree->root, name, 0700) == 0;
    int fd = -1;
    if (*made || errno == EEXIST)
        fd = openat(tree->root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && faccessat(tree->root, name, W_OK | X_OK, AT_EACCESS) == 0)
        return fd;
    snprintf(why, size, "can't use the folder %s/%s: %s", tree->directory, name, strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool write_version(struct fs_tree *tree, char *why, size_t size)
{
    int fd = openat(tree->root, "version", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool ok = fd >= 0 && dprintf(fd, "%d\n", VERSION) > 0 && fsync(fd) == 0;
    if (!ok)
        snprintf(why, size, "can't write %s/version: %s", tree->directory, strerror(errno));
    if (fd >= 0)
        close(fd);
    return ok;
}

/* An empty one is what a loss of power while the store was made may leave: it is written again. */
static bool check_version(struct fs_tree *tree, char *why, size_t size)
{
    char text[16] = "", *end;
    int fd = openat(tree->root, "version", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    int error = got < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (got == 0 || error == ENOENT)
        return write_version(tree, why, size);
    unsigned long version = strtoul(text, &end, 10);
    if (error != 0)
        snprintf(why, size, "can't read %s/version: %s", tree->directory, strerror(error));
    else if (end == text || *end != '\n')
        snprintf(why, size, "%s/version is no version: is this a store?", tree->directory);
    else if (version == VERSION_WITHOUT_JOURNAL)
        return write_version(tree, why, size);
    else if (version != VERSION)
        snprintf(why, size, "the store in %s is of version %lu, and this daemon knows %d alone",
                 tree->directory, version, VERSION);
    else
        return true;
    return false;
}

static bool make_entry_folders(struct fs_tree *tree, char *why, size_t size)
{
    char name[3];
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        snprintf(name, sizeof(name), "%02x", i);
        if (mkdirat(tree->entries, name, 0700) != 0 && errno != EEXIST) {
            snprintf(why, size, "can't make the folder %s/entries/%s: %s", tree->directory, name,
                     strerror(errno));
            return false;
        }
    }
    if (fsync(tree->entries) == 0 && fsync(tree->root) == 0)
        return true;
    snprintf(why, size, "can't sync the folders of %s: %s", tree->directory, strerror(errno));
    return false;
}

/* What a daemon that was killed was about to write. */
static bool empty_tmp(struct fs_tree *tree, char *why, size_t size)
{
    int fd = openat(tree->root, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        snprintf(why, size, "can't read the folder %s/tmp: %s", tree->directory, strerror(errno));
        if (fd >= 0)
            close(fd);
        return false;
    }
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        unlinkat(fd, entry->d_name, 0);
    closedir(dir);
    return true;
}

/* Files take up whole blocks. What a network's file system says of them is about transfers. */
static uint32_t block_size(const struct fs_tree *tree)
{
    struct statvfs st;
    bool known = fstatvfs(tree->root, &st) == 0 && st.f_frsize >= 512 && st.f_frsize <= 65536;
    return known ? (uint32_t)st.f_frsize : 4096;
}

/* *fresh: there were no entries here before. */
static bool open_layout(struct fs_tree *tree, bool *fresh, char *why, size_t size)
{
    bool made;
    tree->root = open(tree->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tree->root < 0) {
        snprintf(why, size, "can't open the directory %s: %s", tree->directory, strerror(errno));
        return false;
    }
    if (!check_version(tree, why, size))
        return false;
    tree->tmp = open_folder(tree, "tmp", &made, why, size);
    tree->entries = tree->tmp >= 0 ? open_folder(tree, "entries", fresh, why, size) : -1;
    return tree->entries >= 0 && empty_tmp(tree, why, size) && make_entry_folders(tree, why, size);
}

/* When each folder was last changed: what differs was changed by somebody else, or is not ours. */
static XXH128_hash_t folder_state(const struct fs_tree *tree)
{
    struct timespec changed[FS_FOLDERS];
    memset(changed, 0, sizeof(changed));
    for (unsigned i = 0; i < FS_FOLDERS; i++) {
        char name[3];
        struct stat st;
        snprintf(name, sizeof(name), "%02x", i);
        if (fstatat(tree->entries, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            changed[i] = st.st_mtim;
    }
    return XXH3_128bits(changed, sizeof(changed));
}

static struct fs_tree *new_tree(const char *directory)
{
    struct fs_tree *tree = calloc(1, sizeof(*tree));
    if (tree == NULL)
        return NULL;
    tree->root = tree->entries = tree->tmp = -1;
    tree->directory = strdup(directory);
    pthread_mutex_init(&tree->dirty_lock, NULL);
    pthread_mutex_init(&tree->storing, NULL);
    for (unsigned i = 0; i < FS_FOLDERS; i++)
        pthread_mutex_init(&tree->folders[i], NULL);
    return tree;
}

/* The journal at the start. Of what is damaged only the hash is known. */
struct replay {
    struct fs_tree *tree;
    size_t count;
    XXH128_hash_t *damaged; /* and no later record of it is whole */
};

static bool add_damaged(struct replay *replay, XXH128_hash_t hash)
{
    size_t size = (replay->count + 1) * sizeof(hash);
    XXH128_hash_t *damaged = realloc(replay->damaged, size);
    if (damaged == NULL)
        return false;
    replay->damaged = damaged;
    damaged[replay->count++] = hash;
    fs_index_remove(replay->tree->index, hash);
    return true;
}

static void forget_damaged(struct replay *replay, XXH128_hash_t hash)
{
    for (size_t i = 0; i < replay->count; i++) {
        if (XXH128_isEqual(replay->damaged[i], hash))
            replay->damaged[i--] = replay->damaged[--replay->count];
    }
}

/* A value's bytes are only checked where they are needed, as those in files are. */
static bool replay_item(void *arg, const struct fs_segment_item *item)
{
    struct replay *replay = arg;
    struct fs_tree *tree = replay->tree;
    struct fs_header header;
    if (item->image != NULL && fs_file_check_head(item->image, item->length, &header) != NULL)
        return add_damaged(replay, item->hash);
    forget_damaged(replay, item->hash);
    if (item->image == NULL) {
        fs_index_remove(tree->index, item->hash);
        return true;
    }
    struct fs_entry *entry =
        fs_entry_new(item->hash, item->image + sizeof(header), header.key_length, header.length,
                     clock_from_wall(header.end, header.ttl));
    if (entry == NULL)
        return false;
    entry->segment = item->place.segment & FS_SEGMENTS;
    entry->offset = item->place.offset;
    fs_index_put(tree->index, entry);
    return true;
}

/* How many entries an index of that size may have. */
static uint64_t guess_entries(const struct fs_tree *tree)
{
    enum { SHORT_KEY = 16 };
    struct stat st;
    bool known = fstatat(tree->root, "index", &st, AT_SYMLINK_NOFOLLOW) == 0;
    return known ? (uint64_t)st.st_size / (sizeof(struct fs_record) + SHORT_KEY) : 0;
}

/* false, and why. *intact: nothing was damaged. */
static bool open_journal(struct fs_tree *tree, struct fs_directory directory, uint64_t bound,
                         bool *intact, char *why, size_t size)
{
    struct replay replay = {.tree = tree};
    tree->journal = fs_journal_open(directory, bound, replay_item, &replay, intact, why, size);
    for (size_t i = 0; i < replay.count && tree->journal != NULL; i++)
        discard_journaled(tree, replay.damaged[i], "its header or key");
    *intact = *intact && replay.count == 0;
    free(replay.damaged);
    return tree->journal != NULL;
}

static bool open_index(struct fs_tree *tree, uint64_t bound, bool fresh, char *why, size_t size)
{
    const struct fs_directory directory = {.fd = tree->root, .path = tree->directory};
    struct fs_found found = {.state = folder_state(tree), .empty = fresh};
    bool intact = false;
    tree->index = fs_index_new(block_size(tree), guess_entries(tree));
    if (tree->index == NULL) {
        snprintf(why, size, "out of memory for the index of the store");
        return false;
    }
    if (!open_journal(tree, directory, bound, &intact, why, size))
        return false;
    found.doubtful = !intact;
    return fs_index_load(tree->index, directory, &found, why, size);
}

struct fs_tree *fs_tree_open(const char *directory, uint64_t bound, char *why, size_t size)
{
    struct fs_tree *tree = new_tree(directory);
    bool fresh = false, ok = false;
    if (tree == NULL || tree->directory == NULL)
        snprintf(why, size, "out of memory");
    else if (open_layout(tree, &fresh, why, size))
        ok = open_index(tree, bound, fresh, why, size);
    if (!ok) {
        fs_tree_close(tree, false);
        return NULL;
    }
    /* What the daemon before us left unsynced is ours to sync. */
    tree->dirty.many = !fs_index_certain(tree->index);
    return tree;
}

void fs_tree_close(struct fs_tree *tree, bool clean)
{
    if (tree == NULL)
        return;
    XXH128_hash_t state = clean ? folder_state(tree) : (XXH128_hash_t){0, 0};
    fs_index_close(tree->index, clean ? &state : NULL);
    fs_journal_close(tree->journal);
    const int fds[] = {tree->tmp, tree->entries, tree->root};
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    for (unsigned i = 0; i < FS_FOLDERS; i++)
        pthread_mutex_destroy(&tree->folders[i]);
    pthread_mutex_destroy(&tree->dirty_lock);
    pthread_mutex_destroy(&tree->storing);
    free(tree->directory);
    free(tree);
}
