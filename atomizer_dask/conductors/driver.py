"""The driver: keeps the threads of a conductor fed with batches, and loses none.

Everything a driver does happens on the one dispatcher thread of its conductor, so that there is
nothing to lock: other threads post reports to the dispatcher's inbox.

An exception there, of this package or of objects of the user, always fails something. An action
about the electrons of one source goes through `Driver.act`, which fails that source and no other.
Where any other action raises, the conductor fails everything under way. So nobody waits for ever
for an action that raised.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, Protocol

from atomizer_dask.conductors.batch_size import WORTHWHILE, Size, Sizing
from atomizer_dask.conductors.dispatcher import Dispatcher, as_error
from atomizer_dask.conductors.fair_share import due_seconds
from atomizer_dask.conductors.reports import (
    Died,
    Dropped,
    Expiring,
    GivenBack,
    Lost,
    Partly,
    Report,
    WorkerSilent,
)
from atomizer_dask.config import setting
from atomizer_dask.electron import new_id
from atomizer_dask.errors import AtomizerError, ConductorError
from atomizer_dask.execution.batch import AttemptTerms, Batch
from atomizer_dask.execution.failure import Failure
from atomizer_dask.execution.outcome import BatchOutcome, Outcome

logger = logging.getLogger(__name__)

UNKNOWN_RATE = 2.0  # electrons per second and thread, as Dask assumes of tasks


class Source(Protocol):
    """Where a driver takes electrons from, and where it delivers their outcomes.

    Attributes
    ----------
    grows
        Whether more electrons may be added at any time: then a few may wait a moment for others.
    """

    grows: bool

    def waiting(self) -> int:
        """Return how many electrons are neither under way nor done."""

    def take(self, size: Size, key: str) -> Batch | None:
        """Return the next batch, about as large as `size`; None where nothing is left of it."""

    def give_back(self, batch: Batch, start: int, stop: int, terms: AttemptTerms) -> None:
        """Take back the electrons of a batch from offset `start` to `stop`.

        They are executed next on `terms`. These are the batch's own, unless its worker died, was
        silent, or reached its wall time.
        """

    def deliver(self, batch: Batch, outcome: BatchOutcome, *, last: bool) -> None:
        """Take the outcome of some electrons of a batch.

        The `last` one ends the batch. No electron is delivered twice.
        """

    def salvage(self, batch: Batch) -> None:
        """Look in the store for results of a batch that nobody will report."""

    def fail(self, error: AtomizerError) -> None:
        """End with an error: the conductor is gone, or an action raised."""

    def give_up(self, error: AtomizerError) -> None:
        """Wake the threads that wait, no more: `fail` has raised, or the dispatcher is stuck.

        From any thread.
        """

    def leave(self) -> Callable[[], bool] | None:
        """Hand the remaining electrons to another process.

        Returns a function that says whether that is done; None where no other process can.
        """

    def disown(self, error: AtomizerError) -> None:
        """Fail in a forked process, whose parent goes on; no lock may be taken."""


class Carrier(ABC):
    """What a conductor does with the batches that drivers make: it has them executed."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many electrons can be executed at a time."""

    @property
    def own_threads(self) -> int:
        """How many of these threads are of this process: on a worker its own, on a client all."""
        return self.threads

    @abstractmethod
    def submit(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Have a batch executed; call `post` with reports about it, from any thread."""

    @abstractmethod
    def retract(self, key: str) -> None:
        """Forget a batch: nobody waits for it any more."""

    def forget(self, key: str) -> None:
        """Report nothing more about a batch, which goes on; see `BatchConductor.in_flight`."""
        self.retract(key)

    def await_batch(self, batch: Batch, post: Callable[[Report], None]) -> None:
        """Call `post` with reports about a batch that another process submitted."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class _InFlight:
    """A batch that is with the workers.

    Parameters
    ----------
    batch
        The batch.
    stop
        Offset after the last electron that its worker still has; the rest was given back.
    start
        Offset of the first electron whose outcome is not known.
    ran
        Seconds of the running electron, when its worker's wall time was about to end.
    waits_since
        When its electron began to wait for others that it sent; 0 where it does not.
    """

    batch: Batch
    stop: int
    start: int = 0
    ran: float = 0.0
    waits_since: float = 0.0

    @property
    def is_waiting(self) -> bool:
        return self.waits_since > 0.0


class Driver:
    """Keeps a conductor's threads fed from one source.

    Parameters
    ----------
    carrier
        The conductor.
    dispatcher
        Its thread.
    source
        The electrons.
    row_bytes
        About how many bytes the inputs of an electron take.
    """

    def __init__(
        self, carrier: Carrier, dispatcher: Dispatcher, source: Source, row_bytes: float = 0.0
    ) -> None:
        self.sizing = Sizing(row_bytes)
        self.leased = 0  # electrons under way
        self._carrier = carrier
        self._dispatcher = dispatcher
        self._source = source
        self._in_flight: dict[str, _InFlight] = {}
        self._waiting_batches = 0  # how many of these wait for children
        self._names = map(f"{new_id()}-{{}}".format, itertools.count())
        self._failed = False
        self._culprits = 0
        self._many_culprits = setting("quarantine.culprits")  # then every batch is quarantined
        self._most_deaths = setting("quarantine.most-deaths")
        self._lingering: float | None = None

    @property
    def idle(self) -> bool:
        """Whether no batch is under way."""
        return not self._in_flight

    @property
    def has_failed(self) -> bool:
        """Whether it has given up, and sends nothing any more."""
        return self._failed

    def demand(self) -> tuple[int, float]:
        """Return how many electrons are not done, and about how long a thread would take."""
        electrons = self._source.waiting() + self.leased
        return electrons, electrons / (self.sizing.rate or UNKNOWN_RATE)

    def act(self, action: Callable[..., Any], *args: Any) -> None:
        """Call an action about the source's electrons; an exception fails this source and no other.

        To be called on the dispatcher's thread.
        """
        try:
            action(*args)
        except BaseException as error:  # noqa: BLE001 - of the user's objects too, SystemExit as well
            self._break_off(error)

    def post_action(self, action: Callable[..., Any], *args: Any) -> None:
        """Have `act` called on the dispatcher's thread; from any thread."""
        self._dispatcher.post(partial(self.act, action, *args))

    def post_later(self, seconds: float, action: Callable[..., Any], *args: Any) -> None:
        """Have `act` called after some seconds; to be called on the dispatcher's thread."""
        self._dispatcher.post_later(seconds, partial(self.act, action, *args))

    def _break_off(self, error: BaseException) -> None:
        logger.debug("an action of the dispatcher raised", exc_info=error)
        for key in list(self._in_flight):
            try:
                self._carrier.retract(key)
            except Exception as again:
                logger.debug("a batch could not be retracted", exc_info=again)
        self.fail(as_error(error))

    def pump(self) -> None:
        """Send batches until enough are under way; on the dispatcher's thread."""
        self.act(self._pump)

    def _pump(self) -> None:
        while not self._failed and (waiting := self._source.waiting()):
            threads = self._carrier.threads
            if self._at_work >= self.sizing.window(waiting, threads, self.leased):
                return
            if self._at_work and self._linger(waiting):
                return
            key = next(self._names)
            batch = self._source.take(self.sizing.next(waiting, threads), key)
            if batch is None:
                continue
            if self._culprits >= self._many_culprits and not batch.terms.deaths:
                batch = replace(batch, terms=batch.terms._replace(deaths=1))
            if self.sizing.longest > WORTHWHILE:  # shorter electrons end before any wall time
                batch = replace(batch, longest=self.sizing.longest)
            if later := self._due_after(threads, batch.origin.depth):
                batch = replace(batch, due_seconds=later)
            self._in_flight[key] = _InFlight(batch, len(batch))
            self.leased += len(batch)
            try:
                self._carrier.submit(batch, self.post)
            except ConductorError as error:
                self._report(Lost(key, error))

    @property
    def _at_work(self) -> int:
        return len(self._in_flight) - self._waiting_batches

    def _due_after(self, threads: int, depth: int) -> float:
        """Return the seconds until another batch is due; see `fair_share`."""
        ahead = self.sizing.seconds_ahead(self._at_work, self.leased, threads)
        if not self._waiting_batches:
            return due_seconds(ahead, depth, 0.0, 0.0)
        own = max(self._carrier.own_threads, 1)
        since = next(flight.waits_since for flight in self._in_flight.values() if flight.is_waiting)
        beyond = max(self._waiting_batches / own - 1, 0.0)
        return due_seconds(ahead, depth, beyond, monotonic() - since)

    def note_waiting(self, electron_id: str) -> None:
        """Note that an electron waits for others that it sent, perhaps by way of a queue.

        It has no thread meanwhile, and its children may have to come from this very source.
        """
        self.act(self._note_waiting, electron_id)

    def _note_waiting(self, electron_id: str) -> None:
        # The latest batch: an earlier one that gave the electron back still names it.
        for flight in reversed(self._in_flight.values()):
            if not flight.is_waiting and electron_id in (flight.batch.ids or ()):
                flight.waits_since = monotonic()
                self._waiting_batches += 1
                self._pump()
                return

    def adopt(self, batch: Batch, start: int, stop: int, ran: float = 0.0) -> None:
        """Wait for a batch that another process submitted; on the dispatcher's thread.

        Parameters
        ----------
        start, stop
            Offsets of the first electron that the batch is responsible for, and after the last.
        ran
            Seconds of the running electron, where the wall time of its worker is about to end.
        """
        self._in_flight[batch.key] = _InFlight(batch, stop, start, ran)
        self.leased += stop - start
        self.sizing.note_longest(batch.longest)
        self._carrier.await_batch(batch, self.post)

    def _linger(self, waiting: int) -> bool:
        """Put sending off for a moment, once, where few wait and others may come."""
        if self._lingering is None:
            if not (self._source.grows and self.sizing.should_linger(waiting)):
                return False
            self._lingering = monotonic() + WORTHWHILE
            self.post_later(WORTHWHILE, self._pump)
        if monotonic() < self._lingering:
            return True
        self._lingering = None
        return False

    def post(self, report: Report) -> None:
        """Report what became of a batch; from any thread."""
        self.post_action(self._report, report)

    def _report(self, report: Report) -> None:
        flight = self._in_flight.get(report.key)
        if flight is None:
            return  # the report came late, or twice
        if isinstance(report, Lost):
            self.fail(report.error)
            return
        if isinstance(report, GivenBack):
            self._take_back(flight, report.stop)
        elif isinstance(report, Partly):
            self._deliver(flight, report.outcome, last=False)
        elif isinstance(report, Expiring):
            flight.ran = report.ran
        elif isinstance(report, WorkerSilent):
            self._take_back_behind_running(flight)
        elif isinstance(report, Died) and not flight.ran:
            self._rescue(report.key, flight, report.worker)
        elif isinstance(report, Died | Dropped):
            self._recover(report.key, flight)
        else:
            self._take_back(flight, report.outcome.stop)
            self._end(report.key, flight, report.outcome)
            self.sizing.learn(report.outcome.stop, report.outcome.seconds)
        self._pump()

    def _deliver(self, flight: _InFlight, outcome: BatchOutcome, *, last: bool) -> None:
        if outcome.first > flight.start:  # earlier ones were reported to a process that died
            self._source.give_back(flight.batch, flight.start, outcome.first, flight.batch.terms)
            self.leased -= outcome.first - flight.start
            flight.start = outcome.first
        # A late report may cover electrons that have been taken back, and are in another batch.
        outcome = outcome.part(flight.start, flight.stop)
        if outcome.stop > flight.start:
            self.leased -= min(outcome.stop, flight.stop) - flight.start
            flight.start = outcome.stop
        self._culprits += sum(failure.kind == "killed" for failure in outcome.failures)
        self.sizing.note_longest(outcome.longest)
        self._source.deliver(flight.batch, outcome, last=last)

    def _end(self, key: str, flight: _InFlight, outcome: BatchOutcome) -> None:
        del self._in_flight[key]
        self._waiting_batches -= flight.is_waiting
        self._deliver(flight, outcome, last=True)

    def _take_back(self, flight: _InFlight, stop: int, terms: AttemptTerms | None = None) -> None:
        """Return the electrons from offset `stop` on to the source."""
        stop = max(stop, flight.start)
        if stop < flight.stop:
            self._source.give_back(flight.batch, stop, flight.stop, terms or flight.batch.terms)
            self.leased -= flight.stop - stop
            flight.stop = stop

    def _recover(self, key: str, flight: _InFlight) -> None:
        """Return to the source the electrons of a batch that nobody will report."""
        self._source.salvage(flight.batch)
        if flight.ran:
            self._take_back_cut(flight)
        self._take_back(flight, flight.start)
        self._end(key, flight, Outcome.none())

    def _take_back_cut(self, flight: _InFlight) -> None:
        """Return electrons that a wall time cut short; several of them in halves."""
        terms = flight.batch.terms
        if flight.stop - flight.start > 1:  # executed together: half of them may be fast enough
            half = (flight.start + flight.stop) // 2
            self._take_back(flight, half, terms.apart())
            return
        seconds, cut_short = max(terms.min_seconds, flight.ran), terms.cut_short + 1
        self._take_back(
            flight, flight.start, terms._replace(min_seconds=seconds, cut_short=cut_short)
        )

    def _take_back_behind_running(self, flight: _InFlight) -> None:
        """Take back the electrons behind one that keeps its worker from answering.

        A child process executes them, for each of them may do the same.
        """
        terms = flight.batch.terms
        terms = terms._replace(deaths=max(terms.deaths, 1))
        self._take_back(flight, flight.start + 1, terms)

    def _rescue(self, key: str, flight: _InFlight, worker: str) -> None:
        """Return the electrons of a batch whose worker died; a child process executes them next.

        Any of them may have killed the worker, or none.
        """
        terms = flight.batch.terms
        terms = terms._replace(
            deaths=terms.deaths + 1, worker="" if terms.worker == worker else terms.worker
        )
        self._source.salvage(flight.batch)
        if terms.deaths <= self._most_deaths:
            self._take_back(flight, flight.start, terms)
            self._end(key, flight, Outcome.none())
            return
        why = f"{terms.deaths} workers died while they had it, the last was {worker}"
        failure = Failure("killed", "WorkerDied", why)
        self._fail_rest(key, flight, failure, worker)

    def abandon(self, failure: Failure) -> None:
        """End every batch under way, its electrons with `failure`; on the dispatcher's thread."""
        for key, flight in list(self._in_flight.items()):
            self._carrier.retract(key)
            self._fail_rest(key, flight, failure)
        self._pump()

    def _fail_rest(self, key: str, flight: _InFlight, failure: Failure, worker: str = "") -> None:
        """End a batch; the electrons whose outcome is not known end with `failure`."""
        rest = Outcome.all_failed(flight.stop - flight.start, failure, worker)
        self._end(key, flight, replace(rest, first=flight.start, stop=flight.stop))

    def retract(self) -> None:
        """Forget all batches under way; on the dispatcher's thread."""
        for key in self._in_flight:
            self._carrier.retract(key)

    def leave_all(self) -> None:
        """Send nothing more, and wait for no batch: another process takes over."""
        self.hand_over()
        self._failed = True

    def hand_over(self) -> list[tuple[Batch, int, int, float]]:
        """Wait for no batch any more, and return those under way, as `adopt` takes them."""
        handed = [
            (each.batch, each.start, each.stop, each.ran) for each in self._in_flight.values()
        ]
        for key in self._in_flight:
            self._carrier.forget(key)
        self._in_flight.clear()
        self._waiting_batches = 0
        self.leased = 0
        return handed

    def leave(self, error: AtomizerError) -> Callable[[], bool]:
        """Hand the rest to another process, or fail it; on the dispatcher's thread.

        Returns a function that says whether that is done.
        """
        has_ended = None if self._failed else self._source.leave()
        if has_ended is None:
            self.fail(error)
            return lambda: True
        return has_ended

    def disown(self, error: AtomizerError) -> None:
        """Give up in a forked process."""
        self._failed = True
        self._source.disown(error)

    def fail(self, error: AtomizerError) -> None:
        """End the source with an error; on the dispatcher's thread.

        Threads that wait are woken, also where the source raises.
        """
        self._failed = True
        self._in_flight.clear()
        self._waiting_batches = 0
        self.leased = 0
        try:
            self._source.fail(error)
        except BaseException as again:
            logger.debug("a source could not be failed as it should be", exc_info=again)
            self._source.give_up(error)

    def give_up(self, error: AtomizerError) -> None:
        """Wake the threads that wait, though the dispatcher's thread is stuck; from any thread."""
        self._failed = True
        self._source.give_up(error)
