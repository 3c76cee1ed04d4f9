/* The line protocol: what PROTOCOL.md says of lines, their limits and their errors. */
#include "../../proto/line.h"
#include "suite.h"

#include <stdio.h>
#include <string.h>

#define STRING(text) (text), sizeof(text) - 1
#define ROWS(table)  (sizeof(table) / sizeof((table)[0]))

enum { RANDOM_ROUNDS = 5000, TIMEOUT_SECONDS = 60 };

/* A copy in a block of exactly its size, so that a sanitizer sees a byte read beyond it. */
static char *exact_copy(const void *bytes, size_t length)
{
    char *copy = malloc(length == 0 ? 1 : length);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, bytes, length);
    return copy;
}

struct parsed {
    enum line_result result;
    size_t used;
    uint64_t skip;
    struct request request;
    struct reply reply; /* the error of a request, or the reply */
};

/* Filled with rubbish before, so that a field that is not set is seen. */
static struct parsed parse_request(const char *bytes, size_t length)
{
    struct parsed parsed;
    memset(&parsed, 0xA5, sizeof(parsed));
    char *copy = exact_copy(bytes, length);
    parsed.result = line_parse_request(copy, length, &parsed.request, &parsed.used, &parsed.skip,
                                       &parsed.reply);
    free(copy);
    return parsed;
}

static struct parsed parse_reply(const char *bytes, size_t length)
{
    struct parsed parsed;
    memset(&parsed, 0xA5, sizeof(parsed));
    char *copy = exact_copy(bytes, length);
    parsed.result = line_parse_reply(copy, length, &parsed.reply, &parsed.used);
    free(copy);
    return parsed;
}

static void assert_same_request(const struct request *a, const struct request *b)
{
    ck_assert_int_eq(a->verb, b->verb);
    ck_assert_int_eq(a->overwrite, b->overwrite);
    ck_assert_int_eq(a->fd, b->fd);
    ck_assert_uint_eq(a->flags, b->flags);
    ck_assert_uint_eq(a->ttl, b->ttl);
    ck_assert_int_eq(a->has_cost, b->has_cost);
    ck_assert_uint_eq(a->cost, b->cost);
    ck_assert_uint_eq(a->lease, b->lease);
    ck_assert_uint_eq(a->length, b->length);
    ck_assert_uint_eq(a->key_length, b->key_length);
    ck_assert_mem_eq(a->key, b->key, a->key_length);
}

static void assert_same_reply(const struct reply *a, const struct reply *b)
{
    ck_assert_int_eq(a->kind, b->kind);
    ck_assert_int_eq(a->lease, b->lease);
    ck_assert_int_eq(a->has_entries, b->has_entries);
    ck_assert_int_eq(a->is_volatile, b->is_volatile);
    ck_assert_uint_eq(a->flags, b->flags);
    ck_assert_uint_eq(a->ttl, b->ttl);
    ck_assert_uint_eq(a->length, b->length);
    ck_assert_uint_eq(a->offset, b->offset);
    ck_assert_uint_eq(a->entries, b->entries);
    if (a->kind != REPLY_ERROR)
        return;
    ck_assert_int_eq(a->error, b->error);
    ck_assert_str_eq(a->text, b->text);
}

static void assert_printable(const char *text)
{
    size_t length = strnlen(text, MESSAGE_TEXT_MAX), at = 0;
    ck_assert_uint_lt(length, MESSAGE_TEXT_MAX);
    while (at < length && text[at] >= 0x20 && text[at] <= 0x7E)
        at++;
    ck_assert_msg(at == length, "byte 0x%02X in: %s", (unsigned char)text[at], text);
}

static void assert_formats_request(const struct request *request, const char *line, size_t length)
{
    char out[LINE_MAX_BYTES];
    size_t size = line_format_request(out, sizeof(out), request);
    ck_assert_msg(size == length && memcmp(out, line, size) == 0, "\"%.*s\" for \"%.*s\"",
                  (int)size, out, (int)length, line);
}

static void assert_formats_reply(const struct reply *reply, const char *line, size_t length)
{
    char out[LINE_MAX_BYTES];
    size_t size = line_format_reply(out, sizeof(out), reply);
    ck_assert_msg(size == length && memcmp(out, line, size) == 0, "\"%.*s\" for \"%.*s\"",
                  (int)size, out, (int)length, line);
}

static struct request make_request(enum verb verb, const char *key)
{
    struct request request = {.verb = verb, .key_length = (uint32_t)strlen(key)};
    memcpy(request.key, key, request.key_length);
    return request;
}

struct good {
    const char *line;      /* without its LF */
    const char *canonical; /* as it is written; NULL: the same */
    enum verb verb;
    const char *key;
    uint64_t length;
    uint32_t flags, ttl, lease, cost;
    bool overwrite, fd, has_cost;
};

