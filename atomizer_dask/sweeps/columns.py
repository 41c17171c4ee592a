"""Values to columns: one dtype for a list of values, whichever batches it came in.

Every rule here is associative, so that a column has the same dtype and the same bits however
its values were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from pandas.api.extensions import ExtensionArray

    Values: TypeAlias = range | np.ndarray | ExtensionArray
else:
    Values: TypeAlias = Any

_DTYPES: dict[type, np.dtype[Any]] = {
    bool: np.dtype(bool),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
}
_OBJECT = np.dtype(object)
_OF_ONE_DTYPE = (np.number, np.bool_)  # np.timedelta64 is a number, and has many
LARGE_BYTES = 2**20  # of a value that is not copied along with others, and lies once on each host
_USUAL_BYTES = 64  # of an object without `nbytes`


def common_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype that holds values of all `dtypes` without changing what they are.

    Numbers promote as in NumPy, except that integers never become floats among themselves;
    anything else that is mixed (booleans with numbers, say) stays Python objects.

    >>> common_dtype([np.dtype("i8"), np.dtype("f8")])
    dtype('float64')
    >>> common_dtype([np.dtype("?"), np.dtype("i8")])
    dtype('O')
    """
    distinct = set(dtypes)
    if len(distinct) == 1:
        return distinct.pop()
    kinds = {dtype.kind for dtype in distinct}
    if kinds <= set("iufc"):
        promoted = np.result_type(*distinct)
        return _OBJECT if kinds <= set("iu") and promoted.kind == "f" else promoted
    if kinds in ({"M"}, {"m"}):
        try:
            return np.result_type(*distinct)
        except TypeError:  # days and years, say, have no unit in common
            return _OBJECT
    return _OBJECT


def is_plain_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy's own that holds no Python objects."""
    return type(value) is np.ndarray and not value.dtype.hasobject


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Return a 1-D array of the very objects in `values`, lists and arrays included."""
    return np.fromiter(values, dtype=object, count=len(values))


def _mixed(values: Sequence[Any]) -> np.ndarray:
    """Return values of several kinds as objects.

    The numbers among them become Python's, of one type: that of the typed column that they would
    be in a batch of their own.
    """
    found = {dtype for dtype in map(_number_dtype, values) if dtype is not None}
    common = common_dtype(found) if found else _OBJECT
    return as_objects([_python_value(value, common) for value in values])


def _python_value(value: Any, common: np.dtype[Any]) -> Any:
    dtype = _number_dtype(value)
    if dtype is not None and common.kind in "fc":
        return common.type(value).item()
    is_numpy = isinstance(value, np.generic) and value.dtype.kind in "biufc"
    return value.item() if is_numpy else value


def _number_dtype(value: Any) -> np.dtype[Any] | None:
    """Return the dtype of a number, None for anything else, booleans included."""
    dtype = value.dtype if isinstance(value, np.generic) else _DTYPES.get(type(value))
    return dtype if dtype is not None and dtype.kind in "iufc" else None


def column(values: Sequence[Any], types: set[type] | None = None) -> np.ndarray:
    """Return `values` as an array: typed where they are all of one kind, else of objects.

    Equally shaped arrays of one dtype are stacked, one row per value. `types` are the types of
    the values, where the caller knows them already.

    >>> column([1, 2, 3]).dtype, column([1, 2.5]).dtype, column([True, 1]).dtype
    (dtype('int64'), dtype('float64'), dtype('O'))
    """
    types = set(map(type, values)) if types is None else types
    if types == {np.ndarray}:
        if len({(value.shape, value.dtype) for value in values}) == 1 and values[0].ndim:
            return np.stack(values)
        return as_objects(values)
    if not all(kind in _DTYPES or issubclass(kind, np.generic) for kind in types):
        return _mixed(values)
    dtypes = [_DTYPES[kind] for kind in types & _DTYPES.keys()]
    if not types <= _DTYPES.keys():
        dtypes += _dtypes_of_scalars(values, types - _DTYPES.keys())
    dtype = common_dtype(dtypes) if dtypes else _OBJECT
    if dtype.kind not in "biufcmM":
        return _mixed(values)
    try:
        return np.fromiter(values, dtype=dtype, count=len(values))
    except OverflowError:  # a Python integer beyond 64 bits
        return as_objects(values)


def _dtypes_of_scalars(values: Sequence[Any], types: set[type]) -> set[np.dtype[Any]]:
    """Return the dtypes of the NumPy scalars among some values, whose types are these."""
    if all(
        issubclass(kind, _OF_ONE_DTYPE) and not issubclass(kind, np.timedelta64) for kind in types
    ):
        return set(map(np.dtype, types))
    return {value.dtype for value in values if isinstance(value, np.generic)}


def concatenate(parts: Sequence[Any]) -> Any:
    """Return columns end to end, with the dtype that `column` would give all of their values.

    >>> concatenate([np.array([1, 2]), np.array([0.5])])
    array([1. , 2. , 0.5])
    """
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) for part in parts):
        dtype = common_dtype(part.dtype for part in parts)
        # Rows that are arrays stay what they are, as `column` leaves them in one batch.
        differ = parts[0].ndim > 1 and len({part.dtype for part in parts}) > 1
        if dtype == _OBJECT or differ or len({part.shape[1:] for part in parts}) > 1:
            return column([value for part in parts for value in objects_of(part)])
        joined = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=dtype)
        return np.concatenate(parts, out=joined, casting="unsafe")
    import pandas as pd

    return pd.concat([pd.Series(part) for part in parts], ignore_index=True).array


def objects_of(part: np.ndarray) -> list[Any]:
    """Return the values of a column as a list of objects; numbers become Python's."""
    return part.tolist() if part.ndim == 1 and part.dtype.kind in "biufc" else list(part)


