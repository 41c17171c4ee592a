"""What values consist of, and what decorators, descriptors and closures hold."""

from __future__ import annotations

import copyreg
import functools
import inspect
from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd

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


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object itself, not those of its class."""
    try:
        return dict(vars(value))
    except Exception:  # noqa: BLE001 - it has none, or does not want to show them
        return {}


def functions_within(value: Any) -> list[Any]:
    """Return the functions that a descriptor or a decorated function stands for."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    attributes = attributes_of(value)
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


def closure_of(function: FunctionType) -> dict[str, Any]:
    """Return the variables of enclosing functions that a function uses."""
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, map(_content, cells), strict=True))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def defaults_of(function: FunctionType) -> dict[str, Any]:
    """Return the defaults of parameters, by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return dict(zip(last, defaults, strict=True)) | (function.__kwdefaults__ or {})
