"""Electrons and properties as the JSON that the Go programs write and read.

::

    request  {"senderid","id","atomid","timeout","copystate","payload"}
    reply    {"electronId","atomId","starttime","endtime","error","result"}

Keys are read in any case, the last of several wins and unknown ones are ignored, as Go's
encoding/json does. `json_writer` says how Python values are written. Nothing is ever pickled or
evaluated.

==================  ==============================================================================
senderid            text: the queue that is answered to, of 1 to 255 bytes
id, electronId      text: the same in the reply as in the request
atomid, atomId      text: the id of an atom
timeout             whole nanoseconds from when it is received; none where null or absent. One
                    that is not above 0 is answered: its time was up
copystate           true or false; false where absent
payload             any JSON, or a text of base64 of JSON; null where absent
starttime, endtime  RFC 3339, written in UTC, read with up to nanoseconds
error               absent, or a text of base64: of what an exception says, or of an event,
                    ``{"event":{"message","electronID","atomID","conductorID"},"internal":null}``
result              any JSON; null with an error
==================  ==============================================================================

All of it goes through the default exchange to queues that are durable, not exclusive and not
deleted automatically. Requests go to the work queue, replies to the queue that `senderid` names.
More about a failure than its text is in headers of the reply, which peers may leave out:
``atomizer-kind``, ``-type``, ``-tier``, ``-worker``, ``-traceback`` and ``-attempts``. What cannot
be answered goes, as it came, to the work queue's name and ``.dead``, with the headers
``atomizer-reason`` and ``atomizer-queue``.

A seed, a failure policy (`on_failure`, `max_attempts`, `backoff`) and who executed an electron that
succeeded have no place in these messages, and do not travel.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Any, NamedTuple, get_args

from atomizer_dask.conductors.amqp.json_reader import (
    NotJsonError,
    folded,
    kind_of,
    members_of,
    pairs_of,
    read,
    utf8,
    whole_text,
)
from atomizer_dask.conductors.amqp.json_writer import FormError, to_text
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


class Sender(NamedTuple):
    """Who sent a message that could not be read, as far as can be recognised."""

    sender_id: str
    id: str
    atom_id: str


class ExpiredError(WireError):
    """The time of an electron was up before it was received.

    Parameters
    ----------
    event, internal
        As of every error.
    sender_id, id, atom_id
        Of the electron: whom to answer, and about what.
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


LIMITS = Limits()

_REQUEST = frozenset({"senderid", "id", "atomid", "timeout", "copystate", "payload"})
_REPLY = frozenset({"electronId", "atomId", "starttime", "endtime", "error", "result"})
_EVENT = frozenset({"message", "electronID", "atomID", "conductorID"})
_KINDS = frozenset(get_args(Kind))
_TIERS = frozenset({"context", "exception", "kill"})
LONGEST_NAME = 255  # bytes of a queue's name in AMQP
_LONGEST_TIMEOUT = 2**63 - 1  # nanoseconds
_LONGEST_MESSAGE = 64 * 2**10  # characters of an error
_LONGEST_TRACEBACK = 16 * 2**10
_LONGEST_NAME = 1024  # bytes of a header other than the traceback
_LOOKED_AT = 256 * 2**10  # bytes at either end of what is not JSON, where a sender is looked for
_GO_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)
_ADVICE = "send the place where the data can be read instead, or raise the limit on both sides"

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
_MEMBER = {
    name: re.compile(rb'"%s"\s*:\s*"((?:[^"\\]|\\.){1,1024})"' % name.encode(), re.I | re.S)
    for name in ("senderid", "id", "atomid", "electronId", "atomId")
}


def encode_electron(electron: Electron, sender_id: str, limits: Limits = LIMITS) -> bytes:
    """Return an electron as a request.

    Parameters
    ----------
    sender_id
        Where it shall be answered to: the name of a queue. It takes the place of the electron's.

    Raises
    ------
    InvalidPayloadError
        Where the payload has no JSON form, or is too deep or too large.
    WireError
        Where an id is none that peers can read.

    Examples
    --------
    >>> encode_electron(Electron("montecarlopi.Toss", {"tosses": 1}, id="e1"), "replies")
    b'{"senderid":"replies","id":"e1","atomid":"montecarlopi.Toss","payload":{"tosses":1}}'
    """
    if not _can_be_answered(sender_id):
        raise WireError(_unanswerable(sender_id))
    payload = timeout = copy_state = ""
    if electron.payload is not None:
        payload = f',"payload":{_payload_text(electron, limits)}'
    if electron.timeout is not None:
        timeout = _timeout_text(electron.timeout)
    if electron.copy_state:
        copy_state = ',"copystate":true'
    if type(electron.id) is not str or not electron.id:
        raise WireError(f"the id of an electron must be a non-empty text, got {electron.id!r}")
    body = utf8(
        f'{{"senderid":{encode_basestring(sender_id)},"id":{encode_basestring(electron.id)},'
        f'"atomid":{encode_basestring(electron.atom_id)}{timeout}{copy_state}{payload}}}'
    )
    if len(body) > limits.bytes:
        raise _invalid(electron, f"an electron with its payload is {_too_large(body, limits)}")
    return body


