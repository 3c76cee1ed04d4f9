#include "output.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where an unnamed file can be given its name. */
static const char own_descriptors[] = "/proc/self/fd";

/* A file beside that could be named only in the end leaves nothing behind, however this ends. */
static int open_unnamed(const char *name)
{
    char folder[PATH_MAX];
    strcpy(folder, name);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    return open(slash ? folder : ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
}

static bool name_beside(struct output *output)
{
    uint64_t number;
    const char *slash = strrchr(output->name, '/');
    int folder = slash ? (int)(slash - output->name) + 1 : 0;
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        return false;
    int length = snprintf(output->beside, sizeof(output->beside), "%.*s.liara-cache-%016llx",
                          folder, output->name, (unsigned long long)number);
    errno = ENAMETOOLONG;
    return length < (int)sizeof(output->beside);
}

/*
 * Through a symbolic link to the file itself; a name that is not there yet is taken as it is. What
 * /dev/stdout and its like lead to is open already, and is written to rather than replaced.
 */
static bool resolve(struct output *output, const char *path)
{
    struct stat file;
    if (strlen(path) >= sizeof(output->name)) {
        errno = ENAMETOOLONG;
        return false;
    }
    strcpy(output->name, path);
    if (stat(path, &file) != 0)
        return errno == ENOENT;
    output->in_place = !S_ISREG(file.st_mode) || strncmp(path, "/dev/", 5) == 0;
    if (output->in_place || lstat(path, &file) != 0 || !S_ISLNK(file.st_mode))
        return true;
    return realpath(path, output->name) != NULL;
}

static int open_beside(struct output *output)
{
    int fd = -1;
    if (access(own_descriptors, X_OK) == 0)
        fd = open_unnamed(output->name);
    if (fd >= 0)
        return fd;
    if (!name_beside(output))
        return -1;
    fd = open(output->beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    output->named = fd >= 0;
    return fd;
}

bool output_open(struct output *output, const char *path)
{
    output->fd = -1;
    output->in_place = output->named = false;
    if (resolve(output, path))
        output->fd =
            output->in_place ? open(path, O_WRONLY | O_APPEND | O_CLOEXEC) : open_beside(output);
    if (output->fd < 0)
        complain("can't write %s: %s", path, strerror(errno));
    return output->fd >= 0;
}

static bool give_name(struct output *output)
{
    char unnamed[64];
    if (output->named)
        return true;
    snprintf(unnamed, sizeof(unnamed), "%s/%d", own_descriptors, output->fd);
    output->named = name_beside(output) &&
                    linkat(AT_FDCWD, unnamed, AT_FDCWD, output->beside, AT_SYMLINK_FOLLOW) == 0;
    return output->named;
}

bool output_commit(struct output *output)
{
    bool whole =
        output->in_place || (give_name(output) && rename(output->beside, output->name) == 0);
    if (whole)
        output->named = false;
    else
        complain("can't write %s: %s", output->name, strerror(errno));
    output_abandon(output);
    return whole;
}

void output_abandon(struct output *output)
{
    close(output->fd);
    if (output->named)
        unlink(output->beside);
}
