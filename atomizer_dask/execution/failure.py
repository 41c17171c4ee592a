"""Why an electron failed, as its worker found out."""

from __future__ import annotations

from datetime import UTC, datetime
from time import time_ns
from typing import Any, NamedTuple

from atomizer_dask.atoms.namespaces import HOME, loads
from atomizer_dask.electron import Electron
from atomizer_dask.errors import ElectronError, Kind
from atomizer_dask.events import Event
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.properties import Properties


class Failure(NamedTuple):
    """Why an electron failed, as it travels; alike failures of a batch are one object."""

    kind: Kind
    type: str
    message: str
    traceback: str = ""
    exception: Any = None
    tier: str = ""

    def error(
        self,
        electron_id: str,
        atom_id: str,
        *,
        attempt: int = 1,
        worker: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        space: str = HOME,
    ) -> ElectronError:
        """Return it as the error of an electron, whose exception arrives in a space."""
        text = f"{self.type}: {self.message}" if self.type else self.message
        event = Event(text, electron_id=electron_id, atom_id=atom_id, level="error")
        internal = _exception_of(self.exception, space)
        return ElectronError(
            event, internal, self.kind, self.type, self.message, self.traceback, self.tier,
            attempt, worker, start, end,
        )  # fmt: skip

    def properties(
        self, electron: Electron, attempt: int = 1, earlier: tuple[ElectronError, ...] = ()
    ) -> Properties:
        """Return it as the outcome of an electron that did not run in this attempt."""
        now = utc(time_ns())
        error = self.error(electron.id, electron.atom_id, attempt=attempt)
        whose = electron.id, electron.atom_id
        return Properties.of(*whose, now, now, error, None, "", attempt, earlier)


CANCELLED = Failure("cancelled", "", "it was cancelled before it ended")


def _exception_of(travelled: Any, space: str) -> BaseException | None:
    if not isinstance(travelled, bytes):
        return travelled if isinstance(travelled, BaseException) else None
    try:
        internal = loads(travelled, space=space)
    except BaseException as error:  # its type, text and traceback have come as text
        if is_interrupt(error):
            raise
        return None
    return internal if isinstance(internal, BaseException) else None


def utc(nanoseconds: int) -> datetime:
    """Return nanoseconds since the epoch as a timezone-aware time."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
