"""A batch while it executes: who may still take which of its electrons."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.context import ChildSender
from atomizer_dask.atoms.definition import Definition
from atomizer_dask.atoms.random_streams import Positioned, RandomStream
from atomizer_dask.console.recorder import PRINTED, Piece, Recorder
from atomizer_dask.events import Event
from atomizer_dask.execution.batch import Batch, Origin
from atomizer_dask.execution.failure import FailureLog
from atomizer_dask.execution.outcome import Column, Outcome
from atomizer_dask.execution.remaining import Remaining
from atomizer_dask.execution.row_dependence import Cuts
from atomizer_dask.execution.timeout import Watch

FILLS_A_BATCH = 2**24  # bytes of results
HAND_OVER_SECONDS = 0.1  # after so long, those that ended no longer wait for the running electron

Pieces = Iterator[Outcome]


class SingletonSlot:
    """A singleton in one process: its lock, and the instance kept between electrons.

    Attributes
    ----------
    lock
        Held while an electron executes.
    instance
        The instance of a class, once it has been made.
    child
        The child process that the singleton is in, if it is in one.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.instance: Atom | None = None
        self.child: Any = None


class LeaseSite(ABC):
    """What the place where a batch executes provides to it.

    Attributes
    ----------
    name
        Address of the worker, or name of the process.
    cuts
        Which vectorised atoms have been examined for rows that depend on each other.
    """

    name: str = ""
    takes_back = True  # whether electrons of a batch that were not begun may return to the driver
    cuts: Cuts

    @abstractmethod
    def find_atom(self, batch: Batch) -> Definition:
        """Return the atom of a batch."""

    @abstractmethod
    def give_back(self, batch: Batch, stop: int) -> None:
        """Return the electrons of a batch from offset `stop` on to the driver."""

    def report_part(self, batch: Batch, outcome: Outcome) -> bool:
        """Report the ended electrons of a batch that goes on; return whether they were reported."""
        return False

    @abstractmethod
    def emit(self, channel: str, event: Event) -> None:
        """Put an event on a stream."""

    @abstractmethod
    def release_slot(self) -> None:
        """Give this thread's slot to another batch: the thread is about to wait."""

    @abstractmethod
    def children(
        self, origin: Origin, root: str, stream: RandomStream, lease: Lease
    ) -> ChildSender:
        """Return the conductor through which an electron that descends from `root` sends others."""

    def seconds_for(self, batch: Batch) -> float:
        """Return the seconds that a batch that begins now may take."""
        return batch.seconds

    def isolates(self, batch: Batch, definition: Definition) -> bool:
        """Return whether a batch must be executed in a child process."""
        return False

    def execute_pieces(self, lease: Lease, definition: Definition, claims: Remaining) -> Pieces:
        """Execute a batch in a child process, and yield the outcomes of its pieces."""
        raise NotImplementedError

    @abstractmethod
    def singleton(self, batch: Batch) -> SingletonSlot:
        """Return the slot of the singleton that a batch is for."""


