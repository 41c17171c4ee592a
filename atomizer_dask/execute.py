"""Bond and execute a batch: no Dask in it, runs anywhere.

A batch is a lease on electrons: the site executes them one after another until the time box ends
or somebody asks it to stop, gives back what has not been begun, and returns the rest as columns.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import compress, repeat
from operator import length_hint
from time import perf_counter, time_ns
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.atom import ClassAtom, Definition, FunctionAtom
from atomizer_dask.columns import Values, column, concatenate, numpy_values, python_values
from atomizer_dask.context import Context
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ElectronError, InvalidPayloadError, Kind
from atomizer_dask.events import Event
from atomizer_dask.properties import Properties
from atomizer_dask.streams import Positioned, Stream
from atomizer_dask.sweep import Columns, GridSlice, Inputs, Rows, numpy_or_extension

_FIRST_SLICE = 1024
_LARGEST_SLICE = 2**20
_AT_ONCE = 1024  # electrons whose arguments and results are Python objects at a time
_SLICE_SECONDS = 0.02  # how finely a vectorised batch can be interrupted


class Origin(NamedTuple):
    """Whom the electrons of a batch descend from; what they send inherits it.

    Parameters
    ----------
    channel
        Where their events go.
    catalog
        Which version of each atom their sender meant, by id.
    depth
        How many spawners are above them: deeper ones go first, which bounds how many wait.
    """

    channel: str = ""
    catalog: Mapping[str, Any] = {}
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Some electrons of one atom, as they travel.

    Parameters
    ----------
    key
        Names this lease.
    atom_id, version
        Which atom, and what a site needs to find it.
    inputs
        The payloads.
    first
        Position of the first electron in its run.
    stream
        The family of random streams: electron i of the run has index i. For electrons that were
        sent one by one, a list of their own addresses.
    run_id
        Empty for electrons that were sent one by one.
    ids
        Their ids, where they were sent one by one.
    seconds
        The time box.
    """

    key: str
    atom_id: str
    version: Any
    inputs: Inputs
    first: int
    stream: Stream | list[tuple[Stream, int]]
    origin: Origin
    run_id: str = ""
    ids: list[str] | None = None
    sender_id: str = ""
    copy_state: bool = False
    seconds: float = 0.2

    def __len__(self) -> int:
        return len(self.inputs)

    def electron_id(self, offset: int) -> str:
        """Return the id of the electron at `offset`."""
        return f"{self.run_id}-{self.first + offset}" if self.ids is None else self.ids[offset]

    def address(self, offset: int) -> tuple[Stream, int]:
        """Return the family and index of the random stream of the electron at `offset`."""
        if isinstance(self.stream, Stream):
            return self.stream, self.first + offset
        return self.stream[offset]

    def addresses_of(self, offset: int, count: int) -> tuple[Stream, np.ndarray]:
        """Return family and indices of `count` electrons, which share one family."""
        if isinstance(self.stream, Stream):
            start = self.first + offset
            return self.stream, np.arange(start, start + count, dtype=np.uint64)
        stream, index = self.stream[offset]
        return stream, np.array([index], dtype=np.uint64)

    def electron(self, offset: int) -> Electron:
        """Return the electron at `offset` as a record."""
        return Electron(
            self.atom_id,
            self.payload(offset),
            id=self.electron_id(offset),
            sender_id=self.sender_id,
            copy_state=self.copy_state,
        )

    def payload(self, offset: int) -> Any:
        """Return the payload of the electron at `offset`."""
        if isinstance(self.inputs, Rows):
            return self.inputs.payloads[offset]
        one = _cut(self.inputs, offset, offset + 1)
        return {name: python_values(values)[0] for name, values in one.columns().items()}


def _cut(inputs: Columns | GridSlice, start: int, stop: int) -> Columns | GridSlice:
    if isinstance(inputs, GridSlice):
        return replace(inputs, start=inputs.start + start, stop=inputs.start + stop)
    return Columns({name: values[start:stop] for name, values in inputs.data.items()}, stop - start)


