"""Columns side by side, or a DataFrame."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from atomizer_dask.errors import InvalidSweepError
from atomizer_dask.sweeps.columns import Values, size_of
from atomizer_dask.sweeps.inputs import Columns, as_array, take
from atomizer_dask.sweeps.received import Given, stacked
from atomizer_dask.sweeps.sweep import Sweep

if TYPE_CHECKING:
    import pandas as pd


class Table(Sweep):
    """Columns of equal length, or those of a DataFrame with its index."""

    def __init__(
        self,
        columns: Mapping[str, Given],
        frame: pd.DataFrame | None = None,
        *,
        is_as_given: bool = True,
    ) -> None:
        self.given = dict(columns)
        self.is_as_given = is_as_given
        self._columns = {name: column.shown for name, column in columns.items()}
        self._sent = {name: column.values for name, column in columns.items()}
        self._scalars = frozenset(name for name, column in columns.items() if column.scalars)
        self._stacked = frozenset[str]()
        self._frame = frame
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise InvalidSweepError(
                f"the columns of a sweep must be of equal length, got {listed}; "
                "for all combinations of values use grid(...)"
            )
        self._length = next(iter(lengths.values()))

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self._columns)

    @property
    def length(self) -> int:  # noqa: D102
        return self._length

    @property
    def index(self) -> pd.Index | None:  # noqa: D102
        return None if self._frame is None else self._frame.index

    @property
    def frame(self) -> pd.DataFrame | None:  # noqa: D102
        return self._frame

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return sum(size_of(values) for values in self._columns.values()) / self._length

    def held(self) -> Mapping[str, Values]:  # noqa: D102
        return self._columns

    def _shape_text(self) -> str:
        index = self.index
        return "" if index is None else f"with an index of {index.dtype}"

    def for_store(self) -> Table:  # noqa: D102
        columns = {name: stacked(column) for name, column in self.given.items()}
        return Table(columns, self._frame, is_as_given=self.is_as_given)

    def as_arrays(self) -> Table:  # noqa: D102
        converted = copy(self)
        converted._sent = {name: as_array(values) for name, values in self._columns.items()}
        converted._scalars = frozenset()
        converted._stacked = frozenset(n for n, column in self.given.items() if column.repeats)
        return converted

    def take(self, start: int, stop: int) -> Columns:  # noqa: D102
        data = {name: values[start:stop] for name, values in self._sent.items()}
        return self._inputs(data, stop - start)

    def pick(self, positions: np.ndarray) -> Columns:  # noqa: D102
        data = {name: take(values, positions) for name, values in self._sent.items()}
        return self._inputs(data, len(positions))

    def _inputs(self, data: dict[str, Values], length: int) -> Columns:
        stacks: dict[str, Values] = {name: np.stack(list(data[name])) for name in self._stacked}
        return Columns(data | stacks, length, self._scalars)

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        return {n: v for n, v in self._columns.items() if wanted is None or n in wanted}
