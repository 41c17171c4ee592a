"""Columns of Python objects as Arrow, and back.

Objects of one type get the Arrow type that Arrow infers, where that gives the same objects back;
all others are JSON text, or pickles where these are allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from atomizer_dask.atoms.namespaces import loads
from atomizer_dask.atoms.pickling import dumps
from atomizer_dask.errors import StoreError, UnstorableError
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.store.arrow import numpy_columns
from atomizer_dask.store.arrow.encoded import (
    BYTES,
    TEXT,
    EncodedColumn,
    Note,
    RefusedError,
    array_of,
    combined,
    refusal,
)
from atomizer_dask.store.arrow.exact_json import InexactError, from_json, to_json

if TYPE_CHECKING:
    from atomizer_dask.store.arrow.encoded import Array


JSON: Note = {"form": "json"}
PICKLE: Note = {"form": "pickle"}
_TEXTS: dict[type, tuple[Any, Note]] = {
    str: (TEXT, {}),
    bytes: (BYTES, {}),
    np.str_: (TEXT, {"form": "str_"}),
}
_READERS: dict[str, Any] = {"json": from_json, "tuple": tuple, "str_": np.str_}
_EXACT = {bool, int, float, str, bytes, date, timedelta}
_NATIVE = _EXACT | {datetime, time, Decimal}


def encode(values: list[Any], *, allow_pickle: bool) -> EncodedColumn:
    """Return a column of objects, None as null.

    Raises
    ------
    RefusedError
        Where objects have no JSON, or no pickle if these are allowed; `RefusedError.rows` are
        their rows.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return EncodedColumn(pa.nulls(len(values)), {})
    coded = _encode_alike(values, *kinds) if len(kinds) == 1 else None
    if coded is not None:
        return coded
    try:
        return EncodedColumn(texts(values), dict(JSON))
    except RefusedError:
        if not allow_pickle:
            raise
        return EncodedColumn(pickled(values), dict(PICKLE))


def _encode_alike(values: list[Any], kind: type) -> EncodedColumn | None:
    """Return objects of one type in a form of their own, None where they have none."""
    if kind is np.ndarray:
        return _encode_arrays(values)
    if kind in (pd.Timestamp, pd.Timedelta):
        return _encode_pandas_times(values)
    try:
        if kind in _TEXTS:
            return EncodedColumn(array_of(values, _TEXTS[kind][0]), dict(_TEXTS[kind][1]))
        return _encode_native(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _encode_native(values: list[Any], kind: type) -> EncodedColumn | None:
    if kind is tuple:
        values = [None if value is None else list(value) for value in values]
    within = _kinds_within(values)
    if len(within) > 1 or not within <= _NATIVE:
        return None
    array = pa.array(values)
    if isinstance(array, pa.ChunkedArray):  # of more than 2 GB
        return None
    # Arrow gives all decimals of a column one scale, and all its times one zone.
    if within <= _EXACT or repr(array.to_pylist()) == repr(values):
        return EncodedColumn(array, {"form": "tuple" if kind is tuple else "object"})
    return None


def _kinds_within(values: Iterable[Any], levels: int = 8) -> set[type]:
    """Return the types within lists of lists; list where there are more levels.

    A list that contains itself would crash Arrow; here its type is list, which the caller refuses.
    """
    values = list(values)
    kinds = set(map(type, values)) - {type(None)}
    if kinds != {list} or not levels:
        return kinds
    return _kinds_within(chain.from_iterable(filter(None, values)), levels - 1)


def _encode_arrays(values: list[Any]) -> EncodedColumn | None:
    arrays = [value for value in values if value is not None]
    dtype = arrays[0].dtype
    if dtype.kind in "VOT" or any(a.ndim != 1 or a.dtype != dtype for a in arrays):
        return None
    flat, note = numpy_columns.encode(np.concatenate(arrays))
    lengths = [0 if value is None else len(value) for value in values]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int64())
    empty = pa.array([value is None for value in values])
    array = pa.LargeListArray.from_arrays(offsets, flat, mask=empty)
    return EncodedColumn(array, {"form": "arrays", "of": note})


def _decode_arrays(array: pa.Array, note: Note) -> list[Any]:
    flat = numpy_columns.decode(array.flatten(), np.dtype(note["dtype"]) if note else None)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    bounds = pairwise(np.cumsum([0, *lengths]).tolist())
    here = zip(bounds, array.is_valid().to_pylist(), strict=True)
    return [flat[start:stop].copy() if is_here else None for (start, stop), is_here in here]


def _encode_pandas_times(values: list[Any]) -> EncodedColumn | None:
    times = [value for value in values if value is not None]
    if len({time.unit for time in times}) > 1 or any(getattr(t, "tzinfo", None) for t in times):
        return None
    ticks = [None if value is None else value.asm8 for value in values]
    array, note = numpy_columns.encode(np.array(ticks, times[0].asm8.dtype))
    return EncodedColumn(array, {"form": "times", **note})


def texts(values: list[Any]) -> pa.Array:
    """Return objects as JSON, None as null."""
    found, refused = [], {}
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else to_json(value))
        except InexactError as error:
            refused[row] = error.args[0]
    if refused:
        raise refusal(refused, list(refused.values()))
    return array_of(found, TEXT)


def pickled(values: list[Any]) -> pa.Array:
    """Return objects as pickles, None as null."""
    dumped, refused = [], {}
    for row, value in enumerate(values):
        try:
            dumped.append(None if value is None else dumps(value))
        except BaseException as error:  # pickling runs the user's __reduce__
            if is_interrupt(error):
                raise
            refused[row] = value
    if refused:
        raise refusal(refused, list(refused.values()), way_out="they cannot be pickled either")
    return array_of(dumped, BYTES)


def unpickled(data: Iterable[bytes | None], *, allow_pickle: bool) -> list[Any]:
    """Return the objects of pickles.

    Raises
    ------
    UnstorableError
        Where pickles may not be read.
    StoreError
        Where one cannot be read here.
    """
    if not allow_pickle:
        raise UnstorableError(
            "column holds pickles; reading them runs code: give allow_pickle=True"
        )
    try:
        return [None if one is None else loads(one) for one in data]
    except Exception as error:
        raise StoreError(
            "a pickled value cannot be read here: is what it is made of installed?", error
        ) from error


def decode(array: Array, note: Mapping[str, Any], *, allow_pickle: bool) -> list[Any]:
    """Return the objects that `encode` was given; raises what `unpickled` does."""
    form = note.get("form", "object")
    if form == "arrays":
        return _decode_arrays(combined(array), note["of"])
    if form == "times":
        found = pd.Series(numpy_columns.decode(array, np.dtype(note["dtype"])))
        return [None if value is pd.NaT else value for value in found]
    if form == "pickle":
        return unpickled(array.to_pylist(), allow_pickle=allow_pickle)
    if form == "object":
        return array.to_pylist()  # type: ignore[no-any-return]
    return [None if value is None else _READERS[form](value) for value in array.to_pylist()]
