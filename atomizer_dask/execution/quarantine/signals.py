"""Signals and process groups: which signals children ignore, and which processes end with them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Link = Connection[Any, Any]


def heed_not(number: int, frame: object) -> None:
    """Do nothing at a signal; unlike with SIG_IGN, programs started from here do not inherit it."""


@contextlib.contextmanager
def blocked(*numbers: int) -> Iterator[None]:
    """Block signals in this thread, and so in a process that it starts, until that is ready."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_group(leader: int) -> None:
    """Kill a process group, where it still has a process."""
    # The latter error is macOS's for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
