#include "line.h"

#include <string.h>

/* A value is followed by one LF: a length of UINT64_MAX could not be passed over. */
#define VALUE_BYTES_MAX (UINT64_MAX - 1)

enum { WORD_BYTES = 16, NUMBER_DIGITS_MAX = 20, QUOTE_BYTES_MAX = 16 };

/* What a line can hold beside its first word and its key, in the order in which it is written. */
enum field {
    FIELD_LENGTH, /* by position; all others are options */
    FIELD_OFFSET,
    FIELD_LEASE,
    FIELD_FLAGS,
    FIELD_TTL,
    FIELD_COST,
    FIELD_ENTRIES,
    FIELD_VOLATILE,
    FIELD_OVERWRITE,
    FIELD_FD,
    FIELD_COUNT
};

#define BIT(field) (1u << (field))

enum field_type { TYPE_BARE, TYPE_U32, TYPE_U64 };

struct field_rule {
    char name[WORD_BYTES];
    size_t name_length;
    enum field_type type;
    uint64_t min, max;
    size_t offset;  /* of the bool or number in the message */
    size_t present; /* of a bool that says whether there is one; 0: it is there unless it is 0 */
};

#define RULE(NAME, TYPE, MESSAGE, MEMBER)                                                          \
    .name = NAME, .name_length = sizeof(NAME) - 1, .type = TYPE, .offset = offsetof(MESSAGE, MEMBER)
#define REQUEST(NAME, TYPE, MEMBER) RULE(NAME, TYPE, struct request, MEMBER)
#define REPLY(NAME, TYPE, MEMBER)   RULE(NAME, TYPE, struct reply, MEMBER)

static const struct field_rule request_fields[FIELD_COUNT] = {
    [FIELD_LENGTH] = {REQUEST("length", TYPE_U64, length), .max = VALUE_BYTES_MAX},
    [FIELD_LEASE] = {REQUEST("lease", TYPE_U32, lease), .min = 1, .max = UINT32_MAX},
    [FIELD_FLAGS] = {REQUEST("flags", TYPE_U32, flags), .max = UINT32_MAX},
    [FIELD_TTL] = {REQUEST("ttl", TYPE_U32, ttl), .min = 1, .max = UINT32_MAX},
    [FIELD_COST] = {REQUEST("cost", TYPE_U32, cost), .max = UINT32_MAX,
                    .present = offsetof(struct request, has_cost)},
    [FIELD_OVERWRITE] = {REQUEST("overwrite", TYPE_BARE, overwrite)},
    [FIELD_FD] = {REQUEST("fd", TYPE_BARE, fd)},
};

static const struct field_rule reply_fields[FIELD_COUNT] = {
    [FIELD_LENGTH] = {REPLY("length", TYPE_U64, length), .max = VALUE_BYTES_MAX},
    [FIELD_OFFSET] = {REPLY("offset", TYPE_U64, offset), .max = UINT64_MAX},
    [FIELD_LEASE] = {REPLY("lease", TYPE_BARE, lease)},
    [FIELD_FLAGS] = {REPLY("flags", TYPE_U32, flags), .max = UINT32_MAX},
    [FIELD_TTL] = {REPLY("ttl", TYPE_U32, ttl), .min = 1, .max = UINT32_MAX},
    [FIELD_ENTRIES] = {REPLY("entries", TYPE_U64, entries), .max = UINT64_MAX,
                       .present = offsetof(struct reply, has_entries)},
    [FIELD_VOLATILE] = {REPLY("volatile", TYPE_BARE, is_volatile)},
};

enum key_rule { KEY_NONE, KEY_OPTIONAL, KEY_REQUIRED };

/* One kind of line. */
struct form {
    char word[WORD_BYTES];
    size_t word_length;
    enum key_rule key;
    unsigned required; /* bits of fields */
    unsigned optional;
    const char *usage;
};

