"""How big the next batch is, and how long it may take: pure policy.

Sizes need only be roughly right, because a batch ends when its time box does and gives the rest
back. So the time box does the work: it is long enough that the scheduler never sees more than
`Bounds.per_second` tasks a second, whatever the number of threads, and short enough that
progress shows and cancelling acts. Where threads are so many that the box is a long one, the
first batches are the problem: the scheduler needs longer to hand out all of them than the first
of them takes. So each thread gets one batch only, and second ones are added as batches end. The
first boxes differ in length, so that they do not all end together; the very first are short, so
that the rate is known and progress shows soon. Near the end batches shrink, so that all threads
finish together (guided self-scheduling, Polychronopoulos & Kuck, IEEE Trans. Comput. C-36, 1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from atomizer_dask.config import setting

WORTHWHILE = 0.01  # seconds: a batch should not take less than carrying it does
LITTLE_ONES = 8  # batches per thread, where all under way take less than `WORTHWHILE`
LONGEST_FORGOTTEN = 0.995  # decay per electron: after some hundred a long one is forgotten
# First boxes of many threads, as shares of the full one. When the shortest of them ends, a
# scheduler that takes 3 times `Bounds.per_second` has handed out all first batches. These then end
# over one full box, so that second batches begin to end when the last first one has ended.
LEAST_FIRST_BOX, FIRST_BOXES_DIFFER = 0.4, 0.65
SCOUT_BOX = 0.01  # share of the full box that a scout has: a first batch to learn the rate from
THREADS_PER_SCOUT = 100
LEAST_WORTH = 0.02  # least share of a box that a batch fills at the end, with many threads


@dataclass(frozen=True, slots=True)
class Size:
    """How many electrons the next batch has, and the seconds it may take."""

    electrons: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is configured about batches.

    Parameters
    ----------
    per_second
        Most batches of a run that the scheduler sees per second.
    shortest
        Seconds that a batch may take where threads are few: 100 times what a task costs.
    first
        Seconds that the first batches may take, to learn the rate soon.
    largest
        Most bytes of the inputs of a batch: Dask warns of a task of 10 MB.
    prefetch
        Batches per thread: a spare one keeps the worker busy.
    """

    per_second: float
    shortest: float
    first: float
    largest: int
    prefetch: float

    @classmethod
    def configured(cls) -> Bounds:
        """Return what is configured now."""
        return cls(
            setting("batches.per-second"),
            setting("batches.shortest"),
            setting("batches.first"),
            setting("batches.largest"),
            setting("batches.prefetch"),
        )

    def box(self, threads: int) -> float:
        """Return the seconds that a batch may take."""
        return max(self.shortest, threads / self.per_second)


