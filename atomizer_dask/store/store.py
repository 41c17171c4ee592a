"""The store: the folder in which a run survives.

::

    STORE/run.json               atom, code, seed, options and sweeps of the run; its sessions
    STORE/sweep/*.parquet        the inputs
    STORE/properties/*.parquet   a row per electron that has ended
    STORE/failures/*.parquet     a row per failed attempt, with its traceback
    STORE/incoming/*.parquet     what workers have written, and the holder has not taken in
    STORE/merging/*.parquet      several files of properties as one, about to replace them
    STORE/corrupted/*            damaged files that were put aside
    STORE/atom.pickle            the atom, as a pickle
    STORE/holder.json            the lock file: names the holder; its time is a sign of life

Every file is complete or absent. One process at a time writes, the holder; workers write into
``incoming`` alone, and a file there counts once the holder has moved it to ``properties``. What is
done is what is in the store; everything else can be computed again, and gives the same bits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atomizer_dask.errors import StoreCorruptedError, StoreError, StoreHeldError
from atomizer_dask.store.filesystem.folder import Folder
from atomizer_dask.store.filesystem.heartbeat import Heart
from atomizer_dask.store.filesystem.lock import LockHolder, acquire, read_holder, release
from atomizer_dask.store.layout import (
    CORRUPTED,
    FAILURES,
    HOLDER,
    INCOMING,
    LOCK_FILES,
    MANIFEST,
    MERGING,
    OUTPUT,
    PROPERTIES,
    SWEEP,
)
from atomizer_dask.store.table_files import read_columns, read_rows, write_table
from atomizer_dask.store.tables import REQUIRED

FORMAT = 1
CHECK_SECONDS = 0.05  # between two reads of a lock file on a remote file system
_OURS = {MANIFEST, "holder.json", "atom.pickle"}
_OURS |= {PROPERTIES, FAILURES, MERGING, SWEEP, INCOMING, OUTPUT}
_OURS |= {CORRUPTED}
_KEYS = {"run", "atom", "seed", "state", "options", "codes", "sweeps", "sessions"}


def now() -> str:
    """Return the time as it stands in a manifest."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """The folder in which a run survives.

    Parameters
    ----------
    folder
        Where it is.

    Attributes
    ----------
    manifest
        The content of ``run.json``; empty where there is none yet.

    Raises
    ------
    StoreError
        Where the folder is something else than a store.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.holder: LockHolder | None = None
        self.on_lost: Callable[[], None] | None = None  # called when another process takes over
        self._heart: Heart | None = None
        self._checked = 0.0
        folder.check_reachable()
        self.manifest: dict[str, Any] = self._read_manifest()

    @classmethod
    def existing(cls, url: Any) -> Store:
        """Return the store at `url`.

        Raises
        ------
        StoreError
            Where there is none.
        """
        store = cls(Folder(url))
        if not store.manifest:
            raise StoreError(
                f"there is no store at {store.folder.url}: it has no {MANIFEST}; "
                "atomizer.map(..., store=...) makes one"
            )
        return store

    def _read_manifest(self) -> dict[str, Any]:
        url = self.folder.url
        try:
            manifest: dict[str, Any] = self.folder.read_json(MANIFEST)
        except FileNotFoundError:
            names = {name for name in self.folder.names() if not name.startswith(LOCK_FILES)}
            others = names - _OURS
            if others:
                shown = ", ".join(sorted(others)[:3])
                raise StoreError(
                    f"{url} is not a store but holds other files ({shown}): nothing was touched; "
                    "give a folder that is empty or does not exist"
                ) from None
            return {}
        except NotADirectoryError as error:
            raise StoreError(f"{url} is a file; a store is a folder", error) from error
        except OSError as error:
            raise StoreError(
                f"{url}/{MANIFEST} cannot be read: {error.strerror or error}", error
            ) from error
        except ValueError as error:
            raise StoreCorruptedError(
                f"{url}/{MANIFEST} cannot be read: {error}. What is in {url}/{PROPERTIES} is "
                "unharmed, and any reader of Parquet reads it; to go on, put a copy of the file "
                "in place, or map into another folder",
                error,
            ) from error
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise StoreError(f"{url}/{MANIFEST} is not that of a store: nothing was touched")
        if manifest["format"] > FORMAT:
            raise StoreError(
                f"{url} was written by a later version of atomizer_dask (format "
                f"{manifest['format']}, this one knows {FORMAT}): install that one"
            )
        if missing := sorted(_KEYS - set(manifest)):
            raise StoreCorruptedError(
                f"{url}/{MANIFEST} is damaged, it lacks {', '.join(missing)}: put a copy of it in "
                "place, or map into another folder"
            )
        return manifest

    # -- its lock ----------------------------------------------------------------------------

    def hold(self, *, takeover: bool = False, detached: str = "") -> None:
        """Lock it, and read its manifest again, which the holder before may have changed.

        Raises
        ------
        StoreHeldError
            Where another process holds it.
        StoreError
            Where nothing can be written there.
        """
        me = LockHolder.here(detached)
        with self._writing("take hold of it"):
            self.folder.make()
            acquire(self.folder, me, takeover=takeover)
        self.holder = me
        self._heart = Heart(
            self.folder, HOLDER, me.token, me.lease, partial(self._is_held_by, me), self._lose
        )
        try:
            self.manifest = self._read_manifest()
            with self._writing("make its folders"):
                self.folder.sweep_up(older=60.0)  # younger ones: of processes that try to lock it
                for name in (PROPERTIES, FAILURES, INCOMING, MERGING, SWEEP):
                    self.folder.make(name)
                    self.folder.sweep_up(name)
        except BaseException:
            self.release()
            raise

    def hold_again(self) -> None:
        """Lock it for a run that had ended.

        Raises
        ------
        StoreError
            Where another process holds it, or has gone on with it.
        """
        known = len(self.manifest["sessions"])
        self.hold()
        if len(self.manifest["sessions"]) != known:
            self.release()
            raise StoreError(
                f"another process has gone on with {self.folder.url} since: "
                "atomizer.attach(store).retry() tries again what has failed by now"
            )
        last = self.manifest["sessions"][-1]
        self.begin_session({name: last[name] for name in last if name not in ("start", "end")})

    def release(self) -> None:
        """Give up its lock, if this process holds it."""
        heart, self._heart = self._heart, None
        if heart is not None:
            heart.stop()
        if self.holder is not None:
            holder, self.holder = self.holder, None
            release(self.folder, holder)

    def disown(self) -> None:
        """Forget the lock without giving it up: it is that of the parent of this forked process."""
        self.holder = self._heart = None

    def _is_held_by(self, me: LockHolder) -> bool:
        holder = read_holder(self.folder)
        return holder is not None and holder.token == me.token

    def _lose(self) -> None:
        if self.on_lost is not None:
            self.on_lost()

    def check_held(self) -> None:
        """Raise `StoreHeldError` where this process no longer holds it."""
        if self.holder is not None:
            recently = monotonic() - self._checked < CHECK_SECONDS
            if recently and not self.folder.is_local:
                return
        other = read_holder(self.folder)
        if self.holder is None or other is None or other.token != self.holder.token:
            self.holder = None  # for good: nothing more may be written
            by = self._last_one() if other is None else str(other)
            raise StoreHeldError(
                f"{self.folder.url} is no longer held by this process but by {by}; what it had not "
                "yet written is left to that one"
            )
        self._checked = monotonic()

    def _last_one(self) -> str:
        """Return a text that names the last holder of a store that has none now."""
        try:
            last = self._read_manifest()["sessions"][-1]
        except (StoreError, KeyError, IndexError):
            return "nobody"
        return f"nobody any more: process {last.get('pid')} on {last.get('host')} had it last"

    def last_conductor(self) -> dict[str, Any]:
        """Return the conductor of the process that took it over; empty where that is unknown."""
        try:
            sessions = self._read_manifest().get("sessions", [])
        except StoreError:
            return {}
        ours = self.manifest.get("sessions", [])
        return dict(sessions[-1].get("conductor", {})) if len(sessions) > len(ours) else {}

    def save(self) -> None:
        """Write the manifest."""
        with self._writing("write its manifest"):
            self.folder.write_json(MANIFEST, {"format": FORMAT, **self.manifest})

    def begin_session(self, facts: dict[str, Any]) -> None:
        """Add a session of this process, with `facts` about it, to the manifest."""
        self.manifest.setdefault("sessions", []).append({"start": now(), "end": None, **facts})
        self.manifest["state"] = "running"
        self.save()

    def end_session(self, state: str) -> None:
        """Note in the manifest the end of the session of this process, and the state of the run.

        Raises
        ------
        StoreHeldError
            Where another process holds it by now, and owns the manifest.
        """
        self._checked = 0.0
        self.check_held()
        self.manifest["sessions"][-1]["end"] = now()
        self.manifest["state"] = state
        self.save()

    def _writing(self, what: str) -> _Writing:
        return _Writing(self.folder.url, what)

    # -- files -------------------------------------------------------------------------------

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table.

        Raises
        ------
        StoreError
            Where it cannot be written; then nothing has changed.
        """
        with self._writing(f"write {name}"):
            self.folder.write_with(name, partial(write_table, table))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file; raises what `write` does."""
        with self._writing(f"write {name}"):
            self.folder.write(name, content)

    def move(self, name: str, to: str) -> None:
        """Give a file another name; raises `FileNotFoundError` where there is none."""
        try:
            self.folder.move(name, to)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot move {name} in {self.folder.url}: {error}", error) from error

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, or some of its columns.

        Raises
        ------
        FileNotFoundError
            Where there is none: it may have been merged.
        StoreCorruptedError
            Where the file is damaged.
        """
        return self._reading(name, lambda file: read_columns(file, columns))

    def read_rows(self, name: str, columns: Sequence[str], wanted: np.ndarray) -> pa.Table:
        """Return some rows of a table; what has none of them is not read. Raises what `read` does.

        Parameters
        ----------
        wanted
            Mask over the rows.
        """
        path = self.folder.path(name) if self.folder.is_local else None
        return self._reading(name, lambda file: read_rows(file, columns, wanted, path))

    def schema_of(self, name: str) -> pa.Schema:
        """Return the schema of a table; raises what `read` does."""
        return self._reading(name, lambda file: file.schema_arrow)

    def rows_of(self, name: str) -> int:
        """Return how many rows a table has; raises what `read` does."""
        return int(self._reading(name, lambda file: file.metadata.num_rows))

    def first_of(self, name: str) -> int:
        """Return the first electron of a table of properties; raises what `read` does."""

        def smallest(file: pq.ParquetFile) -> int:
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            # One has no rows where all of its electrons were in another file as well.
            return min((g.column(0).statistics.min for g in groups if g.num_rows), default=0)

        return int(self._reading(name, smallest))

    def _reading(self, name: str, read: Callable[[pq.ParquetFile], Any]) -> Any:
        try:
            with pq.ParquetFile(self.folder.open(name), page_checksum_verification=True) as file:
                return read(file)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            # Damage has no errno where Arrow finds it, and EIO where the disk is broken.
            if getattr(error, "errno", None) not in (None, errno.EIO):
                raise StoreError(
                    f"cannot read {name} in {self.folder.url}: {error}", error
                ) from error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._corrupted(name, f"is damaged ({reason})", error) from error

    def _corrupted(
        self, name: str, how: str, error: BaseException | None = None
    ) -> StoreCorruptedError:
        way_out = (
            "put a copy of it in place, or map into another folder"
            if name.startswith(SWEEP)
            else "atomizer.attach(store, drop_corrupted=True) puts it aside and computes its "
            "electrons again"
        )
        text = f"{self.folder.url}/{name} {how}. Nothing else is affected: {way_out}"
        return StoreCorruptedError(text, error)

    def check_properties(self, name: str) -> None:
        """Raise `StoreCorruptedError` where a file is no table of properties."""
        if lacking := set(REQUIRED) - set(self.schema_of(name).names):
            lacks = ", ".join(sorted(lacking))
            raise self._corrupted(name, f"is not a table of properties, it lacks {lacks}")

    def put_aside(self, name: str) -> str:
        """Move a damaged file to ``corrupted``, which nobody reads, and return its new name."""
        self.folder.make(CORRUPTED)
        aside = f"{CORRUPTED}/{name.replace('/', '-')}"
        self.move(name, aside)
        return aside

    def corrupted(self, names: Iterable[str]) -> list[str]:
        """Return which files are damaged: they cannot be read, or lack columns."""
        bad = []
        for name in names:
            try:
                self.read(name)
                if name.startswith(PROPERTIES):
                    self.check_properties(name)
            except StoreCorruptedError:
                bad.append(name)
        return bad

    def __repr__(self) -> str:
        return f"<Store {self.folder.url}>"


class _Writing:
    """Turns an `OSError` within it into a `StoreError` that names the failed step."""

    def __init__(self, url: str, what: str) -> None:
        self._url = url
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise StoreError(
                f"cannot use the store {self._url}: to {self._what} failed: {reason}. What had "
                "been written is unharmed; once that is mended, atomizer.attach(store) goes on",
                error,
            ) from error