class Failure(NamedTuple):
    """Why an electron failed, as it travels; alike failures of a batch are one object."""

    kind: Kind
    type: str
    message: str
    traceback: str = ""
    exception: Any = None

    def error(self, electron_id: str, atom_id: str) -> ElectronError:
        """Return it as the error of an electron."""
        text = f"{self.type}: {self.message}" if self.type else self.message
        event = Event(text, electron_id=electron_id, atom_id=atom_id, level="error")
        internal = _exception_of(self.exception)
        return ElectronError(event, internal, self.kind, self.type, self.message, self.traceback)


def _exception_of(travelled: Any) -> BaseException | None:
    if not isinstance(travelled, bytes):
        return travelled if isinstance(travelled, BaseException) else None
    try:
        internal = pickle.loads(travelled)  # noqa: S301 - from our own worker
    except Exception:  # noqa: BLE001 - its type, text and traceback have come as text
        return None
    return internal if isinstance(internal, BaseException) else None


_Arguments = Callable[[int, int], list[Any]]


class Column(NamedTuple):
    """One output of a batch: its values, and for which of the good electrons there is one."""

    values: Values
    present: np.ndarray | None = None  # None: for all of them


@dataclass(slots=True)
class Outcome:
    """What became of a batch: its first `kept` electrons, as columns.

    Parameters
    ----------
    kept
        How many were executed; the others go back.
    results
        For the electrons that did not fail: output columns by name, or the list of the results
        themselves for electrons that were sent one by one.
    failed
        Offsets of those that did.
    codes, failures
        For each of `failed` the position of its failure in `failures`.
    start_ns
        Nanoseconds since the epoch at which the first one started.
    ends
        Seconds after that at which each one ended and the next one began.
    counts
        How many electrons each of `ends` stands for, where it is not one.
    worker
        Where it ran.
    scalar
        Whether results came as such rather than as dicts.
    """

    kept: int
    results: dict[str, Column] | list[Any]
    failed: Sequence[int] | np.ndarray
    codes: Sequence[int] | np.ndarray
    failures: list[Failure]
    start_ns: int
    ends: np.ndarray
    counts: np.ndarray | None
    worker: str
    scalar: bool = True

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every electron, in nanoseconds since the epoch."""
        ends = self.start_ns + np.rint(self.ends * 1e9).astype(np.int64)
        starts = np.concatenate([[self.start_ns], ends[:-1]]).astype(np.int64)
        if self.counts is None:
            return starts, ends
        return np.repeat(starts, self.counts), np.repeat(ends, self.counts)

    def truncate(self, kept: int) -> Outcome:
        """Return the part about the first `kept` electrons."""
        if kept >= self.kept:
            return self
        failed = np.asarray(self.failed, dtype=np.int64)
        bad = int(np.searchsorted(failed, kept))
        good = kept - bad
        if isinstance(self.results, list):
            results: dict[str, Column] | list[Any] = self.results[:good]
        else:
            results = {name: _head(output, good) for name, output in self.results.items()}
        starts, ends = self.times()
        return replace(
            self,
            kept=kept,
            results=results,
            failed=failed[:bad],
            codes=self.codes[:bad],
            ends=(ends[:kept] - self.start_ns) / 1e9,
            counts=None,
        )

    @classmethod
    def all_failed(cls, count: int, failure: Failure, worker: str = "") -> Outcome:
        """Return the outcome of `count` electrons that share one failure and never ran."""
        codes = np.broadcast_to(np.int32(0), count)
        ends, counts = np.zeros(1), np.array([count])
        return cls(count, {}, range(count), codes, [failure], time_ns(), ends, counts, worker)

    def with_failed(self, bad: list[int], failure: Failure) -> Outcome:
        """Return it with some of the good electrons, by their order among these, as failed."""
        failed = np.asarray(self.failed, dtype=np.int64)
        good = np.setdiff1d(np.arange(self.kept), failed)
        stays = np.ones(len(good), dtype=bool)
        stays[bad] = False
        if isinstance(self.results, list):
            results: dict[str, Column] | list[Any] = list(compress(self.results, stays))
        else:
            results = {}
            for name, (values, present) in self.results.items():
                if present is None:
                    results[name] = Column(numpy_or_extension(values)[stays])
                else:
                    kept = numpy_or_extension(values)[stays[present]]
                    results[name] = Column(kept, present[stays])
        order = np.argsort(joined := np.concatenate([failed, good[bad]]), kind="stable")
        codes = np.concatenate([self.codes, np.full(len(bad), len(self.failures))])
        return replace(
            self,
            results=results,
            failed=joined[order],
            codes=codes[order],
            failures=[*self.failures, failure],
        )

    def rows(self) -> Iterator[Any]:
        """Yield the results of the electrons that did not fail."""
        return iter(self.results) if isinstance(self.results, list) else self._rows()

    def properties(self, batch: Batch) -> Iterator[Properties]:
        """Yield the Properties of every electron, in the order of the batch."""
        _, ends = self.times()
        failures = dict(zip(map(int, self.failed), map(int, self.codes), strict=True))
        results = self.rows()
        start = utc(self.start_ns)
        for offset, end_ns in enumerate(ends.tolist()):
            electron_id = batch.electron_id(offset)
            code = failures.get(offset)
            failure = None if code is None else self.failures[code]
            end = utc(end_ns)
            yield Properties.of(
                electron_id=electron_id,
                atom_id=batch.atom_id,
                start=start,
                end=end,
                error=failure and failure.error(electron_id, batch.atom_id),
                result=next(results) if failure is None else None,
                worker=self.worker,
                attempts=1,
            )
            if self.counts is None:
                start = end

    def _rows(self) -> Iterator[Any]:
        assert isinstance(self.results, dict)
        good = self.kept - len(self.failed)
        missing = object()
        columns = []
        for output in self.results.values():
            values = python_values(output.values)
            if output.present is not None:
                present = iter(values)
                values = [next(present) if here else missing for here in output.present]
            columns.append(values)
        names = list(self.results)
        for position in range(good):
            row = {
                name: values[position]
                for name, values in zip(names, columns, strict=True)
                if values[position] is not missing
            }
            scalar = self.scalar and row.keys() <= {"result"}
            yield row.get("result") if scalar else row


def _head(output: Column, good: int) -> Column:
    if output.present is None:
        return Column(output.values[:good])
    present = output.present[:good]
    return Column(output.values[: int(present.sum())], present)


def utc(nanoseconds: int) -> datetime:
    """Return nanoseconds since the epoch as a timezone-aware time."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


