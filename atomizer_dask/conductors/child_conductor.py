"""The conductor of an electron that sends others."""

from __future__ import annotations

import itertools
import threading
from typing import Any, TypeVar

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductor import Conductor, Sender
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.electron import Electron
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.calls import execute_first
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.site import Site
from atomizer_dask.future import ElectronFuture

T = TypeVar("T")


class ChildConductor(Conductor):
    """The conductor that an executing electron gets: it sends the electron's children.

    Children have random streams derived from their parent's and from the order in which they are
    sent, so that a spawner gives the same bits wherever its children run.
    """

    def __init__(
        self,
        conductor: BatchConductor,
        origin: Origin,
        root: str,
        stream: RandomStream,
        lease: Lease,
    ) -> None:
        self.id = conductor.id
        self._conductor = conductor
        self._origin = origin
        self._root = root
        self._stream = stream
        # Bound once: a bound method for each of 10,000 futures keeps the garbage collector busy.
        self._give_up_slot = lease.about_to_wait
        self._order = itertools.count()
        self._condition = threading.Condition()
        self._has_announced = False

    @property
    def shares_queue(self) -> bool:  # type: ignore[override]
        """Whether children go along a route, to a queue that other nodes receive from too."""
        return self._origin.route is not None

    def send(self, electron: Electron) -> ElectronFuture:
        """Have a child executed; waiting for its future gives the parent's slot to others."""
        route = self._origin.route
        if route is not None:
            future = ElectronFuture(self._condition, self.about_to_wait)
            sender: Sender = route.conductor()
            return sender.send_with(electron, future)
        future = ElectronFuture(self._condition, self._give_up_slot)
        address = self._stream, next(self._order)
        return self._conductor.send_child(electron, future, address, self._origin, self._root)

    def about_to_wait(self) -> None:
        """Give up the parent's slot, and announce that the parent waits.

        Otherwise a node full of waiting parents would never receive their children.
        """
        self._give_up_slot()
        if self._origin.route is not None and not self._has_announced:
            self._has_announced = True
            self._conductor.announce_waiting(self._origin.channel, self._root)

    def cancel(self, electron_id: str) -> None:
        """Cancel a child, unless children go along a route: then do nothing."""
        if self._origin.route is None:
            self._conductor.cancel_electron(electron_id)

    def close(self) -> None:
        """Do nothing: it belongs to the site."""


class _ReplaySite(Site):
    """The place where an electron is replayed: the calling thread."""

    takes_back = False

    def __init__(self, conductor: BatchConductor) -> None:
        super().__init__()
        self.name = "replay"
        self._conductor = conductor

    def find_atom(self, batch: Batch) -> Definition:
        raise AssertionError("a replay brings its atom along")

    def give_back(self, batch: Batch, stop: int) -> None:
        raise AssertionError("a replay is executed whole")

    def emit(self, channel: str, event: Event) -> None:
        self._conductor.emit(channel, event)

    def release_slot(self) -> None:
        """Do nothing: a replay has no slot."""

    def children(
        self, origin: Origin, root: str, stream: RandomStream, lease: Lease
    ) -> ChildConductor:
        return ChildConductor(self._conductor, origin, root, stream, lease)


def replay(conductor: BatchConductor, batch: Batch, definition: Definition) -> Any:
    """Execute a batch of one electron in this thread, with nothing between it and a debugger.

    Raises
    ------
    Exception
        Whatever the atom raises.
    """
    return execute_first(batch, definition, _ReplaySite(conductor))
