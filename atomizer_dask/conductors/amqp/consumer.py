"""How an AMQP conductor serves a queue: electrons are received, executed and answered.

An electron is acknowledged only when the broker has confirmed its reply: whenever this process
dies, the broker has the electron or the reply. An electron that the broker delivers again is not
executed again as long as this process remembers it. A reply is persistent where its electron was.
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
from atomizer_dask.conductors.amqp.messages import (
    decode_electron,
    details_of,
    encode_properties,
    recognise,
)
from atomizer_dask.conductors.amqp.outgoing import PERSISTENT
from atomizer_dask.conductors.amqp.prefetch import Prefetch
from atomizer_dask.conductors.amqp.replies import Replies
from atomizer_dask.conductors.amqp.session import Session
from atomizer_dask.conductors.amqp.unanswered import Answer, PendingElectron, Unanswered
from atomizer_dask.conductors.amqp.wire.message_members import ExpiredError, UnreadSender
from atomizer_dask.electron import Electron
from atomizer_dask.errors import Kind, WireError
from atomizer_dask.execution.failure import Failure, utc
from atomizer_dask.properties import Properties

TICK_SECONDS = 0.1

Tag = tuple[int, int]
"""The number of a connection, and of a delivery on it."""


class Delivery:
    """A message that the broker has delivered, with the tag that acknowledges it."""

    __slots__ = ("body", "persistent", "tag")

    def __init__(self, tag: Tag, body: bytes, persistent: bool) -> None:
        self.tag = tag
        self.body = body
        self.persistent = persistent


class Consumer:
    """The receiving side.

    But for `complete` and `drain`, all of it happens on the thread of the connection.

    Attributes
    ----------
    unanswered
        The electrons received and not answered.
    is_open
        Whether electrons are taken from the queue.
    is_empty
        Set while no electron is unanswered.
    counts
        Counts by the names of `QueueStatus`, except `dead`.
    seconds
        Sum over all answered electrons of the time from receiving to answering.
    oldest
        When the oldest unanswered electron was received, as of the last tick; infinity without any.
    inbox
        Lists of electrons received; None ends it.
    """

    def __init__(self, session: Session, max_in_flight: int) -> None:
        self.unanswered = Unanswered()
        self.is_open = False
        self.is_empty = threading.Event()
        self.is_empty.set()
        self.counts = dict.fromkeys(("received", "answered", "failed", "repeated", "given_back"), 0)
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
        self._replies = Replies(session)
        self._answered_before, self._ticked, self._beginnings = 0, 0.0, 0

    @property
    def dead(self) -> int:
        """How many messages went to the dead-letter queue."""
        return self._replies.dead

    @property
    def prefetch(self) -> int:
        """How many electrons the broker may deliver ahead."""
        return self._prefetch.count if self.is_open else 0

    # -- from any thread --------------------------------------------------------------------

    def complete(self, properties: Properties) -> None:
        """Answer an electron."""
        self._completed.append(properties)
        self._session.wake()

    def drain(self) -> list[Electron]:
        """Take no more electrons, and return those left in the inbox."""
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
        """Declare the queues, and consume, on a new connection."""
        if self.is_open:
            self._session.declare_own(self._session.queue)
            self._session.connection.declare(self._replies.dead_queue, self._on_declared)

    def is_down(self) -> None:
        """Note that the connection is lost."""
        self._channel = None

    def flush(self) -> None:
        """Pass on the electrons received, send answers, and acknowledge deliveries."""
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
        """Consume, once the queues are declared."""
        if reason == NO_CONNECTION:
            return
        if self._channel is None:
            self._session.connection.channel(self._on_channel)
        else:  # on the same channel: earlier deliveries may not be acknowledged yet
            self._begin(self._channel)

    def _on_channel(self, channel: Any) -> None:
        if self._channel is None:  # else the channel was asked for twice
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
        """Declare the queue again that somebody has deleted, and consume."""
        channel, self._channel = self._channel, None
        self._session.announce("the queue was deleted; it is declared again", "warning")

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
        """Note that an electron waits for its children, so that more electrons can be received."""
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
        """Replace the consumer by one to which the broker delivers `count` electrons ahead."""
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
        if not self.is_open:  # the message was on its way
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
            self._answer_at_once(electron.sender_id, known.body, known.headers, delivery)
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
        """Answer a message that is no electron where its sender is known, else bury it."""
        self._session.report("received what is no electron", error)
        sender = recognise(delivery.body)
        if sender is None:
            self._bury([delivery.tag], delivery.body, error.event.message)
            return
        for count in ("received", "answered", "failed"):
            self.counts[count] += 1
        properties = _refused(error, sender)
        reply = encode_properties(properties, self._session.id, self._session.limits)
        self._answer_at_once(sender.sender_id, reply, details_of(properties), delivery)

    # -- answering --------------------------------------------------------------------------

    def _answer(self, properties: Properties) -> None:
        pending = self.unanswered.get(properties.electron_id)
        if pending is None or pending.reply is not None:
            return  # the electron was returned, or is answered already
        try:
            body = _encoded(properties, self._session)
        except WireError as error:  # its id alone is too large, say
            self._bury(pending.tags, pending.body, f"it cannot be answered: {error.event.message}")
            self._release(pending)
            return
        self.counts["failed"] += properties.error is not None
        pending.reply = Answer(pending.digest, body, details_of(properties))
        self._replies.send(
            pending.electron.sender_id,
            pending.reply.body,
            pending.reply.headers,
            partial(self._on_answered, pending),
            persistent=pending.persistent,
        )

    def _on_answered(self, pending: PendingElectron, reason: str) -> None:
        if reason:
            why = f"it was answered, but its sender is gone: {reason}"
            self._bury(pending.tags, pending.body, why)
        else:
            self._acknowledge(pending.tags)
            self.unanswered.remember(pending)
        self.counts["answered"] += 1
        self.seconds += monotonic() - pending.received
        self._release(pending)

    def _answer_at_once(
        self, sender_id: str, body: bytes, headers: Any, delivery: Delivery
    ) -> None:
        """Answer a message without having executed anything."""

        def done(reason: str) -> None:
            if reason:
                why = f"it cannot be answered: {reason}"
                self._bury([delivery.tag], delivery.body, why)
            else:
                self._acknowledge([delivery.tag])

        self._replies.send(sender_id, body, headers, done, persistent=delivery.persistent)

    def _bury(self, tags: list[Tag], body: bytes, reason: str) -> None:
        """Send a message that cannot be answered to the dead-letter queue, and acknowledge it."""
        self._replies.bury(body, reason, partial(self._acknowledge, tags))

    def _acknowledge(self, tags: list[Tag]) -> None:
        for generation, number in tags:
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
        """Remove an electron from the unanswered ones."""
        following = self.unanswered.remove(pending)
        if following is not None:
            if self.is_open:
                self._taken.append(following.electron)
                self._session.wake()
            else:
                self._return(following)
                self._release(following)
        if not self.unanswered:
            self.is_empty.set()


def _encoded(properties: Properties, session: Session) -> bytes:
    """Return an answer as JSON; where the result has no JSON form, an error that says so."""
    try:
        return encode_properties(properties, session.id, session.limits)
    except WireError as error:
        failure = Failure("exception", "WireError", error.event.message)
        failed = _failed(failure, properties.electron_id, properties.atom_id)
        return encode_properties(failed, session.id, session.limits)


def _refused(error: WireError, sender: UnreadSender) -> Properties:
    """Return the properties that answer a message that could not be read as an electron."""
    kind: Kind = "timeout" if isinstance(error, ExpiredError) else "rejected"
    failure = Failure(kind, type(error).__name__, error.event.message)
    return _failed(failure, sender.id, sender.atom_id)


def _failed(failure: Failure, electron_id: str, atom_id: str) -> Properties:
    """Return the properties of an electron that failed just now, without being executed."""
    now = utc(time_ns())
    return Properties(electron_id, atom_id, now, now, failure.error(electron_id, atom_id))
