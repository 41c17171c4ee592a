"""Bond and execute a batch: no Dask in it, runs anywhere.

A batch is a lease on electrons: the site executes them one after another until the time box ends
or somebody asks it to stop, gives back what has not been begun, and returns the rest as columns.
"""

from __future__ import annotations

import itertools
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import repeat
from math import inf
from time import perf_counter, time_ns
from typing import Any

import numpy as np

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.context import Context
from atomizer_dask.atoms.definition import ClassAtom, Definition, FunctionAtom
from atomizer_dask.atoms.global_generators import TURN
from atomizer_dask.atoms.random_streams import Positioned, Stream
from atomizer_dask.conductor import Conductor
from atomizer_dask.errors import (
    AtomizerError,
    DependentRowsError,
    InvalidPayloadError,
    Kind,
    text_of,
)
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Column, Outcome
from atomizer_dask.execution.outputs import (
    Results,
    errors_of_slice,
    join,
    join_outcomes,
    outputs_of_slice,
)
from atomizer_dask.execution.remaining import Claims
from atomizer_dask.execution.row_dependence import Cuts, fault_of, longest_stretch, warning_of
from atomizer_dask.execution.timeout import OvertimeError, TimeIsUp, Watch
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.columns import (
    as_objects,
    column,
    loop_values,
    numpy_values,
    python_values,
)
from atomizer_dask.sweeps.copies import (
    IMMUTABLE,
    can_change,
    column_can_change,
    own_copy,
    own_payload,
)
from atomizer_dask.sweeps.inputs import Columns, GridSlice, Rows, numpy_or_extension

_FIRST_SLICE = 1024
_AT_ONCE = 1024  # electrons whose arguments and results are Python objects at a time
_HAND_OVER_SECONDS = 0.1  # an electron that runs on for so long holds back no others

_REMEMBERED = 10_000  # runs that were stopped

_Arguments = Callable[[int, int], list[Any]]
Pieces = Iterator[Outcome]


