import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.conductors.amqp.prefetch import Prefetch

TICK = 0.1


def simulate(seconds_each, *, threads=2, queued=10**6, limit=10_000, ticks=100):
    """Have a node execute electrons that take so long, and return what it asked for each tick."""
    prefetch, unanswered, progress, answered, asked = Prefetch(limit), 0, 0.0, 0, []
    for _ in range(ticks):
        count = prefetch.follow(
            threads=threads, unanswered=unanswered, waiting=0, answered=answered, seconds=TICK
        )
        asked.append(count)
        taken = min(max(count - unanswered, 0), queued)
        unanswered, queued = unanswered + taken, queued - taken
        # A broker sends more as soon as one is acknowledged: the rate has no limit there.
        progress += threads * TICK / seconds_each
        answered = min(int(progress), unanswered + queued)
        progress -= answered
        from_queue = min(answered, queued)
        queued, unanswered = queued - from_queue, unanswered - (answered - from_queue)
    return asked


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_asks_for_few_where_electrons_take_long(threads):
    asked = simulate(60, threads=threads)
    assert set(asked) == {2 * threads}


def test_asks_for_half_a_second_of_small_electrons():
    asked = simulate(0.0002, threads=2)
    assert 5000 <= asked[-1] <= 1.25 * 5000


@pytest.mark.parametrize("limit", [1, 5, 10_000])
def test_never_asks_for_more_than_the_limit(limit):
    assert 0.75 * limit <= max(simulate(0.00001, limit=limit)) <= limit


def test_asks_for_less_again_where_electrons_get_longer():
    prefetch = Prefetch(10_000)
    for _ in range(5):
        prefetch.follow(threads=2, unanswered=prefetch.count, waiting=0, answered=500, seconds=TICK)
    assert prefetch.count > 2000
    for _ in range(200):
        prefetch.follow(threads=2, unanswered=prefetch.count, waiting=0, answered=0, seconds=TICK)
    assert prefetch.count < 10


def test_a_slow_queue_is_no_slow_node():
    prefetch = Prefetch(10_000)
    for _ in range(5):
        prefetch.follow(threads=2, unanswered=prefetch.count, waiting=0, answered=500, seconds=TICK)
    count = prefetch.count
    for _ in range(200):
        prefetch.follow(threads=2, unanswered=0, waiting=0, answered=0, seconds=TICK)
    assert prefetch.count == count


def test_a_new_number_is_not_asked_for_with_each_tick():
    asked = simulate(0.001)
    assert len(set(asked[20:])) == 1


@given(
    threads=st.integers(1, 64), spawners=st.integers(1, 500), limit=st.sampled_from([1, 3, 10_000])
)
def test_a_node_full_of_electrons_that_wait_is_sent_more(threads, spawners, limit):
    prefetch, unanswered = Prefetch(limit), 0
    for _ in range(10 * spawners + 100):
        count = prefetch.follow(
            threads=threads,
            unanswered=unanswered,
            waiting=min(unanswered, spawners),
            answered=0,
            seconds=TICK,
        )
        if unanswered >= spawners + 1:
            return  # the first of what they wait for is here
        assert count > unanswered, "it would wait for ever"
        unanswered = count
    raise AssertionError("never got past the spawners")


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 5000)), max_size=50
    ),
    st.integers(1, 1000),
)
def test_what_does_not_wait_stays_within_the_limit(history, limit):
    prefetch = Prefetch(limit)
    for unanswered, waiting, answered in history:
        waiting = min(waiting, unanswered)
        count = prefetch.follow(
            threads=2, unanswered=unanswered, waiting=waiting, answered=answered, seconds=TICK
        )
        assert count >= 1
        most = max(w for _, w, _ in history)
        assert count <= limit + 1.25 * most + 1