/* Every verb: key, other fields, and what HELP says: how to write it, what it does. */
#define VERBS(VERB)                                                                                \
    VERB(GET, KEY_REQUIRED, 0, BIT(FIELD_LEASE) | BIT(FIELD_FD), " key [lease=SECONDS] [fd]",      \
         "the value, or MISS; with lease one who misses is to PUT it and the others wait")         \
    VERB(PUT, KEY_REQUIRED, BIT(FIELD_LENGTH),                                                     \
         BIT(FIELD_FLAGS) | BIT(FIELD_TTL) | BIT(FIELD_COST) | BIT(FIELD_OVERWRITE) |              \
             BIT(FIELD_FD),                                                                        \
         " key length [flags=N] [ttl=SECONDS] [cost=MS] [overwrite] [fd]",                         \
         "stores the bytes that follow, and one LF, if the key is absent")                         \
    VERB(HEAD, KEY_REQUIRED, 0, 0, " key", "the value's size, without the value")                  \
    VERB(DELETE, KEY_REQUIRED, 0, 0, " key", "removes the value and ends a lease")                 \
    VERB(PREFIX, KEY_OPTIONAL, 0, 0, " [prefix]", "what all keys of this connection begin with")   \
    VERB(CLEAR, KEY_NONE, 0, 0, "", "removes all under the connection's prefix")                   \
    VERB(INSPECT, KEY_NONE, 0, 0, "",                                                              \
         "what the cache holds under the prefix: lines of name value")                             \
    VERB(PERSIST, KEY_NONE, 0, 0, "", "puts all that was stored on stable storage")                \
    VERB(PING, KEY_NONE, 0, 0, "", "answers OK")                                                   \
    VERB(HELP, KEY_NONE, 0, 0, "", "this text")                                                    \
    VERB(QUIT, KEY_NONE, 0, 0, "", "closes the connection")

#define VERB_FORM(NAME, KEY, REQUIRED, OPTIONAL, USAGE, TEXT)                                      \
    [VERB_##NAME] = {#NAME, sizeof(#NAME) - 1, KEY, REQUIRED, OPTIONAL, #NAME USAGE},
#define VERB_HELP_LINE(NAME, KEY, REQUIRED, OPTIONAL, USAGE, TEXT) #NAME USAGE " - " TEXT "\n"
#define REPLY_FORM(NAME, REQUIRED, OPTIONAL)                                                       \
    [REPLY_##NAME] = {#NAME, sizeof(#NAME) - 1, KEY_NONE, REQUIRED, OPTIONAL, NULL}

static const struct form request_forms[VERB_COUNT] = {VERBS(VERB_FORM)};

/* ERROR, which has a code and a text instead of fields, is not among them. */
static const struct form reply_forms[REPLY_ERROR] = {
    REPLY_FORM(VALUE, BIT(FIELD_LENGTH), BIT(FIELD_FLAGS) | BIT(FIELD_TTL)),
    REPLY_FORM(FD, BIT(FIELD_LENGTH) | BIT(FIELD_OFFSET), BIT(FIELD_FLAGS) | BIT(FIELD_TTL)),
    REPLY_FORM(SIZE, BIT(FIELD_LENGTH), BIT(FIELD_FLAGS) | BIT(FIELD_TTL)),
    REPLY_FORM(MISS, 0, BIT(FIELD_LEASE)),
    REPLY_FORM(STORED, 0, 0),
    REPLY_FORM(EXISTS, 0, 0),
    REPLY_FORM(DELETED, 0, 0),
    REPLY_FORM(OK, 0, BIT(FIELD_ENTRIES) | BIT(FIELD_VOLATILE)),
};

struct word {
    const char *at;
    size_t length;
};

enum fault {
    FAULT_NONE,
    FAULT_EMPTY, /* a word of no bytes */
    FAULT_VERB,  /* unknown first word */
    FAULT_NO_KEY,
    FAULT_KEY_BYTE,
    FAULT_KEY_LONG,
    FAULT_MISSING, /* a required field */
    FAULT_UNKNOWN, /* a word that the verb does not know */
    FAULT_REPEATED,
    FAULT_BARE, /* a value where none belongs */
    FAULT_NUMBER
};

/* A line while it is read. at is at the end of the last word read: a space, or end. */
struct reader {
    const char *at;
    const char *end;
    const struct form *form;
    const struct field_rule *fields;
    struct word word;               /* where a fault was found */
    const struct field_rule *field; /* and in which field, if in any */
};

/* The line without its LF and the CR before it. */
static enum line_result find_line(const char *bytes, size_t length, struct reader *line,
                                  size_t *used)
{
    if (length == 0)
        return LINE_MORE;
    const char *lf = memchr(bytes, '\n', length < LINE_MAX_BYTES ? length : LINE_MAX_BYTES);
    if (lf == NULL)
        return length < LINE_MAX_BYTES ? LINE_MORE : LINE_LOST;
    line->at = bytes;
    line->end = lf > bytes && lf[-1] == '\r' ? lf - 1 : lf;
    *used = (size_t)(lf - bytes) + 1;
    return LINE_OK;
}

static bool more_words(const struct reader *line)
{
    return line->at < line->end;
}

/* The word that begins at at. */
static struct word read_word(struct reader *line)
{
    const char *begin = line->at;
    while (line->at < line->end && *line->at != ' ')
        line->at++;
    return (struct word){begin, (size_t)(line->at - begin)};
}

/* The word after the space at which at is. */
static struct word next_word(struct reader *line)
{
    line->at++;
    return read_word(line);
}

static bool word_is(struct word word, const char *text, size_t length)
{
    return word.length == length && memcmp(word.at, text, length) == 0;
}

static const struct form *find_form(const struct form *forms, size_t count, struct word word)
{
    for (size_t i = 0; i < count; i++)
        if (word_is(word, forms[i].word, forms[i].word_length))
            return &forms[i];
    return NULL;
}

/* Plain decimal digits, at least one, that fit 64 bits. */
static bool read_number(struct word word, uint64_t *number)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < word.length; i++) {
        unsigned digit = (unsigned char)word.at[i] - (unsigned)'0';
        if (digit > 9 || __builtin_mul_overflow(sum, 10, &sum) ||
            __builtin_add_overflow(sum, digit, &sum))
            return false;
    }
    *number = sum;
    return word.length > 0;
}

