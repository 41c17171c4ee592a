"""All combinations of the values of some axes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from math import prod
from typing import Any

import numpy as np

from atomizer_dask.display.completion import offers
from atomizer_dask.sweeps.columns import Values, bytes_within, loop_values, size_of
from atomizer_dask.sweeps.inputs import Columns, GridSlice, as_array, shared_cells, take
from atomizer_dask.sweeps.received import Given, stacked
from atomizer_dask.sweeps.sweep import Sweep


@offers("axes shape")
class Grid(Sweep):
    """All combinations of its axes' values, the last axis fastest; never materialised."""

    _counts_values = True

    def __init__(self, axes: Mapping[str, Given], *, is_as_given: bool = True) -> None:
        self.given = dict(axes)
        self.is_as_given = is_as_given
        self._axes = {name: axis.shown for name, axis in axes.items()}
        self._sent = {name: axis.values for name, axis in axes.items()}
        self._scalars = frozenset(name for name, axis in axes.items() if axis.scalars)
        sizes = [len(values) for values in self._axes.values()]
        self._length = prod(sizes)
        self._strides = [prod(sizes[position + 1 :]) for position in range(len(sizes))]

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self._axes)

    @property
    def length(self) -> int:  # noqa: D102
        return self._length

    @property
    def axes(self) -> dict[str, Values]:
        """The values of each axis."""
        return self._axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis: reshape a result column with it."""
        return tuple(len(values) for values in self._axes.values())

    def constants(self, least: int) -> dict[str, Any]:  # noqa: D102
        found = {}
        for name, values in self._sent.items():
            if len(values) == 1 and not isinstance(values, range):
                (value,) = loop_values(values, scalars=name in self._scalars)
                if bytes_within(value) >= least:
                    found[name] = value
        return found if len(found) < len(self._axes) else {}

    def without(self, names: Collection[str]) -> Grid:  # noqa: D102
        return Grid(
            {name: axis for name, axis in self.given.items() if name not in names},
            is_as_given=self.is_as_given,
        )

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return sum(
            size_of(values) / len(values) / stride
            for values, stride in zip(self._axes.values(), self._strides, strict=True)
        )

    def held(self) -> Mapping[str, Values]:  # noqa: D102
        return self._axes

    def _shape_text(self) -> str:
        return " x ".join(f"{size:,}" for size in self.shape) if len(self.shape) > 1 else ""

    def for_store(self) -> Grid:  # noqa: D102
        columns = {name: stacked(column) for name, column in self.given.items()}
        return Grid(columns, is_as_given=self.is_as_given)

    def as_arrays(self) -> Grid:  # noqa: D102
        converted = copy(self)
        converted._sent = {
            name: np.stack(list(axis.shown)) if axis.repeats else as_array(axis.shown)
            for name, axis in self.given.items()
        }
        converted._scalars = frozenset()
        return converted

    def take(self, start: int, stop: int) -> GridSlice:  # noqa: D102
        return self._slice(self._sent, start, stop)

    def pick(self, positions: np.ndarray) -> Columns:  # noqa: D102
        return Columns(self._at(self._sent, positions), len(positions), self._scalars)

    def columns_at(  # noqa: D102
        self, positions: np.ndarray, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        found = self._at(self._axes, positions)
        return {name: v for name, v in found.items() if wanted is None or name in wanted}

    def cells(  # noqa: D102
        self, positions: np.ndarray | None, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        names = [name for name in self._axes if wanted is None or name in wanted]
        large = {n: self._axes[n] for n in names if getattr(self._axes[n], "ndim", 1) > 1}
        columns = super().cells(positions, [name for name in names if name not in large])
        if large:
            rows = np.arange(self._length) if positions is None else positions
            strides = dict(zip(self._axes, self._strides, strict=True))
            for name, values in large.items():
                columns[name] = shared_cells(values, rows // strides[name] % len(values))
        return {name: columns[name] for name in names}

    def _at(self, columns: dict[str, Values], positions: np.ndarray) -> dict[str, Values]:
        axes = zip(columns.items(), self._strides, strict=True)
        return {n: take(values, positions // stride % len(values)) for (n, values), stride in axes}

    def _slice(self, columns: dict[str, Values], start: int, stop: int) -> GridSlice:
        axes = []
        for (name, values), stride in zip(columns.items(), self._strides, strict=True):
            begin, end = start // stride % len(values), (stop - 1) // stride % len(values) + 1
            touched = (stop - 1) // stride - start // stride + 1
            if touched <= end - begin:  # no wrap-around: only what is needed travels
                axes.append((name, values[begin:end], stride, start // stride))
            else:
                axes.append((name, values, stride, 0))
        return GridSlice(tuple(axes), start, stop, self._scalars)

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        axes = self._slice(self._axes, 0, self._length).axes
        some = tuple(axis for axis in axes if wanted is None or axis[0] in wanted)
        return GridSlice(some, 0, self._length).columns()
