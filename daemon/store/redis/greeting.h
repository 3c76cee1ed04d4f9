/* What a new connection says first: password, database, and a question about the server's limit. */
#ifndef LIARA_REDIS_GREETING_H
#define LIARA_REDIS_GREETING_H

#include "command.h"
#include "reply.h"
#include "server.h"

enum { REDIS_WHY_MAX = 128 };

struct redis_greeting {
    unsigned awaited;  /* answers */
    uint64_t bulk_max; /* bytes that the server takes as one value */
    bool refused;      /* and why: */
    char why[REDIS_WHY_MAX];
};

/* Adds the commands of a new greeting. false: no memory. */
bool redis_greeting_begin(struct redis_greeting *greeting, const struct redis_server *server,
                          struct evbuffer *out);

/* Takes the next answer: awaited counts down, or the server has refused us. */
void redis_greeting_take(struct redis_greeting *greeting, const struct redis_reply *reply);

#endif
