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

All messages go through the default exchange to queues that are durable, not exclusive and not
deleted automatically. Requests go to the work queue, replies to the queue that `senderid` names.
Headers of a reply say more about a failure than its text; peers may leave them out:
``atomizer-kind``, ``-type``, ``-tier``, ``-worker``, ``-traceback`` and ``-attempts``. A message
that cannot be answered goes unchanged to the queue of the work queue's name and ``.dead``, with the
headers ``atomizer-reason`` and ``atomizer-queue``.

A seed, a failure policy (`on_failure`, `max_attempts`, `backoff`) and the worker of an electron
that succeeded have no place in these messages, and do not travel.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from atomizer_dask.conductors.amqp.wire.json_reader import kind_of, members_of, read, utf8
from atomizer_dask.conductors.amqp.wire.json_writer import FormError, to_text
from atomizer_dask.conductors.amqp.wire.message_members import (
    LONGEST_HEADER,
    LONGEST_TRACEBACK,
    Limits,
    UnreadSender,
    copy_state_of,
    error_of,
    error_text,
    invalid,
    payload_text,
    time_of,
    time_text,
    timeout_of,
    timeout_text,
    unwrapped,
)
from atomizer_dask.electron import Electron
from atomizer_dask.errors import WireError
from atomizer_dask.events import Event
from atomizer_dask.properties import Properties

LIMITS = Limits()

_REQUEST = frozenset({"senderid", "id", "atomid", "timeout", "copystate", "payload"})
_REPLY = frozenset({"electronId", "atomId", "starttime", "endtime", "error", "result"})
LONGEST_NAME = 255  # bytes of a queue's name in AMQP
_SEARCHED = 256 * 2**10  # bytes at either end of a broken body that are searched for a sender
_ADVICE = "send the place where the data can be read instead, or raise the limit on both sides"
_MEMBER = {
    name: re.compile(rb'"%s"\s*:\s*"((?:[^"\\]|\\.){1,1024})"' % name.encode(), re.I | re.S)
    for name in ("senderid", "id", "atomid", "electronId", "atomId")
}


def encode_electron(electron: Electron, sender_id: str, limits: Limits = LIMITS) -> bytes:
    """Return an electron as a request.

    Parameters
    ----------
    sender_id
        The name of the queue to answer to; it takes the place of the electron's own.

    Raises
    ------
    InvalidPayloadError
        Where the payload has no JSON form, or is too deep or too large.
    WireError
        Where peers cannot read an id.

    Examples
    --------
    >>> encode_electron(Electron("montecarlopi.Toss", {"tosses": 1}, id="e1"), "replies")
    b'{"senderid":"replies","id":"e1","atomid":"montecarlopi.Toss","payload":{"tosses":1}}'
    """
    if not _can_be_answered(sender_id):
        raise WireError(_unanswerable(sender_id))
    payload = timeout = copy_state = ""
    if electron.payload is not None:
        payload = f',"payload":{payload_text(electron, limits)}'
    if electron.timeout is not None:
        timeout = timeout_text(electron.timeout)
    if electron.copy_state:
        copy_state = ',"copystate":true'
    if type(electron.id) is not str or not electron.id:
        raise WireError(f"the id of an electron must be a non-empty text, got {electron.id!r}")
    body = utf8(
        f'{{"senderid":{encode_basestring(sender_id)},"id":{encode_basestring(electron.id)},'
        f'"atomid":{encode_basestring(electron.atom_id)}{timeout}{copy_state}{payload}}}'
    )
    if len(body) > limits.bytes:
        raise invalid(electron, f"an electron with its payload is {_too_large(body, limits)}")
    return body


