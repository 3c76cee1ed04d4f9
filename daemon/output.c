#include "output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    OUTPUT_TEXT_FIRST = 1024,
    OUTPUT_PIECES_FIRST = 8,
    OUTPUT_IOVECS = 64,
    OUTPUT_WRITES = 8,    /* in a row, then others get a turn */
    OUTPUT_WIDE = 1 << 20 /* asked for; net.core.wmem_max may allow less */
};

static bool is_text(const struct output_piece *piece)
{
    return piece->value == NULL && piece->pinned.bytes == NULL;
}

/* Drops the text that has been sent, if it is most of it: a client that always leaves something
 * unread must not make it grow. */
static void compact(struct output *output)
{
    struct output_piece *pieces = output->pieces + output->first;
    uint32_t unsent = output->text_used;
    for (unsigned i = output->count; i > 0; i--) {
        if (is_text(&pieces[i - 1]))
            unsent = pieces[i - 1].offset;
    }
    if (unsent == 0 || unsent < output->text_used - unsent)
        return;
    memmove(output->text, output->text + unsent, output->text_used - unsent);
    output->text_used -= unsent;
    for (unsigned i = 0; i < output->count; i++) {
        if (is_text(&pieces[i]))
            pieces[i].offset -= unsent;
    }
}

char *output_room(struct output *output, size_t size)
{
    if (output->text_used + size > output->text_size && output->count > 0)
        compact(output);
    size_t wanted = output->text_used + size;
    if (wanted > output->text_size) {
        size_t larger = output->text_size > 0 ? output->text_size : OUTPUT_TEXT_FIRST;
        while (larger < wanted)
            larger *= 2;
        char *text = larger <= UINT32_MAX ? realloc(output->text, larger) : NULL;
        if (text == NULL)
            return NULL;
        output->text = text;
        output->text_size = (uint32_t)larger;
    }
    return output->text + output->text_used;
}

static struct output_piece *new_piece(struct output *output)
{
    if (output->first > output->size / 2) {
        memmove(output->pieces, output->pieces + output->first,
                output->count * sizeof(*output->pieces));
        output->first = 0;
    }
    if (output->first + output->count == output->size) {
        unsigned size = output->size > 0 ? output->size * 2 : OUTPUT_PIECES_FIRST;
        struct output_piece *pieces = realloc(output->pieces, size * sizeof(*pieces));
        if (pieces == NULL)
            return NULL;
        output->pieces = pieces;
        output->size = size;
    }
    return &output->pieces[output->first + output->count++];
}

static struct output_piece *last_piece(struct output *output)
{
    return output->count > 0 ? &output->pieces[output->first + output->count - 1] : NULL;
}

bool output_line(struct output *output, size_t length)
{
    struct output_piece *last = last_piece(output);
    if (last != NULL && is_text(last) && last->fd < 0) {
        last->length += (uint32_t)length;
    } else {
        last = new_piece(output);
        if (last == NULL)
            return false;
        *last = (struct output_piece){
            .offset = output->text_used, .length = (uint32_t)length, .fd = -1};
    }
    output->text_used += (uint32_t)length;
    output->bytes += length;
    return true;
}

static void release_fd(struct output_piece *piece)
{
    if (piece->fd >= 0 && piece->owner == NULL)
        close(piece->fd);
    value_unref(piece->owner);
    piece->owner = NULL;
    piece->fd = -1;
}

bool output_line_with_fd(struct output *output, size_t length, int fd, struct value *owner)
{
    struct output_piece passed = {
        .offset = output->text_used, .length = (uint32_t)length, .fd = fd, .owner = owner};
    struct output_piece *piece = new_piece(output);
    if (piece == NULL) {
        release_fd(&passed);
        return false;
    }
    *piece = passed;
    output->text_used += (uint32_t)length;
    output->bytes += length;
    return true;
}

bool output_line_with_bytes(struct output *output, size_t line, const uint8_t *bytes, size_t length)
{
    char *room = output->text + output->text_used;
    memcpy(room + line, bytes, length);
    room[line + length] = '\n';
    return output_line(output, line + length + 1);
}

bool output_line_with_pinned(struct output *output, size_t line, struct pinned pinned,
                             uint64_t length)
{
    output->text[output->text_used + line] = '\n';
    struct output_piece *piece = output_line(output, line) ? new_piece(output) : NULL;
    if (piece == NULL) {
        pinned_release(&pinned);
        return false;
    }
    *piece = (struct output_piece){.pinned = pinned, .length = (uint32_t)length, .fd = -1};
    output->bytes += length;
    return output_line(output, 1);
}

static bool settle(struct output_piece *piece)
{
    struct value *copy = value_new((const uint8_t *)"", 0, piece->length);
    if (copy == NULL)
        return false;
    memcpy(value_bytes(copy), piece->pinned.bytes + piece->offset, piece->length);
    pinned_release(&piece->pinned);
    piece->value = copy;
    piece->offset = 0;
    return true;
}

