"""The table of inputs of a run, lazily sliced.

A `Sweep` stays with whoever started the run; `Inputs` are the slice of it that travels.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask import axes, lazy
from atomizer_dask.columns import Values, as_objects, loop_values, numpy_values, size_of
from atomizer_dask.copies import own_copy, own_payload
from atomizer_dask.display import markup
from atomizer_dask.display.text import brief, one_line
from atomizer_dask.equality import alike
from atomizer_dask.errors import InvalidSweepError
from atomizer_dask.given import Given, given, of_list, of_series

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Columns:
    """Inputs as columns of one length.

    Parameters
    ----------
    data
        The columns by name.
    length
        Of each.
    scalars
        The names of those of which electrons are given NumPy's scalars.
    """

    data: dict[str, Values]
    length: int
    scalars: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self.length

    def columns(self) -> dict[str, Values]:
        """Return the columns by name."""
        return self.data


@dataclass(frozen=True, slots=True)
class GridSlice:
    """Inputs as the part of a grid's axes that a slice of it touches.

    Parameters
    ----------
    axes
        For each axis its name, its values, its stride in electrons, and its first block: electron
        i of the grid is in block ``i // stride``, and reads the value at
        ``(block - first) % len(values)``.
    start, stop
        Which electrons of the grid.
    scalars
        The names of the axes of which electrons are given NumPy's scalars.
    """

    axes: tuple[tuple[str, Values, int, int], ...]
    start: int
    stop: int
    scalars: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self.stop - self.start

    def columns(self) -> dict[str, Values]:
        """Return the columns by name, expanded."""
        return {axis[0]: self._expand(*axis[1:]) for axis in self.axes}

    def shared_columns(self) -> dict[str, Values]:
        """Return the same with arrays for values as objects, each there once."""
        return {
            name: self._expand(as_objects(list(values)), stride, first)
            if isinstance(values, np.ndarray) and values.ndim > 1
            else self._expand(values, stride, first)
            for name, values, stride, first in self.axes
        }

    def _expand(self, values: Values, stride: int, first: int) -> Values:
        begin, end = self.start // stride, (self.stop - 1) // stride + 1
        if end - begin == len(values) and begin == first:
            blocks = values
        else:
            blocks = take(values, np.arange(begin - first, end - first) % len(values))
        if stride == 1:
            return blocks
        counts = np.full(end - begin, stride)
        counts[0] -= self.start - begin * stride
        counts[-1] -= end * stride - self.stop
        if isinstance(blocks, range | np.ndarray):
            return np.repeat(numpy_values(blocks), counts, axis=0)
        return blocks.repeat(counts)  # of pandas, which knows no axis


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs as payloads, each as it was given."""

    payloads: list[Any]

    def __len__(self) -> int:
        return len(self.payloads)


Inputs = Columns | GridSlice | Rows


def payload_of(inputs: Inputs) -> Any:
    """Return the inputs of the first electron, for it alone; each call returns others."""
    if isinstance(inputs, Rows):
        return own_payload(inputs.payloads[0])
    return {
        name: own_copy(loop_values(values[:1], scalars=name in inputs.scalars)[0])
        for name, values in inputs.columns().items()
    }


def take(values: Values, positions: np.ndarray) -> Any:
    """Return the values at `positions`; a range is not materialised for that."""
    if isinstance(values, range):
        return values.start + values.step * positions
    if isinstance(values, np.ndarray):
        return values.take(positions, axis=0)
    return values.take(positions)


def numpy_or_extension(values: Values) -> Any:
    """Return a column as something that can be indexed with arrays."""
    return numpy_values(values) if isinstance(values, range) else values


def as_array(values: Values) -> Values:
    """Return a column as a vectorised atom is given it: a range stays one."""
    return values if isinstance(values, range) else numpy_values(values)


