"""The one thread on which all drivers of a conductor decide."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from time import monotonic
from traceback import walk_stack
from typing import Any, TypeVar

from atomizer_dask.errors import AtomizerError, ConductorError, where_raised
from atomizer_dask.events import Event
from atomizer_dask.interruptible import SLICE_SECONDS, has_ended

logger = logging.getLogger(__name__)
STUCK_SECONDS = 5.0  # in one action, after which nobody waits for the dispatcher's thread
STORING_SECONDS = 20.0  # likewise where the action writes to a store
STORING = "atomizer_dask.store."  # prefix of the names of modules that do so
ACT_SECONDS = 60.0  # for an action that somebody waits for; it takes milliseconds
T = TypeVar("T")


def as_error(error: BaseException) -> AtomizerError:
    """Return an exception of the dispatcher's thread as an `AtomizerError`, wrapped if need be."""
    if isinstance(error, AtomizerError):
        return error
    return AtomizerError(Event(f"it cannot go on: {where_raised(error)}", level="error"), error)


class Dispatcher:
    """One thread that does, in order, what is posted to it.

    Parameters
    ----------
    conductor_id
        The id of the conductor, which the thread's name has.
    on_error
        Called with an exception that an action raised; it never ends the thread.
    """

    def __init__(self, conductor_id: str, on_error: Callable[[BaseException], None]) -> None:
        self._conductor_id = conductor_id
        self._inbox: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._later: list[tuple[float, int, Callable[[], Any]]] = []
        self._order = itertools.count()
        self._on_error = on_error
        self._begun: float | None = None  # when the running action began; None between actions
        self._thread = threading.Thread(
            target=self._run, name=f"atomizer-{conductor_id}", daemon=True
        )
        self._thread.start()

    def post(self, action: Callable[[], Any]) -> None:
        """Have `action` called soon."""
        self._inbox.put(action)

    def post_later(self, seconds: float, action: Callable[[], Any]) -> None:
        """Have `action` called after some seconds; to be called on the thread itself."""
        heappush(self._later, (monotonic() + seconds, next(self._order), action))

    def ask(self, action: Callable[[], T]) -> Future[T]:
        """Have `action` called soon; the future has its result or exception."""
        answer: Future[T] = Future()

        def act() -> None:
            try:
                result = action()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self.post(act)
        return answer

    def do(self, action: Callable[[], Any]) -> None:
        """Have `action` called, and wait for it; on the thread itself it is called a little later.

        Raises
        ------
        ConductorError
            Where the thread is stuck in something else, or has ended.
        Exception
            Whatever the action raises.
        """
        if self.is_current:
            self.post(action)
            return
        answer, until = self.ask(action), monotonic() + ACT_SECONDS
        while not has_ended(answer, SLICE_SECONDS):
            if not self.is_alive:
                raise ConductorError(
                    Event("the conductor is closed", conductor_id=self._conductor_id)
                )
            if self.is_stuck or monotonic() > until:
                raise ConductorError(self.obstacle)
        answer.result()

    @property
    def obstacle(self) -> Event:
        """An event that says what the thread is busy with, for a caller that waits in vain."""
        message = (
            f"the thread that directs all runs of the conductor has been busy for "
            f"{self.busy_seconds:.0f} s in {self.whereabouts()}: a function such as "
            "on_failure, or a file system, does not return"
        )
        return Event(message, conductor_id=self._conductor_id, level="error")

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the dispatcher's."""
        return threading.current_thread() is self._thread

    @property
    def is_alive(self) -> bool:
        """Whether the thread still runs actions that are posted."""
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """Seconds since the running action began; 0 between actions."""
        begun = self._begun
        return 0.0 if begun is None else monotonic() - begun

    def whereabouts(self) -> str:
        """Return the function, the file and the line that the thread is in."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return "nowhere"
        code = frame.f_code
        return f"{code.co_qualname}, {code.co_filename}:{frame.f_lineno}"

    def close(self) -> bool:
        """End the thread once everything posted before has been done; return whether it has ended.

        A thread that is stuck in one action, perhaps in a function of the user's, is not waited
        for. An action that writes to a store may take longer before it counts as stuck.
        """
        self._inbox.put(None)
        if self.is_current:
            return True
        while self.is_alive and not self.is_stuck:
            self._thread.join(SLICE_SECONDS)
        return not self.is_alive

    @property
    def is_stuck(self) -> bool:
        """Whether one action has taken so long that something is wrong."""
        if self.busy_seconds < STUCK_SECONDS:
            return False
        return self.busy_seconds > STORING_SECONDS or not self._is_storing()

    def _is_storing(self) -> bool:
        frame = sys._current_frames().get(self._thread.ident or 0)
        frames = walk_stack(frame) if frame is not None else ()
        return any(str(each.f_globals.get("__name__")).startswith(STORING) for each, _ in frames)

    def _run(self) -> None:
        while (action := self._next()) is not None:
            self._begun = monotonic()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - SystemExit too: others wait for this thread
                self._report(error)
            self._begun = None
            del action  # it refers to its run, which would live until the next action

    def _report(self, error: BaseException) -> None:
        try:
            self._on_error(error)
        except BaseException:
            logger.exception("an error of the dispatcher could not be reported")

    def _next(self) -> Callable[[], Any] | None:
        """Return the next action; None at the end."""
        while self._later:
            due = self._later[0][0] - monotonic()
            try:
                return self._inbox.get(timeout=max(due, 0)) if due > 0 else heappop(self._later)[2]
            except Empty:
                continue
        return self._inbox.get()