class Site(ABC):
    """Where batches are executed: what the place provides to an executing batch."""

    name: str = ""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._stopped: set[str] = set()

    @abstractmethod
    def find_atom(self, batch: Batch) -> Definition:
        """Return the atom of a batch."""

    @abstractmethod
    def give_back(self, batch: Batch, kept: int) -> None:
        """Tell the driver that all but the first `kept` electrons are free for others."""

    @abstractmethod
    def emit(self, channel: str, event: Event) -> None:
        """Put an event on a stream."""

    @abstractmethod
    def release_slot(self) -> None:
        """Let somebody else run in this thread's place: it is about to wait."""

    @abstractmethod
    def children(self, origin: Origin, stream: Stream, lease: Lease) -> Any:
        """Return the conductor through which an electron sends its children."""

    def stop(self, run_id: str) -> None:
        """Give back what running batches of a run have not begun, and tell their electrons."""
        self._stopped.add(run_id)  # for batches that are still to begin
        for lease in list(self._leases.values()):
            if lease.batch.run_id == run_id:
                lease.stopped = True
                lease.surrender()

    def execute(self, batch: Batch) -> Outcome:
        """Execute a batch until it is done, its time box ends, or it is stopped."""
        lease = Lease(batch, self)
        definition = self.find_atom(batch)
        timer = None
        self._leases[batch.key] = lease
        if batch.run_id in self._stopped:
            lease.stopped = True
        if len(batch) > 1:
            timer = threading.Timer(batch.seconds, lease.surrender)
            timer.daemon = True
            timer.start()
        try:
            return lease.run(definition)
        finally:
            del self._leases[batch.key]
            if timer is not None:
                timer.cancel()


