"""Whether the rows of a vectorised atom depend on each other: some are executed in another cut.

A site executes a few electrons of a slice once more, in a smaller slice: a cut. Their outputs must
be the same. Otherwise the results of a run would depend on how it happens to be cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from atomizer_dask.display.text import brief
from atomizer_dask.errors import DependentRowsError
from atomizer_dask.sweeps.columns import Values, loop_values
from atomizer_dask.sweeps.equality import alike

Outputs = Mapping[str, Values]
Execute = Callable[[int, int], Outputs | None]
MOST_ROWS = 32  # of a cut
_NUMBERS = (int, float, complex, np.number, np.bool_)
_LONG = 1.0  # seconds of an examination
_SHARE = 0.02  # of the time of a batch, which a further examination may take
_REMEMBERED = 1000  # runs
# By item size: how far apart sums in another order may be, as a share of the largest value.
_LAST_BITS = {2: 1e-2, 4: 1e-5, 8: 1e-12, 16: 1e-12}


class RowDifference(NamedTuple):
    """Where two executions of the same electrons differ.

    Parameters
    ----------
    row
        Row of the outputs that were compared; from `Cuts.examine` its offset in the batch.
    name
        Name of the output.
    whole, cut
        Its value in the whole slice, and in the cut.
    is_large
        Whether they differ by more than sums in another order do.
    """

    row: int
    name: str
    whole: Any
    cut: Any
    is_large: bool


class _KnownDependence:
    """What a site knows of an atom in a run."""

    def __init__(self) -> None:
        self.seconds: float | None = None  # that the last examination took
        self.fault: DependentRowsError | None = None
        self.is_reported = False


class Cuts:
    """What a site knows of the vectorised atoms that it executes."""

    def __init__(self) -> None:
        self._known: dict[Any, _KnownDependence] = {}

    def of(self, key: Any) -> _KnownDependence:
        """Return what is known of an atom in a run."""
        known = self._known.setdefault(key, _KnownDependence())
        while len(self._known) > _REMEMBERED:  # the oldest runs are over
            with suppress(KeyError, RuntimeError):  # another thread has done it
                del self._known[next(iter(self._known))]
        return known

    def is_due(self, key: Any, seconds: float) -> bool:
        """Return whether to examine a batch that may take `seconds`.

        The first batch on each worker is examined, and every further one if the last examination
        took less than 2 % of that time: the rows of one batch may be alike, which proves nothing.
        """
        took = self.of(key).seconds
        return took is None or took < _SHARE * seconds

    def examine(
        self, key: Any, execute: Execute, whole: Outputs, start: int, seconds: float
    ) -> RowDifference | None:
        """Execute some electrons again in other cuts, and return where that differs.

        A cut that differs is executed once more: an atom whose outputs differ from one execution to
        the next does not count as one whose rows depend on each other.

        Parameters
        ----------
        key
            Key of the atom and the run.
        execute
            Returns the outputs of electrons from one offset to another, None where one fails.
        whole
            The outputs of electrons that succeeded in one slice.
        start
            Offset in the batch of the first of these electrons.
        seconds
            Seconds that each of these electrons took.
        """
        began = perf_counter()
        found = None
        most = int(min(max(1, _LONG / max(seconds, 1e-9)), MOST_ROWS))
        for a, b in _cuts_of(min(map(len, whole.values()), default=0), most):
            if perf_counter() - began > _LONG:
                break
            again = execute(start + a, start + b)
            found = again and _difference(_rows(whole, a, b), again)
            if found:
                twice = execute(start + a, start + b)
                if twice is not None and _difference(again or {}, twice) is None:
                    found = found._replace(row=start + a + found.row)
                    break
                found = None
        self.of(key).seconds = perf_counter() - began
        return found or None


def fault_of(atom_id: str, found: RowDifference, electrons: int) -> DependentRowsError:
    """Return the error of electrons whose atom has rows that depend on each other."""
    return DependentRowsError(
        f"the rows of the vectorised atom {atom_id} depend on each other, so that its results "
        "would depend on how electrons are cut into batches: one and the same electron gave "
        f"{found.name}={brief(found.whole)} among {electrons:,} electrons, and "
        f"{brief(found.cut)} among others. A row may follow from the inputs of its own electron "
        "only: compute what is common to all, a mean, a sum or an order, before, and give it as an "
        "input; or do it afterwards, with run.to_frame(). Numbers that this run gave before it was "
        "found out are of their batches, too"
    )


def warning_of(atom_id: str, found: RowDifference) -> str:
    """Return the warning where numbers differ in their last bits."""
    return (
        f"the last bits of what the vectorised atom {atom_id} gives depend on how many electrons "
        f"it is given at a time: {found.name} of one and the same electron is {found.whole!r} or "
        f"{found.cut!r}; sums of BLAS and the like do that, and no run gives the same bits again"
    )


def longest_stretch(rows: np.ndarray) -> tuple[int, int]:
    """Return start and stop of the longest stretch of consecutive rows.

    >>> longest_stretch(np.array([0, 2, 3, 4, 7]))
    (1, 4)
    """
    bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return max(pairwise(bounds), key=lambda each: each[1] - each[0])


def _cuts_of(count: int, most: int) -> list[tuple[int, int]]:
    """Return start and stop of the cuts to execute again, each of at most `most` rows.

    The first and the last row are left out, so that the rows at both ends of a cut had neighbours
    in the whole. Two cuts, since the one row that decides, the largest say, may be in one of them.
    """
    if count < 4:
        return [(row, row + 1) for row in range(count) if count > 1]
    half = count // 2
    return [(1, min(1 + most, half)), (max(half, count - 1 - most), count - 1)]


def _rows(outputs: Outputs, start: int, stop: int) -> Outputs:
    return {name: values[start:stop] for name, values in outputs.items()}


def _difference(whole: Outputs, cut: Outputs) -> RowDifference | None:
    """Return a difference, if there is one: of more than last bits rather than of last bits."""
    found = [
        RowDifference(row, name, mine, its, is_large)
        for name in whole.keys() & cut.keys()
        for row, mine, its, is_large in _differing(whole[name], cut[name])
    ]
    return max(found, key=lambda each: each.is_large, default=None)


def _differing(one: Values, other: Values) -> Iterator[tuple[int, Any, Any, bool]]:
    """Yield rows that differ, both values, and whether they do in more than last bits."""
    if _are_numbers(one) and _are_numbers(other) and np.shape(one) == np.shape(other):
        differ, is_large = _compared(np.asarray(one), np.asarray(other))
        for row in np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))[:1].tolist():
            large = np.flatnonzero(is_large.reshape(len(differ), -1).any(axis=1))
            row = int(large[0]) if len(large) else row
            yield row, one[row], other[row], bool(len(large))
        return
    pairs = zip(loop_values(one, scalars=True), loop_values(other, scalars=True), strict=True)
    for row, (mine, its) in enumerate(pairs):
        if not (alike(mine, its) or _are_one_number(mine, its)):
            yield row, mine, its, not _are_close(mine, its)


def _are_one_number(one: Any, other: Any) -> bool:
    """Whether these are the same number, perhaps of different types.

    Its type follows from its neighbours: a list of numbers becomes an array, but not where
    something else is among them.
    """
    if not (isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS)):
        return False
    return bool(one == other or (one != one and other != other))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "biufc"


def _compared(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masks: where numbers differ, and where they do in more than their last bits."""
    differ = ~((one == other) | ((one != one) & (other != other)))
    if not differ.any():
        return differ, differ
    if "f" not in (one.dtype.kind, other.dtype.kind) and one.dtype.kind != "c":
        return differ, differ
    sizes = np.abs(np.concatenate([one.ravel(), other.ravel()]))
    largest = sizes[np.isfinite(sizes)].max(initial=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        is_close = np.abs(one - other) <= _tolerance(one, other) * largest
    return differ, differ & ~is_close


def _tolerance(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far apart numbers may be; doubles that hold float32 values count as float32."""
    floats = [each.real for each in (one, other) if each.dtype.kind in "fc"]
    with np.errstate(over="ignore"):
        are_singles = all(np.array_equal(f, f.astype("f4"), equal_nan=True) for f in floats)
    size = min(each.dtype.itemsize for each in floats)
    return _LAST_BITS.get(min(size, 4) if are_singles else size, 1e-12)


def _are_close(one: Any, other: Any) -> bool:
    """Whether objects differ only in the last bits of numbers that they hold."""
    if isinstance(one, float | complex) and isinstance(other, float | complex):
        one, other = np.array([one]), np.array([other])
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_close, one, other))
    if isinstance(one, float | complex | np.inexact):
        one, other = np.array([one]), np.array([other])
    if _are_numbers(one) and one.shape == other.shape and one.size:
        return not _compared(one, other)[1].any()
    return alike(one, other)
