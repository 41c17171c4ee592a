"""The conductor of this process: threads, no transport."""

from __future__ import annotations

import itertools
import os
import platform
import threading
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psutil

from atomizer_dask.atoms.atom_code import dump_apart
from atomizer_dask.atoms.code.changes import Watched
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.pickling import watched_by
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.atoms.shared_files import SharedFile
from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.child_conductor import ChildConductor
from atomizer_dask.conductors.fair_share import task_priority
from atomizer_dask.conductors.reports import Arrived, GivenBack, Lost, Partly, Report
from atomizer_dask.conductors.status import ConductorStatus, WorkerStatus
from atomizer_dask.electron import new_id
from atomizer_dask.errors import ConductorError, where_raised
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.lease import Lease, SingletonSlot
from atomizer_dask.execution.outcome import BatchOutcome, Outcome
from atomizer_dask.execution.quarantine.parent import IsolatingSite
from atomizer_dask.store.worker_writer import WorkerWriter


class MemoryConductor(BatchConductor):
    """Executes electrons in threads of this process: for debugging, tests, and small work.

    Parameters
    ----------
    threads
        How many electrons are executed at a time; as many as there are cores unless given.
    id
        The name of the conductor.
    """

    def __init__(self, threads: int | None = None, *, id: str = "memory") -> None:
        super().__init__(id)
        if threads is not None and threads < 1:
            raise ValueError(f"a MemoryConductor needs at least one thread, got {threads}")
        self.channel = f"memory-{new_id()}"
        self._threads = threads or os.cpu_count() or 1
        self._pool = _Pool(self._threads)
        self._site = _MemorySite(self)
        self._watched: WeakKeyDictionary[Definition, Watched] = WeakKeyDictionary()

    @property
    def threads(self) -> int:
        """How many electrons are executed at a time."""
        return self._threads

    def status(self) -> ConductorStatus:
        """Return the state of the conductor; its one worker is this process."""
        here = WorkerStatus(
            address=self._site.name,
            host=platform.node(),
            threads=self._threads,
            executing=self._pool.busy,
            memory=psutil.Process().memory_info().rss,
        )
        return ConductorStatus(self.state, "this process", (here,))

    def version_of(self, definition: Definition) -> Definition:
        """Return the atom itself: it need not travel.

        Raises
        ------
        RegistrationError
            Where it draws from a generator that was made outside of it.
        """
        known = self._watched.get(definition)
        if known is None or not known.is_current():
            self._watched[definition] = watched_by(definition)
        return definition

    def submit(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have a batch executed in one of the threads."""
        self._site.posts[batch.key] = post

        def execute() -> None:
            try:
                outcome: BatchOutcome = self._site.depository.put(batch, self._site.execute(batch))
            except OSError as error:  # trouble of this machine, and no outcome of any electron
                message = f"a batch of {batch.atom_id} is lost: {error}"
                lost = ConductorError(Event(message, conductor_id=self.id, level="error"), error)
                report: Report = Lost(batch.key, lost)
            except Exception as error:  # noqa: BLE001 - what is wrong with the batch as a whole
                failure = Failure.rejected(error)
                outcome = Outcome.all_failed(len(batch), failure, self._site.name)
                report = Arrived(batch.key, outcome)
            except BaseException as error:  # noqa: BLE001 - else nobody would ever hear of the batch
                self._lose_batch(batch, error)
                return
            else:
                report = Arrived(batch.key, outcome)
            if (post := self._site.posts.pop(batch.key, None)) is not None:
                post(report)

        due = monotonic() + batch.due_seconds
        self._pool.submit(execute, task_priority(batch.origin.priority, due))

    def _lose_batch(self, batch: Batch, error: BaseException) -> None:
        event = Event(
            f"a batch of {batch.atom_id} is lost: {where_raised(error)}", conductor_id=self.id
        )
        if (post := self._site.posts.pop(batch.key, None)) is not None:
            post(Lost(batch.key, ConductorError(event, error)))

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Give back electrons of a run, or of an electron's descendants, that have not begun."""
        self._site.stop(root, epoch, cancel=cancel)
        if cancel:
            self.cancel_descendants(root)

    def retract(self, key: str) -> None:
        """Forget a batch: nobody waits for it any more."""
        self._site.posts.pop(key, None)

    def release_slot(self) -> None:
        """Let another thread run in this one's place."""
        self._pool.release()

    def close(self) -> None:
        """End the threads once they have done what they are doing."""
        if self._closed:
            return
        super().close()
        self._pool.close()
        self._site.close()


class _Code(NamedTuple):
    """The code of an atom for child processes; `name` is the digest of `data`."""

    name: str
    data: bytes
    watched: Watched
    files: list[SharedFile]


class _MemorySite(IsolatingSite):
    def __init__(self, conductor: MemoryConductor) -> None:
        super().__init__()
        self._definitions: dict[Any, Definition] = {}
        self.name = f"memory://{os.getpid()}"
        self.posts: dict[str, Callable[[Report], None]] = {}
        self.depository = WorkerWriter()
        self._conductor = conductor
        self._codes: WeakKeyDictionary[Definition, _Code] = WeakKeyDictionary()

    def find_atom(self, batch: Batch) -> Definition:
        definition: Definition = batch.version
        return definition

    def code_of(self, batch: Batch) -> tuple[str, bytes]:
        known = self._codes.get(batch.version)
        if known is None or not (known.watched.is_fixed and known.watched.is_current()):
            dumped = dump_apart(batch.version)
            data = dumped.code.to_bytes()
            name = blake2b(data, digest_size=16).hexdigest()
            if known is not None and known.name != name:
                self.forget_in_children([known.name])
            known = self._codes[batch.version] = _Code(name, data, dumped.watched, dumped.share())
        return known.name, known.data

    def singleton(self, batch: Batch) -> SingletonSlot:
        definition: Definition = batch.version
        self._definitions[definition.identity] = definition  # keeps ids in its identity valid
        return self._singletons.setdefault(definition.identity, SingletonSlot())

    def give_back(self, batch: Batch, stop: int) -> None:
        if (post := self.posts.get(batch.key)) is not None:
            post(GivenBack(batch.key, stop))

    def report_part(self, batch: Batch, outcome: Outcome) -> bool:
        if (post := self.posts.get(batch.key)) is not None:
            post(Partly(batch.key, self.depository.put(batch, outcome)))
        return True

    def emit(self, channel: str, event: Event) -> None:
        self._conductor.emit(channel, event)

    def release_slot(self) -> None:
        self._conductor.release_slot()

    def children(
        self, origin: Origin, root: str, stream: RandomStream, lease: Lease
    ) -> ChildConductor:
        return ChildConductor(self._conductor, origin, root, stream, lease)


class _Pool:
    """Threads that take the most urgent task first; one that is about to wait leaves the pool.

    `concurrent.futures.ThreadPoolExecutor` knows neither priorities nor leaving.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: list[tuple[float, int, Callable[[], Any]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._members: set[int] = set()
        self._idle = 0
        self._closed = False

    @property
    def busy(self) -> int:
        """How many of the threads have a task."""
        with self._changed:
            return len(self._members) - self._idle

    def submit(self, task: Callable[[], Any], task_priority: float) -> None:
        with self._changed:
            heappush(self._tasks, (-task_priority, next(self._order), task))
            self._changed.notify()
            self._grow()

    def release(self) -> None:
        """Leave the pool: the calling thread ends with the task it is in."""
        with self._changed:
            self._members.discard(threading.get_ident())
            self._grow()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _grow(self) -> None:
        if len(self._tasks) > self._idle and len(self._members) < self._limit:
            thread = threading.Thread(target=self._work, name="atomizer-memory", daemon=True)
            thread.start()
            assert thread.ident is not None
            self._members.add(thread.ident)

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            with self._changed:
                while self._members and me in self._members and not self._tasks:
                    if self._closed:
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if me not in self._members or self._closed:
                    return
                _, _, task = heappop(self._tasks)
            task()
            del task  # it refers to its batch, which would live until the next task
            with self._changed:
                if me not in self._members:
                    return
