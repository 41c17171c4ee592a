"""What becomes of work under way where its process ends, or is forked.

At the end of the interpreter Python first closes its executors to new work, and Dask fails
thereafter in many ways. So conductors leave their runs before that: a run with a store can go on
later.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from typing import Any, Protocol

from atomizer_dask.future import executor_threads

logger = logging.getLogger(__name__)


class Ending(Protocol):
    """An object with work under way, such as a conductor."""

    def leave(self) -> None:
        """End what is under way in good order, for the interpreter ends."""

    def disown(self) -> None:
        """Take part no more: this process was forked from the one that has the work."""


class EndWatch:
    """Notifies conductors of the end of the interpreter, and in a forked process of the fork."""

    def __init__(self) -> None:
        self._those: weakref.WeakSet[Any] = weakref.WeakSet()
        self._registered = False

    def add(self, ending: Ending) -> None:
        """Notify `ending`, as long as others refer to it."""
        if not self._registered:
            self._registered = True
            os.register_at_fork(after_in_child=self._fork)
            # The last to register is the first to be called: before executors take no more work.
            register = getattr(threading, "_register_atexit", atexit.register)
            register(self._end)
        self._those.add(ending)

    def discard(self, ending: Ending) -> None:
        """Notify `ending` no longer."""
        self._those.discard(ending)

    def _end(self) -> None:
        if not self._those:
            return
        try:
            _join_threads()
        except KeyboardInterrupt:
            logger.info("interrupted while threads were waited for")
        for ending in list(self._those):
            try:
                ending.leave()
            except Exception:  # the others are notified all the same
                logger.exception("%r could not end in good order", ending)

    def _fork(self) -> None:
        those, self._those = list(self._those), weakref.WeakSet()
        for ending in those:
            ending.disown()


def _join_threads() -> None:
    """Wait for the user's threads, which may wait for runs; Python itself does so a bit later."""
    executors = executor_threads()
    for thread in threading.enumerate():
        is_ours = thread is threading.current_thread() or thread is threading.main_thread()
        if not (thread.daemon or is_ours or thread in executors):
            thread.join()


watch = EndWatch()