static const struct good good[] = {
    {"GET k", NULL, .verb = VERB_GET, .key = "k"},
    {"GET k lease=1", NULL, .verb = VERB_GET, .key = "k", .lease = 1},
    {"GET k lease=4294967295", NULL, .verb = VERB_GET, .key = "k", .lease = UINT32_MAX},
    {"GET k fd", NULL, .verb = VERB_GET, .key = "k", .fd = true},
    {"GET k fd lease=30", "GET k lease=30 fd", .verb = VERB_GET, .key = "k", .lease = 30,
     .fd = true},
    {"GET fd", NULL, .verb = VERB_GET, .key = "fd"},
    {"GET lease=5", NULL, .verb = VERB_GET, .key = "lease=5"},
    {"GET a%20b%25", NULL, .verb = VERB_GET, .key = "a b%"},
    {"GET %61%62", "GET ab", .verb = VERB_GET, .key = "ab"},
    {"GET %c3%A9", "GET %C3%A9", .verb = VERB_GET, .key = "\xC3\xA9"},
    {"GET 12345678", NULL, .verb = VERB_GET, .key = "12345678"},
    {"GET 1234567%2a", "GET 1234567*", .verb = VERB_GET, .key = "1234567*"},
    {"GET 12345678%0A12345678 fd", NULL, .verb = VERB_GET, .key = "12345678\n12345678", .fd = true},
    {"PUT k 0", NULL, .verb = VERB_PUT, .key = "k"},
    {"PUT k 5", NULL, .verb = VERB_PUT, .key = "k", .length = 5},
    {"PUT k 0005", "PUT k 5", .verb = VERB_PUT, .key = "k", .length = 5},
    {"PUT k 18446744073709551614", NULL, .verb = VERB_PUT, .key = "k", .length = UINT64_MAX - 1},
    {"PUT k 5 flags=0", "PUT k 5", .verb = VERB_PUT, .key = "k", .length = 5},
    {"PUT k 5 flags=4294967295", NULL, .verb = VERB_PUT, .key = "k", .length = 5,
     .flags = UINT32_MAX},
    {"PUT k 5 ttl=1", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .ttl = 1},
    {"PUT k 5 ttl=4294967295", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .ttl = UINT32_MAX},
    {"PUT k 5 overwrite", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .overwrite = true},
    {"PUT k 5 fd", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .fd = true},
    {"PUT k 5 fd overwrite ttl=7 flags=9", "PUT k 5 flags=9 ttl=7 overwrite fd", .verb = VERB_PUT,
     .key = "k", .length = 5, .flags = 9, .ttl = 7, .overwrite = true, .fd = true},
    {"PUT k 5 cost=0", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .has_cost = true},
    {"PUT k 5 cost=4294967295", NULL, .verb = VERB_PUT, .key = "k", .length = 5, .has_cost = true,
     .cost = UINT32_MAX},
    {"PUT k 5 fd cost=9 overwrite ttl=7 flags=3", "PUT k 5 flags=3 ttl=7 cost=9 overwrite fd",
     .verb = VERB_PUT, .key = "k", .length = 5, .flags = 3, .ttl = 7, .has_cost = true, .cost = 9,
     .overwrite = true, .fd = true},
    {"PUT fd 5", NULL, .verb = VERB_PUT, .key = "fd", .length = 5},
    {"HEAD k", NULL, .verb = VERB_HEAD, .key = "k"},
    {"DELETE k", NULL, .verb = VERB_DELETE, .key = "k"},
    {"PREFIX", NULL, .verb = VERB_PREFIX, .key = ""},
    {"PREFIX p/", NULL, .verb = VERB_PREFIX, .key = "p/"},
    {"CLEAR", NULL, .verb = VERB_CLEAR, .key = ""},
    {"INSPECT", NULL, .verb = VERB_INSPECT, .key = ""},
    {"PERSIST", NULL, .verb = VERB_PERSIST, .key = ""},
    {"PING", NULL, .verb = VERB_PING, .key = ""},
    {"HELP", NULL, .verb = VERB_HELP, .key = ""},
    {"QUIT", NULL, .verb = VERB_QUIT, .key = ""},
};

static void check_good(const struct good *row, const char *end)
{
    char line[128];
    int length = snprintf(line, sizeof(line), "%s%s", row->line, end);
    struct request wanted = make_request(row->verb, row->key);
    wanted.length = row->length;
    wanted.flags = row->flags;
    wanted.ttl = row->ttl;
    wanted.lease = row->lease;
    wanted.has_cost = row->has_cost;
    wanted.cost = row->cost;
    wanted.overwrite = row->overwrite;
    wanted.fd = row->fd;

    struct parsed parsed = parse_request(line, (size_t)length);
    ck_assert_msg(parsed.result == LINE_OK, "%d for %s", parsed.result, line);
    ck_assert_uint_eq(parsed.used, (size_t)length);
    assert_same_request(&parsed.request, &wanted);

    length = snprintf(line, sizeof(line), "%s\n", row->canonical ?: row->line);
    assert_formats_request(&parsed.request, line, (size_t)length);
}

START_TEST(good_requests)
{
    for (size_t i = 0; i < ROWS(good); i++) {
        check_good(&good[i], "\n");
        check_good(&good[i], "\r\n");
    }
}
END_TEST

START_TEST(only_the_key_s_bytes_are_written)
{
    struct parsed parsed = parse_request(STRING("GET ab\n"));
    ck_assert_uint_eq(parsed.request.key_length, 2);
    for (size_t i = 2; i < MESSAGE_KEY_MAX; i++)
        ck_assert_uint_eq(parsed.request.key[i], 0xA5);
}
END_TEST

START_TEST(only_the_first_line_counts)
{
    struct parsed parsed = parse_request(STRING("PUT k 3\nabc\nGET k\n"));
    ck_assert_int_eq(parsed.result, LINE_OK);
    ck_assert_uint_eq(parsed.used, 8);
    parsed = parse_request(STRING("PING\nGARBAGE"));
    ck_assert_int_eq(parsed.result, LINE_OK);
    ck_assert_uint_eq(parsed.used, 5);
    parsed = parse_request(STRING("nothing\nPING\n"));
    ck_assert_int_eq(parsed.result, LINE_BAD);
    ck_assert_uint_eq(parsed.used, 8);
    parsed = parse_reply(STRING("VALUE 3\nabc\nMISS\n"));
    ck_assert_int_eq(parsed.result, LINE_OK);
    ck_assert_uint_eq(parsed.used, 8);
}
END_TEST

struct bad {
    const char *line;
    size_t length;
    enum line_result result;
    uint64_t skip;
    const char *says; /* a part of the text */
};

#define IN_STEP(line)     STRING(line "\n"), LINE_BAD, 0
#define SKIPS(line, skip) STRING(line "\n"), LINE_BAD, skip
#define LOST(line)        STRING(line "\n"), LINE_LOST, 0

