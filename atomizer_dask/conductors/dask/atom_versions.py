"""The versions of atoms that a scheduler keeps for this process, as long as anybody needs them.

Electrons execute the code that this process would execute now: whenever electrons are sent, the
atom is checked, and published anew where it, or anything it refers to, has changed. Electrons
already sent keep their version. A version that no run, registration or future refers to any more
is forgotten: here, on the scheduler and on the workers.
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
from time import monotonic
from typing import Any, NamedTuple

from atomizer_dask.atoms.atom_code import DumpedAtom, dump_apart
from atomizer_dask.atoms.code.changes import Watched
from atomizer_dask.atoms.definition import ClassAtom, Definition
from atomizer_dask.atoms.shared_files import SharedFile

IDLE_SECONDS = 60.0
SUPERSEDED = 8  # versions of registered atoms that are kept after they have changed
LARGE = 2**24  # bytes of all versions, above which collecting garbage pays


class Version(str):
    """The digest of an atom; it is kept while somebody refers to this very object.

    Attributes
    ----------
    files
        The files of this host with the atom's large buffers.
    """

    files: list[SharedFile]

    def __reduce__(self) -> Any:
        return str, (str(self),)


class _KnownVersion(NamedTuple):
    version: Version
    watched: Watched

    @property
    def is_current(self) -> bool:
        return self.watched.is_fixed and self.watched.is_current()


class AtomVersions:
    """The versions of atoms that this process has published.

    Parameters
    ----------
    keep
        Called with a digest, its atom and the pickled atom: has the scheduler keep them.
    name
        Called with the id of an atom and a version: makes it the version of that id for everybody.
    release
        Called with versions that nobody here needs any more.
    """

    def __init__(
        self,
        keep: Callable[[str, Definition, DumpedAtom], None],
        name: Callable[[str, str], None],
        release: Callable[[list[str]], None],
    ) -> None:
        self.catalog: Mapping[str, Version] = {}  # of registered atoms, by id
        self._keep, self._name, self._release = keep, name, release
        self._known: weakref.WeakKeyDictionary[Definition, _KnownVersion] = (
            weakref.WeakKeyDictionary()
        )
        self._needed: weakref.WeakValueDictionary[str, Version] = weakref.WeakValueDictionary()
        self._registered: dict[str, Definition] = {}
        self._superseded: deque[Version] = deque(maxlen=SUPERSEDED)
        self._unneeded: deque[str] = deque()
        self._sizes: dict[str, int] = {}  # bytes of each version that the scheduler keeps
        self._grown = 0  # bytes since garbage was last collected
        self._busy_at = monotonic()
        self._lock = threading.RLock()

    def of(self, definition: Definition) -> Version:
        """Return the version that an atom has now, which the scheduler keeps from here on.

        Raises
        ------
        UnpicklableError
            Where it cannot travel.
        """
        if _sends(definition):
            self._check_registered()
        version = self._of(definition)
        is_registered = self._registered.get(definition.id) is definition
        if is_registered and self.catalog.get(definition.id) != version:
            with self._lock:
                self._enter(definition)
        return version

    def register(self, definition: Definition) -> None:
        """Publish an atom to every client of the scheduler, and to children of its electrons."""
        with self._lock:
            self._registered[definition.id] = definition
            self._enter(definition)

    def release_unneeded(self, *, is_idle: bool = True) -> None:
        """Release the versions that nobody here needs any more.

        Parameters
        ----------
        is_idle
            Whether nothing is under way: only then garbage is collected. After a while in which
            nothing is, superseded versions that are large are not kept any more; until then
            children of free spawners, which are not counted here, find them.
        """
        with self._lock:
            if not is_idle:
                self._busy_at = monotonic()
            elif monotonic() - self._busy_at > IDLE_SECONDS:
                small = [version for version in self._superseded if not version.files]
                self._superseded = deque(small, maxlen=SUPERSEDED)
            self._release_gone(may_collect=is_idle)

    def _release_gone(self, *, may_collect: bool) -> None:
        with self._lock:
            if may_collect and self._grown and sum(self._sizes.values()) > LARGE:
                collect()
                self._grown = 0
            gone = {self._unneeded.popleft() for _ in range(len(self._unneeded))}
            gone.difference_update(self._needed)
            for digest in gone:
                self._sizes.pop(digest, None)
            if gone:
                self._release(sorted(gone))

    def _check_registered(self) -> None:
        """Publish registered atoms anew that have changed, so that children execute them."""
        for definition in list(self._registered.values()):
            known = self._known.get(definition)
            if known is None or not known.is_current:
                with self._lock:
                    self._enter(definition)

    def _enter(self, definition: Definition) -> None:
        version, before = self._of(definition), self.catalog.get(definition.id)
        if version == before:
            return
        if before is not None:  # children of free spawners may still need it
            self._superseded.append(before)
        self.catalog = {**self.catalog, definition.id: version}
        self._name(definition.id, str(version))

    def _of(self, definition: Definition) -> Version:
        known = self._known.get(definition)
        if known is not None and known.is_current:
            return known.version
        with self._lock:
            dumped = dump_apart(definition)
            data = dumped.code.to_bytes()
            digest = blake2b(data, digest_size=16).hexdigest()
            if definition.singleton:  # the version alone must say so
                digest = f"{definition.singleton}:{digest}"
            version = self._needed.get(digest)
            if version is None:
                self._release_gone(may_collect=True)  # first: this digest may be among the unneeded
                version = Version(digest)
                version.files = dumped.share()
                self._keep(digest, definition, dumped)
                self._sizes[digest] = len(data)
                self._grown += len(data)
                self._needed[digest] = version
                weakref.finalize(version, self._unneeded.append, digest).atexit = False
            self._known[definition] = _KnownVersion(version, dumped.watched)
        return version


def collect() -> None:
    """Collect garbage, and give its memory back to the system.

    Ended runs and unpickled atoms are parts of reference cycles; and glibc keeps memory that was
    freed in large blocks.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _sends(definition: Definition) -> bool:
    """Return whether electrons of an atom may send others."""
    return isinstance(definition, ClassAtom) or getattr(definition, "takes_context", False)
