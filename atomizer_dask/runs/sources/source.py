"""The source of a run: it decides which electrons are sent, tried again, and when the run ends.

The driver of a conductor takes batches from a `RunSource`, and delivers their outcomes. All
methods are called on the dispatcher's thread, unless their docstring says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atomizer_dask.atoms.global_generators import warning_of_draws
from atomizer_dask.atoms.random_streams import RandomStream
from atomizer_dask.conductors.batch_conductor import HEED_SECONDS, BatchConductor
from atomizer_dask.conductors.batch_size import Size
from atomizer_dask.conductors.dispatcher import as_error
from atomizer_dask.conductors.driver import Driver
from atomizer_dask.display.text import counted
from atomizer_dask.errors import AtomizerError, ConductorError, ElectronError
from atomizer_dask.events import Level
from atomizer_dask.execution.batch import AttemptTerms, Batch, Positions
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import BatchOutcome, Outcome
from atomizer_dask.runs.ledger import Ledger, ended_in_words
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.runs.sources.electron_queue import ElectronQueue, Lot
from atomizer_dask.runs.sources.feed import Feed
from atomizer_dask.runs.sources.record import Record
from atomizer_dask.runs.sources.retries import Chosen, error_of_broken, failed_of, strike_out
from atomizer_dask.store.layout import State
from atomizer_dask.sweeps.stream import Streamed

logger = logging.getLogger(__name__)

_CANCELLED = Failure("cancelled", "", "the run was cancelled")
_LEFT_BEHIND = Failure(
    "cancelled", "", "the run was cancelled; the electron did not heed that and was left behind"
)


class RunSource:
    """Feeds a driver with the electrons of a run.

    Parameters
    ----------
    plan
        The atom, the inputs and the options of the run.
    conductor
        Carries the batches.
    ledger
        The outcomes of the electrons.
    listeners
        Callbacks for events, failures, and the end of the run.
    record
        Takes down the outcomes.

    Attributes
    ----------
    stopping
        Whether the run is being cancelled, or was.
    all_drawn
        Whether the number of electrons is known: a streamed sweep has been read to its end.
    """

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        ledger: Ledger,
        listeners: Listeners,
        record: Record,
    ) -> None:
        self.stopping = False
        self._plan = plan
        self._conductor = conductor
        self._ledger = ledger
        self._listeners = listeners
        self._record = record
        self._stream = RandomStream(plan.seed)
        self._queue = ElectronQueue(plan.sent, plan.definition.vectorized, ledger.changed)
        self._first_terms = AttemptTerms(timeout=plan.options.timeout)
        self._epoch = 0
        # A new one for each retry after a cancel: workers still cancel batches of the old one.
        self._root = plan.root or plan.run_id
        self._feed: Feed | None = None
        if isinstance(plan.sweep, Streamed):
            self._feed = Feed(plan.sweep, plan.run_id, ledger, self)
        self.grows = self._feed is not None
        self.all_drawn = self._feed is None
        self._driver: Driver = conductor.drive(self, plan.sent.row_bytes)

    @property
    def running(self) -> int:
        """How many electrons are with the workers."""
        return self._driver.leased

    def start(self, electrons: Positions) -> None:
        """Begin to send; from any thread.

        Parameters
        ----------
        electrons
            Positions to execute, in order; of a streamed sweep, among the rows drawn so far.
        """
        self.announce("started")
        if warning := warning_of_draws(self._plan.definition):
            self.announce(warning, "warning")
            logger.warning("%s", warning)
        self._driver.post_action(self._begin, electrons)
        if self._feed is not None:
            self._feed.start()

    def start_lots(self, lots: Sequence[tuple[Positions, AttemptTerms]]) -> None:
        """Begin to send electrons, each lot on its own terms; from any thread."""
        self._driver.post_action(self._begin_lots, lots)

    def _begin_lots(self, lots: Sequence[tuple[Positions, AttemptTerms]]) -> None:
        for positions, terms in lots:
            self._put_back(positions, terms)
        self._driver.pump()
        self._check_end()

    def _begin(self, electrons: Positions) -> None:
        for positions, terms, _ in self._record.begin(electrons, self._first_terms):
            if terms.attempt > 1:
                self._put_back(positions, terms)
            else:
                self.add(positions)
        self._driver.pump()
        self._check_end()

    def announce(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Put an event about the run as a whole on the streams."""
        self._listeners.on_event(self._plan.event(message, level, **fields))

    # -- what the driver asks ----------------------------------------------------------------

    def waiting(self) -> int:  # noqa: D102
        return 0 if self._ledger.state == "paused" else self._queue.waiting

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        positions, terms, _ = self._queue.take(size.electrons)
        return self.batch(key, positions, terms, size.seconds)

    def batch(self, key: str, positions: Positions, terms: AttemptTerms, seconds: float) -> Batch:
        """Return some electrons as a batch."""
        earlier = None
        if terms.attempt > 1:
            history = self._ledger.history
            earlier = [history.get(position, ()) for position in map(int, positions)]
        more = self._stream, earlier, self._epoch, self._root, self._ledger.output.allowance
        return self._plan.batch(key, positions, terms, seconds, *more)

    def give_back(self, batch: Batch, start: int, stop: int, terms: AttemptTerms) -> None:  # noqa: D102
        lot = Lot(batch.positions[start:stop], terms)
        self._put_back(self._record.unsent_of(lot), terms)

    def salvage(self, batch: Batch) -> None:
        """Take in what a worker wrote of a batch before it died."""
        self._record.salvage(batch.key)

    def deliver(self, batch: Batch, outcome: BatchOutcome, *, last: bool) -> None:  # noqa: D102
        # Another process may have sent it, in another version of the atom.
        code = "" if batch.sink is None else batch.sink.code
        self._record.take_printed(batch, outcome)
        executed = slice(outcome.first, outcome.stop)
        self._take_down(batch.positions[executed], outcome, batch.terms, code)
        if last:
            self._check_end()

    def fail(self, error: AtomizerError) -> None:  # noqa: D102
        if self._ledger.ended:
            return
        if self.stopping and isinstance(error, ConductorError):
            lost = self._record.lost(self._plan.sweep.length or 0)
            self._fail_unsent(lost, self._first_terms)
            self._end("cancelled")
            return
        self._ledger.error = error
        self._end("failed")

    def give_up(self, error: AtomizerError) -> None:  # noqa: D102
        if self._ledger.fail(error):
            self._listeners.on_end()

    def leave(self) -> Callable[[], bool] | None:
        """Log a warning that a run without a store ends with its process."""
        if not self._ledger.ended:
            end = "are kept nowhere; wait for a run, or give it a store"
            ended = ended_in_words(self._ledger, self._plan.sweep.length)
            logger.warning("%s ends with its process: %s, and %s", self._plan.run_id, ended, end)
        return None

    def disown(self, error: AtomizerError) -> None:
        """End the run in a forked process; in the parent process it goes on."""
        self._ledger.disown(error)

    # -- what becomes of electrons -----------------------------------------------------------

    def _take_down(
        self,
        positions: Positions,
        outcome: BatchOutcome,
        terms: AttemptTerms,
        code: str = "",
    ) -> None:
        """Take down an outcome, and send the electrons again that the record returns."""
        lots = self._record.take(positions, outcome, terms, code=code, is_final=self.stopping)
        for lot in lots:
            self._put_off(lot, terms)

    def _fail_unsent(self, positions: Positions, terms: AttemptTerms) -> None:
        """Take down electrons as cancelled that are not with a worker."""
        self._take_down(positions, Outcome.all_failed(len(positions), _CANCELLED), terms)

    def _put_back(self, positions: Positions, terms: AttemptTerms) -> None:
        """Put electrons that have not ended first in the queue; in a cancelled run, fail them."""
        left = self._record.open_of(positions)
        if self.stopping:
            self._fail_unsent(left, terms)
        elif len(left):
            self._queue.put_first(Lot(left, terms))

    def _put_off(self, lot: Lot, before: AttemptTerms) -> None:
        """Send electrons again after the delay of the lot, in which they occupy no thread."""
        if lot.terms.attempt == before.attempt:  # they did not fail: their file of results is gone
            self._put_back(lot.positions, lot.terms)
            return
        token = self._queue.delay(lot)
        number = counted(len(lot.positions), "electron")
        again = f"{number} failed and will be tried again in {lot.seconds:.3g} s"
        self.announce(again, attempt=lot.terms.attempt)
        self._driver.post_later(lot.seconds, self._send_delayed, token)

    def _send_delayed(self, token: int) -> None:
        if (lot := self._queue.pop_delayed(token)) is not None:
            self._begin_lots([lot[:2]])

    # -- trying again ------------------------------------------------------------------------

    def retry(
        self,
        where: Callable[[ElectronError], bool] | None,
        timeout: float | None,
        today: Today | None = None,
    ) -> None:
        """Have failed electrons executed again, by the atom as it is `today` where that differs.

        Raises
        ------
        Exception
            Whatever `where` raises; nothing is tried again then.
        """
        chosen = failed_of(self._ledger, where)
        if not chosen:
            return
        if self._driver.has_failed:
            raise error_of_broken(self._plan, self._ledger)
        # First of all: if it raises, nothing has changed.
        self._plan = self._record.prepare_retry(self._plan)
        if today is not None:
            self._renew(today)
        had_ended = self._ledger.ended
        if had_ended:
            self._ledger.reopen()
        self._driver.act(self._retry, chosen, timeout, had_ended)

    def _retry(self, chosen: list[Chosen], timeout: float | None, had_ended: bool) -> None:
        if had_ended:
            self._listeners.on_reopen()
        lots = strike_out(self._ledger, chosen, timeout)
        count = sum(len(positions) for positions, _ in lots)
        self._record.reopen(np.concatenate([positions for positions, _ in lots]))
        if not self._ledger.ended:
            are = "electron is" if count == 1 else "electrons are"
            self._send_again(lots, f"{count:,} failed {are} tried again")

    def _renew(self, today: Today) -> None:
        """Send all further batches with the atom as it is now."""
        self._plan = self._plan.renewed(today)
        self.announce("the atom is not what it was: electrons are executed as it is now")
        self._plan = self._record.renew(self._plan, today)

    def _send_again(self, lots: list[tuple[np.ndarray, AttemptTerms]], message: str) -> None:
        if self.stopping:
            self.stopping = False
            self._root = f"{self._plan.run_id}/{self._epoch}"
        for positions, terms in lots:
            self._put_back(positions, terms)
        self.announce(message)
        self._driver.pump()

    # -- a streamed sweep --------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """The driver that takes its electrons."""
        return self._driver

    @property
    def is_over(self) -> bool:
        """Whether it takes no more rows."""
        return self.stopping or self._ledger.ended

    def add(self, positions: Positions) -> None:
        """Put electrons at the end of the queue."""
        if len(positions) and not self.is_over:
            self._queue.put_last(Lot(positions, self._first_terms))
            self._driver.pump()

    def note_drawn(self) -> None:
        """Note that there are no more rows."""
        self.all_drawn = True
        self._check_end()

    # -- pausing and ending ------------------------------------------------------------------

    def _stop(self) -> None:
        """Have the workers give back electrons that they have not begun."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self._conductor.stop(self._root, epoch, cancel=self.stopping)

    def pause(self) -> None:
        """Send no more electrons, and take back those that no worker has begun."""
        self._driver.act(self._pause)

    def _pause(self) -> None:
        if self._ledger.state == "running" and not self.stopping:
            self._set_state("paused")
            self._stop()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._driver.act(self._resume)

    def _resume(self) -> None:
        if self._ledger.state == "paused":
            self._set_state("running")
            self._driver.pump()
            self._check_end()

    def cancel(self) -> None:
        """Cancel the run: electrons that no worker has begun fail as cancelled."""
        self._driver.act(self._cancel)

    def _cancel(self) -> None:
        if self.stopping or self._ledger.ended:
            return
        self.stopping = True
        for positions, terms, _ in self._queue.clear():
            self._fail_unsent(positions, terms)
        if self._feed is not None:
            self._fail_unsent(self._feed.end(), self._first_terms)
            self.all_drawn = True
        if self._driver.idle:
            self._check_end()
        else:
            self._stop()
            self._driver.post_later(HEED_SECONDS, self._abandon, self._root)

    def _abandon(self, root: str) -> None:
        """Fail, as cancelled, running electrons that do not heed ``context.cancelled``."""
        if self._ledger.ended or root != self._root:
            return
        self._driver.abandon(_LEFT_BEHIND)
        self._check_end()

    @property
    def _has_sent_all(self) -> bool:
        """Whether the queue is empty for good, and no batch is under way."""
        return self.all_drawn and not self._queue and self._driver.idle

    def _check_end(self) -> None:
        if self._has_sent_all and not self._ledger.ended:
            failed = self._ledger.error is not None
            self._end("failed" if failed else "cancelled" if self.stopping else "finished")

    def _end(self, state: State) -> None:
        if self._ledger.ended:
            return
        try:
            self._record.close(self._plan, state)
        except BaseException as error:  # noqa: BLE001 - nobody would ever learn that it has ended
            state, self._ledger.error = "failed", self._ledger.error or as_error(error)
        try:
            self._set_state(state, ended=True)
        finally:
            self._listeners.on_end()

    def _set_state(self, state: State, *, ended: bool = False) -> None:
        self._ledger.set_state(state, ended=ended)
        error = self._ledger.error
        if state != "failed" or error is None:
            self.announce(state)
            return
        logger.error("%s has failed: %s", self._plan.run_id, error)
        self.announce(state, level="error", error=error.event.message)
