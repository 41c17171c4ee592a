"""What became of a batch, as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import time_ns
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.console.printed import Printed
from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.failure import Failure, utc
from atomizer_dask.properties import Properties
from atomizer_dask.sweeps.columns import Values, numpy_values, python_values
from atomizer_dask.sweeps.inputs import numpy_or_extension


class Column(NamedTuple):
    """One output of a batch: its values, and for which of the good electrons there is one."""

    values: Values
    present: np.ndarray | None = None  # None: for all of them


@dataclass(slots=True, eq=False)
class Outcome:
    """What became of the electrons of a batch from offset `first` to `stop`, as columns.

    Parameters
    ----------
    stop
        Offset after the last electron executed; the rest of the batch returns to the queue.
    results
        Output columns by name, for the electrons that did not fail. Electrons that were sent one by
        one have a column ``result`` with just what the atom returned.
    failed
        Indices of the failed electrons, ascending, relative to `first`.
    codes, failures
        For each failed electron the index of its failure in `failures`, which has each once.
    start_ns
        Nanoseconds since the epoch at which the first electron started.
    ends
        Seconds after `start_ns` at which each electron, or each slice, ended.
    counts
        Electrons in each slice; None where `ends` has an entry per electron.
    worker
        Address of the worker that executed it, or name of the process.
    scalar
        Whether the atom returned single values rather than dicts.
    starts
        Seconds after `start_ns` at which each electron began; None where each began when the one
        before it ended.
    first
        Offset in the batch of the first electron covered; an earlier message covered those before.
    unstored
        Columns of what failed electrons returned, which failed only because a store cannot hold
        some of it; None where there are none.
    is_whole
        Whether `unstored` has everything that they returned.
    printed
        What the electrons have printed, by offset in the batch.
    """

    stop: int
    results: dict[str, Column]
    failed: Sequence[int] | np.ndarray
    codes: Sequence[int] | np.ndarray
    failures: list[Failure]
    start_ns: int
    ends: np.ndarray
    counts: np.ndarray | None
    worker: str
    scalar: bool = True
    starts: np.ndarray | None = None
    first: int = 0
    unstored: dict[str, Column] | None = None
    is_whole: bool = True
    printed: Printed | None = None

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    @property
    def longest(self) -> float:
        """Seconds that the longest electron, or the longest slice, took."""
        if not len(self.ends):
            return 0.0
        if self.starts is None:
            return float(np.diff(self.ends, prepend=0.0).max())
        return float((self.ends - self.starts).max())

    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every electron, in nanoseconds since the epoch."""
        ends = self._nanoseconds(self.ends)
        if self.starts is not None:
            starts = self._nanoseconds(self.starts)
        else:
            starts = np.empty_like(ends)
            starts[:1] = self.start_ns
            starts[1:] = ends[:-1]
        if self.counts is None:
            return starts, ends
        return np.repeat(starts, self.counts), np.repeat(ends, self.counts)

    def _nanoseconds(self, seconds: np.ndarray) -> np.ndarray:
        # In place: of millions of electrons, each temporary array costs more than its arithmetic.
        product = seconds * 1e9
        since: np.ndarray = np.rint(product, out=product).astype(np.int64)
        since += self.start_ns
        return since

    def part(self, start: int, stop: int) -> Outcome:
        """Return the part about the electrons from one offset of the batch to another."""
        start = max(start, self.first)
        stop = max(start, min(stop, self.stop))
        if (start, stop) == (self.first, self.stop):
            return self
        a, b = start - self.first, stop - self.first
        failed = np.asarray(self.failed, dtype=np.int64)
        low, high = np.searchsorted(failed, [a, b])
        starts, ends = self.times()
        return replace(
            self,
            first=start,
            stop=stop,
            results={n: _cut(output, a - low, b - high) for n, output in self.results.items()},
            failed=failed[low:high] - a,
            codes=self.codes[low:high],
            starts=(starts[a:b] - self.start_ns) / 1e9,
            ends=(ends[a:b] - self.start_ns) / 1e9,
            counts=None,
            unstored=self._unstored_of(_between(len(failed), low, high)),
            printed=None if self.printed is None else self.printed.of_offsets(start, stop),
        )

    def _unstored_of(self, wanted: np.ndarray) -> dict[str, Column] | None:
        """Return `unstored` for those failed electrons where the mask `wanted` is True."""
        if self.unstored is None or not wanted.any():
            return None
        return {name: _pick(output, wanted) for name, output in self.unstored.items()}

    def pick(self, wanted: np.ndarray) -> Outcome:
        """Return the part about the electrons where the mask `wanted` is True.

        Without what they have printed, whose offsets would be others.
        """
        failed = np.asarray(self.failed, dtype=np.int64)
        bad = np.zeros(len(self), dtype=bool)
        bad[failed] = True
        good, stays = wanted[~bad], wanted[failed]
        starts, ends = self.times()
        return replace(
            self,
            first=0,
            stop=int(wanted.sum()),
            results={name: _pick(output, good) for name, output in self.results.items()},
            failed=(np.cumsum(wanted) - 1)[failed[stays]],
            codes=np.asarray(self.codes)[stays],
            starts=(starts[wanted] - self.start_ns) / 1e9,
            ends=(ends[wanted] - self.start_ns) / 1e9,
            counts=None,
            unstored=self._unstored_of(stays),
            printed=None,
        )

    def failed_mask(self) -> np.ndarray:
        """Return which electrons failed, as a mask."""
        mask = np.zeros(len(self), dtype=bool)
        mask[np.asarray(self.failed, dtype=np.int64)] = True
        return mask

    @classmethod
    def none(cls) -> Outcome:
        """Return the outcome of no electrons."""
        return cls(0, {}, [], [], [], time_ns(), np.empty(0), None, "")

    @classmethod
    def all_failed(cls, count: int, failure: Failure, worker: str = "") -> Outcome:
        """Return the outcome of `count` electrons that share one failure and never ran."""
        codes = np.broadcast_to(np.int32(0), count)
        ends, counts = np.zeros(1), np.array([count])
        return cls(count, {}, range(count), codes, [failure], time_ns(), ends, counts, worker)

    def with_failed(self, bad: list[int], failure: Failure) -> Outcome:
        """Return it with more electrons failed: those at the indices `bad` among the good ones."""
        failed = np.asarray(self.failed, dtype=np.int64)
        good = np.setdiff1d(np.arange(len(self)), failed)
        stays = np.ones(len(good), dtype=bool)
        stays[bad] = False
        order = np.argsort(joined := np.concatenate([failed, good[bad]]), kind="stable")
        codes = np.concatenate([self.codes, np.full(len(bad), len(self.failures))])
        return replace(
            self,
            results={name: _pick(output, stays) for name, output in self.results.items()},
            failed=joined[order],
            codes=codes[order],
            failures=[*self.failures, failure],
            unstored=None,
        )

    def with_unstored(self, bad: Sequence[int], failure: Failure) -> Outcome:
        """Return `with_failed`, and keep what these electrons returned in `unstored`."""
        mask = np.zeros(len(self) - len(self.failed), dtype=bool)
        mask[np.asarray(bad, dtype=np.int64)] = True
        outcome = self.with_failed(list(bad), failure)
        where = np.asarray(outcome.codes) == len(self.failures)  # among all that failed
        unstored = {}
        for name, output in self.results.items():
            values, present = _pick(output, mask)
            here = np.zeros(len(where), dtype=bool)
            here[where] = True if present is None else present
            unstored[name] = Column(values, here)
        return replace(outcome, unstored=unstored)

    def as_stored(self) -> Outcome:
        """Return the outcome with `unstored` as its results, and without failures."""
        assert self.unstored is not None
        results = {**self.unstored}
        return replace(self, results=results, failed=[], codes=[], failures=[], unstored=None)

    def rows(self) -> Iterator[Any]:
        """Yield the results of the electrons that did not fail."""
        alone = self.results.get("result") if self.scalar and len(self.results) == 1 else None
        if alone is not None and alone.present is None:
            return iter(python_values(alone.values))
        return self._rows()

    def properties(self, batch: Batch) -> Iterator[Properties]:
        """Yield the Properties of every electron, in the order of the batch."""
        if len(self.failed) or self.starts is not None or batch.terms.attempt > 1:
            yield from self._properties_with_failures(batch)
            return
        # The fast path, 100,000 times a second: each electron began when the one before it ended.
        _, ends = self.times()
        worker, atom_id = self.worker, batch.atom_id
        start = utc(self.start_ns)
        offset = self.first
        for end_ns, result in zip(ends.tolist(), self.rows(), strict=True):
            end = utc(end_ns)
            yield Properties.of(
                batch.electron_id(offset), atom_id, start, end, None, result, worker
            )
            offset += 1
            if self.counts is None:
                start = end

    def _properties_with_failures(self, batch: Batch) -> Iterator[Properties]:
        starts, ends = self.times()
        errors = dict(zip(map(int, self.failed), self.errors(batch), strict=True))
        results = self.rows()
        attempt = batch.terms.attempt
        for offset, (start_ns, end_ns) in enumerate(
            zip(starts.tolist(), ends.tolist(), strict=True)
        ):
            error = errors.get(offset)
            position = offset + self.first
            yield Properties.of(
                batch.electron_id(position),
                batch.atom_id,
                utc(start_ns),
                utc(end_ns),
                error,
                None if error else next(results),
                self.worker,
                attempt,
                batch.failures(position),
            )

    def errors(self, batch: Batch) -> list[ElectronError]:
        """Return the errors of the failed electrons."""
        starts, ends = self.times()
        errors = []
        for offset, code in zip(self.failed, self.codes, strict=True):
            error = self.failures[code].error(
                batch.electron_id(self.first + int(offset)),
                batch.atom_id,
                attempt=batch.terms.attempt,
                worker=self.worker,
                start=utc(int(starts[offset])),
                end=utc(int(ends[offset])),
                space=batch.origin.space,
            )
            errors.append(error)
        return errors

    def _rows(self) -> Iterator[Any]:
        good = len(self) - len(self.failed)
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


