"""The queue of a run: electrons to send now, and electrons to send after a delay."""

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
        Positions of the electrons in the sweep.
    terms
        Terms of their next attempt.
    seconds
        Delay before they are sent; meanwhile they occupy no thread.
    """

    positions: Positions
    terms: AttemptTerms
    seconds: float = 0.0


class ElectronQueue:
    """The electrons of a run that are to be sent, in order.

    Parameters
    ----------
    sweep
        The inputs.
    vectorized
        Whether the atom takes slices. Then a batch has at least two electrons where there are two:
        on a slice of one row, an atom that wrongly reduces its arrays would go unnoticed.
    changed
        Condition that is notified when electrons are taken, for more rows of a streamed sweep may
        be drawn then.

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

    def take(self, about: int) -> Lot:
        """Take the next electrons of one lot, and with inputs of the same type, for one batch.

        Parameters
        ----------
        about
            How many; more so that a vectorised atom gets at least two, also in the last batch.
        """
        positions, terms, _ = self._lots.popleft()
        electrons = max(about, self._at_least)
        if not self._vectorized:
            electrons = min(electrons, self._sweep.together(positions))
        if len(positions) == electrons + 1 and electrons >= self._at_least > 1:
            electrons += 1  # so that no single electron remains
        if len(positions) > electrons:
            self._lots.appendleft(Lot(positions[electrons:], terms))
            positions = positions[:electrons]
        with self._changed:
            self.waiting -= len(positions)
            self._changed.notify_all()
        return Lot(positions, terms)

    def delay(self, lot: Lot) -> int:
        """Put electrons aside, and return a token with which `pop_delayed` takes them out."""
        token = self._tokens = self._tokens + 1
        self._delayed[token] = lot
        return token

    def pop_delayed(self, token: int) -> Lot | None:
        """Take out electrons that were put aside; None where `clear` has removed them."""
        return self._delayed.pop(token, None)

    def clear(self) -> list[Lot]:
        """Remove all electrons, delayed ones too, and return them."""
        lots = [*self._lots, *self._delayed.values()]
        self._lots.clear()
        self._delayed.clear()
        with self._changed:
            self.waiting = 0
        return lots


def _follow(before: Positions, after: Positions) -> bool:
    """Return whether both are ranges, and the second begins where the first stops."""
    both = isinstance(before, range) and isinstance(after, range)
    return both and len(before) > 0 and before[-1] + 1 == after[0]
