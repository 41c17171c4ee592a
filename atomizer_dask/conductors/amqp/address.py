"""Where a broker is, and who we are to it; the secret part shows nowhere."""

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
    """How the certificate of a broker is checked, and which one we show.

    Parameters
    ----------
    ca_file
        Of whom to trust, in place of those whom this machine trusts.
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
        """Return what a connection is secured with.

        Raises
        ------
        OSError
            Where a file cannot be read, or is none of its kind.
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
    """Where a broker is, and who we are to it.

    What it shows, as text and elsewhere, has neither user nor password.
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

        Without a URL it is that of the variable ATOMIZER_AMQP_URL; who we are may be in the
        variables ATOMIZER_AMQP_USER and ATOMIZER_AMQP_PASSWORD instead, and is RabbitMQ's guest
        where it is nowhere.

        Raises
        ------
        ValueError
            Where it is no such URL; what it says does not contain the URL.
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
    """Return a part of the URL, else what the environment says."""
    return unquote(part) if part is not None else os.environ.get(variable, "guest")


def _parts_of(given: str) -> tuple[SplitResult, int | None]:
    """Return the parts of the URL of a broker and its port; `ValueError` where it is none."""
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:  # whose text may quote the URL, and with it the password
        raise ValueError(f"the URL of the broker has no valid host and port; {_EXAMPLE}") from None
    if parts.scheme not in PORTS:
        shown = f"{parts.scheme}://" if "://" in given else "none"
        raise ValueError(f"the URL of a broker begins with amqp:// or amqps://, got {shown}")
    if not parts.hostname:
        raise ValueError(f"the URL of the broker names no host; {_EXAMPLE}")
    if port == 0:
        raise ValueError(f"the URL of the broker has no valid host and port; {_EXAMPLE}")
    if "@" in parts.path:  # what is before it would be taken for the virtual host, and be shown
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
