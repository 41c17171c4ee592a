"""What becomes of an electron that failed: pure policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeAlias

from atomizer_dask.display.text import brief
from atomizer_dask.errors import ElectronError, text_of

Decision: TypeAlias = Literal["fail", "retry", "requeue"]
OnFailure: TypeAlias = str | Callable[[ElectronError], str]

DECISIONS = ("fail", "retry", "requeue")
USUAL_ATTEMPTS = 3
LONGEST_BACKOFF = 300.0  # seconds
JITTER = 0.5
_FINAL = {"unknown_atom", "invalid_payload", "cancelled"}  # the same would happen again


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of an electron that failed.

    Parameters
    ----------
    on_failure
        ``"fail"``, ``"retry"``, ``"requeue"``, or a function of the failure that returns one.
    max_attempts
        How often an electron is tried at most.
    backoff
        Seconds before the second attempt.
    """

    on_failure: OnFailure = "fail"
    max_attempts: int = 1
    backoff: float = 0.0

    @classmethod
    def of(cls, on_failure: Any, max_attempts: Any = None, backoff: Any = 0.0) -> Policy:
        """Return the policy that a user asks for.

        Raises
        ------
        TypeError, ValueError
            Where it makes no sense.
        """
        if not callable(on_failure) and on_failure not in DECISIONS:
            raise ValueError(
                f"on_failure must be 'fail', 'retry', 'requeue' or a function of the failure that "
                f"returns one of them, got {on_failure!r}"
            )
        if max_attempts is None:
            max_attempts = 1 if on_failure == "fail" else USUAL_ATTEMPTS
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, Integral):
            raise TypeError(f"max_attempts must be a whole number, got {max_attempts!r}")
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {max_attempts}")
        return cls(on_failure, int(max_attempts), seconds_of(backoff, "backoff", least=0.0) or 0.0)

    @property
    def never(self) -> bool:
        """Whether no failure leads to a further attempt."""
        return self.on_failure == "fail" or self.max_attempts == 1

    def decide(self, error: ElectronError) -> Decision:
        """Return what becomes of an electron after a failure.

        Raises
        ------
        Exception
            Whatever a function given as `on_failure` raises, and ValueError where it returns
            anything else than a decision.
        """
        if error.attempt >= self.max_attempts or error.kind in _FINAL:
            return "fail"
        decision = self.on_failure(error) if callable(self.on_failure) else self.on_failure
        # As a plain string: one of a subclass may claim to equal a decision without being one.
        decided = str.__str__(decision) if isinstance(decision, str) else None
        if decided not in DECISIONS:
            raise ValueError(f"on_failure returned {brief(decision)}, expected one of {DECISIONS}")
        return decided  # type: ignore[return-value]

    def delay(self, attempt: int) -> float:
        """Return the seconds to let pass after an attempt failed: exponential, with jitter.

        Never less than the exponential itself, up to half as much again (Brooker, "Exponential
        Backoff and Jitter", 2015, has the reason for jitter), and at most five minutes.
        """
        exponential = min(self.backoff * 2.0 ** min(attempt - 1, 64), LONGEST_BACKOFF)
        return exponential * random.uniform(1, 1 + JITTER)  # noqa: S311 - no secret


class Again(NamedTuple):
    """Failures after which electrons are tried again, all on the same terms.

    Parameters
    ----------
    which
        Indices of the failures among those that were judged.
    elsewhere
        Whether another worker tries.
    seconds
        To let pass before.
    """

    which: list[int]
    elsewhere: bool
    seconds: float


class Judge:
    """Decides what becomes of failures, by policies, which may be functions of users that raise.

    Parameters
    ----------
    on_problem
        Is called with a message and an error where a policy raises; of many alike, for the first.
    """

    def __init__(self, on_problem: Callable[[str, BaseException], None]) -> None:
        self._on_problem = on_problem
        self._known: set[tuple[type, str]] = set()

    def again(self, policy: Policy, errors: Sequence[ElectronError], attempt: int) -> list[Again]:
        """Return which of some failures of an attempt lead to another, where, and when.

        The others are final; so are those for which the policy raises.

        Raises
        ------
        BaseException
            One that ends the program, as SystemExit does.
        """
        if policy.never:
            return []
        decisions = [self._decide(policy, error) for error in errors]
        chosen = {
            decision: [index for index, each in enumerate(decisions) if each == decision]
            for decision in ("retry", "requeue")
        }
        return [
            Again(which, decision == "requeue", policy.delay(attempt))
            for decision, which in chosen.items()
            if which
        ]

    def _decide(self, policy: Policy, error: ElectronError) -> Decision:
        try:
            return policy.decide(error)
        except Exception as broken:  # noqa: BLE001 - the user's function; it must not stop the run
            if (alike := (type(broken), text_of(broken))) not in self._known:
                self._known.add(alike)
                whose = error.event.electron_id
                self._on_problem(f"on_failure raised; {whose} is not tried again", broken)
            return "fail"


def seconds_of(value: Any, name: str, *, least: float | None = None) -> float | None:
    """Return a duration in seconds; None stays None.

    Parameters
    ----------
    value
        A number of seconds, a text with a unit, or a timedelta.
    name
        Name of the option, for the message.
    least
        The smallest that makes sense; where not given, anything above 0 does.

    Raises
    ------
    TypeError, ValueError
        Where it is no duration, or too small.

    Examples
    --------
    >>> seconds_of("1.5 minutes", "timeout"), seconds_of(2, "timeout")
    (90.0, 2.0)
    """
    if value is None:
        return None
    least_text = "above 0" if least is None else f"at least {least:g}"
    example = (
        f"{name} must be seconds, {least_text}, or a text such as '30s' or '2 minutes', "
        f"got {value!r}"
    )
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        from dask.utils import parse_timedelta

        try:
            seconds = float(parse_timedelta(value))
        except (ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(example) from error
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(example)
    else:
        seconds = float(value)
    if not (seconds > 0 if least is None else seconds >= least):
        raise ValueError(example)
    return seconds


MOST_PRIORITY = 1000


def priority_of(value: Any) -> int:
    """Return a priority that a user gave.

    Raises
    ------
    TypeError, ValueError
        Where it is no whole number, or not from -1000 to 1000.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"priority must be a whole number, 0 where nothing is special, got {value!r}"
        )
    priority = int(value)
    if abs(priority) > MOST_PRIORITY:
        raise ValueError(
            f"priority must be from -{MOST_PRIORITY} to {MOST_PRIORITY}, got {priority}; what is "
            "higher goes first, by however little"
        )
    return priority
