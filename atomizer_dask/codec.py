"""Columns as Arrow arrays that any reader of Parquet understands, and back bit for bit.

What Arrow's type does not say, a note does: a small dict that becomes JSON in the metadata of the
field. Missing values, NaT and None are nulls; NaN is a number.

Objects without a type of their own are JSON text. What JSON has no word for is an object of a
single key there: ``{"$tuple": [1, 2]}``.
"""

from __future__ import annotations

import json
import pickle
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, pairwise
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import cloudpickle
import numpy as np
import pyarrow as pa

from atomizer_dask.columns import Values, as_objects, column, common_dtype, numpy_values
from atomizer_dask.errors import StoreError, UnstorableError
from atomizer_dask.events import Event, shorten

if TYPE_CHECKING:
    from pandas.api.extensions import ExtensionArray

    Array: TypeAlias = pa.Array | pa.ChunkedArray

Note: TypeAlias = dict[str, Any]
Form: TypeAlias = tuple[Any, Note]

_OBJECT = np.dtype(object)
_JSON: Note = {"form": "json"}
_PICKLE: Note = {"form": "pickle"}
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
_PLAIN = {bool, int, float, str, bytes}
_NATIVE = {type(None), *_PLAIN, Decimal, date, datetime, time, timedelta}
_PANDAS_SCALARS = {"Timestamp", "Timedelta", "Period"}
_NO_PICKLES = "column holds pickles; reading them runs code: give allow_pickle=True"
_WAYS_OUT = "return numbers, texts, arrays, lists or dicts of these, or give allow_pickle=True"


class Coded(NamedTuple):
    """A column as Arrow, and what is needed to have it back.

    Parameters
    ----------
    array
        One element per row.
    note
        What Arrow's type does not say, for JSON; empty where it says it all.
    """

    array: pa.Array
    note: Note


class RefusedError(UnstorableError):
    """Rows of a column have no Arrow type.

    Parameters
    ----------
    event, internal
        As of any error.
    rows
        Which rows of the column.
    """

    def __init__(
        self, event: Event | str, internal: BaseException | None = None, rows: Iterable[int] = ()
    ) -> None:
        super().__init__(event, internal)
        self.rows = list(rows)
        self.args = (event, internal, self.rows)


def encode(values: Values, *, allow_pickle: bool = False) -> Coded:
    """Return a column as Arrow.

    A column without rows is of type null, which `common` counts as absent.

    Raises
    ------
    RefusedError
        Where values have no type and may not be pickled. Its rows are those that could not be
        stored even alone; where each of them could, those that have no JSON either.
    """
    if not len(values):
        return Coded(pa.nulls(0), _note_of_nothing(values))
    return _encode(values, allow_pickle)


def _encode(values: Values, allow_pickle: bool) -> Coded:
    if not isinstance(values, range | np.ndarray):
        return _encode_extension(values, allow_pickle)
    values = numpy_values(values)
    if values.ndim > 1:
        return _encode_rows(values, allow_pickle)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.dtype == _OBJECT:
        return _encode_objects(values.tolist(), allow_pickle)
    if values.dtype.kind in "biuf" and values.dtype.itemsize <= 8:
        return Coded(pa.array(values), {})
    if values.dtype.kind in "VT":
        if not allow_pickle:
            raise _refusal(range(len(values)), [values[0]], repr(values.dtype))
        return Coded(_pickled(list(values)), {**_PICKLE, "stack": True})
    array = _encode_typed(values)
    if array is None:
        return Coded(_texts(list(values)), {**_JSON, "dtype": values.dtype.str})
    return Coded(array, {"dtype": values.dtype.str})