bool output_settle(struct output *output)
{
    bool ok = true;
    for (unsigned i = 0; i < output->count && ok; i++) {
        struct output_piece *piece = &output->pieces[output->first + i];
        if (piece->pinned.bytes != NULL)
            ok = settle(piece);
    }
    return ok;
}

static bool copy_value(struct output *output, struct value *value)
{
    return output_room(output, value->length + 1) != NULL &&
           output_line_with_bytes(output, 0, value_bytes(value), value->length);
}

static bool refer_to_value(struct output *output, struct value *value)
{
    struct output_piece *piece = new_piece(output);
    if (piece == NULL)
        return false;
    *piece = (struct output_piece){.value = value_ref(value),
                                   .file = value_shared(value) >= 0,
                                   .length = value->length + 1,
                                   .fd = -1};
    output->bytes += value->length + 1;
    return true;
}

bool output_value(struct output *output, struct value *value)
{
    bool ok =
        value->length <= VALUE_COPY_MAX ? copy_value(output, value) : refer_to_value(output, value);
    value_unref(value);
    return ok;
}

static char *base_of(const struct output *output, const struct output_piece *piece)
{
    if (piece->value != NULL)
        return (char *)value_bytes(piece->value);
    /* sendmsg() only reads. */
    return piece->pinned.bytes != NULL ? (char *)(uintptr_t)piece->pinned.bytes : output->text;
}

/* A descriptor goes with the first byte of what is sent together, so it ends what is before it, and
 * so does a file. */
static int gather(const struct output *output, struct iovec *iov)
{
    int count = 0;
    for (; count < OUTPUT_IOVECS && (unsigned)count < output->count; count++) {
        const struct output_piece *piece = &output->pieces[output->first + (unsigned)count];
        if (piece->file || (piece->fd >= 0 && count > 0))
            break;
        iov[count].iov_base = base_of(output, piece) + piece->offset;
        iov[count].iov_len = piece->length;
    }
    return count;
}

static void sent(struct output *output, size_t bytes)
{
    output->bytes -= bytes;
    if (bytes > 0)
        release_fd(&output->pieces[output->first]);
    while (output->count > 0) {
        struct output_piece *piece = &output->pieces[output->first];
        if (bytes < piece->length) {
            piece->offset += (uint32_t)bytes;
            piece->length -= (uint32_t)bytes;
            return;
        }
        bytes -= piece->length;
        value_unref(piece->value);
        pinned_release(&piece->pinned);
        output->first++;
        output->count--;
    }
    output->first = 0;
    output->text_used = 0;
}

/* The usual case, short replies alone, takes the shorter way through the kernel. */
static ssize_t send_text(const struct output *output, int fd)
{
    const struct output_piece *piece = &output->pieces[output->first];
    return send(fd, output->text + piece->offset, piece->length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* The socket takes the file's pages by reference: to take many at a time costs no memory. */
static ssize_t send_file(struct output *output, int fd)
{
    const struct output_piece *piece = &output->pieces[output->first];
    const int wide = OUTPUT_WIDE;
    off_t offset = piece->offset;
    if (!output->widened)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wide, sizeof(wide));
    output->widened = true;
    return sendfile(fd, value_shared(piece->value), &offset, piece->length);
}

static ssize_t send_some(const struct output *output, int fd)
{
    struct iovec iov[OUTPUT_IOVECS];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)gather(output, iov)};
    const struct output_piece *first = &output->pieces[output->first];
    if (first->fd >= 0) {
        control.aligned = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.aligned), &first->fd, sizeof(int));
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

enum output_result output_flush(struct output *output, int fd)
{
    for (int writes = 0; output->count > 0; writes++) {
        if (writes == OUTPUT_WRITES)
            return OUTPUT_BLOCKED;
        const struct output_piece *first = &output->pieces[output->first];
        bool plain = output->count == 1 && is_text(first) && first->fd < 0;
        ssize_t got = plain         ? send_text(output, fd)
                      : first->file ? send_file(output, fd)
                                    : send_some(output, fd);
        if (got >= 0)
            sent(output, (size_t)got);
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return OUTPUT_BLOCKED;
        else if (errno != EINTR)
            return OUTPUT_FAILED;
    }
    return OUTPUT_EMPTY;
}

void output_clear(struct output *output)
{
    for (unsigned i = 0; i < output->count; i++) {
        release_fd(&output->pieces[output->first + i]);
        value_unref(output->pieces[output->first + i].value);
        pinned_release(&output->pieces[output->first + i].pinned);
    }
    free(output->text);
    free(output->pieces);
    *output = (struct output){.widened = output->widened};
}
