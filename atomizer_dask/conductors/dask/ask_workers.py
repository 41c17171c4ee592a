"""Asking workers, some of which may never answer: Dask's `Client.run` waits for each."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from distributed.comm import CommClosedError
from distributed.core import clean_exception
from distributed.protocol.pickle import dumps

if TYPE_CHECKING:
    from distributed import Client, NannyPlugin, WorkerPlugin


logger = logging.getLogger(__name__)

INSTALL_SECONDS = 5.0  # for workers to install a plugin; then nobody waits for the rest
INSTALL_AGAIN_SECONDS = 0.2  # until the scheduler has noticed that a worker died
INSTALLATIONS = 10

_installing: set[asyncio.Task[Any]] = set()


async def ask_workers(
    client: Client,
    function: Callable[..., Any],
    *args: Any,
    workers: Iterable[str] | None = None,
    wait: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Run a function on workers, and return the answer of each.

    Parameters
    ----------
    client
        A client whose scheduler has an `IdleWorkersPlugin`.
    workers
        The addresses of the workers; all where not given.
    wait
        Whether to wait for the function to end, where it is a coroutine function.

    Returns
    -------
    dict
        The answer by worker: the function's result, the exception that it raised, or a TimeoutError
        where the worker does not answer.
    """
    task = {"function": dumps(function), "args": dumps(args), "kwargs": dumps(options)}
    message = {"op": "run", "wait": wait, **task}
    chosen = None if workers is None else list(workers)
    answers = await client.scheduler.atomizer_broadcast(msg=message, workers=chosen)
    return {worker: _answer(answer) for worker, answer in answers.items()}


def result_of(answer: Any) -> Any:
    """Return the result in a worker's answer to ``run``; raises what the function raised."""
    if answer["status"] != "OK":
        raise clean_exception(**answer)[1]
    return answer["result"]


async def install(client: Client, plugin: WorkerPlugin | NannyPlugin) -> None:
    """Install a plugin on all workers; on those that do not answer now, once they do."""
    task = asyncio.ensure_future(_register(client, plugin))
    _installing.add(task)
    task.add_done_callback(_installing.discard)
    if (await asyncio.wait([task], timeout=INSTALL_SECONDS))[0]:
        task.result()
    else:
        task.add_done_callback(_take_note)


async def _register(client: Client, plugin: WorkerPlugin | NannyPlugin) -> None:
    """Register a plugin, and again where a worker dies while the plugin is sent to it.

    Dask's scheduler then closes the connection to the client, as if the client were gone; by then
    the scheduler keeps the plugin for workers that join later.
    """
    for left in reversed(range(INSTALLATIONS)):
        try:
            await client.register_plugin(plugin)
        except CommClosedError:
            if not left or client.status != "running":  # the scheduler is gone
                raise
            await asyncio.sleep(INSTALL_AGAIN_SECONDS)
        else:
            return


def successes(answers: dict[str, Any]) -> dict[str, Any]:
    """Return the answers of workers that have not failed."""
    return {w: answer for w, answer in answers.items() if not isinstance(answer, Exception)}


def _take_note(task: asyncio.Task[Any]) -> None:
    """Log the failure of a registration that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.info("a plugin is not on all workers: %s", error)


def _answer(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return pickle.loads(answer)  # noqa: S301 - from our scheduler
    if answer["status"] != "OK":
        return clean_exception(**answer)[1]
    return answer["result"]
