"""The scheduler's side: a batch whose worker died is not run again by Dask on its own."""

from __future__ import annotations

import logging
import sys
from typing import Any

import cloudpickle
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
        """Declare a task of ours suspicious when it goes to a worker."""
        if finish == "processing" and type(key) is tuple and key[-1] == ONCE:
            task = self._scheduler.tasks.get(key)
            if task is not None:
                task.suspicious = self._scheduler.allowed_failures


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


def is_not_about_ours(record: logging.LogRecord) -> bool:
    """Return whether a line of the scheduler's log is about something else than our tasks."""
    args = record.args if isinstance(record.args, tuple) else ()
    return not (
        record.msg.startswith("Task %s marked as failed")
        and bool(args)
        and type(args[0]) is tuple
        and args[0][-1] == ONCE
    )
