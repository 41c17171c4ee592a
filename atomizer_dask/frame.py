"""Properties to pandas: one row per electron, in sweep order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.columns import Values, as_objects, concatenate, numpy_values
from atomizer_dask.outcome import Outcome
from atomizer_dask.sweep import Sweep, numpy_or_extension, take

if TYPE_CHECKING:
    import pandas as pd

OUTPUT_PREFIX = "result_"
METADATA_PREFIX = "electron_"
_COPY_ON_WRITE = int(version("pandas").partition(".")[0]) >= 3


@dataclass(frozen=True, slots=True)
class Part:
    """The outcome of consecutive electrons of a run.

    Parameters
    ----------
    start
        Position of the first in the sweep.
    outcome
        What became of them.
    """

    start: int
    outcome: Outcome

    @property
    def stop(self) -> int:
        """Position after the last in the sweep."""
        return self.start + self.outcome.kept


def to_frame(
    sweep: Sweep, parts: Sequence[Part], run_id: str, *, metadata: bool = False
) -> pd.DataFrame:
    """Return inputs and outputs of the finished electrons, a row each, in sweep order.

    Parameters
    ----------
    sweep
        The inputs.
    parts
        The outcomes; none overlap.
    run_id
        From which the ids are made.
    metadata
        Add id, start, end, duration, worker and attempts.

    Notes
    -----
    An output with the name of an input gets the prefix ``result_``, and a column of metadata with
    the name of an input or output the prefix ``electron_``. Where electrons failed or an output
    is None, integers and booleans become pandas' nullable ``Int64`` and ``boolean``, and the rest
    has its usual missing value.
    """
    import pandas as pd

    parts = sorted(parts, key=lambda part: part.start)
    positions = _positions(parts)
    count = sweep.length
    whole = _is_whole(positions, count)
    outputs = _renamed(_outputs(parts), OUTPUT_PREFIX, sweep.names)
    if metadata:
        taken = (*sweep.names, *outputs)
        outputs |= _renamed(_metadata(parts, positions, run_id), METADATA_PREFIX, taken)
    if sweep.frame is not None and whole:
        given = sweep.frame.copy(deep=not _COPY_ON_WRITE)
        return pd.concat([given, _framed(outputs, given.index)], axis=1)
    index = sweep.index
    if index is None:
        index = pd.RangeIndex(count or 0) if whole else pd.Index(positions)
    elif not whole:
        index = index.take(positions)
    return _framed({**_inputs(sweep, positions), **outputs}, index)


def errors_frame(sweep: Sweep, parts: Sequence[Part]) -> pd.DataFrame:
    """Return inputs and failures of the failed electrons, on the index of the frame.

    Parameters
    ----------
    sweep
        The inputs.
    parts
        The outcomes; none overlap.
    """
    import pandas as pd

    failing = [
        part for part in sorted(parts, key=lambda part: part.start) if len(part.outcome.failed)
    ]
    positions = _join([np.asarray(p.outcome.failed, dtype=np.int64) + p.start for p in failing])
    columns = _inputs(sweep, positions)
    facts = {
        name: [getattr(p.outcome.failures[code], name) for p in failing for code in p.outcome.codes]
        for name in ("kind", "type", "message", "traceback")
    }
    more: dict[str, Any] = {
        name: pd.Series(values, dtype="str").array for name, values in facts.items()
    }
    more["attempts"] = np.ones(len(positions), dtype=np.int64)
    workers = [p.outcome.worker for p in failing for _ in range(len(p.outcome.failed))]
    more["worker"] = pd.Series(workers, dtype="str").array
    columns |= _renamed(more, METADATA_PREFIX, sweep.names)
    index = pd.Index(positions) if sweep.index is None else sweep.index.take(positions)
    return _framed(columns, index)


def _framed(columns: dict[str, Any], index: pd.Index) -> pd.DataFrame:
    import pandas as pd

    # copy=False: the arrays were made for this frame, and 50 million rows need no second copy.
    frame = pd.DataFrame(columns, index=None if columns else index, copy=False)
    frame.index = index
    return frame


def _renamed(columns: dict[str, Any], prefix: str, taken: Iterable[str]) -> dict[str, Any]:
    """Return `columns` with a prefix where their name is `taken`, or would be by that."""
    used = {*taken}
    own = columns.keys() - used
    renamed = {}
    for name, values in columns.items():
        while name in used:
            name = prefix + name
            if name in own:
                name = prefix + name
        used.add(name)
        renamed[name] = values
    return renamed


def _positions(parts: Sequence[Part]) -> Any:
    """Return which electrons are there, as a range where there is no gap."""
    if all(before.stop == after.start for before, after in pairwise(parts)):
        return range(parts[0].start, parts[-1].stop) if parts else range(0)
    return _join([np.arange(part.start, part.stop) for part in parts])


def _is_whole(positions: Any, count: int | None) -> bool:
    return isinstance(positions, range) and positions == range(count or 0)


def _inputs(sweep: Sweep, positions: Any) -> dict[str, Any]:
    columns = {}
    for name, values in sweep.columns().items():
        whole = len(values) == len(positions)
        chosen = values if whole else take(values, np.asarray(positions, dtype=np.int64))
        columns[name] = _series(chosen, owned=not whole or isinstance(values, range))
    return columns


def _outputs(parts: Sequence[Part]) -> dict[str, Any]:
    names = dict.fromkeys(name for part in parts for name in part.outcome.results)
    return {name: _output(parts, name) for name in names}


def _output(parts: Sequence[Part], name: str) -> Any:
    columns = [part.outcome.results.get(name) for part in parts]  # type: ignore[union-attr]
    if not any(len(part.outcome.failed) for part in parts):
        whole = [column.values for column in columns if column and column.present is None]
        if len(whole) == len(parts):
            return _series(concatenate(whole), owned=len(whole) > 1)
    values, present = [], []
    for part in parts:
        outcome = part.outcome
        assert isinstance(outcome.results, dict)
        column = outcome.results.get(name)
        here = np.zeros(outcome.kept, dtype=bool)
        if column is not None and len(column.values):
            good = np.ones(outcome.kept, dtype=bool)
            good[np.asarray(outcome.failed, dtype=np.int64)] = False
            here[good] = True if column.present is None else column.present
            values.append(column.values)
        present.append(here)
    if not values:
        return np.full(sum(map(len, present)), None, dtype=object)
    joined = concatenate(values)
    if len(joined) == sum(map(len, present)):
        return _series(joined, owned=len(values) > 1)
    return _scatter(joined, np.concatenate(present))


def _series(values: Values, *, owned: bool) -> Any:
    """Return a column for the frame: it must not share memory with what a run keeps."""
    if isinstance(values, range):
        return numpy_values(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return as_objects(list(values if owned else values.copy()))
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values if owned else values.copy()
    if isinstance(values, np.ndarray):
        return _inferred(list(values))
    return values if owned else values.copy()


def _inferred(values: list[Any]) -> Any:
    """Return objects as a column, texts and times typed as pandas users expect."""
    import pandas as pd

    try:
        inferred = pd.Series(values)
    except (ValueError, TypeError):  # times whose units have nothing in common, say
        return pd.Series(values, dtype=object)  # of an array, pandas would try again
    # Objects are objects for a reason: 1 and None must not become 1.0 and NaN.
    return pd.Series(values, dtype=object) if inferred.dtype.kind in "biufc" else inferred.array


def _scatter(values: Values, present: np.ndarray) -> Any:
    """Return `values` at the rows where they are present, and the missing value elsewhere."""
    import pandas as pd

    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biu":
        data = np.zeros(len(present), dtype=values.dtype)
        data[present] = values
        kind = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
        return kind(data, ~present)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "fcmM":
        missing: Any = "NaT" if values.dtype.kind in "mM" else np.nan
        data = np.full(len(present), missing, dtype=values.dtype)
        data[present] = values
        return data
    if isinstance(values, np.ndarray):
        data = np.full(len(present), None, dtype=object)
        data[present] = as_objects(list(values))
        return _inferred(list(data))
    where = np.where(present, np.cumsum(present) - 1, -1)
    return pd.api.extensions.take(numpy_or_extension(values), where, allow_fill=True)


def _metadata(parts: Sequence[Part], positions: Any, run_id: str) -> dict[str, Any]:
    import pandas as pd

    times = [part.outcome.times() for part in parts]
    starts = _join([start for start, _ in times])
    ends = _join([end for _, end in times])
    names = list(dict.fromkeys(part.outcome.worker for part in parts))
    codes = [names.index(part.outcome.worker) for part in parts]
    workers = pd.Categorical.from_codes(
        np.repeat(np.array(codes, dtype=np.int64), [part.outcome.kept for part in parts]),
        categories=pd.Index(names, dtype="str"),
    )
    return {
        "id": pd.Series([f"{run_id}-{position}" for position in positions], dtype="str").array,
        "start": pd.to_datetime(starts, unit="ns", utc=True).array,
        "end": pd.to_datetime(ends, unit="ns", utc=True).array,
        "duration": pd.to_timedelta(ends - starts, unit="ns").array,
        "worker": workers,
        "attempts": np.ones(len(starts), dtype=np.int64),
    }


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
