"""Catches what atoms print, log and warn of, in the thread that executes them.

``sys.stdout``, ``sys.stderr``, the handling of log records and ``warnings.showwarning`` belong to
the whole process. While batches execute, each is replaced by one that asks whether the calling
thread executes electrons: for any other thread all is as before. A debugger in an atom talks to its
user, and is left alone.

What C code and other processes write to file descriptors is not seen here.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TextIO

from atomizer_dask.console.printed import LOGGED, STDERR, STDOUT, WARNING
from atomizer_dask.console.recorder import Recorder, Write

# Whose records are about electrons, not of them.
_NOT_OF_ATOMS = ("atomizer_dask", "distributed")


class _OfThread(threading.local):
    """What the calling thread records to; None where it executes no electrons."""

    recorder: Recorder | None = None
    caught: Sequence[_Caught] = ()


_executing = _OfThread()


class _Caught(threading.local):
    """A stream of which each thread has its own `write`: the recorder's where it has one.

    What belongs to a thread is looked up in C, so that a print costs little more than before.
    """

    def __init__(self, target: Any, source: int) -> None:  # called in each thread
        self.target = target
        self.source = source
        self.write: Write = target.write

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream as it was; what is recorded needs no flush."""
        if _executing.recorder is None:
            self.target.flush()

    def isatty(self) -> bool:
        """Return whether a person looks at it: not at what is recorded."""
        return _executing.recorder is None and bool(self.target.isatty())

    @property
    def buffer(self) -> Any:
        """The stream of bytes below it."""
        return self.target.buffer if _executing.recorder is None else _CaughtBytes(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


class _CaughtBytes:
    """Takes bytes for a stream that is recorded."""

    def __init__(self, stream: _Caught) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        """Record bytes as text."""
        whole = bytes(data)
        self._stream.write(whole.decode(errors="replace"))
        return len(whole)

    def flush(self) -> None:
        """Do nothing: what is recorded needs no flush."""


class _Capture:
    """The replaced streams and functions of this process, while any thread records."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._streams: dict[int, _Caught] = {}
        self._call_handlers: Any = None
        self._showwarning: Any = None

    def begin(self) -> None:
        """Replace the streams, unless they are."""
        with self._lock:
            self._count += 1
            _forget_in_forks()
            # Also where another batch has replaced them: somebody may have put in his own since.
            sys.stdout = self._caught(sys.stdout, STDOUT)
            sys.stderr = self._caught(sys.stderr, STDERR)
            if self._count == 1:
                original = logging.Logger.callHandlers
                self._call_handlers = original, _handle(original)
                logging.Logger.callHandlers = self._call_handlers[1]  # type: ignore[method-assign]
                self._showwarning = warnings.showwarning, _show(warnings.showwarning)
                warnings.showwarning = self._showwarning[1]

    def _caught(self, stream: Any, source: int) -> Any:
        """Return what stands for a stream, the same each time: a handler of a log may keep it."""
        if stream is None or isinstance(stream, _Caught):
            return stream
        known = self._streams.get(source)
        if known is None or known.target is not stream:
            known = self._streams[source] = _Caught(stream, source)
        return known

    def unlock(self) -> None:
        """Make a new lock, in a forked process: the thread that held it is not here."""
        self._lock = threading.Lock()

    def end(self) -> None:
        """Put the streams back where no other thread records, and nobody has replaced ours."""
        with self._lock:
            self._count -= 1
            if self._count:
                return
            if isinstance(sys.stdout, _Caught):
                sys.stdout = sys.stdout.target
            if isinstance(sys.stderr, _Caught):
                sys.stderr = sys.stderr.target
            # Where an atom has imported something that replaces them too, that stays.
            original, ours = self._call_handlers
            if logging.Logger.callHandlers is ours:
                logging.Logger.callHandlers = original  # type: ignore[method-assign]
            original, ours = self._showwarning
            if warnings.showwarning is ours:
                warnings.showwarning = original


_capture = _Capture()


@lru_cache(maxsize=1)
def _forget_in_forks() -> None:
    """Have a process that an atom forks print as if it were no atom: nobody reads its recorder."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    _executing.recorder = None
    for each in _executing.caught:
        each.write = each.target.write
    _capture.unlock()


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Record what the calling thread prints within, logs and warns of."""
    if recorder is None:
        yield
        return
    _capture.begin()
    before, _executing.recorder = _executing.recorder, recorder
    caught = [each for each in (sys.stdout, sys.stderr) if isinstance(each, _Caught)]
    _executing.caught = caught
    writes = [each.write for each in caught]
    for each in caught:
        each.write = recorder.writer(each.source, each.target.write)
    try:
        yield
    finally:
        for each, write in zip(caught, writes, strict=True):
            each.write = write
        _executing.recorder = before
        _capture.end()
        recorder.show(is_last=True)


def _handle(original: Callable[..., None]) -> Callable[..., None]:
    """Return what calls the handlers of a log record: those of an electron go to the recorder."""

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        recorder = _executing.recorder
        if recorder is None or record.name.partition(".")[0] in _NOT_OF_ATOMS:
            original(logger, record)
            return
        recorder.write(LOGGED + record.levelno, _FORMATTER.format(record) + "\n")
        # Files and services of the user's get it all the same; a terminal or a cell does not.
        at: logging.Logger | None = logger
        while at is not None:
            for handler in at.handlers:
                if record.levelno >= handler.level and not _is_console(handler):
                    handler.handle(record)
            at = at.parent if at.propagate else None

    return call_handlers


_FORMATTER = logging.Formatter("%(name)s: %(message)s")


def _is_console(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    targets = [getattr(each, "target", None) for each in (sys.stdout, sys.stderr)]
    consoles = sys.__stdout__, sys.__stderr__, *targets
    return isinstance(stream, _Caught) or (stream is not None and stream in consoles)


def _show(original: Callable[..., None]) -> Callable[..., None]:
    """Return what shows a warning: that of an electron goes to the recorder."""

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        recorder = _executing.recorder if file is None else None
        if recorder is None:
            original(message, category, filename, lineno, file, line)
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line)
            recorder.write(WARNING, text)

    return showwarning
