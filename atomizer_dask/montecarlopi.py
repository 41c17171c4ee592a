"""The pi application: toss darts at a square, count those inside the circle.

Two atoms, as in the Go application of the same name and registered by importing this module:
`MonteCarlo` is asked for an estimate, and sends the tossing to `Toss`. There an electron is one
toss; here it is as many as are worth carrying, which changes neither the payloads nor the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from math import sqrt
from time import monotonic
from typing import Any

import numpy as np

from atomizer_dask.atom import Atom
from atomizer_dask.context import Context
from atomizer_dask.electron import Electron
from atomizer_dask.registry import register

TOSSES_PER_ELECTRON = 2**22  # about 50 ms; fixed, for the bits must not depend on the cluster
_AT_ONCE = 2**14  # tosses whose coordinates stay in the CPU's cache
_EVENT_SECONDS = 0.2


class Toss(Atom):
    """Toss, and count how many fall inside the circle.

    Payload ``{"tosses": n}``, by default one; result ``{"value": count}``.
    """

    id = "montecarlopi.Toss"

    def process(self, context: Context, conductor: Any, electron: Electron) -> dict[str, int]:
        """Return how many of the tosses fell inside."""
        return {"value": count_inside(context.rng, _tosses_of(electron.payload, default=1))}


class MonteCarlo(Atom):
    """Estimate pi: send the tosses out, and wait for the counts.

    Payload ``{"tosses": n}``; result ``{"in": count, "tosses": n, "errors": n, "pi": estimate}``,
    where tosses that ended in an error count as such and nowhere else.
    """

    id = "montecarlopi.MonteCarlo"

    def process(self, context: Context, conductor: Any, electron: Electron) -> dict[str, Any]:
        """Return the estimate."""
        tosses = _tosses_of(electron.payload)
        sent = {
            conductor.send(Electron(Toss.id, {"tosses": share})): share for share in _shares(tosses)
        }
        inside = errors = done = told = 0
        last = monotonic()
        for future in as_completed(sent):
            properties = future.result()
            done += sent[future]
            if properties.error is None:
                inside += properties.result["value"]
            else:
                errors += sent[future]
            if monotonic() - last > _EVENT_SECONDS or done == tosses:
                context.emit("tossed", tosses=done - told)
                told, last = done, monotonic()
        good = tosses - errors
        pi = 4 * inside / good if good else float("nan")
        return {"in": inside, "tosses": tosses, "errors": errors, "pi": pi}


def count_inside(rng: np.random.Generator, tosses: int) -> int:
    """Return how many of `tosses` points in the unit square are within 1 of its corner.

    Parameters
    ----------
    rng
        Draws the coordinates: first all x of a group of tosses, then all y.
    tosses
        How many.
    """
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


def _shares(tosses: int) -> Iterator[int]:
    for start in range(0, tosses, TOSSES_PER_ELECTRON):
        yield min(TOSSES_PER_ELECTRON, tosses - start)


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
