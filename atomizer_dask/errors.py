"""What can go wrong.

::

    AtomizerError               anything this package raises or reports
    ├── RegistrationError       what was given cannot be registered, or is not registered
    ├── InvalidPayloadError     a payload does not fit its atom
    ├── InvalidSweepError       a table of inputs cannot be swept
    ├── UnpicklableError        an atom or an input cannot travel to a worker
    ├── ConductorError          a conductor cannot be reached, or is gone
    └── ElectronError           an electron ended in a failure: the error of its Properties
"""

from __future__ import annotations

from html import escape
from typing import Literal

from atomizer_dask.events import Event, shorten

Kind = Literal[
    "exception", "timeout", "killed", "cancelled", "unknown_atom", "invalid_payload", "rejected"
]


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also where it fails to give one itself."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ that raises must cost nobody anything
        return f"<its __str__ raised {type(broken).__name__}>"


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
    atomizer error [cid:dask] lost | internal: (no route)
    """

    def __init__(self, event: Event | str, internal: BaseException | None = None) -> None:
        # Both go to Exception.args, which is how an exception survives pickle.
        super().__init__(event, internal)
        self.event = Event(event, level="error") if isinstance(event, str) else event
        self.internal = internal

    def __str__(self) -> str:
        behind = "" if self.internal is None else f" | internal: ({text_of(self.internal)})"
        return f"atomizer error {self.event}{behind}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {shorten(str(self), 200)}>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(getattr(self, 'traceback', '') or str(self))}</pre>"


class RegistrationError(AtomizerError, TypeError):
    """What was given cannot be registered, or nothing of that name is registered."""


class InvalidPayloadError(AtomizerError, ValueError):
    """A payload does not fit the parameters of its atom."""


class InvalidSweepError(AtomizerError, ValueError):
    """A table of inputs cannot be swept."""


class UnpicklableError(AtomizerError, TypeError):
    """An atom or an input cannot travel to a worker."""


class ConductorError(AtomizerError, RuntimeError):
    """A conductor cannot be reached, or is gone."""


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
    """

    def __init__(
        self,
        event: Event | str,
        internal: BaseException | None = None,
        kind: Kind = "exception",
        type: str = "",
        message: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(event, internal)
        self.args = (event, internal, kind, type, message, traceback)
        self.kind = kind
        self.type = type
        self.message = message
        self.traceback = traceback
