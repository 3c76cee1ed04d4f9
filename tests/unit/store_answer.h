/* What a store's GET found, however the store handed it out: by reference, pinned, or copied. */
#ifndef LIARA_TESTS_STORE_ANSWER_H
#define LIARA_TESTS_STORE_ANSWER_H

#include "../../daemon/store/store.h"

struct store_answer {
    const uint8_t *bytes;
    uint64_t length;
    uint32_t flags;
    int64_t expires;
};

/* Of a GET that ended with STORE_OK; holds until store_answer_release(). */
static inline struct store_answer store_answer_of(const struct store_call *call)
{
    struct value *value = call->result.value;
    if (value != NULL)
        return (struct store_answer){value_bytes(value), value->length, value->flags,
                                     value->expires};
    return (struct store_answer){call->result.copied ? call->request.room
                                                     : call->result.pinned.bytes,
                                 call->result.length, call->result.flags, call->result.expires};
}

/* Gives back what the call holds; fine for any call that has ended. */
static inline void store_answer_release(struct store_call *call)
{
    value_unref(call->result.value);
    call->result.value = NULL;
    pinned_release(&call->result.pinned);
}

#endif
