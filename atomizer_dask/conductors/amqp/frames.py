"""The frames of a message, written and read in one go.

pika makes several objects of each frame, and three frames are a message: 10 microseconds to write
it, and as many to read it. Here it is one (AMQP 0-9-1, 2.3.5 "Frame Details" and 4.2 "Frames").
What is not as usual is left to pika.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import NamedTuple

METHOD, HEADER, BODY = 1, 2, 3
END = 0xCE
OVERHEAD = 8  # bytes of a frame besides what it carries
BASIC, PUBLISH, DELIVER = 60, 40, 60
MANDATORY = 1
PERSISTENT = 2  # the delivery mode of what the broker keeps on disk
CONTENT_TYPE, DELIVERY_MODE = 0x8000, 0x1000  # which properties follow
JSON = b"application/json"

_FRAME = Struct(">BHI")
_METHOD = Struct(">HH")
_CONTENT = Struct(">HHQH")  # class, weight, size of the body, which properties follow
_NUMBER = Struct(">Q")
_PROPERTIES = _FRAME.size + _CONTENT.size - 2  # where they begin, with which there are


class Delivered(NamedTuple):
    """A message as the broker delivers it.

    Parameters
    ----------
    end
        Where the next frame begins.
    channel, consumer
        For whom it is.
    tag
        Names the delivery.
    mode
        The delivery mode; None where it says none.
    body
        Of the message.
    """

    end: int
    channel: int
    consumer: bytes
    tag: int
    mode: int | None
    body: bytes


def published(channel: int, queue: str, body: bytes, *, persistent: bool) -> bytes:
    """Return the frames that send a message to a queue, to be told if there is none.

    Parameters
    ----------
    channel
        Its number.
    queue
        At most 255 bytes as UTF-8.
    body
        At most as long as one frame may be; not empty.
    persistent
        Whether the broker keeps it on disk.
    """
    before, after = _frames_before(channel, queue, persistent)
    body_head = _FRAME.pack(BODY, channel, len(body))
    return b"".join((before, _NUMBER.pack(len(body)), after, body_head, body, b"\xce"))


@lru_cache(maxsize=1024)
def _frames_before(channel: int, queue: str, persistent: bool) -> tuple[bytes, bytes]:
    """Return what stands before the size of the body, and between it and the body."""
    name = queue.encode()
    reserved, exchange = b"\0\0", b"\0"
    method = b"".join(
        (
            _METHOD.pack(BASIC, PUBLISH),
            reserved,
            exchange,
            bytes([len(name)]),
            name,
            bytes([MANDATORY]),
        )
    )
    flags = CONTENT_TYPE | (DELIVERY_MODE if persistent else 0)
    properties = bytes([len(JSON)]) + JSON + (bytes([PERSISTENT]) if persistent else b"")
    content = _CONTENT.pack(BASIC, 0, 0, flags)
    header = _FRAME.pack(HEADER, channel, len(content) + len(properties))
    method_frame = _FRAME.pack(METHOD, channel, len(method)) + method + b"\xce"
    return method_frame + header + content[:4], content[12:] + properties + b"\xce"


def end_of_frame(buffer: bytes, start: int) -> int | None:
    """Return where the frame ends that begins at `start`; None where it is not there as a whole."""
    if len(buffer) - start < OVERHEAD:
        return None
    _, _, size = _FRAME.unpack_from(buffer, start)
    end: int = start + OVERHEAD + size
    return end if end <= len(buffer) else None


def properties_of(header: bytes) -> bytes:
    """Return which properties a message has, and these, from the frame of its header."""
    return header[_PROPERTIES:-1]


def without_properties(header: bytes) -> bytes:
    """Return the frame of the header of a message as if it had no properties."""
    _, channel, _ = _FRAME.unpack_from(header)
    content = header[_FRAME.size : _PROPERTIES] + b"\0\0"
    return _FRAME.pack(HEADER, channel, len(content)) + content + b"\xce"


def delivered(buffer: bytes, start: int) -> Delivered | None:
    """Return the message that begins at `start`.

    None where none begins there, it is not there as a whole, or it is not as usual: it has no body
    or several frames of it, or other properties than these two.
    """
    stop = len(buffer)
    if stop - start < 2 * OVERHEAD or buffer[start] != METHOD:
        return None
    _, channel, size = _FRAME.unpack_from(buffer, start)
    at = start + 7
    header = at + size + 1
    if stop - header < OVERHEAD + _CONTENT.size or buffer[header] != HEADER:
        return None
    if _METHOD.unpack_from(buffer, at) != (BASIC, DELIVER):
        return None
    length = buffer[at + 4]
    if at + 14 + length > header:
        return None
    consumer = buffer[at + 5 : at + 5 + length]
    (tag,) = _NUMBER.unpack_from(buffer, at + 5 + length)
    _, header_channel, size = _FRAME.unpack_from(buffer, header)
    at = header + 7
    _, _, body_size, flags = _CONTENT.unpack_from(buffer, at)
    body = at + size + 1
    end = body + OVERHEAD + body_size
    if stop < end or not body_size or buffer[body] != BODY:
        return None
    _, body_channel, size = _FRAME.unpack_from(buffer, body)
    if size != body_size or not channel == header_channel == body_channel:
        return None
    if flags == CONTENT_TYPE:
        mode = None
    elif flags == CONTENT_TYPE | DELIVERY_MODE:
        mode = buffer[body - 2]
    else:
        return None
    if not buffer[header - 1] == buffer[body - 1] == buffer[end - 1] == END:
        return None
    return Delivered(end, channel, consumer, tag, mode, buffer[body + 7 : end - 1])
