"""The ledger: what is known of the electrons of a run, for whoever works on it or looks at it.

One thread writes, that of the conductor's dispatcher; any may read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Literal

import numpy as np

from atomizer_dask.batch import Batch, Origin, Terms
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Wakeups
from atomizer_dask.frame import Part
from atomizer_dask.properties import Properties
from atomizer_dask.streams import Stream
from atomizer_dask.sweep import Columns

State = Literal["running", "paused", "finished", "cancelled", "failed"]
RATE_SECONDS = 5.0


class Ledger:
    """What is known of the electrons of a run.

    Parameters
    ----------
    run_id, atom_id
        Whose electrons they are.

    Attributes
    ----------
    changed
        Notified of every change.
    parts
        What became of the electrons. A later part replaces what an earlier one told of.
    history
        What earlier attempts failed with, by position.
    done, failed
        How many ended well, and in a failure.
    """

    def __init__(self, run_id: str, atom_id: str) -> None:
        self.changed = threading.Condition()
        self.wakeups = Wakeups()
        self.state: State = "running"
        self.error: AtomizerError | None = None
        self.parts: list[Part] = []
        self.history: dict[int, tuple[ElectronError, ...]] = {}
        self.done = 0
        self.failed = 0
        self._run_id = run_id
        self._atom_id = atom_id
        self._started = monotonic()
        self._seconds: float | None = None
        self._times: deque[tuple[float, int]] = deque([(self._started, 0)])

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, unless somebody tries again."""
        return self._seconds is not None

    def rate(self) -> float:
        """Return electrons per second, lately or, at the end, overall."""
        with self.changed:
            known = self.done + self.failed
            if self._seconds is not None:
                return known / max(self._seconds, 1e-9)
            before, count = self._times[0]
            return (known - count) / max(monotonic() - before, 1e-9)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, and return whether it has."""
        with self.changed:
            return self.changed.wait_for(lambda: self.ended, timeout)

    def snapshot(self) -> list[Part]:
        """Return the parts so far."""
        with self.changed:
            return list(self.parts)

    def missing(self, count: int) -> np.ndarray:
        """Return which of the positions up to `count` have no outcome."""
        missing = np.ones(count, dtype=bool)
        for part in self.parts:
            missing[np.asarray(part.current().positions)] = False
        return np.flatnonzero(missing)

    def told_of(self, part: Part) -> Batch:
        """Return the electrons of a part as a batch without inputs, which no outcome needs."""
        earlier = None
        if part.attempt > 1:
            earlier = [self.history.get(position, ()) for position in map(int, part.positions)]
        return Batch(
            key="",
            atom_id=self._atom_id,
            version=None,
            inputs=Columns({}, len(part.positions)),
            positions=part.positions,
            stream=Stream(0),
            origin=Origin(),
            terms=Terms(part.attempt),
            earlier=earlier,
            run_id=self._run_id,
        )

    def properties_of(self, part: Part) -> Iterator[Properties]:
        """Yield the Properties of the electrons that a part tells of last."""
        part = part.current()
        return part.outcome.properties(self.told_of(part))

    # -- for the one who writes --------------------------------------------------------------

    def add(self, part: Part) -> None:
        """Take down what became of some electrons."""
        failed = len(part.outcome.failed)
        again = 0 if part.replaced is None else int(part.replaced.sum())
        now = monotonic()
        with self.changed:
            self.parts.append(part)
            self.failed += failed - again
            self.done += len(part.outcome) - failed
            self._times.append((now, self.done + self.failed))
            while len(self._times) > 2 and self._times[1][0] < now - RATE_SECONDS:
                self._times.popleft()
            self.changed.notify_all()
            self.wakeups.wake()

    def strike_out(self, part: Part, again: np.ndarray) -> None:
        """Note which of the failed electrons of a part, by a mask, a later part will tell of."""
        with self.changed:
            part.replaced = again if part.replaced is None else part.replaced | again
            self.failed -= int(again.sum())

    def remember(self, position: int, error: ElectronError) -> None:
        """Note what an attempt failed with that is not the last."""
        self.history[position] = (*self.history.get(position, ()), error.bare())

    def set_state(self, state: State, *, ended: bool = False) -> None:
        """Note what the run is doing."""
        with self.changed:
            self.state = state
            if ended:
                self._seconds = monotonic() - self._started
            self.changed.notify_all()
            self.wakeups.wake()

    def reopen(self) -> None:
        """Note that a run that had ended goes on."""
        assert self._seconds is not None
        with self.changed:
            self._started = monotonic() - self._seconds
            self._times = deque([(monotonic(), self.done + self.failed)])
            self._seconds = None
            self.state = "running"
