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
    # Long doubles: Arrow has none.
    return pa.Array.from_buffers(
        pa.binary(size), len(values), [None, pa.py_buffer(values.tobytes())]
    )


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
        return np.frombuffer(b"".join(array.to_pylist()), dtype)
    if dtype.kind in "US":
        return np.array(array.to_pylist(), dtype)
    if pa.types.is_integer(array.type):
        return decode(array.fill_null(np.iinfo(np.int64).min)).view(dtype)
    return decode(array).astype(dtype, copy=False)
