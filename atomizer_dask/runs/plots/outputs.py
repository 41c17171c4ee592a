"""Outputs of a run against its inputs: lines with error bars, and heat maps.

pandas computes and matplotlib draws. xarray's own heat map would save some twenty lines, but places
the edges of cells on a logarithmic axis wrongly, and would make xarray a requirement of each plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from atomizer_dask.runs.plots.axis import AxisValues, places_of
from atomizer_dask.runs.plots.figure import (
    Heading,
    label,
    new_axes,
    pyplot,
    show_once,
    write_legend,
)
from atomizer_dask.runs.plots.roles import Roles, VaryingInputs, describe, names_of, values_of
from atomizer_dask.sweeps.sweep import Sweep

MOST_OUTPUTS = 12
MOST_POINTS = 2_000  # along a line
MOST_STEPS = 500  # along a side of a heat map
MOST_BARS = 200
MOST_MARKERS = 60
MOST_DOTS = 5_000


class Output(NamedTuple):
    """An output to draw: its name with a unit, and a number for each row."""

    name: str
    values: np.ndarray


class Cells(NamedTuple):
    """Mean and standard error of an output over electrons with equal inputs; NaN where missing."""

    mean: np.ndarray
    error: np.ndarray
    size: np.ndarray  # how many electrons, failed ones too


def plot(
    frame: pd.DataFrame,
    sweep: Sweep,
    heading: Heading,
    y: str | Sequence[str] | None,
    x: str | None,
    hue: str | None,
    over: str | Sequence[str] | None,
    ax: Any,
) -> Any:
    """Draw what `Run.plot` describes, and return the Axes, or the figure of several."""
    plt = pyplot("run.plot")
    outputs, left_out = _outputs(frame, sweep, heading, y)
    roles = VaryingInputs(heading.run_id, sweep, frame).roles(x, hue, over)
    picture = (_Lines if roles.across is None else _Map)(frame, roles)
    panels = _panels(plt, ax, len(outputs), picture)
    notes: dict[str, None] = {}
    for panel, output in zip(panels, outputs, strict=True):
        notes |= dict.fromkeys(picture.draw(panel, output))
    if left_out:
        notes[left_out] = None
    if all(panel is panels[0] for panel in panels):
        if len(outputs) > 1:
            picture.distinguish(panels[0], outputs)
        heading.write_over(panels[0], *notes)
        return panels[0]
    figure = panels[0].figure
    if ax is None:
        if picture.shared:
            _label_lowest(panels, picture.layout(len(panels))[1])
        heading.write_above(figure, *notes)
        show_once(plt, figure)
    return figure


def _outputs(
    frame: pd.DataFrame, sweep: Sweep, heading: Heading, y: str | Sequence[str] | None
) -> tuple[list[Output], str]:
    """Return the outputs to draw, and a note on those that are left out.

    Raises
    ------
    ValueError
        Where an output that is named in `y`, or every output, is not numbers.
    """
    names = (
        [y] if isinstance(y, str) else list(frame.columns.drop(names_of(sweep)) if y is None else y)
    )
    found = {name: values_of(frame, name) for name in names}
    wrong = [name for name, values in found.items() if values is None]
    if wrong and (y is not None or len(wrong) == len(found)):
        refused = ", ".join(f"{name} ({_what(frame[name])})" for name in wrong)
        raise ValueError(
            f"{heading.run_id} cannot draw {refused}: only numbers, booleans and durations can be "
            "drawn; return a number from the atom, or make one of run.to_frame(); arrays are in "
            "run.to_xarray()"
        )
    if not names:
        raise ValueError(f"{heading.run_id} has no outputs to draw: y=[] names none")
    drawn = [Output(name, values) for values, name in filter(None, found.values())]
    if y is not None or len(drawn) <= MOST_OUTPUTS:
        return drawn, ""
    note = f"the first {MOST_OUTPUTS} of {len(drawn)} outputs: y=[...] chooses others"
    return drawn[:MOST_OUTPUTS], note


def _what(column: pd.Series) -> str:
    present = column.dropna()
    is_plain = column.dtype == object and len(present)
    return type(present.iloc[0]).__name__ if is_plain else str(column.dtype)


def _panels(plt: Any, ax: Any, count: int, picture: _Lines | _Map) -> list[Any]:
    """Return an Axes for each output: those that are given, or new ones."""
    if isinstance(ax, Sequence | np.ndarray):
        given = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(given) != count:
            raise ValueError(f"ax has {len(given)} Axes for {count} outputs: give as many")
        return given
    if ax is None and count == 1:
        return [new_axes(plt)]
    if ax is None:
        rows, columns = picture.layout(count)
        width, height = plt.rcParams["figure.figsize"]
        size = width * (1 + 0.6 * (columns - 1)), height * (1 + 0.5 * (rows - 1))
        shape = {"squeeze": False, "layout": "constrained", "figsize": size}
        figure, axes = plt.subplots(rows, columns, **shape, **picture.shared)
        for spare in axes.flat[count:]:
            figure.delaxes(spare)
        return list(axes.flat[:count])
    if count > 1 and not picture.can_share:
        raise ValueError(
            f"{count} outputs cannot share one Axes here: choose one with y=, or give ax a list "
            "of as many Axes"
        )
    return [ax] * count


def _label_lowest(panels: list[Any], columns: int) -> None:
    """Label the shared x axis only below the lowest panel of each column."""
    for panel in panels[:-columns]:
        label(panel.xaxis, "")
        panel.tick_params(labelbottom=False)
    for panel in panels[-columns:]:
        panel.tick_params(labelbottom=True)


class _Lines:
    """Outputs as lines along an input; with `hue`, a line for each value of that input."""

    def __init__(self, frame: pd.DataFrame, roles: Roles) -> None:
        self._roles = roles
        self._x = places_of(roles.x, frame[roles.x], MOST_POINTS)
        self._hue: AxisValues | None = None
        if roles.hue is not None:
            self._hue = places_of(roles.hue, frame[roles.hue], MOST_POINTS)
        self.can_share = self._hue is None
        self.shared = {"sharex": True}
        self._handles: list[Any] = []

    def layout(self, count: int) -> tuple[int, int]:
        """Return rows and columns of panels."""
        columns = 1 if count <= 3 else 2 if count <= 8 else 3
        return -(-count // columns), columns

    def draw(self, ax: Any, output: Output) -> list[str]:
        """Draw an output, and return what the reader must know."""
        lines = 1 if self._hue is None else len(self._hue)
        codes = self._x.codes if self._hue is None else _joint(self._hue.codes, self._x)
        cells = _cells(output.values, codes, lines * len(self._x))
        shape = lines, len(self._x)
        handles = [
            self._line(ax, Cells(*each))
            for each in zip(*(column.reshape(shape) for column in cells), strict=True)
        ]
        self._x.mark(ax.xaxis)
        label(ax.yaxis, output.name)
        if self._hue is not None:
            texts = [f"{self._hue.name} = {text}" for text in self._hue.texts()]
            write_legend(ax, handles, texts)
        self._handles += handles
        bars = [describe(self._roles.over)] if np.isfinite(cells.error).any() else []
        return [*bars, self._x.note]

    def distinguish(self, ax: Any, outputs: list[Output]) -> None:
        """Add a legend of the outputs that share an Axes."""
        write_legend(ax, self._handles, [output.name for output in outputs])
        label(ax.yaxis, "")

    def _line(self, ax: Any, cells: Cells) -> Any:
        """Draw a line, with gaps where all electrons have failed."""
        known = cells.size > 0
        x, mean, error = self._x.values[known], cells.mean[known], cells.error[known]
        few = len(x) <= MOST_MARKERS
        joined = self._roles.joined
        style = {"linestyle": "-" if joined else "none"}
        style["marker"] = "o" if few else "" if joined else "."
        if few:
            style["markersize"] = "4"
        if not np.isfinite(error).any():
            return ax.plot(x, mean, **style)[0]
        if len(x) <= MOST_BARS or not joined:
            return ax.errorbar(x, mean, yerr=error, capsize=2, elinewidth=1, **style)
        (line,) = ax.plot(x, mean, **style)
        error = np.nan_to_num(error)
        ax.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.3, lw=0)
        return line


class _Map:
    """An output as the colours of a heat map, or of dots, along two inputs."""

    def __init__(self, frame: pd.DataFrame, roles: Roles) -> None:
        assert roles.across is not None
        self._roles = roles
        self._x = places_of(roles.x, frame[roles.x], MOST_DOTS)
        self._y = places_of(roles.across, frame[roles.across], MOST_DOTS)
        self._scattered = self._is_scattered()
        if not self._scattered:
            self._x = places_of(roles.x, frame[roles.x], MOST_STEPS)
            self._y = places_of(roles.across, frame[roles.across], MOST_STEPS)
        self.can_share = False
        self.shared: dict[str, Any] = {}

    def _is_scattered(self) -> bool:
        """Whether less than half of the cells are filled, by few enough points to draw as dots."""
        if self._x.note or self._y.note:
            return False
        codes = _joint(self._y.codes, self._x)
        filled = len(np.unique(codes[codes >= 0]))
        return 2 * filled < len(self._x) * len(self._y) and filled <= MOST_DOTS

    def layout(self, count: int) -> tuple[int, int]:
        """Return rows and columns of panels."""
        columns = min(count, 2 if count <= 4 else 3)
        return -(-count // columns), columns

    def draw(self, ax: Any, output: Output) -> list[str]:
        """Draw an output, and return what the reader must know."""
        shape = len(self._y), len(self._x)
        cells = _cells(output.values, _joint(self._y.codes, self._x), shape[0] * shape[1])
        mean = cells.mean.reshape(shape)
        if self._scattered:
            rows, columns = np.nonzero(np.isfinite(mean))
            x, y = self._x.numbers()[columns], self._y.numbers()[rows]
            drawn = ax.scatter(x, y, c=mean[rows, columns], s=16)
        else:
            drawn = ax.pcolormesh(self._x.edges(), self._y.edges(), mean)
        self._x.mark(ax.xaxis, each=True)
        self._y.mark(ax.yaxis, each=True)
        bar = ax.figure.colorbar(drawn, ax=ax)
        label(bar.ax.yaxis, output.name)
        over = self._roles.over
        averaged = (cells.size > 1).any()
        means = [f"mean over {', '.join(over)}" if over else "mean"] if averaged else []
        return [*means, self._x.note, self._y.note]

    def distinguish(self, ax: Any, outputs: list[Output]) -> None:
        """Do nothing: several outputs never share an Axes."""


def _joint(major: np.ndarray, minor: AxisValues) -> np.ndarray:
    """Return for each row the index of its combination of two inputs; -1 where one is missing."""
    return np.where((major < 0) | (minor.codes < 0), -1, major * len(minor) + minor.codes)


def _cells(values: np.ndarray, codes: np.ndarray, count: int) -> Cells:
    """Return mean and standard error by code."""
    known = codes >= 0
    grouped = pd.Series(values[known]).groupby(codes[known])
    mean, error = (
        each.reindex(range(count)).to_numpy() for each in (grouped.mean(), grouped.sem())
    )
    return Cells(mean, error, np.bincount(codes[known], minlength=count))
