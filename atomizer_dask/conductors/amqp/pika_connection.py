"""What we need of pika, which only this module imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pika import (
    BasicProperties,
    ConnectionParameters,
    PlainCredentials,
    SelectConnection,
    SSLOptions,
)
from pika.adapters.select_connection import IOLoop
from pika.spec import Basic

from atomizer_dask.conductors.amqp.address import Address
from atomizer_dask.conductors.amqp.frames import (
    HEADER,
    PERSISTENT,
    delivered,
    end_of_frame,
    properties_of,
    published,
    without_properties,
)
from atomizer_dask.config import setting

READ_BYTES = 2**15

OnMessage = Callable[[int, int | None, Mapping[str, Any] | None, bytes], None]
"""Called with the tag of a delivery, its delivery mode, its headers and its body."""

__all__ = ["Connection", "IOLoop", "OnMessage", "connect", "is_refusal"]


class Connection(SelectConnection):  # type: ignore[misc]
    """A connection that reads and writes much at a time.

    Each system call lets go of the interpreter lock, and a busy thread that takes it then keeps it
    for 5 ms. With pika's own 4 KB for a read, and a write for each frame, that would be how long
    ten messages take.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._frame_buffer: bytes = b""
        self._written: list[bytes] = []
        self._consumers: dict[tuple[int, bytes], OnMessage] = {}
        super().__init__(*args, **options)

    def publish(
        self,
        channel: Any,
        queue: str,
        body: bytes,
        *,
        persistent: bool,
        headers: Mapping[str, Any] | None,
    ) -> None:
        """Send a message to a queue; the broker returns it where there is none."""
        if headers or not body or len(body) > self._body_max_length:
            properties = BasicProperties(
                content_type="application/json",
                delivery_mode=PERSISTENT if persistent else None,
                headers=dict(headers) if headers else None,
            )
            channel.basic_publish("", queue, body, properties, mandatory=True)
            return
        frames = published(channel.channel_number, queue, body, persistent=persistent)
        self._output_marshaled_frames([frames])

    def consume(self, channel: Any, queue: str, on_message: OnMessage) -> str:
        """Have `on_message` called with what arrives from a queue; return the consumer's name."""

        def on_unusual(_: Any, method: Any, properties: Any, body: bytes) -> None:
            on_message(method.delivery_tag, properties.delivery_mode, properties.headers, body)

        consumer: str = channel.basic_consume(queue, on_unusual)
        self._consumers[channel.channel_number, consumer.encode()] = on_message
        return consumer

    def cancel(self, channel: Any, consumer: str) -> None:
        """Have a consumer be given no more; what is on its way to it still arrives."""

        def cancelled(_: Any) -> None:
            self._consumers.pop((channel.channel_number, consumer.encode()), None)

        # Without being told of the end pika would keep the name for as long as the channel is open.
        channel.basic_cancel(consumer, callback=cancelled)

    def _proto_connection_made(self, transport: Any) -> Any:
        transport._MAX_RECV_BYTES = READ_BYTES
        return super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        """Give messages to their consumers, and everything else to pika, frame by frame."""
        if not self.is_open:
            super()._on_data_available(data_in)
            return
        buffer, start = self._frame_buffer + data_in, 0
        self._frame_buffer = b""
        try:
            while self.is_open:
                message = delivered(buffer, start)
                on_message = message and self._consumers.get((message.channel, message.consumer))
                if message and on_message:
                    self.bytes_received += message.end - start
                    start = message.end
                    on_message(message.tag, message.mode, None, message.body)
                    continue
                stop = end_of_frame(buffer, start)
                if stop is None:
                    break
                frame, start = buffer[start:stop], stop
                super()._on_data_available(_readable(frame))
        finally:
            self._frame_buffer += buffer[start:]

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._written:
            self.ioloop.add_callback_threadsafe(self.emit)
        self._written.append(data)

    def emit(self) -> None:
        """Write what has come up in this turn of the loop."""
        data = b"".join(self._written)
        self._written.clear()
        if data and self._transport is not None:
            super()._adapter_emit_data(data)

    def drop(self) -> None:
        """Hang up without a word."""
        if self._transport is not None:
            self._transport.abort()


def _readable(frame: bytes) -> bytes:
    """Return a frame as it is, or without the properties of its message where pika has no reading.

    What it raises about them, at a date beyond the year 9999 say, would end the connection: the
    broker would deliver the message again, and so on without end.
    """
    if frame[0] == HEADER:
        try:
            BasicProperties().decode(properties_of(frame))
        except Exception:  # noqa: BLE001 - whatever comes of bytes that a stranger chose
            return without_properties(frame)
    return frame


def connect(
    address: Address,
    loop: IOLoop,
    *,
    is_open: Callable[[Any], None],
    has_failed: Callable[[BaseException], None],
    is_closed: Callable[[BaseException], None],
) -> Connection:
    """Return a connection that is about to be made."""
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
    return Connection(
        parameters,
        on_open_callback=is_open,
        on_open_error_callback=lambda _, error: has_failed(error),
        on_close_callback=lambda _, error: is_closed(error),
        custom_ioloop=loop,
    )


def is_refusal(method: Any) -> bool:
    """Return whether the broker says that it could not take a message."""
    return isinstance(method, Basic.Nack)
