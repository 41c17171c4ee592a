"""Properties to pandas: one row per electron, in sweep order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.errors import ElectronError
from atomizer_dask.execution.failure import utc
from atomizer_dask.execution.outcome import Column, RunPart
from atomizer_dask.sweeps.columns import (
    LARGE_BYTES,
    METADATA_PREFIX,
    OUTPUT_PREFIX,
    Values,
    as_objects,
    concatenate,
    numpy_values,
    renamed,
)
from atomizer_dask.sweeps.inputs import numpy_or_extension
from atomizer_dask.sweeps.sweep import Sweep

if TYPE_CHECKING:
    import pandas as pd


_COPY_ON_WRITE = int(version("pandas").partition(".")[0]) >= 3


def to_frame(
    sweep: Sweep,
    parts: Sequence[RunPart],
    run_id: str,
    *,
    metadata: bool = False,
    electrons: np.ndarray | None = None,
    columns: Collection[str] | None = None,
    outputs: Iterable[str] = (),
) -> pd.DataFrame:
    """Return inputs and outputs of the finished electrons, a row each, in sweep order.

    Parameters
    ----------
    sweep
        The inputs.
    parts
        The outcomes.
    run_id
        Id of the run, with which the ids of electrons begin.
    metadata
        Add id, start, end, duration, worker and attempts.
    electrons
        The electron of each row of the sweep; None where electron i stands for row i.
    columns
        Only those of these columns that there are; None for all.
    outputs
        Outputs that have a column even where none of the electrons has them.

    Notes
    -----
    An output with the name of an input gets the prefix ``result_``, and a column of metadata with
    the name of an input or output the prefix ``electron_``. Where electrons failed or an output
    is None, integers and booleans become pandas' nullable ``Int64`` and ``boolean``, and the rest
    has its usual missing value.
    """
    import pandas as pd

    parts = _current(parts)
    positions, order = _positions(parts)
    count = sweep.length
    whole = _is_whole(positions, count)
    there = dict.fromkeys([*output_names(parts), *outputs])
    names = renamed({name: name for name in there}, OUTPUT_PREFIX, sweep.names)
    wanted = {new: name for new, name in names.items() if columns is None or new in columns}
    found = _ordered({new: _output(parts, name) for new, name in wanted.items()}, order)
    if metadata:
        taken = (*sweep.names, *names)
        named = positions if electrons is None else electrons[numpy_values(positions)]
        facts = {"id": _ids(run_id, named), **_ordered(_metadata(parts), order)}
        found |= renamed(facts, METADATA_PREFIX, taken)
        found = {n: v for n, v in found.items() if columns is None or n in columns}
    if sweep.frame is not None and whole and columns is None:
        given = sweep.frame.copy(deep=not _COPY_ON_WRITE)
        return pd.concat([given, _framed(found, given.index)], axis=1)
    index = sweep.index
    if index is None:
        index = pd.RangeIndex(count or 0) if whole else pd.Index(positions)
    elif not whole:
        index = index.take(positions)
    return _framed({**_inputs(sweep, positions, columns), **found}, index)


def errors_frame(
    sweep: Sweep,
    parts: Sequence[RunPart],
    history: Mapping[int, tuple[ElectronError, ...]],
    printed: Mapping[int, str],
) -> pd.DataFrame:
    """Return inputs and failures of the failed electrons, on the index of the frame.

    Parameters
    ----------
    sweep
        The inputs.
    parts
        The outcomes.
    history
        Errors of superseded attempts, by position.
    printed
        The last lines that electrons have printed, by position.
    """
    import pandas as pd

    rows = [row for part in _current(parts) for row in _failures(part, history)]
    rows.sort(key=lambda row: row[0])
    positions = np.array([position for position, _ in rows], dtype=np.int64)
    columns = _inputs(sweep, positions)
    more: dict[str, Any] = {}
    for name in ("kind", "type", "message", "traceback"):
        more[name] = pd.Series([_encodable(row[name]) for _, row in rows], dtype="str").array
    more["attempts"] = np.array([row["attempt"] for _, row in rows], dtype=np.int64)
    for name in ("worker", "tier"):
        more[name] = pd.Series([row[name] for _, row in rows], dtype="str").array
    more["seconds"] = np.array([row["seconds"] for _, row in rows], dtype=np.float64)
    last_lines = [_encodable(printed.get(position, "")) for position in positions.tolist()]
    more["printed"] = pd.Series(last_lines, dtype="str").array
    more["history"] = as_objects([row["history"] for _, row in rows])
    columns |= renamed(more, METADATA_PREFIX, sweep.names)
    index = pd.Index(positions) if sweep.index is None else sweep.index.take(positions)
    return _framed(columns, index)


def failures_frame(sweep: Sweep, parts: Sequence[RunPart]) -> pd.DataFrame:
    """Return a summary of the failed electrons: a row per kind and type of exception.

    Parameters
    ----------
    sweep
        The inputs.
    parts
        The outcomes.
    """
    import pandas as pd

    groups: dict[tuple[str, str], tuple[int, int, str]] = {}  # count, first position, its message
    for part in _current(parts):
        for failure, positions in part.by_failure():
            key = failure.kind, _encodable(failure.type)
            first, message = int(positions.min()), _encodable(failure.message)
            count, known, its = groups.get(key, (0, first, message))
            earliest = (first, message) if first < known else (known, its)
            groups[key] = (count + len(positions), *earliest)
    rows = [
        {
            "kind": kind,
            "type": type_,
            "count": count,
            "first": first if sweep.index is None else sweep.index[first],
            "message": message,
            "hint": _hint(kind, message),
        }
        for (kind, type_), (count, first, message) in sorted(
            groups.items(), key=lambda group: (-group[1][0], group[1][1])
        )
    ]
    columns = ["kind", "type", "count", "first", "message", "hint"]
    return pd.DataFrame(rows, columns=columns).set_index(["kind", "type"])


def _encodable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no column of texts can hold."""
    return text.encode(errors="backslashreplace").decode()


