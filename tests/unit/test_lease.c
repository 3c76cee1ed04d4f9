/*
 * Leases without a store or a socket: who is granted one, who waits, and that everybody who waits
 * is told exactly once, whatever ends the lease.
 */
#include "suite.h"

#include "../../daemon/clock.h"
#include "../../daemon/container_of.h"
#include "../../daemon/lease.h"

#include <pthread.h>
#include <string.h>

enum { WAIT_MS = 30000, MANY = 2000, LONG = 600, THREADS = 4, ROUNDS = 2000 };

/* A client: its session, and what it was told. */
struct client {
    struct lease_session session;
    unsigned told, granted, values;
    uint32_t length; /* of the last value */
};

static struct leases *leases;
static struct loop *loop;

static void on_ready(struct lease_session *session, bool granted, struct value *value)
{
    struct client *client = container_of(session, struct client, session);
    client->told++;
    client->granted += granted;
    if (value != NULL) {
        client->values++;
        client->length = value->length;
        value_unref(value);
    }
}

static void set_up(void)
{
    leases = leases_new();
    loop = loop_new(0);
    ck_assert_ptr_nonnull(leases);
    ck_assert_ptr_nonnull(loop);
}

static void tear_down(void)
{
    leases_free(leases);
    loop_free(loop);
    ck_assert_uint_eq(value_total(), 0);
}

static void begin(struct client *client)
{
    *client = (struct client){.told = 0};
    lease_session_start(&client->session, leases, loop, on_ready);
}

static void end(struct client *client)
{
    int64_t until = clock_now() + WAIT_MS;
    while (!lease_session_end(&client->session)) {
        ck_assert_int_lt(clock_now(), until);
        loop_step(loop, 10);
    }
}

static enum lease_answer ask_with(struct client *client, const char *key, uint64_t hash,
                                  uint32_t seconds, unsigned max)
{
    return lease_ask(&client->session, (const uint8_t *)key, strlen(key), hash, seconds, max);
}

static enum lease_answer ask(struct client *client, const char *key)
{
    return ask_with(client, key, 7, LONG, 8);
}

static void fulfil(const char *key, struct value *value)
{
    lease_fulfil(leases, (const uint8_t *)key, strlen(key), 7, value);
}

/* Runs the loop until the client has been told so often. */
static void wait_until_told(const struct client *client, unsigned times)
{
    int64_t until = clock_now() + WAIT_MS;
    while (client->told < times) {
        ck_assert_int_lt(clock_now(), until);
        loop_step(loop, 10);
    }
    ck_assert_uint_eq(client->told, times);
}

START_TEST(one_is_granted_and_the_others_get_what_comes)
{
    static struct client clients[MANY];
    struct value *value = value_new((const uint8_t *)"key", 3, 5);
    for (unsigned i = 0; i < MANY; i++)
        begin(&clients[i]);
    ck_assert(!lease_any(leases));
    ck_assert_int_eq(ask(&clients[0], "key"), LEASE_GRANTED);
    ck_assert(lease_any(leases));
    for (unsigned i = 1; i < MANY; i++)
        ck_assert_int_eq(ask(&clients[i], "key"), LEASE_WAIT);
    loop_step(loop, 0);
    ck_assert_uint_eq(clients[1].told, 0);
    fulfil("key", value);
    value_unref(value);
    ck_assert(!lease_any(leases));
    for (unsigned i = 1; i < MANY; i++) {
        wait_until_told(&clients[i], 1);
        ck_assert_uint_eq(clients[i].granted, 0);
        ck_assert_uint_eq(clients[i].length, 5);
    }
    ck_assert_uint_eq(clients[0].told, 0);
    for (unsigned i = 0; i < MANY; i++)
        end(&clients[i]);
}
END_TEST

START_TEST(what_came_without_a_value_is_to_be_looked_for_again)
{
    struct client holder, waiting;
    begin(&holder);
    begin(&waiting);
    ask(&holder, "key");
    ask(&waiting, "key");
    fulfil("key", NULL);
    wait_until_told(&waiting, 1);
    ck_assert_uint_eq(waiting.granted + waiting.values, 0);
    end(&holder);
    end(&waiting);
}
END_TEST

START_TEST(a_lease_is_of_one_key)
{
    struct client first, second;
    begin(&first);
    begin(&second);
    ck_assert_int_eq(ask(&first, "one"), LEASE_GRANTED);
    ck_assert_int_eq(ask(&second, "two"), LEASE_GRANTED); /* the same hash */
    fulfil("one", NULL);
    ck_assert(lease_any(leases)); /* the other's */
    end(&first);
    end(&second);
    ck_assert(!lease_any(leases));
}
END_TEST

START_TEST(it_passes_to_who_has_waited_longest)
{
    struct client clients[3];
    for (unsigned i = 0; i < 3; i++)
        begin(&clients[i]);
    ask(&clients[0], "key");
    ask(&clients[1], "key");
    ask(&clients[2], "key");
    lease_pass_on(leases, (const uint8_t *)"key", 3, 7);
    wait_until_told(&clients[1], 1);
    ck_assert_uint_eq(clients[1].granted, 1);
    ck_assert_uint_eq(clients[2].told, 0);
    end(&clients[1]); /* it leaves, and the last one has it */
    wait_until_told(&clients[2], 1);
    ck_assert_uint_eq(clients[2].granted, 1);
    end(&clients[0]);
    end(&clients[2]);
    ck_assert(!lease_any(leases));
}
END_TEST

