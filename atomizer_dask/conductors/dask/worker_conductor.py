"""A conductor within a worker, for electrons that send others."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from distributed import Client, Worker

from atomizer_dask.conductors.batch_conductor import BatchConductor
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.errors import (
    AtomizerError,
)
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.packing import (
    dump_error,
    dump_events,
    dumps,
)

logger = logging.getLogger(__name__)


class WorkerConductor(DaskConductor):
    """A worker's conductor for what its electrons send; it reports to whom they descend from."""

    def __init__(self, worker: Worker, client: Client) -> None:
        BatchConductor.__init__(self, "dask")
        self._worker, self._name = worker, "scheduler"
        self._client, self._cluster = client, None
        self._owns_client = self._owns_cluster = False
        self._prepare()

    @property
    def own_threads(self) -> int:
        """How many threads its worker has."""
        return int(self._worker.state.nthreads)

    def _tell(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Tell nobody which workers there are: the conductor of the client does."""

    def emit(self, channel: str, event: Event) -> None:  # noqa: D102
        self._worker.log_event(channel, ("events", dump_events([event])))

    def tell_waiting(self, channel: str, electron_id: str) -> None:  # noqa: D102
        self._worker.log_event(channel, ("waiting", electron_id))

    def hand_on(self, *, all: bool) -> int:
        """Have whom they descend from send what no electron here waits for; return what is left.

        To be called on the dispatcher's thread.
        """
        orphans = list(self._outbox)
        self._outbox.clear()
        for source, _ in self._sources.values():
            orphans += source.orphans(all=all)
        for sent in orphans:
            data = dumps((*sent[:1], None, *sent[2:]))
            if data is None:
                event = Event(f"{sent.electron.id} cannot be sent on", level="error")
                self.report(sent.origin.channel, AtomizerError(event))
            else:
                self._worker.log_event(sent.origin.channel, ("orphan", data))
        return sum(source.unfinished for source, _ in self._sources.values())

    def leave(self) -> None:
        """Do nothing where the worker's process ends: the worker has said that it leaves."""

    async def part(self) -> None:
        """Leave the scheduler, for its worker closes; on the client's event loop."""
        self._closed = True
        self._posts.clear()  # what waits here for them is executed elsewhere by now
        if self._watch is not None:
            self._watch.cancel()
        with suppress(OSError):  # the scheduler is gone
            await self._client.close()

    def report(self, channel: str, error: AtomizerError) -> None:  # noqa: D102
        if channel:
            self._worker.log_event(channel, ("error", dump_error(error)))
        else:
            logger.error("%s", error)
