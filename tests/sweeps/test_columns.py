from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask.sweeps.columns import column, concatenate, numpy_values, python_values, size_of

SMALL = st.integers(-(2**63), 2**63 - 1)
HUGE = st.sampled_from([2**64, -(2**70), 2**200])
PLAIN = st.one_of(SMALL, st.floats(), st.booleans(), st.complex_numbers(), st.text(max_size=3))
NUMPY = st.one_of(
    st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64]).flatmap(
        lambda kind: st.integers(0, 100).map(kind)
    ),
    st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda kind: st.floats(0, 1, width=16).map(kind)
    ),
    st.booleans().map(np.bool_),
    st.sampled_from(["x", None]),
)
ARRAYS = st.builds(
    lambda shape, kind: np.ones(shape, dtype=kind),
    st.sampled_from([(1,), (2,), (2, 2)]),
    st.sampled_from([np.int64, np.float64, bool]),
)


def facts(values):
    """All that somebody could notice of a column."""
    return values.dtype, [(type(value), repr(value)) for value in python_values(values)]


def cuts(elements):
    return st.tuples(st.lists(elements, max_size=8), st.lists(st.integers(0, 8), max_size=3))


def check_independent_of_cuts(values, where):
    bounds = [0, *sorted(min(cut, len(values)) for cut in where), len(values)]
    parts = [column(values[a:b]) for a, b in pairwise(bounds)]
    assert facts(concatenate(parts)) == facts(column(values))


@given(cuts(st.one_of(SMALL, st.floats())))
def test_column_of_numbers_does_not_depend_on_batches(case):
    check_independent_of_cuts(*case)


@given(cuts(PLAIN))
def test_column_of_python_values_does_not_depend_on_batches(case):
    check_independent_of_cuts(*case)


@given(cuts(st.one_of(SMALL, HUGE, st.floats())))
def test_column_with_huge_integers_does_not_depend_on_batches(case):
    check_independent_of_cuts(*case)


@given(cuts(NUMPY))
def test_column_of_numpy_scalars_does_not_depend_on_batches(case):
    check_independent_of_cuts(*case)


@given(cuts(ARRAYS))
def test_column_of_arrays_does_not_depend_on_batches(case):
    check_independent_of_cuts(*case)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([1, 2.5], "float64"),
        ([True, False], "bool"),
        ([1, 2j], "complex128"),
        ([True, 1], "object"),
        ([1, 2**70], "object"),
        (["a", "b"], "object"),
        ([np.float32(1), np.float32(2)], "float32"),
        ([np.int64(1), np.uint64(2)], "object"),
        ([np.datetime64("2026-01-01"), np.datetime64("2026-01-01T12")], "datetime64[h]"),
        ([], "object"),
    ],
)
def test_dtype_of_a_column_holds_its_values_unchanged(values, dtype):
    assert column(values).dtype == dtype
    assert python_values(column([v for v in values if type(v) in (int, bool, str)])) == [
        v for v in values if type(v) in (int, bool, str)
    ]


def test_timedeltas_that_numpy_cannot_unite_stay_objects():
    assert column([np.timedelta64(1, "Y"), np.timedelta64(1, "D")]).dtype == object


def test_equal_arrays_are_stacked_and_others_kept():
    assert column([np.zeros(3), np.ones(3)]).shape == (2, 3)
    ragged = column([np.zeros(3), np.ones(2)])
    assert ragged.shape == (2,)
    assert ragged[1].tolist() == [1, 1]


def test_numbers_and_arrays_are_the_same_whichever_batches_they_come_in():
    array = np.zeros(2)
    for values in (
        [1, array],
        [array, 2.5, np.zeros(3)],
        [array, "x"],
        [array, np.datetime64(1, "s")],
    ):
        parts = [column([value]) for value in values]
        assert facts(concatenate(parts)) == facts(column(values))
    assert type(concatenate([column([1]), column([array])])[0]) is int


def test_lists_and_dicts_stay_what_they_are():
    values = [[1, 2], [3, 4]]
    assert column(values).tolist() == values
    assert column([{"a": 1}]).tolist() == [{"a": 1}]


def test_concatenate_of_pandas_arrays_keeps_their_dtype():
    values = pd.array([1, None, 3], dtype="Int64")
    assert concatenate([values[:1], values[1:]]).equals(values)
    dates = pd.Series(pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin")).array
    assert concatenate([dates[:2], dates[2:]]).equals(dates)


def test_concatenate_ignores_empty_parts():
    assert facts(concatenate([np.empty(0, object), np.array([1, 2])])) == facts(np.array([1, 2]))
    assert len(concatenate([np.empty(0, object), np.empty(0, object)])) == 0


def test_python_values_are_plain():
    assert [type(v) for v in python_values(np.array([1, 2], "i4"))] == [int, int]
    assert [type(v) for v in python_values(np.array([1.5], "f4"))] == [float]
    assert python_values(range(3)) == [0, 1, 2]
    assert python_values(np.array(["2026-01-01"], "M8[ns]")) == [pd.Timestamp("2026-01-01")]


def test_numpy_values_of_a_range_are_its_numbers():
    assert numpy_values(range(10, 0, -3)).tolist() == [10, 7, 4, 1]


def test_size_is_about_the_bytes_that_travel():
    assert size_of(np.empty(0, dtype=object)) == 0
    assert size_of(range(10**9)) == 0
    assert size_of(np.zeros(1000)) == 8000
    assert size_of(column([np.zeros(10**6), np.zeros(10)])) >= 8 * 10**6