static void set_field(void *message, const struct field_rule *field, uint64_t number)
{
    char *at = (char *)message + field->offset;
    if (field->type == TYPE_U64)
        *(uint64_t *)(void *)at = number;
    else if (field->type == TYPE_U32)
        *(uint32_t *)(void *)at = (uint32_t)number;
    else
        *(bool *)at = number != 0;
    if (field->present != 0)
        *((bool *)message + field->present) = true;
}

static uint64_t get_field(const void *message, const struct field_rule *field)
{
    const char *at = (const char *)message + field->offset;
    if (field->type == TYPE_U64)
        return *(const uint64_t *)(const void *)at;
    if (field->type == TYPE_U32)
        return *(const uint32_t *)(const void *)at;
    return *(const bool *)at;
}

static enum fault read_value(struct reader *line, void *message, const struct field_rule *field,
                             struct word digits)
{
    uint64_t number;
    line->field = field;
    if (!read_number(digits, &number) || number < field->min || number > field->max)
        return FAULT_NUMBER;
    set_field(message, field, number);
    return FAULT_NONE;
}

/* The option that word names; *digits is what stands after its '=', NULL where it has none. */
static enum field find_option(const struct reader *line, struct word word, struct word *digits)
{
    const char *equals = memchr(word.at, '=', word.length);
    *digits = (struct word){NULL, 0};
    if (equals != NULL) {
        *digits = (struct word){equals + 1, (size_t)(word.at + word.length - equals) - 1};
        word.length = (size_t)(equals - word.at);
    }
    unsigned known = (line->form->required | line->form->optional) & ~BIT(FIELD_LENGTH);
    for (enum field i = 0; i < FIELD_COUNT; i++)
        if ((known & BIT(i)) && word_is(word, line->fields[i].name, line->fields[i].name_length))
            return i;
    return FIELD_COUNT;
}

static enum fault read_option(struct reader *line, void *message, unsigned *seen)
{
    struct word digits;
    struct word word = next_word(line);
    if (word.length == 0)
        return FAULT_EMPTY;
    line->word = word;
    enum field option = find_option(line, word, &digits);
    if (option == FIELD_COUNT)
        return FAULT_UNKNOWN;
    if (*seen & BIT(option))
        return FAULT_REPEATED;
    *seen |= BIT(option);

    const struct field_rule *field = &line->fields[option];
    if (field->type != TYPE_BARE)
        return read_value(line, message, field, digits);
    if (digits.at != NULL)
        return FAULT_BARE;
    set_field(message, field, 1);
    return FAULT_NONE;
}

