"""Bond and execute a batch: no Dask in it, runs anywhere.

A batch is a lease on electrons: the site executes them one after another until the time box ends
or somebody asks it to stop, gives back what has not been begun, and returns the rest as columns.
"""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from operator import length_hint
from time import perf_counter, time_ns
from typing import Any

import numpy as np

from atomizer_dask.atom import ClassAtom, Definition, FunctionAtom
from atomizer_dask.batch import Batch, Origin
from atomizer_dask.columns import column, numpy_values, python_values
from atomizer_dask.context import Context
from atomizer_dask.errors import AtomizerError, InvalidPayloadError, Kind, text_of
from atomizer_dask.events import Event
from atomizer_dask.outcome import Column, Failure, Outcome
from atomizer_dask.outputs import Results, join, outputs_of_slice
from atomizer_dask.streams import Positioned, Stream
from atomizer_dask.sweep import Columns, GridSlice, Rows

_FIRST_SLICE = 1024
_LARGEST_SLICE = 2**20
_AT_ONCE = 1024  # electrons whose arguments and results are Python objects at a time
_SLICE_SECONDS = 0.02  # how finely a vectorised batch can be interrupted

_Arguments = Callable[[int, int], list[Any]]


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
        inputs = _for_slices(definition, self.batch)
        results: dict[str, Column] | list[Any]
        counts, scalar = None, True
        if inputs is not None:
            assert isinstance(definition, FunctionAtom)
            results, ends, counts = self._run_slices(definition, inputs)
            scalar = results.keys() <= {"result"}
        else:
            outputs = Results(as_they_are=self.batch.ids is not None)
            ends = self._run_each(definition, outputs)
            results, scalar = outputs.joined()
        with self._lock:  # somebody may be giving back at this very moment
            kept = len(self.batch) - self._given
        return Outcome(
            kept=kept,
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

    def _run_each(self, definition: Definition, outputs: Results) -> np.ndarray:
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
        outputs = outputs_of_slice(definition.function(**arguments), 1)
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
        self, definition: FunctionAtom, inputs: Columns | GridSlice
    ) -> tuple[dict[str, Column], np.ndarray, np.ndarray]:
        """Execute slice after slice; return the outputs, and when how many electrons ended."""
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
        return join(parts), np.array(ends), np.array(counts, dtype=np.int64)

    def _run_slice(
        self, definition: FunctionAtom, columns: dict[str, np.ndarray], offset: int, count: int
    ) -> list[tuple[int, dict[str, Column]]]:
        arguments: dict[str, Any] = {
            # Copies, for an atom that works in place must see the same again when bisected.
            name: values[offset : offset + count].copy()
            for name, values in columns.items()
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
            outputs = outputs_of_slice(result, count)
        except (ValueError, TypeError) as error:
            # Not to be bisected: in halves a wrong shape may look like a right one.
            for position in range(offset, offset + count):
                self._fail(position, error)
            return []
        return [(count, {name: Column(values) for name, values in outputs.items()})]

    # -- failing ----------------------------------------------------------------------------

    def _fail(self, offset: int, error: BaseException) -> None:
        kind: Kind = "invalid_payload" if isinstance(error, InvalidPayloadError) else "exception"
        alike = (
            kind,
            type(error).__qualname__,
            error.event.message if isinstance(error, AtomizerError) else text_of(error),
            self._traceback_of(error),
        )
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
        """Size pieces to take `_SLICE_SECONDS`, now that one of `count` took `seconds`."""
        fitting = int(count * _SLICE_SECONDS / max(seconds, 1e-6))
        self._size = max(1, min(fitting, 8 * self._size, _LARGEST_SLICE))


def _with_keywords(
    function: Callable[..., Any], positional: int, keywords: list[str]
) -> Callable[..., Any]:
    if not keywords:
        return function
    if keywords == ["context"]:  # by far the most frequent, and worth half a microsecond
        return lambda *values: function(*values[:-1], context=values[-1])
    if positional:
        return lambda *values: function(
            *values[:positional], **dict(zip(keywords, values[positional:], strict=True))
        )
    return lambda *values: function(**dict(zip(keywords, values, strict=True)))


def _for_slices(definition: Definition, batch: Batch) -> Columns | GridSlice | None:
    """Return the inputs of a vectorised atom as columns; None where electrons go one by one."""
    inputs = batch.inputs
    if not definition.vectorized:
        return None
    if not isinstance(inputs, Rows):
        return inputs
    payloads = inputs.payloads
    if batch.ids is not None or not all(isinstance(payload, Mapping) for payload in payloads):
        return None
    names = list(payloads[0])
    try:
        definition.check_fields(names)
    except InvalidPayloadError:
        return None
    if any(payload.keys() != payloads[0].keys() for payload in payloads):
        return None
    return Columns({n: column([row[n] for row in payloads]) for n in names}, len(payloads))
