"""The messages between clients, workers and our plugins on the scheduler, which are Dask's events.

::

    worker                 ── `WorkerMessage` ──▶   conductor, on the topic that is its channel
    client, leaving worker ── `TaskMessage`   ──▶   plugins on the scheduler, a topic for each kind
    plugins, leaving worker ── `TaskMessage`  ──▶   clients that subscribed to its topic

Topics carry numbers, texts, bytes, and tuples and dicts of these, so that a message travels as its
fields. Objects of the user's travel pickled in a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from atomizer_dask.events import Level


class BatchGivenBack(NamedTuple):
    """The worker gives back the electrons of a batch from offset `stop` on."""

    key: str
    stop: int


class BatchPartly(NamedTuple):
    """The first electrons of a batch have ended; `outcome` is packed."""

    key: str
    outcome: bytes


class BatchArrived(NamedTuple):
    """A batch has ended; its outcome is small enough to ride along, packed."""

    key: str
    outcome: bytes


class BatchExpiring(NamedTuple):
    """The worker's wall time is about to end, `ran` seconds into an electron of a batch."""

    key: str
    ran: float


class ElectronHandedOn(NamedTuple):
    """A worker leaves before a child sent there has begun; `sent` is a pickled `Sent`."""

    sent: bytes


class BatchHandedOn(NamedTuple):
    """A worker leaves while a batch of children is under way; `handed` is a pickled `Handed`."""

    handed: bytes


class SpawnerWaiting(NamedTuple):
    """An electron that came from a queue waits for others that it sent."""

    electron_id: str


class EventsEmitted(NamedTuple):
    """Electrons emitted events; `events` is a pickled list of them."""

    events: bytes


class ErrorReported(NamedTuple):
    """Something went wrong that is no electron's failure; `error` is a pickled exception."""

    error: bytes


class TaskAdopted(NamedTuple):
    """A client wants a task that another client has submitted."""

    key: tuple[str, ...]
    client: str


class AtomsClaimed(NamedTuple):
    """Which versions of atoms a client needs from now on, and no longer."""

    client: str
    needed: list[str]
    unneeded: list[str]


class DemandChanged(NamedTuple):
    """How many electrons a client still has to be executed, and the seconds they will take."""

    client: str
    electrons: int
    seconds: float


class OutcomesStored(NamedTuple):
    """The outcomes of tasks of a run are in its store; of all its tasks where `keys` is None."""

    run: str
    keys: list[tuple[str, ...]] | None


class TaskHandedOn(NamedTuple):
    """A worker leaves while its children are under way: the clients of a channel get their task."""

    key: tuple[str, ...]
    channel: str


class WorkerLeaving(NamedTuple):
    """A worker takes no more batches.

    Parameters
    ----------
    worker
        The address of the worker.
    final
        Whether this is the last message: its end is no death.
    retired
        Whether it is retired; otherwise its wall time is about to end.
    number
        Of the farewells of this worker, the number of this one, which the scheduler acknowledges.
    """

    worker: str
    final: bool
    retired: bool = False
    number: int = 0


class BufferMissing(NamedTuple):
    """A worker needs a large buffer that its host does not have; see `large_buffers`."""

    digest: str
    nbytes: int
    worker: str


class WorkerIdle(NamedTuple):
    """A worker that is there does nothing, or is back, and what was done about it.

    Parameters
    ----------
    worker
        The address of the worker.
    text
        For an event about the worker; empty for none.
    level
        The level of that event.
    dropped, begun
        Keys of tasks that the scheduler took back: the worker had not begun them, or may have.
    rest
        Keys of tasks of which all but the running electron go to others.
    restarted
        Whether it is being restarted.
    name
        The name of a worker that is being restarted, by which its cluster knows it.
    """

    worker: str
    text: str = ""
    level: Level = "warning"
    dropped: Sequence[tuple[str, ...]] = ()
    begun: Sequence[tuple[str, ...]] = ()
    rest: Sequence[tuple[str, ...]] = ()
    restarted: bool = False
    name: Any = None


WorkerMessage = (
    BatchGivenBack
    | BatchPartly
    | BatchArrived
    | BatchExpiring
    | ElectronHandedOn
    | BatchHandedOn
    | SpawnerWaiting
    | EventsEmitted
    | ErrorReported
)
_WORKER_MESSAGES: dict[str, Any] = {kind.__name__: kind for kind in get_args(WorkerMessage)}
TaskMessage = (
    TaskAdopted
    | AtomsClaimed
    | DemandChanged
    | OutcomesStored
    | TaskHandedOn
    | WorkerLeaving
    | WorkerIdle
    | BufferMissing
)
TOPICS: dict[Any, str] = {
    TaskAdopted: "atomizer-adopted",
    AtomsClaimed: "atomizer-claims",
    DemandChanged: "atomizer-demand",
    OutcomesStored: "atomizer-settled",
    TaskHandedOn: "atomizer-handed",
    WorkerLeaving: "atomizer-leaving",
    WorkerIdle: "atomizer-idle",
    BufferMissing: "atomizer-missing",
}
_TASK_MESSAGES = {topic: kind for kind, topic in TOPICS.items()}


def to_topic(message: WorkerMessage) -> tuple[Any, ...]:
    """Return a message as the tuple that travels.

    >>> to_topic(BatchGivenBack("batch", 3))
    ('BatchGivenBack', 'batch', 3)
    """
    return type(message).__name__, *message


def from_topic(parts: Any) -> WorkerMessage:
    """Return the message that came as these parts.

    >>> from_topic(["BatchGivenBack", "batch", 3])
    BatchGivenBack(key='batch', stop=3)
    """
    kind, *fields = parts
    message: WorkerMessage = _WORKER_MESSAGES[kind](*fields)
    return message


def as_event(message: TaskMessage) -> dict[str, Any]:
    """Return a message as the arguments with which Dask logs an event.

    >>> as_event(TaskHandedOn(("batch", "atomizer-once"), "channel"))["topic"]
    'atomizer-handed'
    """
    return {"topic": TOPICS[type(message)], "msg": message._asdict()}


def of_event(topic: str, msg: Any) -> TaskMessage | None:
    """Return the message of an event; None where the event is none about tasks.

    >>> of_event("atomizer-handed", {"key": ("batch",), "channel": "channel"})
    TaskHandedOn(key=('batch',), channel='channel')
    """
    kind = _TASK_MESSAGES.get(topic)
    return None if kind is None else kind(**msg)