class Sweep(ABC):
    """A table of inputs: named fields, one electron per row.

    An electron is given what a ``for`` loop over the values, as the user gave them, would give:
    of an array NumPy's scalars, of a list, range, Series or DataFrame what is in there, with
    Python's numbers.

    Attributes
    ----------
    tells
        Whether it is known as what its columns were given. A store of an early version does not
        say; Python's numbers are what its electrons got.
    """

    tells = True
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

        Decided once from all values: of a nullable column, only some slices have missing ones.
        """
        return self

    @abstractmethod
    def take(self, start: int, stop: int) -> Inputs:
        """Return the inputs of electrons `start` to `stop`."""

    @abstractmethod
    def pick(self, positions: np.ndarray) -> Inputs:
        """Return the inputs of the electrons at `positions`."""

    def inputs_of(self, positions: range | np.ndarray) -> Inputs:
        """Return the inputs of some electrons, however they are named."""
        if isinstance(positions, range):
            return self.take(positions.start, positions.stop)
        return self.pick(positions)

    def together(self, positions: range | np.ndarray) -> int:
        """Return how many of these, from the first on, may be in one batch.

        Others are of another type, which an electron must not take from its neighbours.
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
        head = self.take(0, min(axes.HEAD, count))
        assert not isinstance(head, Rows)
        columns = self.held()
        return markup.card(
            type(self).__name__,
            axes.described(columns, with_counts=self._counts_values),
            axes.head(head.columns(), count),
            beside=[markup.muted(f"{count:,} electrons"), markup.text(self._shape_text())],
        )

    def check_values(self) -> None:
        """Raise where a value can never be meant to be an input; see `lazy`.

        Raises
        ------
        InvalidSweepError
            With its name and what to do.
        """
        for name, values in self.held().items():
            lazy.check_values(name, values)

    def held(self) -> Mapping[str, Values]:
        """Return the columns, or axes, as they are held: without making any."""
        return {}

    def _shape_text(self) -> str:
        return ""


