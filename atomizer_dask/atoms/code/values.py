"""What values consist of, and what decorators, descriptors and closures hold."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import io
from contextlib import suppress
from functools import cached_property
from pickle import PickleBuffer
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.atoms.code.buffers import LARGE_BUFFER, digest_of_array, digest_of_buffer

CONTAINERS = (list, tuple, dict, set, frozenset, np.ndarray)


_ROWS = 2**16  # of an Arrow table that are digested at a time


class Digest(str):
    """The digest of a large buffer, in place of what is in it."""

    __slots__ = ()


def contents_of(value: Any, *, in_full: bool = False) -> list[Any]:
    """Return what a value consists of, but for sets, which have no order.

    Parameters
    ----------
    value
        Neither a number nor a text.
    in_full
        Whether the bytes of large buffers are returned, rather than a `Digest` of them.

    Raises
    ------
    Exception
        Whatever foreign objects raise that cannot be pickled.

    Examples
    --------
    >>> contents_of({"a": 1, "b": [2]})
    ['a', 1, 'b', [2]]
    """
    kind = type(value)
    if kind in (list, tuple):
        return list(value)
    if kind is dict:
        return [one for pair in value.items() for one in pair]
    if kind is np.ndarray:
        return [str(value.dtype), value.shape, _items_of(value, in_full)]
    if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        frame = value if isinstance(value, pd.DataFrame) else value.to_frame()
        return _contents_of_frame(frame, in_full, getattr(value, "attrs", {}))
    if not in_full and kind.__module__ == "pyarrow.lib" and hasattr(value, "nbytes"):
        return _contents_of_arrow(value)
    return functions_within(value) or _contents_of_object(value, in_full)


def _items_of(array: np.ndarray, in_full: bool) -> list[Any] | bytes | Digest:
    if array.dtype.hasobject or array.dtype.kind == "T":
        return array.tolist()  # type: ignore[no-any-return]
    if in_full or array.nbytes < LARGE_BUFFER:
        return array.tobytes()
    return Digest(digest_of_array(array))


def _contents_of_frame(frame: pd.DataFrame, in_full: bool, attrs: dict[Any, Any]) -> list[Any]:
    names = [*frame.columns, *frame.columns.names, *frame.index.names, *frame.dtypes.map(str)]
    if in_full:  # as stores of 0.1.0 have it: pandas takes 1 for "1", and shortens arrays in cells
        return [frame.shape, pd.util.hash_pandas_object(frame).to_numpy(), names]
    index = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    columns = [frame.iloc[:, number] for number in range(frame.shape[1])]
    # A digest of its own says that there is one, however small the columns are.
    whole = Digest("frame")
    contents = [frame.shape, names, whole, *map(_contents_of_column, [*index, *columns])]
    return [*contents, attrs] if attrs else contents


def _contents_of_column(column: Any) -> Any:
    """Return the digest of a column, by its buffers where it has some."""
    import pyarrow as pa

    if isinstance(column, pd.RangeIndex):
        return [column.start, column.stop, column.step]
    if isinstance(column.dtype, np.dtype) and not column.dtype.hasobject:
        return column.to_numpy()
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.astype("int64").to_numpy()
    # Of objects of several kinds Arrow would give 1 and 1.0 one type.
    if column.dtype != object or set(map(type, column)) <= {str, type(None)}:
        with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
            return _contents_of_arrow(pa.array(column))
    return column.tolist()


def _contents_of_arrow(value: Any) -> list[Any]:
    """Return the types and the digest of an Arrow table or array, however it is chunked."""
    import pyarrow as pa

    is_array = isinstance(value, pa.Array | pa.ChunkedArray)
    table = pa.table([value], ["array"]) if is_array else pa.table(value)
    digest = hashlib.blake2b(digest_size=16)
    with (
        pa.PythonFile(_HashedFile(digest), "w") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        for start in range(0, len(table), _ROWS):
            writer.write_table(table.slice(start, _ROWS).combine_chunks())
    return [str(table.schema), Digest(digest.hexdigest())]


class _HashedFile(io.RawIOBase):
    """A file that only updates a digest with what is written."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Add some bytes to the digest."""
        self._digest.update(data)
        return len(data)


def _contents_of_object(value: Any, in_full: bool) -> list[Any]:
    """Return what pickle would write, apart from what is only cached."""
    kind = type(value)
    if kind is PickleBuffer:
        return [Digest(digest_of_buffer(value.raw()))]
    reduce = copyreg.dispatch_table.get(kind)
    reduced: Any = reduce(value) if reduce else value.__reduce_ex__(4 if in_full else 5)
    if isinstance(reduced, str):
        return [str(getattr(value, "__module__", "")), reduced]
    maker, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if type(state) is dict and all(isinstance(name, str) for name in state):
        kept = [pair for pair in sorted(state.items()) if not _is_cached(kind, *pair)]
        state = kept or None  # as where nothing has been computed yet
    return [maker, arguments, state, list(items or ()), list(pairs or ())]


def _is_cached(kind: type, name: str, value: Any) -> bool:
    """Return whether an attribute only keeps what has been computed so far."""
    if isinstance(inspect.getattr_static(kind, name, None), cached_property):
        return True
    is_named_so = name.startswith("_") and ("cache" in name.lower() or "memo" in name.lower())
    return is_named_so and (value is None or isinstance(value, dict | list | set))


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object itself, not those of its class."""
    try:
        return dict(vars(value))
    except Exception:  # noqa: BLE001 - it has none, or does not want to show them
        return {}


def functions_within(value: Any) -> list[Any]:
    """Return the functions that a descriptor or a decorated function stands for."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    attributes = attributes_of(value)
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


def closure_of(function: FunctionType) -> dict[str, Any]:
    """Return the variables of enclosing functions that a function uses."""
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, map(_content, cells), strict=True))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def defaults_of(function: FunctionType) -> dict[str, Any]:
    """Return the defaults of parameters, by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return dict(zip(last, defaults, strict=True)) | (function.__kwdefaults__ or {})
