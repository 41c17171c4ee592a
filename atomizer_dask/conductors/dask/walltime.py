"""The worker's side of wall times: what a worker still takes, and how it leaves before its end.

The end is that of Dask's ``--lifetime`` or of the worker's job. Once a worker has refused a batch,
because its electrons would not end in time, the scheduler gives the worker no others; it leaves as
soon as the running batches have ended. Electrons that still run `margin` seconds before the end
are cut short: the worker reports all that has ended by then, and Dask does not run the batch again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from atomizer_dask.conductors.dask.cluster.internals import lifetime_timer
from atomizer_dask.conductors.dask.messages import BatchExpiring, WorkerLeaving, as_event, to_topic
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import (
    HEARD,
    JOINED_SECONDS,
    is_batch,
    is_of_run,
)
from atomizer_dask.config import setting
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch
from atomizer_dask.execution.lease import Lease
from atomizer_dask.execution.packing import Packed

if TYPE_CHECKING:
    from distributed import Worker


logger = logging.getLogger(__name__)

SAFETY = 1.2  # factor on the longest electron so far: the next may take as long
MOST_SHARE = 0.5  # of a life: a worker with more left refuses nothing; see `_needed`
FULL_SHARE = 0.8  # of a worker's life: the most that an electron can have
MOST_TRIES = 3  # for an electron that is cut short; workers may need much of their life to start
STARTING_SECONDS = 60.0  # that a worker may need for imports; an older one has been idle
POLL_SECONDS = 0.05
LIFETIME_PATIENCE = 10.0  # for farewells where only Dask's lifetime ends, which kills nobody
REASON = "atomizer-wall-time"
ASK_SECONDS = 20.0  # for the batch system to say when the job ends


class WallTime(NamedTuple):
    """Until when a worker lives.

    Parameters
    ----------
    end
        When electrons on the worker must have ended, as `time.monotonic` counts.
    life
        Seconds that the worker had for electrons from its beginning.
    ready
        When the worker could execute its first electron; minus infinity where it was long idle.
    """

    end: float = inf
    life: float = inf
    ready: float = -inf

    @property
    def left(self) -> float:
        """How many seconds electrons have from now on."""
        return self.end - monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the worker has as much time left as a worker that joins now."""
        return monotonic() < self.ready + JOINED_SECONDS


class WallTimeError(Exception):
    """An electron takes longer than any worker lives."""

    def __init__(self, ran: float, life: float, times: int) -> None:
        if ran >= life * FULL_SHARE:
            why = f"no worker has more than {life:.1f} s for electrons"
        else:
            why = f"that happened {times} times"
        super().__init__(
            f"it had not ended after {ran:.1f} s, when the wall time of its worker was over, and "
            f"{why}: give workers a longer lifetime or time limit, or divide it into shorter "
            "electrons"
        )


