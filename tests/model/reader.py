#!/usr/bin/env python3
"""The protocol of a reader that takes entries out of shared memory without a lock, checked over all
its executions: a client that has mapped index and arena (MAP, to come), against the daemon that
publishes entries and uses segments again.

Memory is what both sides see of one entry: `slot` (a word of the index that leads to the entry),
`gen` (the generation of its segment) and two words of the entry's bytes.

    reader                                  daemon, a segment is emptied and used again
    1  s = acquire(slot), else a miss       slot = 0 or another place    release
    2  g = acquire(gen)                     gen = g + 1                  release
    3  acquire(slot) == s, else a miss      fence                        release
    4  copy the bytes                       new bytes                    relaxed
    5  fence                 acquire        slot = the new entry         release
    6  relaxed(gen) == g, else a miss

A miss is harmless, for it is asked over the socket; only wrong bytes must be impossible. So each
execution must end in a miss or in the bytes of one entry, whole.

The machine is one of views (C11: relaxed, acquire, release and fences): exact here, for the reader
stores nothing and the daemon loads nothing of this. As designed no execution is wrong; without any
one of the checks, fences and orders some are: the script says for each how many of its executions
are, and fails if there are any as designed or none without one.
"""

import sys

LOCATIONS = ("slot", "gen", "first", "second")
ZERO = (0, 0, 0, 0)
RELEASE, RELAXED, FENCE = "release", "relaxed", "fence"

# What is left out, one at a time.
WITHOUT = (
    "reader: second look at the slot",
    "reader: look at the generation after the copy",
    "reader: acquire of the generation",
    "reader: acquire of the slot at the second look",
    "reader: fence after the copy",
    "daemon: new generation",
    "daemon: release of the generation",
    "daemon: fence before new bytes",
    "daemon: release of the slot when an entry is published",
)
# Neither is needed for a right answer: the second look at the slot acquires too, and the generation
# is released after the slot was taken back.
NEEDLESS = ("reader: acquire of the slot at the first look",
            "daemon: release of the slot when it is taken back")


def join(one, other):
    return tuple(max(a, b) for a, b in zip(one, other))


def reader(without):
    program = [("slot", "acquire"),
               ("gen", RELAXED if without == WITHOUT[2] else "acquire"),
               ("slot", RELAXED if without == WITHOUT[3] else "acquire"),
               ("first", RELAXED), ("second", RELAXED), FENCE, ("gen", RELAXED)]
    if without == WITHOUT[0]:
        program[2] = None
    if without == WITHOUT[4]:
        program[5] = None
    if without == NEEDLESS[0]:
        program[0] = ("slot", RELAXED)
    return program


def use_again(without, generation, value):
    """The segment is emptied, and other bytes come to where the entry was."""
    steps = [("slot", 0, RELAXED if without == NEEDLESS[1] else RELEASE)]
    if without != WITHOUT[5]:
        steps.append(("gen", generation, RELAXED if without == WITHOUT[6] else RELEASE))
    if without != WITHOUT[7]:
        steps.append(FENCE)
    return steps + [("first", value, RELAXED), ("second", value, RELAXED)]


def publish(without):
    return [("slot", 1, RELAXED if without == WITHOUT[8] else RELEASE)]


# Name: what the daemon does, what memory holds before, which bytes are right.
CASES = {
    "used again for what the slot does not lead to":
        (lambda w: use_again(w, 1, 20), (1, 0, 10, 10), (10,)),
    "used again, and the slot's word leads there again":
        (lambda w: use_again(w, 1, 20) + publish(w), (1, 0, 10, 10), (10, 20)),
    "used again twice, the slot's word leads there at last":
        (lambda w: use_again(w, 1, 20) + use_again(w, 2, 30)[1:] + publish(w), (1, 0, 10, 10),
         (10, 30)),
    "a first entry is published":
        (lambda w: [("first", 10, RELAXED), ("second", 10, RELAXED)] + publish(w), (0, 0, 1, 2),
         (10,)),
}


def daemon_step(state, step):
    memory, pc, (current, released), *rest = state
    if step == FENCE:
        return (memory, pc + 1, (current, current), *rest)
    name, value, order = step
    at = LOCATIONS.index(name)
    current = join(current, tuple(len(memory[at]) if i == at else 0 for i in range(4)))
    message = (value, current if order == RELEASE else join(released, current_of(at, memory)))
    memory = memory[:at] + (memory[at] + (message,),) + memory[at + 1:]
    return (memory, pc + 1, (current, released), *rest)


def current_of(at, memory):
    return tuple(len(memory[at]) if i == at else 0 for i in range(4))


def reader_steps(state, step):
    memory, pc, view, at, (current, acquired), seen = state
    if step is None:
        yield (memory, pc, view, at + 1, (current, acquired), seen + (None,))
        return
    if step == FENCE:
        yield (memory, pc, view, at + 1, (join(current, acquired), acquired), seen + (None,))
        return
    name, order = step
    where = LOCATIONS.index(name)
    for stamp in range(current[where], len(memory[where])):
        value, carried = memory[where][stamp]
        now = join(current, tuple(stamp if i == where else 0 for i in range(4)))
        later = join(join(acquired, carried), now)
        if order == "acquire":
            now = join(now, carried)
        missed = (at == 0 and value == 0) or (at == 2 and value != seen[0])
        if not missed:
            yield (memory, pc, view, at + 1, (now, later), seen + (value,))


def is_wrong(seen, right, without):
    _, before, _, first, second, _, after = seen
    if before != after and without != WITHOUT[1]:
        return False  # a miss
    return first != second or first not in right


def count_wrong(without, daemon, before, right):
    """All executions; how many there are, and how many of them are wrong."""
    program, steps = reader(without), daemon(without)
    memory = tuple(((value, ZERO),) for value in before)
    stack, known, ended, wrong = [(memory, 0, (ZERO, ZERO), 0, (ZERO, ZERO), ())], set(), 0, 0
    while stack:
        state = stack.pop()
        if state in known:
            continue
        known.add(state)
        if state[1] < len(steps):
            stack.append(daemon_step(state, steps[state[1]]))
        if state[3] < len(program):
            stack.extend(reader_steps(state, program[state[3]]))
        else:
            ended += 1
            wrong += is_wrong(state[5], right, without)
    return ended, wrong


def check(without):
    ended = wrong = 0
    for daemon, before, right in CASES.values():
        some, bad = count_wrong(without, daemon, before, right)
        ended, wrong = ended + some, wrong + bad
    return ended, wrong


def main():
    failed = 0
    for without in ("", *WITHOUT, *NEEDLESS):
        ended, wrong = check(without)
        as_it_must = wrong > 0 if without in WITHOUT else wrong == 0
        failed += not as_it_must
        print(f"{'ok' if as_it_must else 'FAIL':4} {'without ' + without if without else 'as designed':66}"
              f" {ended:6} end in a hit or miss, {wrong} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
