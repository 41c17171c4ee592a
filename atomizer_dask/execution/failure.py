"""Why an electron failed, as its worker found out."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime
from time import time_ns
from types import TracebackType
from typing import Any, NamedTuple

from atomizer_dask.atoms.namespaces import HOME, loads
from atomizer_dask.electron import Electron
from atomizer_dask.errors import AtomizerError, ElectronError, InvalidPayloadError, Kind, text_of
from atomizer_dask.events import Event
from atomizer_dask.execution.timeout import OvertimeError
from atomizer_dask.interruptible import is_interrupt
from atomizer_dask.properties import Properties

_OURS = __name__.partition(".")[0]


class Failure(NamedTuple):
    """Why an electron failed, as it travels; alike failures of a batch are one object."""

    kind: Kind
    type: str
    message: str
    traceback: str = ""
    exception: Any = None
    tier: str = ""

    @classmethod
    def rejected(cls, error: BaseException, why: str = "", text: str | None = None) -> Failure:
        """Return the failure of an electron that could not be executed, or answered.

        Parameters
        ----------
        error
            What stood in the way.
        why
            What could not be done; put before the text.
        text
            Of the error; its own where not given.
        """
        text = text_of(error) if text is None else text
        return cls("rejected", type(error).__name__, f"{why}: {text}" if why else text)

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
        """Return it as the error of an electron; its exception is unpickled into `space`."""
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


class FailureLog:
    """The electrons of a batch that failed, and why: a million alike failures stay small.

    Attributes
    ----------
    offsets
        Offsets in the batch of the electrons that failed, ascending.
    codes
        For each of them the index of its failure in `distinct`.
    distinct
        The failures, each once.
    """

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.codes: list[int] = []
        self.distinct: list[Failure] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._stacks: dict[Any, str] = {}

    def add(self, offset: int, error: BaseException, *, is_cancelled: bool) -> None:
        """Record why an electron failed; `is_cancelled` says that its run cancelled it first."""
        try:
            alike, tier = self._described(error, is_cancelled), ""
            if isinstance(error, OvertimeError):
                tier = error.tier
        except BaseException as broken:  # raised by the exception, whose class is the user's
            if is_interrupt(broken):
                raise
            how = f"<showing it raised {type(broken).__name__}>"
            alike, tier = ("exception", type(error).__qualname__, how, ""), ""
            error = RuntimeError(how)
        # The first exception stands for all of the same text.
        if alike not in self._known:
            self._known[alike] = len(self.distinct)
            self.distinct.append(Failure(*alike, error.with_traceback(None), tier))
        self.offsets.append(offset)
        self.codes.append(self._known[alike])

    def has(self, offset: int) -> bool:
        """Return whether the electron at an offset has failed, one of the latest."""
        return offset in self.offsets[-2:]

    def drop_from(self, offset: int) -> None:
        """Forget the failures from an offset on: these electrons fail with something else."""
        known = self.count_before(offset)
        del self.offsets[known:], self.codes[known:]

    def count_before(self, offset: int) -> int:
        """Return how many electrons before an offset failed."""
        return sum(failed < offset for failed in self.offsets) if self.offsets else 0

    def _described(self, error: BaseException, is_cancelled: bool) -> tuple[Kind, str, str, str]:
        """Return kind, type, message and traceback of a failure; raises what `error` raises."""
        kind: Kind = "invalid_payload" if isinstance(error, InvalidPayloadError) else "exception"
        name, message = type(error).__qualname__, ""
        if isinstance(error, OvertimeError):
            kind, name, message = "timeout", "TimeoutError", error.message
        elif is_cancelled:
            kind = "cancelled"  # the atom heeded it
        message = message or (
            error.event.message if isinstance(error, AtomizerError) else text_of(error)
        )
        return kind, name, message, self._traceback_of(error)

    def _traceback_of(self, error: BaseException) -> str:
        """Return the traceback of an atom's error, without the frames of its callers here."""
        if isinstance(error, OvertimeError) and error.__cause__ is not None:
            error = error.__cause__  # where the atom was when its time was up
        inner = _beyond(__package__, error.__traceback__)  # callers are the files of this folder
        if error.__cause__ is not None or error.__context__ is not None:
            return "".join(traceback.format_exception(type(error), error, inner))
        # Formatting costs 50 microseconds, and failures of a run mostly share their stack.
        lines = tuple((frame.f_code, line) for frame, line in traceback.walk_tb(inner))
        if lines not in self._stacks:
            self._stacks[lines] = "".join(traceback.format_tb(inner))
        head = "Traceback (most recent call last):\n" if lines else ""
        return head + self._stacks[lines] + "".join(traceback.format_exception_only(error))


def within_atom(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package that lead to the atom.

    All of it where there is no other frame: then the fault is not the atom's.
    """
    return _beyond(_OURS, trace) or trace


def _beyond(package: str, trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its outermost frames, as far as they are of a package."""
    ours = f"{package}."
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(ours):
        trace = trace.tb_next
    return trace
