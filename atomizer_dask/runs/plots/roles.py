"""The inputs along which a picture of outputs is drawn, and those over which it averages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.runs.plots.axis import as_ordered, distinct_of
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep

REPLICAS = {"replica", "replicate", "repeat", "trial", "seed", "sample"}
MOST_LINES = 10  # as many as matplotlib has colours


@dataclass(frozen=True, slots=True)
class Roles:
    """The role of each input in a picture.

    Parameters
    ----------
    x
        The input along the x axis.
    across
        The input along the y axis of a heat map; None where lines are drawn.
    hue
        The input with a line per value.
    over
        VaryingInputs to average over.
    joined
        Whether a line joins neighbours along `x`; else there are markers alone.
    """

    x: str
    across: str | None = None
    hue: str | None = None
    over: tuple[str, ...] = ()
    joined: bool = True


def names_of(sweep: Sweep) -> list[str]:
    """Return the names of all inputs, also of those that only a later row of a stream has."""
    rows = sweep.rows if isinstance(sweep, Streamed) else []
    return list(dict.fromkeys([*sweep.names, *(name for row in rows for name in row)]))


class VaryingInputs:
    """The inputs of the electrons that have ended, as far as they vary.

    Parameters
    ----------
    run_id
        Id of the run, for messages.
    sweep
        Sweep of the run.
    frame
        Its frame: a row per electron that has ended.
    """

    def __init__(self, run_id: str, sweep: Sweep, frame: pd.DataFrame) -> None:
        self._run_id = run_id
        self._frame = frame
        self.names = [name for name in names_of(sweep) if name in frame.columns]
        self.is_grid = isinstance(sweep, Grid)
        sizes = dict(zip(sweep.names, sweep.shape, strict=True)) if isinstance(sweep, Grid) else {}
        self._codes = cache(self._codes_of)
        self.varying = [name for name in self.names if sizes.get(name, self.count(name)) > 1]

    def _codes_of(self, name: str) -> np.ndarray:
        return distinct_of(self._frame[name])[0]

    def count(self, name: str) -> int:
        """Return how many distinct values an input has."""
        return int(self._codes(name).max(initial=-1)) + 1

    def is_ordered(self, name: str) -> bool:
        """Return whether an input is a number or a time."""
        return as_ordered(name, self._frame[name])[0] is not None

    def determine(self, known: Iterable[str], name: str) -> bool:
        """Return whether an input is determined by the `known` ones: equal where these are."""
        before = np.zeros(len(self._frame), dtype=np.int64)
        for each in known:
            before = self._combined(before, each)
        count = int(before.max(initial=-1)) + 1
        return int(self._combined(before, name).max(initial=-1)) + 1 == count

    def _combined(self, codes: np.ndarray, name: str) -> np.ndarray:
        joined = codes * (self.count(name) + 1) + self._codes(name)
        combined: np.ndarray = pd.factorize(joined)[0]
        return combined

    def roles(self, x: str | None, hue: str | None, over: str | Sequence[str] | None) -> Roles:
        """Return the role of each input: as the user says, and by default for the others.

        Raises
        ------
        KeyError
            Where there is no such input.
        ValueError
            Where the roles contradict each other, or more inputs vary than can be drawn.
        """
        averaged = [over] if isinstance(over, str) else list(over or ())
        chosen = [name for name in (x, hue) if name is not None]
        self._check(chosen, averaged)
        averaged += [
            name
            for name in self.varying
            if name.lower() in REPLICAS and name not in [*chosen, *averaged]
        ]
        taken = [*chosen, *averaged]
        free = self._without_doubles([name for name in self.varying if name not in taken])
        if x is None and hue is None and len(free) == 2:
            over = tuple(name for name in averaged if name in self.varying)
            return Roles(free[0], across=free[1], over=over)
        if x is None:
            x = self._first(free, averaged, hue, given=bool(over))
        averaged = [name for name in averaged if name != x and name in self.varying]
        return self._lines(x, hue, free, averaged)

    def _lines(self, x: str, hue: str | None, free: list[str], averaged: list[str]) -> Roles:
        """Return the roles for lines along `x`."""
        chosen = [x] if hue is None else [x, hue]
        others = [name for name in free if name not in chosen]
        rest = [name for name in others if not self.determine(chosen, name)]
        if hue is None and len(rest) == 1 and self.count(rest[0]) <= MOST_LINES:
            hue = rest.pop()
            others.remove(hue)
        if rest:
            raise ValueError(self._too_many(x, hue, rest, averaged))
        if hue is not None and self.count(hue) > MOST_LINES:
            raise ValueError(
                f"hue={hue!r} has {self.count(hue):,} values, and a line for each: at most "
                f"{MOST_LINES} can be seen apart; draw along it, x={hue!r}, or average, "
                f"over={hue!r}"
            )
        alone = self.is_grid or not any(map(self.is_ordered, others))
        return Roles(x, hue=hue, over=tuple(averaged), joined=alone and self.is_ordered(x))

    def _check(self, chosen: list[str], averaged: list[str]) -> None:
        for name in [*chosen, *averaged]:
            if name not in self.names:
                raise KeyError(
                    f"{self._run_id} has no input {name!r}, its inputs are "
                    f"{', '.join(self.names) or 'none'}"
                )
        doubles = {name for name in chosen if [*chosen, *averaged].count(name) > 1}
        if doubles:
            raise ValueError(f"{doubles.pop()!r} can be only one of x, hue and over")

    def _without_doubles(self, free: list[str]) -> list[str]:
        """Return inputs without categories that another input determines, as labels of it do."""
        if self.is_grid:
            return free
        ordered = [name for name in free if self.is_ordered(name)]
        kept = list(ordered)
        for name in free:
            if name not in ordered and not any(self.determine([other], name) for other in kept):
                kept.append(name)
        return [name for name in free if name in kept]

    def _first(self, free: list[str], averaged: list[str], hue: str | None, *, given: bool) -> str:
        """Return the default input for the x axis."""
        ordered = [name for name in free if self.is_ordered(name)]
        spare = [*ordered, *free] or ([] if given else averaged)
        spare = spare or [name for name in self.names if name not in [*averaged, hue]]
        if not spare:
            raise ValueError(
                f"{self._run_id} has no other input than {', '.join(self.names)}: there is nothing "
                "left to draw along; leave out hue= and over=, or give x="
            )
        return spare[0]

    def _too_many(self, x: str, hue: str | None, rest: list[str], averaged: list[str]) -> str:
        varying = ", ".join(f"{name} ({self.count(name):,} values)" for name in self.varying)
        others = sorted({*rest, *([] if hue is None else [hue])}, key=self.count)
        line = hue or next((name for name in others if self.count(name) <= MOST_LINES), None)
        over = [name for name in others if name != line]
        example = f"x={x!r}" + (f", hue={line!r}" if line else "")
        example += f", over={over!r}" if over else ""
        return (
            f"{self._run_id} varies {varying}: say what to draw along, what to draw a line for "
            f"each of (at most {MOST_LINES}), and what to average over, as in run.plot({example})"
        )


def describe(over: Sequence[str]) -> str:
    """Return the note on what error bars show."""
    where = f" over {', '.join(over)}" if over else ""
    return f"mean ± standard error{where}"


def values_of(frame: pd.DataFrame, name: str) -> Any:
    """Return the values of an output as floats, and its name with a unit; None if not numbers.

    Booleans are 0 and 1, and durations are seconds.
    """
    column = frame[name]
    kind = getattr(column.dtype, "kind", "O")
    if kind == "m":
        return column.dt.total_seconds().to_numpy(), f"{name} (s)"
    if kind in "biuf" and not isinstance(column.dtype, pd.CategoricalDtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), name
    return None
