"""The sweeps of a store: all of them as one, and how another one is added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from atomizer_dask.errors import InvalidSweepError, StoreError
from atomizer_dask.store.inputs.row_map import RowMap
from atomizer_dask.store.inputs.row_matching import match
from atomizer_dask.store.inputs.sweep_files import (
    load_defaults,
    load_rows,
    load_sweep,
    save_defaults,
    save_sweep,
)
from atomizer_dask.store.layout import SWEEP
from atomizer_dask.store.store import Store
from atomizer_dask.sweeps.columns import LARGE_BYTES, Values
from atomizer_dask.sweeps.combined import Concatenated, SelectedRows, WithDefaults
from atomizer_dask.sweeps.equality import same_columns
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.inputs import Columns, GridSlice, Rows
from atomizer_dask.sweeps.received import Given, of_list
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep


def sweeps_of(store: Store, allow_pickle: bool) -> tuple[Sweep, RowMap]:
    """Return a sweep of all electrons of a store, and the rows of its last sweep."""
    segments: list[Sweep] = []
    defaults: dict[str, Given] = {}
    view = None
    for described in store.manifest["sweeps"]:
        sweep = load_sweep(store, described, allow_pickle=allow_pickle)
        defaults |= load_defaults(store, described)
        if isinstance(sweep, Streamed):
            sweep.fill(load_rows(store, allow_pickle=allow_pickle))
        if "which" not in described:
            segments.append(sweep)
            view = RowMap(sweep)
            continue
        table = store.read(f"{SWEEP}/{described['which']}")
        electrons = table.column("electron").to_numpy()
        view = RowMap(sweep, electrons)
        if len(new := _new_rows(electrons, described["first"])):
            segments.append(SelectedRows(sweep, new))
    assert view is not None
    return _chained(segments, defaults), view


def _chained(segments: Sequence[Sweep], defaults: Mapping[str, Given]) -> Sweep:
    """Return sweeps end to end, with defaults for fields that some of them lack."""
    names = dict.fromkeys(name for segment in segments for name in segment.names)
    filled = [_filled(segment, names, defaults) for segment in segments]
    return filled[0] if len(filled) == 1 else Concatenated(filled)


def _filled(sweep: Sweep, names: Iterable[str], defaults: Mapping[str, Given]) -> Sweep:
    if isinstance(sweep, Concatenated):
        return Concatenated([_filled(part, names, defaults) for part in sweep.parts])
    more = {name: defaults[name] for name in names if name not in sweep.names}
    return WithDefaults(sweep, more) if more else sweep


def _new_rows(electrons: np.ndarray, first: int) -> np.ndarray:
    """Return the rows whose electrons no earlier sweep had, in the order of the electrons."""
    new = np.flatnonzero(electrons >= first)
    return new[np.argsort(electrons[new], kind="stable")]


def extend(
    store: Store, sweep: Sweep, *, allow_pickle: bool, defaults: Mapping[str, Any] | None = None
) -> tuple[Sweep, RowMap]:
    """Add another sweep to a store, and return a sweep of all electrons, and the rows of `sweep`.

    A row with the inputs of an electron of the store stands for that electron, others are new ones.

    Parameters
    ----------
    defaults
        Of parameters of the atom, by name: where only one of the two sweeps names a parameter, the
        rows of the other have its default.

    Raises
    ------
    InvalidSweepError
        Where the sweep and the store have different fields, which no defaults fill.
    StoreError
        Where one of the sweep and the store is a stream, and the other is not.
    """
    universe, last = sweeps_of(store, allow_pickle)
    streams = isinstance(universe, Streamed), isinstance(sweep, Streamed)
    if any(streams):
        if not all(streams):
            raise StoreError(
                f"{store.folder.url} and the sweep given are not both streams: give another folder"
            )
        assert isinstance(universe, Streamed)
        assert isinstance(sweep, Streamed)
        sweep.expect(universe.rows)
        store.manifest["sweeps"][-1]["electrons"] = None  # its end is not known
        return sweep, RowMap(sweep)
    differ = set(universe.names) ^ set(sweep.names)
    values = {n: of_list([value]) for n, value in (defaults or {}).items() if n in differ}
    if differ - values.keys() or not _has_defaults(universe, sweep, values):
        raise InvalidSweepError(
            f"{store.folder.url} has the inputs {sorted(universe.names)}, the sweep has "
            f"{sorted(sweep.names)}: to extend a run give all of these, or another folder; one "
            "that has a default in the atom may be left out, where the other sweep has it"
        )
    if differ:
        return _extend(store, universe, last, sweep, allow_pickle, values)
    if last.electrons is None and _is_same_grid(universe, sweep):
        return universe, RowMap(sweep)  # whose rows need not be compared
    return _extend(store, universe, last, sweep, allow_pickle, {})


def _has_defaults(universe: Sweep, sweep: Sweep, defaults: Mapping[str, Given]) -> bool:
    """Return whether each field that only one sweep has is at its default in some of its rows.

    Otherwise no row of one sweep could have the inputs of a row of the other.
    """
    for name, default in defaults.items():
        shown = (sweep if name in sweep.names else universe).columns([name])[name]
        rows = Columns({name: shown}, len(shown))
        if not (match([Columns({name: default.shown}, 1)], rows) >= 0).any():
            return False
    return True


def _extend(
    store: Store,
    universe: Sweep,
    last: RowMap,
    sweep: Sweep,
    allow_pickle: bool,
    defaults: Mapping[str, Given],
) -> tuple[Sweep, RowMap]:
    universe = _filled(universe, sweep.names, defaults)
    given = _filled(sweep, universe.names, defaults)
    known = universe.length or 0
    # Rows are not compared by what is the same in all of them.
    constants = Concatenated([universe, given]).constants(LARGE_BYTES)
    electrons = _matched(universe.without(constants), given.without(constants))
    new = electrons < 0
    electrons[new] = known + np.arange(int(new.sum()))
    before = np.arange(known) if last.electrons is None else last.electrons
    one, other = last.sweep, sweep
    if constants.keys() <= one.constants(LARGE_BYTES).keys():
        one, other = one.without(constants), other.without(constants)
    if np.array_equal(electrons, before) and _looks_like(one, other):
        return universe, RowMap(sweep, last.electrons)
    number = len(store.manifest["sweeps"])
    described = save_sweep(store, number, sweep, allow_pickle=allow_pickle)
    which = f"{number}-electrons.parquet"
    store.write(f"{SWEEP}/{which}", pa.table({"electron": electrons}))
    if defaults:
        described["defaults"] = save_defaults(store, number, defaults)
    store.manifest["sweeps"].append({**described, "first": known, "which": which})
    if new.any():
        universe = Concatenated([universe, SelectedRows(given, np.flatnonzero(new))])
    return universe, RowMap(sweep, electrons)


def _is_same_grid(one: Sweep, other: Sweep) -> bool:
    if not (isinstance(one, Grid) and isinstance(other, Grid)):
        return False
    return list(one.axes) == list(other.axes) and all(
        _is_same_axis(axis, other.given[name], is_as_given=one.is_as_given)
        for name, axis in one.given.items()
    )


def _is_same_axis(one: Given, other: Given, *, is_as_given: bool) -> bool:
    if is_as_given:
        scalars = one.scalars, other.scalars
        return same_columns(one.values, other.values, scalars=scalars)
    return same_columns(one.shown, other.shown, scalars=(False, False))


def _matched(universe: Sweep, sweep: Sweep) -> np.ndarray:
    """Return for each row of a sweep the electron with its inputs, -1 for none.

    Stores of an early version do not record what columns were given as. Their rows are compared
    with Python's numbers as given, and then as floats: that version made floats of ints among
    floats.
    """
    parts = universe.parts if isinstance(universe, Concatenated) else [universe]
    starts = np.cumsum([0, *(part.length or 0 for part in parts)])
    electrons = np.full(sweep.length or 0, -1)
    for rows_of in (_as_given, _as_python, _as_shown):
        chosen = [n for n, part in enumerate(parts) if part.is_as_given == (rows_of is _as_given)]
        left = np.flatnonzero(electrons < 0)
        if chosen and len(left):
            those = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in chosen])
            free = np.flatnonzero(~np.isin(those, electrons))
            known = [rows_of(parts[n], np.arange(parts[n].length or 0)) for n in chosen]
            found = match(known, rows_of(sweep, left), free)
            electrons[left] = np.where(found < 0, -1, those[found])
    return electrons


def _as_given(sweep: Sweep, rows: np.ndarray) -> Columns | GridSlice:
    whole = len(rows) == sweep.length
    inputs = sweep.take(0, len(rows)) if whole else sweep.pick(rows)
    assert not isinstance(inputs, Rows)
    return inputs


def _as_python(sweep: Sweep, rows: np.ndarray) -> Columns | GridSlice:
    return replace(_as_given(sweep, rows), scalars=frozenset())


def _as_shown(sweep: Sweep, rows: np.ndarray) -> Columns:
    return Columns(sweep.columns_at(rows), len(rows))


def _looks_like(one: Sweep, other: Sweep) -> bool:
    """Whether frames of two sweeps with the same rows have the same columns and index."""
    columns, others = one.columns(), other.columns()
    if list(columns) != list(others) or any(
        _dtype_of(values) != _dtype_of(others[name]) for name, values in columns.items()
    ):
        return False
    if one.index is None or other.index is None:
        return one.index is other.index
    return bool(one.index.identical(other.index))


def _dtype_of(values: Values) -> Any:
    """Return the dtype of a column, in the native byte order, which stores use."""
    dtype: Any = getattr(values, "dtype", np.dtype(np.int64))
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype
