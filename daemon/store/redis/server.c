#include "server.h"

#include "../../config.h"
#include "../../log.h"

#include <stdio.h>
#include <string.h>

/* The file's first line. */
static bool read_password(struct redis_server *server, const char *path, char *why, size_t size)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        snprintf(why, size, "can't read redis-password-file %s: %m", path);
        return false;
    }
    setvbuf(file, NULL, _IONBF, 0); /* no second copy of it */
    bool got = fgets(server->password, sizeof(server->password), file) != NULL;
    bool failed = ferror(file) != 0;
    fclose(file);
    size_t length = got ? strcspn(server->password, "\r\n") : 0;
    server->password[length] = '\0';
    if (failed)
        snprintf(why, size, "can't read redis-password-file %s: it is no plain file", path);
    else if (length == 0)
        snprintf(why, size, "redis-password-file %s: its first line must be the password", path);
    else if (length == REDIS_PASSWORD_MAX - 1)
        snprintf(why, size, "redis-password-file %s: a password has at most %d bytes", path,
                 REDIS_PASSWORD_MAX - 2);
    return !failed && length > 0 && length < REDIS_PASSWORD_MAX - 1;
}

/* The addresses of a name. */
static bool resolve(struct redis_server *server, const char *host, uint32_t port, char *why,
                    size_t size)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char service[8];
    snprintf(service, sizeof(service), "%u", (unsigned)port);
    snprintf(server->where, sizeof(server->where), "%s:%u", host, (unsigned)port);
    int error = getaddrinfo(host, service, &hints, &found);
    for (const struct addrinfo *info = error == 0 ? found : NULL;
         info != NULL && server->address_count < REDIS_ADDRESSES_MAX; info = info->ai_next) {
        struct redis_address *address = &server->addresses[server->address_count++];
        memcpy(&address->storage, info->ai_addr, info->ai_addrlen);
        address->length = info->ai_addrlen;
    }
    if (error == 0)
        freeaddrinfo(found);
    if (server->address_count == 0)
        snprintf(why, size, "redis-host %s: %s; right is an address, or a name that has one", host,
                 error != 0 ? gai_strerror(error) : "no address");
    return server->address_count > 0;
}

static bool find_socket(struct redis_server *server, const char *path, char *why, size_t size)
{
    struct sockaddr_un *address = (struct sockaddr_un *)&server->addresses[0].storage;
    if (strlen(path) >= sizeof(address->sun_path)) {
        snprintf(why, size, "redis-socket %s: the path of a socket has at most %zu bytes", path,
                 sizeof(address->sun_path) - 1);
        return false;
    }
    address->sun_family = AF_UNIX;
    strcpy(address->sun_path, path);
    strcpy(server->where, path);
    server->addresses[0].length = sizeof(*address);
    server->address_count = 1;
    return true;
}

bool redis_server_open(struct redis_server *server, const struct config *config, char *why,
                       size_t size)
{
    const char *path = config->redis_socket, *password = config->redis_password_file;
    bool by_path = path != NULL && path[0] != '\0';
    server->database = config->redis_database;
    server->answer_ms = config->redis_timeout;
    server->connect_ms = config->redis_connect_timeout;
    return (by_path ? find_socket(server, path, why, size)
                    : resolve(server, config->redis_host, config->redis_port, why, size)) &&
           (password == NULL || password[0] == '\0' || read_password(server, password, why, size));
}

void redis_server_close(struct redis_server *server)
{
    explicit_bzero(server->password, sizeof(server->password));
}

void redis_server_lost(struct redis_server *server, bool *away, enum redis_trouble trouble,
                       const char *why)
{
    if (!*away) {
        *away = true;
        atomic_fetch_add(&server->away, 1);
    }
    int told = atomic_load(&server->told);
    if (told < (int)trouble && atomic_compare_exchange_strong(&server->told, &told, (int)trouble))
        log_warning("Redis at %s: %s; trying again in the background", server->where, why);
}

void redis_server_back(struct redis_server *server, bool *away)
{
    if (!*away)
        return;
    *away = false;
    if (atomic_fetch_sub(&server->away, 1) == 1 &&
        atomic_exchange(&server->told, REDIS_FINE) != REDIS_FINE)
        log_info("Redis at %s: back again", server->where);
}
