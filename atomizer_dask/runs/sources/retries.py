"""What becomes of the failed electrons of a run: the policy, and which attempts follow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import NamedTuple

import numpy as np

from atomizer_dask.errors import AtomizerError, ElectronError
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import AttemptTerms
from atomizer_dask.execution.outcome import RunPart
from atomizer_dask.policy import Judge, Policy
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Plan
from atomizer_dask.runs.sources.electron_queue import Lot


class Retries:
    """Decides which failed electrons are tried again.

    Parameters
    ----------
    policy
        Of the run.
    ledger
        Keeps what earlier attempts failed with.
    on_problem
        Is called where a policy, which may be a function of the user's, raises.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, on_problem: Callable[[str, BaseException], None]
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._judge = Judge(on_problem)

    def of(self, part: RunPart, terms: AttemptTerms) -> list[Lot]:
        """Return what of a part is tried again, and mark it in there as superseded.

        Parameters
        ----------
        part
            What has become of some electrons.
        terms
            Of the attempt that they failed in.
        """
        outcome, policy = part.outcome, self._policy
        if policy.never or not len(outcome.failed):
            return []
        errors = outcome.errors(self._ledger.batch_of(part))
        decisions = np.array([self._judge.decide(policy, error) for error in errors])
        part.replaced = decisions != "fail"
        positions = part.failed_positions()
        again = zip(positions[part.replaced], compress(errors, part.replaced), strict=True)
        for position, error in again:
            self._ledger.remember(int(position), error)
        lots = []
        for decision in ("retry", "requeue"):
            chosen = positions[decisions == decision]
            if len(chosen):
                further = terms.again(outcome.worker, elsewhere=decision == "requeue")
                lots.append(Lot(chosen, further, policy.delay(terms.attempt)))
        return lots


class Chosen(NamedTuple):
    """Failed electrons of a part that a user wants tried again.

    Parameters
    ----------
    part
        What became of them.
    again
        Mask over the failed electrons of the part.
    errors
        What each of the failed electrons of the part failed with.
    """

    part: RunPart
    again: np.ndarray
    errors: list[ElectronError]


def failed_of(ledger: Ledger, where: Callable[[ElectronError], bool] | None) -> list[Chosen]:
    """Return the failed electrons of a run that a function of the failure chooses, by part.

    Nothing where it chooses none. Raises whatever the function raises.
    """
    chosen = []
    for part in ledger.parts:
        failed = part.failed_positions()
        if not len(failed):
            continue
        assert isinstance(part, RunPart)
        errors = part.outcome.errors(ledger.batch_of(part))
        gone = np.zeros(len(failed), bool) if part.replaced is None else part.replaced
        wanted = (
            not g and (where is None or bool(where(e))) for g, e in zip(gone, errors, strict=True)
        )
        again = np.fromiter(wanted, dtype=bool, count=len(errors))
        chosen.append(Chosen(part, again, errors))
    return chosen if any(again.any() for _, again, _ in chosen) else []


def strike_out(
    ledger: Ledger, chosen: list[Chosen], timeout: float | None
) -> list[tuple[np.ndarray, AttemptTerms]]:
    """Note that electrons are tried again, and return these with the terms of that attempt."""
    lots = []
    for part, again, errors in chosen:
        positions = part.failed_positions()[again]
        for position, error in zip(positions.tolist(), compress(errors, again), strict=True):
            ledger.remember(position, error)
        ledger.strike_out(part, again)
        if len(positions):
            lots.append((positions, AttemptTerms(part.attempt + 1, timeout=timeout)))
    return lots


def error_of_broken(plan: Plan, ledger: Ledger) -> AtomizerError:
    """Return the error of trying again in a run whose electrons are not sent any more."""
    go_on = "map anew" if plan.sink is None else f"atomizer.attach({plan.sink.url!r}) goes on"
    message = f"{plan.run_id} is {ledger.state}, and electrons of it are not sent any more: {go_on}"
    return AtomizerError(Event(message, run_id=plan.run_id, level="error"), ledger.error)
