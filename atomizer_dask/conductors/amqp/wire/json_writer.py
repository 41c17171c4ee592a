"""Python values as plain JSON that programs in any language read.

=======================================  =========================================================
Python                                   JSON
=======================================  =========================================================
None, NaN, infinities, NaT, NA, masked   null, as ``JSON.stringify`` and pandas write them
bool, int, float, str                    true or false, number, number, text in UTF-8
half a surrogate pair in a text          U+FFFD, as Go writes it
dict, any ``Mapping``                    object, in its order. Keys: text as it is; whole numbers,
                                         finite floats, bools and None (also NumPy's) as their
                                         JSON text; others are an error, and so are two keys that
                                         become the same
list, tuple, named tuple, range, deque,  array
any ``Sequence``, values of a dict
set, frozenset, any ``Set``              array, sorted where its items can be
NumPy scalar                             what the Python value of its kind is
NumPy array                              array of arrays, as deep as it has dimensions
datetime, Timestamp                      RFC 3339 text, "Z" for UTC; no offset where it has none
datetime64                               the same without offset; a date alone where its unit is
                                         a day or longer
date, time                               ISO 8601 text
timedelta, Timedelta, timedelta64        whole number of nanoseconds, as Go's ``time.Duration``
DataFrame                                object of column name to array of values; an index that
                                         is not the default comes first, under its name or
                                         "index" (levels: "level_0", ...)
Series, Index, extension array           array of values
bytes, bytearray, memoryview             base64 text, as Go's ``[]byte``
Decimal                                  number: whole ones exactly, others as the nearest float
complex                                  object of "real" and "imag"
Enum                                     its value; of one that is also a text or a number, that
dataclass                                object of its fields
path, UUID                               text
=======================================  =========================================================

Any other value is an error that names the path to it, and so is a value that contains itself.

`orjson` writes ten to twenty times as fast, which saves 2 of some 100 microseconds for a small
message; but it refuses whole numbers of more than 64 bits and half a surrogate pair, and does not
say where in a value the culprit is.
"""

from __future__ import annotations

import dataclasses
import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, ValuesView
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import singledispatch
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd

from atomizer_dask.display.text import one_line
from atomizer_dask.errors import text_of

_LEAVES = frozenset({str, int, bool, float, type(None), np.float64})
_PLAIN = _LEAVES | {dict, list, tuple}
_AS_IT_IS = frozenset({str, int, bool, type(None)})
_LONGEST_WHOLE = 300  # decimals of a Decimal that is written digit for digit
_LONGEST_PATH = 8  # keys of a path in a message
_NANOSECONDS = {
    "W": 604_800 * 10**9, "D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9,
    "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1,
}  # fmt: skip
_PARTS = {"ps": 10**3, "fs": 10**6, "as": 10**9}  # of a nanosecond
# Units of datetime64 without a text in RFC 3339, and the nearest unit that has one.
_WRITABLE = {
    "Y": "D", "M": "D", "W": "D", "h": "s", "m": "s", "ps": "ns", "fs": "ns", "as": "ns",
}  # fmt: skip
_NOT_A_TIME = np.iinfo(np.int64).min

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


class FormError(ValueError):
    """A value has no JSON form within the limits; the message says which and why."""


