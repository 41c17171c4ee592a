"""The connection to a broker, which reconnects: published messages arrive in the end.

All of it happens on one thread, on which `pika` runs the connection: other threads post functions
to it by `call`. We chose pika over aio-pika: it publishes a message in 10 microseconds and receives
one in 14, several times faster than with tasks and futures for each message; and it needs no event
loop of its user, who has Jupyter's or none.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from atomizer_dask.conductors.amqp.address import Address
from atomizer_dask.conductors.amqp.declarations import Declarations
from atomizer_dask.conductors.amqp.outgoing import Message, Outgoing
from atomizer_dask.conductors.status import ConductorState
from atomizer_dask.config import setting
from atomizer_dask.errors import ConductorError, text_of
from atomizer_dask.events import Event
from atomizer_dask.interruptible import result_of

if TYPE_CHECKING:
    from atomizer_dask.conductors.amqp.pika_connection import OnMessage


FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0  # seconds
NO_CONNECTION = "the connection was lost"
HANG_UP_SECONDS = 2.0  # for the broker to close the connection; a blocked one does not
STEADY_SECONDS = 1.0  # that a connection must hold, or the next attempt waits longer
ANSWER_SECONDS = 10.0  # for the thread to run a function


class BrokerConnection:
    """A connection that is made again whenever it is lost.

    Parameters
    ----------
    address
        The address of the broker.
    name
        The name of the thread.
    is_up
        Called on the thread whenever there is a connection, the first time before `open` returns.
    is_down
        Called on the thread whenever the connection is lost, with the reason.
    is_blocked
        Called on the thread when the broker takes no more messages, with the reason, and with an
        empty text when it takes messages again.
    on_problem
        Called with a message and an exception of a bug, or of the broker's misbehaviour.

    Attributes
    ----------
    outgoing
        The messages that the broker has not confirmed.
    state
        Whether there is a connection.
    generation
        The number of the connection: delivery tags of an earlier one are invalid.
    blocked
        Why the broker takes no messages at present; empty where it does.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        *,
        is_up: Callable[[], None],
        is_down: Callable[[str], None],
        is_blocked: Callable[[str], None],
        on_problem: Callable[[str, BaseException], None],
    ) -> None:
        self.address = address
        self.state: ConductorState = "reconnecting"
        self.generation = 0
        self.blocked = ""
        self.outgoing = Outgoing(
            self._send,
            can_send=self._can_send,
            call_later=self.call_later,
            guarded=self._guarded,
        )
        self._name = name
        self._is_up = is_up
        self._is_down = is_down
        self._is_blocked = is_blocked
        self._on_problem = on_problem
        self._first: Future[None] = Future()
        self._failures = 0
        self._patient_until = 0.0
        self._connection: Any = None
        self._channel: Any = None
        self._declarations: Declarations | None = None
        self._pika: Any = None  # our module `pika_connection`, loaded by `open`
        self._loop: Any = None
        self._thread: threading.Thread | None = None

    # -- from any thread --------------------------------------------------------------------

    def open(self, patience: float = 0.0) -> None:
        """Connect.

        Parameters
        ----------
        patience
            Seconds for which a failed attempt is repeated.

        Raises
        ------
        ConductorError
            Where that fails; the message says what to do.
        """
        try:
            from atomizer_dask.conductors.amqp import pika_connection
        except ModuleNotFoundError as error:
            raise ConductorError(
                "AMQP needs pika, which is not installed: pip install 'atomizer_dask[amqp]'"
            ) from error
        self._pika = pika_connection
        self._loop = pika_connection.IOLoop()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._patient_until = monotonic() + patience
        self.call(self._connect)
        try:
            result_of(self._first, patience + setting("amqp.connect-timeout") + 1)
        except TimeoutError:
            self.abandon()
            raise _unreachable(self.address, "no answer in time") from None
        except BaseException:
            self.abandon()
            raise

    def call(self, function: Callable[[], Any]) -> None:
        """Have a function called on the thread soon."""
        self._loop.add_callback_threadsafe(partial(self._take_turn, function))

    def _take_turn(self, function: Callable[[], Any]) -> None:
        self._guarded(function)
        if self._connection is not None:
            self._connection.emit()  # now, rather than in the next turn

    def call_later(self, seconds: float, function: Callable[[], Any]) -> None:
        """Have a function called after some seconds; to be called on the thread."""
        self._loop.call_later(seconds, lambda: self._guarded(function))

    def ask(self, function: Callable[[], Any]) -> Any:
        """Have a function called on the thread, and return what it returns."""
        if self.is_current:
            return function()
        answer: Future[Any] = Future()

        def act() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                answer.set_exception(error)

        self.call(act)
        return result_of(answer, ANSWER_SECONDS)

    def abandon(self) -> None:
        """Close the connection and end the thread; unconfirmed messages are given up."""
        if self._thread is None or self.state == "closed":
            return
        self.state = "closed"
        self.call(self._hang_up)
        if not self.is_current:
            self._thread.join(ANSWER_SECONDS)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is that of the connection."""
        return threading.current_thread() is self._thread

    # -- on the thread ----------------------------------------------------------------------

    def channel(self, ready: Callable[[Any], None]) -> None:
        """Have a channel opened; where the broker closes it, the connection is closed too."""

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(self._on_channel_closed)
            self._guarded(lambda: ready(channel))

        self._connection.channel(on_open_callback=opened)

    def consume(self, channel: Any, queue: str, on_message: OnMessage) -> str:
        """Have `on_message` called with messages from a queue; return the consumer's tag."""
        consumer: str = self._connection.consume(channel, queue, on_message)
        return consumer

    def cancel(self, channel: Any, consumer: str) -> None:
        """Cancel a consumer: it gets no more messages."""
        self._connection.cancel(channel, consumer)

    def count(self, queue: str, done: Callable[[str, int], None]) -> None:
        """Do what `Declarations.count` does; without a connection `done` gets `NO_CONNECTION`."""
        if self._declarations is None:
            done(NO_CONNECTION, 0)
        else:
            self._declarations.count(queue, done)

    def declare(self, queue: str, done: Callable[[str], None]) -> None:
        """Do what `Declarations.declare` does; without a connection `done` gets `NO_CONNECTION`."""
        if self._declarations is None:
            done(NO_CONNECTION)
        else:
            self._declarations.declare(queue, done)

    def delete(self, queues: list[str], done: Callable[[], None]) -> None:
        """Have queues deleted, and `done` called when the last one is."""
        for queue in queues[:-1]:
            self._channel.queue_delete(queue)
        self._channel.queue_delete(queues[-1], callback=lambda _: done())

    def _run(self) -> None:
        while True:
            try:
                self._loop.start()
            except BaseException as error:  # noqa: BLE001 - nothing that arrives may end the thread
                if self.state == "closed":
                    break
                self._on_problem("the connection to the broker broke down", error)
                self._guarded(lambda: self._close_connection("internal error"))
            else:
                break
        self._loop.close()

    def _guarded(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - one thing that fails must not stop the rest
            self._on_problem("internal error", error)

    def _connect(self) -> None:
        if self.state == "closed":
            return
        try:
            self._connection = self._pika.connect(
                self.address,
                self._loop,
                is_open=self._on_open,
                has_failed=self._on_failed,
                is_closed=lambda error: self._lose(_reason(error)),
            )
        except Exception as error:  # noqa: BLE001 - a certificate that cannot be read, and the like
            self._on_failed(error)

    def _on_failed(self, error: BaseException) -> None:
        self._connection = None
        if self._gives_up(error):
            return
        self._retry()

    def _gives_up(self, error: Any) -> bool:
        """Return whether the first connection is given up; if so, `open` raises the error."""
        if self._first.done() or monotonic() < self._patient_until:
            return False
        self._first.set_exception(_unreachable(self.address, error))
        return True

    def _retry(self) -> None:
        if self.state == "closed":
            return
        # Exponential with jitter, so that many clients of one broker do not return at once.
        longest = min(FIRST_BACKOFF * 2.0**self._failures, LONGEST_BACKOFF)
        self._failures = min(self._failures + 1, 30)
        self.call_later(longest * random.uniform(0.5, 1.0), self._connect)  # noqa: S311 - no secret

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self.channel(self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_return_callback(self._on_returned)
        channel.confirm_delivery(self._on_confirmed, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Any) -> None:
        if self.state == "closed":
            return
        self._channel = channel
        self._declarations = Declarations(self._connection, self._guarded, _reason)
        self.generation += 1
        self.call_later(STEADY_SECONDS, partial(self._note_steady, self.generation))
        self.state = "connected"
        self._guarded(self._is_up)
        self.outgoing.drain()
        if not self._first.done():
            self._first.set_result(None)

    def _note_steady(self, generation: int) -> None:
        """Note that a connection holds, unlike one that ends at the first request."""
        if generation == self.generation and self.state == "connected":
            self._failures = 0

    def _on_channel_closed(self, channel: Any, error: BaseException) -> None:
        self._close_connection(_reason(error))

    def _close_connection(self, reason: str) -> None:
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.close(320, reason[:200])

    def _lose(self, reason: str) -> None:
        """Note that the connection is gone, keep unconfirmed messages, and connect again."""
        self._connection = self._channel = None
        declarations, self._declarations = self._declarations, None
        self.blocked = ""
        self.outgoing.put_back()
        if self.state == "closed":
            self._loop.stop()
            return
        was_up = self.state == "connected"
        self.state = "reconnecting"
        if self._gives_up(reason):
            return
        if was_up:
            self._guarded(lambda: self._is_down(reason))
        if declarations is not None:
            declarations.end(NO_CONNECTION)
        self._retry()

    def _hang_up(self) -> None:
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.close()  # `_lose` stops the loop
            self.call_later(HANG_UP_SECONDS, connection.drop)
            return
        if connection is not None:  # pika cannot close a connection that is opening
            connection.drop()
        self.call(self._loop.stop)

    # -- publishing -------------------------------------------------------------------------

    def _can_send(self) -> bool:
        """Return whether the broker takes messages; it does not while the channel closes."""
        return self.state == "connected" and self._channel.is_open and not self.blocked

    def _send(self, message: Message) -> None:
        self._connection.publish(
            self._channel,
            message.queue,
            message.body,
            persistent=message.persistent,
            headers=message.headers,
        )

    def _on_confirmed(self, frame: Any) -> None:
        method = frame.method
        is_refused = self._pika.is_refusal(method)
        self.outgoing.confirm(method.delivery_tag, method.multiple, is_refused=is_refused)

    def _on_returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.outgoing.note_returned(method.routing_key, body)

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "it has no memory or disk space left"
        self._guarded(partial(self._is_blocked, self.blocked))

    def _on_unblocked(self, *_: Any) -> None:
        self.blocked = ""
        self._guarded(partial(self._is_blocked, ""))
        self.outgoing.drain()


def _unreachable(address: Address, error: Any) -> ConductorError:
    reason = _reason(error)
    what = (
        f"nobody serves AMQP at {address}: {reason}; check that RabbitMQ runs there, and "
        "that scheme, host and port are right"
    )
    if "(403)" in reason:
        what = (
            f"the broker at {address} does not let us in: {reason}; check user and "
            "password, those of the URL, else of ATOMIZER_AMQP_USER and "
            "ATOMIZER_AMQP_PASSWORD, else guest, who may come from the broker's machine only"
        )
    elif "(530)" in reason:
        what = (
            f"the broker at {address} does not let us in: {reason}; check the virtual "
            "host, what comes after the port and a / in the URL"
        )
    return ConductorError(Event(what, level="error"))


def _reason(error: Any) -> str:
    """Return why a connection failed: the text of the innermost exception."""
    while not isinstance(error, str):
        # pika keeps inner exceptions in three places.
        within = [*getattr(error, "exceptions", ()), *getattr(error, "args", ())]
        within.append(getattr(error, "exception", None))
        inner = [cause for cause in within if isinstance(cause, BaseException)]
        if not inner:
            text = text_of(error)
            return f"{type(error).__name__}: {text}" if text else type(error).__name__
        error = inner[-1]
    return error