class WorkerShutdown:
    """Decides which batches a worker still takes towards its end, and has it leave.

    Parameters
    ----------
    worker
        The worker.
    leases
        Returns the leases of batches that the worker executes.
    emit
        Puts an event on a channel.
    channel_of
        Returns the channel of the conductor that sent a batch.
    hand_on
        Hands on the children that electrons here have sent.
    keep
        Called with pairs of a batch and its outcome, which nobody has fetched: writes the outcomes
        into the stores of their runs.
    margin
        Seconds before its end in which the worker reports what has ended, and leaves; as
        configured where not given.
    """

    def __init__(
        self,
        worker: Worker,
        leases: Callable[[], list[Lease]],
        emit: Callable[[str, Event], None],
        channel_of: Callable[[Batch], str],
        hand_on: Callable[[], Awaitable[None]],
        keep: Callable[[list[tuple[Packed, Packed]]], None],
        margin: float | None = None,
    ) -> None:
        self.wall_time = WallTime(ready=_ready_at())
        self._worker = worker
        self._leases = leases
        self._emit = emit
        self._channel_of = channel_of
        self._hand_on = hand_on
        self._keep = keep
        self._margin = setting("wall-time.margin") if margin is None else margin
        self._guard = threading.Lock()
        self._refusing = False  # batches that would not end in time
        self._closed = False  # to all batches
        self._unloading_until = -inf
        self._left = False
        self._farewells, self._heard = (
            0,
            asyncio.Event(),
        )  # how many; whether the scheduler has it all
        worker.stream_handlers[HEARD] = self._note_heard
        self._ends_with_job = False
        self._timer: Any = None
        if getattr(worker, "lifetime", None):
            self._take_over_lifetime()
        if "SLURM_JOB_ID" in os.environ:
            threading.Thread(target=self._ask_slurm, name="atomizer-job-end", daemon=True).start()

    # -- when ------------------------------------------------------------------------------

    def _take_over_lifetime(self) -> None:
        worker = self._worker
        timer = lifetime_timer(worker)
        if timer is None:
            # Too early by the time of the imports, which does no harm.
            began = _beginning()
            self._shorten(began, began + worker.lifetime)
            return
        loop = worker.loop
        end = monotonic() + timer.when() - loop.asyncio_loop.time()
        self._shorten(end - worker.lifetime, end)
        loop.add_callback(timer.cancel)  # it would end the worker before all is reported

    def _ask_slurm(self) -> None:
        end = _end_of_slurm_job()
        if end < inf:
            self._worker.loop.add_callback(self._shorten, _beginning(), end, with_job=True)

    def _shorten(self, began: float, end: float, *, with_job: bool = False) -> None:
        end -= self._margin
        if end >= self.wall_time.end:
            return
        self._ends_with_job = with_job
        self.wall_time = WallTime(end, end - began, self.wall_time.ready)
        self._worker.loop.add_callback(self._set_timer)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._worker.loop.remove_timeout(self._timer)
        left = max(0.0, self.wall_time.left)
        self._timer = self._worker.loop.call_later(left, self._leave_now)

    @property
    def is_last_chance(self) -> bool:
        """Whether this is the last chance to report ended electrons, however large the report."""
        return self._closed or monotonic() < self._unloading_until

    @property
    def _executes(self) -> bool:
        return any(is_batch(task.key) for task in self._worker.state.executing)

    # -- what ------------------------------------------------------------------------------

    def takes(self, batch: Batch) -> bool:
        """Return whether there is time for an electron of a batch; announce where there is not."""
        if monotonic() < self._unloading_until:
            return False
        if self.wall_time.end == inf:
            return True
        if self._closed:
            return False
        if self.wall_time.is_fresh:
            return True  # else all workers might refuse it, where starting takes much of a life
        left = self.wall_time.left
        if left < batch.terms.min_seconds:
            return False  # other workers have time for it
        if left >= self._needed(batch):
            return True
        self._refuse(batch, left)
        return False

    def seconds_for(self, batch: Batch) -> float:
        """Return how many seconds a batch may take from now on, so that its last electron ends."""
        return max(0.0, min(batch.seconds, self.wall_time.left - self._needed(batch)))

    def _needed(self, batch: Batch) -> float:
        return min(batch.longest * SAFETY, self.wall_time.life * MOST_SHARE)

    def _refuse(self, batch: Batch, left: float) -> None:
        """Announce that the worker takes no more, and leave once the running batches have ended."""
        with self._guard:
            if self._refusing:
                return
            self._refusing = True
        self._report_leaving(final=False)
        where = self._worker.address
        message = (
            f"worker {where} is given no more electrons: its wall time ends in "
            f"{max(left, 0.0):.1f} s, and they take up to {batch.longest:.1f} s"
        )
        fields = {"worker": where, "left": round(left, 3), "longest": round(batch.longest, 3)}
        event = Event(message, atom_id=batch.atom_id, run_id=batch.run_id, fields=fields)
        self._emit(batch.origin.channel, event)
        self._worker.loop.add_callback(self._leave_when_idle)

    def _report_leaving(self, *, final: bool, retired: bool = False) -> None:
        message = WorkerLeaving(self._worker.address, final, retired, self._farewells)
        self._worker.log_event(**as_event(message))

    def _note_heard(self, number: int) -> None:
        """Note that the scheduler has all messages up to a farewell."""
        if number == self._farewells:
            self._heard.set()

    # -- leaving ---------------------------------------------------------------------------

    async def _leave_when_idle(self) -> None:
        idle = 0
        while idle < 2:  # the second look sees a batch let in just before the first
            # Not only leases: the worker may execute tasks of others.
            idle = 0 if self._leases() or self._worker.state.executing else idle + 1
            self._closed |= bool(idle)
            await asyncio.sleep(POLL_SECONDS)
        await self._leave()

    async def _leave_now(self) -> None:
        """Report what has ended, and leave in the middle of the electrons that have not."""
        if self._worker.status.name not in ("running", "paused"):
            return  # somebody else closes it
        self._refusing = self._closed = True
        try:
            await self._report_leases()
        finally:
            await self._leave()

    async def unload(self) -> None:
        """Hand over what has ended and what has not begun: the worker is about to be retired."""
        until = monotonic() + self._margin
        self._unloading_until = until + LIFETIME_PATIENCE  # it may stay after all
        # More than once: a batch that was just let in is not among the leases yet.
        while self._executes:
            await self._hand_over()
            if monotonic() > until:
                break
            await asyncio.sleep(POLL_SECONDS)
        await self._hand_on()
        await self._take_leave(retired=True)

    async def _hand_over(self) -> None:
        loop = asyncio.get_running_loop()
        leases = self._leases()
        await asyncio.gather(*(loop.run_in_executor(None, _surrender, lease) for lease in leases))

    async def _report_leases(self) -> None:
        self._report_leaving(final=False)
        await self._hand_over()
        for lease in self._leases():
            message = BatchExpiring(lease.batch.key, lease.ran())
            self._worker.log_event(self._channel_of(lease.batch), to_topic(message))

    async def _take_leave(self, *, retired: bool = False) -> None:
        """Announce that this worker leaves, and wait until the scheduler has all messages."""
        self._heard.clear()
        self._farewells += 1
        self._report_leaving(final=True, retired=retired)
        with suppress(TimeoutError):  # the scheduler is gone, or messages are very large
            await asyncio.wait_for(self._heard.wait(), self._patience)

    @property
    def _patience(self) -> float:
        return self._margin if self._ends_with_job else LIFETIME_PATIENCE

    async def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        try:
            await self._hand_on()
            await self._take_leave()
            await self._until_fetched()
            await self._say_goodbye()
        finally:
            await self._close()

    async def _until_fetched(self) -> None:
        """Wait until clients have fetched the outcomes, and store those that they have not."""
        until, worker = monotonic() + self._margin / 2, self._worker
        while monotonic() < until and (self._is_ending or any(map(is_batch, worker.data))):
            await asyncio.sleep(POLL_SECONDS)
        if unfetched := self._unfetched():
            await asyncio.get_running_loop().run_in_executor(None, self._keep, unfetched)

    @property
    def _is_ending(self) -> bool:
        """Whether electrons have ended that are not reported yet."""
        state, leases = self._worker.state, self._leases()
        begun = sum(is_batch(task.key) for task in (*state.executing, *state.long_running))
        return begun > len(leases) or any(lease.has_unreported for lease in leases)

    async def _until_all_is_reported(self) -> None:
        """Wait until this process can end amid running electrons, with none executed twice.

        Nothing is awaited between the last look and the return.
        """
        until = monotonic() + self._patience
        while True:
            await self._hand_over()
            await self._hand_on()
            await self._take_leave()
            await self._until_fetched()
            if not self._is_ending or monotonic() > until:
                return

    async def _say_goodbye(self) -> None:
        """Have the scheduler move results that others need to other workers.

        It also removes the worker, but only where that has no nanny: the process then ends later.
        Else the worker is removed when its process ends. If it were removed before, electrons that
        end here would be executed elsewhere too, and a late heartbeat would make Dask close the
        nanny.
        """
        worker = self._worker
        logger.info("worker %s leaves: its wall time is over", worker.address)
        retire = partial(worker.scheduler.retire_workers, workers=[worker.address])
        remove = not worker.nanny
        try:
            await asyncio.wait_for(retire(close_workers=False, remove=remove), self._patience)
        except (TimeoutError, OSError) as error:
            logger.warning("worker %s leaves without farewell: %r", worker.address, error)

    async def _close(self) -> None:
        worker = self._worker
        restart = worker.lifetime_restart and not self._ends_with_job
        if worker.nanny:
            if self._leases() and not restart:
                async with worker.rpc(worker.nanny) as nanny:
                    await nanny.close_gracefully(reason=REASON)
            await self._until_all_is_reported()
            self.stop_running()
        await worker.close(nanny=not restart, executor_wait=False, reason=REASON)

    def stop_running(self) -> None:
        """End this process where electrons still run: the worker closes, others execute them."""
        if self._worker.nanny and self._leases():
            os._exit(0)  # nothing else stops their threads for certain; Dask would wait for them

    def _unfetched(self) -> list[tuple[Packed, Packed]]:
        """Return batches of runs with a store, each with its outcome, which is lost with us."""
        data, tasks = self._worker.data, self._worker.state.tasks
        executed = {key: tasks[key].run_spec for key in data if is_of_run(key) and key in tasks}
        return [(spec.args[0], data[key]) for key, spec in executed.items() if spec is not None]


def _surrender(lease: Lease) -> None:
    lease.surrender()
    lease.hand_over()


def _beginning() -> float:
    """Return when this process began, as `time.monotonic` counts."""
    return monotonic() - (time() - float(psutil.Process().create_time()))


def _ready_at() -> float:
    now = monotonic()
    return now if now < _beginning() + STARTING_SECONDS else -inf


def _end_of_slurm_job() -> float:
    """Return when the Slurm job ends that this process belongs to, as `time.monotonic` counts."""
    if stamp := os.environ.get("SLURM_JOB_END_TIME"):  # newer versions say it themselves
        return monotonic() + float(stamp) - time()
    squeue = shutil.which("squeue")
    if squeue is None:
        return inf
    command = [squeue, "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], "--format", "%e"]
    stamped = {**os.environ, "SLURM_TIME_FORMAT": "%s"}  # seconds since the epoch
    try:
        asked = subprocess.run(  # noqa: S603 - the batch system's own program
            command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True, env=stamped
        )
        stamp = asked.stdout.strip()
        return inf if stamp in ("N/A", "NONE") else monotonic() + float(stamp) - time()
    except (subprocess.SubprocessError, ValueError) as error:
        logger.warning("when the job of this worker ends is not known: %s", error)
        return inf