class Grid(Sweep):
    """All combinations of its axes' values, the last axis fastest; never materialised."""

    _counts_values = True

    def __init__(self, axes: Mapping[str, Given], *, tells: bool = True) -> None:
        self.given = dict(axes)
        self.tells = tells
        self._axes = {name: axis.shown for name, axis in axes.items()}
        self._sent = {name: axis.values for name, axis in axes.items()}
        self._scalars = frozenset(name for name, axis in axes.items() if axis.scalars)
        sizes = [len(values) for values in self._axes.values()]
        self._length = prod(sizes)
        self._strides = [prod(sizes[position + 1 :]) for position in range(len(sizes))]

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self._axes)

    @property
    def length(self) -> int:  # noqa: D102
        return self._length

    @property
    def axes(self) -> dict[str, Values]:
        """The values of each axis."""
        return self._axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis: reshape a result column with it."""
        return tuple(len(values) for values in self._axes.values())

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return sum(
            size_of(values) / len(values) / stride
            for values, stride in zip(self._axes.values(), self._strides, strict=True)
        )

    def held(self) -> Mapping[str, Values]:  # noqa: D102
        return self._axes

    def _shape_text(self) -> str:
        return " x ".join(f"{size:,}" for size in self.shape) if len(self.shape) > 1 else ""

    def as_arrays(self) -> Grid:  # noqa: D102
        converted = copy(self)
        converted._sent = {name: as_array(values) for name, values in self._axes.items()}
        converted._scalars = frozenset()
        return converted

    def take(self, start: int, stop: int) -> GridSlice:  # noqa: D102
        return self._slice(self._sent, start, stop)

    def pick(self, positions: np.ndarray) -> Columns:  # noqa: D102
        return Columns(self._at(self._sent, positions), len(positions), self._scalars)

    def columns_at(  # noqa: D102
        self, positions: np.ndarray, wanted: Collection[str] | None = None
    ) -> dict[str, Values]:
        found = self._at(self._axes, positions)
        return {name: v for name, v in found.items() if wanted is None or name in wanted}

    def _at(self, columns: dict[str, Values], positions: np.ndarray) -> dict[str, Values]:
        axes = zip(columns.items(), self._strides, strict=True)
        return {n: take(values, positions // stride % len(values)) for (n, values), stride in axes}

    def _slice(self, columns: dict[str, Values], start: int, stop: int) -> GridSlice:
        axes = []
        for (name, values), stride in zip(columns.items(), self._strides, strict=True):
            begin, end = start // stride % len(values), (stop - 1) // stride % len(values) + 1
            touched = (stop - 1) // stride - start // stride + 1
            if touched <= end - begin:  # no wrap-around: only what is needed travels
                axes.append((name, values[begin:end], stride, start // stride))
            else:
                axes.append((name, values, stride, 0))
        return GridSlice(tuple(axes), start, stop, self._scalars)

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        axes = self._slice(self._axes, 0, self._length).axes
        some = tuple(axis for axis in axes if wanted is None or axis[0] in wanted)
        return GridSlice(some, 0, self._length).columns()


class Table(Sweep):
    """Columns of equal length, or those of a DataFrame with its index."""

    def __init__(
        self,
        columns: Mapping[str, Given],
        frame: pd.DataFrame | None = None,
        *,
        tells: bool = True,
    ) -> None:
        self.given = dict(columns)
        self.tells = tells
        self._columns = {name: column.shown for name, column in columns.items()}
        self._sent = {name: column.values for name, column in columns.items()}
        self._scalars = frozenset(name for name, column in columns.items() if column.scalars)
        self._frame = frame
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise InvalidSweepError(
                f"the columns of a sweep must be of equal length, got {listed}; "
                "for all combinations of values use grid(...)"
            )
        self._length = next(iter(lengths.values()))

    @property
    def names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self._columns)

    @property
    def length(self) -> int:  # noqa: D102
        return self._length

    @property
    def index(self) -> pd.Index | None:  # noqa: D102
        return None if self._frame is None else self._frame.index

    @property
    def frame(self) -> pd.DataFrame | None:  # noqa: D102
        return self._frame

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return sum(size_of(values) for values in self._columns.values()) / self._length

    def held(self) -> Mapping[str, Values]:  # noqa: D102
        return self._columns

    def _shape_text(self) -> str:
        index = self.index
        return "" if index is None else f"with an index of {index.dtype}"

    def as_arrays(self) -> Table:  # noqa: D102
        converted = copy(self)
        converted._sent = {name: as_array(values) for name, values in self._columns.items()}
        converted._scalars = frozenset()
        return converted

    def take(self, start: int, stop: int) -> Columns:  # noqa: D102
        data = {name: values[start:stop] for name, values in self._sent.items()}
        return Columns(data, stop - start, self._scalars)

    def pick(self, positions: np.ndarray) -> Columns:  # noqa: D102
        data = {name: take(values, positions) for name, values in self._sent.items()}
        return Columns(data, len(positions), self._scalars)

    def columns(self, wanted: Collection[str] | None = None) -> dict[str, Values]:  # noqa: D102
        return {n: v for n, v in self._columns.items() if wanted is None or n in wanted}


class Streamed(Sweep):
    """Mappings drawn from an iterator as they are needed; how many is known at its end."""

    def __init__(self, rows: Iterator[Mapping[str, Any]]) -> None:
        self._source = rows
        self._drawn: list[Mapping[str, Any]] = []
        self._length: int | None = None
        self._expected: list[Mapping[str, Any]] = []
        self.is_read = False

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows that have been drawn so far."""
        return self._drawn

    @classmethod
    def read(cls, length: int | None) -> Streamed:
        """Return one that was kept, of a length that is known where its iterator has ended."""
        sweep = cls(iter(()))
        sweep.is_read, sweep._length = True, length
        return sweep

    def fill(self, rows: list[Mapping[str, Any]]) -> None:
        """Take rows for drawn that another process drew."""
        self._drawn = rows

    def expect(self, rows: list[Mapping[str, Any]]) -> None:
        """Take rows for drawn that another process drew, and see to it that they come again.

        Raises
        ------
        InvalidSweepError
            From `draw`, where another row comes.
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
        """How many have been drawn so far."""
        return len(self._drawn)

    @property
    def row_bytes(self) -> float:  # noqa: D102
        return 256.0

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        rows = list(self._drawn[: axes.HEAD])
        columns = {name: as_objects([row.get(name) for row in rows]) for name in self.names}
        known = f"{self.drawn:,} drawn so far" if self._length is None else ""
        length = "of unknown length" if self._length is None else f"{self._length:,} electrons"
        return markup.card(
            type(self).__name__,
            axes.head(columns, self._length or self.drawn) if rows else None,
            beside=[markup.muted(length), markup.text(known)],
        )

    def draw(self) -> Iterator[int]:
        """Draw row after row, and yield after each how many there are.

        Raises
        ------
        InvalidSweepError
            Where the iterator gave something that is not a mapping.
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
            lazy.check_payload(row)
            self._drawn.append(own_payload(row))  # its source may use it again for the next
            yield len(self._drawn)

    def end(self) -> int:
        """Take no more than what has been drawn by now, and return how many that is."""
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
        return {name: of_list([row.get(name) for row in rows]).shown for name in names}


