/* Loaded by LD_PRELOAD: see fault.h. Without its environment all calls go through. */
#include "fault.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* The next definition of the function that this one stands before. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { BUCKETS = 4096 };

struct page {
    struct page *next;
    struct fault_page it;
};

static struct fault_control *control;
static int lost_file = -1;
static struct page *pages[BUCKETS]; /* where the disk does not have what the file says */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv(FAULT_CONTROL), *lost = getenv(FAULT_LOST);
    int fd = path != NULL ? (int)syscall(SYS_open, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = (void *)syscall(SYS_mmap, NULL, sizeof(*control), PROT_READ | PROT_WRITE,
                                MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED)
        abort();
    control = map;
    if (lost != NULL) {
        fd = (int)syscall(SYS_open, lost, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        lost_file = fcntl(fd, F_DUPFD_CLOEXEC, 200); /* out of the daemon's way */
        syscall(SYS_close, fd);
    }
}

static bool is_below(const char *path)
{
    size_t length = strlen(control->directory);
    return strncmp(path, control->directory, length) == 0 &&
           (path[length] == '/' || path[length] == '\0');
}

static bool path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = '\0';
    return length > 0;
}

/* The full path of what a call names. */
static void resolve(int directory, const char *name, char *path)
{
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (directory == AT_FDCWD) {
        if (getcwd(base, sizeof(base)) == NULL)
            base[0] = '\0';
    } else {
        path_of(directory, base);
    }
    size_t length = strnlen(base, PATH_MAX / 2);
    memcpy(path, base, length);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
}

/* Counts a call on a path; true, with errno set, if it is the one to fail. */
static bool fails_on(enum fault_call call, const char *path)
{
    if (!is_below(path) || (control->kinds & 1U << call) == 0)
        return false;
    uint32_t n = atomic_fetch_add(&control->counted, 1) + 1;
    if (control->nth == 0 || (control->for_good ? n < control->nth : n != control->nth))
        return false;
    if (atomic_fetch_add(&control->failed, 1) == 0) {
        atomic_store(&control->first_failed, call);
        snprintf(control->first_path, sizeof(control->first_path), "%.200s", path);
    }
    errno = control->error;
    return control->error != FAULT_SHORT || call == FAULT_WRITE;
}

static bool fails_name(enum fault_call call, int directory, const char *name)
{
    char path[PATH_MAX];
    if (control == NULL)
        return false;
    resolve(directory, name, path);
    return fails_on(call, path);
}

static bool fails(enum fault_call call, int fd)
{
    char path[PATH_MAX];
    return control != NULL && path_of(fd, path) && fails_on(call, path);
}

static bool is_ours(int fd)
{
    char path[PATH_MAX];
    return control != NULL && lost_file >= 0 && path_of(fd, path) && is_below(path);
}

static struct page **page_find(uint64_t inode, uint64_t number)
{
    struct page **at = &pages[(inode * 31 + number) % BUCKETS];
    while (*at != NULL && ((*at)->it.inode != inode || (*at)->it.number != number))
        at = &(*at)->next;
    return at;
}

static void page_tell(const struct page *page)
{
    if (syscall(SYS_write, lost_file, &page->it, sizeof(page->it)) != sizeof(page->it))
        abort();
}

/* What is written anew, or gone with its file, is not lost. */
static void page_is_written(struct page *page)
{
    if (page->it.is_lost) {
        page->it.is_lost = false;
        page_tell(page);
    }
}

/* A descriptor that can read what this one may only write. Where this one can read it is taken
 * itself: to close another one would drop the POSIX locks that SQLite holds on the file. */
static int reader_of(int fd)
{
    char link[64];
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
        return fd;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return (int)syscall(SYS_open, link, O_RDONLY | O_CLOEXEC);
}

