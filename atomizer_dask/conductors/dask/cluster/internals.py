"""The private parts of distributed that we use, except those that `local_cluster` overrides.

Written against version 2026.8. A test fails where one of them is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dask._task_spec import Task
from distributed import Client, Nanny, SpecCluster, Worker
from distributed.scheduler import Scheduler, TaskState


def subscribers(scheduler: Scheduler, topic: str) -> list[str]:
    """Return the clients that listen to a topic."""
    return list(scheduler._broker._topics[topic].subscribers)


def unsubscribe(scheduler: Scheduler, client: str, prefix: str) -> None:
    """Take a client off all topics with a prefix, and forget topics that nobody listens to.

    Dask would keep the last 1,000 messages of each topic for ever.
    """
    topics = scheduler._broker._topics
    for name, topic in list(topics.items()):
        if name.startswith(prefix):
            topic.unsubscribe(client)
            if not topic.subscribers:
                del topics[name]


def forget_durations(scheduler: Scheduler, mark: str) -> None:
    """Forget the durations of tasks whose names have a mark, where no such task is left."""
    for name, prefix in list(scheduler.task_prefixes.items()):
        if mark in name and not prefix._groups:
            del scheduler.task_prefixes[name]


def have_run(task: TaskState, function: Callable[[], Any]) -> None:
    """Have a task of the scheduler call another function than its own."""
    task.run_spec = Task(task.key, function)


def stop_loop(client: Client) -> None:
    """Stop the thread of a client's event loop, unless closing has stopped it."""
    client._loop_runner.stop()


def release(client: Client, key: Any) -> None:
    """Have a client release a key of which it has no future."""
    client._release_key(key)


def start_missing(cluster: SpecCluster) -> None:
    """Have a cluster start the workers that it should have and does not have."""
    cluster.loop.add_callback(cluster._correct_state)


def nannies() -> list[Nanny]:
    """Return the nannies of this process."""
    return list(Nanny._instances)


def lifetime_timer(worker: Worker) -> asyncio.TimerHandle | None:
    """Return the timer that ends a worker with a lifetime: Dask keeps the time nowhere else."""
    for timer in list(getattr(worker.loop.asyncio_loop, "_scheduled", ())):
        for argument in timer._args or ():
            if getattr(argument, "func", None) == worker.close_gracefully:
                found: asyncio.TimerHandle = timer
                return found
    return None
