"""The columns and rows of a frame that a user asks for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.sweeps.columns import METADATA_PREFIX, OUTPUT_PREFIX

if TYPE_CHECKING:
    import pandas as pd


METADATA = {"id", "start", "end", "duration", "worker", "attempts", "code"}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda column, values: column.isin(list(values)),
    "not in": lambda column, values: ~column.isin(list(values)),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns and rows of a frame that a user asks for.

    Parameters
    ----------
    shown
        The columns to return; None for all.
    columns
        `shown` and the columns that `filters` name; None for all.
    filters
        Triples of a column, a comparison and a value.
    metadata
        Whether metadata are needed.
    """

    shown: list[str] | None
    columns: set[str] | None
    filters: list[tuple[str, str, Any]]
    metadata: bool

    @classmethod
    def of(
        cls, columns: Sequence[str] | None, filters: Iterable[Any] | None, *, metadata: bool
    ) -> Selection:
        """Return the selection for the options of `Run.to_frame`.

        Raises
        ------
        TypeError
            Where `columns` is a text.
        ValueError
            Where a filter is no triple, or its comparison is unknown.
        """
        if isinstance(columns, str):
            raise TypeError(f"columns must be a list of names, as in [{columns!r}]")
        triples = [_checked(each) for each in filters or ()]
        shown = None if columns is None else list(dict.fromkeys(columns))
        needed = None if shown is None else {*shown, *(name for name, _, _ in triples)}
        named = {*(shown or ()), *(name for name, _, _ in triples)}
        facts = {name.removeprefix(METADATA_PREFIX) for name in named}
        return cls(shown, needed, triples, metadata or bool(facts & METADATA))

    def reads(self, inputs: Collection[str]) -> Collection[str] | None:
        """Return which outputs must be read; None for all."""
        if self.columns is None:
            return None
        wanted = self.columns - set(inputs)
        for (
            name
        ) in self.columns:  # an output gets the prefix where its name is taken, perhaps twice
            while name.startswith(OUTPUT_PREFIX):
                name = name.removeprefix(OUTPUT_PREFIX)
                wanted.add(name)
        # An output with the name of a fact must be read, too: without it the fact has no prefix.
        facts = {name.removeprefix(METADATA_PREFIX) for name in self.columns} & METADATA
        return wanted | facts

    def mask(self, column_of: Callable[[str], pd.Series | None], count: int) -> np.ndarray:
        """Return a mask over `count` rows: True where all filters hold.

        Parameters
        ----------
        column_of
            Returns a column, or None where there is none; a filter on it is then left out.
        """
        kept = np.ones(count, dtype=bool)
        for name, comparison, value in self.filters:
            if (column := column_of(name)) is not None:
                matches = _COMPARISONS[comparison](column, value)
                kept &= matches.fillna(False).to_numpy(dtype=bool)
        return kept

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the selected columns and rows of a frame.

        Raises
        ------
        KeyError
            Where the frame has no such column.
        """
        for name, _, _ in self.filters:
            _check_column(name, frame)
        if self.filters:
            frame = frame[self.mask(frame.get, len(frame))]
        if self.shown is None:
            return frame
        for name in self.shown:
            _check_column(name, frame)
        return frame[self.shown]


def _check_column(name: str, frame: pd.DataFrame) -> None:
    if name not in frame.columns:
        raise KeyError(
            f"there is no column {name!r}; to_frame() without columns and filters shows which "
            "there are"
        )


def _checked(each: Any) -> tuple[str, str, Any]:
    if not (isinstance(each, tuple | list) and len(each) == 3 and each[1] in _COMPARISONS):
        raise ValueError(
            f"a filter is a column, one of {' '.join(_COMPARISONS)}, and a value, as in "
            f"('x', '>', 2); got {each!r}"
        )
    return each[0], each[1], each[2]
