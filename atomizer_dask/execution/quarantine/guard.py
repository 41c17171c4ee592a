"""Watching over a child process: when it must end, and what its death says of the electrons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import psutil

from atomizer_dask.console.printed import Printed
from atomizer_dask.execution.failure import CANCELLED, Failure
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.quarantine.child import BEGAN, COUNT, OFFSET, POLL_SECONDS
from atomizer_dask.execution.quarantine.fork_server import ChildProcess
from atomizer_dask.execution.quarantine.last_words import last_words
from atomizer_dask.execution.quarantine.messages import PieceCancelled, ToChild

KILL_AFTER = 1.5  # seconds beyond its deadline
HEED_CANCEL = 0.5  # seconds from when it is cancelled until its process is killed


@dataclass(frozen=True, slots=True)
class ChildDeath:
    """The death of a child.

    Parameters
    ----------
    offset, count
        Which electrons of the piece were running; none where `count` is 0.
    began, ended
        When they began, and when the parent noticed the death: seconds of `perf_counter`.
    failure
        Why the child died.
    verdict
        Whether the running electron certainly fails: the parent killed the child because it was
        late or cancelled. Otherwise the child died by itself, had too much memory, or ran nothing.
    printed
        What the first of these electrons printed last, by offset in the batch.
    """

    offset: int
    count: int
    began: float
    ended: float
    failure: Failure
    verdict: bool
    printed: Printed | None = None


class ChildGuard:
    """Watches one piece in a child; kills a child that is late, too large or cancelled."""

    def __init__(
        self, child: ChildProcess, lease: Lease, first: int, timeout: float | None, memory: float
    ) -> None:
        self._child = child
        self._lease = lease
        self._first = first
        self._timeout = timeout
        self._limit = memory
        self._cancelled: float | None = None
        self._checked = perf_counter()

    def check(self, post: Callable[[ToChild], bool]) -> ChildDeath | None:
        """Kill the child where it must end, and return its death; None where it goes on."""
        now = perf_counter()
        if now - self._checked < POLL_SECONDS:
            return None
        self._checked = now
        offset, began = self._child.cursor[OFFSET], self._child.cursor[BEGAN]
        if self._timeout is not None and offset >= 0 and now - began > self._timeout + KILL_AFTER:
            why = f"not done within {self._timeout:g} s; its process was killed"
            return self._end(Failure("timeout", "TimeoutError", why, tier="kill"))
        if (used := self._child.memory()) > self._limit:
            why = (
                f"out of memory: its process had {used / 2**30:.2f} GiB, "
                f"{self._limit / 2**30:.2f} GiB are allowed"
            )
            return self._end(Failure("killed", "ProcessDied", why), verdict=False)
        one = self._first + int(offset) in self._lease.cancelled_ones
        if self._lease.cancelled or one:
            if self._cancelled is None:
                self._cancelled = now
                post(PieceCancelled(None if self._lease.cancelled else int(offset)))
            elif now - self._cancelled > HEED_CANCEL and offset >= 0:
                return self._end(CANCELLED)
        return None

    def _end(self, failure: Failure, *, verdict: bool = True) -> ChildDeath:
        self._child.kill()
        self._child.exit()
        return self._fallen(failure, verdict=verdict)

    def fallen(self) -> ChildDeath:
        """Return the death of a child that died by itself."""
        ended = self._child.exit(timeout=5)
        why = f"its process died: {ended}"
        if ended is not None and ended.signal == 9:
            why += ", which is what the system does where memory runs out"
        return self._fallen(Failure("killed", "ProcessDied", why), verdict=False)

    def _fallen(self, failure: Failure, *, verdict: bool) -> ChildDeath:
        offset, count, began = (self._child.cursor[i] for i in (OFFSET, COUNT, BEGAN))
        now = perf_counter()
        printed = last_words(self._child.cursor, int(offset), self._first)
        self._child.close()
        if offset < 0:
            return ChildDeath(0, 0, now, now, failure, verdict=False)
        return ChildDeath(int(offset), int(count), began, now, failure, verdict, printed)


@cache
def machine_memory() -> float:
    """Return the bytes of memory that this machine, or this container, has."""
    total = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, float(limit.read_text()))
    except (OSError, ValueError):  # there is none: "max", or another system
        return total