START_TEST(who_leaves_the_line_is_not_granted_anything)
{
    struct client clients[3];
    for (unsigned i = 0; i < 3; i++)
        begin(&clients[i]);
    ask(&clients[0], "key");
    ask(&clients[1], "key");
    ask(&clients[2], "key");
    end(&clients[1]);
    end(&clients[0]);
    wait_until_told(&clients[2], 1);
    ck_assert_uint_eq(clients[2].granted, 1);
    ck_assert_uint_eq(clients[1].told, 0);
    end(&clients[2]);
}
END_TEST

START_TEST(it_ends_with_its_seconds)
{
    struct client holder, waiting;
    begin(&holder);
    begin(&waiting);
    ck_assert_int_eq(ask_with(&holder, "key", 7, 1, 8), LEASE_GRANTED);
    ck_assert_int_eq(ask(&waiting, "key"), LEASE_WAIT);
    wait_until_told(&waiting, 1);
    ck_assert_uint_eq(waiting.granted, 1);
    ck_assert_uint_eq(holder.told, 0);
    end(&holder);
    ck_assert(lease_any(leases));
    end(&waiting);
}
END_TEST

START_TEST(who_asks_again_has_it_renewed)
{
    struct client holder, waiting;
    begin(&holder);
    begin(&waiting);
    ck_assert_int_eq(ask_with(&holder, "key", 7, 1, 1), LEASE_GRANTED);
    ck_assert_int_eq(ask_with(&holder, "key", 7, LONG, 1), LEASE_GRANTED);
    ck_assert_int_eq(ask(&waiting, "key"), LEASE_WAIT);
    int64_t until = clock_now() + 1200; /* past the first one's end */
    while (clock_now() < until)
        loop_step(loop, 20);
    ck_assert_uint_eq(waiting.told, 0);
    end(&holder);
    wait_until_told(&waiting, 1);
    end(&waiting);
}
END_TEST

START_TEST(a_session_holds_no_more_than_it_may)
{
    struct client client;
    begin(&client);
    ck_assert_int_eq(ask_with(&client, "one", 1, LONG, 2), LEASE_GRANTED);
    ck_assert_int_eq(ask_with(&client, "two", 2, LONG, 2), LEASE_GRANTED);
    ck_assert_int_eq(ask_with(&client, "three", 3, LONG, 2), LEASE_REFUSED);
    lease_fulfil(leases, (const uint8_t *)"one", 3, 1, NULL);
    ck_assert_int_eq(ask_with(&client, "three", 3, LONG, 2), LEASE_GRANTED);
    ck_assert(lease_busy(&client.session));
    end(&client);
    ck_assert(!lease_any(leases));
}
END_TEST

/* Each thread has a loop and a client; all ask for one key and end it in one way or another. At any
 * time one holds it at most, and nobody is left waiting. */

static _Atomic int holders;
static _Atomic unsigned wrong;

static void *contend(void *arg)
{
    struct loop *own = loop_new((unsigned)(uintptr_t)arg + 1);
    struct client client = {.told = 0};
    unsigned seed = (unsigned)(uintptr_t)arg * 2654435761u + 1;
    lease_session_start(&client.session, leases, own, on_ready);
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned told = client.told, granted = client.granted;
        enum lease_answer answer = ask(&client, "key");
        int64_t until = clock_now() + WAIT_MS;
        while (answer == LEASE_WAIT && client.told == told && clock_now() < until)
            loop_step(own, 10);
        if (answer == LEASE_REFUSED || (answer == LEASE_WAIT && client.told != told + 1))
            atomic_fetch_add(&wrong, 1);
        if (answer != LEASE_GRANTED && client.granted == granted)
            continue;
        if (atomic_fetch_add(&holders, 1) != 0)
            atomic_fetch_add(&wrong, 1);
        seed = seed * 1103515245 + 12345;
        atomic_fetch_sub(&holders, 1);
        if (seed >> 16 & 1)
            fulfil("key", NULL);
        else
            lease_pass_on(leases, (const uint8_t *)"key", 3, 7);
    }
    while (!lease_session_end(&client.session))
        loop_step(own, 10);
    loop_free(own);
    return NULL;
}

START_TEST(one_at_a_time_holds_it_on_many_loops)
{
    pthread_t threads[THREADS];
    atomic_store(&holders, 0);
    atomic_store(&wrong, 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, contend, (void *)i), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(atomic_load(&wrong), 0);
    ck_assert(!lease_any(leases));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lease");
    TCase *tcase = suite_case(suite, "lease", 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, one_is_granted_and_the_others_get_what_comes);
    tcase_add_test(tcase, what_came_without_a_value_is_to_be_looked_for_again);
    tcase_add_test(tcase, a_lease_is_of_one_key);
    tcase_add_test(tcase, it_passes_to_who_has_waited_longest);
    tcase_add_test(tcase, who_leaves_the_line_is_not_granted_anything);
    tcase_add_test(tcase, it_ends_with_its_seconds);
    tcase_add_test(tcase, who_asks_again_has_it_renewed);
    tcase_add_test(tcase, a_session_holds_no_more_than_it_may);
    tcase_add_test(tcase, one_at_a_time_holds_it_on_many_loops);
    return suite_run(suite);
}
