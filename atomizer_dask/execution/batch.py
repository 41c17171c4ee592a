"""Batches: electrons of one atom that go to a worker together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from atomizer_dask.atoms.namespaces import HOME
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.atoms.signature import with_values
from atomizer_dask.conductor import Route
from atomizer_dask.console.recorder import Allowance
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ElectronError
from atomizer_dask.sweeps.inputs import Columns, GridSlice, Inputs, Rows, payload_of


class Origin(NamedTuple):
    """Where the electrons of a batch come from; the electrons that they send inherit it.

    Parameters
    ----------
    channel
        The topic to which their events go.
    catalog
        The version of each atom that their sender meant, by atom id.
    depth
        Number of spawners above them. Deeper electrons go first, which bounds the number of
        spawners that wait.
    route
        The `Route` to the queue that they came from: what they send goes to that queue. None where
        there is no such queue.
    priority
        Electrons of a higher priority go first.
    space
        The sender's space, into which outcomes are unpickled; see `namespaces`.
    """

    channel: str = ""
    catalog: Mapping[str, Any] = {}
    depth: int = 0
    route: Route | None = None
    priority: int = 0
    space: str = HOME


class AttemptTerms(NamedTuple):
    """The terms of one attempt: who may execute electrons, and for how long.

    Parameters
    ----------
    attempt
        Which attempt it is, from 1.
    deaths
        How many workers died with them. After one death a child process executes them.
    timeout
        Seconds that each of them may take; None for no limit.
    worker
        Address of the worker to execute them on; a retry sets it. Empty for any.
    excluded
        Addresses of workers to avoid while any other is free; a requeue adds to it.
    min_seconds
        Seconds that they ran until the wall time of their worker cut them off. Only a worker with
        more time left may take them.
    cut_short
        How often a wall time cut them off.
    """

    attempt: int = 1
    deaths: int = 0
    timeout: float | None = None
    worker: str = ""
    excluded: tuple[str, ...] = ()
    min_seconds: float = 0.0
    cut_short: int = 0

    def apart(self) -> AttemptTerms:
        """Return equal terms that are another object.

        Sources bundle electrons whose terms are one object: on these they form their own batch.
        """
        return self._replace()

    def again(self, worker: str, *, elsewhere: bool) -> AttemptTerms:
        """Return the terms of the next attempt, after one that failed on `worker`."""
        attempt = self.attempt + 1
        if elsewhere:
            return self._replace(attempt=attempt, worker="", excluded=(*self.excluded, worker))
        return self._replace(attempt=attempt, worker=worker)


FIRST = AttemptTerms()


class StoreTarget(NamedTuple):
    """The store that the results of a batch go to.

    Parameters
    ----------
    url
        URL of its folder.
    token
        Random id in the lock file. A worker compares it to see whether its path is the client's
        folder or another of the same name.
    code
        The fingerprint of the atom's code.
    allow_pickle
        Whether results that have no Arrow type may be pickled.
    gather_rows, gather_bytes
        A batch with fewer rows and fewer bytes travels to the client, which stores it.
    constants
        Names of inputs that the files do not have, for they are the same for all electrons. Outputs
        have no such names there all the same.
    """

    url: str
    token: str
    code: str
    allow_pickle: bool
    gather_rows: int
    gather_bytes: int
    constants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)  # inputs may have an `__eq__` of the user's
class Batch:
    """Some electrons of one atom, as they travel.

    Parameters
    ----------
    key
        Id of this lease.
    atom_id, version
        Id of the atom, and its version: what a site needs to find it.
    inputs
        The payloads.
    positions
        Positions of the electrons in the sweep of their run.
    stream
        The family of random streams, in which electron i of the run has index i. For electrons
        that other electrons sent, a list of a family and an index each. None for electrons sent by
        hand: their streams follow from their ids.
    origin
        Where they come from.
    terms
        The terms of this attempt.
    roots
        For each electron the id of the run, or of the electron sent by hand, that it descends
        from: to cancel that cancels it too. None where no other electron sent them.
    earlier
        For each electron the errors of its earlier attempts; None where there were none.
    epoch
        How often the run had been stopped when the batch was made.
    run_id
        Empty for electrons that were sent one by one.
    root_id
        The id by which a run and its descendants are stopped.
    ids, sender_ids
        Their ids and the ids of their senders, where they were sent one by one.
    copy_state
        Whether an atom in class form processes with copies of the registered instance.
    seconds
        The time box: after so many seconds the rest returns to the queue.
    longest
        Seconds that electrons like these have lately taken at most; 0 where that is not known.
    sink
        The store that results go to; None where there is none.
    due_seconds
        Seconds until its turn among the batches of all sources; see `fair_share`.
    code
        A digest of the user's own code among its inputs, set by the worker that unpickles it.
    allowance
        How much is kept of what they print; None where that goes where prints of the process go.
    shared
        Fixed values that do not travel with the atom, by name: Futures of Dask, on their way.
    """

    key: str
    atom_id: str
    version: Any
    inputs: Inputs
    positions: range | np.ndarray
    stream: RandomStream | list[tuple[RandomStream, int]] | None
    origin: Origin
    terms: AttemptTerms = FIRST
    roots: list[str] | None = None
    earlier: list[tuple[ElectronError, ...]] | None = None
    epoch: int = 0
    run_id: str = ""
    root_id: str = ""
    ids: list[str] | None = None
    sender_ids: list[str] | None = None
    copy_state: bool = False
    seconds: float = 0.2
    longest: float = 0.0
    sink: StoreTarget | None = None
    due_seconds: float = 0.0
    code: str = ""
    shared: Mapping[str, Any] | None = None
    allowance: Allowance | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def space(self) -> str:
        """The space of the atom, into which inputs are unpickled; home in this process."""
        if not isinstance(self.version, str):
            return HOME
        return f"{self.version}/{self.code}" if self.code else self.version

    def electron_id(self, offset: int) -> str:
        """Return the id of the electron at `offset`."""
        if self.ids is not None:
            return self.ids[offset]
        return f"{self.run_id}-{self.positions[offset]}"

    def address(self, offset: int) -> tuple[RandomStream, int]:
        """Return the family and index of the random stream of the electron at `offset`."""
        if isinstance(self.stream, RandomStream):
            return self.stream, int(self.positions[offset])
        if self.stream is None:
            return RandomStream.of_id(self.electron_id(offset)), 0
        return self.stream[offset]

    def addresses_of(self, offset: int, count: int) -> tuple[RandomStream, np.ndarray]:
        """Return family and indices of `count` electrons, which share one family."""
        if isinstance(self.stream, RandomStream):
            indices = self.positions[offset : offset + count]
            if isinstance(indices, range):
                return self.stream, np.arange(indices.start, indices.stop, dtype=np.uint64)
            return self.stream, indices.astype(np.uint64)
        stream, index = self.address(offset)
        return stream, np.array([index], dtype=np.uint64)

    def electron(self, offset: int) -> Electron:
        """Return the electron at `offset` as a record."""
        options: dict[str, Any] = {}  # checking one takes longer than the rest of a record
        if self.copy_state:
            options["copy_state"] = True
        if self.terms.timeout is not None:
            options["timeout"] = self.terms.timeout
        return Electron(
            self.atom_id,
            self.payload(offset),
            id=self.electron_id(offset),
            sender_id="" if self.sender_ids is None else self.sender_ids[offset],
            **options,
        )

    def root(self, offset: int) -> str:
        """Return the root id that electrons sent by the one at `offset` inherit."""
        inherited = "" if self.roots is None else self.roots[offset]
        return inherited or self.root_id or self.electron_id(offset)

    def descendants(self, root: str) -> list[int]:
        """Return the offsets of the electrons that are `root`, or descend from it."""
        return [
            offset
            for named in (self.ids, self.roots)
            if named is not None
            for offset, name in enumerate(named)
            if name == root
        ]

    def failures(self, offset: int) -> tuple[ElectronError, ...]:
        """Return what the earlier attempts of the electron at `offset` failed with."""
        return () if self.earlier is None else self.earlier[offset]

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function of the atom with the fixed values that travel with the batch."""
        return with_values(function, self.shared) if self.shared else function

    def payload(self, offset: int) -> Any:
        """Return the payload of the electron at `offset`, a copy for it alone."""
        return payload_of(self.cut(offset, offset + 1))

    def cut(self, start: int, stop: int) -> Inputs:
        """Return the inputs from one offset to another."""
        inputs = self.inputs
        if isinstance(inputs, Rows):
            return Rows(inputs.payloads[start:stop])
        if isinstance(inputs, GridSlice):
            return replace(inputs, start=inputs.start + start, stop=inputs.start + stop)
        data = {name: values[start:stop] for name, values in inputs.data.items()}
        return Columns(data, stop - start, inputs.scalars)

    def part(self, start: int, stop: int) -> Batch:
        """Return the electrons from one offset to another as a batch."""
        cut: dict[str, Sequence[Any]] = {
            name: values[start:stop]
            for name, values in (
                ("ids", self.ids),
                ("sender_ids", self.sender_ids),
                ("roots", self.roots),
                ("earlier", self.earlier),
            )
            if values is not None
        }
        if isinstance(self.stream, list):
            cut["stream"] = self.stream[start:stop]
        inputs, positions = self.cut(start, stop), self.positions[start:stop]
        return replace(self, inputs=inputs, positions=positions, **cut)  # type: ignore[arg-type]


Positions: TypeAlias = range | np.ndarray
