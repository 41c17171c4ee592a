"""The electrons that a conductor has not answered, and answers that it may have to repeat."""

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
        The electron as it was received.
    digest
        Hash of its message. A message of the same sender and id with another digest is another
        electron.
    received
        Time at which it was received, by `time.monotonic`.
    body
        The message.
    persistent
        Whether its message outlives the broker's process; then so does the answer.
    tags
        Its deliveries: pairs of a connection's number and a delivery tag of that connection.
    is_waiting
        Whether it waits for its children.
    reply
        Its answer, once there is one; the broker may not have confirmed it yet.
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
        """About how many bytes of memory it takes; a traceback may be most of it."""
        return len(self.body) + sum(
            len(header) for header in self.headers.values() if type(header) is str
        )


class Unanswered:
    """The electrons that a conductor has received and not answered.

    After a lost connection the broker delivers unacknowledged electrons again. An electron that is
    still unanswered then is not executed again; one that was answered is answered from memory.
    """

    def __init__(self) -> None:
        self._pending: dict[str, PendingElectron] = {}
        self._later: dict[str, deque[PendingElectron]] = {}
        self._answers: OrderedDict[tuple[str, str], Answer] = OrderedDict()
        self._bytes = 0
        self._count = 0
        self.waiting = 0  # how many wait for their children
        self.bytes = 0  # of their messages

    def __len__(self) -> int:
        return self._count

    def __contains__(self, electron_id: object) -> bool:
        return electron_id in self._pending

    def find(self, electron: Electron, digest: int) -> PendingElectron | Answer | None:
        """Return the pending electron, or answer, of a repeated delivery; None for a new one."""
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
        """Add an electron, and return whether it may be executed now.

        Electrons of several senders may have the same id: then they are executed one after another.
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
        """Return the unanswered electron of an id that may be executed; None without one."""
        return self._pending.get(electron_id)

    def remove(self, pending: PendingElectron) -> PendingElectron | None:
        """Remove an electron, and return the one of the same id that waited for it, if any."""
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
        """Keep the answer to an electron in case it is delivered again."""
        assert pending.reply is not None
        key = pending.electron.sender_id, pending.electron.id
        before = self._answers.pop(key, None)
        self._bytes += pending.reply.size - (0 if before is None else before.size)
        self._answers[key] = pending.reply
        while len(self._answers) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= oldest.size

    def put_back_later(self) -> list[PendingElectron]:
        """Remove and return the electrons that wait for another one of the same id."""
        those = [pending for waiting in self._later.values() for pending in waiting]
        self._later.clear()
        self._count -= len(those)
        self.bytes -= sum(len(pending.body) for pending in those)
        return those

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for its children."""
        pending = self._pending.get(electron_id)
        if pending is not None and not pending.is_waiting:
            pending.is_waiting = True
            self.waiting += 1