def decode_electron(body: bytes, limits: Limits = LIMITS) -> Electron:
    """Return the electron of a request.

    Raises
    ------
    ExpiredError
        Where its timeout is not above 0.
    WireError
        Where the request cannot be read; `recognise` may find its sender.

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
        payload = unwrapped(payload, limits)
    options: dict[str, Any] = {}
    if "copystate" in sent:
        options["copy_state"] = copy_state_of(sent["copystate"])
    if sent.get("timeout") is not None:
        options["timeout"] = timeout_of(
            sent["timeout"], UnreadSender(sender_id, electron_id, atom_id)
        )
    return Electron(atom_id, payload, id=electron_id, sender_id=sender_id, **options)


def recognise(body: bytes) -> UnreadSender | None:
    """Return the sender of a request that could not be read; None where that is not found.

    `id` and `atom_id` may be empty.

    Examples
    --------
    >>> recognise(b'{"senderid":"replies","id":"e1","atomid":5}')
    UnreadSender(sender_id='replies', id='e1', atom_id='')
    >>> recognise(b'{"senderid":"replies","id":"e1","payl')
    UnreadSender(sender_id='replies', id='e1', atom_id='')
    """
    sender = UnreadSender(*_recognised(body, _REQUEST, ("senderid", "id", "atomid")))
    return sender if _can_be_answered(sender.sender_id) else None


def recognise_reply(body: bytes) -> tuple[str, str]:
    """Return the ids of the electron and the atom of a reply that could not be read.

    They are empty where they are not found.

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
        The conductor's id in the event, where the error has none.

    Raises
    ------
    WireError
        Where the result has no JSON form, or is too deep or too large.
    """
    error, result = "", "null"
    if properties.error is not None:
        text = error_text(properties, properties.error, conductor_id)
        error = f',"error":"{b64encode(utf8(text)).decode()}"'
    elif properties.result is not None:
        try:
            result = to_text(properties.result, "result", limits.depth, limits.bytes)
        except FormError as why:
            raise WireError(_about(properties, str(why))) from None
    body = utf8(
        f'{{"electronId":{encode_basestring(properties.electron_id)},'
        f'"atomId":{encode_basestring(properties.atom_id)},'
        f'"starttime":"{time_text(properties.start)}",'
        f'"endtime":"{time_text(properties.end)}"{error},"result":{result}}}'
    )
    if len(body) > limits.bytes:
        what = f"properties with their result are {_too_large(body, limits)}"
        raise WireError(_about(properties, what))
    return body


def details_of(properties: Properties) -> dict[str, str | int]:
    """Return the headers of a reply: what they say about a failure beyond the body."""
    error = properties.error
    if error is None:
        return {}
    traceback = utf8(getattr(error, "traceback", ""))[-LONGEST_TRACEBACK:]
    names = {
        "atomizer-kind": getattr(error, "kind", ""),
        "atomizer-type": getattr(error, "type", ""),
        "atomizer-tier": getattr(error, "tier", ""),
        "atomizer-worker": properties.worker or getattr(error, "worker", ""),
    }
    parts = {name: utf8(text)[:LONGEST_HEADER] for name, text in names.items()}
    parts["atomizer-traceback"] = traceback
    texts = {name: part.decode(errors="ignore") for name, part in parts.items() if part}
    return {**texts, "atomizer-attempts": properties.attempts}


def decode_properties(
    body: bytes, headers: Mapping[str, Any] | None = None, limits: Limits = LIMITS
) -> Properties:
    """Return the properties of a reply.

    Parameters
    ----------
    headers
        The headers of the message, see `details_of`; invalid ones are ignored.

    Raises
    ------
    WireError
        Where the reply cannot be read.
    """
    sent = _received(body, _REPLY, "properties", limits)
    electron_id = _text_of(sent, "electronId")
    atom_id = sent.get("atomId")
    if atom_id is None:  # as in Go: a missing one is empty
        atom_id = ""
    elif type(atom_id) is not str:
        raise WireError(f"atomId must be a text, got {kind_of(atom_id)}")
    start, end = time_of(sent, "starttime"), time_of(sent, "endtime")
    sent_error = sent.get("error")
    if sent_error is None:
        result = sent.get("result")
        return Properties.of(electron_id, atom_id, start, end, None, result, "")
    if type(sent_error) is not str:
        raise WireError(f"error must be a text of base64, got {kind_of(sent_error)}")
    error = error_of(sent_error, Event("", electron_id, atom_id), headers, (start, end), limits)
    return Properties.of(electron_id, atom_id, start, end, error, None, error.worker, error.attempt)


def _received(body: bytes, names: frozenset[str], what: str, limits: Limits) -> dict[str, Any]:
    if len(body) > limits.bytes:
        raise WireError(f"{what} cannot be read: a message of {_too_large(body, limits)}")
    try:
        return members_of(body, names, limits.depth + 1)
    except WireError as error:
        kind, why = type(error), error.event.message
    # Not within `except`: there the error would keep the parser's error, and so the whole body.
    raise kind(f"{what} cannot be read: {why}")


def _recognised(body: bytes, members: frozenset[str], wanted: tuple[str, ...]) -> list[str]:
    """Return the texts of the wanted members; empty where there are none."""
    try:
        sent = _received(body, members, "a message", LIMITS)
    except WireError:
        sent = _found(body, wanted)
    return [_named(sent.get(name)) for name in wanted]


def _found(body: bytes, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return what looks like the wanted members, in a body that is not JSON."""
    if len(body) > 2 * _SEARCHED:
        body = body[:_SEARCHED] + b"\n" + body[-_SEARCHED:]
    found = {}
    for name in wanted:
        if match := _MEMBER[name].search(body):
            try:
                found[name] = read(b'"%s"' % match[1], 0)
            except WireError:
                continue  # not a valid JSON text
    return found


# ---- what messages say --------------------------------------------------------------------------


def _too_large(body: bytes, limits: Limits) -> str:
    return f"{len(body):,} bytes, more than the limit of {limits.bytes:,}; {_ADVICE}"


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
