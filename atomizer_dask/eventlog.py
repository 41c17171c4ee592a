"""The newest events, for whoever comes to look: they are read without being taken away."""

from __future__ import annotations

import threading
from collections import Counter, deque

from atomizer_dask.events import Event

KEPT = 500


class EventLog:
    """The newest events, and how many there were of each level.

    Parameters
    ----------
    kept
        How many events are kept.

    Examples
    --------
    >>> log = EventLog(kept=2)
    >>> for message in "abc":
    ...     log.note(Event(message))
    >>> [(number, event.message) for number, event in log.since(0)], log.total
    ([(1, 'b'), (2, 'c')], 3)
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def total(self) -> int:
        """How many there were."""
        return self._total

    @property
    def counts(self) -> dict[str, int]:
        """How many there were of each level."""
        with self._lock:
            return dict(self._counts)

    def note(self, event: Event) -> None:
        """Add an event; from any thread."""
        with self._lock:
            self._events.append(event)
            self._counts[event.level] += 1
            self._total += 1

    def since(self, number: int) -> list[tuple[int, Event]]:
        """Return those kept whose number, from 0 on, is at least this one."""
        with self._lock:
            first = self._total - len(self._events)
            skipped = max(0, number - first)
            events = list(self._events)[skipped:]
        return list(enumerate(events, start=first + skipped))
