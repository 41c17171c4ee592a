"""What the electrons of a run have printed, as far as it is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomizer_dask.config import setting
from atomizer_dask.console.printed import Line, Printed
from atomizer_dask.console.recorder import NOTHING, Allowance, Piece
from atomizer_dask.execution.batch import Batch, Positions
from atomizer_dask.execution.outcome import BatchOutcome
from atomizer_dask.sweeps.columns import numpy_values

if TYPE_CHECKING:
    import pandas as pd

STDERR_STREAMS = ("stderr", "logging", "warnings")


class OutputLog:
    """What the electrons of a run have printed.

    Only the conductor's dispatcher thread adds to it; any thread may read.

    Attributes
    ----------
    written
        Names of the files of a store that have what is here.
    count
        How many pieces have been added.
    """

    def __init__(self) -> None:
        self.written: Collection[str] = ()
        self.count = 0
        self._printed: list[Printed] = []
        self._of_electron = setting("output.of-electron")
        self._left = setting("output.of-run")

    def allowance(self, output: str) -> Allowance:
        """Return how much of what further electrons print is kept, with an option of `map`."""
        if output == "drop":
            return NOTHING
        return Allowance(self._of_electron, max(0, self._left), output == "stream")

    def add(self, printed: Printed) -> None:
        """Add what electrons have printed."""
        self._left -= len(printed.text)
        self.count += len(printed)
        self._printed.append(printed)

    def lines(self, electrons: Collection[int] | None = None) -> list[Line]:
        """Return lines in the order in which they arrived: of all electrons, or of some."""
        those: Iterable[Printed | None] = self._printed[:]
        if electrons is not None:
            wanted = np.fromiter(electrons, dtype=np.int64)
            those = (each.where(np.isin(each.electrons, wanted)) for each in those if each)
        return [line for each in those if each is not None for line in each.lines()]

    def latest(self, count: int) -> list[Line]:
        """Return the lines that arrived last, at least so many where there are."""
        lines: list[Line] = []
        for each in reversed(self._printed[:]):
            if len(lines) >= count:
                break
            lines = [*each.lines(), *lines]
        return lines


def printed_in(
    batch: Batch, outcome: BatchOutcome, open_of: Callable[[Positions], Positions]
) -> Printed | None:
    """Return what the electrons of a batch have printed, by position in the sweep.

    Parameters
    ----------
    open_of
        Returns those of the positions whose electrons have not ended: others were executed twice.
    """
    printed = outcome.printed
    if printed is None:
        return None
    electrons = numpy_values(batch.positions)[printed.electrons]
    is_open = np.isin(electrons, numpy_values(open_of(np.unique(electrons))))
    return printed.at(electrons, batch.terms.attempt).where(is_open)


def output_frame(lines: Sequence[Line], rows: Sequence[Any]) -> pd.DataFrame:
    """Return lines as a frame, in the order of the rows and then of time.

    Parameters
    ----------
    rows
        The label of each line's electron in the index of the frame of results.
    """
    import pandas as pd

    times = pd.to_datetime([line.time_ns for line in lines], unit="ns", utc=True)
    return pd.DataFrame(
        {
            "row": pd.Series(rows, dtype=None if len(rows) else "int64"),
            "time": times,
            "stream": pd.Series([line.stream for line in lines], dtype="str"),
            "level": pd.Series([line.level for line in lines], dtype="str"),
            "text": pd.Series([line.text for line in lines], dtype="str"),
            "attempt": pd.Series([line.attempt for line in lines], dtype="int64"),
        }
    )


def show(pieces: list[Piece], label_of: Callable[[int], Any]) -> None:
    """Print what electrons are printing, each line with the label of its electron."""
    for line in Printed.of(pieces).lines():
        stream = sys.stderr if line.stream in STDERR_STREAMS else sys.stdout
        level = f"{line.level} " if line.level else ""
        print(f"[{label_of(line.electron)}] {level}{line.text}", file=stream, flush=True)
