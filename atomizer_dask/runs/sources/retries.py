"""What becomes of the failed electrons of a run: the policy, and which attempts follow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress

import numpy as np

from atomizer_dask.execution.batch import Terms
from atomizer_dask.execution.outcome import Part
from atomizer_dask.policy import Judge, Policy
from atomizer_dask.runs.ledger import Ledger
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

    def of(self, part: Part, terms: Terms) -> list[Lot]:
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
        errors = outcome.errors(self._ledger.told_of(part))
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