class _StuckError(Exception):
    """What is wrong with a part of a value, and the keys that lead to it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[Any] = []

    def under(self, key: Any) -> _StuckError:
        self.path.insert(0, key)
        return self


def to_text(value: Any, name: str = "value", depth: int = 64, most: int = 16 * 2**20) -> str:
    """Return a value as compact JSON.

    Parameters
    ----------
    value
        Any value of the table of this module.
    name
        The name of the value in error messages.
    depth
        How deep arrays and objects may be nested.
    most
        How many values there may be in it, so that an endless one is an early error. The caller
        checks the length of the text.

    Raises
    ------
    FormError
        Where it has no JSON form.

    Examples
    --------
    >>> to_text({"x": np.arange(3), "when": date(2026, 1, 1), "bad": float("nan")})
    '{"x":[0,1,2],"when":"2026-01-01","bad":null}'
    """
    try:
        try:
            # The C encoder writes these as the table says, and other values wrongly.
            if _is_plain(value, depth, most):
                return _ENCODER.encode(value)
        except (ValueError, RecursionError):  # NaN, or a whole number of too many digits
            pass
        return _ENCODER.encode(_form(value, _Room(depth, most), 0))
    except _StuckError as stuck:
        raise FormError(f"{name}{_path_text(stuck.path)} {stuck.what}") from None
    except RecursionError:
        raise FormError(f"{name} {_too_deep(depth)}") from None
    except Exception as error:  # noqa: BLE001 - code of the value's own class ran
        raise FormError(
            f"{name} cannot be turned into JSON, {type(error).__name__}: {text_of(error)}"
        ) from None


def _is_plain(value: Any, depth: int, most: int) -> bool:
    """Whether a value consists of what the C encoder writes as the table says.

    It is checked level by level, which finds the depth and needs no recursion.
    """
    level, seen, left = [value], 1, depth
    while True:
        kinds = set(map(type, level))
        if kinds <= _LEAVES:
            return True
        if not kinds <= _PLAIN:
            return False
        if left == 0:
            raise _StuckError(_too_deep(depth))
        left -= 1
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind in _LEAVES:
                continue
            seen += len(item)
            if seen > most:
                raise _StuckError(_too_many(most))
            if kind is dict:
                if not all(type(key) is str for key in item):
                    return False
                below += item.values()
            else:
                below += item
        level = below


def _too_deep(depth: int) -> str:
    return (
        f"is nested more than {depth} levels deep, or holds itself; flatten it, or raise the "
        f"limit on both sides"
    )


def _too_many(most: int) -> str:
    return (
        f"holds more than {most:,} values, which cannot fit the limit of {most:,} bytes; send "
        f"the place where the data can be read instead, or raise the limit on both sides"
    )


def _path_text(path: list[Any]) -> str:
    shown = [
        f'["{one_line(key, 60)}"]' if isinstance(key, str) else f"[{key}]"
        for key in path[:_LONGEST_PATH]
    ]
    return "".join(shown) + ("[...]" if len(path) > _LONGEST_PATH else "")


class _Room:
    """The room left in a message: levels of nesting, and the number of values."""

    def __init__(self, depth: int, most: int) -> None:
        self.depth = depth
        self.most = most
        self.left = most

    def take(self, count: int, level: int) -> None:
        if level > self.depth:
            raise _StuckError(_too_deep(self.depth))
        self.left -= count
        if self.left < 0:
            raise _StuckError(_too_many(self.most))


@singledispatch
def _form(value: Any, room: _Room, level: int) -> Any:
    """Return a value as the C encoder writes it; `level` arrays and objects contain it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return _object(((name, getattr(value, name)) for name in names), len(names), room, level)
    kind = type(value).__name__
    raise _StuckError(
        f"is of type {kind}, which has no JSON form; convert it to numbers, texts, lists, dicts, "
        f"arrays, times or another of the forms that the documentation of {__name__} has"
    )


def _array(values: Iterable[Any], count: int, room: _Room, level: int) -> list[Any]:
    room.take(count, level + 1)
    formed: list[Any] = []
    try:
        for item in values:
            # A comprehension would not say at which position it failed.
            formed += (item if type(item) in _AS_IT_IS else _form(item, room, level + 1),)
    except _StuckError as stuck:
        raise stuck.under(len(formed)) from None
    return formed


def _object(
    items: Iterable[tuple[Any, Any]], count: int, room: _Room, level: int
) -> dict[str, Any]:
    room.take(count, level + 1)
    formed: dict[str, Any] = {}
    for key, item in items:
        name = key if type(key) is str else _key(key)
        if name in formed:
            raise _StuckError(f'has two keys that are "{one_line(name, 60)}" in JSON; rename one')
        try:
            formed[name] = item if type(item) in _AS_IT_IS else _form(item, room, level + 1)
        except _StuckError as stuck:
            raise stuck.under(name) from None
    return formed


