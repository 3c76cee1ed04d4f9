/*
 * Between shim.so, which is loaded into the daemon and makes one of its system calls fail, and the
 * check that says which: a page that both have mapped.
 *
 * A failed sync is final for what it covered: the kernel takes the pages for written. The shim
 * therefore remembers what each page held when it was last synced, and writes the pages of a failed
 * sync into a second file, as struct fault_page. The check puts them back once the daemon has been
 * killed, as a loss of power would.
 */
#ifndef LIARA_TESTS_FAULT_H
#define LIARA_TESTS_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The environment of the daemon: the path of the page's file, and of that of lost pages. */
#define FAULT_CONTROL "LIARA_FAULT_CONTROL"
#define FAULT_LOST    "LIARA_FAULT_LOST"

enum fault_call {
    FAULT_WRITE,
    FAULT_FSYNC,
    FAULT_FDATASYNC,
    FAULT_SYNCFS,
    FAULT_SYNC_FILE_RANGE,
    FAULT_OPEN,
    FAULT_RENAME,
    FAULT_UNLINK,
    FAULT_MKDIR,
    FAULT_FTRUNCATE,
    FAULT_FALLOCATE,
    FAULT_MMAP,
    FAULT_CALLS,
};

enum { FAULT_SHORT = -1, FAULT_PAGE = 4096 };

/* Calls count if they are about files below `directory`, and of a kind whose bit is in `kinds`. The
 * call `nth`, from 1, fails, and all after it if for_good. */
struct fault_control {
    char directory[128];
    uint32_t kinds;
    uint32_t nth;
    bool for_good;
    int error; /* an errno, or FAULT_SHORT: a write writes half, other calls work */
    _Atomic uint32_t counted;
    _Atomic uint32_t failed;
    _Atomic uint32_t first_failed; /* an enum fault_call */
    char first_path[256];
};

/* The page of that inode has `bytes` on the disk if is_lost, else what the file says. */
struct fault_page {
    uint64_t inode, number;
    uint64_t is_lost;
    uint8_t bytes[FAULT_PAGE];
};

#endif
