/*
 * What the connections to one Redis server share: where it is, how to log in, and the log's lines
 * about its being away and back.
 */
#ifndef LIARA_REDIS_SERVER_H
#define LIARA_REDIS_SERVER_H

#include <netdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

struct config;

enum {
    REDIS_ADDRESSES_MAX = 4,
    REDIS_PASSWORD_MAX = 1024,
    REDIS_PATH_MAX = sizeof(((struct sockaddr_un *)0)->sun_path)
};

/* How bad an outage is. */
enum redis_trouble { REDIS_FINE, REDIS_LOST, REDIS_REFUSED };

struct redis_address {
    struct sockaddr_storage storage;
    socklen_t length;
};

/* Read-only once it is open, but for the last two. */
struct redis_server {
    char where[REDIS_PATH_MAX + NI_MAXHOST]; /* for messages */
    struct redis_address addresses[REDIS_ADDRESSES_MAX];
    unsigned address_count;
    uint32_t database;
    char password[REDIS_PASSWORD_MAX]; /* "": none */
    int64_t answer_ms;                 /* how long the oldest command may take */
    int64_t connect_ms;                /* how long a call waits for a connection */
    atomic_uint away;                  /* connections that miss it */
    atomic_int told;                   /* an enum redis_trouble: the worst that was logged */
};

/*
 * Fills *server, which is zeroed, from config: resolves the name, reads the password; may block. It
 * asks nothing of the server itself. false: what was wrong, with which object, what would be right.
 */
bool redis_server_open(struct redis_server *server, const struct config *config, char *why,
                       size_t size);

/* Forgets the password. */
void redis_server_close(struct redis_server *server);

/*
 * A connection misses the server, *away is its own mark of that. Logged where no connection has
 * said anything as bad since the server was last fine. Any thread.
 */
void redis_server_lost(struct redis_server *server, bool *away, enum redis_trouble trouble,
                       const char *why);

/* It has it again: logged where it was the last. Any thread. */
void redis_server_back(struct redis_server *server, bool *away);

#endif