def _key(key: Any) -> str:
    plain = key.item() if isinstance(key, np.generic) else key
    if isinstance(plain, str):
        return str.__str__(plain)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    if isinstance(plain, int):
        return int.__repr__(plain)
    if isinstance(plain, float) and math.isfinite(plain):
        return float.__repr__(plain)
    raise _StuckError(
        f"has the key {one_line(repr(key), 60)}, a {type(key).__name__}; a key must be a text, a "
        f"finite number, a bool or None"
    )


def _itself(value: Any, room: _Room, level: int) -> Any:
    return value


def _nothing(value: Any, room: _Room, level: int) -> None:
    return None


def _number(value: float, room: _Room, level: int) -> float | None:
    return value if math.isfinite(value) else None


def _mapping(value: Mapping[Any, Any], room: _Room, level: int) -> dict[str, Any]:
    return _object(value.items(), len(value), room, level)


def _sequence(value: Any, room: _Room, level: int) -> list[Any]:
    return _array(value, len(value), room, level)


def _set(value: Set[Any], room: _Room, level: int) -> list[Any]:
    room.take(0, level + 1)
    try:
        items = sorted(value)
    except TypeError:  # not all of them can be compared
        items = list(value)
    return _array(items, len(items), room, level)


def _bytes(value: Any, room: _Room, level: int) -> str:
    return b64encode(bytes(value)).decode()


def _decimal(value: Decimal, room: _Room, level: int) -> float | None:
    if not value.is_finite():
        return None
    if value == 0 or (
        -1 < value.adjusted() < _LONGEST_WHOLE and value == value.to_integral_value()
    ):
        return int(value)
    nearest = float(value)
    if not math.isfinite(nearest):
        raise _StuckError("is a Decimal too large for a float; send it as a text")
    return nearest


def _complex(value: complex, room: _Room, level: int) -> dict[str, Any]:
    parts = {"real": value.real, "imag": value.imag}
    return _object(parts.items(), 2, room, level)


def _enum(value: Enum, room: _Room, level: int) -> Any:
    return _form(value.value, room, level)


def _text(value: object, room: _Room, level: int) -> str:
    return str(value)


def _iso(value: date | time, room: _Room, level: int) -> str:
    return value.isoformat()


def _moment(value: datetime, room: _Room, level: int) -> str:
    offset = value.utcoffset()
    if offset is None:
        return _trimmed(value.isoformat())
    if offset % timedelta(minutes=1):  # offsets from before there were time zones
        value, offset = value.astimezone(UTC), timedelta(0)
    text = value.isoformat()
    return _trimmed(text[:-6]) + (text[-6:] if offset else "Z")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _duration(value: timedelta, room: _Room, level: int) -> int:
    microseconds = (value.days * 86_400 + value.seconds) * 10**6 + value.microseconds
    return microseconds * 1000 + getattr(value, "nanoseconds", 0)  # a Timedelta has these


def _numpy(value: Any, room: _Room, level: int) -> Any:
    """Return a NumPy array or scalar as lists in lists."""
    array = np.asarray(value)
    kind = array.dtype.kind
    if kind == "V":
        raise _StuckError(
            "is an array with fields, which has no JSON form; send a dict of its columns"
        )
    if kind in "OSTc":
        if kind == "c":
            array = array.astype(np.complex128)
        return _form(array.tolist(), room, level)
    if array.ndim:
        room.take(max(array.size, *array.shape), level + array.ndim)
    if kind == "M":
        return _moments(array)
    if kind == "m":
        return _durations(array)
    return _numbers(array) if kind == "f" else array.tolist()


def _numbers(array: np.ndarray) -> Any:
    array = array.astype(np.float64)  # also the long ones, which Python has no type for
    finite = np.isfinite(array)
    if finite.all():
        return array.tolist()
    objects = array.astype(object)
    objects[~finite] = None
    return objects.tolist()


