"""Pictures of when and how long electrons ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from atomizer_dask.display.text import shorten
from atomizer_dask.runs.plots.figure import (
    FAILED_COLOUR,
    Heading,
    label,
    new_axes,
    pyplot,
    write_legend,
)
from atomizer_dask.runs.plots.schedule import Durations, Schedule, Spans, schedule

LONGEST_WORKER = 32
MOST_WORKERS = 40  # whose names are written
BINS = 60
LOG_SPREAD = 100
_UNITS = ((86_400.0, 3 * 86_400, "days"), (3600.0, 3 * 3600, "hours"), (60.0, 300, "minutes"))


def timeline(
    spans: Sequence[Spans], heading: Heading, lost: Mapping[str, datetime], ax: Any
) -> Any:
    """Draw what `Run.timeline` describes, and return the Axes."""
    plt = pyplot("run.timeline")
    plan = schedule(spans)
    if not plan.lanes:
        raise ValueError(
            f"no electron of {heading.run_id} has run on a worker: all that have ended were "
            "cancelled or refused before; run.failures says why"
        )
    if ax is None:
        ax = new_axes(plt, 8.0, float(np.clip(1.8 + 0.3 * len(plan.lanes), 2.6, 12.0)))
    unit, named = _unit(max(lane.ends.max() for lane in plan.lanes))
    middles = _draw_lanes(ax, plan, unit)
    drawn = _mark_failures(ax, plan, middles, unit)
    drawn |= _mark_losses(ax, plan, middles, unit, lost)
    _name_workers(ax, plan, middles)
    began = datetime.fromtimestamp(plan.began / 1e9, UTC)
    label(ax.xaxis, f"{named} since {began:%Y-%m-%d %H:%M:%S} UTC")
    if drawn:
        write_legend(ax, drawn.values(), drawn, loc="upper left", bbox_to_anchor=(1, 1))
    heading.write_over(ax, f"{len(middles):,} worker{'' if len(middles) == 1 else 's'}")
    return ax


def _unit(seconds: float) -> tuple[float, str]:
    return next(((unit, name) for unit, least, name in _UNITS if seconds > least), (1.0, "seconds"))


def _draw_lanes(ax: Any, plan: Schedule, unit: float) -> dict[str, tuple[float, float]]:
    """Draw the spans, and return the lowest and highest y of the lanes of each worker."""
    reach: dict[str, tuple[float, float]] = {}
    bottom = 0.0
    for lane in plan.lanes:
        bottom += 0.0 if lane.worker in reach else 0.25
        bars = np.column_stack([lane.starts, lane.ends - lane.starts]) / unit
        ax.broken_barh(bars, (bottom, 0.9), facecolor="C0", edgecolor="C0", linewidth=0.5)
        reach[lane.worker] = reach.get(lane.worker, (bottom, 0))[0], bottom + 0.9
        bottom += 1.0
    ax.set_ylim(bottom + 0.15, 0.0)  # the first worker on top
    ax.margins(x=0.01)
    return reach


def _mark_failures(
    ax: Any, plan: Schedule, reach: dict[str, tuple[float, float]], unit: float
) -> dict[str, Any]:
    """Mark failures, and return the marks by their text in the legend."""
    drawn = {}
    lows, highs, times = [], [], []
    for worker, failed in plan.failed.items():
        times.append(failed / unit)
        lows.append(np.full(len(failed), reach[worker][0]))
        highs.append(np.full(len(failed), reach[worker][1]))
    if any(map(len, times)):
        bounds = np.concatenate(lows), np.concatenate(highs)
        drawn["failed"] = ax.vlines(np.concatenate(times), *bounds, color=FAILED_COLOUR, lw=1)
    where = [(t / unit, np.mean(reach[w])) for w, killed in plan.killed.items() for t in killed]
    if where:
        style = {"marker": "X", "s": 70, "c": FAILED_COLOUR, "edgecolors": "white", "zorder": 3}
        drawn["process died"] = ax.scatter(*zip(*where, strict=True), **style)
    return drawn


def _mark_losses(
    ax: Any,
    plan: Schedule,
    reach: dict[str, tuple[float, float]],
    unit: float,
    lost: Mapping[str, datetime],
) -> dict[str, Any]:
    """Mark when workers with lanes were lost, and return the marks by their text in the legend."""
    where = [
        ((time.timestamp() - plan.began / 1e9) / (unit / 1e9), np.mean(reach[worker]))
        for worker, time in lost.items()
        if worker in reach
    ]
    if not where:
        return {}
    style = {"marker": "X", "s": 70, "c": "0.4", "edgecolors": "white", "zorder": 3}
    return {"worker lost": ax.scatter(*zip(*where, strict=True), **style)}


def _name_workers(ax: Any, plan: Schedule, reach: dict[str, tuple[float, float]]) -> None:
    every = -(-len(reach) // MOST_WORKERS)
    names = list(reach)[::every]
    shown = [shorten(name.removeprefix("tcp://"), LONGEST_WORKER) for name in names]
    middles = [float(np.mean(reach[name])) for name in names]
    ax.set_yticks(middles, labels=shown, parse_math=False, fontsize="small")
    label(ax.yaxis, "worker")


def durations(found: Sequence[Durations], heading: Heading, ax: Any) -> Any:
    """Draw what `Run.durations` describes, and return the Axes."""
    plt = pyplot("run.durations")
    good = np.concatenate([each.good for each in found]) / 1e9
    failed = np.concatenate([each.failed for each in found]) / 1e9
    if not len(good) + len(failed):
        raise ValueError(
            f"no electron of {heading.run_id} has run on a worker: all that have ended were "
            "cancelled or refused before; run.failures says why"
        )
    ax = new_axes(plt) if ax is None else ax
    bins, low = _bins(np.concatenate([good, failed]))
    if _is_wide(bins):
        ax.set_xscale("log")
    if len(good):
        ax.hist(np.maximum(good, low), bins, color="C0", label="ended well")
    if len(failed):
        ax.hist(np.maximum(failed, low), bins, color=FAILED_COLOUR, alpha=0.8, label="failed")
    _mark_quantiles(ax, good if len(good) else failed, of_some=bool(len(good) and len(failed)))
    _label_durations(ax, found, len(good) + len(failed), heading)
    return ax


def _bins(seconds: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the edges of bins, and the least duration to draw, which replaces shorter ones."""
    low, high = float(seconds.min()), float(seconds.max())
    if high > LOG_SPREAD * low:
        positive = seconds[seconds > 0]
        low = float(positive.min()) if len(positive) else 0.0
    if high <= LOG_SPREAD * low:
        return np.linspace(low, high, BINS + 1) if high > low else np.array([0.9, 1.1]) * high, low
    return np.geomspace(low, high, BINS + 1), low


def _is_wide(bins: np.ndarray) -> bool:
    return bool(bins[0] > 0 and bins[-1] > LOG_SPREAD * bins[0])


def _mark_quantiles(ax: Any, seconds: np.ndarray, *, of_some: bool) -> None:
    from matplotlib.ticker import EngFormatter

    written, whose = EngFormatter("s"), " of what ended well" if of_some else ""
    for share, name, style in ((0.5, "median", "-"), (0.95, "95 %", "--")):
        value = float(np.quantile(seconds, share))
        text = f"{name}: {written(float(f'{value:.3g}'))}{whose}"
        ax.axvline(value, color="0.2", ls=style, lw=1, label=text)


def _label_durations(ax: Any, found: Sequence[Durations], calls: int, heading: Heading) -> None:
    from matplotlib.ticker import EngFormatter

    electrons = sum(each.electrons for each in found)
    ax.xaxis.set_major_formatter(EngFormatter("s"))
    shared = calls < electrons
    label(ax.xaxis, "duration of a call" if shared else "duration of an electron")
    label(ax.yaxis, "calls" if shared else "electrons")
    write_legend(ax, *ax.get_legend_handles_labels())
    heading.write_over(ax, f"executed in {calls:,} calls" if shared else "")
