"""The rows of a sweep, as its user sees them, and the electrons of the run that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar

import numpy as np

from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.sweeps.columns import look_up, numpy_values
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.sweep import Sweep

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowMap:
    """The rows of a sweep, and which electron stands for each.

    Parameters
    ----------
    sweep
        As the user gave it.
    electrons
        The electron for each row; None where electron i stands for row i, as it does unless a store
        had electrons of an earlier sweep.
    """

    sweep: Sweep
    electrons: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many rows there are, or have been drawn."""
        if isinstance(self.sweep, Streamed):
            return self.sweep.drawn
        return self.sweep.length or 0

    def electron(self, row: int) -> int:
        """Return the electron that stands for a row."""
        return row if self.electrons is None else int(self.electrons[row])

    def has(self, electron: int) -> bool:
        """Return whether an electron stands for a row."""
        if self.electrons is None:
            return electron < self.count
        return bool((self.electrons == electron).any())

    def labels(self) -> Callable[[int], Any]:
        """Return what gives the label of an electron in the index of the frame.

        It raises `LookupError` for an electron that stands for no row.
        """
        index = self.sweep.index
        rows: Callable[[int], int] = range(self.count).__getitem__
        if self.electrons is not None:
            rows = {int(electron): row for row, electron in enumerate(self.electrons)}.__getitem__
        return rows if index is None else lambda electron: index[rows(electron)]

    def find(self, label: Any, run_id: str) -> int:
        """Return the electron that a label of the sweep's index, or an id, stands for.

        Parameters
        ----------
        label
            A label of the index of the frame; or the id of an electron, which begins with `run_id`.
        run_id
            The id of the run.

        Raises
        ------
        KeyError
            Where there is no such electron, or several.
        """
        found: list[int]
        if isinstance(label, str) and label.startswith(f"{run_id}-"):
            number = label.removeprefix(f"{run_id}-")
            if number.isdecimal() and self.has(int(number)):
                return int(number)
            found = []
        elif self.sweep.index is not None:
            found = np.flatnonzero(self.sweep.index == label).tolist()
        else:
            row = int(label) if isinstance(label, Integral) else -1
            found = [row] if 0 <= row < self.count else []
        if len(found) == 1:
            return self.electron(int(found[0]))
        what = f"has {len(found)} electrons of the label" if found else "has no electron"
        raise KeyError(
            f"{run_id} {what} {label!r}; give an id from {run_id}-0 to {run_id}-{self.count - 1}, "
            "or a label of the index of its frame"
        )

    def as_keys(self, known: Mapping[int, T]) -> Mapping[int, T]:
        """Return a mapping by electron as one by row, without electrons that stand for no row."""
        if self.electrons is None or not known:
            return known
        rows = {electron: row for row, electron in enumerate(self.electrons.tolist())}
        return {rows[electron]: value for electron, value in known.items() if electron in rows}

    def mask(self) -> np.ndarray | None:
        """Return which electrons stand for a row; None where all do."""
        if self.electrons is None:
            return None
        wanted = np.zeros(1 + int(self.electrons.max()), dtype=bool)
        wanted[self.electrons] = True
        return wanted

    def as_rows(self, parts: Iterable[RunPart]) -> list[RunPart]:
        """Return parts whose positions are electrons as parts whose positions are rows."""
        if self.electrons is None:
            return list(parts)
        rows = np.full(1 + int(self.electrons.max()), -1)
        rows[self.electrons] = np.arange(len(self.electrons))
        seen = []
        for part in map(RunPart.current, parts):
            found = look_up(rows, numpy_values(part.positions), -1)
            kept = part.pick(found >= 0)
            seen.append(RunPart(found[found >= 0], kept.outcome, part.attempt, code=part.code))
        return [part for part in seen if len(part)]
