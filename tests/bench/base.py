"""The build of an older commit that new figures are measured against."""

import os
import shutil
import subprocess

from servers import Missing

COMMIT = "8067669"  # before the engine: the stores' own indexes, and a memory tier before them
BUILD_SECONDS = 900
HERE = os.path.dirname(os.path.abspath(__file__))


def git(source, *arguments):
    """What git said; Missing with the reason."""
    if shutil.which("git") is None:
        raise Missing("git is not installed, so there is no older commit to measure against")
    done = subprocess.run(["git", "-C", source, *arguments], capture_output=True)
    if done.returncode != 0:
        raise Missing(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def make(folder, arguments, commit):
    # The options of the make that runs this are not meant for that one.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")}
    done = subprocess.run(["make", "-C", folder, f"-j{os.cpu_count()}", "BUILD=build", *arguments],
                          env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode != 0:
        raise Missing(f"{commit} does not build: {(done.stderr or done.stdout).strip()[-300:]}")


def built(build, source, base):
    """The folder of base's liara-cached: base is such a folder, or a commit, which is built once
    into BUILD/base-COMMIT. Missing, and why, where there is none."""
    if os.access(os.path.join(base, "liara-cached"), os.X_OK):
        return os.path.abspath(base)
    commit = git(source, "rev-parse", "--verify", "--quiet", "--short=10",
                 base + "^{commit}").decode().strip()
    folder = os.path.join(build, "base-" + commit)
    place = os.path.join(folder, "build")
    if os.access(os.path.join(place, "liara-cached"), os.X_OK):
        return place
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    subprocess.run(["tar", "-x", "-C", folder], check=True,
                   input=git(source, "archive", "--format=tar", commit))
    make(folder, ["build/liara-cached"], commit)
    return place


ENGINE = ("engine.c", "inside.c", "inside.h")
ENGINE_RULE = """
include Makefile
override CPPFLAGS += -DINSIDE_OLDER
$(BUILD)/bench/engine: $(call objects,tests/bench/engine.c tests/bench/inside.c) $(CORE)
	mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(ALLOCATOR) $(LIBS)
"""


def engine(place):
    """This tree's bench/engine around the older commit's store, whose build is in this folder."""
    folder = os.path.dirname(place)
    rule = os.path.join(folder, "engine.mk")
    if not os.path.exists(os.path.join(folder, "Makefile")) or \
            not os.path.isdir(os.path.join(folder, "tests", "bench")):
        raise Missing(f"{folder} has no sources to build the engine of")
    for name in ENGINE:
        shutil.copy(os.path.join(HERE, name), os.path.join(folder, "tests", "bench", name))
    with open(rule, "w") as out:
        out.write(ENGINE_RULE)
    make(folder, ["-f", "engine.mk", "build/bench/engine"], folder)
    return os.path.join(place, "bench", "engine")
