/*
 * How jemalloc, which the daemon is linked with, is to work for it. It reads this by itself.
 *
 * Large pages for all: with millions of small values most of a GET's time would go into finding
 * their pages. Few arenas, for the threads that allocate are few. What is freed is used again for
 * some seconds, so that large values do not each cost their pages anew, and is then given back by a
 * thread of jemalloc's own, which sleeps where there is nothing to give.
 */
__attribute__((visibility("default"))) extern const char *malloc_conf;

const char *malloc_conf = "thp:always,narenas:2,dirty_decay_ms:10000,muzzy_decay_ms:0,"
                          "background_thread:true,max_background_threads:1";
