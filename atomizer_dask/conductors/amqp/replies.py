"""Answers on their way to the senders of electrons, and messages that cannot be answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from atomizer_dask.conductors.amqp.connection import NO_CONNECTION
from atomizer_dask.conductors.amqp.outgoing import Message
from atomizer_dask.conductors.amqp.publisher import OURS
from atomizer_dask.conductors.amqp.session import Session

DEAD = ".dead"  # suffix of the queue for messages that cannot be answered
SENDERS = 100_000  # whose reply queue is known to have existed


class Replies:
    """Sends answers, and buries messages that cannot be answered in the dead-letter queue.

    All of it happens on the thread of the connection.

    Parameters
    ----------
    session
        The session, with the connection and the queue that electrons come from.

    Attributes
    ----------
    dead
        How many messages went to the dead-letter queue.
    """

    def __init__(self, session: Session) -> None:
        self.dead = 0
        self._session = session
        self._senders: set[str] = set()

    @property
    def dead_queue(self) -> str:
        """The name of the queue for messages that cannot be answered, for people to look at."""
        return self._session.queue + DEAD

    def send(
        self,
        sender_id: str,
        body: bytes,
        headers: Mapping[str, Any],
        done: Callable[[str], None],
        *,
        persistent: bool,
    ) -> None:
        """Send an answer.

        Parameters
        ----------
        sender_id
            The queue that the answer goes to.
        body, headers
            The body and the headers of the message.
        done
            Called with an empty text once the broker has the answer, or with why nobody gets it.
        persistent
            Whether the answer outlives the broker's process.
        """
        self._session.connection.outgoing.publish(
            Message(
                sender_id, body, self._on_sent, headers=headers, persistent=persistent, whose=done
            )
        )

    def bury(self, body: bytes, reason: str, done: Callable[[], None]) -> None:
        """Send a message to the dead-letter queue with a reason; call `done` once it is there."""
        self._session.announce(f"a message went to {self.dead_queue}: {reason}", "warning")
        headers = {"atomizer-reason": reason[:1000], "atomizer-queue": self._session.queue}
        self._session.connection.outgoing.publish(
            Message(
                self.dead_queue, body, self._on_buried, headers=headers, persistent=True, whose=done
            )
        )

    def _on_sent(self, message: Message, reason: str) -> None:
        if reason and self._tries_again(message):
            return
        if not reason:
            self._know(message.queue)
        message.whose(reason)

    def _tries_again(self, message: Message) -> bool:
        """Declare the queue of a sender that we do not know, as the peers do, and send again.

        The queue of a known sender is not declared again: that sender has closed, and nobody would
        read it. Peers of this package send nothing before their queue exists.
        """
        is_known = message.queue in self._senders or message.queue.startswith(OURS)
        if is_known or message.is_declared:
            return False
        self._session.connection.declare(message.queue, partial(self._send_again, message))
        return True

    def _send_again(self, message: Message, reason: str) -> None:
        message.is_declared = reason != NO_CONNECTION
        if reason and message.is_declared:
            self._on_sent(message, reason)
        else:
            self._session.connection.outgoing.publish(message)

    def _know(self, sender_id: str) -> None:
        if len(self._senders) >= SENDERS:
            self._senders.clear()
        self._senders.add(sender_id)

    def _on_buried(self, message: Message, reason: str) -> None:
        if reason:
            self._session.declare_and_send(message)
        else:
            self.dead += 1
            message.whose()
