"""How many electrons the broker delivers ahead to a node: pure policy."""

from __future__ import annotations

from math import ceil

AHEAD_SECONDS = 0.5  # of work: enough for batches, little for others to wait for
PER_THREAD = 2
BYTES = 256 * 2**20  # of unanswered electrons
MOST = 65_535  # by the protocol
BUSY, GROWN, SHRUNK, SPARE = 0.75, 1.25, 0.5, 1.25


class Prefetch:
    """Adapts the prefetch count to the rate at which the node answers.

    The count is two per thread where electrons take long, so that other nodes get their share, and
    half a second's worth where electrons are many and small. Electrons that wait for their children
    are not counted, or a node full of them would never receive the children.

    Parameters
    ----------
    limit
        Most unanswered electrons that do not wait for children.

    Examples
    --------
    >>> prefetch = Prefetch(limit=10_000)
    >>> prefetch.follow(threads=2, unanswered=0, waiting=0, answered=0, seconds=0.1)
    4
    >>> prefetch.follow(threads=2, unanswered=4, waiting=0, answered=100, seconds=0.1)
    504
    >>> prefetch.follow(threads=2, unanswered=504, waiting=500, answered=0, seconds=0.1)
    1029
    """

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._rate = 0.0

    def follow(
        self,
        *,
        threads: int,
        unanswered: int,
        waiting: int,
        answered: int,
        seconds: float,
        size: float = 0.0,
    ) -> int:
        """Return how many electrons the broker may deliver ahead.

        Parameters
        ----------
        threads
            How many electrons are executed at a time.
        unanswered, waiting
            Unanswered electrons, and those of them that wait for children.
        answered, seconds
            How many were answered in the last so many seconds.
        size
            Bytes of an unanswered electron, on average.
        """
        is_busy = unanswered >= BUSY * self.count
        if is_busy:  # else the queue is slow
            rate = answered / seconds
            self._rate = max(rate, self._rate + 0.2 * (rate - self._rate))
        threads = max(threads, 1)
        wanted = min(PER_THREAD * threads + ceil(self._rate * AHEAD_SECONDS), self._limit)
        wanted = max(min(wanted, int(BYTES / max(size, 1.0))), min(threads, self._limit))
        wanted = min(wanted + ceil(SPARE * waiting), MOST)
        too_few = wanted > GROWN * self.count or self.count - waiting < min(threads, self._limit)
        # A new number costs a round trip.
        if too_few or wanted < SHRUNK * self.count:
            self.count = wanted
        return self.count
