/*
 * A backend that fails on command, beside the real ones: "fault". It keeps its entries in a list.
 * What is to go wrong stands in the key, so that a transcript can ask for it:
 *
 *     !WORD[=ARGUMENT][!WORD…]/anything
 *
 *     delay=MS      finish that many milliseconds later
 *     hold=NAME     finish only once a PUT of a key with release=NAME comes
 *     release=NAME  a PUT: lets those go
 *     error=CODE    fail with this code, after the delay or hold
 *     lose          a PUT: answers STORED and stores nothing
 *     rot           a GET: the entry is there for HEAD, but can't be read: a miss
 *     on=OP         only for this one: get, head, put, delete; a PUT with on=persist, on=inspect or
 *                   on=clear is stored nowhere, and its words are for the next request of that kind
 *
 * A key that does not begin with '!' is served without a fault.
 */
#ifndef LIARA_FAULT_STORE_H
#define LIARA_FAULT_STORE_H

#include "../daemon/store/store.h"

extern const struct store_ops store_fault;

#endif