class Lease:
    """A batch while it executes.

    The loop that executes and whoever ends the lease early share one iterator: who draws an
    electron from it owns it. Drawing from a list's iterator is atomic under the interpreter lock,
    so that the loop needs no lock and no look at the clock.
    """

    def __init__(self, batch: Batch, site: Site) -> None:
        self.batch = batch
        self.site = site
        self.stopped = False
        self.rng = Positioned()
        self._thread = threading.get_ident()
        self._claims: _Claims | None = None
        self._given = 0
        self._released = False
        self._lock = threading.Lock()
        self._failed: list[int] = []
        self._codes: list[int] = []
        self._failures: list[Failure] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._stacks: dict[Any, str] = {}

    # -- what others may ask of it ----------------------------------------------------------

    def surrender(self) -> None:
        """Give back the electrons that have not been begun."""
        with self._lock:
            rest = 0 if self._claims is None else self._claims.drain()
            self._given += rest
            kept = len(self.batch) - self._given
        if rest:
            self.site.give_back(self.batch, kept)

    def about_to_wait(self) -> None:
        """Give up the slot, once: the running electron is about to wait for its children."""
        if not self._released and threading.get_ident() == self._thread:
            self._released = True
            self.surrender()
            self.site.release_slot()

    def emit(self, event: Event) -> None:
        """Put an event on the stream of whoever sent this batch."""
        self.site.emit(self.batch.origin.channel, event)

    def conductor(self, offset: int) -> Any:
        """Return the conductor for what the electron at `offset` sends."""
        origin = self.batch.origin._replace(depth=self.batch.origin.depth + 1)
        stream, index = self.batch.address(offset)
        return self.site.children(origin, stream.child(index), self)

    # -- executing --------------------------------------------------------------------------

    def run(self, definition: Definition) -> Outcome:
        """Execute the batch."""
        start_ns = time_ns()
        start = perf_counter()
        results: dict[str, Column] | list[Any]
        counts, scalar = None, True
        if definition.vectorized and not isinstance(self.batch.inputs, Rows):
            assert isinstance(definition, FunctionAtom)
            results, ends, counts = self._run_slices(definition)
            scalar = results.keys() <= {"result"}
        else:
            outputs = _Results(as_they_are=self.batch.ids is not None)
            ends = self._run_each(definition, outputs)
            results, scalar = outputs.joined()
        return Outcome(
            kept=len(self.batch) - self._given,
            results=results,
            failed=np.array(self._failed, dtype=np.int64),
            codes=np.array(self._codes, dtype=np.int32),
            failures=self._failures,
            start_ns=start_ns,
            ends=ends - start,
            counts=counts,
            worker=self.site.name,
            scalar=scalar,
        )

    def _begin(self, claims: _Claims) -> None:
        with self._lock:
            self._claims = claims
        if self.stopped:  # since before there was anything to give back
            self.surrender()

    def _run_each(self, definition: Definition, outputs: _Results) -> np.ndarray:
        """Execute one electron after another; return when each of them ended."""
        call, arguments = self._bond(definition)
        claims = _Claims(len(self.batch), _AT_ONCE)
        self._begin(claims)
        times: list[np.ndarray] = []
        results: list[Any] = []
        ends: list[float] = []
        keep, stamp, clock = results.append, ends.append, perf_counter
        offset = 0
        # Piece by piece, so that arguments and results are in the cache, and become columns
        # before they are millions of objects.
        while count := claims.draw():
            first, *others = arguments(offset, offset + count)
            calls = map(call, claims.each_of(first), *others)
            while True:
                try:
                    for result in calls:
                        keep(result)
                        stamp(clock())
                except BaseException as error:  # noqa: BLE001 - SystemExit is an atom's failure too
                    self._fail(offset + len(ends), error)
                    stamp(clock())
                    continue
                if len(ends) == claims.drawn_of_piece():
                    break
                # `for` took a StopIteration that the atom raised for the end of its electrons.
                self._fail(offset + len(ends), RuntimeError("the atom raised StopIteration"))
                stamp(clock())
            offset += len(ends)
            outputs.add(results)
            times.append(np.fromiter(ends, dtype=np.float64, count=len(ends)))
            results.clear()
            ends.clear()
        return np.concatenate(times) if times else np.empty(0)

    def _bond(self, definition: Definition) -> tuple[Callable[..., Any], _Arguments]:
        """Return what to call, and its arguments for electrons from one offset to another.

        The first of these is a list: see `_Claims.each_of`.
        """
        inputs = self.batch.inputs
        if isinstance(definition, ClassAtom):
            return self._bond_class(definition), lambda a, b: [list(range(a, b))]
        assert isinstance(definition, FunctionAtom)
        if isinstance(inputs, Rows):
            payloads = inputs.payloads
            return self._bond_rows(definition), lambda a, b: [payloads[a:b], range(a, b)]
        columns = inputs.columns()
        by_position, by_keyword = definition.arrange(columns)
        call = _with_keywords(definition.function, len(by_position), by_keyword)
        names = (*by_position, *by_keyword)

        def arguments(start: int, stop: int) -> list[Any]:
            return [
                python_values(columns[name][start:stop])
                if name in columns
                else map(Context, repeat(self), range(start, stop))
                for name in names
            ]

        if names[0] in columns:
            return call, arguments
        return lambda _, *values: call(*values), lambda a, b: [list(range(a, b)), *arguments(a, b)]

    def _bond_rows(self, definition: FunctionAtom) -> Callable[[Any, int], Any]:
        function = definition.function
        fitting: set[tuple[str, ...]] = set()

        def call(payload: Any, offset: int) -> Any:
            fields = {} if payload is None else payload
            # Electrons of one sender have the same few sets of fields.
            known = type(fields) is dict or isinstance(fields, Mapping)
            if not known or (names := tuple(fields)) not in fitting:
                definition.check_payload(payload)
                fitting.add(names)
            if definition.vectorized:
                return self._call_with_arrays_of_one(definition, fields, offset)
            if definition.takes_context:
                return function(**fields, context=Context(self, offset))
            return function(**fields)

        return call

    def _call_with_arrays_of_one(
        self, definition: FunctionAtom, fields: Mapping[str, Any], offset: int
    ) -> Any:
        arguments: dict[str, Any] = {name: column([value]) for name, value in fields.items()}
        if definition.takes_context:
            arguments["context"] = Context(self, offset, 1)
        outputs = _outputs_of_slice(definition.function(**arguments), 1)
        row = {name: python_values(values)[0] for name, values in outputs.items()}
        return row["result"] if row.keys() == {"result"} else row

    def _bond_class(self, definition: ClassAtom) -> Callable[[int], Any]:
        def call(offset: int) -> Any:
            context = Context(self, offset)
            instance = definition.instantiate(self.batch.copy_state)
            return instance.process(context, context.conductor, context.electron)

        return call

    # -- vectorised -------------------------------------------------------------------------

    def _run_slices(
        self, definition: FunctionAtom
    ) -> tuple[dict[str, Column], np.ndarray, np.ndarray]:
        """Execute slice after slice; return the outputs, and when how many electrons ended."""
        inputs = self.batch.inputs
        assert not isinstance(inputs, Rows)
        columns = {name: numpy_values(values) for name, values in inputs.columns().items()}
        slices = _Claims(len(self.batch), _FIRST_SLICE)
        self._begin(slices)
        parts: list[tuple[int, dict[str, Column]]] = []
        ends: list[float] = []
        counts: list[int] = []
        offset = 0
        while count := slices.draw():
            before = perf_counter()
            parts += self._run_slice(definition, columns, offset, count)
            offset += count
            ends.append(perf_counter())
            counts.append(count)
            slices.learn(count, ends[-1] - before)
        return _join(parts), np.array(ends), np.array(counts, dtype=np.int64)

    def _run_slice(
        self, definition: FunctionAtom, columns: dict[str, np.ndarray], offset: int, count: int
    ) -> list[tuple[int, dict[str, Column]]]:
        arguments: dict[str, Any] = {
            name: values[offset : offset + count] for name, values in columns.items()
        }
        if definition.takes_context:
            arguments["context"] = Context(self, offset, count)
        try:
            result = definition.function(**arguments)
        except BaseException as error:  # noqa: BLE001 - SystemExit in an atom is its failure too
            if count == 1:
                self._fail(offset, error)
                return []
            half = count // 2
            left = self._run_slice(definition, columns, offset, half)
            return left + self._run_slice(definition, columns, offset + half, count - half)
        try:
            outputs = _outputs_of_slice(result, count)
        except (ValueError, TypeError) as error:
            # Not to be bisected: in halves a wrong shape may look like a right one.
            for position in range(offset, offset + count):
                self._fail(position, error)
            return []
        return [(count, {name: Column(values) for name, values in outputs.items()})]

    # -- failing ----------------------------------------------------------------------------

    def _fail(self, offset: int, error: BaseException) -> None:
        kind: Kind = "invalid_payload" if isinstance(error, InvalidPayloadError) else "exception"
        alike = (kind, type(error).__qualname__, _text_of(error), self._traceback_of(error))
        # The first exception stands for all of the same text: a million alike stay small.
        if alike not in self._known:
            self._known[alike] = len(self._failures)
            self._failures.append(Failure(*alike, exception=error.with_traceback(None)))
        self._failed.append(offset)
        self._codes.append(self._known[alike])

    def _traceback_of(self, error: BaseException) -> str:
        inner = error.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
            inner = inner.tb_next
        if error.__cause__ is not None or error.__context__ is not None:
            return "".join(traceback.format_exception(type(error), error, inner))
        # Formatting costs 50 microseconds, and failures of a run mostly share their stack.
        lines = tuple((frame.f_code, line) for frame, line in traceback.walk_tb(inner))
        if lines not in self._stacks:
            self._stacks[lines] = "".join(traceback.format_tb(inner))
        head = "Traceback (most recent call last):\n" if lines else ""
        return head + self._stacks[lines] + "".join(traceback.format_exception_only(error))


