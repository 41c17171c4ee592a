"""Executing a sample of electrons again, and comparing what they give."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.batch import Terms
from atomizer_dask.columns import numpy_values
from atomizer_dask.frame import Part
from atomizer_dask.stored import StoredPart

if TYPE_CHECKING:
    import pandas as pd

Lots = list[tuple[np.ndarray, Terms]]
COLUMNS = ["compared", "equal", "close", "different", "largest", "first"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some good electrons of a run.

    Parameters
    ----------
    parts
        What became of them.
    """

    parts: list[Part]

    @property
    def positions(self) -> np.ndarray:
        """Which electrons they are, in order."""
        found = [numpy_values(part.positions) for part in self.parts]
        return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def lots(self, timeout: float | None) -> Lots:
        """Return them such that each is executed elsewhere than before, where that is possible."""
        by_worker: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        for part in self.parts:
            by_worker[part.outcome.worker].append(numpy_values(part.positions))
        return [
            (np.concatenate(those), Terms(timeout=timeout, avoid=(worker,)))
            for worker, those in by_worker.items()
        ]


def draw(parts: Iterable[Part | StoredPart], n: int, seed: int | None) -> Sample:
    """Draw good electrons at random, each as likely as any other.

    Parameters
    ----------
    parts
        Of the run.
    n
        How many; all where there are fewer.
    seed
        Of the choice.
    """
    parts = list(parts)
    counts = np.array([_good(part) for part in parts], dtype=np.int64)
    total = int(counts.sum())
    chosen = sorted(random.Random(seed).sample(range(total), min(n, total)))  # noqa: S311
    starts = np.concatenate([[0], np.cumsum(counts)])
    drawn: list[Part] = []
    for number, part in enumerate(parts):
        inside = [c - starts[number] for c in chosen if starts[number] <= c < starts[number + 1]]
        if inside:
            drawn += _rows(part, np.array(inside))
    return Sample(drawn)


def _good(part: Part | StoredPart) -> int:
    return len(part) - len(part.failed_positions())


def _rows(part: Part | StoredPart, rows: np.ndarray) -> list[Part]:
    """Return some of the good electrons of a part."""
    found = []
    start = 0
    for each in part.load() if isinstance(part, StoredPart) else [part]:
        good = np.flatnonzero(~each.outcome.failed_mask())
        mine = rows[(rows >= start) & (rows < start + len(good))] - start
        start += len(good)
        if len(mine):
            mask = np.zeros(len(each), dtype=bool)
            mask[good[mine]] = True
            found.append(each.pick(mask))
    return found


def compare(
    before: pd.DataFrame, again: pd.DataFrame, outputs: Iterable[str], tolerance: float
) -> pd.DataFrame:
    """Compare two frames of the same electrons, column by column.

    Parameters
    ----------
    before, again
        On the same index; of `again`, rows may be missing or failed, and differ then.
    outputs
        The columns to compare.
    tolerance
        Relative: numbers are close that differ by no more than that.

    Returns
    -------
    pandas.DataFrame
        A row per column: how many were compared, equal to the last bit, close, different; the
        largest difference of numbers, and the index label of the first electron that differs.
    """
    import pandas as pd

    again = again.reindex(before.index)
    rows = {}
    for name in outputs:
        one = before[name]
        other = again[name] if name in again else pd.Series(None, index=before.index, dtype=object)
        equal = np.array([_is_same(a, b) for a, b in zip(one, other, strict=True)], dtype=bool)
        gaps = np.array([_gap(a, b) for a, b in zip(one, other, strict=True)])
        close = ~equal & (gaps <= tolerance)
        different = ~equal & ~close
        off = before.index[~equal]
        rows[name] = {
            "compared": len(one),
            "equal": int(equal.sum()),
            "close": int(close.sum()),
            "different": int(different.sum()),
            "largest": float(np.nanmax(gaps[~equal], initial=0.0)),
            "first": off[0] if len(off) else None,
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same to the last bit."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        one, other = np.asarray(a), np.asarray(b)
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and (
            one.tobytes() == other.tobytes() if one.dtype != object else bool(np.all(one == other))
        )
    try:
        return bool(a == b) or (a != a and b != b) or (a is b)
    except (TypeError, ValueError):  # NA has no truth; of other objects nothing is known
        return a is b


def _gap(a: Any, b: Any) -> float:
    """Return by how much two values differ, relative to the larger; infinity for no numbers."""
    try:
        one, other = np.asarray(a, dtype=complex), np.asarray(b, dtype=complex)
    except (TypeError, ValueError):
        return np.inf
    if one.shape != other.shape:
        return np.inf
    with np.errstate(all="ignore"):
        scale = np.maximum(np.abs(one), np.abs(other))
        gap = np.where(one == other, 0.0, np.abs(one - other) / np.where(scale > 0, scale, 1.0))
    largest = float(np.max(gap, initial=0.0))
    return np.inf if np.isnan(largest) else largest
