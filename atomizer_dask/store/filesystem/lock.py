"""The lock of a store: one process at a time, the holder, works on the store.

A holder on this machine is dead when the operating system says so, however long it was silent. A
holder on another machine renews its lease every few seconds, and is dead when that has expired; or
at once, where the batch system restarted its job and this process is in the restarted job.
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
    """The process that holds the lock of a store.

    Parameters
    ----------
    token
        Unique id of this lock.
    host, pid, born
        Host name and process id. The start of the process, in seconds since the epoch,
        distinguishes it from a later process with the same id.
    since
        When it locked the store, ISO 8601 in UTC.
    detached
        The name of the task that drives the run on the cluster; empty where a client does.
    lease
        Seconds without a sign of life after which other hosts take it for dead; 0 for a process
        of an earlier version, which gives none.
    machine
        Boot id and PID namespace, which distinguish hosts of the same name and containers, in
        which processes have other ids; empty off Linux.
    job, restarts
        The batch job that it is in, empty outside of one; how often that had been restarted.
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
        """Return this process as the holder of a new lock."""
        born = psutil.Process().create_time()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        lease = setting("store.lease")
        whose = socket.gethostname(), os.getpid(), born, since, detached
        return cls(new_id(), *whose, lease, _machine(), *batch_job())

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, whose system knows if it lives."""
        return self.host == socket.gethostname() and self.machine in ("", _machine())

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead process of this machine; False for a process of another."""
        if not self.is_here:
            return False
        try:
            process = psutil.Process(self.pid)
            born: float = process.create_time()
            # A zombie is dead: its parent has only not reaped it yet.
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
        """Whether the batch system restarted its job, and `other` is in the restarted job."""
        return bool(self.job) and self.job == other.job and self.restarts < other.restarts

    def dump(self) -> bytes:
        """Return it as JSON, for the lock file."""
        return json.dumps(asdict(self), indent=2).encode()


def _machine() -> str:
    """Return an id of this machine, or of this container; empty off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def read_holder(folder: Folder) -> LockHolder | None:
    """Return the holder of a store, alive or dead; None where there is none."""
    return _find(folder)[0]


def _find(folder: Folder) -> tuple[LockHolder | None, str]:
    """Return the holder, and the file that names it: the lock file, or a claim after it."""
    name = HOLDER
    holder = _read(folder, name)
    while holder is not None and (after := _read(folder, _after(holder))) is not None:
        name, holder = _after(holder), after
    return holder, name


def living_holder(folder: Folder) -> LockHolder | None:
    """Return the holder of a store if it seems to be alive, else None.

    For a viewer, which must not write into the store: the age of a sign of life is by the clock of
    this host.
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
    """Return the file of the claim after a holder: of several processes, one can create it."""
    return f"{CLAIM}{holder.token}.json"


def acquire(folder: Folder, me: LockHolder, *, takeover: bool = False) -> None:
    """Make `me` the holder of a store.

    Raises
    ------
    StoreHeldError
        Where another process holds it that is not known to be dead, is not a detached driver, and
        shall not be taken over.
    """
    while not folder.create(HOLDER, me.dump()):
        other, name = _find(folder)
        if other is None:
            continue
        # A detached driver has a run only until a client attaches: it notices that, and ends.
        if not (takeover or other.detached):
            _check_gone(folder, name, other, me)
        if _take_from(folder, other, me):
            break
    for name in folder.names():  # left by processes that died
        is_left = name.startswith((CLAIM, BEAT, PROBE))
        if is_left and name not in (_after(me), f"{BEAT}{me.token}"):
            folder.remove(name)


def _check_gone(folder: Folder, name: str, other: LockHolder, me: LockHolder) -> None:
    """Raise where `other`, the holder that a file names, may still be at work."""
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
    """Make `me` the holder after `other`; return False where another process was first."""
    claim = _after(other)
    if not folder.create(claim, me.dump()):
        return False
    if read_holder(folder) != me:  # `other` was no longer the holder: this claim came too late
        folder.remove(claim)
        return False
    folder.write(HOLDER, me.dump())
    folder.remove(claim)
    return True


def release(folder: Folder, me: LockHolder) -> None:
    """Give up the lock of a store, if `me` still holds it."""
    if read_holder(folder) == me:
        folder.remove(HOLDER)
