"""Waiting that Ctrl-C always ends, and never breaks.

Python runs the handler of a signal in the main thread, between any two of its instructions, and
the kernel may give the signal to any thread. So a wait has two dangers:

- a main thread that waits for a lock without an end is not woken by a signal that another thread
  got, and takes no notice of it until the wait is over: no wait is longer than `SLICE_SECONDS`;
- a handler that raises while `threading.Condition` releases or takes its lock leaves the lock
  held for ever, or not held where ``with`` is about to release it. During a slice the handlers
  only take a note; the signal is raised again after it, when no lock is held.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager
from threading import Condition, Event
from time import monotonic
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.1
# Signals whose handlers raise in Python programs: Ctrl-C, an end by a batch system, a time limit.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")  # Windows has the first two
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
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


@contextmanager
def holding_signals() -> Iterator[None]:
    """Have handlers of signals run only at the end, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    all_handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in all_handlers.items() if callable(handler)}
    noted: dict[int, None] = {}
    process = os.getpid()
    is_over = False

    def note(number: int, frame: FrameType | None) -> None:
        # A handler raised before this one was put back; or a thread has forked, as a pool of
        # processes does, which is ended by a signal: this thread goes on in the parent alone.
        if is_over or os.getpid() != process:
            signal.signal(number, handlers[number])
            handlers[number](number, frame)
        else:
            noted[number] = None

    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        is_over = True
        for number, handler in handlers.items():
            if signal.getsignal(number) is note:  # else a handler has put in one of its own
                signal.signal(number, handler)
        _raise_again(list(noted))


def _raise_again(signals: list[int]) -> None:
    if signals:
        try:
            signal.raise_signal(signals[0])
        finally:
            _raise_again(signals[1:])


def in_slices(look: Callable[[float], T], timeout: float | None = None) -> T:
    """Call `look` until it returns something true, or the time is up; return what it returned.

    Parameters
    ----------
    look
        Takes how many seconds it may wait.
    timeout
        In seconds; None for no limit.
    """
    until = None if timeout is None else monotonic() + timeout
    while True:
        left = SLICE_SECONDS if until is None else max(0.0, until - monotonic())
        with holding_signals():
            found = look(min(left, SLICE_SECONDS))
        if found or (until is not None and monotonic() >= until):
            return found


def wait_for(condition: Condition, take: Callable[[], T], timeout: float | None = None) -> T:
    """Wait until `take`, called with the lock held, returns something true; return that.

    The lock must not be held before: it is not while a signal is handled.
    """

    def look(seconds: float) -> T:
        with condition:
            found = take()
            if not found and condition.wait(seconds):
                found = take()
            return found

    return in_slices(look, timeout)


def wait(event: Event, timeout: float | None = None) -> bool:
    """Wait until an event is set; return whether it is."""
    return in_slices(event.wait, timeout)


def has_ended(future: Future[T], timeout: float | None = None) -> bool:
    """Wait until a future of a thread has ended; return whether it has."""
    return in_slices(lambda seconds: bool(wait_for_futures([future], seconds).done), timeout)


def result_of(future: Future[T], timeout: float | None = None) -> T:
    """Return what a future of a thread returned.

    Raises
    ------
    TimeoutError
        When it has not ended in time.
    Exception
        Whatever it raised.
    """
    if has_ended(future, timeout):
        return future.result()
    raise TimeoutError(f"no answer within {timeout:g} s")


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