static const struct bad bad[] = {
    {IN_STEP(""), "begins with a verb"},
    {IN_STEP("\r"), "begins with a verb"},
    {IN_STEP(" "), "begins with a verb"},
    {IN_STEP(" PING"), "begins with a verb"},
    {IN_STEP("get k"), "unknown verb get"},
    {IN_STEP("put k 5"), "unknown verb put"},
    {IN_STEP("G"), "unknown verb G;"},
    {IN_STEP("GETS k"), "unknown verb GETS"},
    {IN_STEP("PING\r\r"), "unknown verb PING%0D"},
    {IN_STEP("PI\0NG"), "unknown verb PI%00NG"},
    {IN_STEP("GET\tk"), "unknown verb GET%09k"},
    {IN_STEP("\x1b[2J\xff"), "unknown verb %1B[2J%FF"},
    {IN_STEP("0123456789abcdefXYZ"), "unknown verb 0123456789abcdef;"},

    {IN_STEP("GET"), "key is missing after GET; usage: GET key [lease=SECONDS] [fd]"},
    {IN_STEP("HEAD"), "usage: HEAD key"},
    {IN_STEP("DELETE"), "usage: DELETE key"},
    {IN_STEP("GET "), "space"},
    {IN_STEP("GET  k"), "space"},
    {IN_STEP("GET k "), "space"},
    {IN_STEP("GET k  fd"), "space"},
    {IN_STEP("GET k fd "), "space, or one at the end, after fd"},
    {IN_STEP("PING "), "space"},
    {IN_STEP("PREFIX "), "space"},
    {IN_STEP("PREFIX p "), "space"},
    {IN_STEP("GET k\tfd"), "written %XX"},
    {IN_STEP("GET \x80"), "written %XX"},
    {IN_STEP("GET k\x7f"), "written %XX"},
    {IN_STEP("GET k\0k"), "written %XX"},
    {IN_STEP("GET k\r\r"), "written %XX"},
    {IN_STEP("GET %"), "written %XX"},
    {IN_STEP("GET %4"), "written %XX"},
    {IN_STEP("GET %4 fd"), "written %XX"},
    {IN_STEP("GET %4g"), "written %XX"},
    {IN_STEP("GET %g4"), "written %XX"},
    {IN_STEP("GET %%41"), "written %XX"},
    {IN_STEP("GET 12345678\xc3\xa9"), "written %XX"},

    {IN_STEP("GET k k"), "unknown word k; usage: GET"},
    {IN_STEP("GET k ttl=5"), "unknown word ttl=5"},
    {IN_STEP("GET k flags=5"), "unknown word"},
    {IN_STEP("GET k overwrite"), "unknown word"},
    {IN_STEP("GET k 5"), "unknown word"},
    {IN_STEP("GET k FD"), "unknown word FD"},
    {IN_STEP("GET k ="), "unknown word ="},
    {IN_STEP("GET k =5"), "unknown word =5"},
    {IN_STEP("GET k length=5"), "unknown word"},
    {IN_STEP("GET k fd fd"), "repeated option fd"},
    {IN_STEP("GET k lease=1 lease=2"), "repeated option lease=2"},
    {IN_STEP("GET k lease=1 fd lease=1"), "repeated option lease=1"},
    {IN_STEP("GET k fd=1"), "takes no value: fd=1"},
    {IN_STEP("GET k fd="), "takes no value: fd="},
    {IN_STEP("GET k lease"), "lease where lease is to be a number from 1 to 4294967295"},
    {IN_STEP("GET k lease="), "lease= where"},
    {IN_STEP("GET k lease=0"), "lease=0 where lease is to be a number from 1 to 4294967295"},
    {IN_STEP("GET k lease=-1"), "lease=-1 where"},
    {IN_STEP("GET k lease=+1"), "number from 1"},
    {IN_STEP("GET k lease=1.5"), "number from 1"},
    {IN_STEP("GET k lease=0x10"), "number from 1"},
    {IN_STEP("GET k lease=1=1"), "number from 1"},
    {IN_STEP("GET k lease=5\0"), "number from 1"},
    {IN_STEP("GET k lease=4294967296"), "to 4294967295"},
    {IN_STEP("GET k lease=18446744073709551617"), "to 4294967295"},
    {IN_STEP("GET k cost=5"), "unknown word cost=5"},
    {IN_STEP("HEAD k fd"), "unknown word fd; usage: HEAD key"},
    {IN_STEP("DELETE k k"), "unknown word k"},
    {IN_STEP("PREFIX a b"), "unknown word b; usage: PREFIX [prefix]"},
    {IN_STEP("PREFIX \xff"), "written %XX"},
    {IN_STEP("CLEAR k"), "unknown word k; usage: CLEAR"},
    {IN_STEP("INSPECT json"), "unknown word json"},
    {IN_STEP("PERSIST now"), "unknown word now"},
    {IN_STEP("PING PING"), "unknown word PING"},
    {IN_STEP("HELP GET"), "unknown word GET"},
    {IN_STEP("QUIT 1"), "unknown word 1"},

    {SKIPS("PUT k 5 foo", 6), "unknown word foo; usage: PUT key length"},
    {SKIPS("PUT k 0 foo", 1), "unknown word foo"},
    {SKIPS("PUT k 5 ttl=0", 6), "ttl=0 where ttl is to be a number from 1 to 4294967295"},
    {SKIPS("PUT k 5 ttl=4294967296", 6), "ttl"},
    {SKIPS("PUT k 5 ttl", 6), "ttl"},
    {SKIPS("PUT k 5 cost=4294967296", 6), "cost is to be a number from 0 to 4294967295"},
    {SKIPS("PUT k 5 cost=-1", 6), "cost=-1"},
    {SKIPS("PUT k 5 cost", 6), "cost"},
    {SKIPS("PUT k 5 cost=1.5", 6), "cost=1.5"},
    {SKIPS("PUT k 5 cost=1 cost=1", 6), "repeated option cost=1"},
    {SKIPS("PUT k 5 flags=4294967296", 6), "number from 0 to 4294967295"},
    {SKIPS("PUT k 5 flags=-1", 6), "flags=-1"},
    {SKIPS("PUT k 5 flags=1 flags=1", 6), "repeated option flags=1"},
    {SKIPS("PUT k 5 overwrite=1", 6), "takes no value"},
    {SKIPS("PUT k 5 overwrite overwrite", 6), "repeated option"},
    {SKIPS("PUT k 5 lease=5", 6), "unknown word lease=5"},
    {SKIPS("PUT k 5 length=5", 6), "unknown word length=5"},
    {SKIPS("PUT k 5 fd=1", 6), "takes no value: fd=1"},
    {SKIPS("PUT k 5 ", 6), "space"},
    {SKIPS("PUT k 5  ttl=5", 6), "space"},
    {SKIPS("PUT  5", 6), "space"},
    {SKIPS("PUT %zz 5", 6), "written %XX"},
    {SKIPS("PUT \xff 5", 6), "written %XX"},
    {SKIPS("PUT k 00000000000000000000000000005 x", 6), "unknown word x"},
    {SKIPS("PUT k 18446744073709551614 x", UINT64_MAX), "unknown word x"},
    {SKIPS("PUT fd 5 x", 6), "unknown word x"},
    {SKIPS("PUT k 5 x fd", 0), "unknown word x"},
    {SKIPS("PUT k 5 fd x", 0), "unknown word x"},
    {SKIPS("PUT k 5 fd fd", 0), "repeated option fd"},
    {SKIPS("PUT k 5  fd", 0), "space"},
    {SKIPS("PUT %zz 5 fd", 0), "written %XX"},
    {SKIPS("PUT k 18446744073709551615 fd", 0), "length is to be a number"},

    {LOST("PUT"), "key is missing"},
    {LOST("PUT "), "space"},
    {LOST("PUT k"), "length is missing after PUT; usage: PUT key length"},
    {LOST("PUT k "), "space"},
    {LOST("PUT k x"), "x where length is to be a number"},
    {LOST("PUT k fd"), "fd where length"},
    {LOST("PUT k ttl=5 5"), "length is to be a number"},
    {LOST("PUT k -1"), "length is to be a number"},
    {LOST("PUT k +1"), "length is to be a number"},
    {LOST("PUT k 1e3"), "length is to be a number"},
    {LOST("PUT k 0x10"), "length is to be a number"},
    {LOST("PUT k 5\t"), "length is to be a number"},
    {LOST("PUT k 5\0"), "length is to be a number"},
    {LOST("PUT k x fd"), "length is to be a number"},
    {LOST("PUT k 18446744073709551615"), "to 18446744073709551614"},
    {LOST("PUT k 18446744073709551616"), "to 18446744073709551614"},
    {LOST("PUT k 99999999999999999999999"), "to 18446744073709551614"},
    {LOST("PUT k  5"), "space"},
    {LOST("PUT  k 5"), "space"},
    {LOST("PUT %zz x"), "written %XX"},
};

