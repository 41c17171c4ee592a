"""Inputs that must be computed first, or can be read only once: refused, with what to do.

An electron would be given the graph, the future or the iterator itself, and no user means that.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from datetime import date, datetime, timedelta
from itertools import chain, islice
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

import dask
import numpy as np

from atomizer_dask.display.text import brief
from atomizer_dask.errors import InvalidSweepError

SAMPLED = 100  # values in a list or a dictionary that is itself a value
_VALUES = {
    type(None), bool, int, float, complex, str, bytes, np.ndarray, date, datetime, timedelta,
}  # fmt: skip
_NESTED = (list, tuple, dict)
_ONCE = (GeneratorType, map, filter, zip, enumerate)
_FILES = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)


def check_sweep(inputs: Any) -> None:
    """Raise where what is given as a sweep, or as a column of one, must be computed first.

    Raises
    ------
    InvalidSweepError
        With what to do.
    """
    if type(inputs) not in _VALUES and (what := _to_be_computed(inputs)) is not None:
        raise InvalidSweepError(f"cannot sweep over a {_named(inputs)}: {what}")


def check_values(name: str, values: Iterable[Any]) -> None:
    """Raise where a value of a column can never be meant to be an input.

    Raises
    ------
    InvalidSweepError
        With the name of the column, the value and what to do.
    """
    dtype = getattr(values, "dtype", None)  # not compared with None, which to NumPy is float64
    if isinstance(values, range) or (dtype is not None and dtype != np.dtype(object)):
        return
    listed = list(values)
    suspects = set(map(type, listed)) - _VALUES
    suspects -= {kind for kind in suspects if kind in _NESTED and _hold_values(listed, kind)}
    if not suspects:
        return
    for position, value in enumerate(listed):
        if type(value) not in suspects or is_dask_future(value):  # a worker has its value
            continue
        if (what := _refused(value)) is not None:
            raise InvalidSweepError(
                f"value {position} of {name!r} is {brief(value)}, a {_named(value)}: {what}"
            )


def is_dask_future(value: Any) -> bool:
    """Return whether a value is a Future of Dask: workers can resolve it to its value."""
    return _is_of(value, "distributed", "Future")


def check_fixed(values: Mapping[str, Any]) -> None:
    """Raise where a fixed value can never be meant to be one; see `check_values`."""
    for name, value in values.items():
        check_values(name, (value,))


def check_payload(payload: Any) -> None:
    """Raise where a payload, or a field of one, can never be meant to be an input.

    Raises
    ------
    InvalidSweepError
        With the name of the field and what to do.
    """
    if type(payload) is dict or isinstance(payload, Mapping):
        if not _VALUES.issuperset(map(type, payload.values())):
            for name, value in payload.items():
                check_values(str(name), (value,))
                if is_dask_future(value) and (what := _refused(value)) is not None:
                    raise InvalidSweepError(f"the value of {name!r} is a {_named(value)}: {what}")
    elif type(payload) not in _VALUES and (what := _refused(payload)) is not None:
        raise InvalidSweepError(f"the payload is a {_named(payload)}: {what}")


def _hold_values(listed: list[Any], kind: type) -> bool:
    """Return whether containers of a kind hold values alone; in one pass, for they may be many."""
    those: list[Any] = [value for value in listed if type(value) is kind]
    inside: list[Any] = [value.values() for value in those] if kind is dict else those
    inner = chain.from_iterable(inside)
    return set(map(type, islice(inner, SAMPLED * len(those)))) <= _VALUES


def _refused(value: Any) -> str | None:
    """Return what to do instead of giving a value; None where it can be given."""
    if type(value) in _NESTED:
        inner = value.values() if type(value) is dict else value
        suspects = (one for one in islice(inner, SAMPLED) if type(one) not in _VALUES)
        return next(filter(None, map(_not_a_value, suspects)), None)
    return _not_a_value(value)


def _not_a_value(value: Any) -> str | None:
    if isinstance(value, _ONCE):
        return "it can be read only once; give list(...) of it"
    if isinstance(value, _FILES):
        return "an open file is of this process alone; give its path, and open it in the atom"
    return _to_be_computed(value)


def _to_be_computed(value: Any) -> str | None:
    if _is_collection(value):
        return (
            "an electron would be given its graph instead of its value; compute it first, as by "
            "dask.compute(...), or map over what it gives"
        )
    if isinstance(value, CoroutineType | AsyncGeneratorType | asyncio.Future):
        return "it has no value yet; await it first"
    if isinstance(value, Future):
        return "it is a promise of a value; give its result(), of an electron .result().value()"
    if is_dask_future(value):
        return "it is a promise of a value; give what client.gather(...) of it returns"
    if _is_of(value, "polars", "LazyFrame"):
        return "it is a query; give what its collect() returns"
    return None


def _is_collection(value: Any) -> bool:
    try:
        return bool(dask.is_dask_collection(value))
    except Exception:  # noqa: BLE001 - an object of the user that answers to any name, say
        return False


def _is_of(value: Any, module: str, name: str) -> bool:
    """Return whether a value is of a class, without importing the module of the class."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _named(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]} {kind.__qualname__}".removeprefix("builtins ")
