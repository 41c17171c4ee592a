"""A run that is kept in a store: how one begins there, goes on, is extended, and is looked at."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from time import time
from typing import Any, Literal

import numpy as np

from atomizer_dask.atoms.code.fingerprint import Code
from atomizer_dask.atoms.definition import Definition, bind_fixed, fixed_of
from atomizer_dask.atoms.pickling import load_atom
from atomizer_dask.atoms.random_streams import seed_of
from atomizer_dask.errors import RegistrationError, StoreChangedError, StoreError, UnstorableError
from atomizer_dask.execution.batch import Positions
from atomizer_dask.execution.options import MapOptions
from atomizer_dask.policy import OnFailure
from atomizer_dask.store.code_check import check_code, code_entry, keep_atom, target_of
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.filesystem.lock import living_holder, read_holder
from atomizer_dask.store.inputs.extend import extend, sweeps_of
from atomizer_dask.store.inputs.row_map import RowMap
from atomizer_dask.store.inputs.sweep_files import rows_writer, save_sweep
from atomizer_dask.store.layout import (
    ATOM,
    FAILURES,
    GOING,
    INCOMING,
    MANIFEST,
    MERGING,
    PROPERTIES,
    State,
)
from atomizer_dask.store.signature import is_own
from atomizer_dask.store.store import Store, now
from atomizer_dask.store.writer import ResultWriter
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it stands in a store.

    Parameters
    ----------
    store
        The store.
    universe
        All electrons of the store, by position.
    view
        The rows of the user's sweep, and the electron that stands for each.
    unaccepted
        The error that says how the environment differs, where the user did not accept that but
        no electron is left to execute; else None.
    """

    store: Store
    universe: Sweep
    view: RowMap
    unaccepted: StoreChangedError | None = None

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.store.manifest["run"])

    @property
    def atom_id(self) -> str:
        """The id of the atom."""
        return str(self.store.manifest["atom"]["id"])

    @property
    def seed(self) -> int:
        """The seed of the random streams."""
        return int(self.store.manifest["seed"])

    @property
    def state(self) -> State:
        """The state of the run; ``suspended`` also where its holder died meanwhile, see `gone`."""
        return state_of(self.store)

    @property
    def gone(self) -> str:
        """The process that died while it drove the run, as text; empty where none did."""
        if self.store.manifest["state"] not in GOING or self.state != "suspended":
            return ""
        return str(read_holder(self.store.folder) or "whoever worked on it")

    @property
    def seconds(self) -> float:
        """Seconds of all sessions, up to now for one that is under way."""
        return self._seconds(living_holder(self.store.folder) is not None)

    @property
    def seconds_before(self) -> float:
        """Seconds of all sessions in the manifest, for a process that has not begun its own."""
        return self._seconds(False)

    def _seconds(self, is_under_way: bool) -> float:
        """Return the seconds of all sessions.

        The session of a process that died has no end in the manifest. It counts up to the last
        file that was written before the next session began.
        """
        sessions = self.store.manifest["sessions"]
        begins = [datetime.fromisoformat(session["start"]).timestamp() for session in sessions]
        ends = [session["end"] and datetime.fromisoformat(session["end"]) for session in sessions]
        written = None
        total = 0.0
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            is_last = number == len(sessions) - 1
            if end is not None:
                total += end.timestamp() - begin
            elif is_last and is_under_way:
                total += time() - begin
            else:
                written = self._written() if written is None else written
                until = inf if is_last else begins[number + 1]
                total += max([begin, *(at for at in written if at < until)]) - begin
        return total

    def _written(self) -> list[float]:
        folder = self.store.folder
        return [at for name in (PROPERTIES, FAILURES, INCOMING) for at in folder.written(name)]

    def options_with(self, on_failure: OnFailure | None) -> MapOptions:
        """Return the options of the last `map`, with `on_failure` as their policy unless None.

        Raises
        ------
        StoreError
            Where the policy was a function, and none is given.
        """
        options = self.store.manifest["options"]
        if on_failure is None:
            on_failure = options["on_failure"]
        if on_failure is None:
            raise StoreError(
                f"{self.run_id} had a function as on_failure, which {self.store.folder.url} does "
                "not keep: give it again, attach(store, on_failure=...)"
            )
        return MapOptions.from_json(options, on_failure)

    @property
    def code(self) -> str:
        """The fingerprint of the latest code of the run."""
        return str(self.store.manifest["codes"][-1]["fingerprint"])

    def journal(self, universe: Sweep, constants: Collection[str] = ()) -> ResultWriter:
        """Return the writer that writes the outcomes of electrons into the store.

        Parameters
        ----------
        universe
            The inputs, without the constants.
        constants
            Names of these.
        """
        allow_pickle = bool(self.store.manifest["options"]["allow_pickle"])
        writer = None
        if isinstance(universe, Streamed):
            writer = rows_writer(self.store, universe, allow_pickle=allow_pickle)
        journal = ResultWriter(
            self.store,
            self.code,
            universe.inputs_of,
            allow_pickle=allow_pickle,
            constants=constants,
            write_rows=writer,
        )
        journal.unaccepted = self.unaccepted
        return journal

    def to_do(self, journal: ResultWriter) -> Positions:
        """Return the electrons of the view that have not ended."""
        view = self.view
        wanted = range(view.count) if view.electrons is None else np.sort(view.electrons)
        return journal.not_done(wanted)


