"""The handle of one map: many electrons of one atom over one sweep."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import compress
from math import inf
from numbers import Integral
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atomizer_dask.atom import Definition
from atomizer_dask.batch import Batch, Origin, Terms
from atomizer_dask.batching import Size
from atomizer_dask.conductors.base import HEED_SECONDS, BatchConductor
from atomizer_dask.driver import Driver
from atomizer_dask.errors import AtomizerError, ConductorError, ElectronError
from atomizer_dask.events import Event, Level, Wakeups
from atomizer_dask.events import Stream as EventStream
from atomizer_dask.frame import Part, errors_frame, failures_frame, to_frame
from atomizer_dask.outcome import Failure, Outcome
from atomizer_dask.policy import Policy, seconds_of
from atomizer_dask.properties import Properties
from atomizer_dask.streams import Stream
from atomizer_dask.sweep import Columns, Inputs, Streamed, Sweep
from atomizer_dask.waiting import bar, interrupt, watch

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_Positions = range | np.ndarray
State = Literal["running", "paused", "finished", "cancelled", "failed"]
_RATE_SECONDS = 5.0
_DRAW_FIRST, _DRAW_MOST = 64, 2**16  # rows of a streamed sweep to draw ahead


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, at one moment.

    Parameters
    ----------
    total
        How many electrons there are; None while a streamed sweep has not ended.
    done, failed, running, pending
        How many ended well, ended in a failure, are with the workers, are still to be sent. They
        add up to `total`, or to what has been drawn.
    rate
        Electrons per second: over the last seconds, or over the whole of a run that has ended.
    eta
        Seconds until the end at that rate; None where that cannot be known.
    """

    total: int | None
    done: int
    failed: int
    running: int
    pending: int
    rate: float
    eta: float | None


