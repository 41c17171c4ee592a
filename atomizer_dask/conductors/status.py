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
