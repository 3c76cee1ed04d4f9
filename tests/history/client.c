#include "client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { IN_SIZE = VALUE_MAX + 65536, OUT_SIZE = 4 * (VALUE_MAX + 256), LINE_MAX_BYTES = 4096 };

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

uint64_t random_next(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15;
    return mix(*state);
}

const char *key_name(unsigned key)
{
    static const char names[KEYS][4] = {
        "a/0", "a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "a/7", "a/8", "a/9", "b/0", "b/1", "b/2",
        "b/3", "b/4", "b/5", "b/6", "b/7", "b/8", "b/9", "z/0", "z/1", "z/2", "z/3", "z/4"};
    return names[key];
}

size_t value_length(uint32_t write)
{
    uint64_t chance = mix(write);
    uint64_t size = chance >> 16;
    switch (chance % 20) {
    case 0:
        return 0;
    case 1:
        return size % (VALUE_MAX + 1);
    case 2:
    case 3:
        return 4000 + size % 70000;
    case 4:
    case 5:
    case 6:
    case 7:
        return size % 5000;
    default:
        return size % 200;
    }
}

void value_fill(uint8_t *bytes, unsigned key, uint32_t write)
{
    size_t length = value_length(write);
    uint64_t state = ((uint64_t)key << 32) + write;
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
        uint64_t word = random_next(&state);
        memcpy(bytes + i, &word, length - i < sizeof(word) ? length - i : sizeof(word));
    }
}

bool client_init(struct client *client, uint32_t number)
{
    *client = (struct client){.fd = -1, .number = number, .descriptor = -1};
    client->in = malloc(IN_SIZE);
    client->out = malloc(OUT_SIZE);
    client->value = malloc(VALUE_MAX);
    return client->in != NULL && client->out != NULL && client->value != NULL;
}

void client_free(struct client *client)
{
    client_disconnect(client);
    free(client->in);
    free(client->out);
    free(client->value);
}

static void drop_descriptor(struct client *client)
{
    if (client->descriptor >= 0)
        close(client->descriptor);
    client->descriptor = -1;
}

void client_disconnect(struct client *client)
{
    drop_descriptor(client);
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
}

bool client_connect(struct client *client, const char *path, unsigned seconds)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval wait = {.tv_sec = seconds};
    client_disconnect(client);
    client->in_start = client->in_end = client->out_used = 0;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd >= 0 &&
        setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0 &&
        setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) == 0 &&
        connect(client->fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return true;
    client_disconnect(client);
    return false;
}