/* Before a write: remembers what the disk has of these bytes. */
static void remember(int fd, uint64_t from, uint64_t length)
{
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        return;
    int reader = reader_of(fd);
    for (uint64_t n = from / FAULT_PAGE; n * FAULT_PAGE < from + length; n++) {
        struct page **at = page_find(status.st_ino, n);
        if (*at == NULL) {
            struct page *page = calloc(1, sizeof(*page));
            if (page == NULL)
                abort();
            page->it.inode = status.st_ino;
            page->it.number = n;
            if (pread(reader, page->it.bytes, FAULT_PAGE, (off_t)(n * FAULT_PAGE)) < 0)
                memset(page->it.bytes, 0, FAULT_PAGE);
            *at = page;
        } else {
            page_is_written(*at);
        }
    }
    if (reader != fd)
        syscall(SYS_close, reader);
}

static void before_write(int fd, off_t offset, size_t length)
{
    struct stat status;
    if (!is_ours(fd) || length == 0)
        return;
    if (offset < 0)
        offset = lseek(fd, 0, SEEK_CUR);
    if ((fcntl(fd, F_GETFL) & O_APPEND) != 0 && fstat(fd, &status) == 0)
        offset = status.st_size;
    pthread_mutex_lock(&lock);
    remember(fd, (uint64_t)offset, length);
    pthread_mutex_unlock(&lock);
}

/* After a sync: all files, or that of one inode. What was lost before stays so. */
static void after_sync(bool all, uint64_t inode, bool failed)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < BUCKETS; i++) {
        for (struct page **at = &pages[i]; *at != NULL;) {
            struct page *page = *at;
            bool is_dirty = !page->it.is_lost && (all || page->it.inode == inode);
            if (is_dirty && failed) {
                page->it.is_lost = true;
                page_tell(page);
            }
            if (is_dirty && !failed) {
                *at = page->next;
                free(page);
            } else {
                at = &page->next;
            }
        }
    }
    pthread_mutex_unlock(&lock);
}

/* The file has been cut, or is a new one under an old inode. */
static void forget(int fd)
{
    struct stat status;
    if (!is_ours(fd) || fstat(fd, &status) != 0)
        return;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < BUCKETS; i++) {
        for (struct page **at = &pages[i]; *at != NULL;) {
            struct page *page = *at;
            if (page->it.inode == status.st_ino &&
                page->it.number * FAULT_PAGE >= (uint64_t)status.st_size) {
                page_is_written(page);
                *at = page->next;
                free(page);
            } else {
                at = &page->next;
            }
        }
    }
    pthread_mutex_unlock(&lock);
}

/* How much of a write is to be written: all, half of it, or, with errno set, -1: nothing. */
static ssize_t allowed(int fd, size_t length)
{
    if (!fails(FAULT_WRITE, fd))
        return (ssize_t)length;
    if (control->error != FAULT_SHORT)
        return -1;
    return length < 2 ? (ssize_t)length : (ssize_t)(length / 2);
}

EXPORT ssize_t write(int fd, const void *bytes, size_t length)
{
    ssize_t part = control == NULL ? (ssize_t)length : allowed(fd, length);
    if (part < 0)
        return -1;
    before_write(fd, -1, (size_t)part);
    return NEXT(write)(fd, bytes, (size_t)part);
}

EXPORT ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    ssize_t part = control == NULL ? (ssize_t)length : allowed(fd, length);
    if (part < 0)
        return -1;
    before_write(fd, offset, (size_t)part);
    return NEXT(pwrite)(fd, bytes, (size_t)part, offset);
}

EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
    return pwrite(fd, bytes, length, offset);
}

/* Half of a vector is half of its first part that has any, to keep it simple. */
static ssize_t write_vector(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    ssize_t part = control == NULL ? (ssize_t)length : allowed(fd, length);
    if (part < 0)
        return -1;
    before_write(fd, offset, length);
    if ((size_t)part < length) {
        while (parts->iov_len == 0)
            parts++;
        size_t half = parts->iov_len < 2 ? 1 : parts->iov_len / 2;
        return offset < 0 ? NEXT(write)(fd, parts->iov_base, half)
                          : NEXT(pwrite)(fd, parts->iov_base, half, offset);
    }
    return offset < 0 ? NEXT(writev)(fd, parts, count) : NEXT(pwritev)(fd, parts, count, offset);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return write_vector(fd, parts, count, -1);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return write_vector(fd, parts, count, offset);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return write_vector(fd, parts, count, offset);
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    (void)flags;
    return write_vector(fd, parts, count, offset);
}

