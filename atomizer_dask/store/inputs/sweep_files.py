"""Sweeps in a store: the inputs of a run, as they are written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from atomizer_dask.errors import InvalidSweepError, StoreError, UnstorableError
from atomizer_dask.store.arrow import codec
from atomizer_dask.store.layout import ROWS, SWEEP
from atomizer_dask.store.store import Store
from atomizer_dask.sweeps.columns import Values, as_objects, python_values
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.received import Given, restored
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep
from atomizer_dask.sweeps.table import Table


def rows_writer(store: Store, sweep: Streamed, *, allow_pickle: bool) -> Callable[[], None]:
    """Return a function that writes the drawn rows of a stream that are not yet written."""
    written = sweep.drawn

    def write() -> None:
        nonlocal written
        drawn = sweep.drawn
        if drawn > written:
            rows = as_objects(sweep.rows[written:drawn])
            coded = codec.encode_inputs("rows of the sweep", rows, allow_pickle=allow_pickle)
            table = pa.table({"row": coded.array}, metadata={b"note": json.dumps(coded.note)})
            store.write(f"{SWEEP}/{ROWS}{written:012d}.parquet", table)
            written = drawn

    return write


def load_rows(store: Store, *, allow_pickle: bool) -> list[Mapping[str, Any]]:
    """Return the rows of a streamed sweep that were written."""
    rows: list[Mapping[str, Any]] = []
    for path in store.folder.files(SWEEP):
        if path.startswith(f"{SWEEP}/{ROWS}"):
            table = store.read(path)
            note = json.loads(table.schema.metadata[b"note"])
            rows += python_values(
                codec.decode(table.column("row"), note, allow_pickle=allow_pickle)
            )
    return rows


_NOTE = b"atomizer"


def save_sweep(store: Store, number: int, sweep: Sweep, *, allow_pickle: bool) -> dict[str, Any]:
    """Write a sweep, and return its description for the manifest.

    Raises
    ------
    UnstorableError
        Where inputs have no Arrow type, and must not be pickled.
    """
    if isinstance(sweep, Grid):
        axes = [
            _save_axis(store, f"{SWEEP}/{number}-{i}.parquet", name, axis, allow_pickle)
            for i, (name, axis) in enumerate(sweep.given.items())
        ]
        return {"kind": "grid", "electrons": sweep.length, "axes": axes}
    if isinstance(sweep, Table):
        described: dict[str, Any] = {"kind": "table", "electrons": sweep.length}
        described |= {"file": f"{number}.parquet"}
        described["given"] = {name: column.form for name, column in sweep.given.items()}
        columns = {name: column.values for name, column in sweep.given.items()}
        _save_columns(store, f"{SWEEP}/{number}.parquet", columns, allow_pickle)
        if sweep.index is not None:
            described["index"] = f"{number}-index.parquet"
            _save_index(store, f"{SWEEP}/{number}-index.parquet", sweep.index)
        return described
    if isinstance(sweep, Streamed):
        return {"kind": "stream", "electrons": None}
    raise InvalidSweepError(f"a {type(sweep).__name__} cannot be kept in a store")


def _save_axis(
    store: Store, file: str, name: str, axis: Given, allow_pickle: bool
) -> dict[str, Any]:
    values = axis.values
    if isinstance(values, range):
        return {"name": name, "range": [values.start, values.stop, values.step]}
    _save_columns(store, file, {name: values}, allow_pickle)
    file = file.rpartition("/")[2]
    return {"name": name, "file": file, "values": len(values), "given": axis.form}


def _save_columns(
    store: Store, file: str, columns: Mapping[str, Values], allow_pickle: bool
) -> None:
    arrays, fields = [], []
    for name, values in columns.items():
        coded = codec.encode_inputs(f"the inputs {name!r}", values, allow_pickle=allow_pickle)
        arrays.append(coded.array)
        note = {_NOTE: json.dumps(coded.note)}
        fields.append(pa.field(name, coded.array.type, metadata=note))
    store.write(file, pa.Table.from_arrays(arrays, schema=pa.schema(fields)))


def save_defaults(store: Store, number: int, defaults: Mapping[str, Given]) -> dict[str, Any]:
    """Write defaults of parameters that a sweep does not name, and return their description."""
    file = f"{number}-defaults.parquet"
    values = {name: given.values for name, given in defaults.items()}
    _save_columns(store, f"{SWEEP}/{file}", values, allow_pickle=False)
    return {"file": file, "given": {name: given.form for name, given in defaults.items()}}


def load_defaults(store: Store, described: Mapping[str, Any]) -> dict[str, Given]:
    """Return the defaults that `save_defaults` wrote; empty where `described` has none."""
    if "defaults" not in described:
        return {}
    written = described["defaults"]
    columns = _load_columns(store, f"{SWEEP}/{written['file']}", allow_pickle=False)
    return {name: restored(values, written["given"][name]) for name, values in columns.items()}


def _save_index(store: Store, file: str, index: pd.Index) -> None:
    try:
        table = pa.Table.from_pandas(pd.DataFrame(index=index), preserve_index=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UnstorableError(
            f"the index of the sweep cannot be kept in a store: {error}; give the DataFrame "
            "another one, df.reset_index() say",
            error,
        ) from error
    store.write(file, table)


def load_sweep(store: Store, described: Mapping[str, Any], *, allow_pickle: bool) -> Sweep:
    """Return a sweep as it was written.

    Raises
    ------
    StoreCorruptedError
        Where its file is damaged.
    StoreError
        Where a file is gone.
    UnstorableError
        Where there are pickles in it, and these must not be read.
    """
    try:
        if described["kind"] == "grid":
            axes = {a["name"]: _load_axis(store, a, allow_pickle) for a in described["axes"]}
            is_as_given = all("range" in axis or "given" in axis for axis in described["axes"])
            return Grid(axes, is_as_given=is_as_given)
        if described["kind"] == "stream":
            return Streamed.read(described["electrons"])
        forms = described.get("given", {})  # early versions did not say
        loaded = _load_columns(store, f"{SWEEP}/{described['file']}", allow_pickle)
        columns = {
            name: restored(values, forms.get(name, "series")) for name, values in loaded.items()
        }
        frame = None
        if "index" in described:
            index = store.read(f"{SWEEP}/{described['index']}").to_pandas().index
            columns = {name: _in_frame(column) for name, column in columns.items()}
            shown = {name: column.shown for name, column in columns.items()}
            frame = pd.DataFrame(shown, index=index)
        return Table(columns, frame, is_as_given="given" in described)
    except FileNotFoundError as error:
        raise StoreError(f"{store.folder.url} lacks a file of its sweep: {error}", error) from error


def _in_frame(column: Given) -> Given:
    """Return a column as a Series holds it: arrays are objects, also those of one shape."""
    return replace(column, values=_cells(column.values), shown=_cells(column.shown))


def _cells(values: Values) -> Values:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return as_objects(list(values))
    return values


def _load_axis(store: Store, axis: Mapping[str, Any], allow_pickle: bool) -> Given:
    if "range" in axis:
        return restored(range(*axis["range"]), "series")
    values = _load_columns(store, f"{SWEEP}/{axis['file']}", allow_pickle)[axis["name"]]
    return restored(values, axis.get("given", "series"))


def _load_columns(store: Store, file: str, allow_pickle: bool) -> dict[str, Values]:
    table = store.read(file)
    return {
        field.name: codec.decode(
            table.column(field.name), json.loads(field.metadata[_NOTE]), allow_pickle=allow_pickle
        )
        for field in table.schema
    }
