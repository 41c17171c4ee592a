"""Python values as JSON that gives them back exactly, types and all.

A value of a type that JSON lacks is an object with a single key: ``{"$tuple": [1, 2]}``. Encoders
of other libraries write such values so that another type comes back, a list for a tuple; without
exact JSON, tuples, Decimals and times with a zone could be stored as pickles only.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from atomizer_dask.sweeps.columns import as_objects


class InexactError(Exception):
    """A value has no exact JSON. The argument is that value, perhaps a part of a given one."""


def to_json(value: Any) -> str:
    """Return a value as JSON.

    Raises
    ------
    InexactError
        Where it would not come back the same.

    Examples
    --------
    >>> to_json({"x": (1, 2.5)})
    '{"x":{"$tuple":[1,2.5]}}'
    """
    try:
        text = _ENCODER.encode(_plain(value))
        text.encode()
    except (RecursionError, UnicodeEncodeError):  # has no end, or half a surrogate pair
        raise InexactError(value) from None
    return text


def from_json(text: str) -> Any:
    """Return the value that `to_json` was given."""
    return _DECODER.decode(text)


def _plain(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int and value.bit_length() < 10_000:  # Python reads no longer decimals
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict and all(type(key) is str and key not in _READERS for key in value):
        return {key: _plain(item) for key, item in value.items()}
    kind = np.generic if isinstance(value, np.generic) else kind
    if kind not in _TAGGED:
        raise InexactError(value)
    tag, write, _ = _TAGGED[kind]
    return {tag: write(value)}


def _restored(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag in _READERS:
            return _READERS[tag](content)
    return value


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _zone_of(value: Any) -> str | float | None:
    """Return a time zone that another machine has as well: its name, or seconds from UTC."""
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    if type(zone) is timezone:
        seconds = zone.utcoffset(None).total_seconds()
        if repr(zone) == repr(_zone(seconds)):  # it may have a name of its own
            return seconds
    raise InexactError(value)


def _zone(zone: str | float | None) -> Any:
    if zone is None:
        return None
    return ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=zone))


def _write_time(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), _zone_of(value), value.fold]


def _read_time(kind: Any, value: list[Any]) -> Any:
    text, zone, fold = value
    return kind.fromisoformat(text).replace(tzinfo=_zone(zone), fold=fold)


def _write_array(value: Any) -> list[Any]:
    kind = value.dtype.kind
    if kind in "VT":
        raise InexactError(value)
    items = [_plain(item) for item in value.flat] if kind == "O" else _base64(value.tobytes())
    return [value.dtype.str, list(value.shape), items]


def _read_array(value: list[Any]) -> np.ndarray:
    dtype, shape, items = value
    if isinstance(items, list):
        return as_objects(items).reshape(shape)
    return np.ndarray(shape, dtype, b64decode(items)).copy()


def _ticks(value: Any) -> list[Any]:
    return [value.asm8.view(np.int64).item(), value.unit]


def _write_timestamp(value: Any) -> list[Any]:
    return [*_ticks(value), _zone_of(value)]


def _read_timestamp(value: list[Any]) -> Any:
    *ticks, zone = value
    moment = pd.Timestamp(np.datetime64(*ticks))
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(_zone(zone))


# The tag of a type, what writes its values, and what reads them.
_TAGGED: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    tuple: ("$tuple", lambda value: [_plain(item) for item in value], tuple),
    complex: ("$complex", lambda value: [value.real, value.imag], lambda pair: complex(*pair)),
    bytes: ("$bytes", _base64, b64decode),
    Decimal: ("$Decimal", str, Decimal),
    date: ("$date", date.isoformat, date.fromisoformat),
    datetime: ("$datetime", _write_time, partial(_read_time, datetime)),
    time: ("$time", _write_time, partial(_read_time, time)),
    timedelta: (
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(*parts),
    ),
    np.generic: ("$scalar", _write_array, lambda value: _read_array(value)[()]),
    np.ndarray: ("$array", _write_array, _read_array),
    pd.Timestamp: ("$Timestamp", _write_timestamp, _read_timestamp),
    pd.Timedelta: ("$Timedelta", _ticks, lambda ticks: pd.Timedelta(np.timedelta64(*ticks))),
    pd.Period: (
        "$Period",
        lambda value: [value.ordinal, value.freqstr],
        lambda pair: pd.Period(ordinal=pair[0], freq=pair[1]),
    ),
    pd.Interval: (
        "$Interval",
        lambda value: [_plain(value.left), _plain(value.right), value.closed],
        lambda parts: pd.Interval(*parts),
    ),
    type(pd.NaT): ("$NaT", str, lambda _: pd.NaT),
}
_READERS = {tag: read for tag, _, read in _TAGGED.values()}
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(object_hook=_restored)