/* What follows the first word and the key, in requests and replies alike. */
static enum fault read_fields(struct reader *line, void *message)
{
    unsigned seen = 0;
    if (line->form->required & BIT(FIELD_LENGTH)) {
        if (!more_words(line))
            return FAULT_MISSING;
        struct word word = next_word(line);
        if (word.length == 0)
            return FAULT_EMPTY;
        line->word = word;
        enum fault fault = read_value(line, message, &line->fields[FIELD_LENGTH], word);
        if (fault != FAULT_NONE)
            return fault;
        seen = BIT(FIELD_LENGTH);
    }
    while (more_words(line)) {
        enum fault fault = read_option(line, message, &seen);
        if (fault != FAULT_NONE)
            return fault;
    }
    return (line->form->required & ~seen) == 0 ? FAULT_NONE : FAULT_MISSING;
}

/* Copies eight bytes of a key if all stand for themselves, which is found of all at once. */
static bool copy_plain(void *out, const void *in)
{
    const uint64_t ones = UINT64_C(0x0101010101010101);
    uint64_t bytes;
    memcpy(&bytes, in, sizeof(bytes));
    uint64_t percent = bytes ^ ones * '%';
    uint64_t odd =
        ((bytes - ones * 0x21) & ~bytes) | ((percent - ones) & ~percent) | (bytes + ones) | bytes;
    if (odd & ones * 0x80)
        return false;
    memcpy(out, &bytes, sizeof(bytes));
    return true;
}

/* The same for a run of at least eight bytes; the last eight may be copied twice in part. */
static bool copy_plain_run(uint8_t *out, const uint8_t *in, size_t length)
{
    for (size_t at = 0; at + 8 < length; at += 8)
        if (!copy_plain(out + at, in + at))
            return false;
    return copy_plain(out + length - 8, in + length - 8);
}

static bool is_plain(uint8_t byte)
{
    return byte > 0x20 && byte < 0x7F && byte != '%';
}

/* One byte of a key from text; returns the bytes of text that it took, 0 where they are none. */
static size_t decode_byte(uint8_t *byte, const char *text, size_t length)
{
    /* A digit's value plus one, so that all that are none are 0. */
    static const uint8_t hex[256] = {
        ['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,
        ['6'] = 7,  ['7'] = 8,  ['8'] = 9,  ['9'] = 10, ['A'] = 11, ['B'] = 12,
        ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16, ['a'] = 11, ['b'] = 12,
        ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
    };
    uint8_t first = (uint8_t)text[0];
    if (is_plain(first)) {
        *byte = first;
        return 1;
    }
    if (first != '%' || length < 3)
        return 0;
    unsigned high = hex[(uint8_t)text[1]], low = hex[(uint8_t)text[2]];
    if (high == 0 || low == 0)
        return 0;
    *byte = (uint8_t)((high - 1) << 4 | (low - 1));
    return 3;
}

/* Decodes up to the first byte that is no part of a key, or until key is full. */
static size_t decode_run(uint8_t *key, size_t size, const char *text, size_t length, size_t *used)
{
    size_t in = 0, out = 0;
    while (in < length && out < size) {
        size_t step = decode_byte(key + out, text + in, length - in);
        if (step == 0)
            break;
        in += step;
        out++;
    }
    *used = in;
    return out;
}

ssize_t line_decode_key(uint8_t *key, size_t size, const char *text, size_t length)
{
    size_t used;
    size_t bytes = decode_run(key, size, text, length, &used);
    if (used == length)
        return (ssize_t)bytes;
    return bytes == size ? -2 : -1;
}

size_t line_encode_key(char *out, size_t size, const uint8_t *key, size_t length)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t in = 0, used = 0;
    if (length >= 8 && size >= length && copy_plain_run((uint8_t *)out, key, length))
        return length;
    while (in < length) {
        uint8_t byte = key[in++];
        if (size - used < (is_plain(byte) ? 1 : 3))
            return 0;
        if (is_plain(byte)) {
            out[used++] = (char)byte;
        } else {
            out[used++] = '%';
            out[used++] = hex[byte >> 4];
            out[used++] = hex[byte & 15];
        }
    }
    return used;
}

