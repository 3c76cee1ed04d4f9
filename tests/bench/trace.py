"""A trace of builds as a compiler cache sees them, the same for the same seed."""

import random


class Project:
    """Sources whose object depends on the source and on some headers; each change makes a key that
    was never asked for before, and the old one is of no use any more."""

    def __init__(self, number, sources, numbers):
        self.number = number
        self.numbers = numbers
        self.versions = [0] * sources
        self.sizes = [self.new_size() for _ in range(sources)]

    def new_size(self):
        """Half of the objects have less than 12 KB, one in a hundred has more than 200 KB."""
        return int(min(4 << 20, 500 + self.numbers.lognormvariate(9.4, 1.2)))

    def change(self, source):
        self.versions[source] += 1
        self.sizes[source] = int(self.sizes[source] * self.numbers.uniform(0.9, 1.1))

    def edit(self):
        """What happens between two builds: some sources change, at times a header of many."""
        for _ in range(self.numbers.randrange(1, 40)):
            self.change(self.numbers.randrange(len(self.versions)))
        if self.numbers.random() < 0.2:
            share = self.numbers.uniform(0.05, 0.6)
            for source in range(len(self.versions)):
                if self.numbers.random() < share:
                    self.change(source)

    def build(self):
        """(key, size) of all objects, about in the order of the sources."""
        order = sorted(range(len(self.versions)), key=lambda n: n + self.numbers.uniform(0, 30))
        for source in order:
            yield (f"{self.number}/{source}/{self.versions[source]}", self.sizes[source])


def requests(builds, projects=6, sources=2500, seed=1):
    """(key, size) of so many builds; the projects that are worked on most are built most."""
    numbers = random.Random(seed)
    all_projects = [Project(number, sources, numbers) for number in range(projects)]
    weights = [1 / (number + 1) for number in range(projects)]
    for _ in range(builds):
        project = numbers.choices(all_projects, weights)[0]
        project.edit()
        yield from project.build()
