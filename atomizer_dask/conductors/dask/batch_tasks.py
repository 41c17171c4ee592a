"""Batches as tasks of Dask: submitted, followed until they end, and dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext, suppress
from time import time
from typing import Any, Protocol

import dask
from distributed import Client, Future, KilledWorker, wait
from distributed.comm import CommClosedError

from atomizer_dask.atoms.namespaces import HOME
from atomizer_dask.atoms.shared_files import SharedFile
from atomizer_dask.conductors.dask.cluster import internals
from atomizer_dask.conductors.dask.messages import TaskAdopted, WorkerIdle, as_event
from atomizer_dask.conductors.dask.placement import Placement, is_singleton
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import NEXT_WORKER, is_lost
from atomizer_dask.conductors.dask.task_keys import key_of
from atomizer_dask.conductors.dask.walltime import WallTimeError
from atomizer_dask.conductors.fair_share import task_priority
from atomizer_dask.conductors.reports import (
    Arrived,
    Died,
    Dropped,
    Expiring,
    GivenBack,
    Lost,
    Partly,
    Report,
    WorkerSilent,
)
from atomizer_dask.errors import ConductorError, UnpicklableError, text_of, where_raised
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.input_checks import why_not_sent
from atomizer_dask.execution.outcome import Outcome
from atomizer_dask.execution.packing import Packed, pack, unpack_outcome
from atomizer_dask.sweeps.columns import LARGE_BYTES

logger = logging.getLogger(__name__)

LARGE_GRAPH = 2**26  # bytes, besides those of the buffers
MANY_TROUBLES = 5  # in a row, after which a run ends
RELEASE_SECONDS, RELEASE_AT = 0.25, 100
_TROUBLE = (
    "cannot schedule new futures",
    "interpreter shutdown",
    "loop is closed",
    "ConnectionPool is closed",
    "No worker found",
    "No workers found",
)


class TasksOwner(Protocol):
    """The conductor that has the batches."""

    @property
    def channel(self) -> str:
        """The topic on which the conductor listens to workers."""

    def error(self, message: str) -> ConductorError:
        """Return an error that names the conductor's scheduler."""

    def note_gone(self) -> ConductorError:
        """Note that the scheduler is gone, and return the error that says so."""

    def note_death(self, batch: Batch, worker: str) -> None:
        """Note that a worker died with a batch."""