def grid(**axes: Any) -> Grid:
    """Return all combinations of the axes' values, the last axis fastest.

    Parameters
    ----------
    **axes
        For each parameter a sequence of values: a range, an array, a list, a pandas Series. An
        electron gets what a ``for`` loop over it would give, as a copy where it can be changed:
        of ``np.linspace(0, 1)`` a ``np.float64``, of ``[0, 0.5]`` an int or a float.

    Raises
    ------
    InvalidSweepError
        Where an axis is empty or not a sequence.

    Examples
    --------
    >>> grid(temperature=[1.0, 2.0], size=[32, 64], replica=range(50))
    <Grid: 200 electrons of temperature, size, replica>
    """
    if not axes:
        raise InvalidSweepError("a grid needs at least one axis, as in grid(x=range(10))")
    return Grid({name: given(name, values) for name, values in axes.items()})


def zipped(**columns: Any) -> Table:
    """Return columns side by side: electron i has the i-th value of each.

    Parameters
    ----------
    **columns
        For each parameter a sequence of values, all of one length. An electron gets what a
        ``for`` loop over it would give, as in a `grid`.

    Raises
    ------
    InvalidSweepError
        Where a column is empty, not a sequence, or of another length than the rest.

    Examples
    --------
    >>> zipped(x=[1, 2, 3], label=["a", "b", "c"])
    <Table: 3 electrons of x, label>
    """
    if not columns:
        raise InvalidSweepError("zipped needs at least one column, as in zipped(x=[1, 2, 3])")
    return Table({name: given(name, values) for name, values in columns.items()})


def as_sweep(inputs: Any) -> Sweep:
    """Return `inputs` as a sweep.

    Parameters
    ----------
    inputs
        A sweep, a DataFrame, a mapping of equal-length columns, a list of mappings, or any
        iterator of mappings.

    Raises
    ------
    InvalidSweepError
        Where it is none of these, or has no electrons.
    """
    if isinstance(inputs, Sweep):
        return inputs
    lazy.check_sweep(inputs)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(inputs, pandas.DataFrame):
        return _from_frame(inputs)
    if isinstance(inputs, Mapping):
        _check_names(inputs)
        return zipped(**inputs)
    if pandas is not None and isinstance(inputs, pandas.Series):
        raise InvalidSweepError(
            f"cannot sweep over the Series {inputs.name!r}; write series.to_frame(), named as the "
            "parameter is"
        )
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        return _from_mappings(inputs)
    if isinstance(inputs, Iterator):
        return Streamed(inputs)
    if isinstance(inputs, Iterable) and not isinstance(
        inputs, str | bytes | np.ndarray | set | frozenset
    ):
        return Streamed(iter(inputs))
    raise InvalidSweepError(
        f"cannot sweep over {type(inputs).__name__} {brief(inputs)}; expected grid(...), "
        "zipped(...), a DataFrame, a mapping of columns, a list of mappings, or an iterator of "
        "mappings"
    )


def _from_frame(frame: pd.DataFrame) -> Table:
    _check_names(frame.columns)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise InvalidSweepError(f"the columns {twice} appear more than once in the DataFrame")
    if frame.empty:
        raise InvalidSweepError(f"the DataFrame has no electrons: its shape is {frame.shape}")
    # A shallow copy: under copy-on-write the user may go on changing theirs.
    held = frame.copy(deep=False)
    return Table({str(name): of_series(held[name]) for name in held.columns}, held)


def _from_mappings(rows: Sequence[Any]) -> Table:
    if not rows:
        raise InvalidSweepError("the list of mappings is empty: there is no electron to send")
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidSweepError(
                f"row {position} of the sweep is {brief(row)}, expected a mapping of parameter "
                "names to values; for columns of values use zipped(x=[...]) or grid(x=[...])"
            )
    names = rows[0].keys()
    _check_names(names)
    for position, row in enumerate(rows):
        if row.keys() != names:
            raise InvalidSweepError(
                f"row {position} of the sweep has the fields {sorted(row)}, row 0 has "
                f"{sorted(names)}; all rows must have the same"
            )
    if not names:
        raise InvalidSweepError("the mappings of the sweep are empty: they name no parameter")
    return Table({name: of_list([row[name] for row in rows]) for name in names})


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InvalidSweepError(
                f"column {name!r} is named by a {type(name).__name__}; columns must have the "
                "names of the atom's parameters, as strings"
            )
