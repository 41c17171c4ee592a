"""The messages of workers to a conductor, on the topic that is the conductor's channel.

Dask's topics carry numbers, texts, bytes and tuples of these, so a message travels as its
kind and its fields. Objects of the user's travel pickled in a field.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args


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
_TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(WorkerMessage)}


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
    message: WorkerMessage = _TYPES[kind](*fields)
    return message
