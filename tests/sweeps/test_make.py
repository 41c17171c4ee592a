import itertools
from decimal import Decimal
from math import prod

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomizer_dask import InvalidSweepError, grid, zipped
from atomizer_dask.sweeps.columns import python_values
from atomizer_dask.sweeps.make import as_sweep
from atomizer_dask.sweeps.stream import Streamed

AXES = st.lists(
    st.one_of(
        st.builds(range, st.integers(-5, 5), st.integers(6, 11), st.integers(1, 3)),
        st.lists(st.integers(), min_size=1, max_size=5),
        st.lists(st.floats(allow_nan=False), min_size=1, max_size=5),
        st.lists(st.text(max_size=2), min_size=1, max_size=5),
        st.lists(st.booleans(), min_size=1, max_size=4).map(np.array),
        st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(pd.Categorical),
    ),
    min_size=1,
    max_size=4,
)


def rows_of(inputs):
    columns = inputs.columns()
    return list(zip(*map(python_values, columns.values()), strict=True))


# -- grids ---------------------------------------------------------------------------------------


@given(axes=AXES, data=st.data())
def test_any_slice_of_a_grid_is_that_of_the_cartesian_product(axes, data):
    sweep = grid(**{f"axis{n}": values for n, values in enumerate(axes)})
    expected = list(itertools.product(*map(list, axes)))
    assert sweep.length == len(expected)
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    inputs = sweep.take(start, stop)
    assert len(inputs) == stop - start
    assert rows_of(inputs) == expected[start:stop]


@given(axes=AXES)
def test_all_of_a_grid_is_the_cartesian_product(axes):
    sweep = grid(**{f"axis{n}": values for n, values in enumerate(axes)})
    assert rows_of(sweep) == list(itertools.product(*map(list, axes)))
    assert sweep.shape == tuple(map(len, axes))


def test_last_axis_of_a_grid_is_the_fastest():
    sweep = grid(a=[1, 2], b=["x", "y"])
    assert rows_of(sweep) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_pandas_axes_may_stand_anywhere_in_a_grid():
    days = pd.date_range("2026-01-01", periods=2, tz="UTC")
    kinds = pd.Categorical(["low", "high", "low"])
    sweep = grid(day=days, kind=kinds, x=[1, 2])
    columns = sweep.columns()
    assert list(columns["day"]) == [day for day in days for _ in range(6)]
    assert list(columns["kind"]) == ["low", "low", "high", "high", "low", "low"] * 2
    assert list(sweep.take(3, 8).columns()["kind"]) == ["high", "low", "low", "low", "low"]


def test_grid_is_never_materialised():
    sweep = grid(a=range(10**6), b=range(10**6), c=range(10**6))
    assert sweep.length == 10**18
    assert rows_of(sweep.take(10**18 - 2, 10**18)) == [
        (999_999, 999_999, 999_998),
        (999_999, 999_999, 999_999),
    ]


def test_payload_is_what_a_loop_over_the_values_gives():
    payload = grid(a=np.array([1, 2]), b=[0.5, 1.5]).payload(3)
    assert payload == {"a": 2, "b": 1.5}
    assert [type(value) for value in payload.values()] == [np.int64, float]


def test_repr_of_a_grid_is_short_and_escaped():
    sweep = grid(**{"<b>": range(1000), "y": range(1000)})
    assert repr(sweep) == "<Grid: 1,000,000 electrons of <b>, y>"
    assert "<b>" not in sweep._repr_html_()


@pytest.mark.parametrize("axis", [[], range(0), np.array([]), pd.Series([], dtype=float)])
@pytest.mark.parametrize("make", [grid, zipped])
def test_empty_axis_is_refused_by_name(make, axis):
    with pytest.raises(InvalidSweepError, match="'y' has no values"):
        make(x=[1], y=axis)


SCALARS = [5, "text", b"b", None, 1.5, np.float32(2.5), Decimal("0.1"), np.array(3)]


