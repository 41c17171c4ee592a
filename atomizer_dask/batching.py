"""How big the next batch is, and how long it may take: pure policy.

Sizes need only be roughly right, because a batch ends when its time box does and gives the rest
back. So the time box does the work: it is long enough that the scheduler never sees more than
`BATCHES_PER_SECOND` tasks a second, whatever the number of threads, and short enough that
progress shows and cancelling acts. Near the end batches shrink, so that all threads finish
together (guided self-scheduling, Polychronopoulos & Kuck, IEEE Trans. Comput. C-36, 1987).
"""

from __future__ import annotations

from dataclasses import dataclass

BATCHES_PER_SECOND = 200.0
SHORTEST_BOX = 0.25  # seconds: 100 times what a task costs
FIRST_BOX = 0.05  # seconds: learn soon
WORTHWHILE = 0.01  # seconds: a batch should not take less than carrying it does
LARGEST_BATCH = 6 * 2**20  # bytes of inputs: Dask warns of a task of 10 MB
LITTLE_ONES = 8  # batches per thread, where together they are less than worthwhile
LONGEST_FORGOTTEN = 0.995  # per electron: what there has not been among some hundred may not come
PREFETCH = 2  # batches per thread, so that a worker never waits for the driver


@dataclass(frozen=True, slots=True)
class Size:
    """How many electrons the next batch has, and the seconds it may take."""

    electrons: int
    seconds: float


class Sizing:
    """Learns how fast electrons go, and sizes batches accordingly.

    Parameters
    ----------
    row_bytes
        About how many bytes the inputs of an electron take.

    Examples
    --------
    >>> sizing = Sizing()
    >>> sizing.learn(electrons=1000, seconds=1.0)
    >>> sizing.next(remaining=10**6, threads=4)
    Size(electrons=500, seconds=0.25)
    >>> sizing.next(remaining=80, threads=4)
    Size(electrons=10, seconds=0.25)
    """

    def __init__(self, row_bytes: float = 0.0) -> None:
        self.rate: float | None = None  # electrons per second and thread
        self.longest = 0.0  # seconds that an electron has lately taken at most
        self._slowest: float | None = None  # of the average and the newest rate
        self._electrons = self._seconds = 0.0
        self._row_bytes = row_bytes
        self._started = 0

    def learn(self, electrons: int, seconds: float) -> None:
        """Take into account that a batch of `electrons` took `seconds`."""
        if electrons < 1:
            return
        seconds = max(seconds, 1e-6)
        # What ran a time box ago counts half: durations drift along a sweep.
        forget = 0.5 ** (seconds / SHORTEST_BOX)
        self._electrons = self._electrons * forget + electrons
        self._seconds = self._seconds * forget + seconds
        self.rate = self._electrons / self._seconds
        self.longest *= LONGEST_FORGOTTEN**electrons
        self._slowest = min(electrons / seconds, self.rate)

    def note_longest(self, seconds: float) -> None:
        """Take into account that there was an electron that took so long."""
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
        if remaining <= threads * PREFETCH and self._is_slow():
            # A last long electron must not queue behind another while a thread idles.
            return threads
        if self.rate is not None and under_way < self.rate * threads * WORTHWHILE:
            return threads * LITTLE_ONES  # these will be done before others can follow
        return threads * PREFETCH

    def seconds_ahead(self, batches: int, electrons: int, threads: int) -> float:
        """Return after about how many seconds another batch would begin, if others had no threads.

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
        each = FIRST_BOX
        if self.rate is not None:
            box = max(SHORTEST_BOX, threads / BATCHES_PER_SECOND)
            each = min(max(box, 1 / self.rate), electrons / self.rate / batches)
        return each * (batches + 1 - threads) / threads

    def should_linger(self, waiting: int) -> bool:
        """Return whether so few electrons had better wait for others to travel with."""
        return self.rate is not None and waiting < self.rate * WORTHWHILE

    def next(self, remaining: int, threads: int) -> Size:
        """Return the size of the next batch, given how many electrons are not yet under way."""
        threads = max(threads, 1)
        self._started += 1
        box = max(SHORTEST_BOX, threads / BATCHES_PER_SECOND)
        share = -(-remaining // (threads * PREFETCH))
        if self.rate is None:
            return Size(self._bounded(share), self._first_box(box, threads))
        # Twice what fits, so that it is the box that ends a batch and not the electrons.
        fitting = 2 * self.rate * box
        # Where a box is long because threads are many, small last batches would come by thousands.
        least = self.rate * (WORTHWHILE if box == SHORTEST_BOX else box / 4)
        return Size(self._bounded(max(min(fitting, share), least)), box)

    def _first_box(self, box: float, threads: int) -> float:
        # Staggered where there are many threads: their first batches shall not all end at once.
        staggered = box * (0.2 + 0.8 * (self._started % threads) / threads)
        return FIRST_BOX if box == SHORTEST_BOX else staggered

    def _bounded(self, electrons: float) -> int:
        fitting = LARGEST_BATCH / self._row_bytes if self._row_bytes else electrons
        return max(1, int(min(electrons, fitting)))

    def _is_slow(self) -> bool:
        return self._slowest is not None and 1 / self._slowest > WORTHWHILE * 2
