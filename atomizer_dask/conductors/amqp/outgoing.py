"""Messages on their way to the broker: each is sent until the broker confirms it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

UNCONFIRMED = 8192  # most messages that the broker has not confirmed yet
REFUSED_SECONDS = 1.0  # until a refused message is sent again
NO_QUEUE = "there is no such queue"
PERSISTENT = 2  # the delivery mode of messages that the broker keeps on disk


class Message:
    """A message on its way to a queue.

    Parameters
    ----------
    queue
        The name of the queue.
    body
        The JSON.
    sent
        Called with the message, and an empty text once the broker has confirmed it, or the reason
        why it is not in the queue.
    headers
        The headers of the message.
    persistent
        Whether the message outlives the broker's process.
    whose
        An object for `sent`: the id of an electron, or a callback.
    """

    __slots__ = (
        "body", "headers", "is_declared", "is_unroutable", "persistent", "queue", "sent", "whose",
    )  # fmt: skip

    def __init__(
        self,
        queue: str,
        body: bytes,
        sent: Callable[[Message, str], None],
        *,
        headers: Mapping[str, Any] | None = None,
        persistent: bool = False,
        whose: Any = None,
    ) -> None:
        self.queue = queue
        self.body = body
        self.sent = sent
        self.headers = headers
        self.persistent = persistent
        self.whose = whose
        self.is_declared = False  # whether its queue was declared to send it
        self.is_unroutable = False


class Outgoing:
    """The messages that the broker has not confirmed; all on the thread of the connection.

    Parameters
    ----------
    send
        Gives a message to the broker.
    can_send
        Returns whether the broker takes messages at present.
    call_later
        Has a function called after some seconds.
    guarded
        Calls a function that may raise.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        *,
        can_send: Callable[[], bool],
        call_later: Callable[[float, Callable[[], Any]], None],
        guarded: Callable[[Callable[[], Any]], None],
    ) -> None:
        self._send = send
        self._can_send = can_send
        self._call_later = call_later
        self._guarded = guarded
        self._backlog: deque[Message] = deque()
        self._unconfirmed: OrderedDict[int, Message] = OrderedDict()
        self._refused: set[Message] = set()
        self._sequence = 0  # number of the last message: the broker counts on each connection

    def __len__(self) -> int:
        return len(self._backlog) + len(self._unconfirmed) + len(self._refused)

    def whose(self) -> set[Any]:
        """Return `Message.whose` of all these messages."""
        return {m.whose for m in (*self._backlog, *self._unconfirmed.values(), *self._refused)}

    def publish(self, message: Message) -> None:
        """Send a message now, or as soon as that is possible."""
        if self._backlog or not self._has_room():
            self._backlog.append(message)
        else:
            self._publish_now(message)

    def drain(self) -> None:
        """Send the messages that had to wait."""
        while self._backlog and self._has_room():
            self._publish_now(self._backlog.popleft())

    def put_back(self) -> None:
        """Queue unconfirmed messages again, in their order: the connection is lost."""
        self._backlog.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._sequence = 0

    def confirm(self, tag: int, multiple: bool, *, is_refused: bool) -> None:
        """Note that the broker has confirmed or refused a message, or all messages up to it."""
        unconfirmed = self._unconfirmed
        done = []
        if multiple:
            while unconfirmed and next(iter(unconfirmed)) <= tag:
                done.append(unconfirmed.popitem(last=False)[1])
        elif (message := unconfirmed.pop(tag, None)) is not None:
            done.append(message)
        for message in done:
            if is_refused:
                self._refused.add(message)
                self._call_later(REFUSED_SECONDS, partial(self._publish_refused, message))
            else:
                reason = NO_QUEUE if message.is_unroutable else ""
                self._guarded(partial(message.sent, message, reason))
        self.drain()

    def note_returned(self, queue: str, body: bytes) -> None:
        """Mark a message whose queue does not exist; the broker confirms it all the same."""
        for message in self._unconfirmed.values():
            same = message.queue == queue and message.body == body
            if same and not message.is_unroutable:
                message.is_unroutable = True
                return

    def _has_room(self) -> bool:
        return len(self._unconfirmed) < UNCONFIRMED and self._can_send()

    def _publish_now(self, message: Message) -> None:
        self._send(message)
        self._sequence += 1
        message.is_unroutable = False
        self._unconfirmed[self._sequence] = message

    def _publish_refused(self, message: Message) -> None:
        self._refused.discard(message)
        self.publish(message)
