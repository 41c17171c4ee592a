"""A cluster whose workers are jobs of a batch system, for the duration of a command.

The configuration of dask-jobqueue describes a job; the command says how many there are. However
the command ends, it cancels the jobs that it has submitted. Only where it is killed it cannot;
then the workers end by themselves, because they lose their scheduler.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from time import monotonic
from typing import Any, Self

import dask.config

from atomizer_dask.errors import ConductorError

CLOSE_SECONDS = 30.0  # for workers to unregister from their scheduler
CANCEL_SECONDS = 10.0  # for the batch system to cancel the jobs
POLL_SECONDS = 0.2
REMIND_SECONDS = 60.0


def kinds() -> dict[str, Any]:
    """Return the cluster classes of dask-jobqueue, by the names of their batch systems.

    Raises
    ------
    ConductorError
        Where dask-jobqueue is missing.
    """
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
        from dask_jobqueue.local import LocalCluster
    except ModuleNotFoundError as error:
        if error.name != "dask_jobqueue":
            raise
        raise ConductorError(
            "jobs of a batch system need dask-jobqueue, which is not installed: "
            "pip install 'atomizer_dask[hpc]'"
        ) from error
    finally:  # its import installs a handler of Ctrl-C that exits with code 0
        signal.signal(signal.SIGINT, ctrl_c)
    base = dask_jobqueue.JobQueueCluster
    classes = [c for c in vars(dask_jobqueue).values() if isinstance(c, type)]
    given = [c for c in classes if issubclass(c, base) and c is not base]
    return {c.__name__.removesuffix("Cluster").lower(): c for c in [*given, LocalCluster]}


def kind(name: str) -> Any:
    """Return the cluster class of a batch system.

    Raises
    ------
    ConductorError
        Where dask-jobqueue knows no such system, or cores and memory of a job are not configured.
    """
    known = kinds()
    cluster = known.get(name.lower().removesuffix("cluster"))
    if cluster is None:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConductorError(
            f"dask-jobqueue knows no batch system {name!r}{hint}, but {', '.join(sorted(known))}"
        )
    section = f"jobqueue.{cluster.job_cls.config_name}"
    sizes = "cores", "memory"
    missing = [own for own in sizes if dask.config.get(f"{section}.{own}", None) is None]
    if missing:
        own = cluster.job_cls.config_name
        raise ConductorError(
            f"what a job asks for is not configured: {section} lacks {' and '.join(missing)}. "
            f"Write it to ~/.config/dask/jobqueue.yaml:\n\n"
            f"jobqueue:\n  {own}:\n    cores: 8\n    memory: 24GB\n    walltime: '01:00:00'\n\n"
            f"or set DASK_JOBQUEUE__{own.upper()}__CORES and DASK_JOBQUEUE__{own.upper()}__MEMORY"
        )
    return cluster


class Jobs:
    """Workers that are jobs of a batch system.

    Parameters
    ----------
    name
        Name of the batch system, as in `kinds`.
    count
        Number of jobs; or a pair of the least and the most jobs, between which Dask adapts.
    announce
        Called with lines of text for the user.

    Attributes
    ----------
    cluster
        The cluster object of dask-jobqueue.

    Raises
    ------
    ConductorError
        Where there is no such batch system, or no such jobs can be made.
    """

    def __init__(
        self, name: str, count: int | tuple[int, int], announce: Callable[[str], object]
    ) -> None:
        self._announce = announce
        self._count = count
        self._made: list[Any] = []  # all jobs, whether they wait, run or have ended
        self._refused: list[str] = []
        self._ending = threading.Event()
        self._closed = False
        what = kind(name)
        self._name = what.__name__
        try:
            self.cluster = what(job_cls=_heard(what.job_cls, self))
        except (ValueError, RuntimeError, OSError) as error:
            raise ConductorError(
                f"{self._name} cannot be started as jobqueue.{what.job_cls.config_name} of Dask's "
                f"configuration says: {error}"
            ) from error

    def start(self, *, wait: bool = True) -> None:
        """Submit jobs; with `wait`, and if there is at least one job, wait for the first worker.

        Raises
        ------
        ConductorError
            Where the batch system refuses a job, and there is no worker.
        """
        if isinstance(self._count, tuple):
            least, most = self._count
            self._announce(f"{self._name}: {least} to {most} jobs, as there is work")
            self.cluster.adapt(minimum_jobs=least, maximum_jobs=most)
        else:
            least = self._count
            self._announce(f"{self._name}: {least} job{'s' if least > 1 else ''}")
            self.cluster.scale(jobs=least)
        began = monotonic()
        if not wait or not least:
            watch = threading.Thread(target=self._watch, args=(began,), name="atomizer-jobs")
            watch.daemon = True
            watch.start()
            return
        self._announce("waiting for the first worker; Ctrl-C cancels the jobs")
        self._watch(began)
        if self._refused and not self._workers():
            raise ConductorError(f"{self._name} refuses a job: {self._refused[0]}")

    @property
    def ids(self) -> list[str]:
        """The ids that the batch system has given to the jobs so far."""
        return [str(job.job_id) for job in self._made if job.job_id is not None]

    def _workers(self) -> int:
        return len(self.cluster.scheduler_info["workers"])

    def _watch(self, began: float) -> None:
        """Announce what happens until the first worker is there, a job is refused, or all end."""
        listed, due = 0, began + REMIND_SECONDS
        while not self._ending.wait(POLL_SECONDS):
            # Workers first, then ids: so the job of each worker is among the ids.
            workers, ids, seconds = self._workers(), self.ids, monotonic() - began
            if len(ids) > listed:
                self._announce(f"submitted: {', '.join(ids[listed:])}")
                listed = len(ids)
            if workers:
                there = "1 is" if workers == 1 else f"{workers} are"
                self._announce(f"the first worker came after {seconds:.0f} s; {there} there")
                return
            if self._refused:
                self._announce(f"{self._name} refuses a job: {self._refused[0]}")
                return
            if monotonic() > due:
                due += REMIND_SECONDS
                jobs = ", ".join(ids) or "none"
                self._announce(
                    f"no worker for {seconds / 60:.0f} min; jobs submitted: {jobs}. Why one is not "
                    "in the queue any more, its output says (log-directory)"
                )

    def note_made(self, job: Any) -> None:
        """Note a job that is about to be submitted."""
        self._made.append(job)

    def note_refused(self, error: Exception) -> None:
        """Note that the batch system did not take a job."""
        said = [line for line in str(error).splitlines() if line.strip()]
        self._refused.append(" ".join(said)[:1000])

    @property
    def is_ending(self) -> bool:
        """Whether no more jobs shall be submitted."""
        return self._ending.is_set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the cluster; after an exception, cancel the jobs at once."""
        if kind is None:
            self.close()
        else:
            self.cancel()

    def close(self) -> None:
        """Close workers and scheduler in order, and cancel the jobs; can be called twice."""
        if self._closed:
            return
        self._ending.set()
        try:
            self.cluster.close(timeout=CLOSE_SECONDS)
            self._closed = True
        except (TimeoutError, RuntimeError, OSError, AssertionError):  # then without the workers
            self.cancel()

    def cancel(self) -> None:
        """Cancel the jobs at once, in a process that is about to end."""
        if self._closed:
            return
        self._ending.set()
        self._closed = True
        try:
            left = self.cluster.sync(_cancel, self._made, callback_timeout=CANCEL_SECONDS)
        except (TimeoutError, RuntimeError):
            left = self.ids
        if left:
            self._announce(f"jobs that may have to be cancelled by hand: {', '.join(left)}")


