"""The conductor that carries batches through Dask.

::

    client process                      scheduler                worker process
    DaskConductor.submit  ── task ────▶            ── task ────▶ run_batch ▸ DaskSite.execute
    _on_message          ◀── topic ───            ◀── topic ──── given back, small outcome, events
    _collect             ◀─────────── gather, from the worker ── large outcome

A small outcome rides on the topic, which saves the round trip of a gather; the task's future
stays the authority on whether the batch has ended. An electron that sends others does so through
a `DaskConductor` of its worker's own client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from time import time
from typing import Any

from distributed import Client, Future, KilledWorker, SpecCluster, wait
from distributed.deploy import Cluster
from distributed.security import Security

from atomizer_dask.atoms import pickling
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.namespaces import HOME, forget, loads
from atomizer_dask.atoms.pickling import load_atom
from atomizer_dask.atoms.required_modules import needs_of
from atomizer_dask.conductor import Listener
from atomizer_dask.conductors.batch_conductor import JOIN_SECONDS, BatchConductor
from atomizer_dask.conductors.dask.ask_workers import ask_workers, install, successes
from atomizer_dask.conductors.dask.atom_versions import Version, Versions
from atomizer_dask.conductors.dask.cluster.compatibility import Fitness
from atomizer_dask.conductors.dask.cluster.connect import connect
from atomizer_dask.conductors.dask.cluster.lost_workers import LostWorkers
from atomizer_dask.conductors.dask.cluster.shielding import shield
from atomizer_dask.conductors.dask.idle_workers import IDLE, LookoutByValue, keys_in
from atomizer_dask.conductors.dask.placement import Placement, is_singleton
from atomizer_dask.conductors.dask.scheduler_plugin import (
    ADOPTED,
    CLAIMS,
    DEMAND,
    DRIVER,
    FRESH,
    LEAVING,
    METADATA,
    SEND_SECONDS,
    SETTLED,
    ByValue,
    forget_kept,
    is_lost,
    is_trouble,
    kept_tasks,
    knows,
)
from atomizer_dask.conductors.dask.task_keys import kept_key, key_of
from atomizer_dask.conductors.dask.walltime import WallTimeError
from atomizer_dask.conductors.dask.worker import (
    Undisturbed,
    census,
    drive_detached,
    let_go,
    run_batch,
    sees,
    stop,
)
from atomizer_dask.conductors.dask.worker_list import Crew
from atomizer_dask.conductors.fair_share import urgency
from atomizer_dask.conductors.reports import (
    Arrived,
    Died,
    Dropped,
    Expiring,
    GivenBack,
    Held,
    Lost,
    Partly,
    Report,
)
from atomizer_dask.conductors.sending import Sent
from atomizer_dask.conductors.status import ConductorState, ConductorStatus, WorkerStatus
from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import (
    AtomizerError,
    ConductorError,
    UnpicklableError,
    text_of,
    where_raised,
)
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.batch import FIRST, Batch, Sink
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.input_checks import check_picklable, why_not_sent
from atomizer_dask.execution.outcome import Outcome, Stored
from atomizer_dask.execution.packing import (
    Packed,
    pack,
    unpack_outcome,
)
from atomizer_dask.future import ElectronFuture
from atomizer_dask.policy import Policy
from atomizer_dask.sweeps.sweep import Sweep

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0  # how often we look which workers there are
LEFT_IN_TIME = "left, before its wall time was over"
MANY_TROUBLES = 5  # in a row, after which a run ends
DRIVER_PRIORITY = 1e15  # over all batches
DRIVER_RETRIES = 3  # nobody else would notice trouble that it met
RELEASE_SECONDS, RELEASE_AT = 0.25, 100
TELL_SECONDS = 1.0  # for workers to hear of something
_Heard = tuple[dict[str, str], "weakref.WeakSet[DaskConductor]"]
_LEAVING: weakref.WeakKeyDictionary[Client, _Heard] = weakref.WeakKeyDictionary()


class DaskConductor(BatchConductor):
    """Carries electrons to the workers of a Dask cluster.

    Parameters
    ----------
    target
        One of:

        - any Dask ``Cluster``: one of dask-jobqueue such as ``SLURMCluster``, a ``LocalCluster``,
          a ``SpecCluster`` and so on, but no asynchronous one;
        - a scheduler's address, ``"tcp://node1:8786"``;
        - a `distributed.Client`;
        - the path of a scheduler file, as `pathlib.Path` or text, which need not exist yet;
        - None: the current client where there is one, else what is configured as
          ``atomizer.connection.target`` or, for all of Dask, as ``scheduler-address``, else a local
          cluster of processes that listen to this machine alone and live as long as the conductor.
    id
        Names it.
    workers, threads_per_worker
        Of the local cluster. As many processes as there are cores and one thread in each unless
        given: atoms are Python and NumPy, which often hold the interpreter lock. Atoms that
        release it, or that share large memory, are better off in one process of many threads.
        Elsewhere whoever starts the workers chooses, by the same rule: ``dask worker --nworkers
        auto --nthreads 1``, or ``SLURMCluster(cores=8, processes=8)``.
    security
        A `distributed.Security` for an address, a scheduler file or a local cluster; True for a
        local cluster with temporary certificates, which needs cryptography. Clients and clusters
        have their own.
    timeout
        How long to wait for a scheduler, in seconds or as ``"10 minutes"``: unless given or
        configured 8 seconds at an address, and 30 for a scheduler file to appear and its scheduler
        to answer.

    Raises
    ------
    ConductorError
        Where nobody answers in time or certificates do not fit, or the workers' Python or version
        of this package is another one; the message lists who has what.

    Notes
    -----
    Closing it closes what it opened itself: its connection, and a local cluster that it started.
    The processes of that never import the main module, go on at Ctrl-C, may have children, and end
    with this process, however it does.
    Workers may join later and serve at once what is registered. Where their environment differs
    they are warned of, and electrons are kept off those on which they would fail.

    Examples
    --------
    ``DaskConductor(SLURMCluster(cores=8, processes=8, memory="16GB"))``, or where the scheduler is
    in a job of its own ``DaskConductor("scheduler.json", timeout="1 hour")``.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Client | Cluster | None = None,
        *,
        id: str = "dask",
        workers: int | None = None,
        threads_per_worker: int | None = None,
        security: Security | bool | None = None,
        timeout: float | str | None = None,
    ) -> None:
        super().__init__(id)
        self._client, self._name, self._cluster, self._owns_cluster = connect(
            target, id, workers, threads_per_worker, security, timeout
        )
        self._owns_client = True
        try:
            self._prepare()
            self._news.append(self._connected())
            logger.info("%s", self._news[0])
            self._ask(self._client.register_plugin, ByValue())
            self._ask(self._client.register_plugin, self._lookout())
            if not self._owns_cluster:
                self._ask(shield, self._client)
            self._placement.fitness = self._look_at_workers()
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def _connected(self) -> Event:
        crew = str(self._crew) if self._workers else "no workers yet"
        message = f"connected to {self._name} at {self._address}: {crew}"
        return Event(message, conductor_id=self.id, fields={"scheduler": self._address})

    def _lookout(self) -> LookoutByValue:
        return LookoutByValue(
            patience=setting("workers.patience"),
            restart=setting("workers.restart"),
            is_own=self._owns_cluster,
        )

    def _look_at_workers(self) -> Fitness:
        fitness = Fitness(self._client, self.id, self._note_news)
        self._ask(fitness.check)
        return fitness

    def _note_news(self, event: Event) -> None:
        """Tell listeners, also those who attach later."""
        self._news.append(event)
        self.emit(self.channel, event)

    def attach(self, listener: Listener) -> None:
        """Look up atoms at `listener` first, and tell it what happens, and has at connecting."""
        is_new = listener not in self._listeners
        super().attach(listener)
        for event in list(self._news) if is_new else ():
            listener.emit(event)

    def _prepare(self) -> None:
        self._news: list[Event] = []  # of connecting, and of environments that differ
        self._watch: asyncio.Task[None] | None = None
        self.channel = f"atomizer-{new_id()}"
        self._versions = Versions(self._keep_version, self._name_version, self._release_versions)
        self._posts: dict[str, Callable[[Report], None]] = {}
        self._arrived: set[str] = set()
        self._tasks: dict[str, Future] = {}
        self._spaces: dict[str, str] = {}  # where the outcome of a batch arrives, if not at home
        self._pinned: dict[str, set[str]] = {}
        self._dropping: set[str] = set()
        has_spec = isinstance(self._cluster, SpecCluster)
        self._lost_workers = LostWorkers(self._cluster) if has_spec else None
        self._told_of: set[tuple[str, str]] = set()  # singletons whose worker has gone
        self._troubles = 0  # of Dask's own, in a row
        self._demand = (0, 0.0)  # as last told
        self._crew, self._workers = Crew({}), set[str]()
        self._placement = Placement(self._client, self.emit, self._tell_of_lost_state)
        self._finished: list[Future] = []
        self._channels: set[str] = {self.channel}
        self._client.scheduler_comm.interval = SEND_SECONDS  # by default it gathers for 10 ms
        self._address = self._client.scheduler.address
        self._direct = self._client.direct_to_workers is not False
        # On the scheduler's clock batches are due that come from different machines.
        self._clock_offset = self._ask(self._client.run_on_scheduler, time) - time()
        self._note_workers(Crew(self._ask(self._client.nthreads)))
        self._client.subscribe_topic(self.channel, self._on_message)
        self._leaving = _hear_of_workers(self)
        self._client.loop.add_callback(self._start_watching)

    # -- what the driver needs --------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The `distributed.Client` it works through."""
        return self._client

    @property
    def threads(self) -> int:
        """How many threads the workers have together that do something, as last seen."""
        return self._crew.threads

    def standstill(self, version: Any) -> str:  # noqa: D102
        fitness = self._placement.fitness
        return self._crew.standstill(set() if fitness is None else fitness.unfit_for(version))

    def shield_workers(self) -> None:
        """Have workers that were started here, and none else, end when this process says so."""
        if self._owns_cluster:
            self._ask(self._client.sync, install, self._client, Undisturbed())

    def submit(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have a batch executed by some worker."""
        self._posts[batch.key] = post
        if batch.origin.space:
            self._spaces[batch.key] = batch.origin.space
        self._client.loop.add_callback(self._carry, batch)

    def await_batch(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have told what becomes of a batch that another process submitted."""
        self._posts[batch.key] = post
        if batch.origin.channel not in self._channels:  # where its worker tells of it
            self._channels.add(batch.origin.channel)
            self._client.subscribe_topic(batch.origin.channel, self._on_message)
        self._client.loop.add_callback(self._carry, batch, True)

    def forget(self, key: str) -> None:
        """Tell no more of a batch, which goes on; see `in_flight`."""
        self._posts.pop(key, None)

    def check_detachable(self, sink: Sink) -> None:
        """Raise where no worker sees the store, so that none could go on with the run."""
        seeing = self._ask(self._ask_workers, sees, sink)
        if not seeing:
            raise ConductorError(
                f"there are no workers at {self._address} yet that could go on with the run: wait "
                "for some, as by conductor.client.wait_for_workers(1)"
            )
        if not any(seeing.values()):
            raise ConductorError(
                f"no worker sees the store {sink.url}, so that none can go on with the run: put "
                "it where they do, on a file system that they share or at a URL"
            )

    def detach_run(self, run_id: str, sink: Sink, version: Any, policy: Policy) -> None:
        """Have a worker that sees the store drive a run from now on."""
        code = self._ask(self._client.get_metadata, [METADATA, version])
        seeing = [
            worker for worker, does in self._ask(self._ask_workers, sees, sink).items() if does
        ]
        name = f"drive-{new_id()}"
        future = self._client.submit(
            drive_detached,
            sink.url,
            code,
            pickling.dumps(policy),
            name,
            key=(name, run_id, DRIVER),
            workers=seeing,
            priority=DRIVER_PRIORITY,
            retries=DRIVER_RETRIES,
            pure=False,
        )
        # This process may end as soon as the scheduler has it.
        while not (future.done() or self._ask(self._client.run_on_scheduler, knows, future.key)):
            self._pause.wait(JOIN_SECONDS)

    @property
    def state(self) -> ConductorState:
        """Whether electrons can be sent: ``connected``, ``reconnecting``, ``closed``, ``gone``."""
        state = super().state
        if state == "connected" and self._client.status != "running":
            return "reconnecting"
        return state

    def status(self) -> ConductorStatus:
        """Return how it is and who its workers are, asking the scheduler where it answers."""
        state = self.state
        if state != "connected":
            return ConductorStatus(state, self._address)
        known = self._ask(self._client.scheduler_info, n_workers=-1)["workers"]
        workers = tuple(_status_of(address, facts) for address, facts in known.items())
        return ConductorStatus(state, self._address, workers, self._client.dashboard_link or "")

    def whereabouts(self) -> dict[str, Any]:
        """Return where it carries electrons, for the record."""
        there = {"scheduler": self._address, "workers": sorted(self._workers)}
        return {**super().whereabouts(), **there}

    def in_flight(self, run_id: str) -> list[Batch]:
        """Return the batches of a run that outlived who submitted them, in that order."""
        batches = []
        for _, args in self._ask(self._client.run_on_scheduler, kept_tasks, run_id):
            if args and isinstance(args[0], Packed):  # else its outcome is lost
                batches.append(args[0].load())
        return batches

    def settle(self, run_id: str, atom_id: str, keys: list[str] | None) -> None:
        """Forget the outcomes of batches of a run, for they are in its store by now."""
        tasks = None if keys is None else [kept_key(atom_id, key, run_id) for key in keys]
        if self._client.status == "running":
            msg = {"run": run_id, "keys": tasks}
            self._client.loop.add_callback(self._client.scheduler.log_event, topic=SETTLED, msg=msg)

    def retract(self, key: str) -> None:
        """Forget a batch: nobody waits for it any more."""
        self._posts.pop(key, None)
        self._client.loop.add_callback(self._drop, key)

    def stop(self, root: str, epoch: int, *, cancel: bool) -> None:
        """Have what has not been begun of a run, or of descendants, given back."""
        if cancel:
            self.cancel_descendants(root)
        if self._workers:
            self._tell_workers(stop, root, epoch, cancel)
        else:  # nobody has begun, and nobody is there to tell
            for key in list(self._posts):
                self._client.loop.add_callback(self._drop, key)

    def _tell_workers(self, what: Callable[..., Any], *args: Any) -> None:
        """Call something on all workers, without waiting for those that do not answer.

        A worker does not where its electron holds the interpreter lock.
        """
        call = partial(ask_workers, self._client, what, *args)
        with suppress(TimeoutError):
            self._client.sync(call, callback_timeout=TELL_SECONDS)

    async def _drop(self, key: str) -> None:
        if (task := self._tasks.get(key)) is not None:
            self._dropping.add(key)
            await task.cancel(asynchronous=True, force=False, msg="dropped")

    async def _carry(self, batch: Batch, submitted: bool = False) -> None:
        try:
            await self._carry_out(batch, submitted)
        except BaseException as error:  # on Dask's event loop, which SystemExit would end for all
            self._forget(batch.key)
            lost = self._error(f"a batch of {batch.atom_id} is lost: {where_raised(error)}")
            self._post(batch.key, Lost(batch.key, lost))
            if isinstance(error, asyncio.CancelledError | GeneratorExit):  # the loop itself ends
                raise

    async def _carry_out(self, batch: Batch, submitted: bool) -> None:
        report: Report
        future, generation = None, self._client.generation
        verdicts = 0 if self._placement.fitness is None else self._placement.fitness.verdicts
        try:
            future = await self._adopt(batch) if submitted else await self._submit(batch)
            self._tasks[batch.key] = future
            with self._client.as_current():
                ended = wait(future)
            await ended
            if batch.key in self._arrived:
                self._arrived.discard(batch.key)
                self._troubles = 0
                self._forget(batch.key)
                self._release_soon(future)
                return
            packed = await self._client.gather(future, direct=self._direct, asynchronous=True)
            report = Arrived(batch.key, _unpacked(packed, batch))
        except (asyncio.CancelledError, CancelledError):
            report = self._dropped(batch, generation)
        except KilledWorker as error:
            report = self._died(batch, error)
        except UnpicklableError as error:
            if len(batch) > 1:
                await self._carry_half(batch)
                return
            failure = Failure("invalid_payload", "UnpicklableError", error.event.message)
            report = Arrived(batch.key, Outcome.all_failed(1, failure))
        except WallTimeError as error:
            failure = Failure("timeout", "WallTimeError", str(error))
            report = Arrived(batch.key, Outcome.all_failed(len(batch), failure))
        except Exception as error:
            is_of_task = future is not None and future.status == "error"
            if is_lost(error) or await self._is_unfit_since(verdicts):
                report = Dropped(batch.key)
            elif self._client.status != "running":
                report = self._lost(batch, text_of(error))
            elif future is None and not is_trouble(error):  # no task could have ended with it
                raise
            elif not is_of_task or is_trouble(error):
                report = self._troubled(batch, error)
            else:
                report = Arrived(batch.key, Outcome.all_failed(len(batch), _failure_of_task(error)))
        if isinstance(report, Arrived):
            self._troubles = 0
        self._forget(batch.key)
        self._post(batch.key, report)
        if future is not None:
            future.release()

    async def _adopt(self, batch: Batch) -> Future:
        """Return a future of a task that another client submitted."""
        key = key_of(batch)
        future = Future(key, self._client)
        msg = {"key": key, "client": self._client.id}
        await self._client.scheduler.log_event(topic=ADOPTED, msg=msg)
        return future

    def _forget(self, key: str) -> None:
        self._tasks.pop(key, None)
        self._spaces.pop(key, None)
        self._pinned.pop(key, None)
        self._dropping.discard(key)
        self._arrived.discard(key)

    def _died(self, batch: Batch, error: KilledWorker) -> Report:
        worker = getattr(error.last_worker, "address", str(error.last_worker))
        if worker in self._workers:
            self._workers.discard(worker)
            message = f"worker {worker} died; what it had in hands is executed again"
            self._tell(message, "warning", worker=worker)
        is_seen = self._placement.fitness is None or self._placement.fitness.knows(worker)
        if not is_seen and ("", worker) not in self._told_of:
            self._told_of.add(("", worker))
            message = (
                f"worker {worker} died of its first electrons, as it does where atomizer_dask "
            )
            self._tell(f"{message}is not installed; its log says why", "warning", worker=worker)
        if is_singleton(batch.version):
            self._tell_of_lost_state(batch, worker, "died")
        return Died(batch.key, worker)

    def _tell_of_lost_state(self, batch: Batch, worker: str, how: str = "") -> None:
        """Tell whom a batch is of that a worker has gone, and a singleton's state with it."""
        if (batch.version, worker) in self._told_of or batch.key not in self._posts:
            return
        self._told_of.add((batch.version, worker))
        how = how or self._leaving.get(worker, "left")
        message = f"singleton lost its state: its worker {worker} {how}; re-initialised next"
        event = Event(message, atom_id=batch.atom_id, run_id=batch.run_id, level="warning")
        self.emit(batch.origin.channel, event)

    def _dropped(self, batch: Batch, generation: int) -> Report:
        """Return what a cancelled task means: whether it was we who cancelled it, or not.

        Whoever restarts all workers, perhaps for another's sake, has Dask forget all tasks of all
        clients, which is as if each worker had left.
        """
        if self._client.generation > generation and self._client.status == "running":
            # What was on its way to the scheduler just then it has, and the client wants no more.
            self._client._release_key(key_of(batch))
            return Dropped(batch.key)
        if batch.key in self._dropping or batch.key not in self._posts:
            return Dropped(batch.key)
        return self._lost(batch, "its task was cancelled from outside")

    def _troubled(self, batch: Batch, error: Exception) -> Report:
        """Return what trouble of Dask's own means, which is no outcome of any electron.

        The batch is executed again, unless that has been in vain several times in a row.
        """
        self._troubles += 1
        logger.info("a batch of %s met trouble", batch.atom_id, exc_info=error)
        if self._troubles < MANY_TROUBLES:
            return Dropped(batch.key)
        return self._lost(batch, f"{type(error).__name__}: {error}")

    def _lost(self, batch: Batch, reason: str) -> Lost:
        if self._client.status == "running":
            return Lost(batch.key, self._error(f"a batch of {batch.atom_id} is lost: {reason}"))
        gone = self._error("the scheduler is gone")
        self.lose(gone)
        return Lost(batch.key, gone)

    async def _submit(self, batch: Batch) -> Future:
        # A group of its own for each task: Dask would queue a large group on the scheduler, and
        # let workers idle for a round trip between any two of it.
        try:
            # What came along a route was JSON.
            packed = pack(
                batch,
                is_plain=batch.origin.route is not None,
                space=batch.version,
                brings_code=not is_singleton(batch.version),  # which keeps its instance
            )
        except BaseException as error:
            raise UnpicklableError(why_not_sent(batch, error)) from error
        workers = await self._placement.choose(batch, lambda: batch.key in self._posts)
        if batch.key not in self._posts:  # nobody waits for it any more
            raise CancelledError
        if workers and workers != {FRESH}:
            self._pinned[batch.key] = workers
        return self._client.submit(
            run_batch,
            packed,
            self.channel,
            key=key_of(batch),
            pure=False,
            priority=urgency(batch.origin.priority, time() + self._clock_offset + batch.due_after),
            workers=sorted(workers) or None,
        )

    async def _is_unfit_since(self, verdicts: int) -> bool:
        """Return whether a worker turned out to lack what all need since a batch was sent."""
        if self._placement.fitness is None or self._client.status != "running":
            return False
        try:
            await self._placement.fitness.welcome(await self._client.nthreads())
        except (OSError, RuntimeError):  # the scheduler is gone, which is told elsewhere
            return False
        return self._placement.fitness.verdicts > verdicts

    async def _carry_half(self, batch: Batch) -> None:
        """Narrow down which input cannot travel: give half of them back, carry the other half."""
        kept = len(batch) // 2
        self._post(batch.key, GivenBack(batch.key, kept))
        await self._carry_out(batch.part(0, kept), False)

    def _post(self, key: str, report: Report) -> None:
        post = self._posts.get(key)
        if post is not None:
            if not isinstance(report, GivenBack | Partly | Expiring | Held):
                del self._posts[key]
            post(report)

    def release_finished(self) -> None:
        """Release the futures of outcomes that have been delivered."""
        self._finished.clear()

    def _release_soon(self, future: Future) -> None:
        """Release futures of small outcomes many at a time: each costs three messages."""
        self._finished.append(future)
        if len(self._finished) == 1:
            self._client.loop.call_later(RELEASE_SECONDS, self.release_finished)
        elif len(self._finished) > RELEASE_AT:
            self.release_finished()

    def _on_message(self, message: tuple[float, Any]) -> None:
        try:
            self._heed(*message[1])
        except BaseException as error:  # noqa: BLE001 - of objects in events, on Dask's event loop
            # What is told of a batch comes again with its future; an event has nobody waiting.
            what = f"the workers told something that cannot be read: {where_raised(error)}"
            self.report(
                "", AtomizerError(Event(what, conductor_id=self.id, level="warning"), error)
            )

    def _heed(self, what: str, *rest: Any) -> None:
        if what == "given back":
            key, kept = rest
            self._post(key, GivenBack(key, kept))
        elif what == "partly":
            key, data = rest
            self._post(key, Partly(key, self._unpack(key, data)))
        elif what == "arrived":
            key, data = rest
            if key in self._posts or key in self._tasks:  # else it was taken back
                report = Arrived(key, self._unpack(key, data))
                self._post(key, report)
                self._arrived.add(key)  # afterwards: else nobody would tell of it where that raises
        elif what == "expiring":
            key, ran = rest
            self._post(key, Expiring(key, ran))
        elif what == "orphan":  # of an electron whose worker leaves
            self._take_in(Sent(*loads(rest[0])))
        elif what == "waiting":
            self.tell_waiting(self.channel, rest[0])
        elif what == "events":
            for event in loads(rest[0]):
                self.emit(self.channel, event)
        elif what == "error":
            self.report(self.channel, loads(rest[0]))

    def _unpack(self, key: str, data: bytes) -> Outcome | Stored:
        return unpack_outcome(Packed.of(data), self._spaces.get(key, HOME))

    def _take_in(self, sent: Sent) -> None:
        """Send what an electron had sent whose worker leaves; nobody waits for its outcome."""
        if self._closed or sent.origin.channel != self.channel:  # others may listen to it as well
            return
        future, terms = ElectronFuture(), FIRST
        if sent.terms != FIRST:
            ElectronFuture.start_all([future])
            terms = sent.terms
        self._outbox.append(sent._replace(future=future, terms=terms))
        self.post(self._flush)

    # -- atoms ------------------------------------------------------------------------------

    def version_of(self, definition: Definition) -> Version:
        """Return the version that an atom has now, which the scheduler keeps as long as needed."""
        return self._versions.of(definition)

    def check_inputs(self, sweep: Sweep) -> None:
        """Raise where inputs cannot be pickled, with the column and the row."""
        check_picklable(sweep)

    def publish(self, definition: Definition) -> None:
        """Make an atom known to every client of the scheduler, and to what its electrons send."""
        self._versions.register(definition)

    def _keep_version(self, digest: str, definition: Definition, data: bytes) -> None:
        fitness = self._placement.fitness
        if fitness is not None:
            self._ask(fitness.require, definition.id, digest, needs_of(definition, data))
        self._claim([digest], [])
        self._ask(self._client.set_metadata, [METADATA, digest], data)

    def _name_version(self, atom_id: str, version: str) -> None:
        self._ask(self._client.set_metadata, [METADATA, f"id:{atom_id}"], version)

    def _release_versions(self, versions: list[str]) -> None:
        if self._placement.fitness is not None:
            self._placement.fitness.forget_atoms(versions)
        if self._client.status == "running":
            self._claim([], versions)

    def _release_unneeded(self) -> None:
        self._versions.release_unneeded(is_idle=not self.demand()[0])

    def _claim(self, needed: list[str], unneeded: list[str]) -> None:
        """Tell the scheduler which versions it shall keep for this client, and which no longer."""
        msg = {"client": self._client.id, "needed": needed, "unneeded": unneeded}
        ask = self._client.scheduler.log_event
        self._ask(self._client.sync, ask, topic=CLAIMS, msg=msg)

    def find_version(self, atom_id: str) -> str | None:
        """Return the version of an atom that another client of the scheduler made known."""
        digest: str | None = self._ask(
            self._client.get_metadata, [METADATA, f"id:{atom_id}"], default=None
        )
        return digest

    def fetch(self, atom_id: str) -> Definition | None:
        """Return an atom that another client of the scheduler made known."""
        version = self.find_version(atom_id)
        data = version and self._ask(self._client.get_metadata, [METADATA, version], default=None)
        # Not at home: modules of the same names here are others than those of that client.
        if not data:
            return None
        space = f"fetched {version}"
        definition = load_atom(data, space=space)
        weakref.finalize(definition, forget, space).atexit = False
        return definition

    def catalog(self) -> Mapping[str, str]:
        """Return the versions that descendants of an electron shall find, by atom id."""
        return self._versions.catalog

    def count_all(self) -> tuple[int, int]:
        """Return the census of its channel, here and on all workers."""
        alive, sent = super().count_all()
        if self._client.status != "running":
            return alive, sent
        counts = self._ask_workers(census, self.channel)
        return (
            alive + sum(alive_there for alive_there, _ in counts.values()),
            sent + sum(sent_there for _, sent_there in counts.values()),
        )

    # -- being there, and not ---------------------------------------------------------------

    async def _start_watching(self) -> None:
        self._watch = asyncio.create_task(self._watch_threads())

    async def _watch_threads(self) -> None:
        while self._client.status in ("running", "connecting"):
            await asyncio.sleep(WATCH_SECONDS)
            if self._client.status == "running":
                try:
                    self._note_workers(Crew(**await self._client.scheduler.atomizer_crew()))
                except (OSError, RuntimeError):  # the latter where it closes just now
                    continue  # the client notices by itself, and so does the loop's condition
                except Exception as error:  # noqa: BLE001 - whoever watches goes on to
                    what = f"the workers cannot be looked at: {where_raised(error)}"
                    self.report("", AtomizerError(Event(what, conductor_id=self.id), error))
                    continue
                if self._lost_workers is not None:
                    self._lost_workers.replace()
                self.post(self._tell_demand)
                self.post(self._release_unneeded)
                for key, workers in list(self._pinned.items()):
                    if not workers & self._workers:  # where it was to go there is nobody any more
                        await self._drop(key)
        if not self._closed:
            self.lose(self._error("the scheduler is gone"))

    def _note_idle(self, message: Mapping[str, Any]) -> None:
        """Take note of what the scheduler's side took back from an idle worker."""
        worker = message["worker"]
        if message.get("restarted") and self._lost_workers is not None:
            self._lost_workers.restarted.add(message["name"])
        if message["text"]:
            self._tell(message["text"], message["level"], worker=worker)
        batches = {future.key: key for key, future in self._tasks.items()}
        reports: tuple[tuple[str, Callable[[str], Report]], ...] = (
            ("dropped", Dropped),
            ("died", partial(Died, worker=worker)),
            ("held", Held),
        )
        for how, report in reports:
            for key in (batches[task] for task in keys_in(message, how) if task in batches):
                if how != "held":
                    self._dropping.add(key)
                self._post(key, report(key))

    def _tell_demand(self) -> None:
        """Have clusters that adapt know what is still to be done, if that has changed."""
        demand = self.demand()
        if demand != self._demand:
            self._demand = demand
            msg = {"client": self._client.id, "electrons": demand[0], "seconds": demand[1]}
            self._client.loop.add_callback(self._client.scheduler.log_event, topic=DEMAND, msg=msg)

    def _note_workers(self, crew: Crew) -> None:
        before, self._workers = self._workers, crew.workers
        had, self._crew = self._crew.working, crew
        self._placement.workers, self._placement.working = crew.workers, crew.working
        for worker in sorted(before - self._workers):
            if (how := self._leaving.get(worker)) is not None:
                self._tell(f"worker {worker} {how}", worker=worker)
                continue
            level: Level = "warning" if self._posts else "info"
            self._tell(f"worker {worker} left", level, worker=worker)
        for worker in sorted(self._workers - before):
            self._tell(f"worker {worker} joined", worker=worker)
        if self._placement.fitness is not None:
            self._placement.fitness.forget(before - self._workers)
            self._client.loop.add_callback(self._placement.fitness.welcome, self._workers)
        if before and not crew.workers and self._posts:
            self._tell("no workers are left; what is under way waits for new ones", "warning")
        elif had and not crew.working and self._posts:
            self._tell(crew.standstill(set()), "warning")

    def _tell(self, message: str, level: Level = "info", **fields: Any) -> None:
        event = Event(message, conductor_id=self.id, level=level, fields=fields)
        self.emit(self.channel, event)

    def _ask(self, ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call what asks the scheduler; it may be gone, which nothing else has noticed yet."""
        try:
            return ask(*args, **options)
        except OSError as error:
            gone = self._error("the scheduler is gone")
            gone.internal = error
            raise gone from error

    def _ask_workers(self, *function: Any, **options: Any) -> dict[str, Any]:
        """Have a function run on all workers, and return what those say that answer."""
        answers: dict[str, Any] = self._client.sync(ask_workers, self._client, *function, **options)
        return successes(answers)

    def _error(self, message: str) -> ConductorError:
        return ConductorError(
            Event(f"{message} ({self._address})", conductor_id=self.id, level="error")
        )

    def close(self) -> None:
        """End what is under way, and close what it opened itself."""
        if self._closed:
            return
        super().close()
        self.release_finished()
        if self._client.status == "running":
            self._client.unsubscribe_topic(self.channel)
            if self._owns_cluster:
                # Or the scheduler would warn of lost results, which nobody wants any more.
                self._tell_workers(let_go)
                self._client.run_on_scheduler(forget_kept)
        if self._watch is not None:
            self._client.loop.add_callback(self._watch.cancel)
        if self._owns_client:
            self._client.close()
        if self._owns_cluster and self._cluster is not None:
            self._cluster.close()

    def __repr__(self) -> str:
        crew = "closed" if self._closed else str(self._crew)
        return f"<DaskConductor {self.id}: {self._name} {self._address}, {crew}>"


def _hear_of_workers(conductor: DaskConductor) -> dict[str, str]:
    """Have a conductor told of idle workers, and return how workers go that are going.

    A client has one listener to a topic, and may have several conductors.
    """
    client = conductor.client
    if client not in _LEAVING:
        leaving: dict[str, str] = {}
        conductors: weakref.WeakSet[DaskConductor] = weakref.WeakSet()

        def note(message: tuple[float, Any]) -> None:
            is_retired = message[1].get("retired", False)
            leaving[message[1]["worker"]] = "was retired" if is_retired else LEFT_IN_TIME

        def note_idle(message: tuple[float, Any]) -> None:
            if message[1].get("restarted"):
                leaving[message[1]["worker"]] = "has ended, to be restarted"
            for each in list(conductors):
                each._note_idle(message[1])

        client.subscribe_topic(LEAVING, note)
        client.subscribe_topic(IDLE, note_idle)
        _LEAVING[client] = leaving, conductors
    leaving, conductors = _LEAVING[client]
    conductors.add(conductor)
    return leaving


def _status_of(address: str, facts: Mapping[str, Any]) -> WorkerStatus:
    """Return what the scheduler knows of a worker; it has no metrics before its first heartbeat."""
    metrics = facts.get("metrics", {})
    return WorkerStatus(
        address=address,
        host=facts["host"],
        threads=facts["nthreads"],
        executing=metrics.get("task_counts", {}).get("executing", 0),
        memory=metrics.get("memory", 0),
        memory_limit=facts.get("memory_limit") or None,
    )


def _unpacked(packed: Packed, batch: Batch) -> Any:
    """Return the outcome of a batch; its electrons failed where their results cannot be read."""
    try:
        return unpack_outcome(packed, batch.origin.space)
    except Exception as error:  # noqa: BLE001 - whatever the user's objects raise
        message = f"the results cannot be read here: {error}"
        return Outcome.all_failed(len(batch), Failure("rejected", type(error).__name__, message))


def _failure_of_task(error: Exception) -> Failure:
    why = f"the worker could not take it: {text_of(error)}"
    return Failure("rejected", type(error).__name__, why)
