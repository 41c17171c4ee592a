"""The thread that keeps panels up to date, each at its own pace."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

SHARE = 0.01  # of the time of one processor core, at most, for one panel
LONGEST = 60.0  # seconds until a panel that could not be refreshed is tried again


class Refreshed(Protocol):
    """A panel, as the refresher sees it."""

    def refresh(self) -> float | None:
        """Show changes; return the seconds until the next refresh, None for no further one."""


@dataclass(slots=True)
class Cost:
    """The cost of the last refresh of a panel or a tab, in seconds of processor time."""

    last: float = 0.0

    def pause(self, cost: float, least: float) -> float:
        """Return the seconds until the next refresh, so that refreshes stay below their share.

        Parameters
        ----------
        cost
            Processor time of the refresh just done, in seconds.
        least
            Seconds to wait at least.
        """
        usual = min(cost, self.last)  # one expensive refresh, as the first may be, does not count
        self.last = cost
        return max(least, usual / SHARE)


class Refresher:
    """The thread that refreshes all panels; it ends when no refresh is scheduled.

    A panel whose refresh is expensive is refreshed more rarely, so that it takes about a hundredth
    of a processor core at most. A panel whose refresh raises is tried again, at growing intervals.
    """

    def __init__(self) -> None:
        self._due: dict[Refreshed, float] = {}
        self._costs: WeakKeyDictionary[Refreshed, Cost] = WeakKeyDictionary()
        self._failed: WeakKeyDictionary[Refreshed, int] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def schedule(self, panel: Refreshed, seconds: float = 0.0) -> None:
        """Schedule a refresh of a panel in `seconds`, or earlier; from any thread."""
        with self._changed:
            due = monotonic() + seconds
            self._due[panel] = min(due, self._due.get(panel, due))
            if self._thread is None or not self._thread.is_alive():  # a forked process has none
                self._thread = threading.Thread(
                    target=self._work, name="atomizer-panels", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def forget(self, panel: Refreshed) -> None:
        """Cancel the scheduled refresh of a panel."""
        with self._changed:
            self._due.pop(panel, None)

    def _work(self) -> None:
        while (panel := self._next()) is not None:
            began = thread_time()
            try:
                seconds = panel.refresh()
            except BaseException as error:  # noqa: BLE001 - the other panels go on
                self._try_again(panel, error)
                continue
            self._failed.pop(panel, None)
            if seconds is not None:
                cost = self._costs.setdefault(panel, Cost())
                self.schedule(panel, cost.pause(thread_time() - began, seconds))

    def _try_again(self, panel: Refreshed, error: BaseException) -> None:
        times = self._failed[panel] = 1 + self._failed.get(panel, 0)
        if times == 1:
            logger.warning("a panel cannot be refreshed for now", exc_info=error)
        self.schedule(panel, min(LONGEST, 2.0**times))

    def _next(self) -> Refreshed | None:
        """Wait until a panel is due, and return it; None where no refresh is scheduled."""
        with self._changed:
            while self._due:
                panel = min(self._due, key=self._due.__getitem__)
                left = self._due[panel] - monotonic()
                if left <= 0:
                    del self._due[panel]
                    return panel
                self._changed.wait(left)
            self._thread = None
            return None
