"""Executing the electrons of a batch slice by slice, by a vectorised atom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter, time_ns
from typing import Any

import numpy as np

from atomizer_dask.atoms.context import Context
from atomizer_dask.atoms.definition import FunctionAtom
from atomizer_dask.console.recorder import muted
from atomizer_dask.errors import DependentRowsError
from atomizer_dask.events import Event
from atomizer_dask.execution.calls import own_array, seeded
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.outcome import Column, Outcome
from atomizer_dask.execution.outputs import errors_of_slice, join, outputs_of_slice, own_slice
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.row_dependence import fault_of, longest_stretch, warning_of
from atomizer_dask.execution.timeout import TimeIsUp, watched
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.sweeps.inputs import Columns, GridSlice, numpy_or_extension

_FIRST_SLICE = 1024


def run_slices(
    lease: Lease, definition: FunctionAtom[..., Any], inputs: Columns | GridSlice
) -> Outcome:
    """Execute slice after slice, and check that their rows do not depend on each other."""
    start = time_ns(), perf_counter()
    examination = _Examination(lease, definition)
    columns = {name: numpy_values(values) for name, values in inputs.columns().items()}
    slices = Remaining(len(lease.batch), _FIRST_SLICE)
    parts: list[tuple[int, dict[str, Column]]] = []
    ends: list[float] = []
    counts: list[int] = []

    def so_far() -> Outcome:
        results = join(parts)
        scalar = results.keys() <= {"result"}
        how_many = np.array(counts, dtype=np.int64)
        return lease.outcome(results, start, np.array(ends), how_many, scalar=scalar)

    lease.begin(slices, so_far)
    offset = 0
    while count := slices.draw():
        before = perf_counter()
        done = [] if examination.fault else _run_slice(lease, definition, columns, offset, count)
        took = perf_counter() - before
        examination.examine(columns, offset, count, done, took)
        with lease.lock:
            if examination.fault is not None:
                done = []
                _fail_slice(lease, offset, count, examination.fault)
            parts += done
            offset += count
            ends.append(perf_counter())
            counts.append(count)
        slices.learn(count, took)
    return so_far()


def _fail_slice(lease: Lease, offset: int, count: int, error: BaseException) -> None:
    """Have all electrons of a slice fail, also those that have failed with something else."""
    lease.failures.drop_from(offset)
    for position in range(offset, offset + count):
        lease.fail(position, error)


def good_of(lease: Lease, offset: int, count: int) -> np.ndarray:
    """Return the offsets of the electrons of an executed slice that did not fail."""
    failed = [each - offset for each in lease.failures.offsets if each >= offset]
    return offset + np.delete(np.arange(count), failed)


def _run_slice(
    lease: Lease,
    definition: FunctionAtom[..., Any],
    columns: dict[str, np.ndarray],
    offset: int,
    count: int,
) -> list[tuple[int, dict[str, Column]]]:
    arguments = arguments_of_slice(columns, offset, count)
    if definition.takes_context:
        arguments["context"] = Context(lease, offset, count)
    function = _function_of_slice(lease, definition, offset, count)
    try:
        result = own_slice(function(**arguments))
    except BaseException as error:  # noqa: BLE001 - SystemExit in an atom is its failure too
        if count == 1:
            lease.fail(offset, error)
            return []
        half = count // 2
        left = _run_slice(lease, definition, columns, offset, half)
        return left + _run_slice(lease, definition, columns, offset + half, count - half)
    try:
        result, errors = errors_of_slice(result, count)
        outputs = outputs_of_slice(result, count)
    except (ValueError, TypeError) as error:
        # Not to be bisected: in halves a wrong shape may look like a right one.
        for position in range(offset, offset + count):
            lease.fail(position, error)
        return []
    if errors:
        good = np.ones(count, dtype=bool)
        good[list(errors)] = False
        outputs = {name: numpy_or_extension(v)[good] for name, v in outputs.items()}
        for position, mark in errors.items():
            lease.fail(offset + position, mark)
    columns_out = {name: Column(values) for name, values in outputs.items()}
    return [(count - len(errors), columns_out)]


def _function_of_slice(
    lease: Lease, definition: FunctionAtom[..., Any], offset: int, count: int
) -> Callable[..., Any]:
    lease.runs(lambda: offset, ())
    function = lease.batch.bound(definition.called)
    if definition.draws_from:
        function = seeded(lease, function, definition.draws_from, offset)
    if lease.watch is not None:
        function = watched(function, lease.watch, offset, count)
    return function


class _Silent:
    """A lease for electrons that are executed again: it drops their events, emitted before."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def emit(self, event: Event) -> None:
        """Drop the event."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)


class _Examination:
    """Whether the rows of a vectorised atom depend on each other, as far as a batch shows."""

    def __init__(self, lease: Lease, definition: FunctionAtom[..., Any]) -> None:
        batch = lease.batch
        self._lease = lease
        self._definition = definition
        self._key = batch.run_id or batch.root_id, batch.version
        self._known = lease.site.cuts.of(self._key)
        self._is_due = lease.site.cuts.is_due(self._key, lease.site.seconds_for(batch))

    @property
    def fault(self) -> DependentRowsError | None:
        """The error of an atom whose rows depend on each other; None as long as none is known."""
        return self._known.fault

    def examine(
        self,
        columns: Mapping[str, np.ndarray],
        offset: int,
        count: int,
        done: list[tuple[int, dict[str, Column]]],
        took: float,
    ) -> None:
        """Examine an executed slice; at most one of a batch, where the batch is due."""
        lease, batch = self._lease, self._lease.batch
        if not self._is_due or self.fault or lease.stopped or not done or count == 1:
            return
        good = good_of(lease, offset, count)
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
        elif found is not None and not self._known.is_reported:
            self._known.is_reported = True
            message = warning_of(batch.atom_id, found)
            lease.emit(Event(message, atom_id=batch.atom_id, run_id=batch.run_id, level="warning"))

    def _execute(
        self, columns: Mapping[str, np.ndarray], start: int, stop: int
    ) -> dict[str, Any] | None:
        """Return the outputs of some electrons, None where one fails."""
        count = stop - start
        arguments = arguments_of_slice(columns, start, count)
        if self._definition.takes_context:
            silent: Any = _Silent(self._lease)
            arguments["context"] = Context(silent, start, count)
        try:
            function = self._lease.batch.bound(self._definition.called)
            with muted(self._lease.recorder):
                result, errors = errors_of_slice(function(**arguments), count)
            return None if errors else outputs_of_slice(result, count)
        except TimeIsUp:
            raise
        except BaseException:  # noqa: BLE001 - they succeeded before, which is what counts
            return None


def arguments_of_slice(
    columns: Mapping[str, np.ndarray], offset: int, count: int
) -> dict[str, Any]:
    """Return copies of the inputs: an atom that works in place gets the same when bisected."""
    return {name: own_array(values[offset : offset + count]) for name, values in columns.items()}
