"""The reports of a conductor to its driver."""

from __future__ import annotations

from dataclasses import dataclass

from atomizer_dask.errors import ConductorError
from atomizer_dask.execution.outcome import BatchOutcome


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A site gives back the electrons of a batch from offset `stop` on."""

    key: str
    stop: int


@dataclass(frozen=True, slots=True, eq=False)  # results may have an `__eq__` of the user's
class Partly:
    """A batch has not ended, but its first electrons have."""

    key: str
    outcome: BatchOutcome


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A batch has ended."""

    key: str
    outcome: BatchOutcome


@dataclass(frozen=True, slots=True)
class Died:
    """The worker that had a batch died; it may have begun with it, or not."""

    key: str
    worker: str


@dataclass(frozen=True, slots=True)
class Expiring:
    """The wall time of a worker is about to end, in the middle of an electron of a batch.

    The electron has run for `ran` seconds. Where it ends in time `Arrived` follows; else `Dropped`
    or `Died`, and the batch returns to its source.
    """

    key: str
    ran: float


@dataclass(frozen=True, slots=True)
class WorkerSilent:
    """The worker of a batch answers nobody, in the middle of one of its electrons."""

    key: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A batch was taken back: before it began, as its worker left, or as its outcome is lost."""

    key: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A batch will never end."""

    key: str
    error: ConductorError


Report = GivenBack | Partly | Arrived | Expiring | WorkerSilent | Died | Dropped | Lost