def _encode_typed(values: np.ndarray) -> pa.Array | None:
    """Return an array whose dtype goes into the note, None where Arrow has no room for it."""
    kind = values.dtype.kind
    if kind == "c" and values.dtype.itemsize <= 16:
        parts = pa.array(values.view(values.real.dtype))
        return pa.FixedSizeListArray.from_arrays(parts, 2)
    if kind == "U":
        try:
            return _array(values.tolist(), pa.string())
        except UnicodeEncodeError:  # half a surrogate pair
            return None
    if kind == "S":
        return _array(values.tolist(), pa.binary())
    if kind not in "mM":
        return None
    unit, step = np.datetime_data(values.dtype)
    if step == 1 and unit in ("ms", "us", "ns"):
        return pa.array(values)
    if step == 1 and (kind, unit) in (("m", "s"), ("M", "s"), ("M", "D")):
        # Parquet knows no times in seconds, and dates are of 32 bits.
        to = values.dtype if kind == "m" or unit == "D" else np.dtype("M8[ms]")
        try:
            array = pa.array(values.astype(to, copy=False))
        except OverflowError:
            return _ticks(values)
        if np.array_equal(_times(array, values.dtype), values, equal_nan=True):
            return array
    return _ticks(values)


def _ticks(values: np.ndarray) -> pa.Array:
    return pa.array(values.view(np.int64), mask=np.isnat(values))


def _times(array: Array, dtype: np.dtype[Any]) -> np.ndarray:
    if pa.types.is_integer(array.type):
        missing = np.iinfo(np.int64).min
        ticks: np.ndarray = array.fill_null(missing).to_numpy(zero_copy_only=False)
        return ticks.view(dtype)
    times: np.ndarray = array.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return times


def _encode_rows(values: np.ndarray, allow_pickle: bool) -> Coded:
    shape = values.shape[1:]
    try:
        array, note = encode(values.reshape(-1), allow_pickle=allow_pickle)
    except RefusedError as error:
        rows = dict.fromkeys(row // prod(shape) for row in error.rows)
        raise RefusedError(error.event, error.internal, rows) from None
    if not prod(shape):
        array = pa.array([[]] * len(values), pa.list_(array.type))
        return Coded(array, {**note, "shape": list(shape)})
    for length in reversed(shape):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return Coded(array, {**note, "shape": list(shape)})


def _encode_objects(values: list[Any], allow_pickle: bool) -> Coded:
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return Coded(pa.nulls(len(values)), {})
    if kinds in ({str}, {bytes}):
        try:
            return Coded(_array(values, pa.string() if kinds == {str} else pa.binary()), {})
        except UnicodeEncodeError:  # half a surrogate pair
            return Coded(_texts(values), dict(_JSON))
    if kinds == {np.ndarray}:
        coded = _encode_ragged(values)
    elif len(kinds) == 1:
        coded = _encode_alike(values, *kinds)
    else:
        coded = None
    if coded is not None:
        return coded
    if {kind.__name__ for kind in kinds} <= _PANDAS_SCALARS:
        coded = _encode_pandas_scalars(values)
        if coded is not None:
            return coded
    try:
        return Coded(_texts(values), dict(_JSON))
    except RefusedError as error:
        if allow_pickle:
            return Coded(_pickled(values), dict(_PICKLE))
        alone = [row for row in error.rows if len(values) == 1 or _is_refused(values[row])]
        raise RefusedError(error.event, error.internal, alone or error.rows) from None


def _is_refused(value: Any) -> bool:
    try:
        _encode_objects([value], allow_pickle=False)
    except RefusedError:
        return True
    return False


def _encode_alike(values: list[Any], kind: type) -> Coded | None:
    """Return objects of one type as what Arrow takes them for, None unless that is exact."""
    is_sequence = kind in (list, tuple)
    if kind is tuple:
        values = [None if value is None else list(value) for value in values]
    items: Any = chain.from_iterable(filter(None, values)) if is_sequence else values
    kinds = set(map(type, items)) - {type(None)}
    is_plain = len(kinds) <= 1 and kinds <= _PLAIN
    if not is_plain and not all(map(_is_native, values)):
        return None
    try:
        array = pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    if not is_plain and not _is_same(array.to_pylist(), values):
        return None
    return Coded(array, {"form": "tuple" if kind is tuple else "object"})


def _is_native(value: Any, levels: int = 8) -> bool:
    """Whether Arrow may look at an object: one that contains itself would crash it.

    Nor do dicts go to it, of which one that lacks a key would turn all from structs into JSON.
    """
    if type(value) in (list, tuple):
        return levels > 0 and all(_is_native(item, levels - 1) for item in value)
    return type(value) in _NATIVE


def _encode_ragged(values: list[Any]) -> Coded | None:
    arrays = [value for value in values if value is not None]
    dtype = arrays[0].dtype
    if dtype.kind in "VOT" or any(v.ndim != 1 or v.dtype != dtype for v in arrays):
        return None
    flat, note = _encode(np.concatenate(arrays), allow_pickle=False)
    if len(flat) >= 2**31:
        return None
    lengths = [0 if value is None else len(value) for value in values]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    empty = pa.array([value is None for value in values])
    array = pa.ListArray.from_arrays(offsets, flat, mask=empty)
    return Coded(array, {"form": "arrays", "of": note})


def _encode_pandas_scalars(values: list[Any]) -> Coded | None:
    import pandas as pd

    some = [value for value in values if value is not None]
    try:
        inferred = pd.Series(some).array
    except (ValueError, TypeError):  # zones or units that have nothing in common
        return None
    if inferred.dtype == _OBJECT or not _is_same(list(inferred), some):
        return None
    array, note = _encode_extension(inferred, allow_pickle=False)
    here = np.array([value is not None for value in values])
    return Coded(_spread(array, here), {"form": "scalars", "of": note})


def decode(array: Array, note: Mapping[str, Any], *, allow_pickle: bool = False) -> Values:
    """Return the column that `encode` was given; its memory may be read-only.

    Nulls become None, or the missing value of the dtype; of numbers there must be none.

    Raises
    ------
    UnstorableError
        Where it holds pickles and they may not be read.
    StoreError
        Where a pickle cannot be read here.
    """
    if "pandas" in note:
        extension: ExtensionArray = _decode_extension(array, note, allow_pickle)
        return extension
    if "shape" in note:
        return _decode_rows(array, dict(note), allow_pickle)
    if "form" in note:
        objects = _decode_objects(array, note, allow_pickle)
        if "dtype" in note:
            return np.array(objects, dtype=np.dtype(str(note["dtype"])))
        if note.get("mixed"):
            return column(objects)
        return np.stack(objects) if note.get("stack") and objects else as_objects(objects)
    if "dtype" in note:
        return _decode_typed(array, np.dtype(note["dtype"]))
    if array.type in (pa.null(), *_LARGE, *_LARGE.values()):
        return as_objects(array.to_pylist())
    return _numbers(array)


def _numbers(array: Array) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):
        return array.to_numpy()  # type: ignore[no-any-return]
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _decode_typed(array: Array, dtype: np.dtype[Any]) -> np.ndarray:
    array = _combined(array)
    if array.type == pa.null():
        return np.empty(0, dtype)
    if dtype.kind == "c":
        return _numbers(array.flatten()).view(dtype)
    if dtype.kind in "mM":
        return _times(array, dtype)
    return np.array(array.to_pylist(), dtype=dtype)


