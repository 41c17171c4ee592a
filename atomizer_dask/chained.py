"""Sweeps made of others: several end to end, and some rows of one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from atomizer_dask.columns import Values, concatenate, numpy_values
from atomizer_dask.sweep import Columns, Inputs, Sweep, take


class Picked(Sweep):
    """Some rows of a sweep, in an order of their own.

    Parameters
    ----------
    sweep
        Which has a known length.
    rows
        Positions in it.
    """

    def __init__(self, sweep: Sweep, rows: np.ndarray) -> None:
        self._sweep = sweep
        self._rows = rows

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return self._sweep.names

    @property
    def length(self) -> int:  # noqa: D102
        return len(self._rows)

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return self._sweep.row_bytes

    def as_arrays(self) -> Picked:  # noqa: D102
        return Picked(self._sweep.as_arrays(), self._rows)

    def take(self, start: int, stop: int) -> Inputs:  # noqa: D102
        return self._sweep.pick(self._rows[start:stop])

    def pick(self, positions: np.ndarray) -> Inputs:  # noqa: D102
        return self._sweep.pick(self._rows[positions])

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        columns = self._sweep.columns(wanted)
        return {name: take(values, self._rows) for name, values in columns.items()}


class Chained(Sweep):
    """Several sweeps of the same fields, one after another.

    Parameters
    ----------
    sweeps
        Which have known lengths.
    """

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self._sweeps = list(sweeps)
        self._starts = np.cumsum([0, *(sweep.length or 0 for sweep in self._sweeps)])

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return self._sweeps[0].names

    @property
    def length(self) -> int:  # noqa: D102
        return int(self._starts[-1])

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return max(sweep.row_bytes for sweep in self._sweeps)

    def as_arrays(self) -> Chained:  # noqa: D102
        return Chained([sweep.as_arrays() for sweep in self._sweeps])

    def together(self, positions: range | np.ndarray) -> int:  # noqa: D102
        first = int(positions[0])
        number = int(np.searchsorted(self._starts, first, side="right")) - 1
        begin, end = int(self._starts[number]), int(self._starts[number + 1])
        if isinstance(positions, range):
            inside: range | np.ndarray = range(first - begin, min(positions.stop, end) - begin)
        else:
            outside = (positions < begin) | (positions >= end)
            inside = positions[: int(np.argmax(np.append(outside, True)))] - begin
        return self._sweeps[number].together(inside)

    def take(self, start: int, stop: int) -> Inputs:  # noqa: D102
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        first = int(self._starts[number])
        if stop <= self._starts[number + 1]:
            return self._sweeps[number].take(start - first, stop - first)
        return self.pick(np.arange(start, stop))

    def pick(self, positions: np.ndarray) -> Columns:  # noqa: D102
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        picked = []
        for number in np.unique(numbers).tolist():
            inside = positions[order][numbers[order] == number] - self._starts[number]
            picked.append(self._sweeps[number].pick(inside))
        back = np.argsort(order, kind="stable")
        data = {}
        for name in self.names:
            joined = concatenate([_column(inputs, name) for inputs in picked])
            data[name] = take(joined, back)
        return Columns(data, len(positions))

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        parts = [sweep.columns(wanted) for sweep in self._sweeps]
        return {
            name: concatenate([_materialised(part[name]) for part in parts]) for name in parts[0]
        }


def _column(inputs: Inputs, name: str) -> Values:
    assert isinstance(inputs, Columns)
    return _materialised(inputs.data[name])


def _materialised(values: Values) -> Values:
    return numpy_values(values) if isinstance(values, range) else values
