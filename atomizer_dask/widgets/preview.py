"""The results of a run at a glance: the ends of its frame, and the distribution of one output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.display.text import plain
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.runs.run import Run
from atomizer_dask.store.layout import GOING
from atomizer_dask.store.stored_part import Part
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.widgets.format import cell, count_text

if TYPE_CHECKING:
    import pandas as pd

ROWS = 5  # at each end of the frame
COLUMNS = 12
ALL_ROWS = 500_000  # up to here, the chart is of all rows; else of a sample
SAMPLED = 20_000  # values
IN_MEMORY = 200  # parts of a run in memory that a sample is drawn from
READ = 6  # parts of a run with a store, which have to be read from it
BINS = 24
NARROW = 1e-13  # of the largest number: a smaller range cannot be divided into bins


def preview(run: Run, column: str = "") -> dict[str, Any]:
    """Return the first and last rows that have ended, and the distribution of an output.

    ``rows`` is the number of electrons that have ended. ``first`` and ``last`` are the ends of the
    frame; where ``some`` is True, they are rows of a sample. The ``caption`` of the ``chart`` says
    how many rows it shows. The result is empty while no electron has ended.

    Parameters
    ----------
    run
        The run.
    column
        Name of the output; the first numeric one where it is empty or not in the frame.
    """
    is_going = run.state in GOING  # read first: electrons that end meanwhile appear the next time
    pieces = run.parts_since(0)
    if not any(map(len, pieces)):
        return {}
    count = sum(len(piece) - _tried_again(piece) for piece in pieces)
    some = _some(run, pieces)
    sample = run.frame_of(_sampled(some))
    outputs = [name for name in sample.columns if name not in run.sweep.names]
    column = _chosen(sample, outputs, column)
    whole = count <= max(ALL_ROWS, len(sample))
    values = run.to_frame(columns=[column])[column] if whole and column else None
    if values is None and column:
        values = sample[column]
    ends = _ends(_outermost(run, pieces) if whole else some)
    table = run.frame_of(ends)
    shown = [*table.columns][:COLUMNS]
    rows = _rows(table, shown)
    chart = None if values is None else _chart(values)
    if chart is not None and values is not None:
        rows_now = len(values) if whole else count  # more may have ended since `count`
        chart["caption"] = _caption(chart["of"], len(values), rows_now, whole, is_going)
    return {
        "columns": [plain(str(name)) for name in shown],
        "hidden": len(table.columns) - len(shown),
        "first": rows[:ROWS],
        "last": rows[ROWS:][-ROWS:],
        "rows": count,
        "some": not whole and len(rows) < count,
        "outputs": [plain(str(name)) for name in outputs],
        "column": plain(column),
        "chart": chart,
    }


def _tried_again(piece: Part) -> int:
    return 0 if piece.replaced is None else int(piece.replaced.sum())


def _chosen(sample: pd.DataFrame, outputs: list[str], column: str) -> str:
    wanted = [name for name in outputs if plain(str(name)) == column]
    numeric = [name for name in outputs if _is_number(sample[name])]
    return (wanted or numeric or outputs or [""])[0]


def _caption(of: int, sampled: int, count: int, whole: bool, is_going: bool) -> str:
    """Return the caption of a chart: how many rows or values it shows, and of how many."""
    rows = f"{count_text(count)} row{'' if count == 1 else 's'}{' so far' if is_going else ''}"
    if not whole:
        rows = f"a sample of {count_text(sampled)} of {rows}"
    elif of == sampled:
        rows = f"all {rows}" if count > 1 else rows
    return rows if of == sampled else f"{count_text(of)} values in {rows}"


def _some(run: Run, pieces: Sequence[Part]) -> list[RunPart]:
    """Return all parts with outcomes, or a limited number of them at even distances."""
    limit = READ if run.store is not None else IN_MEMORY
    if len(pieces) > limit:
        chosen = np.linspace(0, len(pieces) - 1, limit).round().astype(int)
        pieces = [pieces[index] for index in chosen.tolist()]
    return run.rows_of(pieces)


def _outermost(run: Run, pieces: Sequence[Part]) -> list[RunPart]:
    """Return parts that include the first and last rows; of the store only their files are read."""
    here = run.rows_of([piece for piece in pieces if isinstance(piece, RunPart)])
    return [*here, *run.outermost_of_store(ROWS)]


def _sampled(parts: list[RunPart]) -> list[RunPart]:
    total = sum(map(len, parts))
    step = -(-total // SAMPLED)
    return parts if step <= 1 else [_every(part, step) for part in parts]


def _every(part: RunPart, step: int) -> RunPart:
    wanted = np.zeros(len(part), dtype=bool)
    wanted[::step] = True
    return part.pick(wanted)


def _ends(parts: Sequence[RunPart]) -> list[RunPart]:
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
    """Return the first and last positions of a part, which may be the first or last of all."""
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
    """Return a histogram of numbers, or else the counts of the most frequent values."""
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
    """Return whether a value is an array or a list, which a chart of counts cannot show."""
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
    """Return the counts of a histogram; integers of a small range have a bin each."""
    if high - low < BINS and (numbers == np.round(numbers)).all():
        counts, _ = np.histogram(numbers, bins=np.arange(low, high + 2) - 0.5)
    elif np.ptp(scaled) > NARROW:
        counts, _ = np.histogram(scaled, bins=BINS)
    else:
        return [len(numbers)]
    bars: list[int] = counts.tolist()
    return bars
