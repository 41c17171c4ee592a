"""The scheduler's side: a batch whose worker died is not run again by Dask on its own."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import cloudpickle
from dask._task_spec import Task
from distributed import SchedulerPlugin
from distributed.scheduler import Scheduler

ONCE = "atomizer-once"  # the last part of our tasks' keys


class RunOnce(SchedulerPlugin):  # type: ignore[misc]
    """Makes tasks of this package fail with `KilledWorker` as soon as their worker has died.

    Dask would run them on three more workers. But whoever sent a batch knows better: electrons
    that the dead worker had given back are elsewhere by now, and one of the others may be what
    killed it.
    """

    name = "atomizer-once"
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Begin."""
        self._scheduler = scheduler
        # What Dask has to say about such a task are lines of error for what is no error here.
        logging.getLogger("distributed.scheduler").addFilter(is_not_about_ours)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """See to it that a task of ours is not run again."""
        if type(key) is not tuple or key[-1] != ONCE:
            return
        task = self._scheduler.tasks.get(key)
        if task is None:
            return
        if finish == "processing":  # one worker that dies with it is one too many
            task.suspicious = self._scheduler.allowed_failures
        elif start == "memory" and finish == "released":
            # Its worker died after it had ended. Whoever has not yet fetched the outcome hears
            # that it is gone; mostly it has been delivered, and the future was about to go.
            task.run_spec = Task(key, raise_lost)


class ByValue(SchedulerPlugin):  # type: ignore[misc]
    """`RunOnce` as it travels: with its code, for the scheduler may not have this package."""

    name = RunOnce.name
    idempotent = True

    def __reduce__(self) -> Any:
        module = sys.modules[__name__]
        cloudpickle.register_pickle_by_value(module)
        try:
            return cloudpickle.loads, (cloudpickle.dumps(RunOnce()),)
        finally:
            cloudpickle.unregister_pickle_by_value(module)


class OutcomeLostError(Exception):
    """A worker died with an outcome that nobody had fetched."""


def raise_lost() -> None:
    """Run in place of a batch whose outcome is gone."""
    raise OutcomeLostError


def is_not_about_ours(record: logging.LogRecord) -> bool:
    """Return whether a line of the scheduler's log is about something else than our tasks."""
    if record.msg.startswith("Removing worker"):
        keys = record.msg.partition("elsewhere: {")[2].partition("}")[0]
        return not keys or bool(re.sub(rf"\('[^']*', '{ONCE}'\)(, )?", "", keys))
    args = record.args if isinstance(record.args, tuple) else ()
    return not (
        record.msg.startswith("Task %s marked as failed")
        and bool(args)
        and type(args[0]) is tuple
        and args[0][-1] == ONCE
    )
