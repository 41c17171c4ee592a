"""The connection of pika with buffered reads and writes; only this module imports pika."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

from pika import (
    BasicProperties,
    ConnectionParameters,
    PlainCredentials,
    SelectConnection,
    SSLOptions,
)
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.nbio_interface import AbstractStreamProtocol, AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.spec import Basic

from atomizer_dask.conductors.amqp.address import Address
from atomizer_dask.conductors.amqp.outgoing import PERSISTENT
from atomizer_dask.config import setting

READ_BYTES = 2**15
HEADER = 2  # the type of the frame that has the properties of a message
OVERHEAD = 8  # bytes of a frame besides its payload
_FRAME = Struct(">BHI")  # type, channel, size
_PROPERTIES = _FRAME.size + 12  # offset of the properties: after class, weight and size of the body
_JSON = b"\x10application/json"
_ENCODED = {b"\x80\0" + _JSON, b"\x90\0" + _JSON + b"\x01", b"\x90\0" + _JSON + b"\x02"}  # as usual

OnMessage = Callable[[int, int | None, Mapping[str, Any] | None, bytes], None]
"""Called with the tag of a delivery, its delivery mode, its headers and its body."""

__all__ = ["IOLoop", "OnMessage", "PikaConnection", "connect", "is_refusal"]


class PikaConnection(SelectConnection):  # type: ignore[misc]
    """A connection that reads and writes much at a time.

    Each system call releases the interpreter lock, and a busy thread that takes the lock then keeps
    it for 5 ms. With pika's own reads of 4 KB, and a write for each frame, ten messages would take
    that long.
    """

    def __init__(self, parameters: ConnectionParameters, loop: IOLoop, **callbacks: Any) -> None:
        self._streams = _Streams(loop)
        super().__init__(parameters, custom_ioloop=self._streams, **callbacks)

    def publish(
        self,
        channel: Any,
        queue: str,
        body: bytes,
        *,
        persistent: bool,
        headers: Mapping[str, Any] | None,
    ) -> None:
        """Send a message to a queue; the broker returns it where the queue does not exist."""
        properties = _USUAL[persistent]
        if headers:
            properties = _properties(persistent, dict(headers))
        channel.basic_publish("", queue, body, properties, mandatory=True)

    def consume(self, channel: Any, queue: str, on_message: OnMessage) -> str:
        """Have `on_message` called with messages from a queue; return the consumer's tag."""

        def arrived(_: Any, method: Any, properties: Any, body: bytes) -> None:
            on_message(method.delivery_tag, properties.delivery_mode, properties.headers, body)

        consumer: str = channel.basic_consume(queue, arrived)
        return consumer

    def cancel(self, channel: Any, consumer: str) -> None:
        """Cancel a consumer; messages on their way to it return to the queue."""
        # Without a callback pika would keep the tag for as long as the channel is open.
        channel.basic_cancel(consumer, callback=lambda _: None)

    def emit(self) -> None:
        """Write the frames of this turn of the loop."""
        if self._streams.transport is not None:
            self._streams.transport.emit()

    def drop(self) -> None:
        """Close the socket without the closing handshake."""
        if self._streams.transport is not None:
            self._streams.transport.abort()


def _properties(persistent: bool, headers: dict[str, Any] | None = None) -> BasicProperties:
    mode = PERSISTENT if persistent else None
    return BasicProperties("application/json", delivery_mode=mode, headers=headers)


_USUAL = {persistent: _properties(persistent) for persistent in (False, True)}


class _Streams(SelectorIOServicesAdapter):  # type: ignore[misc]
    """Puts `_Transport` and `_Protocol` between pika and the socket.

    Attributes
    ----------
    transport
        The transport of the connection, once there is one.
    """

    transport: _Transport | None = None

    def create_streaming_connection(
        self, protocol_factory: Callable[[], Any], sock: Any, on_done: Callable[[Any], None],
        ssl_context: Any = None, server_hostname: str | None = None,
    ) -> Any:  # fmt: skip
        """Do what pika's own method does, with `_Transport` and `_Protocol`."""

        def done(made: Any) -> None:
            if not isinstance(made, BaseException):
                made = self.transport, made[1].pika
            on_done(made)

        return super().create_streaming_connection(
            lambda: _Protocol(protocol_factory(), self._wrap),
            sock, done, ssl_context, server_hostname,
        )  # fmt: skip

    def _wrap(self, transport: AbstractStreamTransport) -> _Transport:
        # It has no public setter. Written against pika 1.4; a test fails where it is gone.
        transport._MAX_RECV_BYTES = READ_BYTES
        self.transport = _Transport(transport, self.get_native_ioloop())
        return self.transport


