/*
 * A disk in memory under the engine, to hold the writer to its promises before any format exists: a
 * log of records that can fail, lose what was not synced, and crash.
 *
 * One disk a process. It outlives the engine that uses it, as a disk does. The test's thread sets
 * faults while the engine runs.
 */
#ifndef LIARA_TESTS_FAKE_DISK_H
#define LIARA_TESTS_FAKE_DISK_H

#include "../daemon/store/engine/backing.h"

extern const struct backing_ops fake_disk_ops;

/* An empty disk without faults. */
void fake_disk_reset(void);

/* The power goes: what was not synced is lost, but for the first keep records of it (in the order
 * in which they were written). Until it is on again everything fails and changes nothing. */
void fake_disk_power_off(unsigned keep);
void fake_disk_power_on(void);

/* The next count appends, or syncs, fail with error; UINT_MAX: all. A failed sync loses what it was
 * to sync. 0: none. */
void fake_disk_fail_appends(unsigned count, int error);
void fake_disk_fail_syncs(unsigned count, int error);

/* Bytes that a record may have from here on; UINT64_MAX at first. */
void fake_disk_limit_records(uint64_t bytes);

/* While true, append() and sync() do not return. */
void fake_disk_hold(bool hold);

/* Counts since the reset. */
unsigned fake_disk_appends(void);
unsigned fake_disk_syncs(void);

/* Damages the record of this hash's newest value: reading it fails. */
void fake_disk_damage(const char *key);

#endif
