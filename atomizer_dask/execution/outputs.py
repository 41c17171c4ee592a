"""What atoms return, made into output columns."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from itertools import compress
from typing import Any

import numpy as np

from atomizer_dask.console.printed import join_printed
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Column, Outcome
from atomizer_dask.sweeps.columns import LARGE_BYTES, Values, as_objects, column, concatenate


def outputs_of(results: list[Any]) -> tuple[dict[str, Column], bool]:
    """Return the results of scalar atoms as output columns, and whether they came as scalars."""
    if len(results) == 1 and (outputs := _taken_over(results)) is not None:
        return outputs, type(results[0]) is not dict
    if results and type(results[0]) is dict and results[0]:
        names = list(results[0])
        try:
            # dict.__len__ raises for other types; with as many fields, and none missing, all rows
            # have the same fields.
            same = sum(map(dict.__len__, results)) == len(names) * len(results)
            if same and all(type(name) is str for name in names):
                return {n: _output([row[n] for row in results]) for n in names}, False
        except (TypeError, KeyError):
            pass
    if any(issubclass(kind, Mapping) for kind in set(map(type, results))):
        return _outputs_of_mixed(results)
    return {"result": _output(results)} if results else {}, True


def _references(holder: Any, key: Any) -> int:
    value = holder[key]
    return sys.getrefcount(value)


_CHANGEABLE = {np.ndarray, dict, list, set, bytearray}
_ALONE = _references([np.empty(0)], 0)  # what is counted where nobody but the holder has a value


def _count(value: Any) -> int:
    return sys.getrefcount(value)


_FRESH = _count(np.empty(0))  # what is counted of what a call returns, and nobody else has


def references_to(value: Any) -> int:
    """Return how often a value is referred to, where a loop has just got it, beyond that loop."""
    return sys.getrefcount(value) - IN_LOOP - 1


def _in_loop() -> int:
    for value in map(np.empty, [0]):
        return sys.getrefcount(value)
    raise AssertionError


IN_LOOP = _in_loop()  # what is counted in a loop of what it has just got, and nobody else has


def is_shared(result: Any, references: int) -> bool:
    """Return whether somebody else has what an atom has just returned, and may change it.

    An atom may return the same buffer for each electron. Of what is returned, arrays and plain
    containers are looked at, and what is directly in a dict, a list or a tuple.

    Parameters
    ----------
    references
        To the result, of others than the caller.
    """
    changeable = names_to_check(result)
    if changeable is None:
        return False
    is_taken = type(result) is not tuple and references > 0
    return is_taken or any_shared(result, changeable)


def names_to_check(result: Any) -> Collection[Any] | None:
    """Return the names, or indices, of what in a result can be changed; None where nothing can."""
    kind = type(result)
    if kind is dict:
        return [name for name, value in result.items() if type(value) in _CHANGEABLE]
    if kind in (list, tuple):
        found = [index for index, value in enumerate(result) if type(value) in _CHANGEABLE]
        return found if found or kind is list else None
    if kind is np.ndarray:
        return ("its memory",)
    return () if kind in _CHANGEABLE else None


def any_shared(result: Any, names: Collection[Any]) -> bool:
    """Return whether somebody else has a named value of a result, or the memory of an array."""
    kind = type(result)
    if kind is np.ndarray:
        return not result.flags.owndata
    if not names or kind not in (dict, list, tuple):
        return False
    if kind is dict:
        return any(name in result and _is_shared_in(result, name) for name in names)
    return any(_is_shared_in(result, index) for index in range(len(result)))


def bytes_of_arrays(result: Any) -> int:
    """Return the bytes of the array that a result is, or of those that it has by name."""
    if type(result) is dict:
        return sum(value.nbytes for value in result.values() if type(value) is np.ndarray)
    return result.nbytes if type(result) is np.ndarray else 0


def _is_shared_in(row: Any, name: Any) -> bool:
    # Without a variable for the value, which would count as a reference.
    return type(row[name]) in _CHANGEABLE and (
        _references(row, name) > _ALONE
        or (type(row[name]) is np.ndarray and not row[name].flags.owndata)
    )


def own_slice(result: Any) -> Any:
    """Return what a vectorised atom returned, with copies of arrays that somebody else has.

    To be called with the call of the atom as its argument, so that no variable refers to it.
    """
    count = sys.getrefcount(result) - _FRESH
    if isinstance(result, tuple) and len(result) == 2:  # with marks of errors
        return (_own_arrays(result[0], 0), result[1])
    return _own_arrays(result, count)


def _own_arrays(result: Any, count: int) -> Any:
    if type(result) is np.ndarray:
        return result.copy() if is_shared(result, count) else result
    if type(result) is dict:
        return {
            name: result[name].copy() if _is_shared_in(result, name) else result[name]
            for name in result
        }
    return result


def _taken_over(results: list[Any]) -> dict[str, Column] | None:
    """Return the only result as columns, with its large arrays as they are: a copy takes long.

    None where it has no large array, or where the atom may change one later, because somebody else
    still refers to it.
    """
    is_ours = _references(results, 0) <= _ALONE
    row = results[0]
    if type(row) is np.ndarray:
        return {"result": Column(row[None])} if is_ours and _can_be_taken(row) else None
    if type(row) is not dict or not is_ours or not all(type(name) is str for name in row):
        return None
    large = [name for name, value in row.items() if _can_be_taken(value)]
    if not large or any(_references(row, name) > _ALONE for name in large):
        return None
    return {
        name: Column(value[None]) if name in large else _output([value])
        for name, value in row.items()
    }


def _can_be_taken(value: Any) -> bool:
    """Return whether a value is a large array of numbers that has its memory to itself."""
    return (
        type(value) is np.ndarray
        and value.nbytes >= LARGE_BYTES
        and value.dtype.kind in "biufc"
        and value.flags.owndata
        and value.flags.c_contiguous
    )


def as_they_are(results: list[Any]) -> dict[str, Column]:
    """Return results as one column of just these objects, as electrons sent one by one get them."""
    return {"result": Column(as_objects(results))} if results else {}


def _outputs_of_mixed(results: list[Any]) -> tuple[dict[str, Column], bool]:
    rows = [row if _is_record(row) else {"result": row} for row in results]
    absent = object()
    outputs = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name, absent) for row in rows]
        outputs[name] = _output([None if value is absent else value for value in values])
    return outputs, not all(map(_is_record, results))


def _is_record(result: Any) -> bool:
    return isinstance(result, Mapping) and all(type(name) is str for name in result)


def _output(values: list[Any]) -> Column:
    types = set(map(type, values))
    missing = {kind for kind in types if kind is type(None) or kind.__name__ == "NAType"}
    if not missing:
        return Column(column(values, types))
    here = (type(value) not in missing for value in values)
    present = np.fromiter(here, dtype=bool, count=len(values))
    return Column(column(list(compress(values, present))), present)


def errors_of_slice(result: Any, electrons: int) -> tuple[Any, dict[int, Exception]]:
    """Return the outputs of a vectorised atom, and the errors of the rows that it marks, by row.

    Such an atom may return a pair of its outputs and of error marks, one per electron: a boolean,
    a text that is empty where all is well, or None or an exception.

    Raises
    ------
    ValueError
        Where there is not one mark per electron.
    """
    if not (isinstance(result, tuple) and len(result) == 2):
        return result, {}
    outputs, errors = result
    marks = np.asarray(errors) if isinstance(errors, np.ndarray) else as_objects(list(errors))
    if marks.shape != (electrons,):
        raise ValueError(
            f"a vectorised atom that returns (outputs, errors) must return one error mark per "
            f"electron: it was given {electrons} electrons and returned {len(marks)} marks"
        )
    failed = {}
    for row in np.flatnonzero([mark is not None and bool(mark) for mark in marks]).tolist():
        mark = marks[row]
        if not isinstance(mark, Exception):
            text = str(mark) if isinstance(mark, str) else "the atom marked this row as failed"
            mark = ValueError(text)
        failed[row] = mark
    return outputs, failed


def outputs_of_slice(result: Any, electrons: int) -> dict[str, Values]:
    """Return what a vectorised atom returned as output columns.

    Raises
    ------
    ValueError
        Where it does not have one row per electron.
    """
    if hasattr(result, "iloc") and hasattr(result, "columns"):
        if not result.columns.is_unique:
            raise ValueError(f"the DataFrame returned has a column twice: {list(result.columns)}")
        outputs: dict[str, Any] = {str(name): result[name].array for name in result.columns}
        outputs = {
            name: values.to_numpy() if hasattr(values, "_ndarray") else values
            for name, values in outputs.items()
        }
    elif isinstance(result, Mapping):
        outputs = {str(name): np.asarray(values) for name, values in result.items()}
    else:
        outputs = {"result": np.asarray(result)}
    for name, values in outputs.items():
        got = f"{len(values)} values" if np.ndim(values) else "a single value"
        if not np.ndim(values) or len(values) != electrons:
            what = "" if name == "result" else f" for the output {name!r}"
            raise ValueError(
                f"a vectorised atom must return one value per electron: it was given {electrons} "
                f"electrons and returned {got}{what}"
            )
    return outputs


def join(parts: list[tuple[int, dict[str, Column]]]) -> dict[str, Column]:
    """Return the outputs of consecutive parts as one; a part is an electron count and outputs."""
    joined = {}
    for name in dict.fromkeys(name for _, outputs in parts for name in outputs):
        columns = [(count, outputs.get(name)) for count, outputs in parts]
        values = concatenate([column.values for _, column in columns if column is not None])
        present = None
        if any(column is None or column.present is not None for _, column in columns):
            present = np.concatenate([_presence(count, column) for count, column in columns])
        joined[name] = Column(values, present)
    return joined


def _presence(count: int, column: Column | None) -> np.ndarray:
    if column is None or column.present is None:
        return np.full(count, column is not None)
    return column.present


class ResultCollector:
    """Collects results of atoms that are not vectorised.

    Parameters
    ----------
    as_they_are
        Whether the results stay the very objects that the atom returned, in one column.
    """

    def __init__(self, *, as_they_are: bool) -> None:
        self._objects: list[Any] | None = [] if as_they_are else None
        self._parts: list[tuple[int, dict[str, Column]]] = []
        self._scalar = True

    def add(self, results: list[Any]) -> None:
        """Take the results of the next electrons."""
        if self._objects is not None:
            self._objects += results
        elif results:
            outputs, scalar = outputs_of(results)
            self._parts.append((len(results), outputs))
            self._scalar &= scalar

    def joined(self, more: list[Any] | None = None) -> tuple[dict[str, Column], bool]:
        """Return all results, with `more` at the end, and whether they came as scalars."""
        if self._objects is not None:
            return as_they_are(self._objects if more is None else [*self._objects, *more]), True
        if not more:
            return join(self._parts), self._scalar
        outputs, scalar = outputs_of(more)
        return join([*self._parts, (len(more), outputs)]), self._scalar and scalar


def join_outcomes(pieces: list[Outcome], worker: str, *, exact: bool) -> Outcome:
    """Return the outcomes of consecutive pieces of a batch as one.

    Parameters
    ----------
    exact
        Whether results stay the objects that they are: `join` gives columns one type.
    """
    if not pieces:
        return Outcome.none()
    start_ns = pieces[0].start_ns
    failures: list[Failure] = []
    known: dict[Any, int] = {}
    failed, codes, starts, ends = [], [], [], []
    for piece in pieces:
        translated = np.zeros(len(piece.failures), dtype=np.int32)
        for code, failure in enumerate(piece.failures):
            alike = failure._replace(exception=None)
            if alike not in known:
                known[alike] = len(failures)
                failures.append(failure)
            translated[code] = known[alike]
        failed.append(np.asarray(piece.failed, dtype=np.int64) + piece.first)
        codes.append(translated[np.asarray(piece.codes, dtype=np.int64)])
        began, ended = piece.times()
        starts.append(began)
        ends.append(ended)
    if exact:
        results = as_they_are([result for piece in pieces for result in piece.rows()])
    else:
        results = join([(len(piece) - len(piece.failed), piece.results) for piece in pieces])
    return Outcome(
        stop=pieces[-1].stop,
        results=results,
        failed=np.concatenate(failed),
        codes=np.concatenate(codes),
        failures=failures,
        start_ns=start_ns,
        starts=(np.concatenate(starts) - start_ns) / 1e9,
        ends=(np.concatenate(ends) - start_ns) / 1e9,
        counts=None,
        worker=worker,
        scalar=exact or all(piece.scalar for piece in pieces if len(piece) > len(piece.failed)),
        printed=join_printed(piece.printed for piece in pieces),
    )
