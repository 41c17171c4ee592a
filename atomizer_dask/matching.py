"""Which rows of a sweep are in a store already: those of the same inputs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.columns import Values, numpy_values

_EXACT = 2**53  # up to which integers are floats too
_HOLD_OTHERS = (list, tuple, dict, np.ndarray)


def match(known: Mapping[str, Values], given: Mapping[str, Values]) -> np.ndarray:
    """Return for each row of `given` the row of `known` with the same inputs, -1 for none.

    Where rows are alike, the first matches the first, the second the second, and so on. Missing
    values are alike, and so are 1 and 1.0; True is not 1.

    Parameters
    ----------
    known, given
        Columns of the same names, each of one length.

    Examples
    --------
    >>> match({"x": np.array([1, 2, 2])}, {"x": np.array([2, 3, 2, 1])}).tolist()
    [1, -1, 2, 0]
    """
    codes = pd.DataFrame({name: _codes(known[name], given[name]) for name in given})
    names = list(given)
    codes["_nth"] = 0
    count = len(next(iter(known.values())))
    before, now = codes[:count].copy(), codes[count:].copy()
    for rows in (before, now):
        rows["_nth"] = rows.groupby(names, sort=False).cumcount()
    before["_row"] = np.arange(len(before))
    joined = now.merge(before, how="left", on=[*names, "_nth"], sort=False)
    return joined["_row"].fillna(-1).to_numpy(dtype=np.int64, copy=True)


def _codes(known: Values, given: Values) -> np.ndarray:
    """Return a number for each value of both columns, the same for those that are alike."""
    both = _joined(known, given)
    if both is not None:
        codes: np.ndarray = pd.factorize(both)[0]
        return codes
    seen: dict[Any, int] = {}
    keys = map(_key, chain(_items(known), _items(given)))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _joined(known: Values, given: Values) -> Any:
    """Return both columns as one that pandas compares as we do, None where there is none."""
    arrays = [numpy_values(c) if isinstance(c, range) else c for c in (known, given)]
    columns = [array for array in arrays if isinstance(array, np.ndarray) and array.ndim == 1]
    if len(columns) < len(arrays):
        return None
    kinds = "".join(c.dtype.kind for c in columns)
    if columns[0].dtype == columns[1].dtype and kinds[0] in "biufmM":
        return np.concatenate(columns)
    if set(kinds) <= set("if") and all(_are_exact(c) for c in columns if c.dtype.kind == "i"):
        return np.concatenate([c.astype(np.float64) for c in columns])
    return None


def _are_exact(integers: np.ndarray) -> bool:
    return bool(len(integers) == 0 or max(-integers.min(), integers.max()) <= _EXACT)


def _items(values: Values) -> list[Any]:
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biufcO":
        listed: list[Any] = values.tolist()
        return listed
    return list(values)


def _key(value: Any) -> Any:
    """Return what is equal, and hashes alike, for values that are alike."""
    if value is None or (not isinstance(value, _HOLD_OTHERS) and _is_missing(value)):
        return None
    kind = type(value)
    if isinstance(value, bool | np.bool_):
        return "bool", bool(value)
    if isinstance(value, Number):  # 1 == 1.0 == Decimal(1), exactly
        return "number", value.item() if isinstance(value, np.generic) else value
    if kind in (list, tuple):
        return kind.__name__, tuple(map(_key, value))
    if kind is dict:
        return "dict", frozenset((_key(name), _key(held)) for name, held in value.items())
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return "objects", value.shape, tuple(map(_key, value.ravel().tolist()))
        return "array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()
    if isinstance(value, datetime | np.datetime64):
        return "time", pd.Timestamp(value)
    if isinstance(value, timedelta | np.timedelta64):
        return "span", pd.Timedelta(value)
    if isinstance(value, str | bytes | date | time):
        return type(value).__mro__[-2].__name__, value
    return kind.__qualname__, pickle.dumps(value)


def _is_missing(value: Any) -> bool:
    missing = pd.isna(value)
    return isinstance(missing, bool | np.bool_) and bool(missing)
