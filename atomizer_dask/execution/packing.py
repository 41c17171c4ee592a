"""Batches and outcomes as bytes and plain arrays, so that Dask never pickles an object of a user.

An input or a result may fail to be pickled here, or to be unpickled on the other side. Either must
cost that one electron, and never its neighbours.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.atoms import pickling
from atomizer_dask.atoms.atom_code import LargeBuffer
from atomizer_dask.atoms.code.buffers import digest_of_buffer
from atomizer_dask.atoms.namespaces import HOME, inside, loads
from atomizer_dask.atoms.shared_files import SharedFile, share
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import BatchOutcome, Column, Outcome, StoredOutcome
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.columns import LARGE_BYTES, Values

LARGE_BUFFER = 4096  # bytes; a smaller buffer costs less to copy than to send by itself
_SAMPLE = 3  # results of a batch that are searched for classes
_PLAIN = {type(None), bool, int, float, complex, str, bytes}


@dataclass(frozen=True, slots=True, repr=False)
class Packed:
    """A pickle, with its large buffers beside it as arrays, which Dask sends without a copy.

    Dask logs the arguments of a task that fails. So the repr leaves out the contents, which may
    include a broker's password.
    """

    data: bytes
    buffers: list[np.ndarray | LargeBuffer]
    space: str = HOME

    @property
    def large(self) -> list[LargeBuffer]:
        """Those of the buffers that lie in files of each host; see `with_files`."""
        return [buffer for buffer in self.buffers if isinstance(buffer, LargeBuffer)]

    def with_files(self, least: int = LARGE_BYTES) -> tuple[Packed, list[SharedFile]]:
        """Return it with its large buffers in files, and the files, which are there as long.

        Parameters
        ----------
        least
            How many bytes a buffer has that is large.

        Raises
        ------
        OSError
            Where there is no room for them.
        """
        buffers: list[np.ndarray | LargeBuffer] = []
        files = []
        for buffer in self.buffers:
            if isinstance(buffer, np.ndarray) and buffer.nbytes >= least:
                large = LargeBuffer(digest_of_buffer(buffer), buffer.nbytes, "an input")
                files.append(share(large.digest, buffer))
                buffers.append(large)
            else:
                buffers.append(buffer)
        return replace(self, buffers=buffers), files

    @property
    def nbytes(self) -> int:
        """Bytes to send, the buffers included."""
        return len(self.data) + sum(buffer.nbytes for buffer in self.buffers)

    def whole(self) -> bytes:
        """Return it as bytes, the buffers included, but those that lie in files."""
        buffers = [b if isinstance(b, LargeBuffer) else bytearray(b) for b in self.buffers]
        return pickle.dumps((self.data, buffers))

    @classmethod
    def of(cls, whole: bytes) -> Packed:
        """Return the pickle from the bytes that `whole` returned."""
        data, buffers = pickle.loads(whole)  # noqa: S301 - bytes of ours
        return cls(
            data,
            [b if isinstance(b, LargeBuffer) else np.frombuffer(b, np.uint8) for b in buffers],
        )

    def __repr__(self) -> str:
        return f"<Packed: {self.nbytes:,} bytes>"

    def load(self, known: Sequence[Any] = ()) -> Any:
        """Return what was packed.

        Parameters
        ----------
        known
            The values of the Futures in it.

        Raises
        ------
        FileNotFoundError
            Where this host does not have one of the large buffers.
        """
        buffers = [b.open().map() if isinstance(b, LargeBuffer) else b for b in self.buffers]
        return loads(self.data, space=self.space, buffers=buffers, known=known)


def pack(
    value: Any,
    *,
    is_plain: bool = False,
    space: str = HOME,
    brings_code: bool = False,
    references: list[Any] | None = None,
) -> Packed:
    """Return `value` packed; raises whatever its parts raise when they are pickled.

    Parameters
    ----------
    space
        The space into which the user's own things are unpickled; see `namespaces`.
    brings_code
        Whether functions and classes in `value` get a space of their own, ``space/digest``, so
        that they arrive as they are now, also where an earlier version has arrived before.
    references
        Gets the Futures of Dask in `value`; `load` is to be given their values.
    is_plain
        Whether `value` has none of the user's code in it. Then plain pickle does it, ten times as
        fast for a small value.
    """
    buffers: list[np.ndarray | LargeBuffer] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE_BUFFER:
            return True
        buffers.append(np.frombuffer(raw, dtype=np.uint8))
        return False

    if is_plain:
        data = pickle.dumps(value, protocol=5, buffer_callback=stays_inside)
        return Packed(data, buffers, space)
    file = io.BytesIO()
    pickler = pickling.Pickler(file, stays_inside, references=references)
    pickler.dump(value)
    if brings_code and pickler.things:
        code = blake2b(pickling.dumps(pickler.things), digest_size=8).hexdigest()
        space = f"{space}/{code}"
    return Packed(file.getvalue(), buffers, space)


def dumps(value: Any, known: Sequence[type] = ()) -> bytes | None:
    """Return `value` as bytes, None where it cannot be pickled; see `pickling.dumps`."""
    try:
        return pickling.dumps(value, known=known)
    except BaseException as error:  # a user's __reduce__ may raise SystemExit, which ends a worker
        if is_interrupt(error):
            raise
        return None


def pack_outcome(outcome: BatchOutcome) -> Packed:
    """Return an outcome packed; a result that cannot be pickled is a failure of its electron.

    Exceptions, and results that are more than numbers and texts, are pickled each by itself, since
    on the other side any of them may turn out not to be readable.
    """
    if isinstance(outcome, StoredOutcome):
        return pack(replace(outcome, failed=_with_failures_apart(outcome.failed)))
    outcome = _with_failures_apart(outcome)
    bad: set[int] = set()
    good = len(outcome) - len(outcome.failed)
    results = {name: _column_apart(c, good, bad) for name, c in outcome.results.items()}
    outcome = replace(outcome, results=results)
    if bad:
        why = "the result cannot travel to the client, for it cannot be pickled"
        outcome = outcome.with_failed(sorted(bad), Failure("exception", "PicklingError", why))
    return pack(outcome)


def _with_failures_apart(outcome: Outcome) -> Outcome:
    failures = [
        # One that came from a child process is packed already.
        failure
        if isinstance(failure.exception, bytes)
        else failure._replace(exception=dumps(failure.exception))
        for failure in outcome.failures
    ]
    unstored: Any = None
    if outcome.unstored is not None:  # each column by itself: one may not travel
        unstored = {name: dumps(column) for name, column in outcome.unstored.items()}
    return replace(outcome, failures=failures, unstored=unstored)


def _unstored_together(outcome: Outcome) -> Outcome:
    """Return an outcome with its `unstored` columns unpickled, as far as they can be read here."""
    if outcome.unstored is None:
        return outcome
    columns: dict[str, Column] = {}
    travelled: dict[str, Any] = {**outcome.unstored}
    for name, data in travelled.items():
        # May raise anything. A column that is lost costs nothing: a retry executes these electrons.
        try:
            columns[name] = loads(data)
        except BaseException as error:
            if is_interrupt(error):
                raise
    return replace(outcome, unstored=columns, is_whole=len(columns) == len(travelled))


def unpack_outcome(packed: Packed, space: str = HOME) -> BatchOutcome:
    """Return the outcome; a result that cannot be read here is a failure of its electron.

    Parameters
    ----------
    space
        The space of the electrons' sender, into which the user's own things are unpickled.
    """
    with inside(space):
        return _unpacked(replace(packed, space=space))


def _unpacked(packed: Packed) -> BatchOutcome:
    outcome: BatchOutcome = packed.load()
    if isinstance(outcome, StoredOutcome):
        return replace(outcome, failed=_unstored_together(outcome.failed))
    outcome = _unstored_together(outcome)
    bad: set[int] = set()
    good = len(outcome) - len(outcome.failed)
    results = {
        name: Column(_objects(_together(list(values), _rows(present, good), bad)), present)
        if _is_apart(values)
        else Column(values, present)
        for name, (values, present) in outcome.results.items()
    }
    outcome = replace(outcome, results=results)
    if bad:
        why = "the result cannot be unpickled here: is what it is made of installed?"
        outcome = outcome.with_failed(sorted(bad), Failure("exception", "UnpicklingError", why))
    return outcome


class _Apart(NamedTuple):
    """An object that was pickled by itself.

    Parameters
    ----------
    data
        Its pickle; None where it could not be made.
    classes
        A pickle of the classes that it refers to by number, the same bytes for all of a batch:
        to take a class apart and put it together takes a hundred times as long as an instance.
    """

    data: bytes | None
    classes: bytes | None


def _apart(values: list[Any], rows: Iterable[int], bad: set[int]) -> list[Any]:
    if _are_plain(values):
        return values
    known = pickling.classes_in(values[:_SAMPLE])
    classes = dumps(known) if known else None
    known = [] if classes is None else known
    packed = [_Apart(dumps(value, known), classes) for value in values]
    bad.update(row for row, value in zip(rows, packed, strict=True) if value.data is None)
    return packed


def _column_apart(column: Column, good: int, bad: set[int]) -> Column:
    values, present = column
    if is_sure_to_travel(values):
        return column
    return Column(_objects(_apart(list(values), _rows(present, good), bad)), present)


def is_sure_to_travel(values: Values) -> bool:
    """Return whether a column can be pickled, for it has nothing but numbers and texts."""
    if not isinstance(values, np.ndarray) or values.dtype != object:
        return True
    return _are_plain(list(values))


def _together(values: list[Any], rows: Iterable[int], bad: set[int]) -> list[Any]:
    loaded = []
    known: dict[bytes | None, list[type]] = {None: []}
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, _Apart):
            try:
                assert value.data is not None
                if value.classes not in known:
                    known[value.classes] = loads(value.classes)  # type: ignore[arg-type]
                value = loads(value.data, known=known[value.classes])
            except BaseException as error:  # unpickling runs anybody's code
                if is_interrupt(error):
                    raise
                bad.add(row)
        loaded.append(value)
    return loaded


def _is_apart(values: Any) -> bool:
    is_object = isinstance(values, np.ndarray) and values.dtype == object and len(values)
    return bool(is_object) and isinstance(values[0], _Apart)


def _rows(present: np.ndarray | None, good: int) -> Iterable[int]:
    """Return which of the good electrons the values of a column belong to."""
    return range(good) if present is None else map(int, np.flatnonzero(present))


def _objects(values: list[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def _are_plain(values: list[Any]) -> bool:
    """Whether these values, or the items one level down in them, are numbers and texts."""
    types = set(map(type, values))
    if types <= _PLAIN:
        return True
    if types == {dict}:
        return set(map(type, chain.from_iterable(map(dict.values, values)))) <= _PLAIN
    if types <= {tuple, list}:
        return set(map(type, chain.from_iterable(values))) <= _PLAIN
    if types == {np.ndarray}:
        return not any(value.dtype.hasobject for value in values)
    return False


def dump_events(events: list[Event]) -> bytes:
    """Return events as bytes; with texts for all fields where one cannot be pickled."""
    data = dumps(events)
    return dumps(list(map(Event.as_text, events))) or b"" if data is None else data


def dump_error(error: AtomizerError) -> bytes:
    """Return an error as bytes, without its internal exception where that cannot be pickled."""
    return dumps(error) or dumps(AtomizerError(error.event)) or b""
