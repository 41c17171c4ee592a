"""The supply of a run: which electrons are to be sent, and what to do with what came of them.

Everything here happens on the dispatcher's thread of the conductor, as in the driver that it
feeds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np

from atomizer_dask.atoms.random_streams import Stream
from atomizer_dask.conductors.batch_conductor import HEED_SECONDS, BatchConductor
from atomizer_dask.conductors.batch_size import Size
from atomizer_dask.conductors.dispatcher import as_error
from atomizer_dask.conductors.driver import Driver
from atomizer_dask.display.text import counted
from atomizer_dask.errors import AtomizerError, ConductorError, ElectronError, text_of
from atomizer_dask.events import Event, Level
from atomizer_dask.execution.batch import Batch, Positions, Terms
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import Outcome, Part, Stored
from atomizer_dask.runs.in_flight import spans
from atomizer_dask.runs.ledger import Ledger
from atomizer_dask.runs.plan import Listeners, Plan, Today
from atomizer_dask.store.layout import State
from atomizer_dask.sweeps.stream import Streamed
from atomizer_dask.sweeps.stream_reader import Drawing

logger = logging.getLogger(__name__)

_CANCELLED = Failure("cancelled", "", "the run was cancelled")
_LEFT_BEHIND = Failure(
    "cancelled", "", "the run was cancelled; the electron did not heed that and was left behind"
)


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
    """

    def __init__(
        self,
        plan: Plan,
        conductor: BatchConductor,
        ledger: Ledger,
        listeners: Listeners,
    ) -> None:
        self.stopping = False
        self._plan = plan
        self._conductor = conductor
        self._ledger = ledger
        self._listeners = listeners
        self._stream = Stream(plan.seed)
        # A vectorised atom that reduces its arrays looks right where it is given one electron.
        self._at_least = 2 if plan.definition.vectorized else 1
        self._first_terms = Terms(timeout=plan.options.timeout)
        self._pending: deque[tuple[Positions, Terms]] = deque()
        self._delayed: dict[int, tuple[Positions, Terms]] = {}
        self._waiting = 0
        self._broken_policy: set[tuple[type, str]] = set()
        self._epoch = 0
        # Another one each time that it is tried again after it was cancelled.
        self._root = plan.root or plan.run_id
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

    def start(self, electrons: Positions) -> None:
        """Begin to send; from any thread.

        Parameters
        ----------
        electrons
            Those that are to be executed, in order; of a streamed sweep, of what is drawn already.
        """
        self.tell("started")
        if self._plan.definition.vectorized and self._plan.definition.draws_from:
            self._warn_of_draws()
        self._driver.post_action(self._begin, electrons)
        if self._drawing is not None:
            self._drawing.start()

    def _warn_of_draws(self) -> None:
        definition = self._plan.definition
        message = (
            f"{definition.id} is vectorised and draws from {' and '.join(definition.draws_from)}: "
            "its numbers depend on how electrons are bundled, and are others each time; draw from "
            "context.random(shape), a row per electron"
        )
        self.tell(message, "warning")
        logger.warning("%s", message)

    def start_lots(self, lots: Sequence[tuple[np.ndarray, Terms]]) -> None:
        """Begin to send electrons, each lot on its own terms; from any thread."""

        def begin() -> None:
            for positions, terms in lots:
                self._put_back(positions, terms)
            self._driver.pump()
            self._check_end()

        self._driver.post_action(begin)

    def _begin(self, electrons: Positions) -> None:
        for positions in spans(electrons):
            self._add(positions)
        self._driver.pump()
        self._check_end()

    def tell(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Put an event about the run as a whole on the streams."""
        plan = self._plan
        event = Event(
            message, atom_id=plan.definition.id, run_id=plan.run_id, level=level, fields=fields
        )
        self._listeners.on_event(event)

    # -- what the driver asks ----------------------------------------------------------------

    def waiting(self) -> int:  # noqa: D102
        return 0 if self._ledger.state == "paused" else self._waiting

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        positions, terms = self._pending.popleft()
        electrons = max(size.electrons, self._at_least)
        if not self._plan.definition.vectorized:
            electrons = min(electrons, self._plan.sweep.together(positions))
        if len(positions) == electrons + 1 and electrons >= self._at_least > 1:
            electrons += 1  # and no electron is left over
        if len(positions) > electrons:
            self._pending.appendleft((positions[electrons:], terms))
            positions = positions[:electrons]
        with self._ledger.changed:
            self._waiting -= len(positions)
            self._ledger.changed.notify_all()  # more rows may be drawn
        return self.batch(key, positions, terms, size.seconds)

    def batch(self, key: str, positions: Positions, terms: Terms, seconds: float) -> Batch:
        """Return some electrons as a batch."""
        plan, earlier = self._plan, None
        if terms.attempt > 1:
            history = self._ledger.history
            earlier = [history.get(position, ()) for position in map(int, positions)]
        return Batch(
            key=key,
            atom_id=plan.definition.id,
            version=plan.version,
            inputs=plan.sweep.inputs_of(positions),
            positions=positions,
            stream=self._stream,
            origin=plan.origin,
            terms=terms,
            earlier=earlier,
            epoch=self._epoch,
            run_id=plan.run_id,
            root_id=self._root,
            copy_state=plan.options.copy_state,
            seconds=seconds,
            sink=plan.sink,
        )

    def give_back(self, batch: Batch, start: int, stop: int, terms: Terms) -> None:  # noqa: D102
        self._put_back(batch.positions[start:stop], terms)

    def _put_back(self, positions: Positions, terms: Terms) -> None:
        if self.stopping:
            self._keep_failed(positions, _CANCELLED, terms)
            return
        self._pending.appendleft((positions, terms))
        with self._ledger.changed:
            self._waiting += len(positions)

    def salvage(self, batch: Batch) -> None:
        """Do nothing: results are kept nowhere but here."""

    def deliver(  # noqa: D102
        self, batch: Batch, outcome: Outcome | Stored, *, last: bool
    ) -> None:
        positions = batch.positions[outcome.first : outcome.kept]
        assert isinstance(outcome, Outcome)
        self._keep(positions, replace(outcome, first=0, kept=len(outcome)), batch.terms)
        if last:
            self._check_end()

    def fail(self, error: AtomizerError) -> None:  # noqa: D102
        if self._ledger.ended:
            return
        if self.stopping and isinstance(error, ConductorError):
            self._keep_missing()
            self._end("cancelled")
            return
        self._ledger.error = error
        self._end("failed")

    def give_up(self, error: AtomizerError) -> None:  # noqa: D102
        if self._ledger.fail(error):
            self._listeners.on_end()

    def leave(self) -> Callable[[], bool] | None:
        """Say that what has no store ends with its process."""
        if not self._ledger.ended:
            ended, total = self._ledger.done + self._ledger.failed, self._plan.sweep.length
            logger.warning(
                "%s ends with its process: %s of %s electrons have ended, and are kept nowhere; "
                "wait for a run, or give it a store",
                self._plan.run_id,
                f"{ended:,}",
                "?" if total is None else f"{total:,}",
            )
        return None

    def disown(self, error: AtomizerError) -> None:
        """Have the run end in a forked process; that of its parent goes on."""
        self._ledger.disown(error)

    def _keep_missing(self) -> None:
        """Note that what nobody has told of never will be."""
        missing = self._ledger.missing(self._plan.sweep.length or 0)
        self._keep_failed(missing, _CANCELLED, self._first_terms)

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

    def _keep_failed(self, positions: Positions, failure: Failure, terms: Terms) -> None:
        """Note that electrons failed that were not sent."""
        self._keep(positions, Outcome.all_failed(len(positions), failure), terms)

    def _try_again(self, part: Part, terms: Terms) -> None:
        """Have those of the failed electrons tried again for which the policy says so."""
        outcome, policy = part.outcome, self._plan.options.policy
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
        for decision in ("retry", "requeue"):
            chosen = self._not_sent_again(positions[decisions == decision], terms)
            if len(chosen):
                further = terms.again(outcome.worker, elsewhere=decision == "requeue")
                self._put_off(chosen, further, policy.delay(terms.attempt))

    def _not_sent_again(self, positions: Positions, terms: Terms) -> Positions:
        """Return those of which no further attempt than on these terms has been sent."""
        return positions

    def _decide(self, error: ElectronError) -> str:
        try:
            return self._plan.options.policy.decide(error)
        except Exception as broken:  # noqa: BLE001 - the user's function; it must not stop the run
            if (alike := (type(broken), text_of(broken))) not in self._broken_policy:
                self._broken_policy.add(alike)  # of a million alike, the first is told
                whose = error.event.electron_id
                problem = f"on_failure raised; {whose} is not tried again"
                self._listeners.on_problem(problem, broken)
            return "fail"

    def _put_off(self, positions: Positions, terms: Terms, seconds: float) -> None:
        """Send electrons again after some seconds, in which they hold nothing."""
        token = self._tokens = self._tokens + 1
        self._delayed[token] = positions, terms
        number = counted(len(positions), "electron")
        again = f"{number} failed and will be tried again in {seconds:.3g} s"
        self.tell(again, attempt=terms.attempt)

        def send() -> None:
            if (lot := self._delayed.pop(token, None)) is not None:
                self._put_back(*lot)
                self._driver.pump()
                self._check_end()

        self._driver.post_later(seconds, send)

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
        chosen: list[tuple[Part, np.ndarray, list[ElectronError]]] = []
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
        self._check_unbroken()
        self._prepare_retry()  # first: where that fails, nothing has changed
        if today is not None:
            self._renew(today)
        had_ended = self._ledger.ended
        if had_ended:
            self._ledger.reopen()
        self._driver.act(self._retry, chosen, timeout, had_ended)

    def _check_unbroken(self) -> None:
        """Raise where electrons could be sent no more, so that nobody would ever hear of them."""
        if not self._driver.has_failed:
            return
        plan, state = self._plan, self._ledger.state
        go_on = "map anew" if plan.sink is None else f"atomizer.attach({plan.sink.url!r}) goes on"
        message = f"{plan.run_id} is {state}, and electrons of it are not sent any more: {go_on}"
        raise AtomizerError(Event(message, run_id=plan.run_id, level="error"), self._ledger.error)

    def _retry(
        self,
        chosen: list[tuple[Part, np.ndarray, list[ElectronError]]],
        timeout: float | None,
        had_ended: bool,
    ) -> None:
        if had_ended:
            self._listeners.on_reopen()
        lots = []
        for part, again, errors in chosen:
            positions = part.failed_positions()[again]
            for position, error in zip(positions.tolist(), compress(errors, again), strict=True):
                self._ledger.remember(position, error)
            self._ledger.strike_out(part, again)
            if len(positions):
                lots.append((positions, Terms(part.attempt + 1, timeout=timeout)))
        count = sum(len(positions) for positions, _ in lots)
        self._take_out(np.concatenate([positions for positions, _ in lots]))
        if not self._ledger.ended:
            are = "electron is" if count == 1 else "electrons are"
            self._send_again(lots, f"{count:,} failed {are} tried again")

    def _renew(self, today: Today) -> None:
        """Have what is sent from now on executed by another version of the atom."""
        plan = self._plan
        origin = plan.origin._replace(catalog=today.catalog)
        self._plan = replace(
            plan, definition=today.definition, version=today.version, origin=origin
        )
        self.tell("the atom is not what it was: electrons are executed as it is now")

    def _prepare_retry(self) -> None:
        """Make sure that electrons can be tried again."""

    def _take_out(self, again: np.ndarray) -> None:
        """Note that electrons have not ended, for they are tried again."""

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
        ledger = self._ledger
        return Drawing(
            sweep,
            f"feed-{self._plan.run_id}",
            ledger.changed,
            taken=lambda: ledger.done + ledger.failed + self._driver.leased,
            over=lambda: self.stopping or ledger.ended,
            on_rows=lambda: self._driver.post_action(self._look),
            on_error=lambda error: self._driver.post_action(self._break, error),
            on_end=lambda: self._driver.post_action(self._end_drawing),
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
        """End: what has not begun never will."""
        self._driver.act(self._cancel)

    def _cancel(self) -> None:
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
            self._driver.post_later(HEED_SECONDS, self._abandon, self._root)

    def _abandon(self, root: str) -> None:
        """Wait no longer for electrons that do not heed ``context.cancelled``."""
        if self._ledger.ended or root != self._root:
            return
        self._driver.abandon(_LEFT_BEHIND)
        self._check_end()

    def _check_end(self) -> None:
        if self._ledger.ended or self._pending or self._delayed or not self._driver.idle:
            return
        if self.all_drawn and self._is_written():
            failed = self._ledger.error is not None
            self._end("failed" if failed else "cancelled" if self.stopping else "finished")

    def _is_written(self) -> bool:
        """Return whether nothing is left to do about the results; else this is asked again."""
        return True

    def _end(self, state: State) -> None:
        if self._ledger.ended:
            return
        try:
            self._close(state)
        except BaseException as error:  # noqa: BLE001 - nobody would ever learn that it has ended
            state, self._ledger.error = "failed", self._ledger.error or as_error(error)
        try:
            self._set_state(state, ended=True)
        finally:
            self._listeners.on_end()

    def _close(self, state: State) -> None:
        """Do what is to be done before a run has ended."""

    def _set_state(self, state: State, *, ended: bool = False) -> None:
        self._ledger.set_state(state, ended=ended)
        error = self._ledger.error
        if state != "failed" or error is None:
            self.tell(state)
            return
        logger.error("%s has failed: %s", self._plan.run_id, error)
        self.tell(state, level="error", error=error.event.message)
