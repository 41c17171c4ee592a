"""Reading results from a store, as parts of a run or as a ``dask.dataframe``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from atomizer_dask.errors import StoreError
from atomizer_dask.execution.outcome import Column, RunPart
from atomizer_dask.runs.frames.frame import frame_of_columns
from atomizer_dask.runs.frames.selection import Selection
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.layout import FAILED, PROPERTIES
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_part import StoredPart
from atomizer_dask.store.tables import decode, fields_of, parts_of

READERS = 4  # files that are read at a time, where all rows are wanted


def read_parts(
    parts: Iterable[StoredPart],
    *,
    metadata: bool,
    outputs: Collection[str] | None = None,
    where: Selection | None = None,
) -> list[RunPart]:
    """Return results that are in a store, file by file.

    Parameters
    ----------
    metadata
        Also read when and where electrons ran.
    outputs
        Names of the outputs to read; None for all.
    where
        Selects rows: the others of a file are dropped before the next file is read.

    Raises
    ------
    FileNotFoundError
        Where a file has been merged in the meantime: take a new snapshot of the parts.
    """
    filtered = {name for name, _, _ in where.filters} if where is not None else set()

    def read(name: str, part: StoredPart) -> list[RunPart]:
        columns = part.columns(metadata, outputs, filtered)
        path = f"{PROPERTIES}/{name}"
        if where is not None and filtered:
            decisive = part.store.read(path, part.columns(False, filtered, filtered))
            mask = where.mask(partial(_series_of, decisive, part.allow_pickle), len(decisive))
            table = part.store.read_rows(path, columns, mask)
        else:
            table = part.store.read(path, columns)
        # A part without rows says which outputs there are.
        return list(parts_of(table, metadata=metadata, allow_pickle=part.allow_pickle))

    known = {part.name: part for part in parts}
    if filtered:
        return [each for name, part in known.items() for each in read(name, part)]
    with ThreadPoolExecutor(READERS, "atomizer-read") as threads:
        return [each for those in threads.map(read, known, known.values()) for each in those]


def _series_of(table: pa.Table, allow_pickle: bool, name: str) -> Any:
    """Return an input or an output as a column of the frame; None unless one field has the name."""
    fields = [field for field in fields_of(table.schema) if field.name == name]
    if len(fields) != 1:
        return None
    column = decode(table.column(fields[0].physical), fields[0].note, allow_pickle=allow_pickle)
    frame = frame_of_columns({name: column}, {}, pd.RangeIndex(len(table)), nullable=False)
    return frame[name]


Work = dict[str, dict[str, float]]


def work_of(parts: Iterable[StoredPart]) -> Work:
    """Return electrons and seconds by worker, for the files that parts are in.

    Raises
    ------
    FileNotFoundError
        Where a file has been merged in the meantime: take a new snapshot of the parts.
    """
    work: Work = {}
    for name, store in {part.name: part.store for part in parts}.items():
        table = store.read(f"{PROPERTIES}/{name}", ["start", "end", "worker"])
        starts, ends = (
            table.column(which).cast(pa.int64()).to_numpy() for which in ("start", "end")
        )
        workers = table.column("worker").cast(pa.string()).combine_chunks().dictionary_encode()
        codes = workers.indices.to_numpy()
        for code, worker in enumerate(workers.dictionary.to_pylist()):
            add_work(work, worker, starts[codes == code], ends[codes == code])
    return work


def add_work(work: Work, worker: str, starts: np.ndarray, ends: np.ndarray) -> None:
    """Add electrons, with start and end in nanoseconds, to the work of a worker.

    The seconds of electrons that one call of a vectorised atom executed count once.
    """
    mine = work.setdefault(worker, {"electrons": 0, "seconds": 0.0})
    another = np.ones(len(starts), dtype=bool)
    another[1:] = (starts[1:] != starts[:-1]) | (ends[1:] != ends[:-1])
    mine["electrons"] += len(starts)
    mine["seconds"] += float((ends - starts)[another].sum()) / 1e9


def to_dask(store: Store, *, allow_pickle: bool) -> Any:
    """Return the properties in a store as a ``dask.dataframe``, a partition per file."""
    import dask
    import dask.dataframe as dd

    paths = store.folder.files(PROPERTIES)
    if not paths:
        raise StoreError(f"{store.folder.url} has no properties yet: no electron has ended")
    nullable = any(path.rpartition("/")[2].startswith(FAILED) for path in paths)
    read = partial(_read_frame, store.folder.url, nullable, allow_pickle)
    meta = _frame_of(store.schema_of(paths[0]).empty_table(), nullable, allow_pickle)
    # Dask would convert all objects to text, arrays and lists too.
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(read, paths, meta=meta, enforce_metadata=False)


def _read_frame(url: str, nullable: bool, allow_pickle: bool, path: str) -> Any:
    return _frame_of(Store(Folder(url)).read(path), nullable, allow_pickle)


def _frame_of(table: Any, nullable: bool, allow_pickle: bool) -> Any:
    columns: dict[str, dict[str, Column]] = {"input": {}, "output": {}}
    for field in fields_of(table.schema):
        column = table.column(field.physical)
        columns[field.role][field.name] = decode(column, field.note, allow_pickle=allow_pickle)
    index = pd.Index(table.column("electron").to_numpy())
    frame = frame_of_columns(columns["input"], columns["output"], index, nullable=nullable)
    for name, field in zip(frame.columns, fields_of(table.schema), strict=True):
        # Where no text is present, pandas does not infer the type of a column of texts.
        is_text = pa.types.is_string(table.schema.field(field.physical).type)
        is_text &= field.note.get("form", "str_") == "str_" and "pandas" not in field.note
        if is_text and frame[name].isna().all():
            frame[name] = frame[name].astype("str")
    return frame
