"""The supply of a run that is kept in a store."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import time_ns

import numpy as np

from atomizer_dask.conductors.batch_conductor import HEED_SECONDS, BatchConductor
from atomizer_dask.errors import (
    AtomizerError,
    StoreError,
    StoreHeldError,
    UnstorableError,
    where_raised,
)
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Positions, Terms
from atomizer_dask.execution.outcome import Outcome, Part, Stored
from atomizer_dask.runs.in_flight import adopt
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.runs.source import Supply
from atomizer_dask.store.code_check import check_code, keep_atom
from atomizer_dask.store.layout import INCOMING, State
from atomizer_dask.store.store import Store
from atomizer_dask.store.stored_part import StoredPart
from atomizer_dask.store.writer import Journal
from atomizer_dask.sweeps.columns import numpy_values
from atomizer_dask.sweeps.stream import Streamed

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
FIRST_UNSTORABLE = 3  # electrons, after which a run stops where none before could be stored
MANY_UNSTORABLE = 1000  # in a row, after which it stops where others could
MERGE_AT_END = 16  # small files


class KeptSupply(Supply):
    """Feeds a driver with electrons of a run, and writes down what becomes of them.

    Parameters
    ----------
    plan, conductor, ledger, listeners
        As of a `Supply`.
    journal
        Where it is written down.
    in_flight
        Batches that another process sent, in that order.
    """

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        ledger: Ledger,
        listeners: Listeners,
        journal: Journal,
        in_flight: Sequence[Batch],
    ) -> None:
        super().__init__(plan, conductor, ledger, listeners)
        # Later than those of whoever worked on the run before, which workers may remember.
        self._epoch = time_ns()
        self._journal = journal
        self._suspending = False
        self._is_left = False  # by a process that ends
        self._flushing = False
        self._unstorable = 0  # electrons in a row, whose results the store cannot hold
        self._refusal = ""  # why nothing more is sent: what the store cannot hold
        self._settled: list[str] = []  # batches that the conductor may forget, once all is written
        self._adopted: dict[int, int] = {}  # which further attempt of an electron was under way
        self._in_flight = in_flight
        journal.store.on_lost = lambda: conductor.post(self.check_held)

    # -- beginning ---------------------------------------------------------------------------

    def _begin(self, electrons: Positions) -> None:
        if self._in_flight:
            self.tell(f"{sum(map(len, self._in_flight)):,} electrons may be under way already")
            found = adopt(electrons, self._in_flight, self._journal.not_done)
            for batch, told, kept in found.leases:
                self._driver.adopt(batch, told, kept)
            self._settled += found.over
            self._adopted, electrons = found.attempts, found.free
            self._in_flight = ()
        super()._begin(self._begin_again(electrons))

    def _begin_again(self, electrons: Positions) -> Positions:
        """Have electrons tried again that failed before, and return the others."""
        tried = self._ledger.history
        if not tried:
            return electrons
        todo = numpy_values(electrons)
        again = todo[np.isin(todo, np.fromiter(tried, dtype=np.int64, count=len(tried)))]
        by_attempt: defaultdict[int, list[int]] = defaultdict(list)
        for position in again.tolist():
            by_attempt[1 + len(tried[position])].append(position)
        for attempt, those in by_attempt.items():
            self._put_back(np.array(those), self._first_terms._replace(attempt=attempt))
        return np.setdiff1d(todo, again)

    # -- what the driver asks ----------------------------------------------------------------

    def waiting(self) -> int:  # noqa: D102
        return 0 if self._suspending or self._refusal else super().waiting()

    def give_back(self, batch: Batch, start: int, stop: int, terms: Terms) -> None:  # noqa: D102
        self._put_back(self._not_sent_again(batch.positions[start:stop], terms), terms)

    def _not_sent_again(self, positions: Positions, terms: Terms) -> Positions:
        if not self._adopted:
            return positions
        latest = np.array([self._adopted.get(int(position), 0) for position in positions])
        left: np.ndarray = numpy_values(positions)[latest <= terms.attempt]
        return left

    def _put_back(self, positions: Positions, terms: Terms) -> None:
        left = self._journal.not_done(positions)  # of a batch whose sender died, some may have
        if len(left):
            super()._put_back(left, terms)

    def salvage(self, batch: Batch) -> None:
        """Take in what a worker had written before it died."""
        with self._storing():
            for part in self._journal.salvage(batch.key):
                self._ledger.add(part)

    def deliver(  # noqa: D102
        self, batch: Batch, outcome: Outcome | Stored, *, last: bool
    ) -> None:
        positions = batch.positions[outcome.first : outcome.kept]
        with self._storing():
            self._journal.store.check_held()
            # Another process may have sent it, in another version of the atom.
            code = "" if batch.sink is None else batch.sink.code
            if isinstance(outcome, Stored):
                self._take_in(positions, outcome, batch.terms, code)
            else:
                whole = replace(outcome, first=0, kept=len(outcome))
                self._keep(positions, whole, batch.terms, code)
        if last:
            self._settled.append(batch.key)
        self._flush_soon()
        if last:
            self._check_end()

    def _keep_missing(self) -> None:
        """Note nothing: what has not ended can be gone on with."""

    # -- what became of electrons ------------------------------------------------------------

    def _take_in(self, positions: Positions, stored: Stored, terms: Terms, code: str) -> None:
        failed = stored.offsets - stored.first
        try:
            part = self._journal.take_in(positions, stored)
        except FileNotFoundError:  # it was put aside, or the folder was tidied by hand
            self._put_back(np.delete(numpy_values(positions), failed), terms)
        else:
            if part is not None:
                self._ledger.add(part)
        if len(failed):
            bad = Part(numpy_values(positions)[failed], stored.failed, code=code)
            self._keep_failures(bad, terms)

    def _keep(self, positions: Positions, outcome: Outcome, terms: Terms, code: str = "") -> None:
        if not len(outcome):
            return
        left = self._journal.not_done(positions)
        part = Part(positions, outcome, terms.attempt, code=code)
        if len(left) < len(positions):
            part = part.pick(np.isin(numpy_values(positions), left))
        part.outcome, outputs = self._journal.encode(part.outcome)
        bad = part.outcome.failed_mask()
        if not bad.all():
            good = part.pick(~bad) if bad.any() else part
            self._unstorable = 0
            written = partial(self._ledger.replace, self._ledger.add(good))
            self._journal.gather(good, outputs, written)
        if bad.any():
            self._keep_failures(part.pick(bad), terms)

    def _keep_failures(self, part: Part, terms: Terms) -> None:
        """Take down electrons that all failed."""
        left = self._journal.not_done(part.positions)
        if len(left) < len(part):
            part = part.pick(np.isin(numpy_values(part.positions), left))
        for some in _apart(part):
            self._keep_alike(some, terms)

    def _keep_alike(self, part: Part, terms: Terms) -> None:
        part.attempt = terms.attempt
        self._look_at_unstorable(part)
        errors = part.outcome.errors(self._ledger.told_of(part))
        self._try_again(part, terms)
        self._ledger.add(part)
        self._tell_failures(part)
        # What was cancelled has not ended for whoever goes on with the run.
        for_good = np.array([error.kind != "cancelled" for error in errors], dtype=bool)
        positions = numpy_values(part.positions).tolist()
        pairs = zip(positions, errors, strict=True)
        self._journal.gather_errors(
            pair for pair, kept in zip(pairs, for_good, strict=True) if kept
        )
        if part.replaced is not None:
            for_good &= ~part.replaced
        if for_good.any():
            self._journal.gather_failed(part.pick(for_good))

    def _look_at_unstorable(self, part: Part) -> None:
        """Stop where the store can hold what no electron returns: more of it would not help."""
        if part.outcome.unstored is None or self._refusal:
            return
        why = part.outcome.failures[part.outcome.codes[0]].message
        if not self._unstorable:
            self.tell(f"the store cannot hold results: {why}", "warning")
        self._unstorable += len(part)
        at_most = MANY_UNSTORABLE if self._ledger.done else FIRST_UNSTORABLE
        if self._unstorable >= at_most:
            self._refusal = why
            logger.warning(
                "%s stops, for its store cannot hold results: %s; run.retry(allow_pickle=True) "
                "stores those that there are, as pickles, and goes on",
                self._plan.run_id,
                self._refusal,
            )
            self._stop()

    # -- trying again ------------------------------------------------------------------------

    def _prepare_retry(self) -> None:
        if self._journal.unaccepted is not None:
            raise self._journal.unaccepted
        if self._ledger.ended:
            store = self._journal.store
            store.hold_again()
            assert self._plan.sink is not None
            assert store.holder is not None
            sink = self._plan.sink._replace(token=store.holder.token)
            self._plan = replace(self._plan, sink=sink)

    def _renew(self, today: Today) -> None:
        super()._renew(today)
        store = self._journal.store
        assert self._plan.sink is not None
        with self._storing():
            if check_code(store, today.code, accept=True) == "accepted":
                keep_atom(store, today.definition)
                store.save()
        self._journal.code = today.code.fingerprint
        sink = self._plan.sink._replace(code=today.code.fingerprint)
        self._plan = replace(self._plan, sink=sink)

    def allow_pickle(self) -> None:
        """Store as pickles what has no Arrow type, first of all what electrons have returned."""
        self._prepare_retry()
        store, ended = self._journal.store, self._ledger.ended
        store.manifest["options"]["allow_pickle"] = self._journal.allow_pickle = True
        assert self._plan.sink is not None
        self._plan = replace(self._plan, sink=self._plan.sink._replace(allow_pickle=True))
        with self._storing():
            store.save()
        self._unstorable, was_refused, self._refusal = 0, bool(self._refusal), ""
        if ended:
            if was_refused:
                self._ledger.error = None
            self._ledger.reopen()
            self._listeners.on_reopen()
        for part in self._ledger.snapshot():
            if isinstance(part, StoredPart):
                part.allow_pickle = True  # into whose file others may be merged
            elif part.outcome.unstored is not None and part.outcome.is_whole:
                self._store_now(part)
        self._driver.pump()
        self._check_end()

    def _store_now(self, part: Part) -> None:
        """Store what failed electrons had returned, which failed for no other reason."""
        current = part.current()
        if not len(current):
            return
        positions = numpy_values(current.positions)
        self._ledger.strike_out(part, np.ones(len(part.outcome.failed), dtype=bool))
        self._take_out(positions)
        terms = self._first_terms._replace(attempt=part.attempt)
        self._keep(positions, current.outcome.as_stored(), terms, part.code)
        self._flush_soon()

    def _take_out(self, again: np.ndarray) -> None:
        self._journal.reopen(again)
        with self._storing():
            self._journal.rewrite_failed(again)

    # -- writing -----------------------------------------------------------------------------

    def check_held(self) -> None:
        """End the run where another process has taken its store over."""
        if not self._ledger.ended:
            with self._storing():
                self._journal.store.check_held()

    def detach(self) -> None:
        """Leave what remains, and what is under way, to whoever holds the store next."""
        self._driver.act(self._leave, "detached")

    def suspend(self) -> None:
        """Take back what has not begun, and leave what remains to whoever holds the store next."""
        self._driver.act(self._suspend)

    def _suspend(self) -> None:
        if self._suspending or self._ledger.ended:
            return
        self._suspending = True
        self._stop()
        self._driver.post_later(HEED_SECONDS, self._leave, "suspended")
        self._check_end()

    def leave(self) -> Callable[[], bool] | None:
        """Suspend the run, for its process ends, and say how to go on."""
        if self._ledger.ended:
            return lambda: True
        self._is_left = True
        self.suspend()
        return lambda: self._ledger.ended

    def disown(self, error: AtomizerError) -> None:
        """Have the run end in a forked process; the store is the parent's."""
        self._journal.store.disown()
        super().disown(error)

    def _warn_of_leaving(self) -> None:
        ledger, total = self._ledger, self._plan.sweep.length
        logger.warning(
            "%s was suspended, for its process ended first: %s of %s electrons have ended; "
            "atomizer.attach(%r) goes on with it",
            self._plan.run_id,
            f"{ledger.done + ledger.failed:,}",
            "?" if total is None else f"{total:,}",
            self._journal.store.folder.url,
        )

    def _leave(self, state: State) -> None:
        if self._ledger.ended:
            return
        with self._storing():
            self._journal.flush()
            self._driver.let_go()
            self._end(state)
        if self._is_left:
            self._warn_of_leaving()

    def _flush_soon(self) -> None:
        """Write what has been gathered: a little later, or now where it is much."""
        if self._journal.is_full:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._driver.post_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._ledger.ended:
            return
        with self._storing():
            self._journal.flush()
            settled, self._settled = self._settled, []
            if settled:
                self._conductor.settle(self._plan.run_id, self._plan.definition.id, settled)
            self._journal.merge_small(self._post_merge)

    def _post_merge(self, end: Callable[[], None]) -> None:
        def act() -> None:
            with self._storing():
                end()
            self._check_end()

        self._driver.post_action(act)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """End the run where its store fails: what is not in it can be computed again."""
        try:
            yield
        except Exception as error:
            # Of a file system in the network it has hundreds of lines; what matters is told below.
            logger.debug("the store of %s failed", self._plan.run_id, exc_info=True)
            if not self._ledger.ended:
                told = error if isinstance(error, StoreError) else self._store_failed(error)
                if isinstance(error, StoreHeldError):
                    self._yield()
                else:
                    self._stop()
                self._driver.fail(told)

    def _store_failed(self, error: Exception) -> StoreError:
        url = self._journal.store.folder.url
        return StoreError(
            f"the store {url} failed: {where_raised(error)}. What had been written is unharmed; "
            f"once that is mended, atomizer.attach({url!r}) goes on",
            error,
        )

    def _yield(self) -> None:
        """Have no electrons executed any more, unless whoever took over waits for them."""
        theirs = self._journal.store.last_conductor()
        here = self._conductor.whereabouts().get("scheduler")
        if theirs and (here is None or theirs.get("scheduler") != here):
            self._stop()
            self._conductor.settle(self._plan.run_id, self._plan.definition.id, None)
        self._driver.retract()

    def _is_written(self) -> bool:
        """Whether everything is in the store, in few files."""
        self._flush()
        journal = self._journal
        if self._ledger.ended or journal.is_merging:
            return False
        with self._storing():
            if journal.merge_small(self._post_merge, at=MERGE_AT_END):
                return False
            journal.unify()
        return not self._ledger.ended

    def _check_end(self) -> None:
        remains = self._pending or self._delayed or not self.all_drawn
        if self._refusal and self._driver.idle and remains and not self._ledger.ended:
            self._end_refused()
        if self._suspending and self._driver.idle and remains:
            self._leave("suspended")
        super()._check_end()

    def _end_refused(self) -> None:
        """End, for the store cannot hold what electrons return."""
        self._ledger.error = UnstorableError(
            Event(
                f"{self._plan.run_id} has stopped, for its store cannot hold results: "
                f"{self._refusal}. What it can hold is in there. run.retry(allow_pickle=True) "
                "stores what has been computed, as pickles, and goes on, as does "
                "atomizer.map(..., store=..., allow_pickle=True)",
                run_id=self._plan.run_id,
                level="error",
            )
        )
        self._end("failed")

    def _close(self, state: State) -> None:
        journal = self._journal
        try:
            journal.flush()
            self._describe_end(journal.store, state)
            journal.store.end_session(state)
            # Of a run that its store refused all that was executed has arrived.
            if self._refusal or state not in ("failed", "detached", "suspended"):
                self._conductor.settle(self._plan.run_id, self._plan.definition.id, None)
        except (StoreError, OSError) as error:
            self._ledger.error = self._ledger.error or AtomizerError(str(error), error)
        finally:
            try:
                journal.store.let_go()
            except (StoreError, OSError) as error:  # whoever comes next is told how to take over
                self._listeners.on_problem(f"cannot let go of {journal.store.folder.url}", error)

    def _describe_end(self, store: Store, state: State) -> None:
        """Note how many rows a stream had, and remove what workers wrote in vain."""
        sweep = self._plan.sweep
        if isinstance(sweep, Streamed) and not sweep.is_read:
            ended = state == "finished"
            store.manifest["sweeps"][-1]["electrons"] = sweep.length if ended else None
        if state == "finished":  # by workers that were thought dead, and were not
            for path in store.folder.files(INCOMING):
                store.folder.remove(path)


def _apart(part: Part) -> list[Part]:
    """Return failed electrons whose results a store cannot hold apart from others."""
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