def _decode_rows(array: Array, note: Note, allow_pickle: bool) -> np.ndarray:
    shape = note.pop("shape")
    flat = _combined(array)
    if flat.type != pa.null():
        for _ in range(len(shape) if prod(shape) else 1):
            flat = flat.flatten()
    decoded = decode(flat, note, allow_pickle=allow_pickle)
    assert isinstance(decoded, np.ndarray)
    return decoded.reshape(len(array), *shape)


def _decode_objects(array: Array, note: Mapping[str, Any], allow_pickle: bool) -> list[Any]:
    form = note["form"]
    if form == "arrays":
        return _ragged(_combined(array), note["of"])
    if form == "scalars":
        some = iter(decode(array.drop_null(), note["of"]))
        return [next(some) if here else None for here in array.is_valid().to_pylist()]
    if form == "pickle" and not allow_pickle:
        raise UnstorableError(_NO_PICKLES)
    read = _READERS[form]
    return [None if value is None else read(value) for value in array.to_pylist()]


def _ragged(array: pa.Array, note: Note) -> list[Any]:
    flat = decode(array.flatten(), note)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    bounds = np.cumsum([0, *lengths]).tolist()
    rows = [flat[start:stop].copy() for start, stop in pairwise(bounds)]  # type: ignore[union-attr]
    here = array.is_valid().to_pylist()
    return [row if is_here else None for row, is_here in zip(rows, here, strict=True)]


