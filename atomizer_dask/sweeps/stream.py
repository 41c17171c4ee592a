"""Rows drawn from an iterator as they are needed."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from atomizer_dask.display import markup
from atomizer_dask.display.text import brief
from atomizer_dask.errors import InvalidSweepError
from atomizer_dask.sweeps import lazy_values, summary
from atomizer_dask.sweeps.columns import LARGE_BYTES, Values, as_objects, is_plain_array
from atomizer_dask.sweeps.copies import own_copy, own_payload
from atomizer_dask.sweeps.equality import alike, same_bits
from atomizer_dask.sweeps.inputs import Rows
from atomizer_dask.sweeps.received import of_list
from atomizer_dask.sweeps.sweep import Sweep


class Streamed(Sweep):
    """Mappings drawn from an iterator as they are needed; how many is known at its end."""

    def __init__(self, rows: Iterator[Mapping[str, Any]]) -> None:
        self._source = rows
        self._drawn: list[Mapping[str, Any]] = []
        self._length: int | None = None
        self._expected: list[Mapping[str, Any]] = []
        # Of each field the latest large array, and the copy of it.
        self._latest: dict[str, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}
        self.is_read = False

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows that have been drawn so far."""
        return self._drawn

    @classmethod
    def read(cls, length: int | None) -> Streamed:
        """Return a stream from a store, without its iterator; `length` is None if unknown."""
        sweep = cls(iter(()))
        sweep.is_read, sweep._length = True, length
        return sweep

    def fill(self, rows: list[Mapping[str, Any]]) -> None:
        """Set the rows that another process has drawn."""
        self._drawn = rows

    def expect(self, rows: list[Mapping[str, Any]]) -> None:
        """Set the rows that another process has drawn; `draw` checks that they come again.

        Raises
        ------
        InvalidSweepError
            From `draw`, where the iterator gives another row.
        """
        self.fill(list(rows))
        self._expected = rows

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(dict.fromkeys(name for row in self._drawn[:100] for name in row))

    @property
    def length(self) -> int | None:  # noqa: D102
        return self._length

    @property
    def drawn(self) -> int:
        """How many rows have been drawn so far."""
        return len(self._drawn)

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return 256.0

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        rows = list(self._drawn[: summary.HEAD])
        columns = {name: as_objects([row.get(name) for row in rows]) for name in self.names}
        known = f"{self.drawn:,} drawn so far" if self._length is None else ""
        length = "of unknown length" if self._length is None else f"{self._length:,} electrons"
        return markup.card(
            type(self).__name__,
            summary.head(columns, self._length or self.drawn) if rows else None,
            beside=[markup.muted(length), markup.text(known)],
        )

    def draw(self) -> Iterator[int]:
        """Draw row after row, and yield after each new one how many there are.

        Raises
        ------
        InvalidSweepError
            Where the iterator gives something that is not a mapping of inputs, or another row than
            `expect` has set.
        """
        for number, row in enumerate(self._source):
            if number < len(self._expected):
                if not alike(own_payload(row), self._expected[number]):
                    raise InvalidSweepError(
                        f"row {number} of the sweep is {brief(row)}, in the store it is "
                        f"{brief(self._expected[number])}: a stream can be extended, not changed"
                    )
                continue
            if not isinstance(row, Mapping):
                raise InvalidSweepError(
                    f"row {len(self._drawn)} of the sweep is {brief(row)}, expected a mapping of "
                    "parameter names to values"
                )
            lazy_values.check_payload(row)
            self._drawn.append(self._own(row))  # the iterator may reuse the mapping
            yield len(self._drawn)

    def _own(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a copy of a row, which shares large arrays with that of the row before."""
        if not any(map(_is_large, row.values())):
            owned: dict[str, Any] = own_payload(row)
            return owned
        return {
            name: self._own_array(name, value) if _is_large(value) else own_copy(value)
            for name, value in row.items()
        }

    def _own_array(self, name: str, value: np.ndarray) -> np.ndarray:
        if name in self._latest:
            original, copied = self._latest[name]
            if original() is value and same_bits(value, copied):  # it may have changed since
                return copied
        copied = value.copy("K")
        copied.flags.writeable = False  # frames show this very array
        self._latest[name] = weakref.ref(value), copied
        return copied

    def end(self) -> int:
        """Set the length to the number of rows drawn so far, unless it is set, and return it."""
        if self._length is None:
            self._length = len(self._drawn)
        return self._length

    def take(self, start: int, stop: int) -> Rows:  # noqa: D102
        return Rows(list(self._drawn[start:stop]))

    def pick(self, positions: np.ndarray) -> Rows:  # noqa: D102
        return Rows([self._drawn[position] for position in positions.tolist()])

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        rows = self._drawn[: self._length]
        names = dict.fromkeys(
            name for row in rows for name in row if wanted is None or name in wanted
        )
        return {name: _shown([row.get(name) for row in rows]) for name in names}


def _is_large(value: Any) -> bool:
    return is_plain_array(value) and value.nbytes >= LARGE_BYTES


def _shown(values: list[Any]) -> Values:
    # Those that another process has drawn can be changed: the frame is given copies.
    is_shared = all(_is_large(value) and not value.flags.writeable for value in values)
    return as_objects(values) if is_shared else of_list(values).shown