def state_of(store: Store) -> State:
    """Return the state of a run, ``suspended`` where it was left in the middle."""
    state: State = store.manifest["state"]
    if state not in GOING or living_holder(store.folder) is not None:
        return state
    again: State = store.folder.read_json(MANIFEST)["state"]  # it may just have ended
    return "suspended" if again in GOING else again


def check_usable(url: Any) -> None:
    """Check that a store can be locked, before the user waits hours for workers.

    Raises
    ------
    StoreError
        Where another process holds the store, or it cannot be written to.
    """
    store = Store(Folder(url))
    holder = read_holder(store.folder)
    if holder is None or not holder.detached:  # a detached driver goes on until we have workers
        store.hold()
        store.release()


def begin(
    url: Any,
    run_id: str,
    definition: Definition,
    code: Code,
    sweep: Sweep,
    seed: int | None,
    options: MapOptions,
    *,
    takeover: bool = False,
    accept_changes: bool = False,
) -> StoredRun:
    """Lock a store, a new one or one of the same atom and seed, for a sweep.

    Raises
    ------
    StoreError
        Where another process holds it, it is of another atom or seed or no store at all, or it
        cannot be written to.
    StoreChangedError
        Where the code of the atom differs, or electrons are left to execute in an environment
        that differs, and `accept_changes` is False.
    InvalidSweepError
        Where the sweep has other fields than the store.
    UnstorableError
        Where inputs have no Arrow type, and must not be pickled.
    """
    store = Store(Folder(url))
    store.hold(takeover=takeover)
    try:
        if not store.manifest:
            _create(store, run_id, definition, code, sweep, seed_of(seed), options)
            stored = StoredRun(store, sweep, RowMap(sweep))
        else:
            _check_same(store, definition.id, seed)
            verdict = check_code(store, code, accept=accept_changes)
            stored = StoredRun(store, *_extend(store, sweep, definition, options))
            stored = accept_environment(stored, definition, verdict)
        store.manifest["options"] = options.to_json()
        store.save()
    except BaseException:
        store.release()
        raise
    return stored


def _extend(
    store: Store, sweep: Sweep, definition: Definition, options: MapOptions
) -> tuple[Sweep, RowMap]:
    defaults = definition.defaults
    return extend(store, sweep, allow_pickle=options.allow_pickle, defaults=defaults)


def _create(
    store: Store,
    run_id: str,
    definition: Definition,
    code: Code,
    sweep: Sweep,
    seed: int,
    options: MapOptions,
) -> None:
    described = save_sweep(store, 0, sweep, allow_pickle=options.allow_pickle)
    store.manifest = {
        "run": run_id,
        "atom": {
            "id": definition.id,
            "vectorized": definition.vectorized,
            "target": target_of(definition),
        },
        "seed": str(seed),
        "created": now(),
        "state": "running",
        "options": options.to_json(),
        "codes": [code_entry(code)],
        "sweeps": [{**described, "first": 0}],
        "sessions": [],
    }
    keep_atom(store, definition)


def _check_same(store: Store, atom_id: str, seed: int | None) -> None:
    manifest, url = store.manifest, store.folder.url
    known = manifest["atom"]["id"]
    if known != atom_id:
        raise StoreError(
            f"{url} is the store of a run of {known}, not of {atom_id}: give another folder"
        )
    if seed is not None and seed_of(seed) != int(manifest["seed"]):
        raise StoreError(
            f"{url} was made with seed {manifest['seed']}, not {seed}: give that one, or none, or "
            "another folder"
        )


def accept_environment(
    stored: StoredRun,
    definition: Definition,
    verdict: Literal["none", "accepted"] | StoreChangedError,
) -> StoredRun:
    """Return a run, marked where its environment differs and all its electrons have ended.

    Parameters
    ----------
    verdict
        What `check_code` returned.

    Raises
    ------
    StoreChangedError
        Where the environment differs, the user has not accepted that, and electrons are left to
        execute.
    """
    if verdict == "accepted":
        keep_atom(stored.store, definition)
    if isinstance(verdict, StoreChangedError):
        if not _is_done(stored):
            raise verdict
        what = verdict.event.message.splitlines()[1:-1]
        logger.warning(
            "%s was made with another environment (%s); nothing is left to execute",
            stored.store.folder.url,
            "; ".join(what),
        )
        return replace(stored, unaccepted=verdict)
    return stored