static int sync_one(enum fault_call call, int fd, int (*next)(int))
{
    struct stat status;
    bool ours = is_ours(fd) && fstat(fd, &status) == 0;
    bool failed = fails(call, fd);
    int result = failed ? -1 : next(fd);
    int error = errno;
    if (ours)
        after_sync(call == FAULT_SYNCFS, status.st_ino, result != 0);
    errno = error;
    return result;
}

EXPORT int fsync(int fd)
{
    return sync_one(FAULT_FSYNC, fd, NEXT(fsync));
}

EXPORT int fdatasync(int fd)
{
    return sync_one(FAULT_FDATASYNC, fd, NEXT(fdatasync));
}

EXPORT int syncfs(int fd)
{
    return sync_one(FAULT_SYNCFS, fd, NEXT(syncfs));
}

EXPORT int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags)
{
    if (fails(FAULT_SYNC_FILE_RANGE, fd))
        return -1;
    return NEXT(sync_file_range)(fd, offset, length, flags);
}

static int open_at(int directory, const char *name, int flags, mode_t mode)
{
    if (fails_name(FAULT_OPEN, directory, name))
        return -1;
    int fd = NEXT(openat)(directory, name, flags, mode);
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) != 0)
        forget(fd);
    return fd;
}

static mode_t mode_of(int flags, va_list arguments)
{
    return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t)
                                                                      : 0;
}

#define OPEN(name)                                                                                 \
    EXPORT int name(const char *path, int flags, ...)                                              \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, flags);                                                                \
        mode_t mode = mode_of(flags, arguments);                                                   \
        va_end(arguments);                                                                         \
        return open_at(AT_FDCWD, path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                               \
    EXPORT int name(int directory, const char *path, int flags, ...)                               \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, flags);                                                                \
        mode_t mode = mode_of(flags, arguments);                                                   \
        va_end(arguments);                                                                         \
        return open_at(directory, path, flags, mode);                                              \
    }
OPENAT(openat)
OPENAT(openat64)

EXPORT int renameat2(int from_directory, const char *from, int to_directory, const char *to,
                     unsigned flags)
{
    if (fails_name(FAULT_RENAME, to_directory, to))
        return -1;
    return NEXT(renameat2)(from_directory, from, to_directory, to, flags);
}

EXPORT int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    return renameat2(from_directory, from, to_directory, to, 0);
}

EXPORT int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int unlinkat(int directory, const char *name, int flags)
{
    return fails_name(FAULT_UNLINK, directory, name) ? -1 : NEXT(unlinkat)(directory, name, flags);
}

EXPORT int unlink(const char *path)
{
    return fails_name(FAULT_UNLINK, AT_FDCWD, path) ? -1 : NEXT(unlink)(path);
}

EXPORT int mkdirat(int directory, const char *name, mode_t mode)
{
    return fails_name(FAULT_MKDIR, directory, name) ? -1 : NEXT(mkdirat)(directory, name, mode);
}

EXPORT int mkdir(const char *path, mode_t mode)
{
    return fails_name(FAULT_MKDIR, AT_FDCWD, path) ? -1 : NEXT(mkdir)(path, mode);
}

EXPORT int ftruncate(int fd, off_t length)
{
    if (fails(FAULT_FTRUNCATE, fd))
        return -1;
    int result = NEXT(ftruncate)(fd, length);
    forget(fd);
    return result;
}

EXPORT int ftruncate64(int fd, off64_t length)
{
    return ftruncate(fd, length);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return fails(FAULT_FALLOCATE, fd) ? -1 : NEXT(fallocate)(fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return fallocate(fd, mode, offset, length);
}

EXPORT int posix_fallocate(int fd, off_t offset, off_t length)
{
    return fails(FAULT_FALLOCATE, fd) ? errno : NEXT(posix_fallocate)(fd, offset, length);
}

EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return posix_fallocate(fd, offset, length);
}

/* It is called before this library is set up, and by dlsym() itself: straight to the kernel. */
EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (fd >= 0 && (flags & MAP_ANONYMOUS) == 0 && fails(FAULT_MMAP, fd))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}