static void check_bad(const struct bad *row)
{
    struct parsed parsed = parse_request(row->line, row->length);
    ck_assert_msg(parsed.result == row->result, "%d for %s", parsed.result, row->line);
    ck_assert_int_eq(parsed.reply.kind, REPLY_ERROR);
    ck_assert_int_eq(parsed.reply.error, ERROR_SYNTAX);
    ck_assert_msg(strstr(parsed.reply.text, row->says) != NULL, "\"%s\" says not \"%s\"",
                  parsed.reply.text, row->says);
    assert_printable(parsed.reply.text);
    if (row->result != LINE_BAD)
        return;
    ck_assert_uint_eq(parsed.used, row->length);
    ck_assert_msg(parsed.skip == row->skip, "skip %llu for %s", (unsigned long long)parsed.skip,
                  row->line);
}

START_TEST(bad_requests)
{
    for (size_t i = 0; i < ROWS(bad); i++)
        check_bad(&bad[i]);
}
END_TEST

static void check_mutants(uint8_t byte)
{
    static const char line[] = "PUT key 5 flags=1 ttl=2 overwrite\n";
    for (size_t at = 0; at < sizeof(line) - 2; at++) {
        char mutant[sizeof(line)];
        memcpy(mutant, line, sizeof(line));
        mutant[at] = (char)byte;
        struct parsed parsed = parse_request(mutant, sizeof(line) - 1);
        if (parsed.result == LINE_OK)
            continue;
        ck_assert_int_ne(parsed.result, LINE_MORE);
        assert_printable(parsed.reply.text);
        char out[LINE_MAX_BYTES];
        size_t length = line_format_reply(out, sizeof(out), &parsed.reply);
        ck_assert_uint_gt(length, sizeof("ERROR syntax"));
        struct parsed back = parse_reply(out, length);
        ck_assert_int_eq(back.result, LINE_OK);
        assert_same_reply(&back.reply, &parsed.reply);
    }
}

/* Every byte at every place of a line: what is refused is answered in printable text. */
START_TEST(no_text_echoes_raw_bytes)
{
    for (int byte = 0; byte < 256; byte++)
        check_mutants((uint8_t)byte);
}
END_TEST

/* The longest word that is quoted, with the longest usage: the advice is not cut. */
START_TEST(texts_hold_the_whole_usage)
{
    static const char *const lines[] = {
        "PUT k 5 \x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\n",
        "PUT k 5 fd=\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\n",
        "PUT k 5 ttl=1 ttl=\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\n",
        "PUT k 5 ttl=00000000000000000001 \n",
    };
    static const char usage[] =
        "; usage: PUT key length [flags=N] [ttl=SECONDS] [cost=MS] [overwrite] [fd]";
    for (size_t i = 0; i < ROWS(lines); i++) {
        struct parsed parsed = parse_request(lines[i], strlen(lines[i]));
        ck_assert_int_eq(parsed.result, LINE_BAD);
        size_t length = strlen(parsed.reply.text);
        ck_assert_uint_gt(length, sizeof(usage));
        ck_assert_str_eq(parsed.reply.text + length - (sizeof(usage) - 1), usage);
    }
}
END_TEST

/* A line of size bytes with its LF, in memory of exactly that size. */
static char *line_of_size(const char *begin, size_t size)
{
    char *line = malloc(size);
    ck_assert_ptr_nonnull(line);
    memset(line, 'x', size);
    memcpy(line, begin, strlen(begin));
    line[size - 1] = '\n';
    return line;
}

START_TEST(lines_of_the_greatest_size)
{
    for (size_t size = LINE_MAX_BYTES - 1; size <= LINE_MAX_BYTES + 1; size++) {
        char *line = line_of_size("PING ", size);
        struct parsed parsed = parse_request(line, size);
        if (size <= LINE_MAX_BYTES) {
            ck_assert_int_eq(parsed.result, LINE_BAD);
            ck_assert_int_eq(parsed.reply.error, ERROR_SYNTAX);
            ck_assert_uint_eq(parsed.used, size);
            ck_assert_uint_eq(parsed.skip, 0);
        } else {
            ck_assert_int_eq(parsed.result, LINE_LOST);
            ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);
        }
        free(line);
    }
}
END_TEST

START_TEST(lines_without_an_end)
{
    char *line = line_of_size("PING ", LINE_MAX_BYTES + 2);
    ck_assert_int_eq(parse_request(line, LINE_MAX_BYTES - 1).result, LINE_MORE);
    struct parsed parsed = parse_request(line, LINE_MAX_BYTES);
    ck_assert_int_eq(parsed.result, LINE_LOST);
    ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);
    assert_printable(parsed.reply.text);
    ck_assert_int_eq(parse_request(line, LINE_MAX_BYTES + 1).result, LINE_LOST);
    ck_assert_int_eq(parse_reply(line, LINE_MAX_BYTES - 1).result, LINE_MORE);
    ck_assert_int_eq(parse_reply(line, LINE_MAX_BYTES).result, LINE_LOST);
    free(line);
}
END_TEST

START_TEST(a_carriage_return_counts)
{
    char *line = line_of_size("PING ", LINE_MAX_BYTES + 1);
    line[LINE_MAX_BYTES - 1] = '\r';
    ck_assert_int_eq(parse_request(line, LINE_MAX_BYTES + 1).result, LINE_LOST);
    line[LINE_MAX_BYTES - 2] = '\r';
    line[LINE_MAX_BYTES - 1] = '\n';
    ck_assert_int_eq(parse_request(line, LINE_MAX_BYTES).result, LINE_BAD);
    free(line);
}
END_TEST

/* A request whose key has length bytes, each of them 'k' or an escaped 0. */
static size_t write_long_key(char *line, const char *verb, size_t length, bool escaped,
                             const char *end)
{
    size_t at = (size_t)sprintf(line, "%s ", verb);
    for (size_t i = 0; i < length; i++)
        at += (size_t)sprintf(line + at, "%s", escaped ? "%00" : "k");
    return at + (size_t)sprintf(line + at, "%s\n", end);
}

START_TEST(keys_of_the_greatest_length)
{
    char line[LINE_MAX_BYTES];
    for (int escaped = 0; escaped <= 1; escaped++) {
        size_t length = write_long_key(line, "GET", MESSAGE_KEY_MAX, escaped, " lease=9 fd");
        struct parsed parsed = parse_request(line, length);
        ck_assert_int_eq(parsed.result, LINE_OK);
        ck_assert_uint_eq(parsed.request.key_length, MESSAGE_KEY_MAX);
        ck_assert_uint_eq(parsed.request.key[MESSAGE_KEY_MAX - 1], escaped ? 0 : 'k');
        assert_formats_request(&parsed.request, line, length);

        length = write_long_key(line, "GET", MESSAGE_KEY_MAX + 1, escaped, " lease=9 fd");
        parsed = parse_request(line, length);
        ck_assert_int_eq(parsed.result, LINE_BAD);
        ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);
        ck_assert_uint_eq(parsed.used, length);
        ck_assert_uint_eq(parsed.skip, 0);
    }
}
END_TEST

