"""Lines of source that travel with code, so that tracebacks show them where its file is not.

A function of a cell, or of a file that workers do not have, travels by value. Its code object alone
says no more than a line number. `linecache`, where tracebacks look for lines, takes ours as well.
"""

from __future__ import annotations

import linecache
import threading
from types import CodeType
from typing import Any, NamedTuple

_guard = threading.Lock()


class SourceLines(NamedTuple):
    """The lines of a function.

    Parameters
    ----------
    file
        The name of its file, or of its cell.
    first
        The number of its first line, from 1.
    text
        Its lines.
    """

    file: str
    first: int
    text: str


def lines_of(code: CodeType, scope: dict[str, Any]) -> SourceLines | None:
    """Return the lines of the code of a function; None where they are not known.

    Parameters
    ----------
    scope
        The globals of the function: a loader among them knows the source of a file in an archive.
    """
    lines = linecache.getlines(code.co_filename, scope)
    text = "".join(lines[code.co_firstlineno - 1 : _last_line(code)])
    return SourceLines(code.co_filename, code.co_firstlineno, text) if text else None


def _last_line(code: CodeType) -> int:
    own = [line for *_, line in code.co_lines() if line is not None]
    inner = [_last_line(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return max([code.co_firstlineno, *own, *inner])


def with_lines(code: CodeType, source: SourceLines) -> CodeType:
    """Return code that came without its file's name with that name, for which lines are known."""
    _put(source)
    return _named(code, source.file)


def _put(source: SourceLines) -> None:
    new = source.text.splitlines(keepends=True)
    start, stop = source.first - 1, source.first - 1 + len(new)
    with _guard:
        known = linecache.getlines(source.file)  # of the file itself, where it is here as well
        if known[start:stop] == new:
            return
        lines = [*known, *["\n"] * (stop - len(known))]
        lines[start:stop] = new
        # Without a time, so that nobody compares it with a file.
        size = sum(map(len, lines))
        linecache.cache[source.file] = (size, None, lines, source.file)


def _named(code: CodeType, file: str) -> CodeType:
    constants = tuple(
        _named(constant, file) if isinstance(constant, CodeType) else constant
        for constant in code.co_consts
    )
    return code.replace(co_filename=file, co_consts=constants)
