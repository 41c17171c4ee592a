"""The methods of a run that draw pictures, or return an xarray Dataset.

matplotlib and xarray are loaded by the first call of a method that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.runs.frames.frame import to_frame
from atomizer_dask.runs.frames.read import read_parts
from atomizer_dask.runs.results import Results
from atomizer_dask.store.stored_part import StoredPart
from atomizer_dask.sweeps.columns import OUTPUT_PREFIX, renamed

if TYPE_CHECKING:
    from atomizer_dask.runs.plots.figure import Heading


T = TypeVar("T")
LARGEST_SEED = 2**63  # smaller seeds fit the 64-bit integers of netCDF and Zarr


class Pictures(Results):
    """The results of a run as pictures, and on the axes of its grid."""

    atom_id: str
    seed: int

    def plot(
        self,
        y: str | Sequence[str] | None = None,
        *,
        x: str | None = None,
        hue: str | None = None,
        over: str | Sequence[str] | None = None,
        ax: Any = None,
    ) -> Any:
        """Draw outputs against the inputs that vary, of what has ended so far.

        One input gives a line, two give a heat map; of more inputs, name those to draw.
        Of electrons with equal inputs the mean is drawn; along a line with its standard error, as
        bars or, of many points, as a band. An input that is called ``replica``, ``replicate``,
        ``repeat``, ``trial``, ``seed`` or ``sample`` counts replicas: it is averaged over.
        Failed electrons are missing points and cells. Texts and booleans are categories, times
        are times, and the axis of a geometric series is logarithmic.

        Parameters
        ----------
        y
            Which outputs; all numbers, booleans and durations where not given. ``"duration"`` is
            how long an electron took.
        x
            The input to draw along, from left to right.
        hue
            An input with at most 10 values, each of which gets a line. By default, where `x` is
            given, the only other input that varies, if it has at most 10 values.
        over
            Inputs to average over, besides replicas.
        ax
            Where to draw: an Axes, or a list of one for each output; a new figure where not given.

        Returns
        -------
        matplotlib.axes.Axes
            Of several outputs the `matplotlib.figure.Figure` with an Axes for each, unless `ax`
            is one Axes, which has a line for each then.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        KeyError
            Where there is no such input or output.
        TypeError
            Where `y` names nothing.
        ValueError
            Where nothing has ended well yet, nothing can be drawn, or there is more than one way.

        Notes
        -----
        Of millions of electrons no more is drawn than can be seen: neighbouring values of an
        input are averaged then, which the picture says.

        Examples
        --------
        ``run.plot("energy", x="temperature", hue="size")``
        """
        from atomizer_dask.runs.plots.outputs import plot
        from atomizer_dask.runs.plots.roles import names_of

        heading = self._heading()
        heading.check_ended(well=True)
        if not (y is None or isinstance(y, str | Sequence)):
            raise TypeError(f"y must be the name of an output or a list of names, got {y!r}")
        if y is None:
            frame = self.to_frame()
        else:
            outputs = [y] if isinstance(y, str) else list(y)
            frame = self.to_frame(columns=[*names_of(self.sweep), *outputs])
        return plot(frame, self.sweep, heading, y, x, hue, over, ax)

    def timeline(self, ax: Any = None) -> Any:
        """Draw when which worker was busy, and when electrons failed there.

        A worker has a lane for each electron that it executed at the same time. Marks show failed
        attempts, superseded ones too; processes that an electron killed; and workers that were lost
        while this process drove the run, whose electrons other workers executed.

        Parameters
        ----------
        ax
            Where to draw; a new figure where not given.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        ValueError
            Where no electron has run yet.

        Notes
        -----
        Spans that cannot be seen apart are drawn as one: some thousands of the longest run.
        """
        from atomizer_dask.runs.plots.schedule import spans_of, spans_of_attempts
        from atomizer_dask.runs.plots.timeline import timeline

        heading = self._heading()
        heading.check_ended()
        spans = self._of_each_part(spans_of)
        earlier = self._view.as_keys(dict(self._ledger.history))
        spans += spans_of_attempts(chain.from_iterable(earlier.values()))
        return timeline(spans, heading, self._lost_workers, ax)

    def durations(self, ax: Any = None) -> Any:
        """Draw how long electrons took: a histogram, with the median and the 95th percentile.

        Failed electrons have bars of their own; median and percentile are of the others, where
        there are any. Where one call executed several electrons, as of a vectorised atom, durations
        are those of calls. The axis is logarithmic where durations differ by more than a
        hundredfold.

        Parameters
        ----------
        ax
            Where to draw; a new figure where not given.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        ValueError
            Where no electron has run yet.
        """
        from atomizer_dask.runs.plots.schedule import durations_of
        from atomizer_dask.runs.plots.timeline import durations

        heading = self._heading()
        heading.check_ended()
        return durations(self._of_each_part(durations_of), heading, ax)

    def to_xarray(self) -> Any:
        """Return the outputs of a run over a ``grid`` on its axes, for labelled arrays.

        Returns
        -------
        xarray.Dataset
            The axes of the grid, replicas too, are dimensions and coordinates; each output is a
            variable. Where an electron has failed, or has not ended yet, a value is missing: NaN,
            or NaT among times. Integers and booleans are floats where some are missing, and stay
            what they are where none is. Arrays of one shape and dtype have further dimensions,
            ``{output}_dim0`` and so on; other objects stay objects. Times with a zone are UTC.
            An axis with a value twice has it twice: ``sel`` gives both. An axis of arrays has the
            coordinate ``{axis}_values``. Its ``attrs`` are run_id, atom, seed (as text beyond 63
            bits, for the sake of files) and, of a run that has one, store.

        Raises
        ------
        ImportError
            Where xarray is not installed.
        ValueError
            Where the sweep is not a grid.

        Examples
        --------
        ``run.to_xarray()["energy"].mean("replica").sel(size=64)``
        """
        from atomizer_dask.runs.plots.dataset import check_grid, to_dataset

        sweep = check_grid(self.id, self.sweep)
        parts = self._view.as_rows(self._parts(metadata=False))
        raw = dict.fromkeys(name for part in parts for name in part.outcome.results)
        named = renamed(raw, OUTPUT_PREFIX, sweep.names)
        outputs = to_frame(sweep, parts, self.id, columns=named.keys())
        seed = self.seed if self.seed < LARGEST_SEED else str(self.seed)
        attrs: dict[str, Any] = {"run_id": self.id, "atom": self.atom_id, "seed": seed}
        if self.store is not None:
            attrs["store"] = self.store
        return to_dataset(sweep, outputs, attrs)

    def _heading(self) -> Heading:
        from atomizer_dask.runs.plots.figure import Heading

        ledger = self._ledger
        with ledger.changed:
            done, failed = ledger.done, ledger.failed
        return Heading(self.id, self.atom_id, done, failed, self.sweep.length)

    def _of_each_part(self, read: Callable[[RunPart], T]) -> list[T]:
        """Return the result of `read` for each part, with start, end and worker; file by file."""

        def of_files(parts: list[StoredPart]) -> list[T]:
            files = {part.name: part for part in parts}.values()
            loaded = (read_parts([part], metadata=True, outputs=()) for part in files)
            return [read(part) for each in loaded for part in self._view.as_rows(each)]

        stored, here = self._read(of_files)
        current = self._view.as_rows(part.current() for part in here)
        return [*stored, *(read(part) for part in current if len(part))]
