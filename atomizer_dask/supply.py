"""The supply of a run: which electrons are to be sent, and what to do with what came of them.

Everything here happens on the dispatcher's thread of the conductor, as in the driver that it
feeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, pairwise
from time import time_ns
from typing import Any

import numpy as np

from atomizer_dask.atom import Definition
from atomizer_dask.batch import Batch, Origin, Sink, Terms
from atomizer_dask.batching import Size
from atomizer_dask.columns import numpy_values
from atomizer_dask.conductors.base import HEED_SECONDS, BatchConductor
from atomizer_dask.drawing import Drawing
from atomizer_dask.driver import Driver
from atomizer_dask.errors import AtomizerError, ElectronError, StoreError, StoreHeldError
from atomizer_dask.events import Event, Level
from atomizer_dask.frame import Part
from atomizer_dask.journal import Journal
from atomizer_dask.ledger import Ledger, State
from atomizer_dask.outcome import Failure, Outcome, Stored
from atomizer_dask.policy import Policy
from atomizer_dask.store import Store
from atomizer_dask.streams import Stream
from atomizer_dask.sweep import Inputs, Streamed, Sweep
from atomizer_dask.tables import Positions

FLUSH_SECONDS = 0.5
SCATTERED = 1000  # spans, from which on a range for each of them is no gain
MERGE_AT_END = 16  # small files
_CANCELLED = Failure("cancelled", "", "the run was cancelled")
_LEFT_BEHIND = Failure(
    "cancelled", "", "the run was cancelled; the electron did not heed that and was left behind"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done in a run, and how.

    Parameters
    ----------
    run_id
        Names it.
    definition, version
        The atom, and what a site needs to find it.
    sweep
        The inputs.
    seed
        Of the random streams.
    origin
        Whom the electrons descend from.
    copy_state, policy, timeout
        The options of `Atomizer.map`.
    sink
        The store that workers may write to.
    root
        By what its electrons can be stopped, where not by the name of the run.
    """

    run_id: str
    definition: Definition
    version: Any
    sweep: Sweep
    seed: int
    origin: Origin
    copy_state: bool
    policy: Policy
    timeout: float | None
    sink: Sink | None = None
    root: str = ""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Whom a run tells what happens.

    Parameters
    ----------
    on_event
        Of every event of the run itself.
    on_failure
        Of an electron that failed for good: a `Failure` and its position.
    on_problem
        Of a function of the user, other than the atom, that raised.
    on_end, on_reopen
        When nothing more will come, and when it goes on after all.
    """

    on_event: Callable[[Event], None]
    on_failure: Callable[[Failure, int], None]
    on_problem: Callable[[str, BaseException], None]
    on_end: Callable[[], None] = lambda: None
    on_reopen: Callable[[], None] = lambda: None


class Supply:
    """Feeds a driver with the electrons of a run.

    Parameters
    ----------
    plan
        What is to be done.
    conductor
        Through which.
    ledger
        Where it is taken down what became of them.
    listeners
        Who is told.
    journal
        Where it is written down, where the run has a store.
    """

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        ledger: Ledger,
        listeners: Listeners,
        journal: Journal | None = None,
    ) -> None:
        self.stopping = False
        self._suspending = False
        self._plan = plan
        self._conductor = conductor
        self._ledger = ledger
        self._listeners = listeners
        self._journal = journal
        self._settled: list[str] = []  # batches that the conductor may forget, once all is written
        self._flushing = False
        self._stream = Stream(plan.seed)
        # A vectorised atom that reduces its arrays looks right where it is given one electron.
        self._at_least = 2 if plan.definition.vectorized else 1
        self._first_terms = Terms(timeout=plan.timeout)
        self._pending: deque[tuple[Positions, Terms]] = deque()
        self._delayed: dict[int, tuple[Positions, Terms]] = {}
        self._waiting = 0
        self._broken_policy: set[tuple[type, str]] = set()
        # Later than those of whoever worked on the run before, which workers may remember.
        self._epoch = 0 if journal is None else time_ns()
        self._adopted: dict[int, int] = {}  # which further attempt of an electron was under way
        self._root = (
            plan.root or plan.run_id
        )  # another one each time that it is tried again after a cancel
        self._tokens = 0
        self._drawing = self._draw_from(plan.sweep) if isinstance(plan.sweep, Streamed) else None
        self.grows = self._drawing is not None
        self.all_drawn = self._drawing is None
        self._driver: Driver = conductor.drive(self, plan.sweep.row_bytes)

    @property
    def running(self) -> int:
        """How many electrons are with the workers."""
        return self._driver.leased

    @property
    def pending(self) -> int:
        """How many are still to be sent."""
        return self._waiting + sum(len(lot) for lot, _ in list(self._delayed.values()))

    def start(self, electrons: Positions, in_flight: Sequence[Batch] = ()) -> None:
        """Begin to send; from any thread.

        Parameters
        ----------
        electrons
            Those that are to be executed, in order; of a streamed sweep, of what is drawn already.
        in_flight
            Batches that another process sent, in that order.
        """
        self.tell("started" if not in_flight else f"started; {len(in_flight)} parts are under way")
        self._conductor.post(lambda: self._begin(electrons, in_flight))
        if self._drawing is not None:
            self._drawing.start()

    def start_lots(self, lots: Sequence[tuple[np.ndarray, Terms]]) -> None:
        """Begin to send electrons, each lot on its own terms; from any thread."""

        def begin() -> None:
            for positions, terms in lots:
                self._put_back(positions, terms)
            self._driver.pump()
            self._check_end()

        self._conductor.post(begin)

    def _begin(self, electrons: Positions, in_flight: Sequence[Batch]) -> None:
        if in_flight:
            electrons = self._adopt(electrons, in_flight)
        tried = self._ledger.history
        again = [] if not tried else [position for position in electrons if position in tried]
        for position in again:
            attempt = 1 + len(tried[position])
            self._put_back(np.array([position]), self._first_terms._replace(attempt=attempt))
        if again:
            electrons = np.setdiff1d(electrons, again)
        for positions in spans(electrons):
            self._add(positions)
        self._driver.pump()  # also what is tried again alone
        self._check_end()

    def _adopt(self, electrons: Positions, in_flight: Sequence[Batch]) -> Positions:
        """Wait for batches that are under way, and return the electrons that are in none."""
        size = 1 + max(int(max(batch.positions)) for batch in in_flight)
        owner = np.full(max(size, 1 + int(max(electrons, default=0))), -1)
        # What a batch has given back, or what failed in it and is tried again, is in a later one.
        for number, batch in enumerate(in_flight):
            owner[numpy_values(batch.positions)] = number
        attempts = np.array([batch.terms.attempt for batch in in_flight])
        journal = self._journal
        assert journal is not None
        for number, batch in enumerate(in_flight):
            positions = numpy_values(batch.positions)
            owners = owner[positions]
            mine = owners == number
            ended = ~mine & (attempts[owners] > batch.terms.attempt)
            # From the first that others have all was given back, also what nobody has yet.
            kept = int(np.argmax(np.append(~mine & ~ended, True)))
            left = mine[:kept] & np.isin(positions[:kept], journal.not_done(positions[:kept]))
            told = int(np.argmax(left)) if left.any() else kept
            if told < kept:
                self._driver.adopt(batch, told, kept)
            else:
                self._settled.append(batch.key)
            again = positions[:kept][ended[:kept]].tolist()
            self._adopted |= dict(
                zip(again, attempts[owners[:kept][ended[:kept]]].tolist(), strict=True)
            )
            mine[told:kept] = False
            owner[positions[mine]] = -1
        todo = np.asarray(electrons)
        free: np.ndarray = todo[owner[todo] == -1]
        return free

    def tell(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Put an event about the run as a whole on the streams."""
        plan = self._plan
        event = Event(
            message, atom_id=plan.definition.id, run_id=plan.run_id, level=level, fields=fields
        )
        self._listeners.on_event(event)

    # -- what the driver asks ----------------------------------------------------------------

    def waiting(self) -> int:  # noqa: D102
        held_back = self._suspending or self._ledger.state == "paused"
        return 0 if held_back else self._waiting

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        positions, terms = self._pending.popleft()
        electrons = max(size.electrons, self._at_least)
        if len(positions) > electrons:
            self._pending.appendleft((positions[electrons:], terms))
            positions = positions[:electrons]
        with self._ledger.changed:
            self._waiting -= len(positions)
            self._ledger.changed.notify_all()  # more rows may be drawn
        return self.batch(key, positions, terms, size.seconds)

    def batch(self, key: str, positions: Positions, terms: Terms, seconds: float) -> Batch:
        """Return some electrons as a batch."""
        plan, inputs, earlier = self._plan, self._inputs(positions), None
        if terms.attempt > 1:
            history = self._ledger.history
            earlier = [history.get(position, ()) for position in map(int, positions)]
        return Batch(
            key=key,
            atom_id=plan.definition.id,
            version=plan.version,
            inputs=inputs,
            positions=positions,
            stream=self._stream,
            origin=plan.origin,
            terms=terms,
            earlier=earlier,
            epoch=self._epoch,
            run_id=plan.run_id,
            root_id=self._root,
            copy_state=plan.copy_state,
            seconds=seconds,
            sink=plan.sink,
        )

    def _inputs(self, positions: Positions) -> Inputs:
        if isinstance(positions, range):
            return self._plan.sweep.take(positions.start, positions.stop)
        return self._plan.sweep.pick(positions)

    def give_back(self, batch: Batch, start: int, stop: int, terms: Terms) -> None:  # noqa: D102
        positions = batch.positions[start:stop]
        if self._adopted:
            positions = numpy_values(positions)[~self._is_tried_already(positions, terms)]
        self._put_back(positions, terms)

    def _is_tried_already(self, positions: Positions, terms: Terms) -> np.ndarray:
        """Return which electrons had been sent again by whoever worked on the run before."""
        latest = self._adopted
        return np.array([latest.get(int(p), 0) > terms.attempt for p in positions], dtype=bool)

    def _put_back(self, positions: Positions, terms: Terms) -> None:
        if self.stopping:
            self._keep_failed(positions, _CANCELLED, terms)
            return
        if self._journal is not None:  # of a batch whose sender died, others may have done some
            positions = self._journal.not_done(positions)
            if not len(positions):
                return
        self._pending.appendleft((positions, terms))
        with self._ledger.changed:
            self._waiting += len(positions)

    def salvage(self, batch: Batch) -> None:  # noqa: D102
        if self._journal is not None:
            with self._storing():
                for part in self._journal.salvage(batch.key):
                    self._ledger.add(part)

    def deliver(  # noqa: D102
        self, batch: Batch, outcome: Outcome | Stored, *, last: bool
    ) -> None:
        positions = batch.positions[outcome.first : outcome.kept]
        if self._journal is not None:
            with self._storing():
                self._journal.store.check_held()
                self._keep_in_store(self._journal, positions, outcome, batch.terms)
            if last:
                self._settled.append(batch.key)
            self._flush_soon()
        else:
            assert isinstance(outcome, Outcome)
            self._keep(positions, replace(outcome, first=0, kept=len(outcome)), batch.terms)
        if last:
            self._check_end()

    def fail(self, error: AtomizerError) -> None:  # noqa: D102
        if self._ledger.ended:
            return
        if self.stopping:
            if self._journal is None:
                missing = self._ledger.missing(self._plan.sweep.length or 0)
                self._keep_failed(missing, _CANCELLED, self._first_terms)
            self._end("cancelled")
            return
        self._ledger.error = error
        self._end("failed")

    # -- what became of electrons ------------------------------------------------------------

    def _keep(self, positions: Positions, outcome: Outcome, terms: Terms) -> None:
        if len(outcome):
            part = Part(positions, outcome, terms.attempt)
            self._try_again(part, terms)
            self._ledger.add(part)
            self._tell_failures(part)

    def _tell_failures(self, part: Part) -> None:
        if self.stopping:
            return
        current = part.current()
        positions = current.failed_positions()
        for position, code in zip(positions.tolist(), current.outcome.codes, strict=True):
            self._listeners.on_failure(current.outcome.failures[code], position)

    def _keep_in_store(
        self, journal: Journal, positions: Positions, outcome: Outcome | Stored, terms: Terms
    ) -> None:
        if not len(outcome):
            return
        if isinstance(outcome, Stored):
            try:
                stored = journal.take_in(positions, outcome)
            except FileNotFoundError:  # it was put aside, or the folder was tidied by hand
                lost = np.delete(numpy_values(positions), outcome.offsets - outcome.first)
                self._put_back(lost, terms)
            else:
                if stored is not None:
                    self._ledger.add(stored)
            failed = outcome.failed
            if len(failed):
                positions = numpy_values(positions)[outcome.offsets - outcome.first]
        else:
            left = journal.not_done(positions)
            part = Part(positions, replace(outcome, first=0, kept=len(outcome)))
            if len(left) < len(positions):
                part = part.pick(np.isin(numpy_values(positions), left))
            outcome = journal.storable(part.outcome)
            bad = outcome.failed_mask()
            if not bad.all():
                good = part.positions if not bad.any() else numpy_values(part.positions)[~bad]
                kept = outcome if not bad.any() else outcome.pick(~bad)
                whole = Part(good, kept, terms.attempt)
                journal.gather(whole, partial(self._ledger.replace, self._ledger.add(whole)))
            failed = outcome.pick(bad)
            positions = numpy_values(part.positions)[bad]
        if len(failed):
            self._keep_failures(journal, Part(positions, failed, terms.attempt), terms)

    def _keep_failures(self, journal: Journal, part: Part, terms: Terms) -> None:
        left = journal.not_done(part.positions)
        if len(left) < len(part):
            part = part.pick(np.isin(numpy_values(part.positions), left))
        errors = part.outcome.errors(self._ledger.told_of(part))
        self._try_again(part, terms)
        self._ledger.add(part)
        self._tell_failures(part)
        # What was cancelled has not ended for whoever goes on with the run.
        for_good = np.array([error.kind != "cancelled" for error in errors], dtype=bool)
        positions = numpy_values(part.positions)
        journal.gather_errors(
            (int(position), error)
            for position, error, wanted in zip(positions, errors, for_good, strict=True)
            if wanted
        )
        if part.replaced is not None:
            for_good &= ~part.replaced
        if for_good.any():
            journal.gather_failed(part.pick(for_good))

    def check_held(self) -> None:
        """End the run where another process has taken its store over."""
        if self._journal is not None and not self._ledger.ended:
            with self._storing():
                self._journal.store.check_held()

    def detach(self) -> None:
        """Leave what remains, and what is under way, to whoever holds the store next."""
        self._leave("detached")

    def suspend(self) -> None:
        """Take back what has not begun, and leave what remains to whoever holds the store next."""
        if self._suspending or self._ledger.ended:
            return
        self._suspending = True
        self._stop()
        self._conductor.post_later(HEED_SECONDS, partial(self._leave, "suspended"))
        self._check_end()

    def _leave(self, state: State) -> None:
        assert self._journal is not None
        if self._ledger.ended:
            return
        with self._storing():
            self._journal.flush()
            self._driver.let_go()
            self._end(state)

    def _flush_soon(self) -> None:
        """Write what has been gathered: a little later, or now where it is much."""
        assert self._journal is not None
        if self._journal.is_full:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._conductor.post_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        journal = self._journal
        if journal is None or self._ledger.ended:
            return
        with self._storing():
            journal.flush()
            settled, self._settled = self._settled, []
            if settled:
                self._conductor.settle(self._plan.run_id, self._plan.definition.id, settled)
            journal.merge_small(self._post_merge)

    def _post_merge(self, end: Callable[[], None]) -> None:
        def act() -> None:
            with self._storing():
                end()
            self._check_end()

        self._conductor.post(act)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """End the run where its store fails: what is not in it can be computed again."""
        try:
            yield
        except (StoreError, OSError) as error:
            if not self._ledger.ended:
                told = error if isinstance(error, StoreError) else StoreError(str(error), error)
                if not isinstance(error, StoreHeldError):  # else it is another's to stop
                    self._stop()
                self._driver.fail(told)

    def _keep_failed(self, positions: Positions, failure: Failure, terms: Terms) -> None:
        """Note that electrons failed that were not sent."""
        self._keep(positions, Outcome.all_failed(len(positions), failure), terms)

    def _try_again(self, part: Part, terms: Terms) -> None:
        """Have those of the failed electrons tried again for which the policy says so."""
        outcome, policy = part.outcome, self._plan.policy
        if policy.never or self.stopping or not len(outcome.failed):
            return
        errors = outcome.errors(self._ledger.told_of(part))
        decisions = np.array([self._decide(error) for error in errors])
        part.replaced = decisions != "fail"
        positions = part.failed_positions()
        for position, error in zip(
            positions[part.replaced], compress(errors, part.replaced), strict=True
        ):
            self._ledger.remember(int(position), error)
        waits = ~self._is_tried_already(positions, terms)
        for decision in ("retry", "requeue"):
            chosen = positions[(decisions == decision) & waits]
            if len(chosen):
                further = terms.again(outcome.worker, elsewhere=decision == "requeue")
                self._put_off(chosen, further, policy.delay(terms.attempt))

    def _decide(self, error: ElectronError) -> str:
        try:
            return self._plan.policy.decide(error)
        except Exception as broken:  # noqa: BLE001 - the user's function; it must not stop the run
            if (alike := (type(broken), str(broken))) not in self._broken_policy:
                self._broken_policy.add(alike)  # of a million alike, the first is told
                whose = error.event.electron_id
                problem = f"on_failure raised; {whose} is not tried again"
                self._listeners.on_problem(problem, broken)
            return "fail"

    def _put_off(self, positions: np.ndarray, terms: Terms, seconds: float) -> None:
        """Send electrons again after some seconds, in which they hold nothing."""
        token = self._tokens = self._tokens + 1
        self._delayed[token] = positions, terms
        again = f"{len(positions):,} electrons failed and will be tried again in {seconds:.3g} s"
        self.tell(again, attempt=terms.attempt)

        def send() -> None:
            if (lot := self._delayed.pop(token, None)) is not None:
                self._put_back(*lot)
                self._driver.pump()
                self._check_end()

        self._conductor.post_later(seconds, send)

    def retry(self, where: Callable[[ElectronError], bool] | None, timeout: float | None) -> None:
        """Have failed electrons executed again.

        Raises
        ------
        Exception
            Whatever `where` raises; nothing is tried again then.
        """
        chosen = []
        for part in self._ledger.parts:
            failed = part.failed_positions()
            if not len(failed):
                continue
            assert isinstance(part, Part)
            errors = part.outcome.errors(self._ledger.told_of(part))
            gone = np.zeros(len(failed), bool) if part.replaced is None else part.replaced
            wanted = (
                not g and (where is None or bool(where(e)))
                for g, e in zip(gone, errors, strict=True)
            )
            chosen.append((part, np.fromiter(wanted, dtype=bool, count=len(errors)), errors))
        if not any(again.any() for _, again, _ in chosen):
            return
        if self._ledger.ended and self._journal is not None:
            self._hold_again(self._journal.store)  # first: where that fails, nothing has changed
        lots = []
        for part, again, errors in chosen:
            positions = part.failed_positions()[again]
            for position, error in zip(positions.tolist(), compress(errors, again), strict=True):
                self._ledger.remember(position, error)
            self._ledger.strike_out(part, again)
            if len(positions):
                lots.append((positions, Terms(part.attempt + 1, timeout=timeout)))
        count = sum(len(positions) for positions, _ in lots)
        if self._ledger.ended:
            self._ledger.reopen()
            self._listeners.on_reopen()
        if self._journal is not None:
            again = np.concatenate([positions for positions, _ in lots])
            self._journal.reopen(again)
            with self._storing():
                self._journal.rewrite_failed(again)
        if not self._ledger.ended:
            self._send_again(lots, f"{count:,} failed electrons are tried again")

    def _hold_again(self, store: Store) -> None:
        """Take hold of the store of a run that had ended.

        Raises
        ------
        StoreError
            Where another process holds it, or has gone on with it.
        """
        known = len(store.manifest["sessions"])
        store.hold()
        if len(store.manifest["sessions"]) != known:
            store.let_go()
            raise StoreError(
                f"another process has gone on with {store.folder.url} since: "
                "atomizer.attach(store).retry() tries again what has failed by now"
            )
        last = store.manifest["sessions"][-1]
        store.begin_session({name: last[name] for name in last if name not in ("start", "end")})

    def _send_again(self, lots: list[tuple[np.ndarray, Terms]], message: str) -> None:
        if self.stopping:
            self.stopping = False
            self._root = f"{self._plan.run_id}/{self._epoch}"
        for positions, terms in lots:
            self._put_back(positions, terms)
        self.tell(message)
        self._driver.pump()

    # -- a streamed sweep --------------------------------------------------------------------

    def _draw_from(self, sweep: Streamed) -> Drawing:
        ledger, post = self._ledger, self._conductor.post
        return Drawing(
            sweep,
            f"feed-{self._plan.run_id}",
            ledger.changed,
            taken=lambda: ledger.done + ledger.failed + self._driver.leased,
            over=lambda: self.stopping or ledger.ended,
            on_rows=lambda: post(self._look),
            on_error=lambda error: post(partial(self._break, error)),
            on_end=lambda: post(self._end_drawing),
        )

    def _look(self) -> None:
        """Take what has been drawn since the last look."""
        assert self._drawing is not None
        self._add(self._drawing.seen())

    def _add(self, positions: Positions) -> None:
        if self.stopping or self._ledger.ended or not len(positions):
            return
        with self._ledger.changed:
            self._waiting += len(positions)
        if self._pending:
            before, terms = self._pending[-1]
            ranges = isinstance(before, range) and isinstance(positions, range)
            if ranges and (before.stop, terms) == (positions.start, self._first_terms):  # type: ignore[union-attr]
                self._pending.pop()
                positions = range(before.start, positions.stop)  # type: ignore[union-attr]
        self._pending.append((positions, self._first_terms))
        self._driver.pump()

    def _break(self, error: BaseException) -> None:
        drawn = getattr(self._plan.sweep, "drawn", 0)
        self._ledger.error = AtomizerError(
            Event(
                f"the sweep's iterator raised {type(error).__name__} after {drawn:,} electrons; "
                "these were carried out",
                run_id=self._plan.run_id,
                level="error",
            ),
            error,
        )

    def _end_drawing(self) -> None:
        if self.stopping:
            return
        if isinstance(self._plan.sweep, Streamed):
            self._look()
            self._plan.sweep.end()
        self.all_drawn = True
        self._check_end()

    # -- pausing and ending ------------------------------------------------------------------

    def _stop(self) -> None:
        """Have what is with the workers, and has not begun, given back."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self._conductor.stop(self._root, epoch, cancel=self.stopping)

    def pause(self) -> None:
        """Send no more, and take back what has not begun."""
        if self._ledger.state == "running" and not self.stopping:
            self._set_state("paused")
            self._stop()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._ledger.state == "paused":
            self._set_state("running")
            self._driver.pump()
            self._check_end()

    def cancel(self) -> None:
        """End: what has not begun never will."""
        if self.stopping or self._ledger.ended:
            return
        self.stopping = True
        pending, self._pending = [*self._pending, *self._delayed.values()], deque()
        self._delayed.clear()
        with self._ledger.changed:
            self._waiting = 0
        for positions, terms in pending:
            self._keep_failed(positions, _CANCELLED, terms)
        if self._drawing is not None:
            self._keep_failed(self._drawing.end(), _CANCELLED, self._first_terms)
            self.all_drawn = True
        if self._driver.idle:
            self._check_end()
        else:
            self._stop()
            self._conductor.post_later(HEED_SECONDS, partial(self._abandon, self._root))

    def _abandon(self, root: str) -> None:
        """Wait no longer for electrons that do not heed ``context.cancelled``."""
        if self._ledger.ended or root != self._root:
            return
        self._driver.abandon(_LEFT_BEHIND)
        self._check_end()

    def _check_end(self) -> None:
        if self._suspending and self._driver.idle and not self._is_all_done():
            self._leave("suspended")
        if self._ledger.ended or self._pending or self._delayed or not self._driver.idle:
            return
        if self.all_drawn and self._is_written():
            failed = self._ledger.error is not None
            self._end("failed" if failed else "cancelled" if self.stopping else "finished")

    def _is_all_done(self) -> bool:
        return self.all_drawn and not self._pending and not self._delayed

    def _is_written(self) -> bool:
        """Whether everything is in the store, in few files; else this will be asked again."""
        journal = self._journal
        if journal is None:
            return True
        self._flush()
        if self._ledger.ended or journal.is_merging:
            return False
        with self._storing():
            if journal.merge_small(self._post_merge, at=MERGE_AT_END):
                return False
            journal.unify()
        return not self._ledger.ended

    def _end(self, state: State) -> None:
        if self._ledger.ended:
            return
        if self._journal is not None:
            self._close_store(self._journal, state)
        self._set_state(state, ended=True)
        self._listeners.on_end()

    def _close_store(self, journal: Journal, state: State) -> None:
        try:
            journal.flush()
            journal.store.end_session(state)
            if state not in ("failed", "detached", "suspended"):
                self._conductor.settle(self._plan.run_id, self._plan.definition.id, None)
        except (StoreError, OSError) as error:
            self._ledger.error = self._ledger.error or AtomizerError(str(error), error)
        finally:
            try:
                journal.store.let_go()
            except (StoreError, OSError) as error:  # whoever comes next is told how to take over
                self._listeners.on_problem(f"cannot let go of {journal.store.folder.url}", error)

    def _set_state(self, state: State, *, ended: bool = False) -> None:
        self._ledger.set_state(state, ended=ended)
        self.tell(state, level="error" if state == "failed" else "info")


def spans(positions: Positions) -> list[Positions]:
    """Return positions as a few ranges, or as they are where they are scattered.

    >>> spans(np.array([0, 1, 2, 7, 8]))
    [range(0, 3), range(7, 9)]
    """
    if isinstance(positions, range) or not len(positions):
        return [positions] if len(positions) else []
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    if len(breaks) > SCATTERED:
        return [positions]
    edges = [0, *breaks.tolist(), len(positions)]
    return [range(int(positions[a]), int(positions[b - 1]) + 1) for a, b in pairwise(edges)]