async def _cancel(jobs: list[Any]) -> list[str]:
    """Cancel jobs; return which of them could not be."""
    while any(job.is_on_its_way for job in jobs):  # being submitted: it has no id yet
        await asyncio.sleep(0.02)
    done = await asyncio.gather(*(job.close() for job in jobs), return_exceptions=True)
    return [str(job.job_id) for job, was in zip(jobs, done, strict=True) if was is not None]


def _heard(kind_of_job: Any, jobs: Jobs) -> Any:
    """Return a subclass of a job class: `jobs` is notified of each job, which is cancelled once."""
    from dask_jobqueue.core import Job

    class Heard(kind_of_job):  # type: ignore[misc]
        is_on_its_way = False

        async def start(self) -> None:
            if jobs.is_ending:
                await super(Job, self).close()
                raise RuntimeError("the jobs are being ended")
            jobs.note_made(self)
            self.is_on_its_way = True
            try:
                await super().start()
            except Exception as error:
                await super(Job, self).close()  # sets the status that Dask waits for
                jobs.note_refused(error)
                raise
            finally:
                self.is_on_its_way = False
            if jobs.is_ending:
                await self.close()

        async def close(self) -> None:
            if self.status.name == "closed":
                return
            await super(Job, self).close()
            if self.job_id is not None:
                with suppress(ProcessLookupError):  # a process of this machine that has ended
                    await super().close()

    Heard.__name__ = kind_of_job.__name__
    return Heard
