"""Makes a `Sweep` of the inputs that a user gives."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.display.text import brief
from atomizer_dask.errors import InvalidSweepError
from atomizer_dask.sweeps import lazy_values
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.received import given, of_list, of_series
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep
from atomizer_dask.sweeps.table import Table

if TYPE_CHECKING:
    import pandas as pd


def grid(**axes: Any) -> Grid:
    """Return all combinations of the axes' values, the last axis fastest.

    Parameters
    ----------
    **axes
        For each parameter a sequence of values: a range, an array, a list, a pandas Series. An
        electron gets what a ``for`` loop over it would give, as a copy where it can be changed:
        of ``np.linspace(0, 1)`` a ``np.float64``, of ``[0, 0.5]`` an int or a float. A number, a
        text or another single value is an axis of that value alone. An array of a megabyte or
        more that is the only value of its axis, ``table=[T]``, is shared by all electrons,
        read-only, and travels once to each host.

    Raises
    ------
    InvalidSweepError
        Where an axis is empty, or neither a sequence nor a single value.

    Examples
    --------
    >>> grid(temperature=[1.0, 2.0], size=[32, 64], replica=range(50))
    <Grid: 200 electrons of temperature, size, replica>
    >>> grid(size=range(10), method="exact")
    <Grid: 10 electrons of size, method>
    """
    if not axes:
        raise InvalidSweepError("a grid needs at least one axis, as in grid(x=range(10))")
    return Grid({name: given(name, _as_axis(values)) for name, values in axes.items()})


def _as_axis(values: Any) -> Any:
    """Return the values of an axis; a single value as an axis of that value alone."""
    if isinstance(values, np.ndarray) and values.ndim == 0:
        return values.reshape(1)
    is_text = isinstance(values, str | bytes)
    if is_text or not (isinstance(values, Iterable) or callable(values)):
        lazy_values.check_sweep(values)
        return [values]
    return values


def zipped(**columns: Any) -> Table:
    """Return columns side by side: electron i has the i-th value of each.

    Parameters
    ----------
    **columns
        For each parameter a sequence of values, all of one length. An electron gets what a
        ``for`` loop over it would give, as in a `grid`.

    Raises
    ------
    InvalidSweepError
        Where a column is empty, not a sequence, or of another length than the rest.

    Examples
    --------
    >>> zipped(x=[1, 2, 3], label=["a", "b", "c"])
    <Table: 3 electrons of x, label>
    """
    if not columns:
        raise InvalidSweepError("zipped needs at least one column, as in zipped(x=[1, 2, 3])")
    return Table({name: given(name, values) for name, values in columns.items()})


def as_sweep(inputs: Any) -> Sweep:
    """Return `inputs` as a sweep.

    Parameters
    ----------
    inputs
        A sweep, a DataFrame, a mapping of equal-length columns, a list of mappings, or any
        iterator of mappings.

    Raises
    ------
    InvalidSweepError
        Where it is none of these, or has no electrons.
    """
    if isinstance(inputs, Sweep):
        return inputs
    lazy_values.check_sweep(inputs)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(inputs, pandas.DataFrame):
        return _from_frame(inputs)
    if isinstance(inputs, Mapping):
        _check_names(inputs)
        return zipped(**inputs)
    if pandas is not None and isinstance(inputs, pandas.Series):
        raise InvalidSweepError(
            f"cannot sweep over the Series {inputs.name!r}; write series.to_frame(), named as the "
            "parameter is"
        )
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        return _from_mappings(inputs)
    if isinstance(inputs, Iterator):
        return Streamed(inputs)
    if isinstance(inputs, Iterable) and not isinstance(
        inputs, str | bytes | np.ndarray | set | frozenset
    ):
        return Streamed(iter(inputs))
    raise InvalidSweepError(
        f"cannot sweep over {type(inputs).__name__} {brief(inputs)}; expected grid(...), "
        "zipped(...), a DataFrame, a mapping of columns, a list of mappings, or an iterator of "
        "mappings"
    )


def _from_frame(frame: pd.DataFrame) -> Table:
    _check_names(frame.columns)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise InvalidSweepError(f"the columns {twice} appear more than once in the DataFrame")
    if frame.empty:
        raise InvalidSweepError(f"the DataFrame has no electrons: its shape is {frame.shape}")
    # A shallow copy: under copy-on-write the user may go on changing theirs.
    held = frame.copy(deep=False)
    return Table({str(name): of_series(held[name]) for name in held.columns}, held)


def _from_mappings(rows: Sequence[Any]) -> Table:
    if not rows:
        raise InvalidSweepError("the list of mappings is empty: there is no electron to send")
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidSweepError(
                f"row {position} of the sweep is {brief(row)}, expected a mapping of parameter "
                "names to values; for columns of values use zipped(x=[...]) or grid(x=[...])"
            )
    names = rows[0].keys()
    _check_names(names)
    for position, row in enumerate(rows):
        if row.keys() != names:
            raise InvalidSweepError(
                f"row {position} of the sweep has the fields {sorted(row)}, row 0 has "
                f"{sorted(names)}; all rows must have the same"
            )
    if not names:
        raise InvalidSweepError("the mappings of the sweep are empty: they name no parameter")
    return Table({name: of_list([row[name] for row in rows]) for name in names})


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InvalidSweepError(
                f"column {name!r} is named by a {type(name).__name__}; columns must have the "
                "names of the atom's parameters, as strings"
            )