@dataclass(frozen=True, slots=True, eq=False)
class StoredOutcome:
    """A receipt for a batch whose results a worker has written into the store.

    Parameters
    ----------
    first, stop
        Offsets in the batch of the first electron covered, and after the last.
    seconds, longest
        Seconds that the batch took, and its longest electron.
    name
        File that the worker wrote; empty where all electrons failed.
    offsets
        Offsets in the batch of the failed electrons.
    failed
        The outcome of the failed electrons alone.
    printed
        What the electrons have printed, by offset in the batch.
    """

    first: int
    stop: int
    seconds: float
    longest: float
    name: str
    offsets: np.ndarray
    failed: Outcome
    printed: Printed | None = None

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def failures(self) -> list[Failure]:
        """Why electrons failed."""
        return self.failed.failures

    def part(self, start: int, stop: int) -> StoredOutcome:
        """Return the whole receipt: a file is not cut, and a record skips electrons that it has."""
        return self


BatchOutcome = Outcome | StoredOutcome
"""What became of a batch: its results, or the receipt for them.

Both have `first`, `stop`, `seconds`, `longest`, `failures` and `part`, which is all that the code
between worker and record uses. The code that packs one, or takes it down, asks which it is.
"""


def _pick(output: Column, wanted: np.ndarray) -> Column:
    if output.present is None:
        return Column(numpy_or_extension(output.values)[wanted])
    here = wanted[output.present]
    return Column(numpy_or_extension(output.values)[here], output.present[wanted])


