"""The pi application: toss darts at a square, count those inside the circle.

Two atoms, as in the Go application of the same name and registered by importing this module:
`MonteCarlo` is asked for an estimate, and sends the tossing to `Toss`. There an electron is one
toss, and so it is here where a Go program may execute it; else it is `TOSSES_PER_ELECTRON` tosses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from math import sqrt
from time import monotonic
from typing import Any

import numpy as np

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.context import ChildSender, Context
from atomizer_dask.electron import Electron
from atomizer_dask.properties import Properties
from atomizer_dask.registry import register

TOSSES_PER_ELECTRON = 2**22  # about 50 ms; fixed, for the bits must not depend on the cluster
_UNDER_WAY = 20_000  # electrons: enough for any cluster, few enough for the memory
_AT_ONCE = 2**14  # tosses whose coordinates stay in the CPU's cache
_EVENT_SECONDS = 0.2


class Toss(Atom):
    """Toss, and count how many fall inside the circle.

    Payload ``{"tosses": n}``, by default one; result ``{"value": count}``.
    """

    id = "montecarlopi.Toss"

    def process(
        self, context: Context, conductor: ChildSender, electron: Electron
    ) -> dict[str, int]:
        """Return how many of the tosses fell inside."""
        return {"value": count_inside(context.rng, _tosses_of(electron.payload, default=1))}


class MonteCarlo(Atom):
    """Estimate pi: send the tosses out, and wait for the counts.

    Payload ``{"tosses": n}``; result ``{"in": count, "tosses": n, "errors": n, "pi": estimate}``,
    where tosses that ended in an error count as such and nowhere else.
    """

    id = "montecarlopi.MonteCarlo"

    def process(
        self, context: Context, conductor: ChildSender, electron: Electron
    ) -> dict[str, Any]:
        """Return the estimate."""
        tosses = _tosses_of(electron.payload)
        share = 1 if conductor.shares_queue else TOSSES_PER_ELECTRON
        under_way: deque[tuple[int, Future[Properties]]] = deque()
        count = _TossCount(context)
        for start in range(0, tosses, share):
            thrown = min(share, tosses - start)
            under_way.append((thrown, conductor.send(Electron(Toss.id, {"tosses": thrown}))))
            if len(under_way) == _UNDER_WAY:
                count.add(*under_way.popleft())
        while under_way:
            count.add(*under_way.popleft())
        return count.result()


class _TossCount:
    """The counts of the tosses so far."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._inside = self._good = self._bad = self._reported = 0
        self._last = monotonic()

    def add(self, tosses: int, future: Future[Properties]) -> None:
        """Wait for the outcome of some tosses, and count them."""
        properties = future.result()
        if properties.error is None:
            self._inside += properties.result["value"]
            self._good += tosses
        else:
            self._bad += tosses
        if monotonic() - self._last > _EVENT_SECONDS:
            self._report()

    def result(self) -> dict[str, Any]:
        """Return the estimate."""
        self._report()
        pi = 4 * self._inside / self._good if self._good else float("nan")
        tosses = self._good + self._bad
        return {"in": self._inside, "tosses": tosses, "errors": self._bad, "pi": pi}

    def _report(self) -> None:
        done = self._good + self._bad
        self._context.emit("tossed", tosses=done - self._reported)
        self._reported, self._last = done, monotonic()


def count_inside(rng: np.random.Generator, tosses: int) -> int:
    """Return how many of `tosses` points in the unit square are within 1 of its corner.

    Parameters
    ----------
    rng
        Draws the coordinates: first all x of a group of tosses, then all y.
    tosses
        How many.
    """
    if tosses == 1:  # as peers send them: the same numbers, without arrays
        x, y = rng.random(), rng.random()
        return int(x * x + y * y <= 1.0)
    coordinates = np.empty((2, min(tosses, _AT_ONCE)))
    inside = 0
    for start in range(0, tosses, _AT_ONCE):
        x, y = coordinates[:, : min(_AT_ONCE, tosses - start)]
        rng.random(out=x)
        rng.random(out=y)
        x *= x
        y *= y
        x += y
        inside += int(np.count_nonzero(x <= 1.0))
    return inside


def standard_error(inside: int, tosses: int) -> float:
    """Return the standard error of the estimate ``4 * inside / tosses``: a binomial proportion's.

    >>> round(standard_error(785, 1000), 3)
    0.052
    """
    share = inside / tosses
    return 4 * sqrt(share * (1 - share) / tosses)


def _tosses_of(payload: Any, default: int | None = None) -> int:
    tosses = payload.get("tosses", default) if isinstance(payload, Mapping) else payload
    if tosses is None:
        tosses = default
    if isinstance(tosses, bool) or not isinstance(tosses, int | np.integer):
        raise TypeError(f'expected a payload {{"tosses": n}}, got {payload!r}')
    if tosses < 1:
        raise ValueError(f"{tosses} is not a valid toss")
    return int(tosses)


register(MonteCarlo, Toss)
