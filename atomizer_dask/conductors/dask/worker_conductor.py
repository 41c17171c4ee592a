"""A conductor within a worker, for electrons that send others."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from distributed import Client, Worker

from atomizer_dask.conductors.dask.carrier import DaskCarrier, WorkerCalls
from atomizer_dask.conductors.dask.messages import (
    BatchHandedOn,
    ElectronHandedOn,
    ErrorReported,
    EventsEmitted,
    SpawnerWaiting,
    TaskHandedOn,
    WorkerMessage,
    as_event,
    to_topic,
)
from atomizer_dask.conductors.dask.task_keys import key_of
from atomizer_dask.conductors.electron_source import Sent
from atomizer_dask.errors import AtomizerError
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.packing import dump_error, dump_events, dumps

logger = logging.getLogger(__name__)


class WorkerConductor(DaskCarrier):
    """The conductor of a worker for children; it reports on the channel of their root.

    Parameters
    ----------
    worker
        The worker whose electrons send children.
    client
        A client of the worker's own, connected to the scheduler.
    calls
        The functions that workers call.
    """

    def __init__(self, worker: Worker, client: Client, calls: WorkerCalls) -> None:
        self._worker = worker
        self._heirs: dict[str, str] = {}  # channels to which batches were handed on, by key
        super().__init__("dask", client, calls)

    @property
    def own_threads(self) -> int:
        """How many threads its worker has."""
        return int(self._worker.state.nthreads)

    def announce(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Emit no events about workers: the conductor of the client does."""

    def emit(self, channel: str, event: Event) -> None:  # noqa: D102
        self._send(channel, EventsEmitted(dump_events([event])))

    def announce_waiting(self, channel: str, electron_id: str) -> None:  # noqa: D102
        self._send(channel, SpawnerWaiting(electron_id))

    def hand_on(self) -> None:
        """Have the conductor of the root electron take over what electrons here have sent.

        Children that electrons here wait for are left out: the electron that waits is executed
        again elsewhere, and sends them again.
        To be called on the dispatcher's thread.
        """
        for sent in self._sender.orphans():
            channel, data = sent.origin.channel, self._dumped(sent.without_future(), [sent])
            if data is not None:
                self._send(channel, ElectronHandedOn(data))
        for batch, handed in self._sender.hand_over():
            channel, data = batch.origin.channel, self._dumped(handed, handed.electrons)
            if data is not None:
                self._heirs[batch.key] = channel
                self._worker.log_event(**as_event(TaskHandedOn(key_of(batch), channel)))
                self._send(channel, BatchHandedOn(data))

    def _dumped(self, what: Any, electrons: list[Sent]) -> bytes | None:
        data = dumps(what)
        if data is None:
            for sent in electrons:
                event = Event(f"{sent.electron.id} cannot be sent on", level="error")
                self.report(sent.origin.channel, AtomizerError(event))
        return data

    def _heed(self, message: WorkerMessage) -> None:
        """Act on a message, or forward it where its batch was handed on."""
        heir = self._heirs.get(getattr(message, "key", ""))
        if heir is None:
            super()._heed(message)
        else:
            self._send(heir, message)

    def leave(self) -> None:
        """Do nothing where the worker's process ends: the worker has announced that it leaves."""

    async def part(self) -> None:
        """Leave the scheduler, for its worker closes; on the client's event loop."""
        self._closed = True
        self._tasks.forget_all()  # electrons here that wait for them are executed elsewhere by now
        self._watch.cancel()
        with suppress(OSError):  # the scheduler is gone
            await self._client.close()

    def report(self, channel: str, error: AtomizerError) -> None:  # noqa: D102
        if channel:
            self._send(channel, ErrorReported(dump_error(error)))
        else:
            logger.error("%s", error)

    def _send(self, channel: str, message: WorkerMessage) -> None:
        self._worker.log_event(channel, to_topic(message))