def _cut(output: Column, start: int, stop: int) -> Column:
    if output.present is None:
        return Column(output.values[start:stop])
    before = int(output.present[:start].sum())
    present = output.present[start:stop]
    return Column(output.values[before : before + int(present.sum())], present)


def _between(count: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros(count, dtype=bool)
    mask[start:stop] = True
    return mask


@dataclass(slots=True)
class RunPart:
    """What became of some electrons of a run.

    Parameters
    ----------
    positions
        Of the electrons in the sweep.
    outcome
        What became of them.
    attempt
        Which attempt it was.
    replaced
        Mask over the failed electrons: True where a later attempt supersedes this one, so that it
        is not shown.
    code
        The fingerprint of the code that ran, where a store keeps it.
    """

    positions: range | np.ndarray
    outcome: Outcome
    attempt: int = 1
    replaced: np.ndarray | None = None
    code: str = ""

    def __len__(self) -> int:
        return len(self.outcome)

    def current(self) -> RunPart:
        """Return it without the failed electrons that a later attempt supersedes."""
        if self.replaced is None or not self.replaced.any():
            return self
        stays = np.ones(len(self.outcome), dtype=bool)
        stays[np.asarray(self.outcome.failed, dtype=np.int64)[self.replaced]] = False
        return self.pick(stays)

    def pick(self, wanted: np.ndarray) -> RunPart:
        """Return it for the electrons where the mask `wanted` is True."""
        positions, outcome = numpy_values(self.positions)[wanted], self.outcome.pick(wanted)
        return RunPart(positions, outcome, self.attempt, code=self.code)

    def load(self) -> list[RunPart]:
        """Return it in a list: its results are in memory already."""
        return [self]

    def cancelled_count(self) -> int:
        """Return how many failed electrons were cancelled, and are not tried again."""
        failures = self.outcome.failures
        kinds = np.array([failure.kind == "cancelled" for failure in failures], dtype=bool)
        if not kinds.any():
            return 0
        were = kinds[np.asarray(self.outcome.codes)]
        return int(were.sum() if self.replaced is None else (were & ~self.replaced).sum())

    def failed_positions(self) -> np.ndarray:
        """Return the positions in the sweep of the failed electrons."""
        failed = np.asarray(self.outcome.failed, dtype=np.int64)
        if isinstance(self.positions, range):
            return failed + self.positions.start
        return self.positions[failed]

    def by_failure(self) -> Iterator[tuple[Failure, np.ndarray]]:
        """Yield each distinct failure, and the positions of the electrons that failed with it."""
        positions, failures = self.failed_positions(), self.outcome.failures
        if len(failures) == 1:
            yield failures[0], positions
            return
        codes = np.asarray(self.outcome.codes)
        order = np.argsort(codes, kind="stable")  # there may be as many failures as electrons
        distinct, first = np.unique(codes[order], return_index=True)
        for code, mine in zip(
            distinct.tolist(), np.split(positions[order], first[1:]), strict=True
        ):
            yield failures[code], mine
