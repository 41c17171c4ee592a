"""Which workers a batch may go to, where it may not go to all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from math import inf
from typing import TYPE_CHECKING, Any

from atomizer_dask.conductors.dask.ask_workers import ask_workers, successes
from atomizer_dask.conductors.dask.cluster.compatibility import Compatibility
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import METADATA, NEXT_WORKER, NO_WORKER
from atomizer_dask.conductors.dask.walltime import FULL_SHARE, MOST_TRIES, WallTimeError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch

if TYPE_CHECKING:
    from distributed import Client


POLL_SECONDS = 1.0  # between two looks whether there are workers by now


class Placement:
    """Chooses workers for batches.

    Parameters
    ----------
    client
        The client through which scheduler and workers are asked.
    wall_time
        Returns, on a worker, the seconds that electrons have left there, and had at first.
    emit
        Puts an event on a channel.
    note_lost_state
        Called where a singleton of the cluster moves because its worker has gone: with its batch
        and that worker.

    Attributes
    ----------
    workers, working
        The addresses of all workers, and of those that do something.
    fitness
        Knows which workers lack what an atom needs; None before workers have been looked at.
    """

    def __init__(
        self,
        client: Client,
        wall_time: Callable[..., Any],
        emit: Callable[[str, Event], None],
        note_lost_state: Callable[[Batch, str], None],
    ) -> None:
        self.workers: set[str] = set()
        self.working: set[str] = set()
        self.fitness: Compatibility | None = None
        self._client = client
        self._wall_time = wall_time
        self._emit = emit
        self._note_lost_state = note_lost_state

    async def choose(self, batch: Batch, is_wanted: Callable[[], bool]) -> set[str]:
        """Return the workers that may take a batch; an empty set where all may.

        Parameters
        ----------
        batch
            The batch.
        is_wanted
            Returns whether somebody still waits for the batch; asked while workers are missing.

        Raises
        ------
        WallTimeError
            Where no worker lives long enough for its electron.
        """
        if is_singleton(batch.version) == "cluster":
            return {await self._home_of(batch, is_wanted)}
        unfit = self._unfit_for(batch)
        if batch.terms.min_seconds:
            return await self._long_living(batch, unfit, is_wanted)
        worker, excluded = batch.terms.worker, batch.terms.excluded
        # A singleton of the cluster stays on its worker, even an idle one: it may be executing an
        # electron, and there must be only one. All other batches avoid idle workers.
        fit = (self.working or self.workers) - unfit
        anywhere = (fit or {NO_WORKER}) if unfit else set()
        if worker:
            return {worker} & fit or anywhere
        if excluded:
            return fit - {*excluded} or fit - {excluded[-1]} or anywhere
        return anywhere

    def _unfit_for(self, batch: Batch) -> frozenset[str]:
        return frozenset() if self.fitness is None else self.fitness.unfit_for(batch.version)

    async def _long_living(
        self, batch: Batch, unfit: frozenset[str], is_wanted: Callable[[], bool]
    ) -> set[str]:
        """Return workers that live long enough for an electron that a wall time cut short."""
        seconds = batch.terms.min_seconds
        times: dict[str, tuple[float, float]] = {}
        while is_wanted() and not times:
            times = successes(await ask_workers(self._client, self._wall_time))
            if not times:
                await asyncio.sleep(POLL_SECONDS)
        life = max((life for _, life in times.values()), default=inf)
        if seconds >= life * FULL_SHARE or batch.terms.cut_short >= MOST_TRIES:
            raise WallTimeError(seconds, life, batch.terms.cut_short)
        enough = {worker for worker, (left, _) in times.items() if left > seconds} - unfit
        if not enough:
            self._warn_of_waiting(batch)
        return enough or {NEXT_WORKER}

    def _warn_of_waiting(self, batch: Batch) -> None:
        message = (
            f"{batch.electron_id(0)} waits for the next worker that joins: it had not ended after "
            f"{batch.terms.min_seconds:.1f} s, and no worker has so much left of its wall time"
        )
        event = Event(
            message,
            electron_id=batch.electron_id(0),
            atom_id=batch.atom_id,
            run_id=batch.run_id,
            level="warning",
        )
        self._emit(batch.origin.channel, event)

    async def _home_of(self, batch: Batch, is_wanted: Callable[[], bool]) -> str:
        """Return the one worker on which a singleton of the cluster lives."""
        keys = [METADATA, f"home:{batch.version}"]
        scheduler = self._client.scheduler
        home: str | None = await scheduler.get_metadata(keys=keys, default=None)
        # On an adaptive cluster there may be no workers for a while.
        while not (fit := self.workers - self._unfit_for(batch)):
            if not is_wanted():
                return NO_WORKER
            await asyncio.sleep(POLL_SECONDS)
        if home is None or home not in fit:
            if home is not None and home not in self.workers:
                self._note_lost_state(batch, home)
            # All clients that choose at this moment choose the same: rendezvous hashing (Thaler &
            # Ravishankar, IEEE/ACM Trans. Netw. 6(1), 1998).
            home = min(fit, key=lambda w: blake2b(f"{w}{batch.version}".encode()).digest())
            await scheduler.set_metadata(keys=keys, value=home)
        return home


def is_singleton(version: str) -> str:
    """Return ``"node"`` or ``"cluster"`` where a version is that of a singleton, else empty."""
    return version.partition(":")[0] if ":" in version else ""
