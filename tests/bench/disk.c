/*
 * disk: GETs of what lies on disk alone, in this process, beside a bare pread by a thread.
 *
 *     disk fill BACKEND DIRECTORY COUNT LENGTH         makes a store of COUNT entries
 *     disk get BACKEND DIRECTORY COUNT LENGTH SAMPLES warm|cold
 *
 * get opens the store, so that nothing but the index is in memory, and takes turns: a GET of an
 * entry that was not asked for before, the same GET again, which memory answers, and a pread of as
 * many bytes at random by another thread, which is told by a condition variable and answers by an
 * eventfd. cold: the page cache has none of the store's files at first, and no place is read twice.
 * Prints one JSON object.
 */
#include "histogram.h"
#include "inside.h"

#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES_MAX = 4096, HEAD = 40 /* bytes of a record beside its key and value, about */ };

static struct config config = {
    .memory_size = UINT64_C(256) << 20, .max_size = UINT64_C(64) << 30, .stop_timeout = 60000};

struct file {
    int fd;
    off_t size;
};

static struct file files[FILES_MAX];
static unsigned file_count;

/* All files of the store that have so many bytes. */
static void open_files(const char *directory, off_t least)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;
    if (dir == NULL)
        err(1, "%s", directory);
    while ((entry = readdir(dir)) != NULL && file_count < FILES_MAX) {
        struct stat status;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
            status.st_size >= least && strcmp(entry->d_name, "spare") != 0)
            files[file_count++] = (struct file){fd, status.st_size};
        else if (fd >= 0)
            close(fd);
    }
    closedir(dir);
    if (file_count == 0)
        errx(1, "%s: no file to read from", directory);
}

static void drop_pages(void)
{
    for (unsigned i = 0; i < file_count; i++) {
        if (fdatasync(files[i].fd) != 0 || posix_fadvise(files[i].fd, 0, 0, POSIX_FADV_DONTNEED))
            err(1, "can't drop the pages of a file");
    }
}

/* The thread that reads. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    bool has_work;
    const struct file *file;
    off_t offset;
    size_t length;
    int answer; /* an eventfd */
} reader = {.lock = PTHREAD_MUTEX_INITIALIZER, .wanted = PTHREAD_COND_INITIALIZER};

static void *reader_main(void *arg)
{
    uint8_t *buffer = arg;
    for (;;) {
        pthread_mutex_lock(&reader.lock);
        while (!reader.has_work)
            pthread_cond_wait(&reader.wanted, &reader.lock);
        reader.has_work = false;
        pthread_mutex_unlock(&reader.lock);
        if (pread(reader.file->fd, buffer, reader.length, reader.offset) != (ssize_t)reader.length)
            err(1, "pread");
        if (eventfd_write(reader.answer, 1) != 0)
            err(1, "eventfd");
    }
    return NULL;
}

static void start_reader(size_t length)
{
    pthread_t thread;
    void *buffer = malloc(length);
    reader.length = length;
    reader.answer = eventfd(0, EFD_CLOEXEC);
    if (buffer == NULL || reader.answer < 0 ||
        pthread_create(&thread, NULL, reader_main, buffer) != 0)
        err(1, "can't start a thread");
}

static void read_bare(void)
{
    eventfd_t answer;
    const struct file *file = &files[inside_random() % file_count];
    pthread_mutex_lock(&reader.lock);
    reader.file = file;
    reader.offset = (off_t)(inside_random() % (uint64_t)(file->size - (off_t)reader.length));
    reader.has_work = true;
    pthread_cond_signal(&reader.wanted);
    pthread_mutex_unlock(&reader.lock);
    if (eventfd_read(reader.answer, &answer) != 0)
        err(1, "eventfd");
}

static void get_one(uint64_t number, struct histogram *times)
{
    double begin = inside_clock();
    if (!inside_get(number))
        errx(1, "an entry is not there");
    histogram_add(times, (uint64_t)(inside_clock() - begin));
}

static void print_times(const char *name, const struct histogram *times, const char *after)
{
    printf("\"%s\": {\"p50_us\": %.3f, \"p99_us\": %.3f}%s", name,
           (double)histogram_at(times, 0.5) / 1e3, (double)histogram_at(times, 0.99) / 1e3, after);
}

static void get(const char *backend, uint64_t count, uint32_t length, uint64_t samples, bool cold)
{
    static struct histogram disk, memory, bare;
    start_reader(length + INSIDE_KEY + HEAD);
    inside_open(backend, &config);
    open_files(config.directory, (off_t)reader.length * 2);
    if (cold)
        drop_pages();
    uint64_t step = count / samples, first = inside_random() % step;
    /* Not in the order in which they lie: a prime number of samples further each time. */
    for (uint64_t i = 0; i < samples; i++) {
        uint64_t number = first + i * 7919 % samples * step;
        get_one(number, &disk);
        get_one(number, &memory);
        double begin = inside_clock();
        read_bare();
        histogram_add(&bare, (uint64_t)(inside_clock() - begin));
    }
    printf("{");
    print_times("disk", &disk, ", ");
    print_times("memory", &memory, ", ");
    print_times("bare", &bare, "}\n");
    inside_close();
}

static void fill(const char *backend, uint64_t count, uint32_t length)
{
    inside_open(backend, &config);
    for (uint64_t i = 0; i < count; i++)
        inside_put(i, length, false);
    inside_ask_all(STORE_PERSIST);
    inside_close();
    printf("{}\n");
}

int main(int argc, char **argv)
{
    bool filling = argc == 6 && strcmp(argv[1], "fill") == 0;
    if (!filling && !(argc == 8 && strcmp(argv[1], "get") == 0))
        errx(2, "usage: disk fill BACKEND DIRECTORY COUNT LENGTH\n"
                "       disk get BACKEND DIRECTORY COUNT LENGTH SAMPLES warm|cold");
    config.directory = argv[3];
    uint64_t count = strtoull(argv[4], NULL, 10);
    uint32_t length = (uint32_t)strtoul(argv[5], NULL, 10);
    uint64_t samples = filling ? 0 : strtoull(argv[6], NULL, 10);
    if (filling)
        fill(argv[2], count, length);
    else if (samples < 1 || samples > count || samples % 7919 == 0)
        errx(2, "1 to COUNT samples");
    else
        get(argv[2], count, length, samples, strcmp(argv[7], "cold") == 0);
    return 0;
}
