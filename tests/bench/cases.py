"""The names of all cases. Each is a function of a Bench that adds rows to it."""

CASES = {}  # name: (title, function)
GOALS = {}  # name: the number of the goal that its targets are about

# What the stores are built to reach, in the order in which the result tells it.
GOAL_NAMES = {
    1: "GET and PUT through the socket cost no more than before",
    2: "PUT of an absent key with 1,000,000 entries on disk",
    3: "memory of an entry",
    4: "mixed sizes within max-size",
    5: "memory of an entry that lies on disk alone",
    6: "PUT into a full store, in process",
    7: "PUT by 8 processes, PERSIST counted in",
    8: "write amplification of the log",
    9: "start to the first GET",
    10: "GET of what is only on disk",
    11: "PERSIST after 100 new entries",
    12: "other clients while a prefix is cleared, counted, and segments are emptied",
    13: "misses on build traces",
    14: "lines in daemon/store",
}


def case(name, title, goal=0):
    """Registers the function below under a name that --only can choose."""
    def register(function):
        CASES[name] = (title, function)
        if goal:
            GOALS[name] = goal
        return function
    return register
