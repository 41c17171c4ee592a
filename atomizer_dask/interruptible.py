"""Waiting that Ctrl-C always ends.

Python runs the handler of a signal in the main thread, and the kernel may give the signal to any
thread. A main thread that waits for a lock without an end is not woken by a signal that another
thread got, and would take no notice of it until the wait is over: so no wait is longer than
`SLICE_SECONDS`, between which the handler runs.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event
from time import monotonic

SLICE_SECONDS = 0.5
# Called before this thread waits for others; each returns what is to be called afterwards, if any.
PAUSES: list[Callable[[], Callable[[], None] | None]] = []


def is_interrupt(error: BaseException) -> bool:
    """Return whether somebody has pressed Ctrl-C: else code of the user raised it by itself."""
    of_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and of_main


@contextmanager
def blocking() -> Iterator[None]:
    """Wait within for something that others may have to do first.

    Whoever holds what these need, in this thread, lets go of it meanwhile.
    """
    resumes = [pause() for pause in PAUSES]
    try:
        yield
    finally:
        for resume in resumes:
            if resume is not None:
                resume()


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


def wait(event: Event, timeout: float | None = None) -> bool:
    """Wait until an event is set; return whether it is."""
    until = None if timeout is None else monotonic() + timeout
    while not event.is_set():
        left = SLICE_SECONDS if until is None else until - monotonic()
        if left <= 0:
            return False
        event.wait(min(left, SLICE_SECONDS))
    return True


@contextmanager
def noticing_signals() -> Iterator[None]:
    """Have a wait that is the system's, as for a line of input, notice Ctrl-C all the same.

    It would also miss a signal that comes after Python has looked for one and before the system
    waits. So the main thread gets another every `SLICE_SECONDS`, which does nothing but have it
    look: SIGURG, which hardly anybody uses, and nobody minds.
    """
    of_main = threading.current_thread() is threading.main_thread()
    if not of_main or not hasattr(signal, "pthread_kill"):  # on Windows, where waits are other
        yield
        return
    main, over = threading.get_ident(), Event()

    def remind() -> None:
        while not over.wait(SLICE_SECONDS):
            signal.pthread_kill(main, signal.SIGURG)

    before = signal.signal(signal.SIGURG, lambda *_: None)
    reminder = threading.Thread(target=remind, name="atomizer-signals", daemon=True)
    reminder.start()
    try:
        yield
    finally:
        over.set()
        reminder.join()
        signal.signal(signal.SIGURG, before or signal.SIG_DFL)