def decode_electron(body: bytes, limits: Limits = LIMITS) -> Electron:
    """Return the electron that a request is about.

    Raises
    ------
    ExpiredError
        Where its timeout is not above 0.
    WireError
        Where it cannot be read; `recognise` may tell who sent it.

    Examples
    --------
    >>> decode_electron(b'{"SenderID":"replies","id":"e1","atomid":"Toss","payload":"MQ=="}')
    <Electron e1 for Toss: 1>
    """
    sent = _received(body, _REQUEST, "an electron", limits)
    sender_id = _text_of(sent, "senderid")
    electron_id = _text_of(sent, "id")
    atom_id = _text_of(sent, "atomid")
    if not _can_be_answered(sender_id):
        raise WireError(_unanswerable(sender_id))
    payload = sent.get("payload")
    if type(payload) is str:
        payload = _unwrapped(payload, limits)
    options: dict[str, Any] = {}
    if "copystate" in sent:
        options["copy_state"] = _copy_state(sent["copystate"])
    if sent.get("timeout") is not None:
        options["timeout"] = _timeout(sent["timeout"], Sender(sender_id, electron_id, atom_id))
    return Electron(atom_id, payload, id=electron_id, sender_id=sender_id, **options)


def recognise(body: bytes) -> Sender | None:
    """Return who sent a request that could not be read; None where that cannot be told.

    `id` and `atom_id` may be empty.

    Examples
    --------
    >>> recognise(b'{"senderid":"replies","id":"e1","atomid":5}')
    Sender(sender_id='replies', id='e1', atom_id='')
    >>> recognise(b'{"senderid":"replies","id":"e1","payl')
    Sender(sender_id='replies', id='e1', atom_id='')
    """
    sender = Sender(*_recognised(body, _REQUEST, ("senderid", "id", "atomid")))
    return sender if _can_be_answered(sender.sender_id) else None


def recognise_reply(body: bytes) -> tuple[str, str]:
    """Return the ids of electron and atom that a reply is about which could not be read.

    They are empty where they cannot be told.

    Examples
    --------
    >>> recognise_reply(b'{"electronId":"e1","atomId":"a","starttime":"noon"}')
    ('e1', 'a')
    """
    electron_id, atom_id = _recognised(body, _REPLY, ("electronId", "atomId"))
    return electron_id, atom_id


def encode_properties(
    properties: Properties, conductor_id: str = "amqp", limits: Limits = LIMITS
) -> bytes:
    """Return properties as a reply.

    The text of an exception is sent as it is, as Go agents do; any other error as an event.

    Parameters
    ----------
    conductor_id
        Of the event, where the error does not say.

    Raises
    ------
    WireError
        Where the result has no JSON form, or is too deep or too large.
    """
    error, result = "", "null"
    if properties.error is not None:
        told = _error_text(properties, properties.error, conductor_id)
        error = f',"error":"{b64encode(utf8(told)).decode()}"'
    elif properties.result is not None:
        try:
            result = to_text(properties.result, "result", limits.depth, limits.bytes)
        except FormError as why:
            raise WireError(_about(properties, str(why))) from None
    body = utf8(
        f'{{"electronId":{encode_basestring(properties.electron_id)},'
        f'"atomId":{encode_basestring(properties.atom_id)},'
        f'"starttime":"{_time_text(properties.start)}",'
        f'"endtime":"{_time_text(properties.end)}"{error},"result":{result}}}'
    )
    if len(body) > limits.bytes:
        what = f"properties with their result are {_too_large(body, limits)}"
        raise WireError(_about(properties, what))
    return body


def details_of(properties: Properties) -> dict[str, str | int]:
    """Return what the headers of a reply say of a failure beyond its body."""
    error = properties.error
    if error is None:
        return {}
    traceback = utf8(getattr(error, "traceback", ""))[-_LONGEST_TRACEBACK:]
    names = {
        "atomizer-kind": getattr(error, "kind", ""),
        "atomizer-type": getattr(error, "type", ""),
        "atomizer-tier": getattr(error, "tier", ""),
        "atomizer-worker": properties.worker or getattr(error, "worker", ""),
    }
    told = {name: utf8(text)[:_LONGEST_NAME] for name, text in names.items()}
    told["atomizer-traceback"] = traceback
    texts = {name: part.decode(errors="ignore") for name, part in told.items() if part}
    return {**texts, "atomizer-attempts": properties.attempts}


