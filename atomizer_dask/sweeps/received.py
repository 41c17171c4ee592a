"""Columns as their user gave them: what electrons get of them, and what a frame shows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from atomizer_dask.display.text import brief
from atomizer_dask.errors import InvalidSweepError
from atomizer_dask.sweeps.columns import LARGE_BYTES, Values, as_objects, column
from atomizer_dask.sweeps.copies import can_change, own_copies
from atomizer_dask.sweeps.lazy_values import check_sweep

Form = Literal["array", "list", "series"]
_PLAIN = {bool, int, float, complex}  # of which a typed column gives back the very values
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Given:
    """A column as its user gave it.

    Parameters
    ----------
    values
        The values of which electrons are given copies.
    shown
        The values that a frame shows and a vectorised atom is given: of one dtype if possible.
    scalars
        Whether a ``for`` loop over it gives NumPy's scalars; see `columns.loop_values`.
    repeats
        Whether its values are large arrays of one shape and dtype, some of them the same object,
        so that they are stacked for a vectorised atom alone, batch by batch.
    """

    values: Values
    shown: Values
    scalars: bool = False
    repeats: bool = False

    @property
    def form(self) -> Form:
        """What the user gave; a store keeps it beside `values`, and needs nothing else."""
        if self.scalars:
            return "array"
        return "series" if self.shown is self.values else "list"


def stacked(column: Given) -> Given:
    """Return a column with repeated arrays in one array, as a store holds and compares it."""
    return of_array(np.stack(list(column.values))) if column.repeats else column


def restored(values: Values, form: Form) -> Given:
    """Return a column from the values and the form that a store kept."""
    if form == "array":
        assert isinstance(values, np.ndarray)
        return of_array(values)
    if form == "list":
        return Given(values, _typed(list(values)))
    return Given(values, values)


def of_array(values: np.ndarray) -> Given:
    """Return a column given as an array; texts are shown as objects."""
    shown = as_objects(values.tolist()) if values.dtype.kind in "US" else values
    return Given(values, shown, scalars=True)


def of_list(values: list[Any]) -> Given:
    """Return a column given as a list, or as anything else that can be iterated."""
    kinds = set(map(type, values))
    only = kinds.pop() if len(kinds) == 1 else object
    if only is np.ndarray and _repeats(values):
        shared = own_copies(values)
        for value in shared:  # frames show these very objects
            value.flags.writeable = False
        return Given(as_objects(shared), as_objects(shared), repeats=True)
    if only in _PLAIN or only is np.ndarray or issubclass(only, np.generic):
        array = column(values, {only})
        has_units = array.dtype.kind in "mM" and len({v.dtype for v in values}) > 1
        if array.dtype != object and not has_units:
            return Given(array, array, scalars=only not in _PLAIN)
    held = as_objects(own_copies(values) if can_change(values) else values)
    shown = _typed(values)
    return Given(held, held if shown.dtype == object else shown)


def _repeats(arrays: list[np.ndarray]) -> bool:
    first = arrays[0]
    return (
        first.nbytes >= LARGE_BYTES
        and not first.dtype.hasobject
        and len(set(map(id, arrays))) < len(arrays)
        and len({(each.shape, each.dtype) for each in arrays}) == 1
    )


def of_series(series: Any) -> Given:
    """Return a column given as a pandas Series, whose memory it shares."""
    values: Any = series.array
    if type(values).__name__ == "NumpyExtensionArray":
        values = series.to_numpy()
        if values.dtype == object and can_change(values.tolist()):
            return Given(as_objects(own_copies(values.tolist())), values)
    return Given(values, values)


def given(name: str, values: Any) -> Given:
    """Return the values of an axis, or a column, as they were given.

    Raises
    ------
    InvalidSweepError
        Where they are no sequence, or there are none.
    """
    check_sweep(values)
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(
        values, Iterable
    ):
        raise InvalidSweepError(
            f"the values of {name!r} are {brief(values)}, expected a sequence of values; "
            f"for a single one write {name}=[{brief(values)}]"
        )
    if isinstance(values, np.ndarray) and type(values) in (np.ndarray, np.memmap):
        if values.ndim == 0:
            raise InvalidSweepError(
                f"the values of {name!r} are a 0-dimensional array; write {name}=[...]"
            )
        found = _of_own_array(np.array(values))
    else:
        found = _of_other(values)
    if len(found.values) == 0:
        raise InvalidSweepError(f"{name!r} has no values, so there is no electron to send")
    return found


def _of_own_array(values: np.ndarray) -> Given:
    if values.dtype == object and values.ndim == 1 and can_change(values.tolist()):
        values = as_objects(own_copies(values.tolist()))
    return of_array(values)


def _of_other(values: Iterable[Any]) -> Given:
    if isinstance(values, range) and (
        not len(values) or (values[0] in _INT64 and values[-1] in _INT64)
    ):
        return Given(values, values)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(values, pandas.Series | pandas.Index):
        series = values.to_series() if isinstance(values, pandas.Index) else values
        return of_series(series.copy())
    if pandas is not None and isinstance(values, pandas.api.extensions.ExtensionArray):
        if isinstance(values, pandas.arrays.NumpyExtensionArray):
            return _of_own_array(np.array(values))
        copied: Any = values.copy()
        return Given(copied, copied)
    return of_list(list(values))


def _typed(values: list[Any]) -> np.ndarray:
    """Return values of one dtype where they have one in common, else the objects themselves."""
    array = column(values)
    return as_objects(values) if array.dtype == object else array
