"""The address of a broker, with user and password, which are never shown."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

URL_VARIABLE = "ATOMIZER_AMQP_URL"
USER_VARIABLE, PASSWORD_VARIABLE = "ATOMIZER_AMQP_USER", "ATOMIZER_AMQP_PASSWORD"
PORTS = {"amqp": 5672, "amqps": 5671}

_EXAMPLE = "write amqp://host:5672/ or, encrypted, amqps://host:5671/vhost"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the certificate of a broker is checked, and which one we present.

    Parameters
    ----------
    ca_file
        Certificates of the authorities to trust, in place of those that this machine trusts.
    cert_file, key_file
        Our own certificate and its key, for brokers that ask for one.
    verify
        Whether the certificate, and the host name in it, are checked.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a connection.

        Raises
        ------
        OSError
            Where a file cannot be read, or is not of the right kind.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a broker, with user and password.

    Its text and its repr have neither user nor password.
    """

    scheme: str
    host: str
    port: int
    vhost: str
    user: str = field(repr=False)
    password: str = field(repr=False)
    tls: Tls = Tls()

    @classmethod
    def of(cls, url: str | None, tls: Tls | None = None) -> Address:
        """Return the address that a URL means, completed from the environment.

        Without a URL that of the variable ATOMIZER_AMQP_URL is taken. User and password that the
        URL lacks are those of ATOMIZER_AMQP_USER and ATOMIZER_AMQP_PASSWORD, else RabbitMQ's guest.

        Raises
        ------
        ValueError
            Where it is not the URL of a broker; the message does not contain the URL.
        TypeError
            Where `url` is not text.
        """
        given = url if url is not None else os.environ.get(URL_VARIABLE)
        if given is None:
            raise ValueError(f"no broker was given, and {URL_VARIABLE} is not set; {_EXAMPLE}")
        if not isinstance(given, str):
            raise TypeError(f"the URL of a broker must be text, got {type(given).__name__}")
        parts, port = _parts_of(given)
        if tls not in (None, Tls()) and parts.scheme != "amqps":
            raise ValueError("certificates are for amqps://, and the URL begins with amqp://")
        return cls(
            scheme=parts.scheme,
            host=str(parts.hostname),
            port=port or PORTS[parts.scheme],
            vhost=unquote(parts.path[1:]) or "/",
            user=_part_or_variable(parts.username, USER_VARIABLE),
            password=_part_or_variable(parts.password, PASSWORD_VARIABLE),
            tls=tls or Tls(),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{'' if self.vhost == '/' else self.vhost}"


def _part_or_variable(part: str | None, variable: str) -> str:
    """Return a part of the URL, else the variable of the environment, else ``guest``."""
    return unquote(part) if part is not None else os.environ.get(variable, "guest")


def _parts_of(given: str) -> tuple[SplitResult, int | None]:
    """Return the parts of the URL of a broker and its port; `ValueError` where it is none."""
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:  # its text may quote the URL, and with it the password
        raise ValueError(f"the URL of the broker has no valid host and port; {_EXAMPLE}") from None
    if parts.scheme not in PORTS:
        shown = f"{parts.scheme}://" if "://" in given else "none"
        raise ValueError(f"the URL of a broker begins with amqp:// or amqps://, got {shown}")
    if not parts.hostname:
        raise ValueError(f"the URL of the broker names no host; {_EXAMPLE}")
    if port == 0:
        raise ValueError(f"the URL of the broker has no valid host and port; {_EXAMPLE}")
    if "@" in parts.path:  # the text before it would count as virtual host, and be shown
        raise ValueError(
            "the URL of the broker has an @ after its host; write %2F for a / that is part of "
            "the user or password, and %40 for an @ in the name of a virtual host"
        )
    if parts.query or parts.fragment:
        raise ValueError(
            "the URL of the broker has options after a ? or #; leave them out, or write %3F "
            "and %23 where they are part of the password"
        )
    return parts, port
