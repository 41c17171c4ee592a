"""Results that are in a store: which file they are in, and where."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic, sleep

import numpy as np
import pyarrow as pa

from atomizer_dask.errors import StoreError
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.store.layout import PROPERTIES
from atomizer_dask.store.store import Store
from atomizer_dask.store.tables import fields_of, parts_of
from atomizer_dask.sweeps.columns import look_up

MERGE_SECONDS = 1.0  # within which a merged file appears under its new name


@dataclass(slots=True)
class File:
    """The location of rows that were written at once: a Parquet file and a range in it.

    Merging small files updates it in place, so that every part that refers to it finds its rows.

    Parameters
    ----------
    name
        The Parquet file.
    first, count
        Offset of the first row in the file, and the number of rows.
    """

    name: str
    first: int
    count: int


class StoredPart:
    """Electrons that ended well, and whose results are in a store.

    Parameters
    ----------
    store
        The store.
    file
        The rows that were written together.
    start, count
        Offset in these rows of the first row of the part, and the number of its rows.
    allow_pickle
        Whether columns of pickles may be read.
    """

    __slots__ = (
        "_count",
        "_file",
        "_rows",
        "_start",
        "allow_pickle",
        "attempt",
        "replaced",
        "store",
        "wanted",
    )

    def __init__(
        self, store: Store, file: File, start: int, count: int, *, allow_pickle: bool
    ) -> None:
        self.store = store
        self._file = file
        self._start = start
        self._rows = self._count = count
        self.allow_pickle = allow_pickle
        self.attempt = 1
        self.replaced = None
        self.wanted: np.ndarray | None = None

    def __len__(self) -> int:
        return self._count

    def failed_positions(self) -> np.ndarray:
        """Return an empty array: none failed."""
        return np.empty(0, dtype=np.int64)

    def cancelled_count(self) -> int:
        """Return 0: none was cancelled."""
        return 0

    def among(self, wanted: np.ndarray, positions: np.ndarray) -> StoredPart:
        """Restrict this part to some of its electrons, and return it.

        Parameters
        ----------
        wanted
            Mask over the electrons of the store, by position; False beyond its end.
        positions
            Of the electrons of this part.
        """
        self.wanted = wanted
        self._count = int(look_up(wanted, positions, False).sum())
        return self

    @property
    def name(self) -> str:
        """The file that its rows are in now; merging changes it."""
        return self._file.name

    def columns(
        self, metadata: bool, outputs: Collection[str] | None, inputs: Collection[str] = ()
    ) -> list[str]:
        """Return the names in its file of the columns to read; of the outputs all where None."""
        schema = self.store.schema_of(f"{PROPERTIES}/{self.name}")
        facts = ["start", "end", "worker", "attempts", "code"] if metadata else []
        wanted = [
            field.physical
            for field in fields_of(schema)
            if (field.name in inputs if field.role == "input" else _is_in(field.name, outputs))
        ]
        return ["electron", *wanted, *facts]

    def load(self) -> list[RunPart]:
        """Read its rows, and return them as parts, one for each worker, attempt and code.

        Raises
        ------
        StoreError
            Where another process has removed the file.
        UnstorableError
            Where a column holds pickles, and these must not be read.
        """
        until = monotonic() + MERGE_SECONDS
        while True:
            name, first = self._file.name, self._file.first
            try:
                table = self.store.read(f"{PROPERTIES}/{name}")
            except FileNotFoundError as error:
                if self._file.name == name and monotonic() > until:
                    raise StoreError(
                        f"{self.store.folder.url} has been changed by another process: "
                        "Run.open(store) shows it as it is now",
                        error,
                    ) from error
                sleep(0.01)
                continue  # it was merged a moment ago
            here = np.zeros(len(table), dtype=bool)
            here[first + self._start : first + self._start + self._rows] = True
            if self.wanted is not None:
                here &= look_up(self.wanted, table.column("electron").to_numpy(), False)
            # Not a slice: Arrow's filter and take give wrong elements of sliced arrays of arrays.
            rows = table.filter(pa.array(here))
            return list(parts_of(rows, metadata=True, allow_pickle=self.allow_pickle))


Part = RunPart | StoredPart
"""What became of some electrons of a run, wherever their results are; `load` reads them."""


def _is_in(name: str, names: Collection[str] | None) -> bool:
    return names is None or name in names
