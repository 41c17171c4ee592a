"""The policy, and a simulation of large clusters under it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import Simulation

from atomizer_dask.conductors.batch_size import Sizing


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
    boxes = []
    for threads in (1, 100, 1000, 10_000):
        sizing = learned(1000)
        boxes.append([sizing.next(10**9, threads).seconds for _ in range(threads + 1)][-1])
    assert boxes == sorted(boxes)
    assert 10_000 / boxes[-1] <= 200


def test_first_batches_of_many_threads_come_one_a_thread_and_end_at_different_times():
    sizing = Sizing()
    assert sizing.window(10**9, 10_000, 0) == 10_000
    boxes = [sizing.next(10**9, 10_000).seconds for _ in range(10_000)]
    assert min(boxes) <= 1  # to show something
    assert max(Counter(map(int, boxes)).values()) <= 300
    sizing.learn(1000, 1.0)
    assert sizing.window(10**9, 10_000, 10**6) == 10_000
    sizing.learn(1000, 1.0)
    assert sizing.window(10**9, 10_000, 10**6) == 10_001
    for _ in range(20_000):
        sizing.learn(1000, 1.0)
    assert sizing.window(10**9, 10_000, 10**6) == 20_000


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


SCHEDULER = 300  # tasks a second


def lognormal(mean, spread):
    """Durations with a standard deviation of `spread` times their mean."""
    sigma = np.log1p(spread**2) ** 0.5
    rng = np.random.default_rng(1)
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, 300_000)


def simulated(durations, seconds, threads, **options):
    """A run that would take so many seconds if all threads were busy all the time."""
    electrons = int(seconds * threads / durations.mean())
    simulation = Simulation(durations, electrons, threads, SCHEDULER, **options).run()
    assert simulation.executed == electrons
    assert simulation.waiting == simulation.leased == simulation.under_way == 0
    return simulation


def most_tasks_a_second(simulation, since, over=20):
    """The highest rate of tasks over some seconds in a row."""
    tasks = [simulation.tasks[second] for second in range(int(since), int(simulation.now) + over)]
    return max(sum(tasks[i : i + over]) / over for i in range(len(tasks) - over + 1))


def most_backlog(simulation, since=0.0):
    """For how many seconds the scheduler was behind, at most."""
    return max(behind for second, behind in simulation.backlog.items() if second >= since)


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.002, 1.0), (0.01, 1.0), (0.5, 1.0), (5.0, 0.5)], ids=str
)
def test_ten_thousand_threads_are_kept_busy_by_a_scheduler_of_300_tasks_a_second(mean, spread):
    threads, seconds = 10_000, 400.0
    run = simulated(lognormal(mean, spread), seconds, threads)
    fill = threads / SCHEDULER  # seconds until each thread can have a batch, on any policy
    assert run.utilisation >= 0.92 * seconds / (seconds + fill / 2)
    assert most_backlog(run) <= fill + 1
    assert most_backlog(run, since=fill + 1) <= 5
    assert most_tasks_a_second(run, since=1) <= SCHEDULER
    assert run.first_report <= 5  # while batches of 100 s are under way
    assert run.tail <= 25


@pytest.mark.parametrize("threads", [1, 8, 64, 256, 1000])
def test_fewer_threads_are_kept_busy_too(threads):
    run = simulated(lognormal(0.05, 1.0), 100.0, threads)
    assert run.utilisation >= 0.96
    assert most_tasks_a_second(run, since=1) <= SCHEDULER
    assert run.tail <= 2


@pytest.mark.parametrize(
    ("threads", "lives_for"), [(64, 60.0), (1000, 300.0), (2000, 1200.0)], ids=str
)
def test_workers_that_come_and_go_at_random_cost_what_was_in_flight(threads, lives_for):
    seconds = 200.0
    run = simulated(
        lognormal(0.5, 1.0),
        seconds,
        threads,
        lifetime=lambda rng, is_first: rng.exponential(lives_for),
    )
    box = max(0.25, threads / 100)
    assert run.lives > threads * 150 / lives_for  # many left
    assert run.cut <= run.lives
    assert run.wasted / run.alive <= (box + 1) / lives_for
    fill = threads / SCHEDULER
    assert run.utilisation >= 0.93 * seconds / (seconds + fill / 2) - box / lives_for
    assert most_tasks_a_second(run, since=fill + 1) <= SCHEDULER


@pytest.mark.parametrize(
    ("threads", "wall_time", "longest"), [(64, 20.0, 6.0), (64, 120.0, 6.0), (1000, 120.0, 2.0)]
)
def test_wall_times_cost_no_electron_and_little_time(threads, wall_time, longest):
    run = simulated(
        np.random.default_rng(2).uniform(0.1, longest, 300_000),
        200.0,
        threads,
        lifetime=lambda rng, is_first: wall_time * rng.uniform(0.8, 1.2),
        is_known=True,
    )
    assert run.lives >= threads  # each has left, on average
    assert run.thrown_away == 0
    # Only before the longest are known may one be cut that takes longer than all before it.
    assert run.cut <= 0.01 * run.lives
    # From the longest before its end, a worker is given nothing: what runs then takes on average
    # some 2/3 of half the longest more.
    idle = longest * 2 / 3 / wall_time + threads / SCHEDULER / 2 / 200
    assert run.utilisation >= 0.95 * (1 - idle)
    assert most_tasks_a_second(run, since=threads / SCHEDULER + 1) <= SCHEDULER


def test_sizes_of_a_run_are_many_and_none_is_zero():
    sizing, sizes, remaining = learned(1000), Counter(), 100_000
    while remaining:
        taken = min(sizing.next(remaining, 8).electrons, remaining)
        sizes[taken] += 1
        remaining -= taken
    assert min(sizes) >= 1
    assert sum(size * count for size, count in sizes.items()) == 100_000
