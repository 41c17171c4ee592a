"""The source of a run with a store: it can be suspended or detached, and others go on with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time_ns

from atomizer_dask.conductors.batch_conductor import HEED_SECONDS, BatchConductor
from atomizer_dask.errors import (
    AtomizerError,
    StoreError,
    StoreHeldError,
    UnstorableError,
    where_raised,
)
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Positions
from atomizer_dask.execution.outcome import BatchOutcome
from atomizer_dask.runs.ledger import Ledger, ended_in_words
from atomizer_dask.runs.plan import Listeners, Plan
from atomizer_dask.runs.sources.source import RunSource
from atomizer_dask.runs.sources.store_record import StoreRecord
from atomizer_dask.store.layout import State

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
MERGE_AT_END = 16  # small files


class StoredRunSource(RunSource):
    """Feeds a driver with the electrons of a run with a store.

    Parameters
    ----------
    plan, conductor, ledger, listeners
        As of a `RunSource`.
    record
        Writes the outcomes to the store.
    """

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        ledger: Ledger,
        listeners: Listeners,
        record: StoreRecord,
    ) -> None:
        super().__init__(plan, conductor, ledger, listeners, record)
        # Greater than the epochs of earlier processes, whose stops the workers may remember.
        self._epoch = time_ns()
        self._store_record = record
        self._journal = record.journal
        self._suspending = False
        self._is_left = False  # whether it is suspended because the process ends
        self._is_flushing = False
        record.owner = self
        self._journal.store.on_lost = lambda: conductor.post(self.check_held)

    def _begin(self, electrons: Positions) -> None:
        if count := self._store_record.in_flight_count:
            self.announce(f"{count:,} electrons may be under way already")
        super()._begin(electrons)

    # -- what the driver asks ----------------------------------------------------------------

    def waiting(self) -> int:  # noqa: D102
        return 0 if self._suspending or self._store_record.refusal else super().waiting()

    def deliver(  # noqa: D102
        self, batch: Batch, outcome: BatchOutcome, *, last: bool
    ) -> None:
        with self._store_record.storing():
            self._journal.store.check_held()
            super().deliver(batch, outcome, last=False)
        if last:
            self._store_record.settled.append(batch.key)
        self._flush_soon()
        if last:
            self._check_end()

    def leave(self) -> Callable[[], bool] | None:
        """Suspend the run, for its process ends, and log how to go on."""
        if self._ledger.ended:
            return lambda: True
        self._is_left = True
        self.suspend()
        return lambda: self._ledger.ended

    def disown(self, error: AtomizerError) -> None:
        """End the run in a forked process; the parent process keeps the lock of the store."""
        self._journal.store.disown()
        super().disown(error)

    # -- leaving -----------------------------------------------------------------------------

    def check_held(self) -> None:
        """End the run where another process has taken its store over."""
        if not self._ledger.ended:
            with self._store_record.storing():
                self._journal.store.check_held()

    def detach(self) -> None:
        """End here as detached: batches under way and the rest are left to the next holder."""
        self._driver.act(self._leave, "detached")

    def suspend(self) -> None:
        """Take back electrons that no worker has begun, and leave the rest to the next holder."""
        self._driver.act(self._suspend)

    def _suspend(self) -> None:
        if self._suspending or self._ledger.ended:
            return
        self._suspending = True
        self._stop()
        self._driver.post_later(HEED_SECONDS, self._leave, "suspended")
        self._check_end()

    def _leave(self, state: State) -> None:
        if self._ledger.ended:
            return
        with self._store_record.storing():
            self._journal.flush()
            self._driver.leave_all()
            self._end(state)
        if self._is_left:
            self._warn_of_leaving()

    def _warn_of_leaving(self) -> None:
        logger.warning(
            "%s was suspended, for its process ended first: %s; atomizer.attach(%r) goes on with "
            "it",
            self._plan.run_id,
            ended_in_words(self._ledger, self._plan.sweep.length),
            self._journal.store.folder.url,
        )

    # -- writing -----------------------------------------------------------------------------

    def allow_pickle(self) -> None:
        """Store results without an Arrow type as pickles, first those in memory."""
        record, ended = self._store_record, self._ledger.ended
        was_refused = bool(record.refusal)
        self._plan = record.allow_pickle(record.prepare_retry(self._plan))
        if ended:
            if was_refused:
                self._ledger.error = None
            self._ledger.reopen()
            self._listeners.on_reopen()
        for lot in record.store_unstored(self._first_terms, is_final=self.stopping):
            self._put_off(lot, lot.terms._replace(attempt=lot.terms.attempt - 1))
        self._flush_soon()
        self._driver.pump()
        self._check_end()

    def _flush_soon(self) -> None:
        """Write gathered outcomes: now if the journal is full, else within half a second."""
        if self._journal.is_full:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._driver.post_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._ledger.ended:
            return
        record = self._store_record
        with record.storing():
            self._journal.flush()
            settled, record.settled = record.settled, []
            if settled:
                self._settle(settled)
            self._journal.merge_small(self._post_merge)

    def _post_merge(self, end: Callable[[], None]) -> None:
        def act() -> None:
            with self._store_record.storing():
                end()
            self._check_end()

        self._driver.post_action(act)

    def _is_written(self) -> bool:
        """Write all results and merge small files; return False until that is done."""
        self._flush()
        journal = self._journal
        if self._ledger.ended or journal.is_merging:
            return False
        with self._store_record.storing():
            if journal.merge_small(self._post_merge, at=MERGE_AT_END):
                return False
            journal.unify()
        return not self._ledger.ended

    def _check_end(self) -> None:
        remains = self._queue or not self.all_drawn
        if self._store_record.refusal and self._driver.idle and remains and not self._ledger.ended:
            self._end_refused()
        if self._suspending and self._driver.idle and remains:
            self._leave("suspended")
        if self._has_sent_all and not self._ledger.ended and self._is_written():
            super()._check_end()

    def _end_refused(self) -> None:
        """End the run as failed, for the store cannot hold its results."""
        self._ledger.error = UnstorableError(
            Event(
                f"{self._plan.run_id} has stopped, for its store cannot hold results: "
                f"{self._store_record.refusal}. What it can hold is in there. "
                "run.retry(allow_pickle=True) stores what has been computed, as pickles, and goes "
                "on, as does atomizer.map(..., store=..., allow_pickle=True)",
                run_id=self._plan.run_id,
                level="error",
            )
        )
        self._end("failed")

    # -- what its record calls ---------------------------------------------------------------

    def adopt_batch(self, batch: Batch, start: int, stop: int) -> None:
        """Wait for the electrons of another process's batch from offset `start` to `stop`."""
        self._driver.adopt(batch, start, stop)

    def note_unstorable(self, message: str, *, is_refused: bool) -> None:
        """Warn that the store cannot hold results; where it `is_refused`, stop the run."""
        if not is_refused:
            self.announce(f"the store cannot hold results: {message}", "warning")
            return
        logger.warning(
            "%s stops, for its store cannot hold results: %s; run.retry(allow_pickle=True) "
            "stores those that there are, as pickles, and goes on",
            self._plan.run_id,
            message,
        )
        self._stop()

    def note_store_failed(self, error: Exception) -> None:
        """End the run: its store fails, or another process has taken it over."""
        failure = error if isinstance(error, StoreError) else self._store_failed(error)
        if isinstance(error, StoreHeldError):
            self._yield()
        else:
            self._stop()
        self._driver.fail(failure)

    def _store_failed(self, error: Exception) -> StoreError:
        url = self._journal.store.folder.url
        return StoreError(
            f"the store {url} failed: {where_raised(error)}. What had been written is unharmed; "
            f"once that is mended, atomizer.attach({url!r}) goes on",
            error,
        )

    def _yield(self) -> None:
        """Give up the batches under way, for another process has taken the store over.

        They are stopped where it uses another scheduler; on the same one it waits for them.
        """
        theirs = self._journal.store.last_conductor()
        here = self._conductor.whereabouts().get("scheduler")
        if theirs and (here is None or theirs.get("scheduler") != here):
            self._stop()
            self.settle_all()
        self._driver.retract()

    def settle_all(self) -> None:
        """Have the conductor forget the outcomes of all batches of the run."""
        self._settle(None)

    def _settle(self, keys: list[str] | None) -> None:
        self._conductor.settle(self._plan.run_id, self._plan.definition.id, keys)
