"""NumPy columns of one dtype as Arrow, and back."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from atomizer_dask.store.arrow.encoded import (
    BYTES,
    TEXT,
    EncodedColumn,
    array_of,
    combined,
    fixed_lists,
    refusal,
)

if TYPE_CHECKING:
    from atomizer_dask.store.arrow.encoded import Array


# Parquet knows no times in seconds.
_STAND_INS = {"M8[D]": "M8[D]", "M8[s]": "M8[ms]", "m8[s]": "m8[s]"}


def encode(values: np.ndarray) -> EncodedColumn:
    """Return a column of numbers, texts, bytes or times; NaT becomes null, NaN stays.

    Raises
    ------
    RefusedError
        Where there is half a surrogate pair in a text.
    """
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.dtype.kind in "biuf" and values.dtype.itemsize <= 8:
        return EncodedColumn(pa.array(values), {})
    return EncodedColumn(_array(values), {"dtype": values.dtype.str})


def _array(values: np.ndarray) -> pa.Array:
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "c" and size <= 16:
        return fixed_lists(pa.array(values.view(values.real.dtype)), [2])
    if kind == "S":
        return array_of(values.tolist(), BYTES)
    if kind == "U":
        try:
            return array_of(values.tolist(), TEXT)
        except UnicodeEncodeError:
            raise refusal(
                range(len(values)), values[:1].tolist(), "half a surrogate pair"
            ) from None
    if kind in "mM":
        return _array_of_times(values)
    return _array_of_bytes(values)  # long doubles: Arrow has none


def _array_of_bytes(values: np.ndarray) -> pa.Array:
    buffer = pa.py_buffer(values.view(np.uint8))
    return pa.Array.from_buffers(pa.binary(values.itemsize), len(values), [None, buffer])


def encode_records(values: np.ndarray) -> EncodedColumn:
    """Return a column of a structured dtype as bytes."""
    return EncodedColumn(
        _array_of_bytes(np.ascontiguousarray(values)), {"fields": _description(values.dtype)}
    )


def decode_records(array: Array, fields: Any) -> np.ndarray:
    """Return the column that `encode_records` was given."""
    return decode(array, _described(fields))


def _description(dtype: np.dtype[Any]) -> Any:
    """Return a dtype for JSON; NumPy's own `descr` lacks the order and alignment of fields."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_description(base), list(shape)]
    if dtype.names is None:
        return dtype.str
    fields: list[Any] = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return {
        "names": list(dtype.names),
        "formats": [_description(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _described(fields: Any) -> np.dtype[Any]:
    if isinstance(fields, str):
        return np.dtype(fields)
    if isinstance(fields, list):
        base, shape = fields
        return np.dtype((_described(base), tuple(shape)))
    spec: Any = {**fields, "formats": [_described(field) for field in fields["formats"]]}
    found: np.dtype[Any] = np.dtype(spec)
    return found


def _array_of_times(values: np.ndarray) -> pa.Array:
    unit, step = np.datetime_data(values.dtype)
    if step == 1 and unit in ("ms", "us", "ns"):
        return pa.array(values)
    stand_in = _STAND_INS.get(values.dtype.str[1:])
    if stand_in:
        with suppress(OverflowError):
            array = pa.array(values.astype(stand_in))
            if np.array_equal(decode(array, values.dtype), values, equal_nan=True):
                return array
    return ticks(values)


def ticks(values: np.ndarray) -> pa.Array:
    """Return times as integers, which hold any unit and any range; NaT becomes null."""
    return pa.array(values.view(np.int64), mask=np.isnat(values))


def decode(array: Array, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """Return the column that `encode` was given; numbers need no `dtype`."""
    array = combined(array)
    if dtype is None:
        return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    if array.type == pa.null():
        return np.empty(0, dtype)
    if pa.types.is_fixed_size_list(array.type):
        return decode(array.flatten()).view(dtype)
    if pa.types.is_fixed_size_binary(array.type):
        data, begin = array.buffers()[1], array.offset * dtype.itemsize
        return np.frombuffer(data, dtype, len(array), begin) if data else np.empty(0, dtype)
    if dtype.kind in "US":
        return np.array(array.to_pylist(), dtype)
    if pa.types.is_integer(array.type):
        return decode(array.fill_null(np.iinfo(np.int64).min)).view(dtype)
    return decode(array).astype(dtype, copy=False)