class _Claims:
    """The electrons of a batch that nobody has begun, handed out piece by piece.

    Parameters
    ----------
    electrons
        How many there are.
    size
        Of the first piece.
    """

    def __init__(self, electrons: int, size: int) -> None:
        self._left = electrons
        self._size = size
        self._lock = threading.Lock()
        self._count = 0  # of the piece that was drawn last
        self._each: Iterator[Any] = iter(())

    def draw(self) -> int:
        """Return how many electrons the next piece has; 0 when there are none left."""
        with self._lock:
            self._count = min(self._size, self._left)
            self._left -= self._count
            return self._count

    def each_of(self, values: list[Any]) -> Iterator[Any]:
        """Return an iterator over the piece, which `drain` cuts short.

        Drawing from the iterator of a list is atomic under the interpreter lock: an electron
        belongs to whoever draws it.
        """
        self._each = iter(values)
        return self._each

    def drawn_of_piece(self) -> int:
        """Return how many electrons of the piece its iterator has given to the loop."""
        with self._lock:
            return self._count - length_hint(self._each)

    def drain(self) -> int:
        """Take all that have not been begun and return how many they were."""
        with self._lock:
            of_piece = len(list(self._each))
            self._count -= of_piece
            left, self._left = self._left, 0
            return of_piece + left

    def learn(self, count: int, seconds: float) -> None:
        """Size pieces so that one takes `_SLICE_SECONDS`, now that one of `count` took `seconds`."""
        fitting = int(count * _SLICE_SECONDS / max(seconds, 1e-6))
        self._size = max(1, min(fitting, 8 * self._size, _LARGEST_SLICE))


