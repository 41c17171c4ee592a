"""The record of a run: it takes down the outcomes of electrons, here in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from atomizer_dask.execution.batch import AttemptTerms, Batch, Positions
from atomizer_dask.execution.outcome import BatchOutcome, Outcome, RunPart
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.output_log import printed_in
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.runs.sources.electron_queue import Lot
from atomizer_dask.runs.sources.in_flight import spans
from atomizer_dask.runs.sources.retries import Retries
from atomizer_dask.store.layout import State


class Record(Protocol):
    """Takes down the outcomes of electrons, and knows which electrons have not ended."""

    def begin(self, electrons: Positions, terms: AttemptTerms) -> list[Lot]:
        """Return the lots to send for these electrons, in order."""

    def open_of(self, positions: Positions) -> Positions:
        """Return those of the positions whose electrons have not ended."""

    def unsent_of(self, lot: Lot) -> Positions:
        """Return the electrons of a lot that no batch executes in a later attempt."""

    def take(
        self,
        positions: Positions,
        outcome: BatchOutcome,
        terms: AttemptTerms,
        *,
        code: str,
        is_final: bool,
    ) -> list[Lot]:
        """Take down an outcome, and return the lots to send again.

        Parameters
        ----------
        positions
            Positions of its electrons.
        terms
            Terms of their attempt.
        code
            The fingerprint of the code that ran.
        is_final
            Whether the run is being cancelled: no failure is tried again, none is reported.
        """

    def take_printed(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Take down what electrons of a batch have printed, before their outcome."""

    def salvage(self, key: str) -> None:
        """Take in what a worker wrote of a batch before it died."""

    def lost(self, count: int) -> Positions:
        """Return electrons of the first `count` without an outcome, once the conductor is gone."""

    def prepare_retry(self, plan: Plan) -> Plan:
        """Make sure that electrons can be tried again, and return the plan for new attempts."""

    def renew(self, plan: Plan, today: Today) -> Plan:
        """Note that the code of the atom has changed, and return the plan for new attempts."""

    def reopen(self, positions: np.ndarray) -> None:
        """Note that electrons have not ended, for they are tried again."""

    def close(self, plan: Plan, state: State) -> None:
        """Close the record, before the run ends in `state`."""


class MemoryRecord:
    """The record of a run without a store: outcomes go into the ledger only.

    Parameters
    ----------
    ledger
        Gets the outcomes.
    retries
        Decides which failed electrons are tried again.
    listeners
        Callbacks; `on_failure` is called for each electron that failed for good.
    """

    def __init__(self, ledger: Ledger, retries: Retries, listeners: Listeners) -> None:
        self._ledger = ledger
        self._retries = retries
        self._listeners = listeners

    def begin(self, electrons: Positions, terms: AttemptTerms) -> list[Lot]:
        """Return all electrons, as few ranges."""
        return [Lot(positions, terms) for positions in spans(electrons)]

    def open_of(self, positions: Positions) -> Positions:
        """Return all: the driver delivers each electron once."""
        return positions

    def unsent_of(self, lot: Lot) -> Positions:
        """Return all: no other process sends them."""
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
        """Take down an outcome, and return the lots to send again."""
        assert isinstance(outcome, Outcome)  # no worker writes to a store, so there is no receipt
        if not len(outcome):
            return []
        whole = replace(outcome, first=0, stop=len(outcome))
        part = RunPart(positions, whole, terms.attempt)
        lots = [] if is_final else self._retries.of(part, terms)
        self._ledger.add(part)
        if not is_final:
            report_failures(part, self._listeners)
        return lots

    def take_printed(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Take down what electrons of a batch have printed."""
        if (printed := printed_in(batch, outcome, self.open_of)) is not None:
            self._ledger.output.add(printed)

    def salvage(self, key: str) -> None:
        """Do nothing: workers write no results."""

    def lost(self, count: int) -> Positions:
        """Return the positions without an outcome."""
        return self._ledger.missing(count)

    def prepare_retry(self, plan: Plan) -> Plan:
        """Return the plan unchanged."""
        return plan

    def renew(self, plan: Plan, today: Today) -> Plan:
        """Return the plan unchanged: without a store, no fingerprint is recorded."""
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
