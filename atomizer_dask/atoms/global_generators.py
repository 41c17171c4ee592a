"""Atoms that draw from generators that all of a process share: `numpy.random.normal` and such.

``seed=`` fixes the stream of each electron, `Context.rng`, but not these generators. So where an
atom's code draws from them, they are seeded for each electron from its own stream: old code gives
the same bits everywhere too. A process has one generator of each kind, so that only one of its
threads at a time executes such an electron.
"""

from __future__ import annotations

import dis
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.interruptible import PAUSES

# What a module has beside its generator: classes of generators, and what seeds them.
_OTHERS = {
    "numpy.random": {
        "default_rng", "Generator", "SeedSequence", "BitGenerator", "RandomState", "PCG64",
        "PCG64DXSM", "Philox", "MT19937", "SFC64", "bit_generator",
    },
    "random": {"Random", "SystemRandom"},
}  # fmt: skip
_LIBRARIES = ("torch", "cupy", "tensorflow")  # which have a generator of their own
# Functions and methods of packages that draw from NumPy's, unless they are given another one.
_BY_PACKAGES = {
    "rvs", "sample", "shuffle", "resample", "bootstrap", "permutation_test", "train_test_split",
}  # fmt: skip
_OWN = {"context", "rng"}  # names of an electron's own generator
KINDS: tuple[type, ...] = (
    np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence,
    random.Random,
)  # fmt: skip


def generator_of(module: Any) -> Any:
    """Return the generator that the functions of `random` or `numpy.random` draw from."""
    return module._inst if module is random else module.mtrand._rand


GENERATORS: dict[int, Any] = {id(generator_of(each)): each for each in (random, np.random)}


def drawn_from(code: CodeType, scope: Mapping[str, Any]) -> set[str]:
    """Return which shared generators a function, and those within it, may draw from.

    Parameters
    ----------
    code
        Of the function.
    scope
        Its globals.

    Returns
    -------
    set of str
        ``"numpy"``, ``"random"``, ``"torch"``, ``"cupy"`` or ``"tensorflow"``.

    Examples
    --------
    >>> sorted(drawn_from((lambda: np.random.normal() + random.random()).__code__, globals()))
    ['numpy', 'random']
    >>> drawn_from((lambda: np.random.default_rng(7).normal()).__code__, globals())
    set()
    """
    found = set[str]()
    for path in _paths(code):
        first, *attributes = path
        if _OWN.intersection(path[:-1]) and not isinstance(scope.get(first), ModuleType):
            continue
        value = sys.modules.get(first[1:]) if first.startswith("=") else scope.get(first)
        found |= _generators_at(value, attributes)
    return found


def _generators_at(value: Any, attributes: list[str]) -> set[str]:
    """Return the shared generators that a chain of attributes of a value draws from."""
    module = GENERATORS.get(id(getattr(value, "__self__", None)))
    if module is not None:  # `from random import gauss`
        return {_short(module.__name__)}
    if _BY_PACKAGES.intersection(attributes) or getattr(value, "__name__", "") in _BY_PACKAGES:
        return {"numpy"}
    if not isinstance(value, ModuleType):
        return set()
    name = value.__name__
    if name == "numpy" and attributes[:1] == ["random"]:
        name, attributes = "numpy.random", attributes[1:]
    if name in _OTHERS:
        used = attributes[:1] or [""]
        return set() if used[0] in _OTHERS[name] else {_short(name)}
    top = name.partition(".")[0]
    return {top} if top in _LIBRARIES else set()


def _short(module: str) -> str:
    return "random" if module == "random" else "numpy"


