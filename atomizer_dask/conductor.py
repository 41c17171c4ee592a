"""`Conductor`, which carries electrons to where they are executed: subclass it for a transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Protocol, Self, TypeVar

import dask

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.display.completion import offers
from atomizer_dask.display.text import brief
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError, text_of
from atomizer_dask.events import Event
from atomizer_dask.future import ElectronFuture
from atomizer_dask.properties import Properties
from atomizer_dask.sweeps.lazy_values import check_payload

T = TypeVar("T")


@offers("close complete id receive send")
class Conductor(ABC):
    """Carries electrons to where they are executed, and their properties back.

    A conductor sends, or receives, or both. `Atomizer` iterates over `receive` in a thread of its
    own, executes the electrons, and gives each outcome to `complete`.

    Attributes
    ----------
    id
        Names it in events, and among the conductors of an atomizer.
    shares_queue
        Whether others may receive the same electrons: an atomizer without atoms then receives none.
    route
        The `Route` by which any process reaches the queue of received electrons: what they send
        goes to that queue too. None where it is sent like everything else.
    """

    id: str = ""
    shares_queue: bool = False
    route: Route | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.id:
            cls.id = cls.__name__

    def receive(self) -> Iterator[Electron]:
        """Yield electrons that others sent, until it is closed; the default receives none."""
        return iter(())

    def complete(self, properties: Properties) -> None:
        """Answer an electron that `receive` gave."""
        raise ConductorError(Event("this conductor receives nothing", conductor_id=self.id))

    def text_of(self, error: BaseException) -> str:
        """Return the text of an error for whoever sent an electron that `receive` gave."""
        return text_of(error)

    def give_back(self, electron_id: str) -> None:
        """Return an electron that `receive` gave and that could not be executed here."""
        raise ConductorError(
            Event("this conductor takes nothing back", electron_id, conductor_id=self.id)
        )

    def stop_receiving(self) -> None:  # noqa: B027 - most receive nothing
        """Receive no more electrons; those received are answered or given back."""

    def note_waiting(self, electron_id: str) -> None:  # noqa: B027 - most have no limit
        """Note that an electron, perhaps one of `receive`, waits for others that it sent."""

    def attach(self, listener: Listener) -> None:  # noqa: B027 - most have no events
        """Ask `listener` for atoms, and send it events and errors."""

    def detach(self, listener: Listener) -> None:  # noqa: B027 - most have no events
        """Undo `attach`."""

    def send(self, electron: Electron) -> Future[Properties]:
        """Have an electron executed; the default sends none.

        Returns
        -------
        concurrent.futures.Future
            Of its Properties; a failed electron has Properties like any other.

        Raises
        ------
        ConductorError
            Where it does not send, is closed, or its other side is gone.
        """
        raise ConductorError(Event("this conductor sends nothing", conductor_id=self.id))

    @abstractmethod
    def close(self) -> None:
        """Release what it holds; closing twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Route(Protocol):
    """How to reach a queue from any process; it travels with electrons that came from there."""

    def conductor(self) -> Sender:
        """Return the sender to that queue in this process."""


class Sender(Protocol):
    """Sends electrons along a route."""

    def send_with(self, electron: Electron, future: ElectronFuture) -> ElectronFuture:
        """Have an electron executed, and give its outcome to `future`."""


class Listener(Protocol):
    """The atomizer, as a conductor sees it: it has the atoms, and takes events and errors."""

    @property
    def threads(self) -> int:
        """How many electrons it can have executed at a time."""

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for others that it sent."""

    def find(self, atom_id: str) -> Definition | None:
        """Return the atom of that id."""

    def emit(self, event: Event) -> None:
        """Note an event."""

    def report(self, error: AtomizerError) -> None:
        """Note an error."""


def check_electron(electron: Any) -> None:
    """Refuse an electron that cannot be carried as its sender means it.

    Raises
    ------
    TypeError
        Where `electron` is no Electron, or is sent within `dask.annotate`.
    InvalidSweepError
        Where its payload holds what can be no input, as a future; see `lazy_values`.
    """
    if not isinstance(electron, Electron):
        raise TypeError(f"expected an Electron, got {type(electron).__name__} {brief(electron)}")
    check_payload(electron.payload)
    refuse_annotations()


_INSTEAD = {
    "priority": "priority= of map and send",
    "retries": "on_failure='requeue' and max_attempts= of map and send",
    "workers": "a DaskConductor of a cluster that has just these workers",
    "allow_other_workers": "a DaskConductor of a cluster that has just the workers wanted",
    "resources": "a DaskConductor of a cluster whose workers all have them",
}
_NOTHING = "nothing: leave it out"


def refuse_annotations() -> None:
    """Raise where electrons are sent within `dask.annotate`, which is for tasks of Dask's own.

    Raises
    ------
    TypeError
        Where annotations are set; the message names them, and what to use instead.
    """
    asked = dask.get_annotations()
    if asked:
        instead = "; ".join(f"{name}: {_INSTEAD.get(name, _NOTHING)}" for name in asked)
        raise TypeError(
            f"dask.annotate({', '.join(f'{k}={v!r}' for k, v in asked.items())}) has no effect on "
            f"electrons, so that they are not sent within it. Instead of {instead}"
        )
