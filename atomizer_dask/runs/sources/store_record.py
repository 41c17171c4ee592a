"""The record of a run with a store: it writes outcomes there, and adds them to the ledger."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from atomizer_dask.errors import AtomizerError, StoreError
from atomizer_dask.execution.batch import AttemptTerms, Batch, Positions
from atomizer_dask.execution.outcome import BatchOutcome, RunPart, StoredOutcome
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.output_log import printed_in
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.runs.sources.electron_queue import Lot
from atomizer_dask.runs.sources.in_flight import adopt, spans
from atomizer_dask.runs.sources.record import report_failures
from atomizer_dask.runs.sources.retries import Retries
from atomizer_dask.store.code_check import check_code, keep_atom
from atomizer_dask.store.layout import INCOMING, State
from atomizer_dask.store.stored_part import StoredPart
from atomizer_dask.store.writer import ResultWriter
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.sweeps.stream import Streamed

logger = logging.getLogger(__name__)

FIRST_UNSTORABLE = 3  # electrons in a row after which a run stops, while none has ended well
MANY_UNSTORABLE = 1000  # the same, once some electrons have ended well


class RecordOwner(Protocol):
    """The source whose record it is."""

    def adopt_batch(self, batch: Batch, start: int, stop: int) -> None:
        """Have the driver wait for electrons `start` to `stop` of another process's batch."""

    def note_store_failed(self, error: Exception) -> None:
        """End the run: its store fails."""

    def note_unstorable(self, message: str, *, is_refused: bool) -> None:
        """Warn that the store cannot hold results; where it `is_refused`, stop the run."""

    def settle_all(self) -> None:
        """Have the conductor forget the outcomes of all batches of the run."""


