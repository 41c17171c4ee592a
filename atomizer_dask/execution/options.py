"""The options of `Atomizer.map`: checked, and as a store keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from atomizer_dask.config import setting
from atomizer_dask.policy import OnFailure, Policy, priority_of, seconds_of

OUTPUTS = ("keep", "stream", "drop")


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How the electrons of a run are executed.

    Parameters
    ----------
    timeout
        Seconds of each attempt; None for no limit.
    policy
        What becomes of an electron that failed.
    copy_state
        Whether an atom in class form processes with copies of the registered instance.
    allow_pickle
        Whether a store may keep values that have no Arrow type as pickles.
    priority
        A run of a higher priority goes first.
    output
        What becomes of what atoms print: ``keep``, ``stream`` or ``drop``.
    """

    timeout: float | None
    policy: Policy
    copy_state: bool = False
    allow_pickle: bool = False
    priority: int = 0
    output: str = "keep"

    @classmethod
    def of(
        cls,
        *,
        timeout: float | str | None = None,
        on_failure: OnFailure | None = None,
        max_attempts: int | None = None,
        backoff: float | str | None = None,
        copy_state: bool = False,
        allow_pickle: bool = False,
        priority: int = 0,
        output: str = "keep",
    ) -> MapOptions:
        """Return the options that a user gave, and what is configured for the rest.

        Raises
        ------
        TypeError, ValueError
            Where one makes no sense.
        """
        policy = Policy.of(
            setting("map.on-failure") if on_failure is None else on_failure,
            setting("map.max-attempts") if max_attempts is None else max_attempts,
            setting("map.backoff") if backoff is None else backoff,
        )
        limit = setting("map.timeout") if timeout is None else seconds_of(timeout, "timeout")
        limit = None if limit == inf else limit
        if output not in OUTPUTS:
            raise ValueError(
                f"output is {output!r}, expected one of {', '.join(map(repr, OUTPUTS))}"
            )
        return cls(limit, policy, copy_state, allow_pickle, priority_of(priority), output)

    def to_json(self) -> dict[str, Any]:
        """Return them as they stand in a manifest; a function as policy is not kept."""
        on_failure = self.policy.on_failure
        return {
            "timeout": self.timeout,
            "on_failure": on_failure if isinstance(on_failure, str) else None,
            "max_attempts": self.policy.max_attempts,
            "backoff": self.policy.backoff,
            "copy_state": self.copy_state,
            "priority": self.priority,
            "output": self.output,
            "allow_pickle": self.allow_pickle,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any], on_failure: OnFailure) -> MapOptions:
        """Return the options that stand in a manifest, with the policy that applies now."""
        attempts = kept["max_attempts"] if kept["on_failure"] != "fail" else None
        return cls(
            kept["timeout"],
            Policy.of(on_failure, attempts, kept["backoff"]),
            kept["copy_state"],
            kept["allow_pickle"],
            kept.get("priority", 0),
            kept.get("output", "keep"),
        )

    def with_priority(self, priority: int | None) -> MapOptions:
        """Return them with another priority; as they are where it is None."""
        return self if priority is None else replace(self, priority=priority)
