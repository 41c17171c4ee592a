"""Sending an electron for the latest of many requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Literal, NamedTuple

from atomizer_dask.events import log_problem
from atomizer_dask.interruptible import wait_for
from atomizer_dask.properties import Properties

DEBOUNCE_SECONDS = 0.15  # without a further request, after which an electron is sent


Fate = Literal["last", "earlier", "cancelled"]


class Request(NamedTuple):
    """The inputs for an electron.

    Parameters
    ----------
    number
        Counts the requests from 1.
    inputs
        Values by parameter.
    wait
        Seconds to wait for a later request before the electron is sent.
    """

    number: int
    inputs: dict[str, Any]
    wait: float


class Latest:
    """Sends an electron for the latest request, and cancels the one for an earlier request.

    `send` and `on_outcome` are called in one thread of its own: they may block, and need no locks
    against each other.

    Parameters
    ----------
    name
        Name of the thread.
    send
        Sends an electron with the inputs.
    on_outcome
        Called with a request, its outcome and its fate. The outcome is the Properties of its
        electron, the exception with which sending it failed, or None where it was cancelled before
        it began. The fate is ``last``; ``earlier`` where there is a later request; ``cancelled``
        where a later request cancelled the electron before it ended.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[dict[str, Any]], Future[Properties]],
        on_outcome: Callable[[Request, Properties | BaseException | None, Fate], None],
    ) -> None:
        self._send = send
        self._on_outcome = on_outcome
        self._messages: SimpleQueue[Request | tuple[Request, Future[Properties]] | None]
        self._messages = SimpleQueue()
        self._under_way: tuple[Request, Future[Properties]] | None = None
        self._cancelled: set[int] = set()
        self._asked = self._answered = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def ask(self, inputs: dict[str, Any], *, at_once: bool = False) -> None:
        """Have an electron sent with these inputs, unless others come soon."""
        with self._changed:
            self._asked += 1
            request = Request(self._asked, inputs, 0.0 if at_once else DEBOUNCE_SECONDS)
            self._messages.put(request)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the latest request has an outcome, or `close`; return False on timeout."""
        return wait_for(
            self._changed, lambda: self._answered == self._asked or self._closed, timeout
        )

    def close(self) -> None:
        """Cancel the electron under way, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._messages.put(None)

    def _work(self) -> None:
        last: Request | None = None
        until: float | None = None
        while not self._closed:
            try:
                left = None if until is None else max(0.0, until - monotonic())
                message = self._messages.get(timeout=left)
            except Empty:
                assert last is not None
                until = None
                self._begin(last)
                continue
            if isinstance(message, Request):
                last, until = message, monotonic() + message.wait
                self._cancel()
            elif message is not None:
                self._end(*message)
        self._cancel()

    def _begin(self, request: Request) -> None:
        try:
            future = self._send(request.inputs)
        except Exception as error:  # noqa: BLE001 - it goes to whoever asked
            self._answer(request, error)
            return
        self._under_way = request, future
        future.add_done_callback(lambda future: self._messages.put((request, future)))

    def _cancel(self) -> None:
        if self._under_way is None:
            return
        request, future = self._under_way
        self._under_way = None
        if not future.done():
            # An atom that heeds the cancel may still return a result, of only part of its work.
            self._cancelled.add(request.number)
            future.cancel()

    def _end(self, request: Request, future: Future[Properties]) -> None:
        if future.cancelled():
            self._answer(request, None)
        elif (error := future.exception()) is not None:
            self._answer(request, error)
        else:
            self._answer(request, future.result())

    def _answer(self, request: Request, outcome: Properties | BaseException | None) -> None:
        fate: Fate = "last" if request.number == self._asked else "earlier"
        if request.number in self._cancelled:
            self._cancelled.discard(request.number)
            fate = "cancelled"
        try:
            self._on_outcome(request, outcome, fate)
        except Exception as error:  # noqa: BLE001 - it must not end the thread
            log_problem("what became of an electron could not be shown", error)
        with self._changed:
            self._answered = max(self._answered, request.number)
            self._changed.notify_all()