class Keeper:
    """Keeps a singleton: one electron at a time, and the instance between them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.instance: Atom | None = None
        self.inmate: Any = None  # the child process where it is, if it is in one


class Site(ABC):
    """Where batches are executed: what the place provides to an executing batch."""

    name: str = ""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._stopped: dict[str, tuple[int, bool]] = {}
        self._keepers: dict[Any, Keeper] = {}
        self.cuts = Cuts()

    @abstractmethod
    def find_atom(self, batch: Batch) -> Definition:
        """Return the atom of a batch."""

    @abstractmethod
    def give_back(self, batch: Batch, kept: int) -> None:
        """Tell the driver that all but the first `kept` electrons are free for others."""

    def tell(self, batch: Batch, outcome: Outcome) -> bool:
        """Tell the driver what has ended of a batch that has not, and return whether it is told."""
        return False

    @abstractmethod
    def emit(self, channel: str, event: Event) -> None:
        """Put an event on a stream."""

    @abstractmethod
    def release_slot(self) -> None:
        """Let somebody else run in this thread's place: it is about to wait."""

    @abstractmethod
    def children(self, origin: Origin, root: str, stream: Stream, lease: Lease) -> Any:
        """Return the conductor through which an electron, which descends from `root`, sends."""

    def seconds_for(self, batch: Batch) -> float:
        """Return how long a batch that begins now may take."""
        return batch.seconds

    def isolates(self, batch: Batch, definition: Definition) -> bool:
        """Return whether a batch is to be executed where it can do no harm."""
        return False

    def execute_pieces(self, lease: Lease, definition: Definition, claims: Claims) -> Pieces:
        """Execute a batch where it can do no harm, and yield the outcomes of its pieces."""
        raise NotImplementedError

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Give back what has not been begun of a run, or of what an electron sent.

        Parameters
        ----------
        root
            The run or the electron; or the channel of all that was sent from there one by one.
        epoch
            Only batches made up to then.
        cancel
            Tell the running electrons too.
        """
        # For batches that are still to begin. Of very many runs the first are long over.
        self._stopped[root] = epoch, cancel
        if len(self._stopped) > _REMEMBERED:
            del self._stopped[next(iter(self._stopped))]
        for lease in list(self._leases.values()):
            lease.heed(root, epoch, cancel)

    def execute(self, batch: Batch) -> Outcome:
        """Execute a batch until it is done, its time box ends, or it is stopped."""
        lease = self.lease(batch)
        definition = self.find_atom(batch)
        self._leases[batch.key] = lease
        if self._stopped:
            names = batch.root_id, batch.origin.channel, *(batch.ids or ()), *(batch.roots or ())
            for root in set(names):
                if root in self._stopped:
                    lease.heed(root, *self._stopped[root])
        try:
            if not definition.singleton:
                return lease.run(definition)
            return self._execute_singleton(lease, definition)
        finally:
            del self._leases[batch.key]

    def lease(self, batch: Batch) -> Lease:
        """Return the lease on a batch that is about to be executed."""
        return Lease(batch, self)

    def keeper(self, batch: Batch) -> Keeper:
        """Return the keeper of the singleton that a batch is for."""
        return self._keepers.setdefault(batch.version, Keeper())

    def _execute_singleton(self, lease: Lease, definition: Definition) -> Outcome:
        lock = self.keeper(lease.batch).lock
        while not lock.acquire(timeout=_HAND_OVER_SECONDS):
            if lease.stopped:
                return Outcome.none()
        try:
            return lease.run(definition)
        finally:
            lock.release()


class Lease:
    """A batch while it executes.

    The loop that executes and whoever ends the lease early share one iterator: who draws an
    electron from it owns it. Drawing from a list's iterator is atomic under the interpreter lock,
    so that the loop needs no lock and no look at the clock.
    """

    def __init__(self, batch: Batch, site: Site, watch: Watch | None = None) -> None:
        self.batch = batch
        self.site = site
        self.watch = watch
        self.surrendered = False  # what had not begun then is others' now
        self.stopped = False  # gives back what it has not begun
        self.cancelled = False  # and its running electron shall end too
        self.cancelled_ones: set[int] = set()
        self.rng = Positioned()
        self.making = threading.Lock()  # of the conductor of one of its electrons
        self._thread = threading.get_ident()
        self._began = perf_counter()
        self._claims: Claims | None = None
        self._given = 0
        self._released = False
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._told = 0
        self._so_far: Callable[[], Outcome] | None = None
        self._failed: list[int] = []
        self._codes: list[int] = []
        self._failures: list[Failure] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._stacks: dict[Any, str] = {}

    # -- what others may ask of it ----------------------------------------------------------

    def surrender(self) -> None:
        """Give back the electrons that have not been begun."""
        self.surrendered = True
        with self._lock:
            rest = 0 if self._claims is None else self._claims.drain()
            self._given += rest
            kept = len(self.batch) - self._given
        if rest:
            self.site.give_back(self.batch, kept)

    def surrender_from(self, kept: int) -> None:
        """Give back all but the first `kept` electrons, which its own thread will not begin."""
        with self._lock:
            given = len(self.batch) - kept
            more, self._given = given > self._given, max(given, self._given)
        if more:
            self.site.give_back(self.batch, kept)

    def hand_over(self) -> None:
        """Tell what has ended, where the running electron goes on for long."""
        if self._over.wait(_HAND_OVER_SECONDS):
            return
        with self._lock:
            if self._over.is_set() or self._so_far is None:
                return
            outcome = self._so_far()
            part = outcome.part(self._told, outcome.kept)
            if len(part) and self.site.tell(self.batch, part):
                self._told = max(self._told, outcome.kept)

    def ran(self) -> float:
        """Return for how long the electron that is running has been."""
        with self._lock:
            done = 0.0 if self._so_far is None else self._so_far().seconds
        return perf_counter() - self._began - done

    def heed(self, root: str, epoch: int, cancel: bool) -> None:
        """Stop where this concerns the batch."""
        batch = self.batch
        sent_by_hand = batch.ids is not None and batch.origin.depth == 0
        if batch.root_id == root and batch.epoch <= epoch:
            self.cancelled |= cancel
            self.stopped = True
        elif sent_by_hand and batch.origin.channel == root:
            self.stopped = True
        elif cancel and (those := batch.descendants(root)):
            self.cancelled_ones.update(those)
        else:
            return
        self.surrender()
        threading.Thread(target=self.hand_over, name="atomizer-hand-over", daemon=True).start()

    def is_cancelled(self, offset: int) -> bool:
        """Return whether the electron at `offset` shall end."""
        if self.cancelled or offset in self.cancelled_ones:
            return True
        left = None if self.watch is None else self.watch.left()
        return left is not None and left <= 0

    def about_to_wait(self) -> None:
        """Give up the slot, once: the running electron is about to wait for its children."""
        if not self._released and threading.get_ident() == self._thread:
            self._released = True
            self.surrender()
            self.site.release_slot()

    @property
    def waits(self) -> bool:
        """Whether its electron goes on, and has waited for what it sent."""
        return self._released and not self._over.is_set()

    def emit(self, event: Event) -> None:
        """Put an event on the stream of whoever sent this batch."""
        self.site.emit(self.batch.origin.channel, event)

    def conductor(self, offset: int) -> Any:
        """Return the conductor for what the electron at `offset` sends."""
        batch = self.batch
        origin = batch.origin._replace(depth=batch.origin.depth + 1, space=batch.space)
        stream, index = batch.address(offset)
        return self.site.children(origin, batch.root(offset), stream.child(index), self)

    # -- executing --------------------------------------------------------------------------

    def run(self, definition: Definition) -> Outcome:
        """Execute the batch."""
        timer = None
        seconds = self.site.seconds_for(self.batch) if len(self.batch) > 1 else inf
        if seconds < inf:
            timer = threading.Timer(seconds, self._time_is_up)
            timer.daemon = True
            timer.start()
        try:
            outcome = self._run(definition)
        finally:
            self._over.set()
            if timer is not None:
                timer.cancel()
        with self._lock:  # somebody may be giving back, or telling, at this very moment
            kept = len(self.batch) - self._given
            return replace(outcome.part(self._told, kept), kept=kept)

    def _time_is_up(self) -> None:
        self.surrender()
        self.hand_over()

    def _run(self, definition: Definition) -> Outcome:
        if not definition.draws_from:
            return self._run_as_it_is(definition)
        TURN.begin()
        try:
            return self._run_as_it_is(definition)
        finally:
            TURN.end()

    def _run_as_it_is(self, definition: Definition) -> Outcome:
        if self.site.isolates(self.batch, definition):
            return self._run_pieces(definition)
        inputs = _for_slices(definition, self.batch)
        if inputs is not None:
            assert isinstance(definition, FunctionAtom)
            return self._run_slices(definition, inputs)
        return self._run_each(definition)

    def _begin(self, claims: Claims, so_far: Callable[[], Outcome] | None) -> None:
        with self._lock:
            self._claims = claims
            self._so_far = so_far
        if self.stopped:  # since before there was anything to give back
            self.surrender()

    def _outcome(
        self,
        results: dict[str, Column] | list[Any],
        start: tuple[int, float],
        ends: np.ndarray,
        counts: np.ndarray | None = None,
        *,
        scalar: bool = True,
    ) -> Outcome:
        kept = len(ends) if counts is None else int(counts.sum())
        known = sum(offset < kept for offset in self._failed) if self._failed else 0
        return Outcome(
            kept=kept,
            results=results,
            failed=np.array(self._failed[:known], dtype=np.int64),
            codes=np.array(self._codes[:known], dtype=np.int32),
            failures=list(self._failures),
            start_ns=start[0],
            ends=ends - start[1],
            counts=counts,
            worker=self.site.name,
            scalar=scalar,
        )

    def _run_pieces(self, definition: Definition) -> Outcome:
        """Execute piece after piece where they can do no harm."""
        first = 2 if definition.vectorized else 1
        claims = Claims(len(self.batch), first)
        pieces: list[Outcome] = []

        def so_far() -> Outcome:
            return join_outcomes(pieces, self.site.name)

        self._begin(claims, so_far)
        for piece in self.site.execute_pieces(self, definition, claims):
            with self._lock:
                pieces.append(piece)
        return so_far()

    def _run_each(self, definition: Definition) -> Outcome:
        """Execute one electron after another."""
        start = time_ns(), perf_counter()
        call, arguments = self._bond(definition)
        if definition.draws_from:
            call = self._seeded(call, definition.draws_from)
        if self.watch is not None:
            call = _watched(call, self.watch)
        claims = Claims(len(self.batch), _AT_ONCE)
        outputs = Results(as_they_are=self.batch.ids is not None)
        times: list[np.ndarray] = []
        results: list[Any] = []
        ends: list[float] = []
        clock = perf_counter

        def so_far() -> Outcome:
            # What was stamped is complete, for that is the last thing done about an electron.
            stamped = np.array(ends)
            done = sum(map(len, times))
            failed = sum(done <= offset < done + len(stamped) for offset in self._failed)
            joined, scalar = outputs.joined(results[: len(stamped) - failed])
            return self._outcome(joined, start, _concatenated([*times, stamped]), scalar=scalar)

        self._begin(claims, so_far)
        offset = 0
        # Piece by piece, so that arguments and results are in the cache, and become columns
        # before they are millions of objects.
        while count := claims.draw():
            keep, stamp = results.append, ends.append
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
            with self._lock:  # `so_far` must not see one changed and not the other
                outputs.add(results)
                times.append(np.fromiter(ends, dtype=np.float64, count=len(ends)))
                results.clear()
                ends.clear()
        joined, scalar = outputs.joined()
        return self._outcome(joined, start, _concatenated(times), scalar=scalar)

    def _seeded(
        self, call: Callable[..., Any], which: frozenset[str], offset: int | None = None
    ) -> Callable[..., Any]:
        """Return a call before which shared generators are seeded for the electron.

        Of a slice for the first one; without an `offset` it counts the electrons itself.
        """
        offsets: Iterable[int] = repeat(offset) if offset is not None else itertools.count()
        following = iter(offsets).__next__

        def seeded(*values: Any, **named: Any) -> Any:
            TURN.take(which, *self.batch.address(following()))
            try:
                return call(*values, **named)
            finally:
                TURN.give()

        return seeded

    def _bond(self, definition: Definition) -> tuple[Callable[..., Any], _Arguments]:
        """Return what to call, and its arguments for electrons from one offset to another.

        The first of these is a list: see `Claims.each_of`.
        """
        inputs = self.batch.inputs
        if isinstance(definition, ClassAtom):
            return self._bond_class(definition), lambda a, b: [list(range(a, b))]
        assert isinstance(definition, FunctionAtom)
        if isinstance(inputs, Rows):
            payloads = inputs.payloads
            return self._bond_rows(definition), lambda a, b: [payloads[a:b], range(a, b)]
        columns = inputs.shared_columns() if isinstance(inputs, GridSlice) else inputs.columns()
        by_position, by_keyword = definition.arrange(columns)
        call = _with_keywords(definition.function, len(by_position), by_keyword)
        names = (*by_position, *by_keyword)

        changing = {name for name in columns if column_can_change(columns[name])}

        def arguments(start: int, stop: int) -> list[Any]:
            return [values_of(name, start, stop) for name in names]

        def values_of(name: str, start: int, stop: int) -> Any:
            if name not in columns:
                return map(Context, repeat(self), range(start, stop))
            values = loop_values(columns[name][start:stop], scalars=name in inputs.scalars)
            # One after another: of something large there are no thousand copies at a time.
            return map(own_copy, values) if name in changing else values

        if names[0] in columns and names[0] not in changing:
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
            if not IMMUTABLE.issuperset(map(type, fields.values())):
                fields = own_payload(fields)
            if definition.vectorized:
                arrays = {name: column([value]) for name, value in fields.items()}
                return self._call_with_arrays_of_one(definition, arrays, offset)
            if definition.takes_context:
                return function(**fields, context=Context(self, offset))
            return function(**fields)

        return call

    def _call_with_arrays_of_one(
        self, definition: FunctionAtom, arrays: Mapping[str, np.ndarray], offset: int
    ) -> Any:
        arguments: dict[str, Any] = dict(arrays)
        if definition.takes_context:
            arguments["context"] = Context(self, offset, 1)
        outputs = outputs_of_slice(definition.function(**arguments), 1)
        row = {name: python_values(values)[0] for name, values in outputs.items()}
        return row["result"] if row.keys() == {"result"} else row

    def _bond_class(self, definition: ClassAtom) -> Callable[[int], Any]:
        # Once, for what a site needs to make one is found in this thread, and not in one that the
        # atom starts.
        self.conductor(0)

        def call(offset: int) -> Any:
            context = Context(self, offset)
            instance = self._instance(definition)
            return instance.process(context, LateConductor(context), context.electron)

        return call

    def call_first(self, definition: Definition) -> Any:
        """Execute the first electron of the batch and return its result, or raise."""
        if definition.vectorized:
            assert isinstance(definition, FunctionAtom)
            first = _for_slices(definition, self.batch.part(0, 1))
            if first is not None:
                arrays = {n: _own_array(numpy_values(v)) for n, v in first.columns().items()}
                return self._call_with_arrays_of_one(definition, arrays, 0)
        call, arguments = self._bond(definition)
        if definition.draws_from:
            call = self._seeded(call, definition.draws_from)
        return call(*(next(iter(values)) for values in arguments(0, 1)))

    def _instance(self, definition: ClassAtom) -> Atom:
        """Return the instance that shall process an electron."""
        if not definition.singleton:
            return definition.instantiate(self.batch.copy_state)
        keeper = self.site.keeper(self.batch)
        if keeper.instance is None:
            keeper.instance = definition.instantiate(copy_state=definition.instance is not None)
            message = f"singleton initialised on {self.site.name}"
            batch = self.batch
            self.emit(Event(message, atom_id=batch.atom_id, run_id=batch.run_id))
        return keeper.instance

    # -- vectorised -------------------------------------------------------------------------

    def _run_slices(self, definition: FunctionAtom, inputs: Columns | GridSlice) -> Outcome:
        """Execute slice after slice, and see to it that their rows do not depend on each other."""
        start = time_ns(), perf_counter()
        examination = _Examination(self, definition)
        columns = {name: numpy_values(values) for name, values in inputs.columns().items()}
        slices = Claims(len(self.batch), _FIRST_SLICE)
        parts: list[tuple[int, dict[str, Column]]] = []
        ends: list[float] = []
        counts: list[int] = []

        def so_far() -> Outcome:
            results = join(parts)
            scalar = results.keys() <= {"result"}
            how_many = np.array(counts, dtype=np.int64)
            return self._outcome(results, start, np.array(ends), how_many, scalar=scalar)

        self._begin(slices, so_far)
        offset = 0
        while count := slices.draw():
            before = perf_counter()
            done = [] if examination.fault else self._run_slice(definition, columns, offset, count)
            took = perf_counter() - before
            examination.look_at(columns, offset, count, done, took)
            with self._lock:
                if examination.fault is not None:
                    done = []
                    self._fail_slice(offset, count, examination.fault)
                parts += done
                offset += count
                ends.append(perf_counter())
                counts.append(count)
            slices.learn(count, took)
        return so_far()

    def _fail_slice(self, offset: int, count: int, error: BaseException) -> None:
        """Have all electrons of a slice fail, also those that have failed with something else."""
        known = sum(failed < offset for failed in self._failed)
        del self._failed[known:], self._codes[known:]
        for position in range(offset, offset + count):
            self._fail(position, error)

    def good_of(self, offset: int, count: int) -> np.ndarray:
        """Return the offsets of those in a slice that has been executed which did not fail."""
        failed = [each - offset for each in self._failed if each >= offset]
        return offset + np.delete(np.arange(count), failed)

    def _run_slice(
        self, definition: FunctionAtom, columns: dict[str, np.ndarray], offset: int, count: int
    ) -> list[tuple[int, dict[str, Column]]]:
        arguments = _arguments_of_slice(columns, offset, count)
        if definition.takes_context:
            arguments["context"] = Context(self, offset, count)
        function = definition.function
        if definition.draws_from:
            function = self._seeded(function, definition.draws_from, offset)
        if self.watch is not None:
            function = _watched(function, self.watch, offset, count)
        try:
            result = function(**arguments)
        except BaseException as error:  # noqa: BLE001 - SystemExit in an atom is its failure too
            if count == 1:
                self._fail(offset, error)
                return []
            half = count // 2
            left = self._run_slice(definition, columns, offset, half)
            return left + self._run_slice(definition, columns, offset + half, count - half)
        try:
            result, errors = errors_of_slice(result, count)
            outputs = outputs_of_slice(result, count)
        except (ValueError, TypeError) as error:
            # Not to be bisected: in halves a wrong shape may look like a right one.
            for position in range(offset, offset + count):
                self._fail(position, error)
            return []
        if errors:
            good = np.ones(count, dtype=bool)
            good[list(errors)] = False
            outputs = {name: numpy_or_extension(v)[good] for name, v in outputs.items()}
            for position, mark in errors.items():
                self._fail(offset + position, mark)
        columns_out = {name: Column(values) for name, values in outputs.items()}
        return [(count - len(errors), columns_out)]

    # -- failing ----------------------------------------------------------------------------

    def _fail(self, offset: int, error: BaseException) -> None:
        try:
            alike, tier = self._described(offset, error), ""
            if isinstance(error, OvertimeError):
                tier = error.tier
        except BaseException as broken:  # of the exception itself, which is a class of the user's
            if is_interrupt(broken):
                raise
            how = f"<showing it raised {type(broken).__name__}>"
            alike, tier = ("exception", type(error).__qualname__, how, ""), ""
            error = RuntimeError(how)
        # The first exception stands for all of the same text: a million alike stay small.
        if alike not in self._known:
            self._known[alike] = len(self._failures)
            self._failures.append(Failure(*alike, error.with_traceback(None), tier))
        self._failed.append(offset)
        self._codes.append(self._known[alike])

    def _described(self, offset: int, error: BaseException) -> tuple[Kind, str, str, str]:
        """Return kind, type, message and traceback of a failure; raises what `error` raises."""
        kind: Kind = "invalid_payload" if isinstance(error, InvalidPayloadError) else "exception"
        name, message = type(error).__qualname__, ""
        if isinstance(error, OvertimeError):
            kind, name, message = "timeout", "TimeoutError", error.message
        elif self.cancelled or offset in self.cancelled_ones:
            kind = "cancelled"  # it heeded
        message = message or (
            error.event.message if isinstance(error, AtomizerError) else text_of(error)
        )
        return kind, name, message, self._traceback_of(error)

    def _traceback_of(self, error: BaseException) -> str:
        if isinstance(error, OvertimeError) and error.__cause__ is not None:
            error = error.__cause__  # where the atom was when its time was up
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


def _watched(
    call: Callable[..., Any], watch: Watch, offset: int | None = None, count: int = 1
) -> Callable[..., Any]:
    """Return a call that is watched; without an `offset` it counts the electrons itself."""
    offsets: Iterable[int] = repeat(offset) if offset is not None else itertools.count()
    following = iter(offsets).__next__

    def watched(*values: Any, **named: Any) -> Any:
        watch.begin(following(), count)
        try:
            try:
                result = call(*values, **named)
            except BaseException as error:
                try:
                    watch.end()
                except OvertimeError as overtime:
                    raise overtime from error
                raise
            watch.end()
        except TimeIsUp as error:  # raised just after the call
            raise watch.overtime() from error
        return result

    return watched


def _concatenated(times: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(times) if times else np.empty(0)


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


class _Silent:
    """A lease whose electrons have told all that they had to tell: they are executed again."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def emit(self, event: Event) -> None:
        """Tell nobody."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)


class _Examination:
    """Whether the rows of a vectorised atom depend on each other, as far as a batch can tell."""

    def __init__(self, lease: Lease, definition: FunctionAtom) -> None:
        batch = lease.batch
        self._lease = lease
        self._definition = definition
        self._key = batch.run_id or batch.root_id, batch.version
        self._known = lease.site.cuts.of(self._key)
        self._is_due = lease.site.cuts.is_due(self._key, lease.site.seconds_for(batch))

    @property
    def fault(self) -> DependentRowsError | None:
        """What is wrong with the atom, where it is known by now."""
        return self._known.fault

    def look_at(
        self,
        columns: Mapping[str, np.ndarray],
        offset: int,
        count: int,
        done: list[tuple[int, dict[str, Column]]],
        took: float,
    ) -> None:
        """Look at a slice that has been executed, where none has been before."""
        lease, batch = self._lease, self._lease.batch
        if not self._is_due or self.fault or lease.stopped or not done or count == 1:
            return
        good = lease.good_of(offset, count)
        start, stop = longest_stretch(good)
        whole = {
            name: output.values[start:stop]
            for name, output in join(done).items()
            if output.present is None
        }
        if stop - start < 2 or not whole:
            return
        self._is_due = False
        execute = partial(self._execute, columns)
        found = lease.site.cuts.examine(self._key, execute, whole, int(good[start]), took / count)
        if found is not None and found.is_large:
            self._known.fault = fault_of(batch.atom_id, found, count)
        elif found is not None and not self._known.is_told:
            self._known.is_told = True
            message = warning_of(batch.atom_id, found)
            lease.emit(Event(message, atom_id=batch.atom_id, run_id=batch.run_id, level="warning"))

    def _execute(
        self, columns: Mapping[str, np.ndarray], start: int, stop: int
    ) -> dict[str, Any] | None:
        """Return the outputs of some electrons, None where one fails."""
        count = stop - start
        arguments = _arguments_of_slice(columns, start, count)
        if self._definition.takes_context:
            silent: Any = _Silent(self._lease)
            arguments["context"] = Context(silent, start, count)
        try:
            result, errors = errors_of_slice(self._definition.function(**arguments), count)
            return None if errors else outputs_of_slice(result, count)
        except TimeIsUp:
            raise
        except BaseException:  # noqa: BLE001 - they succeeded before, which is what counts
            return None


def _arguments_of_slice(
    columns: Mapping[str, np.ndarray], offset: int, count: int
) -> dict[str, Any]:
    """Return copies, for an atom that works in place must see the same again when bisected."""
    return {name: _own_array(values[offset : offset + count]) for name, values in columns.items()}


def _own_array(values: np.ndarray) -> np.ndarray:
    if values.dtype == object and can_change(values.ravel().tolist()):
        return as_objects(list(map(own_copy, values.ravel().tolist()))).reshape(values.shape)
    return values.copy()


def replay(batch: Batch, definition: Definition, site: Site) -> Any:
    """Execute a batch of one electron in this thread, with nothing between it and a debugger.

    Raises
    ------
    Exception
        Whatever the atom raises.
    """
    return Lease(batch, site).call_first(definition)


class LateConductor:
    """An electron's conductor, made when it is first used: most electrons send nothing."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what `copy` and the like ask for, and do without
            raise AttributeError(name)
        return getattr(self._context.conductor, name)

    def __repr__(self) -> str:
        return repr(self._context.conductor)


Conductor.register(LateConductor)  # which stands for the one that it makes
