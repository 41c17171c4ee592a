"""The TLS credentials of Dask, and what is wrong where they do not work."""

from __future__ import annotations

import copy
import socket
import ssl
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.comm import get_address_host_port
from distributed.deploy import Cluster
from distributed.security import Security

from atomizer_dask.errors import ConductorError

PROBE_SECONDS = 3.0
_FILES = "tls_ca_file", "tls_client_cert", "tls_client_key"
_HOW = (
    "DaskConductor(address, security=Security(tls_ca_file=..., tls_client_cert=..., "
    "tls_client_key=..., require_encryption=True)), with Security from distributed, or the same "
    "files in the configuration of Dask (distributed.comm.tls)"
)


def check_security(security: Any, target: Any) -> None:
    """Raise where `security` is no credentials, or does not fit the target.

    Raises
    ------
    TypeError, ConductorError
        The latter where a file is missing.
    """
    if security is None:
        return
    if security is not True and not isinstance(security, Security):
        raise TypeError(
            "security must be a distributed.Security, or True for temporary credentials of a "
            f"local cluster, got {type(security).__name__} {security!r}"
        )
    if isinstance(target, Client | Cluster):
        raise TypeError(
            f"security cannot be chosen for {target!r}, which has its own: close it for a local "
            "cluster with credentials, or leave security out"
        )
    if target is not None and security is True:
        raise TypeError(
            "security=True makes credentials that nobody else knows, for a local cluster; for "
            f"{target!r} give those that its scheduler was started with: {_HOW}"
        )
    if isinstance(security, Security):
        _check_files(security)


def _check_files(security: Security) -> None:
    for name in _FILES:
        value = getattr(security, name)
        if value and "\n" not in value and not Path(value).is_file():
            raise ConductorError(f"there is no file {value!r}, which security has as {name}")


def of_local_cluster(security: Any) -> Any:
    """Return the credentials of a local cluster: for True temporary ones, else those given.

    Raises
    ------
    ModuleNotFoundError
        Where cryptography, which makes temporary ones, is not installed.
    """
    if security is not True:
        return security
    try:
        return Security.temporary()
    except ImportError as error:
        raise ModuleNotFoundError(
            "security=True needs cryptography: pip install 'atomizer_dask[tls]'",
            name="cryptography",
        ) from error


def as_client(security: Security) -> Security:
    """Return credentials for a client: where they have no client certificate, the worker's."""
    if security.tls_client_cert or not security.tls_worker_cert:
        return security
    security = copy.copy(security)
    security.tls_client_cert = security.tls_worker_cert
    security.tls_client_key = security.tls_worker_key
    return security


def trouble_with(where: Any, error: BaseException, security: Any) -> str | None:
    """Return what is wrong with the credentials, and what to do; None where nothing is found."""
    address = str(getattr(where, "scheduler_address", where))
    if (ours := _trouble_here(security)) is not None:
        return ours
    if isinstance(error, TypeError) and address.startswith("tls://"):
        return (
            f"{address!r} is of a scheduler that lets nobody in without a certificate, and there "
            f"is none here: {_HOW}"
        )
    if isinstance(error, RuntimeError) and "encryption" in str(error):
        return (
            f"encryption is required, and {address!r} is without: start the scheduler with its "
            "certificates, and give its address with tls://"
        )
    refusal = _refusal_at(address, security)
    if getattr(refusal, "reason", None) == "WRONG_VERSION_NUMBER":
        return (
            f"whoever listens at {address!r} does not encrypt: start the scheduler with "
            "certificates, or give its address with tcp://"
        )
    if refusal is not None or _is_of_tls(error):
        return (
            f"the scheduler at {address!r} and this process do not accept each other's "
            "certificates: both must be signed by the authority in tls_ca_file, and be valid at "
            f"this time; {_HOW}"
        )
    return None


def _trouble_here(security: Any) -> str | None:
    """Return what is wrong with our credentials, given or configured, for any scheduler."""
    try:
        (security or Security()).get_connection_args("client")
    except (OSError, ValueError) as error:  # an error of ssl is either
        return (
            f"the credentials of this process cannot be used ({error}): tls_ca_file, "
            "tls_client_cert and tls_client_key must be PEM files, and the key that of the "
            "certificate"
        )
    return None


def _refusal_at(address: str, security: Any) -> ssl.SSLError | None:
    """Return the error with which a scheduler refuses our certificate; None where it does not.

    The scheduler refuses after the handshake. Dask writes at once, so it may find the connection
    closed before it has read the refusal: here nothing is written.
    """
    if not address.startswith("tls://"):
        return None
    context = (security or Security()).get_connection_args("client").get("ssl_context")
    if context is None:
        return None
    host, port = get_address_host_port(address)
    try:
        with (
            socket.create_connection((host, port), PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            encrypted.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    return None


def _is_of_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError) or "TLS certificate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
