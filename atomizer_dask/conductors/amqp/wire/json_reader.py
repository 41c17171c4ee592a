"""JSON of untrusted messages, read as Go's encoding/json reads it.

Every text is read in linear time, and anything wrong with it is a `WireError`: also a number that
no float can hold, such as 1e999, which Python itself would read as an infinity.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from atomizer_dask.display.text import shorten
from atomizer_dask.errors import WireError

# Members of a Go struct that a null sets; other members keep their value at a null.
NULLABLE = frozenset({"timeout", "payload", "error", "result"})

_PIECE = 2**20  # bytes that are scanned at once
_LONE = re.compile("[\ud800-\udfff]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"  # half a pair
    r"|\\.",
    re.DOTALL,
)
_NO_BRACKETS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


class NotJsonError(WireError):
    """A message is not JSON at all."""


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value in words, for error messages."""
    kinds = {dict: "an object", list: "an array", str: "a text", type(None): "null", bool: "a bool"}
    return kinds.get(type(value), "a number")


def _refuse(name: str) -> Any:
    raise NotJsonError(f"it holds {name}, which is not JSON; null is what stands for it")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{shorten(digits, 30)} is more than a float can hold")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


def read(body: bytes, depth: int, decoder: json.JSONDecoder = _DECODER) -> Any:
    """Return the value of a text of JSON.

    Bytes that are not UTF-8, and half a surrogate pair, are read as U+FFFD.

    Raises
    ------
    NotJsonError
        Where it is not JSON.
    WireError
        Where it is JSON, but nested more than `depth` levels deep, or too large to be read.
    """
    if body.count(b"[") + body.count(b"{") > depth and _is_deeper(body, depth):
        raise WireError(
            f"it is nested more than {depth} levels deep; flatten it, or raise the limit"
        )
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = whole_text(body)
    if b"\\u" in body and _SURROGATE.search(body):
        text = _ESCAPE.sub(_whole, text)
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        # Not `from error`: that error has the whole text.
        raise NotJsonError(f"it is not JSON: {error.msg}, at character {error.pos}") from None
    except (RecursionError, MemoryError):
        raise WireError("it is too deep or too large for this process; send less") from None
    except WireError:
        raise
    except ValueError as error:  # a whole number of too many digits
        raise WireError(
            f"it holds a number that cannot be read: {shorten(str(error), 200)}"
        ) from None


def whole_text(data: bytes) -> str:
    """Return bytes as text, each byte that is not UTF-8 as U+FFFD."""
    # As Go does; Python's `errors="replace"` puts one U+FFFD for several bytes.
    return _LONE.sub("\ufffd", data.decode(errors="surrogateescape"))


def _whole(escape: re.Match[str]) -> str:
    """Return an escape of JSON as it is, or U+FFFD for half a surrogate pair."""
    text = escape[0]  # 2 characters, 6 or 12
    return "\ufffd" if len(text) == 6 else text


def _is_deeper(body: bytes, depth: int) -> bool:
    """Whether brackets outside of texts are nested deeper, in linear time and without recursion."""
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACKETS)
    in_text, level = 0, 0
    for start in range(0, len(marks), _PIECE):
        codes = np.frombuffer(marks[start : start + _PIECE], dtype=np.uint8)
        inside = (np.cumsum(codes == ord('"'), dtype=np.int32) + in_text) & 1
        levels = np.cumsum(_STEPS[codes] * (1 - inside), dtype=np.int32) + level
        if levels.max() > depth:
            return True
        in_text, level = int(inside[-1]), int(levels[-1])
    return False


def members_of(body: bytes, names: frozenset[str], depth: int) -> dict[str, Any]:
    """Return the members of an object that have one of the names, in any case of letters.

    Raises
    ------
    WireError
        Where it is no object, or is nested more than `depth` levels deep.
    """
    sent = read(body, depth)
    if type(sent) is not dict:
        raise WireError(f"a JSON object was expected, got {kind_of(sent)}")
    if sent.keys() <= names and (None not in sent.values() or not _kept_before(sent)):
        return sent
    return folded(pairs_of(body, depth), names)


def _kept_before(sent: dict[str, Any]) -> bool:
    """Whether there is a null that leaves an earlier value of the same name in place."""
    return any(value is None and name not in NULLABLE for name, value in sent.items())


def pairs_of(body: bytes, depth: int) -> list[tuple[str, Any]]:
    """Return the members of an object in the order as sent, with repeated ones."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = pairs
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=keep, parse_float=_finite, parse_constant=_refuse)
    read(body, depth, decoder)
    return outermost


def folded(pairs: Iterable[tuple[str, Any]], names: frozenset[str]) -> dict[str, Any]:
    """Return the members that have one of the names in any case; the last of several wins."""
    known = {name.lower(): name for name in names}
    members: dict[str, Any] = {}
    for key, value in pairs:
        # Not casefold(), which knows more than Go: "ﬆ" would be "st".
        name = known.get(key.replace("\u017f", "s").replace("\u212a", "k").lower())
        if name and not (value is None and name not in NULLABLE and name in members):
            members[name] = value
    return members


def utf8(text: str) -> bytes:
    """Return a text as UTF-8, half a surrogate pair as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return _LONE.sub("\ufffd", text).encode()