class BatchTasks:
    """The batches that a conductor has under way, each a task of Dask.

    Submitting and forgetting are for any thread; the coroutines that follow tasks run on the
    client's event loop.

    Parameters
    ----------
    client
        A client connected to the scheduler.
    owner
        The conductor; it is notified of deaths of workers, and that the scheduler is gone.
    run_batch
        The function that executes a batch on a worker, from its packed form and a channel.
    placement
        Chooses the workers that may take a batch.
    clock_offset
        Seconds by which the scheduler's clock is ahead of this one: batches of different machines
        are due by the scheduler's clock.
    """

    def __init__(
        self,
        client: Client,
        owner: TasksOwner,
        run_batch: Callable[[Packed, str], Packed],
        placement: Placement,
        clock_offset: float,
    ) -> None:
        self._client = client
        self._owner = owner
        self._run_batch = run_batch
        self._placement = placement
        self._clock_offset = clock_offset
        self._direct = client.direct_to_workers is not False
        self._posts: dict[str, Callable[[Report], None]] = {}
        self._arrived: set[str] = set()
        self._tasks: dict[str, Future] = {}
        self._spaces: dict[str, str] = {}  # in which a batch's outcome is unpickled, if not `HOME`
        self._pinned: dict[str, set[str]] = {}
        self._files: dict[str, list[SharedFile]] = {}  # with large inputs, by key of the batch
        self._unplaced: set[str] = set()  # whose workers were missing at the last look
        self._dropping: set[str] = set()
        self._finished: list[Future] = []
        self._troubles = 0  # of Dask's own, in a row

    def __len__(self) -> int:
        return len(self._posts)

    # -- what the conductor asks --------------------------------------------------------------

    def submit(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have a batch executed by some worker, and call `post` with reports about it."""
        self._posts[batch.key] = post
        if batch.origin.space:
            self._spaces[batch.key] = batch.origin.space
        self._client.loop.add_callback(self._carry, batch)

    def adopt(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Call `post` with reports about a batch that another process submitted."""
        self._posts[batch.key] = post
        self._client.loop.add_callback(self._carry, batch, True)

    def forget(self, key: str) -> None:
        """Report nothing more about a batch, which goes on."""
        self._posts.pop(key, None)

    def forget_all(self) -> None:
        """Report nothing more about any batch."""
        self._posts.clear()

    def retract(self, key: str) -> None:
        """Forget a batch, and cancel its task: nobody waits for it any more."""
        self._posts.pop(key, None)
        self._client.loop.add_callback(self._drop, key)

    def drop_all(self) -> None:
        """Cancel all tasks; their batches are dropped."""
        for key in list(self._posts):
            self._client.loop.add_callback(self._drop, key)

    async def drop_unplaced(self, workers: set[str]) -> None:
        """Cancel tasks that may go to certain workers only, of which none is left.

        That takes two looks in a row: a worker may have joined since `workers` were looked up.
        """
        unplaced = {key for key, wanted in self._pinned.items() if not wanted & workers}
        for key in unplaced & self._unplaced:
            await self._drop(key)
        self._unplaced = unplaced

    def is_awaited(self, key: str) -> bool:
        """Return whether somebody waits for a batch."""
        return key in self._posts

    def post(self, key: str, report: Report) -> None:
        """Post a report about a batch to its driver, where that still waits for it."""
        post = self._posts.get(key)
        if post is not None:
            if not isinstance(report, GivenBack | Partly | Expiring | WorkerSilent):
                del self._posts[key]
            post(report)

    def post_partly(self, key: str, outcome: bytes) -> None:
        """Post the packed outcome of the first electrons of a batch."""
        self.post(key, Partly(key, self._unpack(key, outcome)))

    def post_arrived(self, key: str, outcome: bytes) -> None:
        """Post the packed outcome of a batch, ahead of the end of its task."""
        if key in self._posts or key in self._tasks:  # else the batch was taken back
            report = Arrived(key, self._unpack(key, outcome))
            self.post(key, report)
            self._arrived.add(key)  # afterwards: where that raises, its task still reports it

    def post_idle(self, message: WorkerIdle) -> None:
        """Post which batches the scheduler plugin took back from an idle worker."""
        batches = {future.key: key for key, future in self._tasks.items()}
        dropped, begun, rest = (
            [batches[task] for task in tasks if task in batches]
            for tasks in (message.dropped, message.begun, message.rest)
        )
        self._dropping.update(dropped, begun)
        for key in dropped:
            self.post(key, Dropped(key))
        for key in begun:
            self.post(key, Died(key, message.worker))
        for key in rest:
            self.post(key, WorkerSilent(key))

    def release_finished(self) -> None:
        """Release the futures of outcomes that have been delivered."""
        self._finished.clear()

    # -- on the client's event loop -----------------------------------------------------------

    async def _drop(self, key: str) -> None:
        if (task := self._tasks.get(key)) is not None:
            self._dropping.add(key)
            await task.cancel(asynchronous=True, force=False, msg="dropped")

    async def _carry(self, batch: Batch, is_submitted: bool = False) -> None:
        try:
            await self._carry_out(batch, is_submitted)
        except BaseException as error:  # on Dask's event loop, which SystemExit would end for all
            self._clear(batch.key)
            message = f"a batch of {batch.atom_id} is lost: {where_raised(error)}"
            self.post(batch.key, Lost(batch.key, self._owner.error(message)))
            if isinstance(error, asyncio.CancelledError | GeneratorExit):  # the loop itself ends
                raise

    async def _carry_out(self, batch: Batch, is_submitted: bool) -> None:
        """Follow a batch until it has ended, and post what has become of it."""
        future, generation = None, self._client.generation
        fitness = self._placement.fitness
        found_unfit = 0 if fitness is None else fitness.found_unfit
        try:
            future = await (self._adopt(batch) if is_submitted else self._submit(batch))
            self._tasks[batch.key] = future
            with self._client.as_current():
                ended = wait(future)
            await ended
            if batch.key in self._arrived:
                self._troubles = 0
                self._clear(batch.key)
                self._release_soon(future)
                return
            packed = await self._client.gather(future, direct=self._direct, asynchronous=True)
            report: Report = Arrived(batch.key, _unpacked(packed, batch))
        except UnpicklableError as error:
            if len(batch) > 1:
                await self._carry_half(batch)
                return
            failure = Failure("invalid_payload", "UnpicklableError", error.event.message)
            report = Arrived(batch.key, Outcome.all_failed(1, failure))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised again there
            report = await self._report_of(error, batch, future, generation, found_unfit)
        if isinstance(report, Arrived):
            self._troubles = 0
        self._clear(batch.key)
        self.post(batch.key, report)
        if future is not None:
            future.release()

    async def _report_of(
        self,
        error: BaseException,
        batch: Batch,
        future: Future | None,
        generation: int,
        found_unfit: int,
    ) -> Report:
        """Return the report about a batch whose task ended with an error, or never began.

        Raises
        ------
        Exception
            The error, where it is neither the task's nor trouble of Dask's.
        """
        if isinstance(error, asyncio.CancelledError | CancelledError):
            return self._dropped(batch, generation)
        if isinstance(error, KilledWorker):
            worker = getattr(error.last_worker, "address", str(error.last_worker))
            self._owner.note_death(batch, worker)
            return Died(batch.key, worker)
        if isinstance(error, WallTimeError):
            failure = Failure("timeout", "WallTimeError", str(error))
            return Arrived(batch.key, Outcome.all_failed(len(batch), failure))
        assert isinstance(error, Exception)
        is_of_task = future is not None and future.status == "error"
        if is_lost(error) or await self._is_unfit_since(found_unfit):
            return Dropped(batch.key)
        if self._client.status != "running":
            return self._lost(batch, text_of(error))
        if future is None and not is_trouble(error):  # no task ended with it
            raise error
        if not is_of_task or is_trouble(error):
            return self._troubled(batch, error)
        return Arrived(
            batch.key,
            Outcome.all_failed(len(batch), Failure.rejected(error, "the worker could not take it")),
        )

    async def _adopt(self, batch: Batch) -> Future:
        """Return a future of a task that another client submitted."""
        key = key_of(batch)
        self._dropping.add(batch.key)  # the scheduler may have forgotten it: then it is dropped
        future = Future(key, self._client)
        await self._client.scheduler.log_event(**as_event(TaskAdopted(key, self._client.id)))
        return future

    async def _submit(self, batch: Batch) -> Future:
        # A group of its own for each task: Dask would queue a large group on the scheduler, and
        # let workers idle for a round trip between any two of it.
        futures: list[Future] = []  # among the inputs: Dask has their values where they are needed
        try:
            # Electrons that came along a route were JSON.
            packed = pack(
                batch,
                is_plain=batch.origin.route is not None,
                space=batch.version,
                brings_code=not is_singleton(batch.version),  # a singleton keeps its instance
                references=futures,
            )
        except BaseException as error:
            raise UnpicklableError(why_not_sent(batch, error)) from error
        if batch.sink is None:  # else it may outlive this process, which has the files
            with suppress(OSError):  # no room: it goes by way of the scheduler
                # Values of an axis, which other batches have too, and no pieces of a long column.
                least = LARGE_BYTES * len(batch)
                packed, self._files[batch.key] = packed.with_files(least)
        workers = await self._placement.choose(batch, lambda: batch.key in self._posts)
        if batch.key not in self._posts:  # nobody waits for it any more
            raise CancelledError
        if workers and workers != {NEXT_WORKER}:
            self._pinned[batch.key] = workers
        with _without_warning(packed):
            return self._client.submit(
                self._run_batch,
                packed,
                self._owner.channel,
                *futures,
                key=key_of(batch),
                pure=False,
                priority=task_priority(
                    batch.origin.priority, time() + self._clock_offset + batch.due_seconds
                ),
                workers=sorted(workers) or None,
            )

    async def _carry_half(self, batch: Batch) -> None:
        """Narrow down which input cannot be pickled: give one half back, carry the other half."""
        stop = len(batch) // 2
        self.post(batch.key, GivenBack(batch.key, stop))
        await self._carry_out(batch.part(0, stop), False)

    async def _is_unfit_since(self, found_unfit: int) -> bool:
        """Return whether a worker was found unfit since a batch was sent."""
        fitness = self._placement.fitness
        if fitness is None or self._client.status != "running":
            return False
        try:
            await fitness.welcome(await self._client.nthreads())
        except (OSError, RuntimeError):  # the scheduler is gone, which is reported elsewhere
            return False
        return fitness.found_unfit > found_unfit

    def _dropped(self, batch: Batch, generation: int) -> Report:
        """Return the report about a batch whose task was cancelled, by us or by others.

        A restart of all workers, perhaps by another client, makes Dask forget all tasks of all
        clients, which is as if each worker had left.
        """
        if self._client.generation > generation and self._client.status == "running":
            # A task that was on its way then is on the scheduler; the client releases it.
            internals.release(self._client, key_of(batch))
            return Dropped(batch.key)
        if batch.key in self._dropping or batch.key not in self._posts:
            return Dropped(batch.key)
        return self._lost(batch, "its task was cancelled from outside")

    def _troubled(self, batch: Batch, error: Exception) -> Report:
        """Return the report about a batch that met trouble of Dask's own: no outcome of electrons.

        The batch is executed again, unless `MANY_TROUBLES` came in a row: then it is lost.
        """
        self._troubles += 1
        logger.info("a batch of %s met trouble", batch.atom_id, exc_info=error)
        if self._troubles < MANY_TROUBLES:
            return Dropped(batch.key)
        return self._lost(batch, f"{type(error).__name__}: {error}")

    def _lost(self, batch: Batch, reason: str) -> Lost:
        if self._client.status == "running":
            message = f"a batch of {batch.atom_id} is lost: {reason}"
            return Lost(batch.key, self._owner.error(message))
        return Lost(batch.key, self._owner.note_gone())

    def _release_soon(self, future: Future) -> None:
        """Release futures of small outcomes many at a time: each release costs three messages."""
        self._finished.append(future)
        if len(self._finished) == 1:
            self._client.loop.call_later(RELEASE_SECONDS, self.release_finished)
        elif len(self._finished) > RELEASE_AT:
            self.release_finished()

    def _unpack(self, key: str, data: bytes) -> Any:
        return unpack_outcome(Packed.of(data), self._spaces.get(key, HOME))

    def _clear(self, key: str) -> None:
        """Forget the task of a batch, which has ended."""
        self._tasks.pop(key, None)
        self._spaces.pop(key, None)
        self._pinned.pop(key, None)
        self._files.pop(key, None)
        self._dropping.discard(key)
        self._arrived.discard(key)


def _without_warning(packed: Packed) -> AbstractContextManager[Any]:
    """Return a context in which Dask does not warn of a large graph: no user can do about ours."""
    if packed.nbytes < LARGE_BYTES:
        return nullcontext()
    setting: AbstractContextManager[Any] = dask.config.set(
        {"distributed.admin.large-graph-warning-threshold": packed.nbytes + LARGE_GRAPH}
    )
    return setting


def _unpacked(packed: Packed, batch: Batch) -> Any:
    """Return the outcome of a batch; its electrons failed where their results cannot be read."""
    try:
        return unpack_outcome(packed, batch.origin.space)
    except Exception as error:  # noqa: BLE001 - whatever the user's objects raise
        failure = Failure.rejected(error, "the results cannot be read here")
        return Outcome.all_failed(len(batch), failure)


def is_trouble(error: BaseException) -> bool:
    """Return whether a task ended so because of a connection, or of a process that ends."""
    if isinstance(error, ConnectionError | TimeoutError | CommClosedError):
        return True
    return isinstance(error, RuntimeError | ValueError) and any(
        text in str(error) for text in _TROUBLE
    )
