"""How tables become Parquet files, and how as little as possible of these is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS, GROUP_BYTES = 2**20, 2**26  # of a row group: what is read at a time, at most
PIECE_BYTES = 2**20  # of a column that are in memory besides its values, where rows are selected


def write_table(table: pa.Table, where: Any) -> None:
    """Write a table of properties, failures or inputs as Parquet."""
    texts = [
        field.name
        for field in table.schema
        if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type)
    ]
    here = set(table.column_names)
    row_bytes = table.nbytes / max(1, len(table))
    pq.write_table(
        table,
        where,
        row_group_size=max(1, min(GROUP_ROWS, int(GROUP_BYTES / max(1.0, row_bytes)))),
        compression="none",  # numbers hardly shrink, and compressing doubles the time
        use_dictionary=[*texts, *here & {"attempts"}] or False,
        column_encoding={"electron": "DELTA_BINARY_PACKED"} if "electron" in here else None,
        sorting_columns=_order(table),
        write_statistics=["electron"],
        write_page_checksum=True,
    )


def _order(table: pa.Table) -> list[pq.SortingColumn] | None:
    """Return that a table has its electrons in order, each once; None where it has not."""
    if table.schema.names[:1] != ["electron"]:
        return None
    electrons = table.column("electron").to_numpy()
    return [pq.SortingColumn(0)] if bool(np.all(electrons[1:] > electrons[:-1])) else None


def read_columns(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    """Return a table, or those of some columns that it has."""
    if columns is None:
        return file.read()
    here = _those_of(file, columns)
    electrons = _known_electrons(file) if "electron" in here else None
    if electrons is None:
        return file.read(columns=here)
    others = [name for name in here if name != "electron"]
    field = file.schema_arrow.field(0)
    if not others:
        schema = pa.schema([field], metadata=file.schema_arrow.metadata)
        return pa.Table.from_arrays([electrons], schema=schema)
    return file.read(columns=others).add_column(0, field, electrons)


def _known_electrons(file: pq.ParquetFile) -> pa.Array | None:
    """Return the electrons of a file, none of which is read; None where that takes reading."""
    metadata = file.metadata
    ranges = [_electrons_of(metadata.row_group(n)) for n in range(metadata.num_row_groups)]
    known = [np.arange(each.start, each.stop) for each in ranges if each is not None]
    return pa.array(np.concatenate(known)) if known and len(known) == len(ranges) else None


def _electrons_of(group: pq.RowGroupMetaData) -> range | None:
    """Return the electrons of a row group, which is not read, where they are known to be a range.

    They are where each is there once, in order, and none between first and last is missing.
    """
    column = group.column(0)
    if not (group.num_rows and group.sorting_columns and column.path_in_schema == "electron"):
        return None
    first, last = column.statistics.min, column.statistics.max
    return range(first, last + 1) if last - first + 1 == group.num_rows else None


def read_rows(
    file: pq.ParquetFile, columns: Sequence[str], wanted: np.ndarray, path: str | None
) -> pa.Table:
    """Return some columns of some rows; a row group that has none of them is not read.

    Parameters
    ----------
    wanted
        Mask over the rows.
    path
        Of the file where it is a local one, which is then read with less memory.
    """
    here = _those_of(file, columns)
    tables = []
    start = 0
    for number in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        mask = wanted[start : start + count]
        start += count
        if mask.any():
            group = file.read_row_group if path is None else partial(_read_row_group, path)
            table = group(number, columns=here)
            tables.append(table if mask.all() else table.filter(pa.array(mask)))
    return pa.concat_tables(tables) if tables else file.schema_arrow.empty_table().select(here)


def _read_row_group(path: str, number: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of a row group, which are in memory three times at most while it is read.

    With a `ParquetFile` they are four times: the group is read as a whole, and Arrow's own
    allocator keeps what it has freed.
    """
    import pyarrow.dataset as ds  # what is needed for this alone: a fiftieth of our import

    options = ds.ParquetFragmentScanOptions(
        page_checksum_verification=True,
        use_buffered_stream=True,
        buffer_size=PIECE_BYTES,
        pre_buffer=False,
    )
    as_parquet = ds.ParquetFileFormat(default_fragment_scan_options=options)
    with pa.OSFile(path) as file:
        group = as_parquet.make_fragment(file, row_groups=[number])
        pool = pa.system_memory_pool()
        return group.to_table(
            columns=list(columns), batch_size=GROUP_ROWS, use_threads=False, memory_pool=pool
        )


def _those_of(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    here = set(file.schema_arrow.names)
    return [name for name in columns if name in here]
