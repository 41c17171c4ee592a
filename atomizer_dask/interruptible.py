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
# Called before this thread waits for others; each returns a function to call afterwards, or None.
PAUSES: list[Callable[[], Callable[[], None] | None]] = []


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error is a Ctrl-C, which Python raises in the main thread alone."""
    of_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and of_main


@contextmanager
def blocking() -> Iterator[None]:
    """Wait within for other threads: meanwhile this thread releases what they may need.

    Each function of `PAUSES` releases something of its own, and takes it back afterwards.
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
    """Wait on a condition, whose lock is held, until `predicate` is true; return whether it is."""
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
    """Have a wait in a system call, as for a line of input, notice Ctrl-C all the same.

    The call would also miss a signal that comes after Python has checked for signals and before
    the call begins. So another thread sends the main thread SIGURG every `SLICE_SECONDS`, whose
    handler does nothing: it only has Python check again. Hardly any program uses SIGURG.
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