class Sizing:
    """Learns how fast electrons go, and sizes batches accordingly.

    Parameters
    ----------
    row_bytes
        About how many bytes the inputs of an electron take.
    bounds
        What is configured; by default read from the configuration now.

    Examples
    --------
    >>> sizing = Sizing()
    >>> sizing.learn(electrons=1000, seconds=1.0)
    >>> sizing.next(remaining=10**6, threads=4)
    Size(electrons=500, seconds=0.25)
    >>> sizing.next(remaining=80, threads=4)
    Size(electrons=10, seconds=0.25)
    """

    def __init__(self, row_bytes: float = 0.0, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds.configured()
        self.rate: float | None = None  # electrons per second and thread
        self.longest = 0.0  # most seconds that an electron has lately taken
        self._slowest: float | None = None  # the lower of the average and the newest rate
        self._electrons = self._seconds = 0.0
        self._row_bytes = row_bytes
        self._started = self._ended = 0  # batches

    def learn(self, electrons: int, seconds: float) -> None:
        """Take into account that a batch of `electrons` took `seconds`."""
        if electrons < 1:
            return
        self._ended += 1
        seconds = max(seconds, 1e-6)
        # A batch of a time box ago counts half: durations drift along a sweep.
        forget = 0.5 ** (seconds / self.bounds.shortest)
        self._electrons = self._electrons * forget + electrons
        self._seconds = self._seconds * forget + seconds
        self.rate = self._electrons / self._seconds
        self.longest *= LONGEST_FORGOTTEN**electrons
        self._slowest = min(electrons / seconds, self.rate)

    def note_longest(self, seconds: float) -> None:
        """Note how many seconds the longest electron of a batch took."""
        self.longest = max(self.longest, seconds)

    def window(self, remaining: int, threads: int, under_way: int) -> int:
        """Return how many batches should be under way.

        Parameters
        ----------
        remaining, under_way
            How many electrons are not yet under way, and how many are.
        threads
            How many there are.
        """
        threads = max(threads, 1)
        most = max(1, int(threads * self.bounds.prefetch))
        if remaining <= most and self._is_slow(self.bounds.box(threads)):
            # A last long electron must not queue behind another while a thread idles.
            return threads
        if self.rate is not None and under_way < self.rate * threads * WORTHWHILE:
            return threads * LITTLE_ONES  # these end before others can follow
        if self.bounds.box(threads) > self.bounds.shortest:
            return min(threads + self._ended // 2, most)
        return most

    def seconds_ahead(self, batches: int, electrons: int, threads: int) -> float:
        """Return about how many seconds until another batch begins, if its source had all threads.

        Parameters
        ----------
        batches, electrons
            How many are under way.
        threads
            How many there are.
        """
        threads = max(threads, 1)
        if batches < threads:
            return 0.0
        each = self.bounds.first
        if self.rate is not None:
            box = self.bounds.box(threads)
            each = min(max(box, 1 / self.rate), electrons / self.rate / batches)
        return each * (batches + 1 - threads) / threads

    def should_linger(self, waiting: int) -> bool:
        """Return whether `waiting` electrons are so few that they should wait for others."""
        return self.rate is not None and waiting < self.rate * WORTHWHILE

    def next(self, remaining: int, threads: int) -> Size:
        """Return the size of the next batch, given how many electrons are not yet under way."""
        threads = max(threads, 1)
        self._started += 1
        box = self.bounds.box(threads)
        share = ceil(remaining / (threads * self.bounds.prefetch))
        if self.rate is None:
            return Size(self._bounded(share), self._first_box(box, threads))
        if box == self.bounds.shortest:
            # Twice what fits, so that it is the box that ends a batch and not the electrons.
            electrons = max(min(2 * self.rate * box, share), self.rate * WORTHWHILE)
            return Size(self._bounded(electrons), box)
        is_first = self._started <= threads  # sent together with those of all other threads
        seconds = self._first_box(box, threads) if is_first else box
        return Size(
            self._bounded(self.rate * self._seconds_of_work(box, remaining, threads)), seconds
        )

    def _seconds_of_work(self, box: float, remaining: int, threads: int) -> float:
        """Return how many seconds of electrons a batch has, where threads are many.

        Equal shares of the remaining electrons would become small long before the end, and come by
        thousands. But batches end one after another all the time. So it is enough that each batch
        is shorter than the one before it by the time between their ends: then all threads finish
        together, without more batches a second. The remaining time is the sum of such a series,
        and is proportional to the square of its first batch.
        """
        assert self.rate is not None
        left = remaining / (self.rate * threads)  # seconds
        # Twice what fits, so that it is the box that ends a batch and not the electrons. Near the
        # end only what fits, or electrons given back would return in the midst of the end.
        fitting = 2 * box if left > 2 * self.bounds.prefetch * box else box
        return max(min(fitting, sqrt(2 * box * left)), box * LEAST_WORTH)

    def _first_box(self, box: float, threads: int) -> float:
        if box == self.bounds.shortest:
            return self.bounds.first
        if self._started <= threads / THREADS_PER_SCOUT:
            return max(box * SCOUT_BOX, self.bounds.first)
        order = self._started % threads / threads
        return box * (LEAST_FIRST_BOX + FIRST_BOXES_DIFFER * order)

    def _bounded(self, electrons: float) -> int:
        fitting = self.bounds.largest / self._row_bytes if self._row_bytes else electrons
        return max(1, int(min(electrons, fitting)))

    def _is_slow(self, box: float) -> bool:
        least = WORTHWHILE * 2 if box == self.bounds.shortest else box / 4
        return self._slowest is not None and 1 / self._slowest > least
