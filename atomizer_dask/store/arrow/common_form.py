"""Columns of several batches in one form: the same type of Arrow and the same note.

`pa.unify_schemas` ignores notes, and makes int64 of a signed integer and uint64, which cannot hold
half of the values of uint64.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from atomizer_dask.store.arrow import numpy_columns, object_columns, pandas_columns
from atomizer_dask.store.arrow.codec import decode, encode
from atomizer_dask.store.arrow.encoded import (
    BYTES,
    LARGE,
    TEXT,
    Form,
    Note,
    RefusedError,
    combined,
    fixed_lists,
    refusal,
    spread,
)
from atomizer_dask.store.arrow.object_columns import JSON, PICKLE, pickled, texts
from atomizer_dask.sweeps.columns import common_dtype, objects_of

if TYPE_CHECKING:
    from atomizer_dask.store.arrow.encoded import Array


_OBJECT = np.dtype(object)
_SMALL = {large: small for small, large in LARGE.items()}


def common(a: Form, b: Form) -> Form:
    """Return the one form, a type and a note, in which columns of two forms can be stored.

    Numbers promote as in memory; a column that is all null is absent, and fits any other. A column
    that becomes objects is marked as mixed: `decode` returns what `columns.concatenate` would.
    """
    small = [(_SMALL.get(kind, kind), note) for kind, note in (a, b)]
    kind, note = _common(*small)
    return (kind if small == [a, b] else LARGE.get(kind, kind)), note


def _common(a: Form, b: Form) -> Form:
    if a == b or b[0] == pa.null():
        return a
    if a[0] == pa.null():
        return b
    if "pandas" in a[1] or "pandas" in b[1]:
        return _common_of_extensions(a, b)
    shape = a[1].get("shape")
    if shape != b[1].get("shape"):
        arrays = _as_arrays(a)
        return arrays if arrays and arrays == _as_arrays(b) else _common_of_objects(a, b)
    one, other = _leaf(a), _leaf(b)
    dtypes = {_dtype_of(one), _dtype_of(other)}
    dtype = common_dtype(dtypes)
    if shape is not None and len(dtypes) > 1:  # each array keeps its dtype
        return _common_of_objects(a, b)
    if dtype != _OBJECT:
        array, note = numpy_columns.encode(np.zeros(1, dtype))
        has_ticks = dtype.kind in "mM" and pa.int64() in (one[0], other[0])
        leaf = (pa.int64() if has_ticks else array.type), note
    elif shape is None:
        return _common_of_objects(a, b)
    else:
        leaf = _common_of_objects(one, other)
        leaf[1].pop("mixed", None)
    return leaf if shape is None else _with_shape(leaf, shape)


def _common_of_objects(a: Form, b: Form) -> Form:
    if a[1] == b[1]:
        try:  # lists that are all empty fit any others
            pair = [pa.schema([("x", kind)]) for kind in (a[0], b[0])]
            return pa.unify_schemas(pair).field("x").type, dict(a[1])
        except pa.ArrowException:
            pass
    if not (_has_json(a[1]) and _has_json(b[1])):
        return BYTES, {**PICKLE, "mixed": True}
    if all(map(_is_numpy_text, (a[1], b[1]))):
        return TEXT, {"form": "str_"}
    return TEXT, {**JSON, "mixed": True}


def _has_json(note: Note) -> bool:
    return "pickle" not in (note.get("form"), note.get("pandas"))


def _is_numpy_text(note: Note) -> bool:
    is_typed = "U" in note.get("dtype", "") and note.keys() == {"dtype"}
    return is_typed or note == {"form": "str_"}


def _common_of_extensions(a: Form, b: Form) -> Form:
    if any("shape" in note or note.get("pandas") == "pickle" for _, note in (a, b)):
        return _common_of_objects(a, b)
    nothing = [decode(pa.nulls(0, kind), note) for kind, note in (a, b)]
    dtype = pd.concat([pd.Series(values) for values in nothing]).dtype
    if isinstance(dtype, np.dtype):
        return _common_of_objects(a, b)
    if isinstance(dtype, pd.CategoricalDtype):  # both are categorical, of the same categories
        return a
    array, note = pandas_columns.encode(pd.Series([], dtype=dtype).array, allow_pickle=False)
    return array.type, note


def _dtype_of(form: Form) -> np.dtype[Any]:
    kind, note = form
    if "form" in note:
        return _OBJECT
    return np.dtype(note["dtype"] if "dtype" in note else kind.to_pandas_dtype())


def _leaf(form: Form) -> Form:
    """Return the form of the elements of rows that have a shape."""
    kind, note = form
    shape = note.get("shape", [])
    for _ in shape if prod(shape) else [0]:
        kind = kind.value_type
    return kind, {key: value for key, value in note.items() if key != "shape"}


def _with_shape(leaf: Form, shape: list[int]) -> Form:
    kind, note = leaf
    for length in reversed(shape if prod(shape) else []):
        kind = pa.list_(kind, length)
    return kind if prod(shape) else pa.list_(kind), {**note, "shape": shape}


def _as_arrays(form: Form) -> Form | None:
    """Return the form of arrays of any length that holds these rows as well."""
    if form[1].get("form") == "arrays":
        return form
    if len(form[1].get("shape", [])) != 1 or _dtype_of(_leaf(form)) == _OBJECT:
        return None
    kind, note = _leaf(form)
    return pa.large_list(kind), {"form": "arrays", "of": note}


def recode(
    array: Array, note: Mapping[str, Any], type: Any, to_note: Note, *, allow_pickle: bool = False
) -> pa.Array:
    """Return an array of `encode` in another form, one of `common`; nulls stay nulls.

    Raises
    ------
    UnstorableError
        Where that takes pickles and they are not allowed, or a value does not fit.
    """
    array = combined(array)
    if array.null_count == len(array):
        return pa.nulls(len(array), type)
    if array.type == type and note == to_note:
        return array
    here = array.is_valid().to_numpy(zero_copy_only=False)
    values = decode(array.drop_null(), note, allow_pickle=allow_pickle)
    try:
        coded = _into(values, type, to_note, allow_pickle)
    except RefusedError as error:
        rows = np.flatnonzero(here)[error.rows].tolist()
        raise RefusedError(error.event, error.internal, rows) from None
    return spread(coded if coded.type == type else coded.cast(type), here)


def _into(values: Any, type: Any, note: Note, allow_pickle: bool) -> pa.Array:
    """Return values in a form; `recode` casts an array that differs in its type only."""
    if "pandas" in note:
        like: Any = decode(pa.nulls(0, type), note, allow_pickle=allow_pickle)
        fitting = pd.Series(values).astype(like.dtype).array
        return encode(fitting, allow_pickle=allow_pickle).array
    if "shape" in note:
        if not prod(note["shape"]):
            return pa.array([[]] * len(values), type)
        flat = _into(values.reshape(-1), *_leaf((type, note)), allow_pickle)
        return fixed_lists(flat, note["shape"])
    if note.get("form") == "json":
        return texts(_mixed(values))
    if note.get("form") == "pickle":
        if not allow_pickle:
            raise refusal(range(len(values)), list(values), "values of several kinds")
        return pickled(_mixed(values))
    dtype = _dtype_of((type, note))
    if dtype != _OBJECT:
        values = values.astype(dtype)
        has_ticks = dtype.kind in "mM" and type == pa.int64()
        return numpy_columns.ticks(values) if has_ticks else numpy_columns.encode(values).array
    return object_columns.encode(objects_of(values), allow_pickle=allow_pickle).array


def _mixed(values: Any) -> list[Any]:
    """Return the objects that these values are once `concatenate` has mixed them with others."""
    is_numpy = isinstance(values, np.ndarray)
    return objects_of(values) if is_numpy else list(pd.Series(values).astype(object))
