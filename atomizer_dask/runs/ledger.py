"""The ledger: what is known of the electrons of a run.

Only the conductor's dispatcher thread writes to it; any thread may read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from time import monotonic

import numpy as np

from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Wakeups
from atomizer_dask.execution.batch import AttemptTerms, Batch, Origin
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.interruptible import blocking, wait_for
from atomizer_dask.properties import Properties
from atomizer_dask.runs.output_log import OutputLog
from atomizer_dask.store.layout import State
from atomizer_dask.store.stored_part import Part, StoredPart
from atomizer_dask.store.tables import Failed
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.sweeps.inputs import Columns

RATE_SECONDS = 5.0


class Ledger:
    """What is known of the electrons of a run.

    Parameters
    ----------
    run_id, atom_id
        Ids of the run and of its atom.

    Attributes
    ----------
    changed
        Condition that is notified of every change.
    parts
        Outcomes of the electrons, in the order of arrival. Where an electron is in two parts, the
        later one counts.
    output
        What the electrons have printed.
    history
        Errors of the superseded attempts of an electron, by position.
    done, failed, cancelled
        How many electrons ended well; how many failed; how many of the failed were cancelled.
    """

    def __init__(self, run_id: str, atom_id: str) -> None:
        self.changed = threading.Condition()
        self.wakeups = Wakeups()
        self.state: State = "running"
        self.error: AtomizerError | None = None
        self.parts: list[Part] = []
        self.history: dict[int, tuple[ElectronError, ...]] = {}
        self.output = OutputLog()
        self.done = 0
        self.failed = 0
        self.cancelled = 0
        self._run_id = run_id
        self._atom_id = atom_id
        self._started = monotonic()
        self._before = 0  # electrons that had ended in earlier processes
        self._earlier = 0.0  # seconds that earlier processes worked on the run
        self._seconds: float | None = None
        self._paused = 0.0  # seconds
        self._paused_at: float | None = None
        self._times: deque[tuple[float, int]] = deque([(self._started, 0)])

    @property
    def ended(self) -> bool:
        """Whether no more outcomes arrive, unless a user retries failed electrons."""
        return self._seconds is not None

    @property
    def seconds(self) -> float:
        """Seconds that the run has been under way, in earlier processes too."""
        with self.changed:
            now = monotonic() - self._started if self._seconds is None else self._seconds
            return self._earlier + now

    @property
    def _ended(self) -> int:
        """How many electrons have ended, not counting cancelled ones."""
        return self.done + self.failed - self.cancelled

    def rate(self) -> float:
        """Return electrons per second: over the last seconds, or overall once the run has ended."""
        with self.changed:
            known = self._ended - self._before
            if self._seconds is not None:
                working = self._seconds - self._paused
                return known / working if known > 0 and working > 0 else 0.0
            before, count = self._times[0]
            return (known - count) / max(monotonic() - before, 1e-9)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, and return whether it has."""
        with blocking():
            return wait_for(self.changed, lambda: self.ended, timeout)

    def snapshot(self) -> list[Part]:
        """Return the parts so far."""
        with self.changed:
            return list(self.parts)

    def missing(self, count: int) -> np.ndarray:
        """Return which of the positions up to `count` have no outcome."""
        missing = np.ones(count, dtype=bool)
        for part in self.parts:
            for known in map(RunPart.current, part.load()):
                missing[numpy_values(known.positions)] = False
        return np.flatnonzero(missing)

    def batch_of(self, part: RunPart) -> Batch:
        """Return the electrons of a part as a batch without inputs: outcomes need none."""
        earlier = None
        if part.attempt > 1:
            earlier = [self.history.get(position, ()) for position in map(int, part.positions)]
        return Batch(
            key="",
            atom_id=self._atom_id,
            version=None,
            inputs=Columns({}, len(part.positions)),
            positions=part.positions,
            stream=RandomStream(0),
            origin=Origin(),
            terms=AttemptTerms(part.attempt),
            earlier=earlier,
            run_id=self._run_id,
        )

    def properties_of(self, part: Part) -> Iterator[Properties]:
        """Yield the Properties of the electrons of a part that no later part supersedes."""
        for known in map(RunPart.current, part.load()):
            yield from known.outcome.properties(self.batch_of(known))

    def failed_parts(self) -> list[RunPart]:
        """Return the failed electrons by part, without those that are tried again."""
        with self.changed:
            some = [p for p in self.parts if isinstance(p, RunPart) and len(p.outcome.failed)]
        return [part for part in map(_failed, map(RunPart.current, some)) if len(part)]

    def error_of(self, position: int, failed: Failed) -> ElectronError:
        """Return a failed attempt that was read from a store as an error."""
        return failed.failure.error(
            f"{self._run_id}-{position}",
            self._atom_id,
            attempt=failed.attempt,
            worker=failed.worker,
            start=failed.start,
            end=failed.end,
        ).bare()

    # -- for the thread that writes ----------------------------------------------------------

    def add(self, part: Part) -> int:
        """Add the outcomes of some electrons, and return their index in `parts`."""
        failed = len(part.failed_positions())
        again = 0 if part.replaced is None else int(part.replaced.sum())
        now = monotonic()
        with self.changed:
            self.parts.append(part)
            self.cancelled += part.cancelled_count() if failed else 0
            self.failed += failed - again
            self.done += len(part) - failed
            self._times.append((now, self._ended - self._before))
            while len(self._times) > 2 and self._times[1][0] < now - RATE_SECONDS:
                self._times.popleft()
            self.changed.notify_all()
            self.wakeups.wake()
            return len(self.parts) - 1

    def begin(self, seconds: float) -> None:
        """Note that all parts so far come from a store.

        Parameters
        ----------
        seconds
            How long earlier processes worked on the run.
        """
        with self.changed:
            self._earlier = seconds
            self._before = self._ended
            self._started = monotonic()
            self._times = deque([(self._started, 0)])

    def set_stored(self, state: State, seconds: float) -> None:
        """Set state and seconds as a store has them, for a run that this process does not drive."""
        self.state = state
        self._seconds = seconds

    def replace(self, index: int, part: StoredPart) -> None:
        """Replace the part at `index` by the stored one, now that its results are written."""
        with self.changed:
            self.parts[index] = part

    def strike_out(self, part: RunPart, again: np.ndarray) -> None:
        """Mark failed electrons of a part as superseded: a later attempt will replace them.

        Parameters
        ----------
        again
            Mask over the failed electrons of the part.
        """
        with self.changed:
            ended, cancelled = self._ended, part.cancelled_count()
            part.replaced = again if part.replaced is None else part.replaced | again
            self.cancelled -= cancelled - part.cancelled_count()
            self.failed -= int(again.sum())
            # These electrons have not ended after all. Subtracted here too, they leave the rate.
            fewer = ended - self._ended
            self._times = deque((at, number - fewer) for at, number in self._times)

    def remember(self, position: int, error: ElectronError) -> None:
        """Note the error of an attempt that another attempt supersedes."""
        known = self.history.get(position, ())
        if all(earlier.attempt != error.attempt for earlier in known):  # not noted twice
            self.history[position] = (*known, error.bare())

    def set_state(self, state: State, *, ended: bool = False) -> None:
        """Set the state of the run, and stop its clock where it has `ended`."""
        with self.changed:
            now = monotonic()
            if self._paused_at is not None:
                self._paused += now - self._paused_at
            self._paused_at = now if state == "paused" else None
            if state == "running" != self.state:  # from before the pause nothing counts
                self._times = deque([(now, self._ended - self._before)])
            self.state = state
            if ended:
                self._seconds = monotonic() - self._started
            self.changed.notify_all()
            self.wakeups.wake()

    def disown(self, error: AtomizerError) -> None:
        """End the run in a forked process: the parent process goes on with it."""
        self.changed = threading.Condition()  # a thread of the parent may have held the old one
        if not self.ended:
            self._seconds = monotonic() - self._started
            self.error, self.state = error, "failed"

    def fail(self, error: AtomizerError) -> bool:
        """End the run as failed, from any thread; return False where it had ended already.

        The last resort, where its source could not end it: threads that wait for the run wake up.
        """
        with self.changed:
            if self._seconds is not None:
                return False
            self.error = self.error or error
            self.set_state("failed", ended=True)
            return True

    def reopen(self) -> None:
        """Set the state of a run that had ended to running."""
        assert self._seconds is not None
        with self.changed:
            self._started = monotonic() - self._seconds
            self._times = deque([(monotonic(), self._ended - self._before)])
            self._seconds = None
            self.state = "running"


def _failed(part: RunPart) -> RunPart:
    """Return the failed electrons of a part: all of it where millions were cancelled."""
    outcome = part.outcome
    return part if len(outcome.failed) == len(part) else part.pick(outcome.failed_mask())


def ended_in_words(ledger: Ledger, total: int | None) -> str:
    """Return how many electrons of a run have ended.

    >>> ended_in_words(Ledger("run", "atom"), 1000)
    '0 of 1,000 electrons have ended'
    """
    ended = ledger.done + ledger.failed
    return f"{ended:,} of {'?' if total is None else f'{total:,}'} electrons have ended"