/* The usual key, without an escape, as a whole; false says nothing about it. */
static bool read_plain_key(struct reader *line, struct request *request)
{
    size_t left = (size_t)(line->end - line->at);
    const char *space = memchr(line->at, ' ', left);
    size_t length = space != NULL ? (size_t)(space - line->at) : left;
    if (length < 8 || length > MESSAGE_KEY_MAX ||
        !copy_plain_run(request->key, (const uint8_t *)line->at, length))
        return false;
    request->key_length = (uint32_t)length;
    line->at += length;
    return true;
}

static enum fault read_key(struct reader *line, struct request *request)
{
    if (!more_words(line))
        return line->form->key == KEY_REQUIRED ? FAULT_NO_KEY : FAULT_NONE;
    line->at++;
    if (read_plain_key(line, request))
        return FAULT_NONE;
    size_t used;
    size_t left = (size_t)(line->end - line->at);
    request->key_length =
        (uint32_t)decode_run(request->key, MESSAGE_KEY_MAX, line->at, left, &used);
    line->at += used;
    if (used < left && *line->at != ' ')
        return request->key_length == MESSAGE_KEY_MAX ? FAULT_KEY_LONG : FAULT_KEY_BYTE;
    return request->key_length == 0 ? FAULT_EMPTY : FAULT_NONE;
}

static enum fault read_request(struct reader *line, struct request *request)
{
    line->word = read_word(line);
    line->form = find_form(request_forms, VERB_COUNT, line->word);
    if (line->form == NULL)
        return FAULT_VERB;
    request->verb = (enum verb)(line->form - request_forms);
    request->overwrite = request->fd = request->has_cost = false;
    request->flags = request->ttl = request->cost = request->lease = 0;
    request->length = 0;
    request->key_length = 0;
    if (line->form->key != KEY_NONE) {
        enum fault fault = read_key(line, request);
        if (fault != FAULT_NONE)
            return fault;
    }
    return read_fields(line, request);
}

/* The beginning of a word, written as a key is, so that no byte of it is echoed raw. */
static void quote(char out[3 * QUOTE_BYTES_MAX + 1], struct word word)
{
    size_t length = word.length < QUOTE_BYTES_MAX ? word.length : QUOTE_BYTES_MAX;
    out[line_encode_key(out, 3 * QUOTE_BYTES_MAX, (const uint8_t *)word.at, length)] = '\0';
}

/* What is said of a fault, before the word where it was found. */
static const char *complaint(enum fault fault)
{
    static const char *const complaints[] = {
        [FAULT_EMPTY] = "a double space, or one at the end, after",
        [FAULT_NO_KEY] = "a key is missing after",
        [FAULT_MISSING] = "a length is missing after",
        [FAULT_UNKNOWN] = "unknown word",
        [FAULT_REPEATED] = "repeated option",
        [FAULT_BARE] = "this option takes no value:",
    };
    return complaints[fault];
}

/* Says what was wrong, and what would be right. */
static void explain(struct reply *error, enum fault fault, const struct reader *line)
{
    char word[3 * QUOTE_BYTES_MAX + 1];
    quote(word, line->word);
    if (fault == FAULT_VERB && line->word.length == 0)
        message_error(error, ERROR_SYNTAX, "a line begins with a verb; HELP lists them");
    else if (fault == FAULT_VERB)
        message_error(error, ERROR_SYNTAX, "unknown verb %s; HELP lists them, in capitals", word);
    else if (fault == FAULT_KEY_LONG)
        message_error(error, ERROR_TOO_LARGE, "a key is at most %d bytes", MESSAGE_KEY_MAX);
    else if (fault == FAULT_KEY_BYTE)
        message_error(error, ERROR_SYNTAX,
                      "in a key, %% and all bytes outside 0x21-0x7E are written %%XX");
    else if (fault == FAULT_NUMBER)
        message_error(error, ERROR_SYNTAX, "%s where %s is to be a number from %llu to %llu", word,
                      line->field->name, (unsigned long long)line->field->min,
                      (unsigned long long)line->field->max);
    else
        message_error(error, ERROR_SYNTAX, "%s %s; usage: %s", complaint(fault), word,
                      line->form->usage);
}

