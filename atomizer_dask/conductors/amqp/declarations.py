"""Queues that are declared and counted, one after another, on a channel of their own.

The broker closes a channel on which a client declares a queue that exists with other properties,
or counts the messages of a queue that does not exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

TAKEN = (405, 406)  # the reply codes where a queue exists, locked or with other properties


class _Question(NamedTuple):
    queue: str
    is_passive: bool
    done: Callable[[str, int], None]


class Declarations:
    """The queues to declare and count on one connection; all on its thread.

    Parameters
    ----------
    connection
        The connection of `pika`.
    guarded
        Calls a function that may raise.
    reason_of
        Returns the text of the error with which pika closes a channel.
    """

    def __init__(
        self,
        connection: Any,
        guarded: Callable[[Callable[[], Any]], None],
        reason_of: Callable[[Any], str],
    ) -> None:
        self._connection = connection
        self._guarded = guarded
        self._reason_of = reason_of
        self._questions: deque[_Question] = deque()
        self._channel: Any = None
        self._is_busy = False

    def count(self, queue: str, done: Callable[[str, int], None]) -> None:
        """Call `done` with an empty text and the number of ready messages, or the error and 0."""
        self._questions.append(_Question(queue, True, done))
        self._go_on()

    def declare(self, queue: str, done: Callable[[str], None]) -> None:
        """Declare a durable queue, and call `done` with an empty text, or with why that failed.

        A queue that exists with other properties is used as it is.
        """
        self._questions.append(_Question(queue, False, lambda reason, _: done(reason)))
        self._go_on()

    def end(self, reason: str) -> None:
        """Call `done` of all open questions with a reason: the connection is lost."""
        left, self._questions = self._questions, deque()
        for question in left:
            self._guarded(partial(question.done, reason, 0))

    def _go_on(self) -> None:
        """Begin with the next question, unless one is under way."""
        if self._is_busy or not self._questions or not self._connection.is_open:
            return  # `end` answers them
        self._is_busy = True
        if self._channel is None:
            self._connection.channel(on_open_callback=self._on_open)
        else:
            self._ask()

    def _ask(self) -> None:
        question = self._questions[0]
        self._channel.queue_declare(
            question.queue,
            passive=question.is_passive,
            durable=True,
            callback=lambda frame: self._answer("", frame.method.message_count),
        )

    def _on_open(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_closed)
        self._ask()

    def _on_closed(self, channel: Any, error: Any) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        if self._questions and self._connection.is_open:
            is_taken = getattr(error, "reply_code", 0) in TAKEN
            is_taken = is_taken and not self._questions[0].is_passive
            self._answer("" if is_taken else self._reason_of(error))

    def _answer(self, reason: str, count: int = 0) -> None:
        self._is_busy = False
        if self._questions:
            self._guarded(partial(self._questions.popleft().done, reason, count))
            self._go_on()