def decode_properties(
    body: bytes, headers: Mapping[str, Any] | None = None, limits: Limits = LIMITS
) -> Properties:
    """Return the properties that a reply is about.

    Parameters
    ----------
    headers
        Of the message, see `details_of`; what makes no sense in them is ignored.

    Raises
    ------
    WireError
        Where it cannot be read.
    """
    sent = _received(body, _REPLY, "properties", limits)
    electron_id = _text_of(sent, "electronId")
    atom_id = sent.get("atomId")
    if atom_id is None:  # as in Go, where it is empty then
        atom_id = ""
    elif type(atom_id) is not str:
        raise WireError(f"atomId must be a text, got {kind_of(atom_id)}")
    start, end = _time(sent, "starttime"), _time(sent, "endtime")
    told = sent.get("error")
    if told is None:
        result = sent.get("result")
        return Properties.of(electron_id, atom_id, start, end, None, result, "")
    if type(told) is not str:
        raise WireError(f"error must be a text of base64, got {kind_of(told)}")
    error = _error(told, Event("", electron_id, atom_id), headers, (start, end), limits)
    return Properties.of(electron_id, atom_id, start, end, error, None, error.worker, error.attempt)


def _received(body: bytes, names: frozenset[str], what: str, limits: Limits) -> dict[str, Any]:
    if len(body) > limits.bytes:
        raise WireError(f"{what} cannot be read: a message of {_too_large(body, limits)}")
    try:
        return members_of(body, names, limits.depth + 1)
    except WireError as error:
        kind, why = type(error), error.event.message
    # Not within `except`, where the error would keep what the parser knows: the whole body.
    raise kind(f"{what} cannot be read: {why}")


def _recognised(body: bytes, members: frozenset[str], wanted: tuple[str, ...]) -> list[str]:
    """Return the texts of the wanted members; empty where there are none."""
    try:
        sent = _received(body, members, "a message", LIMITS)
    except WireError:
        sent = _found(body, wanted)
    return [_named(sent.get(name)) for name in wanted]