class StoreRecord:
    """The record of a run with a store: outcomes go into its journal and the ledger.

    Parameters
    ----------
    journal
        Writes the outcomes to the store.
    ledger, retries, listeners
        As of a `MemoryRecord`.
    in_flight
        Batches that an earlier process sent and that may be under way, in the order of sending.

    Attributes
    ----------
    owner
        The source whose record it is.
    refusal
        Why no more electrons are sent: results that the store cannot hold. Empty while they are.
    settled
        Keys of batches whose outcomes the conductor may forget after the next flush.
    """

    owner: RecordOwner

    def __init__(
        self,
        journal: ResultWriter,
        ledger: Ledger,
        retries: Retries,
        listeners: Listeners,
        in_flight: Sequence[Batch],
    ) -> None:
        self.journal = journal
        ledger.output.written = journal.printed.files
        self.refusal = ""
        self.settled: list[str] = []
        self._ledger = ledger
        self._retries = retries
        self._listeners = listeners
        self._in_flight = in_flight
        self._adopted: dict[int, int] = {}  # by position, the later attempt that is in flight
        self._unstorable_count = 0  # electrons in a row

    @property
    def in_flight_count(self) -> int:
        """How many electrons an earlier process sent that may be under way."""
        return sum(map(len, self._in_flight))

    @contextmanager
    def storing(self) -> Iterator[None]:
        """End the run where its store fails; results that are not in it can be computed again."""
        try:
            yield
        except Exception as error:
            # Only at level debug: tracebacks of network file systems have hundreds of lines.
            logger.debug("the store %s failed", self.journal.store.folder.url, exc_info=True)
            if not self._ledger.ended:
                self.owner.note_store_failed(error)

    # -- beginning -------------------------------------------------------------------------------

    def begin(self, electrons: Positions, terms: AttemptTerms) -> list[Lot]:
        """Wait for batches in flight, and return the lots to send: first electrons that failed."""
        if self._in_flight:
            found = adopt(electrons, self._in_flight, self.journal.not_done)
            for batch, start, stop in found.leases:
                self.owner.adopt_batch(batch, start, stop)
            self.settled += found.over
            self._adopted, electrons = found.attempts, found.free
            self._in_flight = ()
        tried = self._ledger.history
        if not tried:
            return [Lot(positions, terms) for positions in spans(electrons)]
        todo = numpy_values(electrons)
        again = todo[np.isin(todo, np.fromiter(tried, dtype=np.int64, count=len(tried)))]
        by_attempt: defaultdict[int, list[int]] = defaultdict(list)
        for position in again.tolist():
            by_attempt[1 + len(tried[position])].append(position)
        first = [
            Lot(np.array(those), terms._replace(attempt=attempt))
            for attempt, those in by_attempt.items()
        ]
        return [*first, *(Lot(each, terms) for each in spans(np.setdiff1d(todo, again)))]

    def open_of(self, positions: Positions) -> Positions:
        """Return those that have not ended; some of a batch of an earlier process may have."""
        return self.journal.not_done(positions)

    def unsent_of(self, lot: Lot) -> Positions:
        """Return the electrons of a lot of which no later attempt is in flight."""
        positions = lot.positions
        if not self._adopted:
            return positions
        latest = np.array([self._adopted.get(int(position), 0) for position in positions])
        left: np.ndarray = numpy_values(positions)[latest <= lot.terms.attempt]
        return left

    # -- what became of electrons ----------------------------------------------------------------

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
        if isinstance(outcome, StoredOutcome):
            return self._take_stored(positions, outcome, terms, code, is_final)
        if not len(outcome):
            return []
        whole = replace(outcome, first=0, stop=len(outcome))
        part = self._open_part(RunPart(positions, whole, terms.attempt, code=code))
        part.outcome, outputs = self.journal.encode(part.outcome)
        bad = part.outcome.failed_mask()
        if not bad.all():
            good = part.pick(~bad) if bad.any() else part
            self._unstorable_count = 0
            written = partial(self._ledger.replace, self._ledger.add(good))
            self.journal.gather(good, outputs, written)
        return self._take_failures(part.pick(bad), terms, is_final) if bad.any() else []

    def _take_stored(
        self,
        positions: Positions,
        stored: StoredOutcome,
        terms: AttemptTerms,
        code: str,
        is_final: bool,
    ) -> list[Lot]:
        """Take in the file that a worker wrote, and take down the failures of its receipt."""
        lots = []
        failed = stored.offsets - stored.first
        try:
            part = self.journal.take_in(positions, stored)
        except FileNotFoundError:  # it was damaged and put aside, or a user removed it
            lots.append(Lot(np.delete(numpy_values(positions), failed), terms))
        else:
            if part is not None:
                self._ledger.add(part)
        if len(failed):
            bad = RunPart(numpy_values(positions)[failed], stored.failed, terms.attempt, code=code)
            lots += self._take_failures(self._open_part(bad), terms, is_final)
        return lots

    def _open_part(self, part: RunPart) -> RunPart:
        """Return a part without electrons that have ended already."""
        left = self.journal.not_done(part.positions)
        if len(left) == len(part):
            return part
        return part.pick(np.isin(numpy_values(part.positions), left))

    def _take_failures(self, part: RunPart, terms: AttemptTerms, is_final: bool) -> list[Lot]:
        """Take down electrons that all failed, and return the lots to try again."""
        lots = []
        for some in _apart(part) if len(part) else ():
            lots += self._take_alike(some, terms, is_final)
        return lots

    def _take_alike(self, part: RunPart, terms: AttemptTerms, is_final: bool) -> list[Lot]:
        part.attempt = terms.attempt
        self._note_unstorable(part)
        errors = part.outcome.errors(self._ledger.batch_of(part))
        lots = [] if is_final else self._retries.of(part, terms)
        self._ledger.add(part)
        if not is_final:
            report_failures(part, self._listeners)
        # The store keeps no cancelled electrons: a process that goes on with the run executes them.
        for_good = np.array([error.kind != "cancelled" for error in errors], dtype=bool)
        positions = numpy_values(part.positions).tolist()
        pairs = zip(positions, errors, strict=True)
        self.journal.gather_errors(pair for pair, kept in zip(pairs, for_good, strict=True) if kept)
        if part.replaced is not None:
            for_good &= ~part.replaced
        if for_good.any():
            self.journal.gather_failed(part.pick(for_good))
        lots = [lot._replace(positions=self.unsent_of(lot._replace(terms=terms))) for lot in lots]
        return [lot for lot in lots if len(lot.positions)]

    def _note_unstorable(self, part: RunPart) -> None:
        """Warn of results that the store cannot hold; stop the run after many of them in a row."""
        if part.outcome.unstored is None or self.refusal:
            return
        why = part.outcome.failures[part.outcome.codes[0]].message
        if not self._unstorable_count:
            self.owner.note_unstorable(why, is_refused=False)
        self._unstorable_count += len(part)
        at_most = MANY_UNSTORABLE if self._ledger.done else FIRST_UNSTORABLE
        if self._unstorable_count >= at_most:
            self.refusal = why
            self.owner.note_unstorable(why, is_refused=True)

    def take_printed(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Take down what electrons of a batch have printed."""
        if (printed := printed_in(batch, outcome, self.open_of)) is not None:
            self._ledger.output.add(printed)
            self.journal.printed.gather(printed)

    def salvage(self, key: str) -> None:
        """Take in what a worker wrote of a batch before it died."""
        with self.storing():
            for part in self.journal.salvage(key):
                self._ledger.add(part)

    def lost(self, count: int) -> Positions:
        """Return no electron: a process that goes on with the run can execute those that remain."""
        return range(0)

    # -- trying again ----------------------------------------------------------------------------

    def prepare_retry(self, plan: Plan) -> Plan:
        """Lock the store again where the run had ended, and return the plan with the new token."""
        if self.journal.unaccepted is not None:
            raise self.journal.unaccepted
        if not self._ledger.ended:
            return plan
        store = self.journal.store
        store.hold_again()
        assert plan.sink is not None
        assert store.holder is not None
        return replace(plan, sink=plan.sink._replace(token=store.holder.token))

    def renew(self, plan: Plan, today: Today) -> Plan:
        """Write the atom as it is now to the store, and return the plan with its fingerprint."""
        store = self.journal.store
        assert plan.sink is not None
        with self.storing():
            if check_code(store, today.code, accept=True) == "accepted":
                keep_atom(store, today.definition)
                store.save()
        self.journal.code = store.manifest["codes"][-1]["fingerprint"]
        return replace(plan, sink=plan.sink._replace(code=self.journal.code))

    def allow_pickle(self, plan: Plan) -> Plan:
        """Let the store keep pickles from now on, and return the plan that lets workers do so."""
        store = self.journal.store
        store.manifest["options"]["allow_pickle"] = self.journal.allow_pickle = True
        assert plan.sink is not None
        with self.storing():
            store.save()
        self._unstorable_count, self.refusal = 0, ""
        return replace(plan, sink=plan.sink._replace(allow_pickle=True))

    def store_unstored(self, terms: AttemptTerms, *, is_final: bool) -> list[Lot]:
        """Store the results of electrons that failed only because the store could not hold them."""
        lots = []
        for part in self._ledger.snapshot():
            if isinstance(part, StoredPart):
                part.allow_pickle = True  # files with pickles may be merged with its file
            elif part.outcome.unstored is not None and part.outcome.is_whole:
                lots += self._store_now(part, terms._replace(attempt=part.attempt), is_final)
        return lots

    def _store_now(self, part: RunPart, terms: AttemptTerms, is_final: bool) -> list[Lot]:
        current = part.current()
        if not len(current):
            return []
        positions = numpy_values(current.positions)
        self._ledger.strike_out(part, np.ones(len(part.outcome.failed), dtype=bool))
        self.reopen(positions)
        outcome = current.outcome.as_stored()
        return self.take(positions, outcome, terms, code=part.code, is_final=is_final)

    def reopen(self, positions: np.ndarray) -> None:
        """Note that electrons have not ended, and remove their failures from the properties."""
        self.journal.reopen(positions)
        with self.storing():
            self.journal.rewrite_failed(positions)

    # -- ending ----------------------------------------------------------------------------------

    def close(self, plan: Plan, state: State) -> None:
        """Write gathered outcomes, note the end in the manifest, and release the lock."""
        journal = self.journal
        try:
            journal.flush()
            self._describe_end(plan, state)
            journal.store.end_session(state)
            # Where the store refused results, every batch has arrived although the state is failed.
            if self.refusal or state not in ("failed", "detached", "suspended"):
                self.owner.settle_all()
        except (StoreError, OSError) as error:
            self._ledger.error = self._ledger.error or AtomizerError(str(error), error)
        finally:
            try:
                journal.store.release()
            except (StoreError, OSError) as error:  # its successor's error says how to take over
                self._listeners.on_problem(f"cannot let go of {journal.store.folder.url}", error)

    def _describe_end(self, plan: Plan, state: State) -> None:
        """Note how many rows a stream had, and remove leftover files of workers."""
        sweep, store = plan.sweep, self.journal.store
        if isinstance(sweep, Streamed) and not sweep.is_read:
            ended = state == "finished"
            store.manifest["sweeps"][-1]["electrons"] = sweep.length if ended else None
        if state == "finished":  # written by workers that were wrongly thought dead
            for path in store.folder.files(INCOMING):
                store.folder.remove(path)


def _apart(part: RunPart) -> list[RunPart]:
    """Split failed electrons into those whose results a store cannot hold, and others."""
    outcome = part.outcome
    if outcome.unstored is None:
        return [part]
    is_unstorable = np.array([failure.type == "UnstorableError" for failure in outcome.failures])
    mask = is_unstorable[np.asarray(outcome.codes)]
    if mask.all():
        return [part]
    others = part.pick(~mask)
    others.outcome = replace(others.outcome, unstored=None)
    return [part.pick(mask), others]
