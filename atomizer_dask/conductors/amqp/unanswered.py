"""What a conductor has received and not answered, and answers that it may have to give again."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from math import inf

from atomizer_dask.electron import Electron

REMEMBERED = 50_000  # answers
REMEMBERED_BYTES = 64 * 2**20


@dataclass(slots=True, eq=False)
class PendingElectron:
    """An electron that was received and is not answered for good.

    Parameters
    ----------
    electron
        As it was received.
    digest
        Of its message: one of the same sender and id with another digest is another electron.
    received
        When, on the monotonic clock.
    body
        The message.
    persistent
        Whether its message outlives the broker's process; then so does the answer.
    tags
        By which the broker knows its deliveries, each with the connection that it means.
    is_waiting
        Whether it waits for electrons that it sent.
    reply
        Its answer, once there is one, for the broker may not have it yet.
    """

    electron: Electron
    digest: int
    received: float
    body: bytes
    persistent: bool
    tags: list[tuple[int, int]]
    is_waiting: bool = False
    reply: Answer | None = None


@dataclass(slots=True, frozen=True)
class Answer:
    """The answer to an electron, as it was sent."""

    digest: int
    body: bytes
    headers: dict[str, str | int]

    @property
    def size(self) -> int:
        """How many bytes it takes to remember, about; a traceback may be most of it."""
        return len(self.body) + sum(
            len(header) for header in self.headers.values() if type(header) is str
        )


class Unanswered:
    """What a conductor has received and not answered.

    The broker delivers again what was not acknowledged when a connection was cut. What is still
    unanswered then is not executed again, and what was answered is answered from memory.
    """

    def __init__(self) -> None:
        self._pending: dict[str, PendingElectron] = {}
        self._later: dict[str, deque[PendingElectron]] = {}
        self._answers: OrderedDict[tuple[str, str], Answer] = OrderedDict()
        self._bytes = 0
        self._count = 0
        self.waiting = 0  # how many wait for electrons that they sent
        self.bytes = 0  # of the messages

    def __len__(self) -> int:
        return self._count

    def __contains__(self, electron_id: object) -> bool:
        return electron_id in self._pending

    def find(self, electron: Electron, digest: int) -> PendingElectron | Answer | None:
        """Return what has become of an electron that was delivered before; None for a new one."""
        for pending in self._named(electron.id):
            if pending.digest == digest and pending.electron.sender_id == electron.sender_id:
                return pending
        answer = self._answers.get((electron.sender_id, electron.id))
        return None if answer is None or answer.digest != digest else answer

    def _named(self, electron_id: str) -> list[PendingElectron]:
        """Return the unanswered electrons of an id."""
        if electron_id not in self._pending:
            return []
        return [self._pending[electron_id], *self._later.get(electron_id, deque())]

    def take(self, pending: PendingElectron) -> bool:
        """Take an electron, and return whether it may be executed now.

        Ids are those of many senders. One that is unanswered has to be answered first.
        """
        electron_id = pending.electron.id
        self._count += 1
        self.bytes += len(pending.body)
        if electron_id in self._pending:
            self._later.setdefault(electron_id, deque()).append(pending)
            return False
        self._pending[electron_id] = pending
        return True

    def get(self, electron_id: str) -> PendingElectron | None:
        """Return an unanswered electron that may be executed."""
        return self._pending.get(electron_id)

    def let_go(self, pending: PendingElectron) -> PendingElectron | None:
        """Remove an electron, and return the one that was to come after it."""
        electron_id = pending.electron.id
        del self._pending[electron_id]
        self._count -= 1
        self.bytes -= len(pending.body)
        self.waiting -= pending.is_waiting
        waiting = self._later.get(electron_id)
        if not waiting:
            return None
        following = self._pending[electron_id] = waiting.popleft()
        if not waiting:
            del self._later[electron_id]
        return following

    def oldest(self) -> float:
        """Return when the electron that waits longest was received; on the connection's thread.

        Infinity where nothing is unanswered.
        """
        return next((pending.received for pending in self._pending.values()), inf)

    def remember(self, pending: PendingElectron) -> None:
        """Keep the answer to an electron for when it is delivered again."""
        assert pending.reply is not None
        key = pending.electron.sender_id, pending.electron.id
        before = self._answers.pop(key, None)
        self._bytes += pending.reply.size - (0 if before is None else before.size)
        self._answers[key] = pending.reply
        while len(self._answers) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= oldest.size

    def put_back_later(self) -> list[PendingElectron]:
        """Remove all that had to come after others, and return them."""
        those = [pending for waiting in self._later.values() for pending in waiting]
        self._later.clear()
        self._count -= len(those)
        self.bytes -= sum(len(pending.body) for pending in those)
        return those

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for others that it sent."""
        pending = self._pending.get(electron_id)
        if pending is not None and not pending.is_waiting:
            pending.is_waiting = True
            self.waiting += 1