static bool send_bytes(struct client *client, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(client->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return false;
        bytes += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool flush(struct client *client)
{
    bool good = send_bytes(client, client->out, client->out_used);
    client->out_used = 0;
    return good;
}

__attribute__((format(printf, 2, 3))) static void add_text(struct client *client,
                                                           const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf((char *)client->out + client->out_used, OUT_SIZE - client->out_used,
                           format, arguments);
    va_end(arguments);
    client->out_used += (size_t)length;
}

/* The line of a PUT, without its LF. */
static void add_put(struct client *client, const struct record *record)
{
    add_text(client, "PUT %s %zu flags=%u", key_name(record->key), value_length(record->write),
             record->write);
    if (record->ttl != 0)
        add_text(client, " ttl=%u", record->ttl);
    if (record->verb == PUT_OVERWRITE)
        add_text(client, " overwrite");
}

/* The line and its descriptor go in a sendmsg of their own. */
static bool send_put_fd(struct client *client, const struct record *record)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    size_t length = value_length(record->write);
    bool good = flush(client);
    int fd = memfd_create("value", MFD_CLOEXEC);
    value_fill(client->value, record->key, record->write);
    good = good && fd >= 0 && write(fd, client->value, length) == (ssize_t)length;
    add_put(client, record);
    add_text(client, " fd\n");
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    struct iovec line = {client->out, client->out_used};
    struct msghdr message = {.msg_iov = &line,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    good = good && sendmsg(client->fd, &message, MSG_NOSIGNAL) == (ssize_t)client->out_used;
    client->out_used = 0;
    if (fd >= 0)
        close(fd);
    return good;
}

static bool add_request(struct client *client, const struct record *record)
{
    static const char groups[][4] = {" a/", " b/", " z/", ""};
    const char *key = record->verb < CLEAR ? key_name(record->key) : NULL;
    switch ((enum verb)record->verb) {
    case GET:
        add_text(client, "GET %s\n", key);
        break;
    case GET_LEASE:
        add_text(client, "GET %s lease=1\n", key);
        break;
    case GET_FD:
        add_text(client, "GET %s fd\n", key);
        break;
    case HEAD:
        add_text(client, "HEAD %s\n", key);
        break;
    case PUT:
    case PUT_OVERWRITE:
        add_put(client, record);
        add_text(client, "\n");
        value_fill(client->out + client->out_used, record->key, record->write);
        client->out_used += value_length(record->write);
        add_text(client, "\n");
        break;
    case PUT_FD:
        return send_put_fd(client, record);
    case DELETE:
        add_text(client, "DELETE %s\n", key);
        break;
    case CLEAR:
        add_text(client, "PREFIX%s\nCLEAR\nPREFIX\n", groups[record->key]);
        break;
    case INSPECT:
        add_text(client, "INSPECT\n");
        break;
    case PERSIST:
        add_text(client, "PERSIST\n");
        break;
    }
    return true;
}

bool client_send(struct client *client, struct record *records, size_t count)
{
    bool good = client->fd >= 0;
    for (size_t i = 0; i < count; i++) {
        records[i].client = client->number;
        records[i].begin = now_ns();
        records[i].end = 0;
        records[i].answer = NO_ANSWER;
        good = good && add_request(client, &records[i]);
    }
    return good && flush(client);
}

static void keep_descriptor(struct client *client, struct msghdr *message)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (header == NULL || header->cmsg_type != SCM_RIGHTS)
        return;
    drop_descriptor(client);
    memcpy(&client->descriptor, CMSG_DATA(header), sizeof(client->descriptor));
}

/* Reads until there are `length` bytes from in_start on; length is at most VALUE_MAX + 1. */
static bool fill(struct client *client, size_t length)
{
    while (client->in_end - client->in_start < length) {
        if (client->in_start > 0) {
            memmove(client->in, client->in + client->in_start, client->in_end - client->in_start);
            client->in_end -= client->in_start;
            client->in_start = 0;
        }
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec room = {client->in + client->in_end, IN_SIZE - client->in_end};
        struct msghdr message = {.msg_iov = &room,
                                 .msg_iovlen = 1,
                                 .msg_control = &control,
                                 .msg_controllen = sizeof(control)};
        ssize_t got = recvmsg(client->fd, &message, MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got < 0 && errno == EAGAIN ? ETIMEDOUT : ECONNRESET;
            return false;
        }
        keep_descriptor(client, &message);
        client->in_end += (size_t)got;
    }
    return true;
}

/* The next line, whose LF becomes 0; NULL if the connection is broken or the line has no end. */
static char *read_line(struct client *client)
{
    for (size_t length = 1; length <= LINE_MAX_BYTES; length++) {
        if (!fill(client, length))
            return NULL;
        /* All that is there is looked through before more is read. */
        uint8_t *from = client->in + client->in_start;
        uint8_t *lf = memchr(from, '\n', client->in_end - client->in_start);
        if (lf != NULL) {
            *lf = '\0';
            client->in_start += (size_t)(lf - from) + 1;
            return (char *)from;
        }
        length = client->in_end - client->in_start;
    }
    errno = EPROTO;
    return NULL;
}

__attribute__((format(printf, 3, 4))) static void
wrong(struct client *client, struct record *record, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(client->detail, sizeof(client->detail), format, arguments);
    va_end(arguments);
    record->answer = WRONG;
}

static uint32_t line_number(const char *line, const char *name)
{
    const char *at = strstr(line, name);
    return at == NULL ? 0 : (uint32_t)strtoul(at + strlen(name), NULL, 10);
}

static void compare_value(struct client *client, struct record *record, const uint8_t *bytes,
                          size_t length)
{
    if (record->answer == WRONG)
        return;
    value_fill(client->value, record->key, record->write);
    if (memcmp(bytes, client->value, length) == 0)
        return;
    size_t at = 0;
    while (bytes[at] == client->value[at])
        at++;
    wrong(client, record, "of %zu bytes that are said to be write %u, byte %zu is wrong", length,
          record->write, at);
}

static bool read_value(struct client *client, struct record *record, size_t length)
{
    if (!fill(client, length + 1))
        return false;
    const uint8_t *bytes = client->in + client->in_start;
    compare_value(client, record, bytes, length);
    if (bytes[length] != '\n')
        wrong(client, record, "no LF follows a value of %zu bytes", length);
    client->in_start += length + 1;
    return true;
}

static void read_descriptor(struct client *client, struct record *record, const char *line,
                            size_t length)
{
    static __thread uint8_t bytes[VALUE_MAX];
    off_t offset = line_number(line, " offset=");
    if (client->descriptor < 0 ||
        pread(client->descriptor, bytes, length, offset) != (ssize_t)length)
        wrong(client, record, "the descriptor of %zu bytes can't be read", length);
    else
        compare_value(client, record, bytes, length);
    drop_descriptor(client);
}

/* A line that says length and flags of a value. The bytes follow VALUE. */
static bool read_found(struct client *client, struct record *record, const char *line)
{
    /* The line's place is used again as more is read. */
    char copy[128];
    snprintf(copy, sizeof(copy), "%s", line);
    size_t length = strtoul(strchr(copy, ' '), NULL, 10);
    record->answer = FOUND;
    record->write = line_number(copy, " flags=");
    if (length > VALUE_MAX || record->write == 0 || length != value_length(record->write))
        wrong(client, record, "nobody put this: %s", copy);
    if (length > VALUE_MAX) {
        errno = EPROTO;
        return false;
    }
    if (copy[0] == 'V')
        return read_value(client, record, length);
    if (copy[0] == 'F')
        read_descriptor(client, record, copy, length);
    return true;
}

static bool starts_with(const char *line, const char *word)
{
    return strncmp(line, word, strlen(word)) == 0;
}

static bool read_inspect(struct client *client, struct record *record, const char *line)
{
    size_t length = strtoul(line + strlen("VALUE "), NULL, 10);
    if (length > VALUE_MAX || !fill(client, length + 1))
        return false;
    client->in_start += length + 1;
    record->answer = OK;
    return true;
}

static bool read_answer(struct client *client, struct record *record)
{
    static const struct {
        const char *line;
        enum answer answer;
    } answers[] = {
        {"MISS", MISS},       {"STORED", STORED}, {"EXISTS", EXISTS},
        {"DELETED", DELETED}, {"OK", OK},         {"OK volatile", VOLATILE},
    };
    const char *line = read_line(client);
    if (line == NULL)
        return false;
    if (record->verb <= HEAD &&
        (starts_with(line, "VALUE ") || starts_with(line, "SIZE ") || starts_with(line, "FD ")))
        return read_found(client, record, line);
    if (record->verb == INSPECT && starts_with(line, "VALUE "))
        return read_inspect(client, record, line);
    record->answer = WRONG;
    snprintf(client->detail, sizeof(client->detail), "%s", line);
    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++)
        if (strcmp(line, answers[i].line) == 0)
            record->answer = (uint8_t)answers[i].answer;
    if (starts_with(line, "ERROR "))
        record->answer = ERROR;
    if (record->verb == GET_LEASE && strcmp(line, "MISS lease") == 0) {
        record->answer = MISS;
        record->has_lease = true;
    }
    if (record->verb == CLEAR && starts_with(line, "OK entries="))
        record->answer = OK;
    return true;
}

bool client_receive(struct client *client, struct record *record)
{
    bool good = client->fd >= 0;
    if (record->verb == CLEAR) { /* between two PREFIXes */
        struct record prefix = {.verb = PERSIST};
        good = good && read_answer(client, &prefix) && read_answer(client, record) &&
               read_answer(client, &prefix);
    } else {
        good = good && read_answer(client, record);
    }
    if (good)
        record->end = now_ns();
    else
        record->answer = NO_ANSWER;
    return good;
}