def _unpickled(data: bytes) -> Any:
    try:
        return pickle.loads(data)  # noqa: S301 - the user has allowed it
    except Exception as error:
        raise StoreError(
            "a pickled value cannot be read here: is what it is made of installed?", error
        ) from error


def common(a: Form, b: Form) -> Form:
    """Return the one form, a type and a note, in which columns of two forms can be stored.

    Numbers promote as in memory; a column that is all null is absent, and fits any other. What
    becomes objects is marked as mixed: `decode` makes of it what `columns.concatenate` would.
    """
    if a == b or b[0] == pa.null():
        return a
    if a[0] == pa.null():
        return b
    if "pandas" in a[1] or "pandas" in b[1]:
        return _common_of_pandas(a, b)
    shape = a[1].get("shape")
    if shape != b[1].get("shape"):
        arrays = _as_arrays(a)
        return arrays if arrays and arrays == _as_arrays(b) else _common_of_objects(a, b)
    one, other = _leaf(a), _leaf(b)
    dtypes = {_dtype_of(one), _dtype_of(other)}
    dtype = common_dtype(dtypes)
    if dtype != _OBJECT:
        leaf = _common_of_typed(one, other, dtype)
    elif shape is None or dtypes != {_OBJECT}:
        return _common_of_objects(a, b)
    else:
        leaf = _common_of_objects(one, other)
        leaf[1].pop("mixed", None)
    return leaf if shape is None else _with_shape(leaf, shape)


def _common_of_typed(a: Form, b: Form, dtype: np.dtype[Any]) -> Form:
    if "form" in a[1] or "form" in b[1]:  # some values are beyond Arrow's type
        return pa.string(), {**_JSON, "dtype": dtype.str}
    array, note = _encode(np.zeros(1, dtype), allow_pickle=False)
    if dtype.kind in "mM" and pa.int64() in (a[0], b[0]):
        return pa.int64(), note
    is_large = not {a[0], b[0]}.isdisjoint(_LARGE.values())
    return _LARGE[array.type] if is_large else array.type, note


def _common_of_objects(a: Form, b: Form) -> Form:
    notes = a[1], b[1]
    if a[1] == b[1]:
        try:  # lists that are all empty fit any others
            pair = [pa.schema([("x", kind)]) for kind in (a[0], b[0])]
            return pa.unify_schemas(pair).field("x").type, dict(a[1])
        except pa.ArrowException:
            pass
        if _LARGE.get(a[0], a[0]) == _LARGE.get(b[0], b[0]):
            return _LARGE.get(a[0], a[0]), dict(a[1])
    large = any(kind in _LARGE.values() for kind in (a[0], b[0]))
    if not all(map(_has_json, notes)):
        return pa.large_binary() if large else pa.binary(), {**_PICKLE, "mixed": True}
    for kind, form, of in (("U", "str_", pa.string()), ("S", "bytes_", pa.binary())):
        if all(_is_numpy_text(note, kind, form) for note in notes):
            return _LARGE[of] if large else of, {"form": form}
    return pa.large_string() if large else pa.string(), {**_JSON, "mixed": True}


def _has_json(note: Note) -> bool:
    if note.get("form") == "pickle":
        return False
    names = str(note.get("pandas", "")), str(note.get("of", {}).get("pandas", ""))
    return not any(name.startswith(("period", "Period", "interval")) for name in names)


def _is_numpy_text(note: Note, kind: str, form: str) -> bool:
    if "shape" in note:
        return False
    return note == {"form": form} or ("form" not in note and kind in note.get("dtype", ""))


def _common_of_pandas(a: Form, b: Form) -> Form:
    import pandas as pd

    bare = [(form[0], form[1]["of"]) if _is_bare(form[1]) else form for form in (a, b)]
    if bare != [a, b]:
        return common(*bare)
    nothing = [decode(pa.array([], kind), note) for kind, note in (a, b)]
    if any("shape" in note for _, note in (a, b)):
        return _common_of_objects(a, b)
    dtype = pd.concat([pd.Series(values) for values in nothing]).dtype
    if isinstance(dtype, np.dtype):
        return _common_of_objects(a, b)
    array, note = _encode_extension(pd.Series([], dtype=dtype).array, allow_pickle=False)
    return array.type, note