def _is_done(stored: StoredRun) -> bool:
    """Return whether all electrons of the view have ended."""
    if stored.universe.length is None:
        return False
    store, view = stored.store, stored.view
    paths = store.folder.files(PROPERTIES)
    ended = [store.read(path, ["electron"]).column(0).to_numpy() for path in paths]
    wanted = np.arange(view.count) if view.electrons is None else view.electrons
    return bool(ended) and bool(np.isin(wanted, np.concatenate(ended)).all())


def resume(
    url: Any, *, takeover: bool = False, detached: str = "", allow_pickle: bool = True
) -> StoredRun:
    """Lock an existing store.

    Raises
    ------
    StoreHeldError
        Where another process holds it, and shall not be taken over.
    UnstorableError
        Where there may be pickles in it, and these must not be read.
    StoreError
        Where there is none.
    """
    store = Store.existing(url)
    pickled = bool(store.manifest["options"]["allow_pickle"])
    if pickled and not allow_pickle:
        raise UnstorableError(
            f"{store.folder.url} may hold pickles, and reading them runs code of whoever wrote "
            "them: where you trust it, attach(store, allow_pickle=True)"
        )
    store.hold(takeover=takeover, detached=detached)
    try:
        return StoredRun(store, *sweeps_of(store, pickled))
    except BaseException:
        store.release()
        raise


def read_run(url: Any, *, allow_pickle: bool) -> StoredRun:
    """Return the run of a store, without locking the store or writing into it."""
    store = Store.existing(url)
    return StoredRun(store, *sweeps_of(store, allow_pickle))


def stored_atom(stored: StoredRun, *, allow_pickle: bool) -> Definition:
    """Return the copy of the atom in a store, for a process that has not registered the atom.

    An atom of a script or a notebook cannot be imported: its copy is read even without
    `allow_pickle` where this user has signed it.

    Raises
    ------
    RegistrationError
        Where the copy, a pickle, must not be read.
    """
    data = stored.store.folder.read(ATOM)
    signature = str(stored.store.manifest["atom"].get("signature", ""))
    is_ours = stored.atom_id.startswith("__main__.") and is_own(data, signature)
    if not (allow_pickle or is_ours):
        raise RegistrationError(
            f"{stored.store.folder.url} is of the atom {stored.atom_id!r}, which is not registered "
            "here: register it, Atomizer(conductor, atom), or run the copy that the store keeps, "
            "attach(store, allow_pickle=True)"
        )
    return load_atom(data)


def with_stored_values(
    stored: StoredRun, definition: Definition, *, allow_pickle: bool
) -> Definition:
    """Return an atom with the fixed values that a store has for it, where it has none of its own.

    Raises
    ------
    RegistrationError
        Where the copy of the atom in the store, a pickle with these values, must not be read.
    """
    names = [
        name
        for name in stored.store.manifest["atom"].get("fixed", {})
        if name not in fixed_of(definition)
    ]
    if not names:
        return definition
    data = stored.store.folder.read(ATOM)
    signature = str(stored.store.manifest["atom"].get("signature", ""))
    if not (allow_pickle or is_own(data, signature)):
        raise RegistrationError(
            f"{stored.store.folder.url} has fixed values of {', '.join(names)}, in a pickle that "
            "this user has not signed: register functools.partial of the atom with them, or read "
            "the pickle, which runs code of whoever wrote it, by attach(store, allow_pickle=True)"
        )
    values = fixed_of(load_atom(data))
    return bind_fixed(definition, {name: values[name] for name in names})


def stored_target(url: Any) -> str:
    """Return where the atom of a store was loaded from, ``FILE:NAME``; nothing if unknown."""
    return str(Store.existing(url).manifest["atom"].get("target", ""))


def drop(store: Store) -> list[str]:
    """Put the damaged files of a store aside, and return which they are."""
    folder = store.folder
    damaged = store.corrupted(
        [*folder.files(PROPERTIES), *folder.files(FAILURES), *folder.files(MERGING)]
    )
    for name in damaged:
        store.put_aside(name)
    return damaged


def described(store: Store) -> dict[str, Any]:
    """Return the facts about the run in a store, ready for JSON, without source code."""
    manifest = store.manifest
    codes = [
        {name: code[name] for name in ("fingerprint", "since", "versions")}
        for code in manifest["codes"]
    ]
    holder = living_holder(store.folder)
    return {
        "run_id": manifest["run"],
        "atom": manifest["atom"]["id"],
        "fixed": manifest["atom"].get("fixed", {}),
        "seed": int(manifest["seed"]),
        "store": store.folder.url,
        "state": state_of(store),
        "created": manifest["created"],
        "holder": None if holder is None else str(holder),
        "sweep": manifest["sweeps"][-1],
        "options": manifest["options"],
        "codes": codes,
        "sessions": manifest["sessions"],
    }