START_TEST(a_key_too_long_loses_no_step)
{
    char line[LINE_MAX_BYTES];
    size_t length = write_long_key(line, "PUT", MESSAGE_KEY_MAX + 1, false, " 77 overwrite");
    struct parsed parsed = parse_request(line, length);
    ck_assert_int_eq(parsed.result, LINE_BAD);
    ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);
    ck_assert_uint_eq(parsed.skip, 78);

    length = write_long_key(line, "PUT", MESSAGE_KEY_MAX + 1, false, " 77 fd");
    parsed = parse_request(line, length);
    ck_assert_int_eq(parsed.result, LINE_BAD);
    ck_assert_uint_eq(parsed.skip, 0);

    length = write_long_key(line, "PUT", MESSAGE_KEY_MAX + 1, false, "");
    parsed = parse_request(line, length);
    ck_assert_int_eq(parsed.result, LINE_LOST);
    ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);

    length = write_long_key(line, "PREFIX", MESSAGE_KEY_MAX + 1, true, "");
    parsed = parse_request(line, length);
    ck_assert_int_eq(parsed.result, LINE_BAD);
    ck_assert_int_eq(parsed.reply.error, ERROR_TOO_LARGE);
}
END_TEST

static void cut_request(const char *line, size_t length)
{
    for (size_t cut = 0; cut < length; cut++)
        ck_assert_int_eq(parse_request(line, cut).result, LINE_MORE);
    ck_assert_int_ne(parse_request(line, length).result, LINE_MORE);
    ck_assert_uint_eq(parse_request(line, length).used, length);
}

START_TEST(requests_cut_anywhere)
{
    char line[128];
    for (size_t i = 0; i < ROWS(good); i++) {
        cut_request(line, (size_t)snprintf(line, sizeof(line), "%s\n", good[i].line));
        cut_request(line, (size_t)snprintf(line, sizeof(line), "%s\r\n", good[i].line));
    }
}
END_TEST

START_TEST(a_long_request_cut_anywhere)
{
    char line[LINE_MAX_BYTES];
    cut_request(line, write_long_key(line, "PUT", MESSAGE_KEY_MAX, true, " 5 ttl=5"));
}
END_TEST

struct good_reply {
    const char *line;
    const char *canonical;
    struct reply reply;
};

static const struct good_reply good_replies[] = {
    {"VALUE 0", NULL, {.kind = REPLY_VALUE}},
    {"VALUE 12", NULL, {.kind = REPLY_VALUE, .length = 12}},
    {"VALUE 012", "VALUE 12", {.kind = REPLY_VALUE, .length = 12}},
    {"VALUE 18446744073709551614", NULL, {.kind = REPLY_VALUE, .length = UINT64_MAX - 1}},
    {"VALUE 5 flags=4294967295", NULL, {.kind = REPLY_VALUE, .length = 5, .flags = UINT32_MAX}},
    {"VALUE 5 flags=0", "VALUE 5", {.kind = REPLY_VALUE, .length = 5}},
    {"VALUE 5 ttl=1", NULL, {.kind = REPLY_VALUE, .length = 5, .ttl = 1}},
    {"VALUE 5 ttl=2 flags=1",
     "VALUE 5 flags=1 ttl=2",
     {.kind = REPLY_VALUE, .length = 5, .flags = 1, .ttl = 2}},
    {"FD 5 offset=0", NULL, {.kind = REPLY_FD, .length = 5}},
    {"FD 5 offset=18446744073709551615 flags=1 ttl=4294967295",
     NULL,
     {.kind = REPLY_FD, .length = 5, .offset = UINT64_MAX, .flags = 1, .ttl = UINT32_MAX}},
    {"FD 5 flags=1 offset=4096",
     "FD 5 offset=4096 flags=1",
     {.kind = REPLY_FD, .length = 5, .offset = 4096, .flags = 1}},
    {"SIZE 7", NULL, {.kind = REPLY_SIZE, .length = 7}},
    {"SIZE 7 flags=3 ttl=4", NULL, {.kind = REPLY_SIZE, .length = 7, .flags = 3, .ttl = 4}},
    {"MISS", NULL, {.kind = REPLY_MISS}},
    {"MISS lease", NULL, {.kind = REPLY_MISS, .lease = true}},
    {"STORED", NULL, {.kind = REPLY_STORED}},
    {"EXISTS", NULL, {.kind = REPLY_EXISTS}},
    {"DELETED", NULL, {.kind = REPLY_DELETED}},
    {"OK", NULL, {.kind = REPLY_OK}},
    {"OK entries=0", NULL, {.kind = REPLY_OK, .has_entries = true}},
    {"OK entries=18446744073709551615",
     NULL,
     {.kind = REPLY_OK, .has_entries = true, .entries = UINT64_MAX}},
    {"OK volatile", NULL, {.kind = REPLY_OK, .is_volatile = true}},
    {"ERROR syntax what", NULL, {.kind = REPLY_ERROR, .error = ERROR_SYNTAX, .text = "what"}},
    {"ERROR too-large a b  c ",
     NULL,
     {.kind = REPLY_ERROR, .error = ERROR_TOO_LARGE, .text = "a b  c "}},
    {"ERROR no-space x", NULL, {.kind = REPLY_ERROR, .error = ERROR_NO_SPACE, .text = "x"}},
    {"ERROR denied x", NULL, {.kind = REPLY_ERROR, .error = ERROR_DENIED, .text = "x"}},
    {"ERROR unavailable x", NULL, {.kind = REPLY_ERROR, .error = ERROR_UNAVAILABLE, .text = "x"}},
    {"ERROR timeout x", NULL, {.kind = REPLY_ERROR, .error = ERROR_TIMEOUT, .text = "x"}},
    {"ERROR busy x", NULL, {.kind = REPLY_ERROR, .error = ERROR_BUSY, .text = "x"}},
    {"ERROR internal x", NULL, {.kind = REPLY_ERROR, .error = ERROR_INTERNAL, .text = "x"}},
    {"ERROR busy", NULL, {.kind = REPLY_ERROR, .error = ERROR_BUSY, .text = ""}},
    {"ERROR busy  x", NULL, {.kind = REPLY_ERROR, .error = ERROR_BUSY, .text = " x"}},
    {"ERROR busy a\x1b[31m\xc3\xa9",
     "ERROR busy a?[31m??",
     {.kind = REPLY_ERROR, .error = ERROR_BUSY, .text = "a?[31m??"}},
};

