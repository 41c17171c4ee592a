"""What can go wrong.

::

    AtomizerError               anything this package raises or reports
    ├── RegistrationError       what was given cannot be registered, or is not registered
    ├── InvalidPayloadError     a payload does not fit its atom
    ├── InvalidSweepError       a table of inputs cannot be swept
    ├── DependentRowsError      rows of a vectorised atom are not computed each by itself
    ├── UnpicklableError        an atom or an input cannot travel to a worker
    ├── ConfigurationError      something under ``atomizer:`` in Dask's configuration makes no sense
    ├── ConductorError          a conductor cannot be reached, or is gone
    ├── WireError               a message of a peer cannot be read, or one cannot be written
    ├── StoreError              a store cannot be made, read or written, or is not what it should be
    │   ├── StoreHeldError      another process works on the store
    │   ├── StoreChangedError   the atom, or what it runs on, is not what the store was made with
    │   ├── StoreCorruptedError files of a store are damaged
    │   └── UnstorableError     a value has no Arrow type
    └── ElectronError           an electron ended in a failure: the error of its Properties
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from atomizer_dask.display import markup
from atomizer_dask.display.text import one_line
from atomizer_dask.events import Event
from atomizer_dask.interruptible import is_interrupt

Kind = Literal[
    "exception", "timeout", "killed", "cancelled", "unknown_atom", "invalid_payload", "rejected"
]


_LONG = 400  # characters of a message


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also where it fails to give one itself."""
    try:
        return str.__str__(str(error))  # which may be of a class with a `__hash__` of its own
    except BaseException as broken:  # a __str__ that raises must cost nobody anything
        if is_interrupt(broken):
            raise
        return f"<its __str__ raised {type(broken).__name__}>"


def where_raised(error: BaseException) -> str:
    """Return an exception with the line that raised it, in place of a whole traceback.

    >>> try:
    ...     {}["key"]
    ... except KeyError as error:
    ...     print(where_raised(error))
    KeyError: 'key' (raised in <module>, <doctest atomizer_dask.errors.where_raised[0]>:2)
    """
    named, last = _named(error), error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return named
    code = last.tb_frame.f_code
    return f"{named} (raised in {code.co_qualname}, {code.co_filename}:{last.tb_lineno})"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"


def _message(message: str) -> markup.Html:
    shown = markup.text(message, _LONG)
    rest = markup.details("the whole message", message if len(message) > _LONG else "")
    return markup.joined(markup.Html(f"<div>{shown}</div>"), rest)


class AtomizerError(Exception):
    """Anything this package raises or reports.

    Parameters
    ----------
    event
        What happened and to whom; a plain message is made into an `Event`.
    internal
        The exception behind it, if any.

    Examples
    --------
    >>> print(AtomizerError(Event("lost", conductor_id="dask"), ValueError("no route")))
    lost: no route [cid:dask]
    """

    def __init__(self, event: Event | str, internal: BaseException | None = None) -> None:
        # Both go to Exception.args, which is how an exception survives pickle.
        super().__init__(event, internal)
        self.event = Event(event, level="error") if isinstance(event, str) else event
        self.internal = internal

    def __str__(self) -> str:
        message, behind = self.event.message, ""
        if self.internal is not None and (text := text_of(self.internal)) not in message:
            behind = f": {text}"
        return " ".join(filter(None, (message + behind, self.event.concerns)))

    @property
    def go_text(self) -> str:
        """The text that a program in Go makes of it, which peers on the wire may compare."""
        behind = "" if self.internal is None else f" | internal: ({text_of(self.internal)})"
        return f"atomizer error {self.event}{behind}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {one_line(str(self), 200)}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        return markup.card(
            type(self).__name__,
            *self._card_parts(),
            beside=[markup.badge(*self._mark()), *self._whose()],
        )

    def _card_parts(self) -> list[markup.Html | None]:
        """Return what went wrong as parts of a `markup.card`."""
        behind = "" if self.internal is None else _named(self.internal)
        return [_message(self.event.message), markup.facts({"internal": markup.text(behind)})]

    def _mark(self) -> tuple[str, markup.Tone]:
        return self.event.level, markup.TONES_OF_LEVELS.get(self.event.level, "plain")

    def _whose(self) -> list[markup.Html | None]:
        event = self.event
        ids = event.conductor_id, event.atom_id, event.electron_id, event.run_id
        return [markup.code(whose) for whose in ids if whose]


