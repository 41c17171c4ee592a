"""The results of a run at a glance: the ends of its frame, and how one output is distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.brief import plain
from atomizer_dask.columns import numpy_values
from atomizer_dask.frame import Part
from atomizer_dask.run import Run
from atomizer_dask.widgets.text import cell

if TYPE_CHECKING:
    import pandas as pd

ROWS = 5  # at each end of the frame
COLUMNS = 12
SAMPLED = 20_000  # values
LOOKED_AT = 200  # pieces of the results; fewer where they have to be read from a store
READ = 6
BINS = 24
NARROW = 1e-13  # of the largest number: in less there are no bins to tell apart


def preview(run: Run, column: str = "") -> dict[str, Any]:
    """Return the first and last rows that have ended, and the distribution of an output.

    Parameters
    ----------
    run
        Whose.
    column
        Which output; the first one of numbers where it is empty or none of the frame's.
    """
    parts = _some(run)
    if not parts:
        return {}
    sample = run.frame_of(_sampled(parts))
    outputs = [name for name in sample.columns if name not in run.sweep.names]
    wanted = [name for name in outputs if plain(str(name)) == column]
    if wanted:
        column = wanted[0]
    else:
        numeric = [name for name in outputs if _is_number(sample[name])]
        column = (numeric or outputs or [""])[0]
    ends = run.frame_of(_ends(parts))
    shown = [*ends.columns][:COLUMNS]
    rows = _rows(ends, shown)
    return {
        "columns": [plain(str(name)) for name in shown],
        "hidden": len(ends.columns) - len(shown),
        "first": rows[:ROWS],
        "last": rows[ROWS:][-ROWS:],
        "outputs": [plain(str(name)) for name in outputs],
        "column": plain(column),
        "chart": _chart(sample[column]) if column else None,
    }


def _some(run: Run) -> list[Part]:
    """Return some of what has ended: all the pieces there are, or as many evenly chosen ones."""
    pieces = run.parts_since(0)
    limit = READ if run.store is not None else LOOKED_AT
    if len(pieces) > limit:
        chosen = np.linspace(0, len(pieces) - 1, limit).round().astype(int)
        pieces = [pieces[index] for index in chosen.tolist()]
    return run.rows_of(pieces)


def _sampled(parts: list[Part]) -> list[Part]:
    total = sum(map(len, parts))
    step = -(-total // SAMPLED)
    return parts if step <= 1 else [_every(part, step) for part in parts]


def _every(part: Part, step: int) -> Part:
    wanted = np.zeros(len(part), dtype=bool)
    wanted[::step] = True
    return part.pick(wanted)


def _ends(parts: Sequence[Part]) -> list[Part]:
    """Return the electrons that come first and last in the sweep."""
    if sum(map(len, parts)) <= 2 * ROWS:
        return list(parts)
    known = [numpy_values(_first_and_last(part.positions)) for part in parts]
    candidates = np.sort(np.concatenate(known))
    low, high = candidates[ROWS - 1], candidates[-ROWS]
    ends = []
    for part, mine in zip(parts, known, strict=True):
        if (mine <= low).any() or (mine >= high).any():
            positions = numpy_values(part.positions)
            ends.append(part.pick((positions <= low) | (positions >= high)))
    return ends


def _first_and_last(positions: range | np.ndarray) -> range | np.ndarray:
    """Return which of the positions may be among the first or last of all."""
    if len(positions) <= 2 * ROWS:
        return positions
    if isinstance(positions, range):
        return np.array([*positions[:ROWS], *positions[-ROWS:]])
    ends = np.partition(positions, (ROWS - 1, len(positions) - ROWS))
    return np.concatenate([ends[:ROWS], ends[-ROWS:]])


def _rows(frame: pd.DataFrame, columns: Sequence[str]) -> list[list[str]]:
    texts = [[cell(value, 24) for value in frame[name]] for name in columns]
    return [
        [cell(label, 24), *(text[position] for text in texts)]
        for position, label in enumerate(frame.index)
    ]


def _is_number(values: pd.Series) -> bool:
    return values.dtype.kind in "iuf" or str(values.dtype).startswith(("Int", "UInt", "Float"))


def _chart(values: pd.Series) -> dict[str, Any] | None:
    """Return bars of a histogram, or of the most frequent values where they are no numbers."""
    present = values.dropna()
    if not len(present):
        return None
    if _is_number(values):
        numbers = present.to_numpy(dtype=float)
        return _histogram(numbers[np.isfinite(numbers)])
    if any(map(_is_nested, present)):
        return None
    counts = Counter(cell(value, 24) for value in present).most_common(10)
    return {
        "kind": "counts",
        "labels": [label for label, _ in counts],
        "bars": [count for _, count in counts],
        "of": len(present),
    }


def _is_nested(value: Any) -> bool:
    """Return whether there is no sense in counting how often a value comes."""
    return isinstance(value, np.ndarray | list | tuple)


def _histogram(numbers: np.ndarray) -> dict[str, Any] | None:
    if not len(numbers):
        return None
    low, high = float(numbers.min()), float(numbers.max())
    scale = max(abs(low), abs(high)) or 1.0  # so that nothing overflows
    scaled = numbers / scale
    return {
        "kind": "histogram",
        "bars": _bars(numbers, scaled, low, high),
        "labels": [cell(low), cell(high)],
        "mean": cell(float(scaled.mean()) * scale),
        "spread": cell(float(scaled.std()) * scale),
        "of": len(numbers),
    }


def _bars(numbers: np.ndarray, scaled: np.ndarray, low: float, high: float) -> list[int]:
    """Return how many numbers are in each bin: one bin for each of a few whole numbers."""
    if high - low < BINS and (numbers == np.round(numbers)).all():
        counts, _ = np.histogram(numbers, bins=np.arange(low, high + 2) - 0.5)
    elif np.ptp(scaled) > NARROW:
        counts, _ = np.histogram(scaled, bins=BINS)
    else:
        return [len(numbers)]
    bars: list[int] = counts.tolist()
    return bars
