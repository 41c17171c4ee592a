"""Watching the workers of a cluster: which there are, which are idle, which left, and how."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Protocol

from distributed import Client, SpecCluster
from distributed.deploy import Cluster

from atomizer_dask.conductors.dask.batch_tasks import BatchTasks
from atomizer_dask.conductors.dask.cluster.lost_workers import LostWorkers
from atomizer_dask.conductors.dask.messages import TOPICS, BufferMissing, WorkerIdle, WorkerLeaving
from atomizer_dask.conductors.dask.placement import Placement, is_singleton
from atomizer_dask.errors import AtomizerError, ConductorError, where_raised
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.batch import Batch

WATCH_SECONDS = 1.0  # between two looks at the workers
LEFT_IN_TIME = "left, before its wall time was over"
_Heard = tuple[dict[str, str], "weakref.WeakSet[WorkerWatch]"]
_LISTENING: weakref.WeakKeyDictionary[Client, _Heard] = weakref.WeakKeyDictionary()


class WatchOwner(Protocol):
    """The conductor that uses the workers."""

    id: str

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""

    def announce(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Emit an event about the workers."""

    def emit(self, channel: str, event: Event) -> None:
        """Put an event on a channel."""

    def report(self, channel: str, error: AtomizerError) -> None:
        """Put an error on a channel."""

    def note_poll(self) -> None:
        """Do what is due after each look at the workers; on the client's event loop."""

    def note_missing(self, missing: BufferMissing) -> None:
        """Note that a worker needs a large buffer."""

    def note_gone(self) -> ConductorError:
        """Note that the scheduler is gone, and return the error that says so."""


class WorkerWatch:
    """Looks once a second which workers there are, and listens to events about them.

    Parameters
    ----------
    client
        A client connected to the scheduler.
    owner
        The conductor; it is notified of what happens.
    tasks
        The tasks of batches; those restricted to workers that have left are dropped.
    placement
        Gets the addresses of the workers.
    cluster
        The cluster whose lost workers are replaced; None where it is not known.

    Attributes
    ----------
    crew
        The workers as last seen.
    workers
        The addresses of the workers, without those that are known to have died.
    """

    def __init__(
        self,
        client: Client,
        owner: WatchOwner,
        tasks: BatchTasks,
        placement: Placement,
        cluster: Cluster | None,
    ) -> None:
        self.crew, self.workers = WorkerList({}), set[str]()
        self._client = client
        self._owner = owner
        self._tasks = tasks
        self._placement = placement
        has_spec = isinstance(cluster, SpecCluster)
        self._lost_workers = LostWorkers(cluster) if has_spec else None
        self._without_state: set[tuple[str, str]] = set()  # singletons whose worker has gone
        self._leaving = _listen(self)
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the client's event loop."""
        self._client.loop.add_callback(self._start)

    def cancel(self) -> None:
        """Stop looking; on the client's event loop."""
        if self._watching is not None:
            self._watching.cancel()

    async def _start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self._client.status in ("running", "connecting"):
            await asyncio.sleep(WATCH_SECONDS)
            if self._client.status == "running":
                try:
                    self.note(WorkerList(**await self._client.scheduler.atomizer_crew()))
                except (OSError, RuntimeError):  # RuntimeError where the client closes just now
                    continue  # the client notices by itself, and so does the loop's condition
                except Exception as error:  # noqa: BLE001 - whoever watches goes on to
                    what = f"the workers cannot be looked at: {where_raised(error)}"
                    event = Event(what, conductor_id=self._owner.id)
                    self._owner.report("", AtomizerError(event, error))
                    continue
                if self._lost_workers is not None:
                    self._lost_workers.replace()
                self._owner.note_poll()
                await self._tasks.drop_unplaced(self.workers)
        if not self._owner.is_closed:
            self._owner.note_gone()

    def note(self, crew: WorkerList) -> None:
        """Note which workers there are, and announce which joined and left."""
        before, self.workers = self.workers, crew.workers
        had, self.crew = self.crew.working, crew
        self._placement.workers, self._placement.working = crew.workers, crew.working
        for worker in sorted(before - self.workers):
            if (how := self._leaving.get(worker)) is not None:
                self._owner.announce(f"worker {worker} {how}", worker=worker)
                continue
            level: Level = "warning" if len(self._tasks) else "info"
            self._owner.announce(f"worker {worker} left", level, worker=worker)
        for worker in sorted(self.workers - before):
            self._owner.announce(f"worker {worker} joined", worker=worker)
        if self._placement.fitness is not None:
            self._placement.fitness.forget(before - self.workers)
            self._client.loop.add_callback(self._placement.fitness.welcome, self.workers)
        if before and not crew.workers and len(self._tasks):
            message = "no workers are left; what is under way waits for new ones"
            self._owner.announce(message, "warning")
        elif had and not crew.working and len(self._tasks):
            self._owner.announce(crew.standstill(set()), "warning")

    def note_idle(self, message: WorkerIdle) -> None:
        """Note what the scheduler plugin did about an idle worker."""
        if message.restarted and self._lost_workers is not None:
            self._lost_workers.restarted.add(message.name)
        if message.text:
            self._owner.announce(message.text, message.level, worker=message.worker)
        self._tasks.post_idle(message)

    def note_missing(self, missing: BufferMissing) -> None:
        """Note that a worker needs a large buffer."""
        self._owner.note_missing(missing)

    def note_death(self, batch: Batch, worker: str) -> None:
        """Note that a worker died with a batch."""
        if worker in self.workers:
            self.workers.discard(worker)
            message = f"worker {worker} died; what it had in hands is executed again"
            self._owner.announce(message, "warning", worker=worker)
        is_seen = self._placement.fitness is None or self._placement.fitness.knows(worker)
        if not is_seen and ("", worker) not in self._without_state:
            self._without_state.add(("", worker))
            message = (
                f"worker {worker} died of its first electrons, as it does where atomizer_dask "
                "is not installed; its log says why"
            )
            self._owner.announce(message, "warning", worker=worker)
        if is_singleton(batch.version):
            self.note_lost_state(batch, worker, "died")

    def note_lost_state(self, batch: Batch, worker: str, how: str = "") -> None:
        """Warn the sender of a batch that the worker of its singleton, and the state, are gone."""
        key = batch.version, worker
        if key in self._without_state or not self._tasks.is_awaited(batch.key):
            return
        self._without_state.add(key)
        how = how or self._leaving.get(worker, "left")
        message = f"singleton lost its state: its worker {worker} {how}; re-initialised next"
        event = Event(message, atom_id=batch.atom_id, run_id=batch.run_id, level="warning")
        self._owner.emit(batch.origin.channel, event)


