"""A column as Arrow with a note of what Arrow's type does not say, or why it has no such form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from atomizer_dask.display.text import shorten
from atomizer_dask.errors import UnstorableError
from atomizer_dask.events import Event

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array | pa.ChunkedArray


Note: TypeAlias = dict[str, Any]
Form: TypeAlias = tuple[Any, Note]

TEXT, BYTES = pa.string(), pa.binary()
LARGE = {TEXT: pa.large_string(), BYTES: pa.large_binary()}  # for more than 2 GB a column
_KINDS = "numbers, texts, arrays, lists or dicts of these, or give allow_pickle=True"
_WAYS_OUT = f"return {_KINDS}"


class EncodedColumn(NamedTuple):
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


def of_inputs(error: UnstorableError) -> str:
    """Return the message of an error for inputs: what to sweep over, not what to return."""
    ways_in = f"sweep over {_KINDS}"
    return error.event.message.replace(_WAYS_OUT, ways_in)


def refusal(
    rows: Iterable[int], culprits: Sequence[Any], what: str = "", way_out: str = _WAYS_OUT
) -> RefusedError:
    """Return the error that says which values, `what` they are, and what to do instead."""
    what = what or ", ".join(sorted({type(value).__qualname__ for value in culprits}))
    culprit = next(iter(culprits), None)
    try:
        example = shorten(repr(culprit))
    except Exception:  # noqa: BLE001 - a __repr__ that raises
        example = f"a {type(culprit).__qualname__}"
    message = f"the column holds {what}, for which there is no exact form in a Parquet file"
    return RefusedError(f"{message} (for example {example}): {way_out}", None, rows)


def array_of(values: Sequence[str | bytes | None], type: Any) -> pa.Array:
    """Return texts or bytes as an array, of a large type where they need one."""
    array = pa.array(values, type)
    return pa.array(values, LARGE[type]) if isinstance(array, pa.ChunkedArray) else array


def combined(array: Array) -> pa.Array:
    """Return the chunks of an array as one array; without a copy where there is one chunk."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def fixed_lists(array: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return rows of a shape, made of the elements of `array` one after another."""
    for length in reversed(shape):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def spread(array: pa.Array, here: np.ndarray) -> pa.Array:
    """Return an array with its elements where `here` is True, and nulls elsewhere."""
    return array if here.all() else array.take(pa.array(np.cumsum(here) - 1, mask=~here))
