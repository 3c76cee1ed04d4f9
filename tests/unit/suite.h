/*
 * What every test program of ours does around its cases: run them all, print the counts, fail where
 * one did. CK_FORK and the other variables of Check are respected.
 */
#ifndef LIARA_TESTS_SUITE_H
#define LIARA_TESTS_SUITE_H

#include <check.h>
#include <stdlib.h>

/* Runs the suite and frees it; returns what main() is to return. */
static inline int suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    int ran = srunner_ntests_run(runner);
    srunner_free(runner);
    return failed == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* A case with its time limit, in the suite. */
static inline TCase *suite_case(Suite *suite, const char *name, double seconds)
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, seconds);
    suite_add_tcase(suite, tcase);
    return tcase;
}

#endif
