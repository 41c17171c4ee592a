"""What happens to a node, as lines of JSON."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from time import monotonic
from typing import Any, TextIO

from atomizer_dask.conductors.status import QueueStatus
from atomizer_dask.errors import AtomizerError, text_of
from atomizer_dask.events import Event, shorten

LINES_A_SECOND = 10  # about electrons that failed, of which there may be thousands
MESSAGE = 500  # characters
_QUIET = {"debug", "info"}


class NodeLog:
    """Writes lines of JSON, each with ``time``, ``level`` and ``event``.

    Parameters
    ----------
    file
        Where they go.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._second, self._lines = 0, 0
        self._suppressed = 0
        self._answered = 0
        self._last = monotonic()

    def line(self, event: str, level: str = "info", **facts: Any) -> None:
        """Write a line."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        known = {name: fact for name, fact in facts.items() if fact not in ("", None)}
        text = json.dumps({"time": time, "level": level, "event": event, **known}, default=str)
        with self._lock:
            self._file.write(text + "\n")
            self._file.flush()

    def event(self, event: Event) -> None:
        """Write what a conductor tells, and whatever is worth a warning."""
        if event.level == "error" or (event.level in _QUIET and not event.conductor_id):
            return  # errors are told as such
        if event.level in _QUIET or self._may_write():
            self.line(
                shorten(event.message, MESSAGE),
                event.level,
                conductor=event.conductor_id,
                atom=event.atom_id,
                electron=shorten(event.electron_id),
            )

    def error(self, error: AtomizerError) -> None:
        """Write what went wrong, as far as there is not too much of it."""
        if not self._may_write():
            return
        event = error.event
        self.line(
            shorten(event.message, MESSAGE),
            "error",
            kind=getattr(error, "kind", ""),
            atom=event.atom_id,
            electron=shorten(event.electron_id),
            conductor=event.conductor_id,
            internal=None if error.internal is None else shorten(text_of(error.internal), MESSAGE),
        )

    def health(self, status: QueueStatus, threads: int) -> None:
        """Write how the node is."""
        now = monotonic()
        rate = (status.answered - self._answered) / max(now - self._last, 1e-9)
        self._answered, self._last = status.answered, now
        facts = asdict(status)
        for own in ("address", "queue", "seconds"):
            del facts[own]
        suppressed, self._suppressed = self._suppressed, 0
        self.line(
            "health", threads=threads, rate=round(rate, 1), suppressed=suppressed or None, **facts
        )

    def _may_write(self) -> bool:
        second = int(monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._suppressed += 1
            return False
        return True
