"""Extension arrays of pandas as Arrow, and back; categoricals are in `codec`."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from atomizer_dask.atoms.pickling import dumps
from atomizer_dask.store.arrow.encoded import EncodedColumn, combined, refusal
from atomizer_dask.store.arrow.object_columns import pickled, unpickled

if TYPE_CHECKING:
    from atomizer_dask.store.arrow.encoded import Array


def encode(values: Any, *, allow_pickle: bool) -> EncodedColumn:
    """Return an extension array as Arrow, by its own conversion; missing values are null.

    Raises
    ------
    RefusedError
        Where that is not exact and its values may not be pickled.
    """
    coded = _encode_by_arrow(values)
    if coded is not None:
        return coded
    if not allow_pickle:
        raise refusal(range(len(values)), list(values[:1]), f"the dtype {values.dtype}")
    dtype = b64encode(dumps(values.dtype)).decode()
    return EncodedColumn(pickled(list(values)), {"pandas": "pickle", "dtype": dtype})


def _encode_by_arrow(values: Any) -> EncodedColumn | None:
    dtype = values.dtype
    is_known = type(dtype).__module__.partition(".")[0] == "pandas"
    if not is_known or isinstance(dtype, pd.CategoricalDtype):
        return None
    is_text = isinstance(dtype, pd.StringDtype) and dtype.na_value is pd.NA
    name = f"string[{dtype.storage}]" if is_text else str(dtype)
    try:
        array = pa.array(values)
        coded = EncodedColumn(combined(getattr(array, "storage", array)), {"pandas": name})
        again = decode(*coded, allow_pickle=False)
    except Exception:  # noqa: BLE001 - a dtype that Arrow lacks, or that its name does not give
        return None
    return coded if again.dtype == dtype and again.equals(values) else None


def decode(array: Array, note: Mapping[str, Any], *, allow_pickle: bool) -> Any:
    """Return the extension array that `encode` was given; raises what `unpickled` does."""
    dtype: Any
    name = note["pandas"]
    if name == "pickle":
        (dtype,) = unpickled([b64decode(note["dtype"])], allow_pickle=allow_pickle)
        return pd.array(unpickled(array.to_pylist(), allow_pickle=allow_pickle), dtype=dtype)
    dtype = pd.api.types.pandas_dtype(name)
    if array.type == pa.null():
        return pd.Series([None] * len(array), dtype=dtype).array
    return dtype.__from_arrow__(array)