def _with_keywords(
    function: Callable[..., Any], positional: int, keywords: list[str]
) -> Callable[..., Any]:
    if not keywords:
        return function
    if keywords == ["context"]:  # by far the most frequent, and worth half a microsecond
        return lambda *values: function(*values[:-1], context=values[-1])
    return lambda *values: function(
        *values[:positional], **dict(zip(keywords, values[positional:], strict=True))
    )


def outputs_of(results: list[Any]) -> tuple[dict[str, Column], bool]:
    """Return the results of scalar atoms as output columns, and whether they came as scalars."""
    if results and type(results[0]) is dict and results[0]:
        names = list(results[0])
        try:
            # dict.__len__ refuses what is no dict; as many fields and none missing are the same.
            same = sum(map(dict.__len__, results)) == len(names) * len(results)
            if same and all(type(name) is str for name in names):
                return {n: _output([row[n] for row in results]) for n in names}, False
        except (TypeError, KeyError):
            pass
    if any(issubclass(kind, Mapping) for kind in set(map(type, results))):
        return _outputs_of_mixed(results)
    return {"result": _output(results)} if results else {}, True


def _outputs_of_mixed(results: list[Any]) -> tuple[dict[str, Column], bool]:
    rows = [row if _is_record(row) else {"result": row} for row in results]
    absent = object()
    outputs = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name, absent) for row in rows]
        outputs[name] = _output([None if value is absent else value for value in values])
    return outputs, not all(map(_is_record, results))


