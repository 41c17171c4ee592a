"""The state of a conductor and of its workers, for users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    ConductorState: TypeAlias = Literal["connected", "reconnecting", "closed", "gone"]
else:
    ConductorState = str  # see `State` in store/layout.py


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker, as last reported.

    Parameters
    ----------
    address
        The name of the worker in events and frames.
    host
        The machine it is on.
    threads
        How many electrons it executes at a time.
    executing
        How many of its threads are busy.
    memory, memory_limit
        Bytes that its process uses, and may use; None where it has no limit of its own.
    """

    address: str
    host: str
    threads: int
    executing: int
    memory: int
    memory_limit: int | None = None


@dataclass(frozen=True, slots=True)
class ConductorStatus:
    """A conductor and its workers, as last reported.

    Parameters
    ----------
    state
        ``reconnecting`` while the other side does not answer, ``gone`` where it never will.
    address
        Where it carries electrons.
    workers
        The workers, in a fixed order.
    dashboard
        URL of the dashboard of the scheduler; empty where there is none.
    """

    state: ConductorState
    address: str
    workers: tuple[WorkerStatus, ...] = ()
    dashboard: str = ""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The state of a conductor of a message queue, and its counts since it was made.

    Parameters
    ----------
    state
        ``reconnecting`` while the broker does not answer.
    address
        The URL of the broker, without user and password.
    queue
        The queue that electrons are sent to and received from.
    sent, replies
        Electrons sent from here, and how many of them were answered.
    received
        Electrons taken from the queue, each counted once.
    answered, failed
        How many of these were answered, and how many of the answers are failures.
    repeated
        Deliveries of electrons that were received already: these are not executed again.
    given_back
        Electrons returned to the queue.
    dead
        Messages gone to the dead-letter queue.
    in_flight, waiting
        Unanswered electrons, and how many of these wait for others that they sent.
    oldest
        Seconds since the oldest unanswered one was received.
    prefetch
        How many electrons the broker may deliver ahead of their answers.
    reconnects
        How often the connection came back.
    seconds
        Sum over all answered electrons of the time from receiving to answering.
    blocked
        Why the broker takes no messages at present; empty where it does.
    """

    state: ConductorState
    address: str
    queue: str
    sent: int = 0
    replies: int = 0
    received: int = 0
    answered: int = 0
    failed: int = 0
    repeated: int = 0
    given_back: int = 0
    dead: int = 0
    in_flight: int = 0
    waiting: int = 0
    oldest: float = 0.0
    prefetch: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    blocked: str = ""
