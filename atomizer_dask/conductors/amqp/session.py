"""What publisher and consumer share: the connection, and the listeners."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from atomizer_dask.conductors.amqp.connection import NO_CONNECTION, BrokerConnection
from atomizer_dask.conductors.amqp.outgoing import REFUSED_SECONDS, Message
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.events import Event, Level

if TYPE_CHECKING:
    from atomizer_dask.conductor import Listener
    from atomizer_dask.conductors.amqp.address import Address
    from atomizer_dask.conductors.amqp.wire.message_members import Limits


class Session:
    """The connection, and the listeners that are given events and errors.

    Parameters
    ----------
    id
        The id of the conductor.
    address, queue
        The broker, and the queue that electrons are sent to and received from.
    limits
        The limits of a message.
    is_up, is_down
        Called on the thread of the connection when it is made, and when it is lost.
    flush
        Called on that thread soon after `wake`.
    """

    def __init__(
        self,
        id: str,
        address: Address,
        queue: str,
        limits: Limits,
        *,
        is_up: Callable[[], None],
        is_down: Callable[[], None],
        flush: Callable[[], None],
    ) -> None:
        self.id = id
        self.queue = queue
        self.limits = limits
        self.listeners: list[Listener] = []
        self._address = address
        self._flush = flush
        self._is_up = is_up
        self._is_down = is_down
        self._is_woken = False
        self.connection = BrokerConnection(
            address,
            f"atomizer-{id}",
            is_up=self._on_up,
            is_down=self._on_down,
            is_blocked=self._on_blocked,
            on_problem=self.report,
        )

    def wake(self) -> None:
        """Have `flush` called on the thread of the connection, once for several calls."""
        if not self._is_woken:
            self._is_woken = True
            self.connection.call(self._wake_up)

    def _wake_up(self) -> None:
        self._is_woken = False  # first: calls from here on need another flush
        self._flush()

    def _on_up(self) -> None:
        again = " again" if self.connection.generation > 1 else ""
        self.announce(f"connected to the broker at {self._address}{again}")
        self._is_up()

    def _on_down(self, reason: str) -> None:
        self._is_down()
        message = f"the broker at {self._address} is gone: {reason}; it goes on when that is back"
        if "acknowledgement" in reason and "timed out" in reason:
            message = (
                f"the broker at {self._address} took back electrons that take longer than its "
                "consumer_timeout, and others execute them too: raise it in rabbitmq.conf"
            )
        error = ConductorError(Event(message, conductor_id=self.id, level="error"))
        for listener in list(self.listeners):
            listener.emit(error.event)
            listener.report(error)

    def _on_blocked(self, reason: str) -> None:
        if reason:
            self.announce(f"the broker takes nothing just now: {reason}", "warning")
        else:
            self.announce("the broker takes messages again")

    def declare_own(self, queue: str) -> None:
        """Declare a queue that we need; announce where that fails."""
        self.connection.declare(queue, self._note_undeclared)

    def declare_and_send(self, message: Message) -> None:
        """Declare the queue that a message did not find, and send the message again."""

        def declared(reason: str) -> None:
            self._note_undeclared(reason)
            if reason and reason != NO_CONNECTION:
                self.connection.call_later(
                    REFUSED_SECONDS, partial(self.connection.outgoing.publish, message)
                )
            else:
                self.connection.outgoing.publish(message)

        self.connection.declare(message.queue, declared)

    def _note_undeclared(self, reason: str) -> None:
        if reason and reason != NO_CONNECTION:
            self.announce(f"the broker does not give us a queue: {reason}", "error")

    def announce(self, message: str, level: Level = "info") -> None:
        """Have the listeners note an event."""
        event = Event(message, conductor_id=self.id, level=level)
        for listener in list(self.listeners):
            listener.emit(event)

    def report(self, message: str, error: BaseException) -> None:
        """Have the listeners note an error."""
        wrapped = AtomizerError(Event(message, conductor_id=self.id, level="error"), error)
        for listener in list(self.listeners):
            listener.report(wrapped)
