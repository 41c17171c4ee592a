"""Writing and reading the members of a message: payloads, times, errors, headers."""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, get_args

from atomizer_dask.conductors.amqp.wire.json_reader import (
    NotJsonError,
    folded,
    kind_of,
    pairs_of,
    read,
    utf8,
    whole_text,
)
from atomizer_dask.conductors.amqp.wire.json_writer import FormError, to_text
from atomizer_dask.display.text import shorten
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ElectronError, InvalidPayloadError, Kind, WireError
from atomizer_dask.events import Event
from atomizer_dask.policy import seconds_of
from atomizer_dask.properties import Properties


class Limits(NamedTuple):
    """How large a message may be, in bytes, and how deep its payload or result may be nested."""

    bytes: int = 16 * 2**20
    depth: int = 64


class UnreadSender(NamedTuple):
    """The sender of a message that could not be read, as far as can be recognised."""

    sender_id: str
    id: str
    atom_id: str


class ExpiredError(WireError):
    """The time of an electron was up before it was received.

    Parameters
    ----------
    event, internal
        The parameters of every `AtomizerError`.
    sender_id, id, atom_id
        The ids of the sender to answer, of the electron and of its atom.
    """

    def __init__(
        self,
        event: Event | str,
        internal: BaseException | None = None,
        sender_id: str = "",
        id: str = "",
        atom_id: str = "",
    ) -> None:
        super().__init__(event, internal)
        self.args = (event, internal, sender_id, id, atom_id)
        self.sender_id = sender_id
        self.id = id
        self.atom_id = atom_id


_EVENT = frozenset({"message", "electronID", "atomID", "conductorID"})
_KINDS = frozenset(get_args(Kind))
_TIERS = frozenset({"context", "exception", "kill"})
_LONGEST_TIMEOUT = 2**63 - 1  # nanoseconds
_LONGEST_MESSAGE = 64 * 2**10  # characters of an error
LONGEST_TRACEBACK = 16 * 2**10
LONGEST_HEADER = 1024  # bytes of a header other than the traceback
_GO_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)


def invalid(electron: Electron, what: str) -> InvalidPayloadError:
    """Return the error of an electron that cannot be sent."""
    return InvalidPayloadError(Event(what, electron.id, electron.atom_id, level="error"))


# ---- members of a request -----------------------------------------------------------------------


def payload_text(electron: Electron, limits: Limits) -> str:
    """Return a payload as the JSON of a message, so that a Go agent reads the same value."""
    try:
        text = to_text(electron.payload, "payload", limits.depth, limits.bytes)
    except FormError as why:
        raise invalid(electron, str(why)) from None
    if text[0] in "{[" or not _is_misread(text):
        return text
    return f'"{b64encode(utf8(text)).decode()}"'


def _is_misread(text: str) -> bool:
    """Whether a Go agent takes a payload for base64: it cuts off the quotes and decodes."""
    bare = text.strip('"')
    return len(bare) % 4 == 0 and _BASE64.fullmatch(bare) is not None


def unwrapped(text: str, limits: Limits) -> Any:
    """Return the JSON that a text has in base64; the text itself where it has none."""
    if len(text) % 4:
        return text
    try:
        inner = binascii.a2b_base64(text, strict_mode=True)
        inner.decode()
        return read(inner, limits.depth)
    except (NotJsonError, binascii.Error, UnicodeDecodeError):
        return text
    except WireError as error:
        why = error.event.message
    except ValueError:  # not ASCII
        return text
    raise WireError(f"a payload in base64 cannot be read: {why}")


def timeout_text(timeout: Any) -> str:
    """Return a timeout as a member of a message; empty for no limit."""
    seconds = seconds_of(timeout, "timeout")
    assert seconds is not None
    if math.isinf(seconds):
        return ""
    nanoseconds = round(min(seconds * 1e9, _LONGEST_TIMEOUT))
    return f',"timeout":{min(max(nanoseconds, 1), _LONGEST_TIMEOUT)}'  # the nearest float is longer


def timeout_of(sent: Any, sender: UnreadSender) -> float:
    """Return the timeout of a message in seconds.

    Raises
    ------
    ExpiredError
        Where it is not above 0.
    WireError
        Where it is not a whole number of 64 bits.
    """
    if type(sent) is not int or not -(2**63) <= sent < 2**63:
        got = f"{sent:,}" if type(sent) is int and abs(sent) < 2**99 else kind_of(sent)
        raise WireError(
            f"timeout must be a whole number of nanoseconds, of 64 bits, or null, got {got}"
        )
    if sent <= 0:
        event = Event(
            f"its time was up before it was received: a timeout of {sent:,} ns",
            sender.id,
            sender.atom_id,
            level="error",
        )
        raise ExpiredError(event, None, *sender)
    return sent / 1e9


