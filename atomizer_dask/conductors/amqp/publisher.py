"""What an AMQP conductor has sent: each electron until it is answered.

Our electrons are not kept on the broker's disk, with which an eighth to a third fewer a second are
answered: who sends them keeps them until they are answered, and sends them again should the broker
have forgotten. A canary shows it: a message of the same kind in a queue of its own.
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

OURS = "atomizer_dask."  # begins the names of our own queues, and shows operators whose they are
REPLIES_AHEAD = 5000  # replies that the broker may send before we acknowledge
FORBIDDEN = "(403"  # in a reason: what the user may not do


class Publisher:
    """What has been sent and is not answered.

    But for `send`, all of it happens on the thread of the connection.

    Attributes
    ----------
    sender_id
        Names our reply queue.
    sent, replies
        How many electrons went out, and how many of them were answered.
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
        self._last_tag = 0  # of a reply that is not acknowledged, 0 for none
        self._is_asked_for = False
        self._has_canary = False

    @property
    def _canary_queue(self) -> str:
        return f"{self.sender_id}.canary"

    @property
    def has_unsent(self) -> bool:
        """Whether something has not been given to the connection."""
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
        """Do what has come up."""
        if self._arrived:
            self._deliver()
        if self._last_tag and self._channel is not None:
            self._channel.basic_ack(self._last_tag, multiple=True)
            self._last_tag = 0
        if self._outbox:
            self._send_all()

    def is_up(self) -> None:
        """Go on with a new connection."""
        if self._is_asked_for:
            self._session.connection.count(self._canary_queue, self._look_for_canary)
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
        """End what is unanswered, from any thread: nothing more will arrive."""
        while self._waiting:
            try:
                _, (future, _) = self._waiting.popitem()
            except KeyError:  # another thread that does the same was faster
                return
            if not future.done():
                future.set_exception(error)

    # -- sending ----------------------------------------------------------------------------

    def _send_all(self) -> None:
        if self._channel is None:  # who sends must be able to hear the answer
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
        self._has_canary = not reason  # from here on: not while it may be lost itself

    def _on_reply_queue(self, reason: str) -> None:
        if not reason:
            self._session.connection.channel(self._on_channel)
        elif reason != NO_CONNECTION:
            self._is_asked_for = False
            self._do_without_replies(reason)

    def _do_without_replies(self, reason: str) -> None:
        """End what could never be answered; try again where the broker may change its mind."""
        message = f"the broker gives us no queue for replies: {reason}"
        self._session.announce(message, "error")
        if FORBIDDEN not in reason:
            self._session.connection.call_later(REFUSED_SECONDS, self._ask_for_replies)
            return
        self._outbox.clear()  # first: what is sent meanwhile asks again
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
        """End the electron of a reply that cannot be read: there will be no other."""
        electron_id, atom_id = recognise_reply(body)
        known = self._waiting.get(electron_id)
        if known is not None:
            message = f"it was answered, but the answer cannot be read: {error.event.message}"
            electron = Electron(atom_id or "unknown", id=electron_id)
            failure = Failure("rejected", type(error).__name__, message)
            self._arrived.append(failure.properties(electron))

    def _deliver(self) -> None:
        arrived, self._arrived = self._arrived, []
        futures, results = [], []
        for properties in arrived:
            known = self._waiting.pop(properties.electron_id, None)
            if known is not None:  # else it is answered twice, as may happen after a cut
                futures.append(known[0])
                results.append(properties)
        self.replies += len(futures)
        alive = ElectronFuture.start_all(futures)
        ElectronFuture.finish_all(list(compress(futures, alive)), list(compress(results, alive)))

    # -- what the broker may have forgotten -------------------------------------------------

    def _look_for_canary(self, reason: str, count: int) -> None:
        if reason == NO_CONNECTION:  # the next one is asked
            return
        self._is_asked_for = False
        if not count:
            self._has_canary = False
            self._send_again()
        self._ask_for_replies()

    def _on_deleted(self, _: Any) -> None:
        """Go on where somebody has deleted our reply queue, and answers with it."""
        if self._channel is None:  # it was we
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
