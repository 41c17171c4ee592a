"""The journal: writes down what becomes of the electrons of a run, as it becomes known.

Files that workers wrote into the store are moved to ``properties``; outcomes that travelled to the
client are gathered and written twice a second. A thread of its own merges small files; a process
that attaches after a crash, even in the middle of a merge, finds every row once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from itertools import takewhile
from typing import Any

import numpy as np
import pyarrow as pa

from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import ElectronError, StoreChangedError
from atomizer_dask.execution.batch import Positions
from atomizer_dask.execution.outcome import Outcome, RunPart, StoredOutcome
from atomizer_dask.store.arrow.encoded import EncodedColumn
from atomizer_dask.store.common_schema import common_schema, joined, recoded, with_notes
from atomizer_dask.store.layout import FAILED, FAILURES, INCOMING, MERGING, PROPERTIES
from atomizer_dask.store.output_files import PrintedWriter
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_part import File, StoredPart
from atomizer_dask.store.tables import (
    Encoded,
    encode_outputs,
    table_of_failed,
    table_of_failures,
    table_of_good,
)
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.sweeps.inputs import Inputs, columns_of

FLUSH_ROWS = 2**18
MERGE_AT = 32  # small files, from which on they are merged
SMALL_BYTES = 2**23  # a file of more is not merged with others, however few rows it has
MERGED_BYTES = 2**26  # of files that are merged at a time


class ResultWriter:
    """Writes down what becomes of the electrons of a run.

    Everything but reading happens on one thread, that of the dispatcher.

    Parameters
    ----------
    store
        The store, which this process holds.
    code
        The fingerprint of the atom's code.
    inputs_of
        Returns the inputs of electrons.
    allow_pickle
        Whether values that have no Arrow type may be pickled.
    constants
        Names of inputs that are the same for all electrons; see `StoreTarget`.
    write_rows
        Writes the drawn rows of a streamed sweep that are not in the store yet.

    Attributes
    ----------
    code
        The fingerprint of the code that is executed now.
    printed
        Writes down what electrons print.
    """

    def __init__(
        self,
        store: Store,
        code: str,
        inputs_of: Callable[[Positions], Inputs],
        *,
        allow_pickle: bool,
        constants: Collection[str] = (),
        write_rows: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self._write_rows = write_rows or _nothing
        self.allow_pickle = allow_pickle
        self.unaccepted: StoreChangedError | None = None  # why nothing may be executed again
        self.files: dict[str, list[File]] = {}
        self.code = code
        self._inputs_of = inputs_of
        self._constants = constants
        self._done = np.zeros(0, dtype=bool)
        self._gathered: list[tuple[pa.Table, Callable[[StoredPart], None]]] = []
        self._gathered_rows = 0
        self._failed: list[RunPart] = []
        self._errors: list[tuple[int, ElectronError]] = []
        self._failed_files: list[str] = []
        self.printed = PrintedWriter(store)
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="atomizer-merge")
        self._merging = False
        self._sizes: dict[str, int] = {}  # bytes of files that have few rows
        self._small = setting("store.merge-rows")

    # -- what is done ------------------------------------------------------------------------

    def mark_done(self, positions: Positions) -> None:
        """Note that electrons have ended."""
        self._grow(positions)
        self._done[_indices(positions)] = True

    def not_done(self, positions: Positions) -> Positions:
        """Return which of these electrons have not ended."""
        self._grow(positions)
        done = self._done[_indices(positions)]
        if not done.any():
            return positions
        left: np.ndarray = numpy_values(positions)[~done]
        return left

    def reopen(self, positions: Positions) -> None:
        """Note that electrons that had ended have not."""
        self._grow(positions)
        self._done[_indices(positions)] = False

    def _grow(self, positions: Positions) -> None:
        if not len(positions):
            return
        top = positions[-1] if isinstance(positions, range) else positions.max()
        if top >= len(self._done):
            more = np.zeros(max(int(top) + 1, 2 * len(self._done)) - len(self._done), dtype=bool)
            self._done = np.concatenate([self._done, more])

    # -- writing down ------------------------------------------------------------------------

    def take_in(self, positions: Positions, stored: StoredOutcome) -> StoredPart | None:
        """Move a file that a worker wrote to ``properties``, and return it as a part.

        Returns None where there is nothing new: all electrons failed, or had ended before.

        Parameters
        ----------
        positions
            Of the electrons of the receipt.

        Raises
        ------
        FileNotFoundError
            Where the file is gone.
        StoreError
            Where it cannot be read or moved.
        """
        failed = stored.offsets - stored.first
        good = np.delete(numpy_values(positions), failed) if len(failed) else positions
        left = self.not_done(good)
        if not stored.name or not len(left):
            self.store.folder.remove(f"{INCOMING}/{stored.name}") if stored.name else None
            return None
        self._write_rows()
        if len(left) < len(good):  # two workers executed some of its electrons
            return self._take_in_some(stored.name, left)
        try:
            self.store.move(f"{INCOMING}/{stored.name}", f"{PROPERTIES}/{stored.name}")
        except FileNotFoundError:
            # The holder before may have moved it while this process took over.
            if not self.store.folder.exists(f"{PROPERTIES}/{stored.name}"):
                raise
        self.mark_done(good)
        return self._stored(self._add_file(stored.name, len(good)))

    def _take_in_some(self, name: str, left: Positions) -> StoredPart:
        table = self.store.read(f"{INCOMING}/{name}")
        wanted = np.isin(table.column("electron").to_numpy(), np.asarray(left))
        table = table.filter(pa.array(wanted))
        self.store.write(f"{PROPERTIES}/{name}", table)
        self.store.folder.remove(f"{INCOMING}/{name}")
        self.mark_done(left)
        return self._stored(self._add_file(name, len(table)))

    def salvage(self, key: str) -> list[StoredPart]:
        """Take in what a worker had written of a batch before it died."""
        found = []
        for name in self.store.folder.names(INCOMING):
            if name.startswith(f"{key}-"):
                part = self.take_in_file(name)
                if part is not None:
                    found.append(part)
        return found

    def take_in_file(self, name: str) -> StoredPart | None:
        """Take in a file of ``incoming`` for which no receipt has come; see `take_in`."""
        positions = self.store.read(f"{INCOMING}/{name}", ["electron"]).column(0).to_numpy()
        nobody = Outcome.none()
        receipt = StoredOutcome(
            0, len(positions), 0.0, 0.0, name, np.empty(0, dtype=np.int64), nobody
        )
        return self.take_in(positions, receipt)

    def add_file(self, name: str, count: int) -> StoredPart:
        """Note that there is a file of properties, and return it as a part."""
        return self._stored(self._add_file(name, count))

    def add_failed_file(self, name: str) -> None:
        """Note that there is a file of electrons that failed."""
        self._failed_files.append(name)

    def _add_file(self, name: str, count: int) -> File:
        file = File(name, 0, count)
        self.files[name] = [file]
        return file

    def _stored(self, file: File, start: int = 0, count: int | None = None) -> StoredPart:
        count = file.count if count is None else count
        return StoredPart(self.store, file, start, count, allow_pickle=self.allow_pickle)

    def encode(self, outcome: Outcome) -> Encoded:
        """Return an outcome with its outputs as Arrow; see `tables.encode_outputs`."""
        return encode_outputs(outcome, allow_pickle=self.allow_pickle)

    def gather(
        self,
        part: RunPart,
        outputs: Mapping[str, EncodedColumn],
        written: Callable[[StoredPart], None],
    ) -> None:
        """Gather good electrons, for the next `flush` to write.

        Parameters
        ----------
        outputs
            Their outputs, as `encode` gave them.
        written
            Called with their part in the store, once they are written.
        """
        table = table_of_good(
            part,
            columns_of(self._inputs_of(part.positions)),
            outputs,
            part.code or self.code,
            allow_pickle=self.allow_pickle,
            constants=self._constants,
        )
        self.mark_done(part.positions)
        self._gathered.append((table, written))
        self._gathered_rows += len(table)

    def gather_failed(self, part: RunPart) -> None:
        """Gather failed electrons, for the next `flush` to write."""
        self.mark_done(part.positions)
        self._failed.append(part)

    def gather_errors(self, errors: Iterable[tuple[int, ElectronError]]) -> None:
        """Gather failed attempts with their tracebacks, for the next `flush` to write."""
        self._errors += errors

    @property
    def is_full(self) -> bool:
        """Whether enough has been gathered to be written."""
        return self._gathered_rows >= FLUSH_ROWS

    @property
    def is_empty(self) -> bool:
        """Whether everything is written."""
        gathered = self._gathered or self._failed or self._errors
        return not gathered and self.printed.is_empty

    def flush(self) -> None:
        """Write what has been gathered.

        Raises
        ------
        StoreError
            Where that fails, or another process has taken over; what was gathered is kept.
        """
        if self.is_empty:
            return
        self.store.check_held()
        self._write_rows()
        self._write_gathered()
        self.printed.flush()
        # After a crash, an electron whose attempt is written, and not that it failed for good, is
        # tried again. So its row waits in ``merging`` until its attempts are in ``failures``.
        name = f"{new_id()}.parquet"
        ended = self._table_of_ended(self._failed)
        if ended is not None:
            self.store.write(f"{MERGING}/{FAILED}{name}", ended)
        if self._errors:
            self.store.write(f"{FAILURES}/{name}", table_of_failures(self._errors))
            self._errors = []
        if ended is not None:
            finish_failed(self.store, f"{FAILED}{name}")
            self._failed_files.append(f"{FAILED}{name}")
            self._failed = []

    def _write_gathered(self) -> None:
        while self._gathered:
            schema = self._gathered[0][0].schema
            alike = takewhile(
                lambda pair: pair[0].schema.equals(schema, check_metadata=True), self._gathered
            )
            those = list(alike)
            whole = pa.concat_tables([table for table, _ in those]).combine_chunks()
            name = f"{new_id()}.parquet"
            self.store.write(f"{PROPERTIES}/{name}", whole)
            file, start = self._add_file(name, len(whole)), 0
            del self._gathered[: len(those)]
            for table, written in those:
                written(self._stored(file, start, len(table)))
                start += len(table)
        self._gathered_rows = 0

    def _table_of_ended(self, parts: Sequence[RunPart]) -> pa.Table | None:
        tables = [
            table_of_failed(
                part,
                columns_of(self._inputs_of(part.positions)),
                part.code or self.code,
                allow_pickle=self.allow_pickle,
                constants=self._constants,
            )
            for part in parts
            if len(part)
        ]
        return joined(tables) if tables else None

    def rewrite_failed(self, again: np.ndarray) -> None:
        """Rewrite the files of failed electrons without those that will be tried again."""
        self.store.check_held()
        self.flush()
        before, tables = self._failed_files, []
        for name in before:
            table = self.store.read(f"{PROPERTIES}/{name}")
            stays = ~np.isin(table.column("electron").to_numpy(), again)
            if stays.any():
                tables.append(table.filter(pa.array(stays)))
        self._failed_files = []
        if tables:
            name = f"{FAILED}{new_id()}.parquet"
            self.store.write(f"{PROPERTIES}/{name}", joined(tables))
            self._failed_files.append(name)
        for name in before:
            self.store.folder.remove(f"{PROPERTIES}/{name}")

    # -- few files ---------------------------------------------------------------------------

    def merge_small(
        self, post: Callable[[Callable[[], None]], None], at: int | None = None
    ) -> bool:
        """Begin to merge small files where there are many, and return whether it has.

        Parameters
        ----------
        post
            Called, perhaps in another thread, with a function that ends the merge. The function
            must run on the dispatcher, and raises `StoreError` where merging has failed.
        at
            Number of small files from which on they are merged; `MERGE_AT` where None.
        """
        at = MERGE_AT if at is None else at
        few = [name for name, those in self.files.items() if _rows(those) < self._small]
        if self._merging or len(few) < at:
            return False
        small = small_in_bytes(self.store, few, self._sizes)
        if len(small) < at:
            return False
        self._merging = True
        job = self._merger.submit(self._merge, small)
        job.add_done_callback(lambda job: post(lambda: self._end_merge(job)))
        return True

    def _merge(self, names: list[str]) -> tuple[list[str], str]:
        # Columns stand in the order that those of the first electrons have.
        names = sorted(names, key=lambda name: self.store.first_of(f"{PROPERTIES}/{name}"))
        tables = [self.store.read(f"{PROPERTIES}/{name}") for name in names]
        merged = f"{new_id()}.parquet"
        table = joined(tables)
        sources = json.dumps(names)
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"sources": sources}
        )
        self.store.write(f"{MERGING}/{merged}", table)
        return names, merged

    def _end_merge(self, job: Future[tuple[list[str], str]]) -> None:
        self._merging = False
        names, merged = job.result()
        self.store.check_held()  # else another holder owns the files
        finish_merge(self.store, names, merged)
        files, first = [], 0
        for name in names:
            self._sizes.pop(name, None)
            for file in self.files.pop(name):
                files.append(file)
                file.first += first
            first += _rows(files) - first
        for file in files:
            file.name = merged
        self.files[merged] = files

    @property
    def is_merging(self) -> bool:
        """Whether files are being merged."""
        return self._merging

    def unify(self) -> None:
        """Give all files of properties one schema, so that any reader takes them for one table."""
        folder = self.store.folder
        self.store.check_held()
        self._remove_strangers()
        names = sorted(folder.files(PROPERTIES), key=self.store.first_of)
        schemas = {name: self.store.schema_of(name) for name in names}
        if len({str(with_notes(schema)) for schema in schemas.values()}) <= 1:
            return
        target = reduce(common_schema, schemas.values())
        for name, schema in schemas.items():
            if with_notes(schema) != with_notes(target):
                table = recoded(self.store.read(name), target, self.allow_pickle)
                self.store.write(name, table)

    def _remove_strangers(self) -> None:
        """Remove files that the holder before wrote while this process took over."""
        ours = {*self.files, *self._failed_files}
        for path in self.store.folder.files(PROPERTIES):
            if path.rpartition("/")[2] not in ours:
                electrons = self.store.read(path, ["electron"]).column(0).to_numpy()
                if not len(self.not_done(electrons)):
                    self.store.folder.remove(path)


def small_in_bytes(store: Store, names: Iterable[str], sizes: dict[str, int]) -> list[str]:
    """Return those of these files that are small, and together not too large for memory.

    Parameters
    ----------
    sizes
        Bytes of files, by name; gets those that are not known yet.
    """
    small, total = [], 0
    for name in names:
        if name not in sizes:
            sizes[name] = store.folder.size(f"{PROPERTIES}/{name}")
        if sizes[name] < SMALL_BYTES and total + sizes[name] <= MERGED_BYTES:
            small.append(name)
            total += sizes[name]
    return small


def _nothing() -> None:
    """Do nothing."""


def finish_merge(store: Store, names: Iterable[str], merged: str) -> None:
    """Replace files of properties by the one that they were merged into."""
    for name in names:
        store.folder.remove(f"{PROPERTIES}/{name}")
    store.move(f"{MERGING}/{merged}", f"{PROPERTIES}/{merged}")


def finish_failed(store: Store, name: str) -> None:
    """Move a file of failed electrons to ``properties`` if their attempts are written."""
    if store.folder.exists(f"{FAILURES}/{name.removeprefix(FAILED)}"):
        store.move(f"{MERGING}/{name}", f"{PROPERTIES}/{name}")
    else:  # they are executed again
        store.folder.remove(f"{MERGING}/{name}")


def _indices(positions: Positions) -> Any:
    is_slice = isinstance(positions, range) and positions.step == 1
    return slice(positions.start, positions.stop) if is_slice else positions  # type: ignore[union-attr]


def _rows(files: Sequence[File]) -> int:
    return sum(file.count for file in files)
