"""The handle of one map: many electrons of one atom over one sweep."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from atomizer_dask.batch import Batch, Origin
from atomizer_dask.batching import Size
from atomizer_dask.conductors.base import BatchConductor
from atomizer_dask.driver import Driver
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.events import Event, Wakeups
from atomizer_dask.events import Stream as EventStream
from atomizer_dask.frame import Part, errors_frame, to_frame
from atomizer_dask.outcome import Failure, Outcome
from atomizer_dask.properties import Properties
from atomizer_dask.streams import Stream
from atomizer_dask.sweep import Streamed, Sweep

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

State = Literal["running", "finished", "cancelled", "failed"]
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
        atom_id: str,
        version: Any,
        sweep: Sweep,
        seed: int,
        conductor: BatchConductor,
        origin: Origin,
        copy_state: bool,
        at_least: int,
        on_event: Any,
        on_error: Any,
    ) -> None:
        self.id = id
        self.atom_id = atom_id
        self.seed = seed
        self.sweep = sweep
        self.events: EventStream[Event] = EventStream(buffer=10_000)
        self._version = version
        self._stream = Stream(seed)
        self._conductor = conductor
        self._origin = origin
        self._copy_state = copy_state
        # A vectorised atom that reduces its arrays looks right where it is given one electron.
        self._at_least = at_least
        self._on_event = on_event
        self._on_error = on_error
        self._pending: deque[tuple[int, int]] = deque()
        self._waiting = 0
        self._parts: list[Part] = []
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
        self._history: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._driver: Driver = conductor.drive(self, sweep.row_bytes)

    # -- the user's side ---------------------------------------------------------------------

    @property
    def state(self) -> State:
        """``running``, ``finished``, ``cancelled``, or ``failed`` where the conductor is gone."""
        return self._state

    @property
    def progress(self) -> Progress:
        """A snapshot of how far it is."""
        with self._changed:
            done, failed, leased = self._done, self._failed, self._driver.leased
            pending = self._waiting
            now = monotonic()
            if self._seconds is not None:
                rate = (done + failed) / max(self._seconds, 1e-9)
            else:
                before, count = self._history[0]
                rate = (done + failed - count) / max(now - before, 1e-9)
        left = leased + pending
        eta: float | None = left / rate if rate else None
        if self._state != "running":
            eta = 0.0
        elif not self._all_drawn:
            eta = None
        return Progress(self.sweep.length, done, failed, leased, pending, rate, eta)

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> Run:
        """Wait until every electron has ended, and return the run.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.
        progress
            Show a progress bar on stderr; where not given, if that is a terminal.

        Raises
        ------
        TimeoutError
            When time is up; the run goes on.
        ConductorError
            Where the conductor is gone. What had finished can still be looked at.
        """
        show = sys.stderr.isatty() if progress is None else progress
        ended = self._wait_with_bar(timeout) if show else self.join(timeout)
        if not ended:
            p = self.progress
            raise TimeoutError(
                f"{self.id} has not ended within {timeout} s: {p.done + p.failed:,} of "
                f"{'?' if p.total is None else f'{p.total:,}'} electrons have; it goes on"
            )
        if self._error is not None:
            raise self._error
        return self

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, however that is, and return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    def _wait_with_bar(self, timeout: float | None) -> bool:
        import click

        until = None if timeout is None else monotonic() + timeout
        length = self.sweep.length
        with click.progressbar(
            length=length or 1, label=self.atom_id.rpartition(".")[2], file=sys.stderr
        ) as bar:
            while True:
                left = 0.1 if until is None else min(0.1, max(0.0, until - monotonic()))
                ended = self.join(left)
                bar.update(self._done + self._failed - bar.pos if length else 0)
                if ended or (until is not None and monotonic() >= until):
                    return ended

    def cancel(self) -> None:
        """Stop: what has not begun never will, what is finished stays.

        Running electrons are told through ``context.cancelled``. The electrons that never ran are
        rows like any other, with an error of kind ``cancelled``.
        """
        self._conductor.post(self._cancel)

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
        return errors_frame(self.sweep, self._snapshot())

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
        return part.outcome.properties(self._batch("", part.start, part.stop, 0.0))

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
        self._note("started")
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
        return self._waiting

    def take(self, size: Size, key: str) -> Batch | None:  # noqa: D102
        start, stop = self._pending.popleft()
        electrons = max(size.electrons, self._at_least)
        if stop - start > electrons:
            self._pending.appendleft((start + electrons, stop))
            stop = start + electrons
        with self._changed:
            self._waiting -= stop - start
            self._changed.notify_all()  # a feeder may draw more
        return self._batch(key, start, stop, size.seconds)

    def give_back(self, batch: Batch, start: int, stop: int) -> None:  # noqa: D102
        first = batch.first + start
        if self._stopping:
            self._keep(first, self._cancelled(stop - start))
            return
        self._pending.appendleft((first, batch.first + stop))
        with self._changed:
            self._waiting += stop - start

    def deliver(self, batch: Batch, outcome: Outcome) -> None:  # noqa: D102
        self._keep(batch.first, outcome)
        self._check_end()

    def fail(self, error: ConductorError) -> None:  # noqa: D102
        if not self._ended:
            if self._stopping:
                for start, stop in self._gaps():
                    self._keep(start, self._cancelled(stop - start))
                self._end("cancelled")
                return
            self._error = error
            self._end("failed")

    def _gaps(self) -> list[tuple[int, int]]:
        """Return which electrons have no outcome, as ranges."""
        gaps, before = [], 0
        for part in sorted(self._parts, key=lambda part: part.start):
            gaps.append((before, part.start))
            before = part.stop
        gaps.append((before, self.sweep.length or before))
        return [(start, stop) for start, stop in gaps if start < stop]

    def _batch(self, key: str, start: int, stop: int, seconds: float) -> Batch:
        return Batch(
            key=key,
            atom_id=self.atom_id,
            version=self._version,
            inputs=self.sweep.take(start, stop),
            first=start,
            stream=self._stream,
            origin=self._origin,
            run_id=self.id,
            copy_state=self._copy_state,
            seconds=seconds,
        )

    def _add(self, start: int, stop: int) -> None:
        if self._stopping or self._ended or start == stop:
            return
        with self._changed:
            self._waiting += stop - start
        joins = self._pending and self._pending[-1][1] == start
        self._pending.append((self._pending.pop()[0] if joins else start, stop))
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

    def _keep(self, start: int, outcome: Outcome) -> None:
        if not outcome.kept:
            return
        failed = len(outcome.failed)
        part = Part(start, outcome)
        now = monotonic()
        with self._changed:
            self._parts.append(part)
            self._failed += failed
            self._done += outcome.kept - failed
            self._history.append((now, self._done + self._failed))
            while len(self._history) > 2 and self._history[1][0] < now - _RATE_SECONDS:
                self._history.popleft()
            self._changed.notify_all()
            self._wakeups.wake()
        if not self._stopping:
            for offset, code in zip(outcome.failed, outcome.codes, strict=True):
                self._on_error(self, outcome.failures[code], start + int(offset))

    def _cancel(self) -> None:
        if self._stopping or self._ended:
            return
        self._stopping = True
        pending, self._pending = list(self._pending), deque()
        with self._changed:
            self._waiting = 0
        for start, stop in pending:
            self._keep(start, self._cancelled(stop - start))
        if isinstance(self.sweep, Streamed):
            length = self.sweep.end()
            self._keep(self._seen, self._cancelled(length - self._seen))
            self._all_drawn = True
        if self._driver.idle:
            self._check_end()
        else:
            self._conductor.stop(self.id)

    def _cancelled(self, count: int) -> Outcome:
        return Outcome.all_failed(count, Failure("cancelled", "", "the run was cancelled"))

    def _check_end(self) -> None:
        if self._all_drawn and not self._pending and self._driver.idle:
            failed = self._error is not None
            self._end("failed" if failed else "cancelled" if self._stopping else "finished")

    def _end(self, state: State) -> None:
        if self._ended:
            return
        with self._changed:
            self._seconds = monotonic() - self._started
            self._state = state
            self._changed.notify_all()
            self._wakeups.wake()
        self._note(state)
        self.events.close()
        if self._failed and state == "finished":
            self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        part = min((p for p in self._parts if len(p.outcome.failed)), key=lambda part: part.start)
        first = part.outcome.failures[part.outcome.codes[0]]
        logger.warning(
            "%s: %s of %s electrons failed, the first with %s: %s; see run.errors",
            self.id,
            f"{self._failed:,}",
            f"{self._done + self._failed:,}",
            first.type,
            first.message,
        )

    def _note(self, message: str) -> None:
        level = "error" if message == "failed" else "info"
        event = Event(message, atom_id=self.atom_id, run_id=self.id, level=level)  # type: ignore[arg-type]
        self.note(event)
        self._on_event(event)

    @property
    def _ended(self) -> bool:
        return self._seconds is not None

    def _snapshot(self) -> list[Part]:
        with self._changed:
            return list(self._parts)
