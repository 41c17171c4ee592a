"""The log of a node, as lines of JSON.

Records of libraries come through `logging`. Events and errors of this package do not: a log record
has only their text, and would lose their fields: atom, electron and conductor.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from time import monotonic
from typing import Any, TextIO

from atomizer_dask.conductors.status import QueueStatus
from atomizer_dask.display.text import shorten
from atomizer_dask.errors import AtomizerError, text_of
from atomizer_dask.events import Event

LINES_A_SECOND = 10  # of warnings and errors: thousands of electrons may fail in a second
MESSAGE = 500  # characters
STDERR = 2
END_SECONDS = 1.0  # for processes that hold stderr open to end
_QUIET = {"debug", "info"}
_TOLD_ANYWAY = ("pika.adapters", "pika.connection")  # log seven lines for each failed connection


class NodeLog:
    """Writes lines of JSON, each with ``time``, ``level`` and ``event``.

    Parameters
    ----------
    file
        Text file that gets the lines.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._second, self._lines = 0, 0
        self._suppressed = 0
        self._answered = 0
        self._last = monotonic()

    def line(self, event: str, level: str = "info", **facts: Any) -> None:
        """Write a line; `facts` that are empty or None are left out."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        known = {name: fact for name, fact in facts.items() if fact not in ("", None)}
        text = json.dumps({"time": time, "level": level, "event": event, **known}, default=str)
        with self._lock:
            self._file.write(text + "\n")
            self._file.flush()

    def event(self, event: Event) -> None:
        """Write events of conductors, and warnings; of the latter only a few a second."""
        if event.level == "error" or (event.level in _QUIET and not event.conductor_id):
            return  # `error` writes errors
        if event.level in _QUIET or self._may_write():
            self.line(
                shorten(event.message, MESSAGE),
                event.level,
                conductor=event.conductor_id,
                atom=event.atom_id,
                electron=shorten(event.electron_id),
            )

    def error(self, error: AtomizerError) -> None:
        """Write an error, unless too many lines have been written in this second."""
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
            internal=_behind(error.internal),
        )

    def record(self, record: logging.LogRecord) -> None:
        """Write a record of `logging` with its traceback."""
        if not self._may_write():
            return
        message = logging.Formatter("%(message)s").format(record)
        self.line(record.name, record.levelname.lower(), message=_ending(message))

    def text(self, line: str) -> None:
        """Write a line that an atom, or any other code, has written to stderr."""
        if line.strip() and self._may_write():
            self.line("stderr", "warning", message=shorten(line, MESSAGE))

    def health(self, status: QueueStatus, threads: int) -> None:
        """Write the state of the node: its counts, and electrons answered per second."""
        now = monotonic()
        rate = (status.answered - self._answered) / max(now - self._last, 1e-9)
        self._answered, self._last = status.answered, now
        facts = asdict(status)
        facts["oldest"] = round(status.oldest, 1)
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


class _Handler(logging.Handler):
    """Passes log records of level warning and above to a `NodeLog`."""

    def __init__(self, log: NodeLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_TOLD_ANYWAY):  # the conductor reports these in one line
            self._log.record(record)


@contextmanager
def logging_to_stderr() -> Iterator[NodeLog]:
    """Give a log on stderr that also gets everything else that is written to stderr.

    It gets the log records of libraries in this process, and each line of text that this process,
    or one that it starts, writes to stderr: Dask's workers, atoms that print, crashes of Python.
    """
    stderr = os.dup(STDERR)
    reading, writing = os.pipe()
    with open(stderr, "w", encoding="utf-8") as file:
        log = NodeLog(file)
        thread = threading.Thread(target=_pass_on, args=(reading, log), name="stderr", daemon=True)
        thread.start()
        os.dup2(writing, STDERR)
        os.close(writing)
        try:
            with _logged(log):
                yield log
        finally:
            os.dup2(stderr, STDERR)
            thread.join(END_SECONDS)


def _pass_on(reading: int, log: NodeLog) -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            log.text(line.rstrip())


@contextmanager
def _logged(log: NodeLog) -> Iterator[None]:
    """Replace the handlers of all loggers, such as Dask's, by one that passes records to `log`."""
    names = [name for name in logging.root.manager.loggerDict if logging.getLogger(name).handlers]
    loggers = [logging.root, *map(logging.getLogger, names)]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
    logging.root.handlers = [_Handler(log)]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def _behind(error: BaseException | None) -> str:
    text = "" if error is None else f"{type(error).__name__}: {text_of(error)}"
    return shorten(text, MESSAGE)


def _ending(text: str) -> str:
    """Return the end of a text, which in a traceback names the error."""
    return text if len(text) <= 4 * MESSAGE else "..." + text[3 - 4 * MESSAGE :]