HINTS = {
    "exception": "run.replay(first) runs it here, for a debugger",
    "timeout": "run.retry(timeout=...) gives it longer",
    "killed": "a crash in compiled code, or too little memory?",
    "cancelled": "run.retry() goes on with these",
    "unknown_atom": "is it registered, or its module imported, where the electron was executed?",
    "invalid_payload": "the inputs do not fit the atom's parameters",
    "rejected": "does the worker have what the atom imports?",
}
DAEMONIC = "daemonic processes are not allowed to have children"  # says multiprocessing
LET_HAVE_CHILDREN = (
    "start the workers with DASK_DISTRIBUTED__WORKER__DAEMON=false in their environment, or give "
    "the atom isolation='process'; workers that DaskConductor() starts may have children"
)


def _hint(kind: str, message: str) -> str:
    return LET_HAVE_CHILDREN if DAEMONIC in message else HINTS.get(kind, "")


def _failures(
    part: RunPart, history: Mapping[int, tuple[ElectronError, ...]]
) -> Iterable[tuple[int, dict[str, Any]]]:
    outcome = part.outcome
    starts, ends = outcome.times()
    for position, offset, code in zip(
        part.failed_positions().tolist(), outcome.failed, outcome.codes, strict=True
    ):
        failure = outcome.failures[code]
        start, end = int(starts[offset]), int(ends[offset])
        last = {
            "attempt": part.attempt,
            "kind": failure.kind,
            "type": failure.type,
            "message": failure.message,
            "worker": outcome.worker,
            "start": utc(start),
            "end": utc(end),
        }
        earlier = [error.facts() for error in history.get(position, ())]
        yield (
            position,
            {
                **last,
                "traceback": failure.traceback,
                "tier": failure.tier,
                "seconds": (end - start) / 1e9,
                "history": [*earlier, last],
            },
        )


