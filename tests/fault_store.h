/*
 * Two backends that fail on command, beside the real ones: "fault", which works on the callers'
 * loops as redis does, and "fault-blocking", which works on threads as sqlite does. Both keep their
 * entries in a memory store. What is to go wrong stands in the key, so that a transcript can ask
 * for it:
 *
 *     !WORD[=ARGUMENT][!WORD…]/anything
 *
 *     delay=MS      finish that many milliseconds later
 *     hold=NAME     finish only once a PUT of a key with release=NAME comes (both on one loop or
 * not) release=NAME  a PUT: lets those go error=CODE    fail with this code, after the delay or
 * hold lose          a PUT: answers STORED and stores nothing rot           a GET: the entry is
 * there for HEAD, but can't be read: a miss commit=CODE   a PUT, fault-blocking alone: fails the
 * batch in which it is on=OP         only for this one: get, head, put, delete; a PUT with
 * on=persist, on=inspect or on=clear is stored nowhere, and its words are for the next request of
 * that kind
 *
 * A key that does not begin with '!' is served without a fault.
 */
#ifndef LIARA_FAULT_STORE_H
#define LIARA_FAULT_STORE_H

#include "../daemon/store/store.h"

extern const struct store_ops store_fault, store_fault_blocking;

#endif
