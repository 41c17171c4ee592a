"""Inputs that an atom may change: each electron is given a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from re import Pattern
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any
from uuid import UUID

import numpy as np

from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.columns import Values
from atomizer_dask.sweeps.lazy_values import is_dask_future

IMMUTABLE = {type(None), bool, int, float, complex, str, bytes, range, object, type(...)}
IMMUTABLE |= {np.float64, np.float32, np.int64, np.int32, np.bool_, np.str_}
_UNCHANGING = (
    *(date, time, timedelta, tzinfo, Decimal, Fraction, Enum, PurePath, Pattern, UUID, type),
    *(BuiltinFunctionType, FunctionType, ModuleType, np.generic, np.dtype),
)
_OF_PANDAS = {"NAType", "NaTType", "Interval", "Period"}  # its times are those of Python
_COPY: dict[type, Any] = {
    list: list.copy,
    dict: dict.copy,
    set: set.copy,
    bytearray: bytearray.copy,
    # In the order that it has in memory, or sums over it would have other bits.
    np.ndarray: lambda value: value.copy("K"),
    np.void: np.void.copy,
}


def can_change(values: Iterable[Any]) -> bool:
    """Whether any of the values can be changed in place.

    >>> can_change([1, "a", None]), can_change([1, []])
    (False, True)
    """
    kinds = set(map(type, values))
    return not kinds <= IMMUTABLE and any(map(_is_mutable, kinds))


def column_can_change(values: Values) -> bool:
    """Whether any value of a column can be changed in place."""
    if isinstance(values, range):
        return False
    if not isinstance(values, np.ndarray):  # those of pandas hold texts, numbers and times
        return not type(values.dtype).__module__.startswith("pandas.")
    if values.ndim > 1 or values.dtype.kind == "V":
        return True
    return values.dtype.hasobject and can_change(values.tolist())


def own_copy(value: Any) -> Any:
    """Return a value itself where it cannot be changed in place, else a deep copy.

    A value that cannot be copied, a lock or an open file say, is returned as it is. So are a
    sentinel, and a value whose copy is of another type.

    >>> shared = [0]
    >>> own_copy(shared) is shared, own_copy("text")
    (False, 'text')
    """
    kind = type(value)
    if kind in IMMUTABLE:
        return value
    if kind in _COPY:
        if _is_flat(value):
            return _COPY[kind](value)
    elif not _is_mutable(kind) or (kind is tuple and not can_change(value)):
        return value
    if is_sentinel(value) or is_dask_future(value):  # of which Dask counts the references
        return value
    try:
        copied = copy.deepcopy(value)
    except BaseException as error:  # copying runs the user's __deepcopy__ and __reduce__
        if is_interrupt(error):
            raise
        return value
    return copied if type(copied) is kind else value


def is_sentinel(value: Any) -> bool:
    """Return whether an object has no state, so that only its identity distinguishes it.

    >>> is_sentinel(object()), is_sentinel([])
    (True, False)
    """
    kind: Any = type(value)
    has_own = kind.__eq__ is not object.__eq__ or getattr(value, "__dict__", None)
    reduces = kind.__reduce_ex__, kind.__reduce__
    if has_own or reduces != (object.__reduce_ex__, object.__reduce__):
        return False
    try:
        reduced: Any = object.__reduce_ex__(value, 4)
    except BaseException as error:  # an object that cannot be pickled has state
        if is_interrupt(error):
            raise
        return False
    return len(reduced[1]) == 1 and all(one is None for one in reduced[2:])


def own_copies(values: Iterable[Any]) -> list[Any]:
    """Return copies of values; one that appears twice is copied once."""
    known: dict[int, tuple[Any, Any]] = {}  # with the original, to keep its id from reuse
    copied = []
    for value in values:
        if id(value) not in known:
            known[id(value)] = value, own_copy(value)
        copied.append(known[id(value)][1])
    return copied


def own_payload(payload: Any) -> Any:
    """Return a copy of the inputs of an electron, for it alone; a mapping becomes a dict."""
    if type(payload) is not dict and not isinstance(payload, Mapping):
        return own_copy(payload)
    if IMMUTABLE.issuperset(map(type, payload.values())):
        return dict(payload)
    return {name: own_copy(value) for name, value in payload.items()}


def _is_mutable(kind: type) -> bool:
    if kind in IMMUTABLE:
        return False
    if kind.__name__ in _OF_PANDAS and kind.__module__.partition(".")[0] == "pandas":
        return False
    return not issubclass(kind, _UNCHANGING) or issubclass(kind, np.void)


def _is_flat(value: Any) -> bool:
    kind = type(value)
    if kind is np.ndarray or kind is np.void:
        return not value.dtype.hasobject
    if kind is bytearray:
        return True
    held = value.values() if kind is dict else value
    return IMMUTABLE.issuperset(map(type, held)) or not can_change(held)
