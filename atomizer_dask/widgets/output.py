"""What electrons have printed, as the panel of a run shows it: the newest lines."""

from __future__ import annotations

from typing import Any

from atomizer_dask.console.printed import Line
from atomizer_dask.runs.run import Run
from atomizer_dask.widgets.format import cell

LINES = 200
CHARACTERS = 240  # of a line
MILLISECOND = 1_000_000  # nanoseconds


def output_rows(run: Run) -> dict[str, Any]:
    """Return the newest lines, the newest first, and how many there are.

    A row has the number of its line, milliseconds since the epoch, level or stream, text, and the
    label of its electron.
    """
    lines, total = run.latest_lines(LINES)
    rows = [
        [total - number, line.time_ns // MILLISECOND, _level(line), shown, "row", str(label)]
        for number, (label, line) in enumerate(reversed(lines))
        for shown in [cell(line.text, CHARACTERS)]
    ]
    return {"rows": rows, "total": total}


def _level(line: Line) -> str:
    return line.level.lower() or line.stream
