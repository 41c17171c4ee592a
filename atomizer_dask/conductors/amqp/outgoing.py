"""Messages on their way to the broker: each is sent until the broker has it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

UNCONFIRMED = 8192  # messages that the broker has not confirmed yet, at most
REFUSED_SECONDS = 1.0  # until a message is sent again that the broker could not take
NO_QUEUE = "there is no such queue"
PERSISTENT = 2  # the delivery mode of what the broker keeps on disk


class Message:
    """A message on its way to a queue.

    Parameters
    ----------
    queue
        Where it goes.
    body
        The JSON.
    sent
        Called with the message once the broker has it and an empty text, or why it cannot have it.
    headers
        What is said beside it.
    persistent
        Whether it outlives the broker's process.
    whose
        What `sent` needs to know.
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
        self.is_declared = False  # its queue, for its sake
        self.is_unroutable = False


class Outgoing:
    """The messages that the broker has not confirmed; all on the thread of the connection.

    Parameters
    ----------
    send
        Gives a message to the broker.
    can_send
        Whether the broker takes any just now.
    call_later
        Has a function called after some seconds.
    guarded
        Calls a function that may fail.
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
        self._sequence = 0  # of the last message, as the broker counts on each connection

    def __len__(self) -> int:
        return len(self._backlog) + len(self._unconfirmed) + len(self._refused)

    def whose(self) -> set[Any]:
        """Return whose messages these are."""
        return {m.whose for m in (*self._backlog, *self._unconfirmed.values(), *self._refused)}

    def publish(self, message: Message) -> None:
        """Send a message now, or as soon as that is possible."""
        if self._backlog or not self._has_room():
            self._backlog.append(message)
        else:
            self._publish_now(message)

    def drain(self) -> None:
        """Send what had to wait."""
        while self._backlog and self._has_room():
            self._publish_now(self._backlog.popleft())

    def put_back(self) -> None:
        """Have sent again what was not confirmed before the connection was lost, in its order."""
        self._backlog.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._sequence = 0

    def confirm(self, tag: int, multiple: bool, *, is_refused: bool) -> None:
        """Take note that the broker has a message, or all up to it, or could not take them."""
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
        """Mark a message whose queue is not there; the broker confirms it all the same."""
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
