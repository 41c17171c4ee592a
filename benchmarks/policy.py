"""Figure 12: the sizing policy on a cluster far larger than this machine, simulated.

The driver is the real one, which asks the real `Sizing`. What is simulated is the rest: the
threads, how long electrons take, and how long messages do.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

from atomizer_dask.conductors.driver import Driver
from atomizer_dask.conductors.reports import Arrived, GivenBack
from atomizer_dask.execution.batch import FIRST, Origin
from benchmarks.fresh import Sample
from benchmarks.work import scaled

ORIGIN = Origin()
THREADS = 10_000
ELECTRONS = 1e9
MEAN, SIGMA = 0.01, 1.0  # seconds, and the spread of their logarithm
MESSAGE = 0.005  # seconds from the driver to a thread or back
TASK = 0.0016  # seconds that Dask's scheduler is busy with a task
ONE_BY_ONE = 30  # electrons up to which durations are drawn and not approximated


class Durations:
    """Lognormal durations of electrons.

    Parameters
    ----------
    mean
        In seconds.
    sigma
        Standard deviation of the logarithm.
    """

    def __init__(self, mean: float, sigma: float, rng: random.Random) -> None:
        self._mu, self._sigma, self._rng = log(mean) - sigma**2 / 2, sigma, rng
        self._mean, self._variance = mean, mean**2 * (exp(sigma**2) - 1)

    def execute(self, electrons: int, box: float) -> tuple[int, float]:
        """Return how many electrons are executed until the box ends, and how long that takes."""
        if electrons <= ONE_BY_ONE:
            return self._one_by_one(electrons, box)
        mean, gauss = self._mean, self._rng.gauss
        # The central limit theorem, for a sum of durations and for how many fit in a time.
        fitting = int(gauss(box / mean, sqrt(self._variance * box / mean**3)))
        if fitting >= electrons:
            return electrons, min(box, gauss(electrons * mean, sqrt(electrons * self._variance)))
        return max(fitting, 0) + 1, box + self._overrun()

    def _one_by_one(self, electrons: int, box: float) -> tuple[int, float]:
        elapsed = 0.0
        for done in range(1, electrons + 1):
            elapsed += self._rng.lognormvariate(self._mu, self._sigma)
            if elapsed > box and electrons > 1:
                return done, elapsed
        return electrons, elapsed

    def _overrun(self) -> float:
        # The electron that is running when the box ends is more likely a long one: of lengths in
        # proportion to themselves, of which a uniform share is left.
        long = self._rng.lognormvariate(self._mu + self._sigma**2, self._sigma)
        return long * self._rng.random()


@dataclass(slots=True)
class Lease:
    """What a driver sees of a batch."""

    key: str
    electrons: int
    seconds: float
    arrives: float = 0.0
    terms: Any = FIRST
    origin: Origin = ORIGIN
    due_seconds: float = 0.0
    longest: float = 0.0

    def __len__(self) -> int:
        return self.electrons


@dataclass(slots=True)
class Done:
    """What a driver sees of an outcome."""

    stop: int
    seconds: float
    failures: tuple[Any, ...] = ()
    first: int = 0
    longest: float = 0.0

    def __len__(self) -> int:
        return self.stop

    def part(self, start: int, stop: int) -> "Done":
        return self


class Cluster:
    """The threads, the source of the electrons, and time itself.

    Batches wait in one queue: what Dask's work stealing comes close to.

    Parameters
    ----------
    threads, electrons, durations
        How many there are, and how long they take.
    task
        Seconds for which each batch keeps the scheduler from the next one.
    """

    grows = False

    def __init__(
        self, threads: int, electrons: int, durations: Durations, task: float = 0.0
    ) -> None:
        self.threads = threads
        self.now = self.busy = 0.0
        self.begun: Counter[int] = Counter()  # batches, by the second in which they were sent
        self.first_fill = 0
        self._left = self._electrons = electrons
        self._durations = durations
        self._task = task
        self._scheduler_free = 0.0
        self._idle = threads
        self._queue: deque[tuple[Lease, Callable[[Any], None]]] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self) -> float:
        """Return how many seconds it takes until all electrons are done."""
        driver = Driver(self, self, self)
        driver.pump()
        self.first_fill = sum(self.begun.values())
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        if self._left or not driver.idle:
            raise RuntimeError(f"{self._left} electrons were left")
        return self.now

    def _at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    # -- as the driver's dispatcher and source --------------------------------------------------

    def post(self, action: Callable[[], Any]) -> None:
        self._at(self.now + MESSAGE, action)

    def waiting(self) -> int:
        return self._left

    def take(self, size: Any, key: str) -> Lease:
        electrons = min(size.electrons, self._left)
        self._left -= electrons
        return Lease(key, electrons, size.seconds)

    def give_back(self, batch: Lease, start: int, stop: int, terms: Any) -> None:
        self._left += stop - start

    def deliver(self, batch: Lease, outcome: Done, *, last: bool) -> None:
        self._electrons -= outcome.stop

    # -- as its conductor -----------------------------------------------------------------------

    def submit(self, batch: Lease, post: Callable[[Any], None]) -> None:
        self.begun[int(self.now)] += 1
        self._scheduler_free = max(self._scheduler_free, self.now) + self._task
        batch.arrives = self._scheduler_free + MESSAGE
        self._queue.append((batch, post))
        if self._idle:
            self._idle -= 1
            self._begin()

    def _begin(self) -> None:
        """Have a thread execute what comes next in the queue."""
        batch, post = self._queue.popleft()
        start = max(self.now, batch.arrives)
        kept, seconds = self._durations.execute(batch.electrons, batch.seconds)
        self.busy += seconds
        if kept < batch.electrons:
            # Once the box ends, while the electron that was running still is.
            self._at(start + batch.seconds, lambda: post(GivenBack(batch.key, kept)))
        arrived = Arrived(batch.key, Done(kept, seconds))
        self._at(start + seconds, lambda: self._end(lambda: post(arrived)))

    def _end(self, tell: Callable[[], None]) -> None:
        tell()
        if self._queue:
            self._begin()
        else:
            self._idle += 1


def sizing(scale: float, repeats: int) -> Iterator[Sample]:
    """Batches/s that the scheduler is sent, and the share of their time that threads are busy."""
    for seed in range(repeats):
        cluster, took = _simulate(scale, seed, task=0.0)
        real, took_for_real = _simulate(scale, seed, task=TASK)
        batches = sum(cluster.begun.values())
        # Every policy must give each thread something to begin with.
        cluster.begun[0] -= cluster.first_fill
        yield {
            "value": batches / took,
            "utilisation": cluster.busy / (cluster.threads * took),
            "most in any second after the first fill": max(cluster.begun.values()),
            "first fill": cluster.first_fill,
            "simulated s": took,
            "utilisation where the scheduler takes 1.6 ms a batch": real.busy
            / (real.threads * took_for_real),
        }


def _simulate(scale: float, seed: int, task: float) -> tuple[Cluster, float]:
    # Fewer threads too, or there were nothing to share out.
    threads, electrons = scaled(THREADS, scale), scaled(ELECTRONS, scale)
    durations = Durations(MEAN, SIGMA, random.Random(seed))
    cluster = Cluster(threads, electrons, durations, task)
    return cluster, cluster.run()
