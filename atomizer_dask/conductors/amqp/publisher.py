"""The electrons that an AMQP conductor has sent, each kept until it is answered.

Our electrons are not persistent: on the broker's disk, an eighth to a third fewer would be
answered per second. Instead the sender keeps each electron until it is answered, and sends it
again where the broker has lost it, as by a restart. The canary shows that: a message that is not
persistent either, in a queue of its own.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from itertools import compress
from typing import Any

from atomizer_dask.conductors.amqp.connection import NO_CONNECTION
from atomizer_dask.conductors.amqp.messages import (
    decode_properties,
    encode_electron,
    recognise_reply,
)
from atomizer_dask.conductors.amqp.outgoing import REFUSED_SECONDS, Message
from atomizer_dask.conductors.amqp.session import Session
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ConductorError, WireError
from atomizer_dask.events import Event
from atomizer_dask.execution.failure import Failure
from atomizer_dask.future import ElectronFuture
from atomizer_dask.properties import Properties

OURS = "atomizer_dask."  # prefix of our own queues, by which operators recognise them
REPLIES_AHEAD = 5000  # replies that the broker may send before we acknowledge
FORBIDDEN = "(403"  # in a reason: what the user may not do


class Publisher:
    """The electrons that have been sent and are not answered.

    But for `send`, all of it happens on the thread of the connection.

    Attributes
    ----------
    sender_id
        The name of our reply queue.
    sent, replies
        How many electrons were sent, and how many of them were answered.
    """

    def __init__(self, session: Session) -> None:
        self.sender_id = f"{OURS}{uuid.uuid4()}"
        self.sent = 0
        self.replies = 0
        self._session = session
        self._waiting: dict[str, tuple[ElectronFuture, bytes]] = {}
        self._outbox: deque[str] = deque()
        self._arrived: list[Properties] = []
        self._channel: Any = None
        self._last_tag = 0  # of the latest reply, where it is not acknowledged; else 0
        self._is_asked_for = False
        self._has_canary = False

    @property
    def _canary_queue(self) -> str:
        return f"{self.sender_id}.canary"

    @property
    def has_unsent(self) -> bool:
        """Whether electrons have not been given to the connection yet."""
        return bool(self._outbox)

    def send(self, electron: Electron, future: ElectronFuture) -> None:
        """Send an electron, from any thread; see `AmqpConductor.send`."""
        body = encode_electron(electron, self.sender_id, self._session.limits)
        if self._waiting.setdefault(electron.id, (future, body))[0] is not future:
            raise ConductorError(
                Event(
                    "an electron of this id is under way already; give each its own",
                    electron_id=electron.id,
                    conductor_id=self._session.id,
                )
            )
        self._outbox.append(electron.id)
        self._session.wake()

    def flush(self) -> None:
        """Resolve futures, acknowledge replies, and send electrons."""
        if self._arrived:
            self._deliver()
        if self._last_tag and self._channel is not None:
            self._channel.basic_ack(self._last_tag, multiple=True)
            self._last_tag = 0
        if self._outbox:
            self._send_all()

    def is_up(self) -> None:
        """Look for the canary on a new connection, or ask for the reply queue."""
        if self._is_asked_for:
            self._session.connection.count(self._canary_queue, self._note_canary)
        elif self._outbox:
            self._ask_for_replies()

    def is_down(self) -> None:
        """Note that the connection is lost."""
        self._channel = None
        self._last_tag = 0

    def queues(self) -> list[str]:
        """Return the queues that are ours alone."""
        return [self._canary_queue, self.sender_id] if self._channel is not None else []

    def fail(self, error: ConductorError) -> None:
        """End all unanswered electrons with an error, from any thread: no reply will arrive."""
        while self._waiting:
            try:
                _, (future, _) = self._waiting.popitem()
            except KeyError:  # another thread that fails them was faster
                return
            if not future.done():
                future.set_exception(error)

    # -- sending ----------------------------------------------------------------------------

    def _send_all(self) -> None:
        if self._channel is None:  # a reply must have a queue to come to
            self._ask_for_replies()
            return
        session = self._session
        for _ in range(len(self._outbox)):
            electron_id = self._outbox.popleft()
            future, body = self._waiting.get(electron_id, (None, b""))
            if future is None:
                continue
            if future.cancelled():
                future.set_running_or_notify_cancel()
                del self._waiting[electron_id]
                continue
            self.sent += 1
            session.connection.outgoing.publish(
                Message(session.queue, body, self._on_sent, whose=electron_id)
            )

    def _on_sent(self, message: Message, reason: str) -> None:
        if reason:  # somebody has deleted the queue
            self._session.declare_and_send(message)

    # -- being answered ---------------------------------------------------------------------

    def _ask_for_replies(self) -> None:
        connection = self._session.connection
        if connection.state != "connected" or self._is_asked_for:
            return
        self._is_asked_for = True
        self._session.declare_own(self._session.queue)
        connection.declare(self._canary_queue, self._on_canary_queue)
        connection.declare(self.sender_id, self._on_reply_queue)

    def _on_canary_queue(self, reason: str) -> None:
        if not reason and not self._has_canary:
            self._session.connection.outgoing.publish(
                Message(self._canary_queue, b"{}", self._on_canary)
            )

    def _on_canary(self, message: Message, reason: str) -> None:
        self._has_canary = not reason  # only once the broker has confirmed it

    def _on_reply_queue(self, reason: str) -> None:
        if not reason:
            self._session.connection.channel(self._on_channel)
        elif reason != NO_CONNECTION:
            self._is_asked_for = False
            self._do_without_replies(reason)

    def _do_without_replies(self, reason: str) -> None:
        """Fail the electrons where a reply queue is forbidden; else ask for one again later."""
        message = f"the broker gives us no queue for replies: {reason}"
        self._session.announce(message, "error")
        if FORBIDDEN not in reason:
            self._session.connection.call_later(REFUSED_SECONDS, self._ask_for_replies)
            return
        self._outbox.clear()  # first: electrons sent meanwhile ask again
        advice = "let the user configure, write and read queues: rabbitmqctl set_permissions"
        self.fail(
            ConductorError(
                Event(f"{message}; {advice}", conductor_id=self._session.id, level="error")
            )
        )

    def _on_channel(self, channel: Any) -> None:
        channel.basic_qos(prefetch_count=REPLIES_AHEAD)
        channel.add_on_cancel_callback(self._on_deleted)
        self._session.connection.consume(channel, self.sender_id, self._on_reply)
        self._channel = channel
        self._send_all()

    def _on_reply(
        self, tag: int, mode: int | None, headers: Mapping[str, Any] | None, body: bytes
    ) -> None:
        self._last_tag = tag
        try:
            self._arrived.append(decode_properties(body, headers, self._session.limits))
        except WireError as error:
            self._session.report("received a reply that cannot be read", error)
            self._fail_unread(body, error)
        self._session.wake()

    def _fail_unread(self, body: bytes, error: WireError) -> None:
        """End the electron of a reply that cannot be read: no other reply will come."""
        electron_id, atom_id = recognise_reply(body)
        known = self._waiting.get(electron_id)
        if known is not None:
            why = "it was answered, but the answer cannot be read"
            electron = Electron(atom_id or "unknown", id=electron_id)
            failure = Failure.rejected(error, why, error.event.message)
            self._arrived.append(failure.properties(electron))

    def _deliver(self) -> None:
        arrived, self._arrived = self._arrived, []
        futures, results = [], []
        for properties in arrived:
            known = self._waiting.pop(properties.electron_id, None)
            if known is not None:  # else this is a second reply, after a lost connection
                futures.append(known[0])
                results.append(properties)
        self.replies += len(futures)
        alive = ElectronFuture.start_all(futures)
        ElectronFuture.finish_all(list(compress(futures, alive)), list(compress(results, alive)))

    # -- what the broker may have forgotten -------------------------------------------------

    def _note_canary(self, reason: str, count: int) -> None:
        if reason == NO_CONNECTION:  # the next connection asks
            return
        self._is_asked_for = False
        if not count:
            self._has_canary = False
            self._send_again()
        self._ask_for_replies()

    def _on_deleted(self, _: Any) -> None:
        """Send again where somebody has deleted our reply queue, and replies with it."""
        if self._channel is None:  # we deleted it
            return
        self._channel = None
        self._last_tag = 0
        self._is_asked_for = False
        self._send_again()
        self._ask_for_replies()

    def _send_again(self) -> None:
        under_way = self._session.connection.outgoing.whose().union(self._outbox)
        again = [electron_id for electron_id in list(self._waiting) if electron_id not in under_way]
        self._outbox.extend(again)
        if again:
            self._session.announce(
                f"the broker has forgotten electrons; {len(again):,} are sent again"
            )