def _current(parts: Sequence[RunPart]) -> list[RunPart]:
    """Return the parts without superseded electrons, sorted by their first position."""
    current = [part for part in map(RunPart.current, parts) if len(part.outcome)]
    return sorted(current, key=lambda part: part.positions[0])


def _ordered(columns: dict[str, Any], order: np.ndarray | None) -> dict[str, Any]:
    if order is None:
        return columns
    return {name: values.take(order) for name, values in columns.items()}


def _framed(columns: dict[str, Any], index: pd.Index) -> pd.DataFrame:
    import pandas as pd

    # copy=False: the arrays were made for this frame, and 50 million rows need no second copy.
    frame = pd.DataFrame(columns, index=None if columns else index, copy=False)
    frame.index = index
    return frame


def _positions(parts: Sequence[RunPart]) -> tuple[Any, np.ndarray | None]:
    """Return the positions of all electrons, sorted, and the order that sorts the parts' rows.

    Positions are a range where there is no gap; the order is None where the parts are in order.
    """
    spans = [part.positions for part in parts if isinstance(part.positions, range)]
    if len(spans) == len(parts):
        if all(before.stop == after.start for before, after in pairwise(spans)):
            return (range(spans[0].start, spans[-1].stop) if spans else range(0)), None
        return _join([np.asarray(span) for span in spans]), None
    positions = _join([numpy_values(part.positions) for part in parts])
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    if positions[-1] - positions[0] + 1 == len(positions):
        return range(int(positions[0]), int(positions[-1]) + 1), order
    return positions, order


def _is_whole(positions: Any, count: int | None) -> bool:
    return isinstance(positions, range) and positions == range(count or 0)


def _inputs(sweep: Sweep, positions: Any, wanted: Collection[str] | None = None) -> dict[str, Any]:
    if _is_whole(positions, sweep.length):
        columns = sweep.cells(None, wanted).items()
        return {name: _input(v, owned=isinstance(v, range)) for name, v in columns}
    columns = sweep.cells(numpy_values(positions), wanted).items()
    return {name: _input(values, owned=True) for name, values in columns}


def _input(values: Values, *, owned: bool) -> Any:
    return cells if (cells := _cells([values])) is not None else _series(values, owned=owned)


def output_names(parts: Sequence[RunPart]) -> list[str]:
    """Return the names of the outputs of parts, also of those that have no rows."""
    names = dict.fromkeys(name for part in parts for name in part.outcome.results)
    for part in parts:  # outputs that a store cannot hold still have their columns
        names |= dict.fromkeys(part.outcome.unstored or ())
    return list(names)


def _output(parts: Sequence[RunPart], name: str) -> Any:
    columns = [part.outcome.results.get(name) for part in parts]
    if not any(len(part.outcome.failed) for part in parts):
        whole = [column.values for column in columns if column and column.present is None]
        if len(whole) == len(parts):
            if (cells := _cells(whole)) is not None:
                return cells
            return _series(concatenate(whole), owned=len(whole) > 1)
    values, present = [], []
    for part in parts:
        outcome = part.outcome
        column = outcome.results.get(name)
        here = np.zeros(len(outcome), dtype=bool)
        if column is not None and len(column.values):
            here[~outcome.failed_mask()] = True if column.present is None else column.present
            values.append(column.values)
        if not here.any() and (unstored := (outcome.unstored or {}).get(name)) is not None:
            here[outcome.failed_mask()] = True if unstored.present is None else unstored.present
            values.append(unstored.values)
        present.append(here)
    if not values:
        return np.full(sum(map(len, present)), None, dtype=object)
    joined = cells if (cells := _cells(values)) is not None else concatenate(values)
    if cells is not None and len(cells) == sum(map(len, present)):
        return cells
    if len(joined) == sum(map(len, present)):
        return _series(joined, owned=len(values) > 1)
    return _scatter(joined, np.concatenate(present))


