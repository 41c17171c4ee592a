"""Which deliveries to acknowledge, in as few messages to the broker as possible."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict


class Acks:
    """The deliveries of one channel, which the broker numbers from 1.

    Examples
    --------
    >>> acks = Acks()
    >>> for tag in (1, 2, 3, 4):
    ...     acks.arrived(tag)
    >>> for tag in (2, 1, 4):
    ...     acks.add(tag)
    >>> acks.flush()  # all up to 2 at once, and 4
    (2, [4])
    >>> acks.add(3)
    >>> acks.flush()
    (3, [])
    """

    def __init__(self) -> None:
        self._last = 0  # the last delivery that arrived
        self._open: OrderedDict[int, None] = OrderedDict()  # deliveries that are not settled
        self._fresh: list[int] = []

    def arrived(self, tag: int) -> None:
        """Note that a delivery has arrived.

        Earlier numbers that have not arrived went to a consumer that was cancelled just then: pika
        has returned these deliveries, and nobody will acknowledge them.
        """
        self._open[tag] = None
        self._last = tag

    def add(self, tag: int) -> None:
        """Acknowledge a delivery at the next `flush`."""
        self._fresh.append(tag)

    def settle(self, tag: int) -> None:
        """Note that a delivery was returned instead of acknowledged."""
        self._open.pop(tag, None)

    def flush(self) -> tuple[int, list[int]]:
        """Return the number up to which to acknowledge all, 0 for none, and others one by one."""
        fresh = sorted(self._fresh)
        self._fresh.clear()
        for tag in fresh:
            self._open.pop(tag, None)
        # The broker rejects a number that was settled before: the last one must be fresh.
        within = bisect_left(fresh, next(iter(self._open), self._last + 1))
        return (fresh[within - 1] if within else 0), fresh[within:]
