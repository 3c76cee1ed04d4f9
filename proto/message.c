#include "message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *message_error_name(enum error_code code)
{
    static const char *const names[ERROR_CODE_COUNT] = {
        [ERROR_SYNTAX] = "syntax",
        [ERROR_TOO_LARGE] = "too-large",
        [ERROR_NO_SPACE] = "no-space",
        [ERROR_DENIED] = "denied",
        [ERROR_UNAVAILABLE] = "unavailable",
        [ERROR_TIMEOUT] = "timeout",
        [ERROR_BUSY] = "busy",
        [ERROR_INTERNAL] = "internal",
    };
    return (unsigned)code < ERROR_CODE_COUNT ? names[code] : "internal";
}

const char *message_verb_name(enum verb verb)
{
    static const char *const names[VERB_COUNT] = {
        [VERB_GET] = "GET",         [VERB_PUT] = "PUT",         [VERB_HEAD] = "HEAD",
        [VERB_DELETE] = "DELETE",   [VERB_PREFIX] = "PREFIX",   [VERB_CLEAR] = "CLEAR",
        [VERB_INSPECT] = "INSPECT", [VERB_PERSIST] = "PERSIST", [VERB_PING] = "PING",
        [VERB_HELP] = "HELP",       [VERB_QUIT] = "QUIT",
    };
    return (unsigned)verb < VERB_COUNT ? names[verb] : "UNKNOWN";
}

void message_error(struct reply *reply, enum error_code code, const char *format, ...)
{
    reply->kind = REPLY_ERROR;
    reply->lease = reply->has_entries = reply->is_volatile = false;
    reply->flags = reply->ttl = 0;
    reply->length = reply->offset = reply->entries = 0;
    reply->error = code;

    va_list args;
    va_start(args, format);
    if (vsnprintf(reply->text, sizeof(reply->text), format, args) < 0)
        reply->text[0] = '\0';
    va_end(args);
    for (char *c = reply->text; *c != '\0'; c++)
        if (*c < 0x20 || *c > 0x7E)
            *c = '?';
}
