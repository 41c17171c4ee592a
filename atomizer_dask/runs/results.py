"""The results of a run, for its user: frames, errors, and Properties one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from atomizer_dask.console.printed import Line
from atomizer_dask.console.recorder import Piece
from atomizer_dask.errors import StoreError
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.interruptible import wait_for
from atomizer_dask.properties import Properties
from atomizer_dask.runs.frames.frame import errors_frame, failures_frame, output_names, to_frame
from atomizer_dask.runs.frames.read import add_work, read_parts, to_dask, work_of
from atomizer_dask.runs.frames.selection import Selection
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.output_log import output_frame, show
from atomizer_dask.store.inputs.row_map import RowMap
from atomizer_dask.store.output_files import read_printed
from atomizer_dask.store.provenance import described_values
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_part import Part, StoredPart
from atomizer_dask.sweeps.columns import numpy_values

if TYPE_CHECKING:
    import pandas as pd

LAST_LINES = 10  # of what a failed electron has printed, which stand beside its failure
T = TypeVar("T")


class Results:
    """The results of a run, in memory or in a store.

    Parameters
    ----------
    run_id
        Id of the run.
    view
        Maps the electrons of the store to the rows of the sweep.
    ledger
        The outcomes of its electrons.
    store
        The store of the run; None without one.
    allow_pickle
        Whether columns of pickles may be read.
    """

    def __init__(
        self, run_id: str, view: RowMap, ledger: Ledger, store: Store | None, *, allow_pickle: bool
    ) -> None:
        self.id = run_id
        self.sweep = view.sweep
        self._view = view
        self._ledger = ledger
        self._store = store
        self._allow_pickle = allow_pickle
        self._lost_workers: dict[str, datetime] = {}

    @property
    def store(self) -> str | None:
        """Path or URL of the store of the run; None without a store."""
        return None if self._store is None else self._store.folder.url

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The values of parameters that are the same for all electrons, as the store has them."""
        return {} if self._store is None else self._store.manifest["atom"].get("fixed", {})

    def to_frame(
        self,
        metadata: bool = False,
        *,
        columns: Sequence[str] | None = None,
        filters: Sequence[Any] | None = None,
    ) -> pd.DataFrame:
        """Return inputs and outputs, one row per electron that has ended, in sweep order.

        Parameters
        ----------
        metadata
            Add id, start, end (timezone-aware, UTC), duration, worker and attempts; of a run with
            a store also code, the fingerprint of the code that ran.
        columns
            Only these: of a run with a store, others are not even read.
        filters
            Only rows for which all of these hold: triples of a column, a comparison
            (``==  !=  <  <=  >  >=  in  not in``) and a value, as in `pandas.read_parquet`. Other
            rows of a store are dropped file by file, so that memory holds one file of them at most.

        Returns
        -------
        pandas.DataFrame
            On the index of the DataFrame that was swept over, else on the position in the sweep.
            A dict result has a column for each of its fields, any other one the column
            ``result``; an array stays one array per row, read-only where it has a megabyte or
            more, for it is not copied. Where electrons failed, outputs are
            missing: integers and booleans are pandas' nullable ones then. An output with the name
            of an input gets the prefix ``result_``. Its ``attrs`` name the run and its store, and
            describe the fixed values, which have no columns.

        Raises
        ------
        KeyError
            Where there is no such column.
        StoreCorruptedError
            Where a file of the store is damaged; the message names it and says what to do.
        """
        wanted = Selection.of(columns, filters, metadata=metadata)
        outputs = wanted.reads(self.sweep.names)
        parts = self._parts(metadata=wanted.metadata, outputs=outputs, where=wanted)
        frame = to_frame(
            self.sweep,
            self._view.as_rows(parts),
            self.id,
            metadata=wanted.metadata,
            electrons=self._view.electrons,
            columns=wanted.columns,
            outputs=output_names(parts),
        )
        frame = wanted.apply(frame)
        frame.attrs = {"run_id": self.id, "store": self.store}
        if self.fixed:
            frame.attrs["fixed"] = described_values(self.fixed)
        return frame

    def _parts(
        self,
        *,
        metadata: bool,
        outputs: Collection[str] | None = None,
        where: Selection | None = None,
    ) -> list[RunPart]:
        """Return the outcomes so far as parts; those in the store are read from it."""
        read = partial(read_parts, metadata=metadata, outputs=outputs, where=where)
        stored, here = self._read(read)
        return [*stored, *here]

    def _read(self, read: Callable[[list[StoredPart]], T]) -> tuple[T, list[RunPart]]:
        """Return what `read` returns for the parts in the store, and the parts in memory."""
        while True:
            ended, parts = self._ledger.ended, self._ledger.snapshot()
            try:
                stored = read([part for part in parts if isinstance(part, StoredPart)])
            except FileNotFoundError as error:
                self._find_merged(error, ended)
                continue
            return stored, [part for part in parts if isinstance(part, RunPart)]

    def _find_merged(self, error: FileNotFoundError, ended: bool) -> None:
        """Prepare to read again after a file was missing, perhaps merged; this class raises."""
        raise error

    # -- parts, for panels that show a run while it is under way ----------------------------------

    def parts_since(self, number: int) -> list[Part]:
        """Return the parts in the order in which they arrived, from index `number` on."""
        with self._ledger.changed:
            return self._ledger.parts[number:]

    def rows_of(self, parts: Sequence[Part]) -> list[RunPart]:
        """Return parts as rows of the sweep; those in the store are read from it."""
        loaded = [each for part in parts for each in part.load()]
        return [part for part in map(RunPart.current, self._view.as_rows(loaded)) if len(part)]

    def failed_rows(self) -> list[RunPart]:
        """Return the failed electrons, by part, as rows of the sweep."""
        return self._view.as_rows(self._ledger.failed_parts())

    def outermost_of_store(self, count: int) -> list[RunPart]:
        """Return the rows of those files of the store that have the first or last `count` rows.

        Of the other files only the positions of their electrons are read.
        """

        def read(parts: list[StoredPart]) -> list[RunPart]:
            files = list({part.name: part for part in parts}.values())
            rows = [
                np.concatenate([np.empty(0, dtype=np.int64), *map(_rows_in, found)])
                for file in files
                for found in [self._view.as_rows(read_parts([file], metadata=False, outputs=()))]
            ]
            if not (known := np.sort(np.concatenate(rows)) if rows else np.empty(0)).size:
                return []
            low, high = known[:count][-1], known[-count:][0]
            wanted = [
                file
                for file, mine in zip(files, rows, strict=True)
                if len(mine) and (mine.min() <= low or mine.max() >= high)
            ]
            return self._view.as_rows(read_parts(wanted, metadata=False))

        return self._read(read)[0]

    def frame_of(self, parts: Sequence[RunPart]) -> pd.DataFrame:
        """Return parts, whose positions are rows of the sweep, as a frame."""
        return to_frame(self.sweep, parts, self.id)

    def electron_id(self, row: int) -> str:
        """Return the id of the electron that stands for a row of the sweep."""
        return f"{self.id}-{self._view.electron(row)}"

    def work(self) -> dict[str, dict[str, float]]:
        """Return electrons and seconds by worker."""
        work, here = self._read(work_of)  # file by file, for 100 million electrons do not fit
        for part in here:
            add_work(work, part.outcome.worker, *part.current().outcome.times())
        return work

    def to_dask(self) -> Any:
        """Return inputs and outputs as a ``dask.dataframe``, a partition per file of the store.

        On the positions of the electrons, in no particular order. Nothing is read yet. Integers
        and booleans are nullable where electrons failed.

        Raises
        ------
        StoreError
            Where the run has no store.
        """
        if self._store is None:
            raise StoreError(f"{self.id} has no store: use to_frame, or map(..., store=...)")
        return to_dask(self._store, allow_pickle=self._allow_pickle)

    @property
    def errors(self) -> pd.DataFrame:
        """The failed electrons so far: inputs, kind, type, message, traceback, attempts, worker.

        Also ``tier``, ``seconds``, ``printed`` (the last lines of the electron) and ``history``.
        """
        history = self._ledger.history
        failed = self.failed_rows()
        printed = self.last_lines({row for part in failed for row in part.failed_positions()})
        return errors_frame(self.sweep, failed, self._view.as_keys(history), printed)

    @property
    def failures(self) -> pd.DataFrame:
        """A summary of `errors`, a row per kind and type of exception, the most frequent first.

        Columns ``count``, ``first`` (the index label of the first one, for `errors` and
        `replay`), ``message`` (of the first one) and ``hint`` (what to do).
        """
        return failures_frame(self.sweep, self.failed_rows())

    @property
    def output(self) -> pd.DataFrame:
        """What electrons have printed so far: a row per line, in the order of the electrons.

        Columns ``row`` (the label of the electron in the index of the frame), ``time`` (UTC),
        ``stream`` (``stdout``, ``stderr``, ``logging`` or ``warnings``; ``left out`` where more
        was printed than is kept), ``level`` of records and warnings, ``text``, ``attempt``.
        """
        known = self._labelled(self._printed_lines())
        return output_frame([line for _, line in known], [label for label, _ in known])

    def _labelled(self, lines: Iterable[Line]) -> list[tuple[Any, Line]]:
        label_of, known = self._view.labels(), []
        for line in lines:
            with suppress(LookupError):  # of a row of an earlier sweep
                known.append((label_of(line.electron), line))
        return known

    def output_of(self, electron: Any) -> str:
        """Return what an electron has printed, in all its attempts.

        Parameters
        ----------
        electron
            Its label in the index of the frame, or its id.

        Raises
        ------
        KeyError
            Where the run has no such electron, or several.
        """
        position = self._view.find(electron, self.id)
        lines = self._printed_lines({position})
        return "".join(f"{line.text}\n" for line in lines)

    @property
    def printed_count(self) -> int:
        """How many pieces of text, about as many as lines, have been printed under this process."""
        return self._ledger.output.count

    def latest_lines(self, count: int) -> tuple[list[tuple[Any, Line]], int]:
        """Return the newest lines, each with the label of its electron, and how many there are."""
        log = self._ledger.output
        lines, total = log.latest(count), log.count
        if not total:  # another process has the run, or had it
            lines = self._printed_lines()
            total = len(lines)
        newest = sorted(lines, key=lambda line: line.time_ns)[-count:]
        return self._labelled(newest), total

    def last_lines(self, rows: Collection[int]) -> dict[int, str]:
        """Return the last lines that the electrons of some rows of the sweep have printed."""
        electrons = {self._view.electron(row): row for row in rows}
        latest: dict[int, deque[str]] = {}
        for line in self._printed_lines(electrons.keys()) if electrons else ():
            those = latest.setdefault(electrons[line.electron], deque(maxlen=LAST_LINES))
            those.append(line.text)
        return {row: "\n".join(texts) for row, texts in latest.items()}

    def show_printed(self, pieces: list[Piece]) -> None:
        """Print here what electrons of the run are printing."""
        show(pieces, self._view.labels())

    def _printed_lines(self, electrons: Collection[int] | None = None) -> list[Line]:
        """Return the lines of all electrons, or of some, by electron, attempt and time."""
        log = self._ledger.output
        lines = log.lines(electrons)
        if self._store is not None:  # other processes may have gone on with the run, or begun it
            others = read_printed(self._store, but=log.written)
            lines += (each for each in others if electrons is None or each.electron in electrons)
        return sorted(lines, key=lambda line: (line.electron, line.attempt, line.time_ns))

    def __iter__(self) -> Iterator[Properties]:
        """Yield the Properties of every electron, as they complete."""
        ledger, position = self._ledger, 0
        while True:
            wait_for(ledger.changed, lambda: len(ledger.parts) > position or ledger.ended)
            parts = ledger.parts[position:]
            if not parts:
                if ledger.error is not None:
                    raise ledger.error
                return
            position += len(parts)
            for part in parts:
                yield from ledger.properties_of(part)

    async def __aiter__(self) -> AsyncIterator[Properties]:
        ledger, position = self._ledger, 0
        while True:
            with ledger.changed:
                parts, ended = ledger.parts[position:], ledger.ended
                woken = ledger.wakeups.future()
            position += len(parts)
            for part in parts:
                for properties in ledger.properties_of(part):
                    yield properties
            if not parts and ended:
                break
            if not parts:
                await woken
        if ledger.error is not None:
            raise ledger.error


def _rows_in(part: RunPart) -> np.ndarray:
    return numpy_values(part.positions)