static void check_good_reply(const struct good_reply *row, const char *end)
{
    char line[128];
    size_t length = (size_t)snprintf(line, sizeof(line), "%s%s", row->line, end);
    struct parsed parsed = parse_reply(line, length);
    ck_assert_msg(parsed.result == LINE_OK, "%d for %s", parsed.result, line);
    ck_assert_uint_eq(parsed.used, length);
    assert_same_reply(&parsed.reply, &row->reply);
    for (size_t cut = 0; cut < length; cut++)
        ck_assert_int_eq(parse_reply(line, cut).result, LINE_MORE);

    length = (size_t)snprintf(line, sizeof(line), "%s\n", row->canonical ?: row->line);
    assert_formats_reply(&parsed.reply, line, length);
}

START_TEST(replies)
{
    for (size_t i = 0; i < ROWS(good_replies); i++) {
        check_good_reply(&good_replies[i], "\n");
        check_good_reply(&good_replies[i], "\r\n");
    }
}
END_TEST

static const char *const bad_replies[] = {
    "",
    " ",
    "\r",
    "value 5",
    "VALUE",
    "VALUE ",
    "VALUE x",
    "VALUE -5",
    "VALUE  5",
    "VALUE 5 ",
    "VALUE 18446744073709551615",
    "VALUE 5 fd",
    "VALUE 5 ttl=0",
    "VALUE 5 ttl",
    "VALUE 5 offset=1",
    "VALUE 5 flags=4294967296",
    "VALUE 5 flags=1 flags=1",
    "VALUES 5",
    "FD 5",
    "FD 5 offset",
    "FD 5 offset=",
    "FD 5 offset=-1",
    "FD offset=5 5",
    "FD 5 offset=18446744073709551616",
    "FD 5 offset=1 offset=1",
    "SIZE",
    "SIZE 5 x",
    "MISS lease=5",
    "MISS lease lease",
    "MISS x",
    "MISSED",
    "STORED x",
    "EXISTS ",
    "DELETED 1",
    "OK entries",
    "OK entries=",
    "OK entries=x",
    "OK volatile=1",
    "OK 5",
    "OK ",
    "ERROR",
    "ERROR ",
    "ERROR what text",
    "ERROR busy ",
    "ERROR  busy",
    "ERROR BUSY x",
    "ERRORS busy",
    "GET k",
    "HTTP/1.1 400 Bad Request",
};

START_TEST(what_is_no_reply)
{
    for (size_t i = 0; i < ROWS(bad_replies); i++) {
        char line[128];
        size_t length = (size_t)snprintf(line, sizeof(line), "%s\n", bad_replies[i]);
        ck_assert_msg(parse_reply(line, length).result == LINE_LOST, "not LINE_LOST: %s", line);
    }
}
END_TEST

START_TEST(a_long_error_text_is_cut)
{
    char line[LINE_MAX_BYTES];
    memset(line, 'x', sizeof(line));
    memcpy(line, STRING("ERROR busy "));
    line[LINE_MAX_BYTES - 1] = '\n';
    struct parsed parsed = parse_reply(line, sizeof(line));
    ck_assert_int_eq(parsed.result, LINE_OK);
    ck_assert_uint_eq(parsed.used, sizeof(line));
    ck_assert_uint_eq(strlen(parsed.reply.text), MESSAGE_TEXT_MAX - 1);
}
END_TEST

static bool stands_for_itself(int byte)
{
    return byte >= 0x21 && byte <= 0x7E && byte != '%';
}

static void check_key_byte(uint8_t byte)
{
    char written[4], lower[4], out[3];
    uint8_t back;
    bool plain = stands_for_itself(byte);
    size_t length = (size_t)sprintf(written, plain ? "%c" : "%%%02X", byte);
    ck_assert_uint_eq(line_encode_key(out, sizeof(out), &byte, 1), length);
    ck_assert_mem_eq(out, written, length);
    ck_assert_uint_eq(line_encode_key(out, length - 1, &byte, 1), 0);

    ck_assert_int_eq(line_decode_key(&back, 1, written, length), 1);
    ck_assert_uint_eq(back, byte);
    sprintf(lower, "%%%02x", byte);
    ck_assert_int_eq(line_decode_key(&back, 1, lower, 3), 1);
    ck_assert_uint_eq(back, byte);
    ck_assert_int_eq(line_decode_key(&back, 1, (const char *)&byte, 1), plain ? 1 : -1);
}

/* At each of 24 places among plain bytes: it is seen wherever in a machine word it stands. */
static void check_places(uint8_t byte)
{
    bool plain = stands_for_itself(byte);
    for (size_t at = 0; at < 24; at++) {
        uint8_t key[24], back[24];
        char out[72];
        memset(key, 'k', sizeof(key));
        key[at] = byte;
        size_t length = line_encode_key(out, sizeof(out), key, sizeof(key));
        ck_assert_uint_eq(length, plain ? 24 : 26);
        ck_assert_int_eq(line_decode_key(back, sizeof(back), out, length), 24);
        ck_assert_mem_eq(back, key, sizeof(key));
        ssize_t raw = line_decode_key(back, sizeof(back), (const char *)key, sizeof(key));
        ck_assert_int_eq(raw, plain ? 24 : -1);
    }
}

START_TEST(each_byte_of_a_key)
{
    for (int byte = 0; byte < 256; byte++) {
        check_key_byte((uint8_t)byte);
        check_places((uint8_t)byte);
    }
}
END_TEST

START_TEST(a_key_of_all_bytes)
{
    uint8_t key[256], back[256];
    char out[3 * 256];
    for (int i = 0; i < 256; i++)
        key[i] = (uint8_t)i;
    size_t length = line_encode_key(out, sizeof(out), key, sizeof(key));
    ck_assert_uint_eq(length, 93 + 3 * 163);
    ck_assert_int_eq(line_decode_key(back, sizeof(back), out, length), 256);
    ck_assert_mem_eq(back, key, sizeof(key));
    ck_assert_int_eq(line_decode_key(back, 255, out, length), -2);
    for (size_t size = 0; size < length; size++)
        ck_assert_uint_eq(line_encode_key(out, size, key, sizeof(key)), 0);
}
END_TEST

/* A key that is longer than its room: nothing is written behind the end. */
START_TEST(keys_longer_than_their_room)
{
    static const char text[] = "%00kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
    const size_t bytes = sizeof(text) - 1 - 2;
    for (size_t size = 1; size <= bytes; size++) {
        uint8_t *key = malloc(size);
        ck_assert_ptr_nonnull(key);
        ssize_t got = line_decode_key(key, size, text, sizeof(text) - 1);
        ck_assert_int_eq(got, size < bytes ? -2 : (ssize_t)bytes);
        ck_assert_uint_eq(key[size - 1], size == 1 ? 0 : 'k');
        free(key);
    }
}
END_TEST

