"""Electrons that are sent one by one, bundled into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from itertools import compress
from typing import Any, NamedTuple

from atomizer_dask.batch import Batch, Origin
from atomizer_dask.batching import Size
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.future import ElectronFuture
from atomizer_dask.outcome import Outcome
from atomizer_dask.streams import Stream
from atomizer_dask.sweep import Rows


class Sent(NamedTuple):
    """An electron on its way, with whoever waits for it."""

    electron: Electron
    future: ElectronFuture
    address: tuple[Stream, int]
    version: Any
    origin: Origin

    def group(self) -> Hashable:
        """Return what electrons of one batch must have in common."""
        electron, origin = self.electron, self.origin
        return (
            electron.atom_id,
            self.version,
            electron.copy_state,
            electron.sender_id,
            origin.channel,
            origin.depth,
        )


class ElectronSource:
    """The source of one group of electrons.

    Parameters
    ----------
    example
        Any of them.
    report
        Told of each failure.
    """

    grows = True

    def __init__(self, example: Sent, report: Callable[[AtomizerError], None]) -> None:
        self._example = example
        self._report = report
        self._waiting: deque[Sent] = deque()
        self._under_way: dict[str, list[Sent]] = {}

    @property
    def idle(self) -> bool:
        """Whether it has nothing left to do."""
        return not self._waiting and not self._under_way

    @property
    def channel(self) -> str:
        """Whose electrons they are."""
        return self._example.origin.channel

    @property
    def unfinished(self) -> int:
        """How many are not done."""
        return len(self._waiting) + sum(map(len, self._under_way.values()))

    def add(self, sent: list[Sent]) -> None:
        """Take some more."""
        self._waiting += sent

    def waiting(self) -> int:  # noqa: D102
        return len(self._waiting)

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        count = min(size.electrons, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(count)]
        started = ElectronFuture.start_all([sent.future for sent in taken])
        taken = list(compress(taken, started))
        if not taken:
            return None
        self._under_way[key] = taken
        example = self._example.electron
        return Batch(
            key=key,
            atom_id=example.atom_id,
            version=self._example.version,
            inputs=Rows([sent.electron.payload for sent in taken]),
            first=0,
            stream=[sent.address for sent in taken],
            origin=taken[0].origin,
            ids=[sent.electron.id for sent in taken],
            sender_id=example.sender_id,
            copy_state=example.copy_state,
            seconds=size.seconds,
        )

    def give_back(self, batch: Batch, start: int, stop: int) -> None:  # noqa: D102
        self._waiting.extendleft(reversed(self._under_way[batch.key][start:stop]))

    def deliver(self, batch: Batch, outcome: Outcome) -> None:  # noqa: D102
        taken = self._under_way.pop(batch.key)
        futures = [sent.future for sent in taken[: outcome.kept]]
        properties = list(outcome.properties(batch))
        for failed in outcome.failed:
            error = properties[failed].error
            assert error is not None
            self._report(error)
        ElectronFuture.finish_all(futures, properties)

    def fail(self, error: ConductorError) -> None:  # noqa: D102
        lost = [*self._waiting, *(sent for group in self._under_way.values() for sent in group)]
        self._waiting.clear()
        self._under_way.clear()
        for sent in lost:
            if not sent.future.done():
                sent.future.set_exception(error)
