"""The record of a run: it takes down what becomes of electrons; here, in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from atomizer_dask.execution.batch import AttemptTerms, Positions
from atomizer_dask.execution.outcome import BatchOutcome, Outcome, RunPart
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.runs.sources.electron_queue import Lot
from atomizer_dask.runs.sources.in_flight import spans
from atomizer_dask.runs.sources.retries import Retries
from atomizer_dask.store.layout import State


class Record(Protocol):
    """Takes down what becomes of electrons, and knows which of them have not ended."""

    def begin(self, electrons: Positions, terms: AttemptTerms) -> list[Lot]:
        """Return electrons that are to be executed as what is to be sent, in order."""

    def open_of(self, positions: Positions) -> Positions:
        """Return which of some electrons have not ended."""

    def unsent_of(self, lot: Lot) -> Positions:
        """Return the electrons without a later attempt than this one."""

    def take(
        self,
        positions: Positions,
        outcome: BatchOutcome,
        terms: AttemptTerms,
        *,
        code: str,
        is_final: bool,
    ) -> list[Lot]:
        """Take down an outcome, and return what is to be sent again.

        Parameters
        ----------
        positions
            Of the electrons that it is of.
        terms
            Of their attempt.
        code
            The fingerprint of the code that ran.
        is_final
            Whether no failure leads to a further attempt, nor is reported: the run is cancelled.
        """

    def salvage(self, key: str) -> None:
        """Take in what a worker wrote of a batch before it died."""

    def lost(self, count: int) -> Positions:
        """Return which electrons up to `count` nobody will ever execute, for all is lost."""

    def prepare_retry(self, plan: Plan) -> Plan:
        """Make sure that electrons can be tried again, and return the plan for that."""

    def renew(self, plan: Plan, today: Today) -> Plan:
        """Note that the atom is another one from now on, and return the plan for that."""

    def reopen(self, positions: np.ndarray) -> None:
        """Note that electrons have not ended, for they are tried again."""

    def close(self, plan: Plan, state: State) -> None:
        """Do what is to be done before a run has ended in a state."""


class MemoryRecord:
    """The record of a run that lives in this process alone: the ledger.

    Parameters
    ----------
    ledger
        What is known of the electrons.
    retries
        Decides what becomes of those that failed.
    listeners
        Are called for those that failed for good.
    """

    def __init__(self, ledger: Ledger, retries: Retries, listeners: Listeners) -> None:
        self._ledger = ledger
        self._retries = retries
        self._listeners = listeners

    def begin(self, electrons: Positions, terms: AttemptTerms) -> list[Lot]:
        """Return all electrons, as few ranges."""
        return [Lot(positions, terms) for positions in spans(electrons)]

    def open_of(self, positions: Positions) -> Positions:
        """Return all: each comes back once."""
        return positions

    def unsent_of(self, lot: Lot) -> Positions:
        """Return all: nobody else sends them."""
        return lot.positions

    def take(
        self,
        positions: Positions,
        outcome: BatchOutcome,
        terms: AttemptTerms,
        *,
        code: str = "",
        is_final: bool = False,
    ) -> list[Lot]:
        """Take down an outcome, and return what is to be sent again."""
        assert isinstance(outcome, Outcome)  # there is no store that it could be in
        if not len(outcome):
            return []
        whole = replace(outcome, first=0, stop=len(outcome))
        part = RunPart(positions, whole, terms.attempt)
        lots = [] if is_final else self._retries.of(part, terms)
        self._ledger.add(part)
        if not is_final:
            report_failures(part, self._listeners)
        return lots

    def salvage(self, key: str) -> None:
        """Do nothing: results are kept nowhere but here."""

    def lost(self, count: int) -> Positions:
        """Return those without an outcome."""
        return self._ledger.missing(count)

    def prepare_retry(self, plan: Plan) -> Plan:
        """Return the plan: nothing stands in the way."""
        return plan

    def renew(self, plan: Plan, today: Today) -> Plan:
        """Return the plan: which code ran is not kept."""
        return plan

    def reopen(self, positions: np.ndarray) -> None:
        """Do nothing: the ledger knows."""

    def close(self, plan: Plan, state: State) -> None:
        """Do nothing: nothing is open."""


def report_failures(part: RunPart, listeners: Listeners) -> None:
    """Report the electrons of a part that failed for good."""
    current = part.current()
    positions = current.failed_positions()
    for position, code in zip(positions.tolist(), current.outcome.codes, strict=True):
        listeners.on_failure(current.outcome.failures[code], position)
