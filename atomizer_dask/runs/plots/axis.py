"""Inputs along an axis of a picture: coordinates, ticks and labels of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from atomizer_dask.display.text import shorten
from atomizer_dask.runs.plots.figure import label

MOST_CATEGORIES = 200
MOST_LABELS = 30
MOST_TICKS = 12
LEAST_ROOM = 0.05  # between ticks, of the length of the axis
LONGEST_LABEL = 24
WIDEST_LABELS = 60  # letters that stand side by side below an Axes
LOG_SPAN = 10.0

_NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal"}
_TIMES = {"datetime", "datetime64", "date"}


@dataclass(frozen=True, slots=True)
class AxisValues:
    """The distinct values of an input, in order.

    Parameters
    ----------
    name
        Name of the input, with its unit.
    kind
        Kind of its values.
    values
        Coordinate of each value: the number itself, a `datetime64`, or the position of a category.
    labels
        The texts of categories; empty for numbers and times.
    codes
        For each row of the frame the index of its value; -1 for a missing one.
    note
        Note for the picture: neighbouring values were taken together, or some are missing.
    """

    name: str
    kind: Literal["number", "time", "category"]
    values: np.ndarray
    labels: list[str]
    codes: np.ndarray
    note: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_geometric(self) -> bool:
        """Whether the values are a geometric series, which gets a logarithmic axis."""
        values = self.values
        if self.kind != "number" or len(values) < 3 or not values[0] > 0:
            return False
        ratios = values[1:] / values[:-1]
        return bool(values[-1] / values[0] >= LOG_SPAN and np.allclose(ratios, ratios[0], 1e-6, 0))

    def numbers(self) -> np.ndarray:
        """Return the coordinates as floats; times as matplotlib's days."""
        if self.kind != "time":
            return self.values
        from matplotlib.dates import date2num

        numbers: np.ndarray = np.asarray(date2num(self.values))
        return numbers

    def edges(self) -> np.ndarray:
        """Return the edges of the cells of a heat map, one more than there are values."""
        values = np.log(self.numbers()) if self.is_geometric else self.numbers()
        if len(values) == 1:
            return np.array([values[0] - 0.5, values[0] + 0.5])
        middles = (values[1:] + values[:-1]) / 2
        first, last = 2 * values[0] - middles[0], 2 * values[-1] - middles[-1]
        edges = np.concatenate([[first], middles, [last]])
        return np.exp(edges) if self.is_geometric else edges

    def texts(self) -> list[str]:
        """Return the text of each value for a legend."""
        if self.kind == "category":
            return self.labels
        if self.kind == "time":
            return list(pd.DatetimeIndex(self.values).astype(str))
        return [f"{value:.10g}" for value in self.values]

    def mark(self, axis: Any, *, each: bool = False) -> None:
        """Set scale, ticks and label of an axis; with `each`, a tick per value where these fit."""
        label(axis, self.name)
        if self.kind == "time":
            from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

            locator = AutoDateLocator()
            axis.set_major_locator(locator)
            axis.set_major_formatter(ConciseDateFormatter(locator))
        elif self.kind == "category":
            self._mark_categories(axis)
        elif self.is_geometric:
            getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        elif each and self._has_room:
            axis.set_ticks(self.values, labels=self.texts())

    @property
    def _has_room(self) -> bool:
        """Whether each value can have a tick of its own."""
        if not 1 < len(self) <= MOST_TICKS:
            return False
        least = LEAST_ROOM * (self.values[-1] - self.values[0])
        return bool(np.diff(self.values).min() >= least)

    def _mark_categories(self, axis: Any) -> None:
        step = -(-len(self) // MOST_LABELS)
        texts = self.labels[::step]
        axis.set_ticks(self.values[::step], labels=texts, parse_math=False)
        if axis.axis_name == "x" and sum(map(len, texts)) > WIDEST_LABELS:
            for text in axis.get_ticklabels():
                text.set(rotation=45, ha="right", rotation_mode="anchor")


def places_of(name: str, values: pd.Series, most: int) -> AxisValues:
    """Return the distinct values of an input with their coordinates.

    Parameters
    ----------
    name
        Name of the input.
    values
        A value for each row of the frame.
    most
        How many distinct values may remain. Of more numbers or times, neighbours are averaged.

    Raises
    ------
    ValueError
        Where there are too many categories, or no value at all.
    """
    if values.isna().all():
        raise ValueError(f"all values of {name} are missing: choose another input with x=")
    ordered, name = as_ordered(name, values)
    if ordered is None:
        return _categories(name, values)
    codes, found = pd.factorize(ordered, sort=True)
    kind: Literal["number", "time"] = "time" if ordered.dtype.kind == "M" else "number"
    distinct = np.asarray(found)
    if kind == "number":
        distinct = distinct.astype(np.float64)
    notes = [_missing(name, codes)]
    if len(distinct) > most:
        notes.append(f"{len(distinct):,} values of {name} in {most:,} steps")
        steps = np.arange(len(distinct)) * most // len(distinct)
        codes = np.where(codes < 0, -1, steps[codes])
        distinct = pd.Series(distinct).groupby(steps).mean().to_numpy()
    return AxisValues(name, kind, distinct, [], codes, ", ".join(filter(None, notes)))


def _missing(name: str, codes: np.ndarray) -> str:
    count = int((codes < 0).sum())
    return f"{count:,} without {name}" if count else ""


def as_ordered(name: str, values: pd.Series) -> tuple[Any, str]:
    """Return values as numbers or times without a zone, and their name with a unit.

    None where they are neither.
    """
    dtype = values.dtype
    kind = getattr(dtype, "kind", "O")
    if kind == "O" and not isinstance(dtype, pd.CategoricalDtype):
        inferred = pd.api.types.infer_dtype(values, skipna=True)
        if inferred in _NUMBERS:
            return values.astype(np.float64), name
        if inferred in _TIMES:
            zoned = any(getattr(value, "tzinfo", None) for value in values.dropna().head(1))
            return as_ordered(name, pd.to_datetime(values, utc=zoned, errors="coerce"))
        return None, name
    if isinstance(dtype, pd.DatetimeTZDtype):
        return values.dt.tz_convert("UTC").dt.tz_localize(None), f"{name} (UTC)"
    if isinstance(dtype, pd.PeriodDtype):
        return values.dt.to_timestamp(), name
    if kind == "m":
        return values.dt.total_seconds(), f"{name} (s)"
    if kind in "iuf":
        return values, name
    return (values, name) if kind == "M" else (None, name)


def distinct_of(values: pd.Series) -> tuple[np.ndarray, Any]:
    """Return for each row the index of its value, and the distinct values, in order of appearance.

    Values that cannot be hashed, arrays say, are distinguished by their text.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        seen = values.cat.remove_unused_categories()
        return seen.cat.codes.to_numpy(), seen.cat.categories
    try:
        return pd.factorize(values)
    except TypeError:
        return pd.factorize(values.map(repr))


def _categories(name: str, values: pd.Series) -> AxisValues:
    codes, distinct = distinct_of(values)
    if len(distinct) > MOST_CATEGORIES:
        raise ValueError(
            f"{name} has {len(distinct):,} different values that are no numbers: too many to "
            f"stand along an axis; choose others with x= and hue=, or average with over={name!r}"
        )
    labels = [shorten(str(value), LONGEST_LABEL) for value in distinct]
    numbers = np.arange(len(labels), dtype=np.float64)
    return AxisValues(name, "category", numbers, labels, codes, _missing(name, codes))
