"""The names of all cases. Each is a function of a Bench that adds rows to it."""

CASES = {}


def case(name, title):
    """Registers the function below under a name that --only can choose."""
    def register(function):
        CASES[name] = (title, function)
        return function
    return register