def _is_bare(note: Note) -> bool:
    return note.get("pandas") == "ndarray"


def _dtype_of(form: Form) -> np.dtype[Any]:
    kind, note = form
    if "dtype" in note:
        return np.dtype(note["dtype"])
    if "form" in note or kind in (*_LARGE, *_LARGE.values(), pa.null()):
        return _OBJECT
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _leaf(form: Form) -> Form:
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
    kind, note = form
    if note.get("form") == "arrays":
        return kind, note
    if len(note.get("shape", [])) != 1 or _dtype_of(_leaf(form)) == _OBJECT:
        return None
    kind, note = _leaf(form)
    return pa.list_(kind), {"form": "arrays", "of": note}


def recode(
    array: Array, note: Mapping[str, Any], type: Any, to_note: Note, *, allow_pickle: bool = False
) -> pa.Array:
    """Return what `encode` gave in another form, one that `common` gave; nulls stay nulls.

    Raises
    ------
    UnstorableError
        Where that takes pickles and they are not allowed, or a value does not fit.
    """
    array = _combined(array)
    if (array.type == type and note == to_note) or array.null_count == len(array):
        return array if array.type == type else pa.nulls(len(array), type)
    here = array.is_valid().to_numpy(zero_copy_only=False)
    values = decode(array.drop_null(), note, allow_pickle=allow_pickle)
    try:
        coded = _into(values, type, to_note, allow_pickle)
        coded = coded if coded.type == type else coded.cast(type)
    except RefusedError as error:
        rows = np.flatnonzero(here)[error.rows].tolist()
        raise RefusedError(error.event, error.internal, rows) from None
    return _spread(coded, here)


def _spread(array: pa.Array, here: np.ndarray) -> pa.Array:
    """Return an array with its elements where they are said to be, and null elsewhere."""
    return array if here.all() else array.take(pa.array(np.cumsum(here) - 1, mask=~here))


def _into(values: Any, type: Any, note: Note, allow_pickle: bool) -> pa.Array:
    if "pandas" in note:
        import pandas as pd

        fitting = pd.Series(values).astype(_pandas_dtype(note, allow_pickle)).array
        return _encode_extension(fitting, allow_pickle).array
    if "shape" in note:
        kind, of = _leaf((type, note))
        if not prod(note["shape"]):
            return pa.array([[]] * len(values), type)
        array = _into(values.reshape(-1), kind, of, allow_pickle)
        for length in reversed(note["shape"]):
            array = pa.FixedSizeListArray.from_arrays(array, length)
        return array
    form, dtype = note.get("form"), _dtype_of((type, note))
    if form == "json":
        return _texts(list(values.astype(dtype)) if "dtype" in note else _objects_of(values))
    if form == "pickle":
        if not allow_pickle:
            raise _refusal(range(len(values)), list(values), "values of several kinds")
        return _pickled(_objects_of(values))
    if form in ("str_", "bytes_"):
        return _array(list(map(str if form == "str_" else bytes, values)), type)
    if form == "arrays":
        return _encode_objects(list(values), allow_pickle=False).array
    if dtype != _OBJECT:
        values = values.astype(dtype)
        if dtype.kind in "mM" and type == pa.int64():
            return _ticks(values)
    return _encode(values, allow_pickle).array


def _objects_of(values: Any) -> list[Any]:
    """Return the objects that these values are once `concatenate` has mixed them with others."""
    if not isinstance(values, np.ndarray):
        import pandas as pd

        return list(pd.Series(values).astype(object))
    return values.tolist() if values.ndim == 1 and values.dtype.kind in "biufc" else list(values)