@lru_cache(maxsize=4096)
def _paths(code: CodeType) -> list[tuple[str, ...]]:
    """Return the names that code loads, each with the attributes that it reads of it at once.

    An imported module is called ``=name``, and so is a variable that holds one.
    """
    paths: list[list[str]] = []
    held: dict[str, list[str]] = {}  # by variables
    last: list[str] | None = None
    for one in dis.Bytecode(code):
        name, argument = one.opname, one.argval
        if name in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            if last is None:  # of a value that has no name
                paths.append([""])
            (last or paths[-1]).append(str(argument))
        elif name.startswith("STORE_") and last is not None and isinstance(argument, str):
            held[argument] = last
            if last[0].startswith("="):  # its attributes are read where the variable is loaded
                paths.remove(last)
            last = None
        elif name == "IMPORT_NAME":
            last = [f"={argument}"]
            paths.append(last)
        elif name.startswith("LOAD_") and name != "LOAD_CONST" and isinstance(argument, str):
            last = [*held.get(argument, [argument])]
            paths.append(last)
        elif name not in ("CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "PRECALL"):
            last = None
    found = [tuple(path) for path in paths]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += _paths(constant)
    return found


def is_generator(thing: Any) -> bool:
    """Return whether a thing is a random generator with a state of its own."""
    kind = type(thing)
    if issubclass(kind, random.SystemRandom):
        return False
    is_torchs = kind.__module__ == "torch" and kind.__name__ == "Generator"
    return is_torchs or (issubclass(kind, KINDS) and id(thing) not in GENERATORS)


class _Turn:
    """The lock on the shared generators of this process: its owner may draw from them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._which: frozenset[str] = frozenset()
        self._counting = threading.Lock()
        self._under_way = 0
        self._before: dict[str, Any] = {}

    def begin(self) -> None:
        """Save the states of the generators, until the last batch that began has ended.

        In a process of the user, they may be states that the user's own code goes on with.
        """
        with self._counting:
            if not self._under_way:
                self._before = _states(frozenset(sys.modules) | {"numpy"})
            self._under_way += 1

    def end(self) -> None:
        """Restore the saved states, unless other batches are still under way."""
        with self._counting:
            self._under_way -= 1
            if not self._under_way:
                _restore(self._before)

    def take(self, which: frozenset[str], stream: RandomStream, index: int) -> None:
        """Take the turn, and seed the generators in `which` from the stream of an electron."""
        self._take(which)
        try:
            _seed(which, stream, index)
        except BaseException:
            self.give()
            raise

    def give(self) -> None:
        """Release the turn, if this thread still has it."""
        if self._owner == threading.get_ident():
            self._give()

    def pause(self) -> Callable[[], None] | None:
        """Release the turn, if this thread has it; return a function that takes it back."""
        if self._owner != threading.get_ident():
            return None
        which, states = self._which, _states(self._which)
        self._give()

        def resume() -> None:
            self._take(which)
            _restore(states)

        return resume

    def _take(self, which: frozenset[str]) -> None:
        if self._owner != threading.get_ident():  # else an exception left it taken
            self._lock.acquire()
        self._owner, self._which = threading.get_ident(), which

    def _give(self) -> None:
        self._owner = 0
        self._lock.release()

    def renew(self) -> None:
        """Begin anew, in a forked process."""
        self.__init__()  # type: ignore[misc]


TURN = _Turn()
os.register_at_fork(after_in_child=TURN.renew)
PAUSES.append(TURN.pause)


def _seed(which: frozenset[str], stream: RandomStream, index: int) -> None:
    address = b"%d/%d/%d" % (stream.key, stream.generation, index)
    digest = blake2b(address, digest_size=16, person=b"shared rng").digest()
    if "numpy" in which:
        np.random.seed(np.frombuffer(digest, dtype=np.uint32))
    number = int.from_bytes(digest, "little")
    if "random" in which:
        random.seed(number)
    for name in which.intersection(_LIBRARIES).intersection(sys.modules):
        library: Any = sys.modules[name]
        if name == "torch":
            library.manual_seed(number % 2**63)
        elif name == "cupy":
            library.random.seed(number % 2**32)
        else:
            library.random.set_seed(number % 2**63)


def _states(which: frozenset[str]) -> dict[str, Any]:
    return {name: get() for name, get in _GETTERS.items() if name in which}


def _restore(states: Mapping[str, Any]) -> None:
    for name, state in states.items():
        _SETTERS[name](state)


_GETTERS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.random.get_state(legacy=False),
    "random": random.getstate,
    "torch": lambda: sys.modules["torch"].get_rng_state(),
}
_SETTERS: dict[str, Callable[[Any], Any]] = {
    "numpy": np.random.set_state,
    "random": random.setstate,
    "torch": lambda state: sys.modules["torch"].set_rng_state(state),
}


def warning_of_draws(definition: Any) -> str:
    """Return a warning about a vectorised atom that draws from a shared generator, or no text."""
    if not (definition.vectorized and definition.draws_from):
        return ""
    return (
        f"{definition.id} is vectorised and draws from {' and '.join(definition.draws_from)}: "
        "its numbers depend on how electrons are bundled, and are others each time; draw from "
        "context.random(shape), a row per electron"
    )
