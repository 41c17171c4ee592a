"""Batches in flight that a process submitted which has ended: the electrons each of them owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from atomizer_dask.execution.batch import Batch, Positions
from atomizer_dask.sweeps.columns import numpy_values

SCATTERED = 1000  # spans; of more, positions stay one array


@dataclass(slots=True)
class Adoption:
    """The electrons of a run shared out among batches that another process submitted.

    Parameters
    ----------
    leases
        Batches to wait for, each with the offsets of the first electron that it is responsible
        for, and after the last.
    over
        Keys of batches that are responsible for no electron any more.
    attempts
        The attempt that is under way, by position, of electrons that failed and were sent again.
    free
        Positions of the electrons that no batch is responsible for.
    """

    leases: list[tuple[Batch, int, int]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    free: Positions = range(0)


def adopt(
    electrons: Positions,
    in_flight: Sequence[Batch],
    not_done: Callable[[Positions], Positions],
) -> Adoption:
    """Share electrons out among the batches that are under way.

    Parameters
    ----------
    electrons
        Those that have not ended.
    in_flight
        The batches, in the order in which they were sent.
    not_done
        Returns those of the given positions whose electrons have not ended.
    """
    found = Adoption()
    size = 1 + max(int(max(batch.positions)) for batch in in_flight)
    owner = np.full(max(size, 1 + int(max(electrons, default=0))), -1)
    # The later batch owns an electron: the earlier one gave it back, or it failed there.
    for number, batch in enumerate(in_flight):
        owner[numpy_values(batch.positions)] = number
    attempts = np.array([batch.terms.attempt for batch in in_flight])
    for number, batch in enumerate(in_flight):
        positions = numpy_values(batch.positions)
        owners = owner[positions]
        mine = owners == number
        sent_again = ~mine & (attempts[owners] > batch.terms.attempt)
        # A worker gives back a tail. So at the first position that a later batch owns, this
        # batch's share ends, whether or not the rest has been submitted again.
        kept = int(np.argmax(np.append(~mine & ~sent_again, True)))
        left = mine[:kept] & np.isin(positions[:kept], not_done(positions[:kept]))
        first = int(np.argmax(left)) if left.any() else kept
        if first < kept:
            found.leases.append((batch, first, kept))
        else:
            found.over.append(batch.key)
        again, latest = (
            positions[:kept][sent_again[:kept]],
            attempts[owners[:kept][sent_again[:kept]]],
        )
        found.attempts |= dict(zip(again.tolist(), latest.tolist(), strict=True))
        mine[first:kept] = False
        owner[positions[mine]] = -1
    todo = numpy_values(electrons)
    found.free = todo[owner[todo] == -1]
    return found


def spans(positions: Positions) -> list[Positions]:
    """Return positions as a few ranges, or as they are where they are scattered.

    >>> spans(np.array([0, 1, 2, 7, 8]))
    [range(0, 3), range(7, 9)]
    """
    if isinstance(positions, range) or not len(positions):
        return [positions] if len(positions) else []
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    if len(breaks) > SCATTERED:
        return [positions]
    edges = [0, *breaks.tolist(), len(positions)]
    return [range(int(positions[a]), int(positions[b - 1]) + 1) for a, b in pairwise(edges)]
