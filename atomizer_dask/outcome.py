"""What became of a batch, as columns."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import compress
from time import time_ns
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.batch import Batch
from atomizer_dask.columns import Values, python_values
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ElectronError, Kind
from atomizer_dask.events import Event
from atomizer_dask.properties import Properties
from atomizer_dask.sweep import numpy_or_extension


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

    def properties(self, electron: Electron) -> Properties:
        """Return it as the outcome of an electron that never ran."""
        now = utc(time_ns())
        error = self.error(electron.id, electron.atom_id)
        return Properties.of(electron.id, electron.atom_id, now, now, error, None, "")


def _exception_of(travelled: Any) -> BaseException | None:
    if not isinstance(travelled, bytes):
        return travelled if isinstance(travelled, BaseException) else None
    try:
        internal = pickle.loads(travelled)  # noqa: S301 - from our own worker
    except Exception:  # noqa: BLE001 - its type, text and traceback have come as text
        return None
    return internal if isinstance(internal, BaseException) else None


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
        _, ends = self.times()
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
                electron_id,
                batch.atom_id,
                start,
                end,
                failure and failure.error(electron_id, batch.atom_id),
                next(results) if failure is None else None,
                self.worker,
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
