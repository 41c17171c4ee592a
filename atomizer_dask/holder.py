"""Who works on a store: one process at a time."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psutil

from atomizer_dask.electron import new_id
from atomizer_dask.errors import StoreError, StoreHeldError
from atomizer_dask.folder import Folder

HOLDER = "holder.json"
CLAIM = "holder-after-"  # begins the names of files of those who take over


@dataclass(frozen=True, slots=True)
class Holder:
    """Who works on a store.

    Parameters
    ----------
    token
        Names this hold.
    host, pid, born
        The process; when it began, in seconds since the epoch, tells it from a later one of the
        same number.
    since
        When it took hold of the store, ISO 8601 in UTC.
    detached
        The name of the task that drives the run on the cluster; empty where a client does.
    """

    token: str
    host: str
    pid: int
    born: float
    since: str
    detached: str = ""

    @classmethod
    def here(cls, detached: str = "") -> Holder:
        """Return this process as one."""
        born = psutil.Process().create_time()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(new_id(), socket.gethostname(), os.getpid(), born, since, detached)

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be gone: another host's process never is."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            born: float = process.create_time()
            # A zombie is dead, though its parent has not yet looked.
            return abs(born - self.born) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    def __str__(self) -> str:
        who = f"process {self.pid} on {self.host}, since {self.since}"
        if self.detached:
            return f"the detached driver, {who}"
        here = self.pid == os.getpid() and self.host == socket.gethostname()
        return f"{who} (this very one)" if here else who

    def dump(self) -> bytes:
        """Return it as it is written."""
        return json.dumps(asdict(self), indent=2).encode()


def read_holder(folder: Folder) -> Holder | None:
    """Return who holds a store; None where nobody does."""
    holder = _read(folder, HOLDER)
    while holder is not None and (after := _read(folder, _after(holder))) is not None:
        holder = after
    return holder


def _read(folder: Folder, name: str) -> Holder | None:
    try:
        return Holder(**folder.read_json(name))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{folder.url}/{name} cannot be read ({error}); remove it where no other process "
            "works on this store",
            error,
        ) from error


def _after(holder: Holder) -> str:
    """Return the file that names who has taken over from a holder: one of those who try."""
    return f"{CLAIM}{holder.token}.json"


def take_hold(folder: Folder, me: Holder, *, takeover: bool = False) -> None:
    """Make `me` the one who works on a store.

    Raises
    ------
    StoreHeldError
        Where another process does that is not known to be dead, and it shall not be taken over.
    """
    while not folder.create(HOLDER, me.dump()):
        other = read_holder(folder)
        if other is None:
            continue
        # A driver on the cluster holds a run for whoever comes; it notices, and ends.
        if not (takeover or other.detached or other.is_dead):
            raise StoreHeldError(
                f"{folder.url} is held by {other}; wait for it, or take over with takeover=True "
                "(resume --takeover) where that process is gone or shall stop"
            )
        if _take_from(folder, other, me):
            break
    for name in folder.names():  # of those who died while they tried
        if name.startswith(CLAIM) and name != _after(me):
            folder.remove(name)


def _take_from(folder: Folder, other: Holder, me: Holder) -> bool:
    """Become the holder after another one, unless somebody else has."""
    claim = _after(other)
    if not folder.create(claim, me.dump()):
        return False
    if read_holder(folder) != me:  # the other is not the holder any more: this came too late
        folder.remove(claim)
        return False
    folder.write(HOLDER, me.dump())
    folder.remove(claim)
    return True


def let_go(folder: Folder, me: Holder) -> None:
    """Be no longer the one who works on a store."""
    if read_holder(folder) == me:
        folder.remove(HOLDER)
