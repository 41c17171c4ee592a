"""What has ended of a run at once, as a frame shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.sweeps.columns import numpy_values


@dataclass(slots=True)
class Part:
    """What became of some electrons of a run.

    Parameters
    ----------
    positions
        Of the electrons in the sweep.
    outcome
        What became of them.
    attempt
        Which attempt it was.
    replaced
        Which of the failed ones have been, or will be, tried again: a later part tells of these.
    code
        The fingerprint of the code that ran, where a store keeps it.
    """

    positions: range | np.ndarray
    outcome: Outcome
    attempt: int = 1
    replaced: np.ndarray | None = None
    code: str = ""

    def __len__(self) -> int:
        return len(self.outcome)

    def current(self) -> Part:
        """Return it without what another part tells of."""
        if self.replaced is None or not self.replaced.any():
            return self
        stays = np.ones(len(self.outcome), dtype=bool)
        stays[np.asarray(self.outcome.failed, dtype=np.int64)[self.replaced]] = False
        return self.pick(stays)

    def pick(self, wanted: np.ndarray) -> Part:
        """Return it for the electrons that `wanted`, a mask of them, says."""
        positions, outcome = numpy_values(self.positions)[wanted], self.outcome.pick(wanted)
        return Part(positions, outcome, self.attempt, code=self.code)

    def failed_positions(self) -> np.ndarray:
        """Return where in the sweep the failed ones are."""
        failed = np.asarray(self.outcome.failed, dtype=np.int64)
        if isinstance(self.positions, range):
            return failed + self.positions.start
        return self.positions[failed]

    def by_failure(self) -> Iterator[tuple[Failure, np.ndarray]]:
        """Yield each distinct failure, and where in the sweep those are that failed with it."""
        positions, failures = self.failed_positions(), self.outcome.failures
        if len(failures) == 1:
            yield failures[0], positions
            return
        codes = np.asarray(self.outcome.codes)
        order = np.argsort(codes, kind="stable")  # each may have failed with one of its own
        distinct, first = np.unique(codes[order], return_index=True)
        for code, mine in zip(
            distinct.tolist(), np.split(positions[order], first[1:]), strict=True
        ):
            yield failures[code], mine
