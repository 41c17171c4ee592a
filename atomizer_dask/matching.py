"""Which rows of a sweep are in a store already: those of the same inputs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.columns import Values, numpy_values


def match(known: Mapping[str, Values], given: Mapping[str, Values]) -> np.ndarray:
    """Return for each row of `given` the row of `known` with the same inputs, -1 for none.

    Where rows are alike, the first matches the first, the second the second, and so on. Missing
    values are alike, and so are 1 and 1.0.

    Parameters
    ----------
    known, given
        Columns of the same names, each of one length.

    Examples
    --------
    >>> match({"x": np.array([1, 2, 2])}, {"x": np.array([2, 3, 2, 1])}).tolist()
    [1, -1, 2, 0]
    """
    names = list(given)
    before, now = _comparable(known, names), _comparable(given, names)
    for name in names:
        if before[name].dtype != now[name].dtype and "O" in (
            before[name].dtype.kind,
            now[name].dtype.kind,
        ):
            before[name], now[name] = before[name].astype(object), now[name].astype(object)
    before["_nth"] = before.groupby(names, sort=False, dropna=False).cumcount().to_numpy()
    now["_nth"] = now.groupby(names, sort=False, dropna=False).cumcount().to_numpy()
    before["_row"] = np.arange(len(before))
    joined = now.merge(before, how="left", on=[*names, "_nth"], sort=False)
    return joined["_row"].fillna(-1).to_numpy(dtype=np.int64)


def _comparable(columns: Mapping[str, Values], names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: _hashable(columns[name]) for name in names})


def _hashable(values: Values) -> Any:
    """Return a column whose values pandas can compare."""
    if isinstance(values, range):
        return numpy_values(values)
    if isinstance(values, np.ndarray) and (values.ndim > 1 or values.dtype.kind == "O"):
        listed = list(values)
        if all(isinstance(value, str) for value in listed):
            return pd.Series(listed, dtype=object)
        return pd.Series([pickle.dumps(value) for value in listed], dtype=object)
    return values
