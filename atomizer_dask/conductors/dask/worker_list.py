"""The workers of a cluster, as last heard of: who is there, and who of them does something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set


class WorkerList:
    """Who executes batches.

    Parameters
    ----------
    threads
        How many each worker has, by its address.
    idle
        Why some of them do nothing.
    begun
        How many batches these have begun that they may end.
    """

    def __init__(
        self, threads: Mapping[str, int], idle: Mapping[str, str] | None = None, begun: int = 0
    ) -> None:
        self._threads, self._begun = threads, begun
        self.idle = {} if idle is None else idle
        self.workers = set(threads)
        self.working = self.workers.difference(self.idle)

    @property
    def threads(self) -> int:
        """How many threads there are that execute something, or still do."""
        return sum(self._threads[worker] for worker in self.working) + self._begun

    def standstill(self, unfit: Set[str]) -> str:
        """Return why nothing can be executed; nothing where it can.

        Parameters
        ----------
        unfit
            The workers that lack something for it.

        Examples
        --------
        >>> WorkerList({}).standstill(set())
        'no workers: waiting for some'
        >>> WorkerList({"tcp://a": 1, "tcp://b": 1}, {"tcp://a": "paused"}).standstill({"tcp://b"})
        'nothing is executed: 1 worker is paused; 1 worker lacks what the atom needs'
        """
        if not self.workers:
            return "no workers: waiting for some"
        if not self.working <= unfit:
            return ""
        reasons = self._reasons()
        if lacking := len(self.working):
            who = "1 worker lacks" if lacking == 1 else f"{lacking:,} workers lack"
            reasons.append(f"{who} what the atom needs")
        return f"nothing is executed: {'; '.join(reasons)}"

    def _reasons(self) -> list[str]:
        counts = Counter(self.idle.values()).most_common()
        whos = ["1 worker is" if n == 1 else f"{n:,} workers are" for _, n in counts]
        return [f"{who} {reason}" for who, (reason, _) in zip(whos, counts, strict=True)]

    def __str__(self) -> str:
        if not self.workers:
            return "no workers: waiting for some"
        numbers = (len(self.workers), "worker"), (sum(self._threads.values()), "thread")
        here = [f"1 {what}" if n == 1 else f"{n:,} {what}s" for n, what in numbers]
        return ", ".join(here) + (f"; {'; '.join(self._reasons())}" if self.idle else "")
