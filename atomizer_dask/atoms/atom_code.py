"""The code of an atom as it travels: small, with its large buffers beside it, by digest."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from atomizer_dask.atoms import shared_files
from atomizer_dask.atoms.code.buffers import digest_of_buffer
from atomizer_dask.atoms.code.changes import Watched
from atomizer_dask.atoms.definition import Definition, fixed_of
from atomizer_dask.atoms.namespaces import HOME
from atomizer_dask.atoms.pickling import dump_watched, load_atom
from atomizer_dask.atoms.shared_files import SharedFile, share
from atomizer_dask.sweeps.columns import LARGE_BYTES, bytes_within

_MARK = b"atomizer\n"  # no pickle begins so
_files: weakref.WeakKeyDictionary[Definition, list[SharedFile]] = weakref.WeakKeyDictionary()


class LargeBuffer(NamedTuple):
    """A buffer that lies in a file of each host; see `shared_files`."""

    digest: str
    nbytes: int
    what: str = "a value"  # for messages
    copies: int = 1  # that a process has of it: two of a pickle, which is mapped and then read

    def find(self) -> SharedFile | None:
        """Return its file; None where this host has none."""
        return shared_files.find(self.digest, self.nbytes)

    def open(self) -> SharedFile:
        """Return its file.

        Raises
        ------
        FileNotFoundError
            Where this host does not have it.
        """
        if (file := self.find()) is None:
            raise FileNotFoundError(f"{self} is not on this host any more")
        return file

    def __str__(self) -> str:
        return f"{self.what} ({self.nbytes / 2**20:,.0f} MiB)"


class AtomCode(NamedTuple):
    """An atom as bytes.

    Parameters
    ----------
    data
        Its pickle; empty where that is large, and is the first of the buffers.
    large
        Its large buffers, in the order of the pickle.
    """

    data: bytes
    large: tuple[LargeBuffer, ...] = ()

    def to_bytes(self) -> bytes:
        """Return it as it travels."""
        if not self.large:
            return self.data
        return _MARK + pickle.dumps((self.data, [tuple(each) for each in self.large]))

    @classmethod
    def of(cls, travelled: bytes) -> AtomCode:
        """Return what `to_bytes` wrote."""
        if not travelled.startswith(_MARK):
            return cls(travelled)
        data, large = pickle.loads(travelled[len(_MARK) :])  # noqa: S301 - of our own
        return cls(data, tuple(LargeBuffer(*each) for each in large))

    def load(self, *, space: str = HOME) -> Definition:
        """Return the atom, unpickled into a space; its large buffers are mapped.

        Raises
        ------
        FileNotFoundError
            Where this host does not have one of its buffers.
        """
        files = [each.open() for each in self.large]
        maps: list[Any] = [file.map() for file in files]
        data = self.data or maps.pop(0)
        definition = load_atom(data, space=space, buffers=maps if self.large else None)
        _files[definition] = files
        return definition


class DumpedAtom(NamedTuple):
    """An atom that was pickled for its way to workers.

    Parameters
    ----------
    code
        The atom as it travels.
    pickled
        Its pickle, without its large buffers.
    buffers
        The large buffers.
    watched
        Shows whether it has changed since.
    """

    code: AtomCode
    pickled: bytes
    buffers: list[memoryview]
    watched: Watched

    def share(self) -> list[SharedFile]:
        """Put the large buffers into files of this host, which are there as long as these objects.

        Raises
        ------
        OSError
            Where there is no room for them.
        """
        pairs = zip(self.code.large, self.buffers, strict=True)
        return [share(each.digest, buffer) for each, buffer in pairs]


def dump_apart(definition: Definition) -> DumpedAtom:
    """Return an atom pickled, with its large buffers apart; raises what `dump_watched` does."""
    buffers: list[memoryview] = []
    data, watched = dump_watched(definition, buffers, LARGE_BYTES)
    inline = data
    if len(data) >= LARGE_BYTES:
        buffers.insert(0, memoryview(data))
        inline = b""
    sizes = {name: bytes_within(value) for name, value in fixed_of(definition).items()}
    large = tuple(
        LargeBuffer(
            digest_of_buffer(each),
            each.nbytes,
            _named(each.nbytes, sizes),
            copies=2 if each.obj is data else 1,
        )
        for each in buffers
    )
    return DumpedAtom(AtomCode(inline, large), data, buffers, watched)


def _named(nbytes: int, sizes: Mapping[str, int]) -> str:
    """Return what a buffer is, for messages: which of the values of these sizes, by name."""
    large = {name: size for name, size in sizes.items() if size >= LARGE_BYTES}
    exact = [name for name, size in large.items() if size == nbytes]
    names = " or ".join(map(repr, exact or large))
    return f"the value of {names}" if names else "a value that the atom uses"