def _reshaped(items: list[Any], array: np.ndarray) -> Any:
    objects = np.empty(len(items), dtype=object)
    objects[:] = items
    return objects.reshape(array.shape).tolist()


def _moments(array: np.ndarray) -> Any:
    unit, count = np.datetime_data(array.dtype)
    if unit in _WRITABLE or count != 1:
        array = array.astype(f"M8[{_WRITABLE.get(unit, unit)}]")
    texts = np.datetime_as_string(array).ravel().tolist()
    return _reshaped([None if text == "NaT" else _trimmed(text) for text in texts], array)


def _durations(array: np.ndarray) -> Any:
    unit, count = np.datetime_data(array.dtype)
    factor, parts = _NANOSECONDS.get(unit, 1), _PARTS.get(unit, 1)
    ticks = array.astype(np.int64).ravel().tolist()
    if unit not in _NANOSECONDS and unit not in _PARTS and set(ticks) - {_NOT_A_TIME}:
        raise _StuckError(
            f"is a timedelta64 of unit {unit}, which is no fixed number of nanoseconds; give it "
            f"another unit"
        )
    durations = [None if tick == _NOT_A_TIME else tick * count * factor // parts for tick in ticks]
    return _reshaped(durations, array)


def _masked(value: Any, room: _Room, level: int) -> Any:
    mask = np.ma.getmaskarray(value)
    if value.dtype.kind in "fMm":
        missing = "NaT" if value.dtype.kind in "Mm" else np.nan
        data = np.array(value.data)
        data[mask] = np.array(missing, dtype=data.dtype)
        return _numpy(data, room, level)
    objects = np.array(value.data).astype(object)
    objects[mask] = None
    return _numpy(objects, room, level)


def _column(value: Any, room: _Room, level: int) -> Any:
    """Return a Series, an Index or an extension array as a list."""
    if isinstance(value.dtype, np.dtype) and not isinstance(value, pd.MultiIndex):
        return _numpy(value.to_numpy(), room, level)
    room.take(0, level + 1)
    return _array(value.astype(object), len(value), room, level)


def _frame(value: pd.DataFrame, room: _Room, level: int) -> dict[str, Any]:
    columns = [(name, value.iloc[:, position]) for position, name in enumerate(value.columns)]
    columns = [*_levels(value.index), *columns]
    return _object(columns, len(columns), room, level)


def _levels(index: pd.Index) -> list[tuple[Any, Any]]:
    if index.nlevels > 1:
        names = [f"level_{n}" if name is None else name for n, name in enumerate(index.names)]
        return [(name, index.get_level_values(n)) for n, name in enumerate(names)]
    is_default = isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    if is_default and index.name is None:
        return []
    return [("index" if index.name is None else index.name, index)]


# `singledispatch` takes the entry of the nearest class of a value: an IntEnum is a number, a
# Timestamp a datetime.
_FORMS: list[tuple[Callable[[Any, _Room, int], Any], tuple[type, ...]]] = [
    (_itself, (str, int, bool)),
    (_nothing, (type(None), type(pd.NaT), type(pd.NA))),
    (_number, (float,)),
    (_mapping, (dict, Mapping)),
    (_sequence, (list, tuple, Sequence, ValuesView)),
    (_set, (Set,)),
    (_bytes, (bytes, bytearray, memoryview)),
    (_decimal, (Decimal,)),
    (_complex, (complex,)),
    (_enum, (Enum,)),
    (_text, (PurePath, UUID)),
    (_iso, (date, time)),
    (_moment, (datetime,)),
    (_duration, (timedelta,)),
    (_numpy, (np.generic, np.ndarray)),
    (_masked, (np.ma.MaskedArray,)),
    (_column, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)),
    (_frame, (pd.DataFrame,)),
]
for _write, _kinds in _FORMS:
    for _kind in _kinds:
        _form.register(_kind, _write)
