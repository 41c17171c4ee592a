"""How an AMQP conductor serves a queue: what it has received, until it is answered.

An electron is acknowledged only when the broker has confirmed its reply: wherever this process
dies, the broker has the one or the other. What it delivers again for that reason is not executed
again by whoever still knows it. A reply is kept on the broker's disk where its electron was.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic, time_ns
from typing import Any

from atomizer_dask.conductors.amqp.acknowledgements import Acks
from atomizer_dask.conductors.amqp.connection import NO_CONNECTION
from atomizer_dask.conductors.amqp.frames import PERSISTENT
from atomizer_dask.conductors.amqp.message_members import ExpiredError
from atomizer_dask.conductors.amqp.messages import (
    decode_electron,
    details_of,
    encode_properties,
    recognise,
)
from atomizer_dask.conductors.amqp.outgoing import Message
from atomizer_dask.conductors.amqp.prefetch import Prefetch
from atomizer_dask.conductors.amqp.publisher import OURS
from atomizer_dask.conductors.amqp.session import Session
from atomizer_dask.conductors.amqp.unanswered import Answer, PendingElectron, Unanswered
from atomizer_dask.electron import Electron
from atomizer_dask.errors import WireError
from atomizer_dask.execution.failure import Failure, utc
from atomizer_dask.properties import Properties

TICK_SECONDS = 0.1
SENDERS = 100_000  # whose reply queue is known to have been there
DEAD = ".dead"


class Delivery:
    """A message that the broker has delivered, by itself and as it is known to the broker."""

    __slots__ = ("body", "persistent", "tag")

    def __init__(self, tag: tuple[int, int], body: bytes, persistent: bool) -> None:
        self.tag = tag
        self.body = body
        self.persistent = persistent


class Consumer:
    """The receiving side.

    But for `take`, `complete` and `drain`, all of it happens on the thread of the connection.

    Attributes
    ----------
    unanswered
        What is received and not answered.
    is_open
        Whether electrons are taken.
    is_empty
        Set while none is in hand.
    counts
        By the names of `QueueStatus`.
    seconds
        From receiving to answering, of all answered.
    oldest
        When that was received which has been in hand for longest, a tenth of a second ago.
    """

    def __init__(self, session: Session, max_in_flight: int) -> None:
        self.unanswered = Unanswered()
        self.is_open = False
        self.is_empty = threading.Event()
        self.is_empty.set()
        self.counts = dict.fromkeys(
            ("received", "answered", "failed", "repeated", "given_back", "dead"), 0
        )
        self.seconds = 0.0
        self.oldest = inf
        self.inbox: SimpleQueue[list[Electron] | None] = SimpleQueue()
        self._session = session
        self._acks = Acks()
        self._prefetch = Prefetch(max_in_flight)
        self._taken: list[Electron] = []
        self._completed: deque[Properties] = deque()
        self._channel: Any = None
        self._consumer_tag = ""
        self._senders: set[str] = set()
        self._answered_before, self._ticked, self._beginnings = 0, 0.0, 0

    @property
    def prefetch(self) -> int:
        """How many electrons the broker may leave here."""
        return self._prefetch.count if self.is_open else 0

    @property
    def _dead_queue(self) -> str:
        return self._session.queue + DEAD

    # -- from any thread --------------------------------------------------------------------

    def complete(self, properties: Properties) -> None:
        """Answer an electron."""
        self._completed.append(properties)
        self._session.wake()

    def drain(self) -> list[Electron]:
        """Take no more electrons, and return those that nobody has been given."""
        self._session.connection.ask(self._close)
        left: list[Electron] = []
        while True:
            try:
                left += self.inbox.get_nowait() or ()
            except Empty:
                break
        self.inbox.put(None)
        return left

    # -- being connected, and not -----------------------------------------------------------

    def open(self) -> SimpleQueue[list[Electron] | None]:
        """Take electrons from the queue as soon as there is a connection; return the inbox."""
        self.is_open = True
        self.inbox = SimpleQueue()
        if self._session.connection.state == "connected":
            self.is_up()
        return self.inbox

    def is_up(self) -> None:
        """Go on with a new connection."""
        if self.is_open:
            self._session.declare_own(self._session.queue)
            self._session.connection.declare(self._dead_queue, self._on_declared)

    def is_down(self) -> None:
        """Note that the connection is lost."""
        self._channel = None

    def flush(self) -> None:
        """Do what has come up."""
        if self._taken:
            self.inbox.put(self._taken)
            self._taken = []
        for _ in range(len(self._completed)):
            self._answer(self._completed.popleft())
        if self._channel is not None and self._channel.is_open:
            upto, others = self._acks.flush()
            if upto:
                self._channel.basic_ack(upto, multiple=True)
            for tag in others:
                self._channel.basic_ack(tag)

    def _on_declared(self, reason: str) -> None:
        """Consume, once the queue is there."""
        if reason == NO_CONNECTION:
            return
        if self._channel is None:
            self._session.connection.channel(self._on_channel)
        else:  # again on the same, for deliveries of before may not be acknowledged yet
            self._begin(self._channel)

    def _on_channel(self, channel: Any) -> None:
        if self._channel is None:  # else it was asked for twice
            channel.add_on_cancel_callback(self._on_deleted)
            self._acks = Acks()
            self._begin(channel)

    def _begin(self, channel: Any) -> None:
        """Take electrons on a channel that has no consumer."""
        self._channel = channel
        self._consumer_tag = ""
        self._prefetch.count = 0
        self._ticked = monotonic()
        self._beginnings += 1
        self._tick(self._beginnings)

    def _on_deleted(self, _: Any) -> None:
        """Go on where somebody has deleted the queue."""
        channel, self._channel = self._channel, None
        self._session.tell("the queue was deleted; it is declared again", "warning")

        def declared(reason: str) -> None:
            if channel.is_open:
                self._begin(channel)

        self._session.connection.declare(self._session.queue, declared)

    def _close(self) -> None:
        self.is_open = False
        if self._channel is not None and self._channel.is_open and self._consumer_tag:
            self._session.connection.cancel(self._channel, self._consumer_tag)
        for pending in self.unanswered.put_back_later():
            self._return(pending)
        if self._taken:
            self.inbox.put(self._taken)
            self._taken = []

    # -- how many ---------------------------------------------------------------------------

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for others, so that these can be received."""
        self.unanswered.note_waiting(electron_id)
        self._follow()

    def _tick(self, beginning: int) -> None:
        if self.is_open and beginning == self._beginnings:
            self._follow()
            self._session.connection.call_later(TICK_SECONDS, partial(self._tick, beginning))

    def _follow(self) -> None:
        """Ask for as many electrons as can be executed."""
        if not self.is_open or self._channel is None or not self._channel.is_open:
            return
        now = monotonic()
        seconds, answered = now - self._ticked, self.counts["answered"]
        is_due = seconds > TICK_SECONDS / 2
        before = self._prefetch.count
        count = self._prefetch.follow(
            threads=sum(listener.threads for listener in self._session.listeners),
            unanswered=len(self.unanswered),
            waiting=self.unanswered.waiting,
            answered=answered - self._answered_before if is_due else 0,
            seconds=max(seconds, TICK_SECONDS),
            size=self.unanswered.bytes / max(len(self.unanswered), 1),
        )
        self.oldest = self.unanswered.oldest()
        if is_due:
            self._ticked, self._answered_before = now, answered
        if count != before:
            self._consume(count)

    def _consume(self, count: int) -> None:
        """Have a consumer that is sent `count` electrons ahead, in place of the one before."""
        before = self._consumer_tag
        self._channel.basic_qos(prefetch_count=count)
        self._consumer_tag = self._session.connection.consume(
            self._channel, self._session.queue, self._on_message
        )
        if before:
            self._session.connection.cancel(self._channel, before)

    # -- receiving --------------------------------------------------------------------------

    def _on_message(
        self, number: int, mode: int | None, headers: Mapping[str, Any] | None, body: bytes
    ) -> None:
        self._acks.arrived(number)
        if not self.is_open:  # it was on its way
            if self._channel is not None:
                self._acks.settle(number)
                self._channel.basic_nack(number, requeue=True)
            return
        tag = self._session.connection.generation, number
        delivery = Delivery(tag, body, mode == PERSISTENT)
        try:
            self._receive(delivery)
        except Exception as error:  # noqa: BLE001 - no message may stop a node
            self._session.report("internal error", error)
            self._bury([tag], body, f"internal error: {type(error).__name__}")

    def _receive(self, delivery: Delivery) -> None:
        body = delivery.body
        try:
            electron = decode_electron(body, self._session.limits)
        except WireError as error:
            self._refuse(delivery, error)
            return
        digest = hash(body)
        known = self.unanswered.find(electron, digest)
        if isinstance(known, PendingElectron):
            self.counts["repeated"] += 1
            known.tags.append(delivery.tag)
        elif known is not None:
            self.counts["repeated"] += 1
            self._reply(electron.sender_id, known.body, known.headers, delivery)
        else:
            self.counts["received"] += 1
            self.is_empty.clear()
            pending = PendingElectron(
                electron, digest, monotonic(), body, delivery.persistent, [delivery.tag]
            )
            if self.unanswered.take(pending):
                self._taken.append(electron)
                self._session.wake()

    def _refuse(self, delivery: Delivery, error: WireError) -> None:
        """Answer what is no electron where it tells from whom it is, else keep it with the dead."""
        self._session.report("received what is no electron", error)
        sender = recognise(delivery.body)
        if sender is None:
            self._bury([delivery.tag], delivery.body, error.event.message)
            return
        for count in ("received", "answered", "failed"):
            self.counts[count] += 1
        expired = isinstance(error, ExpiredError)
        failure = Failure(
            "timeout" if expired else "rejected", type(error).__name__, error.event.message
        )
        properties = _failed(failure, sender.id, sender.atom_id)
        reply = encode_properties(properties, self._session.id, self._session.limits)
        self._reply(sender.sender_id, reply, details_of(properties), delivery)

    # -- answering --------------------------------------------------------------------------

    def _answer(self, properties: Properties) -> None:
        pending = self.unanswered.get(properties.electron_id)
        if pending is None or pending.reply is not None:
            return  # it was returned, or is answered already
        try:
            body = self._written(properties)
        except WireError as error:  # its id alone is too large, say
            self._bury(pending.tags, pending.body, f"it cannot be answered: {error.event.message}")
            self._release(pending)
            return
        self.counts["failed"] += properties.error is not None
        pending.reply = Answer(pending.digest, body, details_of(properties))
        self._session.connection.outgoing.publish(
            Message(
                pending.electron.sender_id,
                pending.reply.body,
                self._on_answered,
                headers=pending.reply.headers,
                persistent=pending.persistent,
                whose=pending,
            )
        )

    def _written(self, properties: Properties) -> bytes:
        try:
            return encode_properties(properties, self._session.id, self._session.limits)
        except WireError as error:
            failure = Failure("exception", "WireError", error.event.message)
            failed = _failed(failure, properties.electron_id, properties.atom_id)
            return encode_properties(failed, self._session.id, self._session.limits)

    def _on_answered(self, message: Message, reason: str) -> None:
        pending: PendingElectron = message.whose
        if reason:
            if self._tries_again(message):
                return
            self._bury(
                pending.tags, pending.body, f"it was answered, but its sender is gone: {reason}"
            )
        else:
            self._know(message.queue)
            for tag in pending.tags:
                self._acknowledge(tag)
            self.unanswered.remember(pending)
        self.counts["answered"] += 1
        self.seconds += monotonic() - pending.received
        self._release(pending)

    def _reply(self, sender: str, body: bytes, headers: Any, delivery: Delivery) -> None:
        """Answer a message without having executed anything."""
        self._session.connection.outgoing.publish(
            Message(
                sender,
                body,
                self._on_replied,
                headers=headers,
                persistent=delivery.persistent,
                whose=delivery,
            )
        )

    def _on_replied(self, message: Message, reason: str) -> None:
        delivery: Delivery = message.whose
        if not reason:
            self._acknowledge(delivery.tag)
        elif not self._tries_again(message):
            self._bury([delivery.tag], delivery.body, f"it cannot be answered: {reason}")

    def _tries_again(self, message: Message) -> bool:
        """Declare the queue of a sender that we do not know, as the peers do, and send again.

        Not that of one who was there before: it has closed, and nobody would ever read it. Our own
        kind sends nothing before its queue is there.
        """
        is_known = message.queue in self._senders or message.queue.startswith(OURS)
        if is_known or message.is_declared:
            return False

        def declared(reason: str) -> None:
            message.is_declared = reason != NO_CONNECTION
            if reason and message.is_declared:
                message.sent(message, reason)
            else:
                self._session.connection.outgoing.publish(message)

        self._session.connection.declare(message.queue, declared)
        return True

    def _know(self, sender: str) -> None:
        if len(self._senders) >= SENDERS:
            self._senders.clear()
        self._senders.add(sender)

    def _acknowledge(self, tag: tuple[int, int]) -> None:
        generation, number = tag
        if generation == self._session.connection.generation:
            self._acks.add(number)
            self._session.wake()

    # -- not answering ----------------------------------------------------------------------

    def give_back(self, electron_id: str) -> None:
        """Return an electron to the queue, for others."""
        pending = self.unanswered.get(electron_id)
        if pending is not None and pending.reply is None:
            self._return(pending)
            self._release(pending)

    def _return(self, pending: PendingElectron) -> None:
        self.counts["given_back"] += 1
        if self._channel is None or not self._channel.is_open:
            return  # the broker takes it back by itself
        for generation, tag in pending.tags:
            if generation == self._session.connection.generation:
                self._acks.settle(tag)
                self._channel.basic_nack(tag, requeue=True)

    def _release(self, pending: PendingElectron) -> None:
        """Hold an electron no longer."""
        following = self.unanswered.let_go(pending)
        if following is not None:
            if self.is_open:
                self._taken.append(following.electron)
                self._session.wake()
            else:
                self._return(following)
                self._release(following)
        if not self.unanswered:
            self.is_empty.set()

    def _bury(self, tags: list[tuple[int, int]], body: bytes, reason: str) -> None:
        """Have a message that cannot be answered kept, with the reason, for a human to see."""
        self._session.tell(f"a message went to {self._dead_queue}: {reason}", "warning")
        headers = {"atomizer-reason": reason[:1000], "atomizer-queue": self._session.queue}
        self._session.connection.outgoing.publish(
            Message(
                self._dead_queue,
                body,
                self._on_buried,
                headers=headers,
                persistent=True,
                whose=tags,
            )
        )

    def _on_buried(self, message: Message, reason: str) -> None:
        if reason:
            self._session.declare_and_send(message)
            return
        self.counts["dead"] += 1
        for tag in message.whose:
            self._acknowledge(tag)


def _failed(failure: Failure, electron_id: str, atom_id: str) -> Properties:
    """Return the properties of an electron that is not executed, and failed just now."""
    now = utc(time_ns())
    return Properties(electron_id, atom_id, now, now, failure.error(electron_id, atom_id))
