"""Outputs of a run over a grid as an ``xarray.Dataset``."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atomizer_dask.sweeps.columns import OUTPUT_PREFIX, column
from atomizer_dask.sweeps.grid import Grid
from atomizer_dask.sweeps.sweep import Sweep

if TYPE_CHECKING:
    import xarray as xr


def check_grid(run_id: str, sweep: Sweep) -> Grid:
    """Return a sweep that is a grid.

    Raises
    ------
    ValueError
        Where it is not.
    """
    if isinstance(sweep, Grid):
        return sweep
    raise ValueError(
        f"{run_id} swept over {sweep!r}, and only a grid(...) has axes: use "
        f"run.to_frame().to_xarray(), or run.to_frame().set_index({list(sweep.names)})"
        ".to_xarray() where no combination of these comes twice"
    )


def to_dataset(sweep: Grid, outputs: pd.DataFrame, attrs: Mapping[str, Any]) -> Any:
    """Return outputs on the axes of a grid.

    Parameters
    ----------
    sweep
        The grid.
    outputs
        A column for each output, on the positions of the electrons that have ended.
    attrs
        Attributes of the Dataset.

    Raises
    ------
    ImportError
        Where xarray is not installed.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError(
            "run.to_xarray needs xarray: pip install 'atomizer_dask[xarray]'", name="xarray"
        ) from error
    data = xr.Dataset(coords=_coordinates(xr, sweep), attrs=dict(attrs))
    taken = {*sweep.names, *map(str, outputs.columns)}
    for name in outputs.columns:
        values = _cells(outputs[name], prod(sweep.shape))
        inner = _free([f"{name}_dim{number}" for number in range(values.ndim - 1)], taken)
        shaped = values.reshape(*sweep.shape, *values.shape[1:])
        data[name] = ((*sweep.names, *inner), shaped)
    return data


def _free(names: list[str], taken: set[str]) -> list[str]:
    free = []
    for name in names:
        while name in taken:
            name = OUTPUT_PREFIX + name
        free.append(name)
    return free


def _coordinates(xr: Any, sweep: Grid) -> dict[str, xr.Variable]:
    coordinates = {}
    for name, values in sweep.axes.items():
        plain = _plain(pd.Series(values)) if not isinstance(values, np.ndarray) else values
        if plain.ndim > 1:  # no index can be made of arrays
            inner = [f"{name}_dim{number}" for number in range(plain.ndim - 1)]
            coordinates[f"{name}_values"] = xr.Variable((name, *inner), plain)
        else:
            coordinates[name] = xr.Variable((name,), plain)
    return coordinates


def _cells(values: pd.Series, count: int) -> np.ndarray:
    """Return a value for each cell of a grid; a missing one where no electron has ended."""
    known = _plain(values)
    return known if len(known) == count else _spread(known, values.index.to_numpy(), count)


def _plain(values: pd.Series) -> np.ndarray:
    """Return a column as NumPy has it: missing values are NaN, and NaT among times.

    Integers and booleans become floats where some are missing, and times with a zone are UTC.
    """
    dtype = values.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        values, dtype = (plain := values.dt.tz_convert("UTC").dt.tz_localize(None)), plain.dtype
    kind = getattr(dtype, "kind", "O")
    if isinstance(dtype, np.dtype) and kind != "O":
        return np.asarray(values.to_numpy())
    missing = values.isna().to_numpy()
    if kind in "biuf" and not isinstance(dtype, pd.CategoricalDtype):
        if missing.any():
            return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.asarray(values.to_numpy(dtype=getattr(dtype, "numpy_dtype", None)))
    objects = values.to_numpy(dtype=object)
    known = objects[~missing]
    if len(known) and isinstance(known[0], np.ndarray):
        stacked = column(list(known))
        if stacked.ndim > 1:
            return _spread(stacked, np.flatnonzero(~missing), len(values))
    objects = objects.copy()
    objects[missing] = np.nan  # as xarray has it, and pandas among texts
    return objects


def _spread(known: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """Return values at their positions among missing ones."""
    if len(known) == count:
        return known
    if known.dtype.kind in "biu":
        known = known.astype(np.float64)
    missing: Any = "NaT" if known.dtype.kind in "mM" else np.nan
    cells = np.full((count, *known.shape[1:]), missing, dtype=known.dtype)
    cells[positions] = known
    return cells
