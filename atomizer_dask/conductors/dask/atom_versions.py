"""The versions of atoms that a scheduler keeps for this process, as long as anybody needs them.

What is executed is what the process would execute now: whenever electrons are sent, the atom is
looked at, and published anew where it, or anything it refers to, is not what it was. Electrons
already sent keep their version. A version that no run, registration or future refers to any more
goes: here, on the scheduler and on the workers.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from atomizer_dask.atoms.code.changes import Watched
from atomizer_dask.atoms.definition import ClassAtom, Definition
from atomizer_dask.atoms.pickling import dump_watched

SUPERSEDED = 8  # versions of registered atoms that are kept after they have changed
LARGE = 2**24  # bytes of all versions, from which on it pays to look for garbage


class Version(str):
    """The digest of an atom; whoever needs the version refers to this very object."""

    def __reduce__(self) -> Any:
        return str, (str(self),)


class _Known(NamedTuple):
    version: Version
    watched: Watched

    @property
    def is_current(self) -> bool:
        return self.watched.is_fixed and self.watched.is_current()


class AtomVersions:
    """The versions of atoms that this process has made known.

    Parameters
    ----------
    keep
        Given a digest, its atom and the bytes of that: has the scheduler keep them.
    name
        Given the id of an atom and a version: makes that the one of the id for everybody.
    release
        Given versions that nobody here needs any more.
    """

    def __init__(
        self,
        keep: Callable[[str, Definition, bytes], None],
        name: Callable[[str, str], None],
        release: Callable[[list[str]], None],
    ) -> None:
        self.catalog: Mapping[str, Version] = {}  # of what is registered, by atom id
        self._keep, self._name, self._release = keep, name, release
        self._known: weakref.WeakKeyDictionary[Definition, _Known] = weakref.WeakKeyDictionary()
        self._needed: weakref.WeakValueDictionary[str, Version] = weakref.WeakValueDictionary()
        self._registered: dict[str, Definition] = {}
        self._superseded: deque[Version] = deque(maxlen=SUPERSEDED)
        self._unneeded: deque[str] = deque()
        self._sizes: dict[str, int] = {}  # bytes, of what the scheduler keeps
        self._grown = 0  # bytes since the garbage was collected
        self._lock = threading.RLock()

    def of(self, definition: Definition) -> Version:
        """Return the version that an atom has now, which the scheduler keeps from here on.

        Raises
        ------
        UnpicklableError
            Where it cannot travel.
        """
        if _sends(definition):
            self._look_at_registered()
        return self._of(definition)

    def register(self, definition: Definition) -> None:
        """Make an atom known to every client of the scheduler, and to what its electrons send."""
        with self._lock:
            self._registered[definition.id] = definition
            self._enter(definition)

    def release_unneeded(self, *, is_idle: bool = True) -> None:
        """Have those forgotten that nobody here needs any more.

        Parameters
        ----------
        is_idle
            Whether nothing is under way: else the garbage is left for later.
        """
        with self._lock:
            if is_idle and self._grown and sum(self._sizes.values()) > LARGE:
                collect()
                self._grown = 0
            gone = {self._unneeded.popleft() for _ in range(len(self._unneeded))}
            gone.difference_update(self._needed)
            for digest in gone:
                self._sizes.pop(digest, None)
            if gone:
                self._release(sorted(gone))

    def _look_at_registered(self) -> None:
        """Have children executed by the atoms that are registered as these are now."""
        for definition in list(self._registered.values()):
            known = self._known.get(definition)
            if known is None or not known.is_current:
                with self._lock:
                    self._enter(definition)

    def _enter(self, definition: Definition) -> None:
        version, before = self._of(definition), self.catalog.get(definition.id)
        if version == before:
            return
        if before is not None:  # free children may still be about to be executed by it
            self._superseded.append(before)
        self.catalog = {**self.catalog, definition.id: version}
        self._name(definition.id, str(version))

    def _of(self, definition: Definition) -> Version:
        known = self._known.get(definition)
        if known is not None and known.is_current:
            return known.version
        with self._lock:
            data, watched = dump_watched(definition)
            digest = blake2b(data, digest_size=16).hexdigest()
            if definition.singleton:  # whoever has the version alone must know
                digest = f"{definition.singleton}:{digest}"
            version = self._needed.get(digest)
            if version is None:
                self.release_unneeded()  # first, for this one may have been among them
                version = Version(digest)
                self._keep(digest, definition, data)
                self._sizes[digest] = len(data)
                self._grown += len(data)
                self._needed[digest] = version
                weakref.finalize(version, self._unneeded.append, digest).atexit = False
            self._known[definition] = _Known(version, watched)
        return version


def collect() -> None:
    """Collect garbage, and give its memory back to the system.

    A run that has ended, and what has arrived of an atom, are parts of cycles; and what has been
    freed of large blocks glibc keeps.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _sends(definition: Definition) -> bool:
    """Return whether electrons of an atom may send others."""
    return isinstance(definition, ClassAtom) or getattr(definition, "takes_context", False)
