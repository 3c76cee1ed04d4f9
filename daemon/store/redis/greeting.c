#include "greeting.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Redis's proto-max-bulk-len if it does not say itself, and the least that it can be. */
#define BULK_MAX   (512ULL << 20)
#define BULK_LEAST (1ULL << 20)

bool redis_greeting_begin(struct redis_greeting *greeting, const struct redis_server *server,
                          struct evbuffer *out)
{
    char number[16];
    snprintf(number, sizeof(number), "%u", (unsigned)server->database);
    struct redis_word auth[] = {redis_text("AUTH"), redis_text(server->password)};
    struct redis_word database[] = {redis_text("SELECT"), redis_text(number)};
    struct redis_word bulk_max[] = {redis_text("CONFIG"), redis_text("GET"),
                                    redis_text("proto-max-bulk-len")};
    bool has_password = server->password[0] != '\0';
    *greeting = (struct redis_greeting){.awaited = has_password ? 3 : 2, .bulk_max = BULK_MAX};
    return (!has_password || redis_command_add(out, auth, 2)) &&
           redis_command_add(out, database, 2) && redis_command_add(out, bulk_max, 3);
}

static bool is_ok(const struct redis_reply *reply)
{
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->text, "OK") == 0;
}

/* words are the server's, or NULL. */
static void refused(struct redis_greeting *greeting, const char *what, const char *words)
{
    char text[REDIS_WHY_MAX];
    greeting->refused = true;
    if (words == NULL)
        words = "a strange answer";
    snprintf(greeting->why, sizeof(greeting->why), "%s (%s)", what,
             redis_printable(text, sizeof(text), words, strlen(words)));
}

/* Of an error only the first word is told: what follows may be the password. */
static void take_auth(struct redis_greeting *greeting, const struct redis_reply *reply)
{
    char code[16] = "";
    if (is_ok(reply))
        return;
    bool error = reply->type == REDIS_REPLY_ERROR;
    bool needless = error && (strstr(reply->text, "without any password configured") != NULL ||
                              strstr(reply->text, "no password is set") != NULL);
    if (error)
        snprintf(code, sizeof(code), "%.*s", (int)strcspn(reply->text, " "), reply->text);
    refused(greeting,
            needless ? "it has no password: unset redis-password-file"
                     : "it refuses the password of redis-password-file",
            error ? code : NULL);
}

static void take_select(struct redis_greeting *greeting, const struct redis_reply *reply)
{
    if (is_ok(reply))
        return;
    refused(greeting,
            redis_reply_failed(reply, "NOAUTH") ? "it wants a password: set redis-password-file"
                                                : "it refuses redis-database",
            reply->type == REDIS_REPLY_ERROR ? reply->text : NULL);
}

/* CONFIG may be forbidden. */
static void take_bulk_max(struct redis_greeting *greeting, const struct redis_reply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->length != 2 ||
        reply->elements[1]->type != REDIS_REPLY_STRING)
        return;
    unsigned long long told = strtoull(reply->elements[1]->text, NULL, 10);
    if (told >= BULK_LEAST)
        greeting->bulk_max = told;
}

void redis_greeting_take(struct redis_greeting *greeting, const struct redis_reply *reply)
{
    greeting->awaited--;
    if (greeting->awaited == 2)
        take_auth(greeting, reply);
    else if (greeting->awaited == 1)
        take_select(greeting, reply);
    else
        take_bulk_max(greeting, reply);
}
