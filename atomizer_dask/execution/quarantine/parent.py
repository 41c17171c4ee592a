"""Executing electrons in a child process, which may die alone.

::

    worker thread (`parent`)                        child process (`child`)
    piece of a batch          ── connection ────▶   executes it electron by electron
    outcome, events, sends    ◀── connection ────
    who runs, and since when  ◀── shared memory ──  the cursor

A batch goes in pieces of about 20 ms, so that little is executed again when a child dies. The
cursor names the electrons that ran then. Several are executed again in halves. A single one gets a
second chance, alone in a fresh child: another process may have killed the child, or an earlier
electron may have broken its memory.
"""

from __future__ import annotations

import logging
import pickle
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from time import perf_counter, time_ns
from typing import Any

import numpy as np

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import loads
from atomizer_dask.atoms.shared_files import folder_settings
from atomizer_dask.config import setting
from atomizer_dask.errors import text_of
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.failure import CANCELLED, Failure
from atomizer_dask.execution.lease import Lease, SingletonSlot
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.packing import dumps, pack, unpack_outcome
from atomizer_dask.execution.quarantine.child import OFFSET, POLL_SECONDS
from atomizer_dask.execution.quarantine.fork_server import ChildProcess, ForkServer
from atomizer_dask.execution.quarantine.guard import ChildDeath, ChildGuard, machine_memory
from atomizer_dask.execution.quarantine.last_words import LENGTH
from atomizer_dask.execution.quarantine.messages import (
    AtomsForgotten,
    ElectronCancelled,
    ElectronLost,
    ElectronSent,
    ElectronSettled,
    ElectronWaiting,
    EventEmitted,
    Piece,
    PieceDone,
    PieceRejected,
    ToChild,
    ToParent,
)
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.site import Site
from atomizer_dask.properties import Properties

logger = logging.getLogger(__name__)
STARTS = 3  # attempts to start a child
SPACES = 32  # of atoms, that a child keeps
FORGOTTEN = 1000  # versions of atoms that busy children forget once they are idle


class IsolatingSite(Site):
    """A site that can execute batches in child processes.

    Attributes
    ----------
    memory_limit
        Bytes of which a child may use the share ``quarantine.memory-share``; 0 for the memory of
        the machine.
    """

    memory_limit: float = 0

    def __init__(self) -> None:
        super().__init__()
        self._fork_server = ForkServer(
            "atomizer_dask.execution.quarantine.child:serve",
            preload=("atomizer_dask.execution.quarantine.child",),
        )
        self._idle: list[IsolatedChild] = []
        self._idle_lock = threading.Lock()
        self._forgotten: deque[str] = deque(maxlen=FORGOTTEN)

    @abstractmethod
    def code_of(self, batch: Batch) -> tuple[str, bytes]:
        """Return a name and the pickle of a batch's atom."""

    def isolates(self, batch: Batch, definition: Definition) -> bool:
        """Return whether a batch is executed in a child process.

        It is if its electrons have a timeout, since only a process can always be stopped; if a
        worker died with them; or if their atom asks for it.
        """
        terms = batch.terms
        if definition.singleton and self.singleton(batch).child is not None:
            return True  # a singleton stays in its child
        return bool(terms.deaths or terms.timeout is not None or definition.isolation)

    def execute_pieces(
        self, lease: Lease, definition: Definition, claims: Remaining
    ) -> Iterator[Outcome]:
        """Execute a batch piece by piece in a child process."""
        singleton = self.singleton(lease.batch) if definition.singleton else None
        stay = _IsolatedBatch(self, lease, singleton)
        offset = 0
        try:
            while count := claims.draw():
                before = perf_counter()
                yield from stay.settle(offset, offset + count)
                offset += count
                claims.learn(count, perf_counter() - before)
        finally:
            stay.leave()

    def admit(self, *, fresh: bool) -> IsolatedChild:
        """Return a child that nobody else uses."""
        with self._idle_lock:
            if self._idle and not fresh:
                return self._idle.pop()
        for _ in range(STARTS - 1):
            try:
                return IsolatedChild(self._fork_server.start())
            except ChildProcessError as error:  # the fork server was killed just then
                logger.info("a child process could not be started: %s", error)
        return IsolatedChild(self._fork_server.start())

    def dismiss(self, child: IsolatedChild) -> None:
        """Keep an idle child for the next batch."""
        with self._idle_lock:
            child.forget(self._forgotten)
            self._idle.append(child)

    def forget_in_children(self, versions: list[str]) -> None:
        """Have children forget versions of atoms: now, or when they are idle."""
        with self._idle_lock:
            self._forgotten.extend(versions)
            for child in self._idle:
                child.forget(versions)

    def close(self) -> None:
        """End all children."""
        self._fork_server.close()


