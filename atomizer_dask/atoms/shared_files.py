"""Large buffers, once per host: files in memory, by digest, which all processes of a user map.

A file is named by the digest of its bytes. It is complete as soon as it has that name, and nobody
writes to it any more. Each process that needs it holds a shared lock on it; the last one to let go
removes it. Where processes were killed, the next one that uses the folder removes what is left.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import dask

from atomizer_dask.config import setting

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, of Linux
NEW_SECONDS = 60.0
_SPARE = 2  # times the size of a buffer that must be free in memory, or it goes to a disk
_WRITE_BYTES = 2**26  # at a time
_number = itertools.count()
_held: weakref.WeakValueDictionary[str, SharedFile] = weakref.WeakValueDictionary()
_guard = threading.RLock()
_swept: set[Path] = set()


class SharedFile:
    """A buffer in a file of this host; the file is there as long as somebody has such an object.

    Attributes
    ----------
    digest, nbytes
        The digest and the number of the bytes.
    """

    def __init__(self, digest: str, nbytes: int, path: Path, handle: int) -> None:
        self.digest, self.nbytes = digest, nbytes
        self._handle = handle
        weakref.finalize(self, _let_go, path, handle, os.getpid())

    def map(self) -> memoryview:
        """Return its bytes, mapped anew: what is written to them is seen through this map alone.

        They stay after this object is gone.
        """
        return memoryview(mmap.mmap(self._handle, self.nbytes, access=mmap.ACCESS_COPY))


def share(digest: str, buffer: Any) -> SharedFile:
    """Return the file with the bytes of a buffer, written where this host has none.

    Raises
    ------
    OSError
        Where there is room for it neither in memory nor on disk.
    """
    data = memoryview(buffer).cast("B")
    with _guard:
        known = find(digest, data.nbytes)
        if known is None:
            with Incoming(digest, data.nbytes) as incoming:
                for start in range(0, data.nbytes, _WRITE_BYTES):
                    incoming.write(start, data[start : start + _WRITE_BYTES])
                known = incoming.done()
        return known


def find(digest: str, nbytes: int) -> SharedFile | None:
    """Return the file with a digest; None where this host has none."""
    with _guard:
        known = _held.get(digest)
        if known is not None:
            return known
        for folder in _folders():
            path = folder / digest
            if (handle := _locked(path, nbytes)) is not None:
                known = _held[digest] = SharedFile(digest, nbytes, path, handle)
                return known
    return None


def held(digest: str) -> SharedFile | None:
    """Return a file that this process itself has open; None where it has not."""
    return _held.get(digest)


class Incoming:
    """A file that is being written, in pieces of any order; leaving its context removes it."""

    def __init__(self, digest: str, nbytes: int) -> None:
        self._digest, self._nbytes = digest, nbytes
        self._folder = _folder_for(nbytes)
        self._path = self._folder / f".{digest}-{os.getpid()}-{next(_number)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_SH)
        self._is_done = False

    def write(self, offset: int, data: Any) -> None:
        """Write a piece.

        Raises
        ------
        OSError
            Where there is no room.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(self._handle, view, offset)
            view, offset = view[written:], offset + written

    def done(self) -> SharedFile:
        """Give the file its name: all pieces are there."""
        path = self._folder / self._digest
        with _guard:
            os.rename(self._path, path)
            self._is_done = True
            known = _held[self._digest] = SharedFile(self._digest, self._nbytes, path, self._handle)
        return known

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_done:
            self._is_done = True
            _let_go(self._path, self._handle, os.getpid())


class Turn:
    """The turn of one of the processes of this host to get a buffer from elsewhere."""

    def __init__(self, digest: str) -> None:
        self._path = next(_folders()) / f".{digest}-turn"
        self._handle: int | None = None

    def take(self) -> bool:
        """Return whether it is this process's turn."""
        if self._handle is not None:
            return True
        handle = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._handle)


def folder_settings() -> dict[str, str | None]:
    """Return the settings of this process that say in which folders files are."""
    names = "atomizer.large-values.folder", "temporary-directory"
    return {name: dask.config.get(name, None) for name in names}


def _folders() -> Iterator[Path]:
    """Yield the folders in which files may be: as configured, or in memory, then on disk."""
    configured = setting("large-values.folder")
    disk = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    for parent in [Path(configured)] if configured else [_MEMORY, Path(disk)]:
        folder = parent / f"atomizer-{os.getuid()}"
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()  # of a link, which somebody else may have made, not its target
            is_ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            if is_ours and not facts.st_mode & 0o077:  # nobody else writes here
                _sweep(folder)
                yield folder


def _folder_for(nbytes: int) -> Path:
    """Return the folder for a new file: in memory where there is room."""
    folders = list(_folders())
    for folder in folders:
        if shutil.disk_usage(folder).free > _SPARE * nbytes:
            return folder
    where = ", ".join(map(str, folders)) or "no folder that only this user can write to"
    raise OSError(
        f"there is no room for a value of {nbytes / 2**20:,.0f} MiB (looked in {where}): set "
        "atomizer.large-values.folder to a folder of this host that has room"
    )


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left; once in each process."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.iterdir():
        with suppress(OSError):  # somebody else did
            if path.name.startswith(".") and time() - path.stat().st_mtime < NEW_SECONDS:
                continue  # it may be opened just now, and not be locked yet
            _let_go(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.getpid())


def _locked(path: Path, nbytes: int) -> int | None:
    """Return a handle of a file with a shared lock on it; None where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    facts = os.fstat(handle)
    if facts.st_nlink and facts.st_size == nbytes:
        return handle
    os.close(handle)  # removed while we waited for the lock
    return None


def _let_go(path: Path, handle: int, process: int) -> None:
    """Close a file, and remove it where nobody else has it open.

    A process that was forked shares the lock of the one that opened it, and leaves the file alone.
    """
    if os.getpid() != process:
        return
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody has
        facts = os.fstat(handle)
        if facts.st_nlink and os.stat(path).st_ino == facts.st_ino:
            os.unlink(path)
    os.close(handle)
