"""The electrons of a run that are to be sent: next, or after a while."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import NamedTuple

from atomizer_dask.execution.batch import AttemptTerms, Positions
from atomizer_dask.sweeps.sweep import Sweep


class Lot(NamedTuple):
    """Electrons to be sent on the same terms.

    Parameters
    ----------
    positions
        Of the electrons in the sweep.
    terms
        Of their next attempt.
    seconds
        To wait before they are sent, in which they occupy nobody.
    """

    positions: Positions
    terms: AttemptTerms
    seconds: float = 0.0


class ElectronQueue:
    """What is to be sent of a run, in order.

    Parameters
    ----------
    sweep
        The inputs.
    vectorized
        Whether the atom takes slices: then a batch has at least two electrons where there are so
        many, for an atom that reduces its arrays looks right where it is given one.
    changed
        Notified where electrons are taken: more rows of a streamed sweep may be drawn.

    Attributes
    ----------
    waiting
        How many electrons could be sent now.
    """

    def __init__(self, sweep: Sweep, vectorized: bool, changed: Condition) -> None:
        self.waiting = 0
        self._sweep = sweep
        self._vectorized = vectorized
        self._at_least = 2 if vectorized else 1
        self._changed = changed
        self._lots: deque[Lot] = deque()
        self._delayed: dict[int, Lot] = {}
        self._tokens = 0

    def __bool__(self) -> bool:
        return bool(self._lots or self._delayed)

    def put_first(self, lot: Lot) -> None:
        """Put electrons before all others."""
        self._lots.appendleft(lot)
        with self._changed:
            self.waiting += len(lot.positions)

    def put_last(self, lot: Lot) -> None:
        """Put electrons behind all others."""
        with self._changed:
            self.waiting += len(lot.positions)
        before = self._lots[-1] if self._lots else lot
        if _follow(before.positions, lot.positions) and before.terms == lot.terms:
            self._lots.pop()
            lot = lot._replace(positions=range(before.positions[0], lot.positions[-1] + 1))
        self._lots.append(lot)

    def take(self, most: int) -> Lot:
        """Take the next electrons, as many as may be in one batch, and about `most` of them."""
        positions, terms, _ = self._lots.popleft()
        electrons = max(most, self._at_least)
        if not self._vectorized:
            electrons = min(electrons, self._sweep.together(positions))
        if len(positions) == electrons + 1 and electrons >= self._at_least > 1:
            electrons += 1  # and no electron is left over
        if len(positions) > electrons:
            self._lots.appendleft(Lot(positions[electrons:], terms))
            positions = positions[:electrons]
        with self._changed:
            self.waiting -= len(positions)
            self._changed.notify_all()
        return Lot(positions, terms)

    def delay(self, lot: Lot) -> int:
        """Put electrons aside; `pop_delayed` gives them back for the token that this returns."""
        token = self._tokens = self._tokens + 1
        self._delayed[token] = lot
        return token

    def pop_delayed(self, token: int) -> Lot | None:
        """Return what was put aside; None where it has been taken away."""
        return self._delayed.pop(token, None)

    def clear(self) -> list[Lot]:
        """Take everything away."""
        lots = [*self._lots, *self._delayed.values()]
        self._lots.clear()
        self._delayed.clear()
        with self._changed:
            self.waiting = 0
        return lots


def _follow(before: Positions, after: Positions) -> bool:
    """Return whether two ranges make one."""
    both = isinstance(before, range) and isinstance(after, range)
    return both and len(before) > 0 and before[-1] + 1 == after[0]