def look_up(table: np.ndarray, positions: np.ndarray, missing: Any) -> np.ndarray:
    """Return the elements of `table` at `positions`, and `missing` beyond its end.

    >>> look_up(np.array([5, 6]), np.array([1, 7]), -1)
    array([ 6, -1])
    """
    inside = positions < len(table)
    return np.where(inside, table[np.where(inside, positions, 0)], missing)


def python_values(values: Values) -> list[Any]:
    """Return what pandas' ``itertuples`` would give: Python numbers, Timestamps, objects.

    >>> python_values(np.array([1.5, 2.0], dtype="f4"))
    [1.5, 2.0]
    """
    if not isinstance(values, np.ndarray):
        return list(values)
    if values.ndim > 1:
        return list(values)
    if values.dtype.kind in "mM":
        import pandas as pd

        return list(pd.Series(values))
    listed: list[Any] = values.tolist()
    return listed


def loop_values(values: Values, *, scalars: bool) -> list[Any]:
    """Return what a ``for`` loop over a column gives, as its user gave it.

    Parameters
    ----------
    values
        The column.
    scalars
        Whether the user gave it as a NumPy array: a loop gives NumPy's scalars, and rows where it
        has more than one dimension. Else numbers are Python's, also those of nullable, sparse and
        Arrow columns of pandas.

    Examples
    --------
    >>> loop_values(np.array([1, 2]), scalars=True), loop_values(np.array([1, 2]), scalars=False)
    ([np.int64(1), np.int64(2)], [1, 2])
    """
    if isinstance(values, range | np.ndarray):
        return list(values) if scalars else python_values(values)
    import pandas as pd

    if isinstance(values.dtype, pd.SparseDtype):
        return np.asarray(values).tolist()  # type: ignore[no-any-return]
    return values.tolist()


def numpy_values(values: Values) -> np.ndarray:
    """Return a column as the NumPy array a vectorised atom is given."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    return values.to_numpy()


def size_of(values: Values) -> int:
    """Return about how many bytes a column takes when it travels."""
    if isinstance(values, range):
        return 0
    if isinstance(values, np.ndarray) and values.dtype == _OBJECT:
        sample = values[:: max(1, len(values) // 10)]
        return sum(map(_size_of_object, sample)) * len(values) // max(1, len(sample))
    return int(values.nbytes)


def _size_of_object(value: Any) -> int:
    """Return the ``nbytes`` of an object of the user, or the usual size where it has none."""
    try:
        size = getattr(value, "nbytes", None)
    except Exception:  # noqa: BLE001 - a rough size is no reason to fail
        return _USUAL_BYTES
    is_size = isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0
    return int(size) if is_size else _USUAL_BYTES  # type: ignore[arg-type]


_SAMPLED = 100  # values of a container, of which the sizes are looked at


def bytes_within(value: Any, levels: int = 4) -> int:
    """Return about how many bytes an array, a text, a table or a container of these has.

    >>> bytes_within("text"), bytes_within({"a": np.zeros(10)}), bytes_within([1] * 1000)
    (4, 80, 8000)
    """
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.ravel().tolist()
    if isinstance(value, list | tuple | dict | set | frozenset):
        those = value.values() if isinstance(value, dict) else value
        # A list may hold itself.
        inner = islice(those, _SAMPLED if levels else 0)
        sampled = [max(8, bytes_within(one, levels - 1)) for one in inner]
        return sum(sampled) * len(value) // max(1, len(sampled))
    is_of_pandas = type(value).__module__.partition(".")[0] == "pandas"
    if is_of_pandas and hasattr(value, "memory_usage"):
        return int(np.sum(value.memory_usage()))
    return _size_of_object(value) if hasattr(value, "nbytes") else 0


OUTPUT_PREFIX = "result_"
METADATA_PREFIX = "electron_"


def renamed(columns: dict[str, Any], prefix: str, taken: Iterable[str]) -> dict[str, Any]:
    """Return `columns`, with a prefix to names that are `taken`, or that a prefix would take."""
    used = {*taken}
    own = columns.keys() - used
    named = {}
    for name, values in columns.items():
        while name in used:
            name = prefix + name
            if name in own:
                name = prefix + name
        used.add(name)
        named[name] = values
    return named
