"""The cluster of a command: its options, and a conductor on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from atomizer_dask import config
from atomizer_dask.cli.jobs import Jobs
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.store.stored_run import check_usable


@dataclass(frozen=True)
class ClusterOptions:
    """The options of a command that choose its cluster.

    Without any of them it is the scheduler configured as ``atomizer.connection.target``, else a
    local cluster.
    """

    scheduler: str | None = None
    scheduler_file: Path | None = None
    workers: int | None = None
    cluster: str | None = None
    jobs: int | None = None
    adapt: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        given = {
            "--scheduler": self.scheduler,
            "--scheduler-file": self.scheduler_file,
            "--workers": self.workers,
            "--cluster": self.cluster,
        }
        places = [name for name, value in given.items() if value is not None]
        for name in places:  # empty where the shell expands a variable that is not set
            if given[name] in ("", Path()):
                raise click.UsageError(f"{name} is empty: give it a value, or leave it out")
        if len(places) > 1:
            what = "; --workers is for a local cluster" if self.workers is not None else ""
            raise click.UsageError(f"{' and '.join(places)} say different places: give one{what}")
        if self.cluster is None:
            for name, value in (("--jobs", self.jobs), ("--adapt", self.adapt)):
                if value is not None:
                    raise click.UsageError(f"{name} is for jobs of a batch system: add --cluster")
        elif (self.jobs is None) == (self.adapt is None):
            wrong = "both were given" if self.jobs else "neither was given"
            raise click.UsageError(
                f"--cluster {self.cluster} needs either --jobs N, for as many all the time, or "
                f"--adapt MIN MAX, for as many as there is work; {wrong}"
            )
        if self.adapt is not None and not self.adapt[0] <= self.adapt[1] >= 1:
            raise click.UsageError(
                f"--adapt takes the least and the most jobs, as in --adapt 0 10, got "
                f"{self.adapt[0]} and {self.adapt[1]}"
            )

    @property
    def target(self) -> str | Path | None:
        """The running scheduler to connect to; None where a cluster is to be started."""
        if self.workers is not None or self.cluster is not None:
            return None
        return self.scheduler or self.scheduler_file or config.target()


_OPTIONS = (
    click.option(
        "--adapt",
        type=(click.IntRange(min=0), click.IntRange(min=1)),
        metavar="MIN MAX",
        help="With --cluster: at least and at most so many jobs, as there is work.",
    ),
    click.option(
        "--jobs", type=click.IntRange(min=1), help="With --cluster: so many jobs all the time."
    ),
    click.option(
        "--cluster",
        metavar="NAME",
        help="Workers are jobs of a batch system, which end with this command: slurm, pbs, "
        "sge, lsf, oar, htcondor, moab. What a job is, is dask-jobqueue's configuration.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes of a local cluster; by default one per core.",
    ),
    click.option(
        "--scheduler-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Where a Dask scheduler writes its address; it may do so later.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="A running Dask scheduler; by default what is configured, else a local cluster.",
    ),
)


def cluster_options(command: Any) -> Any:
    """Give a command the options that choose its cluster, passed as `ClusterOptions` in `place`."""
    names = [field.name for field in fields(ClusterOptions)]

    @wraps(command)
    def placed(*args: Any, **given: Any) -> Any:
        place = ClusterOptions(**{name: given.pop(name) for name in names})
        return command(*args, place=place, **given)

    for option in _OPTIONS:
        placed = option(placed)
    return placed


def check_free(store: str | None, place: ClusterOptions, *, takeover: bool) -> None:
    """Raise `StoreError` where a store cannot be used, before jobs of a batch system are submitted.

    With `takeover`, or without jobs, nothing is checked here.
    """
    if store is not None and place.cluster is not None and not takeover:
        check_usable(store)


@contextmanager
def conductor_at(
    place: ClusterOptions, announce: Callable[[str], object] | None = None, *, wait: bool = True
) -> Iterator[DaskConductor]:
    """Give a conductor on a running cluster, or on one that is started and ends with the context.

    Parameters
    ----------
    place
        Chooses the cluster.
    announce
        Called with messages about jobs of a batch system; they go to stderr where not given.
    wait
        Whether to wait for the first worker of these jobs.
    """
    with ExitStack() as stack:
        target: Any = place.target
        if place.cluster is not None:
            jobs = Jobs(place.cluster, place.adapt or place.jobs or 1, announce or say)
            click.get_current_context().call_on_close(jobs.cancel)  # called by `leave`, too
            stack.enter_context(jobs)
            jobs.start(wait=wait)
            target = jobs.cluster
        conductor = DaskConductor(target, workers=place.workers)
        stack.callback(conductor.close)
        yield conductor


def say(text: str) -> None:
    """Print a line on stderr."""
    with suppress(OSError):  # the terminal may be closed
        click.echo(text, err=True)
