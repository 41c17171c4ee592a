"""The inputs of a batch: the slice of a sweep that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from atomizer_dask.sweeps.columns import Values, as_objects, column, loop_values, numpy_values
from atomizer_dask.sweeps.copies import own_copy, own_payload


@dataclass(frozen=True, slots=True)
class Columns:
    """Inputs as columns of one length.

    Parameters
    ----------
    data
        The columns by name.
    length
        The length of each column.
    scalars
        The names of the columns of which electrons are given NumPy's scalars.
    """

    data: dict[str, Values]
    length: int
    scalars: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self.length

    def columns(self) -> dict[str, Values]:
        """Return the columns by name."""
        return self.data


@dataclass(frozen=True, slots=True)
class GridSlice:
    """Inputs as the part of a grid's axes that a slice of it touches.

    Parameters
    ----------
    axes
        For each axis its name, its values, its stride in electrons, and its first block: electron
        i of the grid is in block ``i // stride``, and reads the value at
        ``(block - first) % len(values)``.
    start, stop
        Positions in the grid of the first electron, and after the last.
    scalars
        The names of the axes of which electrons are given NumPy's scalars.
    """

    axes: tuple[tuple[str, Values, int, int], ...]
    start: int
    stop: int
    scalars: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self.stop - self.start

    def columns(self) -> dict[str, Values]:
        """Return the columns by name, expanded."""
        return {axis[0]: self._expand(*axis[1:]) for axis in self.axes}

    def shared_columns(self) -> dict[str, Values]:
        """Return the same; a value that is an array is one object, which its electrons share."""
        return {
            name: self._expand(as_objects(list(values)), stride, first)
            if isinstance(values, np.ndarray) and values.ndim > 1
            else self._expand(values, stride, first)
            for name, values, stride, first in self.axes
        }

    def _expand(self, values: Values, stride: int, first: int) -> Values:
        begin, end = self.start // stride, (self.stop - 1) // stride + 1
        if end - begin == len(values) and begin == first:
            blocks = values
        else:
            blocks = take(values, np.arange(begin - first, end - first) % len(values))
        if stride == 1:
            return blocks
        counts = np.full(end - begin, stride)
        counts[0] -= self.start - begin * stride
        counts[-1] -= end * stride - self.stop
        if isinstance(blocks, range | np.ndarray):
            return np.repeat(numpy_values(blocks), counts, axis=0)
        return blocks.repeat(counts)  # of pandas, which knows no axis


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs as payloads, each as it was given."""

    payloads: list[Any]

    def __len__(self) -> int:
        return len(self.payloads)


Inputs = Columns | GridSlice | Rows


def payload_of(inputs: Inputs) -> Any:
    """Return the inputs of the first electron, for it alone; each call returns new copies."""
    if isinstance(inputs, Rows):
        return own_payload(inputs.payloads[0])
    return {
        name: own_copy(loop_values(values[:1], scalars=name in inputs.scalars)[0])
        for name, values in inputs.columns().items()
    }


def take(values: Values, positions: np.ndarray) -> Any:
    """Return the values at `positions`; a range is not materialised for that."""
    if isinstance(values, range):
        return values.start + values.step * positions
    if isinstance(values, np.ndarray):
        return values.take(positions, axis=0)
    return values.take(positions)


def shared_cells(values: Values, positions: np.ndarray) -> Values:
    """Return the values at `positions`; one that is an array is one copy, which its rows share."""
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        taken: Values = take(values, positions)
        return taken
    distinct, which = np.unique(positions, return_inverse=True)
    cells = as_objects([values[position].copy() for position in distinct.tolist()])
    return cells[which]


def numpy_or_extension(values: Values) -> Any:
    """Return a column as something that can be indexed with arrays."""
    return numpy_values(values) if isinstance(values, range) else values


def as_array(values: Values) -> Values:
    """Return a column as a vectorised atom is given it: a range stays one."""
    return values if isinstance(values, range) else numpy_values(values)


def columns_of(inputs: Inputs) -> dict[str, Values]:
    """Return inputs as columns; a row that lacks a field of another has None there."""
    if not isinstance(inputs, Rows):
        return inputs.columns()
    names = dict.fromkeys(name for row in inputs.payloads for name in row)
    return {name: column([row.get(name) for row in inputs.payloads]) for name in names}
