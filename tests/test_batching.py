"""The policy, and a simulation of large clusters under it."""

from collections import Counter
from heapq import heapify, heappop, heappush
from math import exp, log1p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.batching import Sizing


def learned(rate, row_bytes=0.0):
    sizing = Sizing(row_bytes)
    sizing.learn(1_000_000, 1_000_000 / rate)
    return sizing


@given(
    remaining=st.integers(1, 10**9),
    threads=st.integers(1, 20_000),
    rate=st.one_of(st.none(), st.floats(1e-4, 1e8)),
    row_bytes=st.floats(0, 1e9),
)
def test_batch_has_at_least_one_electron_and_some_time(remaining, threads, rate, row_bytes):
    sizing = Sizing(row_bytes) if rate is None else learned(rate, row_bytes)
    size = sizing.next(remaining, threads)
    assert size.electrons >= 1
    assert size.seconds > 0
    assert size.electrons == 1 or size.electrons * row_bytes <= 6 * 2**20
    assert sizing.window(remaining, threads, 0) >= threads


def test_first_batches_leave_something_for_every_thread():
    assert Sizing().next(remaining=1000, threads=10).electrons * 10 <= 1000


def test_batch_grows_with_the_rate():
    sizes = [learned(rate).next(10**9, 4).electrons for rate in (1, 100, 10_000)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_batch_shrinks_near_the_end():
    sizing = learned(1000)
    sizes = [sizing.next(remaining, 4).electrons for remaining in (10**6, 1000, 100)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 100 / 4


def test_time_box_grows_with_the_number_of_threads():
    boxes = [learned(1000).next(10**9, threads).seconds for threads in (1, 100, 1000, 10_000)]
    assert boxes == sorted(boxes)
    assert 10_000 / boxes[-1] <= 200


def test_rate_follows_what_was_measured_last():
    sizing = learned(1000)
    for _ in range(10):
        sizing.learn(100, 1.0)
    assert sizing.rate == pytest.approx(100, rel=0.01)


def test_batch_that_came_back_empty_teaches_nothing():
    sizing = Sizing()
    sizing.learn(0, 5.0)
    assert sizing.rate is None


def test_slow_electrons_do_not_queue_behind_each_other_at_the_end():
    assert learned(0.01).window(remaining=10, threads=8, under_way=8) == 8


def simulate(electrons, threads, mean, spread, latency=0.005, seed=0):
    """Return batches per second, utilisation, and the total, of a run under the policy.

    Durations of electrons are lognormal with `mean` seconds and a standard deviation `spread`
    times that. The sum over a batch is lognormal to a good approximation, with the mean and the
    variance of a sum (Fenton, IRE Trans. Commun. Syst. 8, 1960). A batch goes to the thread that
    falls free first, and the driver hears of its end after `latency` seconds.
    """
    draw = np.random.default_rng(seed)
    numbers = iter(())
    sizing = Sizing()
    waiting, under_way, executed, busy, batches = electrons, 0, 0, 0.0, 0
    free = [0.0] * threads  # when each thread falls free
    heapify(free)
    events = []  # when the driver hears of what: (time, order, kept, seconds)
    now = ended = 0.0
    while waiting or events:
        window = sizing.window(waiting, threads, under_way) if waiting else 0
        while waiting and len(events) < window:
            size = sizing.next(waiting, threads)
            count = min(size.electrons, waiting)
            waiting -= count
            under_way += count
            batches += 1
            begin = max(heappop(free), now + latency)
            if (z := next(numbers, None)) is None:
                numbers = iter(draw.standard_normal(100_000).tolist())
                z = next(numbers)
            variance = log1p(spread**2 / count)
            each = mean * exp(z * variance**0.5 - variance / 2)
            kept, seconds = count, each * count
            if seconds > size.seconds:  # the rest goes back when the electron that runs has ended
                kept = min(count, int(size.seconds / each) + 1)
                seconds = max(size.seconds, kept * each)
            heappush(free, begin + seconds)
            heappush(events, (begin + seconds + latency, batches, kept, count, seconds))
            busy += seconds
            ended = max(ended, begin + seconds)
        now, _, kept, count, seconds = heappop(events)
        executed += kept
        under_way -= count
        waiting += count - kept
        sizing.learn(kept, seconds)
    return batches / ended, busy / (threads * ended), executed


@pytest.mark.parametrize(
    ("electrons", "mean", "spread"),
    [(20_000_000, 0.5, 1.0), (100_000_000, 0.1, 2.0), (1_000_000_000, 0.01, 1.0)],
    ids=["half a second", "a tenth", "a hundredth"],
)
def test_ten_thousand_threads_are_kept_busy_by_few_batches(electrons, mean, spread):
    batches_per_second, utilisation, executed = simulate(electrons, 10_000, mean, spread)
    assert executed == electrons
    assert batches_per_second <= 300
    assert utilisation >= 0.95


@pytest.mark.parametrize("threads", [1, 8, 100, 1000])
def test_few_threads_are_kept_busy_too(threads):
    batches_per_second, utilisation, executed = simulate(threads * 100_000, threads, 0.001, 1.0)
    assert executed == threads * 100_000
    assert batches_per_second <= 300
    assert utilisation >= 0.95


def test_sizes_of_a_run_are_many_and_none_is_zero():
    sizing, sizes, remaining = learned(1000), Counter(), 100_000
    while remaining:
        taken = min(sizing.next(remaining, 8).electrons, remaining)
        sizes[taken] += 1
        remaining -= taken
    assert min(sizes) >= 1
    assert sum(size * count for size, count in sizes.items()) == 100_000