def copy_state_of(sent: Any) -> bool:
    """Return the member ``copystate`` of a message; False where it is null."""
    if sent is not None and type(sent) is not bool:
        raise WireError(f"copystate must be true or false, got {kind_of(sent)}")
    return bool(sent)


# ---- members of a reply -------------------------------------------------------------------------


def time_text(moment: datetime) -> str:
    """Return a time as Go writes it."""
    if moment.tzinfo is not UTC:
        if moment.utcoffset() is None:
            raise WireError(f"start and end must have a time zone, got {moment}; give them UTC")
        moment = moment.astimezone(UTC)
    text = moment.isoformat()[:-6]
    return f"{text.rstrip('0')}Z" if len(text) > 19 else f"{text}Z"


def time_of(sent: Mapping[str, Any], name: str) -> datetime:
    """Return the time in a member of a message; Go's zero time where it is absent."""
    text = sent.get(name)
    if text is None:
        return _GO_ZERO_TIME
    try:
        if type(text) is str and _RFC3339.fullmatch(text):
            moment = datetime.fromisoformat(text.upper())
            return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # a 13th month, say: an error below
    got = f"{shorten(text, 60)!r}" if type(text) is str else kind_of(text)
    raise WireError(f"{name} must be a time as of RFC 3339, 2026-01-31T12:00:00Z, got {got}")


def error_text(properties: Properties, error: AtomizerError, conductor_id: str) -> str:
    """Return the error of a reply as Go peers read it: an exception's text, or an event."""
    if getattr(error, "kind", "") == "exception":
        message = str(getattr(error, "message", ""))
        # A Go program would take an object for an event, and null for no error at all.
        if message and message.lstrip()[:1] != "{" and message.strip() != "null":
            return shorten(message, _LONGEST_MESSAGE)
    event = error.event
    members = {
        "message": shorten(str(event.message), _LONGEST_MESSAGE),
        "electronID": event.electron_id or properties.electron_id,
        "atomID": event.atom_id or properties.atom_id,
        "conductorID": event.conductor_id or conductor_id,
    }
    return to_text({"event": members, "internal": None}, "error")


def error_of(
    sent: str, whose: Event, headers: Any, times: tuple[datetime, datetime], limits: Limits
) -> ElectronError:
    """Return the error of a reply, from an event or from the text of an exception."""
    text = _plain_text(sent)
    event = _event_in(text, limits)
    kind: Any = header_of(headers, "kind")
    if kind not in _KINDS:
        kind = "exception" if event is None else "rejected"
    name = header_of(headers, "type")
    if event is None:
        message = text
        event = Event(
            f"{name}: {text}" if name else text, whose.electron_id, whose.atom_id, level="error"
        )
    else:
        message = event.message.removeprefix(f"{name}: ") if name else event.message
    tier = header_of(headers, "tier")
    return ElectronError(
        event, None, kind, name, message,
        header_of(headers, "traceback"), tier if tier in _TIERS else "",
        attempts_of(headers), header_of(headers, "worker"), *times,
    )  # fmt: skip


def _plain_text(sent: str) -> str:
    try:
        inner = binascii.a2b_base64(sent.replace("\n", "").replace("\r", ""), strict_mode=True)
    except ValueError:  # a peer has sent it without base64
        return sent
    return whole_text(inner)


def _event_in(text: str, limits: Limits) -> Event | None:
    if text.lstrip()[:1] != "{":
        return None
    try:
        members = folded(pairs_of(text.encode(), limits.depth), frozenset({"event"})).get("event")
    except WireError:
        return None
    if type(members) is not dict:
        return None
    known = folded(members.items(), _EVENT)
    names = ("message", "electronID", "atomID", "conductorID")
    texts = [known.get(name) or "" for name in names]
    if not all(type(text) is str for text in texts):
        return None
    message, electron_id, atom_id, conductor_id = texts
    return Event(message, electron_id, atom_id, conductor_id, level="error")


def header_of(headers: Any, name: str) -> str:
    """Return the header ``atomizer-`` and `name`; empty where there is none."""
    value = headers.get(f"atomizer-{name}") if isinstance(headers, Mapping) else None
    if type(value) is not str:
        return ""
    cut = value[-LONGEST_TRACEBACK:] if name == "traceback" else value[:LONGEST_HEADER]
    return utf8(cut).decode()


def attempts_of(headers: Any) -> int:
    """Return the number of attempts in the headers of a reply; 1 where they do not say."""
    value = headers.get("atomizer-attempts") if isinstance(headers, Mapping) else None
    return value if type(value) is int and 0 < value < 2**31 else 1
