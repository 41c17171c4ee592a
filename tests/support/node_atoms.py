"""Atoms that test_node.py has a node serve."""

import ctypes
import os
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from atomizer_dask import Atom, Electron, atom, register


@atom(id="add")
def add(x, y=1):
    return x + y


@atom(id="squares", vectorized=True)
def squares(x):
    return np.asarray(x) ** 2


@atom(id="drawn")
def drawn(*, context):
    return {"drawn": float(context.rng.random()), "id": context.electron.id}


@atom(id="apart", isolation="process")
def apart(x):
    return {"x": x, "pid": os.getpid(), "parent": os.getppid()}


class Count(Atom):
    """Counts the electrons that it has seen."""

    id = "count"
    singleton = "cluster"

    def __init__(self):
        self.seen = 0

    def process(self, context, conductor, electron):
        self.seen += 1
        return self.seen


@atom(id="fail")
def fail(x):
    raise ValueError(f"{x} is not allowed")


@atom(id="leave")
def leave():
    os._exit(3)


@atom(id="crash")
def crash():
    ctypes.string_at(0)


@atom(id="endless")
def endless():
    while True:
        pass


@atom(id="pid")
def pid():
    return os.getpid()


@atom(id="begin")
def begin(folder, name, seconds=60):
    """Tell that it runs, and run until its folder has a gate, or so long."""
    (Path(folder) / f"began-{name}-{os.getpid()}").touch()
    until = monotonic() + seconds
    while not (Path(folder) / "gate").exists() and monotonic() < until:
        sleep(0.01)
    return name


class Parent(Atom):
    """Sends some electrons, and waits for their sum."""

    id = "parent"

    def process(self, context, conductor, electron):
        payloads = [{"x": x} for x in range(electron.payload["children"])]
        futures = [conductor.send(Electron("add", payload)) for payload in payloads]
        return sum(future.result().value() for future in futures)


class ParentApart(Parent):
    """The same in a child process."""

    id = "parent-apart"
    isolation = "process"


@atom(id="unnamed")
def unnamed():
    return "nobody named me"


register(unnamed)
