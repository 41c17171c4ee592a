"""The scheduler's side: a plugin that changes what Dask does with the tasks of batches.

- Dask does not run a batch again whose worker died: the conductor that sent the batch decides.
- A batch of a run that has a store outlives its client, until its outcome is in the store.
- An adaptive cluster also counts electrons that are not sent yet.
- A worker that is retired, as where a cluster scales down, first hands over what has ended and
  what has not begun.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from math import ceil
from time import time
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import SchedulerPlugin
from distributed.protocol import pickle
from distributed.scheduler import Scheduler, WorkerState

from atomizer_dask.conductors.dask.cluster import internals
from atomizer_dask.conductors.dask.messages import (
    AtomsClaimed,
    DemandChanged,
    OutcomesStored,
    TaskAdopted,
    TaskHandedOn,
    WorkerLeaving,
    as_event,
    of_event,
)

ONCE = "atomizer-once"  # the last part of the key of a batch's task
METADATA = "atomizer-atoms"  # the scheduler's table of atoms: code by digest, digest by id
DRIVER = "atomizer-driver"  # the last part of the key of a task that drives a detached run
HEARD = "atomizer-heard"  # the message that acknowledges all messages of a leaving worker
NO_WORKER = "tcp://0.0.0.0:0"  # stands for a worker that does not exist
NEXT_WORKER = "tcp://0.0.0.0:1"  # stands for the next worker that joins
TOPICS = "atomizer-"  # prefix of all our topics
RUN_CLIENT = "atomizer-"  # prefix of the names of run clients, see `run_client_of`
OF_RUN = "·"  # separates parts of the name under which Dask shows our tasks
HOW_TO_RETIRE = ("close_workers", "remove", "stimulus_id")  # other options: which workers
UNLOAD = (
    b"catomizer_dask.conductors.dask.worker\nunload\n."  # a pickle: schedulers may lack the package
)
FORGET = b"catomizer_dask.conductors.dask.worker\nforget\n."  # likewise
UNLOAD_SECONDS = 20.0  # for a worker to hand over its batches
JOINED_SECONDS = 3.0  # after joining, in which its whole wall time is ahead
SEND_SECONDS = 0.0005  # how long messages are gathered; by default 2 ms for clients, 5 for workers


class BatchTasksPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Makes tasks of this package fail with `KilledWorker` as soon as their worker has died.

    Dask would run them on three more workers. But the conductor that sent a batch knows more:
    electrons that the dead worker had given back are in other batches by now, and one of the rest
    may have killed the worker.
    """

    name = "atomizer-once"
    idempotent = True

    def update_graph(
        self, scheduler: Scheduler, *, keys: set[Any], client: str, **others: Any
    ) -> None:
        """Keep tasks of a run that has a store: their keys name the run between our two parts."""
        for key in keys:
            if type(key) is not tuple or key[-1] not in (ONCE, DRIVER):
                continue
            hasten(scheduler.client_comms.get(client))
            if len(key) == 3:
                run_client = run_client_of(key[1])
                scheduler.client_desires_keys([key], run_client)
                self._senders.setdefault(run_client, set()).add(client)

    def log_event(self, topic: str, msg: Any) -> None:
        """Act on a message about tasks: of clients, or of workers that leave."""
        match of_event(topic, msg):
            case TaskAdopted(key, client):
                self._give(key, client)
            case AtomsClaimed(client, needed, unneeded):
                self._note_claims(client, needed, unneeded)
            case DemandChanged(client, electrons, seconds):
                self._note_demand(client, electrons, seconds)
            case WorkerLeaving() as leaving:
                self._note_leaving(leaving)
            case OutcomesStored(run, keys):
                self._note_stored(run, keys)
            case TaskHandedOn(key, channel):
                self._pass_on(key, channel)
            case None if self._heirs and type(msg) is tuple:  # perhaps a worker's about a batch
                heir = self._heirs.get(msg[1], topic)
                if heir != topic:
                    self._scheduler.log_event(heir, msg)

    def _note_leaving(self, leaving: WorkerLeaving) -> None:
        self._let_leave(leaving.worker, final=leaving.final)
        stream = self._scheduler.stream_comms.get(leaving.worker)
        if leaving.final and stream is not None:
            status = {"status": "closing_gracefully", "stimulus_id": f"atomizer-{time()}"}
            stream.send({"op": "worker-status-change", **status})
            stream.send({"op": HEARD, "number": leaving.number})

    def _note_stored(self, run: str, keys: Iterable[Any] | None) -> None:
        """Release tasks of a run, all where `keys` is None: nobody needs them any more."""
        run_client = self._scheduler.clients.get(run_client_of(run))
        if run_client is None:
            return
        if keys is None:
            keys = [task.key for task in run_client.wants_what if task.key[-1] == ONCE]
        self._scheduler.client_releases_keys(keys, run_client.client_key)
        self._dismiss_idle_run_clients(run_client.client_key)

    def _pass_on(self, key: Any, channel: str) -> None:
        """Keep a task for the clients that listen to a channel, and forward its messages there.

        The leaving worker's own client will have gone before those clients can ask for the task.
        """
        self._heirs[_batch_of(key)] = channel
        if key in self._scheduler.tasks:
            for client in internals.subscribers(self._scheduler, channel):
                self._scheduler.client_desires_keys([key], client)

    def _note_claims(self, client: str, needed: list[str], unneeded: list[str]) -> None:
        """Keep versions of atoms as long as a client needs them."""
        for version in needed:
            self._claims.setdefault(version, set()).add(client)
        self._give_up(client, unneeded)
        self._forget_atoms()

    def _give_up(self, client: str, versions: Iterable[str]) -> None:
        """Transfer a client's claims on versions to the run clients of the runs that it sent.

        Which of these the tasks of a run need is not known here: the run's client claims all.
        """
        heirs = {run_client for run_client, senders in self._senders.items() if client in senders}
        for version in versions:
            needing = self._claims.get(version, set())
            if client in needing:
                needing.remove(client)
                needing.update(heirs)

    def _forget_atoms(self) -> None:
        """Forget versions of atoms that nobody needs, also on the workers."""
        named = {version for name, version in self._atoms.items() if name.startswith("id:")}
        gone = [v for v, clients in self._claims.items() if not clients and v not in named]
        for version in gone:
            del self._claims[version]
            self._atoms.pop(version, None)
            self._atoms.pop(f"home:{version}", None)
        if gone and self._scheduler.workers:
            self._scheduler.loop.add_callback(self._have_forgotten, gone)

    async def _have_forgotten(self, versions: list[str]) -> None:
        arguments = pickle.dumps((versions,))
        msg = {"op": "run", "function": FORGET, "args": arguments, "kwargs": None, "wait": False}
        await self._scheduler.broadcast(msg=msg, on_error="ignore")

    def _note_demand(self, client: str, electrons: int, seconds: float) -> None:
        self._demand.pop(client, None)
        if electrons and client in self._scheduler.clients:
            self._demand[client] = (electrons, seconds)

    @property
    def is_there_demand(self) -> bool:
        """Whether some client has electrons that are not done."""
        return bool(self._demand)

    def _adaptive_target(self, target_duration: str | float | None = None) -> int:
        """Return how many workers an adaptive cluster should have.

        Dask counts tasks, but there are never more of them than keep the present threads busy.
        """
        default = "distributed.adaptive.target-duration"
        limit: float = parse_timedelta(target_duration or dask.config.get(default))
        threads = sum(min(number, seconds / limit) for number, seconds in self._demand.values())
        each = [worker.nthreads for worker in self._scheduler.workers.values()] or [1]
        target: int = self._dask_target(target_duration)
        wanted: int = ceil(threads * len(each) / sum(each))
        return max(target, wanted)

    def _let_leave(self, address: str, *, final: bool) -> None:
        """Give a worker no more tasks; where `final`, do not count its end as a death."""
        worker = self._scheduler.workers.get(address)
        if worker is None:
            return
        stimulus = f"atomizer-leaving-{time()}"
        self._scheduler.handle_worker_status_change("closing_gracefully", worker, stimulus)
        for task in worker.processing if final else ():
            # Dask adds one where the worker's process ends before the worker is removed.
            task.suspicious = -1 if is_batch(task.key) else task.suspicious - 1

    async def _retire_workers(self, workers: Any = None, names: Any = None, **options: Any) -> Any:
        """Retire workers once they have handed over what has ended and what has not begun."""
        there = self._scheduler.workers
        if workers is None and names is None:
            own = {name: options.pop(name) for name in HOW_TO_RETIRE if name in options}
            workers, options = self._scheduler.workers_to_close(**options), own
        elif workers and there.keys().isdisjoint(workers):
            names, workers = workers, None  # clusters that are scaled down pass names as workers
        if names is not None:
            wanted = tuple(map(str, names))  # or prefixes of names, where a job has several workers
            begin = tuple(f"{name}-" for name in wanted)
            called = {address: str(worker.name) for address, worker in there.items()}
            workers = [a for a, n in called.items() if n in wanted or n.startswith(begin)]
        await asyncio.gather(*(self._unload(there[w]) for w in workers if w in there))
        return await self._dask_retire(workers=list(workers), **options)

    async def _unload(self, worker: WorkerState) -> None:
        """Have a worker that is about to be retired give back what it can."""
        ours = any(is_batch(task.key) for task in worker.processing)
        if not ours or worker.status.name != "running":
            return
        before, address = worker.status, worker.address
        self._scheduler.log_event(**as_event(WorkerLeaving(address, final=False, retired=True)))
        try:
            call = self._scheduler.rpc(address).run(function=UNLOAD)
            await asyncio.wait_for(call, UNLOAD_SECONDS)
        except (TimeoutError, OSError) as error:  # Dask will notice too
            logging.getLogger(__name__).warning("worker %s hands nothing over: %r", address, error)
        self._let_leave(address, final=True)
        worker.status = before  # Dask falls back to it where it cannot retire the worker

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Give a worker that joins the tasks that wait for one with its whole wall time ahead."""
        waiting = [t for t in scheduler.unrunnable if t.worker_restrictions == {NEXT_WORKER}]
        waiting.sort(key=lambda task: task.priority)
        for task in waiting[: scheduler.workers[worker].nthreads]:
            task.worker_restrictions = {worker}
        for gone in self._joined.keys() - scheduler.workers.keys():
            del self._joined[gone]
        self._joined[worker] = time()
        for task in scheduler.unrunnable:  # drivers restricted to workers that have left
            seeing = task.worker_restrictions or set()
            is_driver = type(task.key) is tuple and task.key[-1] == DRIVER
            if is_driver and seeing.isdisjoint(scheduler.workers):
                task.worker_restrictions = None

    def _place(self, key: Any) -> None:
        """Give a task that waits for the next worker to one that joined while it was on its way."""
        task = self._scheduler.tasks.get(key)
        if task is None or task.state != "no-worker" or task.worker_restrictions != {NEXT_WORKER}:
            return
        workers, earliest = self._scheduler.workers, time() - JOINED_SECONDS
        for worker, at in self._joined.items():
            if at > earliest and worker in workers and workers[worker].status.name == "running":
                task.worker_restrictions = {worker}
                self._scheduler.transitions({key: "processing"}, f"atomizer-placed-{time()}")
                return

    def _lose(self, key: Any) -> None:
        """Have a task fail that no worker may run again."""
        task = self._scheduler.tasks.get(key)
        if task is not None and task.state == "no-worker":
            stimulus = f"atomizer-lost-{time()}"
            error = pickle.dumps(OutcomeLostError())
            more = self._scheduler.transition(
                key, "erred", exception=error, cause=key, stimulus_id=stimulus
            )
            self._scheduler.transitions(more, stimulus)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Forget what only a client needed that has gone, however it went."""
        self._demand.pop(client, None)
        self._give_up(client, self._claims)
        for senders in self._senders.values():
            senders.discard(client)
        self._forget_atoms()
        internals.unsubscribe(scheduler, client, TOPICS)
        internals.forget_durations(scheduler, OF_RUN)

    def _release(self, key: Any) -> None:
        run_client = run_client_of(key[1])
        if run_client in self._scheduler.clients:
            self._scheduler.client_releases_keys([key], run_client)
            self._dismiss_idle_run_clients(run_client)

    def _dismiss_idle_run_clients(self, *names: str) -> None:
        """Forget run clients without tasks."""
        for name in names:
            run_client = self._scheduler.clients.get(name)
            if run_client is not None and not run_client.wants_what:
                del self._scheduler.clients[name]
                self._senders.pop(name, None)
                for needing in self._claims.values():
                    needing.discard(name)
                self._forget_atoms()

    def _give(self, key: Any, client: str) -> None:
        if client not in self._scheduler.clients:
            return  # it has died since it asked, and would want the task for ever
        if key in self._scheduler.tasks:
            self._scheduler.client_desires_keys([key], client)
        else:
            gone = {"op": "cancelled-keys", "keys": [key], "reason": "it was let go of"}
            self._scheduler.report(gone, client=client)

    async def start(self, scheduler: Scheduler) -> None:
        """Set up the tables, and replace the scheduler's handlers."""
        self._scheduler = scheduler
        self._demand: dict[str, tuple[int, float]] = {}
        self._joined: dict[str, float] = {}  # when each worker joined
        self._claims: dict[
            str, set[str]
        ] = {}  # clients, also of runs, that need a version of an atom
        self._senders: dict[str, set[str]] = {}  # clients that sent a run client's tasks
        self._atoms: dict[str, Any] = scheduler.task_metadata.setdefault(METADATA, {})
        self._heirs: dict[str, str] = {}  # channels to forward messages to, by key of the batch
        self._dask_target: Callable[..., int] = scheduler.handlers["adaptive_target"]
        scheduler.handlers["adaptive_target"] = self._adaptive_target
        self._dask_retire: Callable[..., Any] = scheduler.handlers["retire_workers"]
        scheduler.handlers["retire_workers"] = self._retire_workers
        # Dask logs as errors of such tasks what is no error here.
        logging.getLogger("distributed.scheduler").addFilter(is_not_about_ours)

    def restart(self, scheduler: Scheduler) -> None:
        """Keep the code of atoms: Dask forgets metadata, and clients send code only once."""
        scheduler.task_metadata[METADATA] = self._atoms
        run_clients = (name for name in scheduler.clients if name.startswith(RUN_CLIENT))
        self._dismiss_idle_run_clients(*run_clients)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Prevent Dask from running a task of ours again."""
        if type(key) is not tuple or key[-1] not in (ONCE, DRIVER):
            return
        if key[-1] == DRIVER:  # Dask may run it again
            if finish in ("memory", "erred"):
                self._scheduler.loop.add_callback(self._release, key)
            return
        if finish == "forgotten":
            self._heirs.pop(_batch_of(key), None)
        task = self._scheduler.tasks.get(key)
        if task is None:
            return
        if finish == "no-worker" and task.worker_restrictions == {NEXT_WORKER}:
            self._scheduler.loop.add_callback(self._place, key)
        elif finish == "processing":  # the first death of a worker fails it
            task.suspicious = self._scheduler.allowed_failures
            hasten(self._scheduler.stream_comms.get(task.processing_on.address))
        elif start in ("memory", "processing") and finish == "released":
            # The worker died after the task had ended, or left in the middle. A client that has not
            # fetched the outcome gets an `OutcomeLostError`; mostly the outcome has been delivered,
            # and the future was about to be released.
            task.worker_restrictions = {NO_WORKER}
            self._scheduler.loop.add_callback(self._lose, key)
            internals.have_run(task, raise_lost)


def _batch_of(key: Any) -> str:
    """Return the key of a batch from that of its task; see `task_keys`."""
    batch: str = key[0].partition("-")[2]
    return batch


def is_batch(key: Any) -> bool:
    """Return whether a task is a batch of ours."""
    return type(key) is tuple and key[-1] == ONCE


def is_of_run(key: Any) -> bool:
    """Return whether a task is a batch of a run that has a store."""
    return is_batch(key) and len(key) == 3


def hasten(stream: Any) -> None:
    """Shorten the time that messages to a client or a worker wait for others to travel with."""
    if stream is not None and stream.interval > SEND_SECONDS:
        stream.interval = SEND_SECONDS


def run_client_of(run_id: str) -> str:
    """Return the name of the client that wants the tasks of a run; it has no process."""
    return f"{RUN_CLIENT}{run_id}"


def knows(key: Any, dask_scheduler: Scheduler) -> bool:
    """Return whether the scheduler has a task."""
    return key in dask_scheduler.tasks


def tasks_of_run(run_id: str, dask_scheduler: Scheduler) -> list[tuple[Any, Any]]:
    """Return the tasks that are kept of a run, with their arguments, in the order of submission."""
    run_client = dask_scheduler.clients.get(run_client_of(run_id))
    if run_client is None:
        return []
    return [
        (task.key, task.run_spec.args)
        for task in dask_scheduler.tasks.values()  # a dict: in the order of submission
        if task in run_client.wants_what and task.run_spec is not None and task.key[-1] == ONCE
    ]


class OutcomeLostError(Exception):
    """A worker died with an outcome that nobody had fetched."""


def is_lost(error: BaseException) -> bool:
    """Return whether an error is an `OutcomeLostError`, perhaps of the scheduler's own copy."""
    return type(error).__name__ == OutcomeLostError.__name__


def forget_runs(dask_scheduler: Scheduler) -> None:
    """Release all kept tasks, because the scheduler ends with the client that asks."""
    for name, run_client in list(dask_scheduler.clients.items()):
        if name.startswith(RUN_CLIENT):
            dask_scheduler.client_releases_keys([task.key for task in run_client.wants_what], name)


def raise_lost() -> None:
    """Run in place of a batch whose outcome is gone."""
    raise OutcomeLostError


def is_not_about_ours(record: logging.LogRecord) -> bool:
    """Return whether a line of the scheduler's log is about something else than our tasks."""
    if record.msg.startswith("Removing worker"):
        keys = record.msg.partition("elsewhere: {")[2].partition("}")[0]
        return not keys or bool(re.sub(rf"\((?:'[^']*', )+'{ONCE}'\)(, )?", "", keys))
    if record.msg.startswith("broadcast to ") and " failed: " in record.msg:
        return False  # the caller gets the error; some workers leave just as they are asked
    args = record.args if isinstance(record.args, tuple) else ()
    return not (
        record.msg.startswith("Task %s marked as failed") and bool(args) and is_batch(args[0])
    )