def _listen(watch: WorkerWatch) -> dict[str, str]:
    """Subscribe a watch to events about workers; return a mapping of worker to how it leaves.

    A client allows one listener per topic, but may have several conductors: they share both.
    """
    client = watch._client
    if client not in _LISTENING:
        leaving: dict[str, str] = {}
        watches: weakref.WeakSet[WorkerWatch] = weakref.WeakSet()

        def note_leaving(event: tuple[float, Any]) -> None:
            message = WorkerLeaving(**event[1])
            leaving[message.worker] = "was retired" if message.retired else LEFT_IN_TIME

        def note_idle(event: tuple[float, Any]) -> None:
            message = WorkerIdle(**event[1])
            if message.restarted:
                leaving[message.worker] = "has ended, to be restarted"
            for each in list(watches):
                each.note_idle(message)

        def note_missing(event: tuple[float, Any]) -> None:
            for each in list(watches)[:1]:  # they share their client
                each.note_missing(BufferMissing(**event[1]))

        client.subscribe_topic(TOPICS[BufferMissing], note_missing)
        client.subscribe_topic(TOPICS[WorkerLeaving], note_leaving)
        client.subscribe_topic(TOPICS[WorkerIdle], note_idle)
        _LISTENING[client] = leaving, watches
    leaving, watches = _LISTENING[client]
    watches.add(watch)
    return leaving


class WorkerList:
    """The workers that execute batches.

    Parameters
    ----------
    threads
        Number of threads by address of the worker.
    idle
        Reason by address of the workers that do nothing.
    begun
        How many batches the idle workers have begun, and may still end.
    """

    def __init__(
        self, threads: Mapping[str, int], idle: Mapping[str, str] | None = None, begun: int = 0
    ) -> None:
        self._threads, self._begun = threads, begun
        self.idle = {} if idle is None else idle
        self.workers = set(threads)
        self.working = self.workers.difference(self.idle)

    @property
    def threads(self) -> int:
        """How many threads can execute: those of working workers, and busy ones of idle workers."""
        return sum(self._threads[worker] for worker in self.working) + self._begun

    def standstill(self, unfit: Set[str]) -> str:
        """Return why no worker can execute an atom; empty where one can.

        Parameters
        ----------
        unfit
            The workers that lack something that the atom needs.

        Examples
        --------
        >>> WorkerList({}).standstill(set())
        'no workers: waiting for some'
        >>> WorkerList({"tcp://a": 1, "tcp://b": 1}, {"tcp://a": "paused"}).standstill({"tcp://b"})
        'nothing is executed: 1 worker is paused; 1 worker lacks what the atom needs'
        """
        if not self.workers:
            return "no workers: waiting for some"
        if not self.working <= unfit:
            return ""
        reasons = self._reasons()
        if lacking := len(self.working):
            who = "1 worker lacks" if lacking == 1 else f"{lacking:,} workers lack"
            reasons.append(f"{who} what the atom needs")
        return f"nothing is executed: {'; '.join(reasons)}"

    def _reasons(self) -> list[str]:
        counts = Counter(self.idle.values()).most_common()
        whos = ["1 worker is" if n == 1 else f"{n:,} workers are" for _, n in counts]
        return [f"{who} {reason}" for who, (reason, _) in zip(whos, counts, strict=True)]

    def __str__(self) -> str:
        if not self.workers:
            return "no workers: waiting for some"
        numbers = (len(self.workers), "worker"), (sum(self._threads.values()), "thread")
        here = [f"1 {what}" if n == 1 else f"{n:,} {what}s" for n, what in numbers]
        return ", ".join(here) + (f"; {'; '.join(self._reasons())}" if self.idle else "")
