"""Who works on a store: one process at a time.

On this machine a process is dead when the system says so, however long it was silent. On another it
is when its lease has run out, which it renews every few seconds; or at once, where the batch system
started its job again and this process is what it started.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time

import psutil

from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import StoreError, StoreHeldError
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.filesystem.heartbeat import BEAT, PROBE, age_of, batch_job
from atomizer_dask.store.layout import CLAIM, HOLDER


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who works on a store.

    Parameters
    ----------
    token
        Names this lock, which nobody had before.
    host, pid, born
        The process; when it began, in seconds since the epoch, distinguishes it from a later one
        of the same number.
    since
        When it locked the store, ISO 8601 in UTC.
    detached
        The name of the task that drives the run on the cluster; empty where a client does.
    lease
        Seconds without a sign of life, after which it may be taken for dead from elsewhere; 0 where
        it gives none, as earlier versions do.
    machine
        Tells hosts of the same name apart, and containers, in which processes have other numbers.
    job, restarts
        The batch job that it is in, and how often that had been started again.
    """

    token: str
    host: str
    pid: int
    born: float
    since: str
    detached: str = ""
    lease: float = 0.0
    machine: str = ""
    job: str = ""
    restarts: int = 0

    @classmethod
    def here(cls, detached: str = "") -> LockHolder:
        """Return this process as one."""
        born = psutil.Process().create_time()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        lease = setting("store.lease")
        whose = socket.gethostname(), os.getpid(), born, since, detached
        return cls(new_id(), *whose, lease, _machine(), *batch_job())

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, that the system knows if it is there."""
        return self.host == socket.gethostname() and self.machine in ("", _machine())

    @property
    def is_dead(self) -> bool:
        """Whether the system says that it is gone, which it does of its own processes alone."""
        if not self.is_here:
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

    def was_restarted_as(self, other: LockHolder) -> bool:
        """Whether the batch system started its job again, and `other` is what it started."""
        return bool(self.job) and self.job == other.job and self.restarts < other.restarts

    def dump(self) -> bytes:
        """Return it as it is written."""
        return json.dumps(asdict(self), indent=2).encode()


def _machine() -> str:
    """Return what distinguishes this machine from others, and this container; nothing off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def read_holder(folder: Folder) -> LockHolder | None:
    """Return who holds a store; None where nobody does."""
    return _find(folder)[0]


def _find(folder: Folder) -> tuple[LockHolder | None, str]:
    """Return who holds a store, and the file that says so."""
    name = HOLDER
    holder = _read(folder, name)
    while holder is not None and (after := _read(folder, _after(holder))) is not None:
        name, holder = _after(holder), after
    return holder, name


def living_holder(folder: Folder) -> LockHolder | None:
    """Return who works on a store, for whoever only looks; None where nobody seems to.

    By the clock of this host, for nothing may be written.
    """
    holder, name = _find(folder)
    if holder is None or holder.is_dead:
        return None
    if holder.lease and not holder.is_here:
        signs = [folder.modified(each) for each in (name, f"{BEAT}{holder.token}")]
        last = max((sign for sign in signs if sign is not None), default=None)
        if last is not None and time() - last > 2 * holder.lease:
            return None
    return holder


def _read(folder: Folder, name: str) -> LockHolder | None:
    try:
        return LockHolder(**folder.read_json(name))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{folder.url}/{name} cannot be read ({error}); remove it where no other process "
            "works on this store",
            error,
        ) from error


def _after(holder: LockHolder) -> str:
    """Return the file that names who has taken over from a holder: one of those who try."""
    return f"{CLAIM}{holder.token}.json"


def acquire(folder: Folder, me: LockHolder, *, takeover: bool = False) -> None:
    """Make `me` the one who works on a store.

    Raises
    ------
    StoreHeldError
        Where another process does that is not known to be dead, and it shall not be taken over.
    """
    while not folder.create(HOLDER, me.dump()):
        other, name = _find(folder)
        if other is None:
            continue
        # A driver on the cluster has a run only until somebody comes; it notices, and ends.
        if not (takeover or other.detached):
            _check_gone(folder, name, other, me)
        if _take_from(folder, other, me):
            break
    for name in folder.names():  # of those who died while they tried, or before
        is_left = name.startswith((CLAIM, BEAT, PROBE))
        if is_left and name not in (_after(me), f"{BEAT}{me.token}"):
            folder.remove(name)


def _check_gone(folder: Folder, name: str, other: LockHolder, me: LockHolder) -> None:
    """Raise where the holder that a file names may still be at work."""
    if other.is_dead or other.was_restarted_as(me):
        return
    silence = ""
    if other.lease and not other.is_here:
        age = age_of(folder, name, other.token)
        if age is not None and age > other.lease:
            return
        if age is not None:
            silence = (
                f" It gave a sign of life {max(age, 0):.0f} s ago; {other.lease:g} s after its "
                "last one it is taken for dead."
            )
    raise StoreHeldError(
        f"{folder.url} is held by {other}; wait for it, or take over with takeover=True, of map "
        f"and attach (--takeover), where that process is gone or shall stop.{silence}"
    )


def _take_from(folder: Folder, other: LockHolder, me: LockHolder) -> bool:
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


def release(folder: Folder, me: LockHolder) -> None:
    """Be no longer the one who works on a store."""
    if read_holder(folder) == me:
        folder.remove(HOLDER)
