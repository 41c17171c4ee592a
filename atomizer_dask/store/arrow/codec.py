"""Columns as Arrow arrays that any reader of Parquet understands, and back bit for bit.

What Arrow's type does not say, a note does: a small dict that becomes JSON in the metadata of the
field. Missing values, NaT and None are nulls; NaN is a number.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from atomizer_dask.errors import UnstorableError
from atomizer_dask.store.arrow import numpy_columns, object_columns, pandas_columns
from atomizer_dask.store.arrow.encoded import (
    EncodedColumn,
    RefusedError,
    combined,
    fixed_lists,
    of_inputs,
    refusal,
)
from atomizer_dask.sweeps.columns import Values, as_objects, column, numpy_values

if TYPE_CHECKING:
    from atomizer_dask.store.arrow.encoded import Array


__all__ = ["EncodedColumn", "RefusedError", "decode", "encode", "encode_inputs"]


def encode(values: Values, *, allow_pickle: bool = False) -> EncodedColumn:
    """Return a column as Arrow.

    A column without rows is of type null, which `common_form.common` counts as absent.

    Raises
    ------
    RefusedError
        Where values have no Arrow type and may not be pickled; `RefusedError.rows` are their rows.
    """
    bare = _without_wrapper(values)
    array, note = _encode(bare, allow_pickle)
    if len(bare):
        return EncodedColumn(array, note)
    if isinstance(bare, np.ndarray) and bare.dtype.kind != "O":
        note = {**note, "dtype": bare.dtype.newbyteorder("=").str}
    return EncodedColumn(pa.nulls(0), note)


def encode_inputs(what: str, values: Values, *, allow_pickle: bool) -> EncodedColumn:
    """Return inputs as Arrow.

    Raises
    ------
    UnstorableError
        Where they have no Arrow type and may not be pickled; the message names them by `what`.
    """
    try:
        return encode(values, allow_pickle=allow_pickle)
    except UnstorableError as error:
        raise UnstorableError(f"{what} cannot be kept in a store: {of_inputs(error)}") from error


def _without_wrapper(values: Values) -> Any:
    """Return a range, or an array that pandas only wraps, as a NumPy array; else `values`."""
    is_wrapped = isinstance(getattr(values, "dtype", None), np.dtype)
    if is_wrapped or isinstance(values, range) or type(values) is pd.arrays.NumpyExtensionArray:
        return numpy_values(values)
    return values


def _encode(values: Any, allow_pickle: bool) -> EncodedColumn:
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _encode_categorical(values, allow_pickle)
    if not isinstance(values, np.ndarray):
        return pandas_columns.encode(values, allow_pickle=allow_pickle)
    if values.ndim > 1:
        return _encode_rows(values, allow_pickle)
    if dtype.kind == "O":
        return object_columns.encode(values.tolist(), allow_pickle=allow_pickle)
    if dtype.kind == "T" or (dtype.kind == "V" and not allow_pickle):
        raise refusal(range(len(values)), list(values[:1]), repr(dtype))
    if dtype.kind == "V":
        return EncodedColumn(
            object_columns.pickled(list(values)), {**object_columns.PICKLE, "stack": str(dtype)}
        )
    return numpy_columns.encode(values)


def _encode_rows(values: np.ndarray, allow_pickle: bool) -> EncodedColumn:
    shape = values.shape[1:]
    try:
        array, note = encode(values.reshape(-1), allow_pickle=allow_pickle)
    except RefusedError as error:
        rows = dict.fromkeys(row // prod(shape) for row in error.rows)
        raise RefusedError(error.event, error.internal, rows) from None
    if prod(shape):
        array = fixed_lists(array, shape)
    else:
        array = pa.array([[]] * len(values), pa.list_(array.type))
    return EncodedColumn(array, {**note, "shape": list(shape)})


def _encode_categorical(values: Any, allow_pickle: bool) -> EncodedColumn:
    try:
        categories, note = encode(values.categories.array)
    except RefusedError:
        return pandas_columns.encode(values, allow_pickle=allow_pickle)
    codes = np.asarray(values.codes)
    note = {
        "pandas": "categorical",
        "categories": _packed(categories),
        "ordered": bool(values.ordered),
        "of": note,
    }
    return EncodedColumn(categories.take(pa.array(codes, mask=codes < 0)), note)


def _packed(array: pa.Array) -> str:
    batch = pa.record_batch([array], names=["values"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return b64encode(sink.getvalue()).decode()


def _unpacked(text: str) -> pa.Array:
    return combined(pa.ipc.open_stream(b64decode(text)).read_all()["values"])


def decode(array: Array, note: Mapping[str, Any], *, allow_pickle: bool = False) -> Values:
    """Return the column that `encode` was given; its memory may be read-only.

    Nulls become None, or the missing value of the dtype; a column of numbers must have none.

    Raises
    ------
    UnstorableError
        Where it holds pickles and they may not be read.
    StoreError
        Where a pickle cannot be read here.
    """
    if note.get("pandas") == "categorical":
        return cast(Values, _decode_categorical(array, note))
    if "pandas" in note:
        return cast(Values, pandas_columns.decode(array, note, allow_pickle=allow_pickle))
    if "shape" in note:
        return _decode_rows(array, dict(note), allow_pickle)
    if "form" not in note and "dtype" in note:
        return numpy_columns.decode(array, np.dtype(note["dtype"]))
    if "form" not in note and np.dtype(array.type.to_pandas_dtype()) != object:
        return numpy_columns.decode(array)
    values = object_columns.decode(array, note, allow_pickle=allow_pickle)
    if note.get("mixed"):
        return column(values)
    return np.stack(values) if "stack" in note and values else as_objects(values)


def _decode_rows(array: Array, note: dict[str, Any], allow_pickle: bool) -> np.ndarray:
    shape = note.pop("shape")
    flat = combined(array)
    if flat.type != pa.null():
        for _ in shape if prod(shape) else [0]:
            flat = flat.flatten()
    return numpy_values(decode(flat, note, allow_pickle=allow_pickle)).reshape(len(array), *shape)


def _decode_categorical(array: Array, note: Mapping[str, Any]) -> Any:
    categories = _index(decode(_unpacked(note["categories"]), note["of"]))
    codes = np.full(len(array), -1)
    if array.type != pa.null():
        here = array.is_valid().to_numpy(zero_copy_only=False)
        codes[here] = categories.get_indexer(_index(decode(array.drop_null(), note["of"])))
    dtype = pd.CategoricalDtype(categories, ordered=note["ordered"])
    return pd.Categorical.from_codes(codes, dtype=dtype)


def _index(values: Any) -> Any:
    return pd.Index(values, dtype=values.dtype)
