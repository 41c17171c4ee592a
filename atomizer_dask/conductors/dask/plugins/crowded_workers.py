"""The scheduler's side: batches that wait behind something else, while other workers do nothing.

As a rule Dask moves them by itself, but not where it thinks that it is not worth it, and not where
its work-stealing is switched off. What a worker has by now, only the worker knows: a batch that it
has begun since it last reported would be executed twice. It is asked to drop what it has not begun,
which it does between two events of its own, and what it has dropped goes to others.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from time import time
from typing import Any

from distributed import Worker
from distributed.protocol import deserialize
from distributed.scheduler import Scheduler, TaskState, WorkerState
from distributed.worker_state_machine import FreeKeysEvent

from atomizer_dask.conductors.dask.plugins.scheduler_plugin import is_batch

ANSWER_SECONDS = 3.0  # for a worker to say what it has dropped; one that is silent is looked after
NOT_BEGUN = ("waiting", "ready", "constrained")  # states of a task on its worker


class CrowdedWorkers:
    """Has batches that wait on busy workers executed by those that have nothing to do.

    Parameters
    ----------
    scheduler
        Whose workers they are.
    patience
        Seconds that a batch may wait while another worker has nothing to do.
    take_back
        Has the clients of batches, which were dropped on a worker, send them elsewhere.
    do
        Runs a coroutine.
    question
        `drop_waiting` with its code, in bytes.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        patience: float,
        take_back: Callable[[str, Iterable[TaskState]], None],
        do: Callable[[Any], None],
        question: bytes,
    ) -> None:
        self._scheduler = scheduler
        self._patience = patience
        self._take_back = take_back
        self._do = do
        self._question = question
        self._waits: dict[Any, float] = {}  # since when batches do
        self._asking: set[str] = set()  # workers that have been asked, and may still answer
        self._unanswered: dict[str, set[Any]] = {}  # what workers may have dropped without a word

    def free(self) -> set[WorkerState]:
        """Return the workers that have nothing to do."""
        running: set[WorkerState] = self._scheduler.running
        return {worker for worker in running if _busy_threads(worker) < worker.nthreads}

    def check(self, now: float, served: Collection[str], idle: Collection[str]) -> None:
        """Move what has waited for too long.

        Parameters
        ----------
        now
            Seconds since the epoch.
        served
            The addresses of workers that have batches.
        idle
            Those of workers that are there and do nothing, whatever is placed on them.
        """
        for gone in self._unanswered.keys() - self._scheduler.workers.keys():
            del self._unanswered[gone]
        free = self.free()
        before, self._waits = self._waits, {}
        if not free:
            return
        late: defaultdict[str, list[TaskState]] = defaultdict(list)
        for worker, task in self._waiting(free, served, set(idle)):
            since = self._waits[task.key] = before.get(task.key, now)
            if now - since >= self._patience:
                late[worker].append(task)
        for worker, tasks in late.items():
            if worker in idle:  # for which they wait on the scheduler
                self._take_back(worker, tasks)
            elif worker not in self._asking:
                self._do(self._ask(worker, [task.key for task in tasks]))

    def _waiting(
        self, free: set[WorkerState], served: Collection[str], idle: set[str]
    ) -> Iterator[tuple[str, TaskState]]:
        """Yield batches that wait though others could execute them, each with its worker."""
        for task in list(self._scheduler.unrunnable):
            wanted = task.worker_restrictions
            if is_batch(task.key) and wanted and wanted <= idle:
                yield next(iter(wanted)), task
        for worker in self._scheduler.running - free:
            if worker.address not in served or _busy_threads(worker) <= worker.nthreads:
                continue
            for task in worker.processing - worker.executing.keys() - worker.long_running:
                if is_batch(task.key):
                    valid = self._scheduler.valid_workers(task)
                    if valid is None or valid & free:
                        yield worker.address, task

    async def _ask(self, worker: str, keys: list[Any]) -> None:
        """Have a worker drop what it has not begun of some batches, and others execute that."""
        asked_before = self._unanswered.get(worker, set())
        self._unanswered[worker] = asked_before | set(keys)
        self._asking.add(worker)
        try:
            question = self._scheduler.rpc(worker).run(
                function=self._question, args=pickle.dumps((keys,))
            )
            answer = await asyncio.wait_for(question, ANSWER_SECONDS)
        except (TimeoutError, OSError):
            return  # it may drop them all the same: the next answer says so
        finally:
            self._asking.discard(worker)
        self._unanswered.pop(worker, None)
        if answer["status"] != "OK":
            message = "worker %s could not drop batches: %s"
            logging.getLogger(__name__).error(message, worker, answer.get("text"))
            return
        result = answer["result"]  # which schedulers leave as it came
        dropped, unknown = deserialize(result.header, result.frames)
        self._move(worker, {*dropped, *(set(unknown) & asked_before)})

    def _move(self, worker: str, keys: set[Any]) -> None:
        """Have batches executed elsewhere, as far as they are still placed on a worker."""
        known = self._scheduler.workers.get(worker)
        if known is not None:
            self._take_back(worker, [task for task in known.processing if task.key in keys])


def drop_waiting(keys: list[Any], dask_worker: Worker) -> tuple[list[Any], list[Any]]:
    """Have a worker drop those of some tasks that it has not begun; runs on its event loop.

    Returns
    -------
    dropped
        The keys of these.
    unknown
        Those of tasks that it does not have.
    """
    tasks = dask_worker.state.tasks
    dropped = [key for key in keys if key in tasks and tasks[key].state in NOT_BEGUN]
    unknown = [key for key in keys if key not in tasks]
    dask_worker.handle_stimulus(FreeKeysEvent(keys=dropped, stimulus_id=f"atomizer-drop-{time()}"))
    return dropped, unknown


def _busy_threads(worker: WorkerState) -> int:
    """Return how many tasks a worker has that want a thread."""
    return len(worker.processing) - len(worker.long_running)