@pytest.mark.parametrize(
    ("make", "values"),
    [
        *((make, values) for make in (grid, zipped) for values in ({"a": 1}, {1, 2}, len)),
        *((zipped, values) for values in SCALARS[:-1]),
    ],
)
def test_axis_that_is_no_sequence_is_refused_by_name(make, values):
    with pytest.raises(InvalidSweepError, match=r"the values of 'x' are .*write x=\["):
        make(x=values)


@pytest.mark.parametrize("value", SCALARS)
def test_single_value_is_an_axis_of_a_grid(value):
    sweep = grid(x=value, i=range(3))
    assert sweep.shape == (1, 3)
    given = [sweep.payload(i)["x"] for i in range(3)]
    assert given == [value] * 3
    assert {type(one) for one in given} == {type(value[()] if is_array(value) else value)}


def is_array(value):
    return isinstance(value, np.ndarray)


@pytest.mark.parametrize("make", [grid, zipped])
def test_no_axis_at_all_is_refused(make):
    with pytest.raises(InvalidSweepError, match="at least one"):
        make()


def test_zero_dimensional_array_is_refused():
    with pytest.raises(InvalidSweepError, match="0-dimensional"):
        zipped(x=np.array(3))


# -- columns -------------------------------------------------------------------------------------


def test_zipped_is_side_by_side():
    assert rows_of(zipped(x=[1, 2, 3], y=["a", "b", "c"])) == [(1, "a"), (2, "b"), (3, "c")]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_any_slice_of_a_table_is_its_rows(case):
    length, start = case
    sweep = zipped(x=range(length), y=np.arange(length) / 2)
    assert rows_of(sweep.take(start, length)) == [(n, n / 2) for n in range(start, length)]


@pytest.mark.parametrize("make", [lambda c: zipped(**c), as_sweep])
def test_unequal_columns_are_refused_with_their_lengths(make):
    with pytest.raises(InvalidSweepError, match=r"x: 3, y: 2.*grid"):
        make({"x": [1, 2, 3], "y": [1, 2]})


def test_mapping_of_columns_is_a_table():
    sweep = as_sweep({"x": [1, 2], "y": np.array([0.5, 1.5])})
    assert rows_of(sweep) == [(1, 0.5), (2, 1.5)]
    assert sweep.index is None


def test_sweep_is_taken_as_it_is():
    sweep = grid(x=[1])
    assert as_sweep(sweep) is sweep


# -- DataFrames ----------------------------------------------------------------------------------


def test_frame_gives_its_rows_index_and_dtypes():
    frame = pd.DataFrame(
        {
            "single": np.array([1.5, 2.5], "f4"),
            "kind": pd.Categorical(["a", "b"]),
            "when": pd.date_range("2026-01-01", periods=2, tz="Europe/Berlin"),
            "maybe": pd.array([1, None], dtype="Int64"),
            "text": ["x", "y"],
        },
        index=pd.MultiIndex.from_tuples([("p", 1), ("q", 2)], names=["who", "n"]),
    )
    sweep = as_sweep(frame)
    assert sweep.names == tuple(frame.columns)
    assert sweep.index.equals(frame.index)
    again = pd.DataFrame({n: pd.Series(v) for n, v in sweep.columns().items()})
    pd.testing.assert_frame_equal(again, frame.reset_index(drop=True))
    assert sweep.payload(1) == {
        "single": 2.5,
        "kind": "b",
        "when": frame["when"].iloc[1],
        "maybe": pd.NA,
        "text": "y",
    }


def test_frame_may_be_changed_after_it_was_given():
    frame = pd.DataFrame({"x": [1, 2]})
    sweep = as_sweep(frame)
    frame["x"] = [3, 4]
    frame.loc[0, "x"] = 9
    assert rows_of(sweep) == [(1,), (2,)]


