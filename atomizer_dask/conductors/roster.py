"""The conductors of an atomizer: which there are, which of them are lost, which one is used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Protocol

from atomizer_dask.atoms.definition import Definition, fixed_of
from atomizer_dask.conductor import Conductor, Listener, Route
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.memory import MemoryConductor
from atomizer_dask.conductors.receiver import Executor, Receiver
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ConductorError
from atomizer_dask.future import ElectronFuture
from atomizer_dask.properties import Properties


class RosterOwner(Listener, Executor, Protocol):
    """The atomizer: conductors ask it for atoms, receivers have it execute what they receive."""

    @property
    def atoms(self) -> dict[str, Definition]:
        """The atoms that it knows, by id."""


class Roster:
    """The conductors of an atomizer.

    Parameters
    ----------
    owner
        The atomizer.
    under_way
        The set that holds the futures of received electrons that are being executed.

    Attributes
    ----------
    conductors
        By id, in the order in which they are tried.
    """

    def __init__(self, owner: RosterOwner, under_way: set[Future[Properties]]) -> None:
        self.conductors: dict[str, Conductor] = {}
        self._owner = owner
        self._under_way = under_way
        self._given: dict[str, Conductor] = {}
        self._lost: dict[str, ConductorError] = {}
        self._receivers: dict[str, Receiver] = {}
        self._inner: MemoryConductor | None = None  # executes received electrons
        self._known_executor: BatchConductor | None = None
        self._lock = threading.RLock()

    # -- who is there ---------------------------------------------------------------------------

    def add(self, conductor: Conductor) -> None:
        """Add a conductor, which is closed with the atomizer; it replaces one of the same id."""
        self.conductors[conductor.id] = conductor
        self._given[conductor.id] = conductor
        self._known_executor = None

    def add_shared(self, conductors: Iterable[Conductor]) -> None:
        """Add conductors that are registered for all, where there is none of their id."""
        for conductor in conductors:
            self.conductors.setdefault(conductor.id, conductor)
        self._known_executor = None

    def attach(self, conductor: Conductor) -> None:
        """Have a conductor ask the atomizer for atoms, and publish those known so far."""
        conductor.attach(self._owner)
        if isinstance(conductor, BatchConductor):
            for definition in self._owner.atoms.values():
                conductor.publish(definition)

    def publish(self, definition: Definition) -> None:
        """Publish an atom through all conductors that carry batches."""
        for conductor in self.of_batches():
            conductor.publish(definition)

    def of_batches(self) -> list[BatchConductor]:
        """Return the conductors that carry batches, and so can run sweeps."""
        return [c for c in self.conductors.values() if isinstance(c, BatchConductor)]

    @property
    def threads(self) -> int:
        """How many electrons they execute at a time, as last seen; without any, this machine."""
        threads = sum(c.threads for c in self.of_batches() if c.id not in self._lost)
        return threads or os.cpu_count() or 1

    def lose(self, conductor: Conductor, error: ConductorError) -> None:
        """Note that a conductor has failed; the others go on."""
        self._lost[conductor.id] = error

    # -- who carries what -----------------------------------------------------------------------

    def send(self, electron: Electron, definition: Definition | None) -> ElectronFuture:
        """Send an electron through the first conductor that takes it."""
        while True:
            conductor = self.first(self.conductors.values())
            try:
                if isinstance(conductor, BatchConductor) and definition is not None:
                    return conductor.send_as(electron, definition)
                return _awaitable(conductor.send(_with_fixed(electron, definition)))
            except ConductorError as error:
                self._lost[conductor.id] = error

    def for_sweep(self) -> BatchConductor:
        """Return the first conductor that is still there and can carry a sweep.

        Raises
        ------
        ConductorError
            Where there is none.
        """
        conductor = self.first(self.of_batches(), "that can run a sweep ")
        assert isinstance(conductor, BatchConductor)
        return conductor

    def check_any(self) -> None:
        """Raise where there were conductors, and none is left."""
        if self.conductors:
            self.first(self.conductors.values())

    def first(self, conductors: Iterable[Conductor], what: str = "") -> Conductor:
        """Return the first of some conductors that is still there.

        Raises
        ------
        ConductorError
            Where there is none.
        """
        candidates = list(conductors)
        if not candidates:
            raise ConductorError(
                f"no conductor {what if self.conductors else ''}is registered; give the atomizer "
                "one: Atomizer(DaskConductor(), ...) or Atomizer(MemoryConductor(), ...)"
            )
        for conductor in candidates:
            if conductor.id in self._lost:
                continue
            try:
                if isinstance(conductor, BatchConductor):
                    conductor.check_open()
            except ConductorError as error:
                self._lost[conductor.id] = error
            else:
                return conductor
        raise ConductorError(
            f"no conductor is left: {', '.join(str(self._lost[c.id].event) for c in candidates)}"
        )

    # -- receiving ------------------------------------------------------------------------------

    def start_receiving(self) -> None:
        """Receive from all conductors; from shared queues only where the atomizer has atoms."""
        for conductor in list(self.conductors.values()):
            before = self._receivers.get(conductor.id)
            if before is not None and before.conductor is conductor and not before.has_given_up:
                continue
            if conductor.shares_queue and not self._owner.atoms:
                continue
            receiver = Receiver(conductor, self._owner, self._under_way)
            self._receivers[conductor.id] = receiver
            receiver.start()

    def execute(
        self, electron: Electron, definition: Definition, route: Route | None
    ) -> ElectronFuture:
        """Have a received electron executed, by a conductor of batches or in this process."""
        try:
            return self._executor().send_as(electron, definition, route)
        except ConductorError:  # it has just been lost, perhaps not the only one
            self._known_executor = None
            return self._executor().send_as(electron, definition, route)

    def _executor(self) -> BatchConductor:
        """Return what executes received electrons: the first conductor that can, or this process.

        Looked up anew only where one was added or lost: this is called 10,000 times a second.
        """
        if self._known_executor is None:
            self._known_executor = self.for_sweep() if self.of_batches() else self._in_here()
        return self._known_executor

    def _in_here(self) -> MemoryConductor:
        """Return what executes electrons in this process, where no conductor of ours does."""
        with self._lock:
            if self._inner is None:
                self._inner = MemoryConductor(id="inner")
                self._inner.attach(self._owner)
            return self._inner

    def note_waiting(self, electron_id: str) -> None:
        """Notify the conductors, one of which received an electron, that it waits for children."""
        for conductor in self.conductors.values():
            conductor.note_waiting(electron_id)

    # -- ending ---------------------------------------------------------------------------------

    def join(self, left: Callable[[], float | None]) -> bool:
        """Wait for children of free spawners while seconds are `left`; return whether all ended."""
        return all(c.join(left()) for c in self.of_batches() if c.id not in self._lost)

    def close(self) -> None:
        """Close the conductors that were given, detach from all, whatever any of them raises."""
        with ExitStack() as stack:
            if self._inner is not None:
                stack.callback(self._inner.close)
            for attached in self.conductors.values():
                stack.callback(attached.detach, self._owner)
            for conductor in self._given.values():
                stack.callback(conductor.close)


def _with_fixed(electron: Electron, definition: Definition | None) -> Electron:
    """Return an electron with the fixed values of its atom in its payload, for other programs."""
    fixed = {} if definition is None else fixed_of(definition)
    if not fixed:
        return electron
    own = object.__new__(type(electron))
    own.__dict__.update(electron.__dict__, payload={**(electron.payload or {}), **fixed})
    return own


def _awaitable(future: Future[Properties]) -> ElectronFuture:
    """Return what a conductor gave as a future that can be awaited."""
    if isinstance(future, ElectronFuture):
        return future
    awaitable = ElectronFuture()

    def copy(done: Future[Properties]) -> None:
        if done.cancelled():
            awaitable.cancel()
            return
        error = done.exception()
        if error is None:
            awaitable.set_result(done.result())
        else:
            awaitable.set_exception(error)

    future.add_done_callback(copy)
    return awaitable
