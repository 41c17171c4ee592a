"""What electrons have printed, as files of a store: ``output/*.parquet``, a row per line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa

from atomizer_dask.console.printed import Line, Printed
from atomizer_dask.electron import new_id
from atomizer_dask.store.layout import OUTPUT
from atomizer_dask.store.store import Store

_SCHEMA = pa.schema(
    [
        pa.field("electron", pa.int64(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("time", pa.timestamp("ns", "UTC"), nullable=False),
        pa.field("stream", pa.string(), nullable=False),
        pa.field("level", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.uint16(), nullable=False),
    ]
)


class PrintedWriter:
    """Writes what electrons print into a store.

    Attributes
    ----------
    files
        Names of the files that it has written.
    """

    def __init__(self, store: Store) -> None:
        self.files: set[str] = set()
        self._store = store
        self._gathered: list[Printed] = []

    def gather(self, printed: Printed) -> None:
        """Gather what electrons have printed, for the next `flush` to write."""
        self._gathered.append(printed)

    @property
    def is_empty(self) -> bool:
        """Whether everything is written."""
        return not self._gathered

    def flush(self) -> None:
        """Write what has been gathered; raises what `Store.write` does, and keeps it then."""
        if not self._gathered:
            return
        name = f"{new_id()}.parquet"
        self.files.add(name)
        self._store.folder.make(OUTPUT)
        self._store.write(f"{OUTPUT}/{name}", _table_of(self._gathered))
        self._gathered = []


def _table_of(those: Iterable[Printed]) -> pa.Table:
    lines = [line for each in those for line in each.lines()]
    electrons, attempts, times, sources, texts = zip(*lines, strict=True)
    columns = {
        "electron": electrons,
        "attempt": attempts,
        "time": times,
        "stream": [line.stream for line in lines],
        "level": [line.level for line in lines],
        # Half a surrogate pair has no UTF-8.
        "text": [text.encode(errors="backslashreplace").decode() for text in texts],
        "source": sources,
    }
    return pa.table(columns, schema=_SCHEMA)


def read_printed(store: Store, but: Collection[str] = ()) -> Iterator[Line]:
    """Yield the lines of a store, but those of some files."""
    for name in store.folder.names(OUTPUT):
        if name in but:
            continue
        table = store.read(f"{OUTPUT}/{name}")
        times = table.column("time").cast(pa.int64())
        columns = [table.column(each) for each in ("electron", "attempt")]
        columns += [times, *(table.column(each) for each in ("source", "text"))]
        yield from map(Line, *(column.to_pylist() for column in columns))
