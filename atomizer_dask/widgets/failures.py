"""The failures of a run, grouped by kind and exception, as its panel shows them."""

from __future__ import annotations

from typing import Any

from atomizer_dask.display.text import plain, shorten
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.runs.frames.frame import HINTS
from atomizer_dask.runs.run import Run
from atomizer_dask.widgets.format import cell

GROUPS = 10  # the most frequent
EXAMPLES = 5
TRACEBACK = 4000  # characters, from the end, which names the error
DETAILS = 8_000  # characters of tracebacks and examples in all: every change sends them again
INPUTS = 240  # characters
PRINTED = 1000  # characters of the last lines of an electron


def failure_groups(run: Run) -> list[dict[str, Any]]:
    """Return the failed electrons of a run by kind and type of exception, the most frequent first.

    Each group has ``kind``, ``type``, ``count``, ``message``, ``traceback`` and ``hint``, and of
    the first few electrons ``inputs``, ``attempt``, ``worker``, what it ``printed`` last, and the
    line that replays it.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for part in run.failed_rows():
        for failure, rows in part.by_failure():
            key = failure.kind, failure.type
            fresh = {"failure": failure, "count": 0, "differ": False, "rows": []}
            group = groups.setdefault(key, fresh)
            group["count"] += len(rows)
            group["differ"] |= failure.message != group["failure"].message
            wanted = EXAMPLES - len(group["rows"])
            group["rows"] += [(int(row), part) for row in rows[:wanted]]
    ordered = sorted(groups.values(), key=lambda group: -group["count"])[:GROUPS]
    printed = run.last_lines([row for group in ordered for row, _ in group["rows"]])
    return [_described(run, group, printed, DETAILS // len(ordered)) for group in ordered]


def _described(
    run: Run, group: dict[str, Any], printed: dict[int, str], room: int
) -> dict[str, Any]:
    """Return a group of failures with as much of the traceback and as many examples as fit."""
    failure: Failure = group["failure"]
    traceback, longest = failure.traceback, min(TRACEBACK, room // 2)
    if len(traceback) > longest:
        traceback = "...\n" + traceback[-longest:].partition("\n")[2]
    others = " (and other messages)" if group["differ"] else ""
    examples: list[dict[str, Any]] = []
    left = room - len(traceback)
    for row, part in group["rows"]:
        example = _example(run, row, part, printed.get(row, ""))
        left -= sum(len(str(value)) for value in example.values())
        if examples and left < 0:
            break
        examples.append(example)
    return {
        "kind": failure.kind,
        "type": type_text(failure.type),
        "count": group["count"],
        "message": cell(failure.message, 300) + others,
        "traceback": plain(traceback),
        "hint": HINTS.get(failure.kind, ""),
        "examples": examples,
    }


def type_text(type: str) -> str:
    """Return the type of an exception as it is sent to the page, which names a group by it."""
    return cell(type, 120)


def _example(run: Run, row: int, part: RunPart, printed: str) -> dict[str, Any]:
    inputs = "  ".join(f"{name}={cell(v)}" for name, v in run.sweep.payload(row).items())
    return {
        "inputs": shorten(plain(inputs), INPUTS),
        "attempt": part.attempt,
        "worker": plain(part.outcome.worker),
        "printed": plain(printed)[-PRINTED:],
        "replay": f"run.replay({run.electron_id(row)!r})",
    }