def _cells(columns: Sequence[Values]) -> np.ndarray | None:
    """Return columns of large arrays as one of read-only arrays, nothing of which is copied.

    None where they are small, or of several types, which have to become one.
    """
    arrays = [column for column in columns if isinstance(column, np.ndarray) and column.ndim > 1]
    if len(arrays) < len(columns) or len({(each.dtype, each.shape[1:]) for each in arrays}) > 1:
        return None
    rows = sum(map(len, arrays))
    if sum(each.nbytes for each in arrays) < LARGE_BYTES * max(1, rows):
        return None
    cells: list[Any] = []
    for each in arrays:
        shared = each.view()
        shared.flags.writeable = False
        cells += list(shared)
    return as_objects(cells)


def _series(values: Values, *, owned: bool) -> Any:
    """Return a column for the frame, copied unless `owned`: a run must not share its memory."""
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
    """Return objects as a column, texts and times typed as pandas users expect.

    Texts of a megabyte or more stay the objects that they are: typed, each would be a copy.
    """
    import pandas as pd

    if values and type(values[0]) is str and len(values[0]) >= LARGE_BYTES:
        return pd.Series(values, dtype=object)
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


def frame_of_columns(
    inputs: Mapping[str, Column], outputs: Mapping[str, Column], index: pd.Index, *, nullable: bool
) -> pd.DataFrame:
    """Return columns as a frame.

    Parameters
    ----------
    inputs, outputs
        Columns, with a value for some or for all rows.
    index
        Index of the frame.
    nullable
        Make integers and booleans of outputs nullable, also where no value is missing.
    """
    import pandas as pd

    columns = {name: _row_values(column) for name, column in inputs.items()}
    made = {name: _row_values(column) for name, column in outputs.items()}
    if nullable:
        kinds: dict[str, Any] = {"i": "Int64", "b": "boolean", "u": "UInt64"}
        made = {
            name: pd.Series(values).astype(kinds[values.dtype.kind]).array
            if isinstance(values, np.ndarray) and values.dtype.kind in kinds
            else values
            for name, values in made.items()
        }
    return _framed({**columns, **renamed(made, OUTPUT_PREFIX, inputs)}, index)


def _row_values(column: Column) -> Any:
    if column.present is None:
        return _series(column.values, owned=True)
    return _scatter(column.values, column.present)


def _ids(run_id: str, positions: Any) -> Any:
    import pandas as pd

    return pd.Series([f"{run_id}-{position}" for position in positions], dtype="str").array


def _metadata(parts: Sequence[RunPart]) -> dict[str, Any]:
    import pandas as pd

    times = [part.outcome.times() for part in parts]
    starts = _join([start for start, _ in times])
    ends = _join([end for _, end in times])
    counts = [len(part.outcome) for part in parts]
    workers = _labels([part.outcome.worker for part in parts], counts)
    attempts = np.array([part.attempt for part in parts], dtype=np.int64)
    facts = {
        "start": pd.to_datetime(starts, unit="ns", utc=True).array,
        "end": pd.to_datetime(ends, unit="ns", utc=True).array,
        "duration": pd.to_timedelta(ends - starts, unit="ns").array,
        "worker": workers,
        "attempts": np.repeat(attempts, counts),
    }
    if any(part.code for part in parts):
        facts["code"] = _labels([part.code for part in parts], counts)
    return facts


def _labels(texts: list[str], counts: list[int]) -> Any:
    """Return a text for each part, repeated for each of its electrons, as a categorical."""
    import pandas as pd

    names = list(dict.fromkeys(texts))
    codes = np.array([names.index(text) for text in texts], dtype=np.int64)
    return pd.Categorical.from_codes(
        np.repeat(codes, counts), categories=pd.Index(names, dtype="str")
    )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
