"""A folder, on this machine or anywhere that fsspec reaches, whose files are complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from time import time
from typing import Any

from atomizer_dask.electron import new_id
from atomizer_dask.errors import StoreError

UNFINISHED = ".unfinished-"  # begins the name of what is being written


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
        Where nothing understands the URL.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        if not isinstance(url, str | os.PathLike) or not os.fspath(url):
            raise StoreError(f"a store is a folder's path or a URL, got {url!r}")
        text = os.fspath(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(
                os.path.abspath(os.path.expanduser(text)) if "://" not in text else text
            )
        except (ValueError, ImportError) as error:
            raise StoreError(f"cannot open the store {text!r}: {error}", error) from error
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._root = root.rstrip("/") or "/"
        self.url = self._root if self.is_local else self._fs.unstrip_protocol(self._root)

    def path(self, name: str = "") -> str:
        """Return where a file is, as its file system names it."""
        return f"{self._root}/{name}" if name else self._root

    def make(self, name: str = "") -> None:
        """Make the folder, or one in it."""
        self._fs.makedirs(self.path(name), exist_ok=True)

    def exists(self, name: str = "") -> bool:
        """Return whether there is such a file or folder."""
        return (
            os.path.lexists(self.path(name)) if self.is_local else self._fs.exists(self.path(name))
        )

    def names(self, folder: str = "") -> list[str]:
        """Return what is in the folder, or in one of it; nothing where there is none."""
        where = self.path(folder)
        if self.is_local:
            try:
                found = os.listdir(where)
            except FileNotFoundError:
                return []
        else:
            self._fs.invalidate_cache(where)
            try:
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
                # Opened: of a file that is only looked at, NFS says what it knew a while ago.
                with Path(self.path(name)).open("rb") as file:
                    return os.fstat(file.fileno()).st_mtime
            self._fs.invalidate_cache(self._root)
            when: datetime = self._fs.modified(self.path(name))
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        except (FileNotFoundError, NotImplementedError):
            return None

    def touch(self, name: str) -> None:
        """Have a local file count as written now, by the clock of the file system."""
        os.utime(self.path(name))

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""
        return os.path.getsize(self.path(name)) if self.is_local else self._fs.size(self.path(name))

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        FileNotFoundError
            Where there is none.
        """
        if self.is_local:
            return Path(self.path(name)).read_bytes()
        data: bytes = self._fs.cat_file(self.path(name))
        return data

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file; raises what `read` does, or `ValueError`."""
        return json.loads(self.read(name))

    def open(self, name: str) -> Any:
        """Return a file that can be read from, or where it is for who can read a local one."""
        return self.path(name) if self.is_local else self._fs.open(self.path(name), "rb")

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
        """Have `put` write a file, to a path or to an open file, under another name first.

        Raises
        ------
        OSError
            Where it cannot be written; then nothing has changed.
        """
        if not self.is_local:
            # An object store shows an object once it is complete.
            with self._fs.open(self.path(name), "wb") as file:
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

        Of two who do it at once, one succeeds; where the library of an object store cannot do it
        on a condition, that is only very likely.
        """
        if not self.is_local:
            try:
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
            self._fs.mv(self.path(name), self.path(to))

    def remove(self, name: str) -> None:
        """Remove a file; none is fine."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
        elif self._fs.exists(self.path(name)):
            self._fs.rm_file(self.path(name))

    def sweep_up(self, folder: str = "", older: float = 0.0) -> None:
        """Remove what somebody who died was writing; what is not as many seconds old stays."""
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
