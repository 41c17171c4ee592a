from hypothesis import example, given
from hypothesis import strategies as st

from atomizer_dask.widgets.rate_history import POINTS, RateHistory


def test_a_steady_run_has_one_rate_however_long_it_takes():
    course = RateHistory()
    for step in range(20_000):
        course.note(0.2 * step, 10 * step)
    assert len(course.rates()) <= POINTS
    assert {rate for _, rate in course.rates()} == {50.0}
    assert course.rates()[-1][0] > 3900


def test_a_rest_is_seen_as_one():
    course = RateHistory()
    for second, ended in [(0, 0), (1, 100), (2, 100), (3, 100), (60, 100), (61, 200)]:
        course.note(second, ended)
    assert course.rates() == [[1.0, 100.0], [60.0, 0.0], [61.0, 100.0]]


def test_electrons_that_are_tried_again_are_no_negative_rate():
    course = RateHistory()
    for second, ended in [(0, 0), (1, 100), (2, 10)]:
        course.note(second, ended)
    assert course.rates() == [[1.0, 100.0], [2.0, 0.0]]


@example([(2e-309, 1, True)])
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**8), st.booleans())))
def test_whatever_comes_points_are_few_ordered_and_finite(samples):
    course = RateHistory()
    for seconds, ended, last in samples:
        course.note(seconds, ended, last=last)
    rates = course.rates()
    assert len(rates) <= POINTS
    assert [t for t, _ in rates] == sorted(t for t, _ in rates)
    assert all(0 <= rate < float("inf") for _, rate in rates)
