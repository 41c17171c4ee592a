"""Inputs that cannot be what their user means, found before the first electron is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from atomizer_dask.atoms.global_generators import is_generator
from atomizer_dask.atoms.pickling import dumps
from atomizer_dask.display.text import brief
from atomizer_dask.errors import InvalidSweepError, UnpicklableError, text_of
from atomizer_dask.execution.batch import Batch
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.lazy_values import is_dask_future
from atomizer_dask.sweeps.sweep import Sweep

_ALL_UP_TO = 1000  # objects of a column that are all tried; of more, the first of each type
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})


def check_generators(sweep: Sweep) -> None:
    """Refuse a random generator that several electrons would share.

    Raises
    ------
    InvalidSweepError
        Where there is one: each electron has a copy, which gives the same numbers.
    """
    for name, values in _objects(sweep):
        kinds = {kind for kind in set(map(type, values)) if kind not in _PLAIN}
        if not any(is_generator(value) for value in _one_of_each(values, kinds)):
            continue
        generators = [value for value in values if is_generator(value)]
        is_repeated = isinstance(sweep, Grid) and (sweep.length or 0) > len(values)
        if is_repeated or len(set(map(id, generators))) < len(generators):
            raise InvalidSweepError(
                f"the values of {name!r} have several electrons share one random generator, "
                f"{brief(generators[0])}: each would draw the same numbers from a copy. Leave it "
                "out, name a parameter context and draw from context.rng, which is each "
                "electron's own and follows seed="
            )


def check_no_futures(sweep: Sweep, fixed: Mapping[str, Any], why: str) -> None:
    """Refuse Futures of Dask as inputs and fixed values.

    Raises
    ------
    InvalidSweepError
        Where there is one; `why` says what the matter is.
    """
    for where, _ in futures_in(sweep, fixed):
        raise InvalidSweepError(
            f"{where} is a Future of Dask, {why}: give what client.gather(...) of it returns"
        )


def futures_in(sweep: Sweep, fixed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the Futures of Dask among inputs and fixed values, each with where it is, in words."""
    columns: list[tuple[str, Any]] = [*_objects(sweep), *((n, [v]) for n, v in fixed.items())]
    for name, values in columns:
        for position, value in enumerate(values):
            if is_dask_future(value):
                yield f"value {position} of {name!r}", value


def check_picklable(sweep: Sweep) -> None:
    """Refuse inputs that cannot be pickled.

    Of a column of more than 1000 objects only the first of each type is tried.

    Raises
    ------
    UnpicklableError
        Where there is one, with its column and row.
    """
    for name, values in _objects(sweep):
        kinds = set(map(type, values)) - _PLAIN
        if not kinds:
            continue
        tried = range(len(values)) if len(values) <= _ALL_UP_TO else _rows_of_each(values, kinds)
        for row in tried:
            if (error := why_unpicklable(values[row])) is not None:
                where = f"value {row} of the axis" if isinstance(sweep, Grid) else f"row {row} of"
                raise UnpicklableError(unpicklable(f"{where} {name!r}", values[row], error), error)


def why_unpicklable(value: Any) -> BaseException | None:
    """Return what pickling a value raises, None where it can be pickled."""
    try:
        dumps(value)
    except BaseException as error:  # pickling runs anybody's code
        if is_interrupt(error):
            raise
        return error
    return None


def why_not_sent(batch: Batch, error: BaseException) -> str:
    """Return why a batch cannot travel; of a single electron, which of its inputs cannot."""
    payload = batch.payload(0) if len(batch) == 1 else None
    for name, value in payload.items() if isinstance(payload, Mapping) else ():
        if (raised := why_unpicklable(value)) is not None:
            return unpicklable(f"the input {name!r}", value, raised)
    return f"the input cannot be pickled: {text_of(error)}"


def unpicklable(what: str, value: Any, error: BaseException) -> str:
    """Return the message about an input that cannot travel, and what to give instead."""
    return (
        f"{what} is {brief(value)} ({type(value).__name__}), which cannot be pickled, so that it "
        f"cannot travel to a worker: {text_of(error)}. Give what it is made from, a path, a name "
        "or numbers, and make it within the atom; or use a MemoryConductor, where nothing travels"
    )


def _objects(sweep: Sweep) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns, or axes, that hold Python objects."""
    for name, values in sweep.held().items():
        if isinstance(values, np.ndarray) and values.dtype == object:
            yield name, values


def _one_of_each(values: np.ndarray, kinds: set[type]) -> list[Any]:
    return [values[row] for row in _rows_of_each(values, kinds)]


def _rows_of_each(values: np.ndarray, kinds: set[type]) -> list[int]:
    """Return the first row of each type."""
    found: dict[type, int] = {}
    for row, value in enumerate(values):
        if type(value) in kinds and type(value) not in found:
            found[type(value)] = row
            if len(found) == len(kinds):
                break
    return sorted(found.values())
