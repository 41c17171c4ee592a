"""Which rows of a sweep are in a store already: those of the same inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from atomizer_dask.sweeps.equality import codes_of
from atomizer_dask.sweeps.inputs import Columns, GridSlice


def match(
    known: Sequence[Columns | GridSlice], given: Columns | GridSlice, free: np.ndarray | None = None
) -> np.ndarray:
    """Return for each row of `given` the row of `known` with the same inputs, -1 for none.

    Where rows are alike, the first matches the first, the second the second, and so on. Inputs
    are the same whose type and value are; see `equality`.

    Parameters
    ----------
    known
        The rows of a store, in parts that stand end to end.
    given
        Rows of the same fields.
    free
        Which rows of `known` may be matched, in order; all where None.

    Examples
    --------
    >>> known, given = (Columns({"x": np.array(x)}, len(x)) for x in ([1, 2, 2], [2, 3, 2, 1]))
    >>> match([known], given).tolist()
    [1, -1, 2, 0]
    """
    parts = [*known, given]
    columns = [part.columns() for part in parts]
    names = list(columns[-1])
    codes = pd.DataFrame(
        {
            name: codes_of(
                (those[name], name in part.scalars)
                for those, part in zip(columns, parts, strict=True)
            )
            for name in names
        }
    )
    count = sum(map(len, known))
    free = np.arange(count) if free is None else free
    before, now = codes.iloc[free].copy(), codes.iloc[count:].copy()
    for rows in (before, now):
        rows["_nth"] = rows.groupby(names, sort=False).cumcount()
    before["_row"] = free
    joined = now.merge(before, how="left", on=[*names, "_nth"], sort=False)
    return joined["_row"].fillna(-1).to_numpy(dtype=np.int64, copy=True)
