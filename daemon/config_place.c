#include "config_place.h"

#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* Copies an environment variable that holds an absolute path; false where it holds none. */
static bool environment_path(const char *name, char *out, size_t size)
{
    const char *value = getenv(name);

    return value != NULL && value[0] == '/' && (size_t)snprintf(out, size, "%s", value) < size;
}

/* The same for systemd's variables, which may hold several paths: the first. */
static bool service_path(const char *name, char *out, size_t size)
{
    if (!environment_path(name, out, size))
        return false;
    out[strcspn(out, ":")] = '\0';
    return true;
}

static bool home(char *out, size_t size)
{
    const struct passwd *user;

    if (environment_path("HOME", out, size))
        return true;
    user = getpwuid(geteuid());
    return user != NULL && user->pw_dir != NULL && user->pw_dir[0] == '/' &&
           (size_t)snprintf(out, size, "%s", user->pw_dir) < size;
}

/* A service of the system has systemd's folders, but not a user's session. */
static bool is_system(void)
{
    return geteuid() == 0 || (getenv("XDG_RUNTIME_DIR") == NULL &&
                              (getenv("RUNTIME_DIRECTORY") || getenv("CACHE_DIRECTORY")));
}

static bool join(char *out, size_t size, const char *folder, const char *rest)
{
    int length = snprintf(out, size, "%s%s", folder, rest);

    return length >= 0 && (size_t)length < size;
}

bool config_place_socket(char *out, size_t size, const char **note)
{
    char folder[4096];

    *note = "default in $RUNTIME_DIRECTORY";
    if (service_path("RUNTIME_DIRECTORY", folder, sizeof(folder)))
        return join(out, size, folder, "/socket");
    *note = "default in $XDG_RUNTIME_DIR";
    if (environment_path("XDG_RUNTIME_DIR", folder, sizeof(folder)))
        return join(out, size, folder, "/liara-cached/socket");
    *note = "default";
    if (is_system())
        return join(out, size, "/run", "/liara-cached/socket");
    *note = "default without $XDG_RUNTIME_DIR";
    snprintf(folder, sizeof(folder), "/tmp/liara-cached-%lu", (unsigned long)geteuid());
    return join(out, size, folder, "/socket");
}

bool config_place_socket_mode(char *out, size_t size, const char **note)
{
    *note = is_system() ? "default of the system's daemon" : "default";
    return join(out, size, is_system() ? "0660" : "0600", "");
}

bool config_place_directory(char *out, size_t size, const char **note)
{
    char folder[4096];

    *note = "default in $CACHE_DIRECTORY";
    if (service_path("CACHE_DIRECTORY", folder, sizeof(folder)))
        return join(out, size, folder, "");
    *note = "default in $XDG_CACHE_HOME";
    if (environment_path("XDG_CACHE_HOME", folder, sizeof(folder)))
        return join(out, size, folder, "/liara-cached");
    *note = "default";
    if (is_system())
        return join(out, size, "/var/cache", "/liara-cached");
    return home(folder, sizeof(folder)) && join(out, size, folder, "/.cache/liara-cached");
}

/* Root reads a file of its own only where it asks for it. */
bool config_place_file(char *out, size_t size)
{
    char folder[4096];

    if (environment_path("XDG_CONFIG_HOME", folder, sizeof(folder)) &&
        join(out, size, folder, "/liara-cached.conf") && (!is_system() || access(out, F_OK) == 0))
        return true;
    if (is_system())
        return join(out, size, CONFIG_SYSTEM_FILE, "");
    return home(folder, sizeof(folder)) && join(out, size, folder, "/.config/liara-cached.conf");
}
