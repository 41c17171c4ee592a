"""What values consist of: simpler values, in an order that is the same in each process."""

from __future__ import annotations

import copyreg
import inspect
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.wrapped import functions_within

CONTAINERS = (list, tuple, dict, set, frozenset, np.ndarray)


def contents_of(value: Any) -> list[Any]:
    """Return what a value consists of, but for sets, which have no order.

    Raises
    ------
    Exception
        Whatever foreign objects raise that cannot be pickled.

    Examples
    --------
    >>> contents_of({"a": 1, "b": [2]})
    ['a', 1, 'b', [2]]
    """
    kind = type(value)
    if kind in (list, tuple):
        return list(value)
    if kind is dict:
        return [one for pair in value.items() for one in pair]
    if kind is np.ndarray:
        is_object = value.dtype.hasobject or value.dtype.kind == "T"
        return [str(value.dtype), value.shape, value.tolist() if is_object else value.tobytes()]
    if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        return _contents_of_frame(value if isinstance(value, pd.DataFrame) else value.to_frame())
    return functions_within(value) or _contents_of_object(value)


def _contents_of_frame(frame: pd.DataFrame) -> list[Any]:
    names = [*frame.columns, *frame.columns.names, *frame.index.names, *frame.dtypes.map(str)]
    return [frame.shape, pd.util.hash_pandas_object(frame).to_numpy(), names]


def _contents_of_object(value: Any) -> list[Any]:
    """Return what pickle would write, apart from what is only cached."""
    kind = type(value)
    reduce = copyreg.dispatch_table.get(kind)
    reduced: Any = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return [str(getattr(value, "__module__", "")), reduced]
    maker, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if type(state) is dict and all(isinstance(name, str) for name in state):
        kept = [pair for pair in sorted(state.items()) if not _is_cached(kind, *pair)]
        state = kept or None  # as where nothing has been computed yet
    return [maker, arguments, state, list(items or ()), list(pairs or ())]


def _is_cached(kind: type, name: str, value: Any) -> bool:
    """Return whether an attribute only keeps what has been computed so far."""
    if isinstance(inspect.getattr_static(kind, name, None), cached_property):
        return True
    is_named_so = name.startswith("_") and ("cache" in name.lower() or "memo" in name.lower())
    return is_named_so and (value is None or isinstance(value, dict | list | set))
