"""Short texts of functions, classes and values, to show people what has changed."""

from __future__ import annotations

import inspect
import linecache
import re
import reprlib
import sys
import textwrap
from pathlib import Path
from types import FunctionType
from typing import Any

from atomizer_dask.atoms.code.values import functions_within

_SHOWN = 2000  # characters


def text_of_value(value: Any) -> str:
    """Return a value as text, without addresses, which differ between processes."""
    show = reprlib.Repr()
    for limit in vars(show):
        if limit.startswith("max") and limit != "maxlevel":
            setattr(show, limit, 200)
    show.maxstring = show.maxother = _SHOWN
    try:
        if type(value) is bytes:  # of which reprlib writes all, to show the ends
            value = value[: _SHOWN + 1]
        return re.sub(r" at 0x[0-9a-fA-F]+", "", show.repr(value))[:_SHOWN]
    except Exception:  # noqa: BLE001 - whatever their repr raises
        return type(value).__qualname__


def text_of_file(path: str) -> str:
    """Return the beginning of a file."""
    return Path(path).read_text(errors="replace")[:_SHOWN]


def source_of(thing: Any) -> str:
    """Return the source of a function or a class, empty where there is none.

    `inspect.getsource` is slow for classes, and does not know those of a notebook.
    """
    try:
        lines, first = _lines_of(thing)
        return textwrap.dedent("".join(inspect.getblock(lines[first:])))[:_SHOWN]
    except Exception:  # noqa: BLE001 - no text, or not that of this code
        return ""


def _lines_of(thing: Any) -> tuple[list[str], int]:
    """Return the lines of a file and the index of the first one of a function or a class."""
    if isinstance(thing, FunctionType):
        file = thing.__code__.co_filename
        linecache.checkcache(file)
        return linecache.getlines(file, thing.__globals__), thing.__code__.co_firstlineno - 1
    members = [
        one for member in vars(thing).values() for one in (member, *functions_within(member))
    ]
    codes = [one.__code__ for one in members if isinstance(one, FunctionType)]
    # Methods that a dataclass generates have another file, or none.
    begins = re.escape(thing.__qualname__) + r"\.\w+"
    codes = [code for code in codes if re.fullmatch(begins, code.co_qualname)]
    file = codes[0].co_filename if codes else sys.modules[thing.__module__].__file__ or ""
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    before = lines[: min(code.co_firstlineno for code in codes)] if codes else lines
    heading = re.compile(rf"\s*class {thing.__name__}\b")
    return lines, max(n for n, line in enumerate(before) if heading.match(line))
