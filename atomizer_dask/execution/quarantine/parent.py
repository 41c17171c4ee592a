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
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import numpy as np
import psutil

from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import loads
from atomizer_dask.config import setting
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.failure import CANCELLED, Failure
from atomizer_dask.execution.lease import Lease, SingletonSlot
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.packing import dumps, pack, unpack_outcome
from atomizer_dask.execution.quarantine.child import BEGAN, COUNT, LOOK_SECONDS, OFFSET
from atomizer_dask.execution.quarantine.fork_server import ChildProcess, ForkServer
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.site import Site
from atomizer_dask.properties import Properties

logger = logging.getLogger(__name__)
KILL_AFTER = 1.5  # seconds beyond its deadline
HEED_CANCEL = 0.5  # seconds from when it is cancelled until its process is killed
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


@dataclass(frozen=True, slots=True)
class ChildDeath:
    """The death of a child.

    Parameters
    ----------
    offset, count
        Which electrons of the piece were running; none where `count` is 0.
    began, ended
        When they began, and when the parent noticed the death: seconds of `perf_counter`.
    failure
        Why the child died.
    verdict
        Whether the running electron certainly fails: the parent killed the child because it was
        late or cancelled. Otherwise the child died by itself, had too much memory, or ran nothing.
    """

    offset: int
    count: int
    began: float
    ended: float
    failure: Failure
    verdict: bool


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
                yield replace(ended, first=a, stop=b)
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
                yield self._failed(c, c + 1, ended.began, ended.ended, ended.failure)
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
            results=[] if self._lease.batch.ids is not None else {},
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
        piece = replace(piece, version=name, code="", seconds=float("inf"))
        memory = self._share * (site.memory_limit or machine_memory())
        guard = _ChildGuard(self._child, lease, first, piece.terms.timeout, memory)
        # On a worker, code among the inputs has a space of its own already: ``version/digest``.
        packed = pack(piece, space=name, brings_code="/" not in name)
        new = None if packed.space in self._known else data
        if not self._post(("piece", packed.space, packed.whole(), new, site.name)):
            return guard.fallen()
        self._note_known(packed.space)
        while True:
            try:
                while not self._child.connection.poll(LOOK_SECONDS):
                    if (ended := guard.look(self._post)) is not None:
                        return ended
                what, *rest = pickle.loads(self._child.connection.recv_bytes())  # noqa: S301
            except (EOFError, OSError):
                return guard.fallen()
            if what == "done":
                self._conductors.clear()
                self._futures.clear()  # electrons that did not wait for their children have ended
                outcome = unpack_outcome(rest[0], lease.batch.space)
                assert isinstance(outcome, Outcome)  # a child writes into no store
                return outcome
            if what == "rejected":
                raise RuntimeError(rest[0])
            self._handle(what, rest, lease)
            if (ended := guard.look(self._post)) is not None:
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
            self._post(("forget", those))

    def cancel_sent(self) -> None:
        """Cancel the electrons that its electrons sent: the child is dead."""
        for future in list(self._futures.values()):
            future.cancel()

    def _handle(self, what: str, rest: list[Any], lease: Lease) -> None:
        if what == "emit":
            lease.emit(loads(rest[0], space=lease.batch.space))
        elif what == "waiting":
            lease.about_to_wait()
            for conductor in self._conductors.values():
                conductor.about_to_wait()
        elif what == "cancel":
            if (future := self._futures.get(rest[0])) is not None:
                future.cancel()
        elif what == "send":
            token, data, origin, root, stream = rest
            if stream not in self._conductors:
                self._conductors[stream] = lease.site.children(origin, root, stream, lease)
            try:
                electron = loads(data, space=lease.batch.space)
                future = self._conductors[stream].send(electron)
                future.stop_with(partial(self._conductors[stream].cancel, electron.id))
            except Exception as error:  # noqa: BLE001 - raised in the child, by the future
                self._post_failed(token, error)
                return
            self._futures[token] = future
            future.add_done_callback(lambda done: self._answer(token, done))

    def _answer(self, token: int, done: Future[Properties]) -> None:
        self._futures.pop(token, None)
        error = done.exception()
        if error is not None:
            self._post_failed(token, error)
            return
        properties = done.result()
        data = dumps(properties)
        if data is None:
            why = "the result of a child cannot travel to its spawner, for it cannot be pickled"
            failure = Failure("exception", "PicklingError", why)
            bad = failure.error(properties.electron_id, properties.atom_id)
            data = dumps(replace(properties, error=bad, result=None))
        self._post(("settled", token, data))

    def _post_failed(self, token: int, error: BaseException) -> None:
        self._post(("failed", token, dumps(error) or dumps(RuntimeError(str(error)))))

    def _post(self, message: tuple[Any, ...]) -> bool:
        """Send a message to the child, and return whether it was alive."""
        try:
            with self._sending:
                self._child.connection.send_bytes(pickle.dumps(message))
        except (OSError, ValueError):  # it has died; `execute` notices when it reads
            return False
        return True


class _ChildGuard:
    """Watches one piece in a child; kills a child that is late, too large or cancelled."""

    def __init__(
        self, child: ChildProcess, lease: Lease, first: int, timeout: float | None, memory: float
    ) -> None:
        self._child = child
        self._lease = lease
        self._first = first
        self._timeout = timeout
        self._limit = memory
        self._cancelled: float | None = None
        self._looked = perf_counter()

    def look(self, post: Any) -> ChildDeath | None:
        """Kill the child where it must end, and return its death; None where it goes on."""
        now = perf_counter()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        offset, began = self._child.cursor[OFFSET], self._child.cursor[BEGAN]
        if self._timeout is not None and offset >= 0 and now - began > self._timeout + KILL_AFTER:
            why = f"not done within {self._timeout:g} s; its process was killed"
            return self._end(Failure("timeout", "TimeoutError", why, tier="kill"))
        if (used := self._child.memory()) > self._limit:
            why = (
                f"out of memory: its process had {used / 2**30:.2f} GiB, "
                f"{self._limit / 2**30:.2f} GiB are allowed"
            )
            return self._end(Failure("killed", "ProcessDied", why), verdict=False)
        one = self._first + int(offset) in self._lease.cancelled_ones
        if self._lease.cancelled or one:
            if self._cancelled is None:
                self._cancelled = now
                post(("cancelled", None if self._lease.cancelled else int(offset)))
            elif now - self._cancelled > HEED_CANCEL and offset >= 0:
                return self._end(CANCELLED)
        return None

    def _end(self, failure: Failure, *, verdict: bool = True) -> ChildDeath:
        self._child.kill()
        self._child.exit()
        return self._fallen(failure, verdict=verdict)

    def fallen(self) -> ChildDeath:
        """Return the death of a child that died by itself."""
        ended = self._child.exit(timeout=5)
        why = f"its process died: {ended}"
        if ended is not None and ended.signal == 9:
            why += ", which is what the system does where memory runs out"
        return self._fallen(Failure("killed", "ProcessDied", why), verdict=False)

    def _fallen(self, failure: Failure, *, verdict: bool) -> ChildDeath:
        offset, count, began = (self._child.cursor[i] for i in (OFFSET, COUNT, BEGAN))
        now = perf_counter()
        self._child.close()
        if offset < 0:
            return ChildDeath(0, 0, now, now, failure, verdict=False)
        return ChildDeath(int(offset), int(count), began, now, failure, verdict)


@cache
def machine_memory() -> float:
    """Return the bytes of memory that this machine, or this container, has."""
    total = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, float(limit.read_text()))
    except (OSError, ValueError):  # there is none: "max", or another system
        return total
