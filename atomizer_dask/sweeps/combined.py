"""Sweeps made of others: several end to end, and some rows of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from atomizer_dask.sweeps.columns import (
    Values,
    as_objects,
    concatenate,
    is_plain_array,
    loop_values,
)
from atomizer_dask.sweeps.equality import alike, same_bits
from atomizer_dask.sweeps.inputs import (
    Columns,
    Inputs,
    Rows,
    numpy_or_extension,
    shared_cells,
    take,
)
from atomizer_dask.sweeps.received import Given
from atomizer_dask.sweeps.sweep import Sweep


class SelectedRows(Sweep):
    """Some rows of a sweep, in an order of their own.

    Parameters
    ----------
    sweep
        A sweep of known length.
    rows
        Positions in it.
    """

    def __init__(self, sweep: Sweep, rows: np.ndarray) -> None:
        self._sweep = sweep
        self._rows = rows
        self.is_as_given = sweep.is_as_given

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return self._sweep.names

    @property
    def length(self) -> int:  # noqa: D102
        return len(self._rows)

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return self._sweep.row_bytes

    def constants(self, least: int) -> dict[str, Any]:  # noqa: D102
        return self._sweep.constants(least)

    def without(self, names: Collection[str]) -> SelectedRows:  # noqa: D102
        return SelectedRows(self._sweep.without(names), self._rows)

    def as_arrays(self) -> SelectedRows:  # noqa: D102
        return SelectedRows(self._sweep.as_arrays(), self._rows)

    def take(self, start: int, stop: int) -> Inputs:  # noqa: D102
        return self._sweep.pick(self._rows[start:stop])

    def pick(self, positions: np.ndarray) -> Inputs:  # noqa: D102
        return self._sweep.pick(self._rows[positions])

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        columns = self._sweep.columns(wanted)
        return {name: take(values, self._rows) for name, values in columns.items()}

    def cells(  # noqa: D102
        self, positions: np.ndarray | None, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        return self._sweep.cells(self._rows if positions is None else self._rows[positions], wanted)


def _same(one: Any, other: Any) -> bool:
    if is_plain_array(one) and is_plain_array(other):
        return same_bits(one, other)
    return alike(one, other)


class WithDefaults(Sweep):
    """A sweep with further fields, each of one value: defaults of parameters that it does not name.

    Parameters
    ----------
    sweep
        A sweep of known length.
    values
        A column of one value for each further field.
    """

    def __init__(self, sweep: Sweep, values: Mapping[str, Given]) -> None:
        self._sweep = sweep
        self._values = dict(values)
        self.is_as_given = sweep.is_as_given

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return (*self._sweep.names, *self._values)

    @property
    def length(self) -> int | None:  # noqa: D102
        return self._sweep.length

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return self._sweep.row_bytes

    def constants(self, least: int) -> dict[str, Any]:  # noqa: D102
        return self._sweep.constants(least)

    def without(self, names: Collection[str]) -> WithDefaults:  # noqa: D102
        return WithDefaults(self._sweep.without(names), self._values)

    def as_arrays(self) -> WithDefaults:  # noqa: D102
        return WithDefaults(self._sweep.as_arrays(), self._values)

    def together(self, positions: range | np.ndarray) -> int:  # noqa: D102
        return self._sweep.together(positions)

    def take(self, start: int, stop: int) -> Inputs:  # noqa: D102
        return self._filled(self._sweep.take(start, stop), stop - start)

    def pick(self, positions: np.ndarray) -> Inputs:  # noqa: D102
        return self._filled(self._sweep.pick(positions), len(positions))

    def _filled(self, inputs: Inputs, count: int) -> Inputs:
        assert not isinstance(inputs, Rows)  # a stream has no fields that are known
        rows = np.zeros(count, dtype=np.int64)
        repeated = {name: take(given.values, rows) for name, given in self._values.items()}
        more = {name for name, given in self._values.items() if given.scalars}
        return Columns({**inputs.columns(), **repeated}, count, inputs.scalars | more)

    def _repeated(
        self,
        count: int,
        wanted: Collection[str] | None,
        at: Callable[[Values, np.ndarray], Values],
    ) -> dict[str, Values]:
        rows = np.zeros(count, dtype=np.int64)
        return {
            name: at(given.shown, rows)
            for name, given in self._values.items()
            if wanted is None or name in wanted
        }

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        return {**self._sweep.columns(wanted), **self._repeated(self.length or 0, wanted, take)}

    def cells(  # noqa: D102
        self, positions: np.ndarray | None, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        count = (self.length or 0) if positions is None else len(positions)
        columns = self._sweep.cells(positions, wanted)
        return columns | self._repeated(count, wanted, shared_cells)


class Concatenated(Sweep):
    """Several sweeps of the same fields, one after another.

    Parameters
    ----------
    sweeps
        Sweeps of known lengths.
    """

    def __init__(self, sweeps: Sequence[Sweep], *, has_arrays: bool = False) -> None:
        self._sweeps = list(sweeps)
        self._has_arrays = has_arrays  # for a vectorised atom: each column gets one dtype
        self._starts = np.cumsum([0, *(sweep.length or 0 for sweep in self._sweeps)])

    @property
    def parts(self) -> list[Sweep]:
        """The sweeps."""
        return self._sweeps

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return self._sweeps[0].names

    @property
    def length(self) -> int:  # noqa: D102
        return int(self._starts[-1])

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return max(sweep.row_bytes for sweep in self._sweeps)

    def constants(self, least: int) -> dict[str, Any]:  # noqa: D102
        first, *others = (sweep.constants(least) for sweep in self._sweeps)
        return {
            name: value
            for name, value in first.items()
            if all(name in other and _same(value, other[name]) for other in others)
        }

    def without(self, names: Collection[str]) -> Concatenated:  # noqa: D102
        sweeps = [sweep.without(names) for sweep in self._sweeps]
        return Concatenated(sweeps, has_arrays=self._has_arrays)

    def as_arrays(self) -> Concatenated:  # noqa: D102
        return Concatenated([sweep.as_arrays() for sweep in self._sweeps], has_arrays=True)

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
            inputs = self._sweeps[number].pick(inside)
            assert isinstance(inputs, Columns)
            picked.append(inputs)
        back = np.argsort(order, kind="stable")
        data, scalars = {}, set()
        for name in self.names:
            joined, is_array = self._join(picked, name)
            data[name] = take(joined, back)
            if is_array:
                scalars.add(name)
        return Columns(data, len(positions), frozenset(scalars))

    def _join(self, picked: Sequence[Columns], name: str) -> tuple[Values, bool]:
        """Return a column of several sweeps, and whether electrons get NumPy's scalars of it."""
        values = [numpy_or_extension(inputs.data[name]) for inputs in picked]
        given = [name in inputs.scalars for inputs in picked]
        kinds = {(column.dtype, np.shape(column)[1:]) for column in values}
        is_one = len(kinds) == 1 and len(set(given)) == 1 and values[0].dtype != object
        if self._has_arrays or is_one:
            return concatenate(values), given[0] and not self._has_arrays
        listed = zip(values, given, strict=True)
        objects = [v for column, s in listed for v in loop_values(column, scalars=s)]
        return as_objects(objects), False

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        parts = [sweep.columns(wanted) for sweep in self._sweeps]
        return {
            name: concatenate([numpy_or_extension(part[name]) for part in parts])
            for name in parts[0]
        }
