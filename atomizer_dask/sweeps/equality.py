"""When inputs are the same: by type and value, in every place that compares inputs.

1, 1.0 and True are different values, as are 0.0 and -0.0, None and NaN; NaN is the same as NaN, NaT
as NaT, also within containers. Times are the same if their texts and the names of their zones are,
decimals if their digits are. Dicts and sets are the same in any order. Any other object is compared
by its parts, as pickle takes it apart; never by its ``==``, which may be the user's own code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from math import copysign
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np

from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.columns import Values, loop_values

_AS_THEY_ARE = {type(None), bool, int, str, bytes}
_NAN = "nan"
_MOST_PARTS = 1_000_000


def alike(one: Any, other: Any) -> bool:
    """Whether two inputs are the same, by type and value.

    >>> alike((1, float("nan")), (1, float("nan"))), alike((1, 2), (True, 2))
    (True, False)
    """
    return key_of(one) == key_of(other)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays, of anything but objects, have the same type, shape and bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if type(one) is not type(other) or one.dtype.hasobject:
        return False
    a, b = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return np.array_equal(a, b)


def same_columns(one: Values, other: Values, *, scalars: tuple[bool, bool]) -> bool:
    """Whether loops over two columns, given as arrays or not, give the same inputs."""
    if isinstance(one, range) and isinstance(other, range):
        return one == other
    if len(one) != len(other):
        return False
    codes = codes_of([(one, scalars[0]), (other, scalars[1])])
    return bool(np.array_equal(codes[: len(one)], codes[len(one) :]))


def codes_of(columns: Iterable[tuple[Values, bool]]) -> np.ndarray:
    """Return a number for each value of some columns, end to end: equal for values alike.

    Parameters
    ----------
    columns
        Each column, with whether a loop over it gives NumPy's scalars.
    """
    import pandas as pd

    columns = list(columns)
    numbers = [_bits(values, scalars) for values, scalars in columns]
    if None not in numbers and len({(of, bits.dtype) for of, bits in filter(None, numbers)}) == 1:
        together = np.concatenate([bits for _, bits in filter(None, numbers)])
        codes: np.ndarray = pd.factorize(together)[0]
        return codes
    seen: dict[Any, int] = {}
    values = (v for column, scalars in columns for v in loop_values(column, scalars=scalars))
    return np.array([seen.setdefault(key_of(v), len(seen)) for v in values], dtype=np.int64)


def _bits(values: Values, scalars: bool) -> tuple[Hashable, np.ndarray] | None:
    """Return the type of values, and numbers that are equal where they are alike; or None."""
    if isinstance(values, range):
        return int, np.asarray(values, dtype=np.int64)
    if not isinstance(values, np.ndarray) or values.ndim > 1:
        return None
    kind = values.dtype.kind
    of: Hashable = values.dtype.newbyteorder("=") if scalars else kind
    if kind == "b" or (kind in "iu" and scalars):
        return of, values
    if kind == "i":
        return int, values.astype(np.int64)
    if kind == "f" and values.dtype.itemsize <= 8:
        doubles = values.astype(np.float64)
        return of, np.where(np.isnan(doubles), np.nan, doubles).view(np.int64)
    if kind in "mM":
        return (of, values.dtype.str), values.view(np.int64)
    return None


class _EndlessError(Exception):
    """An input has very many parts, or holds itself."""


class _Counted(threading.local):
    """How many parts of an input have been looked at."""

    parts = 0


_counted = _Counted()


def key_of(value: Any) -> Hashable:
    """Return a hashable key, which is equal for inputs that are the same."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return kind, value
    _counted.parts = 0
    try:
        return _key_of(value)
    except (_EndlessError, RecursionError):
        return _name_of(kind), _pickled(value)


def _key_of(value: Any) -> Hashable:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return kind, value
    if kind is float:
        return kind, _key_of_float(value)
    _counted.parts += 1
    if _counted.parts > _MOST_PARTS:
        raise _EndlessError
    if kind in _KEYS:
        return _KEYS[kind](value)
    for base, key in _KEYS_OF_BASES.items():
        if isinstance(value, base):
            return key(value)
    return _key_of_object(value)