def _found(body: bytes, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return what looks like the wanted members, in what is not JSON."""
    if len(body) > 2 * _LOOKED_AT:
        body = body[:_LOOKED_AT] + b"\n" + body[-_LOOKED_AT:]
    found = {}
    for name in wanted:
        if match := _MEMBER[name].search(body):
            try:
                found[name] = read(b'"%s"' % match[1], 0)
            except WireError:
                continue  # a text that is none tells nothing
    return found


# ---- what messages say --------------------------------------------------------------------------


def _too_large(body: bytes, limits: Limits) -> str:
    return f"{len(body):,} bytes, more than the limit of {limits.bytes:,}; {_ADVICE}"


def _invalid(electron: Electron, what: str) -> InvalidPayloadError:
    return InvalidPayloadError(Event(what, electron.id, electron.atom_id, level="error"))


def _about(properties: Properties, what: str) -> Event:
    return Event(what, properties.electron_id, properties.atom_id, level="error")


def _text_of(sent: Mapping[str, Any], name: str) -> str:
    value = sent.get(name)
    if type(value) is not str or not value:
        got = "nothing" if name not in sent else "an empty one" if value == "" else kind_of(value)
        raise WireError(f"{name} must be a non-empty text, got {got}")
    return value


def _named(value: Any) -> str:
    return value if type(value) is str else ""


def _can_be_answered(sender_id: Any) -> bool:
    return (
        type(sender_id) is str
        and 0 < len(sender_id) <= LONGEST_NAME
        and (sender_id.isascii() or len(utf8(sender_id)) <= LONGEST_NAME)
    )


def _unanswerable(sender_id: Any) -> str:
    got = f"{len(utf8(sender_id))} bytes" if type(sender_id) is str else repr(sender_id)
    return (
        f"senderid must be the name of the queue to answer to, a text of 1 to {LONGEST_NAME} "
        f"bytes, got {got}"
    )


# ---- members of a request -----------------------------------------------------------------------


def _payload_text(electron: Electron, limits: Limits) -> str:
    try:
        text = to_text(electron.payload, "payload", limits.depth, limits.bytes)
    except FormError as why:
        raise _invalid(electron, str(why)) from None
    if text[0] in "{[" or not _is_misread(text):
        return text
    return f'"{b64encode(utf8(text)).decode()}"'


def _is_misread(text: str) -> bool:
    """Whether a Go agent takes a payload for base64: it cuts the quotes off and tries."""
    bare = text.strip('"')
    return len(bare) % 4 == 0 and _BASE64.fullmatch(bare) is not None


def _unwrapped(text: str, limits: Limits) -> Any:
    """Return the JSON that a text is base64 of; the text where it is none."""
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


def _timeout_text(timeout: Any) -> str:
    seconds = seconds_of(timeout, "timeout")
    assert seconds is not None
    if math.isinf(seconds):
        return ""
    nanoseconds = round(min(seconds * 1e9, _LONGEST_TIMEOUT))
    return f',"timeout":{min(max(nanoseconds, 1), _LONGEST_TIMEOUT)}'  # the nearest float is longer


def _timeout(sent: Any, sender: Sender) -> float:
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


def _copy_state(sent: Any) -> bool:
    if sent is not None and type(sent) is not bool:
        raise WireError(f"copystate must be true or false, got {kind_of(sent)}")
    return bool(sent)


# ---- members of a reply -------------------------------------------------------------------------


def _time_text(moment: datetime) -> str:
    if moment.tzinfo is not UTC:
        if moment.utcoffset() is None:
            raise WireError(f"start and end must have a time zone, got {moment}; give them UTC")
        moment = moment.astimezone(UTC)
    text = moment.isoformat()[:-6]
    return f"{text.rstrip('0')}Z" if len(text) > 19 else f"{text}Z"


def _time(sent: Mapping[str, Any], name: str) -> datetime:
    text = sent.get(name)
    if text is None:
        return _GO_ZERO_TIME
    try:
        if type(text) is str and _RFC3339.fullmatch(text):
            moment = datetime.fromisoformat(text.upper())
            return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # a 13th month, say: told below
    got = f"{shorten(text, 60)!r}" if type(text) is str else kind_of(text)
    raise WireError(f"{name} must be a time as of RFC 3339, 2026-01-31T12:00:00Z, got {got}")


def _error_text(properties: Properties, error: AtomizerError, conductor_id: str) -> str:
    if getattr(error, "kind", "") == "exception":
        message = str(getattr(error, "message", ""))
        # A Go program would take an object for an event, and null for no error at all.
        if message and message.lstrip()[:1] != "{" and message.strip() != "null":
            return shorten(message, _LONGEST_MESSAGE)
    event = error.event
    told = {
        "message": shorten(str(event.message), _LONGEST_MESSAGE),
        "electronID": event.electron_id or properties.electron_id,
        "atomID": event.atom_id or properties.atom_id,
        "conductorID": event.conductor_id or conductor_id,
    }
    return to_text({"event": told, "internal": None}, "error")


def _error(
    told: str, whose: Event, headers: Any, times: tuple[datetime, datetime], limits: Limits
) -> ElectronError:
    """Return the error of a reply: of an event of the runtime, or of an exception's text."""
    text = _plain_text(told)
    event = _event_in(text, limits)
    kind: Any = _header(headers, "kind")
    if kind not in _KINDS:
        kind = "exception" if event is None else "rejected"
    name = _header(headers, "type")
    if event is None:
        message = text
        event = Event(
            f"{name}: {text}" if name else text, whose.electron_id, whose.atom_id, level="error"
        )
    else:
        message = event.message.removeprefix(f"{name}: ") if name else event.message
    tier = _header(headers, "tier")
    return ElectronError(
        event, None, kind, name, message,
        _header(headers, "traceback"), tier if tier in _TIERS else "",
        _attempts(headers), _header(headers, "worker"), *times,
    )  # fmt: skip


def _plain_text(told: str) -> str:
    try:
        inner = binascii.a2b_base64(told.replace("\n", "").replace("\r", ""), strict_mode=True)
    except ValueError:  # from a peer that does not know better
        return told
    return whole_text(inner)


def _event_in(text: str, limits: Limits) -> Event | None:
    if text.lstrip()[:1] != "{":
        return None
    try:
        told = folded(pairs_of(text.encode(), limits.depth), frozenset({"event"})).get("event")
    except WireError:
        return None
    if type(told) is not dict:
        return None
    known = folded(told.items(), _EVENT)
    names = ("message", "electronID", "atomID", "conductorID")
    texts = [known.get(name) or "" for name in names]
    if not all(type(text) is str for text in texts):
        return None
    message, electron_id, atom_id, conductor_id = texts
    return Event(message, electron_id, atom_id, conductor_id, level="error")


def _header(headers: Any, name: str) -> str:
    value = headers.get(f"atomizer-{name}") if isinstance(headers, Mapping) else None
    if type(value) is not str:
        return ""
    cut = value[-_LONGEST_TRACEBACK:] if name == "traceback" else value[:_LONGEST_NAME]
    return utf8(cut).decode()


def _attempts(headers: Any) -> int:
    value = headers.get("atomizer-attempts") if isinstance(headers, Mapping) else None
    return value if type(value) is int and 0 < value < 2**31 else 1