class RegistrationError(AtomizerError, TypeError):
    """What was given cannot be registered, or nothing of that name is registered."""


class InvalidPayloadError(AtomizerError, ValueError):
    """A payload does not fit the parameters of its atom."""


class InvalidSweepError(AtomizerError, ValueError):
    """A table of inputs cannot be swept."""


class DependentRowsError(AtomizerError, ValueError):
    """The rows of a vectorised atom depend on each other: its results depend on batches."""


class UnpicklableError(AtomizerError, TypeError):
    """An atom or an input cannot travel to a worker."""


class ConfigurationError(AtomizerError, ValueError):
    """Something under ``atomizer:`` in Dask's configuration makes no sense."""


class ConductorError(AtomizerError, RuntimeError):
    """A conductor cannot be reached, or is gone."""


class WireError(AtomizerError, ValueError):
    """A message of a peer cannot be read, or one cannot be written."""


class StoreError(AtomizerError):
    """A store cannot be made, read or written, or is not what it should be."""


class StoreHeldError(StoreError):
    """Another process works on the store."""


class StoreChangedError(StoreError):
    """The atom, or what it runs on, is not what the store was made with."""


class StoreCorruptedError(StoreError):
    """Files of a store are damaged."""


class UnstorableError(StoreError):
    """A value has no Arrow type, and pickles were not asked for."""


class ElectronError(AtomizerError):
    """An electron ended in a failure: the error of its `Properties`.

    Parameters
    ----------
    event
        Whom it happened to; its message is `TypeName: text` of the exception.
    internal
        The exception itself, where it could travel.
    kind
        Which sort of failure it was.
    type
        Name of the exception's class.
    message
        Its text.
    traceback
        The remote traceback as text, empty where there was none.
    tier
        How an electron that ran out of time was ended: ``"context"`` where the atom heeded
        ``context.cancelled``, ``"exception"`` where one was raised in it, ``"kill"`` where its
        process was killed; else empty.
    attempt
        Which attempt it was, from 1.
    worker, start, end
        Where and when that attempt ran; UTC and timezone-aware.
    """

    def __init__(
        self,
        event: Event | str,
        internal: BaseException | None = None,
        kind: Kind = "exception",
        type: str = "",
        message: str = "",
        traceback: str = "",
        tier: str = "",
        attempt: int = 1,
        worker: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> None:
        super().__init__(event, internal)
        self.args = (
            event, internal, kind, type, message, traceback, tier, attempt, worker, start, end,
        )  # fmt: skip
        self.kind = kind
        self.type = type
        self.message = message
        self.traceback = traceback
        self.tier = tier
        self.attempt = attempt
        self.worker = worker
        self.start = start
        self.end = end

    @property
    def duration(self) -> timedelta | None:
        """Time from start to end of the attempt; None where it never ran."""
        return None if self.start is None or self.end is None else self.end - self.start

    def _card_parts(self) -> list[markup.Html | None]:
        """Return what the electron failed with as parts of a `markup.card`."""
        behind = self.internal
        is_other = behind is not None and type(behind).__name__ != self.type
        ran = {
            "worker": markup.code(self.worker),
            "attempt": markup.text(str(self.attempt)),
            "start": markup.time(self.start),
            "duration": markup.text(markup.duration(self.duration)),
            "ended by": markup.text(self.tier),
            "internal": markup.text(_named(behind)) if behind and is_other else None,
        }
        if not self.worker:
            del ran["worker"]
        return [
            _message(self.event.message),
            markup.facts(ran),
            markup.details("traceback", self.traceback, is_open=True),
        ]

    def _mark(self) -> tuple[str, markup.Tone]:
        return self.kind, "warning" if self.kind == "cancelled" else "bad"

    def bare(self) -> ElectronError:
        """Return it without the exception itself, which not everybody can unpickle."""
        return ElectronError(self.event, None, *self.args[2:])

    def facts(self) -> dict[str, Any]:
        """Return what happened in this attempt as plain values, for tables."""
        names = ("attempt", "kind", "type", "message", "worker", "start", "end")
        return {name: getattr(self, name) for name in names}
