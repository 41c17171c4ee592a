"""Retries of the failed electrons of a run: by its policy, or by a user."""

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
        The policy of the run.
    ledger
        Keeps the errors of superseded attempts.
    on_problem
        Called where the policy, which may be a function of the user, raises.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, on_problem: Callable[[str, BaseException], None]
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._judge = Judge(on_problem)

    def of(self, part: RunPart, terms: AttemptTerms) -> list[Lot]:
        """Return the lots of a part to try again, and mark their electrons in it as superseded.

        Parameters
        ----------
        part
            Outcomes of some electrons.
        terms
            Terms of the attempt in which they failed.
        """
        outcome = part.outcome
        if self._policy.never or not len(outcome.failed):
            return []
        errors = outcome.errors(self._ledger.batch_of(part))
        positions = part.failed_positions()
        part.replaced = np.zeros(len(errors), dtype=bool)
        lots = []
        for which, elsewhere, seconds in self._judge.again(self._policy, errors, terms.attempt):
            part.replaced[which] = True
            for index in which:
                self._ledger.remember(int(positions[index]), errors[index])
            further = terms.again(outcome.worker, elsewhere=elsewhere)
            lots.append(Lot(positions[which], further, seconds))
        return lots


class Chosen(NamedTuple):
    """Failed electrons of a part that a user wants to try again.

    Parameters
    ----------
    part
        The part.
    again
        Mask over the failed electrons of the part: True where the electron is tried again.
    errors
        Error of each failed electron of the part.
    """

    part: RunPart
    again: np.ndarray
    errors: list[ElectronError]


def failed_of(ledger: Ledger, where: Callable[[ElectronError], bool] | None) -> list[Chosen]:
    """Return the failed electrons of a run for which `where` returns True, by part.

    `where` takes an error; None chooses all. The list is empty where no electron is chosen.
    Raises whatever `where` raises.
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
    """Mark chosen electrons as superseded, and return their positions and the terms to retry on."""
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
    """Return the error for a retry in a run whose driver sends no more electrons."""
    go_on = "map anew" if plan.sink is None else f"atomizer.attach({plan.sink.url!r}) goes on"
    message = f"{plan.run_id} is {ledger.state}, and electrons of it are not sent any more: {go_on}"
    return AtomizerError(Event(message, run_id=plan.run_id, level="error"), ledger.error)