@pytest.mark.parametrize("frame", [pd.DataFrame({"x": []}), pd.DataFrame(index=[1, 2])])
def test_empty_frame_is_refused_with_its_shape(frame):
    with pytest.raises(InvalidSweepError, match="has no electrons: its shape is"):
        as_sweep(frame)


def test_frame_with_a_column_twice_is_refused():
    with pytest.raises(InvalidSweepError, match=r"\['x'\] appear more than once"):
        as_sweep(pd.DataFrame([[1, 2]], columns=["x", "x"]))


@pytest.mark.parametrize("inputs", [pd.DataFrame([[1]]), {0: [1]}, [{0: 1}]])
def test_names_that_are_no_texts_are_refused(inputs):
    with pytest.raises(InvalidSweepError, match="is named by a int"):
        as_sweep(inputs)


# -- rows ----------------------------------------------------------------------------------------


def test_list_of_mappings_is_a_table():
    assert rows_of(as_sweep([{"x": 1, "y": "a"}, {"y": "b", "x": 2}])) == [(1, "a"), (2, "b")]


def test_rows_with_other_fields_are_refused():
    with pytest.raises(InvalidSweepError, match=r"row 1 .*\['x', 'z'\], row 0 has \['x', 'y'\]"):
        as_sweep([{"x": 1, "y": 2}, {"x": 1, "z": 2}])


@pytest.mark.parametrize("rows", [[1, 2], [{"x": 1}, 5], [("x", 1)]])
def test_rows_that_are_no_mappings_are_refused(rows):
    with pytest.raises(InvalidSweepError, match=r"row \d of the sweep is"):
        as_sweep(rows)


@pytest.mark.parametrize("inputs", [[], (), {}, [{}], [{}, {}]])
def test_empty_sweep_is_refused(inputs):
    with pytest.raises(InvalidSweepError):
        as_sweep(inputs)


@pytest.mark.parametrize("inputs", [5, "text", {1, 2}, np.arange(3), None])
def test_what_cannot_be_swept_is_told_what_can(inputs):
    with pytest.raises(InvalidSweepError, match=r"cannot sweep over .*expected grid"):
        as_sweep(inputs)


# -- iterators -----------------------------------------------------------------------------------


def test_iterator_is_drawn_as_needed():
    drawn = []

    def rows():
        for n in itertools.count():
            drawn.append(n)
            yield {"x": n}

    sweep = as_sweep(rows())
    assert isinstance(sweep, Streamed)
    assert (sweep.length, drawn) == (None, [])
    assert list(itertools.islice(sweep.draw(), 3)) == [1, 2, 3]
    assert drawn == [0, 1, 2]
    assert rows_of(sweep) == [(0,), (1,), (2,)]
    assert sweep.payload(2) == {"x": 2}


def test_end_of_an_iterator_tells_its_length():
    sweep = as_sweep({"x": n} for n in range(2))
    assert list(sweep.draw()) == [1, 2]
    sweep.end()
    assert sweep.length == 2
    assert "2 electrons of x" in repr(sweep)


def test_iterator_may_leave_fields_out():
    sweep = as_sweep(iter([{"x": 1}, {"x": 2, "y": 3}]))
    list(sweep.draw())
    assert rows_of(sweep) == [(1, None), (2, 3)]


def test_iterator_of_something_else_is_refused_with_its_place():
    sweep = as_sweep(iter([{"x": 1}, 5]))
    with pytest.raises(InvalidSweepError, match="row 1 of the sweep is 5"):
        list(sweep.draw())


@pytest.mark.parametrize("sweep", [grid(x=range(100), y=np.zeros(10)), zipped(x=np.zeros(1000))])
def test_bytes_of_a_row_are_about_what_travels(sweep):
    data = sum(v.nbytes for v in sweep.columns().values() if isinstance(v, np.ndarray))
    assert 0 < sweep.row_bytes <= data / sweep.length


def test_number_of_electrons_is_the_product_of_the_axes():
    axes = {"a": range(3), "b": range(4), "c": range(5)}
    assert grid(**axes).length == prod(map(len, axes.values()))
