"""Measure every figure, and every peer, and say which figures are reached."""

import json
import os
import platform
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks import fresh, report
from benchmarks.figures import FIGURES
from benchmarks.peers import PEERS, electrons_per_second

Results = dict[str, Any]


@click.command(help=__doc__)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*FIGURES, "peers", *(f"peers:{name}" for name in PEERS)]),
    help="Measure only this one; may be given several times.",
)
@click.option("--repeats", default=5, show_default=True, help="Of each figure.")
@click.option("--scale", default=1.0, show_default=True, help="Of the work: below 1 for a try.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all samples here.")
def main(only: tuple[str, ...], repeats: int, scale: float, file: Path | None) -> None:
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}"
    click.echo(f"{where}, scale {scale:g}, {repeats} repeats\n")
    figures = [name for name in FIGURES if not only or name in only]
    peers = [name for name in PEERS if not {"peers", f"peers:{name}"}.isdisjoint(only) or not only]
    results = {
        "machine": where,
        "scale": scale,
        "figures": measure_figures(figures, scale, repeats),
        "peers": measure_peers(peers, scale, repeats),
    }
    if file is not None:
        file.write_text(json.dumps(results, indent=1))
    sys.exit(not all(result["ok"] for result in results["figures"].values()))


def measure_figures(names: list[str], scale: float, repeats: int) -> Results:
    results: Results = {}
    for name in names:
        figure = FIGURES[name]
        if not results:
            click.echo(report.figures_head())
        try:
            samples = figure.measure(scale, repeats)
        except RuntimeError as error:
            click.echo(report.failed_line(figure, str(error)))
            results[name] = {"ok": False, "failed": str(error)}
            continue
        click.echo(report.figure_lines(figure, samples))
        ok = all(limit.holds(samples) for limit in figure.limits)
        results[name] = {"ok": ok, "samples": samples}
    return results


def measure_peers(names: list[str], scale: float, repeats: int) -> Results:
    results: Results = {}
    ours = None
    for name in names:
        peer = PEERS[name]
        if not results:
            click.echo(report.peers_head())
        if not peer.version:
            click.echo(report.absent_line(peer, "not installed"))
            results[name] = {"failed": "not installed"}
            continue
        try:
            samples = fresh.measure(electrons_per_second, name=name, scale=scale, repeats=repeats)
        except RuntimeError as error:
            click.echo(report.absent_line(peer, f"did not run: {error}"))
            results[name] = {"failed": str(error)}
            continue
        click.echo(report.peer_line(peer, samples, ours))
        ours = median(s["value"] for s in samples) if name == "ours" else ours
        results[name] = {"version": peer.version, "samples": samples}
    return results


if __name__ == "__main__":
    main()