class Run:
    """Many electrons of one atom over one sweep, under way.

    Made by `Atomizer.map`. It can be waited for, awaited, and iterated; what is finished can be
    looked at any time. Failed electrons are rows with missing outputs and rows of `errors`; they
    make nothing raise.

    Attributes
    ----------
    id
        Names it in events and in the ids of its electrons, which are ``{run.id}-{position}``.
    atom_id
        Which atom.
    seed
        With which the same bits come again.
    events
        A `Stream` of what its electrons emit and what happens to it.
    """

    def __init__(
        self,
        id: str,
        definition: Definition,
        version: Any,
        sweep: Sweep,
        seed: int,
        conductor: BatchConductor,
        origin: Origin,
        copy_state: bool,
        policy: Policy,
        timeout: float | None,
        on_event: Any,
        on_error: Any,
        on_problem: Any,
    ) -> None:
        self.id = id
        self.atom_id = definition.id
        self.seed = seed
        self.sweep = sweep
        self.events: EventStream[Event] = EventStream(10_000, on_problem)
        self._definition = definition
        self._version = version
        self._stream = Stream(seed)
        self._conductor = conductor
        self._origin = origin
        self._copy_state = copy_state
        # A vectorised atom that reduces its arrays looks right where it is given one electron.
        self._at_least = 2 if definition.vectorized else 1
        self._policy = policy
        self._timeout = timeout
        self._on_event = on_event
        self._on_error = on_error
        self._on_problem = on_problem
        self._pending: deque[tuple[_Positions, Terms]] = deque()
        self._delayed: dict[int, tuple[_Positions, Terms]] = {}
        self._waiting = 0
        self._parts: list[Part] = []
        self._history: dict[int, tuple[ElectronError, ...]] = {}
        self._broken_policy: set[tuple[type, str]] = set()
        self._epoch = 0
        self._root = id  # another one after each time that it was cancelled and tried again
        self._done = 0
        self._failed = 0
        self._state: State = "running"
        self._stopping = False
        self._error: AtomizerError | None = None
        self._all_drawn = not isinstance(sweep, Streamed)
        self.grows = not self._all_drawn
        self._told = False  # a look at what has been drawn is on its way
        self._seen = 0  # how many drawn rows have been taken
        self._changed = threading.Condition()
        self._wakeups = Wakeups()
        self._started = monotonic()
        self._seconds: float | None = None
        self._times: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._tokens = 0
        self._driver: Driver = conductor.drive(self, sweep.row_bytes)

    # -- the user's side ---------------------------------------------------------------------

    @property
    def state(self) -> State:
        """``running``, ``paused``, ``finished``, ``cancelled``, or ``failed``.

        The last where the conductor is gone.
        """
        return self._state

    @property
    def progress(self) -> Progress:
        """A snapshot of how far it is."""
        with self._changed:
            done, failed, leased = self._done, self._failed, self._driver.leased
            pending = self._waiting + sum(len(lot) for lot, _ in self._delayed.values())
            now = monotonic()
            if self._seconds is not None:
                rate = (done + failed) / max(self._seconds, 1e-9)
            else:
                before, count = self._times[0]
                rate = (done + failed - count) / max(now - before, 1e-9)
        left = leased + pending
        eta: float | None = left / rate if rate else None
        if self._seconds is not None:
            eta = 0.0
        elif not self._all_drawn:
            eta = None
        return Progress(self.sweep.length, done, failed, leased, pending, rate, eta)

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool | Callable[[Progress], object] | None = None,
    ) -> Run:
        """Wait until every electron has ended, and return the run.

        Ctrl-C, or interrupting the kernel, pauses the run and says how to go on; a second time it
        cancels the run. In a notebook the cell ends at once; a script goes on to wait.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.
        progress
            Show a progress bar on stderr; where not given, if that is a terminal. Or a function
            that is called with a `Progress` a few times a second.

        Raises
        ------
        TimeoutError
            When time is up; the run goes on.
        ConductorError
            Where the conductor is gone. What had finished can still be looked at.
        KeyboardInterrupt
            When interrupted, once the run is paused or cancelled.
        """
        until = None if timeout is None else monotonic() + timeout
        show = sys.stderr.isatty() if progress is None else progress
        while True:
            try:
                ended = self._wait_showing(until, show)
                break
            except KeyboardInterrupt:
                interrupt(self)
        if not ended:
            p = self.progress
            raise TimeoutError(
                f"{self.id} has not ended within {timeout} s: {p.done + p.failed:,} of "
                f"{'?' if p.total is None else f'{p.total:,}'} electrons have; it "
                f"{'is paused' if self._state == 'paused' else 'goes on'}"
            )
        if self._error is not None:
            raise self._error
        return self

    def _wait_showing(self, until: float | None, show: Any) -> bool:
        if not show:
            return self.join(None if until is None else max(0.0, until - monotonic()))
        if callable(show):
            return watch(self, until, partial(self._tell_progress, show))
        with bar(self) as update:
            return watch(self, until, update)

    def _tell_progress(self, function: Callable[[Progress], object], progress: Progress) -> None:
        try:
            function(progress)
        except Exception as error:  # noqa: BLE001 - the user's function; it must not stop the run
            self._on_problem("a progress callback raised", error)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, however that is, and return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    def cancel(self) -> None:
        """Stop: what has not begun never will, what is finished stays.

        Running electrons are told through ``context.cancelled``. The electrons that never ran are
        rows like any other, with an error of kind ``cancelled``.
        """
        if not self._ended:
            self._conductor.do(self._cancel)

    def pause(self) -> None:
        """Send no more, and take back what the workers have not begun; `resume` goes on.

        Running electrons are not disturbed: they end, and are rows like any other.
        """
        if not self._ended:
            self._conductor.do(self._pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        if not self._ended:
            self._conductor.do(self._resume)

    def retry(
        self,
        where: Callable[[ElectronError], bool] | None = None,
        *,
        timeout: float | str | None = None,
    ) -> Run:
        """Execute failed electrons again, within this run, and return it.

        With the same inputs and random streams as before. What they give replaces their failures;
        what they failed with before stays in the column ``history`` of `errors` and in
        ``Properties.failures``. An iteration that has yielded them yields them again.

        Parameters
        ----------
        where
            Which of them: a function of the failure (see `ElectronError`) that returns whether to
            try again; all of them where not given.
        timeout
            Another one for these; the run's own where not given.

        Raises
        ------
        ConductorError
            Where the conductor is gone or closed.
        Exception
            Whatever `where` raises; nothing is tried again then.

        Examples
        --------
        ``run.retry(where=lambda e: e.kind == "timeout", timeout="60s").wait()``
        """
        self._conductor.check_open()
        seconds = seconds_of(timeout, "timeout")
        limit = self._timeout if seconds is None else seconds
        if self._stopping:  # it is being cancelled, which takes a second at most
            self.join()
        self._conductor.do(partial(self._retry, where, limit))
        return self

    def _retry(self, where: Callable[[ElectronError], bool] | None, timeout: float | None) -> None:
        chosen = []
        for part in self._parts:
            failed = part.failed_positions()
            if not len(failed):
                continue
            terms = Terms(part.attempt, timeout=timeout)
            errors = part.outcome.errors(self._told_of(part))
            gone = np.zeros(len(failed), bool) if part.replaced is None else part.replaced
            wanted = (
                not g and (where is None or bool(where(e)))
                for g, e in zip(gone, errors, strict=True)
            )
            again = np.fromiter(wanted, dtype=bool, count=len(errors))
            chosen.append((part, again, errors, terms))
        lots = []
        for part, again, errors, terms in chosen:
            positions = part.failed_positions()[again]
            for position, error in zip(positions.tolist(), compress(errors, again), strict=True):
                self._remember(position, error)
            part.replaced = again if part.replaced is None else part.replaced | again
            attempt = terms.attempt + 1
            if len(positions):
                lots.append((positions, terms._replace(attempt=attempt)))
        count = sum(len(positions) for positions, _ in lots)
        if not count:
            return
        with self._changed:
            self._failed -= count
            if self._ended:
                self._reopen()
        if self._stopping:
            self._stopping = False
            self._root = f"{self.id}/{self._epoch}"
        for positions, terms in lots:
            self._give_back(positions, terms)
        self._tell(f"{count:,} failed electrons are tried again")
        self._driver.pump()

    def _reopen(self) -> None:
        assert self._seconds is not None
        self._started = monotonic() - self._seconds
        self._times = deque([(monotonic(), self._done + self._failed)])
        self._seconds = None
        self._state = "running"
        self.events = EventStream(10_000, self._on_problem)

    def replay(self, electron: Any) -> Any:
        """Execute one electron here, in this thread, so that a debugger works; return its result.

        With the same inputs, random stream, attempt and earlier failures as when it ran last;
        without its timeout. Nothing of the run changes.

        Parameters
        ----------
        electron
            Its label in the index of the frame and of `errors`, or its id, as in
            ``run.to_frame(metadata=True)["id"]`` and events.

        Raises
        ------
        KeyError
            Where the run has no such electron, or several.
        Exception
            Whatever the atom raises, with its own traceback: use ``%debug``, or `pdb.pm`.
        """
        position = self._position_of(electron)
        attempt = 1 + len(self._history.get(position, ()))
        positions = range(position, position + 1)
        terms = Terms(attempt)
        inputs = self.sweep.take(position, position + 1)
        batch = self._batch(f"replay-{self.id}", inputs, positions, terms, inf)
        return self._conductor.replay(batch, self._definition)

    def _position_of(self, electron: Any) -> int:
        count = self.sweep.drawn if isinstance(self.sweep, Streamed) else self.sweep.length or 0
        if isinstance(electron, str) and electron.startswith(f"{self.id}-"):
            number = electron.removeprefix(f"{self.id}-")
            found = [int(number)] if number.isdecimal() and int(number) < count else []
        elif self.sweep.index is not None:
            found = np.flatnonzero(self.sweep.index == electron).tolist()
        else:
            position = int(electron) if isinstance(electron, Integral) else -1
            found = [position] if 0 <= position < count else []
        if len(found) == 1:
            return int(found[0])
        what = f"has {len(found)} electrons of the label" if found else "has no electron"
        raise KeyError(
            f"{self.id} {what} {electron!r}; give an id from {self.id}-0 to {self.id}-{count - 1}, "
            "or a label of the index of its frame"
        )

    def to_frame(self, metadata: bool = False) -> pd.DataFrame:
        """Return inputs and outputs, one row per electron that has ended, in sweep order.

        Parameters
        ----------
        metadata
            Add id, start, end (timezone-aware, UTC), duration, worker and attempts.

        Returns
        -------
        pandas.DataFrame
            On the index of the DataFrame that was swept over, else on the position in the sweep.
            A dict result has a column for each of its fields, any other one the column
            ``result``; an array stays one array per row. Where electrons failed, outputs are
            missing: integers and booleans are pandas' nullable ones then. An output with the name
            of an input gets the prefix ``result_``.
        """
        return to_frame(self.sweep, self._snapshot(), self.id, metadata=metadata)

    @property
    def errors(self) -> pd.DataFrame:
        """The failed electrons so far: inputs, kind, type, message, traceback, attempts, worker."""
        return errors_frame(self.sweep, self._snapshot(), self._history)

    @property
    def failures(self) -> pd.DataFrame:
        """A summary of `errors`, a row per kind and type of exception, the most frequent first.

        Columns ``count``, ``first`` (the index label of the first one, for `errors` and
        `replay`), ``message`` (of the first one) and ``hint`` (what to do).
        """
        return failures_frame(self.errors)

    def __iter__(self) -> Iterator[Properties]:
        """Yield the Properties of every electron, as they complete."""
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._parts) > position or self._ended)
                parts = self._parts[position:]
            if not parts:
                if self._error is not None:
                    raise self._error
                return
            position += len(parts)
            for part in parts:
                yield from self._properties_of(part)

    async def __aiter__(self) -> AsyncIterator[Properties]:
        position = 0
        while True:
            with self._changed:
                parts, ended = self._parts[position:], self._ended
                woken = self._wakeups.future()
            position += len(parts)
            for part in parts:
                for properties in self._properties_of(part):
                    yield properties
            if not parts and ended:
                break
            if not parts:
                await woken
        if self._error is not None:
            raise self._error

    def __await__(self) -> Generator[Any, None, Run]:
        return self._until_ended().__await__()

    async def _until_ended(self) -> Run:
        while True:
            with self._changed:
                woken = self._wakeups.future()
                if self._ended:
                    break
            await woken
        return self.wait(progress=False)

    def _properties_of(self, part: Part) -> Iterator[Properties]:
        part = part.current()
        return part.outcome.properties(self._told_of(part))

    def _told_of(self, part: Part) -> Batch:
        """Return the electrons of a part as a batch without inputs, which no outcome needs."""
        inputs = Columns({}, len(part.positions))
        return self._batch("", inputs, part.positions, Terms(part.attempt), 0.0)

    def __repr__(self) -> str:
        p = self.progress
        total = "?" if p.total is None else f"{p.total:,}"
        failed = f", {p.failed:,} failed" if p.failed else ""
        return (
            f"<Run {self.id} of {self.atom_id}: {self._state}, {p.done:,} of {total} done{failed}>"
        )

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    # -- the driver's side: on the dispatcher's thread, but for `note` -----------------------------

    def start(self) -> None:
        """Begin to send electrons."""
        self._tell("started")
        if isinstance(self.sweep, Streamed):
            threading.Thread(target=self._feed, name=f"feed-{self.id}", daemon=True).start()
        else:
            length = self.sweep.length
            assert length is not None
            self._conductor.post(lambda: self._add(0, length))

    def note(self, event: Event) -> None:
        """Keep an event that concerns this run."""
        self.events.put(event)

    def waiting(self) -> int:  # noqa: D102
        return 0 if self._state == "paused" else self._waiting

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        positions, terms = self._pending.popleft()
        electrons = max(size.electrons, self._at_least)
        if len(positions) > electrons:
            self._pending.appendleft((positions[electrons:], terms))
            positions = positions[:electrons]
        with self._changed:
            self._waiting -= len(positions)
            self._changed.notify_all()  # a feeder may draw more
        if isinstance(positions, range):
            inputs = self.sweep.take(positions.start, positions.stop)
        else:
            inputs = self.sweep.pick(positions)
        return self._batch(key, inputs, positions, terms, size.seconds)

    def give_back(self, batch: Batch, start: int, stop: int, terms: Terms) -> None:  # noqa: D102
        self._give_back(batch.positions[start:stop], terms)

    def _give_back(self, positions: _Positions, terms: Terms) -> None:
        if self._stopping:
            self._keep(positions, self._cancelled(len(positions)), terms)
            return
        self._pending.appendleft((positions, terms))
        with self._changed:
            self._waiting += len(positions)

    def deliver(self, batch: Batch, outcome: Outcome, *, last: bool) -> None:  # noqa: D102
        positions = batch.positions[outcome.first : outcome.kept]
        self._keep(positions, replace(outcome, first=0, kept=len(outcome)), batch.terms)
        if last:
            self._check_end()

    def fail(self, error: ConductorError) -> None:  # noqa: D102
        if not self._ended:
            if self._stopping:
                missing = self._missing()
                self._keep(missing, self._cancelled(len(missing)), self._terms)
                self._end("cancelled")
                return
            self._error = error
            self._end("failed")

    def _missing(self) -> np.ndarray:
        """Return the positions of the electrons that have no outcome."""
        missing = np.ones(self.sweep.length or 0, dtype=bool)
        for part in self._parts:
            missing[np.asarray(part.current().positions)] = False
        return np.flatnonzero(missing)

    @property
    def _terms(self) -> Terms:
        """On what terms electrons are executed at first."""
        return Terms(timeout=self._timeout)

    def _batch(
        self, key: str, inputs: Inputs, positions: _Positions, terms: Terms, seconds: float
    ) -> Batch:
        earlier = None
        if terms.attempt > 1:
            earlier = [self._history.get(position, ()) for position in map(int, positions)]
        return Batch(
            key=key,
            atom_id=self.atom_id,
            version=self._version,
            inputs=inputs,
            positions=positions,
            stream=self._stream,
            origin=self._origin,
            terms=terms,
            earlier=earlier,
            epoch=self._epoch,
            run_id=self.id,
            root_id=self._root,
            copy_state=self._copy_state,
            seconds=seconds,
        )

    def _add(self, start: int, stop: int) -> None:
        if self._stopping or self._ended or start == stop:
            return
        with self._changed:
            self._waiting += stop - start
        if self._pending:
            positions, terms = self._pending[-1]
            if isinstance(positions, range) and (positions.stop, terms) == (start, self._terms):
                self._pending.pop()
                start = positions.start
        self._pending.append((range(start, stop), self._terms))
        self._driver.pump()

    def _feed(self) -> None:
        """Draw rows of a streamed sweep, not many more than are needed soon."""
        assert isinstance(self.sweep, Streamed)
        chunk = limit = _DRAW_FIRST
        try:
            for drawn in self.sweep.draw():
                # Told at once, for the next row may depend on what becomes of this one.
                if not self._told:
                    self._told = True
                    self._conductor.post(self._look)
                if drawn == limit:
                    chunk = self._wait_for_need(chunk)
                    limit += chunk
                if self._stopping or self._ended:
                    return
        except BaseException as error:  # noqa: BLE001 - the user's iterator, reported by wait
            self._conductor.post(lambda error=error: self._broken(error))  # type: ignore[misc]
        self._conductor.post(self._drawn_all)

    def _look(self) -> None:
        """Take what has been drawn since the last look."""
        self._told = False  # first: a row drawn from here on is told of anew
        assert isinstance(self.sweep, Streamed)
        before, self._seen = self._seen, self.sweep.drawn
        self._add(before, self._seen)

    def _wait_for_need(self, chunk: int) -> int:
        """Wait until more rows are needed, and return how many to draw then."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._drawn_ahead() < chunk or self._stopping or self._ended
            )
            starving = self._drawn_ahead() <= 0
        return min(2 * chunk, _DRAW_MOST) if starving else chunk

    def _drawn_ahead(self) -> int:
        assert isinstance(self.sweep, Streamed)
        return self.sweep.drawn - self._done - self._failed - self._driver.leased

    def _broken(self, error: BaseException) -> None:
        self._error = AtomizerError(
            Event(
                f"the sweep's iterator raised {type(error).__name__} after "
                f"{getattr(self.sweep, 'drawn', 0):,} electrons; these were carried out",
                run_id=self.id,
                level="error",
            ),
            error,
        )

    def _drawn_all(self) -> None:
        if self._stopping:
            return
        if isinstance(self.sweep, Streamed):
            self._look()
            self.sweep.end()
        self._all_drawn = True
        self._check_end()

    def _keep(self, positions: _Positions, outcome: Outcome, terms: Terms) -> None:
        if not len(outcome):
            return
        part = Part(positions, outcome, terms.attempt)
        self._try_again(part, terms)
        failed = len(outcome.failed)
        again = 0 if part.replaced is None else int(part.replaced.sum())
        now = monotonic()
        with self._changed:
            self._parts.append(part)
            self._failed += failed - again
            self._done += len(outcome) - failed
            self._history_of_rate(now)
            self._changed.notify_all()
            self._wakeups.wake()
        if failed > again and not self._stopping:
            replaced = [False] * failed if part.replaced is None else part.replaced.tolist()
            positions = part.failed_positions()
            for position, code, gone in zip(positions, outcome.codes, replaced, strict=True):
                if not gone:
                    self._on_error(self, outcome.failures[code], int(position))

    def _history_of_rate(self, now: float) -> None:
        self._times.append((now, self._done + self._failed))
        while len(self._times) > 2 and self._times[1][0] < now - _RATE_SECONDS:
            self._times.popleft()

    # -- trying again ------------------------------------------------------------------------

    def _try_again(self, part: Part, terms: Terms) -> None:
        """Have those of the failed electrons tried again for which the policy says so."""
        outcome = part.outcome
        if self._policy.never or self._stopping or not len(outcome.failed):
            return
        errors = outcome.errors(self._told_of(part))
        decisions = np.array([self._decide(error) for error in errors])
        part.replaced = decisions != "fail"
        positions = part.failed_positions()
        for position, error in zip(
            positions[part.replaced], compress(errors, part.replaced), strict=True
        ):
            self._remember(int(position), error)
        worker = outcome.worker
        for decision in ("retry", "requeue"):
            chosen = positions[decisions == decision]
            if len(chosen):
                further = terms.again(worker, elsewhere=decision == "requeue")
                self._put_off(chosen, further, self._policy.delay(terms.attempt))

    def _decide(self, error: ElectronError) -> str:
        try:
            return self._policy.decide(error)
        except Exception as broken:  # noqa: BLE001 - the user's function; it must not stop the run
            if (alike := (type(broken), str(broken))) not in self._broken_policy:
                self._broken_policy.add(alike)  # of a million alike, the first is told
                whose = error.event.electron_id
                self._on_problem(f"on_failure raised; {whose} is not tried again", broken)
            return "fail"

    def _remember(self, position: int, error: ElectronError) -> None:
        self._history[position] = (*self._history.get(position, ()), error.bare())

    def _put_off(self, positions: np.ndarray, terms: Terms, seconds: float) -> None:
        """Send electrons again after some seconds, in which they hold nothing."""
        token = self._tokens = self._tokens + 1
        self._delayed[token] = positions, terms
        again = f"{len(positions):,} electrons failed and will be tried again in {seconds:.3g} s"
        self._tell(again, attempt=terms.attempt)

        def send() -> None:
            if (lot := self._delayed.pop(token, None)) is not None:
                self._give_back(*lot)
                self._driver.pump()
                self._check_end()

        self._conductor.post_later(seconds, send)

    # -- ending ------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Have what is with the workers, and has not begun, given back."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self._conductor.stop(self._root, epoch, cancel=self._stopping)

    def _pause(self) -> None:
        if self._state == "running" and not self._stopping:
            self._set_state("paused")
            self._stop()

    def _resume(self) -> None:
        if self._state == "paused":
            self._set_state("running")
            self._driver.pump()
            self._check_end()

    def _cancel(self) -> None:
        if self._stopping or self._ended:
            return
        self._stopping = True
        pending, self._pending = [*self._pending, *self._delayed.values()], deque()
        self._delayed.clear()
        with self._changed:
            self._waiting = 0
        for positions, terms in pending:
            self._keep(positions, self._cancelled(len(positions)), terms)
        if isinstance(self.sweep, Streamed):
            length = self.sweep.end()
            unseen = range(self._seen, length)
            self._keep(unseen, self._cancelled(len(unseen)), self._terms)
            self._all_drawn = True
        if self._driver.idle:
            self._check_end()
        else:
            self._stop()
            self._conductor.post_later(HEED_SECONDS, partial(self._abandon, self._root))

    def _abandon(self, root: str) -> None:
        """Wait no longer for electrons that do not heed ``context.cancelled``."""
        if self._ended or root != self._root:
            return
        why = "the run was cancelled; the electron did not heed that and was left behind"
        self._driver.abandon(Failure("cancelled", "", why))
        self._check_end()

    def _cancelled(self, count: int) -> Outcome:
        return Outcome.all_failed(count, Failure("cancelled", "", "the run was cancelled"))

    def _check_end(self) -> None:
        if self._all_drawn and not self._pending and not self._delayed and self._driver.idle:
            failed = self._error is not None
            self._end("failed" if failed else "cancelled" if self._stopping else "finished")

    def _end(self, state: State) -> None:
        if self._ended:
            return
        self._set_state(state, ended=True)
        self.events.close()
        if self._failed and state == "finished":
            self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        parts = [part for part in map(Part.current, self._parts) if len(part.outcome.failed)]
        part = min(parts, key=lambda part: part.failed_positions()[0])
        first = part.outcome.failures[part.outcome.codes[0]]
        logger.warning(
            "%s: %s of %s electrons failed, the first with %s: %s; see run.failures, run.errors",
            self.id,
            f"{self._failed:,}",
            f"{self._done + self._failed:,}",
            first.type or first.kind,
            first.message,
        )

    def _set_state(self, state: State, *, ended: bool = False) -> None:
        with self._changed:
            self._state = state
            if ended:
                self._seconds = monotonic() - self._started
            self._changed.notify_all()
            self._wakeups.wake()
        self._tell(state, level="error" if state == "failed" else "info")

    def _tell(self, message: str, level: Level = "info", **fields: Any) -> None:
        event = Event(message, atom_id=self.atom_id, run_id=self.id, level=level, fields=fields)
        self.note(event)
        self._on_event(event)

    @property
    def _ended(self) -> bool:
        return self._seconds is not None

    def _snapshot(self) -> list[Part]:
        with self._changed:
            return list(self._parts)
