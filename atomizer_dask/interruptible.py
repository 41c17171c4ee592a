"""Waiting that Ctrl-C always ends.

Python runs the handler of a signal in the main thread, and the kernel may give the signal to any
thread. A main thread that waits for a lock without an end is not woken by a signal that another
thread got, and would take no notice of it until the wait is over: so no wait is longer than
`SLICE_SECONDS`, between which the handler runs.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from time import monotonic

SLICE_SECONDS = 0.5


def wait_for(
    condition: Condition, predicate: Callable[[], object], timeout: float | None = None
) -> bool:
    """Wait on a condition, whose lock is held, until it holds; return whether it does."""
    until = None if timeout is None else monotonic() + timeout
    while not predicate():
        left = SLICE_SECONDS if until is None else until - monotonic()
        if left <= 0:
            return False
        condition.wait(min(left, SLICE_SECONDS))
    return True