START_TEST(keys_of_no_bytes)
{
    uint8_t key[1];
    char out[1];
    ck_assert_int_eq(line_decode_key(key, 1, "", 0), 0);
    ck_assert_int_eq(line_decode_key(key, 0, "k", 1), -2);
    ck_assert_uint_eq(line_encode_key(out, 1, key, 0), 0);
}
END_TEST

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* 0, 1, the greatest, or anything below. */
static uint64_t random_number(uint64_t *state, uint64_t max)
{
    uint64_t choice = random_next(state);
    if (choice % 4 < 2)
        return choice % 4;
    return choice % 4 == 2 ? max : random_next(state) % max >> random_next(state) % 64;
}

static void random_key(uint64_t *state, struct request *request, uint32_t least)
{
    uint64_t size = random_next(state) % 8 == 0 ? MESSAGE_KEY_MAX : 40;
    request->key_length = least + (uint32_t)(random_next(state) % (size + 1 - least));
    bool plain = random_next(state) % 2;
    for (uint32_t i = 0; i < request->key_length; i++)
        request->key[i] =
            plain ? (uint8_t)('a' + random_next(state) % 26) : (uint8_t)random_next(state);
}

static void random_request(uint64_t *state, struct request *request)
{
    memset(request, 0, sizeof(*request));
    request->verb = (enum verb)(random_next(state) % VERB_COUNT);
    if (request->verb <= VERB_PREFIX)
        random_key(state, request, request->verb == VERB_PREFIX ? 0 : 1);
    if (request->verb == VERB_GET) {
        request->lease = (uint32_t)random_number(state, UINT32_MAX);
        request->fd = random_next(state) % 2;
    } else if (request->verb == VERB_PUT) {
        request->length = random_number(state, UINT64_MAX - 1);
        request->flags = (uint32_t)random_number(state, UINT32_MAX);
        request->ttl = (uint32_t)random_number(state, UINT32_MAX);
        request->has_cost = random_next(state) % 2;
        if (request->has_cost)
            request->cost = (uint32_t)random_number(state, UINT32_MAX);
        request->overwrite = random_next(state) % 2;
        request->fd = random_next(state) % 2;
    }
}

START_TEST(random_requests)
{
    uint64_t state = 0x9E3779B97F4A7C15;
    struct request request;
    for (int i = 0; i < RANDOM_ROUNDS; i++) {
        char line[LINE_MAX_BYTES];
        random_request(&state, &request);
        size_t length = line_format_request(line, sizeof(line), &request);
        ck_assert_uint_gt(length, 0);
        struct parsed parsed = parse_request(line, length);
        ck_assert_int_eq(parsed.result, LINE_OK);
        ck_assert_uint_eq(parsed.used, length);
        assert_same_request(&parsed.request, &request);
    }
}
END_TEST

static void random_text(uint64_t *state, char *text)
{
    size_t length = random_next(state) % MESSAGE_TEXT_MAX;
    for (size_t i = 0; i < length; i++)
        text[i] = (char)(0x20 + random_next(state) % 0x5F);
    text[length] = '\0';
}

static void random_reply(uint64_t *state, struct reply *reply)
{
    memset(reply, 0, sizeof(*reply));
    reply->kind = (enum reply_kind)(random_next(state) % (REPLY_ERROR + 1));
    if (reply->kind <= REPLY_SIZE) {
        reply->length = random_number(state, UINT64_MAX - 1);
        reply->flags = (uint32_t)random_number(state, UINT32_MAX);
        reply->ttl = (uint32_t)random_number(state, UINT32_MAX);
    }
    if (reply->kind == REPLY_FD)
        reply->offset = random_number(state, UINT64_MAX);
    if (reply->kind == REPLY_MISS)
        reply->lease = random_next(state) % 2;
    if (reply->kind == REPLY_OK)
        reply->is_volatile = random_next(state) % 2;
    if (reply->kind == REPLY_OK && !reply->is_volatile)
        reply->has_entries = random_next(state) % 2;
    if (reply->has_entries)
        reply->entries = random_number(state, UINT64_MAX);
    if (reply->kind == REPLY_ERROR) {
        reply->error = (enum error_code)(random_next(state) % ERROR_CODE_COUNT);
        random_text(state, reply->text);
    }
}

START_TEST(random_replies)
{
    uint64_t state = 0xD1B54A32D192ED03;
    struct reply reply;
    for (int i = 0; i < RANDOM_ROUNDS; i++) {
        char line[LINE_MAX_BYTES];
        random_reply(&state, &reply);
        size_t length = line_format_reply(line, sizeof(line), &reply);
        ck_assert_uint_gt(length, 0);
        struct parsed parsed = parse_reply(line, length);
        ck_assert_int_eq(parsed.result, LINE_OK);
        ck_assert_uint_eq(parsed.used, length);
        assert_same_reply(&parsed.reply, &reply);
    }
}
END_TEST

/* One byte less than a line needs: nothing is written behind the end, and 0 says so. */
START_TEST(room_too_small)
{
    uint64_t state = 0xBF58476D1CE4E5B9;
    struct request request;
    struct reply reply;
    for (int i = 0; i < 40; i++) {
        char whole[LINE_MAX_BYTES];
        random_request(&state, &request);
        size_t length = line_format_request(whole, sizeof(whole), &request);
        for (size_t size = 0; size <= length; size++) {
            char *out = malloc(size == 0 ? 1 : size);
            ck_assert_uint_eq(line_format_request(out, size, &request), size < length ? 0 : length);
            free(out);
        }
        random_reply(&state, &reply);
        length = line_format_reply(whole, sizeof(whole), &reply);
        for (size_t size = 0; size <= length; size++) {
            char *out = malloc(size == 0 ? 1 : size);
            ck_assert_uint_eq(line_format_reply(out, size, &reply), size < length ? 0 : length);
            free(out);
        }
    }
}
END_TEST

START_TEST(messages_that_are_none)
{
    char out[LINE_MAX_BYTES];
    static const enum verb with_key[] = {VERB_GET, VERB_PUT, VERB_HEAD, VERB_DELETE};
    for (size_t i = 0; i < 4; i++) {
        struct request request = make_request(with_key[i], "");
        ck_assert_uint_eq(line_format_request(out, sizeof(out), &request), 0);
        request.key_length = MESSAGE_KEY_MAX + 1;
        ck_assert_uint_eq(line_format_request(out, sizeof(out), &request), 0);
    }
    struct request request = make_request(VERB_PREFIX, "");
    request.key_length = MESSAGE_KEY_MAX + 1;
    ck_assert_uint_eq(line_format_request(out, sizeof(out), &request), 0);
    request = make_request(VERB_COUNT, "k");
    ck_assert_uint_eq(line_format_request(out, sizeof(out), &request), 0);
    request = make_request(VERB_PUT, "k");
    request.length = UINT64_MAX;
    ck_assert_uint_eq(line_format_request(out, sizeof(out), &request), 0);

    struct reply reply = {.kind = (enum reply_kind)(REPLY_ERROR + 1)};
    ck_assert_uint_eq(line_format_reply(out, sizeof(out), &reply), 0);
    reply = (struct reply){.kind = REPLY_VALUE, .length = UINT64_MAX};
    ck_assert_uint_eq(line_format_reply(out, sizeof(out), &reply), 0);
}
END_TEST

