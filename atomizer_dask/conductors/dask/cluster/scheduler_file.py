"""The file in which a scheduler writes its address."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from distributed.comm import get_address_host_port

PROBE_SECONDS = 1.0


class Named(NamedTuple):
    """A scheduler as its file names it; the id is empty where the file has none."""

    address: str
    id: str


class NotYetError(Exception):
    """There is no such file yet, or no scheduler at the address in it; the message says which."""


class NoSchedulerFileError(Exception):
    """A file is no scheduler file."""


def is_path(target: Any) -> bool:
    """Return whether a target is the path of a file rather than the address of a scheduler.

    >>> [is_path(one) for one in ("tcp://node1:8786", "node1:8786", "scheduler.json", "here/it")]
    [False, False, True, True]
    """
    if isinstance(target, os.PathLike):
        return True
    if not isinstance(target, str) or "://" in target:
        return False
    return target.endswith(".json") or os.sep in target or Path(target).is_file()


def read(path: Path) -> Named:
    """Return the scheduler that a file names.

    Raises
    ------
    NotYetError
        Where there is no file yet, or it is half written.
    NoSchedulerFileError
        Where it is another kind of file.
    OSError
        Where it may not be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotYetError("there is no such file") from None
    try:
        facts = json.loads(text)
    except ValueError:  # it is not written in one go
        raise NotYetError("the file is not complete, or is no JSON") from None
    address = facts.get("address") if isinstance(facts, dict) else None
    if not isinstance(address, str) or not address:
        raise NoSchedulerFileError(f"it has no 'address', as scheduler files do: {text[:100]!r}")
    return Named(address, str(facts.get("id", "")))


def probe(address: str) -> bool:
    """Return True where somebody listens at an address; Dask itself needs many seconds for that.

    False where that cannot be found out, as at addresses within a process.

    Raises
    ------
    NotYetError
        Where nobody listens, as after the job that wrote the file has ended.
    """
    if "://" in address and not address.startswith(("tcp://", "tls://")):
        return False
    try:
        with socket.create_connection(get_address_host_port(address), PROBE_SECONDS):
            return True
    except (OSError, ValueError, OverflowError) as error:  # also where there is no such port
        raise NotYetError(f"it names {address}, where nobody answers ({error})") from error
