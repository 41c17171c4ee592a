"""The thread that keeps panels up to date, each at its own pace."""

from __future__ import annotations

import logging
import threading
from time import monotonic, thread_time
from typing import Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

SHARE = 0.01  # of the time of a processor that a panel may take


class Refreshed(Protocol):
    """What can be kept up to date."""

    def refresh(self) -> float | None:
        """Show what is new; return after how many seconds to look again, None for never."""


class Refresher:
    """One thread for all panels; it ends when none of them is to be looked at again.

    A panel that takes long is looked at more rarely, so that it never costs more than a hundredth
    of what the process does.
    """

    def __init__(self) -> None:
        self._due: dict[Refreshed, float] = {}
        self._costs: WeakKeyDictionary[Refreshed, float] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def look_at(self, panel: Refreshed, seconds: float = 0.0) -> None:
        """Have a panel refreshed in some seconds, or before; from any thread."""
        with self._changed:
            due = monotonic() + seconds
            self._due[panel] = min(due, self._due.get(panel, due))
            if self._thread is None:
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
            except Exception:
                logger.exception("a panel cannot be refreshed, and stays as it is")
                continue
            if seconds is not None:
                cost = thread_time() - began
                usual = min(cost, self._costs.get(panel, 0.0))  # the first time is no measure
                self._costs[panel] = cost
                self.look_at(panel, max(seconds, usual / SHARE))

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
