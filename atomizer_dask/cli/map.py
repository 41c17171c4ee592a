"""``atomizer-dask map``: an atom over a table from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.definition import bind_fixed
from atomizer_dask.cli.atoms import load_atom
from atomizer_dask.cli.clusters import ClusterOptions, check_free, cluster_options, conductor_at
from atomizer_dask.cli.ending import (
    errors_as_text,
    exit_code,
    heeding_termination,
    show_failures,
    wait_for,
)
from atomizer_dask.cli.options import priority_option
from atomizer_dask.execution.options import MapOptions
from atomizer_dask.policy import DECISIONS
from atomizer_dask.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd


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
    "--fixed",
    "pairs",
    metavar="NAME=VALUE",
    multiple=True,
    help="A parameter that is the same for all rows: JSON, or else a text. May be repeated.",
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
    pairs: tuple[str, ...],
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
    place: ClusterOptions,
) -> None:
    """Run an atom over a table from disk.

    ATOM is a function, an atom, or the name of either in MODULE, which is a module or a .py file.
    Failed rows have missing outputs, and are listed in OUT.errors.csv.
    Ctrl-C pauses, and a second one cancels; what has ended by then is written. With a store the
    same command, or `resume`, goes on; SIGTERM suspends within seconds.

    \b
    Exit codes: 0 all done, 3 all done but some failed, 4 not all done.
    """  # noqa: D301 - click wants it
    _check_kept(out, store)
    with heeding_termination(), errors_as_text():
        how = _how(timeout, on_failure, max_attempts, backoff, allow_pickle, priority)
        atom, sweep = bind_fixed(load_atom(target), _fixed(pairs)), _read(source)
        _check_writable(out)
        atom.check_fields(map(str, sweep.columns))
        check_free(store, place, takeover=takeover)
        with conductor_at(place) as conductor, Atomizer(conductor, atom) as atomizer:
            into: dict[str, Any] = {
                "store": store,
                "takeover": takeover,
                "accept_changes": accept_changes,
            }
            run = atomizer.map(atom, sweep, seed=seed, **how, **into)
            wait_for(run)
        if out is not None:
            _write(run.to_frame(metadata=metadata), out)
        _end(run, out)


def _end(run: Run, out: Path | None) -> None:
    """Print a summary of a run, and exit with its exit code."""
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


def _fixed(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return the fixed values by name."""
    fixed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise click.UsageError(f"--fixed takes NAME=VALUE, as in --fixed k=3, got {pair!r}")
        try:
            fixed[name] = json.loads(text)
        except ValueError:
            fixed[name] = text
    return fixed


def _read(source: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if source.suffix == ".csv":
            return pd.read_csv(source)
        if source.suffix in (".parquet", ".pq"):
            return pd.read_parquet(source)
    except (OSError, ValueError) as error:  # errors of pandas and pyarrow are subclasses of these
        raise click.UsageError(f"cannot read {source}: {error}") from error
    raise click.UsageError(f"--sweep reads .csv and .parquet, got {source.name}")


def _how(
    timeout: str | None,
    on_failure: str | None,
    max_attempts: int | None,
    backoff: str | None,
    allow_pickle: bool,
    priority: int | None,
) -> dict[str, Any]:
    """Return the options of `Atomizer.map`, checked before a cluster is started."""
    how: dict[str, Any] = {
        "timeout": _number_or_text(timeout),
        "on_failure": on_failure,
        "max_attempts": max_attempts,
        "backoff": _number_or_text(backoff),
        "allow_pickle": allow_pickle,
        "priority": priority or 0,
    }
    MapOptions.of(**how)
    return how


def _check_kept(out: Path | None, store: str | None) -> None:
    if out is None and store is None:
        raise click.UsageError(
            "give --out FILE, --store DIR, or both: the results must go somewhere"
        )


def _check_writable(out: Path | None) -> None:
    """Raise `click.UsageError` where results cannot be written, before any are computed."""
    if out is None:
        return
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