def _encode_extension(values: Any, allow_pickle: bool) -> Coded:
    import pandas as pd

    dtype = values.dtype
    if _is_bare_array(values):
        array, note = _encode(values.to_numpy(), allow_pickle)
        return Coded(array, {"pandas": "ndarray", "of": note})
    if isinstance(dtype, pd.CategoricalDtype):
        return _encode_categorical(values, allow_pickle)
    coded = _encode_by_arrow(values)
    if coded is not None:
        return coded
    array, of = _encode(as_objects(list(values)), allow_pickle)
    coded = Coded(array, {"pandas": str(dtype), "of": of})
    if _is_exact(coded, values, allow_pickle):
        return coded
    if not allow_pickle:
        raise _refusal(range(len(values)), list(values[:1]), f"the dtype {dtype}")
    dumped = b64encode(cloudpickle.dumps(dtype)).decode()
    return Coded(array, {"pandas": "pickle", "dtype": dumped, "of": of})


def _is_bare_array(values: Any) -> bool:
    """Whether it is pandas' wrapper of a NumPy array, and no more than that."""
    import pandas as pd

    dtype = values.dtype
    return isinstance(dtype, np.dtype) or type(values) is pd.arrays.NumpyExtensionArray


def _encode_by_arrow(values: Any) -> Coded | None:
    """Return an extension array as it makes itself Arrow, None where that is not exact."""
    import pandas as pd

    dtype = values.dtype
    note: Note = {"pandas": str(dtype)}
    if isinstance(dtype, pd.StringDtype):
        missing = "NA" if dtype.na_value is pd.NA else "nan"
        note = {"pandas": "string", "storage": dtype.storage, "missing": missing}
    elif isinstance(dtype, pd.ArrowDtype):
        note = {"pandas": "arrow", "type": _packed(pa.nulls(0, dtype.pyarrow_dtype))}
    try:
        array = pa.array(values)
    except Exception:  # noqa: BLE001 - anybody's class
        return None
    coded = Coded(_combined(getattr(array, "storage", array)), note)
    return coded if _is_exact(coded, values, allow_pickle=False) else None


def _is_exact(coded: Coded, values: Any, allow_pickle: bool) -> bool:
    try:
        again = _decode_extension(*coded, allow_pickle)
    except Exception:  # noqa: BLE001 - a dtype that its name does not give
        return False
    return bool(again.dtype == values.dtype and again.equals(values))


def _encode_categorical(values: Any, allow_pickle: bool) -> Coded:
    index = values.categories
    array, note = _encode(index.array, allow_pickle)
    codes = np.asarray(values.codes)
    return Coded(
        array.take(pa.array(codes, mask=codes < 0)),
        {
            "pandas": "categorical",
            "categories": _packed(array),
            "ordered": bool(values.ordered),
            "of": note,
        },
    )


def _decode_extension(array: Array, note: Mapping[str, Any], allow_pickle: bool) -> Any:
    import pandas as pd

    name = note["pandas"]
    if name == "ndarray":
        inner: Any = decode(array, note["of"], allow_pickle=allow_pickle)
        is_time = inner.dtype.kind in "mM"
        return pd.Series(inner).array if is_time else pd.arrays.NumpyExtensionArray(inner)
    dtype: Any = _pandas_dtype(note, allow_pickle)
    if array.type == pa.null():
        return pd.Series([None] * len(array), dtype=dtype).array
    if name == "categorical":
        codes = np.full(len(array), -1)
        values = _index(decode(array.drop_null(), note["of"], allow_pickle=allow_pickle))
        codes[array.is_valid().to_numpy(zero_copy_only=False)] = dtype.categories.get_indexer(
            values
        )
        return pd.Categorical.from_codes(codes, dtype=dtype)
    if "of" in note:
        values = decode(array, note["of"], allow_pickle=allow_pickle)
        return pd.array(list(values), dtype=dtype)
    if name == "arrow":
        return dtype.__from_arrow__(array.cast(dtype.pyarrow_dtype))
    return dtype.__from_arrow__(array)


def _pandas_dtype(note: Mapping[str, Any], allow_pickle: bool) -> Any:
    import pandas as pd

    name = note["pandas"]
    if name == "string":
        missing = {"na_value": np.nan} if note["missing"] == "nan" else {}
        return pd.StringDtype(note["storage"], **missing)
    if name == "arrow":
        return pd.ArrowDtype(_unpacked(note["type"]).type)
    if name == "categorical":
        packed = _unpacked(note["categories"])
        categories = decode(packed, note["of"], allow_pickle=allow_pickle)
        return pd.CategoricalDtype(_index(categories), ordered=note["ordered"])
    if name == "pickle":
        if not allow_pickle:
            raise UnstorableError(_NO_PICKLES)
        return pickle.loads(b64decode(note["dtype"]))  # noqa: S301 - the user has allowed it
    return pd.api.types.pandas_dtype(name)


