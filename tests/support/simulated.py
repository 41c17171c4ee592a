"""A simulation of a cluster far larger than a test machine, whose driver has the real `Sizing`.

Time is in seconds. What is assumed:

- The scheduler takes one task after another, at most so many a second, in the order they come.
- Batches wait in one queue, and a thread that falls free takes the first: what Dask's choice of
  the least occupied worker, and its work stealing, come close to.
- A message takes `MESSAGE` from the driver to a worker or back.
- Durations of electrons are drawn beforehand, and a batch is a stretch of these: its box ends in
  the midst of one of them, as it does for real.
- A worker has one thread. One that leaves takes what runs on it along; another joins after
  `ABSENCE`.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np

from atomizer_dask.conductors.batch_size import Sizing

MESSAGE = 0.005
ABSENCE = 2.0


class Batch:
    __slots__ = ("electrons", "seconds")

    def __init__(self, electrons, seconds):
        self.electrons = electrons  # but for those that have been given back
        self.seconds = seconds


class Worker:
    __slots__ = ("batch", "box_ended", "gone", "joined", "leaves", "position", "start")

    def __init__(self, joined, leaves):
        self.joined = joined
        self.leaves = leaves
        self.gone = False
        self.batch = None  # which runs


class Simulation:
    """One run.

    Parameters
    ----------
    durations
        Of electrons, to draw from: far more than a batch has.
    electrons, threads
        How many there are.
    tasks_per_second
        What the scheduler can do.
    lifetime
        Gives the seconds that a worker lives, from a generator of random numbers and whether it is
        one of the first; without it all live on.
    is_known
        Whether a worker knows when its life will end, and drains.
    """

    def __init__(
        self, durations, electrons, threads, tasks_per_second=inf, lifetime=None, is_known=False
    ):
        self.durations = durations
        self.electrons = electrons
        self.threads = threads
        self.tasks_per_second = tasks_per_second
        self.lifetime = lifetime
        self.is_known = is_known
        self.sizing = Sizing()
        self.executed = 0
        self.useful = self.wasted = 0.0  # seconds of electrons whose results arrived, or did not
        self.cut = self.thrown_away = self.lives = 0  # electrons, and workers that left
        self.alive = 0.0  # seconds that workers were there
        self.tasks = Counter()  # by the second in which they were sent
        self.backlog = Counter()  # seconds until the scheduler had done with the last one
        self.drained = inf  # when a worker first found nothing, and nothing came any more
        self.first_report = inf

    def run(self, seed=0):
        """Go on until all electrons are done."""
        self.rng = np.random.default_rng(seed)
        # A list, for bisecting it is ten times as fast as searching an array for one value.
        self.sums = [0.0, *np.cumsum(self.durations).tolist()]
        self.position, self.longest = 0, 0.0
        self.waiting, self.leased, self.under_way = self.electrons, 0, 0
        self.queue, self.idle, self.events, self.order = deque(), deque(), [], count()
        self.now = self.scheduler_free = 0.0
        self.crew = set()
        for _ in range(self.threads):
            self.join(is_first=True)
        self.pump()
        while self.executed < self.electrons:
            self.now, _, action, arguments = heappop(self.events)
            action(*arguments)
        self.alive += sum(self.now - worker.joined for worker in self.crew)
        return self

    @property
    def utilisation(self):
        return self.useful / self.alive

    @property
    def tail(self):
        """Seconds from when the first worker has nothing left to do until the end."""
        return self.now - min(self.drained, self.now)

    def at(self, time, action, *arguments):
        heappush(self.events, (time, next(self.order), action, arguments))

    # -- workers ----------------------------------------------------------------------------

    def join(self, is_first=False):
        worker = Worker(self.now, inf)
        self.crew.add(worker)
        if self.lifetime is not None:
            worker.leaves = self.now + self.lifetime(self.rng, is_first)
            self.at(worker.leaves, self.leave, worker)
        if not is_first:
            self.find_work(worker)
            self.pump()
        else:
            self.idle.append(worker)

    def leave(self, worker):
        worker.gone = True
        self.crew.discard(worker)
        self.alive += self.now - worker.joined
        self.lives += 1
        if worker.batch is not None:
            self.lose(worker)
        self.at(self.now + ABSENCE, self.join)

    def lose(self, worker):
        """Have what ran on a worker come again, but for what it told of when its box ended."""
        ran = self.now - worker.start
        begin = self.sums[worker.position]
        ended = bisect_right(self.sums, begin + ran, worker.position) - 1 - worker.position
        told = ended if worker.box_ended else 0
        useful = self.sums[worker.position + told] - begin
        self.cut += 1
        self.thrown_away += ended - told
        self.useful += useful
        self.wasted += ran - useful
        self.at(self.now + MESSAGE, self.report, worker.batch.electrons, told, useful)
        worker.batch = None

    def has_had_its_last(self, worker):
        return self.is_known and worker.leaves - self.now <= self.longest

    def find_work(self, worker):
        worker.batch = None
        if worker.gone or self.has_had_its_last(worker):
            return
        if self.queue:
            self.begin(worker, self.queue.popleft())
            return
        self.idle.append(worker)
        if not self.waiting:
            self.drained = min(self.drained, self.now)

    def begin(self, worker, batch):
        box = batch.seconds
        if self.is_known:  # it shrinks towards the end
            box = min(box, worker.leaves - self.now - self.longest)
        if self.position + batch.electrons >= len(self.sums):
            self.position = 0
        position = worker.position = self.position
        begin = self.sums[position]
        stop = bisect_left(self.sums, begin + box, position + 1, position + batch.electrons)
        self.position = stop
        worker.batch, worker.start, worker.box_ended = batch, self.now, False
        if stop - position < batch.electrons:
            self.at(self.now + box, self.end_box, worker, batch, stop - position)
        self.at(self.now + self.sums[stop] - begin, self.end, worker, batch)

    def end_box(self, worker, batch, kept):
        if worker.batch is batch:
            worker.box_ended = True
            self.at(self.now + MESSAGE, self.take_back, batch.electrons - kept)
            batch.electrons = kept

    def end(self, worker, batch):
        if worker.batch is not batch:
            return
        seconds, position = self.now - worker.start, worker.position
        self.useful += seconds
        if self.is_known:
            those = self.durations[position : position + batch.electrons]
            self.longest = max(self.longest, float(those.max()))
        self.at(self.now + MESSAGE, self.report, batch.electrons, batch.electrons, seconds)
        self.find_work(worker)

    # -- the scheduler ------------------------------------------------------------------------

    def submit(self, batch):
        second = int(self.now)
        self.tasks[second] += 1
        self.scheduler_free = max(self.scheduler_free, self.now) + 1 / self.tasks_per_second
        self.backlog[second] = self.scheduler_free - self.now
        self.at(self.scheduler_free + MESSAGE, self.arrive, batch)

    def arrive(self, batch):
        while self.idle:
            worker = self.idle.popleft()
            if not (worker.gone or self.has_had_its_last(worker)):
                self.drained = inf
                self.begin(worker, batch)
                return
        self.queue.append(batch)

    # -- the driver ---------------------------------------------------------------------------

    def pump(self):
        while self.waiting:
            threads = len(self.crew)
            if self.under_way >= self.sizing.window(self.waiting, threads, self.leased):
                return
            size = self.sizing.next(self.waiting, threads)
            electrons = min(size.electrons, self.waiting)
            self.waiting -= electrons
            self.leased += electrons
            self.under_way += 1
            self.submit(Batch(electrons, size.seconds))

    def take_back(self, electrons):
        self.waiting += electrons
        self.leased -= electrons
        self.pump()

    def report(self, electrons, kept, seconds):
        """Hear of a batch that has ended, or that was lost."""
        self.first_report = min(self.first_report, self.now)
        self.executed += kept
        self.under_way -= 1
        self.leased -= electrons
        self.waiting += electrons - kept
        self.sizing.learn(kept, seconds)
        self.pump()
