"""The options of `Atomizer.map`: checked, and as a store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from atomizer_dask.config import setting
from atomizer_dask.policy import Policy, seconds_of


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `Atomizer.map`, but for those that name things."""

    timeout: float | None
    policy: Policy
    copy_state: bool
    allow_pickle: bool
    priority: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return them as they stand in a manifest; a function as policy is not kept."""
        options = options_of(self.timeout, self.policy, self.copy_state, self.priority)
        return {**options, "allow_pickle": self.allow_pickle}


def options_of(
    timeout: float | None, policy: Policy, copy_state: bool, priority: int
) -> dict[str, Any]:
    """Return options of `Atomizer.map` as JSON; a function as policy is not kept."""
    on_failure = policy.on_failure
    return {
        "timeout": timeout,
        "on_failure": on_failure if isinstance(on_failure, str) else None,
        "max_attempts": policy.max_attempts,
        "backoff": policy.backoff,
        "copy_state": copy_state,
        "priority": priority,
    }


def policy_of(on_failure: Any, max_attempts: Any, backoff: Any) -> Policy:
    """Return the policy that is asked for, and for the rest that which is configured."""
    return Policy.of(
        setting("map.on-failure") if on_failure is None else on_failure,
        setting("map.max-attempts") if max_attempts is None else max_attempts,
        setting("map.backoff") if backoff is None else backoff,
    )


def limit_of(timeout: Any) -> float | None:
    """Return how many seconds an electron may take, as asked for or configured; None for any."""
    limit = setting("map.timeout") if timeout is None else seconds_of(timeout, "timeout")
    return None if limit == inf else limit