def _index(values: Any) -> Any:
    import pandas as pd

    if isinstance(values, pd.arrays.NumpyExtensionArray):
        values = values.to_numpy()
    return pd.Index(values, dtype=values.dtype)


def _packed(array: pa.Array) -> str:
    batch = pa.record_batch([array], names=["values"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return b64encode(sink.getvalue()).decode()


def _unpacked(text: str) -> pa.Array:
    return pa.ipc.open_stream(b64decode(text)).read_all()["values"].combine_chunks()


def _note_of_nothing(values: Values) -> Note:
    if not isinstance(values, range | np.ndarray):
        note = _encode_extension(values, allow_pickle=False).note
        return {**note, "of": _note_of_nothing(values.to_numpy())} if _is_bare(note) else note
    values = numpy_values(values)
    dtype = values.dtype.newbyteorder("=")
    note = {} if dtype == _OBJECT else {"dtype": dtype.str}
    return note if values.ndim == 1 else {**note, "shape": list(values.shape[1:])}


def _array(values: list[Any], type: Any) -> pa.Array:
    array = pa.array(values, type)
    # More than 2 GB come in pieces.
    return pa.array(values, _LARGE[type]) if isinstance(array, pa.ChunkedArray) else array


def _combined(array: Array) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _is_same(a: Any, b: Any) -> bool:
    """Whether two objects are the same to the last bit, types and all."""
    kind = type(a)
    if kind is not type(b):
        return False
    if kind is list or kind is tuple:
        return len(a) == len(b) and all(map(_is_same, a, b))
    if kind in (int, float, str, bytes, bool, type(None)):
        return bool(a == b or (a != a and b != b))
    facts = [(repr(x), type(getattr(x, "tzinfo", None)), getattr(x, "unit", "")) for x in (a, b)]
    return facts[0] == facts[1]


class _InexactError(Exception):
    """A value that JSON cannot hold; its argument is the value."""


def _texts(values: list[Any]) -> pa.Array:
    """Return objects as JSON, None as null."""
    texts, refused = [], {}
    for row, value in enumerate(values):
        text = None
        if value is not None:
            try:
                text = _WRITER.encode(_plain(value))
            except _InexactError as error:
                refused[row] = error.args[0]
            except RecursionError:
                refused[row] = value
        texts.append(text)
    if refused:
        raise _refusal(refused, list(refused.values()))
    return _array(texts, pa.string())


def _pickled(values: list[Any]) -> pa.Array:
    """Return objects as pickles, None as null."""
    dumped, refused = [], {}
    for row, value in enumerate(values):
        try:
            dumped.append(None if value is None else cloudpickle.dumps(value))
        except Exception:  # noqa: BLE001 - pickling runs anybody's __reduce__
            refused[row] = value
    if refused:
        raise _refusal(refused, list(refused.values()), way_out="they cannot be pickled either")
    return _array(dumped, pa.binary())


def _refusal(
    rows: Iterable[int], culprits: list[Any], what: str = "", way_out: str = _WAYS_OUT
) -> RefusedError:
    if not what:
        what = ", ".join(sorted({type(value).__qualname__ for value in culprits}))
    try:
        example = shorten(repr(culprits[0]))
    except Exception:  # noqa: BLE001 - a __repr__ that raises
        example = f"a {type(culprits[0]).__qualname__}"
    message = f"the column holds {what}, for which there is no exact form in a Parquet file"
    return RefusedError(f"{message} (for example {example}): {way_out}", None, rows)


def _plain(value: Any) -> Any:
    """Return what stands for an object in JSON; raises _InexactError where nothing does."""
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and value.bit_length() < 10_000:  # Python reads no longer decimals
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            return {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        names = {key: _plain(key) for key in value if type(key) is str}
        tagged = len(value) == 1 and next(iter(names), "").startswith("$")
        if len(names) == len(value) and not tagged and all(k is n for k, n in names.items()):
            return {name: _plain(item) for name, item in value.items()}
        return {"$dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, np.generic) and value.dtype.kind not in "VO":
        return {"$scalar": [value.dtype.str, _base64(value.tobytes())]}
    if kind is np.ndarray and value.dtype.kind not in "VOT":
        return {"$array": [value.dtype.str, list(value.shape), _base64(value.tobytes())]}
    if kind is np.ndarray and value.dtype == _OBJECT:
        return {"$objects": [list(value.shape), [_plain(item) for item in value.flat]]}
    if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in _TAGS:
        return {f"${kind.__name__}": _TAGS[kind.__name__](value)}
    if kind in _TAGGED:
        return {f"${kind.__name__}": _TAGS[kind.__name__](value)}
    raise _InexactError(value)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _zone(zone: Any, value: Any) -> str | None:
    """Return a time zone that another machine has as well."""
    if zone is None:
        return None
    if zone is UTC:
        return "+"
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    raise _InexactError(value)


def _zoned(zone: str | None) -> Any:
    return zone and (UTC if zone == "+" else ZoneInfo(zone))


def _datetime(value: Any) -> list[Any]:
    bare = value.replace(tzinfo=None, fold=0).isoformat()
    return [bare, _zone(value.tzinfo, value), value.fold]


def _timestamp(value: Any) -> list[Any]:
    return [value.asm8.view(np.int64).item(), value.unit, _zone(value.tzinfo, value)]


def _read_nat(_: str) -> Any:
    import pandas as pd

    return pd.NaT


def _read_timestamp(ticks: int, unit: str, zone: str | None) -> Any:
    import pandas as pd

    naive = pd.Timestamp(np.int64(ticks).view(f"M8[{unit}]"))
    return naive if zone is None else naive.tz_localize("UTC").tz_convert(_zoned(zone))


def _read_timedelta(ticks: int, unit: str) -> Any:
    import pandas as pd

    return pd.Timedelta(np.int64(ticks).view(f"m8[{unit}]"))


def _read_array(dtype: str, shape: list[int], data: str) -> Any:
    return np.ndarray(shape, dtype, b64decode(data)).copy()


def _read_time(kind: Any, text: str, zone: str | None, fold: int) -> Any:
    return kind.fromisoformat(text).replace(tzinfo=_zoned(zone), fold=fold)


_TAGS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda value: [_plain(item) for item in value],
    "int": hex,
    "complex": lambda value: [value.real, value.imag],
    "bytes": _base64,
    "Decimal": str,
    "date": date.isoformat,
    "datetime": _datetime,
    "time": _datetime,
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "NaTType": str,
    "Timestamp": _timestamp,
    "Timedelta": lambda value: [value.asm8.view(np.int64).item(), value.unit],
}
_TAGGED = {tuple, int, complex, bytes, Decimal, date, datetime, time, timedelta}
_UNTAGS: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$dict": dict,
    "$str": lambda value: b64decode(value).decode("utf-8", "surrogatepass"),
    "$int": lambda value: int(value, 16),
    "$complex": lambda value: complex(*value),
    "$bytes": b64decode,
    "$Decimal": Decimal,
    "$date": date.fromisoformat,
    "$datetime": lambda value: _read_time(datetime, *value),
    "$time": lambda value: _read_time(time, *value),
    "$timedelta": lambda value: timedelta(*value),
    "$scalar": lambda value: _read_array(value[0], [], value[1])[()],
    "$objects": lambda value: as_objects(value[1]).reshape(value[0]),
    "$array": lambda value: _read_array(*value),
    "$NaTType": _read_nat,
    "$Timestamp": lambda value: _read_timestamp(*value),
    "$Timedelta": lambda value: _read_timedelta(*value),
}


def _restored(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        tag = next(iter(value))
        if tag in _UNTAGS:
            return _UNTAGS[tag](value[tag])
    return value


_WRITER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_READERS: dict[str, Callable[[Any], Any]] = {
    "json": json.JSONDecoder(object_hook=_restored).decode,
    "object": lambda value: value,
    "tuple": tuple,
    "str_": np.str_,
    "bytes_": np.bytes_,
    "pickle": _unpickled,
}