/*
 * The bytes that follow a refused PUT: its third word says, whatever else was wrong. false where it
 * does not, so that nobody can know where the next request begins.
 */
static bool find_skip(struct reader line, uint64_t *skip)
{
    uint64_t length;
    read_word(&line);
    if (more_words(&line))
        next_word(&line);
    if (!more_words(&line) || !read_number(next_word(&line), &length))
        return false;
    while (more_words(&line)) {
        if (word_is(next_word(&line), "fd", 2)) {
            *skip = 0;
            return true;
        }
    }
    *skip = length + 1;
    return length <= VALUE_BYTES_MAX;
}

enum line_result line_parse_request(const char *bytes, size_t length, struct request *request,
                                    size_t *used, uint64_t *skip, struct reply *error)
{
    struct reader line = {.fields = request_fields};
    enum line_result result = find_line(bytes, length, &line, used);
    if (result == LINE_LOST)
        message_error(error, ERROR_TOO_LARGE, "a line is at most %d bytes with its LF",
                      LINE_MAX_BYTES);
    if (result != LINE_OK)
        return result;

    enum fault fault = read_request(&line, request);
    if (fault == FAULT_NONE)
        return LINE_OK;
    explain(error, fault, &line);
    *skip = 0;
    if (line.form != &request_forms[VERB_PUT])
        return LINE_BAD;
    line.at = bytes;
    return find_skip(line, skip) ? LINE_BAD : LINE_LOST;
}

/* Copies what fits of a text for people; what is not printable becomes '?'. */
static void copy_text(char *out, size_t length, const char *text)
{
    for (size_t i = 0; i < length; i++)
        out[i] = text[i] >= 0x20 && text[i] <= 0x7E ? text[i] : '?';
}

static bool read_error(struct reader *line, struct reply *reply)
{
    if (!more_words(line))
        return false;
    struct word word = next_word(line);
    for (unsigned code = 0; code < ERROR_CODE_COUNT; code++) {
        const char *name = message_error_name((enum error_code)code);
        if (!word_is(word, name, strlen(name)))
            continue;
        size_t left = (size_t)(line->end - line->at);
        size_t length = left == 0 ? 0 : left - 1;
        if (length >= sizeof(reply->text))
            length = sizeof(reply->text) - 1;
        reply->kind = REPLY_ERROR;
        reply->error = (enum error_code)code;
        copy_text(reply->text, length, line->at + 1);
        reply->text[length] = '\0';
        return left != 1;
    }
    return false;
}

static bool read_reply(struct reader *line, struct reply *reply)
{
    struct word word = read_word(line);
    reply->lease = reply->has_entries = reply->is_volatile = false;
    reply->flags = reply->ttl = 0;
    reply->length = reply->offset = reply->entries = 0;
    reply->error = ERROR_SYNTAX;
    reply->text[0] = '\0';
    line->form = find_form(reply_forms, REPLY_ERROR, word);
    if (line->form == NULL)
        return word_is(word, "ERROR", 5) && read_error(line, reply);
    reply->kind = (enum reply_kind)(line->form - reply_forms);
    return read_fields(line, reply) == FAULT_NONE;
}

enum line_result line_parse_reply(const char *bytes, size_t length, struct reply *reply,
                                  size_t *used)
{
    struct reader line = {.fields = reply_fields};
    enum line_result result = find_line(bytes, length, &line, used);
    if (result != LINE_OK)
        return result;
    return read_reply(&line, reply) ? LINE_OK : LINE_LOST;
}

/* A line while it is written; at becomes NULL once something did not fit. */
struct writer {
    char *at;
    char *end;
};

static void write_bytes(struct writer *line, const char *bytes, size_t length)
{
    if (line->at == NULL || (size_t)(line->end - line->at) < length) {
        line->at = NULL;
        return;
    }
    memcpy(line->at, bytes, length);
    line->at += length;
}

static void write_byte(struct writer *line, char byte)
{
    if (line->at == NULL || line->at == line->end)
        line->at = NULL;
    else
        *line->at++ = byte;
}

/* A word of the protocol, of which text has WORD_BYTES bytes: where there is room, copied at once.
 */
