"""The request: one electron."""

from __future__ import annotations

import itertools
import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from atomizer_dask.display import markup
from atomizer_dask.display.text import brief, one_line
from atomizer_dask.policy import OnFailure, Policy, priority_of, seconds_of

_OPTIONS = {"timeout", "copy_state", "on_failure", "max_attempts", "backoff", "priority"}
_serial = itertools.count()
_prefix = secrets.token_hex(8)


def _renew_prefix() -> None:
    global _prefix
    _prefix = secrets.token_hex(8)


# A forked child would otherwise go on counting under its parent's prefix.
os.register_at_fork(after_in_child=_renew_prefix)


def new_id() -> str:
    """Return an id that no other process makes: 64 random bits of this process and a count.

    A tenth of the cost of a UUID, which counts where 100,000 electrons are sent a second.
    """
    return f"{_prefix}-{next(_serial):x}"


@dataclass(frozen=True, init=False, repr=False)
class Electron:
    """One request: which atom, with which payload.

    Parameters
    ----------
    atom_id
        The id of the atom that shall process it.
    payload
        For a function atom a mapping of its parameters' names to values; for an `Atom` subclass
        whatever its `process` understands.
    id, sender_id
        Made where not given.
    timeout
        Of each attempt: seconds, or a text such as ``"30s"``; None for no limit.
    copy_state
        Process with a copy of the registered instance, rather than with a fresh one.
    on_failure
        ``"fail"``: record the failure. ``"retry"``: again on the same worker. ``"requeue"``:
        again, on another worker where there is one. Or a function of the failure, an
        `ElectronError`, that returns one of these.
    max_attempts
        How often it is tried at most; 3 where `on_failure` may try again, unless given.
    backoff
        Seconds, or a text, before the second attempt; doubled before each further one.
    priority
        Higher goes first, whoever sent it. Where not given 0; for an electron that another one
        sends, the priority of its sender.

    Raises
    ------
    TypeError, ValueError
        Where an option is unknown or makes no sense.

    Examples
    --------
    >>> Electron("montecarlopi.Toss", {"tosses": 10}, id="e1")
    <Electron e1 for montecarlopi.Toss: {'tosses': 10}>
    """

    atom_id: str
    payload: Any = field(default=None, hash=False)
    id: str = ""
    sender_id: str = ""
    timeout: float | str | None = None
    copy_state: bool = False
    on_failure: OnFailure = "fail"
    max_attempts: int = 1
    backoff: float | str = 0.0
    priority: int = 0

    def __init__(
        self,
        atom_id: str,
        payload: Any = None,
        *,
        id: str = "",
        sender_id: str = "",
        **options: Any,
    ) -> None:
        if type(atom_id) is not str or not atom_id:
            raise TypeError(f"atom_id must be a non-empty string, got {atom_id!r}")
        # Straight into __dict__, for electrons are made 100,000 a second: a frozen dataclass's own
        # __init__ takes three times as long.
        own = self.__dict__
        own["atom_id"] = atom_id
        own["payload"] = payload
        own["id"] = id or new_id()
        own["sender_id"] = sender_id or _prefix
        if options:
            if unknown := options.keys() - _OPTIONS:
                raise TypeError(
                    f"Electron has no option {', '.join(sorted(unknown))}; it has "
                    f"id, sender_id, {', '.join(sorted(_OPTIONS))}"
                )
            own.update(options)
            seconds_of(self.timeout, "timeout")
            wanted = Policy.of(self.on_failure, options.get("max_attempts"), self.backoff)
            own["max_attempts"] = wanted.max_attempts
            own["priority"] = priority_of(self.priority)

    @property
    def policy(self) -> Policy:
        """What becomes of it where it fails."""
        return Policy.of(self.on_failure, self.max_attempts, self.backoff)

    def __repr__(self) -> str:
        return f"<Electron {one_line(self.id)} for {one_line(self.atom_id)}: {brief(self.payload)}>"

    @markup.safely
    def _repr_html_(self) -> markup.Html:
        asked = {
            option: markup.value(value)
            for option in (
                "timeout",
                "copy_state",
                "on_failure",
                "max_attempts",
                "backoff",
                "priority",
            )
            if (value := getattr(self, option)) != getattr(Electron, option)
        }
        atom = {"atom": markup.code(self.atom_id), "sender": markup.code(self.sender_id)}
        return markup.card(
            "Electron",
            markup.facts(atom | markup.fields(self.payload, "payload") | asked),
            beside=[markup.code(self.id)],
        )