class _Transport(AbstractStreamTransport):  # type: ignore[misc]
    """Collects the frames of a turn of the loop, and writes them at once."""

    def __init__(self, socket: AbstractStreamTransport, loop: IOLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.add_callback_threadsafe(self.emit)
        self._written.append(data)

    def emit(self) -> None:
        """Write the frames collected."""
        data = b"".join(self._written)
        self._written.clear()
        if data:
            self._socket.write(data)

    def abort(self) -> None:
        self._socket.abort()

    def get_protocol(self) -> AbstractStreamProtocol:
        return self._socket.get_protocol()

    def get_write_buffer_size(self) -> int:
        size: int = self._socket.get_write_buffer_size() + sum(map(len, self._written))
        return size


class _Protocol(AbstractStreamProtocol):  # type: ignore[misc]
    """Passes received bytes to pika frame by frame, so that pika copies no rest for each.

    Parameters
    ----------
    pika
        The protocol of pika.
    wrap
        Returns the transport to give to pika.
    """

    def __init__(
        self,
        pika: AbstractStreamProtocol,
        wrap: Callable[[AbstractStreamTransport], AbstractStreamTransport],
    ) -> None:
        self.pika = pika
        self._wrap = wrap
        self._rest = b""

    def connection_made(self, transport: AbstractStreamTransport) -> None:
        self.pika.connection_made(self._wrap(transport))

    def connection_lost(self, error: BaseException | None) -> None:
        self.pika.connection_lost(error)

    def eof_received(self) -> bool | None:
        keeps_open: bool | None = self.pika.eof_received()
        return keeps_open

    def data_received(self, data: bytes) -> None:
        buffer, start = self._rest + data, 0
        if buffer[:1] == b"A":  # not a frame: a broker's header with the version it supports
            self.pika.data_received(data)
            return
        self._rest = b""
        try:
            while (stop := end_of_frame(buffer, start)) is not None:
                frame, start = buffer[start:stop], stop
                self.pika.data_received(readable(frame))
        finally:
            self._rest += buffer[start:]


def end_of_frame(buffer: bytes, start: int) -> int | None:
    """Return where the frame ends that begins at `start`; None where it is incomplete."""
    if len(buffer) - start < OVERHEAD:
        return None
    _, _, size = _FRAME.unpack_from(buffer, start)
    end: int = start + OVERHEAD + size
    return end if end <= len(buffer) else None


def readable(frame: bytes) -> bytes:
    """Return a frame, without the properties of its message where pika cannot decode them.

    The exception, of a date beyond the year 9999 say, would end the connection: then the broker
    would deliver the message again, and so on without end.
    """
    if frame[0] == HEADER and frame[_PROPERTIES:-1] not in _ENCODED:
        try:
            BasicProperties().decode(frame[_PROPERTIES:-1])
        except Exception:  # noqa: BLE001 - whatever comes of bytes that a stranger chose
            _, channel, _ = _FRAME.unpack_from(frame)
            content = frame[_FRAME.size : _PROPERTIES] + b"\0\0"
            return _FRAME.pack(HEADER, channel, len(content)) + content + frame[-1:]
    return frame


def connect(
    address: Address,
    loop: IOLoop,
    *,
    is_open: Callable[[Any], None],
    has_failed: Callable[[BaseException], None],
    is_closed: Callable[[BaseException], None],
) -> PikaConnection:
    """Return a connection that is being made; a callback says when it is open, or has failed."""
    secured = address.scheme == "amqps"
    patience = setting("amqp.connect-timeout")
    parameters = ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=PlainCredentials(address.user, address.password),
        ssl_options=SSLOptions(address.tls.context(), address.host) if secured else None,
        heartbeat=round(setting("amqp.heartbeat")),
        socket_timeout=patience,
        stack_timeout=patience,
        client_properties={"connection_name": "atomizer_dask"},
    )
    return PikaConnection(
        parameters,
        loop,
        on_open_callback=is_open,
        on_open_error_callback=lambda _, error: has_failed(error),
        on_close_callback=lambda _, error: is_closed(error),
    )


def is_refusal(method: Any) -> bool:
    """Return whether the broker says that it could not take a message."""
    return isinstance(method, Basic.Nack)
