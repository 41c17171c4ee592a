"""The table of inputs of a run, which stays in the process that started the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.display import markup
from atomizer_dask.display.completion import offers
from atomizer_dask.display.text import one_line
from atomizer_dask.sweeps import lazy_values, summary
from atomizer_dask.sweeps.columns import Values
from atomizer_dask.sweeps.inputs import Inputs, Rows, payload_of, take

if TYPE_CHECKING:
    import pandas as pd


@offers("columns frame index length names")
class Sweep(ABC):
    """A table of inputs: named fields, one electron per row.

    An electron is given what a ``for`` loop over the values, as the user gave them, would give:
    of an array NumPy's scalars, of a list, range, Series or DataFrame what is in there, with
    Python's numbers.

    Attributes
    ----------
    is_as_given
        Whether the forms of its columns are known: array, list or Series. Stores of an early
        version do not record them; their electrons got Python's numbers.
    """

    is_as_given = True
    _counts_values = False  # in what a notebook shows

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The fields."""

    @property
    @abstractmethod
    def length(self) -> int | None:
        """How many electrons; None while that is unknown."""

    @property
    def index(self) -> pd.Index | None:
        """The user's own index, where there is one."""
        return None

    @property
    def frame(self) -> pd.DataFrame | None:
        """The user's own DataFrame, where there is one; shared, and not to be changed."""
        return None

    @property
    @abstractmethod
    def row_bytes(self) -> float:
        """About how many bytes an electron's inputs take when they travel."""

    def as_arrays(self) -> Sweep:
        """Return it with columns of the dtypes that a vectorised atom is given.

        They follow from all values at once: of a nullable column, some slices alone have missing
        values.
        """
        return self

    def for_store(self) -> Sweep:
        """Return it with columns as a store holds them."""
        return self

    def constants(self, least: int) -> dict[str, Any]:
        """Return the values of at least so many bytes that are an input of all electrons, by name.

        Empty where there are no other inputs.
        """
        return {}

    def without(self, names: Collection[str]) -> Sweep:
        """Return the sweep without some of its constants; its electrons stay where they are."""
        assert not names
        return self

    @abstractmethod
    def take(self, start: int, stop: int) -> Inputs:
        """Return the inputs of electrons `start` to `stop`."""

    @abstractmethod
    def pick(self, positions: np.ndarray) -> Inputs:
        """Return the inputs of the electrons at `positions`."""

    def inputs_of(self, positions: range | np.ndarray) -> Inputs:
        """Return the inputs of the electrons at `positions`, a range of step 1 or an array."""
        if isinstance(positions, range):
            return self.take(positions.start, positions.stop)
        return self.pick(positions)

    def together(self, positions: range | np.ndarray) -> int:
        """Return how many of these, from the first on, may be in one batch.

        A batch ends where inputs of another type begin, which would change in a column with these.
        """
        return len(positions)

    @abstractmethod
    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:
        """Return all inputs as columns, or those of them that are wanted."""

    def columns_at(
        self, positions: np.ndarray, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        """Return the inputs at `positions` as columns, of the types that `columns` gives."""
        return {name: take(v, positions) for name, v in self.columns(wanted).items()}

    def cells(
        self, positions: np.ndarray | None, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        """Return inputs as columns of a frame, at `positions` or, where that is None, all.

        Rows whose input is the same array may share it.
        """
        if positions is None:
            return self.columns(wanted)
        return self.columns_at(positions, wanted)

    def payload(self, position: int) -> dict[str, Any]:
        """Return the inputs of one electron, for it alone."""
        payload: dict[str, Any] = payload_of(self.take(position, position + 1))
        return payload

    def __repr__(self) -> str:
        size = "a stream of" if self.length is None else f"{self.length:,}"
        fields = one_line(", ".join(self.names) or "unknown fields", 120)
        return f"<{type(self).__name__}: {size} electrons of {fields}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        count = self.length or 0
        head = self.take(0, min(summary.HEAD, count))
        assert not isinstance(head, Rows)
        columns = self.held()
        return markup.card(
            type(self).__name__,
            summary.described(columns, with_counts=self._counts_values),
            summary.head(head.columns(), count),
            beside=[markup.muted(f"{count:,} electrons"), markup.text(self._shape_text())],
        )

    def check_values(self) -> None:
        """Raise where a value can never be meant to be an input; see `lazy_values`.

        Raises
        ------
        InvalidSweepError
            With its name and what to do.
        """
        for name, values in self.held().items():
            lazy_values.check_values(name, values)

    def held(self) -> Mapping[str, Values]:
        """Return the columns, or axes, that the sweep already has in memory."""
        return {}

    def _shape_text(self) -> str:
        return ""
