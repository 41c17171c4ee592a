"""``atomizer-dask pi``: the main job as a demonstration."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

import click

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.cli.clusters import ClusterOptions, cluster_options, conductor_at
from atomizer_dask.cli.ending import errors_as_text, heeding_termination
from atomizer_dask.events import Event, Stream
from atomizer_dask.montecarlopi import MonteCarlo, Toss, standard_error
from atomizer_dask.runs.run import Run

_ESTIMATES = 10  # rows into which `pi` divides the tosses: enough to see their scatter


class _WholeNumber(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A whole number, also written as 1e9."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number; write 1000000 or 1e6", param, ctx)
        if number < 1 or number != int(number):
            self.fail(f"{value} is not a whole number of at least 1", param, ctx)
        return int(value) if str(value).isdigit() else int(number)


@click.command()
@click.option("--tosses", type=_WholeNumber(), default="1e9", show_default=True, help="How many.")
@click.option("--seed", type=int, help="Fixes the result to the last bit.")
@cluster_options
def pi(tosses: int, seed: int | None, place: ClusterOptions) -> None:
    """Estimate pi by tossing darts: the main job as a demonstration."""
    rows = min(_ESTIMATES, tosses)
    shares = [tosses // rows + (row < tosses % rows) for row in range(rows)]
    with heeding_termination(), errors_as_text(), conductor_at(place) as conductor:
        click.echo(f"{tosses:,} tosses on {conductor}", err=True)
        with Atomizer(conductor, MonteCarlo, Toss) as atomizer:
            events = atomizer.events(buffer=100_000)
            start = monotonic()
            run = atomizer.map(MonteCarlo, {"tosses": shares}, seed=seed)
            _show_tosses(run, events, tosses)
            run.wait(progress=False)
            seconds = monotonic() - start
        _print_pi(run, seconds)


def _show_tosses(run: Run, events: Stream[Event], tosses: int) -> None:
    with click.progressbar(length=tosses, label="Tossing", file=sys.stderr) as bar:
        while run.state == "running":
            try:
                event = events.get(timeout=0.1)
            except TimeoutError:
                continue
            if event.message == "tossed":
                bar.update(event.fields["tosses"])
        bar.update(tosses - bar.pos)


def _print_pi(run: Run, seconds: float) -> None:
    frame = run.to_frame(metadata=True)
    if len(run.errors):
        raise click.ClickException(f"estimates failed:\n{run.errors[['kind', 'type', 'message']]}")
    inside = int(frame["in"].sum())
    thrown = int((frame["tosses"] - frame["errors"]).sum())
    click.echo(f"pi = {4 * inside / thrown:.9f} +- {standard_error(inside, thrown):.9f}")
    click.echo(
        f"{thrown:,} tosses in {seconds:.2f} s: {thrown / seconds / 1e6:,.1f} million a second"
    )
    click.echo(f"seed {run.seed}\n")
    shown = frame.drop(columns=["id", "attempts", "end"])
    shown["start"] = shown["start"].dt.strftime("%H:%M:%S.%f")
    shown["duration"] = shown["duration"].dt.total_seconds().round(3)
    click.echo(shown.head().to_string())
