"""The command line: ``atomizer-dask``, and the same as ``dask atomizer``."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

import atomizer_dask
from atomizer_dask.atomizer import Atomizer
from atomizer_dask.commandline import (
    errors_as_text,
    exit_code,
    heeding_termination,
    load_atom,
    priority_option,
    show_failures,
    wait_for,
)
from atomizer_dask.console import console
from atomizer_dask.events import Event, Stream
from atomizer_dask.execution.options import policy_of
from atomizer_dask.montecarlopi import MonteCarlo, Toss, standard_error
from atomizer_dask.node import node
from atomizer_dask.placing import Place, cluster_options, conductor_at
from atomizer_dask.policy import DECISIONS, seconds_of
from atomizer_dask.runs.run import Run
from atomizer_dask.store.stored_run import check_usable
from atomizer_dask.surviving import resume, status

if TYPE_CHECKING:
    import pandas as pd

_ESTIMATES = 10  # rows into which `pi` divides the tosses: enough to see their scatter


@click.group(name="atomizer", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(atomizer_dask.__version__, prog_name="atomizer-dask")
def main() -> None:
    """From a function and a table of inputs to one tidy DataFrame, on Dask."""


class _Count(click.ParamType):  # type: ignore[type-arg, unused-ignore]
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
@click.option("--tosses", type=_Count(), default="1e9", show_default=True, help="How many.")
@click.option("--seed", type=int, help="Fixes the result to the last bit.")
@cluster_options
def pi(tosses: int, seed: int | None, place: Place) -> None:
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


@click.command(name="map")
@click.argument("target", metavar="MODULE:ATOM")
@click.option(
    "--sweep",
    "source",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The inputs: a .csv or .parquet file whose columns are the atom's parameters.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where inputs and outputs go together: a .parquet or .csv file.",
)
@click.option(
    "--store",
    metavar="DIR",
    help="A folder or URL in which the run survives; what is there already is not computed again.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Let the store keep what has no Arrow type as pickles."
)
@click.option("--takeover", is_flag=True, help="Take the store from a process that holds it.")
@click.option("--accept-changes", is_flag=True, help="Although the atom or a package has changed.")
@click.option("--seed", type=int, help="Fixes all random streams.")
@click.option(
    "--timeout", help="Of each electron: seconds, or a text such as 30s; none unless configured."
)
@click.option(
    "--on-failure",
    type=click.Choice(DECISIONS),
    help="Record a failure, as unless configured; try again on the same worker; or on another.",
)
@click.option("--max-attempts", type=click.IntRange(min=1), help="3 where it is tried again.")
@click.option("--backoff", help="Before the second attempt; none unless configured.")
@priority_option("0")
@click.option("--metadata", is_flag=True, help="Add id, start, end, duration, worker and attempts.")
@cluster_options
def map_(
    target: str,
    source: Path,
    out: Path | None,
    store: str | None,
    allow_pickle: bool,
    takeover: bool,
    accept_changes: bool,
    seed: int | None,
    timeout: str | None,
    on_failure: str | None,
    max_attempts: int | None,
    backoff: str | None,
    priority: int | None,
    metadata: bool,
    place: Place,
) -> None:
    """Run an atom over a table from disk.

    ATOM is a function, an atom, or the name of either in MODULE, which is a module or a .py file.
    Failed rows have missing outputs, and are listed in OUT.errors.csv.
    Ctrl-C pauses, and a second one cancels; what has ended by then is written. With a store the
    same command, or `resume`, goes on; SIGTERM suspends within seconds.

    \b
    Exit codes: 0 all done, 3 all done but some failed, 4 not all done.
    """  # noqa: D301 - click wants it
    if out is None and store is None:
        raise click.UsageError(
            "give --out FILE, --store DIR, or both: the results must go somewhere"
        )
    with heeding_termination(), errors_as_text():
        limit = _number_or_text(timeout)
        pause = _number_or_text(backoff)
        policy_of(on_failure, max_attempts, pause)
        seconds_of(limit, "timeout")
        atom = load_atom(target)
        sweep = _read(source)
        if out is not None:
            _check_writable(out)
        atom.check_fields(map(str, sweep.columns))
        if store is not None and place.cluster is not None and not takeover:
            check_usable(store)
        with conductor_at(place) as conductor, Atomizer(conductor, atom) as atomizer:
            run = atomizer.map(
                atom,
                sweep,
                seed=seed,
                timeout=limit,
                on_failure=on_failure,
                max_attempts=max_attempts,
                backoff=pause,
                priority=priority or 0,
                store=store,
                allow_pickle=allow_pickle,
                takeover=takeover,
                accept_changes=accept_changes,
            )
            wait_for(run)
        if out is not None:
            _write(run.to_frame(metadata=metadata), out)
        _end(run, out)


def _end(run: Run, out: Path | None) -> None:
    """Say what came of a run, and exit accordingly."""
    p = run.progress
    rows = f"{p.done + p.failed:,} rows"
    click.echo(
        f"{out or run.store}: {rows}, {p.failed:,} failed, {p.rate:,.0f} electrons a second, "
        f"seed {run.seed}"
    )
    if p.failed:
        show_failures(run)
        if out is not None:
            listed = out.with_name(out.name + ".errors.csv")
            run.errors.to_csv(listed)
            click.echo(f"  all of them: {listed}", err=True)
    if code := exit_code(run):
        raise SystemExit(code)


def _number_or_text(value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


def _read(source: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if source.suffix == ".csv":
            return pd.read_csv(source)
        if source.suffix in (".parquet", ".pq"):
            return pd.read_parquet(source)
    except (OSError, ValueError) as error:  # those of pandas and pyarrow are of these kinds
        raise click.UsageError(f"cannot read {source}: {error}") from error
    raise click.UsageError(f"--sweep reads .csv and .parquet, got {source.name}")


def _check_writable(out: Path) -> None:
    """Raise now rather than when the results are there."""
    if out.suffix not in (".csv", ".parquet", ".pq"):
        raise click.UsageError(f"--out writes .parquet and .csv, got {out.name}")
    try:
        with _beside(out).open("wb"):
            pass
    except OSError as error:
        raise click.UsageError(f"cannot write to {out.parent}: {error.strerror}") from error
    _beside(out).unlink()


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _write(frame: pd.DataFrame, out: Path) -> None:
    """Write under a temporary name and rename, so that nobody sees half a file."""
    part = _beside(out)
    if out.suffix == ".csv":
        frame.to_csv(part, index=False)
        part.replace(out)
        return
    try:
        frame.to_parquet(part)
    except Exception as error:
        part.unlink(missing_ok=True)
        saved = out.with_suffix(".csv")
        frame.to_csv(saved, index=False)
        raise click.ClickException(
            f"Parquet cannot hold these outputs ({error}); nothing is lost: they are in {saved}, "
            "as text"
        ) from error
    part.replace(out)


for _command in (pi, map_, status, resume, node, console):
    main.add_command(_command)
