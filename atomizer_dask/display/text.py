"""Any value as a short text, whatever it is and however large.

Values come from atoms and their inputs: their ``repr`` may raise, have gigabytes or have no end.
`reprlib` formats arrays and objects in full before it cuts them, and does not say how much it
leaves out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from math import prod
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_DEEPEST = 4
_SMALL = 6  # elements of an array that are shown rather than counted
_DIGITS = 1000
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BRACKETS = {list: "[]", tuple: "()", set: "{}", frozenset: "{}"}


def plain(text: str) -> str:
    r"""Return a text with control characters, and halves of surrogate pairs, as escapes.

    >>> plain("half a pair: " + chr(0xD800) + ", a bell: " + chr(7))
    'half a pair: \\ud800, a bell: \\x07'
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def one_line(value: Any, length: int = 60) -> str:
    r"""Return a text, or what `brief` makes of anything else, on one line and cut to a length.

    >>> one_line("two\nlines"), one_line("abcdefgh", 6)
    ('two lines', 'abc...')
    """
    text = str.__str__(value) if isinstance(value, str) else brief(value, length)
    text = " ".join(plain(text[: 2 * length]).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def brief(value: Any, length: int = 60) -> str:
    """Return about the ``repr`` of a value, cut to a length; arrays and tables are summarised.

    >>> brief({"x": 1, "y": "abc"})
    "{'x': 1, 'y': 'abc'}"
    >>> brief(range(10**9)), brief(list(range(10**6)), 30)
    ('range(0, 1000000000)', '[0, 1, 2, ... 999,997 more]')
    >>> brief("x" * 10**6, 30)
    "'xxxxxx'... 1,000,000 letters"
    >>> brief(np.zeros((1000, 3)))
    'ndarray float64 (1000, 3), 24 kB'
    """
    try:
        text = _text(value, length, 0)
    except Exception as broken:  # noqa: BLE001 - a value's own methods; what it is can be said
        text = f"<{type(value).__name__}: showing it raised {type(broken).__name__}>"
    return one_line(text, length)


def counted(number: int | None, what: str) -> str:
    """Return a number of things and their name.

    >>> counted(1, "electron"), counted(2000, "electron")
    ('1 electron', '2,000 electrons')
    """
    some = "?" if number is None else f"{number:,}"
    return f"{some} {what}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Return a number of bytes as people say it.

    >>> size(24), size(24_000), size(1.5e9)
    ('24 B', '24 kB', '1.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _text(value: Any, room: int, depth: int) -> str:
    if isinstance(value, str | bytes | bytearray):
        return _quoted(value, room)
    if isinstance(value, int) and value.bit_length() > 3 * _DIGITS:
        return f"<int of {value.bit_length():,} bits>"
    for show in (_shaped, _listed, _mapped, _with_fields):
        text = show(value, room, depth)
        if text is not None:
            return text
    return repr(value)


def _quoted(value: str | bytes | bytearray, room: int) -> str:
    unit = "letters" if isinstance(value, str) else "bytes"
    if len(value) + 2 <= room:
        return repr(value)
    said = f"... {len(value):,} {unit}"
    return repr(value[: max(4, room - len(said) - 3)]) + said


def _shaped(value: Any, room: int, depth: int) -> str | None:
    """Return type, shape and size of an array or a table; None for any other value."""
    if isinstance(value, np.generic | type):
        return None
    if (table := _tabular(value)) is not None:
        return table
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None or not all(type(n) is int for n in shape):
        return None
    name = f"{type(value).__name__} {dtype} {tuple(shape)}"
    if type(value) is np.ndarray and value.size <= _SMALL and value.dtype.kind in "biufc":
        return f"{name}: {value.tolist()}"
    many = getattr(value, "nbytes", None)
    return f"{name}, {size(many)}" if isinstance(many, int) and prod(shape) else name


def _tabular(value: Any) -> str | None:
    pandas = sys.modules.get("pandas")  # a process that has a table has loaded it
    if pandas is None:
        return None
    if isinstance(value, pandas.DataFrame):
        names = ", ".join(one_line(name, 20) for name in value.columns[:_SMALL])
        more = f", ... {len(value.columns) - _SMALL:,} more" if value.shape[1] > _SMALL else ""
        return f"DataFrame {value.shape}: {names}{more}"
    if isinstance(value, pandas.Series | pandas.Index | pandas.api.extensions.ExtensionArray):
        return f"{type(value).__name__} {value.dtype} ({len(value)},)"
    return None


def _listed(value: Any, room: int, depth: int) -> str | None:
    kind = next((kind for kind in _BRACKETS if isinstance(value, kind)), None)
    if kind is None or hasattr(value, "_fields"):
        return None
    if type(value) in (set, frozenset) and not value:
        return repr(value)
    inner = _joined(
        value, len(value), room - 2, depth, lambda item, room: _text(item, room, depth + 1)
    )
    comma = "," if kind is tuple and len(value) == 1 else ""
    text = _BRACKETS[kind][0] + inner + comma + _BRACKETS[kind][1]
    return text if type(value) in (list, tuple, set) else f"{type(value).__name__}({text})"


def _mapped(value: Any, room: int, depth: int) -> str | None:
    if not isinstance(value, Mapping):
        return None

    def pair(key: Any, room: int) -> str:
        return f"{_text(key, room, depth + 1)}: {_text(value[key], room, depth + 1)}"

    text = f"{{{_joined(value, len(value), room - 2, depth, pair)}}}"
    return text if type(value) is dict else f"{type(value).__name__}({text})"


def _with_fields(value: Any, room: int, depth: int) -> str | None:
    """Return a named tuple or a dataclass, whose own ``repr`` would show all that it holds."""
    if isinstance(value, tuple):
        names = list(value._fields)  # type: ignore[attr-defined]
    elif hasattr(value, "__dataclass_fields__") and hasattr(type(value).__repr__, "__wrapped__"):
        names = [name for name, field in value.__dataclass_fields__.items() if field.repr]
    else:
        return None

    def pair(name: str, room: int) -> str:
        return f"{name}={_text(getattr(value, name), room, depth + 1)}"

    return f"{type(value).__name__}({_joined(names, len(names), room - 2, depth, pair)})"


def _joined(
    items: Iterable[Any], count: int, room: int, depth: int, show: Callable[[Any, int], str]
) -> str:
    """Return as many items as there is room for, and how many more there are."""
    if depth >= _DEEPEST:
        return "..." if count else ""
    shown: list[str] = []
    used, kept = 0, 18  # for "... 1,234,567 more"
    for item in islice(items, room // 3 + 1):
        text = show(item, max(8, room - used))
        used += len(text) + 2
        is_last = len(shown) + 1 == count
        if shown and used > room - (0 if is_last else kept):
            break
        shown.append(text)
    more = [f"... {count - len(shown):,} more"] if count > len(shown) else []
    return ", ".join(shown + more)


def shorten(text: str, length: int = 60) -> str:
    """Return a text cut to a length, its end marked where something was cut off.

    >>> shorten("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."
