"""How a conductor is, for whoever looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConductorState = Literal["connected", "reconnecting", "closed", "gone"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What executes electrons, as last heard of.

    Parameters
    ----------
    address
        By which events and frames name it.
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
    """A conductor and its workers, as last heard of.

    Parameters
    ----------
    state
        ``reconnecting`` while the other side does not answer, ``gone`` where it never will.
    address
        Where it carries electrons.
    workers
        What executes them, in a fixed order.
    dashboard
        URL of the dashboard of the scheduler; empty where there is none.
    """

    state: ConductorState
    address: str
    workers: tuple[WorkerStatus, ...] = ()
    dashboard: str = ""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How a conductor of a message queue is, and what it has done since it was made.

    Parameters
    ----------
    state
        ``reconnecting`` while the broker does not answer.
    address
        Of the broker, without who we are to it.
    queue
        That electrons go to and come from.
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
        How many the broker may leave with us at a time, beside those.
    reconnects
        How often the connection came back.
    seconds
        From receiving to answering, of all that were answered together.
    blocked
        Why the broker takes nothing just now; empty where it does.
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