class _IsolatedBatch:
    """One batch in quarantine."""

    def __init__(self, site: IsolatingSite, lease: Lease, singleton: SingletonSlot | None) -> None:
        self._site = site
        self._lease = lease
        self._singleton = singleton
        self._inmate: IsolatedChild | None = None
        self._code = site.code_of(lease.batch)

    def settle(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield outcomes, in order, for just the electrons from `start` to `stop`."""
        todo = [(start, stop, False)]
        while todo:
            a, b, alone = todo.pop()
            if self._lease.cancelled:
                now = perf_counter()
                yield self._failed(a, b, now, now, CANCELLED)
                continue
            ended = self._execute(a, b, fresh=alone)
            if isinstance(ended, Outcome):
                printed = ended.printed and ended.printed.moved(a)
                yield replace(ended, first=a, stop=b, printed=printed)
                continue
            self._inmate = None
            # Where it died between two electrons, all of the piece are suspects.
            c, n = (a + ended.offset, ended.count) if ended.count else (a, b - a)
            if c + n < b:
                todo.append((c + n, b, False))
            if n > 1:
                todo += [(c + n // 2, c + n, False), (c, c + n // 2, False)]
            elif ended.verdict or alone:
                # In order: those before it are executed again first.
                if a < c:
                    yield from self.settle(a, c)
                died = self._failed(c, c + 1, ended.began, ended.ended, ended.failure)
                yield replace(died, printed=ended.printed)
                if self._lease.surrendered:  # its time box is over: the rest returns
                    self._lease.surrender_from(c + 1)
                    return
                continue
            else:
                todo.append((c, c + 1, True))
            if a < c:
                todo.append((a, c, False))

    def leave(self) -> None:
        """Return the child to the site; a singleton keeps its own."""
        if self._inmate is not None and self._singleton is None:
            self._site.dismiss(self._inmate)

    def _execute(self, start: int, stop: int, *, fresh: bool) -> Outcome | ChildDeath:
        child = self._child(fresh)
        piece = self._lease.batch.part(start, stop)
        ended = child.execute(piece, self._lease, start, self._code, self._site)
        if isinstance(ended, ChildDeath):
            child.cancel_sent()
        if isinstance(ended, ChildDeath) and self._singleton is not None:
            self._singleton.child = None
            self._warn(f"singleton lost its state: {ended.failure.message}; re-initialised next")
        return ended

    def _child(self, fresh: bool) -> IsolatedChild:
        if self._singleton is not None:
            if self._singleton.child is None:
                self._singleton.child = self._site.admit(fresh=True)
                if self._singleton.instance is not None:
                    self._singleton.instance = None
                    self._warn("singleton moved to a child process; re-initialised there")
            child: IsolatedChild = self._singleton.child
            return child
        if fresh:
            self.leave()
            self._inmate = None
        if self._inmate is None:
            self._inmate = self._site.admit(fresh=fresh)
        return self._inmate

    def _warn(self, message: str) -> None:
        batch = self._lease.batch
        event = Event(message, atom_id=batch.atom_id, run_id=batch.run_id, level="warning")
        self._lease.emit(event)

    def _failed(
        self, start: int, stop: int, began: float, ended: float, failure: Failure
    ) -> Outcome:
        seconds = ended - began
        count = stop - start
        return Outcome(
            first=start,
            stop=stop,
            results={},
            failed=np.arange(count),
            codes=np.zeros(count, dtype=np.int32),
            failures=[failure],
            start_ns=time_ns() - int((perf_counter() - began) * 1e9),
            starts=np.zeros(count),
            ends=np.full(count, seconds),
            counts=None,
            worker=self._site.name,
        )


class IsolatedChild:
    """A child process that executes pieces, one at a time."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self._sending = threading.Lock()
        self._known: dict[str, None] = {}  # spaces with an atom, the latest last
        self._conductors: dict[Any, Any] = {}
        self._futures: dict[int, Any] = {}
        self._share = setting("quarantine.memory-share")

    def execute(
        self, piece: Batch, lease: Lease, first: int, code: tuple[str, bytes], site: IsolatingSite
    ) -> Outcome | ChildDeath:
        """Execute a piece, which begins at offset `first` of its batch."""
        name, data = code
        self._child.cursor[OFFSET] = -1.0
        self._child.cursor[LENGTH] = 0.0
        piece = replace(piece, version=name, code="", seconds=float("inf"))
        memory = self._share * (site.memory_limit or machine_memory())
        guard = ChildGuard(self._child, lease, first, piece.terms.timeout, memory)
        # On a worker, code among the inputs has a space of its own already: ``version/digest``.
        packed = pack(piece, space=name, brings_code="/" not in name)
        new = None if packed.space in self._known else data
        if not self._post(Piece(packed.space, packed.whole(), new, site.name, folder_settings())):
            return guard.fallen()
        self._note_known(packed.space)
        while True:
            try:
                while not self._child.connection.poll(POLL_SECONDS):
                    if (ended := guard.check(self._post)) is not None:
                        return ended
                message: ToParent = pickle.loads(self._child.connection.recv_bytes())  # noqa: S301
            except (EOFError, OSError):
                return guard.fallen()
            if isinstance(message, PieceDone):
                self._conductors.clear()
                self._futures.clear()  # electrons that did not wait for their children have ended
                outcome = unpack_outcome(message.outcome, lease.batch.space)
                assert isinstance(outcome, Outcome)  # a child writes into no store
                return outcome
            self._handle(message, lease)
            if (ended := guard.check(self._post)) is not None:
                return ended

    def _note_known(self, space: str) -> None:
        self._known.pop(space, None)
        self._known[space] = None
        self.forget(list(self._known)[:-SPACES])

    def forget(self, spaces: Iterable[str]) -> None:
        """Have the child forget atoms, given by their spaces or by their versions."""
        wanted = set(spaces)
        those = [s for s in self._known if s in wanted or s.partition("/")[0] in wanted]
        for space in those:
            del self._known[space]
        if those:
            self._post(AtomsForgotten(those))

    def cancel_sent(self) -> None:
        """Cancel the electrons that its electrons sent: the child is dead."""
        for future in list(self._futures.values()):
            future.cancel()

    def _handle(self, message: ToParent, lease: Lease) -> None:
        match message:
            case EventEmitted(event):
                lease.emit(loads(event, space=lease.batch.space))
            case ElectronWaiting():
                lease.about_to_wait()
                for conductor in self._conductors.values():
                    conductor.about_to_wait()
            case ElectronCancelled(token):
                if (future := self._futures.get(token)) is not None:
                    future.cancel()
            case ElectronSent() as sent:
                self._send(sent, lease)
            case PieceRejected(why):
                raise RuntimeError(why)

    def _send(self, sent: ElectronSent, lease: Lease) -> None:
        token, stream = sent.token, sent.stream
        if stream not in self._conductors:
            self._conductors[stream] = lease.site.children(sent.origin, sent.root, stream, lease)
        try:
            electron = loads(sent.electron, space=lease.batch.space)
            future = self._conductors[stream].send(electron)
            future.stop_with(partial(self._conductors[stream].cancel, electron.id))
        except Exception as error:  # noqa: BLE001 - raised in the child, by the future
            self._post_lost(token, error)
            return
        self._futures[token] = future
        future.add_done_callback(lambda done: self._answer(token, done))

    def _answer(self, token: int, done: Future[Properties]) -> None:
        self._futures.pop(token, None)
        error = done.exception()
        if error is not None:
            self._post_lost(token, error)
            return
        properties = done.result()
        if (data := dumps(properties)) is not None:
            self._post(ElectronSettled(token, data))
            return
        why = "the result of a child cannot travel to its spawner, for it cannot be pickled"
        failure = Failure("exception", "PicklingError", why)
        bad = failure.error(properties.electron_id, properties.atom_id)
        if (data := dumps(replace(properties, error=bad, result=None))) is not None:
            self._post(ElectronSettled(token, data))
        else:
            self._post_lost(token, bad)

    def _post_lost(self, token: int, error: BaseException) -> None:
        self._post(ElectronLost(token, dumps(error) or pickle.dumps(RuntimeError(text_of(error)))))

    def _post(self, message: ToChild) -> bool:
        """Send a message to the child, and return whether it was alive."""
        try:
            with self._sending:
                self._child.connection.send_bytes(pickle.dumps(message))
        except (OSError, ValueError):  # it has died; `execute` notices when it reads
            return False
        return True