def _key_of_float(value: Any) -> Hashable:
    if value != value:
        return _NAN
    return value, copysign(1.0, value) if value == 0 else 0.0


def _key_of_scalar(value: np.generic) -> Hashable:
    dtype = value.dtype.newbyteorder("=")
    if value.dtype.kind in "fc":  # the bytes of long doubles include padding
        parts = (value.real, value.imag) if value.dtype.kind == "c" else (value,)
        return "scalar", dtype.str, *map(_key_of_float, parts)
    if value.dtype.kind == "V":
        return "scalar", str(dtype), _key_of(value.item())
    return "scalar", dtype.str, value.tobytes()


def _key_of_array(value: np.ndarray) -> Hashable:
    dtype = value.dtype.newbyteorder("=")
    about = "array", str(dtype), value.shape
    if dtype.hasobject or dtype.kind in "VT" or dtype.itemsize > 16 or dtype.char in "gG":
        return *about, tuple(map(_key_of, value.ravel().tolist()))
    values = np.ascontiguousarray(value, dtype=dtype)
    if dtype.kind == "f":
        values = np.where(np.isnan(values), dtype.type(np.nan), values)
    if dtype.kind == "c":
        parts = values.reshape(-1).view(values.real.dtype)
        values = np.where(np.isnan(parts), parts.dtype.type(np.nan), parts)
    return *about, values.tobytes()


def _key_of_items(value: Any) -> Hashable:
    return type(value).__name__, tuple(map(_key_of, value))


def _key_of_set(value: Any) -> Hashable:
    return type(value).__name__, frozenset(map(_key_of, value))


def _key_of_dict(value: Any) -> Hashable:
    return "dict", frozenset((_key_of(name), _key_of(held)) for name, held in value.items())


def _key_of_text(value: Any, text: Callable[[Any], str] = str) -> Hashable:
    zone = getattr(value, "tzinfo", None)
    return _name_of(type(value)), text(value), None if zone is None else str(zone)


def _key_of_code(value: Any) -> Hashable:
    return "code", _pickled(value)


def _key_of_object(value: Any) -> Hashable:
    """Return the key of an object: its parts as pickle takes it apart, or else its pickle."""
    try:
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return _name_of(type(value)), reduced
        make, arguments, *more = reduced
        held = (list(m) if hasattr(m, "__next__") else m for m in more if m is not None)
        return _name_of(type(value)), _name_of(make), *map(_key_of, (*arguments, *held))
    except (_EndlessError, RecursionError):
        raise
    except BaseException as error:  # __reduce_ex__ runs the user's code
        if is_interrupt(error):
            raise
        return _name_of(type(value)), _pickled(value)


def _pickled(value: Any) -> Hashable:
    """Return a pickle; for a value without one its id, so that it is the same as itself alone."""
    try:
        data: bytes = cloudpickle.dumps(value)
    except BaseException as error:  # pickling runs the user's code
        if is_interrupt(error):
            raise
        return id(value)
    return data


def _name_of(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', repr(kind))}"


_KEYS: dict[type, Callable[[Any], Hashable]] = {
    complex: lambda value: (complex, _key_of_float(value.real), _key_of_float(value.imag)),
    list: _key_of_items,
    tuple: _key_of_items,
    dict: _key_of_dict,
    set: _key_of_set,
    frozenset: _key_of_set,
    np.ndarray: _key_of_array,
    Decimal: _key_of_text,
}
_KEYS_OF_BASES: dict[type, Callable[[Any], Hashable]] = {
    np.generic: _key_of_scalar,
    type: lambda value: ("type", _name_of(value)),
    datetime: partial(_key_of_text, text=lambda value: value.isoformat()),
    time: _key_of_text,
    date: _key_of_text,
    FunctionType: _key_of_code,
}
