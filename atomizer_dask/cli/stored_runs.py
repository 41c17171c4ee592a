"""The commands for a run that is kept in a store: ``status`` and ``resume``."""

from __future__ import annotations

import os
import time
from math import floor
from typing import Any

import click

from atomizer_dask.atomizer import Atomizer
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
from atomizer_dask.runs.progress import Progress
from atomizer_dask.runs.run import Run
from atomizer_dask.store.stored_run import stored_target

WATCH_SECONDS = 1.0


@click.command()
@click.argument("store", metavar="DIR")
@click.option(
    "--watch", is_flag=True, help="Until it has ended: a line whenever something changed."
)
def status(store: str, watch: bool) -> None:
    """Say how far a run is, what failed, and where its results come from.

    DIR is its store, a folder or a URL; no cluster is needed.

    \b
    Exit codes: 0 all done, 3 all done but some failed, 4 not all done.
    """  # noqa: D301 - click wants it
    with errors_as_text():
        run = Run.open(store)
        facts = run.provenance
        click.echo(f"{run.id} of {run.atom_id} in {run.store}")
        click.echo(_line(run, facts["holder"] is not None))
        if run.interruption:
            click.echo(run.interruption)
        if watch:
            run = _watch(store, run)
            facts = run.provenance
        if facts["holder"]:
            click.echo(f"held by {facts['holder']}")
        elif run.state in ("running", "suspended", "cancelled", "failed"):
            click.echo(f"nobody works on it: atomizer-dask resume {store} goes on")
        if run.progress.failed:
            show_failures(run)
        _show_provenance(facts)
    raise SystemExit(exit_code(run))


def _line(run: Run, held: bool, rate: float | None = None) -> str:
    p = run.progress
    rate = p.rate if rate is None else rate
    total = "?" if p.total is None else f"{p.total:,}"
    thousandths = floor(1000 * (p.done + p.failed) / p.total) if p.total else 0
    share = f" ({thousandths / 10:.1f}%)" if p.total else ""  # rounded down: 100 means all
    known = held and p.total is not None and rate
    left = (p.total - p.done - p.failed) / rate if known else None  # type: ignore[operator]
    eta = f", {_duration(left)} left" if left else ""
    return (
        f"{run.state}: {p.done + p.failed:,} of {total} electrons{share}, {p.failed:,} failed, "
        f"{rate:,.0f} a second{eta}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _watch(store: str, run: Run) -> Run:
    """Print a line whenever electrons have ended, until no process works on the run any more."""
    before, seen, state = _known(run.progress), time.monotonic(), run.state
    # A detached run has no holder until a worker has a thread for its driver.
    while run.provenance["holder"] is not None or run.state == "detached":
        time.sleep(WATCH_SECONDS)
        run = Run.open(store)
        known, at = _known(run.progress), time.monotonic()
        if known != before:
            click.echo(_line(run, True, (known - before) / (at - seen)))
            before, seen, state = known, at, run.state
    run = Run.open(store)  # with outcomes between the last look and the end
    if (_known(run.progress), run.state) != (before, state):
        click.echo(_line(run, False))
    return run


def _known(progress: Progress) -> int:
    return progress.done + progress.failed


def _show_provenance(facts: dict[str, Any]) -> None:
    options = ", ".join(f"{name} {value}" for name, value in facts["options"].items() if value)
    click.echo(f"seed {facts['seed']}; {options}")
    for code in facts["codes"]:
        packages = ", ".join(f"{n} {v}" for n, v in code["versions"]["packages"].items())
        python = code["versions"]["python"]
        click.echo(f"code {code['fingerprint']} since {code['since']}: Python {python}, {packages}")
    for session in facts["sessions"]:
        git = session["git"] or {}
        dirty = " (dirty)" if git.get("dirty") else ""
        commit = f", git {git['commit'][:9]}{dirty}" if git.get("commit") else ""
        where = session["conductor"].get("scheduler") or session["conductor"]["conductor"]
        click.echo(
            f"from {session['start']} to {session['end'] or '?'}: {session['user']}@"
            f"{session['host']}, process {session['pid']}{commit}, {where}"
        )
    for worker, work in facts["workers"].items():
        name = worker or "no worker"
        click.echo(f"  {name}: {work['electrons']:,} electrons, {work['seconds']:,.1f} s")


@click.command()
@click.argument("store", metavar="DIR")
@click.option(
    "--atom",
    "target",
    metavar="MODULE:ATOM",
    help="By default what the run was begun with, from the file where it was then.",
)
@click.option("--takeover", is_flag=True, help="From another process that holds the store.")
@click.option("--accept-changes", is_flag=True, help="Although the atom or a package has changed.")
@click.option("--drop-corrupted", is_flag=True, help="Compute again what damaged files held.")
@click.option("--allow-pickle", is_flag=True, help="Read pickles in the store, which runs code.")
@click.option("--detach", is_flag=True, help="Let the cluster go on alone; needs --scheduler.")
@priority_option("as it was")
@cluster_options
def resume(
    store: str,
    target: str | None,
    takeover: bool,
    accept_changes: bool,
    drop_corrupted: bool,
    allow_pickle: bool,
    detach: bool,
    priority: int | None,
    place: ClusterOptions,
) -> None:
    """Go on with a run that is kept in a store.

    DIR is its store, a folder or a URL. What is done is kept, the rest is executed. SIGTERM
    suspends the run within seconds.

    \b
    Exit codes: 0 all done, 3 all done but some failed, 4 not all done.
    """  # noqa: D301 - click wants it
    if detach:
        _check_detachable(place)
    with heeding_termination(), errors_as_text():
        target = target or _known_target(store, allow_pickle)
        check_free(store, place, takeover=takeover)
        atoms = [load_atom(target)] if target else []
        with conductor_at(place) as conductor, Atomizer(conductor, *atoms) as atomizer:
            run = atomizer.attach(
                store,
                takeover=takeover,
                accept_changes=accept_changes,
                drop_corrupted=drop_corrupted,
                allow_pickle=allow_pickle,
                priority=priority,
            )
            if detach:
                run.detach()
            else:
                wait_for(run)
        p = run.progress
        click.echo(f"{run.store}: {run.state}, {_known(p):,} electrons, {p.failed:,} failed")
        if p.failed:
            show_failures(run)
    if not detach:
        raise SystemExit(exit_code(run))


def _check_detachable(place: ClusterOptions) -> None:
    """Raise `click.UsageError` where the workers end with this command."""
    if place.cluster is not None:
        raise click.UsageError(
            "--detach makes no sense with --cluster: its jobs, and with them the run, end with "
            "this command; give the --scheduler or --scheduler-file of one that goes on"
        )
    if place.target is None:
        raise click.UsageError(
            "--detach needs --scheduler or --scheduler-file: a local cluster ends with this command"
        )


def _known_target(store: str, allow_pickle: bool) -> str:
    target = stored_target(store)
    file = target.rpartition(":")[0]
    if target and os.path.exists(file):
        return target
    if allow_pickle:
        return ""
    what = f"{file} is gone" if target else "it was not made from a file"
    raise click.UsageError(
        f"where the atom of {store} is, is not known: {what}. Give --atom MODULE:ATOM, or "
        "--allow-pickle to run the copy that the store keeps"
    )