def _is_record(result: Any) -> bool:
    return isinstance(result, Mapping) and all(type(name) is str for name in result)


def _output(values: list[Any]) -> Column:
    types = set(map(type, values))
    if type(None) not in types:
        return Column(column(values, types))
    present = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    return Column(column([value for value in values if value is not None]), present)


def _outputs_of_slice(result: Any, electrons: int) -> dict[str, Values]:
    """Return what a vectorised atom returned as output columns.

    Raises
    ------
    ValueError
        Where it does not have one row per electron.
    """
    if hasattr(result, "iloc") and hasattr(result, "columns"):
        outputs: dict[str, Any] = {str(name): result[name].array for name in result.columns}
        outputs = {
            name: values.to_numpy() if hasattr(values, "_ndarray") else values
            for name, values in outputs.items()
        }
    elif isinstance(result, Mapping):
        outputs = {str(name): np.asarray(values) for name, values in result.items()}
    else:
        outputs = {"result": np.asarray(result)}
    for name, values in outputs.items():
        got = f"{len(values)} values" if np.ndim(values) else "a single value"
        if not np.ndim(values) or len(values) != electrons:
            what = "" if name == "result" else f" for the output {name!r}"
            raise ValueError(
                f"a vectorised atom must return one value per electron: it was given {electrons} "
                f"electrons and returned {got}{what}"
            )
    return outputs


def _join(parts: list[tuple[int, dict[str, Column]]]) -> dict[str, Column]:
    """Return the outputs of consecutive electrons as one; each part says of how many it is."""
    joined = {}
    for name in dict.fromkeys(name for _, outputs in parts for name in outputs):
        columns = [(count, outputs.get(name)) for count, outputs in parts]
        values = concatenate([column.values for _, column in columns if column is not None])
        present = None
        if any(column is None or column.present is not None for _, column in columns):
            present = np.concatenate([_presence(count, column) for count, column in columns])
        joined[name] = Column(values, present)
    return joined


def _presence(count: int, column: Column | None) -> np.ndarray:
    if column is None or column.present is None:
        return np.full(count, column is not None)
    return column.present


class _Results:
    """Collects results of atoms that are not vectorised."""

    def __init__(self, *, as_they_are: bool) -> None:
        self._list: list[Any] | None = [] if as_they_are else None
        self._parts: list[tuple[int, dict[str, Column]]] = []
        self._scalar = True

    def add(self, results: list[Any]) -> None:
        if self._list is not None:
            self._list += results
        elif results:
            outputs, scalar = outputs_of(results)
            self._parts.append((len(results), outputs))
            self._scalar &= scalar

    def joined(self) -> tuple[dict[str, Column] | list[Any], bool]:
        if self._list is not None:
            return self._list, True
        return _join(self._parts), self._scalar


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ that raises must not cost the batch
        return f"<its __str__ raised {type(broken).__name__}>"