static void write_word(struct writer *line, const char text[WORD_BYTES], size_t length)
{
    if (line->at == NULL || line->end - line->at < WORD_BYTES) {
        write_bytes(line, text, length);
        return;
    }
    memcpy(line->at, text, WORD_BYTES);
    line->at += length;
}

static void write_number(struct writer *line, uint64_t number)
{
    char digits[2 * NUMBER_DIGITS_MAX]; /* the second half only to be copied from */
    size_t begin = NUMBER_DIGITS_MAX;
    do {
        digits[--begin] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    size_t length = NUMBER_DIGITS_MAX - begin;
    if (line->at == NULL || line->end - line->at < NUMBER_DIGITS_MAX) {
        write_bytes(line, digits + begin, length);
        return;
    }
    memcpy(line->at, digits + begin, NUMBER_DIGITS_MAX);
    line->at += length;
}

static void write_key(struct writer *line, const uint8_t *key, size_t length)
{
    write_byte(line, ' ');
    if (line->at == NULL)
        return;
    size_t used = line_encode_key(line->at, (size_t)(line->end - line->at), key, length);
    line->at = used == 0 ? NULL : line->at + used;
}

static void write_option(struct writer *line, const struct field_rule *field, uint64_t number)
{
    write_byte(line, ' ');
    write_word(line, field->name, field->name_length);
    if (field->type == TYPE_BARE)
        return;
    write_byte(line, '=');
    write_number(line, number);
}

/* Whether an optional field of the message is to be written. */
static bool has_field(const void *message, const struct field_rule *field)
{
    if (field->present != 0)
        return *((const bool *)message + field->present);
    return get_field(message, field) != 0;
}

/* The inverse of read_fields. */
static void write_fields(struct writer *line, const struct form *form,
                         const struct field_rule *fields, const void *message)
{
    if (form->required & BIT(FIELD_LENGTH)) {
        uint64_t length = get_field(message, &fields[FIELD_LENGTH]);
        write_byte(line, ' ');
        write_number(line, length);
        if (length > fields[FIELD_LENGTH].max)
            line->at = NULL;
    }
    unsigned left = (form->required | form->optional) & ~BIT(FIELD_LENGTH);
    for (; left != 0; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);
        if ((form->required & BIT(i)) || has_field(message, &fields[i]))
            write_option(line, &fields[i], get_field(message, &fields[i]));
    }
}

static bool key_fits(const struct form *form, uint32_t length)
{
    if (form->key == KEY_NONE)
        return true;
    return length <= MESSAGE_KEY_MAX && (length > 0 || form->key == KEY_OPTIONAL);
}

size_t line_format_request(char *out, size_t size, const struct request *request)
{
    if ((unsigned)request->verb >= VERB_COUNT)
        return 0;
    const struct form *form = &request_forms[request->verb];
    if (!key_fits(form, request->key_length))
        return 0;

    struct writer line = {out, out + size};
    write_word(&line, form->word, form->word_length);
    if (form->key != KEY_NONE && request->key_length > 0)
        write_key(&line, request->key, request->key_length);
    write_fields(&line, form, request_fields, request);
    write_byte(&line, '\n');
    return line.at == NULL ? 0 : (size_t)(line.at - out);
}

static void write_error(struct writer *line, const struct reply *reply)
{
    char text[MESSAGE_TEXT_MAX];
    size_t length = strnlen(reply->text, sizeof(text) - 1);
    const char *name = message_error_name(reply->error);
    copy_text(text, length, reply->text);
    write_bytes(line, "ERROR ", 6);
    write_bytes(line, name, strlen(name));
    if (length > 0) {
        write_byte(line, ' ');
        write_bytes(line, text, length);
    }
}

size_t line_format_reply(char *out, size_t size, const struct reply *reply)
{
    if ((unsigned)reply->kind > REPLY_ERROR)
        return 0;
    struct writer line = {out, out + size};
    if (reply->kind == REPLY_ERROR) {
        write_error(&line, reply);
    } else {
        const struct form *form = &reply_forms[reply->kind];
        write_word(&line, form->word, form->word_length);
        write_fields(&line, form, reply_fields, reply);
    }
    write_byte(&line, '\n');
    return line.at == NULL ? 0 : (size_t)(line.at - out);
}

const char *line_help(void)
{
    return VERBS(VERB_HELP_LINE);
}
