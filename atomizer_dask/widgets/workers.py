"""The workers of a run: how busy they are, and how many electrons each has executed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from atomizer_dask.conductors.status import ConductorStatus, WorkerStatus
from atomizer_dask.display.text import plain
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.runs.run import Run
from atomizer_dask.widgets.format import rounded

MOST_ROWS = 100  # in a message; more would be too large
SAMPLES = 10  # of the share of busy threads; one a second


class WorkerTable:
    """The workers of a conductor: how busy they were lately, and what they did for a run."""

    def __init__(self) -> None:
        self._busy: dict[str, deque[float]] = {}
        self._electrons: defaultdict[str, int] = defaultdict(int)

    def note(self, status: ConductorStatus) -> None:
        """Add a sample of how busy each worker is."""
        known = {worker.address for worker in status.workers}
        self._busy = {address: b for address, b in self._busy.items() if address in known}
        for worker in status.workers:
            samples = self._busy.setdefault(worker.address, deque(maxlen=SAMPLES))
            samples.append(min(1.0, worker.executing / max(1, worker.threads)))

    def count(self, run: Run) -> None:
        """Count the electrons that each worker has executed for a run."""
        self._electrons.clear()
        if run.store is not None:  # the store has the worker of each electron
            self._electrons.update({w: int(f["electrons"]) for w, f in run.work().items()})
            return
        for part in run.parts_since(0):  # from the first, for some may be superseded by now
            assert isinstance(part, RunPart)
            again = 0 if part.replaced is None else int(part.replaced.sum())
            self._electrons[part.outcome.worker] += len(part) - again

    def busy(self, workers: Iterable[WorkerStatus]) -> float:
        """Return the share of all threads that were busy over the last samples, from 0 to 1."""
        threads = sum(worker.threads for worker in workers)
        busy = sum(worker.threads * self._share(worker.address) for worker in workers)
        return rounded(busy / threads, 2) if threads else 0.0

    def _share(self, address: str) -> float:
        samples = self._busy.get(address, ())
        return sum(samples) / len(samples) if samples else 0.0

    def rows(self, status: ConductorStatus) -> list[dict[str, Any]]:
        """Return rows of at most `MOST_ROWS` workers; workers that are gone come last."""
        here = [self._row(worker) for worker in status.workers]
        known = {worker.address for worker in status.workers}
        gone = [
            {"address": plain(address), "gone": True, "electrons": electrons}
            for address, electrons in self._electrons.items()
            if address and address not in known
        ]
        return (here + gone)[:MOST_ROWS]

    def _row(self, worker: WorkerStatus) -> dict[str, Any]:
        return {
            "address": plain(worker.address),
            "host": plain(worker.host),
            "threads": worker.threads,
            "electrons": self._electrons.get(worker.address, 0),
            "busy": rounded(self._share(worker.address), 2),
            "memory": rounded(worker.memory),
            "limit": worker.memory_limit,
        }
