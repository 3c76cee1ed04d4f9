/*
 * What follows from who runs the daemon: root and a service of the system share it between users,
 * in the system's folders; anybody else has one for himself, in his own. Reads the environment. The
 * main thread only.
 */
#ifndef LIARA_CONFIG_PLACE_H
#define LIARA_CONFIG_PLACE_H

#include <stdbool.h>
#include <stddef.h>

#define CONFIG_SYSTEM_FILE "/etc/liara-cached.conf"

/* Defaults, each with a static note that says where it comes from. False where there is none: no
 * home folder is known, or the path is longer than size. */
bool config_place_socket(char *out, size_t size, const char **note);
bool config_place_socket_mode(char *out, size_t size, const char **note);
bool config_place_directory(char *out, size_t size, const char **note);

/* The file that is read where none is named; it need not exist. False where none is known. */
bool config_place_file(char *out, size_t size);

#endif
