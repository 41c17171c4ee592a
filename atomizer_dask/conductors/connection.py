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

from atomizer_dask.conductors.address import CONNECT_SECONDS, HEARTBEAT_SECONDS, Address

READ_BYTES = 2**15

__all__ = ["Connection", "IOLoop", "connect", "is_refusal", "properties_of"]


class Connection(SelectConnection):  # type: ignore[misc]
    """A connection that reads and writes much at a time.

    Each system call lets go of the interpreter lock, and a busy thread that takes it then keeps it
    for 5 ms. With pika's own 4 KB for a read, and a write for each frame, that would be how long
    ten messages take.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._written: list[bytes] = []
        super().__init__(*args, **options)

    def _proto_connection_made(self, transport: Any) -> Any:
        transport._MAX_RECV_BYTES = READ_BYTES
        return super()._proto_connection_made(transport)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._written:
            self.ioloop.add_callback_threadsafe(self._emit)
        self._written.append(data)

    def _emit(self) -> None:
        """Write what has come up in this turn of the loop."""
        data = b"".join(self._written)
        self._written.clear()
        if data and self._transport is not None:
            super()._adapter_emit_data(data)


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
    parameters = ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=PlainCredentials(address.user, address.password),
        ssl_options=SSLOptions(address.tls.context(), address.host) if secured else None,
        heartbeat=HEARTBEAT_SECONDS,
        socket_timeout=CONNECT_SECONDS,
        stack_timeout=CONNECT_SECONDS,
        client_properties={"connection_name": "atomizer_dask"},
    )
    return Connection(
        parameters,
        on_open_callback=is_open,
        on_open_error_callback=lambda _, error: has_failed(error),
        on_close_callback=lambda _, error: is_closed(error),
        custom_ioloop=loop,
    )


def properties_of(*, persistent: bool, headers: Mapping[str, Any] | None = None) -> Any:
    """Return the properties of a message, which the broker keeps on disk if it is persistent."""
    return BasicProperties(
        content_type="application/json",
        delivery_mode=2 if persistent else None,
        headers=dict(headers) if headers else None,
    )


def is_refusal(method: Any) -> bool:
    """Return whether the broker says that it could not take a message."""
    return isinstance(method, Basic.Nack)
