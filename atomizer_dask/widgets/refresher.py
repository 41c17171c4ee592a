"""The thread that keeps panels up to date, each at its own pace."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

SHARE = 0.01  # of the time of a processor that a panel may take
LONGEST = 60.0  # seconds until a panel that could not be refreshed is tried again


class Refreshed(Protocol):
    """What can be kept up to date."""

    def refresh(self) -> float | None:
        """Show what is new; return after how many seconds to look again, None for never."""


@dataclass(slots=True)
class Cost:
    """What it took to look at something the last time, in seconds of a processor."""

    last: float = 0.0

    def pause(self, cost: float, least: float) -> float:
        """Return after how many seconds to look again, so that it takes no more than its share."""
        usual = min(cost, self.last)  # the first time is no measure
        self.last = cost
        return max(least, usual / SHARE)


class Refresher:
    """One thread for all panels; it ends when none of them is to be looked at again.

    A panel that takes long is looked at more rarely, so that it never costs more than a hundredth
    of what the process does. One that cannot be refreshed is tried again, ever more rarely.
    """

    def __init__(self) -> None:
        self._due: dict[Refreshed, float] = {}
        self._costs: WeakKeyDictionary[Refreshed, Cost] = WeakKeyDictionary()
        self._failed: WeakKeyDictionary[Refreshed, int] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def look_at(self, panel: Refreshed, seconds: float = 0.0) -> None:
        """Have a panel refreshed in some seconds, or before; from any thread."""
        with self._changed:
            due = monotonic() + seconds
            self._due[panel] = min(due, self._due.get(panel, due))
            if self._thread is None or not self._thread.is_alive():  # a fork has none
                self._thread = threading.Thread(
                    target=self._work, name="atomizer-panels", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def forget(self, panel: Refreshed) -> None:
        """Look at a panel no more."""
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
                self.look_at(panel, cost.pause(thread_time() - began, seconds))

    def _try_again(self, panel: Refreshed, error: BaseException) -> None:
        times = self._failed[panel] = 1 + self._failed.get(panel, 0)
        if times == 1:
            logger.warning("a panel cannot be refreshed for now", exc_info=error)
        self.look_at(panel, min(LONGEST, 2.0**times))

    def _next(self) -> Refreshed | None:
        """Wait for the panel that is due next; None where there is none left."""
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
