"""Drawing a sample of electrons to execute again, and comparing their results."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.execution.batch import AttemptTerms
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.store.stored_part import Part
from atomizer_dask.sweeps.columns import numpy_values

if TYPE_CHECKING:
    import pandas as pd


Lots = list[tuple[np.ndarray, AttemptTerms]]
COLUMNS = ["compared", "equal", "close", "different", "largest", "first"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of the electrons of a run that ended well.

    Parameters
    ----------
    parts
        Their outcomes.
    """

    parts: list[RunPart]

    @property
    def positions(self) -> np.ndarray:
        """Positions of the electrons, sorted."""
        found = [numpy_values(part.positions) for part in self.parts]
        return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def lots(self, timeout: float | None) -> Lots:
        """Return the electrons by worker, on terms that exclude the worker that executed them."""
        by_worker: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        for part in self.parts:
            by_worker[part.outcome.worker].append(numpy_values(part.positions))
        return [
            (np.concatenate(those), AttemptTerms(timeout=timeout, excluded=(worker,)))
            for worker, those in by_worker.items()
        ]


def draw(parts: Iterable[Part], n: int, seed: int | None) -> Sample:
    """Draw good electrons at random, each as likely as any other.

    Parameters
    ----------
    parts
        Parts of the run.
    n
        Size of the sample; all electrons where there are fewer.
    seed
        Seed of the draw; None for another one each time.
    """
    parts = list(parts)
    counts = np.array([_good(part) for part in parts], dtype=np.int64)
    total = int(counts.sum())
    chosen = sorted(random.Random(seed).sample(range(total), min(n, total)))  # noqa: S311
    starts = np.concatenate([[0], np.cumsum(counts)])
    drawn: list[RunPart] = []
    for number, part in enumerate(parts):
        inside = [c - starts[number] for c in chosen if starts[number] <= c < starts[number + 1]]
        if inside:
            drawn += _rows(part, np.array(inside))
    return Sample(drawn)


def _good(part: Part) -> int:
    return len(part) - len(part.failed_positions())


def _rows(part: Part, rows: np.ndarray) -> list[RunPart]:
    """Return some good electrons of a part; `rows` counts its good electrons from 0."""
    found = []
    start = 0
    for each in part.load():
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
        Frames on the same index. A row of `again` may be missing or failed, and is different then.
    outputs
        The columns to compare.
    tolerance
        Relative difference up to which numbers are close.

    Returns
    -------
    pandas.DataFrame
        A row per column: how many were compared, equal to the last bit, close, different; the
        largest relative difference, and the index label of the first electron that is not equal.
    """
    import pandas as pd

    again = again.reindex(before.index)
    rows = {}
    for name in outputs:
        one = before[name]
        other = again[name] if name in again else pd.Series(None, index=before.index, dtype=object)
        equal = np.array([_is_same(a, b) for a, b in zip(one, other, strict=True)], dtype=bool)
        pairs = zip(one, other, equal, strict=True)
        gaps = np.array([0.0 if same else _gap(a, b) for a, b, same in pairs])
        close = ~equal & (gaps <= tolerance)
        different = ~equal & ~close
        off = before.index[~equal]
        rows[name] = {
            "compared": len(one),
            "equal": int(equal.sum()),
            "close": int(close.sum()),
            "different": int(different.sum()),
            "largest": float(np.max(gaps, initial=0.0)),
            "first": off[0] if len(off) else None,
        }
    compared = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    firsts = [row["first"] for row in rows.values()]
    compared["first"] = pd.Series(firsts, index=compared.index, dtype=object)  # labels as they are
    return compared


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same to the last bit; any NaN is the same as any other."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype == object:
            return all(map(_is_same, a.ravel().tolist(), b.ravel().tolist()))
        return a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, float | complex | np.inexact):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes() or bool(a != a and b != b)
    return a is b or bool(a == b)


def _gap(a: Any, b: Any) -> float:
    """Return the difference of two values relative to the larger; infinity if not numbers."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((_gap(a[key], b[key]) for key in a), default=0.0)
    try:
        one, other = np.asarray(a, dtype=complex), np.asarray(b, dtype=complex)
    except (TypeError, ValueError):
        return np.inf
    if one.shape != other.shape:
        return np.inf
    with np.errstate(all="ignore"):
        scale = np.maximum(np.abs(one), np.abs(other))
        gap = np.abs(one - other) / np.where(scale > 0, scale, 1.0)
    gap = np.atleast_1d(gap)
    gap[np.atleast_1d((one == other) | (np.isnan(one) & np.isnan(other)))] = 0.0
    largest = float(np.max(gap, initial=0.0))
    return np.inf if np.isnan(largest) else largest
