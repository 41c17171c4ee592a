"""Axes and columns of a sweep as their user sees them: what kind, from what to what, how many."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np

from atomizer_dask.display import markup
from atomizer_dask.display.text import brief
from atomizer_dask.sweeps.columns import Values, python_values

HEAD = 5  # electrons that are shown
_MOST_AXES = 12
_MOST_COLUMNS = 6
_ALL_UP_TO = 5  # values
_CELL = 26  # characters
_TYPES_OF = 100_000  # values; of more it takes too long


def described(columns: Mapping[str, Values], *, with_counts: bool) -> markup.Html:
    """Return a table of axes, or of columns of one length, a line for each."""
    names = (
        ["axis", "values", "kind", "first ... last"]
        if with_counts
        else ["column", "kind", "first ... last"]
    )
    rows = []
    for name, values in islice(columns.items(), _MOST_AXES):
        count = [markup.text(f"{len(values):,}")] if with_counts else []
        rows.append([markup.code(name, 40), *count, markup.muted(kind_of(values)), _span(values)])
    more = len(columns) - len(rows)
    return markup.table(names, rows, f"and {more:,} more" if more else "")


def head(columns: Mapping[str, Values], count: int) -> markup.Html:
    """Return a table of the first electrons, whose inputs are `columns`, out of `count`."""
    shown = dict(islice(columns.items(), _MOST_COLUMNS))
    values = [[_cell(value) for value in python_values(column)] for column in shown.values()]
    rows = [
        [markup.muted(str(number)), *row] for number, row in enumerate(zip(*values, strict=True))
    ]
    beyond = [
        f"{more:,} more {what}"
        for what, more in (("electrons", count - len(rows)), ("columns", len(columns) - len(shown)))
        if more > 0
    ]
    return markup.table(["", *shown], rows, "and " + ", ".join(beyond) if beyond else "")


def kind_of(values: Values) -> str:
    """Return a text for the kind of the values of a column.

    >>> kind_of(range(3)), kind_of(np.zeros((2, 3))), kind_of(np.array(["a", 1], dtype=object))
    ('range', 'float64 (3,)', 'str, int')
    """
    if isinstance(values, range):
        return "range"
    if isinstance(values, np.ndarray) and values.dtype == object:
        looked_at = values[:_TYPES_OF]
        kinds = dict.fromkeys(type(value).__name__ for value in looked_at)
        return ", ".join([*kinds, *(["..."] if len(values) > len(looked_at) else [])])
    of_each = getattr(values, "shape", ())[1:]
    return f"{values.dtype} {of_each}" if of_each else str(values.dtype)


def _span(values: Values) -> markup.Html:
    if len(values) <= _ALL_UP_TO:
        return markup.joined(*map(_cell, python_values(values[:])), by=", ")
    begin, end = python_values(values[:2]), python_values(values[-1:])
    by = ", "
    return markup.joined(*map(_cell, begin), markup.text("..."), *map(_cell, end), by=by)


def _cell(value: Any) -> markup.Html:
    if isinstance(value, datetime | timedelta | np.datetime64 | np.timedelta64):
        value = str(value)
    return markup.code(value if isinstance(value, str) else brief(_rounded(value), _CELL), _CELL)


def _rounded(value: Any) -> Any:
    return float(f"{value:.10g}") if isinstance(value, float | np.floating) else value