START_TEST(fields_of_other_verbs_are_not_written)
{
    struct request request = make_request(VERB_PING, "k");
    request.lease = request.ttl = request.flags = 5;
    request.fd = request.overwrite = request.has_cost = true;
    request.cost = 6;
    request.length = 7;
    assert_formats_request(&request, STRING("PING\n"));
    request.verb = VERB_HEAD;
    assert_formats_request(&request, STRING("HEAD k\n"));
    request.verb = VERB_GET;
    assert_formats_request(&request, STRING("GET k lease=5 fd\n"));
    request.verb = VERB_PUT;
    assert_formats_request(&request, STRING("PUT k 7 flags=5 ttl=5 cost=6 overwrite fd\n"));

    struct reply reply = {.kind = REPLY_STORED, .length = 5, .flags = 5, .lease = true};
    assert_formats_reply(&reply, STRING("STORED\n"));
}
END_TEST

START_TEST(an_error_is_never_written_raw)
{
    struct reply reply = {.kind = REPLY_ERROR, .error = ERROR_BUSY};
    memset(reply.text, '\n', sizeof(reply.text));
    char out[LINE_MAX_BYTES], wanted[LINE_MAX_BYTES] = "ERROR busy ";
    memset(wanted + 11, '?', MESSAGE_TEXT_MAX - 1);
    wanted[11 + MESSAGE_TEXT_MAX - 1] = '\n';
    ck_assert_uint_eq(line_format_reply(out, sizeof(out), &reply), 11 + MESSAGE_TEXT_MAX);
    ck_assert_mem_eq(out, wanted, 11 + MESSAGE_TEXT_MAX);
}
END_TEST

START_TEST(errors_are_made_clean)
{
    struct reply reply;
    memset(&reply, 0xA5, sizeof(reply));
    message_error(&reply, ERROR_NO_SPACE, "%s=%d\n\x7f\xff~ ", "a\tb", 5);
    struct reply wanted = {.kind = REPLY_ERROR, .error = ERROR_NO_SPACE, .text = "a?b=5???~ "};
    assert_same_reply(&reply, &wanted);

    char text[2 * MESSAGE_TEXT_MAX];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    message_error(&reply, ERROR_BUSY, "%s", text);
    ck_assert_uint_eq(strlen(reply.text), MESSAGE_TEXT_MAX - 1);
}
END_TEST

START_TEST(names)
{
    static const char *const codes[] = {"syntax",      "too-large", "no-space", "denied",
                                        "unavailable", "timeout",   "busy",     "internal"};
    ck_assert_uint_eq(ROWS(codes), ERROR_CODE_COUNT);
    for (int i = 0; i < ERROR_CODE_COUNT; i++)
        ck_assert_str_eq(message_error_name((enum error_code)i), codes[i]);
    ck_assert_str_eq(message_error_name(ERROR_CODE_COUNT), "internal");
    ck_assert_str_eq(message_verb_name(VERB_COUNT), "UNKNOWN");
}
END_TEST

/* A line for each verb, in their order, beginning with what the codec writes for it. */
START_TEST(help)
{
    const char *at = line_help();
    for (int i = 0; i < VERB_COUNT; i++) {
        char out[LINE_MAX_BYTES];
        struct request request = make_request((enum verb)i, "k");
        ck_assert_uint_gt(line_format_request(out, sizeof(out), &request), 0);
        const char *name = message_verb_name((enum verb)i);
        size_t length = strlen(name);
        ck_assert_msg(strncmp(at, name, length) == 0 && at[length] == ' ', "%s: %s", name, at);
        ck_assert_msg(strncmp(out, name, length) == 0, "%s: %s", name, out);
        at = strchr(at, '\n');
        ck_assert_ptr_nonnull(at);
        at++;
    }
    ck_assert_str_eq(at, "");
    ck_assert_ptr_nonnull(strstr(line_help(), "GET key [lease=SECONDS] [fd] "));
    ck_assert_ptr_nonnull(
        strstr(line_help(), "PUT key length [flags=N] [ttl=SECONDS] [cost=MS] [overwrite] [fd] "));
}
END_TEST

static void request_tests(Suite *suite)
{
    TCase *tests = suite_case(suite, "requests", TIMEOUT_SECONDS);
    tcase_add_test(tests, good_requests);
    tcase_add_test(tests, bad_requests);
    tcase_add_test(tests, requests_cut_anywhere);
    tcase_add_test(tests, a_long_request_cut_anywhere);
    tcase_add_test(tests, only_the_key_s_bytes_are_written);
    tcase_add_test(tests, only_the_first_line_counts);
    tcase_add_test(tests, no_text_echoes_raw_bytes);
    tcase_add_test(tests, texts_hold_the_whole_usage);
    tcase_add_test(tests, lines_of_the_greatest_size);
    tcase_add_test(tests, lines_without_an_end);
    tcase_add_test(tests, a_carriage_return_counts);
    tcase_add_test(tests, keys_of_the_greatest_length);
    tcase_add_test(tests, a_key_too_long_loses_no_step);
}

static void key_tests(Suite *suite)
{
    TCase *tests = suite_case(suite, "keys", TIMEOUT_SECONDS);
    tcase_add_test(tests, each_byte_of_a_key);
    tcase_add_test(tests, a_key_of_all_bytes);
    tcase_add_test(tests, keys_longer_than_their_room);
    tcase_add_test(tests, keys_of_no_bytes);
}

static void message_tests(Suite *suite)
{
    TCase *tests = suite_case(suite, "messages", TIMEOUT_SECONDS);
    tcase_add_test(tests, replies);
    tcase_add_test(tests, what_is_no_reply);
    tcase_add_test(tests, a_long_error_text_is_cut);
    tcase_add_test(tests, random_requests);
    tcase_add_test(tests, random_replies);
    tcase_add_test(tests, room_too_small);
    tcase_add_test(tests, messages_that_are_none);
    tcase_add_test(tests, fields_of_other_verbs_are_not_written);
    tcase_add_test(tests, an_error_is_never_written_raw);
    tcase_add_test(tests, errors_are_made_clean);
    tcase_add_test(tests, names);
    tcase_add_test(tests, help);
}

int main(void)
{
    Suite *suite = suite_create("line");
    request_tests(suite);
    key_tests(suite);
    message_tests(suite);
    return suite_run(suite);
}
