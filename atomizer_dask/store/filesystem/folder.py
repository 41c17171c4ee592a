"""A folder, on this machine or anywhere that fsspec reaches, whose files are complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from threading import Thread
from time import time
from typing import Any

from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import StoreError
from atomizer_dask.interruptible import has_ended
from atomizer_dask.store.filesystem.urls import file_system_of

_ABOUT_FILES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
UNFINISHED = ".unfinished-"  # begins the names of files that are being written


class Folder:
    """A folder whose files are complete or absent.

    Parameters
    ----------
    url
        A path, or a URL that fsspec understands.

    Attributes
    ----------
    url
        The same, absolute.

    Raises
    ------
    StoreError
        Where it is neither a path nor a URL that fsspec understands.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        from fsspec.implementations.local import LocalFileSystem

        if not isinstance(url, str | os.PathLike) or not os.fspath(url):
            raise StoreError(f"a store is a folder's path or a URL, got {url!r}")
        text = os.fsdecode(url)
        self._fs, root = file_system_of(text)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._root = root.rstrip("/") or "/"
        self.url = self._root if self.is_local else self._fs.unstrip_protocol(self._root)

    def path(self, name: str = "") -> str:
        """Return where a file is, as its file system names it."""
        return f"{self._root}/{name}" if name else self._root

    def make(self, name: str = "") -> None:
        """Make the folder, or one in it.

        On a remote file system its parent must exist: a typo must not make a bucket.
        """
        if self.is_local or self._fs.protocol == "memory":  # which is in this process
            self._fs.makedirs(self.path(name), exist_ok=True)
            return
        with self._reaching():
            if self._fs.exists(self.path(name)):
                return
            if "/" not in self.path(name).strip("/"):
                raise StoreError(
                    f"there is no {self.url}, and no bucket is made for a store: make it, or give "
                    "the path of a folder in one that there is"
                )
            with suppress(FileExistsError):
                self._fs.mkdir(self.path(name), create_parents=False)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn errors of a remote file system into `StoreError`, but those about single files."""
        try:
            yield
        except _ABOUT_FILES:
            raise
        except StoreError:
            raise
        except Exception as error:
            if self.is_local:
                raise
            raise unreachable(self.url, error) from error

    def check_reachable(self) -> None:
        """Check that a remote file system answers soon; libraries of object stores try for minutes.

        Raises
        ------
        StoreError
            Where it does not answer within ``store.connect-timeout`` seconds, or with an error.
        """
        if self.is_local:
            return
        answer: Future[bool] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.exists())
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits
                answer.set_exception(error)

        Thread(target=ask, name="atomizer-reach", daemon=True).start()
        seconds = setting("store.connect-timeout")
        if not has_ended(answer, seconds):
            raise unreachable(self.url, f"no answer within {seconds:g} s")
        try:
            answer.result()
        except TimeoutError as error:
            raise unreachable(self.url, error) from error

    def exists(self, name: str = "") -> bool:
        """Return whether there is such a file or folder."""
        if self.is_local:
            return os.path.lexists(self.path(name))
        with self._reaching():
            return bool(self._fs.exists(self.path(name)))

    def names(self, folder: str = "") -> list[str]:
        """Return the names in the folder, or in one of it, sorted; none where it does not exist."""
        where = self.path(folder)
        if self.is_local:
            try:
                found = os.listdir(where)
            except FileNotFoundError:
                return []
        else:
            self._fs.invalidate_cache(where)
            try:
                with self._reaching():
                    found = [PurePosixPath(path).name for path in self._fs.ls(where, detail=False)]
            except FileNotFoundError:
                return []
        return sorted(name for name in found if not name.startswith(UNFINISHED))

    def files(self, folder: str) -> list[str]:
        """Return the Parquet files of a folder, as ``folder/name``."""
        return [f"{folder}/{name}" for name in self.names(folder) if name.endswith(".parquet")]

    def modified(self, name: str) -> float | None:
        """Return when a file was written, in seconds by the clock of the file system.

        None where there is no such file, or the file system does not say.
        """
        try:
            if self.is_local:
                # Opened first: NFS gives cached, older attributes of a file that is not open.
                with Path(self.path(name)).open("rb") as file:
                    return os.fstat(file.fileno()).st_mtime
            self._fs.invalidate_cache(self._root)
            with self._reaching():
                when: datetime = self._fs.modified(self.path(name))
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        except (FileNotFoundError, NotImplementedError):
            return None

    def touch(self, name: str) -> None:
        """Set the time stamp of a local file to now, by the clock of the file system."""
        os.utime(self.path(name))

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""
        if self.is_local:
            return os.path.getsize(self.path(name))
        with self._reaching():
            return int(self._fs.size(self.path(name)))

    def written(self, folder: str) -> list[float]:
        """Return when each file of a folder was written, in seconds since the epoch."""
        names = self.names(folder)
        if self.is_local:
            paths = map(Path, map(self.path, (f"{folder}/{name}" for name in names)))
            return [path.stat().st_mtime for path in paths if path.exists()]
        times = []
        for name in names:
            with suppress(FileNotFoundError, NotImplementedError):  # some file systems do not know
                times.append(self._fs.modified(self.path(f"{folder}/{name}")).timestamp())
        return times

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        FileNotFoundError
            Where there is none.
        """
        if self.is_local:
            return Path(self.path(name)).read_bytes()
        with self._reaching():
            data: bytes = self._fs.cat_file(self.path(name))
        return data

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file; raises what `read` does, or `ValueError`."""
        return json.loads(self.read(name))

    def open(self, name: str) -> Any:
        """Return the path of a local file, or an open remote file."""
        if self.is_local:
            return self.path(name)
        with self._reaching():
            return _Reached(self._fs.open(self.path(name), "rb"), self._reaching)

    def write(self, name: str, content: bytes) -> None:
        """Write a file: under another name first, so that nobody sees half of it."""

        def put(target: Any) -> None:
            if isinstance(target, str):
                with Path(target).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            else:
                target.write(content)

        self.write_with(name, put)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(content, indent=2).encode())

    def write_with(self, name: str, put: Callable[[Any], None]) -> None:
        """Call `put` to write a file, which appears once it is complete.

        Parameters
        ----------
        put
            Given the path of a temporary file, or of a remote file the open file.

        Raises
        ------
        OSError
            Where it cannot be written; then nothing has changed.
        """
        if not self.is_local:
            # An object store shows an object once it is complete.
            with self._reaching(), self._fs.open(self.path(name), "wb") as file:
                put(file)
            return
        folder, _, base = name.rpartition("/")
        hidden = f"{UNFINISHED}{new_id()}-{base}"
        temporary = self.path(f"{folder}/{hidden}" if folder else hidden)
        try:
            put(temporary)
            os.replace(temporary, self.path(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def create(self, name: str, content: bytes) -> bool:
        """Write a file where there is none yet, and return whether there was none.

        Of two processes at once, one succeeds. Where the library of an object store has no
        conditional writes, that is only very likely.
        """
        if not self.is_local:
            try:
                with self._reaching():
                    self._fs.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            self._fs.invalidate_cache(self._root)
            return self.read(name) == content
        temporary = Path(self.path(f"{UNFINISHED}{new_id()}-{name}"))
        temporary.write_bytes(content)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def move(self, name: str, to: str) -> None:
        """Give a file another name; raises `FileNotFoundError` where there is none."""
        if self.is_local:
            os.replace(self.path(name), self.path(to))
        else:
            with self._reaching():
                self._fs.mv(self.path(name), self.path(to))

    def remove(self, name: str) -> None:
        """Remove a file; none is fine."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
        elif self.exists(name):
            with self._reaching():
                self._fs.rm_file(self.path(name))

    def sweep_up(self, folder: str = "", older: float = 0.0) -> None:
        """Remove local files that dead processes left unfinished, at least `older` seconds old."""
        if self.is_local and os.path.isdir(self.path(folder)):
            for name in os.listdir(self.path(folder)):
                path = f"{folder}/{name}" if folder else name
                if not name.startswith(UNFINISHED):
                    continue
                with suppress(FileNotFoundError):
                    if time() - os.path.getmtime(self.path(path)) >= older:
                        self.remove(path)

    def __repr__(self) -> str:
        return f"<Folder {self.url}>"


class _Reached:
    """A remote file whose errors on reading become `StoreError`."""

    def __init__(self, file: Any, reaching: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._reaching = reaching

    def read(self, size: int = -1) -> Any:
        with self._reaching():
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def unreachable(url: str, why: BaseException | str) -> StoreError:
    """Return the error of a store that cannot be reached."""
    if isinstance(why, str):
        return StoreError(f"{url} cannot be reached: {why}. {_WHAT_TO_LOOK_AT}")
    text = str(why).splitlines()[0] if str(why) else ""
    name = type(why).__name__
    return StoreError(f"{url} cannot be reached: {name}: {text}. {_WHAT_TO_LOOK_AT}", why)


_WHAT_TO_LOOK_AT = (
    "Look whether the endpoint is right and there, the bucket is the one that you mean, and this "
    "process has credentials that may write there; what has been written is unharmed"
)