class Lease:
    """A batch while it executes.

    The loop that executes it and the thread that ends the lease early share one iterator: whichever
    draws an electron owns it. Drawing from a list's iterator is atomic under the interpreter lock,
    so that the loop needs no lock and no look at the clock.
    """

    def __init__(self, batch: Batch, site: LeaseSite, watch: Watch | None = None) -> None:
        self.batch = batch
        self.site = site
        self.watch = watch
        self.surrendered = False  # the electrons not begun by then have returned to the queue
        self.stopped = False  # it begins no further electron
        self.cancelled = False  # its running electron shall end too
        self.cancelled_ones: set[int] = set()
        self.rng = Positioned()
        self.making = threading.Lock()  # held while an electron's conductor is made
        self._thread = threading.get_ident()
        self._began = perf_counter()
        self._claims: Remaining | None = None
        self._given = 0
        self._released = False
        self.lock = threading.Lock()
        self._over = threading.Event()
        self._reported = 0
        self._so_far: Callable[[], Outcome] | None = None
        self.failures = FailureLog()
        self.recorder: Recorder | None = None
        if batch.allowance is not None:
            self.recorder = Recorder(batch.allowance, self._show)
            self.recorder.has_failed = self.failures.has

    def _show(self, pieces: list[Piece]) -> None:
        """Have the client show what running electrons print."""
        batch = self.batch
        shown = [(int(batch.positions[offset]), *rest) for offset, *rest in pieces]
        self.emit(Event("", atom_id=batch.atom_id, run_id=batch.run_id, fields={PRINTED: shown}))

    def runs(self, offset: Callable[[], int], ended: Sized) -> None:
        """Note how to find out which electron runs; see `Recorder.runs`."""
        if self.recorder is not None:
            self.recorder.runs(offset, ended)

    def surrender(self) -> None:
        """Give back the electrons that have not been begun, where the site takes any back."""
        if not self.site.takes_back:
            return
        self.surrendered = True
        with self.lock:
            rest = 0 if self._claims is None else self._claims.drain()
            self._given += rest
            stop = len(self.batch) - self._given
        if rest:
            self.site.give_back(self.batch, stop)

    def fill(self, nbytes: int) -> None:
        """End the batch early where results of so many bytes have been collected.

        With those of further electrons, they would be copied into one column.
        """
        if nbytes >= FILLS_A_BATCH and self.batch.ids is None:
            self.surrender()

    def surrender_from(self, stop: int) -> None:
        """Give back the electrons from offset `stop` on, which its own thread will not begin."""
        with self.lock:
            given = len(self.batch) - stop
            more, self._given = given > self._given, max(given, self._given)
        if more:
            self.site.give_back(self.batch, stop)

    def hand_over(self) -> None:
        """Report the electrons that have ended, if the running one goes on for long."""
        if self._over.wait(HAND_OVER_SECONDS):
            return
        with self.lock:
            if self._over.is_set() or self._so_far is None:
                return
            outcome = self._so_far()
            part = outcome.part(self._reported, outcome.stop)
            if len(part) and self.site.report_part(self.batch, part):
                self._reported = max(self._reported, outcome.stop)

    @property
    def has_unreported(self) -> bool:
        """Whether electrons have ended that are not reported."""
        with self.lock:
            return self._so_far is not None and self._so_far().stop > self._reported

    def ran(self) -> float:
        """Return the seconds since the running electron began."""
        with self.lock:
            done = 0.0 if self._so_far is None else self._so_far().seconds
        return perf_counter() - self._began - done

    def heed(self, root: str, epoch: int, cancel: bool) -> None:
        """Stop, or with `cancel` cancel, those electrons of the batch that belong to `root`."""
        batch = self.batch
        sent_by_hand = batch.ids is not None and batch.origin.depth == 0
        if batch.root_id == root and batch.epoch <= epoch:
            self.cancelled |= cancel
            self.stopped = True
        elif sent_by_hand and batch.origin.channel == root:
            self.stopped = True
        elif cancel and (those := batch.descendants(root)):
            self.cancelled_ones.update(those)
        else:
            return
        self.surrender()
        threading.Thread(target=self.hand_over, name="atomizer-hand-over", daemon=True).start()

    def is_cancelled(self, offset: int) -> bool:
        """Return whether the electron at `offset` shall end."""
        if self.cancelled or offset in self.cancelled_ones:
            return True
        left = None if self.watch is None else self.watch.left()
        return left is not None and left <= 0

    def about_to_wait(self) -> None:
        """Give up the slot, once: the running electron is about to wait for its children."""
        if not self._released and threading.get_ident() == self._thread:
            self._released = True
            self.surrender()
            self.site.release_slot()

    @property
    def waits(self) -> bool:
        """Whether its running electron has given up the slot to wait for its children."""
        return self._released and not self._over.is_set()

    def emit(self, event: Event) -> None:
        """Put an event on the stream of the batch's sender."""
        self.site.emit(self.batch.origin.channel, event)

    def conductor(self, offset: int) -> ChildSender:
        """Return the conductor through which the electron at `offset` sends others."""
        batch = self.batch
        origin = batch.origin._replace(depth=batch.origin.depth + 1, space=batch.space)
        stream, index = batch.address(offset)
        return self.site.children(origin, batch.root(offset), stream.child(index), self)

    def ended(self) -> None:
        """Note that its loop has ended, also where that raised."""
        self._over.set()

    def rest_of(self, outcome: Outcome) -> Outcome:
        """Return the outcome of the batch without what has been reported already."""
        with self.lock:  # another thread may give back, or report, at this very moment
            stop = len(self.batch) - self._given
            return replace(outcome.part(self._reported, stop), stop=stop)

    # -- called by the loops that execute it --------------------------------------------------

    def time_is_up(self) -> None:
        """Give back what has not begun, and report what has ended: the time box is over."""
        self.surrender()
        self.hand_over()

    def begin(self, claims: Remaining, so_far: Callable[[], Outcome] | None) -> None:
        """Begin to execute.

        Parameters
        ----------
        claims
            The electrons that the loop draws from.
        so_far
            Returns the outcome of the electrons that have ended.
        """
        with self.lock:
            self._claims = claims
            self._so_far = so_far
        if self.stopped:  # before there were claims to give back
            self.surrender()

    def outcome(
        self,
        results: dict[str, Column],
        start: tuple[int, float],
        ends: np.ndarray,
        counts: np.ndarray | None = None,
        *,
        scalar: bool = True,
    ) -> Outcome:
        """Return the outcome of the electrons that have ended.

        Parameters
        ----------
        results
            Results of the electrons that did not fail.
        start
            When the batch began: nanoseconds since the epoch, and seconds of `perf_counter`.
        ends
            When each electron, or slice, ended: seconds of `perf_counter`.
        counts
            Sizes of the slices; None where electrons execute one by one.
        scalar
            Whether a result is one value rather than a record of several.
        """
        stop = len(ends) if counts is None else int(counts.sum())
        failures = self.failures
        known = failures.count_before(stop)
        return Outcome(
            stop=stop,
            results=results,
            failed=np.array(failures.offsets[:known], dtype=np.int64),
            codes=np.array(failures.codes[:known], dtype=np.int32),
            failures=list(failures.distinct),
            start_ns=start[0],
            ends=ends - start[1],
            counts=counts,
            worker=self.site.name,
            scalar=scalar,
            printed=None if self.recorder is None else self.recorder.until(stop),
        )

    def fail(self, offset: int, error: BaseException) -> None:
        """Note that an electron failed."""
        is_cancelled = self.cancelled or offset in self.cancelled_ones
        self.failures.add(offset, error, is_cancelled=is_cancelled)
