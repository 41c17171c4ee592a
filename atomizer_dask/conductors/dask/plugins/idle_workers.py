"""The scheduler's side: workers that are there and do nothing, and what was placed on them.

A worker may be paused for memory, its process stopped, or its host asleep. Dask leaves such a
worker the tasks that it has until the worker is gone: after five minutes, or never. Here batches
that an idle worker has not begun go to others within seconds; so do batches that it has begun,
where its process does not go on. An electron that only keeps its worker from answering, because
it holds the interpreter lock, is waited for. What an idle worker reports later is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import time
from typing import Any

from distributed import SchedulerPlugin
from distributed.protocol import deserialize
from distributed.scheduler import Scheduler, TaskState, WorkerState, heartbeat_interval

from atomizer_dask.conductors.dask.messages import WorkerIdle, as_event
from atomizer_dask.conductors.dask.plugins.by_value import PluginByValue, packed_by_value
from atomizer_dask.conductors.dask.plugins.crowded_workers import CrowdedWorkers, drop_waiting
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import (
    BatchTasksPlugin,
    is_batch,
)

POLL_SECONDS = 1.0
LATE_SECONDS = 3.0  # between two looks: after more the scheduler itself had stood still
MISSED_HEARTBEATS = 6
QUIET_SECONDS = 5.0  # at least: imports and busy machines also keep workers from answering
ASK_SECONDS = 3.0  # for a nanny to report the state of its worker's process
CERTAIN_FAILURES = 2  # to reach a nanny, after which its host counts as unreachable
CERTAIN_CHECKS = 3  # at a process that does not go on, after which it counts as asleep
BUSY_SHARE = 0.05  # of a core: a process that uses less does nothing
ASLEEP_TIMES = 5  # times `patience`: how long a process may do nothing
STOPPED_TIMES = 10  # times `restart`: how long a process that somebody stopped is left alone
SILENT = "silent"
REASONS = {"paused": "paused by Dask, with little memory left", "closing_gracefully": "closing"}
STATES = {  # of a silent worker's process that does not go on
    "stopped": "process stopped",
    "unreachable": "host unreachable",
    "asleep": "process asleep",
}
UNSAID = ("closing", "closing_gracefully")  # other events announce these


@dataclass
class Idle:
    """A worker that does nothing.

    Parameters
    ----------
    why
        The name of its status in Dask, or ``"silent"``.
    since
        Time at which the status was noticed, or of the last heartbeat of a silent one.
    is_reported
        Whether clients have been notified.
    is_benched
        Whether this plugin paused it, so that the scheduler gives it no more tasks.
    state
        Of a silent worker's process: a key of `STATES`, ``"busy"``, or empty where not yet known.
    seconds
        CPU seconds that the process had used at the last look, and the time of that look.
    unmoved, unanswered
        Looks in a row at which the process had not gone on, or its nanny did not answer.
    is_asked
        Whether its nanny is being asked.
    begun
        How many batches it may be executing.
    rest_taken
        The tasks of batches of which all but the running electron were taken back.
    is_restarted
        Whether it is being restarted.
    """

    why: str
    since: float
    is_reported: bool = False
    is_benched: bool = False
    state: str = ""
    seconds: tuple[float, float] | None = None
    unmoved: int = 0
    unanswered: int = 0
    is_asked: bool = False
    begun: int = 0
    rest_taken: set[Any] = field(default_factory=set)
    is_restarted: bool = False

    @property
    def text(self) -> str:
        """Why the worker does nothing, in words."""
        if self.is_restarted:
            return "being restarted"
        reason = REASONS.get(self.why, self.why)
        return f"{reason} ({STATES[self.state]})" if self.state in STATES else reason


class IdleWorkersPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Takes back batches from idle workers, and restarts workers that would stay idle.

    Parameters
    ----------
    patience
        Seconds that a worker may do nothing.
    restart
        Seconds after which a paused worker that nobody else uses is restarted; None never.
    is_own
        Whether the cluster is ours alone.
    """

    name = "atomizer-lookout"
    idempotent = True

    def __init__(self, patience: float, restart: float | None, *, is_own: bool) -> None:
        self._patience, self._restart, self._is_own = patience, restart, is_own
        self._question = packed_by_value(process_of_worker, __name__)
        self._drop_waiting = packed_by_value(drop_waiting, CrowdedWorkers.__module__)

    async def start(self, scheduler: Scheduler) -> None:
        """Set up the tables, replace the scheduler's handlers, and begin to look."""
        self._scheduler = scheduler
        self._idle: dict[str, Idle] = {}
        self._served: set[str] = set()  # workers that have had batches
        self._awake = self._checked = time()
        self._asking: set[asyncio.Task[Any]] = set()
        self._crowded = CrowdedWorkers(
            scheduler, self._patience, self._take_back, self._do, self._drop_waiting
        )
        scheduler.handlers["atomizer_crew"] = self.crew
        scheduler.handlers["atomizer_broadcast"] = self.broadcast
        self._dask_change = scheduler.stream_handlers["worker-status-change"]
        scheduler.stream_handlers["worker-status-change"] = self._note_change
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        self._watching.cancel()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Note which workers have batches."""
        if finish == "processing" and is_batch(key):
            task = self._scheduler.tasks.get(key)
            if task is not None and task.processing_on is not None:
                self._served.add(task.processing_on.address)

    async def crew(self) -> dict[str, Any]:
        """Return the threads of all workers, why some do nothing, and how much these have begun."""
        threads = {address: worker.nthreads for address, worker in self._scheduler.workers.items()}
        until = time() - self._patience
        idle = {
            address: idle.text
            for address, idle in self._idle.items()
            if address in threads and (idle.since <= until or idle.why in UNSAID)
        }
        return {"threads": threads, "idle": idle, "begun": sum(self._idle[a].begun for a in idle)}

    async def broadcast(self, msg: dict[str, Any], workers: list[str] | None) -> dict[str, Any]:
        """Send a message to workers, and return the answers of those that do not stay silent."""
        asked = {
            address: asyncio.create_task(
                self._scheduler.broadcast(msg=msg, workers=[address], on_error="return_pickle")
            )
            for address in (self._scheduler.workers if workers is None else workers)
        }
        waiting = set(asked.values())
        while waiting:
            await asyncio.wait(waiting, timeout=POLL_SECONDS)
            waiting = {asked[a] for a in asked if not asked[a].done() and self._may_answer(a)}
        answers: dict[str, Any] = {}
        for address, task in asked.items():
            if task.done():
                answers |= task.result()
            else:  # the task ends once the worker does answer
                if address not in self._scheduler.workers:
                    task.cancel()
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                answers[address] = pickle.dumps(TimeoutError(f"worker {address} does not answer"))
        return answers

    def _may_answer(self, address: str) -> bool:
        idle = self._idle.get(address)
        is_silent = idle is not None and (idle.why == SILENT or idle.is_restarted)
        return address in self._scheduler.workers and not is_silent

    def _note_change(self, status: str, worker: str, stimulus_id: str) -> None:
        """Let a worker that reports its own status again keep that status."""
        if (idle := self._idle.get(worker)) is not None:
            idle.is_benched = False
        self._dask_change(status=status, worker=worker, stimulus_id=stimulus_id)

    # -- looking ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                self.check(time())
            except Exception:
                logging.getLogger(__name__).exception("idle workers could not be looked at")

    def check(self, now: float) -> None:
        """Look at all workers, take back what idle ones have, and restart some."""
        if now - self._checked > LATE_SECONDS:  # no heartbeat could arrive meanwhile
            self._awake = now
        self._checked = now
        workers = self._scheduler.workers
        for gone in self._idle.keys() - workers.keys():
            del self._idle[gone]
        self._served &= workers.keys()
        # Dask's stealing moves tasks without a transition.
        self._served |= {w.address for w in workers.values() if any(map(_is_ours, w.processing))}
        quiet = MISSED_HEARTBEATS * heartbeat_interval(len(workers))
        quiet = max(self._patience, QUIET_SECONDS, quiet)
        for worker in list(workers.values()):
            self._judge(worker, now, quiet)
        for address, idle in list(self._idle.items()):
            if now - idle.since >= self._patience and address in self._served:
                self._relieve(workers[address], idle, now)
        self._crowded.check(now, self._served, self._idle.keys())

    def _judge(self, worker: WorkerState, now: float, quiet: float) -> None:
        """Note whether a worker does nothing, and why."""
        address, idle = worker.address, self._idle.get(worker.address)
        heard = max(worker.last_seen, self._awake)
        why = "" if worker.status.name == "running" else worker.status.name
        if idle is not None and idle.is_benched:
            why = ""
        if now - heard > quiet:
            why = SILENT
        if idle is not None and (idle.why == why or idle.is_restarted):
            return
        if idle is not None:
            self._dismiss(worker, idle)
        if why:
            self._idle[address] = Idle(why, heard if why == SILENT else now)
        elif idle is not None and idle.is_reported:
            self._report(WorkerIdle(address, f"worker {address} is back", "info"))

    def _dismiss(self, worker: WorkerState, idle: Idle) -> None:
        """Remove a worker from the idle ones: the reason no longer holds."""
        del self._idle[worker.address]
        if idle.is_benched:
            self._scheduler.handle_worker_status_change("running", worker, _stimulus("back"))

    def _begun(self, worker: WorkerState, idle: Idle) -> set[TaskState]:
        """Return the tasks that a worker may have begun.

        These are the tasks that it last reported, and as many others as it had free threads for
        since. A paused worker begins none.
        """
        begun_by_it = {task for task in worker.executing if task in worker.processing}
        begun: set[TaskState] = begun_by_it | worker.long_running
        is_exact = idle.why == "paused" and worker.last_seen > idle.since
        free = worker.nthreads - len(begun_by_it - worker.long_running)
        if free > 0 and not is_exact:
            rest = sorted(worker.processing - begun, key=lambda task: task.priority)
            begun.update(rest[:free])
        return begun

    # -- acting ----------------------------------------------------------------------------

    def _relieve(self, worker: WorkerState, idle: Idle, now: float) -> None:
        """Take back from an idle worker the batches that it will not get to."""
        if idle.why == SILENT and worker.status.name == "running":
            self._scheduler.handle_worker_status_change("paused", worker, _stimulus("benched"))
            idle.is_benched = True
        begun = self._begun(worker, idle)
        waiting = [task for task in worker.processing - begun if _is_ours(task)]
        if not idle.is_reported and (waiting or idle.why != SILENT):
            self._announce(worker, idle)
        self._take_back(worker.address, waiting)
        ours = [task for task in begun if _is_ours(task)]
        if idle.why == SILENT:
            self._ask(worker, idle)
            if idle.state == "busy":
                self._take_back_rest(worker, idle, ours)
            # A sleeping process may wake up, so there is no hurry while other workers are busy.
            elif idle.state in STATES and (idle.state != "asleep" or self._crowded.free()):
                if ours:
                    idle.is_reported = True
                    self._report_taking(worker, idle, "what it has begun goes to others too")
                self._take_back(worker.address, ours, have_begun=True)
                ours = []
        idle.begun = len(ours)
        if self._is_to_be_restarted(worker, idle, now):
            why, idle.is_restarted = idle.text, True
            self._do(self._bring_back(worker, why))

    def _announce(self, worker: WorkerState, idle: Idle) -> None:
        idle.is_reported = True
        if idle.why not in UNSAID:
            self._report_taking(worker, idle, "what it has not begun goes to others")

    def _report_taking(self, worker: WorkerState, idle: Idle, what: str) -> None:
        text = f"worker {worker.address} is {idle.text}: {what}"
        self._report(WorkerIdle(worker.address, text))

    def _take_back(
        self, worker: str, tasks: Iterable[TaskState], *, have_begun: bool = False
    ) -> None:
        """Have clients send batches elsewhere, and the scheduler forget their tasks."""
        keys = [task.key for task in tasks if _is_ours(task)]
        if not keys:
            return
        taken = WorkerIdle(worker, begun=keys) if have_begun else WorkerIdle(worker, dropped=keys)
        self._report(taken)
        for key in keys:
            clients = [client.client_key for client in self._scheduler.tasks[key].who_wants or ()]
            for client in clients:
                self._scheduler.client_releases_keys([key], client, _stimulus("taken"))
                msg = {"op": "cancelled-keys", "keys": [key], "reason": "its worker is idle"}
                self._scheduler.report(msg, client=client)

    def _take_back_rest(self, worker: WorkerState, idle: Idle, tasks: list[TaskState]) -> None:
        """Have all but the running electron executed elsewhere, once for each batch."""
        keys = [task.key for task in tasks if task.key not in idle.rest_taken]
        if keys:
            idle.rest_taken.update(keys)
            self._report(WorkerIdle(worker.address, rest=keys))

    def _report(self, message: WorkerIdle) -> None:
        self._scheduler.log_event(**as_event(message))

    def _do(self, what: Any) -> None:
        task = asyncio.create_task(what)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    # -- processes that do not answer ------------------------------------------------------

    def _ask(self, worker: WorkerState, idle: Idle) -> None:
        """Ask a nanny for the state of its worker's process; without a nanny assume it is busy."""
        if not worker.nanny:
            idle.state = "busy"
        elif not idle.is_asked:
            idle.is_asked = True
            self._do(self._examine_process(worker, idle))

    async def _examine_process(self, worker: WorkerState, idle: Idle) -> None:
        nanny = self._scheduler.rpc(worker.nanny)
        try:
            answer = await asyncio.wait_for(nanny.run(function=self._question), ASK_SECONDS)
        except (TimeoutError, OSError):
            idle.unanswered += 1
            if idle.unanswered >= CERTAIN_FAILURES:
                idle.state = "unreachable"
        else:
            idle.unanswered = 0
            if answer["status"] == "OK":  # else there is no process any more; Dask will notice
                result = answer["result"]  # schedulers pass it on serialized
                self._note_process(idle, *deserialize(result.header, result.frames))
        finally:
            idle.is_asked = False

    def _note_process(self, idle: Idle, status: str, seconds: float) -> None:
        now = time()
        if status in ("stopped", "tracing-stop"):
            idle.state = "stopped"
        elif idle.seconds is not None:
            before, at = idle.seconds
            goes_on = status == "disk-sleep" or seconds - before > BUSY_SHARE * (now - at)
            idle.unmoved = 0 if goes_on else idle.unmoved + 1
            # Before that an electron may hold the interpreter lock while it sleeps.
            is_certain = now - idle.since > ASLEEP_TIMES * self._patience
            is_asleep = is_certain and idle.unmoved >= CERTAIN_CHECKS
            idle.state = "asleep" if is_asleep else "busy"
        idle.seconds = seconds, now

    # -- restarting ------------------------------------------------------------------------

    def _is_to_be_restarted(self, worker: WorkerState, idle: Idle, now: float) -> bool:
        """Return whether a worker would stay idle, is needed, and is used by nobody else."""
        if self._restart is None or idle.is_restarted or not worker.nanny or not self._is_needed():
            return False
        ours = all(map(_is_ours, (*worker.processing, *worker.has_what)))
        if idle.state == "stopped":
            return self._is_own and ours and now - idle.since > STOPPED_TIMES * self._restart
        is_unused = not worker.processing and not worker.actors and ours
        return idle.why == "paused" and is_unused and now - idle.since >= self._restart

    def _is_needed(self) -> bool:
        once = self._scheduler.plugins.get(BatchTasksPlugin.name)
        return once is not None and once.is_there_demand

    async def _bring_back(self, worker: WorkerState, why: str) -> None:
        address = worker.address
        text = f"worker {address} is {why}, and nobody else uses it: it is restarted"
        self._report(WorkerIdle(address, text, restarted=True, name=worker.name))
        restart = self._scheduler.restart_workers
        done = await restart(
            [address], wait_for_workers=False, on_error="return", stimulus_id=_stimulus("restarted")
        )
        logging.getLogger(__name__).info("worker %s is restarted: %s", address, done)


class IdleWorkersByValue(PluginByValue):
    """An `IdleWorkersPlugin` with its code: the scheduler may not have this package."""

    name = IdleWorkersPlugin.name
    modules = (CrowdedWorkers.__module__,)

    def __init__(self, **options: Any) -> None:
        self._options = options

    def plugin(self) -> IdleWorkersPlugin:
        """Return the plugin that the scheduler runs."""
        return IdleWorkersPlugin(**self._options)


def process_of_worker(dask_worker: Any) -> tuple[str, float]:
    """Return the status of the process of a nanny's worker, and the seconds of CPU it has used."""
    import psutil

    process = psutil.Process(dask_worker.process.pid)
    times = process.cpu_times()
    return process.status(), times.user + times.system


def _is_ours(task: TaskState) -> bool:
    return is_batch(task.key)


def _stimulus(what: str) -> str:
    return f"atomizer-{what}-{time()}"
