"""From a store to a ledger: the outcomes of a run that another process drove."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from heapq import nlargest
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa

from atomizer_dask.errors import StoreCorruptedError
from atomizer_dask.events import KEPT, Event
from atomizer_dask.execution.failure import Failure, utc
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.store.layout import FAILED, FAILURES, INCOMING, MERGING, PROPERTIES
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_part import File, StoredPart
from atomizer_dask.store.stored_run import StoredRun
from atomizer_dask.store.tables import Failed, failures_of, part_of_failed, unstored_of
from atomizer_dask.store.writer import ResultWriter, finish_failed, finish_merge
from atomizer_dask.sweeps.columns import look_up

RENAME_SECONDS = 0.01  # between removing merged files and renaming the file that has their rows

Attempts = dict[int, dict[int, Failed]]


def load(
    store: Store, ledger: Ledger, *, wanted: np.ndarray | None = None, allow_pickle: bool = False
) -> None:
    """Fill a ledger with the outcomes in a store, read-only.

    Parameters
    ----------
    wanted
        Mask over the electrons of the store: the others are left out. None for all.

    Raises
    ------
    StoreCorruptedError
        Where a file is damaged.
    """
    for name in _good(store):
        count = store.rows_of(f"{PROPERTIES}/{name}")
        part = StoredPart(store, File(name, 0, count), 0, count, allow_pickle=allow_pickle)
        if wanted is not None:
            part = part.among(wanted, _electrons(store, name))
        ledger.add(part)
    _load_failures(store, ledger, None, wanted, allow_pickle)


def recover(store: Store, ledger: Ledger, journal: ResultWriter, wanted: np.ndarray | None) -> None:
    """Fill a ledger as `load` does, for the process that holds the store and goes on with the run.

    Merges that an earlier process began are finished or undone, files of ``incoming`` are taken
    in, and the journal learns which electrons have ended.
    """
    for path in store.folder.files(MERGING):
        if (name := path.rpartition("/")[2]).startswith(FAILED):
            finish_failed(store, name)
            continue
        sources = json.loads(store.schema_of(path).metadata[b"sources"])
        finish_merge(store, sources, name)
    for name in _good(store):
        positions = _electrons(store, name)
        left = journal.not_done(positions)
        if len(left) < len(positions):  # a worker that was thought dead wrote them a second time
            table = store.read(f"{PROPERTIES}/{name}")
            fresh = np.isin(positions, left)
            store.write(f"{PROPERTIES}/{name}", table.filter(pa.array(fresh)))
            positions = positions[fresh]
        journal.mark_done(positions)
        ledger.add(_counted(journal.add_file(name, len(positions)), positions, wanted))
    for path in store.folder.files(INCOMING):
        try:
            part = journal.take_in_file(path.rpartition("/")[2])
        except StoreCorruptedError:
            store.put_aside(path)  # its electrons are executed again
            continue
        if part is not None:
            ledger.add(_counted(part, _electrons(store, part.name), wanted))
    _load_failures(store, ledger, journal, wanted, journal.allow_pickle)


def _counted(part: StoredPart, positions: np.ndarray, wanted: np.ndarray | None) -> StoredPart:
    return part if wanted is None else part.among(wanted, positions)


def _good(store: Store) -> list[str]:
    paths = store.folder.files(PROPERTIES)
    for path in paths:
        store.check_properties(path)
    names = (path.rpartition("/")[2] for path in paths)
    return [name for name in names if not name.startswith(FAILED)]


def _electrons(store: Store, name: str) -> np.ndarray:
    positions: np.ndarray = store.read(f"{PROPERTIES}/{name}", ["electron"]).column(0).to_numpy()
    return positions


Lots = dict[tuple[str, int, str], list[tuple[int, Failed]]]  # by worker, attempt and code


class _FailedFiles:
    """The files of properties of a store in which all electrons failed."""

    def __init__(self, store: Store, journal: ResultWriter | None) -> None:
        self.ended: dict[int, int] = {}  # by position, the attempt that failed for good
        self.outputs: dict[int, tuple[pa.Table, int]] = {}  # table and row of storable outputs
        self.lots: Lots = defaultdict(list)
        self._store = store
        self._journal = journal

    def read(self, attempts: Attempts, wanted: np.ndarray | None) -> None:
        """Read all these files; an electron that is in several of them counts once."""
        for path in self._store.folder.files(PROPERTIES):
            name = path.rpartition("/")[2]
            if name.startswith(FAILED):
                if self._journal is not None:
                    self._journal.add_failed_file(name)
                self._read_file(path, attempts, wanted)

    def _read_file(self, path: str, attempts: Attempts, wanted: np.ndarray | None) -> None:
        table = self._store.read(path)
        positions = table.column("electron").to_numpy()
        once = np.ones(len(table), dtype=bool)
        if self._journal is not None:
            once = np.isin(positions, self._journal.not_done(positions))
        asked = once if wanted is None else look_up(wanted, positions, False)
        for number, row in enumerate(_rows(table)):
            position, attempt = row["electron"], row["attempts"]
            once[number] &= position not in self.ended
            if not once[number]:
                continue
            failed = attempts.get(position, {}).get(attempt) or _from_row(row)
            self.ended[position] = attempt
            if asked[number]:
                if failed.failure.type == "UnstorableError":
                    self.outputs[position] = table, number
                self.lots[failed.worker, attempt, row["code"]].append((position, failed))
        if self._journal is not None and not once.all():
            # A process died while it rewrote failures: these electrons are in another file too.
            self._store.write(path, self._store.read(path).filter(pa.array(once)))


def _load_failures(
    store: Store,
    ledger: Ledger,
    journal: ResultWriter | None,
    wanted: np.ndarray | None,
    allow_pickle: bool,
) -> None:
    attempts = _attempts(store)
    files = _FailedFiles(store, journal)
    files.read(attempts, wanted)
    for (_, _, code), those in files.lots.items():
        ordered = sorted(those, key=lambda pair: pair[0])
        for table, rows, some in _by_table(ordered, files.outputs):
            part = part_of_failed(some)
            part.code = code
            if table is not None:
                part.outcome.unstored = unstored_of(table, rows, allow_pickle=allow_pickle)
                part.outcome.is_whole = False
            ledger.add(part)
            if journal is not None:
                journal.mark_done(part.positions)
    for position, tried in attempts.items():
        last = files.ended.get(position, 1 + max(tried))
        earlier = [tried[attempt] for attempt in sorted(tried) if attempt < last]
        if earlier:
            ledger.history[position] = tuple(
                ledger.error_of(position, failed) for failed in earlier
            )


def _by_table(
    those: list[tuple[int, Failed]], outputs: dict[int, tuple[pa.Table, int]]
) -> Iterator[tuple[pa.Table | None, list[int], list[tuple[int, Failed]]]]:
    """Yield failed electrons by the table that has outputs of them, with their rows in it."""
    groups: dict[int, tuple[pa.Table | None, list[int], list[tuple[int, Failed]]]] = {}
    for position, failed in those:
        table, row = outputs.get(position, (None, 0))
        _, rows, some = groups.setdefault(id(table), (table, [], []))
        rows.append(row)
        some.append((position, failed))
    yield from groups.values()


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    table = table.select(["electron", "start", "end", "worker", "attempts", "code", "error"])
    for name in ("start", "end"):
        column = table.column(name).cast(pa.timestamp("us", "UTC"), safe=False)
        table = table.set_column(table.column_names.index(name), name, column)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _from_row(row: dict[str, Any]) -> Failed:
    """Rebuild a failure from its row of properties, for a store whose file of failures lacks it."""
    name, _, message = row["error"].partition(": ")
    failure = Failure("exception", name, message)
    return Failed(row["attempts"], failure, row["worker"], row["start"], row["end"])


def _attempts(store: Store) -> Attempts:
    attempts: Attempts = {}
    for path in store.folder.files(FAILURES):
        for position, failed in failures_of(store.read(path)):
            attempts.setdefault(position, {})[failed.attempt] = failed
    return attempts


def events_before(
    run_id: str, atom_id: str, sessions: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[Event]:
    """Return past events of a run, by time: which processes worked on it, and what failed.

    Parameters
    ----------
    run_id, atom_id
        Ids of the run and of its atom.
    sessions
        The sessions of its manifest: process, host, start and end.
    ledger
        The outcomes of its electrons. Of its failures only the newest become events.
    """
    events = [
        *_sessions(run_id, atom_id, sessions),
        *(
            failed(run_id, atom_id, failure, position, utc(end))
            for end, position, failure in nlargest(KEPT, _failures(ledger), key=lambda f: f[0])
        ),
    ]
    return sorted(events, key=lambda event: event.time)


def failed(
    run_id: str, atom_id: str, failure: Failure, position: int, time: datetime | None = None
) -> Event:
    """Return the event that an electron failed, at `time`, or now where that is None."""
    why = f"{failure.type}: {failure.message}" if failure.type else failure.message
    when = {} if time is None else {"time": time}
    return Event(
        f"failed: {why}",
        electron_id=f"{run_id}-{position}",
        atom_id=atom_id,
        level="error",
        run_id=run_id,
        **when,  # type: ignore[arg-type]
    )


def _sessions(run_id: str, atom_id: str, sessions: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    for session in sessions:
        who = f"process {session.get('pid', '?')} on {session.get('host', '?')}"
        for what, when in (("began to work on it", "start"), ("left it", "end")):
            if session[when] is not None:
                time = datetime.fromisoformat(session[when])
                yield Event(f"{who} {what}", atom_id=atom_id, run_id=run_id, time=time)


def _failures(ledger: Ledger) -> Iterator[tuple[int, int, Failure]]:
    for part in ledger.failed_parts():
        _, ends = part.outcome.times()
        positions = part.failed_positions().tolist()
        for position, offset, code in zip(
            positions, part.outcome.failed, part.outcome.codes, strict=True
        ):
            yield int(ends[offset]), position, part.outcome.failures[code]


def ledger_of(stored: StoredRun, allow_pickle: bool) -> Ledger:
    """Return a ledger with the outcomes in a store, which another process may be writing."""
    while True:
        ledger = Ledger(stored.run_id, stored.atom_id)
        try:
            load(stored.store, ledger, wanted=stored.view.mask(), allow_pickle=allow_pickle)
        except FileNotFoundError:  # files were merged a moment ago
            sleep(RENAME_SECONDS)
            continue
        ledger.set_stored(stored.state, stored.seconds)
        return ledger


def interruption_of(stored: StoredRun) -> str:
    """Return which process died while it drove a run, and how to go on; empty where none did."""
    gone = stored.gone
    go_on = f"atomizer.attach({stored.store.folder.url!r}) goes on"
    return f"{gone} is gone, and had not ended it: {go_on}" if gone else ""


def failures_in_words(ledger: Ledger) -> str:
    """Return how many electrons of a run failed, and the first of them with what."""
    part = min(ledger.failed_parts(), key=lambda part: part.failed_positions()[0])
    first = part.outcome.failures[part.outcome.codes[0]]
    total = ledger.done + ledger.failed
    return (
        f"{ledger.failed:,} of {total:,} electrons failed, the first with "
        f"{first.type or first.kind}: {first.message}; see run.failures, run.errors"
    )
